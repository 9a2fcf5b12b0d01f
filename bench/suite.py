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
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import report
from probe import Ceilings, ProbeError, measure
from steady import WAITS_FOR, Steady

import fastrnn
from fastrnn.bench.cases import GRID, QUICK, TABLE, Case
from fastrnn.bench.engines import ENGINES
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
        before = json.loads(path.read_text())
        named = {name: {**identity, "version": None} for name, identity in before["engines"].items()}
        wanted = {name: {**identity, "version": None} for name, identity in engines.items()}
        if before["machine"] != results["machine"] or named != wanted:
            raise SystemExit(f"{path} is of another machine or other engines: run without --resume")
        for name in ("build", "seconds", "waits_for"):
            if before["settings"].get(name) != results["settings"][name]:
                raise SystemExit(f"{path} is of another {name}: run without --resume")
        results, engines = before, before["engines"]
    args.results.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic() - 60 * results["settings"].get("minutes", 0)
    ceilings = _ceilings(results, args.threads)
    cases = [case for case in (QUICK if args.quick else TABLE) if any(part in case.name for part in args.only)]
    runs = {(run["name"], run["threads"]): run for run in results["runs"]}
    earlier = results["settings"].get("steady", (0, 0))
    with closing(Steady(QUICK_PATIENCE if args.quick else PATIENCE * args.rounds)) as steady:
        for turn, threads in product(range(1, args.rounds + 1), args.threads):
            with Race(here, threads) as race:
                for case in cases if threads == args.threads[0] else [case for case in cases if case in GRID]:
                    blank = {"case": asdict(case), "name": case.name, "engines": {}}
                    run = runs.setdefault((case.name, threads), blank)
                    if run.get("rounds", 0) >= turn:
                        continue
                    out = {name: why for name in here if (why := left_out(name, case, threads == args.threads[0]))}
                    entered = [name for name in here if name not in out]
                    found = race.run(case, args.seconds, entered, partial(steady.wait, threads))
                    found |= {name: {"skipped": why} for name, why in out.items()}
                    for name, record in found.items():
                        if "version" in record:
                            engines[name]["version"] = record.pop("version")
                        run["engines"][name] = merged(run["engines"].get(name), record)
                    run |= {"threads": threads, "rounds": turn, "floor": ceilings and floor(case, ceilings, threads)}
                    minutes = round((time.monotonic() - begin) / 60, 2)
                    held, looks = steady.held()
                    results["settings"] |= {"steady": (earlier[0] + held, earlier[1] + looks), "minutes": minutes}
                    results |= {"runs": [run for run in runs.values() if "rounds" in run], "engines": engines}
                    _save(path, results)
                    print(_line(case, threads, run["engines"]), flush=True)
    if not args.quick and not results["footprint"]:
        results["footprint"] = {name: footprint(name) for name in here}
        _save(path, results)
    print()
    report.main([str(path), *(["--readme", str(ROOT / "README.md")] if args.readme else [])])


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
    listed = lambda text: text.split(",")  # noqa: E731
    parser.add_argument("--quick", action="store_true", help="a few sizes, the main engines: under two minutes")
    parser.add_argument("--resume", action="store_true", help="go on with the results file there is")
    parser.add_argument("--readme", action="store_true", help="put the summary into README.md")
    parser.add_argument("--engines", type=listed, help=f"of {','.join(ENGINES)}")
    parser.add_argument("--rounds", type=int, default=1, help="how often to go through all cases")
    parser.add_argument("--only", type=listed, default=[""], help="parts of cases' names")
    parser.add_argument("--threads", type=listed, help="numbers of threads, one after the other")
    parser.add_argument("--seconds", type=float, help="a case and engine, in all blocks of a round")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder to write to")
    args = parser.parse_args(argv)
    cpus = fastrnn.show_config(as_dict=True)["cpus"]  # type: ignore[index]
    every = (cpus,) if args.quick else sorted({cpus, 1, min(2, cpus)}, reverse=True)
    args.threads = [int(threads) for threads in args.threads or every]
    args.engines = args.engines or list(QUICK_ENGINES if args.quick else ENGINES)
    args.seconds = args.seconds or (QUICK_SECONDS if args.quick else SECONDS)
    if args.rounds < 1:
        parser.error(f"--rounds must be at least 1, not {args.rounds}")
    if unknown := set(args.engines) - ENGINES.keys():
        parser.error(f"unknown engines {', '.join(sorted(unknown))}; there are {', '.join(ENGINES)}")
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
    return found | {"isa": config["backends"]["c"].get("isa", "none")}


def _build() -> str:
    """What tells this fastrnn from another, whose times are not to be mixed with its own."""
    found = hashlib.sha256()
    for file in sorted((ROOT / "fastrnn").rglob("*")):
        if file.suffix in (".py", ".so", ".pyd"):
            found.update(file.read_bytes())
    return found.hexdigest()[:12]


def _file_name() -> str:
    """For example "amd-epyc-2-cpus-avx512": a virtual machine's processor may not tell its generation."""
    machine = _machine()
    return re.sub(r"[^a-z0-9]+", "-", f"{machine['cpu']} {machine['cpus']} cpus {machine['isa']}".lower()).strip("-")


def _ceilings(results: dict[str, Any], threads: Iterable[int]) -> Ceilings | None:
    """What the machine can do, measured now unless the results that are gone on with have it."""
    if results["ceilings"]:
        return Ceilings.from_json(results["ceilings"])
    try:
        ceilings = measure(sorted(threads))
    except ProbeError as error:
        print(f"without floors: {error}")
        return None
    results["ceilings"] = ceilings.to_json()
    return ceilings


def floor(case: Case, ceilings: Ceilings, threads: int) -> float:
    """Seconds below which no engine can get that multiplies by these weights step by step.

    The larger of the multiply-adds at the measured peak, and of reading each step's weights from the smallest cache
    that holds a thread's share of them.
    """
    arithmetic = case.flops / (1e9 * ceilings.fma[threads])
    share = case.bytes_per_step / (2 if case.mode == "training" else 1) / threads
    bandwidth = 1e9 * ceilings.bandwidth(int(share), threads)
    return max(arithmetic, int(case.lengths.max()) * case.bytes_per_step / bandwidth)


# ---------------------------------------------------------------- what an engine weighs


def _identity(engine: str) -> dict[str, str]:
    missing = ENGINES[engine].missing()
    return {"title": ENGINES[engine].title} | ({"missing": missing} if missing else {})


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
    packages = ENGINES[engine].needs or ("fastrnn",)
    line = IMPORT.format("import " + ", ".join(packages))
    imports = [float(_python(line)) for _ in range(repeats)]
    first = [_python(FIRST.format(engine=engine, case=asdict(FOOTPRINT))).split() for _ in range(repeats)]
    extra = ("numba",) if engine == "numba" else ()
    return {
        "import_seconds": statistics.median(imports),
        "first_result_seconds": statistics.median(float(seconds) for seconds, _ in first),
        "peak_bytes": statistics.median(int(peak) for _, peak in first),
        "installed_bytes": installed_bytes((*packages, *extra)),
    }


def _python(program: str) -> str:
    """What a fresh Python prints last."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, check=True, text=True, capture_output=True)
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
