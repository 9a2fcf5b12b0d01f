"""Embedding, Linear, Dropout, Sequential, the losses and sampling: PyTorch is the oracle where it has the same."""

import copy
import math
import pickle
import tracemalloc

import numpy as np
import pytest

import fastrnn
from fastrnn import nn
from fastrnn.backends import CHUNK
from fastrnn.errors import DtypeError, OptionError, ShapeError, UsageError
from fastrnn.module import Module

SHAPES = [(), (0,), (1,), (5,), (3, 0, 2), (4, 3), (2, 3, 5)]
DTYPES = ["float32", "float64"]
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}


def normal(*shape, dtype="float64", seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def close(ours, theirs, dtype="float64"):
    theirs = theirs.detach().numpy() if hasattr(theirs, "detach") else theirs
    assert np.shape(ours) == np.shape(theirs)
    np.testing.assert_allclose(ours, theirs, TOLERANCE[dtype], TOLERANCE[dtype])


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


# ---------------------------------------------------------------- embedding


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("padding_idx", [None, 0, -2])
def test_embedding_is_torchs(torch, shape, padding_idx, dtype):
    theirs = torch.nn.Embedding(7, 3, padding_idx, dtype=getattr(torch, dtype))
    ours = nn.Embedding(7, 3, padding_idx, dtype=dtype).train()
    ours.load_state_dict(theirs.state_dict())
    indices, dy = np.random.default_rng(0).integers(0, 7, shape), normal(*shape, 3, dtype=dtype)
    for _ in range(2):  # gradients accumulate
        y = theirs(torch.from_numpy(np.asarray(indices)))
        y.backward(torch.from_numpy(dy))
        close(ours(indices), y, dtype)
        assert ours.backward(dy) is None
    close(ours.weight.grad, theirs.weight.grad, dtype)


@pytest.mark.parametrize("count", [1, 2, 1000])
def test_embedding_adds_up_repeated_indices(count):
    embedding = nn.Embedding(50, 4, dtype="float64").train()
    indices = np.random.default_rng(count).zipf(1.5, count) % 50
    dy, expected = normal(count, 4), np.zeros((50, 4))
    np.add.at(expected, indices, dy)
    embedding(indices)
    embedding.backward(dy)
    close(embedding.weight.grad, expected)


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u4", "i8", "u8", ">i4"])
def test_embedding_takes_integers_of_any_dtype(dtype):
    embedding = nn.Embedding(5, 2)
    np.testing.assert_array_equal(embedding(np.array([4, 0], dtype)), embedding.weight[[4, 0]])
    assert embedding([]).shape == (0, 2) and embedding(3).shape == (2,)
    many = nn.Embedding(300, 2)  # more than some of the dtypes can count
    np.testing.assert_array_equal(many(np.array([4, 0], dtype)), many.weight[[4, 0]])
    logits, targets = normal(2, 300), np.array([4, 0], dtype)
    assert nn.CrossEntropy()(logits, targets) == nn.CrossEntropy()(logits, [4, 0])


def test_embedding_keeps_its_own_indices():
    embedding, indices = nn.Embedding(5, 2).train(), np.array([1, 2])
    embedding(indices)
    indices[:] = 4
    embedding.backward(np.ones((2, 2)))
    np.testing.assert_array_equal(embedding.weight.grad[:, 0], [0, 1, 1, 0, 0])


@pytest.mark.parametrize(
    "indices, error, words",
    [
        ([0, 5], ShapeError, r"indices\[1\] is 5, which is not within 0..4"),
        ([[0], [-1]], ShapeError, r"indices\[1, 0\] is -1, which is not within 0..4"),
        (7, ShapeError, "indices is 7"),
        (np.array([2**63], "u8"), ShapeError, "is 9223372036854775808"),
        ([0.0], DtypeError, "must be integers, not float64"),
        ([True], DtypeError, "must be integers, not bool"),
        ("ab", DtypeError, "must be integers"),
        (np.zeros(0), DtypeError, "must be integers, not float64"),
        ([[1], [1, 2]], ShapeError, "cannot be read as one array"),
    ],
)
def test_embedding_refuses(indices, error, words):
    with pytest.raises(error, match=words):
        nn.Embedding(5, 2)(indices)


@pytest.mark.parametrize(
    "make, error, words",
    [
        (lambda: nn.Embedding(-1, 2), ShapeError, "num_embeddings must be an integer >= 0, not -1"),
        (lambda: nn.Embedding(3, 2.0), ShapeError, "embedding_dim must be an integer >= 0, not 2.0"),
        (lambda: nn.Embedding(3, np.ones(2)), ShapeError, "embedding_dim must be an integer"),
        (lambda: nn.Embedding(3, 2, 3), OptionError, "padding_idx must be within the 3 embeddings, not 3"),
        (lambda: nn.Embedding(3, 2, -4), OptionError, "not -4"),
        (lambda: nn.Embedding(3, 2, dtype="int32"), DtypeError, "dtype must be float32 or float64"),
        (lambda: nn.Linear(True, 2), ShapeError, "in_features"),
        (lambda: nn.Linear(2, -1), ShapeError, "out_features"),
        (lambda: nn.Linear(2, 3, seed="x"), OptionError, "seed"),
        (lambda: nn.Linear(2, 3, weight=np.ones((3, 2))), DtypeError, "of an Embedding or a Linear, not ndarray"),
        (lambda: nn.Linear(2, 3, weight=nn.Embedding(2, 3).weight), ShapeError, r"\[3, 2\], not \[2, 3\]"),
        (lambda: nn.Linear(2, 3, weight=nn.Embedding(6, 2).weight[:3]), DtypeError, "weight must be the weight of"),
        (lambda: nn.Linear(4, 8, weight=fastrnn.LSTM(4, 2).weight_ih_l0), DtypeError, "weight must be the weight of"),
        (lambda: nn.Linear(2, 3, weight=nn.Embedding(3, 2).weight, dtype="f8"), DtypeError, "keeps its dtype float32"),
        (lambda: nn.Dropout(1.5), OptionError, "within 0..1, not 1.5"),
        (lambda: nn.Dropout(math.nan), OptionError, "within 0..1, not nan"),
        (lambda: nn.Dropout(True), OptionError, "within 0..1, not True"),
        (lambda: nn.Sequential(nn.Dropout(), abs), DtypeError, "module 1 of a Sequential"),
        (lambda: nn.CrossEntropy("none"), OptionError, "unknown reduction 'none'"),
        (lambda: nn.CrossEntropy(ignore_index=0.5), OptionError, "ignore_index must be an integer"),
        (lambda: nn.MSE("max"), OptionError, "unknown reduction 'max'"),
    ],
)
def test_arguments_that_cannot_be(make, error, words):
    with pytest.raises(error, match=words):
        make()


# ---------------------------------------------------------------- linear


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [(3, 4), (1, 1), (17, 33), (0, 2), (2, 0)])
@pytest.mark.parametrize("shape", SHAPES)
def test_linear_is_torchs(torch, shape, sizes, bias, dtype):
    theirs = torch.nn.Linear(3, 4, bias, dtype=getattr(torch, dtype))
    if 0 not in sizes:
        theirs = torch.nn.Linear(*sizes, bias, dtype=getattr(torch, dtype))
    else:  # which PyTorch warns of
        theirs.weight = torch.nn.Parameter(torch.zeros(sizes[::-1], dtype=getattr(torch, dtype)))
        theirs.bias = torch.nn.Parameter(torch.arange(sizes[1], dtype=getattr(torch, dtype))) if bias else None
    ours = nn.Linear(*sizes, bias, dtype=dtype).train()
    ours.load_state_dict(theirs.state_dict())
    x, dy = normal(*shape, sizes[0], dtype=dtype), normal(*shape, sizes[1], dtype=dtype)
    given = x.copy(), dy.copy()
    leaf = torch.from_numpy(x.copy()).requires_grad_()
    for _ in range(2):
        leaf.grad = None
        y = theirs(leaf)
        y.backward(torch.from_numpy(dy))
        close(ours(x), y, dtype)
        close(ours.backward(dy), leaf.grad, dtype)
    for name, parameter in theirs.named_parameters():
        close(ours.grad[name], parameter.grad, dtype)
    assert all(np.array_equal(a, b) for a, b in zip(given, (x, dy), strict=True))


