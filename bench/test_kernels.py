"""fastrnn's own cases under pytest-benchmark: `pytest bench/`, with its --benchmark-compare, -json and -histogram.

The cases are those of the comparison with other engines (suite.py), which gives each a process of its own. Choose with
-k: `pytest bench/ -k "c and lstm and step"`; all of them take a quarter of an hour.
"""

from __future__ import annotations

import pytest

import fastrnn
from fastrnn.bench.cases import TABLE, Case
from fastrnn.bench.engines import OURS, prepare

SLOW = {"c": 4096, "numba": 512, "numpy": 128}  # the largest hidden size that is worth the wait


@pytest.mark.parametrize("threads", sorted({1, fastrnn.get_num_threads()}), ids=lambda n: f"{n}-threads")
@pytest.mark.parametrize("engine", OURS)
@pytest.mark.parametrize("case", TABLE, ids=lambda case: case.name)
def test_kernel(benchmark, case: Case, engine: str, threads: int) -> None:  # type: ignore[no-untyped-def]
    if engine not in fastrnn.backends():
        pytest.skip(f"{engine} is not here")
    if case.hidden > SLOW[engine]:
        pytest.skip(f"{engine} is too slow for H={case.hidden}")
    before = fastrnn.get_num_threads()
    fastrnn.set_num_threads(threads)
    benchmark.group = case.name
    isa = fastrnn.show_config(as_dict=True)["backends"]["c"].get("isa")
    benchmark.extra_info |= {"flops": case.flops, "threads": threads, "isa": isa}
    try:
        benchmark(prepare(engine, case).run)
    finally:
        fastrnn.set_num_threads(before)
