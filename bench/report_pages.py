"""The report as it is read: a summary for the terminal, a Markdown file, and a page of HTML with its pictures inside.

Words, tables and pictures come ready-made; here they are put in order, and written in each form. The README's section
is in report.py.
"""

from __future__ import annotations

import base64
import textwrap
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from report_numbers import Results, losses, select, troubles
from report_pictures import alternative, pictures, png
from report_tables import LOSSES, Marked, Table, detail_tables, losses_table, scores_table
from report_words import (
    ceilings_line,
    floor_line,
    headline,
    how_to_read,
    machine_line,
    noise_line,
    rivals,
    scaling_line,
    settings_line,
    title,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 100  # of the summary, in columns


# ---------------------------------------------------------------- text


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


# ---------------------------------------------------------------- Markdown


def report_title(results: Results) -> str:
    """Whom it compares."""
    return f"fastrnn beside {rivals(results) or 'other engines'}"


def markdown(results: Results, picture: str | None = None) -> str:
    """The whole report; picture: a link to what `plot` made."""
    parts = [f"# {report_title(results)}", headline(results), f"{machine_line(results)}; {settings_line(results)}."]
    parts += [f"![{alternative(results)}]({picture})"] if picture else []
    parts += map(markdown_table, (scores_table(results), losses_table(results, LOSSES)))
    parts += ["## How to read it", *(f"- {text}" for text in how_to_read(results))]
    parts += map(markdown_table, detail_tables(results))
    return "\n\n".join(parts) + "\n"


def markdown_table(table: Table, heading: bool = True) -> str:
    """A table as Markdown has it, under its heading and note or without them."""

    def cell(text: str) -> str:
        written = text.replace("|", "\\|").replace("\n", "<br>")
        return f"**{written}**" if isinstance(text, Marked) else written

    rows = [table.head, ["---"] * len(table.head), *([cell(text) for text in row] for row in table.rows)]
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows) if table.rows else ""
    return "\n\n".join(filter(None, [f"## {table.title}" * heading, table.note * heading, lines]))


# ---------------------------------------------------------------- HTML


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
    image = base64.b64encode(png(figure, dpi=150)).decode()
    return f'<img alt="{escape(figure.get_label())}" src="data:image/png;base64,{image}">'
