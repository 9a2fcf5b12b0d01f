"""bench/regress.py: its statistics on made-up times, its errors, and what it builds. Nothing here is timed."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import regress
from regress import Failure, Finding, Job, Report, Samples, Setting, compare

from fastrnn.bench.cases import QUICK

ISAS = ["avx512", "avx2", "generic"]
JOBS = regress.table(ISAS, [1, 2], ["c", "numba"], quick=False)
ROUNDS = 15
needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


class Machine:
    """A made-up machine: a `measure` for compare() that keeps what it was asked for.

    Each process gets every case by some share slower or faster, for where its memory lies; each block takes up to
    some share longer, and one in ten thrice as long. `slower(job, n)` is head's time over base's in the n-th call.
    """

    def __init__(self, slower: Callable[[Job, int], float], placement: float = 0.01, blocks: float = 0.05) -> None:
        self.slower, self.placement, self.blocks = slower, placement, blocks
        self.random = np.random.default_rng(0)
        self.asked: list[list[Job]] = []

    def __call__(self, jobs: Sequence[Job]) -> dict[Job, Samples]:
        self.asked.append(list(jobs))
        return {job: self._samples(1e-3, self.slower(job, len(self.asked))) for job in jobs}

    def _samples(self, seconds: float, slower: float) -> Samples:
        drift = 1 + 0.3 * self.random.random(ROUNDS)  # of the machine, which all three processes feel
        times = seconds * drift * (1 + self.placement * self.random.uniform(-1, 1, (3, 1)))
        times = times * (1 + self.blocks * self.random.random((3, ROUNDS)))
        times[self.random.random((3, ROUNDS)) < 0.1] *= 3
        return Samples(*(times * np.array([[1], [1], [slower]])).tolist())


def verdicts(report: Report) -> dict[str, int]:
    """How many cases of each."""
    found = [finding.verdict for finding in report.findings]
    return {verdict: found.count(verdict) for verdict in set(found)}


def is_victim(job: Job) -> bool:
    """One kernel, with one thread in the first instruction set."""
    return job.setting == Setting("c", "avx512", 1) and (job.case.cell, job.case.mode) == ("lstm", "training")


# ---------------------------------------------------------------- judging


def test_a_finding() -> None:
    job = JOBS[0]
    finding = Finding.of(job, Samples([1.0, 2.0, 1.0], [1.0, 2.0, 4.0], [1.5, 3.0, 9.0]))
    assert (finding.base, finding.head) == (2.0, 3.0)
    assert finding.ratio == 1.5 and finding.noise == 0
    assert Finding.of(job, Samples([1.25], [1.0], [1.0])).noise == pytest.approx(0.25)
    assert Finding.of(job, Samples([1.0], [1.25], [1.0])).noise == pytest.approx(0.25)


def test_the_same_code_is_not_slower() -> None:
    machine = Machine(lambda job, n: 1.0)
    report = compare(JOBS, machine, 0.1)
    assert verdicts(report) == {"same": len(JOBS)}
    assert not report.slower and len(machine.asked) == 1
    assert report.floors.keys() == {1, 2} and all(0 < floor < 0.06 for floor in report.floors.values())


def test_a_slower_kernel_is_found() -> None:
    machine = Machine(lambda job, n: 1.2 if is_victim(job) else 1.0)
    report = compare(JOBS, machine, 0.1, retries=3)
    victims = [job for job in JOBS if is_victim(job)]
    assert [finding.job for finding in report.slower] == victims
    assert machine.asked == [JOBS, victims, victims, victims]
    for finding in report.slower:
        assert (finding.measured, finding.slower) == (4, 4)
        assert finding.ratio == pytest.approx(1.2, rel=0.05)
        assert finding.head / finding.base == pytest.approx(1.2, rel=0.1)


def test_what_is_slower_once_is_not_confirmed() -> None:
    machine = Machine(lambda job, n: 1.3 if is_victim(job) and n <= 2 else 1.0)
    report = compare(JOBS, machine, 0.1, retries=3)
    victims = [job for job in JOBS if is_victim(job)]
    assert verdicts(report) == {"same": len(JOBS) - len(victims), "not confirmed": len(victims)}
    assert machine.asked == [JOBS, victims, victims] and not report.slower
    assert all((finding.measured, finding.slower) == (3, 2) for finding in report.findings if is_victim(finding.job))


def test_without_retries_once_is_enough() -> None:
    machine = Machine(lambda job, n: 1.2 if is_victim(job) else 1.0)
    assert len(compare(JOBS, machine, 0.1, retries=0).slower) == sum(map(is_victim, JOBS))
    assert len(machine.asked) == 1


def test_below_the_threshold_is_not_slower() -> None:
    machine = Machine(lambda job, n: 1.2)
    assert verdicts(compare(JOBS, machine, 0.3)) == {"same": len(JOBS)}


def test_a_faster_kernel_is_told() -> None:
    report = compare(JOBS, Machine(lambda job, n: 0.8 if is_victim(job) else 1.0), 0.1)
    assert {finding.job for finding in report.findings if finding.verdict == "faster"} == set(filter(is_victim, JOBS))
    assert not report.slower


def test_noise_hides_what_is_smaller() -> None:
    machine = Machine(lambda job, n: 1.15 if is_victim(job) else 1.0, placement=0.3)
    report = compare(JOBS, machine, 0.1)
    assert not report.slower and verdicts(report)["in the noise"] > 0
    assert all(floor > 0.2 for floor in report.floors.values())


def test_a_case_that_is_noisy_itself_is_in_the_noise() -> None:
    def measure(jobs: Sequence[Job]) -> dict[Job, Samples]:
        return {job: Samples([1.0] * 5, [1.4 if job == JOBS[0] else 1.0] * 5, [1.5] * 5) for job in jobs}

    report = compare(JOBS, measure, 0.1)
    assert report.findings[0].verdict == "in the noise"
    assert len(report.slower) == len(JOBS) - 1


def test_a_quiet_case_among_noisy_ones_is_in_the_noise() -> None:
    def measure(jobs: Sequence[Job]) -> dict[Job, Samples]:
        noisy = {job: Samples([1.0] * 5, [1.44] * 5, [1.2] * 5) for job in jobs}
        return noisy | {JOBS[0]: Samples([1.0] * 5, [1.0] * 5, [1.4] * 5)}

    report = compare(JOBS, measure, 0.1)
    assert report.findings[0].verdict == "in the noise" and not report.slower


def test_noise_of_many_threads_does_not_hide_what_one_does() -> None:
    quiet, noisy = Machine(lambda job, n: 1.2 if is_victim(job) else 1.0), Machine(lambda job, n: 1.0, placement=0.3)

    def measure(jobs: Sequence[Job]) -> dict[Job, Samples]:
        return quiet([job for job in jobs if job.setting.threads == 1]) | noisy(
            [job for job in jobs if job.setting.threads == 2]
        )

    report = compare(JOBS, measure, 0.1)
    assert report.floors[1] < 0.06 < 0.2 < report.floors[2]
    assert {finding.job for finding in report.slower} == set(filter(is_victim, JOBS))


# ---------------------------------------------------------------- measuring


class Fake:
    """A process that takes so many seconds for a run, and notes when it is asked for one."""

    asked: ClassVar[list[str]] = []

    def __init__(self, name: str, seconds: float) -> None:
        self.name, self.seconds, self.prepared = name, seconds, False

    def ask(self, **request: object) -> dict[str, object]:
        if "prepare" in request:
            self.prepared = True
            return {"version": "1"}
        assert self.prepared
        Fake.asked.append(self.name)
        return {"times": [self.seconds] * 6, "runs": 1}

    def close(self) -> None:
        self.prepared = False


def test_processes_are_asked_in_turn_and_in_every_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fake, "asked", [])
    processes = {name: Fake(name, seconds) for name, seconds in (("base", 1.0), ("base again", 2.0), ("head", 3.0))}
    times = regress.rounds(processes, QUICK[0], 0.0, Path("outputs.npz"))  # type: ignore[arg-type]
    assert times == [[1.0] * regress.LEAST_ROUNDS, [2.0] * regress.LEAST_ROUNDS, [3.0] * regress.LEAST_ROUNDS]
    rounds = [tuple(Fake.asked[i : i + 3]) for i in range(0, len(Fake.asked), 3)]
    assert all(set(names) == set(processes) for names in rounds)
    assert len(set(rounds)) == 6


def test_both_builds_are_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seconds = {tmp_path / "base": 1.0, tmp_path / "head": 1.5}
    monkeypatch.setattr(regress, "Process", lambda engine, threads, path, isa: Fake(path.name, seconds[path]))
    found = regress.measure(JOBS[:2], *seconds, seconds=0.0)  # type: ignore[misc]
    assert list(found) == JOBS[:2]
    for samples in found.values():
        assert (set(samples.base), set(samples.again), set(samples.head)) == ({1.0}, {1.0}, {1.5})


@needs_git
@pytest.mark.parametrize(("slower", "code"), [(1.2, 1), (1.0, 0)])
def test_the_exit_code_tells_whether_a_kernel_is_slower(
    slower: float, code: int, repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = compare(JOBS, Machine(lambda job, n: slower if is_victim(job) else 1.0), 0.1)
    monkeypatch.setattr(regress, "_run", lambda *given: report)
    assert regress.main(["--base", "HEAD"], repository) == code
    assert ("SLOWER: the working tree" in capsys.readouterr().out) == bool(code)


# ---------------------------------------------------------------- the table of what is timed


def test_every_kernel_is_timed() -> None:
    for quick in (False, True):
        jobs = regress.table(ISAS, [1, 2], ["c"], quick)
        assert len(set(jobs)) == len(jobs)
        kernels = {(case.cell, case.mode) for case in QUICK}
        assert {(job.case.cell, job.case.mode) for job in jobs if job.setting == Setting("c", "avx512", 1)} == kernels
        for isa in ISAS[1:]:
            sample = {(job.case.cell, job.case.mode) for job in jobs if job.setting == Setting("c", isa, 1)}
            assert sample >= {(cell, mode) for cell, mode in kernels if mode != "step"}
        assert any(job.setting.threads == 2 for job in jobs)


def test_only_what_is_there_is_timed() -> None:
    assert {job.setting for job in regress.table(["neon"], [1], ["c"], False)} == {Setting("c", "neon", 1)}
    assert {job.setting for job in regress.table(ISAS, [1, 2], ["numba"], False)} == {Setting("numba", "", 1)}


# ---------------------------------------------------------------- telling


def test_the_slowest_is_told_first_and_by_name() -> None:
    slow = {True: 1.2, False: 1.0}
    machine = Machine(lambda job, n: slow[is_victim(job)] * (1.5 if job.case.hidden == 512 and is_victim(job) else 1))
    report = compare(JOBS, machine, 0.1)
    rows, told = regress.notable(report), regress.sentences(report, "main", "the working tree")
    assert rows[0][:4] in (
        ("lstm training", "H=512 B=1 T=100", "avx512", "1"),
        ("lstm training", "H=512 B=32 T=20", "avx512", "1"),
    )
    assert len(rows) == len(report.slower) == 6 and rows[0][-1] == "slower, 4 of 4 times"
    assert told[0] == f"{len(JOBS)} cases: {len(JOBS) - 6} same, 6 slower."
    assert "with 1 thread, " in told[1] and "with 2 threads" in told[1]
    assert told[-1] == "SLOWER: the working tree is more than 10 % slower than main in lstm training (6 cases)."
    text = regress.as_text(rows, told).splitlines()
    assert text[0].split() == " ".join(regress.COLUMNS).split() and len(text) == 1 + len(rows) + 1 + len(told)
    page = regress.as_markdown(rows, told).splitlines()
    assert {line.count("|") for line in page[: 2 + len(rows)]} == {len(regress.COLUMNS) + 1}
    found = json.loads(regress.as_json(report, "main", "HEAD"))
    assert len(found["cases"]) == len(JOBS) and found["threshold"] == 0.1
    assert sum(case["verdict"] == "slower" for case in found["cases"]) == 6


def test_nothing_to_tell() -> None:
    report = compare(JOBS, Machine(lambda job, n: 1.0), 0.1)
    told = regress.sentences(report, "main", "HEAD")
    assert regress.notable(report) == []
    assert regress.as_text([], told).splitlines() == told and "|" not in regress.as_markdown([], told)
    assert told[-1] == "No kernel of HEAD is more than 10 % slower than main."


def test_a_high_floor_is_told() -> None:
    report = compare(JOBS, Machine(lambda job, n: 1.0, placement=0.3), 0.1)
    assert "goes unseen" in regress.sentences(report, "main", "HEAD")[2]


# ---------------------------------------------------------------- repositories


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository of one commit, changed since."""
    root = tmp_path / "repository"
    (root / "csrc").mkdir(parents=True)
    (root / "csrc" / "lstm.h").write_text("base\n")
    (root / "gone.txt").write_text("base\n")
    (root / "setup.py").write_text("raise SystemExit(\"lstm.h:3: error: expected ';'\")\n")
    (root / ".gitignore").write_text("*.so\n")
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    for command in (["init", "--quiet"], ["add", "."], [*identity, "commit", "--quiet", "--message", "base"]):
        subprocess.run(["git", *command], cwd=root, check=True)
    (root / "csrc" / "lstm.h").write_text("changed\n")
    (root / "csrc" / "new.h").write_text("new\n")
    (root / "built.so").write_text("ignored\n")
    (root / "gone.txt").unlink()
    return root


