"""The layers and cells: PyTorch is the oracle for what they compute, a table for what they refuse."""

import copy
import os
import pickle

import numpy as np
import pytest

import fastrnn
from fastrnn.backends import forced
from fastrnn.cell import Cell
from fastrnn.errors import (
    BackendError,
    DtypeError,
    FastrnnWarning,
    OptionError,
    OutOfMemoryError,
    ShapeError,
    UsageError,
)
from fastrnn.layers import Layer, SingleStep

BACKENDS = fastrnn.backends()
LAYERS = [("RNN", {}), ("RNN", {"nonlinearity": "relu"}), ("LSTM", {}), ("LSTM", {"proj_size": 2}), ("GRU", {})]
CELLS = [("RNNCell", {}), ("RNNCell", {"nonlinearity": "relu"}), ("LSTMCell", {}), ("GRUCell", {})]
OPTIONS = [
    {},
    {"num_layers": 2, "bidirectional": True, "dropout": 0.0},
    {"bias": False, "batch_first": True},
    {"num_layers": 3, "batch_first": True, "bidirectional": True},
]
SIZES = [(5, 3, 4, 6), (1, 1, 1, 3), (3, 17, 7, 9)]  # T, B, I, H


def ids(value):
    if isinstance(value, dict):
        return ",".join(f"{k}={v}" for k, v in value.items()) or "plain"
    return str(value)


def normal(*shape, seed=0, dtype="f8"):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def torch_pair(name, *sizes, backend=None, dtype="float64", **options):
    """PyTorch's layer and ours, of the same parameters."""
    torch = pytest.importorskip("torch")
    theirs = getattr(torch.nn, name)(*sizes, **options, dtype=getattr(torch, dtype))
    ours = getattr(fastrnn, name)(*sizes, **options, dtype=dtype, backend=backend)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def tensor(value):
    """Arrays, in tuples or not, as PyTorch's leaves."""
    torch = pytest.importorskip("torch")
    if value is None:
        return None
    return tuple(map(tensor, value)) if isinstance(value, tuple) else torch.from_numpy(value.copy()).requires_grad_()


def flat(*values):
    """The arrays in nested tuples, in order."""
    return [a for v in values for a in (flat(*v) if isinstance(v, tuple) else [v])]


def check(ours, theirs, tolerance=1e-10):
    for mine, other in zip(flat(ours), flat(theirs), strict=True):
        assert type(mine) is np.ndarray
        np.testing.assert_allclose(mine, other.detach().numpy(), tolerance, tolerance)


def initial(layer, batch=None, seed=1):
    """A state, and as good a gradient of one, for a layer or cell; without B for batch=None."""
    lead = (layer.num_layers * (1 + layer.bidirectional),) if isinstance(layer, Layer) else ()
    lead += () if batch is None else (batch,)
    h = normal(*lead, layer.cell.proj_size or layer.hidden_size, seed=seed)
    return (h, normal(*lead, layer.hidden_size, seed=seed + 1)) if layer.cell.has_c else h


def check_backward(theirs, ours, y, dy, dstate, x, state):
    """Both backwards; `y` is PyTorch's (y, state), x and state its leaves."""
    torch = pytest.importorskip("torch")
    torch.autograd.backward(flat(y), [torch.from_numpy(g) for g in flat(dy, dstate)])
    dx, dstate0 = ours.backward(dy, dstate) if isinstance(ours, Layer) else ours.backward(dstate)
    check(dx, x.grad)
    if state is not None:
        check(dstate0, tuple(s.grad for s in flat(state)) if isinstance(state, tuple) else state.grad)
    for name, parameter in theirs.named_parameters():
        check(ours.grad[name], parameter.grad)


# ---------------------------------------------------------------- against PyTorch


@pytest.mark.parametrize("given", [False, True], ids=["zeros", "state"])
@pytest.mark.parametrize("sizes", SIZES, ids=ids)
@pytest.mark.parametrize("options", OPTIONS, ids=ids)
@pytest.mark.parametrize(("name", "more"), LAYERS, ids=ids)
def test_layer_is_torchs(name, more, options, sizes, given):
    steps, batch, *sizes = sizes
    theirs, ours = torch_pair(name, *sizes, **more, **options)
    shape = (batch, steps) if ours.batch_first else (steps, batch)
    x, state = normal(*shape, sizes[0]), initial(ours, batch) if given else None
    tx, tstate = tensor(x), tensor(state)
    expected = theirs(tx, tstate)
    check(ours(x, state), expected)
    ours.train()
    y, end = ours(x, state)
    check((y, end), expected)
    assert y.dtype == ours.dtype == np.float64
    check_backward(theirs, ours, expected, normal(*y.shape), initial(ours, batch, seed=7), tx, tstate)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "more"), LAYERS, ids=ids)
def test_layer_is_torchs_on_every_backend(name, more, backend):
    theirs, ours = torch_pair(name, 4, 6, backend=backend, num_layers=2, bidirectional=True, **more)
    x, state = normal(5, 3, 4), initial(ours, 3)
    tx, tstate = tensor(x), tensor(state)
    expected = theirs(tx, tstate)
    y, end = ours.train()(x, state)
    check((y, end), expected)
    y *= 0  # the caller's own: backward does not see it
    check_backward(theirs, ours, expected, normal(*y.shape), initial(ours, 3, seed=7), tx, tstate)


