"""What the benchmark found, made readable: `python bench/report.py bench/results/<cpu>.json [--readme]`.

It writes a Markdown report, a page of HTML and a picture beside the results, puts a section into the README, and
prints a summary. It reads the file that suite.py makes and knows nothing of how it was measured; it needs matplotlib
for the pictures alone. In order: statistics, tables, the forms they are written in, pictures, the README, main.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import math
import os
import re
import statistics
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["html", "markdown", "plot", "readme_section", "summary", "update_readme"]

Results = dict[str, Any]  # the file
Run = dict[str, Any]  # one of its "runs": a case on a number of threads

OURS = ("c", "numba", "numpy")  # all other engines are rivals; "c" is the one compared with them
KINDS = ("grid", "step", "stacked", "ragged", "words")
MODES = ("inference", "training", "step", "words")
MEDIAN = 2  # its place in a block's quantiles: least, quartiles, 99th percentile, greatest
NOISY = 1.25  # blocks further apart than this are worth a warning
NONE = "-"  # where there is nothing to show
WIDTH, LOSSES = 100, 8  # of the summary: columns, and cases listed as lost


# ---------------------------------------------------------------- statistics


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


def losses(runs: Iterable[Run]) -> list[Run]:
    """Those lost, the worst first."""
    return sorted(filter(lost, runs), key=lambda run: ratio(run) or 0)


def floor_share(run: Run) -> float | None:
    """The least time that the machine allows over fastrnn C's: 1 at the machine's limit."""
    time = times(run).get("c")
    return run["floor"] / time if time and run["floor"] else None


def words_per_second(run: Run, time: float) -> float:
    """Of a language model's training."""
    return run["case"]["steps"] * run["case"]["batch"] / time


def geometric_mean(values: Iterable[float | None]) -> float | None:
    """Of the values that are there; None if there are none."""
    logs = [math.log(value) for value in values if value]
    return math.exp(statistics.fmean(logs)) if logs else None


def median(values: Iterable[float | None]) -> float | None:
    """Of the values that are there; None if there are none."""
    found = [value for value in values if value is not None]
    return statistics.median(found) if found else None


def kind(run: Run) -> str:
    """Which of KINDS a case is: the grid has the single layers, over H and B."""
    case = run["case"]
    if case["mode"] in ("step", "words"):
        return str(case["mode"])
    if case["ragged"]:
        return "ragged"
    return "grid" if case["layers"] * case["directions"] == 1 else "stacked"


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


# ---------------------------------------------------------------- words and figures


def title(results: Results, engine: str) -> str:
    """An engine's name for readers."""
    return str(results["engines"].get(engine, {}).get("title", engine))


def timed(results: Results) -> list[str]:
    """The engines that have a time somewhere: fastrnn's first, the others in the order of the file."""
    found = {engine: None for run in results["runs"] for engine in times(run)}
    order = [*OURS, *results["engines"], *found]
    return [engine for engine in dict.fromkeys(order) if engine in found]


def rivals(results: Results) -> str:
    """The products that fastrnn is compared with, variants of one taken together: "A, B and C", or nothing."""
    names = [title(results, engine).split(",")[0] for engine in timed(results) if engine not in OURS]
    *most, last = dict.fromkeys(names) or [""]
    return f"{', '.join(most)} and {last}" if most else last


def claim(results: Results, times_: str) -> str:
    """ "the fastest of A, B and C takes so many times as long as fastrnn"."""
    names = rivals(results)
    return f"{'the fastest of ' * (' and ' in names)}{names} takes {times_} times as long as fastrnn"


def capital(text: str) -> str:
    """With a capital at the beginning, the rest as it is."""
    return text[:1].upper() + text[1:]


def rival_title(results: Results, run: Run) -> str:
    """The best rival's name for readers."""
    rival = best_rival(run)
    return title(results, rival) if rival else NONE


def digits(value: float | None) -> str:
    """Three significant digits, without an exponent."""
    if value is None:
        return NONE
    rounded = float(f"{value:.3g}")
    places = 2 - math.floor(math.log10(rounded)) if rounded > 0 else 0
    return f"{value:,.{max(0, places)}f}"


def factor(value: float | None) -> str:
    """A ratio, to two places where it is small."""
    return NONE if value is None else f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def percent(share: float | None) -> str:
    """A share of 1 as a percentage."""
    return NONE if share is None else f"{100 * share:.0f} %"


def duration(seconds: float | None) -> str:
    """A time in the unit that suits it."""
    if seconds is None:
        return NONE
    scale, unit = next((s, u) for s, u in ((1e6, "µs"), (1e3, "ms"), (1, "s")) if seconds * s < 999.5 or u == "s")
    return f"{digits(seconds * scale)} {unit}"


def threads_text(count: int) -> str:
    """ "1 thread" or "2 threads"."""
    return f"{count} thread{'s' * (count != 1)}"


def outcome(run: Run, engine: str = "c") -> str:
    """What an engine made of a case if not a time: "wrong", "failed" or nothing."""
    return next((what for what in ("wrong", "failed") if what in run["engines"].get(engine, {})), NONE)


def result(run: Run) -> str:
    """The ratio, or why there is none."""
    return factor(ratio(run)) if ratio(run) else outcome(run)


