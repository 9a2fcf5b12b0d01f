"""The benchmark's harness: its table, its engines' outputs, its processes; never how long a thing takes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

import fastrnn
from fastrnn import cli
from fastrnn.bench import ours, race, worker
from fastrnn.bench.cases import CELLS, GRID, QUICK, TABLE, Case, data
from fastrnn.bench.engines import ENGINES, OURS, Unsupported, Work, prepare
from fastrnn.bench.worker import STEPS_READ

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


def test_sweeps_are_counted() -> None:
    case = Case("lstm", "inference", 10, 3, 7)
    assert (case.bytes_per_sweep, case.sweeps_per_step) == (4 * 4 * 10 * 10, 1)
    training = replace(case, mode="training", layers=2, directions=2)  # each track goes back as well
    assert (training.bytes_per_sweep, training.sweeps_per_step) == (4 * 4 * 10 * 10, 8)
    assert replace(case, mode="words", layers=2).sweeps_per_step == 4
    step = replace(case, cell="gru", mode="step")  # the input's weights too
    assert (step.bytes_per_sweep, step.sweeps_per_step) == (2 * 4 * 3 * 10 * 10, 1)


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


@pytest.mark.parametrize("backend", ["c", "numba"])
def test_weights_are_packed_anew_in_training(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An optimiser would have changed them since: numbers written to the layer's memory show in the next output."""
    if missing := ENGINES[backend].missing():
        pytest.skip(missing)
    layers = []

    class Kept(fastrnn.LSTM):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            layers.append(self)

    monkeypatch.setitem(ours.LAYERS, "lstm", Kept)
    work = prepare(backend, Case("lstm", "training", 6, 3, 5))
    before = work.read(work.run())["y"].copy()
    (layer,) = layers
    layer.block.flat[...] *= 0.5
    assert race.deviation(work.read(work.run())["y"], before) > 0.01


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


# ---------------------------------------------------------------- a block


class Clock:
    """A made-up engine, and the clock by which it is timed: the first run takes longer than the others."""

    def __init__(self, cold: float, warm: float) -> None:
        self.now, self.runs, self.cold, self.warm = 0.0, 0, cold, warm
        self.reads: list[int] = []  # how many runs there had been whenever the clock was read

    def run(self) -> None:
        self.now += self.warm if self.runs else self.cold
        self.runs += 1

    def perf_counter(self) -> float:
        self.reads.append(self.runs)
        return self.now