def test_linear_and_embedding_start_as_torchs_do():
    linear, embedding = nn.Linear(400, 300, seed=1), nn.Embedding(300, 400, 7, seed=1)
    for name, parameter in linear.named_parameters():
        assert -0.05 <= parameter.min() < -0.049 and 0.049 < parameter.max() <= 0.05, name
        assert abs(parameter.mean()) < 0.005
    weight = np.delete(embedding.weight, 7, 0)
    assert abs(weight.mean()) < 0.02 and abs(weight.std() - 1) < 0.02 and not embedding.weight[7].any()
    np.testing.assert_array_equal(nn.Linear(400, 300, seed=1).weight, linear.weight)
    assert not np.array_equal(nn.Linear(400, 300, seed=2).weight, linear.weight)
    for module in (linear, embedding):
        first, versions = module.state_dict(), [block.version for block in module.blocks()]
        module.reset_parameters()  # goes on with the same generator
        assert all(block.version > version for block, version in zip(module.blocks(), versions, strict=True))
        assert not any(np.array_equal(value, first[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("x", [np.ones((2, 4)), 1.0])
def test_linear_names_what_it_wants(x):
    with pytest.raises(ShapeError, match=r"x must be \[..., 3\], not"):
        nn.Linear(3, 2)(x)


class TiedModel(Module):
    def __init__(self, dtype="float64"):
        self.embedding = nn.Embedding(7, 3, dtype=dtype)
        self.output = nn.Linear(3, 7, weight=self.embedding.weight)


def test_tied_weight_is_one_parameter_with_one_gradient(torch):
    model = TiedModel().train()
    assert [name for name, _ in model.named_parameters()] == ["embedding.weight", "output.bias"]
    assert sorted(model.state_dict()) == ["embedding.weight", "output.bias", "output.weight"]
    assert model.num_parameters == 7 * 3 + 7

    weight = torch.tensor(model.state_dict()["embedding.weight"], requires_grad=True)
    bias = torch.tensor(model.state_dict()["output.bias"], requires_grad=True)
    indices, dy = np.array([[1, 6], [1, 0]]), normal(2, 2, 7)
    expected = weight[indices] @ weight.T + bias
    expected.backward(torch.from_numpy(dy))
    close(model.output(model.embedding(indices)), expected)
    model.embedding.backward(model.output.backward(dy))
    close(model.embedding.weight.grad, weight.grad)
    close(model.output.weight.grad, weight.grad)
    close(model.output.bias.grad, bias.grad)


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_a_tie_holds(twin):
    model = twin(TiedModel())
    model.embedding.weight += 1
    np.testing.assert_array_equal(model.output.weight, model.embedding.weight)
    before = model.output.weight.copy()
    model.output.reset_parameters()
    np.testing.assert_array_equal(model.output.weight, before)
    chained = nn.Linear(3, 7, False, weight=model.output.weight)
    chained.weight[...] = 2
    assert (model.embedding.weight == 2).all()


# ---------------------------------------------------------------- dropout


@pytest.mark.parametrize("p", [0, 0.3, 1])
@pytest.mark.parametrize("locked", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dropout(p, locked, dtype):
    dropout, x = nn.Dropout(p, locked, seed=3), np.full((50, 20, 30), 2, dtype)
    assert dropout(x) is x
    dropout.train()
    y, dy = dropout(x), normal(*x.shape, dtype=dtype)
    zero = y == 0
    assert y.dtype == dtype and (y[~zero] == np.array(2, dtype) * np.array(1 / (1 - p) if p < 1 else 0, dtype)).all()
    assert abs(zero.mean() - p) < (0.05 if locked else 0.01)
    assert (zero == zero[0]).all() == (locked or p in (0, 1))
    np.testing.assert_allclose(dropout.backward(dy), dy * y / 2, 1e-6)
    if p == 0.3:
        assert not np.array_equal(dropout(x), y)
        np.testing.assert_array_equal(nn.Dropout(p, locked, seed=3).train()(x), y)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0, 2), (1, 1)])
def test_dropout_of_nothing(shape):
    dropout = nn.Dropout(0.5, locked=len(shape) > 1).train()
    assert dropout(np.ones(shape)).shape == shape and dropout.backward(np.ones(shape)).shape == shape


def test_locked_dropout_needs_time():
    with pytest.raises(ShapeError, match=r"\[T, B, ...\] for a locked mask, not \[3\]"):
        nn.Dropout(locked=True).train()(np.ones(3))


# ---------------------------------------------------------------- which call backward goes through


def singles():
    return [(nn.Embedding(4, 3), np.array([0, 3])), (nn.Linear(2, 3), np.ones((2, 2))), (nn.Dropout(), np.ones((2, 3)))]


@pytest.mark.parametrize("index", range(3))
def test_backward_needs_a_call(index):
    module, x = singles()[index]
    dy = np.ones((2, 3))
    with pytest.raises(UsageError, match="no call"):
        module.backward(dy)
    module(x)
    with pytest.raises(UsageError, match="no call"):
        module.backward(dy)
    module.train()(x)
    with pytest.raises(ShapeError, match=r"dy must be \[2, 3\] as the output, not \[3, 2\]"):
        module.backward(dy.T)
    with pytest.raises(DtypeError, match="dy must hold real numbers"):
        module.backward(dy + 1j)
    module.backward(dy)  # what failed used nothing up
    with pytest.raises(UsageError, match="no call"):
        module.backward(dy)
    for drop in (lambda: module.eval(), lambda: module.train(), lambda: pickle.loads(pickle.dumps(module))):
        module.train()(x)
        with pytest.raises(UsageError, match="no call"):
            (drop() or module).backward(dy)
    module.train()(x)
    module.training = False
    module(x)
    assert not module._calls


def test_backward_needs_the_parameters_as_they_were():
    for module, x in singles()[:2]:
        module.train()(x)
        module.weight *= 2
        with pytest.raises(UsageError, match="parameters changed"):
            module.backward(np.ones((2, 3)))
        module(x)
        assert len(module._calls) == 1
        module.backward(np.ones((2, 3)))


def test_a_loop_of_calls_is_undone_by_a_loop_of_backward():
    linear, xs, dys = nn.Linear(3, 2, dtype="f8").train(), normal(4, 5, 3), normal(4, 5, 2, seed=1)
    for x in xs:
        linear(x)
    for dy in dys[::-1]:
        linear.backward(dy)
    close(linear.weight.grad, np.einsum("tbo,tbi->oi", dys, xs))
    dropout = nn.Dropout().train()
    ys = [dropout(x) for x in xs]
    for x, y in zip(xs[::-1], ys[::-1], strict=True):
        close(dropout.backward(x), y)


# ---------------------------------------------------------------- sequential


def test_sequential_is_torchs(torch):
    class First(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x)[0]

    theirs = [torch.nn.Embedding(9, 4), torch.nn.LSTM(4, 5), torch.nn.Linear(5, 6), torch.nn.GRU(6, 3)]
    theirs = [module.double() for module in theirs]
    model = nn.Sequential(
        nn.Embedding(9, 4, dtype="f8"),
        fastrnn.LSTM(4, 5, dtype="f8", backend="numpy"),
        nn.Dropout(0),
        nn.Linear(5, 6, dtype="f8"),
        fastrnn.GRU(6, 3, dtype="f8", backend="numpy"),
    )
    for ours, module in zip([model[0], model[1], model[3], model[-1]], theirs, strict=True):
        ours.load_state_dict(module.state_dict())
    chain = torch.nn.Sequential(theirs[0], First(theirs[1]), theirs[2], First(theirs[3]))
    indices, dy = np.random.default_rng(0).integers(0, 9, (6, 2)), normal(6, 2, 3)
    y = chain(torch.from_numpy(indices))
    y.backward(torch.from_numpy(dy))
    model.train()
    close(model(indices), y)
    assert model.backward(dy) is None
    gradients = [parameter.grad for parameter in chain.parameters()]
    for (name, ours), expected in zip(model.named_parameters(), gradients, strict=True):
        close(ours.grad, expected)
        assert name in model.grad
    assert model.grad.keys() == {name for name, _ in model.named_parameters()}
    model.zero_grad()
    assert not any(gradient.any() for gradient in model.grad.values())


def test_sequential_is_a_tuple_of_modules():
    parts = nn.Linear(3, 4), nn.Dropout(), nn.Linear(4, 2, bias=False)
    model = nn.Sequential(*parts)
    assert list(model) == list(parts) and len(model) == 3 and model[-1] is parts[2] and list(model[1:]) == [*parts[1:]]
    assert list(model.state_dict()) == ["0.weight", "0.bias", "2.weight"]
    assert model.train() is model and all(part.training for part in parts)
    x = np.ones((5, 3), "f4")
    model(x)
    assert model.backward(np.ones((5, 2))).shape == (5, 3)
    assert nn.Sequential()(x) is x
    for index in (3, "0"):
        with pytest.raises(OptionError, match="has no module"):
            model[index]
    twin = copy.deepcopy(model.eval())
    np.testing.assert_array_equal(twin(x), model(x))


# ---------------------------------------------------------------- losses


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("ignore_index", [-100, 2])
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (4, 3, 11), (3, 0, 5), (0, 4), (7,), (300, 1000), (2, 140_001)])
@pytest.mark.parametrize("backend", [None, "numpy"])
def test_cross_entropy_is_torchs(torch, backend, shape, ignore_index, reduction, dtype):
    *rows, classes = shape
    logits = 3 * normal(*shape, dtype=dtype)
    targets = np.asarray(np.random.default_rng(1).integers(0, classes, rows))
    if targets.size > 1:
        targets.flat[-1] = ignore_index
    leaf = torch.from_numpy(logits.copy()).requires_grad_()
    expected = torch.nn.functional.cross_entropy(
        leaf.reshape(math.prod(rows), classes), torch.from_numpy(targets).reshape(-1), None,
        ignore_index=ignore_index, reduction=reduction,
    )  # fmt: skip
    (expected * 1.5).backward()
    given = logits.copy()
    ours = nn.CrossEntropy(reduction, ignore_index)
    with fastrnn.use_backend(backend):
        loss = ours(logits, targets)
        assert type(loss) is float
        close(loss, expected.item(), dtype)
        dlogits = ours.backward(1.5)
    assert dlogits.dtype == dtype and np.array_equal(logits, given)
    close(dlogits, np.nan_to_num(leaf.grad.numpy()), dtype)


