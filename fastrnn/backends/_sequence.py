"""Reversal of rows of different lengths, which every backend in Python needs."""

from __future__ import annotations

import numpy as np


def reverse_rows(x: np.ndarray, lengths: np.ndarray | None) -> np.ndarray:
    """x: [T, B, ...] with each row's first lengths[b] steps in reverse order, the padding where it was."""
    if lengths is None:
        return x[::-1]
    steps = np.arange(len(x))[:, None]
    source = np.where(steps < lengths, lengths - 1 - steps, steps)  # [T, B]
    return x[source, np.arange(x.shape[1])]
