"""Engines side by side on one case: each in a process of its own, asked in turn while the others are stopped.

Threads of one engine that idle by spinning would halve another's speed, and a machine's speed drifts from minute to
minute: so all but one are stopped (SIGSTOP), and blocks go round, A B C A B C. The best block's median counts. An
engine whose output is not the reference's is not timed. It prints nothing. Next: worker.py, the other end.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from .cases import Case
from .worker import QUANTILES

__all__ = ["Process", "Race"]

REFERENCE = "numpy"
BLOCKS = 5
MEDIAN = QUANTILES.index(50)
THREAD_VARIABLES = [f"{library}_NUM_THREADS" for library in ("OMP", "OPENBLAS", "MKL", "NUMBA", "FASTRNN")]
# The largest error that a float32 engine may have, as a share of the largest value there is. The engines sum in
# different orders and go through up to a hundred steps; a wrong gate, bias or state is off by tenths.
TOLERANCE = 2e-3


class Process:
    """An engine's process, stopped but for the time of a question."""

    def __init__(self, engine: str, threads: int, path: Path | None = None, isa: str = "") -> None:
        """path: where to import fastrnn from, if not from where this one is; isa: what FASTRNN_ISA is to force."""
        self.engine = engine
        environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(threads))
        package = str(path or Path(__file__).parents[2])
        if isa:
            environment["FASTRNN_ISA"] = isa
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fastrnn.bench.worker", engine, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
            cwd=package,  # which -m searches first
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer; {"failed": why} if the process died of it."""
        assert self._process.stdin and self._process.stdout
        try:
            self._process.send_signal(signal.SIGCONT)
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            return {"failed": f"its process ended with code {self._process.wait()}"}
        self._process.send_signal(signal.SIGSTOP)
        answer: dict[str, Any] = json.loads(line)
        return answer

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


class Race:
    """Engines with a number of threads, on one case after another; a context manager that ends their processes."""

    def __init__(self, engines: Iterable[str], threads: int) -> None:
        self.threads = threads
        self.engines = list(engines)
        self._processes: dict[str, Process] = {}
        self._closing = ExitStack()
        self._folder = Path(self._closing.enter_context(tempfile.TemporaryDirectory()))

    def __enter__(self) -> Race:
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self._processes.values():
            process.close()
        self._closing.close()

    def run(
        self,
        case: Case,
        seconds: float,
        engines: Iterable[str] | None = None,
        ready: Callable[[], object] | None = None,
    ) -> dict[str, dict[str, Any]]:
        """What each engine, or each of `engines`, did in some `seconds`; `ready` is called before each block.

        {"time": the best block's median in seconds, "blocks": [[quantiles of a run's seconds], ...], "runs": how many,
        "error": the largest, as a share of the largest value, "version": its library's}, or {"skipped": why},
        {"failed": why}, {"wrong": which output, by how much}.
        """
        wanted = self._prepare(REFERENCE, case)
        if "outputs" not in wanted:
            raise RuntimeError(f"the reference cannot do {case.name}: {wanted}")
        answers = {engine: self._prepare(engine, case) for engine in (self.engines if engines is None else engines)}
        found = {engine: _judged(answer, wanted["outputs"]) for engine, answer in answers.items()}
        timed = [engine for engine, answer in found.items() if "error" in answer]
        for _ in range(BLOCKS):
            for engine in list(timed):
                if ready is not None:
                    ready()
                answer = self._process(engine).ask(measure=seconds / BLOCKS)
                if "failed" in answer:
                    found[engine] = answer
                    timed.remove(engine)  # a process in its place would have nothing prepared
                    continue
                record = found[engine]
                record["blocks"] = [*record.get("blocks", []), answer["times"]]
                record["runs"] = record.get("runs", 0) + answer["runs"]
        for record in found.values():
            if "blocks" in record:
                record["time"] = min(times[MEDIAN] for times in record["blocks"])
        return found

    def _process(self, engine: str) -> Process:
        if engine not in self._processes or not self._processes[engine].alive:
            self._processes[engine] = Process(engine, self.threads)
        return self._processes[engine]

    def _prepare(self, engine: str, case: Case) -> dict[str, Any]:
        """The engine's answer, with "outputs" where it ran."""
        path = self._folder / f"{engine}.npz"
        answer = self._process(engine).ask(prepare=asdict(case), into=str(path))
        if "version" in answer:
            with np.load(path) as arrays:
                answer["outputs"] = dict(arrays)
        return answer


def _judged(answer: dict[str, Any], wanted: dict[str, np.ndarray]) -> dict[str, Any]:
    """The answer with its outputs' "error", or "wrong"."""
    outputs = answer.pop("outputs", None)
    if outputs is None:
        return answer
    errors = {name: deviation(outputs.get(name), array) for name, array in wanted.items()}
    worst = max(errors, key=errors.__getitem__)
    if errors[worst] <= TOLERANCE:
        return answer | {"error": errors[worst]}
    return {"wrong": f"{worst} is off by {errors[worst]:.2g} of its largest value"}


def deviation(found: np.ndarray | None, wanted: np.ndarray) -> float:
    """The largest difference, as a share of the largest value wanted; infinite where there is none to compare."""
    if found is None or found.shape != wanted.shape:
        return float("inf")
    difference = float(np.abs(found - wanted).max(initial=0)) / max(float(np.abs(wanted).max(initial=0)), 1e-30)
    return difference if difference == difference else float("inf")
