"""The demo: it learns, survives Ctrl-C, refuses what it cannot read, and its baselines are what they say.

And the command line beside it, but for what test_bench.py does with it.
"""

import io
import math
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import fastrnn
from fastrnn import cli, demo, lm
from fastrnn.bench.cases import Case
from fastrnn.optim import Adam

ROOT = Path(fastrnn.__file__).parent.parent


def sentences(count, seed=0):
    """A text of made-up sentences, in which each word says much about the next."""
    random = np.random.default_rng(seed)
    parts = [["the ", "a "], ["quick ", "lazy ", "brown "], ["fox ", "dog ", "hen "], ["jumps.\n", "sleeps.\n"]]
    return "".join(random.choice(words) for _ in range(count) for words in parts)


@pytest.fixture
def text(tmp_path, monkeypatch):
    """A file of sentences, which the environment names."""
    path = tmp_path / "sentences.txt"
    path.write_text(sentences(1500), encoding="utf-8")
    monkeypatch.setenv("TEXT", str(path))
    return path


@pytest.fixture
def numpy_alone(monkeypatch):
    monkeypatch.setattr(demo, "backends", lambda: ["numpy"])


def run(capsys, *arguments):
    """Exit code, stdout and stderr of a small run."""
    code = demo.main(["--hidden", "24", "--steps", "5", *map(str, arguments)])
    return code, *capsys.readouterr()


def scores(out):
    """Bits per character in the table at the end."""
    return {name: float(bits) for name, bits in re.findall(r"^(\w+) +([\d.]+)   from", out, re.M)}


# ---------------------------------------------------------------- a run


def test_it_learns_shows_writes_and_times(text, capsys):
    code, out, err = run(capsys, "--steps", 250)
    assert (code, err) == (0, "")
    assert out.startswith("fastrnn           " + fastrnn.__version__)
    assert f"Learning {text}" in out
    held_out = [float(bits) for bits in re.findall(r"^ *\d+%  held out ([\d.]+) bits", out, re.M)]
    assert len(held_out) == 11
    size = len(set(sentences(1500)))
    assert held_out[0] == pytest.approx(math.log2(size), abs=0.1)  # before it has learnt anything
    final = scores(out)
    assert held_out[-1] == pytest.approx(final["LSTM"], abs=0.01)
    assert final["LSTM"] < final["bigram"] < final["unigram"] < math.log2(size)
    assert f"takes {final['unigram']:.2f} bits by a unigram model and {final['bigram']:.2f} by a bigram" in out
    assert re.search(r"100%  .* train [\d.]+, gradient [\d.]+, [\d,]+ chars/s\n", out)
    sample = re.search(r"What it writes\n-+\n(.*)\n\nOne training step", out, re.S)[1]
    written = sample.split("|")[1]
    assert len(written) == 600 and {"the", "fox", "dog", "sleeps."} <= set(written.split())
    table = re.findall(r"^(\w+) +[\d.]+ +[\d,]+ +([\d.]+)$", out, re.M)
    assert [name for name, _ in table] == fastrnn.backends()
    assert table[0][1] == "1.00"


def test_the_same_seed_gives_the_same_sample(text, capsys, numpy_alone):
    first, again, other = (run(capsys, "--seed", seed)[1] for seed in (1, 1, 2))
    sample = [re.search(r"What it writes(.*)One training", out, re.S)[1] for out in (first, again, other)]
    assert sample[0] == sample[1] != sample[2]


def test_time_ends_the_training(text, capsys, numpy_alone):
    assert demo.main(["--hidden", "8", "--seconds", "0.5"]) == 0
    assert "100%" in capsys.readouterr().out


def test_the_model_is_saved(text, tmp_path, capsys, numpy_alone):
    path = tmp_path / "model.npz"
    code, out, _ = run(capsys, "--save", path)
    assert code == 0 and f"Saved to {path}" in out
    model, vocabulary = lm.load(path)
    corpus = demo.Corpus.of(sentences(1500))
    assert vocabulary == corpus.vocabulary
    assert model.score(corpus.held_out, demo.BATCH).bits == pytest.approx(scores(out)["LSTM"], abs=5e-4)


def test_it_runs_where_no_signal_arrives(text, capsys, numpy_alone):
    codes = []
    thread = threading.Thread(target=lambda: codes.append(run(capsys)[0]))
    thread.start()
    thread.join()
    assert codes == [0]


