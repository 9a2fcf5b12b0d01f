"""A stream is its layer, a step at a time, with the state carried along."""

import copy
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fastrnn
from fastrnn.backends import native
from fastrnn.errors import DtypeError, OptionError, ShapeError

BACKENDS = fastrnn.backends()
KINDS = [
    ("RNN", {}),
    ("RNN", {"nonlinearity": "relu"}),
    ("LSTM", {}),
    ("LSTM", {"proj_size": 2}),
    ("LSTM", {"peephole": "diagonal", "forget": "coupled"}),
    ("GRU", {}),
    ("GRU", {"reset": "before"}),
]


def ids(value):
    return ",".join(f"{k}={v}" for k, v in value.items()) or "plain" if isinstance(value, dict) else str(value)


def normal(*shape, seed=0, dtype="f4"):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def states(state):
    return state if isinstance(state, tuple) else (state,)


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(states(one), states(other), strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch", [1, 3, 17])
@pytest.mark.parametrize(("name", "options"), KINDS, ids=ids)
def test_steps_are_the_sequence(name, options, batch, backend):
    layer = getattr(fastrnn, name)(4, 5, 2, **options, dtype="float64", backend=backend)
    x = normal(6, batch, 4, dtype="f8")
    y, state = layer(x)
    stream = layer.stream(batch)
    outputs = [stream.step(x_t) for x_t in x]  # each an array of its own
    np.testing.assert_allclose(np.stack(outputs), y, 1e-10, 1e-12)
    for own, wanted in zip(states(stream.state), states(state), strict=True):
        np.testing.assert_allclose(own, wanted, 1e-10, 1e-12)
        assert own.dtype == np.float64


def test_a_step_that_fails_moves_nothing_on():
    """Nor mixes up which result the next one writes."""
    if reason := native.missing():
        pytest.skip(reason)
    layer = fastrnn.LSTM(4, 5, seed=0, backend="c")
    one, other = layer.stream(), layer.stream()
    call = one._stepper.call
    for x in normal(4, 1, 4):
        call.T = -1
        with pytest.raises(ShapeError, match=r"a step of .*T or B is negative"):
            one.step(x)
        call.T = 1
        before = one.step(x)
        kept = before.copy()
        assert np.array_equal(kept, other.step(x)) and same(one.state, other.state)
        one.step(x), other.step(x)
        assert np.array_equal(before, kept)


def test_threads_that_share_a_stream_get_results_of_their_own():
    """Whatever the state is then: here there is none to speak of."""
    layer = fastrnn.RNN(4, 100, seed=0)
    layer.block["weight_ih_l0"][:], layer.block["weight_hh_l0"][:] = 0, 0
    stream, x = layer.stream(), normal(1, 4)
    expected = stream.step(x).copy()
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: stream.step(x), range(2000)))
    assert all(np.array_equal(y, expected) for y in results)
    assert len({y.__array_interface__["data"][0] for y in results}) == len(results)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("name", "options"),
    [("RNN", {}), ("RNN", {"num_layers": 2}), ("LSTM", {"proj_size": 700}), ("GRU", {}), ("GRU", {"reset": "before"})],
    ids=ids,
)
def test_weights_that_fill_a_cache(name, options, threads):
    """They are swept up and down by turns, from step to step, and from a call to one like it."""
    if reason := native.missing():
        pytest.skip(reason)
    layer = getattr(fastrnn, name)(700, 760, **options, seed=0, backend="c")  # an RNN's take 4 MB
    x, state, parts, before = normal(9, 1, 700), None, [], fastrnn.get_num_threads()
    try:
        fastrnn.set_num_threads(threads)
        for part in np.split(x, 3):
            y, state = layer(part, state)
            parts.append(y)
        stream = layer.stream()
        steps = [stream.step(x_t) for x_t in x]
    finally:
        fastrnn.set_num_threads(before)
    assert np.array_equal(steps, np.concatenate(parts)) and same(stream.state, state)


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_one_row_without_a_batch(name):
    layer = getattr(fastrnn, name)(4, 5, 2, seed=0)
    one, other = layer.stream(), layer.stream(batch_size=1)
    for x in normal(3, 4):
        y = one.step(x)
        assert y.shape == (5,) and np.array_equal(y, other.step(x[None])[0])


