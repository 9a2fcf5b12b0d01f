"""JAX on the CPU as an engine: a recurrence is `lax.scan` over time, everything is compiled by `jit`.

Weights are arguments, never constants, and lie [I, G*H]; gradients are `vjp`'s of the same forward function. What was
free was tried, and what is fastest stays: scan not unrolled, biases added inside it (one pass less over [T, B, G*H]),
and what Form says. Lengths are a mask; so a reverse scan begins at each sequence's own end.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .cases import LARGEST_NORM, LEARNING_RATE, Case, Data
from .engines import Work

Params = dict[str, jax.Array]
State = tuple[jax.Array, ...]  # of a direction: h, and an LSTM's c, [B, H] each
LARGE = 128  # B from which a whole sequence's projections are better not kept


class Form(NamedTuple):
    """The ways to write the same network that XLA does not make one of; which is fastest depends on the case.

    inside   the input is projected step by step in the scan, not before it as one product. Many products are slower
             than one, but XLA vectorises a GRU's gates only if their input is not a slice of the sequence, and of a
             large batch the projections are much memory
    at_once  an LSTM's sigmoid is taken of all four gates, the candidate included: a pass that is vectorised either way
    """

    inside: bool
    at_once: bool

    @classmethod
    def of(cls, case: Case) -> Form:
        """The fastest for a case, as measured."""
        inference = case.mode in ("inference", "step")
        if case.cell == "gru" and inference:
            return cls(inside=64 * case.batch >= case.hidden and case.hidden <= 512, at_once=False)
        return cls(inside=case.cell != "rnn" and case.batch >= LARGE, at_once=inference)


def version() -> str:
    """JAX's."""
    return jax.__version__


def use_threads(threads: int) -> None:
    """Of XLA's pool, which is made when JAX is first used. Each call is waited for, so none is handed to a thread."""
    os.environ["NPROC"] = str(threads)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def prepare(case: Case, given: Data, variant: str) -> Work:
    """A case of any mode."""
    params = _params(given)
    if case.mode == "words":
        return _words(case, given, params)
    x, dy = jnp.asarray(given.x), jnp.asarray(given.dy)
    lengths = jnp.asarray(given.lengths) if case.ragged else None
    states = _zeros(case)
    if case.mode == "inference":
        infer = jax.jit(lambda params, x, lengths: _forward(case, params, x, states, lengths)[0])
        return Work(lambda: infer(params, x, lengths).block_until_ready(), lambda y: {"y": np.asarray(y)})
    if case.mode == "step":
        step = jax.jit(partial(_forward, case), donate_argnums=2)

        def advance() -> jax.Array:
            nonlocal states
            y, states = step(params, x, states)
            return y.block_until_ready()

        return Work(advance, lambda y: {"y": np.asarray(y)})

    @jax.jit
    def train(params: Params, x: jax.Array, lengths: jax.Array | None, dy: jax.Array) -> Any:
        y, backward = jax.vjp(lambda params, x: _forward(case, params, x, states, lengths)[0], params, x)
        return y, *backward(dy)

    def read(found: Any) -> dict[str, np.ndarray]:
        y, grads, dx = found
        return {"y": np.asarray(y), "dx": np.asarray(dx)} | {f"d{name}": _turned(name, g) for name, g in grads.items()}

    return Work(lambda: jax.block_until_ready(train(params, x, lengths, dy)), read)


def _params(given: Data) -> Params:
    return {name: jnp.asarray(_turned(name, array)) for name, array in given.params.items()}


def _turned(name: str, array: Any) -> np.ndarray:
    """A layer's weight [G*H, I] as [I, G*H] or back; other parameters as they are."""
    return np.asarray(array.T if name.startswith("weight") else array)


def _zeros(case: Case) -> list[State]:
    """The initial states of all layers and directions."""
    parts = 2 if case.cell == "lstm" else 1
    return [tuple(jnp.zeros((case.batch, case.hidden)) for _ in range(parts)) for _ in range(case.tracks)]


# ---------------------------------------------------------------- the network


