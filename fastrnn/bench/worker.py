"""A process that serves one engine: `python -m fastrnn.bench.worker ENGINE THREADS`.

It reads requests from standard input, one JSON line each, and answers each with one line: so every engine lives in a
process of its own and sleeps in a pipe while another is timed. What libraries print goes to standard error. The other
end is race.py.

    {"prepare": case, "into": path}     what it computes goes there as .npz -> {"version": of the library},
                                            {"skipped": why} or {"failed": why}
    {"measure": seconds}                -> {"times": [a run's seconds: least, quartiles, 99th percentile, greatest],
                                            "runs": how many}
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
import time
from typing import Any, TextIO

import numpy as np

from .cases import Case
from .engines import Unsupported, Work, load, prepare

STEPS_READ = 3  # the outputs compared are those of the third step: the first would not tell whether state is carried
LEAST_SAMPLE = 2e-5  # seconds: shorter runs are timed several together, or the clock itself would be timed
WARM = 2e-3  # seconds of untimed runs at least, before a block: the first wakes caches and threads
LONG = 1.0  # seconds of a run that is not done twice: waking is nothing beside it
QUANTILES = (0, 25, 50, 75, 99, 100)


def main() -> None:
    """Serve until standard input ends."""
    engine, threads = sys.argv[1], int(sys.argv[2])
    answers = _own_stdout()
    _die_with_parent()
    if hasattr(os, "sched_setaffinity"):  # some libraries take as many threads as they see processors
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    load(engine).use_threads(threads)
    work: Work | None = None
    for line in sys.stdin:
        request = json.loads(line)
        if "prepare" in request:
            work = None  # what the last case held is gone before the next begins
            gc.collect()
            try:
                work, answer = _prepare(engine, Case(**request["prepare"]), request["into"])
            except Unsupported as error:
                answer = {"skipped": str(error)}
            except Exception as error:
                answer = {"failed": f"{type(error).__name__}: {error}"[:300]}
        else:
            assert work
            answer = _measure(work, request["measure"])
        print(json.dumps(answer), file=answers, flush=True)


def _own_stdout() -> TextIO:
    """The real standard output; whatever else writes to it, C libraries included, writes to standard error instead."""
    real = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return real


def _die_with_parent() -> None:
    """Not to be left behind, stopped for ever, by a parent that was killed: elsewhere than on Linux it may be."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _prepare(engine: str, case: Case, into: str) -> tuple[Work, dict[str, Any]]:
    work = prepare(engine, case)
    for _ in range(STEPS_READ if case.mode == "step" else 1):
        found = work.run()
    np.savez(into, **work.read(found))
    return work, {"version": load(engine).version()}


def _measure(work: Work, seconds: float) -> dict[str, Any]:
    """A block: runs for about so long, at least one, when warm; of runs as long as LONG the first counts."""
    clock, run = time.perf_counter, work.run
    begin, once, spent = clock(), float("inf"), 0.0
    while spent < WARM:
        run()
        before, spent = spent, clock() - begin
        once = min(once, spent - before)
    times = range(max(1, int(LEAST_SAMPLE / once)))
    samples = [once] if once > LONG else []
    end = seconds + (begin if samples else clock())
    gc.disable()
    while not samples or clock() < end:
        begin = clock()
        for _ in times:
            run()
        samples.append((clock() - begin) / len(times))
    gc.enable()
    return {"times": np.percentile(samples, QUANTILES).tolist(), "runs": len(times) * len(samples)}


if __name__ == "__main__":
    main()