def block_of(clock: Clock, seconds: float, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a worker tells of it."""
    monkeypatch.setattr(worker, "time", clock)
    return worker._measure(Work(clock.run, lambda found: {}), seconds)


@pytest.mark.parametrize("warm", [1e-7, 3e-6, 1e-4, 0.03, 0.4])
def test_the_first_run_does_not_count(warm: float, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(2 * warm, warm)
    told = block_of(clock, 0.1, monkeypatch)
    assert told["times"] == pytest.approx([warm] * 6, rel=1e-3)
    assert 0.1 * 0.99 <= told["runs"] * warm <= 0.1 + 2 * max(warm, worker.LEAST_SAMPLE)
    assert clock.now < 0.1 + worker.WARM + 5 * warm + 1e-4


def test_short_runs_are_timed_several_together(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(1e-3, 1e-6)
    told = block_of(clock, 0.01, monkeypatch)
    together = np.diff(clock.reads[-20:])
    assert set(together) <= {0, 19, 20} and together.any()  # none between the end of a sample and the next's beginning
    assert told["runs"] * 1e-6 == pytest.approx(0.01, rel=0.01)


def test_a_long_run_is_not_done_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(1.5, 1.5)
    assert block_of(clock, 0.02, monkeypatch) == {"times": [1.5] * 6, "runs": 1}
    assert clock.runs == 1


# ---------------------------------------------------------------- processes


class Fake:
    """An engine's process that does everything right, until it dies in the block it is told to."""

    asked: ClassVar[list[str]] = []
    dies_in: ClassVar[dict[str, int]] = {}

    def __init__(self, engine: str, threads: int) -> None:
        self.engine, self.alive, self.prepared = engine, True, False

    def ask(self, **request: Any) -> dict[str, Any]:
        if "prepare" in request:
            self.prepared = True
            np.savez(request["into"], y=np.ones(3))
            return {"version": "1"}
        Fake.asked.append(self.engine)
        assert self.prepared
        if Fake.asked.count(self.engine) == Fake.dies_in.get(self.engine):
            self.alive = False
            return {"failed": "its process ended with code -9"}
        return {"times": [float(Fake.asked.count(self.engine))] * 6, "runs": 2}

    def close(self) -> None:
        self.alive = False


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    """Fake in place of real processes."""
    monkeypatch.setattr(race, "Process", Fake)
    monkeypatch.setattr(Fake, "asked", [])
    monkeypatch.setattr(Fake, "dies_in", {})
    return Fake


def test_blocks_go_round(fakes: type[Fake]) -> None:
    ready = []
    with race.Race(["c", "torch", "jax"], 1) as r:
        found = r.run(Case("lstm", "inference", 6, 3, 5), 0.01, ready=lambda: ready.append(len(fakes.asked)))
    assert fakes.asked == ["c", "torch", "jax"] * race.BLOCKS
    assert ready == list(range(3 * race.BLOCKS))
    for record in found.values():
        assert (record["time"], record["runs"], len(record["blocks"])) == (1.0, 2 * race.BLOCKS, race.BLOCKS)


def test_an_engine_that_dies_is_out_of_the_race(fakes: type[Fake]) -> None:
    case = Case("lstm", "inference", 6, 3, 5)
    fakes.dies_in["torch"] = 2
    with race.Race(["c", "torch"], 1) as r:
        found = r.run(case, 0.01)
        assert found["torch"] == {"failed": "its process ended with code -9"}
        assert found["c"]["time"] == 1.0 and fakes.asked.count("torch") == 2
        assert "time" in r.run(case, 0.01)["torch"]  # with the next case, in a new process


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


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="processors cannot be chosen here")
@pytest.mark.skipif(fastrnn.show_config(as_dict=True)["cpus"] < 2, reason="there is one processor")
def test_an_engine_sees_as_many_processors_as_it_has_threads(tmp_path: Path) -> None:
    process = race.Process("numpy", 1)
    try:
        process.ask(prepare={"cell": "rnn", "mode": "step", "hidden": 2, "batch": 1}, into=str(tmp_path / "outputs"))
        assert len(os.sched_getaffinity(process._process.pid)) == 1
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


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The suite, without what takes long in it: ceilings, footprints, waiting, pictures."""
    module = pytest.importorskip("suite")
    monkeypatch.setattr(module, "measure", lambda threads: ceilings_of(module, *threads))
    monkeypatch.setattr(module, "footprint", lambda engine: {"import_seconds": 1.0})
    monkeypatch.setattr(module.Steady, "wait", lambda self, threads: None)
    monkeypatch.setattr(module, "report", SimpleNamespace(main=lambda arguments: None))
    return module


def ceilings_of(suite: Any, *threads: int) -> Any:
    """Made up, for some numbers of threads of 1 and 2."""
    every = suite.Ceilings.from_json(
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
    read = {level: {n: rates[n] for n in threads} for level, rates in every.read.items()}
    return replace(every, fma={n: every.fma[n] for n in threads}, read=read)


def test_floors(suite: Any) -> None:
    ceilings = ceilings_of(suite, 1, 2)
    many = Case("rnn", "inference", 64, 10_000, 100)
    assert suite.floor(many, ceilings, 2) == pytest.approx(many.flops / 200e9)
    one = Case("rnn", "inference", 64, 1, 100)  # 16 KiB of weights: 1000 bytes are in L1, 9000 in L2, others in L3
    shared, alone = 1000 / 50e9 + 7192 / 20e9, 1000 / 50e9 + 9000 / 20e9 + 6384 / 10e9
    assert suite.floor(one, ceilings, 2) == pytest.approx(100 * shared)
    assert suite.floor(one, ceilings, 1) == pytest.approx(100 * alone)
    for case, sweeps in (
        (replace(one, mode="training"), 2),
        (replace(one, layers=3), 3),
        (replace(one, mode="training", layers=2, directions=2), 8),
    ):
        assert suite.floor(case, ceilings, 1) == pytest.approx(100 * sweeps * alone)
        assert suite.floor(case, ceilings, 2) == pytest.approx(100 * sweeps * shared)


def test_rounds_are_merged(suite: Any) -> None:
    merged = suite.merged
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


def test_the_suite_makes_the_report(suite: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(suite, "report", pytest.importorskip("report"))
    arguments = ["--engines", "c", "--threads", "1", "--seconds", "0.01", "--only", "rnn-step-h16"]
    suite.main([*arguments, "--results", str(tmp_path)])
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".md", ".html", ".png"}


def test_an_interrupted_run_is_gone_on_with(suite: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--engines", "c", "--threads", "1", "--seconds", "0.01", "--results", str(tmp_path)]
    suite.main([*arguments, "--only", "rnn-step-h16"])
    assert "rnn-step-h16-b1 x1" in capsys.readouterr().out
    suite.main([*arguments, "--only", "rnn-step-h16,rnn-step-h32", "--resume"])
    told = capsys.readouterr().out
    assert "rnn-step-h16-b1 x1" not in told
    assert "rnn-step-h32-b1 x1" in told


def test_every_round_goes_through_all_cases(suite: Any, tmp_path: Path) -> None:
    from report_words import blocks_text

    arguments = ["--engines", "c", "--threads", "1", "--seconds", "0.01", "--results", str(tmp_path)]
    suite.main([*arguments, "--only", "rnn-step-h16"])
    (path,) = tmp_path.glob("*.json")
    counts = lambda: {  # noqa: E731
        run["name"]: (run["rounds"], len(run["engines"]["c"]["blocks"])) for run in json.loads(path.read_text())["runs"]
    }
    suite.main([*arguments, "--only", "rnn-step-h32", "--rounds", "2", "--resume"])
    assert counts() == {"rnn-step-h16-b1": (1, 5), "rnn-step-h32-b1": (2, 10)}
    assert blocks_text(json.loads(path.read_text())) == "5 to 10 blocks, 5 in each round"
    suite.main([*arguments, "--only", "rnn-step-h16,rnn-step-h32", "--rounds", "2", "--resume"])
    assert counts() == {"rnn-step-h16-b1": (2, 10), "rnn-step-h32-b1": (2, 10)}
    assert blocks_text(json.loads(path.read_text())) == "10 blocks, 5 in each round"


@pytest.mark.parametrize("name", ["build", "seconds"])
def test_times_of_another_kind_are_not_gone_on_with(suite: Any, tmp_path: Path, name: str) -> None:
    arguments = ["--engines", "c", "--threads", "1", "--only", "rnn-step-h16", "--results", str(tmp_path)]
    suite.main([*arguments, "--seconds", "0.01"])
    (path,) = tmp_path.glob("*.json")
    results = json.loads(path.read_text())
    results["settings"][name] = None
    path.write_text(json.dumps(results))
    with pytest.raises(SystemExit, match=f"is of another {name}"):
        suite.main([*arguments, "--seconds", "0.01", "--resume"])
    assert json.loads(path.read_text()) == results


def test_other_versions_are_not_gone_on_with(suite: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--engines", "c", "--threads", "1", "--seconds", "0.01", "--results", str(tmp_path)]
    suite.main([*arguments, "--only", "rnn-step-h16"])
    monkeypatch.setattr(suite, "_version", lambda package: "2.0")
    with pytest.raises(SystemExit, match="is of other versions of c: run without --resume"):
        suite.main([*arguments, "--only", "rnn-step-h32", "--resume"])


def test_another_machine_is_not_gone_on_with(suite: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--engines", "c", "--threads", "1", "--seconds", "0.01", "--results", str(tmp_path)]
    suite.main([*arguments, "--only", "rnn-step-h16"])
    machine = suite._machine()
    monkeypatch.setattr(suite, "_machine", lambda: machine | {"family": 0})
    monkeypatch.setattr(suite, "_file_name", lambda: next(tmp_path.glob("*.json")).stem)
    with pytest.raises(SystemExit, match="is of another machine: run without --resume"):
        suite.main([*arguments, "--only", "rnn-step-h32", "--resume"])


@pytest.mark.skipif(fastrnn.show_config(as_dict=True)["cpus"] < 2, reason="there is one processor")
def test_a_run_is_gone_on_with_on_other_threads(suite: Any, tmp_path: Path) -> None:
    arguments = ["--engines", "c", "--seconds", "0.01", "--only", "rnn-inference-h16-b8", "--results", str(tmp_path)]
    suite.main([*arguments, "--threads", "1"])
    suite.main([*arguments, "--threads", "2,1", "--resume"])
    (path,) = tmp_path.glob("*.json")
    results = json.loads(path.read_text())
    assert [(run["threads"], run["floor"] > 0) for run in results["runs"]] == [(1, True), (2, True)]
    assert results["ceilings"]["fma"] == {"1": 100.0, "2": 200.0}


def test_the_generation_is_told_where_the_system_tells_it(suite: Any, tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    assert suite._generation(info) == {}
    info.write_text("processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\nstepping\t: 1\n\n" * 2)
    assert suite._generation(info) == {"family": 25, "model": 17}


def test_machines_have_files_of_their_own(suite: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = {"cpu": "AMD EPYC", "cpus": 2, "isa": "avx512"}
    monkeypatch.setattr(suite, "_machine", lambda: machine)
    assert suite._file_name() == "amd-epyc-2-cpus-avx512"
    machine |= {"family": 25, "model": 17}
    assert suite._file_name() == "amd-epyc-family-25-model-17-2-cpus-avx512"


@pytest.mark.parametrize(
    "arguments",
    [
        "--threads 0",
        "--threads x",
        "--threads 100000",
        "--seconds -1",
        "--rounds 0",
        "--engines tea",
        "--only nosuch",
        "--only lstm,nosuch",
        "--readme --only lstm",
        "--readme --quick",
    ],
)
def test_bad_arguments_of_the_suite(
    suite: Any, arguments: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        suite.main([*arguments.split(), "--results", str(tmp_path)])
    assert stopped.value.code == 2 and "usage" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("program", ["promises", "leave_out"])
@pytest.mark.parametrize("arguments", ["nosuch", "--threads 0", "--threads x", "--seconds -1"])
def test_bad_arguments_of_the_other_programs(program: str, arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        pytest.importorskip(program).main(arguments.split())
    assert stopped.value.code == 2 and "usage" in capsys.readouterr().err


def test_the_readme_needs_a_rival(suite: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="--readme compares fastrnn's C backend with others"):
        suite.main(["--readme", "--engines", "c,numpy", "--results", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_without_engines_nothing_is_written(suite: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(suite.ENGINES, "jax", replace(ENGINES["jax"], needs=("no_such_module",)))
    with pytest.raises(SystemExit, match="none of these engines is here"):
        suite.main(["--engines", "jax", "--results", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_a_footprint_that_cannot_be_had_is_told(
    suite: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def footprint(engine: str) -> dict[str, float]:
        if engine == "numpy":
            suite._python("raise ImportError('no such library')")
        return {"import_seconds": 1.0}

    reports = []
    monkeypatch.setattr(suite, "footprint", footprint)
    monkeypatch.setattr(suite.report, "main", reports.append)
    arguments = ["--engines", "numpy,c", "--threads", "1", "--seconds", "0.01", "--only", "rnn-step-h16"]
    suite.main([*arguments, "--results", str(tmp_path)])
    assert "without the footprint of fastrnn NumPy: ImportError: no such library" in capsys.readouterr().out
    (path,) = tmp_path.glob("*.json")
    assert json.loads(path.read_text())["footprint"] == {"c": {"import_seconds": 1.0}}
    assert reports == [[str(path)]]


def test_a_footprint() -> None:
    found = pytest.importorskip("suite").footprint("numpy", repeats=1)
    assert 0 < found["import_seconds"] < found["first_result_seconds"] < 60
    assert found["peak_bytes"] > 1e7 and found["installed_bytes"] > 1e6


def test_footprint_counts_what_is_depended_on(suite: Any) -> None:
    numpy, fastrnn_ = (suite.installed_bytes([name]) for name in ("numpy", "fastrnn"))
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
