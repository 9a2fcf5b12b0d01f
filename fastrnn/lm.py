"""A language model over characters or words: vocabulary, model, batches for truncated BPTT, generation.

Small on purpose: no training loop, no command line, no file formats but its own. What it is made of
is in nn.py and layers.py; a loop around it is in demo.py.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .arguments import integer, probability
from .cell import Cell
from .errors import DtypeError, OptionError, ShapeError
from .init import forget_bias, uniform, zeros
from .layers import Layer, State
from .module import Module, as_dtype, generator, reading, replacing
from .nn import CrossEntropy, Dropout, Embedding, Linear, sample

__all__ = ["EOS", "UNK", "LanguageModel", "Score", "Vocabulary", "batches", "load", "save"]

UNK, EOS = "<unk>", "<eos>"
IGNORED = -100  # a target that CrossEntropy leaves out


# ---------------------------------------------------------------- tokens


@dataclass(frozen=True)
class Vocabulary:
    """Tokens, and the number of each: its place.

    tokens  strings, all different
    unit    "characters", of which a text is the plain sequence; or "words", set apart by white space, with EOS at the
            end of every line and UNK, where there is one, in place of a word that is unknown

    `Vocabulary.characters(text)` and `Vocabulary.words(text)` make that of a text. Raises OptionError.
    """

    tokens: tuple[str, ...]
    unit: str = "characters"

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", tuple(self.tokens))
        if self.unit not in ("characters", "words"):
            raise OptionError(f"unknown unit {self.unit!r}; there are 'characters', 'words'")
        if not all(isinstance(token, str) for token in self.tokens):
            raise OptionError("tokens of a vocabulary must be strings")
        if len(self._places) != len(self.tokens):
            twice = next(token for token, count in Counter(self.tokens).items() if count > 1)
            raise OptionError(f"tokens of a vocabulary must differ; {twice!r} comes twice")

    @classmethod
    def characters(cls, text: str) -> Vocabulary:
        """Every character of a text, sorted."""
        return cls(tuple(sorted(set(text))))

    @classmethod
    def words(cls, text: str, size: int | None = None) -> Vocabulary:
        """UNK, EOS and the words of a text, the most frequent first; no more than `size` tokens in all."""
        if size is not None:
            size = integer("size", size, 2)
        counts = Counter(word for word in text.split() if word not in (UNK, EOS))
        frequent = sorted(counts, key=lambda word: (-counts[word], word))
        return cls((UNK, EOS, *frequent)[:size], "words")

    @cached_property
    def _places(self) -> dict[str, int]:
        return {token: place for place, token in enumerate(self.tokens)}

    def encode(self, text: str) -> np.ndarray:
        """The numbers of a text's tokens, [N] int64; OptionError for a token that is unknown where there is no UNK."""
        tokens: Iterable[str] = text
        if self.unit == "words":
            tokens = (word for line in text.splitlines() for word in (*line.split(), EOS))
        places, unknown = self._places, self._places.get(UNK) if self.unit == "words" else None
        try:
            if unknown is None:
                return np.fromiter(map(places.__getitem__, tokens), np.int64)
            return np.fromiter((places.get(token, unknown) for token in tokens), np.int64)
        except KeyError as error:
            known = f"the {len(self)} {self.unit} of this vocabulary"
            raise OptionError(f"{error.args[0]!r} is not among {known}") from None

    def decode(self, tokens: Any) -> str:
        """The text of numbers: characters put together, words with spaces between, EOS as a line's end.

        Raises ShapeError for a number that no token has.
        """
        numbers = np.asarray(tokens).reshape(-1).tolist()
        for number in numbers:
            if not (isinstance(number, int) and 0 <= number < len(self)):
                raise ShapeError(f"no token has the number {number!r}; there are 0..{len(self) - 1}")
        found = [self.tokens[number] for number in numbers]
        if self.unit == "characters":
            return "".join(found)
        return re.sub(" ?\n ?", "\n", " ".join("\n" if token == EOS else token for token in found))

    def __len__(self) -> int:
        return len(self.tokens)


