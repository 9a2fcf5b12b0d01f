"""Optimisers, schedules and clipping, step by step against torch.optim."""

import inspect
import io
import itertools
import math
import signal
import tracemalloc

import numpy as np
import pytest

import fastrnn
from fastrnn import nn, optim
from fastrnn.backends import native
from fastrnn.errors import BackendError, DtypeError, OptionError, ShapeError
from fastrnn.module import Block, Module

GRID = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {}),
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.1, "weight_decay": 0.2}),
    ("RMSprop", {}),
    ("RMSprop", {"lr": 0.05, "alpha": 0.8, "eps": 1e-3, "weight_decay": 0.1}),
    ("RMSprop", {"momentum": 0.9}),
    ("RMSprop", {"centered": True}),
    ("RMSprop", {"centered": True, "momentum": 0.5, "weight_decay": 0.1}),
    ("Adam", {}),
    ("Adam", {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}),
    ("Adam", {"amsgrad": True}),
    ("Adam", {"betas": (0.0, 0.0)}),
    ("AdamW", {}),
    ("AdamW", {"lr": 0.05, "weight_decay": 0.3}),
    ("AdamW", {"lr": 0.05, "weight_decay": 0.3, "amsgrad": True, "betas": (0.5, 0.6)}),
]
SHAPES = {"scalar": (), "none": (0, 3), "one": (1,), "matrix": (5, 7), "long": (3, optim.CHUNK // 2 + 1)}


class Model(Module):
    """Every size that matters in one block, and a second block."""

    def __init__(self, dtype="float64", seed=0):
        self.first, self.second = Block(SHAPES, dtype), Block({"other": (4, 3)}, dtype)
        random = np.random.default_rng(seed)
        for block in self.blocks():
            block.flat[:] = random.standard_normal(block.flat.size)


def ids(value):
    return ",".join(f"{k}={v}" for k, v in value.items()) or "plain" if isinstance(value, dict) else str(value)


def gradients(model, step):
    """Other ones every step, in sizes from tiny to large."""
    random = np.random.default_rng([7, step])
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    return {name: random.standard_normal(shape) * 10.0 ** random.integers(-4, 3) for name, shape in shapes.items()}


def give(model, step):
    for name, gradient in gradients(model, step).items():
        model.grad[name][...] = gradient


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def twins(torch, model, gradients=None):
    """The parameters of a model as PyTorch's, by name, with these gradients."""
    made = {name: torch.nn.Parameter(torch.tensor(np.array(p))) for name, p in model.named_parameters()}
    for name, gradient in (gradients or {}).items():
        made[name].grad = torch.tensor(gradient)
    return made


@pytest.fixture(params=["numpy", *(() if native.missing() else native.isas())])
def ways(request, monkeypatch):
    """The NumPy way, and the C kernels of each instruction set."""
    if request.param != "numpy":
        monkeypatch.setenv("FASTRNN_ISA", request.param)
    with fastrnn.use_backend("numpy" if request.param == "numpy" else "c"):
        yield request.param


# ---------------------------------------------------------------- updates


@pytest.mark.parametrize("name, options", GRID, ids=ids)
def test_steps_are_torchs(torch, name, options, ways):
    model = Model()
    theirs = twins(torch, model)
    reference = getattr(torch.optim, name)(theirs.values(), **options)
    optimizer = getattr(optim, name)(model, **options)
    for step in range(6):
        give(model, step)
        for key, gradient in gradients(model, step).items():
            theirs[key].grad = torch.tensor(gradient)
        if step == 4:
            optimizer.lr = reference.param_groups[0]["lr"] = 0.02
        before, kept = [block.version for block in model.blocks()], [block.grad.copy() for block in model.blocks()]
        optimizer.step()
        reference.step()
        assert all(block.version > version for block, version in zip(model.blocks(), before, strict=True))
        assert all(np.array_equal(block.grad, grad) for block, grad in zip(model.blocks(), kept, strict=True))
        for key, parameter in model.named_parameters():
            np.testing.assert_allclose(parameter, theirs[key].detach().numpy(), 1e-12, 1e-12)


@pytest.mark.parametrize("name, options", GRID, ids=ids)
def test_float32_stays_float32(name, options, ways):
    low, high = Model("float32"), Model("float64")
    high.load_state_dict(low.state_dict())
    ours, exact = getattr(optim, name)(low, **options), getattr(optim, name)(high, **options)
    for step in range(6):
        give(low, step)
        for key, gradient in low.grad.items():
            high.grad[key][...] = gradient
        ours.step()
        exact.step()
    assert all(block.flat.dtype == np.float32 for block in low.blocks())
    for key, parameter in low.named_parameters():
        np.testing.assert_allclose(parameter, high.state_dict()[key], 2e-5, 2e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name, options", GRID, ids=ids)
def test_kernels_have_numpys_bits(name, options, dtype, monkeypatch, isas=None):
    if reason := native.missing():
        pytest.skip(reason)

    def after(backend):
        model = Model(dtype)
        with fastrnn.use_backend(backend):
            optimizer = getattr(optim, name)(model, **options)
            for step in range(4):
                give(model, step)
                optimizer.step()
            norm = optim.clip_grad_norm(model, 0.1)  # whose last bit may differ
        return [model.first.flat, model.second.flat, *optimizer.state_dict().values(), norm], model.first.grad

    expected, clipped = after("numpy")
    before = fastrnn.get_num_threads()
    try:
        for isa, threads in itertools.product(isas or native.isas(), (1, 2)):
            monkeypatch.setenv("FASTRNN_ISA", isa)
            fastrnn.set_num_threads(threads)
            found, gradients = after("c")
            for one, other in zip(found[:-1], expected[:-1], strict=True):
                np.testing.assert_array_equal(one, other)
            assert found[-1] == pytest.approx(expected[-1], rel=1e-14)
            np.testing.assert_allclose(gradients, clipped, 3e-7 if dtype == np.float32 else 1e-15)
    finally:
        fastrnn.set_num_threads(before)


@pytest.mark.parametrize(
    ("name", "options"),
    [("SGD", {"momentum": 0.9, "nesterov": True}), ("RMSprop", {"centered": True}), ("Adam", {"amsgrad": True})],
    ids=ids,
)
def test_threads_share_a_large_step(name, options, n=1_000_003):
    """So large that the team takes part, in parts that are no whole vectors."""
    if reason := native.missing():
        pytest.skip(reason)
    random, found = np.random.default_rng(0), {}
    values, gradients = random.standard_normal((2, n), np.float32)
    for backend in ("numpy", "c"):
        block = Block({"w": (n,)})
        with fastrnn.use_backend(backend):
            optimizer = getattr(optim, name)(block["w"], **options)
            block.flat[:], block.grad[:] = values, gradients
            norm = optim.clip_grad_norm(block["w"], 100.0)
            block.grad[:] = gradients  # whose factor's last bit may differ
            optimizer.step()
            optimizer.step()
        found[backend] = [block.flat, *optimizer.state_dict().values()], norm
    assert found["c"][1] == pytest.approx(found["numpy"][1], rel=1e-13)
    for one, other in zip(found["c"][0], found["numpy"][0], strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("resumed_at", [None, 1, 2, 3, 5])
def test_momentum_that_comes_later(torch, resumed_at):
    """The first step with momentum takes the whole gradient, whichever it is; later ones, dampening."""
    found = {}
    for backend in ("numpy",) if native.missing() else ("numpy", "c"):
        model = Model()
        theirs = twins(torch, model)
        reference = torch.optim.SGD(theirs.values(), 0.1, dampening=0.3)
        optimizer = optim.SGD(model, 0.1, dampening=0.3)
        for step in range(7):
            if step == resumed_at:
                state, optimizer = optimizer.state_dict(), optim.SGD(model)
                optimizer.load_state_dict(through_npz(state))
            optimizer.momentum = reference.param_groups[0]["momentum"] = (0, 0, 0.9, 0.9, 0, 0, 0.5)[step]
            give(model, step)
            for key, gradient in gradients(model, step).items():
                theirs[key].grad = torch.tensor(gradient)
            with fastrnn.use_backend(backend):
                optimizer.step()
            reference.step()
            for key, parameter in model.named_parameters():
                np.testing.assert_allclose(parameter, theirs[key].detach().numpy(), 1e-12, 1e-12)
        found[backend] = [block.flat for block in model.blocks()]
    for one, other in zip(found["numpy"], found[backend], strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("eps", [0.0, 1e-38, 1e-30, 1e-20])
def test_adam_with_next_to_nothing(eps):
    """What is subnormal counts: a step is as large whatever the gradient's size, and no 0 / 0."""
    block, other = Block({"w": (5,)}), Block({"w": (5,)})
    for each, backend in ((block, None), (other, "numpy")):
        each.grad[:] = [0, 1e-20, -1e-19, 1e-12, 1]
        with fastrnn.use_backend(backend):
            optimizer = optim.Adam(each["w"], eps=eps)
            optimizer.step()
            optimizer.step()
    np.testing.assert_array_equal(block.flat, other.flat)
    assert eps == 0 or np.isfinite(block.flat).all()


def test_nothing_to_change(ways):
    block = Block({"none": (0, 3)})
    assert optim.clip_grad_norm(block["none"], 0.0) == 0
    for name in OPTIMIZERS:
        getattr(optim, name)(block["none"]).step()


OPTIMIZERS = ["SGD", "RMSprop", "Adam", "AdamW"]
LRS = ["LambdaLR", "LinearLR", "StepLR", "ExponentialLR", "CosineAnnealingLR", "ReduceLROnPlateau"]


@pytest.mark.parametrize("name", OPTIMIZERS + LRS)
def test_defaults_and_their_order_are_torchs(torch, name):
    ours = inspect.signature(getattr(optim, name)).parameters
    theirs = inspect.signature(getattr(torch.optim.lr_scheduler if name in LRS else torch.optim, name)).parameters
    positional = [p.name for p in theirs.values() if p.kind is p.POSITIONAL_OR_KEYWORD and p.name in ours]
    assert list(ours) == positional
    assert {n: p.default for n, p in ours.items()} == {n: theirs[n].default for n in ours}


def test_only_the_parameters_given_move(torch):
    model = Model()
    before = model.state_dict()
    chosen = ["one", "matrix", "other"]  # neighbours, and another block
    optimizer = optim.Adam([parameter for name, parameter in model.named_parameters() if name in chosen])
    give(model, 0)
    optimizer.step()
    moved = [name for name, value in model.state_dict().items() if not np.array_equal(value, before[name])]
    assert moved == chosen
    assert len(optimizer._spans) == len(optim.Adam(model)._spans) == 2  # neighbours are one loop
    optimizer.zero_grad(set_to_none=True)
    assert [name for name, gradient in model.grad.items() if gradient.size and not gradient.any()] == chosen


def test_what_params_may_be():
    first, second = Model(seed=1), Model(seed=2)
    whole = {"scalar", "none", "one", "matrix", "long", "other"}
    for params, moved in [
        (first, whole),
        ([first, first], whole),
        ((p for p in first.parameters()), whole),
        ([*first.parameters()[::-1], first], whole),
        (first.one, {"one"}),
        ([second, first.one], {"one"}),
    ]:
        twin = Model(seed=1)
        before = first.state_dict()
        twin.load_state_dict(before)
        for model in (first, second):
            give(model, 0)
        give(twin, 0)
        optim.SGD(params, 0.5).step()
        optim.SGD(twin, 0.5).step()
        for name, value in first.state_dict().items():
            np.testing.assert_array_equal(value, twin.state_dict()[name] if name in moved else before[name])


class Tied(Module):
    def __init__(self):
        self.embedding = nn.Embedding(5, 3, dtype="float64", seed=0)
        self.output = nn.Linear(3, 5, weight=self.embedding.weight)


def test_a_tied_weight_moves_once(torch):
    model = Tied()
    expected = torch.nn.Parameter(torch.tensor(np.array(model.embedding.weight)))
    reference, optimizer = torch.optim.SGD([expected], 0.1, 0.9), optim.SGD(model, 0.1, 0.9)
    for _ in range(3):
        model.embedding.weight.grad[...] = 1
        expected.grad = torch.ones_like(expected)
        assert optim.clip_grad_norm([model, model.output], 1) == pytest.approx(math.sqrt(15))
        torch.nn.utils.clip_grad_norm_([expected], 1)
        optimizer.step()
        reference.step()
    np.testing.assert_allclose(model.output.weight, expected.detach().numpy(), 1e-12)


def test_a_step_allocates_nothing():
    model = Model()
    for name, options in GRID:
        optimizer = getattr(optim, name)(model, **options)
        give(model, 0)
        optimizer.step()
        tracemalloc.start()
        try:
            optimizer.step()
            assert tracemalloc.get_traced_memory()[1] < 10_000  # bytes: views, no arrays
        finally:
            tracemalloc.stop()


def test_the_first_gradient_may_come_late():
    model = Model()
    before = model.state_dict()
    optimizer = optim.Adam(model)
    optimizer.step()
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
    give(model, 0)
    optimizer.step()
    assert not np.array_equal(model.matrix, before["matrix"])


def test_inf_and_nan_spread_in_silence(ways):
    for name, options in GRID:
        model = Model("float32")
        give(model, 0)
        model.grad["matrix"][0] = [np.nan, np.inf, -np.inf, 1e30, 1, 1, 1]
        optimizer = getattr(optim, name)(model, **options)
        optimizer.step()
        optimizer.step()
        assert np.isnan(model.matrix[0, 0]) and np.isfinite(model.matrix[1:]).all()


def test_training_a_layer():
    layer = fastrnn.GRU(2, 3, seed=0)
    optimizer = optim.SGD(layer, 1.0)
    layer.block.grads["weight_hh_l0"][...] = 1
    before = layer.state_dict()
    optimizer.step()
    np.testing.assert_array_equal(layer.weight_hh_l0, before["weight_hh_l0"] - 1)
    np.testing.assert_array_equal(layer.weight_ih_l0, before["weight_ih_l0"])


# ---------------------------------------------------------------- resuming


def through_npz(state):
    file = io.BytesIO()
    np.savez(file, **state)
    file.seek(0)
    with np.load(file) as arrays:
        return dict(arrays)


def everything(model):
    return model


def some(model):
    """Neighbours that are not first in their block, and another, in an order of their own."""
    return [model.other, model.long, model.one, model.matrix]


@pytest.mark.parametrize("chosen", [everything, some])
@pytest.mark.parametrize("carry", [dict, through_npz])
@pytest.mark.parametrize("name, options", GRID, ids=ids)
def test_resuming(name, options, carry, chosen):
    model = Model()
    optimizer = getattr(optim, name)(chosen(model), **options)
    for step in range(6):
        if step == 3:
            parameters, state = model.state_dict(), optimizer.state_dict()
        give(model, step)
        optimizer.step()
    other = Model(seed=5)
    other.load_state_dict(parameters)
    resumed = getattr(optim, name)(chosen(other), lr=99)
    resumed.load_state_dict(carry(state))
    assert repr(resumed) == repr(optimizer) and resumed.steps == 3
    for step in range(3, 6):
        give(other, step)
        resumed.step()
    for key, value in model.state_dict().items():
        np.testing.assert_array_equal(other.state_dict()[key], value)


def test_state_dict_is_a_copy_by_parameter():
    model = Model()
    optimizer = optim.Adam(model)
    assert optimizer.state_dict().keys() == {"steps", "lr", "betas", "eps", "weight_decay", "amsgrad"}
    give(model, 0)
    optimizer.step()
    state = optimizer.state_dict()
    np.testing.assert_allclose(state["exp_avg.3"], 0.1 * model.grad["matrix"])
    state["exp_avg.3"][...] = 0
    assert optimizer.state_dict()["exp_avg.3"].all()


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"exp_avg.3": None}, ShapeError, "missing: exp_avg.3"),
        ({"steps": None}, ShapeError, "missing: steps"),
        ({"lr": None, "betas": None}, ShapeError, "missing: lr, betas"),
        ({"exp_avg.3": np.ones(2)}, ShapeError, r"exp_avg.3 must be \[5, 7\], not \[2\]"),
        ({"momentum_buffer.0": np.ones(())}, ShapeError, "unexpected: momentum_buffer.0"),
        ({"exp_avg.6": np.ones(())}, ShapeError, "unexpected: exp_avg.6"),
        ({"exp_avg.3": "x"}, DtypeError, "exp_avg.3 must hold real numbers"),
        ({1: 2, "one": 2}, ShapeError, "unexpected: 1, one"),
        ({"steps": -1}, OptionError, "steps must be an integer >= 0, not -1"),
        ({"steps": 1.5}, OptionError, "steps must be an integer >= 0, not 1.5"),
        ({"lr": [[1], [1, 2]]}, OptionError, "lr must be a number >= 0"),
        ({"initial_lr": -1}, OptionError, "initial_lr must be a number >= 0, not -1"),
        ({"eps": -1.0}, OptionError, "eps must be a number >= 0, not -1.0"),
        ({"lr": 9.0, "betas": (0.9, 1.0)}, OptionError, "betas must be two numbers within 0..1"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(change, error, words):
    model = Model()
    optimizer = optim.Adam(model)
    give(model, 0)
    optimizer.step()
    before = optimizer.state_dict()
    state = {k: v for k, v in {**before, **change}.items() if v is not None}
    with pytest.raises(error, match=words):
        optimizer.load_state_dict(state)
    with pytest.raises(DtypeError, match="state_dict must be a mapping of names to numbers and arrays, not NoneType"):
        optimizer.load_state_dict(None)
    after = optimizer.state_dict()
    assert before.keys() == after.keys() and all(np.array_equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize(
    "make, error, words",
    [
        (lambda m: optim.SGD(m, -1), OptionError, "lr must be a number >= 0, not -1"),
        (lambda m: optim.SGD(m, math.nan), OptionError, "lr must be a number >= 0, not nan"),
        (lambda m: optim.SGD(m, "0.1"), OptionError, "lr must be a number"),
        (lambda m: optim.SGD(m, 0.1, nesterov=True), OptionError, "nesterov needs momentum > 0"),
        (lambda m: optim.SGD(m, 0.1, 0.9, 0.1, nesterov=True), OptionError, "dampening=0.1"),
        (lambda m: optim.Adam(m, betas=(0.9, 1)), OptionError, r"betas .* not \(0.9, 1\)"),
        (lambda m: optim.Adam(m, betas=(1.0, 0.9)), OptionError, r"betas .* not \(1.0, 0.9\)"),
        (lambda m: optim.Adam(m, betas=0.9), OptionError, "betas .* not 0.9"),
        (lambda m: optim.Adam(m, betas=(0.9, 0.9, 0.9)), OptionError, "betas"),
        (lambda m: optim.RMSprop(m, eps=-1), OptionError, "eps"),
        (lambda m: optim.SGD([]), OptionError, "SGD was given no parameters"),
        (lambda m: optim.SGD(nn.Dropout()), OptionError, "no parameters"),
        (lambda m: optim.SGD(3), DtypeError, "not int"),
        (lambda m: optim.SGD([3]), DtypeError, "Modules or Parameters, not int"),
        (lambda m: optim.SGD(m.state_dict()), DtypeError, "not dict"),
        (lambda m: optim.SGD(np.ones(3)), DtypeError, "not ndarray"),
        (lambda m: optim.SGD([m.matrix[:2]]), DtypeError, "not a part of a Parameter"),
        (lambda m: optim.clip_grad_norm(m, -1), OptionError, "max_norm must be a number >= 0, not -1"),
        (lambda m: optim.clip_grad_norm(m, 1, 0), OptionError, "norm_type must be a number > 0"),
        (lambda m: optim.clip_grad_value(m, math.nan), OptionError, "clip_value must be a number >= 0, not nan"),
        (lambda m: optim.clip_grad_value("m", 1), DtypeError, "not str"),
        (lambda m: optim.StepLR(m, 2), DtypeError, "optimizer must be an Optimizer of fastrnn.optim, not Model"),
        (lambda m: optim.StepLR(optim.SGD(m), 0), OptionError, "step_size must be an integer >= 1, not 0"),
        (lambda m: optim.StepLR(optim.SGD(m), 1.5), OptionError, "step_size must be an integer"),
        (lambda m: optim.ExponentialLR(optim.SGD(m), -1), OptionError, "gamma"),
        (lambda m: optim.LambdaLR(optim.SGD(m), 0.1), DtypeError, "lr_lambda must be a function"),
        (lambda m: optim.LinearLR(optim.SGD(m), 0), OptionError, "factors must be within 0..1"),
        (lambda m: optim.LinearLR(optim.SGD(m), 1.5), OptionError, "factors must be within 0..1"),
        (lambda m: optim.LinearLR(optim.SGD(m), 1, 2), OptionError, "factors must be within 0..1"),
        (lambda m: optim.CosineAnnealingLR(optim.SGD(m), 0), OptionError, "T_max"),
        (lambda m: optim.ReduceLROnPlateau(optim.SGD(m), "least"), OptionError, "unknown mode 'least'"),
        (lambda m: optim.ReduceLROnPlateau(optim.SGD(m), factor=1), OptionError, "factor must be a number < 1"),
        (lambda m: optim.ReduceLROnPlateau(optim.SGD(m), threshold_mode="x"), OptionError, "threshold_mode 'x'"),
        (lambda m: optim.ReduceLROnPlateau(optim.SGD(m), patience=-1), OptionError, "patience"),
    ],
)
def test_arguments_that_cannot_be(make, error, words):
    with pytest.raises(error, match=words):
        make(Model())


@pytest.mark.parametrize(
    "name, options, option, value, words",
    [
        ("SGD", {}, "lr", -1, "lr must be a number >= 0, not -1"),
        ("SGD", {}, "lr", None, "lr must be a number >= 0, not None"),
        ("SGD", {}, "lr", math.nan, "lr must be a number >= 0, not nan"),
        ("SGD", {}, "nesterov", True, "nesterov needs momentum > 0 .* not momentum=0.0"),
        ("SGD", {"momentum": 0.9, "nesterov": True}, "momentum", 0, "nesterov needs momentum > 0"),
        ("SGD", {"momentum": 0.9, "nesterov": True}, "dampening", 0.1, "dampening=0.1"),
        ("RMSprop", {}, "alpha", "x", "alpha must be a number >= 0, not 'x'"),
        ("Adam", {}, "betas", (0.9, 1.0), r"betas .* not \(0.9, 1.0\)"),
        ("Adam", {}, "betas", (0.9,), r"betas .* not \(0.9,\)"),
        ("AdamW", {}, "weight_decay", -0.1, "weight_decay must be a number >= 0, not -0.1"),
    ],
)
def test_options_set_later_are_checked_too(name, options, option, value, words):
    optimizer = getattr(optim, name)(Model(), **options)
    before = optimizer.state_dict()
    with pytest.raises(OptionError, match=words):
        setattr(optimizer, option, value)
    assert optimizer.state_dict() == before


def test_options_set_later_are_taken_as_arguments_are():
    sgd, adam = optim.SGD(Model(), 0.1), optim.Adam(Model())
    sgd.lr, sgd.momentum, sgd.nesterov = np.float32(0.5), 0.9, 1
    adam.betas, adam.amsgrad = [0, 0.5], True
    assert repr(sgd) == "SGD(..., lr=0.5, momentum=0.9, nesterov=True)"
    assert repr(adam) == "Adam(..., betas=(0.0, 0.5), amsgrad=True)"


# ---------------------------------------------------------------- clipping


def full(theirs):
    """Without the empty ones, whose greatest element PyTorch refuses to look for."""
    return [parameter for parameter in theirs.values() if parameter.numel()]


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-12), ("float32", 1e-6)])
@pytest.mark.parametrize("norm_type", [1, 2, 2.0, 3.5, math.inf])
@pytest.mark.parametrize("max_norm", [0, 0.5, 1e9])
def test_clip_grad_norm_is_torchs(torch, max_norm, norm_type, dtype, tolerance, ways):
    model = Model(dtype)
    give(model, 0)
    # In float64 for both: PyTorch sums float32 in float32, by how many threads there are.
    theirs = twins(torch, Model(), {name: gradient.astype("f8") for name, gradient in model.grad.items()})
    before = model.state_dict()
    expected = torch.nn.utils.clip_grad_norm_(full(theirs), max_norm, norm_type)
    norm = optim.clip_grad_norm(model, max_norm, norm_type)
    assert type(norm) is float and norm == pytest.approx(expected.item(), rel=1e-12)
    for name, gradient in model.grad.items():
        np.testing.assert_allclose(gradient, theirs[name].grad.numpy(), tolerance)
        np.testing.assert_array_equal(model.state_dict()[name], before[name])


@pytest.mark.parametrize("norm_type", [1, 2, math.inf])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_clip_grad_norm_of_what_is_not_finite_is_torchs(torch, bad, norm_type, ways):
    model = Model()
    give(model, 0)
    model.grad["matrix"][2, 3] = bad
    theirs = twins(torch, model, model.grad)
    expected = torch.nn.utils.clip_grad_norm_(full(theirs), 1.0, norm_type)
    np.testing.assert_equal(optim.clip_grad_norm(model, 1.0, norm_type), expected.item())
    for name, gradient in model.grad.items():
        np.testing.assert_array_equal(gradient, theirs[name].grad.numpy())


def test_clip_grad_norm_sums_in_float64(ways):
    block = Block({"w": (300_000,)}, "float32")
    block.grad[:] = 1e25  # whose square float32 does not hold
    assert optim.clip_grad_norm(block["w"], 1.0) == pytest.approx(1e25 * math.sqrt(300_000), rel=1e-6)
    np.testing.assert_allclose(block.grad, 1 / math.sqrt(300_000), 1e-6)
    clipped = block.grad.copy()
    assert optim.clip_grad_norm(block["w"], 1.5) == pytest.approx(1)
    np.testing.assert_array_equal(block.grad, clipped)  # never scaled up
    assert optim.clip_grad_norm([], 1.0) == 0


def test_clip_grad_value_is_torchs(torch):
    model = Model()
    give(model, 0)
    model.grad["matrix"][0, :3] = [math.nan, math.inf, -math.inf]
    theirs = twins(torch, model, model.grad)
    torch.nn.utils.clip_grad_value_(theirs.values(), 0.25)
    optim.clip_grad_value(model, 0.25)
    for name, gradient in model.grad.items():
        np.testing.assert_array_equal(gradient, theirs[name].grad.numpy())


# ---------------------------------------------------------------- schedules

SCHEDULES = [
    ("LambdaLR", {"lr_lambda": lambda n: min(1, (n + 1) / 4) / (n + 1) ** 0.5}),
    ("LinearLR", {}),
    ("LinearLR", {"start_factor": 0.1, "end_factor": 0.5, "total_iters": 3}),
    ("LinearLR", {"start_factor": 1.0, "end_factor": 0.0, "total_iters": 4}),
    ("StepLR", {"step_size": 3}),
    ("StepLR", {"step_size": 1, "gamma": 0.5}),
    ("ExponentialLR", {"gamma": 0.9}),
    ("CosineAnnealingLR", {"T_max": 5}),
    ("CosineAnnealingLR", {"T_max": 1, "eta_min": 0.01}),
    ("CosineAnnealingLR", {"T_max": 4, "eta_min": 0.05}),
]


def schedules(torch, name, options):
    reference = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 0.3)
    theirs = getattr(torch.optim.lr_scheduler, name)(reference, **options)
    optimizer = optim.SGD(Model(), 0.3)
    return reference, theirs, optimizer, getattr(optim, name)(optimizer, **options)


@pytest.mark.parametrize("name, options", SCHEDULES, ids=ids)
def test_schedules_are_torchs(torch, name, options):
    reference, theirs, optimizer, ours = schedules(torch, name, options)
    for step in range(14):
        assert optimizer.lr == pytest.approx(reference.param_groups[0]["lr"], rel=1e-10, abs=1e-15), step
        assert ours.get_last_lr() == [optimizer.lr] and ours.last_epoch == theirs.last_epoch
        if step == 9:
            optimizer.lr = reference.param_groups[0]["lr"] = 0.7  # an assignment holds
        reference.step()
        theirs.step()
        ours.step()


CHAINED = [*SCHEDULES, ("ReduceLROnPlateau", {"patience": 2})]


@pytest.mark.parametrize("second", CHAINED, ids=lambda chosen: ids(chosen[1]))
@pytest.mark.parametrize("first", CHAINED, ids=lambda chosen: ids(chosen[1]))
def test_chained_schedules_are_torchs(torch, first, second):
    """As long as PyTorch's rate is not below 0."""
    reference, optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 0.5), optim.SGD(Model(), 0.5)
    pairs = []
    for name, options in (first, second):
        theirs = getattr(torch.optim.lr_scheduler, name)(reference, **options)
        pairs.append((getattr(optim, name)(optimizer, **options), theirs))
        assert optimizer.initial_lr == reference.param_groups[0].get("initial_lr")
        optimizer.lr = reference.param_groups[0]["lr"] = reference.param_groups[0]["lr"] * 0.8  # between the two
    for step in range(14):
        reference.step()
        for ours, theirs in pairs:
            for schedule in (ours, theirs):
                schedule.step(1.0) if isinstance(ours, optim.ReduceLROnPlateau) else schedule.step()
            if (expected := reference.param_groups[0]["lr"]) < -1e-15:
                assert optimizer.lr == 0
                return
            assert optimizer.lr == pytest.approx(expected, rel=1e-10, abs=1e-15), step


