"""Did a change make a kernel slower? `python bench/regress.py --base main`: exit code 1 if so, 2 if it cannot tell.

Base and head are each built into a folder of its own and timed by the same code, that of this checkout's
fastrnn/bench/, in three processes asked in turn: base, base once more, head. What base differs from itself is noise; a
case that is slower beyond it is measured again in fresh processes before it counts. fastrnn is compared with itself
alone here: other engines are suite.py's. Next: fastrnn/bench/race.py.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import cycle, groupby, permutations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from arguments import names, positive

import fastrnn.bench
from fastrnn.bench.cases import QUICK, SHORT, Case
from fastrnn.bench.race import MEDIAN, Process

ROOT = Path(__file__).resolve().parents[1]
THRESHOLD = 10.0  # per cent
RETRIES = 3
BACKENDS = ("c", "numba")
FLOOR = 95  # the percentile, over the cases with as many threads, of what base differs from itself
SECONDS, QUICK_SECONDS = 0.5, 0.25  # a case and process
BLOCK = 0.01  # seconds of a question: short beside what disturbs a machine
LEAST_ROUNDS = 7
LARGE = 512 * 32  # H*B from which T is SHORT, for the sake of the rounds


class Failure(Exception):
    """It cannot be told, and why."""


# ---------------------------------------------------------------- what is timed


class Setting(NamedTuple):
    """What a process is started with: a backend, for C an instruction set, and a number of threads."""

    engine: str
    isa: str
    threads: int


class Job(NamedTuple):
    """A case in a setting."""

    setting: Setting
    case: Case


def table(isas: Sequence[str], threads: Sequence[int], backends: Sequence[str], quick: bool) -> list[Job]:
    """What is timed, setting by setting: the first instruction set in full, of the others and of numba a sample."""
    every = [replace(case, steps=SHORT) if case.hidden * case.batch >= LARGE else case for case in QUICK]
    sample = [case for case in every if case.hidden == 128 and (case.batch > 1 or not quick)]
    alone = shared = every
    if quick:
        alone = [case for case in every if (case.hidden, case.batch) in ((16, 1), (128, 32), (512, 1))]
        shared = [case for case in every if (case.hidden, case.batch) in ((128, 32), (512, 32))]
    chosen: list[tuple[Setting, Sequence[Case]]] = []
    if "c" in backends:
        chosen += [(Setting("c", isas[0], n), alone if n == 1 else shared) for n in threads]
        chosen += [(Setting("c", isa, 1), sample) for isa in isas[1:]]
    if "numba" in backends:
        chosen.append((Setting("numba", "", 1), sample))
    return [Job(setting, case) for setting, cases in chosen for case in cases]


# ---------------------------------------------------------------- judging


class Samples(NamedTuple):
    """Seconds of a run, a figure a round and process: each [R]."""

    base: Sequence[float]
    again: Sequence[float]
    head: Sequence[float]


@dataclass(frozen=True)
class Finding:
    """A case's outcome, of the last time that it was measured.

    base, head  seconds of a run
    ratio       head's time over base's: the median over rounds, in each of which base is the mean of its processes
    noise       what the same median over base's two processes differs from 1
    measured    how often; slower: in how many of them, the last included, head was slower beyond the noise
    """

    job: Job
    base: float
    head: float
    ratio: float
    noise: float
    measured: int = 1
    slower: int = 0
    verdict: str = "same"

    @classmethod
    def of(cls, job: Job, samples: Samples) -> Finding:
        """The figures, without a verdict."""
        first, second, head = (np.asarray(times) for times in samples)
        base = np.sqrt(first * second)
        itself = float(np.median(second / first))
        return cls(
            job,
            base=float(np.median(base)),
            head=float(np.median(head)),
            ratio=float(np.median(head / base)),
            noise=max(itself, 1 / itself) - 1,
        )


@dataclass(frozen=True)
class Report:
    """All cases' findings; the threshold and, by numbers of threads, the noise floors, as shares of a time."""

    findings: tuple[Finding, ...]
    threshold: float
    floors: dict[int, float]

    @property
    def slower(self) -> list[Finding]:
        """What it fails for."""
        return [finding for finding in self.findings if finding.verdict == "slower"]


Measure = Callable[[Sequence[Job]], dict[Job, Samples]]


