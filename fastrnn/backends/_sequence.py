"""What several backends do to arrays: rows reversed, states taken apart, gradients begun."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..cell import Stack


def reverse_rows(x: np.ndarray, lengths: np.ndarray | None) -> np.ndarray:
    """x: [T, B, ...] with each row's first lengths[b] steps in reverse order, the padding where it was."""
    if lengths is None:
        return x[::-1]
    steps = np.arange(len(x))[:, None]
    source = np.where(steps < lengths, lengths - 1 - steps, steps)  # [T, B]
    return x[source, np.arange(x.shape[1])]


def state_parts(stack: Stack, state: Any, x: np.ndarray) -> list[np.ndarray]:
    """A state, or None for zeros, as [h: [L*D, B, P]] or [h, c: [L*D, B, H]]."""
    if state is not None:
        return list(state) if stack.cell.has_c else [state]
    sizes = [stack.output_size, stack.hidden_size] if stack.cell.has_c else [stack.output_size]
    return [np.zeros((len(stack.suffixes), x.shape[1], size), x.dtype) for size in sizes]


def zero_gradients(stack: Stack, dtype: Any) -> dict[str, np.ndarray]:
    """name -> zeros, for every parameter."""
    return {name: np.zeros(shape, dtype) for name, shape in stack.shapes.items()}
