"""The words of the report: names of engines, figures as readers want them, and all that is said in a sentence or two.

It ends up in the terminal, in tables, on pages and in pictures alike. What is said is computed in report_numbers.py.
Next: report_tables.py.
"""

from __future__ import annotations

import math

from report_numbers import (
    OURS,
    Results,
    Run,
    best_rival,
    floor_medians,
    geometric_mean,
    kind,
    median,
    most_threads,
    noise,
    ratio,
    scaling,
    score,
    select,
    times,
)

NONE = "-"  # where there is nothing to show
NOISY = 1.25  # blocks further apart than this are worth a warning


# ---------------------------------------------------------------- names


def title(results: Results, engine: str) -> str:
    """An engine's name for readers."""
    return str(results["engines"].get(engine, {}).get("title", engine))


def rival_title(results: Results, run: Run) -> str:
    """The best rival's name for readers."""
    rival = best_rival(run)
    return title(results, rival) if rival else NONE


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


# ---------------------------------------------------------------- figures


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


# ---------------------------------------------------------------- lines and paragraphs


def steps_text(results: Results) -> str:
    """The numbers of steps in the grid: "T=100" or "T=100 (20 in the largest cases)"."""
    counts = sorted({run["case"]["steps"] for run in results["runs"] if kind(run) == "grid"})
    fewer = f" ({' or '.join(map(str, counts[:-1]))} in the largest cases)" if len(counts) > 1 else ""
    return f"T={counts[-1]}{fewer}" if counts else "no sequences"


def machine_line(results: Results) -> str:
    """The machine and the Python on it."""
    machine = results["machine"]
    cpus = f"{machine['cpus']} CPU{'s' * (machine['cpus'] != 1)}"
    told = [f"{name} {machine[name]}" for name in ("family", "model") if name in machine]
    cpu = f"{machine['cpu']} ({', '.join(told)})" if told else machine["cpu"]
    return f"{cpu}, {cpus}, {machine['isa']}; Python {machine['python']}, NumPy {machine['numpy']}"


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


def blocks_text(results: Results) -> str:
    """Of how many blocks the best counts."""
    each, rounds = results["settings"]["blocks"], {run.get("rounds", 1) for run in results["runs"]} or {1}
    if rounds == {1}:
        return f"{each} blocks"
    counts = " to ".join(str(n * each) for n in sorted({min(rounds), max(rounds)}))
    return f"{counts} blocks, {each} in each round"


def settings_line(results: Results) -> str:
    """When and how long it was measured."""
    settings = results["settings"]
    quick = "quick run, few cases, " * settings["quick"]
    minutes = f", {settings['minutes']:.0f} minutes in all" if "minutes" in settings else ""
    each = f"{blocks_text(results)}, {settings['seconds']:g} s per case, engine and round"
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


def steady_line(results: Results) -> str:
    """How many blocks were timed while the machine was itself; nothing where nobody looked."""
    held, looks = results["settings"].get("steady", (0, 0))
    waits_for = results["settings"].get("waits_for", "the multiply-adds of their peak")
    if not looks:
        return ""
    return (
        " Processors of a virtual machine may be two threads of one core for a while, far apart, or share theirs: a "
        f"block waits until they do {waits_for}, for some seconds at most; so it was for {held} of {looks}."
    )


def how_to_read(results: Results) -> list[str]:
    """What the words and figures mean, a paragraph each."""
    return [
        "A ratio is the time of the fastest rival over the time of fastrnn's C backend on the same case: 2 means that "
        "fastrnn takes half as long, 0.5 that it takes twice as long. Which rival is the fastest differs from case to "
        "case. Won are the cases with a ratio of at least 1; means of ratios are geometric.",
        f"T is the number of steps, B the batch, H the hidden size, which is the input size too; float32. Sequences "
        f"have {steps_text(results)}. Inference: a whole sequence, nothing kept. Training: forward, and backward to "
        "the input and all weights. Step: one step of a stream, the state carried over. 2x1: two layers; 2x2: "
        "in both directions. Ragged: sequences of different lengths. Words: a training step of a language model.",
        f"A time is a median of a block of runs, the best of {blocks_text(results)}. Small differences are noise: "
        f"a ratio of 0.97 and one of 1.03 say the same. In this run: {noise_line(results)}.{steady_line(results)}",
        "Every engine's output is compared with the reference's; a wrong one is marked wrong and not timed.",
        "The machine's limit, the floor of a time, is the least that the case's arithmetic and its reading of weights "
        "can take at the speeds measured on this machine, each cache giving what it holds; 100 % would be as fast as "
        "that.",
    ]