def test_cross_entropy_of_nothing_that_counts():
    for reduction, expected in (("mean", math.nan), ("sum", 0.0)):
        loss = nn.CrossEntropy(reduction)
        for logits, targets in ((np.ones((2, 3)), [-100, -100]), (np.ones((0, 3)), []), (np.ones((2, 0)), [-100] * 2)):
            np.testing.assert_equal(loss(logits, targets), expected)
            np.testing.assert_array_equal(loss.backward(), np.zeros_like(logits))


def test_cross_entropy_is_stable():
    loss = nn.CrossEntropy()
    assert loss(np.array([[1e4, 0], [-1e30, 1e30]]), [0, 1]) == 0
    np.testing.assert_array_equal(loss.backward(), np.zeros((2, 2)))
    assert loss(np.array([[1e4, 0]]), [1]) == 1e4
    # In float32 a peak of 1e4 leaves the differences exact, and so the loss and the gradient.
    logits = np.array([[10000, 9999, 9998]], "f4")
    close(loss(logits, [1]), -math.log(math.exp(-1) / (1 + math.exp(-1) + math.exp(-2))), "float32")
    close(loss.backward(), nn.softmax(logits) - np.array([[0, 1, 0]], "f4"), "float32")
    assert loss(np.array([[-np.inf, 0.0]]), [1]) == 0  # a class ruled out
    assert loss(np.array([[-np.inf, 0.0]]), [0]) == math.inf
    for logits in ([np.nan, 0], [np.inf, 0], [-np.inf, -np.inf]):
        assert math.isnan(loss(np.array([logits]), [0]))
        assert np.isnan(loss.backward()).any()