@pytest.mark.parametrize("start", [0.1, 1 / 3, 0.7, 0.9, 1.0])
def test_no_rate_is_below_zero(torch, start):
    for total in range(1, 12):
        options = {"start_factor": start, "end_factor": 0.0, "total_iters": total}
        reference, theirs, optimizer, ours = schedules(torch, "LinearLR", options)
        bottom = optim.SGD(Model(), 0.0)
        back = optim.CosineAnnealingLR(bottom, total, start / 10)
        for _ in range(3 * total):
            reference.step()
            for schedule in (theirs, ours, back):
                schedule.step()
            assert optimizer.lr == pytest.approx(reference.param_groups[0]["lr"], rel=1e-10, abs=1e-15)
            assert optimizer.lr >= 0 and bottom.lr >= 0
        assert optimizer.lr == 0
        optim.SGD(Model()).load_state_dict(optimizer.state_dict())


PLATEAUS = [
    dict(zip(("mode", "threshold_mode", "patience", "cooldown", "threshold"), values, strict=True))
    for values in itertools.product(("min", "max"), ("rel", "abs"), (0, 2), (0, 3), (0, 0.04))
] + [{"factor": 0.5, "patience": 1, "min_lr": 0.1, "eps": 0.06, "threshold": 0.1}]


@pytest.mark.parametrize("options", PLATEAUS, ids=ids)
def test_plateau_is_torchs(torch, options):
    reference, theirs, optimizer, ours = schedules(torch, "ReduceLROnPlateau", options)
    random = np.random.default_rng(0)
    cuts = 0
    for step in range(60):
        metric = 2 + math.sin(step / 9) + 0.1 * random.standard_normal()
        if step in (0, 30):
            metric = math.nan
        elif step % 4 == 0:
            metric = ours.best  # no better than the best
        before = optimizer.lr
        theirs.step(metric)
        ours.step(metric)
        assert optimizer.lr == pytest.approx(reference.param_groups[0]["lr"], rel=1e-12), step
        cuts += optimizer.lr < before
    assert cuts and ours.last_epoch == theirs.last_epoch == 60


