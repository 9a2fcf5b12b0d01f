"""The benchmark's harness: its table, its engines' outputs, its processes; never how long a thing takes."""

from __future__ import annotations

import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastrnn
from fastrnn import cli
from fastrnn.bench import race
from fastrnn.bench.cases import CELLS, GRID, QUICK, TABLE, Case, data
from fastrnn.bench.engines import ENGINES, OURS, Unsupported, prepare
from fastrnn.bench.worker import STEPS_READ

BENCH = Path(__file__).parents[1] / "bench"
SMALL = [
    *(Case(cell, mode, 6, 3, 5) for cell in CELLS for mode in ("inference", "training")),
    *(Case(cell, "step", 6, 1, 1) for cell in CELLS),
    *(Case(cell, mode, 5, 2, 4, layers=2, directions=2) for cell in CELLS for mode in ("inference", "training")),
    *(Case(cell, mode, 4, 5, 6, ragged=True) for cell in CELLS for mode in ("inference", "training")),
    Case("lstm", "words", 6, 2, 3, layers=2, words=11),
]


# ---------------------------------------------------------------- the table


def test_names_tell_cases_apart() -> None:
    assert len({case.name for case in TABLE}) == len(TABLE)
    case = Case("gru", "inference", 64, 1, layers=2, directions=2, ragged=True)
    assert case.name == "gru-inference-h64-b1-2x2-ragged"


def test_the_grid_is_whole() -> None:
    for cell in CELLS:
        for mode in ("inference", "training"):
            points = {(case.hidden, case.batch) for case in GRID if (case.cell, case.mode) == (cell, mode)}
            assert points == {(h, b) for h in (16, 64, 128, 256, 512, 1024) for b in (1, 8, 32, 128)}
    assert set(QUICK) < set(GRID) < set(TABLE)


def test_work_is_counted() -> None:
    case = Case("lstm", "inference", 10, 3, 7)
    assert case.flops == 2 * 4 * 10 * (10 + 10) * 3 * 7
    assert replace(case, mode="training").flops == 3 * case.flops
    assert replace(case, cell="rnn", layers=2, directions=2).flops == 2 * 10 * (2 * 20 + 2 * 30) * 3 * 7
    assert replace(case, words=50).flops - case.flops == 2 * 10 * 50 * 3 * 7
    ragged = replace(case, ragged=True)
    assert ragged.flops == case.flops * ragged.lengths.sum() / 21
    assert case.bytes_per_step == 4 * 4 * 10 * 10


def test_data_follow_the_case() -> None:
    case = Case("gru", "training", 4, 5, 6, layers=2, directions=2, ragged=True)
    given = data(case)
    assert given.x.shape == (6, 5, 4) and given.dy.shape == (6, 5, 8)
    assert {name: array.shape for name, array in given.params.items()} == case.shapes
    assert 1 <= given.lengths.min() and given.lengths.max() <= 6
    past = np.arange(6)[:, None] >= given.lengths
    assert past.any() and not given.x[past].any() and not given.dy[past].any()
    assert np.array_equal(given.x, data(case).x)


# ---------------------------------------------------------------- engines


@pytest.mark.parametrize("engine", [name for name in ENGINES if name not in ("numpy", "torch-compiled")])
@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_engines_agree_with_the_reference(engine: str, case: Case) -> None:
    if missing := ENGINES[engine].missing():
        pytest.skip(missing)
    calls = STEPS_READ if case.mode == "step" else 1

    def outputs(name: str) -> dict[str, np.ndarray]:
        work = prepare(name, case)
        for _ in range(calls):
            found = work.run()
        return work.read(found)

    try:
        found = outputs(engine)
    except Unsupported as error:
        pytest.skip(f"{engine}: {error}")
    wanted = outputs("numpy")
    assert wanted.keys() <= found.keys()
    for name, array in wanted.items():
        assert race.deviation(found[name], array) < 1e-4, name


def test_what_an_engine_cannot_do_it_says() -> None:
    with pytest.raises(Unsupported, match="no training"):
        prepare("onnxruntime", SMALL[1])


# ---------------------------------------------------------------- judging


def test_wrong_outputs_are_marked() -> None:
    wanted = {"y": np.linspace(-1, 1, 12).reshape(3, 4), "dx": np.ones(3)}
    right = {"version": "1", "outputs": {name: array + 1e-6 for name, array in wanted.items()}}
    assert race._judged(dict(right), wanted)["error"] == pytest.approx(1e-6)
    for wrong in (
        {"y": wanted["y"] + 0.01, "dx": wanted["dx"]},
        {"y": np.full((3, 4), np.nan), "dx": wanted["dx"]},
        {"y": wanted["y"][:2], "dx": wanted["dx"]},
        {"y": wanted["y"]},
    ):
        judged = race._judged({"version": "1", "outputs": wrong}, wanted)
        assert judged.keys() == {"wrong"}
    assert race._judged({"skipped": "no training"}, wanted) == {"skipped": "no training"}