@pytest.mark.parametrize("backend", [None, "numpy"])
def test_cross_entropy_is_bounded_in_memory(backend):
    logits, loss = np.zeros((200, 10_000), "f4"), nn.CrossEntropy()
    targets = np.zeros(200, int)
    with fastrnn.use_backend(backend):
        tracemalloc.start()
        try:
            assert loss(logits, targets) == pytest.approx(math.log(10_000))
            assert tracemalloc.get_traced_memory()[1] < 2 * CHUNK
            tracemalloc.reset_peak()
            dlogits = loss.backward()
            assert tracemalloc.get_traced_memory()[1] < dlogits.nbytes + CHUNK
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize(
    "logits, targets, error, words",
    [
        (np.ones((2, 3)), [0, 3], ShapeError, r"targets\[1\] is 3, which is not within 0..2"),
        (np.ones((2, 3)), [0, -1], ShapeError, r"targets\[1\] is -1"),
        (np.ones((2, 3)), [0, 1, 2], ShapeError, r"not \[3\] with \[2, 3\]"),
        (np.ones((2, 3)), [[0, 1]], ShapeError, r"not \[1, 2\] with \[2, 3\]"),
        (1.0, [], ShapeError, r"not \[0\] with \[\]"),
        (np.ones((2, 3)), [0.0, 1.0], DtypeError, "targets must be integers"),
        (np.ones((2, 3)) * 1j, [0, 1], DtypeError, "logits must hold real numbers"),
    ],
)
def test_cross_entropy_refuses(logits, targets, error, words):
    with pytest.raises(error, match=words):
        nn.CrossEntropy()(logits, targets)