def test_a_terminal_without_the_characters(monkeypatch, tmp_path, numpy_alone):
    path = tmp_path / "text"
    path.write_text("Grüße aus Köln. " * 1000, encoding="utf-8")
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding="ascii"))
    assert demo.main(["--text", str(path), "--hidden", "8", "--steps", "2"]) == 0
    sys.stdout.flush()
    assert b"Gr??e aus K?ln" in buffer.getvalue()


# ---------------------------------------------------------------- Ctrl-C


def test_ctrl_c_ends_the_training_and_keeps_what_was_learnt(text, tmp_path, capsys, numpy_alone, monkeypatch):
    step, calls = demo._step, []

    def interrupted_step(*arguments):
        calls.append(None)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return step(*arguments)

    monkeypatch.setattr(demo, "_step", interrupted_step)
    before = signal.getsignal(signal.SIGINT)
    code, out, _ = run(capsys, "--steps", 1000, "--save", tmp_path / "model")
    assert code == 0 and signal.getsignal(signal.SIGINT) is before
    assert "Interrupted after 3 steps: what was learnt is kept." in out
    assert "Saved to" in out and "What it writes" in out and re.search(r"^numpy +\d", out, re.M)


@pytest.fixture
def interruptible():
    """Ctrl-C does what it does in a terminal: a shell's background job starts out ignoring it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("where", ["show_config", "_print_sample", "_step"])
def test_ctrl_c_elsewhere_or_twice_ends_the_demo(where, text, capsys, numpy_alone, monkeypatch):
    def interrupted(*_):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(demo, where, interrupted)
    assert run(capsys)[0] == 130
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to another process")
def test_ctrl_c_from_outside(text):
    arguments = "['--hidden', '24', '--seconds', '600']"
    code = f"from fastrnn import demo; demo.backends = lambda: ['numpy']; raise SystemExit(demo.main({arguments}))"
    command = [sys.executable, "-W", "error", "-c", code]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            for line in process.stdout:
                if line.startswith("   0%"):
                    break
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, err) == (0, "")
    assert "Interrupted after" in out and "What it writes" in out and "One training step" in out


# ---------------------------------------------------------------- texts


def test_without_a_text_it_reads_the_help_topics(monkeypatch):
    monkeypatch.delenv("TEXT", raising=False)
    assert demo._arguments([]).text is None
    text, title = demo.read_text(None)
    assert len(text) > 100_000 and "Python" in title
    paragraphs = text.split("\n\n")
    assert len(set(paragraphs)) == len(paragraphs)


def test_where_the_text_comes_from(text):
    assert demo._arguments([]).text == str(text)
    assert demo._arguments(["--text", "other"]).text == "other"
    assert demo.read_text(str(text)) == (sentences(1500), str(text))


def test_a_text_that_is_longer_than_a_minute_can_read(text, monkeypatch):
    monkeypatch.setattr(demo, "MOST", 15_000)
    assert demo.read_text(str(text))[0] == sentences(1500)[:15_000]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the text .*No such file"),
        ("directory", "cannot read the text "),
        (b"\xff\xfe\x00" * 9999, "cannot read the text .*utf-8"),
        (b"", "is too short: 0 characters, and it takes 10,000"),
        (b"a" * 9999, "is too short: 9,999 characters"),
    ],
    ids=str,
)
def test_texts_that_cannot_be_learnt(content, message, tmp_path, capsys):
    path = tmp_path / "text"
    if content == "directory":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    code, out, err = run(capsys, "--text", path)
    assert (code, out) == (2, "")
    assert re.fullmatch(f"fastrnn.demo: .*{message}.*\n", err)
    assert str(path) in err


def test_a_python_without_its_help_topics(monkeypatch, capsys):
    monkeypatch.delenv("TEXT", raising=False)
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    code, _, err = run(capsys)
    assert code == 2 and "--text PATH" in err


def test_a_place_to_save_that_is_none(text, tmp_path, capsys):
    code, out, err = run(capsys, "--save", tmp_path / "none" / "model")
    assert (code, out) == (2, "") and "No such file" in err  # before any training


def test_a_model_that_is_there_outlives_a_training_that_fails(text, tmp_path, capsys, monkeypatch):
    path = tmp_path / "model"
    path.write_bytes(b"of weeks")

    def train(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "train", train)
    assert run(capsys, "--save", path)[0] == 130
    assert path.read_bytes() == b"of weeks"


def test_a_model_that_cannot_be_saved_is_saved_elsewhere(text, tmp_path, capsys, monkeypatch):
    folder, path, train = tmp_path / "there", tmp_path / "there" / "model", demo.train
    folder.mkdir()

    def train_while_the_folder_goes(*arguments):
        train(*arguments)
        path.unlink()
        folder.rmdir()

    monkeypatch.setattr(demo, "train", train_while_the_folder_goes)
    monkeypatch.setattr(demo.tempfile, "tempdir", str(tmp_path))
    code, _, err = run(capsys, "--save", path)
    assert code == 2
    [spare] = tmp_path.glob("fastrnn-*.npz")
    first, second = err.splitlines()
    assert first.startswith(f"fastrnn.demo: cannot save to {path}: ") and "No such file" in first
    assert second == f"fastrnn.demo: the model is in {spare} instead; fastrnn.lm.load reads it"
    assert lm.load(spare)[1] == demo.Corpus.of(sentences(1500)).vocabulary


@pytest.mark.parametrize("main", [demo.main, lambda arguments: cli.main(["bench", *arguments])], ids=["demo", "bench"])
@pytest.mark.parametrize("value", ["nan", "-1", "0", "inf", "abc", ""])
def test_seconds_that_cannot_be(main, value, capsys):
    with pytest.raises(SystemExit) as exit:
        main([f"--seconds={value}"])
    assert exit.value.code == 2
    assert f"argument --seconds: must be a number > 0, not {value!r}\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    "main, option",
    [(demo.main, "--steps"), (demo.main, "--hidden"), (lambda arguments: cli.main(["bench", *arguments]), "--threads")],
    ids=["demo --steps", "demo --hidden", "bench --threads"],
)
@pytest.mark.parametrize("value", ["0", "-1", "1.5", "x", ""])
def test_counts_that_cannot_be(main, option, value, capsys):
    with pytest.raises(SystemExit) as exit:
        main([f"{option}={value}"])
    assert exit.value.code == 2
    assert f"argument {option}: must be an integer >= 1, not {value!r}\n" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["a" * 10_000, "ab" * 5_000], ids=["one character", "two"])
def test_texts_that_hold_no_surprise(text, tmp_path, capsys, numpy_alone):
    path = tmp_path / "text"
    path.write_text(text)
    code, out, _ = run(capsys, "--text", path)
    assert code == 0 and scores(out)["bigram"] < 0.001


# ---------------------------------------------------------------- its parts


def test_a_step_goes_along_its_own_gradient_clipped(monkeypatch):
    monkeypatch.setattr(demo, "CLIP", 1e-3)
    model = lm.LanguageModel(5, 4, 8, seed=0).train()
    piece, still = next(demo._pieces(np.arange(200) % 5))[1:], Adam(model, lr=0)
    norms = [demo._step(model, still, *piece, None)[1] for _ in range(3)]
    assert norms[0] == norms[1] == norms[2] > 1e-3
    gradients = np.concatenate([block.grad for block in model.blocks()])
    assert np.linalg.norm(gradients) == pytest.approx(1e-3, rel=1e-2)
    optimizer = Adam(model, lr=1e-3)
    losses = [demo._step(model, optimizer, *piece, None)[0] for _ in range(3)]
    assert losses[0] > losses[1] > losses[2]


def test_the_state_is_carried_to_the_end_of_the_text(text, monkeypatch):
    corpus, step, states = demo.Corpus.of(sentences(1500)[:20_000]), demo._step, []

    def watched_step(model, optimizer, inputs, targets, state):
        loss, norm, after = step(model, optimizer, inputs, targets, state)
        states.append((state, after))
        return loss, norm, after

    monkeypatch.setattr(demo, "_step", watched_step)
    demo.train(lm.LanguageModel(len(corpus.vocabulary), 4, 8, seed=0), corpus, math.inf, 40)
    epoch = math.ceil(math.ceil((len(corpus.training) - 1) / demo.BATCH) / demo.STEPS)
    assert 1 < epoch < 20
    for k, (before, _) in enumerate(states):
        assert before is (None if k % epoch == 0 else states[k - 1][1])


def test_each_backend_takes_the_same_step(text, capsys, monkeypatch):
    corpus, step, first = demo.Corpus.of(sentences(1500)), demo._step, {}

    def watched_step(model, *rest):
        result = step(model, *rest)
        first.setdefault(model.options["backend"], (model.rnn.backend, result[0]))
        return result

    monkeypatch.setattr(demo, "_step", watched_step)
    model = lm.LanguageModel(len(corpus.vocabulary), 4, 8, seed=None)
    before = model.state_dict()
    demo._print_backends(model, corpus)
    loss, _ = model.loss(*next(lm.batches(corpus.training, demo.BATCH, demo.STEPS)))
    assert first == {name: (name, pytest.approx(loss, rel=1e-5)) for name in fastrnn.backends()}
    assert all((model.state_dict()[name] == value).all() for name, value in before.items())


def test_baselines_are_what_they_say():
    corpus = demo.Corpus.of(sentences(100) + "xyz")
    assert len(corpus.training) + len(corpus.held_out) == len(sentences(100)) + 3
    training, held_out = corpus.training.tolist(), corpus.held_out.tolist()
    size, counts, pairs = len(corpus.vocabulary), Counter(training), Counter(pairwise(training))
    share = {token: (counts[token] + 1) / (len(training) + size) for token in range(size)}
    assert sum(share.values()) == pytest.approx(1)
    unigram, bigram = [], []
    for before, after in pairwise(held_out):
        unigram.append(-math.log2(share[after]))
        bigram.append(-math.log2((pairs[before, after] + share[after]) / (counts[before] + 1)))
    assert corpus.baselines() == pytest.approx((np.mean(unigram), np.mean(bigram)), rel=1e-12)


def test_no_more_is_held_out_than_can_be_scored_often():
    corpus = demo.Corpus.of("ab" * 500_000)
    assert (len(corpus.training), len(corpus.held_out)) == (980_000, 20_000)


def test_the_schedule():
    shares = np.linspace(0, 1, 1001)
    rates = [demo._schedule(share) for share in shares]
    assert 0 < rates[0] < 0.1 and rates[-1] == pytest.approx(0.02)
    assert 0.95 < max(rates) <= 1
    peak = int(np.argmax(rates))
    assert 0.01 < shares[peak] < 0.03
    assert (np.diff(rates[: peak + 1]) > 0).all() and (np.diff(rates[peak:]) < 0).all()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_on_a_terminal_is_one_line(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    file = Terminal()
    progress = demo.Progress(file)
    progress.show(0.0, "start", True)
    progress.show(0.5, "held out " + "9" * 50, True)
    progress.show(0.51, "too soon", False)
    progress.show(1.0, "end", True)
    progress.close()
    first, *lines = file.getvalue().split("\r")
    assert first == ""
    assert lines[0].rstrip() == "[          ]   0%  start"
    assert lines[1].startswith("[=====     ]  50%  held out 99")
    assert lines[2] == "[==========] 100%  end".ljust(39) + "\n"
    assert {len(line.rstrip("\n")) for line in lines} == {39}


def test_progress_elsewhere_is_a_line_a_tenth():
    file = io.StringIO()
    progress = demo.Progress(file)
    progress.show(0.1, "first", True)
    progress.show(0.15, "between", False)
    progress.show(1.0, "last", True)
    progress.close()
    assert file.getvalue() == "  10%  first\n 100%  last\n"


# ---------------------------------------------------------------- the command line beside it


def test_version(capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(["--version"])
    assert exit.value.code == 0
    assert capsys.readouterr().out == f"fastrnn {fastrnn.__version__}\n"


def test_bench_has_the_threads_that_it_tells(capsys, monkeypatch):
    before, asked = fastrnn.get_num_threads(), []

    class Race(cli.Race):
        def __init__(self, engines, threads):
            asked.append(threads)
            super().__init__(engines, threads)

    monkeypatch.setattr(cli, "Race", Race)
    monkeypatch.setattr(cli, "SHORT", ())
    cli.main(["bench", "--engines", "numpy", "--threads", "100000"])
    [granted] = asked
    assert before <= granted <= os.cpu_count()
    assert f", {granted} thread" in capsys.readouterr().out
    assert fastrnn.get_num_threads() == before


@pytest.mark.parametrize(
    "arguments", [["bench", "--engines", "numpy", "--seconds", "0.01"], ["config"], ["--version"]], ids=lambda a: a[0]
)
def test_a_pipe_that_nobody_reads(arguments):
    case = Case("rnn", "step", 4, 1, 1)
    code = "from fastrnn import cli; from fastrnn.bench.cases import Case\n"
    code += f"cli.SHORT = ({case!r},) * 3; cli.main({arguments})"
    command = [sys.executable, "-W", "error", "-c", code]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as pipe:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=pipe, stderr=subprocess.PIPE, text=True, timeout=120
        )
    assert (done.returncode, done.stderr) == (1, "")