@pytest.mark.parametrize("options", OPTIONS, ids=ids)
@pytest.mark.parametrize(("name", "more"), LAYERS, ids=ids)
def test_one_sequence_without_a_batch(name, more, options):
    theirs, ours = torch_pair(name, 4, 6, **more, **options)
    x, state = normal(5, 4), initial(ours)
    tx, tstate = tensor(x), tensor(state)
    expected = theirs(tx, tstate)
    y, end = ours.train()(x, state)
    check((y, end), expected)
    check_backward(theirs, ours, expected, normal(*y.shape), initial(ours, seed=7), tx, tstate)


@pytest.mark.parametrize("left_out", ["dy", "dstate", "both"])
@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_a_gradient_left_out_is_zeros(name, left_out):
    layer = getattr(fastrnn, name)(4, 6, 2, dtype="float64", seed=0).train()
    x, dy, dstate = normal(5, 3, 4), normal(5, 3, 6), initial(layer, 3)
    if left_out != "dstate":
        dy *= 0
    if left_out != "dy":
        dstate = _each(dstate, np.zeros_like)
    layer(x)
    expected = layer.backward(dy, dstate)
    layer(x)
    got = layer.backward(None if left_out != "dstate" else dy, None if left_out != "dy" else dstate)
    for one, other in zip(flat(*got), flat(*expected), strict=True):
        np.testing.assert_allclose(one, other, 1e-12, 1e-14)
    assert left_out == "both" or got[0].any()


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_float32_is_as_near_to_float64_as_torchs(name):
    torch = pytest.importorskip("torch")
    theirs, ours = torch_pair(name, 16, 32, 2, dtype="float32")
    x = normal(50, 4, 16, dtype="f4")
    exact = copy.deepcopy(theirs).double()(torch.from_numpy(x).double())[0].detach().numpy()
    error, their_error = (
        abs(ours(x)[0] - exact).max(),
        abs(theirs(torch.from_numpy(x))[0].detach().numpy() - exact).max(),
    )
    assert error <= 2 * their_error + 1e-6


@pytest.mark.parametrize("batch", [None, 1, 5])
@pytest.mark.parametrize(("name", "options"), CELLS, ids=ids)
def test_cell_is_torchs(name, options, batch):
    theirs, ours = torch_pair(name, 4, 6, **options)
    x = normal(*(() if batch is None else (batch,)), 4)
    for state in (None, initial(ours, batch)):
        tx, tstate = tensor(x), tensor(state)
        theirs.zero_grad()
        ours.zero_grad()
        expected = theirs(tx, tstate)
        check(ours.eval()(x, state), expected)
        check(ours.train()(x, state), expected)
        check_backward(theirs, ours, (expected,), (), initial(ours, batch, seed=7), tx, tstate)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "options"), CELLS, ids=ids)
def test_a_loop_of_cells_is_undone_by_a_loop_of_backward(name, options, backend):
    cell = getattr(fastrnn, name)(4, 6, **options, dtype="float64", backend=backend).train()
    layer = Layer.from_cell(cell.cell, 4, 6, dtype="float64", backend="numpy").train()
    layer.load_state_dict({name + "_l0": value for name, value in cell.state_dict().items()})
    x, state0, dend = normal(5, 3, 4), initial(cell, 3), initial(cell, 3, seed=7)
    state = state0
    for x_t in x:
        state = cell(x_t, state)
    _, end = layer(x, _each(state0, lambda s: s[None]))
    np.testing.assert_allclose(np.stack(flat(state)), np.stack(flat(end))[:, 0], 1e-12, 1e-12)
    dxs, dstate = [], dend
    for _ in x:
        dx, dstate = cell.backward(dstate)
        dxs.insert(0, dx)
    dx, dstate0 = layer.backward(None, _each(dend, lambda s: s[None]))
    np.testing.assert_allclose(np.stack(dxs), dx, 1e-10, 1e-12)
    np.testing.assert_allclose(np.stack(flat(dstate)), np.stack(flat(dstate0))[:, 0], 1e-10, 1e-12)
    np.testing.assert_allclose(cell.block.grad, layer.block.grad, 1e-10, 1e-12)
    with pytest.raises(UsageError):
        cell.backward(dend)


def _each(state, f):
    return tuple(map(f, state)) if isinstance(state, tuple) else f(state)


@pytest.mark.parametrize(("name", "more"), LAYERS + CELLS, ids=ids)
def test_state_dict_goes_to_torch_and_back(name, more):
    torch = pytest.importorskip("torch")
    options = {} if name.endswith("Cell") else {"num_layers": 2, "bidirectional": True}
    theirs, ours = torch_pair(name, 4, 6, **options, **more)
    ours.reset_parameters()
    state = {key: torch.as_tensor(value) for key, value in ours.state_dict().items()}
    theirs.load_state_dict(state)
    assert list(state) == list(theirs.state_dict())
    x = normal(3, 2, 4)[0 if name.endswith("Cell") else slice(None)]
    check(ours(x), theirs(torch.from_numpy(x)))