@pytest.mark.parametrize("loss", [nn.CrossEntropy(), nn.MSE()])
def test_a_loss_goes_back_once(loss):
    with pytest.raises(UsageError, match="no call"):
        loss.backward()
    loss(np.ones((2, 3)), [0, 1]) if isinstance(loss, nn.CrossEntropy) else loss(np.ones(2), np.ones(2))
    with pytest.raises(OptionError, match="dloss must be a number, not '1'"):
        loss.backward("1")
    loss.backward(np.float64(1))
    with pytest.raises(UsageError, match="no call"):
        loss.backward()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("shape", SHAPES)
def test_mse_is_torchs(torch, shape, reduction, dtype):
    y, target = np.asarray(normal(*shape, dtype=dtype)), np.asarray(normal(*shape, dtype=dtype, seed=1))
    leaf, given = torch.from_numpy(y.copy()).requires_grad_(), (y.copy(), target.copy())
    expected = torch.nn.functional.mse_loss(leaf, torch.from_numpy(target), reduction=reduction)
    (expected * 1.5).backward()
    loss = nn.MSE(reduction)
    close(loss(y, target), expected.item(), dtype)
    close(loss.backward(1.5), leaf.grad, dtype)
    assert np.array_equal(y, given[0]) and np.array_equal(target, given[1])


