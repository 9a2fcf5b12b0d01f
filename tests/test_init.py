"""Initialisations: what each promises, into shapes, arrays, parameters and, gate by gate, layers."""

import math

import numpy as np
import pytest

import fastrnn
from fastrnn import init, nn
from fastrnn.errors import DtypeError, OptionError, ShapeError

MATRICES = [(1, 1), (5, 5), (7, 3), (3, 7), (1, 9), (4, 2, 3), (130, 64), (0, 3), (3, 0)]
RANDOM = ["orthogonal", "xavier_uniform", "xavier_normal", "uniform", "normal"]
ALL = [*RANDOM, "identity", "zeros"]


def orthonormal(matrix, gain=1.0, atol=1e-6):
    rows, columns = matrix.shape
    product = matrix @ matrix.T if rows <= columns else matrix.T @ matrix
    np.testing.assert_allclose(product, gain**2 * np.eye(min(rows, columns)), atol=atol)


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


# ---------------------------------------------------------------- what is drawn


@pytest.mark.parametrize("shape", MATRICES)
@pytest.mark.parametrize("gain", [1.0, 0.5])
def test_orthogonal(shape, gain):
    made = init.orthogonal(shape, gain, seed=0)
    assert made.shape == shape and made.dtype == np.float32
    orthonormal(made.reshape(shape[0], math.prod(shape[1:])), gain)
    double = np.empty(shape)
    assert init.orthogonal(double, gain, seed=0) is double
    orthonormal(double.reshape(shape[0], math.prod(shape[1:])), gain, 1e-14)
    np.testing.assert_allclose(made, double, 1e-6, 1e-7)


def test_orthogonal_is_uniform():
    # As uniform as the normal matrix it comes from, where the triangle that Q takes off has a positive diagonal.
    for seed in range(20):
        q = init.orthogonal(np.empty((5, 3)), seed=seed)
        triangle = q.T @ np.random.default_rng(seed).standard_normal((5, 3))
        np.testing.assert_allclose(np.tril(triangle, -1), 0, atol=1e-14)
        assert (np.diagonal(triangle) > 0).all()


def test_defaults():
    random = np.random.default_rng
    np.testing.assert_array_equal(init.uniform((9,), seed=0), random(0).random(9).astype("f4"))
    np.testing.assert_array_equal(init.normal((9,), seed=0), random(0).standard_normal(9).astype("f4"))
    for name in ("xavier_uniform", "xavier_normal", "orthogonal"):
        draw = getattr(init, name)
        np.testing.assert_array_equal(draw((4, 5), seed=0), draw((4, 5), 1.0, seed=0))
    assert (init.forget_bias(fastrnn.LSTM(1, 1)).bias_ih_l0[1] == 1).all()
    assert (init.uniform((3,), 2, 2) == 2).all()


@pytest.mark.parametrize("shape", [(1, 1), (4, 4), (2, 5), (5, 2), (0, 2)])
def test_identity(torch, shape):
    np.testing.assert_array_equal(init.identity(shape), torch.nn.init.eye_(torch.empty(shape)).numpy())
    np.testing.assert_array_equal(init.identity(shape, 0.5), 0.5 * np.eye(*shape))


@pytest.mark.parametrize("shape, fans", [((300, 200), 500), ((100, 150, 4), 1000)])
def test_xavier(shape, fans):
    bound = 2 * math.sqrt(6 / fans)
    made = init.xavier_uniform(shape, 2, seed=0)
    assert 0.999 * bound < made.max() <= bound and -bound <= made.min() < -0.999 * bound and abs(made.mean()) < 0.005
    made = init.xavier_normal(shape, 2, seed=0)
    assert made.std() == pytest.approx(2 * math.sqrt(2 / fans), rel=0.02) and abs(made.mean()) < 0.005


@pytest.mark.parametrize("shape", [(300, 200), (100, 150, 4)])
def test_xavier_is_torchs(torch, shape):
    for name in ("xavier_uniform", "xavier_normal"):
        theirs = getattr(torch.nn.init, name + "_")(torch.empty(shape), 2.0)
        assert getattr(init, name)(shape, 2.0, seed=0).std() == pytest.approx(theirs.std().item(), rel=0.03)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (40_000,), (100, 400)])
def test_uniform_normal_zeros(shape):
    low = init.uniform(shape, -0.5, 2, seed=0)
    middle = init.normal(shape, 3, 0.1, seed=0)
    assert low.shape == middle.shape == shape and low.dtype == middle.dtype == np.float32
    assert ((-0.5 <= low) & (low <= 2)).all() and not init.zeros(shape).any() and init.zeros(shape).shape == shape
    if low.size > 1:
        assert low.min() < -0.49 and low.max() > 1.99 and abs(low.mean() - 0.75) < 0.02
        assert abs(middle.mean() - 3) < 0.01 and middle.std() == pytest.approx(0.1, rel=0.02)
    assert (init.uniform(shape, seed=0) >= 0).all() and (init.normal(shape, 2, std=0) == 2).all()


