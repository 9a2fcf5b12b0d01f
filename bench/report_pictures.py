"""The pictures of the report: heat maps of ratios, of the machine's limit and of threads; bars for steps of a stream.

A `Shade` says how a case becomes a coloured square, so that one function draws every heat map. This file alone needs
matplotlib, and does not import it before a picture is drawn. Next: report_pages.py.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from report_numbers import (
    Results,
    Run,
    compared,
    floor_share,
    grid,
    grouped,
    lost,
    most_threads,
    ratio,
    scaling,
    select,
    times,
)
from report_words import (
    NONE,
    capital,
    claim,
    digits,
    factor,
    percent,
    result,
    rival_title,
    rivals,
    steps_text,
    threads_text,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, QUIET, EMPTY = "#1a1a1a", "#555555", (0.91, 0.91, 0.91)
RATIO_COLOURS = "RdBu"  # red where fastrnn is slower, blue where it is faster, white between
RATIO_ENDS = (1 / 2, 2.0)
RATIO_TICKS = {1 / 2: "0.5 or less", 2 / 3: "0.67", 1: "1: equal", 3 / 2: "1.5", 2: "2 or more"}


# ---------------------------------------------------------------- which pictures


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
    Path(path).write_bytes(png(heat_maps(results, ratio_shade(results)), dpi=120))


def alternative(results: Results) -> str:
    """What the picture shows, for who cannot see it."""
    return f"Heat maps over H and B: {ratio_shade(results).title}"


def png(figure: Figure, dpi: int) -> bytes:
    """What a PNG file of it holds."""
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=dpi, facecolor="white")
    return written.getvalue()


# ---------------------------------------------------------------- what a square shows


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


# ---------------------------------------------------------------- drawing


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