@pytest.mark.parametrize("name, options", [*SCHEDULES, ("ReduceLROnPlateau", {"patience": 1, "cooldown": 2})], ids=ids)
def test_schedules_resume(name, options):
    def make():
        optimizer = optim.SGD(Model(), 0.3)
        return optimizer, getattr(optim, name)(optimizer, **options)

    def step(schedule):
        schedule.step(1.0) if name == "ReduceLROnPlateau" else schedule.step()

    optimizer, schedule = make()
    for _ in range(3):
        step(schedule)
    resumed, other = make()
    resumed.load_state_dict(through_npz(optimizer.state_dict()))
    other.load_state_dict(through_npz(schedule.state_dict()))
    for _ in range(9):
        step(schedule)
        step(other)
        assert resumed.lr == optimizer.lr
    with pytest.raises(OptionError, match="has base_lr, last_epoch"):
        other.load_state_dict({"last_epoch": 3})


def test_chained_schedules_resume():
    def make():
        optimizer = optim.SGD(Model(), 0.5)
        return optimizer, optim.LinearLR(optimizer, 0.1), optim.CosineAnnealingLR(optimizer, 6, 0.01)

    def step(made):
        for each in made:
            each.step()

    made, resumed = make(), make()
    for _ in range(4):
        step(made)
    for ours, theirs in zip(resumed, made, strict=True):
        ours.load_state_dict(through_npz(theirs.state_dict()))
    for _ in range(20):
        step(made)
        step(resumed)
        assert resumed[0].lr == made[0].lr
    third = optim.SGD(Model())
    third.load_state_dict(through_npz(made[0].state_dict()))
    assert third.initial_lr == optim.ExponentialLR(third, 0.9).base_lr == 0.5
    third.load_state_dict(optim.SGD(Model(), 0.3).state_dict())  # of one without schedules
    assert optim.ExponentialLR(third, 0.9).base_lr == 0.3