# ---------------------------------------------------------------- lengths


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lengths", [(5, 5, 5), (1, 5, 3), (5, 2, 2), (3, 1, 2)], ids=ids)
@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_lengths_are_torchs_packed_sequences(name, lengths, backend):
    torch = pytest.importorskip("torch")
    theirs, ours = torch_pair(name, 4, 6, backend=backend, num_layers=2, bidirectional=True)
    x, state = normal(5, 3, 4), initial(ours, 3)
    tx, tstate = tensor(x), tensor(state)
    packed = torch.nn.utils.rnn.pack_padded_sequence(tx, torch.tensor(lengths), enforce_sorted=False)
    packed, end = theirs(packed, tstate)
    y = torch.nn.utils.rnn.pad_packed_sequence(packed, total_length=5)[0]
    check(ours.train()(x, state, lengths=lengths), (y, end))
    check_backward(theirs, ours, (y, end), normal(*y.shape), initial(ours, 3, seed=7), tx, tstate)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_each_row_of_a_ragged_batch_is_what_it_is_alone(name, bidirectional, batch_first):
    lengths = np.array([0, 4, 7, 0, 1])
    make = getattr(fastrnn, name)
    layer = make(4, 6, 2, bidirectional=bidirectional, batch_first=batch_first, dtype="float64", seed=0).train()
    x, state = normal(5, 7, 4), initial(layer, 5)
    dy, dstate = normal(5, 7, 6 * (1 + bidirectional)), initial(layer, 5, seed=7)
    swap = (lambda a: a) if batch_first else (lambda a: a.swapaxes(0, 1))
    y, end = layer(swap(x), state, lengths)
    dx, dstate0 = layer.backward(swap(dy), dstate)
    y, dx, grad = swap(y), swap(dx), layer.block.grad.copy()
    layer.zero_grad()
    for b, n in enumerate(lengths):
        alone, end_alone = layer(x[b, :n], _each(state, lambda s, b=b: s[:, b]))
        dx_alone, dstate0_alone = layer.backward(dy[b, :n], _each(dstate, lambda s, b=b: s[:, b]))
        assert not y[b, n:].any() and not dx[b, n:].any()
        for got, wanted in zip(
            [y[b, :n], dx[b, :n], *(s[:, b] for s in flat(end, dstate0))],
            [alone, dx_alone, *flat(end_alone, dstate0_alone)],
            strict=True,
        ):
            np.testing.assert_allclose(got, wanted, 1e-10, 1e-12)
    np.testing.assert_allclose(layer.block.grad, grad, 1e-10, 1e-12)


@pytest.mark.parametrize("as_given", [list, tuple, np.array, lambda v: np.array(v, "u1"), lambda v: np.array(v, ">i4")])
def test_lengths_of_any_integers(as_given):
    layer = fastrnn.GRU(2, 3)
    x = normal(4, 3, 2)
    assert np.array_equal(layer(x, lengths=as_given([4, 0, 2]))[0], layer(x, lengths=[4, 0, 2])[0])
    torch = pytest.importorskip("torch")
    assert np.array_equal(layer(x, lengths=torch.tensor([4, 0, 2]))[0], layer(x, lengths=[4, 0, 2])[0])


# ---------------------------------------------------------------- sizes of nothing, cells, dropout


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("steps", "batch", "size"), [(0, 3, 4), (4, 0, 4), (0, 0, 4), (3, 2, 0)])
@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_sizes_of_nothing(name, steps, batch, size, backend):
    layer = getattr(fastrnn, name)(size, 5, 2, bidirectional=True, dtype="float64", backend=backend).train()
    state, dstate = initial(layer, batch), initial(layer, batch, seed=7)
    y, end = layer(np.zeros((steps, batch, size)), state)
    assert y.shape == (steps, batch, 10)
    dx, dstate0 = layer.backward(np.zeros_like(y), dstate)
    assert dx.shape == (steps, batch, size)
    for now, before in zip(flat(end, dstate0), flat(state, dstate), strict=True):
        assert now.shape == before.shape and not np.shares_memory(now, before)
        assert steps or np.array_equal(now, before)
    assert steps or not layer.block.grad.any()


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("proj_size", [0, 2])
def test_return_cells(proj_size, backend, batch_first):
    layer = fastrnn.LSTM(
        4, 5, 2, bidirectional=True, proj_size=proj_size, batch_first=batch_first, dtype="float64", backend=backend
    )
    x = normal(3, 6, 4) if batch_first else normal(6, 3, 4)
    y, state, cells = layer(x, lengths=[6, 2, 0], return_cells=True)
    check_y, check_state = layer(x, lengths=[6, 2, 0])
    assert np.array_equal(y, check_y) and np.array_equal(state[1], check_state[1])
    assert cells.shape == (*y.shape[:2], 10)
    cells = cells.swapaxes(0, 1) if batch_first else cells
    assert np.array_equal(cells[[5, 1], [0, 1], :5], state[1][2, :2])
    assert np.array_equal(cells[0, :2, 5:], state[1][3, :2])
    assert not cells[2:, 1].any() and not cells[:, 2].any()
    one = fastrnn.LSTM(4, 5, seed=0)
    cells = one(x[0], return_cells=True)[2]
    for t in range(len(x[0])):
        assert np.array_equal(cells[t], one(x[0][: t + 1])[1][1][0])


def masked_layer(p, **options):
    """Two layers of which the second gives the dropout mask: 1 goes in, the identity comes out."""
    layer = fastrnn.RNN(1, 3, 2, "relu", dropout=p, **options).train()
    layer.block.flat[:] = 0
    layer.block.touch()
    layer.bias_ih_l0 = [1, 1, 1]
    layer.weight_ih_l1 = np.eye(3)
    return layer


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("p", [0.25, 0.5])
def test_dropout_is_between_layers_fresh_and_scaled(p, backend):
    layer = masked_layer(p, seed=1, backend=backend)
    x = np.zeros((200, 10, 1), "f4")
    mask, _ = layer(x)
    np.testing.assert_allclose(np.unique(mask), [0, 1 / (1 - p)], 1e-6)
    assert abs(mask.mean() - 1) < 0.05 and not np.array_equal(mask[0], mask[1])
    assert not np.array_equal(mask, layer(x)[0])
    again, other = masked_layer(p, seed=1, backend=backend), masked_layer(p, seed=2, backend=backend)
    assert np.array_equal(mask, again(x)[0]) and not np.array_equal(mask, other(x)[0])
    again.backward(np.full_like(mask, 1 - p))  # so that what is summed is 1 or 0, and the sum exact
    np.testing.assert_allclose(again.bias_ih_l0.grad, (mask != 0).sum((0, 1)), 1e-5)
    assert (layer.eval()(x)[0] == 1).all()