@pytest.mark.parametrize("name", RANDOM)
def test_seeds(name):
    draw = getattr(init, name)
    np.testing.assert_array_equal(draw((4, 5), seed=1), draw((4, 5), seed=1))
    assert not np.array_equal(draw((4, 5), seed=1), draw((4, 5), seed=2))
    assert not np.array_equal(draw((4, 5)), draw((4, 5)))
    generator = np.random.default_rng(1)
    np.testing.assert_array_equal(draw((4, 5), seed=generator), draw((4, 5), seed=1))
    assert not np.array_equal(draw((4, 5), seed=generator), draw((4, 5), seed=1))


# ---------------------------------------------------------------- where to


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_arrays_and_parameters_are_filled_in_place(name, dtype):
    draw, seed = getattr(init, name), {"seed": 3} if name in RANDOM else {}
    array = np.full((6, 8), 9, dtype)[:, ::2]
    assert draw(array, **seed) is array and array.dtype == dtype
    np.testing.assert_allclose(array, draw((6, 4), **seed), 1e-6, 1e-7)
    linear = nn.Linear(4, 6, dtype=dtype)
    version, bias, weight = linear.block.version, linear.bias.copy(), linear.weight
    assert draw(weight, **seed) is weight
    np.testing.assert_array_equal(linear.weight, array)
    np.testing.assert_array_equal(linear.bias, bias)
    assert linear.block.version > version
    part = linear.weight[2:4]
    draw(part, **seed)
    np.testing.assert_array_equal(linear.weight[2:4], draw(np.empty((2, 4), dtype), **seed))


LAYERS = [
    ("RNN", {"num_layers": 2, "bidirectional": True}),
    ("LSTM", {"num_layers": 2}),
    ("LSTM", {"proj_size": 3}),
    ("LSTM", {"forget": "none", "bidirectional": True}),
    ("LSTM", {"peephole": "cell", "proj_size": 3}),
    ("GRU", {"num_layers": 2}),
    ("RNNCell", {}),
    ("LSTMCell", {}),
    ("GRUCell", {}),
]


@pytest.mark.parametrize("kind, options", LAYERS, ids=str)
@pytest.mark.parametrize("name", ALL)
def test_layers_are_filled_gate_by_gate(kind, options, name):
    layer = getattr(fastrnn, kind)(4, 6, **options, seed=0)
    before, version, draw = layer.state_dict(), layer.block.version, getattr(init, name)
    assert draw(layer, **({"seed": 5} if name in RANDOM else {})) is layer
    assert layer.block.version > version
    generator, seen = np.random.default_rng(5), []
    for key, value in layer.state_dict().items():
        if not key.startswith("weight_hh"):
            np.testing.assert_array_equal(value, before[key])
            continue
        assert value.shape[0] == 6 * len(layer.cell.gates)
        for matrix in np.split(value, len(layer.cell.gates)):
            expected = draw(matrix.shape, **({"seed": generator} if name in RANDOM else {}))
            np.testing.assert_array_equal(matrix, expected)
            seen.append(matrix)
    if name == "orthogonal":
        for matrix in seen:
            orthonormal(matrix)


def test_a_read_only_array_is_left():
    generator, array = np.random.default_rng(1), np.ones((3, 4))
    array.flags.writeable = False
    derived = np.asarray(nn.Linear(4, 3).weight)
    for target in (array, derived, derived.T):
        with pytest.raises(OptionError, match="target must be an array that can be written to, not a read-only one"):
            init.normal(target, seed=generator)
    assert generator.random() == np.random.default_rng(1).random() and (array == 1).all()


def test_models_are_searched():
    lstm, gru = fastrnn.LSTM(3, 4), fastrnn.GRU(4, 4)
    linear = nn.Linear(4, 4)
    weight = linear.weight.copy()
    model = nn.Sequential(nn.Embedding(5, 3), lstm, nn.Sequential(gru, linear), lstm)
    init.identity(model)
    np.testing.assert_array_equal(lstm.weight_hh_l0, np.tile(np.eye(4), (4, 1)))
    np.testing.assert_array_equal(gru.weight_hh_l0, np.tile(np.eye(4), (3, 1)))
    np.testing.assert_array_equal(linear.weight, weight)
    init.orthogonal(model, seed=0)
    first = lstm.weight_hh_l0.copy()
    init.orthogonal(lstm, seed=0)  # once, though the model holds it twice
    np.testing.assert_array_equal(lstm.weight_hh_l0, first)