@pytest.mark.parametrize(
    "state, error, words",
    [
        (None, DtypeError, "state_dict must be a mapping of names to numbers and arrays, not NoneType"),
        ({1: 2}, OptionError, "has base_lr, last_epoch, best, num_bad_epochs, cooldown_counter, not 1"),
        ({"last_epoch": [1, 2]}, OptionError, r"last_epoch must be an integer >= 0, not \[1, 2\]"),
        ({"last_epoch": -1}, OptionError, "last_epoch must be an integer >= 0, not -1"),
        ({"cooldown_counter": 0.5}, OptionError, "cooldown_counter must be an integer >= 0, not 0.5"),
        ({"base_lr": math.nan}, OptionError, "base_lr must be a number >= 0, not nan"),
        ({"best": None}, OptionError, "best must be a number, not None"),
    ],
)
def test_a_schedules_state_that_does_not_fit_changes_nothing(state, error, words):
    schedule = optim.ReduceLROnPlateau(optim.SGD(Model()))
    schedule.step(-2.0)
    before = schedule.state_dict()
    given = {**before, "base_lr": 9.0, **state} if state and 1 not in state else state
    with pytest.raises(error, match=words):
        schedule.load_state_dict(given)
    with pytest.raises(OptionError, match="metrics must be a number, not None"):
        schedule.step(None)
    assert schedule.state_dict() == before