def test_dropout_of_everything_and_nothing():
    x = np.zeros((3, 2, 1), "f4")
    assert not masked_layer(1)(x)[0].any()
    assert (masked_layer(0.0)(x)[0] == 1).all()


def test_dropout_with_one_layer_warns_where_it_was_written():
    for make in (
        lambda: fastrnn.LSTM(2, 3, dropout=0.5),
        lambda: Layer.from_cell(Cell("gru"), 2, 3, dropout=0.5),
    ):
        with pytest.warns(FastrnnWarning, match="num_layers=1") as caught:
            make()
        assert caught[0].filename == __file__


# ---------------------------------------------------------------- what goes in


X = normal(4, 3, 2, dtype="f4")
ODD = {
    "list": X.tolist(),
    "fortran": np.asfortranarray(X),
    "sliced": np.repeat(X, 2, axis=0)[::2],
    "reversed": X[::-1].copy()[::-1],
    "big-endian": X.astype(">f4"),
    "float64": X.astype("f8"),
    "unaligned": np.frombuffer(b"\0" + X.tobytes(), "u1")[1:].view("f4").reshape(X.shape),
    "matrix of rows": [list(step) for step in X],
}


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("kind", ODD)
def test_odd_inputs(kind, name, batch_first):
    layer = getattr(fastrnn, name)(2, 3, seed=0, batch_first=batch_first).train()
    batch = 4 if batch_first else 3
    dy = np.zeros((4, 3, 3), "f4") + X[:, :, :1]
    expected, gradient = layer(X, initial(layer, batch)), layer.backward(dy, initial(layer, batch))
    state = _each(initial(layer, batch), lambda s: np.asfortranarray(s).astype(">f8"))
    given = ODD[kind]
    before = copy.deepcopy(given)
    got = layer(given, state)
    for one, other in zip(flat(*got), flat(*expected), strict=True):
        assert np.array_equal(one, other) and one.dtype == np.float32
    gradient_odd = layer.backward(np.asfortranarray(dy).astype("f8"), state)
    for one, other in zip(flat(*gradient_odd), flat(*gradient), strict=True):
        assert np.array_equal(one, other)
    assert np.array_equal(given, before)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "int64"])