# ---------------------------------------------------------------- processes


def test_a_race() -> None:
    case = Case("lstm", "training", 6, 3, 5)
    with race.Race(["c", "numpy"], 1) as r:
        found = r.run(case, 0.01)
        again = r.run(replace(case, mode="step", steps=1), 0.01)
        processes = list(r._processes.values())
    for record in (*found.values(), *again.values()):
        assert len(record["blocks"]) == race.BLOCKS and record["runs"] >= race.BLOCKS
        assert record["time"] == min(times[race.MEDIAN] for times in record["blocks"]) > 0
        assert all(times == sorted(times) for times in record["blocks"])
        assert record["error"] < 1e-4
        assert record["version"] in (fastrnn.__version__, np.__version__)
    assert not any(process.alive for process in processes)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_an_engine_is_stopped_between_questions(tmp_path: Path) -> None:
    process = race.Process("numpy", 1)
    case = {"cell": "lstm", "mode": "inference", "hidden": 2, "batch": 1, "steps": 2}
    try:
        process.ask(prepare=case, into=str(tmp_path / "outputs"))
        os.waitid(os.P_PID, process._process.pid, os.WSTOPPED | os.WNOWAIT)
        state = Path(f"/proc/{process._process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        assert state == "T"
    finally:
        process.close()


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_an_engine_does_not_outlive_who_asks() -> None:
    """Stopped as it is, it would never notice."""
    program = """
import os, signal, tempfile
from fastrnn.bench.race import Process
process = Process("numpy", 1)
with tempfile.TemporaryDirectory() as folder:
    case = {"cell": "lstm", "mode": "inference", "hidden": 2, "batch": 1, "steps": 2}
    assert "version" in process.ask(prepare=case, into=folder + "/outputs")
print(process._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    printed = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True).stdout
    state = Path(f"/proc/{int(printed)}/stat")
    for _ in range(100):
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    os.kill(int(printed), signal.SIGKILL)
    pytest.fail("it is still there")


def test_an_engine_may_die() -> None:
    process = race.Process("numpy", 1)
    process._process.send_signal(signal.SIGKILL)
    process._process.wait()
    assert "ended with code -9" in process.ask(measure=0.1)["failed"]
    assert not process.alive
    process.close()


def test_a_failure_is_told(tmp_path: Path) -> None:
    process = race.Process("c", 1)
    try:
        answer: dict[str, Any] = process.ask(
            prepare={"cell": "lstm", "mode": "inference", "hidden": 2, "batch": 1}, into=str(tmp_path / "no" / "folder")
        )
        assert "FileNotFoundError" in answer["failed"]
        assert process.alive
    finally:
        process.close()


# ---------------------------------------------------------------- floors


@pytest.fixture(scope="module")
def suite() -> Any:
    if not BENCH.is_dir():
        pytest.skip("the suite is not here")
    return runpy.run_path(str(BENCH / "suite.py"))


def test_floors(suite: Any) -> None:
    ceilings = suite["Ceilings"].from_json(
        {
            "caches": {"l1": 1000, "l2": 10_000, "l3": 1_000_000},
            "fma": {"1": 100.0, "2": 200.0},
            "read": {
                "l1": {"1": 50.0, "2": 100.0},
                "l2": {"1": 20.0, "2": 40.0},
                "l3": {"1": 10.0, "2": 15.0},
                "memory": {"1": 4.0, "2": 5.0},
            },
        }
    )
    many = Case("rnn", "inference", 64, 10_000, 100)
    assert suite["floor"](many, ceilings, 2) == pytest.approx(many.flops / 200e9)
    one = Case("rnn", "inference", 64, 1, 100)  # 16 KiB of weights: 8 a thread are in L2, 16 are in L3
    assert suite["floor"](one, ceilings, 2) == pytest.approx(100 * 4 * 64**2 / 40e9)
    assert suite["floor"](one, ceilings, 1) == pytest.approx(100 * 4 * 64**2 / 10e9)


def test_rounds_are_merged(suite: Any) -> None:
    merged = suite["merged"]
    first = {"time": 2.0, "blocks": [[2.0], [3.0]], "runs": 4, "error": 1e-6}
    second = {"time": 1.0, "blocks": [[1.0], [4.0]], "runs": 5, "error": 1e-7}
    both = {"time": 1.0, "blocks": [[2.0], [3.0], [1.0], [4.0]], "runs": 9, "error": 1e-6}
    wrong, failed, skipped = {"wrong": "y"}, {"failed": "its process ended"}, {"skipped": "too slow"}
    assert merged(None, first) == first
    assert merged(first, second) == both
    for other in (first, failed, skipped):
        assert merged(wrong, other) == merged(other, wrong) == wrong
    for none in (failed, skipped):
        assert merged(none, first) == merged(first, none) == first


def test_an_interrupted_run_is_gone_on_with(suite: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--engines", "c", "--threads", "1", "--seconds", "0.01", "--results", str(tmp_path)]
    suite["main"]([*arguments, "--only", "rnn-step-h16"])
    assert "rnn-step-h16-b1 x1" in capsys.readouterr().out
    suite["main"]([*arguments, "--only", "rnn-step-h16,rnn-step-h32", "--resume"])
    told = capsys.readouterr().out
    assert "rnn-step-h16-b1 x1" not in told
    assert "rnn-step-h32-b1 x1" in told


def test_every_round_goes_through_all_cases(suite: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--engines", "c", "--threads", "1", "--seconds", "0.01", "--results", str(tmp_path)]
    suite["main"]([*arguments, "--only", "rnn-step-h16"])
    (path,) = tmp_path.glob("*.json")
    counts = lambda: {  # noqa: E731
        run["name"]: (run["rounds"], len(run["engines"]["c"]["blocks"])) for run in json.loads(path.read_text())["runs"]
    }
    suite["main"]([*arguments, "--only", "rnn-step-h32", "--rounds", "2", "--resume"])
    assert counts() == {"rnn-step-h16-b1": (1, 5), "rnn-step-h32-b1": (2, 10)}
    assert "the best of 5 to 10 blocks, 5 in each round" in path.with_suffix(".md").read_text()
    suite["main"]([*arguments, "--only", "rnn-step-h16,rnn-step-h32", "--rounds", "2", "--resume"])
    assert counts() == {"rnn-step-h16-b1": (2, 10), "rnn-step-h32-b1": (2, 10)}
    assert "the best of 10 blocks, 5 in each round" in path.with_suffix(".md").read_text()
    with pytest.raises(SystemExit):
        suite["main"]([*arguments, "--rounds", "0"])
    assert "--rounds must be at least 1, not 0" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["build", "seconds"])
def test_times_of_another_kind_are_not_gone_on_with(suite: Any, tmp_path: Path, name: str) -> None:
    arguments = ["--engines", "c", "--threads", "1", "--only", "rnn-step-h16", "--results", str(tmp_path)]
    suite["main"]([*arguments, "--seconds", "0.01"])
    (path,) = tmp_path.glob("*.json")
    results = json.loads(path.read_text())
    results["settings"][name] = None
    path.write_text(json.dumps(results))
    with pytest.raises(SystemExit, match=f"is of another {name}"):
        suite["main"]([*arguments, "--seconds", "0.01", "--resume"])
    assert json.loads(path.read_text()) == results


def test_footprint_counts_what_is_depended_on(suite: Any) -> None:
    numpy, fastrnn_ = (suite["installed_bytes"]([name]) for name in ("numpy", "fastrnn"))
    assert fastrnn_ > numpy > 1e6


# ---------------------------------------------------------------- the command


def test_bench_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "SHORT", (Case("lstm", "training", 6, 3, 5), Case("gru", "step", 6, 1, 1)))
    cli.main(["bench", "--engines", "c,numpy,onnxruntime", "--seconds", "0.01", "--threads", "1"])
    printed = capsys.readouterr().out
    assert "1 thread;" in printed and "fastrnn NumPy" in printed
    (row,) = re.findall(r"^lstm-training-h6-b3 .*$", printed, re.MULTILINE)
    assert re.fullmatch(r"\S+ +[\d.,]+ +[\d.,]+ \([\d.]+\)( +-)?", row)


@pytest.mark.parametrize("arguments", [["bench", "--engines", "tea"], ["bench", "--threads", "0"], ["tea"], []])
def test_bad_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        cli.main(arguments)
    assert raised.value.code == 2
    assert "usage: fastrnn" in capsys.readouterr().err


def test_no_engine_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.ENGINES, "jax", replace(ENGINES["jax"], needs=("no_such_module",)))
    with pytest.raises(SystemExit, match="none of these engines"):
        cli.main(["bench", "--engines", "jax"])


def test_config_command(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["config"])
    assert fastrnn.__version__ in capsys.readouterr().out


def test_ours_are_the_backends() -> None:
    from fastrnn.backends import REGISTRY

    assert set(OURS) == set(REGISTRY)