def contents(folder: Path) -> dict[str, str]:
    """The files by their paths, but for setup.py and .gitignore."""
    files = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert files.pop("setup.py") and files.pop(".gitignore")
    return files


@needs_git
def test_a_commit_is_extracted(repository: Path, tmp_path: Path) -> None:
    regress.extract(repository, regress.commit_of(repository, "HEAD"), tmp_path / "base")
    assert contents(tmp_path / "base") == {"csrc/lstm.h": "base\n", "gone.txt": "base\n"}


@needs_git
def test_the_working_tree_is_extracted_as_it_is(repository: Path, tmp_path: Path) -> None:
    regress.extract(repository, None, tmp_path / "head")
    assert contents(tmp_path / "head") == {"csrc/lstm.h": "changed\n", "csrc/new.h": "new\n"}


@needs_git
@pytest.mark.parametrize("ref", ["nowhere", "HEAD~1", "HEAD:setup.py", "--help"])
def test_an_unknown_ref(repository: Path, ref: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert regress.main([f"--base={ref}"], repository) == 2
    assert regress.main(["--base=HEAD", f"--head={ref}"], repository) == 2
    printed = capsys.readouterr()
    assert printed.err.count(f"no commit is called {ref!r} here") == 2 and "git fetch" in printed.err
    assert not printed.out


@needs_git
def test_no_repository(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert regress.main(["--base", "HEAD"], tmp_path) == 2
    assert "not a git repository" in capsys.readouterr().err


@needs_git
def test_a_failed_build_is_told_in_the_compilers_words(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert regress.main(["--base", "HEAD"], repository) == 2
    printed = capsys.readouterr()
    assert "base cannot be built" in printed.err and "lstm.h:3: error: expected ';'" in printed.err
    assert not printed.out


def test_a_build_that_does_not_answer_itself(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"cannot use the build of|not from the build of"):
        regress.abilities(tmp_path)


@pytest.mark.parametrize(
    "arguments",
    ["", "--base", "--base HEAD --threshold 0", "--base HEAD --seconds -1", "--base HEAD --seconds nan"],
)
def test_wrong_arguments(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        regress.main(arguments.split())
    assert stopped.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_what_only_one_of_them_has_is_not_compared() -> None:
    assert regress._common("--isa", None, ["avx2", "generic"], ISAS) == ["avx2", "generic"]
    assert regress._common("--isa", ["generic"], ISAS, ISAS) == ["generic"]
    with pytest.raises(Failure, match="--isa: sse9 cannot be compared here, but avx2, generic can"):
        regress._common("--isa", ["sse9", "avx2"], ["avx2", "generic"], ISAS)
