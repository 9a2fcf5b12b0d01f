"""fastrnn's backends under pytest-benchmark: `pytest bench/`, with its --benchmark-compare and the rest.

One engine at a time is fair to all of them here: the backends share a process but no threads. PyTorch stands beside
them where it is installed; for figures to quote, compare.py gives it a process of its own.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from cases import Case, cases
from engines import engines, prepare

SLOW = {"numpy": 128, "numba": 512, "c": 4096, "torch": 4096}  # the largest hidden size that is worth the wait


@pytest.mark.parametrize("engine", ["c", "numba", "numpy", "torch"])
@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_kernel(benchmark, case: Case, engine: str) -> None:  # type: ignore[no-untyped-def]
    if engine not in engines():
        pytest.skip(f"{engine} is not installed")
    if case.hidden > SLOW[engine]:
        pytest.skip(f"{engine} is too slow for H={case.hidden}")
    benchmark.group = case.name
    benchmark.extra_info["flops"] = case.flops
    benchmark(prepare(engine, case))
