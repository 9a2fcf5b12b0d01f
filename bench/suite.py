"""The whole benchmark: every engine on every case, beside the machine's own ceilings, then the report.

    python bench/suite.py [--quick] [--resume] [--rounds 3] [--engines c,torch] [--only lstm-step] [--threads 2,1]

Results are written after every case, bench/results/<machine>.json, so that an interrupted run loses nothing and
--resume goes on with it. Each round goes through all cases once more, minutes after the one before: what disturbed all
blocks of a case in one is gone in another. What is timed and how is in fastrnn/bench/; ceilings in probe.py; the report
in report.py.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import report
from arguments import count, counts, names, positive, unknown
from probe import Ceilings, ProbeError, measure
from steady import WAITS_FOR, Steady

import fastrnn
from fastrnn.bench.cases import GRID, QUICK, TABLE, Case
from fastrnn.bench.engines import ENGINES, OURS
from fastrnn.bench.race import BLOCKS, Race

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
SECONDS, QUICK_SECONDS = 0.1, 0.06  # a case and engine, in all blocks of a round
QUICK_ENGINES = ("c", "torch", "onnxruntime", "openvino", "jax")
LARGEST = {"numba": 512, "numpy": 128}  # the largest H that is worth the wait
PATIENCE, QUICK_PATIENCE = 600.0, 20.0  # to lose on it in a round
# The only H of engines that differ little from another, or that compile for seconds.
SAMPLES = {"torch-eager": (128,), "keras": (16, 128, 512)}
FOOTPRINT = Case("lstm", "inference", 128, 1)
# What a package is installed as, where that is not the name it is imported by.
DISTRIBUTIONS = {"tensorflow": "tensorflow-cpu"}


def main(argv: list[str] | None = None) -> None:
    """Run it; see --help."""
    args = _arguments(argv)
    engines = {name: _identity(name) for name in args.engines}
    here = [name for name, identity in engines.items() if "missing" not in identity]
    for name in sorted(engines.keys() - here):
        print(f"without {engines[name]['title']}: {engines[name]['missing']}")
    if not here:
        raise SystemExit("none of these engines is here")
    if args.readme and not ("c" in here and set(here) - set(OURS)):
        raise SystemExit("--readme compares fastrnn's C backend with others: it and one of them must be here")
    path = args.results / f"{_file_name()}{'-quick' * args.quick}.json"
    results: dict[str, Any] = {
        "machine": _machine(),
        "ceilings": None,
        "engines": engines,
        "settings": {
            "date": time.strftime("%Y-%m-%d"),
            "quick": args.quick,
            "seconds": args.seconds,
            "blocks": BLOCKS,
            "build": _build(),
            "waits_for": WAITS_FOR,
        },
        "runs": [],
        "footprint": {},
    }
    if args.resume and path.exists():
        results = _resumed(path, results)
    args.results.mkdir(parents=True, exist_ok=True)
    _time(args, path, results, here)
    if not args.quick and not results["footprint"]:
        results["footprint"] = footprints(here)
        _save(path, results)
    print()
    report.main([str(path), *(["--readme", str(ROOT / "README.md")] if args.readme else [])])


def _resumed(path: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """The results in the file, to go on with. Ends the program where times would be mixed that cannot be compared."""

    def refuse(why: str) -> NoReturn:
        raise SystemExit(f"{path} is of {why}: run without --resume")

    def known(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """The engines; what version an engine tells of itself is not known before it has run."""
        return {name: {**identity, "version": None} for name, identity in results["engines"].items()}

    before: dict[str, Any] = json.loads(path.read_text())
    if before["machine"] != wanted["machine"]:
        refuse("another machine")
    then, now = known(before), known(wanted)
    if then.keys() != now.keys():
        refuse("other engines")
    if changed := [name for name in now if then[name] != now[name]]:
        refuse(f"other versions of {', '.join(changed)}")
    for name in ("build", "seconds", "waits_for"):
        if before["settings"].get(name) != wanted["settings"][name]:
            refuse(f"another {name}")
    return before


def _time(args: argparse.Namespace, path: Path, results: dict[str, Any], here: list[str]) -> None:
    """Every case in every round with every number of threads, but for what the results have; saved after each."""
    engines, settings = results["engines"], results["settings"]
    begin = time.monotonic() - 60 * settings.get("minutes", 0)
    ceilings = _ceilings(results, args.threads)
    runs = {(run["name"], run["threads"]): run for run in results["runs"]}
    earlier = settings.get("steady", (0, 0))
    with closing(Steady(QUICK_PATIENCE if args.quick else PATIENCE * args.rounds)) as steady:
        for turn, threads in product(range(1, args.rounds + 1), args.threads):
            first = threads == args.threads[0]
            with Race(here, threads) as race:
                for case in args.cases if first else [case for case in args.cases if case in GRID]:
                    blank = {"case": asdict(case), "name": case.name, "engines": {}}
                    run = runs.setdefault((case.name, threads), blank)
                    if run.get("rounds", 0) >= turn:
                        continue
                    out = {name: why for name in here if (why := left_out(name, case, first))}
                    entered = [name for name in here if name not in out]
                    found = race.run(case, args.seconds, entered, partial(steady.wait, threads))
                    found |= {name: {"skipped": why} for name, why in out.items()}
                    for name, record in found.items():
                        if "version" in record:
                            engines[name]["version"] = record.pop("version")
                        run["engines"][name] = merged(run["engines"].get(name), record)
                    run |= {"threads": threads, "rounds": turn, "floor": ceilings and floor(case, ceilings, threads)}
                    held, looks = steady.held()
                    settings["steady"] = (earlier[0] + held, earlier[1] + looks)
                    settings["minutes"] = round((time.monotonic() - begin) / 60, 2)
                    results["runs"] = [run for run in runs.values() if "rounds" in run]
                    _save(path, results)
                    print(_line(case, threads, run["engines"]), flush=True)


def merged(before: dict[str, Any] | None, now: dict[str, Any]) -> dict[str, Any]:
    """An engine's record of a case with that of another round: all blocks, of which the best counts.

    A wrong output in one round is one for good; a failure is none where another round went well.
    """
    for record in filter(None, (before, now)):
        if "wrong" in record:
            return record
    if before is None or "blocks" not in before:
        return now
    if "blocks" not in now:
        return before
    both = {"blocks": before["blocks"] + now["blocks"], "runs": before["runs"] + now["runs"]}
    return now | both | {"time": min(before["time"], now["time"]), "error": max(before["error"], now["error"])}


def left_out(engine: str, case: Case, first: bool) -> str | None:
    """Why an engine is not asked, so that the whole takes no longer than it must; first: of the numbers of threads."""
    if not first and engine not in QUICK_ENGINES:
        return "with all threads only"
    if case.hidden > LARGEST.get(engine, case.hidden):
        return f"too slow for H > {LARGEST[engine]}"
    if case in GRID and case.hidden not in SAMPLES.get(engine, (case.hidden,)):
        return f"H = {', '.join(map(str, SAMPLES[engine]))} only"
    return None


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few sizes, the main engines: under two minutes")
    parser.add_argument("--resume", action="store_true", help="go on with the results file there is")
    parser.add_argument("--readme", action="store_true", help="put the summary into README.md")
    parser.add_argument("--engines", type=names, help=f"of {','.join(ENGINES)}")
    parser.add_argument("--rounds", type=count, default=1, help="how often to go through all cases")
    parser.add_argument("--only", type=names, default=[], help="parts of cases' names")
    parser.add_argument("--threads", type=counts, help="numbers of threads, the most first")
    parser.add_argument("--seconds", type=positive, help="a case and engine, in all blocks of a round")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder to write to")
    args = parser.parse_args(argv)
    cpus = fastrnn.show_config(as_dict=True)["cpus"]  # type: ignore[index]
    every = (cpus,) if args.quick else (cpus, 1, min(2, cpus))
    args.threads = sorted(set(args.threads or every), reverse=True)  # what is done once is done with the most
    args.engines = args.engines or list(QUICK_ENGINES if args.quick else ENGINES)
    args.seconds = args.seconds or (QUICK_SECONDS if args.quick else SECONDS)
    table = QUICK if args.quick else TABLE
    args.cases = [case for case in table if not args.only or any(part in case.name for part in args.only)]
    if max(args.threads) > cpus:
        parser.error(f"--threads: {max(args.threads)} is more than the {cpus} processors that may be used here")
    if strange := set(args.engines) - ENGINES.keys():
        parser.error(f"unknown engines {', '.join(sorted(strange))}; there are {', '.join(ENGINES)}")
    if strange := unknown(args.only, [case.name for case in table]):
        parser.error(f"--only: no case is called {strange}; one is {table[0].name}")
    if args.readme and (args.quick or args.only):
        parser.error("--readme is for a run of all cases, without --quick and --only")
    return args


def _save(path: Path, results: dict[str, Any]) -> None:
    """All or nothing: an interrupt leaves the file before."""
    spare = path.with_suffix(".tmp")
    text = json.dumps(results, default=_plain, separators=(",", ":"))
    spare.write_text(text.replace('},{"case"', '},\n{"case"'))  # a line a case, for whoever compares two files
    spare.replace(path)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not for JSON")


def _line(case: Case, threads: int, found: dict[str, dict[str, Any]]) -> str:
    """A case's outcome while the suite runs: times in microseconds."""
    times = [
        f"{name} {1e6 * record['time']:.4g}" if "time" in record else f"{name} {next(iter(record)).upper()}"
        for name, record in found.items()
        if "skipped" not in record
    ]
    return f"{case.name} x{threads}: {'  '.join(times)}"