def steps_text(results: Results) -> str:
    """The numbers of steps in the grid: "T=100" or "T=100 (20 in the largest cases)"."""
    counts = sorted({run["case"]["steps"] for run in results["runs"] if kind(run) == "grid"})
    fewer = f" ({' or '.join(map(str, counts[:-1]))} in the largest cases)" if len(counts) > 1 else ""
    return f"T={counts[-1]}{fewer}" if counts else "no sequences"


def machine_line(results: Results) -> str:
    """The machine and the Python on it."""
    machine = results["machine"]
    cpus = f"{machine['cpus']} CPU{'s' * (machine['cpus'] != 1)}"
    return f"{machine['cpu']}, {cpus}, {machine['isa']}; Python {machine['python']}, NumPy {machine['numpy']}"


def ceilings_line(results: Results) -> str:
    """What the machine can do at most, as measured."""
    ceilings = results["ceilings"]
    if not ceilings:
        return "not measured"
    counts, rates = " / ".join(ceilings["fma"]), " / ".join(map(digits, ceilings["fma"].values()))
    most = max(ceilings["fma"], key=int)
    places = (
        f"{'memory' if p == 'memory' else p.upper()} {r[most]:.0f}" for p, r in ceilings["read"].items() if most in r
    )
    return f"{rates} GFLOP/s on {counts} threads; reads in GB/s on {most}: {', '.join(places)}"


def settings_line(results: Results) -> str:
    """When and how long it was measured."""
    settings = results["settings"]
    quick = "quick run, few cases, " * settings["quick"]
    minutes = f", {settings['minutes']:.0f} minutes in all" if "minutes" in settings else ""
    each = f"{settings['blocks']} blocks, {settings['seconds']:g} s per case and engine"
    return f"{settings['date']}, {quick}{each}{minutes}"


def headline(results: Results) -> str:
    """All of it in two sentences."""
    if not rivals(results):
        return "No rival was timed: there is nothing to compare fastrnn with."
    found = score(select(results, "grid"))
    if not found.worst:
        return "No sequence was timed by both fastrnn C and a rival."
    return (
        f"{capital(claim(results, factor(found.mean)))}: geometric mean of {found.total} cases, whole sequences on "
        f"{threads_text(most_threads(results))}. fastrnn wins {found.won} of them and loses {found.total - found.won}; "
        f"worst: {result(found.worst)}, {found.worst['name']} ({rival_title(results, found.worst)})."
    )


def scaling_line(results: Results) -> str:
    """How much faster fastrnn C is on all threads than on one."""
    found = scaling(results)
    if not found:
        return "measured for one number of threads only"
    worst = min(found, key=found.__getitem__)
    return (
        f"{factor(geometric_mean(found.values()))} times as fast on {most_threads(results)} as on 1 (mean of "
        f"{len(found)} cases); worst {factor(found[worst])}, {worst}"
    )


def floor_line(results: Results) -> str:
    """How close fastrnn C comes to what the machine allows."""
    found = {where: (share, count) for where, (share, count) in floor_medians(results).items() if count}
    if not found:
        return "not measured"
    shares = ", ".join(f"{percent(share)} at {where}" for where, (share, _) in found.items())
    counts = " and ".join(str(count) for _, count in found.values())
    return f"share reached: {shares} (medians of {counts} cases)"


def noise_line(results: Results) -> str:
    """How far blocks of the same work lie apart."""
    found = noise(results)
    if not found:
        return "one block only"
    wide = sum(spread > NOISY for spread in found)
    return (
        f"slowest block of an engine over its fastest: {factor(median(found))} (median), "
        f"above {NOISY:g} in {wide} of {len(found)}"
    )


# ---------------------------------------------------------------- tables


class Marked(str):
    """The text of a cell to be noticed, a loss or a wrong result: bold in Markdown, coloured in HTML."""