def _forward(
    case: Case, params: Params, x: jax.Array, states: list[State], lengths: jax.Array | None = None
) -> tuple[jax.Array, list[State]]:
    """x [T, B, H] to y [T, B, D*H], and the states after it."""
    real = None if lengths is None else jnp.arange(case.steps)[:, None, None] < lengths[:, None]  # [T, B, 1]
    form, before, after = Form.of(case), iter(states), []
    for layer in range(case.layers):
        outputs = []
        for place in case.places(layer):
            y, state = _direction(case, form, params, place, x, next(before), real)
            outputs.append(y)
            after.append(state)
        x = jnp.concatenate(outputs, axis=-1)
    return x, after


def _direction(
    case: Case, form: Form, params: Params, place: str, x: jax.Array, state: State, real: jax.Array | None
) -> tuple[jax.Array, State]:
    """One direction of a layer: x [T, B, I] to y [T, B, H]."""
    w_ih, w_hh, b_ih, b_hh = (params[name + place] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    cell = {"lstm": partial(_lstm, form.at_once), "gru": _gru, "rnn": _rnn}[case.cell]

    def step(state: State, at: tuple[jax.Array, jax.Array | None]) -> tuple[State, jax.Array]:
        x_t, real_t = at
        a = (x_t @ w_ih if form.inside else x_t) + b_ih
        new = cell(a, state[0] @ w_hh + b_hh, state)
        if real_t is None:
            return new, new[0]
        new = tuple(jnp.where(real_t, late, early) for late, early in zip(new, state, strict=True))
        return new, jnp.where(real_t, new[0], 0)

    state, y = jax.lax.scan(step, state, (x if form.inside else x @ w_ih, real), reverse=place.endswith("_reverse"))
    return y, state


def _lstm(at_once: bool, a: jax.Array, b: jax.Array, state: State) -> State:
    gates = a + b
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    i, f, _, o = jnp.split(jax.nn.sigmoid(gates), 4, axis=-1) if at_once else map(jax.nn.sigmoid, (i, f, g, o))
    c = f * state[1] + i * jnp.tanh(g)
    return o * jnp.tanh(c), c


def _gru(a: jax.Array, b: jax.Array, state: State) -> State:
    (a_r, a_z, a_n), (b_r, b_z, b_n) = jnp.split(a, 3, axis=-1), jnp.split(b, 3, axis=-1)
    z = jax.nn.sigmoid(a_z + b_z)
    n = jnp.tanh(a_n + jax.nn.sigmoid(a_r + b_r) * b_n)
    return ((1 - z) * n + z * state[0],)


def _rnn(a: jax.Array, b: jax.Array, state: State) -> State:
    return (jnp.tanh(a + b),)


# ---------------------------------------------------------------- the language model


def _words(case: Case, given: Data, params: Params) -> Work:
    tokens, targets = jnp.asarray(given.x), jnp.asarray(given.dy)
    states = _zeros(case)

    def loss_of(params: Params, tokens: jax.Array, targets: jax.Array) -> jax.Array:
        y, _ = _forward(case, params, params["embedding"][tokens], states)
        logits = y.reshape(-1, case.hidden) @ params["embedding"].T + params["bias"]
        wanted = jnp.take_along_axis(logits, targets.reshape(-1, 1), axis=-1)[:, 0]
        return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - wanted)

    @partial(jax.jit, donate_argnums=0)
    def update(params: Params, tokens: jax.Array, targets: jax.Array) -> tuple[Params, jax.Array, jax.Array]:
        loss, grads = jax.value_and_grad(loss_of)(params, tokens, targets)
        norm = jnp.sqrt(sum(jnp.vdot(grad, grad) for grad in grads.values()))
        rate = LEARNING_RATE * jnp.minimum(1, LARGEST_NORM / (norm + 1e-6))
        return {name: value - rate * grads[name] for name, value in params.items()}, loss, norm

    def step() -> tuple[jax.Array, jax.Array]:
        nonlocal params
        params, loss, norm = jax.block_until_ready(update(params, tokens, targets))
        return loss, norm

    return Work(step, lambda found: dict(zip(("loss", "norm"), map(np.asarray, found), strict=True)))