# ---------------------------------------------------------------- the machine


def _machine() -> dict[str, Any]:
    config: Any = fastrnn.show_config(as_dict=True)
    found = {name: config[name] for name in ("cpu", "cpus", "platform", "python", "numpy")}
    return found | _generation() | {"isa": config["backends"]["c"].get("isa", "none")}


def _generation(info: Path = Path("/proc/cpuinfo")) -> dict[str, int]:
    """An x86 processor's "family" and "model", where the system tells them: a virtual one's name may tell neither."""
    text = info.read_text() if info.exists() else ""
    told = re.findall(r"^(?:cpu )?(family|model)\s*: (\d+)$", text, re.MULTILINE)
    return {name: int(number) for name, number in told}


def _build() -> str:
    """What tells this fastrnn from another, whose times are not to be mixed with its own."""
    found = hashlib.sha256()
    for file in sorted((ROOT / "fastrnn").rglob("*")):
        if file.suffix in (".py", ".so", ".pyd"):
            found.update(file.read_bytes())
    return found.hexdigest()[:12]


def _file_name() -> str:
    """For example "amd-epyc-family-25-model-17-2-cpus-avx512"."""
    machine = _machine()
    words = [machine["cpu"], *(f"{name} {machine[name]}" for name in ("family", "model") if name in machine)]
    words += [f"{machine['cpus']} cpus", machine["isa"]]
    return re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")


