"""Every backend against the reference, over the case grid; and the promises that forward keeps bit for bit.

The C backend is tested once for each instruction set of this machine. What the reference itself computes is
test_reference.py's to judge, how accurate an activation is test_accuracy.py's, and that these checks can fail
test_wrong_kernels.py's. Next: grid.py.
"""

from __future__ import annotations

import gc
import itertools
import time
from collections import Counter
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
from grid import CASES, CELLS, EVERYWHERE, Case, Shape, arrays, check, run, same_bits

import fastrnn
from fastrnn.backends import backends, load, native
from fastrnn.cell import ACTIVATIONS, ROLES, Cell, Stack


class Backend(NamedTuple):
    """A backend, and the instruction set it is made to use."""

    name: str
    isa: str | None = None

    def __str__(self) -> str:
        return f"{self.name}-{self.isa}" if self.isa else self.name

    @property
    def module(self) -> ModuleType:
        return load(self.name)


BACKENDS = [
    backend
    for name in backends()
    for backend in ([Backend(name, isa) for isa in native.isas()] if name == "c" else [Backend(name)])
]
EXACT = [backend for backend in BACKENDS if backend.name != "numpy"]  # those that promise bits
SUPPORTED = [(backend, case) for backend in BACKENDS for case in CASES if not backend.module.unsupported(case.cell)]
DTYPES = [np.float32, np.float64]
needs_c = pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))


@pytest.fixture(autouse=True)
def _isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have new engines of the C backend use the instruction set of the test's backend."""
    backend = getattr(request.node, "callspec", None) and request.node.callspec.params.get("backend")
    if backend and backend.isa:
        monkeypatch.setenv("FASTRNN_ISA", backend.isa)


def dtype_name(dtype: Any) -> str:
    return np.dtype(dtype).name


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize(("backend", "case"), SUPPORTED, ids=str)
def test_results(backend: Backend, case: Any, dtype: Any) -> None:
    check(backend.module, case, dtype)