class Table(NamedTuple):
    """Rows of text under a heading; a line break within a cell is "\\n"."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def marked(run: Run, text: str) -> str:
    """The text, marked if fastrnn lost the case, or did not do it right."""
    return Marked(text) if lost(run) or outcome(run) != NONE else text


def scores_table(results: Results) -> Table:
    """Mean, won and worst of every group, and of the whole grid on the most threads and on one."""
    groups = grouped(select(results))
    for threads in sorted({most_threads(results), 1}, reverse=True):
        groups[f"sequences, {threads_text(threads)}"] = select(results, "grid", threads=threads)
    rows: list[Sequence[str]] = []
    for name, runs in groups.items():
        found = score(runs)
        if found.worst:
            worst = marked(found.worst, result(found.worst))
            where = (found.worst["name"], rival_title(results, found.worst))
            rows.append((name, factor(found.mean), f"{found.won} of {found.total}", worst, *where))
    head = ("", "mean", "won", "worst", "at", "against")
    heading = f"The fastest rival's time over fastrnn's, {threads_text(most_threads(results))}"
    return Table(heading, head, rows, "Above 1, fastrnn is faster.")


def losses_table(results: Results, most: int | None = None) -> Table:
    """The cases on the most threads in which a rival is faster, or the worst `most` of them."""
    found = select(results)
    runs = losses(found)
    rows = [
        (
            Marked(result(run)),
            run["name"],
            rival_title(results, run),
            duration(times(run).get("c")),
            duration(rival_time(run)),
        )
        for run in runs[:most]
    ]
    left = f" The other {len(runs) - len(rows)} are further down." if len(rows) < len(runs) else ""
    note = f"On {threads_text(most_threads(results))}, the worst first.{left}" if rows else "Nowhere."
    head = ("ratio", "case", "against", "fastrnn", "rival")
    return Table(f"Where fastrnn loses: {len(runs)} of {sum(map(compared, found))} cases", head, rows, note)


def machine_table(results: Results) -> Table:
    """The machine, its ceilings, its caches, and the settings."""
    ceilings = results["ceilings"] or {}
    caches = ", ".join(f"{name.upper()} {_bytes(size)}" for name, size in ceilings.get("caches", {}).items())
    rows = [
        ("machine", machine_line(results)),
        ("system", results["machine"]["platform"]),
        ("caches", caches or NONE),
        ("ceilings, measured", ceilings_line(results)),
        ("run", settings_line(results)),
        ("threads", scaling_line(results)),
        ("limit", floor_line(results)),
        ("noise", noise_line(results)),
    ]
    return Table("The machine and the run", ("", ""), rows)


def engines_table(results: Results) -> Table:
    """Each engine's version, and what became of the cases it was given; or why it is missing."""
    rows = []
    for engine, entry in results["engines"].items():
        records = [run["engines"][engine] for run in results["runs"] if engine in run["engines"]]
        counts = Counter(what for record in records for what in record)
        version = entry.get("version") or f"missing: {entry.get('missing', 'not run')}"
        bad = [Marked(str(counts[what])) if counts[what] else "0" for what in ("wrong", "failed")]
        rows.append((title(results, engine), version, str(counts["time"]), *bad, str(counts["skipped"])))
    head = ("engine", "version", "timed", "wrong", "failed", "skipped")
    return Table("Engines", head, rows, "Counts are of cases, on any number of threads.")


def sizes_table(results: Results, name: str, runs: list[Run]) -> Table:
    """H x B of one cell and mode: fastrnn's time, the ratio to the best rival, the share of the machine's limit."""

    def text(run: Run | None) -> str:
        if run is None or "c" not in run["engines"]:
            return NONE
        time, rival = times(run).get("c"), rival_title(results, run)
        lines = [f"{digits(1e3 * time)} ms" if time else outcome(run)]
        lines += [f"{result(run)} {rival}"] * (rival != NONE)
        lines += [f"{percent(floor_share(run))} of the limit"] * bool(floor_share(run))
        return marked(run, "\n".join(lines))

    points = grid(runs)
    hidden, batch = (sorted(set(values)) for values in zip(*points, strict=True))
    rows = [(f"H={h}", *(text(points.get((h, b))) for b in batch)) for h in hidden]
    note = "fastrnn's time in milliseconds; the fastest rival's over it, and its name; share of the machine's limit."
    return Table(f"{name}, {threads_text(most_threads(results))}", ("", *(f"B={b}" for b in batch)), rows, note)


def scaling_table(results: Results) -> Table:
    """fastrnn C's time on one thread over that on all, H x B of every cell and mode."""
    found = scaling(results)
    runs = [run for run in select(results, "grid") if run["name"] in found]
    batch = sorted({run["case"]["batch"] for run in runs})

    def text(run: Run | None) -> str:
        value = found[run["name"]] if run else None
        return Marked(factor(value)) if value and value < 1 else factor(value)

    rows = []
    for name, group in grouped(runs).items():
        points = grid(group)
        hidden = sorted({h for h, _ in points})
        rows += [(f"{name}, H={h}", *(text(points.get((h, b))) for b in batch)) for h in hidden]
    heading = f"Threads: how many times as fast fastrnn is on {most_threads(results)} as on 1"
    return Table(heading, ("", *(f"B={b}" for b in batch)), rows)


def engines_side_by_side(
    results: Results, heading: str, runs: list[Run], text: Callable[[Run, float], str], note: str
) -> Table:
    """A row per case, a column per engine that was given any of them, then the best rival and its ratio."""
    order = dict.fromkeys([*OURS, *results["engines"]])
    engines = [e for e in order if any("skipped" not in run["engines"].get(e, {"skipped": ""}) for run in runs)]

    def cell(run: Run, engine: str) -> str:
        time = times(run).get(engine)
        if time:
            return text(run, time)
        bad = outcome(run, engine)
        return Marked(bad) if engine in OURS and bad != NONE else bad

    rows = [
        (
            run["name"],
            *(cell(run, engine) for engine in engines),
            rival_title(results, run),
            marked(run, result(run)),
        )
        for run in runs
    ]
    return Table(heading, ("case", *(title(results, e) for e in engines), "fastest rival", "ratio"), rows, note)


def backends_table(results: Results) -> Table:
    """numba's and NumPy's times over C's, by group."""
    groups = grouped(select(results))
    others = [engine for engine in OURS[1:] if engine in timed(results)]
    rows = []
    for name, runs in groups.items():
        cells = []
        for engine in others:
            found = [t[engine] / t["c"] for run in runs if {"c", engine} <= (t := times(run)).keys()]
            extremes = f"{factor(min(found))} to {factor(max(found))}" if found else NONE
            cells += [factor(geometric_mean(found)), extremes]
        rows.append((name, *cells))
    head = ("", *(text for engine in others for text in (title(results, engine), "least to most")))
    note = f"Times over fastrnn C's, geometric means, {threads_text(most_threads(results))}."
    return Table("fastrnn's backends beside each other", head, rows if others else [], note)


