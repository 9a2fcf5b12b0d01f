"""The numbers of the report: who is fastest, ratios, scores, shares of the machine's limit, scaling, noise.

Functions take the whole file, `Results`, or a `Run` of it, or several; they round nothing and write nothing. What is
not there is None, and left out of a mean. Next: report_words.py.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from typing import Any, NamedTuple

Results = dict[str, Any]  # the file
Run = dict[str, Any]  # one of its "runs": a case on a number of threads

OURS = ("c", "numba", "numpy")  # all other engines are rivals; "c" is the one compared with them
KINDS = ("grid", "step", "stacked", "ragged", "words")
MODES = ("inference", "training", "step", "words")
MEDIAN = 2  # its place in a block's quantiles: least, quartiles, 99th percentile, greatest


# ---------------------------------------------------------------- one case


def times(run: Run) -> dict[str, float]:
    """Seconds of each engine that did the case, and did it right."""
    return {engine: record["time"] for engine, record in run["engines"].items() if "time" in record}


def best_rival(run: Run) -> str | None:
    """The engine that is fastest of those that are not fastrnn's, or None if none did the case."""
    found = {engine: time for engine, time in times(run).items() if engine not in OURS}
    return min(found, key=found.__getitem__) if found else None


def rival_time(run: Run) -> float | None:
    """The best rival's."""
    rival = best_rival(run)
    return times(run)[rival] if rival else None


def ratio(run: Run) -> float | None:
    """The best rival's time over fastrnn C's: above 1 where fastrnn is faster. None if either is not there."""
    own, theirs = times(run).get("c"), rival_time(run)
    return theirs / own if own and theirs else None


def compared(run: Run) -> bool:
    """Whether there is a rival's time to hold fastrnn C to."""
    return "c" in run["engines"] and best_rival(run) is not None


def lost(run: Run) -> bool:
    """Whether a rival is faster than fastrnn C, or did what fastrnn C did not do, or did wrong."""
    return compared(run) and (ratio(run) or 0) < 1


def floor_share(run: Run) -> float | None:
    """The least time that the machine allows over fastrnn C's: 1 at the machine's limit."""
    time = times(run).get("c")
    return run["floor"] / time if time and run["floor"] else None


def words_per_second(run: Run, time: float) -> float:
    """Of a language model's training."""
    return run["case"]["steps"] * run["case"]["batch"] / time


def kind(run: Run) -> str:
    """Which of KINDS a case is: the grid has the single layers, over H and B."""
    case = run["case"]
    if case["mode"] in ("step", "words"):
        return str(case["mode"])
    if case["ragged"]:
        return "ragged"
    return "grid" if case["layers"] * case["directions"] == 1 else "stacked"


# ---------------------------------------------------------------- which cases


def most_threads(results: Results) -> int:
    """The highest number of threads there are runs for; 0 if there are no runs."""
    return max((run["threads"] for run in results["runs"]), default=0)


def select(results: Results, *kinds: str, threads: int | None = None) -> list[Run]:
    """The runs of some kinds, or of all, by kind, mode and cell; by default those on the most threads."""
    threads = threads or most_threads(results)
    found = [run for run in results["runs"] if run["threads"] == threads and kind(run) in (kinds or KINDS)]
    cells = list(dict.fromkeys(run["case"]["cell"] for run in found))

    def place(run: Run) -> tuple[int, ...]:
        return KINDS.index(kind(run)), MODES.index(run["case"]["mode"]), cells.index(run["case"]["cell"])

    return sorted(found, key=place)


def grouped(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Runs by what they are called together: "LSTM inference", "2x2 training", "ragged training", "words"."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        case, what = run["case"], kind(run)
        first = {"grid": case["cell"].upper(), "step": case["cell"].upper(), "words": "", "ragged": "ragged"}
        name = f"{first.get(what, '{layers}x{directions}'.format(**case))} {case['mode']}".strip()
        found.setdefault(name, []).append(run)
    return found


def grid(runs: Iterable[Run]) -> dict[tuple[int, int], Run]:
    """Runs by (H, B)."""
    return {(run["case"]["hidden"], run["case"]["batch"]): run for run in runs}


def losses(runs: Iterable[Run]) -> list[Run]:
    """Those lost, the worst first."""
    return sorted(filter(lost, runs), key=lambda run: ratio(run) or 0)


# ---------------------------------------------------------------- many cases


def geometric_mean(values: Iterable[float | None]) -> float | None:
    """Of the values that are there; None if there are none."""
    logs = [math.log(value) for value in values if value]
    return math.exp(statistics.fmean(logs)) if logs else None


def median(values: Iterable[float | None]) -> float | None:
    """Of the values that are there; None if there are none."""
    found = [value for value in values if value is not None]
    return statistics.median(found) if found else None


class Score(NamedTuple):
    """How fastrnn C did over some cases: the geometric mean of the ratios, how many of how many it won, the worst."""

    mean: float | None
    won: int
    total: int
    worst: Run | None


def score(runs: Iterable[Run]) -> Score:
    """Of the cases that some rival did."""
    runs = [run for run in runs if compared(run)]
    won = sum(not lost(run) for run in runs)
    worst = min(runs, key=lambda run: ratio(run) or 0, default=None)
    return Score(geometric_mean(map(ratio, runs)), won, len(runs), worst)


def scaling(results: Results) -> dict[str, float]:
    """Of the cases of the grid, by name: fastrnn C's time on one thread over that on the most."""
    if most_threads(results) <= 1:
        return {}
    alone = {run["name"]: times(run).get("c") for run in select(results, "grid", threads=1)}
    together = {run["name"]: times(run).get("c") for run in select(results, "grid")}
    return {name: one / all_ for name, all_ in together.items() if all_ and (one := alone.get(name))}


def floor_medians(results: Results) -> dict[str, tuple[float | None, int]]:
    """The medians of the floor's shares, and over how many cases: where arithmetic is the limit, and at B=1."""
    runs = select(results, "grid")
    heavy = [run for run in runs if run["case"]["hidden"] >= 256 and run["case"]["batch"] >= 32]
    single = [run for run in runs if run["case"]["batch"] == 1]
    parts = {"H>=256, B>=32": heavy, "B=1": single}
    shares = {name: [share for run in part if (share := floor_share(run))] for name, part in parts.items()}
    return {name: (median(part), len(part)) for name, part in shares.items()}


def noise(results: Results) -> list[float]:
    """Of every result: the slowest block's median over the fastest's. Far above 1, the machine was busy."""
    blocks = [r["blocks"] for run in results["runs"] for r in run["engines"].values() if len(r.get("blocks", ())) > 1]
    medians = [[quantiles[MEDIAN] for quantiles in found] for found in blocks]
    return [max(found) / min(found) for found in medians]


def troubles(results: Results) -> list[tuple[Run, str, str]]:
    """(run, engine, "wrong: why" or "failed: why") of every result that is wrong or failed, on any threads."""
    return [
        (run, engine, f"{what}: {record[what]}")
        for run in results["runs"]
        for engine, record in run["engines"].items()
        for what in ("wrong", "failed")
        if what in record
    ]