def compare(jobs: Sequence[Job], measure: Measure, threshold: float, retries: int = RETRIES) -> Report:
    """Measure all, then again what seems slower, as often as `retries` and as long as it does.

    Each call of `measure` is to be one in fresh processes: where memory lies differs from process to process, and
    costs some per cent. threshold is a share, 0.1 for 10 %.
    """
    findings = {job: Finding.of(job, samples) for job, samples in measure(jobs).items()}
    noises: dict[int, list[float]] = {}
    for finding in findings.values():
        noises.setdefault(finding.job.setting.threads, []).append(finding.noise)
    floors = {threads: float(np.percentile(noise, FLOOR)) for threads, noise in noises.items()}

    def limit(finding: Finding) -> float:
        return 1 + max(threshold, floors[finding.job.setting.threads], finding.noise)

    suspects = [job for job, finding in findings.items() if finding.ratio > limit(finding)]
    for job in suspects:
        findings[job] = replace(findings[job], slower=1)
    for _ in range(retries):
        if not suspects:
            break
        for job, samples in measure(suspects).items():
            before, after = findings[job], Finding.of(job, samples)
            slower = before.slower + (after.ratio > limit(after))
            findings[job] = replace(after, measured=before.measured + 1, slower=slower)
        suspects = [job for job in suspects if findings[job].slower == findings[job].measured]

    def verdict(finding: Finding) -> str:
        if finding.slower:
            return "slower" if finding.slower == finding.measured else "not confirmed"
        if finding.ratio > 1 + threshold:
            return "in the noise"
        return "faster" if finding.ratio < 1 / limit(finding) else "same"

    judged = tuple(replace(finding, verdict=verdict(finding)) for finding in findings.values())
    return Report(judged, threshold, floors)


# ---------------------------------------------------------------- building


def git(root: Path, *arguments: str) -> str:
    """What a git command prints; raises Failure."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True)
    except FileNotFoundError:
        raise Failure("git is not installed") from None
    if done.returncode:
        raise Failure(os.fsdecode(done.stderr).strip() or f"git {arguments[0]} failed")
    return os.fsdecode(done.stdout)


def commit_of(root: Path, ref: str) -> str:
    """The commit that a ref names; raises Failure."""
    git(root, "rev-parse", "--git-dir")
    try:
        return git(root, "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}").strip()
    except Failure:
        raise Failure(
            f"no commit is called {ref!r} here: `git branch --all` and `git log` show what is, `git fetch` brings more"
        ) from None


def extract(root: Path, commit: str | None, folder: Path) -> None:
    """Put the sources of a commit into a new folder; with None the working tree's: tracked, or new and not ignored."""
    folder.mkdir(parents=True)
    if commit:
        archive = folder.with_suffix(".zip")
        git(root, "archive", "--format=zip", f"--output={archive}", commit)
        shutil.unpack_archive(archive, folder)
        return
    for name in git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0"):
        if (root / name).is_file():  # which a deleted file is not
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, folder / name)