def batches(tokens: Any, batch_size: int, steps: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Inputs and targets [<=steps, B] for truncated BPTT, in order: the state of one pair is carried into the next.

    tokens      [N], one stream, which is cut into batch_size rows of one length that are read side by side
    batch_size  B
    steps       tokens of a row in one pair, through which gradients flow (Williams and Peng 1990)

    Every token but the first is a target once; where the last rows have no more, targets are -100, which
    `nn.CrossEntropy` leaves out. Raises ShapeError for fewer than two tokens, OptionError, DtypeError.
    """
    batch_size, steps = integer("batch_size", batch_size, 1), integer("steps", steps, 1)
    stream = _stream(tokens, 2)
    count = stream.size - 1
    length = -(-count // batch_size)
    inputs, targets = np.zeros(length * batch_size, np.int64), np.full(length * batch_size, IGNORED)
    inputs[:count], targets[:count] = stream[:-1], stream[1:]
    inputs, targets = inputs.reshape(batch_size, length).T, targets.reshape(batch_size, length).T
    return ((inputs[start : start + steps], targets[start : start + steps]) for start in range(0, length, steps))


# ---------------------------------------------------------------- the model


@dataclass(frozen=True)
class Score:
    """How well a model predicts a stream: its mean cross-entropy in nats per token, over how many tokens."""

    nats: float
    tokens: int

    @property
    def bits(self) -> float:
        """Bits per token."""
        return self.nats / math.log(2)

    @property
    def perplexity(self) -> float:
        """exp(nats): among how many equally likely tokens the model chooses."""
        return math.inf if self.nats > 700 else math.exp(self.nats)


class LanguageModel(Module):
    """Embedding, recurrent layers, softmax: the probability of each next token (Mikolov et al. 2010).

    vocab_size      V
    embedding_size  E
    hidden_size     H, of each of num_layers layers
    cell            "lstm", "gru" or "rnn"
    dropout         on every connection that is not recurrent: into, between and out of the layers (Zaremba et al. 2014)
    tied            one matrix for embedding and softmax (Press and Wolf 2017; Inan et al. 2017); needs E = H
    seed            of initialisation and dropout: None, an integer or a numpy Generator
    dtype, backend  of the layers

    `model(tokens [T, B], state=None) -> logits [T, B, V], state`, or without B for one sequence. Training goes
    `train()`, then for each pair of `batches`: `loss, state = model.loss(inputs, targets, state)`, `backward()`, a
    step of an optimiser. The parts are `embedding`, `rnn`, `dropout`, `output`. The softmax begins at
    uniform(-0.1, 0.1) and no bias, an LSTM's forget gates at a bias of 1, the rest as PyTorch's. Raises ShapeError,
    DtypeError, OptionError, BackendError.
    """

    def __init__(
        self,
        vocab_size: int,
        embedding_size: int,
        hidden_size: int,
        num_layers: int = 1,
        cell: str = "lstm",
        dropout: float = 0.0,
        tied: bool = False,
        *,
        seed: Any = None,
        dtype: Any = "float32",
        backend: str | None = None,
    ) -> None:
        if tied and embedding_size != hidden_size:
            raise ShapeError(
                f"tied=True needs embedding_size == hidden_size, not {embedding_size!r} and {hidden_size!r}: "
                "the rows of one matrix are both"
            )
        random, dtype = generator(seed), as_dtype(dtype)
        self.options = {
            "vocab_size": vocab_size, "embedding_size": embedding_size, "hidden_size": hidden_size,
            "num_layers": num_layers, "cell": cell, "dropout": probability("dropout", dropout), "tied": bool(tied),
            "seed": seed, "dtype": dtype.name, "backend": backend,
        }  # fmt: skip
        self.dropout = Dropout(dropout, seed=random)
        self.embedding = Embedding(vocab_size, embedding_size, dtype=dtype, seed=random)
        self.rnn: Layer = Layer.from_cell(
            Cell(cell),
            embedding_size,
            hidden_size,
            num_layers=num_layers,
            dropout=dropout if num_layers != 1 else 0.0,
            dtype=dtype,
            seed=random,
            backend=backend,
        )
        weight = self.embedding.weight if tied else None
        self.output = Linear(hidden_size, vocab_size, weight=weight, dtype=dtype, seed=random)
        uniform(self.output.weight, -0.1, 0.1, seed=random)
        zeros(self.output.bias)
        if cell == "lstm":
            forget_bias(self.rnn, 1.0)
        self._criterion = CrossEntropy()

    def forward(self, tokens: Any, state: State = None) -> tuple[np.ndarray, State]:
        """Logits of what follows each token, and the state after the last."""
        y, state = self.rnn(self.dropout(self.embedding(tokens)), state)
        return self.output(self.dropout(y)), state

    def loss(self, inputs: Any, targets: Any, state: State = None) -> tuple[float, State]:
        """The mean cross-entropy in nats of targets [T, B] after inputs [T, B], and the state after the last input.

        A target of -100 does not count. No gradient flows into the state that was given: carried from call to call,
        it makes truncated BPTT.
        """
        logits, state = self.forward(inputs, state)
        return self._criterion(logits, targets), state

    def backward(self) -> None:
        """Add the gradient of the latest `loss` to every parameter's `grad`; UsageError where there is none."""
        dy = self.dropout.backward(self.output.backward(self._criterion.backward()))
        dx, _ = self.rnn.backward(dy)
        self.embedding.backward(self.dropout.backward(dx))

    # ------------------------------------------------ in use

    def score(self, tokens: Any, batch_size: int = 1, steps: int = 64) -> Score:
        """How well the model predicts each token of a stream [N] but the first.

        With batch_size B, B pieces of the stream are read side by side, each from a state of zeros: quicker, and a
        little worse than reading it in one go. Evaluates; what a `backward` was to go through is dropped.
        """
        total, count, state = 0.0, 0, None
        with self._evaluating():
            for inputs, targets in batches(tokens, batch_size, steps):
                loss, state = self.loss(inputs, targets, state)
                counted = int((targets != IGNORED).sum())
                total, count = total + loss * counted, count + counted
        return Score(total / count, count)

    def generate(
        self, prompt: Any, length: int, temperature: float = 1.0, top_k: int | None = None, rng: Any = None
    ) -> np.ndarray:
        """`length` tokens that follow the prompt, [length] int64, each drawn by `nn.sample`.

        prompt              [N] tokens, at least one
        temperature, top_k  of `nn.sample`
        rng                 None, an integer or a numpy Generator

        Evaluates; what a `backward` was to go through is dropped. Raises ShapeError for an empty prompt or a token
        out of range, OptionError, DtypeError.
        """
        random, length = generator(rng), integer("length", length, 0)
        tokens = np.empty(length, np.int64)
        with self._evaluating():
            stream = self.rnn.stream()
            for x in self.embedding(_stream(prompt, 1)):
                y = stream.step(x)
            for i in range(length):
                tokens[i] = token = sample(self.output(y), temperature, top_k, random)[()]
                y = stream.step(self.embedding(token))
        return tokens

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        modes = [(module, module.training) for module in self._tree()]
        self.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training

    def __repr__(self) -> str:
        parameters = inspect.signature(type(self)).parameters
        arguments = [
            repr(value) if parameters[name].default is inspect.Parameter.empty else f"{name}={value!r}"
            for name, value in self.options.items()
            if value != parameters[name].default
        ]
        return f"{type(self).__name__}({', '.join(arguments)})"


# ---------------------------------------------------------------- on disk


def save(path: str | os.PathLike[str], model: LanguageModel, vocabulary: Vocabulary) -> None:
    """Write model and vocabulary to one .npz file of that very name, which `load` reads.

    The state of the generator that dropout draws from is written too, so that training goes on as it would have. A
    file that is there is replaced only once the new one is whole. Raises DtypeError for what is no LanguageModel,
    OptionError where the vocabulary is of another size.
    """
    if not isinstance(model, LanguageModel):
        raise DtypeError(f"model must be a LanguageModel, not {type(model).__name__}")
    if len(vocabulary) != model.options["vocab_size"]:
        size = model.options["vocab_size"]
        raise OptionError(f"the vocabulary must have the model's {size} tokens, not {len(vocabulary)}")
    header = {
        "model": {name: value for name, value in model.options.items() if name not in ("seed", "backend")},
        "vocabulary": asdict(vocabulary),
        "random": model.dropout._random.bit_generator.state,
    }
    text = np.array(json.dumps(header, default=lambda number: number.tolist()))
    with replacing(path) as file:
        np.savez(file, header=text, **model.state_dict())  # type: ignore[arg-type]


def load(path: str | os.PathLike[str], backend: str | None = None) -> tuple[LanguageModel, Vocabulary]:
    """What `save` wrote; OptionError where the file is of another kind."""
    with reading(path, "a language model that fastrnn.lm saved") as file:
        arrays = dict(file)
        header = json.loads(str(arrays.pop("header")))
        model = LanguageModel(**header["model"], backend=backend)
        _go_on(model, header.get("random"))
        vocabulary = Vocabulary(**header["vocabulary"])
    model.load_state_dict(arrays)
    return model, vocabulary


def _go_on(model: LanguageModel, state: Any) -> None:
    """Have a model's dropout draw what it would have drawn in the state that was saved, where one was."""
    if state is not None:
        kinds = {kind.__name__: kind for kind in np.random.BitGenerator.__subclasses__()}
        random = np.random.Generator(kinds[state["bit_generator"]]())
        random.bit_generator.state = state
        for _, part in model._parts():
            part._random = random  # which they share


# ---------------------------------------------------------------- arguments


def _stream(tokens: Any, least: int) -> np.ndarray:
    """Tokens as [N] integers, N >= least."""
    try:
        array = np.asarray(tokens)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DtypeError(f"tokens of type {type(tokens).__name__} cannot be read as an array: {error}") from error
    if array.ndim != 1 or array.size < least:
        raise ShapeError(f"tokens must be [N] with N >= {least}, not {list(array.shape)}")
    if array.dtype.kind not in "iu":
        raise DtypeError(f"tokens must be integers, not {array.dtype}")
    if array.min() < 0:
        raise ShapeError(f"tokens must be >= 0, not {array.min()}")
    return array
