"""One minute of fastrnn: `python -m fastrnn.demo` learns a text character by character and writes some.

It shows what runs, trains a small LSTM against two honest baselines, and times the same step on each
backend. Ctrl-C ends the training, not the demo. A demonstration, not a trainer: the sizes are fixed
at what a minute on two cores can teach. Read next: lm.py, the model; optim.py, what trains it.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TextIO

import numpy as np

from . import lm
from .backends import backends, load
from .cli import count, positive
from .config import show_config
from .errors import FastrnnError, OptionError
from .optim import Adam, clip_grad_norm

__all__ = ["main"]

BATCH, STEPS = 16, 64  # B, and T of a piece of truncated BPTT
EMBEDDING, HIDDEN = 64, 256
RATE, CLIP = 6e-3, 1.0  # the highest learning rate, the largest norm of a gradient
LEAST, MOST = 10_000, 20_000_000  # characters of a text: fewer say nothing, more than that no minute can read
HELD_OUT = 20_000  # characters at most


# ---------------------------------------------------------------- the text


def read_text(path: str | None) -> tuple[str, str]:
    """The text to learn, and what it is: a UTF-8 file, or without one Python's own help topics."""
    if path is None:
        text, title = _help_topics(), "Python's help topics"
    else:
        try:
            with open(path, encoding="utf-8-sig") as file:
                text, title = file.read(MOST), path
        except (OSError, UnicodeDecodeError) as error:
            raise OptionError(f"cannot read the text {path}: {error}") from error
    if len(text) < LEAST:
        raise OptionError(f"{title} is too short: {len(text):,} characters, and it takes {LEAST:,} to learn from")
    return text, title


def _help_topics() -> str:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise OptionError("this Python comes without pydoc_data, the text to learn: give one, --text PATH") from error
    # Topics quote one another: each paragraph once, so that what is held out is new to the model.
    return "\n\n".join(dict.fromkeys(part for topic in topics.values() for part in re.split("\n\n+", topic.strip())))