def test_an_epoch_without_a_rate_is_not_counted():
    optimizer = optim.SGD(Model(), 0.5)
    with pytest.raises(OptionError, match=r"lr must be a number >= 0, not -0\.5"):
        optim.LambdaLR(optimizer, lambda n: -1)
    assert optimizer.lr == 0.5 and optimizer.initial_lr is None
    schedule = optim.LambdaLR(optimizer, lambda n: 1 - n)
    schedule.step()
    with pytest.raises(OptionError, match=r"lr must be a number >= 0, not -0\.5"):
        schedule.step()
    assert schedule.last_epoch == 1 and optimizer.lr == 0


# ---------------------------------------------------------------- as objects


def test_repr():
    model = Model()
    assert repr(optim.SGD(model)) == "SGD(...)"
    assert repr(optim.SGD(model, 0.1, nesterov=True, momentum=0.9)) == "SGD(..., lr=0.1, momentum=0.9, nesterov=True)"
    assert repr(optim.AdamW(model, betas=[0, 0.5])) == "AdamW(..., betas=(0.0, 0.5))"
    assert repr(optim.StepLR(optim.SGD(model), 3)) == "StepLR(..., step_size=3, gamma=0.1)"


def test_an_interrupted_step_is_known_to_the_backends():
    """Python's signal handlers run when the kernel is done: the parameters have changed then."""
    layer = fastrnn.GRU(512, 512, seed=0)
    layer.block.grad.fill(1)
    optimizer, seen = optim.SGD(layer, 1e-2), 0

    def stop(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    try:
        for _ in range(100):
            values, version = layer.block.flat.copy(), layer.block.version
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-4)
                optimizer.step()
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                changed = not np.array_equal(values, layer.block.flat)
                assert layer.block.version > version or not changed
                seen += changed
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    if not seen:
        pytest.skip("no step was interrupted")


