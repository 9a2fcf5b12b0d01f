"""The tables of the report: rows of text under a heading, for each form to write in its own way.

A cell is `Marked` where fastrnn lost a case or got it wrong. `scores_table` and `losses_table` are the overview, and
`detail_tables` is all that comes after it. Next: report_pictures.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from report_numbers import (
    OURS,
    Results,
    Run,
    compared,
    floor_share,
    geometric_mean,
    grid,
    grouped,
    losses,
    lost,
    most_threads,
    rival_time,
    scaling,
    score,
    select,
    times,
    troubles,
    words_per_second,
)
from report_words import (
    NONE,
    ceilings_line,
    digits,
    duration,
    factor,
    floor_line,
    machine_line,
    noise_line,
    outcome,
    percent,
    result,
    rival_title,
    scaling_line,
    settings_line,
    threads_text,
    timed,
    title,
)

LOSSES = 8  # cases listed as lost where the worst are enough


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


# ---------------------------------------------------------------- the overview


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


# ---------------------------------------------------------------- the details


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