# ---------------------------------------------------------------- the forget gate


@pytest.mark.parametrize(
    "make, rows",
    [
        (lambda: fastrnn.LSTM(3, 4, num_layers=2, bidirectional=True), slice(4, 8)),
        (lambda: fastrnn.LSTM(3, 4, proj_size=2), slice(4, 8)),
        (lambda: fastrnn.LSTM(3, 4, forget="coupled"), slice(0, 4)),
        (lambda: fastrnn.LSTMCell(3, 4), slice(4, 8)),
        (lambda: nn.Sequential(fastrnn.LSTM(3, 4), nn.Linear(4, 4)), slice(4, 8)),
    ],
)
@pytest.mark.parametrize("value", [1.0, -2])
def test_forget_bias(make, rows, value):
    model = make()
    before = model.state_dict()
    assert init.forget_bias(model, value) is model
    touched = 0
    for name, now in model.state_dict().items():
        expected = before[name].copy()
        kind = name.split(".")[-1][:7]
        if kind in ("bias_ih", "bias_hh"):
            expected[rows] = value if kind == "bias_ih" else 0
            touched += 1
        np.testing.assert_array_equal(now, expected)
    assert touched


@pytest.mark.parametrize(
    "target, words",
    [
        (fastrnn.GRU(2, 3), "have a forget gate; GRU"),
        (fastrnn.RNNCell(2, 3), "have a forget gate; RNNCell"),
        (fastrnn.LSTM(2, 3, forget="none"), "have a forget gate; LSTM"),
        (fastrnn.LSTM(2, 3, bias=False), "have a bias; LSTM"),
        (nn.Linear(2, 3), "holds no recurrent layer"),
        (nn.Sequential(fastrnn.LSTM(2, 3), fastrnn.GRU(3, 2)), "have a forget gate; GRU"),
    ],
)
def test_forget_bias_needs_one(target, words):
    before = target.state_dict()
    with pytest.raises(OptionError, match=words):
        init.forget_bias(target)
    assert all(np.array_equal(value, before[name]) for name, value in target.state_dict().items())


@pytest.mark.parametrize("value, keeps", [(50, 1), (-50, 0)])
def test_forget_bias_decides_what_an_lstm_remembers(value, keeps):
    lstm = init.zeros(fastrnn.LSTM(1, 3, seed=0, dtype="float64", backend="numpy"))
    init.forget_bias(lstm, value)
    bias = lstm.bias_ih_l0 + lstm.bias_hh_l0
    written = np.tanh(bias[6:9]) / (1 + np.exp(-bias[:3]))  # i g, the same every step
    h, c = np.zeros((1, 1, 3)), np.array([[[1.0, -2.0, 3.0]]])
    _, (_, after) = lstm(np.zeros((20, 1, 1)), (h, c))
    np.testing.assert_allclose(after, keeps * (c + 19 * written) + written, 1e-12)


# ---------------------------------------------------------------- what cannot be


@pytest.mark.parametrize(
    "make, error, words",
    [
        (lambda: init.orthogonal((3,)), ShapeError, r"orthogonal needs at least two axes, not the shape \[3\]"),
        (lambda: init.xavier_uniform(np.ones(3)), ShapeError, "xavier_uniform needs at least two axes"),
        (lambda: init.xavier_normal(()), ShapeError, "xavier_normal needs at least two axes"),
        (lambda: init.identity((2, 2, 2)), ShapeError, r"identity needs a matrix, not the shape \[2, 2, 2\]"),
        (lambda: init.zeros(3), DtypeError, "target must be a shape, a numpy array, a Parameter or a Module, not 3"),
        (lambda: init.zeros((3, -1)), DtypeError, "target must be a shape"),
        (lambda: init.zeros((3.0,)), DtypeError, "target must be a shape"),
        (lambda: init.zeros(np.ones(3, int)), DtypeError, "float32 or float64, not int64"),
        (lambda: init.zeros(nn.Linear(2, 3)), OptionError, "give the array or the Parameter"),
        (lambda: init.forget_bias(np.ones(3)), DtypeError, "target must be a Module, not ndarray"),
        (lambda: init.forget_bias(fastrnn.LSTM(2, 3), "1"), OptionError, "value must be a finite number, not '1'"),
        (lambda: init.orthogonal((2, 2), math.nan), OptionError, "gain must be a finite number, not nan"),
        (lambda: init.uniform((2, 2), 1, 0), OptionError, "a must not be greater than b"),
        (lambda: init.normal((2, 2), 0, -1), OptionError, "std must be a number >= 0"),
        (lambda: init.normal((2, 2), seed=-1), OptionError, "seed"),
    ],
)
def test_arguments_that_cannot_be(make, error, words):
    with pytest.raises(error, match=words):
        make()