def test_torch_tensors_go_in(dtype):
    torch = pytest.importorskip("torch")
    layer = fastrnn.LSTM(2, 3)
    x = torch.arange(-12, 12).reshape(4, 3, 2).to(getattr(torch, dtype))
    if x.is_floating_point():
        x.requires_grad_()
    state = torch.zeros(1, 3, 3), torch.zeros(1, 3, 3)
    expected = layer(np.arange(-12, 12).reshape(4, 3, 2))
    assert np.array_equal(layer(x, state)[0], expected[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_inputs_are_not_modified_and_may_be_read_only(name, backend):
    layer = getattr(fastrnn, name)(2, 3, 2, bidirectional=True, dtype="float64", backend=backend).train()
    states, lengths = [flat(initial(layer, 3, seed)) for seed in (1, 7)], np.array([2, 4, 0])
    arrays = [normal(4, 3, 2), *states[0], lengths, normal(4, 3, 6), *states[1]]
    before = [a.copy() for a in arrays]
    for a in arrays:
        a.flags.writeable = False
    if name == "LSTM":
        x, h, c, lengths, dy, dh, dc = arrays
        layer(x, (h, c), lengths)
        layer.backward(dy, (dh, dc))
    else:
        x, h, lengths, dy, dh = arrays
        layer(x, h, lengths)
        layer.backward(dy, dh)
    assert all(np.array_equal(a, b) for a, b in zip(arrays, before, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_changed_parameters_are_picked_up(name, backend):
    layer = getattr(fastrnn, name)(2, 3, dtype="float64", seed=0, backend=backend)
    other = getattr(fastrnn, name)(2, 3, dtype="float64", seed=1, backend=backend)
    x = normal(4, 3, 2)
    assert not np.array_equal(layer(x)[0], other(x)[0])
    for key in layer.block:
        before = layer(x)[0]
        layer.block[key][...] = other.block[key]
        assert not np.array_equal(layer(x)[0], before), key
    assert np.array_equal(layer(x)[0], other(x)[0])


# ---------------------------------------------------------------- what is refused

LAYER = fastrnn.GRU(4, 5, 2)
FIRST = fastrnn.GRU(4, 5, batch_first=True)
LONG = fastrnn.LSTM(4, 5, proj_size=2)
CELL = fastrnn.GRUCell(4, 5)
LONG_CELL = fastrnn.LSTMCell(4, 5)


def z(*shape):
    return np.zeros(shape, "f4")


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: LAYER(z(3, 2, 5)), ShapeError, ["x must be [T, B, 4]", "[3, 2, 5]"]),
        (lambda: FIRST(z(3, 2, 5)), ShapeError, ["x must be [B, T, 4]", "[3, 2, 5]"]),
        (lambda: LAYER(z(4)), ShapeError, ["[T, 4]", "[4]"]),
        (lambda: LAYER(z(1, 3, 2, 4)), ShapeError, ["[1, 3, 2, 4]"]),
        (lambda: LAYER(1.0), ShapeError, ["x", "[]"]),
        (lambda: LAYER([[1, 2], [3]]), ShapeError, ["x cannot be read"]),
        (lambda: LAYER(None), DtypeError, ["x", "float32", "NoneType"]),
        (lambda: LAYER("text"), DtypeError, ["x", "str"]),
        (lambda: LAYER(z(3, 2, 4).astype("c8")), DtypeError, ["x", "complex64"]),
        (lambda: LAYER(z(3, 2, 4).astype(object)), DtypeError, ["x", "object"]),
        (lambda: LAYER(z(3, 2, 4), z(2, 3, 5)), ShapeError, ["h of state", "[2, 2, 5]", "[2, 3, 5]"]),
        (lambda: LAYER(z(3, 2, 4), z(2, 5)), ShapeError, ["h of state", "[2, 2, 5]", "[2, 5]"]),
        (lambda: LAYER(z(3, 4), z(2, 1, 5)), ShapeError, ["h of state", "[2, 5]", "[2, 1, 5]"]),
        (lambda: LAYER(z(3, 2, 4), (z(2, 2, 5), z(2, 2, 5))), ShapeError, ["h of state", "[2, 2, 2, 5]"]),
        (lambda: LAYER(z(3, 2, 4), "h"), DtypeError, ["h of state", "str"]),
        (lambda: LONG(z(3, 2, 4), z(1, 2, 2)), ShapeError, ["state", "pair (h, c)", "ndarray"]),
        (lambda: LONG(z(3, 2, 4), (z(1, 2, 2),)), ShapeError, ["pair (h, c)", "1 part"]),
        (lambda: LONG(z(3, 2, 4), (z(1, 2, 5), z(1, 2, 5))), ShapeError, ["h of state", "[1, 2, 2]", "[1, 2, 5]"]),
        (lambda: LONG(z(3, 2, 4), (z(1, 2, 2), z(1, 2, 2))), ShapeError, ["c of state", "[1, 2, 5]", "[1, 2, 2]"]),
        (lambda: LONG(z(3, 2, 4), (z(1, 2, 2), None)), DtypeError, ["c of state", "NoneType"]),
        (lambda: LAYER(z(3, 2, 4), lengths=[4, 1]), ShapeError, ["lengths[0] is 4", "0..3"]),
        (lambda: LAYER(z(3, 2, 4), lengths=[3, -1]), ShapeError, ["lengths[1] is -1", "0..3"]),
        (lambda: LAYER(z(3, 2, 4), lengths=[3]), ShapeError, ["lengths", "[2]", "[1]"]),
        (lambda: LAYER(z(3, 2, 4), lengths=[]), ShapeError, ["lengths", "[2]", "[0]"]),
        (lambda: LAYER(z(3, 2, 4), lengths=3), ShapeError, ["lengths", "[2]", "[]"]),
        (lambda: LAYER(z(3, 2, 4), lengths=[[3], [1]]), ShapeError, ["lengths", "[2, 1]"]),
        (lambda: LAYER(z(3, 2, 4), lengths=[3.0, 1.0]), DtypeError, ["lengths", "integers", "float64"]),
        (lambda: LAYER(z(3, 2, 4), lengths=[np.nan, 1]), DtypeError, ["lengths", "integers", "nan"]),
        (lambda: LAYER(z(3, 2, 4), lengths=[True, False]), DtypeError, ["lengths", "integers", "bool"]),
        (lambda: LAYER(z(3, 2, 4), lengths="31"), DtypeError, ["lengths", "integers"]),
        (lambda: LAYER(z(3, 2, 4), lengths=[[3], [1, 2]]), DtypeError, ["lengths", "integers"]),
        (lambda: LAYER(z(3, 2, 4), lengths=[2**70, 1]), DtypeError, ["lengths", "integers"]),
        (lambda: LAYER(z(3, 2, 4), lengths=np.array([2**64 - 1, 1], "u8")), ShapeError, ["lengths[0]"]),
        (lambda: LAYER(z(3, 2, 4), return_cells=True), OptionError, ["return_cells", "LSTM", "'gru'"]),
        (lambda: CELL(z(2, 5)), ShapeError, ["x must be [B, 4]", "[4]", "[2, 5]"]),
        (lambda: CELL(z(1, 2, 4)), ShapeError, ["[1, 2, 4]"]),
        (lambda: CELL(z(2, 4), z(3, 5)), ShapeError, ["h of state", "[2, 5]", "[3, 5]"]),
        (lambda: CELL(z(4), z(1, 5)), ShapeError, ["h of state", "[5]", "[1, 5]"]),
        (lambda: LONG_CELL(z(2, 4), z(2, 5)), ShapeError, ["pair (h, c)"]),
        (lambda: fastrnn.RNN(-1, 5), ShapeError, ["input_size", "-1"]),
        (lambda: fastrnn.RNN(4, 0), ShapeError, ["hidden_size", "0"]),
        (lambda: fastrnn.RNN(4, 5, 0), ShapeError, ["num_layers", "0"]),
        (lambda: fastrnn.RNN(4.5, 5), ShapeError, ["input_size", "4.5"]),
        (lambda: fastrnn.RNN(4, 5, nonlinearity="gelu"), OptionError, ["gelu", "tanh"]),
        (lambda: fastrnn.LSTM(4, 5, proj_size=5), ShapeError, ["proj_size", "5"]),
        (lambda: fastrnn.LSTM(4, 5, proj_size=-1), ShapeError, ["proj_size", "-1"]),
        (lambda: fastrnn.LSTM(4, 5, forget="no"), OptionError, ["forget", "'no'"]),
        (lambda: fastrnn.GRU(4, 5, dropout=1.5), OptionError, ["dropout", "1.5", "0..1"]),
        (lambda: fastrnn.GRU(4, 5, dropout=float("nan")), OptionError, ["dropout", "nan"]),
        (lambda: fastrnn.GRU(4, 5, dropout=True), OptionError, ["dropout", "True"]),
        (lambda: fastrnn.GRU(4, 5, dropout="0.5"), OptionError, ["dropout", "'0.5'"]),
        (lambda: fastrnn.GRU(4, 5, dtype="float16"), DtypeError, ["dtype", "float32 or float64", "float16"]),
        (lambda: fastrnn.GRU(4, 5, seed=-1), OptionError, ["seed", "-1"]),
        (lambda: fastrnn.GRU(4, 5, backend="cuda"), OptionError, ["cuda", "'numpy'"]),
        (lambda: fastrnn.RNN(2**70, 5), OutOfMemoryError, ["parameters", "bytes", "do not fit"]),
        (lambda: Layer.from_cell("lstm", 4, 5), DtypeError, ["Cell", "'lstm'"]),
        (lambda: fastrnn.LSTM.from_cell(Cell("gru"), 4, 5), OptionError, ["LSTM", "'lstm'", "gru"]),
        (lambda: fastrnn.GRUCell.from_cell(Cell("rnn"), 4, 5), OptionError, ["GRUCell", "'gru'", "rnn"]),
    ],
)
def test_refused(call, error, words):
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("layer", "x", "dy", "dstate", "error", "words"),
    [
        (LAYER, z(3, 2, 4), z(3, 2, 4), None, ShapeError, ["dy must be [3, 2, 5]", "[3, 2, 4]"]),
        (FIRST, z(2, 3, 4), z(3, 2, 5), None, ShapeError, ["dy must be [2, 3, 5]", "[3, 2, 5]"]),
        (LAYER, z(3, 4), z(3, 1, 5), None, ShapeError, ["dy must be [3, 5]", "[3, 1, 5]"]),
        (LAYER, z(3, 2, 4), "dy", None, DtypeError, ["dy", "str"]),
        (LAYER, z(3, 2, 4), None, z(2, 1, 5), ShapeError, ["h of dstate", "[2, 2, 5]", "[2, 1, 5]"]),
        (LONG, z(3, 2, 4), None, z(1, 2, 2), ShapeError, ["dstate", "pair (h, c)"]),
    ],
)
def test_backward_refuses_and_can_be_called_again(layer, x, dy, dstate, error, words):
    layer.train()
    layer(x)
    with pytest.raises(error) as caught:
        layer.backward(dy, dstate)
    for word in words:
        assert word in str(caught.value)
    assert layer.backward(None)[0].shape == x.shape
    layer.eval()