# In lanes that pad the units to whole vectors a gate is 30 and the state grows to infinity; in the others biases keep
# the gates near 1/2. What the padding holds must never meet a product.
GROWING = (("affine", 1, 30), ("affine", 1, 0.1), "tanh")
OVERFLOWING = {
    "lstm": Cell("lstm", GROWING),
    "lstm-proj": Cell("lstm", GROWING, proj_size=3),
    "lstm-diagonal": Cell("lstm", GROWING, peephole="diagonal"),
    "lstm-cell": Cell("lstm", GROWING, peephole="cell"),
    "gru": Cell("gru", GROWING[:2]),
    "gru-before": Cell("gru", GROWING[:2], reset="before"),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("name", OVERFLOWING)
@pytest.mark.parametrize("backend", BACKENDS, ids=str)
def test_padding_lanes_may_overflow(backend: Backend, name: str, dtype: Any) -> None:
    T = 40 if dtype == np.float32 else 240  # 30^T overflows
    case = Case(name, OVERFLOWING[name], Shape(T=T, B=2, I=3, H=5, P=3, D=2))
    found, wanted = (
        run(module, case, biased(case, arrays(case, of)))
        for module, of in ((backend.module, dtype), (load("numpy"), np.float64))
    )
    for key, array in found.items():
        np.testing.assert_allclose(array, wanted[key], 0, 1e-3 * np.abs(wanted[key]).max(), err_msg=key)


def biased(case: Case, given: Any) -> Any:
    """The arrays with biases of -29.5 for all gates but the candidate."""
    for name in (name for name in given.params if name.startswith("bias_ih")):
        for gate, rows in zip(case.cell.gates, given.params[name].reshape(-1, case.shape.H), strict=True):
            rows[:] = 0 if gate in "gn" else -29.5
    return given


def test_the_grid_covers() -> None:
    """Each cell meets several shapes, each shape many cells, and C is asked for all but what is known to be missing."""
    for cells in ([case.name for case in CASES], [case.shape for case in CASES]):
        assert min(Counter(cells).values()) >= 3
    for kind, roles in ROLES.items():
        acts = [{cell.activations[k].name for cell in CELLS.values() if cell.kind == kind} for k in range(len(roles))]
        assert acts == [set(ACTIVATIONS)] * len(roles)
    for case in CASES:
        cell = case.cell
        missing = cell.peephole == "full" or (cell.peephole == "cell" and cell.proj_size > 0)
        assert missing == bool(native.unsupported(cell)), case


# ---- the tape --------------------------------------------------------------------------------------------------------

TAPED = [case for case in CASES if case.shape.T > 2 and case.shape.B > 2][::9]


@pytest.mark.parametrize("case", TAPED, ids=str)
@pytest.mark.parametrize("backend", BACKENDS, ids=str)
def test_tape(backend: Backend, case: Any) -> None:
    """What a call kept is the same of every backend, wherever a row takes the step."""
    if reason := backend.module.unsupported(case.cell):
        pytest.skip(reason)
    given = arrays(case, np.float64)
    own, wanted = (
        module.forward(case.cell, given.params, given.x, given.state, given.lengths, True, masks=given.masks)[2].layers
        for module in (backend.module, load("numpy"))
    )
    T, B = given.x.shape[:2]
    ran = np.arange(T)[:, None] < (np.full(B, T) if given.lengths is None else given.lengths)
    assert len(own) == len(wanted) == case.shape.L * case.shape.D
    for one, other in zip(own, wanted, strict=True):
        for part, where in (("x", ran), ("gates", ran), ("hn", ran), ("h", ...), ("c", ...)):
            a, b = getattr(one, part), getattr(other, part)
            assert (a is None) == (b is None), part
            if a is not None:
                np.testing.assert_allclose(a[where], b[where], 1e-10, 1e-12, err_msg=part)


@pytest.mark.parametrize("backend", BACKENDS, ids=str)
def test_a_tape_outlives_the_arrays_of_its_call(backend: Backend) -> None:
    """Of parameters that are no block: their mapping may hold others when backward comes."""
    case = Case("lstm", Cell("lstm"), Shape(T=4, B=3, I=2, H=200))
    given, params = arrays(case, np.float32), dict(arrays(case, np.float32).params)
    grads = []
    for rebind in (False, True):
        y, _, tape = backend.module.forward(case.cell, params, given.x, given.state, None, True)
        if rebind:
            params.update({name: np.array(array) for name, array in params.items()})
            gc.collect()
        grads.append(backend.module.backward(tape, np.ones_like(y), None)[2])
    assert all(same_bits(grads[0][name], grads[1][name]) for name in grads[0])


# ---- promises that forward keeps bit for bit -------------------------------------------------------------------------

BIT_CELLS = {
    **EVERYWHERE,
    "rnn-softsign": Cell("rnn", ("softsign",)),
    "lstm-coupled-diagonal-clip": Cell("lstm", forget="coupled", peephole="diagonal", clip=0.5),
    "lstm-cell": Cell("lstm", peephole="cell"),
}
bits_of = pytest.mark.parametrize("name", BIT_CELLS)
each = pytest.mark.parametrize("backend", EXACT, ids=str)


class Net:
    """A stack with parameters and input, to run in parts."""

    def __init__(
        self,
        backend: Backend,
        name: str,
        T: int,
        B: int,
        I: int,
        H: int,
        L: int = 1,
        D: int = 1,
        dtype: Any = np.float32,
    ):
        cell = BIT_CELLS[name]
        if cell.proj_size:
            cell = Cell("lstm", proj_size=H // 2 + 1)
        self.module, self.cell, self.stack = backend.module, cell, Stack(cell, I, H, L, D == 2)
        rng = np.random.default_rng(0)
        self.params = {
            key: (rng.standard_normal(shape) / H**0.5).astype(dtype) for key, shape in self.stack.shapes.items()
        }
        self.x = rng.standard_normal((T, B, I)).astype(dtype)
        h = rng.standard_normal((L * D, B, self.stack.output_size)).astype(dtype)
        self.state = (h, rng.standard_normal((L * D, B, H)).astype(dtype)) if cell.has_c else h

    def __call__(
        self, x: Any = None, state: Any = None, lengths: Any = None, train: bool = False, rows: slice = slice(None)
    ):
        """y and the final state: of all rows or of those, from the state given or the net's own."""
        x = np.ascontiguousarray((self.x if x is None else x)[:, rows])
        state = self.state if state is None else state
        own = tuple(np.ascontiguousarray(part[:, rows]) for part in parts(state))
        lengths = None if lengths is None else np.ascontiguousarray(lengths[rows])
        y, after, tape = self.module.forward(
            self.cell, self.params, x, own if self.cell.has_c else own[0], lengths, train
        )
        return y, after, tape


def parts(state: Any) -> tuple[np.ndarray, ...]:
    return state if isinstance(state, tuple) else (state,)


def assert_same(one: np.ndarray, other: np.ndarray) -> None:
    assert one.dtype == other.dtype and one.shape == other.shape
    assert same_bits(one, other), f"off by {np.abs(one - other).max()}"


def assert_same_state(one: Any, other: Any) -> None:
    for a, b in zip(parts(one), parts(other), strict=True):
        assert_same(a, b)


@pytest.fixture
def threads():
    """Set the number of threads; afterwards it is what it was."""
    before = fastrnn.get_num_threads()
    yield fastrnn.set_num_threads
    fastrnn.set_num_threads(before)


@bits_of
@each
def test_nan_stays_in_its_row(backend: Backend, name: str) -> None:
    """From its step on; what came before and the other rows keep their bits. Infinity reaches no other row either."""
    net = Net(backend, name, T=7, B=9, I=5, H=20, L=2)
    x = net.x.copy()
    x[2, 3, 1], x[3, 6, 4] = np.nan, np.inf
    (y, state, _), (wanted, after, _) = net(x), net()
    others = [row for row in range(9) if row not in (3, 6)]
    assert_same(y[:, others], wanted[:, others])
    assert_same_state(tuple(p[:, others] for p in parts(state)), tuple(p[:, others] for p in parts(after)))
    assert_same(y[:2, 3], wanted[:2, 3])
    assert_same(y[:3, 6], wanted[:3, 6])
    assert np.isnan(y[2:, 3]).all() and all(np.isnan(part[:, 3]).all() for part in parts(state))


# T, B, I, H, L, D: large enough that threads share panels of units, rows, directions, layers.
THREADED = {
    "panels": (300, 1, 3, 200, 1, 1),
    "panels of two layers": (60, 2, 160, 161, 2, 1),
    "rows": (40, 31, 65, 66, 2, 1),
    "rows of a small layer": (600, 20, 16, 16, 1, 1),
    "small layers": (100, 20, 16, 16, 2, 1),
    "shards": (150, 35, 15, 17, 1, 1),
    "shards of layers": (60, 60, 9, 20, 3, 1),
    "directions": (40, 3, 50, 130, 2, 2),
    "layers": (600, 2, 37, 68, 4, 1),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("shape", THREADED)
@bits_of
@each
def test_threads(backend: Backend, name: str, shape: str, dtype: Any, threads: Any) -> None:
    """Any number of threads gives the same bits, gradients included."""
    net = Net(backend, name, *THREADED[shape], dtype)
    B, T = net.x.shape[1], net.x.shape[0]
    lengths = np.linspace(T, T // 3, B).astype(np.int64)
    threads(4)
    if backend.name == "c" and fastrnn.get_num_threads() == 1:
        pytest.skip("one processor")
    wanted = None
    for n in (fastrnn.get_num_threads(), 2, 1):
        threads(n)
        y, state, tape = net(train=True, lengths=lengths)
        dx, dstate, dparams = net.module.backward(tape, np.ones_like(y), state)
        found = {"y": y, "dx": dx, **dparams}
        found |= {
            f"{what}{k}": part
            for what, pair in (("state", state), ("dstate", dstate))
            for k, part in enumerate(parts(pair))
        }
        wanted = wanted or found
        for key, array in found.items():
            assert_same(array, wanted[key])
        y, state, _ = net(lengths=lengths)  # which reuses memory from chunk to chunk of time
        assert_same(y, wanted["y"])
        assert_same_state(state, tuple(wanted[f"state{k}"] for k in range(len(parts(state)))))
        y, _, _ = net()
        assert_same(y, wanted.setdefault("y of equal lengths", y))


@needs_c
@pytest.mark.parametrize("shape", THREADED)
def test_threads_take_part(shape: str, threads: Any) -> None:
    """The sizes above are such that another thread than the caller's does some of the work."""
    threads(2)
    if fastrnn.get_num_threads() < 2:
        pytest.skip("one processor")
    T, B, I, H, L, D = THREADED[shape]
    net = Net(Backend("c"), "lstm", T, B, I, H, L, D)
    net()
    time.sleep(0.02)  # a thread's time counts when it leaves its processor
    mine, all_ = time.thread_time(), time.process_time()
    net()
    time.sleep(0.02)
    mine, all_ = time.thread_time() - mine, time.process_time() - all_
    assert all_ - mine > 0.2 * mine


@needs_c
@pytest.mark.parametrize("B", [5, 13])  # one that has shards too
@pytest.mark.parametrize("make", [fastrnn.RNN, fastrnn.LSTM, fastrnn.GRU])
def test_however_a_small_call_is_shared(make: Any, B: int, threads: Any) -> None:
    """Small calls are tried alone and by the team, and go on as was faster: the same bits every time."""
    threads(4)
    layer = make(17, 33, seed=0, backend="c").train()
    x = np.random.default_rng(0).standard_normal((30, B, 17)).astype(np.float32)
    wanted = None
    for _ in range(24):
        layer.zero_grad()
        y, _ = layer(x)
        dx, _ = layer.backward(np.ones_like(y))
        found = {"y": y, "dx": dx, **{name: grad.copy() for name, grad in layer.grad.items()}}
        wanted = wanted or found
        for key, array in found.items():
            assert_same(array, wanted[key])
        assert_same(layer.eval()(x)[0], wanted["y"])
        layer.train()


@pytest.mark.parametrize("B", [2, 37])
@bits_of
@each
def test_a_row_is_the_same_in_any_batch(backend: Backend, name: str, B: int) -> None:
    net = Net(backend, name, 6, B, 5, 19, 2, 2)
    y, state, _ = net()
    for rows in (slice(0, 1), slice(B - 1, B), slice(1, B), slice(B // 2, B // 2 + 7)):
        own, own_state, _ = net(rows=rows)
        assert_same(own, np.ascontiguousarray(y[:, rows]))
        assert_same_state(own_state, tuple(np.ascontiguousarray(part[:, rows]) for part in parts(state)))


@pytest.mark.parametrize("B", [5, 16, 29, 60])  # as one of 2, 4 or 8 tiles at least, of three rows or of six
@pytest.mark.parametrize("name", ["rnn", "lstm", "gru", "gru-before"])
@pytest.mark.parametrize("backend", [backend for backend in EXACT if backend.name == "c"], ids=str)
def test_a_row_is_the_same_where_weights_outgrow_caches(backend: Backend, name: str, B: int, threads: Any) -> None:
    """Several tiles then ask for the next ones' weights while they sum; a row alone has one tile."""
    threads(1)
    net = Net(backend, name, 2, B, 3, 1030, 2)

    def run(rows: slice) -> tuple[np.ndarray, ...]:
        y, _, tape = net(rows=rows, train=True)
        dx, dstate, _ = net.module.backward(tape, np.ones_like(y), None)
        return y, dx, *parts(dstate)

    every = run(slice(None))
    for row in (0, B - 1):
        for own, array in zip(run(slice(row, row + 1)), every, strict=True):
            assert_same(own, np.ascontiguousarray(array[:, row : row + 1]))


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize(("B", "H"), [(1, 3), (1, 70), (9, 16)])
@bits_of
@each
def test_steps_are_the_sequence(backend: Backend, name: str, B: int, H: int, dtype: Any) -> None:
    net = Net(backend, name, 7, B, 4, H, 2, dtype=dtype)
    y, state, _ = net()
    carried = None
    for x_t, y_t in zip(net.x, y, strict=True):
        own, carried, _ = net(x_t[None], carried)
        assert_same(own[0], y_t)
    assert_same_state(carried, state)


@pytest.mark.parametrize("batch", [1, 6])
@bits_of
@each
def test_a_stream_is_the_sequence(backend: Backend, name: str, batch: int) -> None:
    layer = fastrnn.layers.Layer.from_cell(BIT_CELLS[name], 5, 18, num_layers=2, seed=0, backend=backend.name)
    x = np.random.default_rng(1).standard_normal((8, batch, 5)).astype(np.float32)
    y, state = layer(x)
    stream = layer.stream(batch)
    for x_t, y_t in zip(x, y, strict=True):
        assert_same(stream.step(x_t), np.ascontiguousarray(y_t))
    assert_same_state(stream.state, state)


@each
def test_calls_on_the_same_weights_do_not_mix(backend: Backend) -> None:
    """Whether cells, masks, lengths or a tape are wanted is each call's own affair."""
    x = np.random.default_rng(1).standard_normal((8, 3, 5)).astype(np.float32)

    def call(layer: Any, want: str) -> list[np.ndarray]:
        cells = np.full((8, 3, 18), np.nan, np.float32) if want == "cells" else None
        masks = np.full((1, 8, 3, 18), 2, np.float32) if want == "masks" else None
        lengths = np.array([5, 8, 0]) if want == "lengths" else None
        y, state, _ = backend.module.forward(
            layer.cell, layer.block, x, None, lengths, want == "tape", masks=masks, cells=cells
        )
        return [y, *state] if cells is None else [y, *state, cells]

    def layer() -> Any:
        return fastrnn.LSTM(5, 18, num_layers=2, seed=0, backend=backend.name)

    wants, one = ["nothing", "cells", "masks", "lengths", "tape"], layer()
    alone = {want: call(layer(), want) for want in wants}
    for pair in itertools.product(wants, repeat=2):
        for want in pair:
            for found, expected in zip(call(one, want), alone[want], strict=True):
                assert_same(found, expected)


@pytest.mark.parametrize("cut", [1, 999, 1024, 1025])
@pytest.mark.parametrize("name", ["rnn", "lstm", "gru", "lstm-proj", "gru-before"])
@each
def test_a_long_sequence_is_its_parts(backend: Backend, name: str, cut: int) -> None:
    """Kernels take long sequences in chunks; wherever a caller cuts, the bits are those of the whole."""
    net = Net(backend, name, 2500, 1, 2, 5, 2)
    y, state, _ = net()
    first, carried, _ = net(net.x[:cut])
    second, carried, _ = net(net.x[cut:], carried)
    assert_same(np.concatenate([first, second]), y)
    assert_same_state(carried, state)


@pytest.mark.parametrize("D", [1, 2])
@bits_of
@each
def test_padding_changes_nothing(backend: Backend, name: str, D: int) -> None:
    """A row of a batch of unequal lengths is the row alone, without padding."""
    net = Net(backend, name, 9, 8, 5, 21, 2, D)
    lengths = np.array([4, 9, 0, 1, 9, 7, 0, 4])
    net.x[np.arange(9)[:, None] >= lengths] = np.nan  # of no meaning, whatever it is
    y, state, _ = net(lengths=lengths)
    for b, n in enumerate(lengths):
        own, own_state, _ = net(net.x[:n], rows=slice(b, b + 1))
        assert_same(own, np.ascontiguousarray(y[:n, b : b + 1]))
        assert_same_state(own_state, tuple(np.ascontiguousarray(part[:, b : b + 1]) for part in parts(state)))
        assert not y[n:, b].any()


@pytest.mark.parametrize("D", [1, 2])
@bits_of
@each
def test_training_changes_nothing(backend: Backend, name: str, D: int) -> None:
    net = Net(backend, name, 300, 3, 5, 21, 3, D)
    for lengths in (None, np.array([300, 7, 0])):
        (y, state, tape), (own, own_state, none) = net(train=True, lengths=lengths), net(lengths=lengths)
        assert_same(own, y)
        assert_same_state(own_state, state)
        assert tape is not None and none is None


@bits_of
@each
def test_a_stack_is_its_layers(backend: Backend, name: str) -> None:
    """Two layers of two directions are the four of them, each run alone."""
    net = Net(backend, name, 6, 5, 4, 19, 2, 2)
    y, state, _ = net()
    below = net.x
    for layer in range(2):
        outputs = []
        for d, end in enumerate(("", "_reverse")):
            k = 2 * layer + d
            params = {
                key.split("_l")[0] + "_l0": net.params[key] for key in net.params if key.endswith(f"_l{layer}{end}")
            }
            own = tuple(np.ascontiguousarray(part[k : k + 1]) for part in parts(net.state))
            x = np.ascontiguousarray(below[::-1] if d else below)
            y_k, state_k, _ = net.module.forward(net.cell, params, x, own if net.cell.has_c else own[0], None, False)
            outputs.append(y_k[::-1] if d else y_k)
            assert_same_state(state_k, tuple(part[k : k + 1] for part in parts(state)))
        below = np.concatenate(outputs, axis=2)
    assert_same(below, y)


@needs_c
def test_the_instruction_set_is_the_one_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for isa in native.isas():
        monkeypatch.setenv("FASTRNN_ISA", isa)
        assert native.chosen_isa() == isa == native.describe()["isa"]
    monkeypatch.setenv("FASTRNN_ISA", "sse9")
    with pytest.raises(fastrnn.errors.BackendError, match=r"sse9.*there are"):
        Net(Backend("c"), "rnn", 1, 1, 1, 1)()
