"""Keras on TensorFlow as an engine: its recurrent layers, called in a `tf.function`.

The functions are concrete, which halves the time of a step, and compiled by XLA where that is faster: see _compiled.
Layers are not unrolled: that gains up to a fifth in training, but takes ten seconds to trace for two layers.

Keras is batch-major, has one bias in an LSTM and an RNN, the sum of PyTorch's two, and a GRU's gates in the order
z r h. What the timed work is given and returns is in its form.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import numpy as np

os.environ["KERAS_BACKEND"] = "tensorflow"  # both are read when the modules are imported
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras
import tensorflow as tf

from .cases import LARGEST_NORM, LEARNING_RATE, Case, Data
from .engines import Work

# Which of PyTorch's gates stands at each place; each order is its own inverse.
ORDER = {"lstm": (0, 1, 2, 3), "gru": (1, 0, 2), "rnn": (0,)}
NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
SMALL = 64  # H up to which XLA's training is faster than TensorFlow's own


def version() -> str:
    """Keras's."""
    return str(keras.__version__)


def use_threads(threads: int) -> None:
    """Within an operator, and operators side by side; to be called before TensorFlow is first used."""
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)


def prepare(case: Case, given: Data, variant: str) -> Work:
    """A case of any mode."""
    keras.utils.clear_session()
    if case.mode == "words":
        return _words(case, given)
    layers = _layers(case, given)
    x, dy = tf.constant(given.x.swapaxes(0, 1)), tf.constant(given.dy.swapaxes(0, 1))
    mask = tf.constant(np.arange(case.steps) < case.lengths[:, None]) if case.ragged else None  # [B, T]

    def forward(x: Any) -> Any:
        for layer in layers:
            x = layer(x, mask=mask)
        return x

    if case.mode == "inference":
        infer = _compiled(case, forward, x)
        return Work(lambda: infer(x), lambda y: {"y": _time_major(y)})
    if case.mode == "step":
        return _step(case, layers[0], x)
    variables = _variables(layers)

    def train(x: Any, dy: Any) -> tuple[Any, Any]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = forward(x)
        return y, tape.gradient(y, [x, *variables], output_gradients=dy)

    run = _compiled(case, train, x, dy)

    def read(found: Any) -> dict[str, np.ndarray]:
        y, (dx, *grads) = found
        return {"y": _time_major(y), "dx": _time_major(dx)} | _grads(case, grads)

    return Work(lambda: run(x, dy), read)


def _compiled(case: Case, function: Callable[..., Any], *given: Any) -> Callable[..., Any]:
    """The function for such arguments. XLA's is the faster but for training layers that are not small."""
    xla = case.mode in ("inference", "step") or (case.mode == "training" and case.hidden <= SMALL)
    compiled: Callable[..., Any] = tf.function(function, jit_compile=xla).get_concrete_function(*given)
    return compiled


def _step(case: Case, layer: Any, x: Any) -> Work:
    states = layer.get_initial_state(case.batch)
    step = _compiled(case, lambda x, states: layer(x, initial_state=states), x, states)

    def advance() -> Any:
        nonlocal states
        y, *states = step(x, states)
        return y

    return Work(advance, lambda y: {"y": _time_major(y)})


def _time_major(array: Any) -> np.ndarray:
    """[B, T, ...] as [T, B, ...]."""
    return np.asarray(array.numpy().swapaxes(0, 1))


# ---------------------------------------------------------------- the layers and their parameters


def _layers(case: Case, given: Data) -> list[Any]:
    """Built, with the given weights; past a sequence's end their output is zero."""
    kind = {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU, "rnn": keras.layers.SimpleRNN}[case.cell]
    layers: list[Any] = []
    for number in range(case.layers):
        layer = kind(
            case.hidden, return_sequences=True, return_state=case.mode == "step", zero_output_for_mask=case.ragged
        )
        if case.directions == 2:
            layer = keras.layers.Bidirectional(layer, merge_mode="concat")
        layer.build((case.batch, case.steps, case.hidden * (case.directions if number else 1)))
        layer.set_weights([array for place in case.places(number) for array in _weights(case, given, place)])
        layers.append(layer)
    return layers


def _variables(layers: list[Any]) -> list[Any]:
    """Kernel [I, G*H], recurrent kernel [H, G*H], bias [G*H] or a GRU's [2, G*H]; for each layer and direction."""
    return [variable.value for layer in layers for variable in layer.trainable_variables]


def _weights(case: Case, given: Data, place: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keras's three of a layer and direction."""
    w_ih, w_hh, b_ih, b_hh = (case.reordered(given.params[name + place], ORDER[case.cell]) for name in NAMES)
    return w_ih.T, w_hh.T, np.stack([b_ih, b_hh]) if case.cell == "gru" else b_ih + b_hh


def _grads(case: Case, grads: list[Any]) -> dict[str, np.ndarray]:
    """Those of _variables by PyTorch's names. The gradient of a sum of biases is that of each."""

    def named() -> Iterator[tuple[str, np.ndarray]]:
        arrays = iter(grads)
        for place in chain.from_iterable(map(case.places, range(case.layers))):
            kernel, recurrent, bias = (next(arrays).numpy() for _ in range(3))
            b_ih, b_hh = bias if case.cell == "gru" else (bias, bias)
            for name, array in zip(NAMES, (kernel.T, recurrent.T, b_ih, b_hh), strict=True):
                yield f"d{name}{place}", case.reordered(array, ORDER[case.cell])

    return dict(named())


# ---------------------------------------------------------------- the language model


def _words(case: Case, given: Data) -> Work:
    embedding = keras.layers.Embedding(case.words, case.hidden)
    embedding.build()
    embedding.set_weights([given.params["embedding"]])
    layers = _layers(case, given)
    table, bias = embedding.embeddings.value, tf.Variable(given.params["bias"])
    variables = [table, bias, *_variables(layers)]
    # Where Keras has one bias for two, both would move by its gradient, and both count in the norm.
    shares = [1.0, 1.0, *[1.0, 1.0, 1.0 if case.cell == "gru" else 2.0] * case.tracks]
    tokens, targets = tf.constant(given.x.T), tf.constant(given.dy.T)

    def update(tokens: Any, targets: Any) -> tuple[Any, Any]:
        with tf.GradientTape() as tape:
            y = embedding(tokens)
            for layer in layers:
                y = layer(y)
            logits = tf.matmul(tf.reshape(y, [-1, case.hidden]), table, transpose_b=True) + bias
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.reshape(targets, [-1]), logits)
            loss = tf.reduce_mean(losses)
        grads = [tf.convert_to_tensor(grad) for grad in tape.gradient(loss, variables)]
        squares = [share * tf.reduce_sum(grad * grad) for share, grad in zip(shares, grads, strict=True)]
        norm = tf.sqrt(tf.add_n(squares))
        rate = LEARNING_RATE * tf.minimum(1.0, LARGEST_NORM / (norm + 1e-6))
        for variable, share, grad in zip(variables, shares, grads, strict=True):
            variable.assign_sub(rate * share * grad)
        return loss, norm

    step = _compiled(case, update, tokens, targets)
    return Work(lambda: step(tokens, targets), lambda found: {"loss": found[0].numpy(), "norm": found[1].numpy()})
