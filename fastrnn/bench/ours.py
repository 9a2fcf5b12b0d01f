"""fastrnn's backends as engines. A variant is a backend's name.

But for a language model's, it goes by the public names alone: bench/regress.py runs it on older states of the package.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import GRU, LSTM, RNN, __version__, backends, set_num_threads
from .cases import LARGEST_NORM, LEARNING_RATE, Case, Data
from .engines import Work

LAYERS = {"lstm": LSTM, "gru": GRU, "rnn": RNN}


def missing(backend: str) -> str | None:
    """Why the backend is not here, or None."""
    if backend in backends():
        return None
    from ..backends import load

    return load(backend).missing()


def version() -> str:
    """fastrnn's."""
    return __version__


def use_threads(threads: int) -> None:
    """For all backends."""
    set_num_threads(threads)


def prepare(case: Case, given: Data, backend: str) -> Work:
    """A case of any mode."""
    if case.mode == "words":
        return _words(case, given, backend)
    layer = LAYERS[case.cell](
        case.hidden,
        case.hidden,
        num_layers=case.layers,
        bidirectional=case.directions == 2,
        backend=backend,
    )
    layer.load_state_dict(given.params)
    lengths = given.lengths if case.ragged else None
    if case.mode == "inference":
        return Work(lambda: layer(given.x, lengths=lengths)[0], lambda y: {"y": y})
    if case.mode == "step":
        stream, x_t = layer.stream(case.batch), given.x[0]
        return Work(lambda: stream.step(x_t), lambda y: {"y": y[None]})
    layer.train()

    def train() -> Any:
        layer.block.touch()  # an optimiser would have changed the weights: they are packed anew
        layer.zero_grad()
        y, _ = layer(given.x, lengths=lengths)
        return y, layer.backward(given.dy)[0]

    def read(found: Any) -> dict[str, np.ndarray]:
        y, dx = found
        return {"y": y, "dx": dx} | {f"d{name}": np.array(array) for name, array in layer.grad.items()}

    return Work(train, read)


def _words(case: Case, given: Data, backend: str) -> Work:
    from .. import lm
    from ..optim import SGD, clip_grad_norm

    model = lm.LanguageModel(
        case.words, case.hidden, case.hidden, case.layers, case.cell, tied=True, seed=0, backend=backend
    )
    model.rnn.load_state_dict({name: given.params[name] for name in case.shapes})
    model.embedding.weight[...] = given.params["embedding"]
    model.output.bias[...] = given.params["bias"]
    optimizer = SGD(model, lr=LEARNING_RATE)
    model.train()

    def step() -> tuple[float, float]:
        model.zero_grad()
        loss, _ = model.loss(given.x, given.dy)
        model.backward()
        norm = clip_grad_norm(model, LARGEST_NORM)
        optimizer.step()
        return loss, norm

    return Work(step, lambda found: dict(zip(("loss", "norm"), map(np.float64, found), strict=True)))
