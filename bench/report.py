"""What the benchmark found, made readable: `python bench/report.py bench/results/<machine>.json [--readme]`.

It writes a Markdown report, a page of HTML and a picture beside the results, puts a section into the README, and
prints a summary. It reads the file that suite.py makes and knows nothing of how it was measured; it needs matplotlib
for the pictures alone. Numbers become words, words become tables and pictures, and these become pages: each is a file
that uses those before it. Here are main and the README's section. Next: report_numbers.py.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from report_numbers import Results, Run, grid, grouped, most_threads, rival_time, score, select, times
from report_pages import html, markdown, markdown_table, summary
from report_pictures import alternative, plot
from report_tables import Table, marked
from report_words import NONE, digits, factor, headline, machine_line, outcome, result, rival_title, threads_text

__all__ = ["html", "markdown", "plot", "readme_section", "summary", "update_readme"]

BEGIN, END = "<!-- benchmark: made by make bench -->", "<!-- benchmark: end -->"
README_HIDDEN = (16, 64, 128, 256, 512)


def main(argv: list[str] | None = None) -> None:
    """Make the report; see --help."""
    readme = Path(__file__).resolve().parents[1] / "README.md"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="the file that suite.py made")
    parser.add_argument("--readme", type=Path, nargs="?", const=readme, help="put a section into it: %(const)s")
    args = parser.parse_args(argv)
    try:
        results = json.loads(args.results.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        parser.error(f"{args.results} cannot be read: {error}")
    if not isinstance(results, dict) or "runs" not in results:
        parser.error(f"{args.results} is not what suite.py made")
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


# ---------------------------------------------------------------- the README


def readme_section(results: Results, stem: str) -> str:
    """What stands between the README's marks; stem: the report's path from the README, without its ending."""
    note = "2x1: two layers; 2x2: in both directions. Ragged: unequal lengths. Words: training a language model."
    parts = [
        textwrap.fill(headline(results), 120, break_on_hyphens=False),
        markdown_table(_readme_scores(results), heading=False),
        note if select(results, "stacked", "ragged", "words") else "",
        markdown_table(_readme_steps(results), heading=False),
        f"![{alternative(results)}]({stem}.png)",
        f"{machine_line(results)}; {results['settings']['date']}.\n"
        f"Every case, every engine, and how to read it: the [full report]({stem}.md).",
    ]
    return "\n\n".join(filter(None, parts))


def update_readme(path: Path | str, results: Results, stem: str) -> None:
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


if __name__ == "__main__":
    main()
