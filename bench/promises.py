"""What the engine promises beside speed against others: ratios of its own times, in one run.

    python bench/promises.py [--threads 2] [--seconds 0.2] [part of a name ...]

One line a promise: the figure, the bound it is held to, and the case that is worst. Two things that are compared are
timed in turn, block by block, while the machine is itself (steady.py), and their medians divided; what is held against
the machine's ceilings is the best block. Needs no other package, and a C compiler for the ceilings alone. Next:
suite.py, against other engines.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import probe
from arguments import count, positive, unknown
from steady import Steady

import fastrnn
from fastrnn import GRU, LSTM, RNN, Cell
from fastrnn.backends import native
from fastrnn.bench.cases import Case
from fastrnn.layers import Layer

LAYERS = {"lstm": LSTM, "gru": GRU, "rnn": RNN}
BLOCKS = 5
PATIENCE = 300.0  # seconds to lose in all on waiting for a machine that is itself
VARIANTS = {
    "lstm": {
        "no forget gate": {"forget": "none"},
        "coupled gates": {"forget": "coupled"},
        "peepholes": {"peephole": "diagonal"},
        "projection": {"proj_size": 192},
    },
    "gru": {"reset before": {"reset": "before"}, "update writes": {"update": "write"}},
    "rnn": {"ReLU": {"activations": ("relu",)}, "sigmoid": {"activations": ("sigmoid",)}},
}
BUSY = "while True: pass"

Run = Callable[[], Any]


class Line(NamedTuple):
    """A figure of one case; of a promise the worst is kept."""

    name: str
    figure: float
    bound: float
    at_most: bool
    case: str


def main(argv: list[str] | None = None) -> None:
    """Run it; see --help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="parts of promises' names; all where there is none")
    parser.add_argument("--threads", type=count, default=fastrnn.get_num_threads())
    parser.add_argument("--seconds", type=positive, default=0.2, help="for each thing timed")
    args = parser.parse_args(argv)
    if strange := unknown(args.names, PROMISES):
        parser.error(f"no promise is called {strange}; there are: {'; '.join(PROMISES)}")
    fastrnn.set_num_threads(args.threads)
    with closing(Steady(PATIENCE)) as steady:
        args.ready = partial(steady.wait, args.threads)
        _tell(args)
        print("{} of {} blocks began while the machine was itself".format(*steady.held()))


def _tell(args: argparse.Namespace) -> None:
    for name, measure in PROMISES.items():
        if args.names and not any(part in name for part in args.names):
            continue
        lines = sorted(measure(name, args), key=lambda line: line.figure / line.bound, reverse=True)
        if not lines:
            continue
        worst = lines[0] if lines[0].at_most else lines[-1]
        held = sum(line.figure <= line.bound if line.at_most else line.figure >= line.bound for line in lines)
        sign = "<=" if worst.at_most else ">="
        kept = f"{held:3d} of {len(lines):3d}"
        print(f"{name:40s} {worst.figure:6.2f} {sign} {worst.bound:<5g} {kept}  worst: {worst.case}", flush=True)


# ---------------------------------------------------------------- timing


def times(run: Run, seconds: float) -> list[float]:
    """Seconds of single runs."""
    clock, found = time.perf_counter, []
    run()
    end = clock() + seconds
    while not found or clock() < end:
        begin = clock()
        run()
        found.append(clock() - begin)
    return found


def blocks(args: Any, *runs: Run) -> list[list[float]]:
    """Of each the median seconds in every block, timed in turn."""
    found: list[list[float]] = [[] for _ in runs]
    for _ in range(BLOCKS):
        for run, medians in zip(runs, found, strict=True):
            args.ready()
            medians.append(statistics.median(times(run, args.seconds / BLOCKS)))
    return found


def compare(args: Any, *runs: Run) -> list[float]:
    """Median seconds of each."""
    return [statistics.median(medians) for medians in blocks(args, *runs)]


