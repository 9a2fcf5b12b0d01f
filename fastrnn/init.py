"""Initialisations: orthogonal, identity, Xavier, uniform, normal, zeros, and the forget gate's bias.

What a module starts with is its `reset_parameters`, PyTorch's choice; these are what the literature
on recurrent networks puts in its place. Each takes a shape, an array, or a whole model, of which it
fills the recurrent matrices gate by gate. Read next: layers.py.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

from .arguments import number
from .errors import DtypeError, OptionError, ShapeError
from .module import Module, Parameter, as_dtype, generator

__all__ = ["forget_bias", "identity", "normal", "orthogonal", "uniform", "xavier_normal", "xavier_uniform", "zeros"]

Target = TypeVar("Target")


def orthogonal(target: Target, gain: float = 1.0, *, seed: Any = None) -> Target | np.ndarray:
    """A random matrix with orthonormal rows or columns, whichever are fewer, times gain (Saxe et al. 2014).

    target  a shape such as (128, 64): gives a new float32 array. A float32 or float64 array or a Parameter, filled
            and returned. A Module, returned: each matrix weight_hh [G*H, P] of its recurrent layers is filled gate by
            gate, each [H, P] on its own (a stack of G gates could not be orthogonal)
    seed    None, an integer or a numpy Generator

    Of more than two axes, all but the first count as columns. Raises ShapeError for fewer than two, OptionError for
    a Module without recurrent layers and for a read-only array, DtypeError for any other target.
    """
    gain = number("gain", gain, finite=True)

    def draw(shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
        rows, columns = _matrix("orthogonal", shape)
        q, r = np.linalg.qr(random.standard_normal((max(rows, columns), min(rows, columns))))
        q *= np.where(np.diagonal(r) < 0, -1, 1)  # which makes it uniform over all such matrices (Mezzadri 2007)
        return gain * (q if rows >= columns else q.T).reshape(shape)

    return _fill(target, draw, seed)


def identity(target: Target, gain: float = 1.0) -> Target | np.ndarray:
    """Ones on the diagonal, times gain: with relu, the IRNN (Le et al. 2015).

    target and errors as `orthogonal` has them; of exactly two axes.
    """
    gain = number("gain", gain, finite=True)

    def draw(shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
        if len(shape) != 2:
            raise ShapeError(f"identity needs a matrix, not the shape {list(shape)}")
        return gain * np.eye(*shape)

    return _fill(target, draw, None)


def xavier_uniform(target: Target, gain: float = 1.0, *, seed: Any = None) -> Target | np.ndarray:
    """uniform(-a, a) with a = gain sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010, eq. 16).

    fan_in is the columns, fan_out the rows, of one gate in a recurrent layer. target, seed and errors as
    `orthogonal` has them.
    """
    gain = number("gain", gain, finite=True)

    def draw(shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
        return random.uniform(-1, 1, shape) * (gain * math.sqrt(3) * _xavier("xavier_uniform", shape))

    return _fill(target, draw, seed)


def xavier_normal(target: Target, gain: float = 1.0, *, seed: Any = None) -> Target | np.ndarray:
    """normal(0, std) with std = gain sqrt(2 / (fan_in + fan_out)) (Glorot and Bengio 2010, eq. 12).

    As `xavier_uniform`.
    """
    gain = number("gain", gain, finite=True)

    def draw(shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
        return random.standard_normal(shape) * (gain * _xavier("xavier_normal", shape))

    return _fill(target, draw, seed)


def uniform(target: Target, a: float = 0.0, b: float = 1.0, *, seed: Any = None) -> Target | np.ndarray:
    """uniform(a, b), for any number of axes; target, seed and errors otherwise as `orthogonal` has them."""
    a, b = number("a", a, finite=True), number("b", b, finite=True)
    if a > b:
        raise OptionError(f"a must not be greater than b, and {a} is greater than {b}")
    return _fill(target, lambda shape, random: random.uniform(a, b, shape), seed)


def normal(target: Target, mean: float = 0.0, std: float = 1.0, *, seed: Any = None) -> Target | np.ndarray:
    """normal(mean, std), for any number of axes; target, seed and errors otherwise as `orthogonal` has them."""
    mean, std = number("mean", mean, finite=True), number("std", std, finite=True)
    if std < 0:
        raise OptionError(f"std must be a number >= 0, not {std}")
    return _fill(target, lambda shape, random: random.normal(mean, std, shape), seed)


def zeros(target: Target) -> Target | np.ndarray:
    """Zeros, for any number of axes; target and errors otherwise as `orthogonal` has them."""
    return _fill(target, lambda shape, random: np.zeros(shape), None)


def forget_bias(target: Target, value: float = 1.0) -> Target:
    """Set the bias of every forget gate, so that an LSTM begins by remembering (Gers et al. 2000, section 3).

    A value of 1 or 2 is what Jozefowicz et al. (2015) find to help. Of the two biases that are added, bias_ih's f rows
    become the value and bias_hh's zero. target is an LSTM, an LSTMCell or a Module of such, and is returned. Raises
    OptionError where there is no recurrent layer, or one has no forget gate or no bias; then nothing has changed.
    """
    value = number("value", value, finite=True)
    layers = _recurrent(target)
    for layer in layers:
        if "f" not in layer.cell.gates:
            raise OptionError(f"forget_bias needs layers that have a forget gate; {layer!r} has none")
        if not layer.cell.bias:
            raise OptionError(f"forget_bias needs layers that have a bias; {layer!r} has none")
    for layer in layers:
        for name, gate, rows in _gates(layer, "bias_ih", "bias_hh"):
            if gate == "f":
                layer.block[name][rows] = value if name.startswith("bias_ih") else 0
    return target


# ---------------------------------------------------------------- where to


def _fill(target: Any, draw: Callable[[tuple[int, ...], np.random.Generator], np.ndarray], seed: Any) -> Any:
    random = generator(seed)
    if isinstance(target, Module):
        for layer in _recurrent(target):
            for name, _, rows in _gates(layer, "weight_hh"):
                matrix = layer.block[name]
                matrix[rows] = draw(matrix[rows].shape, random)
    elif isinstance(target, np.ndarray):
        as_dtype(target.dtype)
        if not (target._writable() if isinstance(target, Parameter) else target).flags.writeable:
            raise OptionError("target must be an array that can be written to, not a read-only one; give a copy of it")
        target[...] = draw(target.shape, random)
    elif isinstance(target, (tuple, list)) and all(_is_size(size) for size in target):
        return draw(tuple(target), random).astype(np.float32)
    else:
        raise DtypeError(f"target must be a shape, a numpy array, a Parameter or a Module, not {target!r}")
    return target


def _recurrent(target: Any) -> list[Any]:
    """The recurrent layers and cells of a Module, each once."""
    if not isinstance(target, Module):
        raise DtypeError(f"target must be a Module, not {type(target).__name__}")
    found = {id(layer.block): layer for layer in target._tree() if "stack" in vars(layer)}
    if not found:
        raise OptionError(f"{target!r} holds no recurrent layer; give the array or the Parameter to fill")
    return list(found.values())


def _gates(layer: Any, *kinds: str) -> Iterator[tuple[str, str, slice]]:
    """Each parameter of these kinds, with each of its gates and that gate's rows."""
    size = layer.stack.hidden_size
    for suffix in layer.stack.suffixes:
        for kind in kinds:
            for k, gate in enumerate(layer.cell.gates):
                yield kind + suffix, gate, slice(k * size, (k + 1) * size)


# ---------------------------------------------------------------- how large


def _matrix(name: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows, and columns: the product of all other axes."""
    if len(shape) < 2:
        raise ShapeError(f"{name} needs at least two axes, not the shape {list(shape)}")
    return shape[0], math.prod(shape[1:])


def _xavier(name: str, shape: tuple[int, ...]) -> float:
    """sqrt(2 / (fan_in + fan_out)), where axes past the second are a field that both fans see."""
    _, fan_in = _matrix(name, shape)
    fans = fan_in + shape[0] * math.prod(shape[2:])
    return math.sqrt(2 / fans) if fans else 0.0


def _is_size(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= 0
