"""The constants of the cost model in csrc/cost.h, as this machine has them, beside what stands there.

    python bench/costs.py

The model says how many threads share a call and what each owns; where it cannot tell, calls are timed both ways. So the
constants need to be right within a factor of two or so, and this is how to look. Next: csrc/share.c.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import probe

import fastrnn
from fastrnn import LSTM, RNN

ROOT = Path(__file__).resolve().parents[1]
LANES = {"avx512": 16, "avx2": 8, "neon": 4, "generic": 4}


def main() -> None:
    """Measure and print."""
    isa = str(fastrnn.show_config(as_dict=True)["backends"]["c"]["isa"])  # type: ignore[index]
    there = in_model(narrow=isa != "avx512")
    print(f"{'':20}{'measured':>12}{'in cost.h':>12}")
    for name, value in measure(isa).items():
        print(f"{name:20}{value:12.4g}{there[name]:12.4g}")


def in_model(narrow: bool) -> dict[str, float]:
    """The cost model's constants; of those given twice the second, for narrow vectors, or the first."""
    text = (ROOT / "csrc" / "cost.h").read_text()
    found = re.findall(r"static const double (\w+)(?:\[\])? = \{?([\d., ]+)\}?;", text)
    return {name: float(values.split(",")[-1 if narrow else 0]) for name, values in found}


def measure(isa: str) -> dict[str, float]:
    """All that can be measured by itself, by its name in cost.h."""
    ceilings = probe.measure([1, 2])
    barrier, call, wake = team()
    fastrnn.set_num_threads(1)
    step, gate = one_step(LANES[isa])
    return {
        "FLOPS_PER_NS": ceilings.fma[1],
        "L2_BYTES_PER_NS": ceilings.read["l2"][1],
        "L3_BYTES_PER_NS": ceilings.read["l3"][2] / 2,
        "GATE_NS": gate,
        "STEP_NS": step,
        "BARRIER_NS": barrier,
        "TEAM_NS": call,
        "WAKE_NS": wake,
        "PACK_BYTES_PER_NS": packing(),
    }


def team() -> tuple[float, float, float]:
    """Nanoseconds of a barrier, of a call to a team that is awake, and to one that sleeps."""
    sources = [ROOT / name for name in ("tests/c/test_threads.c", "csrc/threads.c", "csrc/cpu.c")]
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "threads"
        command = [*probe.compiler(), "-std=gnu11", "-O2", "-pthread", f"-I{ROOT / 'csrc'}"]
        subprocess.run([*command, *sources, "-lm", "-o", program], check=True)
        told = subprocess.run([program, "measure"], check=True, capture_output=True, text=True).stdout
    barrier, awake, _, asleep, _ = (float(ns) for ns in re.findall(r"(?:takes|calls:) (\d+) ns", told))
    return barrier, awake, asleep


def best(run: Callable[[], Any], times: int = 30) -> float:
    """Nanoseconds of the fastest of some runs."""
    found = []
    for _ in range(times):
        begin = time.perf_counter_ns()
        run()
        found.append(time.perf_counter_ns() - begin)
    return float(min(found))


def one_step(units: int) -> tuple[float, float]:
    """Nanoseconds of a step without work to speak of, and of a vector of units' gate in a step of many rows."""

    def a_step(layer: Any, batch: int) -> float:
        runs = [np.zeros((steps, batch, units), np.float32) for steps in (1000, 3000)]
        short, long = (best(lambda x=x: layer(x)) for x in runs)  # type: ignore[misc]
        return (long - short) / 2000

    rnn, lstm = RNN(units, units), LSTM(units, units)
    rows = 64
    return a_step(rnn, 1), (a_step(lstm, rows) - a_step(rnn, rows)) / (3 * rows)


def packing() -> float:
    """Bytes of packed weights a nanosecond, on one thread."""
    layer = LSTM(512, 512)
    x = np.zeros((1, 1, 512), np.float32)

    def again() -> None:
        layer.block.touch()
        layer(x)

    return layer.block.flat.nbytes / (best(again) - best(lambda: layer(x)))


if __name__ == "__main__":
    main()
