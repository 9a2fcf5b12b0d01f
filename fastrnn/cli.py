"""The command line: `fastrnn bench` times this machine, `fastrnn config` tells what runs here.

The arguments and the printing; what is timed and how is in bench/.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from typing import Any

from . import __version__
from .backends import cpus, load
from .bench.cases import CELLS, Case
from .bench.engines import ENGINES
from .bench.race import Race
from .config import get_num_threads, set_num_threads, show_config
from .errors import FastrnnError

__all__ = ["count", "main", "positive"]

SHORT = tuple(
    Case(cell, mode, 128, batch, 1 if mode == "step" else 100)
    for mode, batch in (("inference", 1), ("inference", 32), ("training", 1), ("training", 32), ("step", 1))
    for cell in CELLS
)
ENGINES_SHOWN = ("c", "numba", "numpy", "torch", "onnxruntime")


def main(argv: Sequence[str] | None = None) -> None:
    """Do what the arguments say."""
    try:
        try:
            _run(argv)
        finally:
            sys.stdout.flush()  # here, where it can be caught that nobody reads on
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or what is left would be tried again at exit
        raise SystemExit(1) from None


def _run(argv: Sequence[str] | None) -> None:
    parser = argparse.ArgumentParser(prog="fastrnn", description="Recurrent networks on the CPU, fast.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    bench = commands.add_parser(
        "bench",
        help="time this machine's backends, and other engines where they are installed",
        description="Times each engine in a process of its own, asked in turn; its outputs are compared first. "
        "I = H = 128, T = 100, float32; a minute or less.",
    )
    every = f"of {', '.join(ENGINES)}; default: %(default)s"
    bench.add_argument("--engines", default=",".join(ENGINES_SHOWN), help=every)
    bench.add_argument("--threads", type=count, default=get_num_threads(), help="default: all, %(default)s here")
    bench.add_argument("--seconds", type=positive, default=0.2, help="a case and engine; default: %(default)s")
    commands.add_parser("config", help="tell versions, CPU, threads and backends")
    args = parser.parse_args(argv)
    if args.command == "config":
        show_config()
        return
    engines = args.engines.split(",")
    if unknown := [name for name in engines if name not in ENGINES]:
        bench.error(f"unknown engine {unknown[0]!r}; there are {', '.join(ENGINES)}")
    try:
        _bench(engines, _granted(args.threads), args.seconds)
    except KeyboardInterrupt:
        raise SystemExit("interrupted") from None
    except (FastrnnError, RuntimeError) as error:
        raise SystemExit(f"fastrnn bench: {error}") from error


def _granted(threads: int) -> int:
    """How many of so many threads there are here to run with."""
    if load("c").missing():
        return min(threads, cpus())
    before = get_num_threads()
    set_num_threads(threads)
    granted = get_num_threads()
    set_num_threads(before)
    return granted


def _bench(engines: Sequence[str], threads: int, seconds: float) -> None:
    """Print a row a case: each engine's time, and how many times as long as the first's."""
    here = []
    for name in engines:
        missing = ENGINES[name].missing()
        if missing:
            print(f"without {ENGINES[name].title}: {missing}")
        else:
            here.append(name)
    if not here:
        raise SystemExit("fastrnn bench: none of these engines is here")
    titles = [ENGINES[name].title for name in here]
    width = max(map(len, titles)) + 2
    print(f"microseconds, {threads} thread{'s' * (threads != 1)}; in brackets: over the first\n")
    print(f"{'':<26}" + "".join(f"{title:>{width}}" for title in titles))
    with Race(here, threads) as race:
        for case in SHORT:
            found = race.run(case, seconds)
            first = found[here[0]].get("time")
            cells = [_cell(found[name], first if name != here[0] else None) for name in here]
            print(f"{case.name:<26}" + "".join(f"{cell:>{width}}" for cell in cells), flush=True)


def _cell(record: dict[str, Any], first: float | None) -> str:
    """An engine's time, or in a word why there is none."""
    if "time" not in record:
        return "-" if "skipped" in record else next(iter(record))
    ratio = f" ({record['time'] / first:.1f})" if first else ""
    return f"{1e6 * record['time']:,.{0 if record['time'] > 1e-4 else 1}f}{ratio}"


# ---------------------------------------------------------------- types of arguments


def positive(text: str) -> float:
    """A finite number > 0; argparse tells what else was given."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number > 0, not {text!r}")
    return value


def count(text: str) -> int:
    """An integer >= 1; argparse tells what else was given."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be an integer >= 1, not {text!r}")
    return value