def _ceilings(results: dict[str, Any], threads: Iterable[int]) -> Ceilings | None:
    """What the machine can do with these numbers of threads; measured now is what the results do not have."""
    there = Ceilings.from_json(results["ceilings"]) if results["ceilings"] else None
    missing = set(threads) - (there.fma.keys() if there else set())
    if not missing:
        return there
    try:
        found = measure(sorted(missing))
    except ProbeError as error:
        print(f"without floors: {error}")
        return None
    ceilings = there | found if there else found
    results["ceilings"] = ceilings.to_json()
    return ceilings


def floor(case: Case, ceilings: Ceilings, threads: int) -> float:
    """Seconds below which no engine can get that multiplies by these weights step by step.

    The larger of the multiply-adds at the measured peak, and of reading in each step a thread's share of the weights,
    as much of it as a cache holds from there. Layers and directions may be done one after the other, so that each has
    the caches for itself.
    """
    arithmetic = case.flops / (1e9 * ceilings.fma[threads])
    sweeps = int(case.lengths.max()) * case.sweeps_per_step
    return max(arithmetic, sweeps * ceilings.sweep(case.bytes_per_sweep / threads, threads))


# ---------------------------------------------------------------- what an engine weighs


def _identity(engine: str) -> dict[str, Any]:
    """Its title, and what is installed of it or why it is missing."""
    missing = ENGINES[engine].missing()
    told = {"missing": missing} if missing else {"installed": {name: _version(name) for name in _packages(engine)}}
    return {"title": ENGINES[engine].title, **told}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(DISTRIBUTIONS.get(package, package))
    except importlib.metadata.PackageNotFoundError:  # imported from a folder
        return "unknown"


