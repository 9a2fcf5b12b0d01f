"""PyTorch as an engine. Variants: in `inference_mode`, plain eager (recording for autograd), and `torch.compile`d.

A single step is a cell's: `LSTMCell` takes a fraction of the time of `LSTM` on a sequence of one. Variable lengths go
through its packed sequences, as its documentation has it; packing is part of the work.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from .cases import LARGEST_NORM, LEARNING_RATE, Case, Data
from .engines import Unsupported, Work

COMPILED = 128


def version() -> str:
    """PyTorch's."""
    return torch.__version__


def use_threads(threads: int) -> None:
    """Within an operator."""
    torch.set_num_threads(threads)


def prepare(case: Case, given: Data, variant: str) -> Work:
    """A case of any mode."""
    if case.mode == "words":
        return _words(case, given)
    if case.mode == "step" and case.tracks == 1:
        return _cell_step(case, given, variant)
    layer = _layer(case, given)
    x, dy, lengths = torch.from_numpy(given.x), torch.from_numpy(given.dy), torch.from_numpy(given.lengths)
    run = _compiled(layer, case) if variant == "compiled" else layer

    def forward() -> Any:
        if not case.ragged:
            return run(x)[0]
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        return pad_packed_sequence(run(packed)[0], total_length=case.steps)[0]

    if case.mode == "training":
        x.requires_grad_()

        def train() -> Any:
            layer.zero_grad()
            x.grad = None
            y = forward()
            y.backward(dy)
            return y

        def read(y: Any) -> dict[str, np.ndarray]:
            grads = {f"d{name}": value.grad.numpy().copy() for name, value in layer.named_parameters()}
            return {"y": y.detach().numpy(), "dx": x.grad.numpy()} | grads

        return Work(train, read)
    if case.mode == "step":
        return _step(run, x, variant)
    return _untrained(forward, variant)


def _cell_step(case: Case, given: Data, variant: str) -> Work:
    cell = getattr(torch.nn, f"{case.cell.upper()}Cell")(case.hidden, case.hidden)
    cell.load_state_dict({name.removesuffix("_l0"): torch.from_numpy(given.params[name]) for name in case.shapes})

    def run(x_t: Any, state: Any) -> tuple[Any, Any]:
        state = cell(x_t, state)
        return state[0] if case.cell == "lstm" else state, state

    return _step(run, torch.from_numpy(given.x[0]), variant)


def _step(run: Callable[[Any, Any], tuple[Any, Any]], x: Any, variant: str) -> Work:
    """run: of the input and the state, gives the output and the next state."""
    state = None

    def step() -> Any:
        nonlocal state
        y, state = run(x, state)
        if variant == "eager":  # else the graph would grow from step to step
            state = tuple(part.detach() for part in state) if isinstance(state, tuple) else state.detach()
        return y

    return _untrained(step, variant)


def _untrained(work: Callable[[], Any], variant: str) -> Work:
    """Without gradients, unless the variant records for them all the same; y of a cell has no dimension of steps."""

    def read(y: Any) -> dict[str, np.ndarray]:
        y = y.detach().numpy()
        return {"y": y[None] if y.ndim == 2 else y}

    return Work(work if variant == "eager" else torch.inference_mode()(work), read)


def _layer(case: Case, given: Data) -> Any:
    kind = getattr(torch.nn, case.cell.upper())
    layer = kind(case.hidden, case.hidden, num_layers=case.layers, bidirectional=case.directions == 2)
    layer.load_state_dict({name: torch.from_numpy(given.params[name]) for name in case.shapes})
    return layer


def _compiled(layer: Any, case: Case) -> Callable[..., Any]:
    if (case.mode, case.hidden, case.ragged, case.tracks) != ("inference", COMPILED, False, 1):
        raise Unsupported(f"a sample only, inference at H={COMPILED}: it unrolls the steps and compiles for a minute")
    torch._dynamo.config.allow_rnn = True  # without it, torch.compile leaves recurrent layers as they are
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.compile(layer)


def _words(case: Case, given: Data) -> Work:
    embedding = torch.nn.Embedding.from_pretrained(torch.from_numpy(given.params["embedding"]), freeze=False)
    output = torch.nn.Linear(case.hidden, case.words)
    output.weight = embedding.weight
    output.bias.data = torch.from_numpy(given.params["bias"])
    model = torch.nn.ModuleList([embedding, _layer(case, given), output])
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    tokens, targets = torch.from_numpy(given.x), torch.from_numpy(given.dy)
    _, layer, _ = model

    def step() -> tuple[Any, Any]:
        optimizer.zero_grad()
        logits = output(layer(embedding(tokens))[0])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), LARGEST_NORM)
        optimizer.step()
        return loss, norm

    return Work(step, lambda found: {"loss": found[0].detach().numpy(), "norm": found[1].numpy()})