def footprint_table(results: Results) -> Table:
    """What an engine costs before it computes."""
    rows = [
        (
            title(results, engine),
            digits(entry.get("import_seconds")),
            digits(entry.get("first_result_seconds")),
            _bytes(entry.get("installed_bytes")),
            _bytes(entry.get("peak_bytes")),
        )
        for engine, entry in (results.get("footprint") or {}).items()
    ]
    head = ("engine", "import, s", "first result, s", "installed", "peak memory")
    return Table("Footprint", head, rows)


def troubles_table(results: Results) -> Table:
    """Every wrong or failed result, and why."""
    rows = [
        (run["name"], str(run["threads"]), title(results, engine), (Marked if engine in OURS else str)(why))
        for run, engine, why in troubles(results)
    ]
    note = "A wrong result is not timed and does not count as a rival." if rows else "None."
    return Table("Wrong or failed results", ("case", "threads", "engine", "what"), rows, note)


def skipped_table(results: Results) -> Table:
    """What engines said they cannot do."""
    found = Counter(
        (engine, record["skipped"])
        for run in results["runs"]
        for engine, record in run["engines"].items()
        if "skipped" in record
    )
    rows = [(title(results, engine), why, str(count)) for (engine, why), count in found.items()]
    return Table("Skipped", ("engine", "why", "cases"), rows)


def _bytes(size: float | None) -> str:
    if size is None:
        return NONE
    return f"{digits(size / 2**20)} MiB" if size >= 2**20 else f"{digits(size / 2**10)} KiB"


def detail_tables(results: Results) -> list[Table]:
    """Everything below the overview, but for tables that would be empty."""

    def microseconds(run: Run, time: float) -> str:
        return digits(1e6 * time)

    def milliseconds(run: Run, time: float) -> str:
        return digits(1e3 * time)

    def words(run: Run, time: float) -> str:
        return digits(words_per_second(run, time))

    def suitable(run: Run, time: float) -> str:
        return duration(time)

    beside = [
        ("Steps", "step", microseconds, "Microseconds a step, B=1, the state carried over."),
        ("Two layers, in one or both directions", "stacked", milliseconds, "Milliseconds."),
        ("Ragged batches", "ragged", milliseconds, "Milliseconds; sequences of different lengths."),
        ("Training a language model", "words", words, "Words per second."),
    ]
    groups = grouped(select(results, "grid"))
    side = [engines_side_by_side(results, head, select(results, what), text, n) for head, what, text, n in beside]
    heading = f"Every time, {threads_text(most_threads(results))}"
    every = engines_side_by_side(results, heading, select(results), suitable, "")
    found = [
        machine_table(results),
        engines_table(results),
        *(sizes_table(results, name, runs) for name, runs in groups.items()),
        *side,
        *[losses_table(results)] * (sum(map(lost, select(results))) > LOSSES),
        backends_table(results),
        scaling_table(results),
        footprint_table(results),
    ]
    last = [table for table in (skipped_table(results), every) if table.rows]
    return [*(table for table in found if table.rows), troubles_table(results), *last]


def how_to_read(results: Results) -> list[str]:
    """What the words and figures mean, a paragraph each."""
    settings = results["settings"]
    return [
        "A ratio is the time of the fastest rival over the time of fastrnn's C backend on the same case: 2 means that "
        "fastrnn takes half as long, 0.5 that it takes twice as long. Which rival is the fastest differs from case to "
        "case. Won are the cases with a ratio of at least 1; means of ratios are geometric.",
        f"T is the number of steps, B the batch, H the hidden size, which is the input size too; float32. Sequences "
        f"have {steps_text(results)}. Inference: a whole sequence, nothing kept. Training: forward, and backward to "
        "the input and all weights. Step: one step of a stream, the state carried over. 2x1: two layers; 2x2: "
        "in both directions. Ragged: sequences of different lengths. Words: a training step of a language model.",
        f"A time is a median, of the best of {settings['blocks']} blocks of runs. Small differences are noise: "
        f"a ratio of 0.97 and one of 1.03 say the same. In this run: {noise_line(results)}.",
        "Every engine's output is compared with the reference's; a wrong one is marked wrong and not timed.",
        "The machine's limit, the floor of a time, is the least that the case's arithmetic and its reading of weights "
        "can take at the speeds measured on this machine; 100 % would be as fast as that.",
    ]


# ---------------------------------------------------------------- written as text, Markdown, HTML