@pytest.mark.parametrize("name, options", [("SGD", {"momentum": 0.9, "dampening": 0.3}), ("Adam", {})], ids=ids)
def test_a_step_that_fails_is_not_counted(name, options, monkeypatch):
    if reason := native.missing():
        pytest.skip(reason)
    model, twin = Model(), Model()
    optimizer, other = (getattr(optim, name)(each, **options) for each in (model, twin))
    for step in range(2):
        give(model, step)
        give(twin, step)
        before = optimizer.state_dict()
        with monkeypatch.context() as patch, fastrnn.use_backend("c"):
            patch.setenv("FASTRNN_ISA", "abacus")
            with pytest.raises(BackendError, match="abacus"):
                optimizer.step()
        after = optimizer.state_dict()
        assert before.keys() == after.keys() and optimizer.steps == step
        assert all(np.array_equal(before[key], after[key]) for key in before)
        optimizer.step()
        other.step()
        np.testing.assert_array_equal(model.first.flat, twin.first.flat)


@pytest.mark.parametrize("error, steps", [(BackendError, 0), (KeyboardInterrupt, 1)])
@pytest.mark.parametrize("good", [0, 1])
def test_a_step_that_has_begun_is_counted(error, steps, good, monkeypatch):
    """What fails in the second block, or is interrupted, has changed something; what a kernel refuses, nothing."""
    optimizer, calls = optim.Adam(Model()), []

    def update(*_):
        calls.append(None)
        if len(calls) > good:
            raise error

    monkeypatch.setattr(optimizer, "_update", update)
    with pytest.raises(error):
        optimizer.step()
    assert optimizer.steps == max(steps, good)