@dataclass(frozen=True)
class Corpus:
    """A text as tokens [N], the end of it held out."""

    vocabulary: lm.Vocabulary
    training: np.ndarray
    held_out: np.ndarray

    @classmethod
    def of(cls, text: str) -> Corpus:
        vocabulary = lm.Vocabulary.characters(text)
        tokens = vocabulary.encode(text)
        cut = len(tokens) - min(len(tokens) // 10, HELD_OUT)
        return cls(vocabulary, tokens[:cut], tokens[cut:])

    def baselines(self) -> tuple[float, float]:
        """Bits per held-out character, the first left out, of a unigram and a bigram model of the training part.

        The unigram adds one to every count (Laplace); the bigram adds one to every context, shared out as the unigram
        says (MacKay and Peto 1995).
        """
        size, training = len(self.vocabulary), self.training
        before, after = self.held_out[:-1], self.held_out[1:]
        counts = np.bincount(training, minlength=size)
        unigram = (counts + 1) / (len(training) + size)
        pairs, times = np.unique(training[:-1] * size + training[1:], return_counts=True)
        place = np.searchsorted(pairs, before * size + after).clip(max=len(pairs) - 1)
        seen = np.where(pairs[place] == before * size + after, times[place], 0)
        bigram = (seen + unigram[after]) / (counts[before] + 1)
        return float(np.log2(1 / unigram[after]).mean()), float(np.log2(1 / bigram).mean())


# ---------------------------------------------------------------- training


class Progress:
    """How far it is: a bar on one line of a terminal; elsewhere a line at every tenth."""

    WIDTH = 10

    def __init__(self, file: TextIO) -> None:
        self.file, self.live = file, file.isatty()
        self._due = 0.0  # when the bar is to be drawn again

    def show(self, share: float, figures: str, tenth: bool) -> None:
        """share: how much is done, 0..1; tenth: whether another tenth has just been."""
        if not self.live:
            if tenth:
                print(f"{share:5.0%}  {figures}", file=self.file, flush=True)
        elif tenth or time.perf_counter() >= self._due:
            full = round(share * self.WIDTH)
            line = f"[{'=' * full}{' ' * (self.WIDTH - full)}] {share:4.0%}  {figures}"
            columns = shutil.get_terminal_size().columns - 1
            print("\r" + line[:columns].ljust(columns), end="", file=self.file, flush=True)
            self._due = time.perf_counter() + 0.1

    def close(self) -> None:
        if self.live:
            print(file=self.file)


def train(model: lm.LanguageModel, corpus: Corpus, seconds: float, steps: int | None) -> None:
    """Train until the time is over, or after so many steps, or at Ctrl-C."""
    optimizer, pieces, progress = Adam(model), _pieces(corpus.training), Progress(sys.stdout)
    loss = norm = busy = 0.0
    done, count, tenths, state, held_out = 0, 0, 0, None, ""
    start = time.perf_counter()
    model.train()
    with _interruptible() as interrupted:
        while not interrupted.is_set():
            elapsed = time.perf_counter() - start
            share = min(1.0, elapsed / seconds if steps is None else done / steps)
            tenth = share * 10 >= tenths
            if tenth:
                tenths = int(share * 10) + 1
                held_out = f"held out {model.score(corpus.held_out, BATCH).bits:.2f} bits"
            learnt = f", train {loss / math.log(2):.2f}, gradient {norm:.2f}, {count / max(busy, 1e-9):,.0f} chars/s"
            progress.show(share, held_out + learnt * (done > 0), tenth)
            if share == 1:
                break
            first, inputs, targets = next(pieces)
            optimizer.lr = RATE * _schedule(share)
            began = time.perf_counter()
            latest, norm, state = _step(model, optimizer, inputs, targets, None if first else state)
            busy += time.perf_counter() - began
            loss += (latest - loss) * (0.05 if done else 1)
            done, count = done + 1, count + inputs.size
    progress.close()
    model.eval()
    if interrupted.is_set():
        print(f"Interrupted after {done} steps: what was learnt is kept.")


def _step(model: lm.LanguageModel, optimizer: Adam, inputs: Any, targets: Any, state: Any) -> tuple[float, float, Any]:
    """One training step: the loss in nats, the norm of its gradient, the state to carry on."""
    loss, state = model.loss(inputs, targets, state)
    optimizer.zero_grad()
    model.backward()
    norm = clip_grad_norm(model, CLIP)
    optimizer.step()
    return loss, norm, state


def _pieces(tokens: np.ndarray) -> Iterator[tuple[bool, np.ndarray, np.ndarray]]:
    """The training text over and over: whether it begins anew, inputs and targets."""
    while True:
        for k, (inputs, targets) in enumerate(lm.batches(tokens, BATCH, STEPS)):
            yield k == 0, inputs, targets


def _schedule(share: float) -> float:
    """The learning rate's share when so much is done: up within 2 %, then down half a cosine to 2 %."""
    return min(1.0, 0.05 + share / 0.02) * (0.51 + 0.49 * math.cos(math.pi * share))


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets, between two steps and not within one; a second one interrupts as usual."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted  # signals reach the main thread alone
        return

    def handle(*_: Any) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


# ---------------------------------------------------------------- what it prints


def _heading(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}")


def _print_scores(model: lm.LanguageModel, corpus: Corpus, unigram: float, bigram: float) -> None:
    _heading("Bits per character held out")
    print(f"unigram{unigram:8.3f}   from how frequent each character is")
    print(f"bigram {bigram:8.3f}   from the character before")
    print(f"LSTM   {model.score(corpus.held_out, BATCH).bits:8.3f}   from all characters before")


def _print_sample(model: lm.LanguageModel, corpus: Corpus, seed: int) -> None:
    prompt = corpus.held_out[:100]
    sample = model.generate(prompt, 600, temperature=0.7, rng=seed)
    decode = corpus.vocabulary.decode
    _heading("What it writes")
    print(f"...{decode(prompt)}|{decode(sample)}")


def _print_backends(model: lm.LanguageModel, corpus: Corpus) -> None:
    """The training step of this model on each backend, the best of several."""
    inputs, targets = next(lm.batches(corpus.training, BATCH, STEPS))
    _heading(f"One training step, T={STEPS}, B={BATCH}, H={model.options['hidden_size']}: the best of several")
    print(f"{'backend':8}{'ms':>10}{'characters/s':>16}{'relative':>12}")
    fastest = None
    for name in backends():
        if load(name).broken():
            continue
        twin = lm.LanguageModel(**{**model.options, "backend": name})
        twin.load_state_dict(model.state_dict())
        twin.train()
        optimizer = Adam(twin)
        times: list[float] = []
        _step(twin, optimizer, inputs, targets, None)  # compiles, packs, allocates
        while len(times) < 3 or sum(times) < 0.5:
            began = time.perf_counter()
            _step(twin, optimizer, inputs, targets, None)
            times.append(time.perf_counter() - began)
        best = min(times)
        fastest = fastest or best
        print(f"{name:8}{best * 1e3:10.1f}{inputs.size / best:16,.0f}{fastest / best:12.2f}", flush=True)


# ---------------------------------------------------------------- the command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; the exit code: 0, 2 for what cannot be done, 130 for Ctrl-C outside the training."""
    arguments = _arguments(argv)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal may lack a character of the text
    try:
        _run(arguments)
    except (FastrnnError, OSError) as error:
        print(f"fastrnn.demo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _run(arguments: argparse.Namespace) -> None:
    text, title = read_text(arguments.text)
    corpus = Corpus.of(text)
    vocabulary = corpus.vocabulary
    model = lm.LanguageModel(len(vocabulary), EMBEDDING, arguments.hidden, seed=arguments.seed)
    if arguments.save:
        with open(arguments.save, "ab"):  # that it cannot be written shows now, not after the training
            pass
    show_config()
    _heading(f"Learning {title}")
    unigram, bigram = corpus.baselines()
    print(
        f"{len(text):,} characters, {len(vocabulary)} different ones. Each of the last {len(corpus.held_out):,}, which"
    )
    print(f"are held out, takes {unigram:.2f} bits by a unigram model and {bigram:.2f} by a bigram model.")
    print(f"{model!r} has {model.num_parameters:,} parameters. Ctrl-C ends the training early.", flush=True)
    train(model, corpus, arguments.seconds, arguments.steps)
    if arguments.save:
        _save(arguments.save, model, vocabulary)
    _print_scores(model, corpus, unigram, bigram)
    _print_sample(model, corpus, arguments.seed)
    _print_backends(model, corpus)


def _save(path: str, model: lm.LanguageModel, vocabulary: lm.Vocabulary) -> None:
    """Save to `path`; where that fails, what was learnt goes to a temporary file, which the error names."""
    try:
        lm.save(path, model, vocabulary)
    except Exception as error:
        print(f"fastrnn.demo: cannot save to {path}: {error or type(error).__name__}", file=sys.stderr)
        file, spare = tempfile.mkstemp(".npz", "fastrnn-")
        os.close(file)
        lm.save(spare, model, vocabulary)
        raise FastrnnError(f"the model is in {spare} instead; fastrnn.lm.load reads it") from error
    print(f"Saved to {path}; fastrnn.lm.load reads it.")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m fastrnn.demo", description=(__doc__ or "").partition("\n\n")[0])
    text = "a UTF-8 text to learn (default: that of the environment's TEXT, else Python's help topics)"
    parser.add_argument("--text", default=os.environ.get("TEXT") or None, metavar="PATH", help=text)
    parser.add_argument("--seconds", type=positive, default=60.0, help="how long to train (default: 60)")
    parser.add_argument("--steps", type=count, help="train for so many steps instead")
    parser.add_argument("--hidden", type=count, default=HIDDEN, help=f"hidden units (default: {HIDDEN})")
    parser.add_argument("--seed", type=int, default=0, help="of the model and of the sample (default: 0)")
    parser.add_argument("--save", metavar="PATH", help="where to write the trained model")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