def summary(results: Results) -> str:
    """A screenful: at most 40 lines of 100 columns."""
    missing = [f"{title(results, e)} ({v['missing']})" for e, v in results["engines"].items() if "missing" in v]
    scores, lose, bad = scores_table(results), losses_table(results, LOSSES), troubles(results)
    lines = _paragraph("machine", machine_line(results)) + _paragraph("ceilings", ceilings_line(results))
    lines += _paragraph("missing", ", ".join(missing))
    if scores.rows:
        lines += ["", f"{scores.title} (above 1: fastrnn is faster)", *_aligned([scores.head, *scores.rows]), ""]
        left = len(losses(select(results))) - len(lose.rows)
        lines += [f"{lose.title}{f', the worst (and {left} more):' if left else ''}"]
        lines += _aligned([row[:3] for row in lose.rows])
    else:
        lines += ["", headline(results), ""]
    if bad:
        run, engine, why = bad[0]
        more = f"; {len(bad) - 1} more" * (len(bad) > 1)
        lines += _paragraph("wrong", f"{title(results, engine)} on {run['name']}, {why}{more}")
    for label, line in (("threads", scaling_line), ("limit", floor_line), ("noise", noise_line)):
        lines += _paragraph(label, line(results))
    return "\n".join(lines)


def _paragraph(label: str, text: str) -> list[str]:
    """Two lines at most, after a label; none if there is no text."""
    indent = " " * 10
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=f"{label:10}",
        subsequent_indent=indent,
        break_on_hyphens=False,
        max_lines=2,
        placeholder=" ...",
    )


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of text in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows]
    return [f"  {line}".rstrip()[:WIDTH] for line in padded]


def report_title(results: Results) -> str:
    """Whom it compares."""
    return f"fastrnn beside {rivals(results) or 'other engines'}"


def markdown(results: Results, picture: str | None = None) -> str:
    """The whole report; picture: a link to what `plot` made."""
    parts = [f"# {report_title(results)}", headline(results), f"{machine_line(results)}; {settings_line(results)}."]
    parts += [f"![{_alternative(results)}]({picture})"] if picture else []
    parts += map(_markdown_table, (scores_table(results), losses_table(results, LOSSES)))
    parts += ["## How to read it", *(f"- {text}" for text in how_to_read(results))]
    parts += map(_markdown_table, detail_tables(results))
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: Table, heading: bool = True) -> str:
    def cell(text: str) -> str:
        written = text.replace("|", "\\|").replace("\n", "<br>")
        return f"**{written}**" if isinstance(text, Marked) else written

    rows = [table.head, ["---"] * len(table.head), *([cell(text) for text in row] for row in table.rows)]
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows) if table.rows else ""
    return "\n\n".join(filter(None, [f"## {table.title}" * heading, table.note * heading, lines]))


STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 1200px;
       margin: 1.5rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; } h2 { font-size: 1.1rem; margin: 1.8rem 0 .3rem; }
