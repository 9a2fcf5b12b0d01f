"""What a number given as an argument must be: each check hands it on as an int or a float, or says what was wanted.

NumPy's scalars and arrays without axes count as what they hold; a bool is no number. Next: errors.py.
"""

from __future__ import annotations

import math
import numbers
import operator
from typing import Any

import numpy as np

from .errors import OptionError

__all__ = ["integer", "number", "probability"]


def integer(name: str, value: Any, least: int | None = None, error: type[Exception] = OptionError) -> int:
    """An integer, of `least` or more where that is given."""
    try:
        found = None if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        found = None
    if found is None or (least is not None and found < least):
        wanted = "an integer" if least is None else f"an integer >= {least}"
        raise error(f"{name} must be {wanted}, not {value!r}")
    return found


def number(name: str, value: Any, least: float | None = None, finite: bool = False) -> float:
    """A real number, of `least` or more where that is given; NaN where nothing is asked of it."""
    found = _real(value)
    if found is None or (least is not None and not found >= least) or (finite and not math.isfinite(found)):
        wanted = "a finite number" if finite else "a number"
        raise OptionError(f"{name} must be {wanted}{'' if least is None else f' >= {least:g}'}, not {value!r}")
    return found


def probability(name: str, value: Any) -> float:
    """A number within 0..1."""
    found = _real(value)
    if found is None or not 0 <= found <= 1:
        raise OptionError(f"{name} must be a probability, a number within 0..1, not {value!r}")
    return found


def _real(value: Any) -> float | None:
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    try:
        return float(value)
    except OverflowError:
        return None
