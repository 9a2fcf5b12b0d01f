"""What runs a case: fastrnn's backends and PyTorch, each behind one function.

`prepare(engine, case)` gives a callable without arguments that does the case's work once. As a program this file
serves one engine: it reads cases from its standard input, one JSON line each, and writes its timings, so that every
engine lives in a process of its own and sleeps while another is timed. Next: compare.py.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np

if __package__:
    from .cases import Case
else:
    from cases import Case  # type: ignore[no-redef]

THREADS = 2


def engines() -> list[str]:
    """The engines that are installed here."""
    import fastrnn

    return [*fastrnn.backends(), *(["torch"] if find_spec("torch") else [])]


def prepare(engine: str, case: Case) -> Callable[[], object]:
    """A callable that does the case's work once."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((case.steps, case.batch, case.hidden), np.float32)
    dy = rng.standard_normal(x.shape, np.float32)
    return (_torch if engine == "torch" else _fastrnn)(engine, case, x, dy)


def _fastrnn(backend: str, case: Case, x: np.ndarray, dy: np.ndarray) -> Callable[[], object]:
    import fastrnn

    fastrnn.set_num_threads(THREADS)
    layer = getattr(fastrnn, case.cell.upper())(case.hidden, case.hidden, seed=0, backend=backend)
    if case.mode == "forward":
        return lambda: layer(x)
    if case.mode == "step":
        stream = layer.stream()
        return lambda: stream.step(x[0])
    layer.train()

    def train() -> None:
        layer.block.touch()  # an optimiser would have changed the weights
        layer(x)
        layer.backward(dy)

    return train


def _torch(_: str, case: Case, x: np.ndarray, dy: np.ndarray) -> Callable[[], object]:
    import torch

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    layer = getattr(torch.nn, case.cell.upper())(case.hidden, case.hidden)
    inputs, gradient = torch.from_numpy(x), torch.from_numpy(dy)
    if case.mode == "forward":

        def forward() -> None:
            with torch.no_grad():
                layer(inputs)

        return forward
    if case.mode == "step":
        state = [None]

        def step() -> None:
            with torch.no_grad():
                state[0] = layer(inputs, state[0])[1]

        return step
    inputs.requires_grad_()
    return lambda: layer(inputs)[0].backward(gradient)


def measure(work: Callable[[], object], seconds: float, blocks: int = 3) -> float:
    """The best of a few blocks' median times, in seconds: a block that something disturbed does not count."""
    work()
    begin = time.perf_counter()
    work()
    runs = max(3, min(1000, int(seconds / blocks / max(time.perf_counter() - begin, 1e-7))))
    medians = []
    for _ in range(blocks):
        times = []
        for _ in range(runs):
            begin = time.perf_counter()
            work()
            times.append(time.perf_counter() - begin)
        medians.append(statistics.median(times))
    return min(medians)


def serve(engine: str, seconds: float) -> None:
    """Answer each case on standard input with its time."""
    for line in sys.stdin:
        print(measure(prepare(engine, Case(**json.loads(line))), seconds), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], float(sys.argv[2]))