@pytest.mark.parametrize("size", [0, 1])
def test_smallest_sizes(size):
    stream = fastrnn.LSTM(size, 1, seed=0).stream(2)
    assert stream.step(np.zeros((2, size), "f4")).shape == (2, 1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_reset_of_some_rows(name, backend):
    layer = getattr(fastrnn, name)(4, 5, 2, seed=0, backend=backend)
    x, batch = normal(4, 4), 4
    for rows, zeroed in [
        (None, [0, 1, 2, 3]),
        (1, [1]),
        (-1, [3]),
        (np.int64(2), [2]),
        (slice(1, None, 2), [1, 3]),
        (slice(9, 12), []),
        ([0, 3], [0, 3]),
        ((-1, 1), [1, 3]),
        ([], []),
        ([True, False, False, True], [0, 3]),
        (np.zeros(4, bool), []),
        (np.array([2], "u1"), [2]),
    ]:
        stream = layer.stream(batch)
        stream.step(x)
        before = stream.state
        assert all(s.all() for s in states(before))
        stream.reset(rows)
        for now, then in zip(states(stream.state), states(before), strict=True):
            kept = [row for row in range(batch) if row not in zeroed]
            assert not now[:, zeroed].any() and np.array_equal(now[:, kept], then[:, kept]), rows
        if rows is None:
            assert np.array_equal(stream.step(x), layer.stream(batch).step(x))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_state_is_copied_out_and_in(name, backend):
    layer = getattr(fastrnn, name)(4, 5, 2, seed=0, backend=backend)
    stream, other, x = layer.stream(3), layer.stream(3), normal(3, 4)
    stream.step(x)
    state = stream.state
    other.state = state
    y = stream.step(x)
    assert not same(stream.state, state)
    for s in states(state):
        s[:] = 0
    assert np.array_equal(other.step(x), y)
    for s in states(stream.state):
        s[:] = 0
    assert same(other.state, stream.state)
    _, end = layer(normal(5, 3, 4))
    stream.state = end
    assert same(stream.state, end)
    stream.state = None
    assert not any(s.any() for s in states(stream.state))


@pytest.mark.parametrize("backend", BACKENDS)
def test_changed_parameters_are_picked_up(backend):
    layer, other = (fastrnn.GRU(4, 5, seed=seed, backend=backend) for seed in (0, 1))
    stream, x = layer.stream(2), normal(2, 4)
    before = stream.step(x)
    stream.reset()
    layer.load_state_dict(other.state_dict())
    after = stream.step(x)
    assert not np.array_equal(after, before) and np.array_equal(after, other.stream(2).step(x))


@pytest.mark.parametrize("backend", BACKENDS)
def test_streams_and_calls_do_not_meddle(backend):
    layer = fastrnn.LSTM(4, 5, 2, seed=0, backend=backend)
    x = normal(6, 3, 4)
    alone = layer.stream(3)
    expected = [alone.step(x_t) for x_t in x]
    stream, other = layer.stream(3), layer.stream(1)
    for x_t, wanted in zip(x, expected, strict=True):
        other.step(x_t[:1])
        layer(x)
        assert np.array_equal(stream.step(x_t), wanted)


def test_a_stream_evaluates():
    layer = fastrnn.GRU(4, 5, 2, dropout=0.9, seed=0).train()
    x, stream = normal(3, 4), layer.stream(3)
    y = stream.step(x)
    stream.reset()
    assert np.array_equal(stream.step(x), y) and not layer._calls


@pytest.mark.parametrize("size", [4, 1000])  # which C is handed as a copy, and in place
@pytest.mark.parametrize("backend", BACKENDS)
def test_odd_inputs(backend, size):
    layer = fastrnn.GRU(size, 5, seed=0, backend=backend)
    x = normal(3, size)
    expected = layer.stream(3).step(x)
    locked = x.copy()
    locked.flags.writeable = False
    for given in (
        x.tolist(),
        np.asfortranarray(x),
        np.repeat(x, 2, 1)[:, ::2],
        x.astype("f8"),
        x.astype(">f4"),
        locked,
    ):
        assert np.array_equal(layer.stream(3).step(given), expected)
    torch = pytest.importorskip("torch")
    assert np.array_equal(layer.stream(3).step(torch.from_numpy(x)), expected)


RAW = np.zeros((3, 4), "f4")


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda s: s.step(np.zeros((3, 5), "f4")), ShapeError, ["x must be [3, 4]", "[3, 5]"]),
        (lambda s: s.step(np.zeros((2, 4), "f4")), ShapeError, ["x must be [3, 4]", "[2, 4]"]),
        (lambda s: s.step(np.zeros(4, "f4")), ShapeError, ["[3, 4]", "[4]"]),
        (lambda s: s.step(np.zeros((1, 3, 4), "f4")), ShapeError, ["[1, 3, 4]"]),
        (lambda s: s.step(None), DtypeError, ["x", "NoneType"]),
        (lambda s: s.step(RAW.astype("c8")), DtypeError, ["x", "complex64"]),
        (lambda s: s.layer.stream(1).step(np.zeros(5)), ShapeError, ["[1, 4] or [4]", "[5]"]),
        (lambda s: s.reset(3), ShapeError, ["within the batch of 3", "3"]),
        (lambda s: s.reset([0, -4]), ShapeError, ["within the batch of 3", "-4"]),
        (lambda s: s.reset(np.array([2**64 - 1], "u8")), ShapeError, ["within the batch of 3"]),
        (lambda s: s.reset([True, False]), ShapeError, ["mask", "[3]", "[2]"]),
        (lambda s: s.reset(True), ShapeError, ["mask", "[3]", "[]"]),
        (lambda s: s.reset(1.0), DtypeError, ["rows", "1.0"]),
        (lambda s: s.reset("all"), DtypeError, ["rows", "'all'"]),
        (lambda s: s.reset([[0], [1, 2]]), DtypeError, ["rows", "[[0], [1, 2]]"]),
        (lambda s: s.reset(slice("a")), DtypeError, ["rows", "slice"]),
        (lambda s: setattr(s, "state", np.zeros((2, 3, 5))), ShapeError, ["pair (h, c)", "ndarray"]),
        (lambda s: setattr(s, "state", (np.zeros((2, 3, 5)), np.zeros((2, 5)))), ShapeError, ["c of state", "[2, 5]"]),
        (lambda s: setattr(s, "state", (np.zeros((2, 3, 5)), None)), DtypeError, ["c of state", "NoneType"]),
        (lambda s: s.layer.stream(0), ShapeError, ["batch_size", "0"]),
        (lambda s: s.layer.stream(1.5), ShapeError, ["batch_size", "1.5"]),
        (lambda s: s.layer.stream(True), ShapeError, ["batch_size", "True"]),
        (
            lambda s: fastrnn.LSTM(4, 5, bidirectional=True).stream(),
            OptionError,
            ["bidirectional", "end of a sequence"],
        ),
    ],
)
def test_refused_and_the_state_stays(call, error, words):
    stream = fastrnn.LSTM(4, 5, 2, seed=0).stream(3)
    stream.step(normal(3, 4))
    before = stream.state
    with pytest.raises(error) as caught:
        call(stream)
    for word in words:
        assert word in str(caught.value)
    assert same(stream.state, before)