def test_backward_out_of_order():
    layer, x = fastrnn.LSTM(2, 3), z(4, 1, 2)
    y, _ = layer(x)
    with pytest.raises(UsageError, match=r"train\(\)"):
        layer.backward(y)
    layer.train()
    layer(x)
    layer.backward(y)
    with pytest.raises(UsageError, match="once per call"):
        layer.backward(y)
    layer(x)
    layer.weight_hh_l0 *= 2
    with pytest.raises(UsageError, match="parameters changed"):
        layer.backward(y)
    layer(x)
    layer.eval()(x)
    with pytest.raises(UsageError):
        layer.backward(y)


def test_backward_goes_through_the_latest_call_of_a_layer():
    layer = fastrnn.GRU(2, 3, seed=0).train()
    layer(z(4, 1, 2))
    layer(z(5, 2, 2))
    assert layer.backward(z(5, 2, 3))[0].shape == (5, 2, 2)
    with pytest.raises(UsageError):
        layer.backward(z(4, 1, 3))


def test_a_cell_drops_calls_that_cannot_be_undone():
    cell = fastrnn.GRUCell(2, 3).train()
    cell(z(2))
    cell.bias_ih += 1
    with pytest.raises(UsageError, match="parameters changed"):
        cell.backward(z(3))
    cell(z(2))
    assert len(cell._calls) == 1
    cell.eval()(z(2))
    with pytest.raises(UsageError, match="no call"):
        cell.train().backward(z(3))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("given", ["states", "dropout", "lengths", "another size"])
@pytest.mark.parametrize("then", ["dy", "dstate"])
def test_nothing_of_a_call_is_left_in_the_next(name, given, then, backend):
    T, B, I, H = 6, 3, 4, 5
    make = getattr(fastrnn, name)
    state = (normal(2, B, H), normal(2, B, H, seed=1)) if name == "LSTM" else normal(2, B, H)
    x, dy = normal(T, B, I), normal(T, B, H)

    def trained(layer):
        layer.zero_grad()
        y, final = layer(x)
        back = layer.backward(dy) if then == "dy" else layer.backward(None, state)
        return [np.asarray(array).ravel() for array in (y, final, back[0], back[1], *layer.grad.values())]

    dropout = 0.5 * (given == "dropout")
    layer = make(I, H, num_layers=2, dropout=dropout, dtype="float64", seed=0, backend=backend).train()
    cells = None
    if given == "states":
        found = layer(x, state, return_cells=name == "LSTM")
        cells = found[2].copy() if name == "LSTM" else None
        layer.backward(2 * dy, state)
    elif given == "lengths":
        layer(x, lengths=[2, 0, 5])
        layer.backward(dy)
    else:
        steps = T - (given == "another size")
        layer(x[:steps])
        layer.backward(dy[:steps])
    layer.dropout = 0.0
    fresh = make(I, H, num_layers=2, dtype="float64", backend=backend).train()
    fresh.load_state_dict(layer.state_dict())
    for left, wanted in zip(trained(layer), trained(fresh), strict=True):
        np.testing.assert_array_equal(left, wanted)
    if cells is not None:
        np.testing.assert_array_equal(found[2], cells)