def test_mse_does_not_broadcast():
    with pytest.raises(ShapeError, match=r"target must be \[2, 1\] as y, not \[2\]"):
        nn.MSE()(np.ones((2, 1)), np.ones(2))


# ---------------------------------------------------------------- functions


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (5,), (0, 3), (3, 0), (4, 3, 7)])
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_is_torchs(torch, name, shape, dtype):
    x = 5 * normal(*shape, dtype=dtype)
    given = x.copy()
    y = getattr(nn, name)(x)
    close(y, getattr(torch, name)(torch.from_numpy(x), -1), dtype)
    assert y.dtype == dtype and np.array_equal(x, given)


def test_softmax_is_stable():
    np.testing.assert_array_equal(nn.softmax([1e30, 0, -1e30]), [1, 0, 0])
    np.testing.assert_array_equal(nn.log_softmax([1e30, 0]), np.float32([0, -1e30]))
    np.testing.assert_array_equal(nn.softmax([-np.inf, 0]), [0, 1])
    assert np.isnan(nn.softmax([-np.inf, -np.inf])).all() and np.isnan(nn.log_softmax([np.inf, 0])).any()
    for function in (nn.softmax, nn.log_softmax):
        with pytest.raises(ShapeError, match="must have an axis"):
            function(1.0)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("top_k", [None, 1, 3, 5, 9])
def test_sample_draws_by_probability(temperature, top_k):
    logits = np.array([0.5, -1, 2, 1, -np.inf])
    expected = np.exp(logits / temperature)
    if top_k and top_k < 5:
        expected[np.argsort(logits)[:-top_k]] = 0
    drawn = nn.sample(np.broadcast_to(logits, (200, 100, 5)), temperature, top_k, rng=0)
    assert drawn.shape == (200, 100) and drawn.dtype == np.int64
    np.testing.assert_allclose(np.bincount(drawn.ravel(), minlength=5) / 20_000, expected / expected.sum(), atol=0.015)


