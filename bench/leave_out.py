"""What each technique brings: the kernels are built without it, one at a time, and timed beside the whole.

    python bench/leave_out.py [--threads 2] [--seconds 1] [part of a name ...]

Prints a Markdown table: for each technique how many times as long the cases take without it, and where that was
measured. A technique is left out by changing a line or two of the sources; that they are still there is checked.
Building and timing are regress.py's, the waiting for a machine that is itself steady.py's. Next: WHY.md, which tells
what the techniques are.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))
import regress
from arguments import count, positive, unknown
from steady import Steady

from fastrnn.bench.cases import TABLE, Case
from fastrnn.bench.race import Process

PATIENCE = 600.0  # seconds to lose in all on waiting for a machine that is itself


class Technique(NamedTuple):
    """What is changed to do without it: (file, text, text instead), and the cases that tell."""

    name: str
    without: tuple[tuple[str, str, str], ...]
    cases: tuple[Case, ...]


case = {each.name: each for each in TABLE}.__getitem__  # by name


def technique(name: str, cases: str, *without: tuple[str, str, str]) -> Technique:
    """One, its cases by name."""
    return Technique(name, without, tuple(map(case, cases.split())))


BY_PANEL = "*by_panel = threads > 1 && (heads <= 1 || by_panels < by_rows || often || layer_bytes(w) >= l3);"

TECHNIQUES = (
    technique(
        "input products for many steps at once",
        "lstm-inference-h64-b1 lstm-inference-h256-b1 gru-inference-h128-b8",
        ("share.c", "run->chunk = B && rows > B ? rows / B : 1;", "run->chunk = 1;"),
    ),
    technique(
        "input and state in one product, where a step has rows enough",
        "lstm-inference-h16-b32 gru-inference-h16-b8 rnn-inference-h16-b32 lstm-inference-h128-b128 lstm-step-h64-b1",
        ("share.c", "run->joint = is_joint(run);", "run->joint = 0;"),
    ),
    technique(
        "a tall tile's upper half stored before the lower half ends",
        "lstm-inference-h16-b32 gru-inference-h16-b32 gru-inference-h64-b32 rnn-inference-h64-b32",
        ("product.h", "#define STORES_AT_ONCE (VEC_BYTES == 64 ? 18 : 32)", "#define STORES_AT_ONCE 32"),
    ),
    technique(
        "an RNN's rows written from the last to the first",
        "rnn-inference-h16-b8 rnn-inference-h64-b8 rnn-training-h16-b32",
        ("share.c", "run->last_first = is_last_first(run);", ""),
    ),
    technique(
        "a row alone by a function of its own",
        "lstm-inference-h16-b1 gru-inference-h16-b1 rnn-inference-h16-b1 lstm-training-h16-b1",
        ("kernels.h", "if (r1 - r0 <= 1) {", "if (r0 >= r1) {"),
    ),
    technique(
        "several panels at a time for a single row",
        "lstm-inference-h64-b1 gru-inference-h128-b1 lstm-step-h128-b1",
        ("product.h", "if (rows == 1 && panels >= 2) {", "if (0) {"),
    ),
    technique(
        "so few panels of a single row that L1 keeps them",
        "lstm-inference-h64-b1 gru-inference-h128-b1 lstm-training-h64-b1 gru-step-h64-b1",
        ("kernels.h", "if (run->B == 1 && gates.vecs > 1)", "if (0)"),
    ),
    technique(
        "tiles as tall as the registers allow",
        "lstm-inference-h256-b32 lstm-training-h256-b32 gru-inference-h128-b128",
        (
            "product.h",
            "(ACCUMULATORS / (vectors) < 8 ? ACCUMULATORS / (vectors) : 8)",
            "(ACCUMULATORS * 2 / 3 / (vectors) < 8 ? ACCUMULATORS * 2 / 3 / (vectors) : 8)",
        ),
    ),
    technique(
        "a vector of weights loaded once, however few the rows",
        "lstm-inference-h64-b8 lstm-inference-h128-b8",
        ("product.h", "held = rows == 1 ? 0 : loaded - in_memory;", "held = 0;"),
    ),
    technique(
        "numbers that are used once read by the multiply-add itself",
        "rnn-inference-h16-b32 rnn-training-h16-b32 gru-training-h16-b32",
        ("product.h", "if (held == 1 && loaded == 1) {", "if (0) {"),
    ),
    technique(
        "several terms in one go of a tile's loop",
        "lstm-inference-h128-b32 gru-inference-h256-b32 rnn-training-h128-b32",
        ("product.h", "#define TERMS (VEC_BYTES >= 32 ? 4 : 1)", "#define TERMS 1"),
    ),
    technique(
        "several small tiles before what comes after their sums",
        "lstm-inference-h16-b32 lstm-inference-h128-b32 gru-training-h64-b32",
        ("sequence.h", "#define TILES_AT_ONCE (VEC_BYTES == 32 ? 4 : 1)", "#define TILES_AT_ONCE 1"),
    ),
    technique(
        "weights swept up and down",
        "lstm-inference-h512-b1 rnn-inference-h1024-b1 lstm-training-h512-b1 lstm-step-h256-b1 rnn-step-h512-b1",
        ("kernels.h", "return (int)((s + mine->own->steps) & 1);", "return 0;"),
    ),
    technique(
        "longer chunks where weights outgrow the last cache",
        "lstm-inference-h1024-b8 lstm-inference-h1024-b32",
        ("share.c", "l3 / 2 ? CHUNK_FAR", "l3 / 2 ? CHUNK_LEAST"),
    ),
    technique(
        "the next panel's weights asked for while one is summed",
        "lstm-inference-h512-b32 gru-inference-h1024-b32 lstm-training-h1024-b32",
        ("product.h", "if (!form->asking ||", "if (1 ||"),
    ),
    technique(
        "threads that share units, where there are few rows",
        "lstm-inference-h128-b1 gru-inference-h256-b1 lstm-training-h256-b1",
        ("share.c", BY_PANEL, "*by_panel = 0;"),
    ),
    technique(
        "threads that own rows, where there are many",
        "lstm-inference-h64-b32 gru-inference-h128-b128 rnn-inference-h64-b8",
        ("share.c", BY_PANEL, "*by_panel = 1;"),
    ),
    technique(
        "layers at the same time",
        "lstm-inference-h64-b1-2x1 rnn-inference-h64-b1-2x1 gru-training-h64-b1-2x1",
        ("share.c", "if (layered < shared) shared = layered", "if (0) shared = layered"),
    ),
    technique(
        "weight gradients by chunks of steps, not at the end",
        "lstm-training-h64-b128 lstm-training-h128-b128 gru-training-h256-b128",
        ("kernels.h", "rows < GRAD_ROWS ? GRAD_ROWS / (rows ? rows : 1) : 1;", "run->T ? run->T : 1;"),
    ),
    technique(
        "weights packed by squares, transposed in registers",
        "lstm-training-h256-b1 gru-training-h512-b1 lstm-training-h1024-b8",
        (
            "product.h",
            "v_transpose(square);",
            "real flat[LANES * LANES]; memcpy(flat, square, sizeof flat);"
            "for (int i = 0; i < LANES * LANES; i++) ((real *)square)[i % LANES * LANES + i / LANES] = flat[i];",
        ),
    ),
    technique(
        "a row's next lines fetched while weights are packed",
        "lstm-training-h512-b1 rnn-training-h1024-b1",
        ("product.h", "__builtin_prefetch(from + j * K + PACK_AT_ONCE);", ""),
    ),
    technique(
        "rows from afar fetched ahead",
        "rnn-inference-h128-b128 lstm-inference-h128-b128 rnn-training-h64-b128 lstm-training-h128-b128",
        ("kernels.h", "return depth >= FETCH_DEPTH && ", "return 0 && "),
    ),
    technique(
        "rows that stand evenly multiplied in place",
        "rnn-training-h64-b32 rnn-training-h128-b8 gru-training-h128-b32",
        ("gradient.h", "if (even == depth &&", "if (0 &&"),
    ),
    technique(
        "a small network's batch in two shards",
        "gru-training-h16-b8 lstm-training-h16-b32 rnn-training-h64-b8",
        ("share.c", "<= SHARD_STATES ? FRNN_SHARDS : 1;", "<= SHARD_STATES ? 1 : 1;"),
    ),
    technique(
        "a layer's weight gradients shared as one piece of work",
        "rnn-training-h16-b128 gru-training-h16-b32",
        ("gradient.h", "nearest_edge(from - before, cost, vectors)", "vectors * rank / size"),
        ("gradient.h", "nearest_edge(to - before, cost, vectors)", "vectors * (rank + 1) / size"),
    ),
    technique(
        "sums of weight gradients fetched ahead",
        "lstm-training-h512-b32 rnn-training-h1024-b32",
        ("gradient.h", "__builtin_prefetch(out + (m + rows) * out_ld + q * LANES, 1);", "(void)0;"),
    ),
    technique(
        "the standard cell's activations in lockstep, compiled apart",
        "lstm-inference-h16-b32 lstm-inference-h64-b32",
        ("lstm.h", "if (!k->w->plain) lstm_forward_any", "if (1) lstm_forward_any"),
    ),
    technique(
        "a tile's outputs addressed once, not one by one",
        "rnn-inference-h16-b32 lstm-inference-h16-b32 gru-training-h64-b32",
        ("sequence.h", "if (!lane->y) return (block){k->h_out, k->w->Pp};", "return (block){0};"),
    ),
    technique(
        "rows of a ragged batch addressed once, too",
        "rnn-inference-h128-b32-ragged gru-inference-h128-b32-ragged rnn-training-h128-b32-ragged",
        ("sequence.h", "if (lane->mask || (p +", "if (lane->mask || k->run->perm || (p +"),
        ("sequence.h", "if (!lane->dy || lane->mask ||", "if (!lane->dy || lane->mask || k->run->perm ||"),
        ("gradient.h", "const int direct = !reverse &&", "const int direct = !reverse && !run->perm &&"),
    ),
    technique(
        "small calls timed alone and by the team",
        "rnn-training-h16-b8 lstm-inference-h64-b1 rnn-training-h64-b1",
        ("share.c", "if (!frnn_choose_by_trial(doubt, key)) return doubt;", ""),
    ),
    technique(
        "a step like the last one prepared once",
        "lstm-step-h16-b1 lstm-step-h128-b1 gru-step-h128-b1 rnn-step-h256-b1",
        ("plan.c", "plan->settled = is_plain(call, grads);", "plan->settled = 0;"),
    ),
)


def main(argv: list[str] | None = None) -> None:
    """Run it; see --help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="parts of techniques' names; all where there is none")
    parser.add_argument("--threads", type=count, default=2)
    parser.add_argument("--seconds", type=positive, default=1.0, help="a case and build")
    args = parser.parse_args(argv)
    if strange := unknown(args.names, [t.name for t in TECHNIQUES]):
        parser.error(f"no technique is called {strange}; there are: {'; '.join(t.name for t in TECHNIQUES)}")
    chosen = [t for t in TECHNIQUES if not args.names or any(part in t.name for part in args.names)]
    with tempfile.TemporaryDirectory() as scratch, closing(Steady(PATIENCE)) as steady:
        folder = Path(scratch)
        args.ready = partial(steady.wait, args.threads)
        whole = regress.prepare(regress.ROOT, None, folder / "whole")
        print("| without | takes | measured at |\n|---|---|---|")
        for number, left_out in enumerate(chosen):
            ratios = compare(whole, build(left_out, folder / str(number)), left_out.cases, args)
            mean = statistics.geometric_mean(ratios.values())
            told = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
            print(f"| {left_out.name} | {mean:.2f} | {told} |", flush=True)
        print("\n{} of {} rounds began while the machine was itself".format(*steady.held()))


def build(left_out: Technique, folder: Path) -> Path:
    """This tree without a technique; raises regress.Failure."""
    sources = folder.with_name(f"{folder.name}-sources")
    regress.extract(regress.ROOT, None, sources)
    for name, text, instead in left_out.without:
        path = sources / "csrc" / name
        before = path.read_text()
        if before.count(text) != 1:
            raise regress.Failure(f"{left_out.name}: {name} holds {text!r} {before.count(text)} times")
        path.write_text(before.replace(text, instead))
    regress.build(sources, folder)
    return folder


def compare(whole: Path, without: Path, cases: tuple[Case, ...], args: argparse.Namespace) -> dict[str, float]:
    """The median time without over the median with, by case; the two are asked in turn."""
    found = {}
    with ExitStack() as closing:
        processes = {}
        for library in (whole, without):
            processes[library.name] = Process("c", args.threads, library)
            closing.callback(processes[library.name].close)
        for each in cases:
            times = regress.rounds(processes, each, args.seconds, whole.with_name("outputs.npz"), args.ready)
            with_it, without_it = map(statistics.median, times)
            found[each.name] = without_it / with_it
    return found


if __name__ == "__main__":
    try:
        main()
    except regress.Failure as failure:
        sys.exit(str(failure))
