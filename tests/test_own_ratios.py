"""What measures fastrnn against itself: bench/promises.py, bench/leave_out.py, bench/costs.py.

Their figures are the machine's and are not judged; that they measure what they say is. Next: bench/promises.py.
"""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path

import costs
import leave_out
import numpy as np
import promises
import pytest

import fastrnn

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
needs_c = pytest.mark.skipif("c" not in fastrnn.backends(), reason="the C library was not built")
needs_checkout = pytest.mark.skipif(
    not (ROOT / ".git").exists() or shutil.which("git") is None,
    reason="git tells what the sources are, and is not here",
)


@pytest.mark.parametrize("technique", leave_out.TECHNIQUES, ids=lambda t: t.name)
def test_a_technique_can_be_left_out(technique):
    assert technique.cases
    for name, text, instead in technique.without:
        assert (CSRC / name).read_text().count(text) == 1 and text != instead


def test_cases_by_name():
    for technique in leave_out.TECHNIQUES:
        for case in technique.cases:
            assert leave_out.case(case.name) == case


@needs_checkout
def test_a_technique_that_is_not_there_is_an_error(tmp_path):
    gone = leave_out.technique("gone", "rnn-inference-h16-b1", ("plan.c", "no such line", ""))
    with pytest.raises(leave_out.regress.Failure, match=r"gone: plan\.c holds 'no such line' 0 times"):
        leave_out.build(gone, tmp_path / "without")


def test_two_runs_are_compared_in_turn(monkeypatch):
    order, clock = [], [0.0]
    monkeypatch.setattr(promises.time, "perf_counter", lambda: clock[0])

    def run(name, seconds):
        order.append(name)
        clock[0] += seconds

    args = argparse.Namespace(seconds=0.01, ready=lambda: order.append("ready"))
    slow, fast = promises.compare(args, lambda: run("slow", 2e-3), lambda: run("fast", 1e-3))
    assert 1.5 < slow / fast < 3
    assert order.count("ready") == 2 * promises.BLOCKS
    order = [name for name in order if name != "ready"]
    assert len("".join(name[0] for name in order).replace("sf", " ").split()) >= promises.BLOCKS - 1


def may_be_silent(name):
    """Whether this machine has nothing that the promise is about: no ceilings, no AVX2, nothing beyond its L2."""
    if promises.PROMISES[name] not in (promises.share_of_peak, promises.share_of_bandwidth):
        return False
    threads = fastrnn.get_num_threads()
    found = promises.ceilings(threads)
    weights = 4 * 4 * 512**2  # of the smallest case that can be beyond L2
    return (
        found is None
        or ("AVX2" in name and "avx2" not in promises.native.isas())
        or (name.endswith("L2") and weights / threads <= found.caches["l2"])
    )


@needs_c
def test_every_promise_gives_lines(monkeypatch):
    """With next to no time, for the smallest case of each."""
    monkeypatch.setattr(promises, "product", lambda *lists: [tuple(values[0] for values in map(list, lists))])
    monkeypatch.setattr(promises.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(promises, "BLOCKS", 1)
    args = argparse.Namespace(threads=fastrnn.get_num_threads(), seconds=1e-3, ready=lambda: None)
    before = fastrnn.get_num_threads()
    for name, measure in promises.PROMISES.items():
        if "numba" in name and "numba" not in fastrnn.backends():
            continue
        lines = list(measure(name, args))
        assert lines or may_be_silent(name), name
        for line in lines:
            assert line.name == name and np.isfinite(line.figure) and line.figure > 0 and line.bound > 0
    assert fastrnn.get_num_threads() == before


def test_the_costs_are_those_of_the_model():
    wide, narrow = costs.in_model(False), costs.in_model(True)
    assert wide["FLOPS_PER_NS"] > narrow["FLOPS_PER_NS"] and wide["BARRIER_NS"] == narrow["BARRIER_NS"]
    measured = re.findall(r'^        "(\w+)":', Path(costs.__file__).read_text(), re.MULTILINE)
    assert len(measured) > 5 and set(measured) < set(wide)