def best(args: Any, run: Run) -> float:
    """Of its best block, to hold against what the machine was seen to do at best."""
    return min(blocks(args, run)[0])


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    """Standard normal float32."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def inference(layer: Any, steps: int, batch: int, x: np.ndarray | None = None, **options: Any) -> Run:
    """Calls of a layer."""
    x = noise(steps, batch, layer.input_size).astype(layer.dtype) if x is None else x
    return lambda: layer(x, **options)


def training(layer: Any, steps: int, batch: int, x: np.ndarray | None = None, **options: Any) -> Run:
    """Forward and backward."""
    layer.train()
    x = noise(steps, batch, layer.input_size) if x is None else x
    dy = noise(steps, batch, layer.stack.output_size * layer.stack.num_directions, seed=1)

    def run() -> None:
        layer.zero_grad()
        layer(x, **options)
        layer.backward(dy)

    return run


def with_threads(threads: int, run: Run) -> Run:
    """The run on so many threads."""

    def call() -> None:
        fastrnn.set_num_threads(threads)
        run()

    return call


@cache
def ceilings(threads: int, flags: tuple[str, ...] = ()) -> probe.Ceilings | None:
    """What the machine can do; None where that cannot be measured, and what is held to it is left out."""
    try:
        return probe.measure([threads], flags=flags)
    except probe.ProbeError as error:
        print(f"without ceilings: {error}")
        return None


@contextmanager
def instruction_set(name: str | None) -> Iterator[None]:
    """Have the layers that are first called in here run on it; None for the best."""
    before = os.environ.pop("FASTRNN_ISA", None)
    os.environ |= {"FASTRNN_ISA": name} if name else {}
    try:
        yield
    finally:
        os.environ.pop("FASTRNN_ISA", None)
        os.environ |= {"FASTRNN_ISA": before} if before else {}


# ---------------------------------------------------------------- the promises


def share_of_peak(name: str, args: Any) -> Iterator[Line]:
    """Multiply-adds a second over those of the instruction set at its peak, where they decide: H >= 256, B >= 32."""
    isa = "avx2" if "AVX2" in name else None
    found = ceilings(args.threads, ("-mno-avx512f",) if isa else ())
    if found is None or (isa and isa not in native.isas()):
        return
    peak = 1e9 * found.fma[args.threads]
    modes = [mode for mode in (inference, training) if isa or mode.__name__ in name]
    for cell, (hidden, batch), mode in product(LAYERS, ((256, 32), (256, 128), (512, 32)), modes):
        with instruction_set(isa):
            seconds = best(args, mode(LAYERS[cell](hidden, hidden), 50, batch))
        share = Case(cell, mode.__name__, hidden, batch, 50).flops / peak / seconds
        bound = 0.88 if not isa and mode is inference else 0.8
        yield Line(name, share, bound, False, f"{cell} {mode.__name__} H={hidden} B={batch}")


def share_of_bandwidth(name: str, args: Any) -> Iterator[Line]:
    """The time that reading the recurrent weights takes, over a step's: one row, one input.

    Each thread reads its part from the nearest cache that holds it; past L2 that is one straight sweep, which keeping
    a part in L2 can beat.
    """
    found = ceilings(args.threads)
    if found is None:
        return
    far = name.endswith("L2")
    for cell, hidden in product(LAYERS, (512, 1024) if far else (64, 128, 256)):
        weights = 4 * len(Cell(cell).gates) * hidden**2
        if far and weights / args.threads <= found.caches["l2"]:
            continue
        seconds = best(args, inference(LAYERS[cell](1, hidden), 200, 1))
        floor = 200 * weights / 1e9 / found.bandwidth(weights / args.threads, args.threads)
        yield Line(name, floor / seconds, 1.0 if far else 0.6, False, f"{cell} H={hidden}")


def threads_help(name: str, args: Any) -> Iterator[Line]:
    """All threads against one: where there is much to do, a speed-up; where there is little, at least no loss."""
    much = name.endswith("speed-up")
    sizes = product((128, 256, 512), (8, 32)) if much else product((16, 64), (1, 8, 32))
    for (hidden, batch), cell, mode in product(list(sizes), LAYERS, (inference, training)):
        run = mode(LAYERS[cell](hidden, hidden), 100, batch)
        one, every = compare(args, with_threads(1, run), with_threads(args.threads, run))
        bound = 0.925 * args.threads if much else 1.0
        yield Line(name, one / every, bound, False, f"{cell} {mode.__name__} H={hidden} B={batch}")
    fastrnn.set_num_threads(args.threads)


def directions(name: str, args: Any) -> Iterator[Line]:
    """Two directions on all cores against one on one."""
    for cell, hidden, batch in product(LAYERS, (64, 256), (1, 32)):
        make = LAYERS[cell]
        both, one = make(hidden, hidden, bidirectional=True), make(hidden, hidden)
        two, single = compare(
            args,
            with_threads(args.threads, inference(both, 100, batch)),
            with_threads(1, inference(one, 100, batch)),
        )
        yield Line(name, two / single, 1.2, True, f"{cell} H={hidden} B={batch}")
    fastrnn.set_num_threads(args.threads)


def layers_overlap(name: str, args: Any) -> Iterator[Line]:
    """Two layers in one call against one after the other."""
    for cell, hidden, batch in product(LAYERS, (16, 64, 128, 256), (1, 8)):
        make = LAYERS[cell]
        low, high = make(hidden, hidden), make(hidden, hidden)
        x = noise(100, batch, hidden)
        stack, layers = compare(
            args,
            inference(make(hidden, hidden, num_layers=2), 100, batch),
            lambda low=low, high=high, x=x: high(low(x)[0]),
        )
        yield Line(name, stack / layers, 1.0, True, f"{cell} H={hidden} B={batch}")


def lengths_save(name: str, args: Any) -> Iterator[Line]:
    """Ragged against padded, over the share of the steps that are real."""
    for cell, hidden, mode in product(LAYERS, (128, 512), (inference, training)):
        steps, batch = 100, 32
        lengths = np.random.default_rng(0).integers(1, steps + 1, batch)
        layer = LAYERS[cell](hidden, hidden)
        ragged, padded = compare(args, mode(layer, steps, batch, lengths=lengths), mode(layer, steps, batch))
        share = lengths.sum() / (steps * batch)
        yield Line(name, ragged / padded / share, 1.15, True, f"{cell} {mode.__name__} H={hidden}")


def variants_cost(name: str, args: Any) -> Iterator[Line]:
    """Every other cell against the plain one of its kind."""
    for cell, batch, mode in product(LAYERS, (1, 32), (inference, training)):
        for variant, options in VARIANTS[cell].items():
            other = Layer.from_cell(Cell(cell, **options), 256, 256)
            mine, plain = compare(args, mode(other, 100, batch), mode(LAYERS[cell](256, 256), 100, batch))
            yield Line(name, mine / plain, 1.25, True, f"{variant} {mode.__name__} B={batch}")


def float64_costs(name: str, args: Any) -> Iterator[Line]:
    """float64's speed over float32's."""
    for cell, hidden, batch in product(LAYERS, (64, 256), (1, 32)):
        make = LAYERS[cell]
        double, single = compare(
            args,
            inference(make(hidden, hidden, dtype="float64"), 100, batch),
            inference(make(hidden, hidden), 100, batch),
        )
        yield Line(name, single / double, 0.45, False, f"{cell} H={hidden} B={batch}")


def small_numbers(name: str, args: Any) -> Iterator[Line]:
    """An input that decays until its numbers are subnormal, against one that does not."""
    for cell, batch, mode in product(LAYERS, (1, 32), (inference, training)):
        layer = LAYERS[cell](128, 128, bias=False)
        decay = noise(100, batch, 128) * np.geomspace(1, 1e-44, 100, dtype=np.float32)[:, None, None]
        small, usual = compare(args, mode(layer, 100, batch, x=decay), mode(layer, 100, batch))
        yield Line(name, small / usual, 1.1, True, f"{cell} {mode.__name__} B={batch}")


def tails(name: str, args: Any) -> Iterator[Line]:
    """The 99th percentile over the median, undisturbed."""
    for cell, hidden, batch in product(("lstm",), (16, 128, 256), (1, 8, 32)):
        args.ready()
        found = times(inference(LAYERS[cell](hidden, hidden), 100, batch), 5 * args.seconds)
        late = float(np.percentile(found, 99))
        yield Line(name, late / statistics.median(found), 3, True, f"{cell} H={hidden} B={batch}")


def neighbours(name: str, args: Any) -> Iterator[Line]:
    """The median beside a process a core that never sleeps, over the median without."""
    for hidden, batch in product((16, 64, 128, 256), (1, 8, 32)):
        run = inference(LSTM(hidden, hidden), 100, batch)
        (quiet,) = compare(args, run)
        busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(os.cpu_count() or 1)]
        try:
            time.sleep(0.2)
            beside = statistics.median(times(run, 5 * args.seconds))
        finally:
            for process in busy:
                process.kill()
                process.wait()
        yield Line(name, beside / quiet, 4, True, f"lstm H={hidden} B={batch}")


def callers(name: str, args: Any) -> Iterator[Line]:
    """Four threads that each call a layer of their own: calls a second, over those of one caller with the team."""
    for hidden, batch in product((64, 256), (1, 8, 32)):
        runs = [inference(LSTM(hidden, hidden), 100, batch) for _ in range(4)]
        alone = 1 / compare(args, runs[0])[0]
        done, end = [0] * 4, time.perf_counter() + 5 * args.seconds

        def work(i: int, runs: list[Run] = runs, done: list[int] = done, end: float = end) -> None:
            while not done[i] or time.perf_counter() < end:
                runs[i]()
                done[i] += 1

        begin = time.perf_counter()
        workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        together = sum(done) / (time.perf_counter() - begin)
        case = f"lstm H={hidden} B={batch}, calls of each {min(done)} to {max(done)}"
        yield Line(name, together / alone, 0.9, False, case)


def backends_compare(name: str, args: Any) -> Iterator[Line]:
    """numba's time over C's: the geometric mean."""
    if "numba" not in fastrnn.backends():
        return
    ratios = {}
    for cell, hidden, batch in product(LAYERS, (16, 64, 256), (1, 8, 32)):
        make = LAYERS[cell]
        slow, fast = compare(
            args,
            inference(make(hidden, hidden, backend="numba"), 100, batch),
            inference(make(hidden, hidden, backend="c"), 100, batch),
        )
        ratios[f"{slow / fast:.1f}, {cell} H={hidden} B={batch}"] = slow / fast
    yield Line(name, statistics.geometric_mean(ratios.values()), 3, True, max(ratios, key=lambda case: ratios[case]))


PROMISES: dict[str, Callable[[str, Any], Iterator[Line]]] = {
    "share of the peak, inference": share_of_peak,
    "share of the peak, training": share_of_peak,
    "share of AVX2's peak": share_of_peak,
    "share of the bandwidth, one row": share_of_bandwidth,
    "a straight sweep's time, beyond L2": share_of_bandwidth,
    "all threads against one, speed-up": threads_help,
    "all threads against one, small": threads_help,
    "two directions against one on one core": directions,
    "two layers against one after the other": layers_overlap,
    "ragged against padded, a real step": lengths_save,
    "variants against the plain cell, H=256": variants_cost,
    "float64's speed against float32's": float64_costs,
    "subnormal numbers against usual ones": small_numbers,
    "99th percentile over the median": tails,
    "beside a busy process a core": neighbours,
    "four callers against one": callers,
    "numba against C": backends_compare,
}

if __name__ == "__main__":
    main()