def test_a_tape_is_made_of_the_last_ones_parts():
    pytest.importorskip("fastrnn._c")
    layer, x = fastrnn.GRU(3, 4, backend="c").train(), normal(5, 2, 3, dtype="f4")

    def parts(x, lengths=None):
        layer(x, lengths=lengths)
        found = layer._calls[-1].tape.parts
        layer.backward(None)
        return found

    first = parts(x)
    assert parts(x) is first
    assert parts(x[:4]).memory is first.memory and parts(x[:4]) is not first
    assert parts(x, [5, 5]).call is not first.call
    layer(x)
    tape = layer._calls[-1].tape.parts
    layer(x)  # while the one before was not gone back through
    assert layer._calls[-1].tape.parts.memory is not tape.memory


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_go_to_the_arrays_given_at_that_call(backend):
    """The contract's dparams may be any mapping, whose arrays may have been replaced since the last call."""
    from fastrnn.backends import load

    layer = fastrnn.RNN(3, 4, dtype="float64")
    x, dy = normal(5, 2, 3), normal(5, 2, 4)
    sums = {key: np.zeros(shape) for key, shape in layer.stack.shapes.items()}

    def add_gradients():
        tape = load(backend).forward(layer.cell, layer.block, x, None, None, True)[2]
        load(backend).backward(tape, dy, None, sums)

    add_gradients()
    first = dict(sums)
    sums |= {key: np.zeros_like(array) for key, array in sums.items()}
    add_gradients()
    for key, array in first.items():
        assert array.any()
        np.testing.assert_array_equal(sums[key], array)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_call_is_gone_back_through_once(backend):
    """As another thread might between backward's look at its arguments and its run."""
    layer, x, dy = fastrnn.GRU(3, 4, backend=backend).train(), normal(5, 2, 3, dtype="f4"), normal(5, 2, 4, dtype="f4")

    class Gradient:
        def __array__(self, *arguments, **more):
            layer.backward(dy)
            return dy

    layer(x)
    with pytest.raises(UsageError, match="another thread"):
        layer.backward(Gradient())
    layer(x)
    layer.backward(dy)


def test_gradients_add_up():
    layer, x = fastrnn.GRU(2, 3, seed=0).train(), normal(4, 3, 2)
    grads = []
    for _ in range(2):
        y, _ = layer(x)
        layer.backward(np.ones_like(y))
        grads.append(layer.block.grad.copy())
    np.testing.assert_allclose(grads[1], 2 * grads[0], 1e-6)
    layer.zero_grad()
    assert not layer.block.grad.any()


def test_inference_makes_no_gradient_and_no_tape():
    layer = fastrnn.GRU(2, 3)
    layer(z(4, 1, 2))
    assert layer.block._grad is None and not layer._calls and not layer.training


# ---------------------------------------------------------------- as objects


@pytest.mark.parametrize(
    "text",
    [
        "RNN(3, 4)",
        "RNN(3, 4, num_layers=2, nonlinearity='relu', bias=False, batch_first=True, dropout=0.5, bidirectional=True)",
        "RNN(3, 4, nonlinearity=('leaky_relu', 0.2), clip=3.0)",
        "LSTM(3, 4, proj_size=2, dtype='float64')",
        "LSTM(3, 4, activations=('hard_sigmoid', 'tanh', 'relu'), forget='coupled', peephole='diagonal')"
        .replace("'hard_sigmoid'", "('hard_sigmoid', 0.2, 0.5)"),
        "GRU(3, 4, reset='before', update='write', seed=3, backend='numpy')",
        "RNNCell(3, 4, bias=False, nonlinearity='sigmoid')",
        "LSTMCell(3, 4, forget='none', proj_size=2)",
        "GRUCell(3, 4, dtype='float64', activations=('sigmoid', 'relu'))",
    ],
)  # fmt: skip
def test_repr_is_the_call(text):
    made = eval(text, vars(fastrnn))
    assert repr(made) == text
    base, options = (SingleStep, {}) if text.split("(")[0].endswith("Cell") else (Layer, {})
    if base is Layer:
        options = {name: getattr(made, name) for name in ("num_layers", "batch_first", "dropout", "bidirectional")}
    again = base.from_cell(made.cell, 3, 4, **options, dtype=made.dtype, seed=made.seed, backend=made.backend)
    assert repr(again) == text and type(again) is type(made) and again.block.shapes == made.block.shapes


