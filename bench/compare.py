"""fastrnn beside PyTorch, every engine in a process of its own, asked in turn: `python bench/compare.py`.

Prints a row per case with each engine's time, C's rate of multiply-adds, and how many times longer the others take.
It judges nothing and writes no files. The cases are in cases.py, what is timed in engines.py.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from cases import GATES, MODES, Case, cases
from engines import engines


def ask(process: subprocess.Popen[str], case: Case) -> float:
    """The engine's time for a case, in seconds."""
    assert process.stdin and process.stdout
    process.stdin.write(json.dumps(asdict(case)) + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise SystemExit(f"an engine died on {case.name}")
    return float(answer)


def main(argv: list[str] | None = None) -> None:
    """Run the comparison; see --help."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", default=",".join(GATES))
    parser.add_argument("--hidden", default="16,128,512")
    parser.add_argument("--batch", default="1,32")
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--engines", default="c,torch", help="of c, numba, numpy, torch; default: c,torch")
    parser.add_argument("--seconds", type=float, default=0.5, help="per case and engine")
    args = parser.parse_args(argv)
    names = [name for name in args.engines.split(",") if name in engines()]
    program = str(Path(__file__).with_name("engines.py"))
    running = {
        name: subprocess.Popen(
            [sys.executable, program, name, str(args.seconds)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in names
    }
    print(f"{'case':<24}" + "".join(f"{name + ' us':>13}" for name in names) + f"{names[0] + ' GFLOP/s':>14}", end="")
    print("".join(f"{name + ' x':>10}" for name in names[1:]))
    chosen = cases(
        tuple(args.cells.split(",")),
        tuple(int(h) for h in args.hidden.split(",")),
        tuple(int(b) for b in args.batch.split(",")),
        tuple(args.modes.split(",")),
    )
    for case in chosen:
        times = [ask(running[name], case) for name in names]
        row = "".join(f"{1e6 * t:13.1f}" for t in times) + f"{case.flops / times[0] / 1e9:14.1f}"
        print(f"{case.name:<24}" + row + "".join(f"{t / times[0]:10.2f}" for t in times[1:]), flush=True)
    for process in running.values():
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