def build(sources: Path, library: Path) -> None:
    """Build a package with its C library into a folder to import it from; raises Failure with the compiler's words."""
    command = [sys.executable, "setup.py", "--quiet", "build", "--build-base", f"{library}-build"]
    done = subprocess.run(
        [*command, "--build-lib", str(library)],
        cwd=sources,
        env=os.environ | {"FASTRNN_REQUIRE_C": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if done.returncode:
        raise Failure(f"{library.name} cannot be built:\n\n{done.stdout}")


def prepare(root: Path, commit: str | None, folder: Path) -> Path:
    """Build a commit, or with None the working tree, into a folder to import fastrnn from; returns the folder.

    The measuring code in it is this checkout's, in place of its own, which may be older or not there at all.
    """
    sources = folder.with_name(f"{folder.name}-sources")
    extract(root, commit, sources)
    build(sources, folder)
    measuring = folder / "fastrnn" / "bench"
    shutil.rmtree(measuring, ignore_errors=True)
    shutil.copytree(fastrnn.bench.__path__[0], measuring, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


QUESTION = """
import json, fastrnn, fastrnn.bench.ours, fastrnn.bench.worker
isas = fastrnn.show_config(as_dict=True)["backends"]["c"]["isas"].split(", ")
print(json.dumps([fastrnn.__file__, isas, fastrnn.backends()]))
"""


def abilities(library: Path) -> tuple[list[str], list[str]]:
    """The instruction sets and the backends that a build can use here; raises Failure if it is not it that answers."""
    environment = os.environ | {"PYTHONPATH": str(library), "FASTRNN_ISA": ""}
    command = [sys.executable, "-c", QUESTION]
    done = subprocess.run(command, cwd=library, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise Failure(f"this checkout's fastrnn/bench cannot use the build of {library.name}:\n\n{done.stderr}")
    file, isas, backends = json.loads(done.stdout.splitlines()[-1])
    if not Path(file).is_relative_to(library):
        raise Failure(f"fastrnn came from {file}, not from the build of {library.name}")
    return isas, [name for name in backends if name in BACKENDS]


# ---------------------------------------------------------------- measuring


PROCESSES = ("base", "base again", "head")


def measure(jobs: Sequence[Job], base: Path, head: Path, seconds: float) -> dict[Job, Samples]:
    """Time them, `seconds` a job and process, in fresh processes of the builds in two folders."""
    found = {}
    for setting, group in groupby(jobs, key=lambda job: job.setting):
        chosen = list(group)
        where = f"{setting.isa or setting.engine}, {_count(setting.threads, 'thread')}"
        print(f"{where}: {_count(len(chosen), 'case')}", file=sys.stderr, flush=True)
        with ExitStack() as closing:
            processes = []
            for library in (base, base, head):
                processes.append(Process(setting.engine, setting.threads, library, setting.isa))
                closing.callback(processes[-1].close)
            for job in chosen:
                named = dict(zip(PROCESSES, processes, strict=True))
                found[job] = Samples(*rounds(named, job.case, seconds, base.with_name("outputs.npz")))
    return found


def rounds(
    processes: Mapping[str, Process],
    case: Case,
    seconds: float,
    outputs: Path,
    ready: Callable[[], object] = lambda: None,
) -> list[list[float]]:
    """Ask them in turn, each round in another order: of each the seconds of a run, a figure a round.

    What they compute goes to the file `outputs`; `ready` is called before each round. Raises Failure.
    """

    def answer(name: str, **request: Any) -> dict[str, Any]:
        found = processes[name].ask(**request)
        if reason := found.get("failed") or found.get("skipped"):
            raise Failure(f"{name} cannot do {case.name}: {reason}")
        return found

    for name in processes:
        answer(name, prepare=asdict(case), into=str(outputs))
    times: dict[str, list[float]] = {name: [] for name in processes}
    orders = cycle(permutations(processes))
    left = seconds * len(times)
    asked = 0
    while asked < LEAST_ROUNDS or left > 0:
        ready()
        begin = time.monotonic()
        for name in next(orders):
            times[name].append(answer(name, measure=BLOCK)["times"][MEDIAN])
        left -= time.monotonic() - begin
        asked += 1
    return list(times.values())


# ---------------------------------------------------------------- telling

COLUMNS = ("kernel", "shape", "isa", "threads", "base us", "head us", "ratio", "noise", "verdict")
NUMBERS = ("threads", "base us", "head us", "ratio", "noise")
Rows = list[tuple[str, ...]]


def notable(report: Report) -> Rows:
    """The cases that are not the same, the slowest first."""
    findings = sorted(report.findings, key=lambda finding: -finding.ratio)
    return [_row(finding) for finding in findings if finding.verdict != "same"]


def _row(finding: Finding) -> tuple[str, ...]:
    setting, case = finding.job
    verdict = finding.verdict
    if finding.measured > 1:
        verdict += f", {finding.slower} of {finding.measured} times"
    return (
        f"{case.cell} {case.mode}",
        f"H={case.hidden} B={case.batch} T={case.steps}",
        setting.isa or setting.engine,
        str(setting.threads),
        f"{1e6 * finding.base:.1f}",
        f"{1e6 * finding.head:.1f}",
        f"{finding.ratio:.3f}",
        f"{100 * finding.noise:.1f} %",
        verdict,
    )


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"


def sentences(report: Report, base: str, head: str) -> list[str]:
    """What the table comes to: the counts, the noise floor, and at last the verdict."""
    verdicts = Counter(finding.verdict for finding in report.findings).most_common()
    threshold = f"{100 * report.threshold:g} %"
    floors = {f"{100 * floor:.1f} % with {_count(n, 'thread')}": floor for n, floor in report.floors.items()}
    told = [
        f"{_count(len(report.findings), 'case')}: {', '.join(f'{n} {verdict}' for verdict, n in verdicts)}.",
        f"Noise floor: base differs from itself by {', '.join(floors)} (the {FLOOR}th percentile of the cases).",
    ]
    if high := [text for text, floor in floors.items() if floor > report.threshold]:
        told.append(f"That is more than {threshold}: what is slower by less than {', '.join(high)} goes unseen.")
    if kernels := Counter(_row(finding)[0] for finding in report.slower):
        listed = ", ".join(f"{name} ({_count(n, 'case')})" for name, n in kernels.most_common())
        told.append(f"SLOWER: {head} is more than {threshold} slower than {base} in {listed}.")
    else:
        told.append(f"No kernel of {head} is more than {threshold} slower than {base}.")
    return told


def as_text(rows: Rows, told: Sequence[str]) -> str:
    """For a terminal."""
    lines = [COLUMNS, *rows] if rows else []
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    align = [str.rjust if name in NUMBERS else str.ljust for name in COLUMNS]
    table = ["  ".join(a(cell, w) for a, cell, w in zip(align, line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*table, "", *told] if table else told)


def as_markdown(rows: Rows, told: Sequence[str]) -> str:
    """The same, for a page."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *rows] if rows else []
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", "\n\n".join(told), ""])


def as_json(report: Report, base: str, head: str) -> str:
    """All cases, for programs; times in seconds."""
    cases = [
        {"name": finding.job.case.name, **finding.job.setting._asdict(), **asdict(finding.job.case)}
        | {name: value for name, value in vars(finding).items() if name != "job"}
        for finding in report.findings
    ]
    shares = {"threshold": report.threshold, "floors": report.floors}
    return json.dumps({"base": base, "head": head, **shares, "cases": cases}, indent=1) + "\n"


# ---------------------------------------------------------------- the command


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    """Compare two states of the repository in `root`; see --help. The exit code."""
    args = _arguments(argv)
    try:
        commits = [commit_of(root, args.base), commit_of(root, args.head) if args.head else None]
        names = f"{args.base} ({commits[0]:.9})", f"{args.head} ({commits[1]:.9})" if args.head else "the working tree"
        with TemporaryDirectory(prefix="fastrnn-regress-") as scratch:
            report = _run(args, root, commits, Path(scratch).resolve())
        rows, told = notable(report), sentences(report, *names)
        print(as_text(rows, told))
        if args.markdown:
            args.markdown.write_text(as_markdown(rows, told), encoding="utf-8")
        if args.json:
            args.json.write_text(as_json(report, *names), encoding="utf-8")
    except Failure as failure:
        print(f"regress.py: {failure}", file=sys.stderr)
        return 2
    except Exception:  # for which Python would exit with 1, as if a kernel were slower
        traceback.print_exc()
        return 2
    return 1 if report.slower else 0


def _run(args: argparse.Namespace, root: Path, commits: Sequence[str | None], scratch: Path) -> Report:
    print("building base and head", file=sys.stderr, flush=True)
    with ThreadPoolExecutor() as pool:
        base, head = pool.map(partial(prepare, root), commits, (scratch / "base", scratch / "head"))
    isas, backends = zip(abilities(base), abilities(head), strict=True)
    jobs = table(
        _common("--isa", args.isa, *isas),
        sorted({1, fastrnn.show_config(as_dict=True)["cpus"]}),  # type: ignore[index]
        _common("--backends", args.backends, *backends),
        args.quick,
    )
    return compare(jobs, partial(measure, base=base, head=head, seconds=args.seconds), args.threshold / 100)


def _common(option: str, wanted: list[str] | None, base: list[str], head: list[str]) -> list[str]:
    """What both have, in head's order or as it is wanted; raises Failure where what is wanted is not there."""
    common = [name for name in head if name in base]
    if missing := set(wanted or ()) - set(common):
        raise Failure(f"{option}: {', '.join(sorted(missing))} cannot be compared here, but {', '.join(common)} can")
    return wanted or common


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, metavar="REF", help="the commit, branch or tag to compare with")
    parser.add_argument("--head", metavar="REF", help="what is compared; default: the working tree as it is")
    parser.add_argument("--threshold", type=positive, default=THRESHOLD, metavar="PERCENT", help="default: %(default)g")
    parser.add_argument("--quick", action="store_true", help="fewer cases: a minute and a half instead of five")
    parser.add_argument("--isa", type=names, metavar="ISA,...", help="the first in full, of the others a sample")
    parser.add_argument("--backends", type=names, metavar="NAME,...", help="default: c,numba, with --quick c")
    parser.add_argument("--seconds", type=positive, help=f"a case and process; default: {SECONDS}, or {QUICK_SECONDS}")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write every case's figures")
    parser.add_argument("--markdown", type=Path, metavar="PATH", help="write what is printed as Markdown")
    args = parser.parse_args(argv)
    args.seconds = args.seconds or (QUICK_SECONDS if args.quick else SECONDS)
    if args.quick and not args.backends:
        args.backends = ["c"]
    return args


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # an end that leaves no stopped process behind
    sys.exit(main())