def test_from_cell_keeps_a_subclass():
    class Mine(fastrnn.LSTM):
        def __init__(self, extra, *args, **options):
            super().__init__(*args, **options)

    assert type(Mine.from_cell(Cell("lstm"), 2, 3)) is Mine
    assert repr(Mine(None, 2, 3)) == "Mine()"  # a subclass that hides the arguments names them itself


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_initialisation_is_uniform_and_seeded(name, dtype):
    make = getattr(fastrnn, name)
    layer, again, other = (make(20, 16, 2, dtype=dtype, seed=s) for s in (5, 5, 6))
    values = layer.block.flat
    assert values.dtype == dtype and abs(values).max() <= 0.25
    assert values.min() < -0.249 < 0.249 < values.max() and abs(values.mean()) < 0.02
    assert np.array_equal(values, again.block.flat) and not np.array_equal(values, other.block.flat)
    version = layer.block.version
    layer.reset_parameters()
    assert not np.array_equal(values, again.block.flat) and layer.block.version > version


@pytest.mark.parametrize("make", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
@pytest.mark.parametrize("backend", BACKENDS)
def test_copies_are_independent(make, backend):
    layer = fastrnn.LSTM(2, 3, 2, dropout=0.5, seed=0, backend=backend).train()
    x = normal(4, 3, 2)
    y, _ = layer(x)
    other = make(layer)
    assert repr(other) == repr(layer) and other.training
    assert np.array_equal(other.eval()(x)[0], layer.eval()(x)[0])
    with pytest.raises(UsageError):
        other.backward(y)
    other.block["weight_ih_l0"][...] = 0
    assert layer.weight_ih_l0.any() and not np.array_equal(other(x)[0], layer(x)[0])


def test_copy_keeps_the_tape_with_the_original():
    layer = fastrnn.GRU(2, 3).train()
    y, _ = layer(z(4, 1, 2))
    copy.deepcopy(layer)
    layer.backward(y)


def test_attributes_are_torchs():
    lstm = fastrnn.LSTM(3, 4, 2, bidirectional=True, proj_size=2, bias=False)
    assert (lstm.input_size, lstm.hidden_size, lstm.num_layers, lstm.proj_size) == (3, 4, 2, 2)
    assert (lstm.bias, lstm.batch_first, lstm.dropout, lstm.bidirectional) == (False, False, 0.0, True)
    assert fastrnn.RNN(3, 4, nonlinearity="relu").nonlinearity.name == "relu"


def test_layers_are_parts_of_modules():
    class Tagger(fastrnn.Module):
        def __init__(self):
            self.lstm = fastrnn.LSTM(2, 3)
            self.cells = [fastrnn.GRUCell(3, 3)]

    tagger = Tagger().train()
    assert list(tagger.state_dict())[::4] == ["lstm.weight_ih_l0", "cells.0.weight_ih"]
    assert tagger.cells[0].training and len(tagger.blocks()) == 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_backend_of_a_layer(backend, monkeypatch):
    x = normal(4, 3, 2)
    named, free = fastrnn.GRU(2, 3, seed=0, backend=backend), fastrnn.GRU(2, 3, seed=0)
    with fastrnn.use_backend("numpy"):
        forced = free(x)[0]
    np.testing.assert_allclose(named(x)[0], forced, 1e-4, 1e-6)
    monkeypatch.setenv("FASTRNN_BACKEND", "numpy")
    assert np.array_equal(free(x)[0], forced)


def test_backend_that_cannot_is_refused_at_once(monkeypatch):
    from fastrnn.backends import load

    monkeypatch.setattr(load("numba"), "missing", lambda: "it is not here")
    with pytest.raises(BackendError, match="it is not here"):
        fastrnn.GRU(2, 3, backend="numba")


def test_blocks_that_force_a_backend_may_overlap():
    """As those of two threads do: the one that began last counts, and in the end nothing is forced."""
    first, last = fastrnn.use_backend("numpy"), None
    with first:
        last = fastrnn.use_backend(None)
        last.__enter__()
    assert forced() == os.environ.get("FASTRNN_BACKEND")
    last.__exit__()
    assert forced() == os.environ.get("FASTRNN_BACKEND")
    first.__enter__()
    assert forced() == "numpy"
    first.__exit__()
    with fastrnn.use_backend("numpy"):
        fastrnn.use_backend(None)  # until the block ends
        assert forced() == os.environ.get("FASTRNN_BACKEND")
        with fastrnn.use_backend("numpy"):
            assert forced() == "numpy"
        assert forced() == os.environ.get("FASTRNN_BACKEND")
        fastrnn.use_backend("numpy")
    assert forced() == os.environ.get("FASTRNN_BACKEND")
    with pytest.raises(TypeError):
        fastrnn.use_backend("numpy")(len)
    fastrnn.use_backend(None)


@pytest.mark.parametrize("name", [["c"], "", 3, "torch"])
def test_a_backend_that_does_not_exist(name):
    with pytest.raises(OptionError, match="unknown backend"):
        fastrnn.LSTM(2, 3, backend=name)
    with pytest.raises(OptionError, match="unknown backend"):
        fastrnn.use_backend(name)


def test_warnings_point_to_the_line_that_asked():
    with pytest.warns(FastrnnWarning, match="dropout=0.5 does nothing") as told:
        fastrnn.LSTM(2, 3, dropout=0.5)
    assert told[0].filename == __file__
    with pytest.warns(FastrnnWarning, match="dropout=0.5 does nothing") as told:
        Layer.from_cell(Cell("lstm"), 2, 3, dropout=0.5)
    assert told[0].filename == __file__


def test_a_packed_sequence_is_told_of_lengths():
    class Packed:
        batch_sizes = data = None

    with pytest.raises(DtypeError, match="x is a PackedSequence: give the padded array, and lengths="):
        fastrnn.GRU(2, 3)(Packed())
