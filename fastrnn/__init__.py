"""Recurrent networks on a CPU: RNN, LSTM and GRU kernels in C and numba under a thin API of PyTorch's shape.

This file holds the public names and nothing else. Importing it needs NumPy and cffi alone; the modules
in `_LAZY` load when first used. Read next: layers.py for what the layers do, cell.py for what they can be.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .backends import backends, use_backend
from .cell import Activation, Cell
from .config import get_num_threads, set_num_threads, show_config
from .errors import (
    BackendError,
    DtypeError,
    FastrnnError,
    FastrnnWarning,
    OptionError,
    OutOfMemoryError,
    ShapeError,
    UsageError,
)
from .layers import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell, Stream
from .module import Module

__version__ = "0.1.0"

_LAZY = ("diagnose", "init", "lm", "nn", "optim")

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Activation",
    "BackendError",
    "Cell",
    "DtypeError",
    "FastrnnError",
    "FastrnnWarning",
    "GRUCell",
    "LSTMCell",
    "Module",
    "OptionError",
    "OutOfMemoryError",
    "RNNCell",
    "ShapeError",
    "Stream",
    "UsageError",
    "backends",
    "diagnose",
    "get_num_threads",
    "init",
    "lm",
    "nn",
    "optim",
    "set_num_threads",
    "show_config",
    "use_backend",
]


if TYPE_CHECKING:  # a checker believes that a module with __getattr__ has every name
    from . import diagnose, init, lm, nn, optim
else:

    def __getattr__(name: str) -> Any:
        if name in _LAZY:
            return import_module("." + name, __name__)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