def test_repr_is_the_call():
    text = "GRU(4, 5, num_layers=2).stream(3)"
    assert repr(eval(text, vars(fastrnn))) == text


@pytest.mark.parametrize("backend", fastrnn.backends())
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda stream: pickle.loads(pickle.dumps(stream))])
def test_a_copy_of_a_stream_goes_its_own_way(duplicate, backend):
    layer = fastrnn.LSTM(3, 4, num_layers=2, seed=0, backend=backend)
    first, x = layer.stream(2), np.random.default_rng(0).standard_normal((4, 2, 3)).astype("f4")
    first.step(x[0])
    second = duplicate(first)
    ahead = [first.step(x_t) for x_t in x]
    np.testing.assert_array_equal([second.step(x_t) for x_t in x], ahead)
    assert (second.layer is layer) == (duplicate is copy.copy)


def test_a_change_while_another_thread_packs_is_seen():
    H = 2000
    layer, x = fastrnn.RNN(H, H, seed=0), np.ones((1, H), np.float32)
    stream = layer.stream()
    for wait in (0.0, 0.001, 0.003, 0.01):
        layer.bias_ih_l0[...] = 0.1
        thread = threading.Thread(target=stream.step, args=(x,))
        thread.start()
        time.sleep(wait)
        layer.bias_ih_l0[...] = 5.0
        thread.join()
        stream.reset()
        y = stream.step(x)
        layer.block.touch()  # or what was packed for the stream would serve the next call too
        np.testing.assert_array_equal(y, layer(x[None])[0][0])
