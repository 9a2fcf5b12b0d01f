"""The lengths of a batch of sequences.

Rows of a batch may end early, in any order, at 0 steps even; `as_lengths` is where what a
caller gave becomes what a backend reads. Nothing is packed or sorted: a kernel takes the
padded batch as it is. Read next: layers.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .errors import DtypeError, ShapeError

__all__ = ["as_lengths"]


def as_lengths(lengths: Any, steps: int, batch: int) -> np.ndarray:
    """`lengths` as [B] int64, each 0 <= lengths[b] <= steps.

    Takes any sequence, array or tensor of integers. Raises DtypeError for anything else (floats and booleans
    included) and ShapeError for another count or a length out of range.
    """
    try:
        array = np.asarray(lengths)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DtypeError(f"lengths must be {batch} integers, one per row: {error}") from error
    if array.dtype.kind not in "iu" and array.shape != (0,):  # NumPy reads [] as floats
        raise DtypeError(f"lengths must be integers, not {array.dtype}: {lengths!r}")
    if array.shape != (batch,):
        raise ShapeError(f"lengths must be [{batch}], one per row of the batch, not {list(array.shape)}")
    wrong = np.flatnonzero((array < 0) | (array > steps))
    if wrong.size:
        row = wrong[0]
        raise ShapeError(f"lengths[{row}] is {array[row]}, which is not within 0..{steps}, the steps of x")
    return np.array(array, np.int64)  # a copy: backward reads it again
