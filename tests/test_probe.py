"""The machine's ceilings, bench/probe.py: which level of memory holds what, and one quick measurement.

The figures themselves are not judged: they are the machine's. Next: bench/probe.py.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from contextlib import closing
from dataclasses import replace

import pytest
from probe import LEVELS, Ceilings, Mix, ProbeError, caches, main, measure, working_sets

KB, MB = 1 << 10, 1 << 20
MADE_UP = Ceilings(
    caches={"l1": 32 * KB, "l2": MB, "l3": 8 * MB},
    fma={1: 100.0, 4: 390.5},
    read={level: {1: 10.0 * i, 4: 30.0 * i} for level, i in zip(LEVELS, (4, 3, 2, 1), strict=True)},
)


runs_here = pytest.mark.skipif(
    not (os.environ.get("CC") or any(map(shutil.which, ("cc", "gcc", "clang"))))
    or platform.machine() not in ("x86_64", "aarch64", "arm64"),
    reason="there is no C compiler, or the probe does not know the processor",
)


@pytest.mark.parametrize(
    "size, threads, level",
    [
        (0, 1, "l1"),
        (32 * KB, 1, "l1"),
        (32 * KB, 4, "l1"),
        (32 * KB + 1, 1, "l2"),
        (MB, 4, "l2"),
        (MB + 1, 1, "l3"),
        (2 * MB, 4, "l3"),
        (2 * MB + 1, 4, "memory"),
        (2 * MB + 1, 1, "l3"),
        (8 * MB, 1, "l3"),
        (8 * MB + 1, 1, "memory"),
        (1e12, 4, "memory"),
    ],
)
def test_bandwidth_is_that_of_the_level_that_holds_it(size, threads, level):
    assert MADE_UP.bandwidth(size, threads) == MADE_UP.read[level][threads]


def test_bandwidth_of_threads_not_measured():
    with pytest.raises(KeyError):
        MADE_UP.bandwidth(KB, 2)


def test_a_sweep_to_and_fro_finds_in_each_level_what_it_holds():
    def seconds(*parts):
        return sum(size * 4 / (1e9 * MADE_UP.read[level][4]) for level, size in zip(LEVELS, parts, strict=False))

    assert MADE_UP.sweep(20 * KB, 4) == pytest.approx(seconds(20 * KB))
    assert MADE_UP.sweep(100 * KB, 4) == pytest.approx(seconds(32 * KB, 68 * KB))
    assert MADE_UP.sweep(2 * MB, 4) == pytest.approx(seconds(32 * KB, 992 * KB, MB))
    assert MADE_UP.sweep(5 * MB, 4) == pytest.approx(seconds(32 * KB, 992 * KB, MB, 3 * MB))
    for size in (KB, 32 * KB, 33 * KB, 3 * MB, 64 * MB):  # never more than from the nearest level that holds all
        assert MADE_UP.sweep(size, 1) <= 1.001 * size / (1e9 * MADE_UP.bandwidth(size, 1))


def test_a_sweep_where_a_threads_share_of_l3_is_less_than_l2():
    small = replace(MADE_UP, caches={"l1": 32 * KB, "l2": MB, "l3": 2 * MB})
    beyond = small.sweep(2 * MB, 4) - small.sweep(MB, 4)
    assert beyond == pytest.approx(MB * 4 / (1e9 * MADE_UP.read["memory"][4]))


def test_ceilings_of_other_numbers_of_threads_are_added():
    rates = {level: {2: 20.0} for level in LEVELS}
    both = MADE_UP | Ceilings(MADE_UP.caches, {2: 200.0}, rates)
    assert both.fma == {1: 100.0, 4: 390.5, 2: 200.0}
    assert both.bandwidth(KB, 2) == 20.0 and both.bandwidth(KB, 4) == MADE_UP.bandwidth(KB, 4)


@pytest.mark.parametrize("arguments", ["--threads x", "--threads 0", "--threads 1,", "--seconds -1", "--seconds nan"])
def test_wrong_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments.split())
    assert stopped.value.code == 2 and "usage" in capsys.readouterr().err


def test_json_round_trip():
    data = MADE_UP.to_json()
    assert Ceilings.from_json(json.loads(json.dumps(data))) == MADE_UP
    data["caches"]["l1"] = data["read"]["l1"]["1"] = data["fma"]["1"] = 0
    assert MADE_UP.caches["l1"] and MADE_UP.read["l1"][1] and MADE_UP.fma[1]


def test_caches_grow():
    sizes = caches()
    assert list(sizes) == ["l1", "l2", "l3"]
    assert 0 < sizes["l1"] < sizes["l2"] < sizes["l3"]


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS does not describe its caches in files")
@pytest.mark.parametrize(
    "told, sizes",
    [
        ("1 Data 48K, 1 Instruction 32K, 2 Unified 1280K, 3 Unified 24M", (48 * KB, 1280 * KB, 24 * MB)),
        ("1 Instruction 64K, 1 Data 48K", (48 * KB, 768 * KB, 12 * MB)),
        ("1 Unified 16384, 3 Unified 1G", (16 * KB, 256 * KB, 1 << 30)),
        ("1 Data 32K, 2 Unified 2M, 3 Unified 1M", (32 * KB, 2 * MB, 32 * MB)),
        ("1 Data, 2 Unified unknown", (32 * KB, 512 * KB, 8 * MB)),
        ("", (32 * KB, 512 * KB, 8 * MB)),
    ],
)
def test_caches_as_linux_tells_of_them(tmp_path, told, sizes):
    for i, cache in enumerate(filter(None, told.split(", "))):
        folder = tmp_path / f"index{i}"
        folder.mkdir()
        for name, text in zip(("level", "type", "size"), cache.split(), strict=False):
            (folder / name).write_text(text + "\n", encoding="utf-8")
    assert tuple(caches(tmp_path).values()) == sizes


@pytest.mark.parametrize("threads", [1, 2, 8, 64])
@pytest.mark.parametrize("l1, l2, l3", [(32 * KB, MB, 32 * MB), (48 * KB, 2 * MB, 60 * MB), (64 * KB, 128 * KB, MB)])
def test_working_sets_belong_to_their_levels(l1, l2, l3, threads):
    sets = working_sets({"l1": l1, "l2": l2, "l3": l3}, threads)
    assert list(sets) == list(LEVELS)
    assert KB <= sets["l1"] < l1
    assert l1 < sets["l2"] <= l2
    assert l2 < sets["l3"]
    assert sets["l3"] * threads <= l3 or sets["l3"] == 2 * l2
    assert sets["memory"] * threads >= 4 * l3
    assert sets["memory"] * threads <= 1 << 30


@runs_here
def test_measure():
    found = measure([1, 1], seconds=0.02)
    assert found.caches == caches()
    assert list(found.fma) == [1]
    assert found.fma[1] > 0
    assert list(found.read) == list(LEVELS)
    for rates in found.read.values():
        assert list(rates) == [1]
        assert rates[1] > 0
    assert found.read["l1"][1] >= found.read["memory"][1]


@runs_here
@pytest.mark.parametrize("threads", [1, 2])
def test_mix(threads):
    with closing(Mix()) as mix:
        assert 0.05 < mix.now(threads) / threads < 100  # 1e9 instructions a second: a core does some in a cycle


def test_measure_without_a_compiler(monkeypatch, tmp_path):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ProbeError, match="no C compiler"):
        measure([1])


@pytest.mark.parametrize(
    "compiler, message",
    [(sys.executable, "does not compile"), ("/nowhere/cc", "cannot be run")],
    ids=["not one", "none"],
)
def test_measure_with_what_is_no_compiler(monkeypatch, compiler, message):
    monkeypatch.setenv("CC", compiler)
    with pytest.raises(ProbeError, match=message):
        measure([1])