.headline { font-size: 1.15rem; margin: .4rem 0; } .quiet { color: #555; margin: .2rem 0 .6rem; font-size: .9rem; }
.overview { display: flex; flex-wrap: wrap; gap: 0 2rem; }
img { display: block; width: 100%; max-width: 1000px; height: auto; margin: 2.2rem 0 .5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .82rem; line-height: 1.35; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .5rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
th { font-weight: 600; background: #f5f5f5; }
td.marked { background: #fddbc7; color: #67001f; font-weight: 600; }
"""
LONG = 60  # rows from which a table is folded in HTML


def html(results: Results) -> str:
    """The whole report as one page that needs nothing else. Raises ImportError without matplotlib."""
    parts = [f"<h1>{escape(report_title(results))}</h1>", f'<p class="headline">{escape(headline(results))}</p>']
    parts += [f'<p class="quiet">{escape(machine_line(results))}; {escape(settings_line(results))}</p>']
    lose = losses_table(results, LOSSES)
    brief = lose._replace(head=lose.head[:3], rows=[row[:3] for row in lose.rows])
    overview = map(_html_table, (scores_table(results), brief))
    parts += ['<div class="overview">', *(f"<div>{table}</div>" for table in overview), "</div>"]
    parts += [_html_picture(figure) for figure in pictures(results)]
    parts += ["<h2>How to read it</h2>", *(f"<p>{escape(text)}</p>" for text in how_to_read(results))]
    parts += map(_html_table, detail_tables(results))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{escape(report_title(results))}</title>\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n" + "\n".join(parts) + "\n</body>\n</html>\n"
    )


def _html_table(table: Table) -> str:
    def cell(text: str) -> str:
        mark = ' class="marked"' if isinstance(text, Marked) else ""
        return f"<td{mark}>{escape(text)}</td>".replace("\n", "<br>")

    note = f'<p class="quiet">{escape(table.note)}</p>' if table.note else ""
    heading = f"<h2>{escape(table.title)}</h2>{note}"
    if not table.rows:
        return heading
    head = f"<tr>{''.join(f'<th>{escape(text)}</th>' for text in table.head)}</tr>\n" if any(table.head) else ""
    body = "\n".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in table.rows)
    written = f'<div class="wide"><table>\n{head}{body}\n</table></div>'
    if len(table.rows) >= LONG:
        written = f"<details><summary>{len(table.rows)} rows</summary>{written}</details>"
    return heading + written


def _html_picture(figure: Figure) -> str:
    image = base64.b64encode(_png(figure, dpi=150)).decode()
    return f'<img alt="{escape(figure.get_label())}" src="data:image/png;base64,{image}">'


# ---------------------------------------------------------------- pictures


class Shade(NamedTuple):
    """How a number of each case becomes a coloured square of a heat map.

    value    of a run; None leaves the square grey
    label    the text in the square
    colours  matplotlib's name of a colour map, over a logarithm of the value or not
    ends     the values with the first and the last colour
    ticks    value: text, along the legend
    bold     whether the label is
    small    what stands under the label
    """

    title: str
    note: str
    value: Callable[[Run], float | None]
    label: Callable[[Run], str]
    colours: str
    logarithmic: bool
    ends: tuple[float, float]
    ticks: dict[float, str]
    bold: Callable[[Run], bool] = lambda run: False
    small: Callable[[Run], str] = lambda run: ""


INK, QUIET, EMPTY = "#1a1a1a", "#555555", (0.91, 0.91, 0.91)
RATIO_COLOURS = "RdBu"  # red where fastrnn is slower, blue where it is faster, white between
RATIO_ENDS = (1 / 2, 2.0)
RATIO_TICKS = {1 / 2: "0.5 or less", 2 / 3: "0.67", 1: "1: equal", 3 / 2: "1.5", 2: "2 or more"}


def conditions(results: Results) -> str:
    """What holds for all squares of a picture."""
    return f"{results['machine']['cpu']}, float32, {steps_text(results)}, input size = H"


def ratio_shade(results: Results) -> Shade:
    """The best rival's time over fastrnn's."""
    return Shade(
        capital(claim(results, "…")) if rivals(results) else "No rival was timed",
        "Blue: fastrnn is faster. Red and bold: it is slower. Under each figure, the rival. "
        f"{threads_text(most_threads(results)).capitalize()} of {conditions(results)}.",
        value=lambda run: ratio(run) or (RATIO_ENDS[0] if lost(run) else None),
        label=result,
        colours=RATIO_COLOURS,
        logarithmic=True,
        ends=RATIO_ENDS,
        ticks=RATIO_TICKS,
        bold=lost,
        small=lambda run: rival_title(results, run) if compared(run) else "",
    )


def floor_shade(results: Results) -> Shade:
    """The share of the machine's limit, in per cent."""
    return Shade(
        "fastrnn runs at … % of what the machine allows",
        "100 %: arithmetic and reading of weights at the measured peak. "
        f"{threads_text(most_threads(results)).capitalize()} of {conditions(results)}.",
        value=lambda run: 100 * share if (share := floor_share(run)) else None,
        label=lambda run: percent(floor_share(run)),
        colours="YlGnBu",
        logarithmic=False,
        ends=(0, 100),
        ticks={value: f"{value} %" for value in (0, 25, 50, 75, 100)},
    )


def scaling_shade(results: Results) -> Shade:
    """Time on one thread over time on all."""
    most, found = most_threads(results), scaling(results)
    return Shade(
        f"fastrnn on {threads_text(most)} is … times as fast as on 1",
        f"Blue: more threads help. Red and bold: they cost. {conditions(results)}.",
        value=lambda run: found.get(run["name"]),
        label=lambda run: factor(found.get(run["name"])),
        colours=RATIO_COLOURS,
        logarithmic=True,
        ends=(1 / most, most),
        ticks={1 / most: factor(1 / most), 1: "1: equal", most: str(most)},
        bold=lambda run: found.get(run["name"], 1) < 1,
    )


def pictures(results: Results) -> list[Figure]:
    """All that have something to show: ratios of sequences and steps, the machine's limit, threads."""
    runs = select(results, "grid")
    found = []
    if any(map(compared, runs)):
        found.append(heat_maps(results, ratio_shade(results)))
    if any(map(compared, select(results, "step"))):
        found.append(step_bars(results))
    if any(map(floor_share, runs)):
        found.append(heat_maps(results, floor_shade(results)))
    if scaling(results):
        found.append(heat_maps(results, scaling_shade(results)))
    return found


def plot(results: Results, path: Path | str) -> None:
    """The README's picture, a PNG: the heat maps of ratios. Raises ImportError without matplotlib."""
    Path(path).write_bytes(_png(heat_maps(results, ratio_shade(results)), dpi=120))


def _png(figure: Figure, dpi: int) -> bytes:
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=dpi, facecolor="white")
    return written.getvalue()


def _figure(rows: int, columns: int, height: float, heading: str, note: str) -> tuple[Figure, Any]:
    """A figure of ten inches by `height`, [rows, columns] axes below a heading, with a light note under it."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the report's pictures need matplotlib: pip install fastrnn[plot]") from error
    figure = Figure(figsize=(10, height), layout="constrained", label=f"{heading}. {note}")
    above = 0.1
    for text, columns_, size, line, style in (
        (heading, 86, 14, 0.27, {"weight": "bold", "color": INK}),
        (note, 140, 9, 0.18, {"color": QUIET}),
    ):
        even = math.ceil(len(text) / math.ceil(len(text) / columns_))  # lines of about the same length
        wrapped = textwrap.wrap(text, min(columns_, even + 6))
        figure.text(0.012, 1 - above / height, "\n".join(wrapped), size=size, va="top", **style)
        above += line * len(wrapped)
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - (above + 0.1) / height), w_pad=0.06, h_pad=0.06)
    return figure, figure.subplots(rows, columns, squeeze=False)


def heat_maps(results: Results, shade: Shade) -> Figure:
    """Squares over H and B: a column of panels for each cell, a row for each mode."""
    runs = select(results, "grid")
    modes, cells = (list(dict.fromkeys(run["case"][field] for run in runs)) for field in ("mode", "cell"))
    hidden, batch = (sorted({run["case"][field] for run in runs}) for field in ("hidden", "batch"))
    height = 1.5 + max(1, len(modes)) * (0.45 + 0.46 * len(hidden))
    figure, axes = _figure(max(1, len(modes)), max(1, len(cells)), height, shade.title, shade.note)
    if not runs:
        axes[0, 0].axis("off")
        return figure
    colours = _colours(shade)
    for row, mode in enumerate(modes):
        for column, cell in enumerate(cells):
            ax = axes[row, column]
            ax.set_title(f"{cell.upper()} {mode}", size=11, color=INK)
            points = grid(run for run in runs if (run["case"]["mode"], run["case"]["cell"]) == (mode, cell))
            _squares(ax, [[points.get((h, b)) for b in batch] for h in hidden], shade, colours)
            ax.set_xticks(range(len(batch)), batch)
            ax.set_yticks(range(len(hidden)), hidden)
            if row == len(modes) - 1:
                ax.set_xlabel("batch size B", color=QUIET)
            if column == 0:
                ax.set_ylabel("hidden size H", color=QUIET)
    bar = figure.colorbar(colours, ax=axes, location="right", fraction=0.03, aspect=30)
    bar.set_ticks(list(shade.ticks), labels=list(shade.ticks.values()), size=8, color=QUIET)
    bar.minorticks_off()
    bar.outline.set_visible(False)
    return figure


def _colours(shade: Shade) -> Any:
    """matplotlib's mapping of values to colours."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm, Normalize

    norm = (LogNorm if shade.logarithmic else Normalize)(*shade.ends, clip=True)
    return ScalarMappable(norm, shade.colours)


def _squares(ax: Axes, runs: list[list[Run | None]], shade: Shade, colours: Any) -> None:
    """Draw runs as [H, B] squares with their labels."""
    image = [[_square_colour(run, shade, colours) for run in row] for row in runs]
    for y, row in enumerate(runs):
        for x, run in enumerate(row):
            ink = _ink(image[y][x])
            label, small = (shade.label(run), textwrap.fill(shade.small(run), 10)) if run else (NONE, "")
            weight = "bold" if run and shade.bold(run) else "normal"
            up = 0.09 * (1 + small.count("\n")) if small else 0
            ax.text(x, y - up, label, size=10.5, weight=weight, color=ink, ha="center", va="center")
            ax.text(x, y + 0.25, small, size=6.5, color=ink, ha="center", va="center", linespacing=0.9)
    ax.imshow(image, aspect="auto")
    ax.set_xticks([x + 0.5 for x in range(len(runs[0]) - 1)], minor=True)
    ax.set_yticks([y + 0.5 for y in range(len(runs) - 1)], minor=True)
    ax.grid(which="minor", color="white", linewidth=1.5)
    ax.tick_params(which="both", length=0, labelcolor=QUIET, labelsize=9)
    ax.spines[:].set_visible(False)


def _square_colour(run: Run | None, shade: Shade, colours: Any) -> tuple[float, ...]:
    """Red, green, blue."""
    value = shade.value(run) if run else None
    return EMPTY if value is None else tuple(colours.to_rgba(value)[:3])


def luminance(rgb: Sequence[float]) -> float:
    """Relative luminance of an sRGB colour, 0 to 1, as the Web Content Accessibility Guidelines define it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _ink(rgb: Sequence[float]) -> str:
    """Black or white, whichever stands out more on a colour: contrast is (a + 0.05) / (b + 0.05)."""
    return "black" if (luminance(rgb) + 0.05) ** 2 > 1.05 * 0.05 else "white"


def step_bars(results: Results) -> Figure:
    """Bars over H, a panel for each cell: the best rival's time for a step over fastrnn's."""
    runs = sorted(filter(compared, select(results, "step")), key=lambda run: run["case"]["hidden"])
    groups = grouped(sorted(runs, key=select(results, "step").index))
    heading = f"One step of a stream, B=1: {claim(results, '…')}"
    note = f"{threads_text(most_threads(results))} of {results['machine']['cpu']}, float32, input size = H."
    figure, axes = _figure(1, len(groups), 3.4, heading, note)
    colours = _colours(ratio_shade(results))
    extremes = [ratio(run) or 1.0 for run in runs]
    for ax, (name, group) in zip(axes[0], groups.items(), strict=True):
        values = [ratio(run) or 1.0 for run in group]
        ax.bar(range(len(group)), [v - 1 for v in values], 0.85, bottom=1, color=[colours.to_rgba(v) for v in values])
        for x, (run, value) in enumerate(zip(group, values, strict=True)):
            small = textwrap.fill(rival_title(results, run), 9)
            top, weight = (x, max(1, value)), "bold" if lost(run) else "normal"
            place = {"textcoords": "offset points", "ha": "center", "va": "bottom"}
            ax.annotate(small, top, (0, 2), size=6.5, color=QUIET, linespacing=0.9, **place)
            above = 11 + 7 * small.count("\n")
            ax.annotate(result(run), top, (0, above), size=10, weight=weight, color=INK, **place)
        ax.axhline(1, color=INK, linewidth=0.8)
        ax.set_yscale("log")
        ax.set_ylim(min(1.0, *extremes), max(1.2, *extremes) ** 1.4)
        ax.yaxis.set_visible(False)
        ax.spines[:].set_visible(False)
        own = [digits(1e6 * time) if (time := times(run).get("c")) else NONE for run in group]
        ax.set_xticks(range(len(group)), [f"{r['case']['hidden']}\n{t}" for r, t in zip(group, own, strict=True)])
        ax.tick_params(length=0, labelcolor=QUIET, labelsize=8.5)
        ax.set_xlabel("hidden size H; below it, fastrnn's time in µs", color=QUIET, size=9)
        ax.set_title(name, size=11, color=INK)
    return figure


# ---------------------------------------------------------------- the README


BEGIN, END = "<!-- benchmark: made by make bench -->", "<!-- benchmark: end -->"
README_HIDDEN = (16, 64, 128, 256, 512)


def slug(text: str) -> str:
    """Lower-case letters, digits and hyphens: "AMD EPYC 9R14" is "amd-epyc-9r14"."""
    return "-".join(re.findall(r"[a-z0-9]+", text.lower()))


def readme_section(results: Results, stem: str | None = None) -> str:
    """What stands between the README's marks; stem: the report's path from the README, without its ending."""
    stem = stem or f"bench/results/{slug(results['machine']['cpu'])}"
    note = "2x1: two layers; 2x2: in both directions. Ragged: unequal lengths. Words: training a language model."
    parts = [
        textwrap.fill(headline(results), 120, break_on_hyphens=False),
        _markdown_table(_readme_scores(results), heading=False),
        note if select(results, "stacked", "ragged", "words") else "",
        _markdown_table(_readme_steps(results), heading=False),
        f"![{_alternative(results)}]({stem}.png)",
        f"{machine_line(results)}; {results['settings']['date']}.\n"
        f"Every case, every engine, and how to read it: the [full report]({stem}.md).",
    ]
    return "\n\n".join(filter(None, parts))


def update_readme(path: Path | str, results: Results, stem: str | None = None) -> None:
    """Replace what stands between the two marks. Raises ValueError if they are not there, each once, in order."""
    path = Path(path)
    lines = path.read_bytes().decode().splitlines(keepends=True)
    marks = [(i, line.strip()) for i, line in enumerate(lines) if line.strip() in (BEGIN, END)]
    if [mark for _, mark in marks] != [BEGIN, END]:
        raise ValueError(f"{path} must have a line {BEGIN!r} and, below it, a line {END!r}, once each")
    (begin, _), (end, _) = marks
    section = f"\n{readme_section(results, stem)}\n\n"
    path.write_bytes("".join([*lines[: begin + 1], section, *lines[end:]]).encode())


def _readme_scores(results: Results) -> Table:
    rows: list[Sequence[str]] = []
    for name, runs in grouped(select(results, "grid", "stacked", "ragged", "words")).items():
        found = score(runs)
        if found.worst:
            size = "H={hidden}, B={batch}".format(**found.worst["case"])
            where = f"{result(found.worst)} ({size}, {rival_title(results, found.worst)})"
            rows.append((name, factor(found.mean), marked(found.worst, where), f"{found.won} of {found.total}"))
    threads = threads_text(most_threads(results))
    head = (f"fastest rival's time over fastrnn's, {threads}", "geometric mean", "worst", "points won")
    return Table("", head, rows)


def _readme_steps(results: Results) -> Table:
    groups = {name: grid(runs) for name, runs in grouped(select(results, "step")).items()}
    hidden = [h for h in README_HIDDEN if any((h, 1) in points for points in groups.values())]

    def cell(run: Run | None) -> str:
        if run is None:
            return NONE
        own, theirs = times(run).get("c"), rival_time(run)
        found = digits(1e6 * own) if own else outcome(run)
        return marked(run, f"{found}; {digits(1e6 * theirs)} {rival_title(results, run)}" if theirs else found)

    rows = [(name, *(cell(points.get((h, 1))) for h in hidden)) for name, points in groups.items()]
    head = ("one step, B=1, in µs: fastrnn's; the fastest rival's", *(f"H={h}" for h in hidden))
    return Table("", head, rows if hidden else [])


def _alternative(results: Results) -> str:
    """What the picture shows, for who cannot see it."""
    return f"Heat maps over H and B: {ratio_shade(results).title}"


def main(argv: list[str] | None = None) -> None:
    """Make the report; see --help."""
    readme = Path(__file__).resolve().parents[1] / "README.md"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="the file that suite.py made")
    parser.add_argument("--readme", type=Path, nargs="?", const=readme, help="put a section into it: %(const)s")
    args = parser.parse_args(argv)
    results = json.loads(args.results.read_text(encoding="utf-8"))
    picture = args.results.with_suffix(".png")
    print(summary(results))
    args.results.with_suffix(".md").write_text(markdown(results, picture.name), encoding="utf-8")
    try:
        plot(results, picture)
        args.results.with_suffix(".html").write_text(html(results), encoding="utf-8")
    except ImportError as error:
        sys.exit(f"{parser.prog}: {error}")
    if args.readme:
        stem = os.path.relpath(args.results.resolve().with_suffix(""), args.readme.resolve().parent)
        try:
            update_readme(args.readme, results, Path(stem).as_posix())
        except ValueError as error:
            sys.exit(f"{parser.prog}: {error}")


if __name__ == "__main__":
    main()