def test_sample_at_the_edges():
    logits, given = normal(3, 4), normal(3, 4)
    np.testing.assert_array_equal(nn.sample(logits, 0), logits.argmax(-1))
    np.testing.assert_array_equal(nn.sample(logits, 1e-320), logits.argmax(-1))
    np.testing.assert_array_equal(nn.sample(logits, top_k=1), logits.argmax(-1))
    assert int(nn.sample([3.0])) == 0 and nn.sample(np.ones((0, 3)), top_k=2).shape == (0,)
    assert {int(nn.sample(np.zeros(4), top_k=2, rng=seed)) for seed in range(30)} < {0, 1, 2, 3}  # of equals, two
    rng = np.random.default_rng(0)
    assert len({tuple(nn.sample(np.zeros((9, 9)), rng=rng)) for _ in range(5)}) == 5
    np.testing.assert_array_equal(nn.sample(np.zeros((9, 9)), rng=1), nn.sample(np.zeros((9, 9)), rng=1))
    np.testing.assert_array_equal(logits, given)


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        (([np.nan, 0],), OptionError, "no probabilities"),
        (([np.inf, 0],), OptionError, "no probabilities"),
        (([-np.inf, -np.inf], 0), OptionError, "no probabilities"),
        (([], 1.0), ShapeError, "V >= 1"),
        ((1.0,), ShapeError, "V >= 1"),
        (([1.0], -1), OptionError, "temperature must be a finite number >= 0, not -1"),
        (([1.0], math.inf), OptionError, "temperature"),
        (([1.0], 1.0, 0), OptionError, "top_k must be an integer >= 1, not 0"),
        (([1.0], 1.0, 1.5), OptionError, "top_k must be an integer >= 1, not 1.5"),
        (([1.0], 1.0, None, "x"), OptionError, "seed"),
        ((["a"],), DtypeError, "real numbers"),
    ],
)
def test_sample_refuses(arguments, error, words):
    with pytest.raises(error, match=words):
        nn.sample(*arguments)


# ---------------------------------------------------------------- as objects


@pytest.mark.parametrize(
    "call",
    [
        "Embedding(5, 3)",
        "Embedding(5, 3, padding_idx=4, dtype='float64', seed=1)",
        "Linear(3, 4)",
        "Linear(3, 4, bias=False, dtype='float64')",
        "Dropout()",
        "Dropout(p=0.2, locked=True)",
        "CrossEntropy()",
        "CrossEntropy(reduction='sum', ignore_index=0)",
        "MSE(reduction='sum')",
        "Sequential(Linear(3, 4), Dropout())",
        "Sequential()",
    ],
)
def test_repr_is_the_call(call):
    assert repr(eval(call, vars(nn).copy())) == call


def test_repr_of_a_tie():
    assert repr(nn.Linear(3, 5, bias=False, weight=nn.Embedding(5, 3).weight)) == "Linear(3, 5, bias=False, weight=...)"


# ---------------------------------------------------------------- what passes through


@pytest.mark.parametrize("backend", ["c", "numpy"])
def test_nan_and_infinity_pass_through_in_silence(backend):
    if backend not in fastrnn.backends():
        pytest.skip(f"no backend {backend!r} here")
    x = np.array([[np.inf, 1e30, -np.inf], [np.nan, 0.0, -200.0], [0.0, -200.0, -1e5]], np.float32)
    dropout, linear, embedding = nn.Dropout(0.5, seed=0).train(), nn.Linear(3, 3).train(), nn.Embedding(3, 3).train()
    cross_entropy, mse = nn.CrossEntropy(), nn.MSE()
    with np.errstate(all="raise"), fastrnn.use_backend(backend):
        dropout(x), linear(x), embedding([0, 0, 1])
        for part in (dropout, linear, embedding):
            part.backward(x)
        assert math.isnan(cross_entropy(x, [0, 1, 2]))
        assert np.isfinite(cross_entropy.backward()[2]).all()
        assert math.isnan(mse(x, x[::-1]))
        mse.backward()
        assert np.isfinite(nn.softmax(x)[2]).all() and np.isfinite(nn.log_softmax(x)[2]).all()
        nn.sample(x[2], 1e-3)


@pytest.mark.parametrize("loss", [nn.CrossEntropy(), nn.MSE()], ids=repr)
def test_nothing_is_left_of_a_loss_that_failed(loss):
    y = np.zeros((2, 3))
    loss(y, np.zeros((2, 3)) if isinstance(loss, nn.MSE) else [0, 1])
    with pytest.raises(ShapeError):
        loss(y, np.zeros((3, 3), int))
    with pytest.raises(UsageError, match="no call to go back through"):
        loss.backward()


def test_a_float64_of_any_byte_order_stays_one():
    x = np.array([1e300, 2e300]).astype(">f8")
    assert nn.softmax(x).dtype == np.float64
    np.testing.assert_array_equal(nn.softmax(x), [0, 1])


def test_a_gradient_of_the_loss_may_be_an_array_without_axes():
    loss, y = nn.MSE("sum"), np.ones(2)
    gradients = []
    for dloss in (3, np.array(3.0), np.float32(3)):
        loss(y, np.zeros(2))
        gradients.append(loss.backward(dloss).tolist())
    assert gradients == [[6, 6]] * 3
