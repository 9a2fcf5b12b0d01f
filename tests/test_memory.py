"""What calls keep in memory: packed weights, a workspace that does not grow with T, a tape of so many values a step."""

from __future__ import annotations

import gc
import mmap
import os
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest

import fastrnn
from fastrnn.backends import native

pytestmark = pytest.mark.skipif(native.missing() is not None, reason="the C library was not built")
LAYERS = {"lstm": fastrnn.LSTM, "gru": fastrnn.GRU, "rnn": fastrnn.RNN}
STATM = Path("/proc/self/statm")
needs_statm = pytest.mark.skipif(not STATM.exists(), reason="only Linux says how much of a process is in memory")


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def resident() -> int:
    """Bytes of this process that are in memory."""
    gc.collect()
    return int(STATM.read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("name", LAYERS)
def test_workspace_does_not_grow_with_time(name: str, num_layers: int) -> None:
    def workspace(steps: int) -> int:
        layer = LAYERS[name](24, 40, num_layers, backend="c")
        layer(noise(steps, 5, 24))
        return native.c.frnn_plan_bytes(layer.block.cache["c"].plan)

    assert workspace(5000) == workspace(1000) < 600_000


@pytest.mark.parametrize("name", LAYERS)
def test_tape_keeps_the_gates_and_two_values_a_step(name: str) -> None:
    steps, batch, hidden = 50, 16, 64
    layer = LAYERS[name](hidden, hidden, 2, backend="c").train()
    layer(noise(steps, batch, hidden))
    values = layer._calls[-1].tape.parts.memory.nbytes / 4
    a_step = (len(layer.cell.gates) + 2) * batch * hidden
    assert values <= 2 * (steps * a_step + 2 * batch * hidden)


@pytest.mark.parametrize("what", ["y", "dx"])
def test_training_makes_its_arrays_in_memory_that_nobody_holds(what: str) -> None:
    layer, x = LAYERS["gru"](32, 32, backend="c").train(), noise(100, 40, 32)

    def run(steps: int = 100) -> np.ndarray:
        y, _ = layer(x[:steps])
        dx, _ = layer.backward(y)
        return y if what == "y" else dx

    def address(array: np.ndarray) -> int:
        return int(array.__array_interface__["data"][0])

    view = run()[3:, ::2, 1]  # which is enough to hold it
    before = view.copy()
    others = [run() for _ in range(3)]
    assert not any(np.shares_memory(view, other) for other in others)
    np.testing.assert_array_equal(view, before)
    del view, others
    places = [address(run()) for _ in range(4)]
    assert len(set(places[1:])) == 1
    places = []
    for _ in range(6):
        held = run()  # a loop holds its last one while it makes the next
        places.append(address(held))
    assert len(set(places)) == 2
    smaller = run(40)
    assert 2 * smaller.nbytes < held.nbytes
    engine = layer.block.cache["c"]
    kept = [memory.nbytes for _, memory in (engine.outputs if what == "y" else engine.input_grads).given]
    assert kept == [held.nbytes, smaller.nbytes]


def in_a_process(code: str, **environment: str) -> list[int]:
    """The integers that code prints in a process of its own, where nothing else comes and goes."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nimport test_memory\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    return [int(word) for word in done.stdout.split()]


def weights_of_a_large_layer() -> tuple[int, int]:
    """What a layer's first call adds to its process, and the bytes of its parameters."""
    layer, x = fastrnn.LSTM(1024, 1024, backend="c"), noise(20, 1, 1024)
    fastrnn.LSTM(16, 16, backend="c")(x[..., :16].copy())
    before = resident()
    layer(x)
    return resident() - before, layer.block.flat.nbytes


@needs_statm
def test_inference_keeps_weights_once() -> None:
    grown, weights = in_a_process("print(*test_memory.weights_of_a_large_layer())")
    assert 0.9 * weights < grown < 1.1 * weights


def growth_by_shapes(train: bool) -> int:
    """Bytes by which 5,000 shapes make a process larger that has seen 5,000 others."""
    layer, x = fastrnn.GRU(3, 5, backend="c").train(train), noise(100, 100, 3)

    def use(steps: int, batch: int) -> None:
        y, _ = layer(x[:steps, :batch].copy())
        if train:
            layer.backward(y)

    def use_all(first: int) -> int:
        for steps in range(first, 101, 2):
            for batch in range(1, 101):
                use(steps, batch)
        return resident()

    use(100, 100)
    odd = use_all(1)  # after which the allocator holds what it will
    return use_all(2) - odd


@needs_statm
@pytest.mark.parametrize("train", [False, True], ids=["inference", "training"])
def test_ten_thousand_shapes_leave_nothing_behind(train: bool) -> None:
    # One thread, for a team needs more room and may first be tried at any call; and what is freed goes back at once.
    alone = {"FASTRNN_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_TRIM_THRESHOLD_": "65536"}
    (grown,) = in_a_process(f"print(test_memory.growth_by_shapes({train}))", **alone)
    assert grown < 2**18


@pytest.mark.parametrize("backend", fastrnn.backends())
def test_a_layer_is_freed_with_its_last_reference(backend):
    """Without a collector of cycles: what is packed of its parameters, and kept with them, does not hold them."""
    gc.collect()
    gc.disable()
    try:
        layer = fastrnn.LSTM(3, 4, backend=backend, seed=0).train()
        y, _ = layer(np.ones((5, 2, 3), np.float32))
        layer.backward(y)
        layer(y[..., :3])
        layer.stream().step(np.ones((1, 3), np.float32))
        held = [weakref.ref(layer), weakref.ref(layer.block)]
        del layer
        assert [ref() for ref in held] == [None, None]
    finally:
        gc.enable()