def _packages(engine: str) -> tuple[str, ...]:
    """What must be installed for it."""
    return ENGINES[engine].needs or ("fastrnn", *(("numba",) if engine == "numba" else ()))


def footprints(engines: Iterable[str]) -> dict[str, dict[str, float]]:
    """Those of the engines that can tell."""
    found = {}
    for name in engines:
        try:
            found[name] = footprint(name)
        except Exception as error:  # whatever an engine fails with, the times of all are worth their report
            print(f"without the footprint of {ENGINES[name].title}: {error}")
    return found


IMPORT = "import time; t = time.perf_counter(); {}; print(time.perf_counter() - t)"
# Linux tells the peak since the program began; getrusage's would be at least that of the process it was forked from.
FIRST = """
import resource, time
t = time.perf_counter()
from fastrnn.bench.cases import Case
from fastrnn.bench.engines import prepare
prepare({engine!r}, Case(**{case!r})).run()
seconds = time.perf_counter() - t
try:
    peak = next(1024 * int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
except OSError:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(seconds, peak)
"""


def footprint(engine: str, repeats: int = 3) -> dict[str, float]:
    """What it costs to have the engine at all.

    {"import_seconds": of its packages; "first_result_seconds": import, build and run an LSTM of H=128 over 100 steps;
    "peak_bytes": of memory for that, NumPy and the harness included; "installed_bytes": with all it depends on}
    """
    line = IMPORT.format("import " + ", ".join(ENGINES[engine].needs or ("fastrnn",)))
    imports = [float(_python(line)) for _ in range(1 + repeats)][1:]  # the first may find nothing in the disk's cache
    first = [_python(FIRST.format(engine=engine, case=asdict(FOOTPRINT))).split() for _ in range(repeats)]
    return {
        "import_seconds": statistics.median(imports),
        "first_result_seconds": statistics.median(float(seconds) for seconds, _ in first),
        "peak_bytes": statistics.median(int(peak) for _, peak in first),
        "installed_bytes": installed_bytes(_packages(engine)),
    }


def _python(program: str) -> str:
    """What a fresh Python prints last. Raises RuntimeError with the last that it complains of."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, text=True, capture_output=True)
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or f"Python ended with code {done.returncode}").splitlines()[-1])
    return done.stdout.strip().splitlines()[-1]


def installed_bytes(packages: Iterable[str]) -> int:
    """The files of distributions and of all that they depend on."""
    waiting, seen, total = [DISTRIBUTIONS.get(name, name) for name in packages], set[str](), 0
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in seen:
            continue
        seen.add(name)
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:  # for another platform or Python
            continue
        if name == "fastrnn":  # installed for development: its files are the checkout's
            own = (path for path in (ROOT / "fastrnn").rglob("*") if path.is_file() and path.suffix != ".pyc")
            total += sum(path.stat().st_size for path in own)
        else:
            files = (distribution.locate_file(file) for file in distribution.files or ())
            total += sum(os.stat(file).st_size for file in map(str, files) if os.path.isfile(file))
        needed = (line for line in distribution.requires or () if "extra ==" not in line)
        waiting += [re.match(r"[\w.-]+", line)[0] for line in needed]  # type: ignore[index]
    return total


if __name__ == "__main__":
    main()
