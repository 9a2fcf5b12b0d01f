"""The contract of a backend, and the registry that picks one.

Every backend is a module with these names, and the three of them are interchangeable:

    missing() -> str | None            why it cannot run on this machine, or None
    unsupported(cell) -> str | None    why it cannot run this cell, or None
    broken() -> str | None             why it cannot after all, asked when a call is about to run: it may import much
    describe() -> dict                 what `fastrnn.show_config()` prints of it
    forward(cell, params, x, state, lengths, train, *, masks=None, cells=None) -> y, state, tape
    backward(tape, dy, dstate, dparams=None)                                   -> dx, dstate0, dparams

    cell     Cell
    params   mapping of torch's names to arrays (`Stack.shapes`). Where it has a `version`, what a backend
             prepared from it is kept in `params.cache` under the backend's name until the version moves.
    x        [T, B, I]
    state    None for zeros, or h [L*D, B, P]; for an LSTM the pair (h, c [L*D, B, H])
    lengths  None, or [B] int64, 0 <= lengths[b] <= T, in any order. Past a row's length y is zero; its final
             state is the one after its last step; the reverse direction starts at its own end.
    train    whether to keep what backward needs; without it tape is None
    masks    None, or [L-1, T, B, D*P]: what the output of each layer but the last is multiplied by
             (dropout, already scaled)
    cells    None, or [T, B, D*H] to be filled with c at every step of the last layer (LSTM; zero past the end)
    y        [T, B, D*P]
    dy       None for zeros, or as y;  dstate  None for zeros, or as state
    dparams  None for new ones, or a mapping of arrays that the gradients are added to. Where those of `Gradients`
             are is looked up once

All arrays are C-contiguous, native-endian and of one dtype, float32 or float64; `layers` sees to that, so a
backend checks nothing but its own limits. Inputs are never written to. backward may be called once per tape:
it may reuse the tape's memory.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import wraps
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

from ..cell import Cell
from ..errors import BackendError, OptionError, OutOfMemoryError, warn

__all__ = [
    "Gradients", "LayerTape", "add_product", "backends", "c_kernels", "choose", "cpus", "empty", "in_silence",
    "scaled_exponentials", "softmax_sums", "threads_from_environment", "use_backend",
]  # fmt: skip

AnyCall = TypeVar("AnyCall", bound=Callable[..., Any])

CHUNK = 1 << 19  # bytes of rows that NumPy works on at a time: they and their exponentials stay in a core's cache

# In order of preference: name, module.
REGISTRY = {"c": "native", "numba": "jit", "numpy": "reference"}


class Gradients(Mapping[str, np.ndarray]):
    """name -> gradient, the same arrays for good: to assign to one copies the values in."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._arrays = dict(arrays)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._arrays[name][...] = value

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


@dataclass(eq=False)
class LayerTape:
    """What one layer and direction kept, in the order its steps ran (the reverse one from each row's end).

    Where a row has ended, its states repeat and its gates are of no meaning.
    """

    x: np.ndarray  # [T, B, I] input
    h: np.ndarray  # [T+1, B, P] hidden state, h[0] the initial one
    c: np.ndarray | None  # [T+1, B, H] cell state (LSTM)
    gates: np.ndarray  # [T, B, G, H] activated gates, in the order of cell.gates
    hn: np.ndarray | None  # [T, B, H] W_hn h + b_hn (GRU that resets after the product)


_loaded: dict[str, ModuleType] = {}
_announced: set[tuple[str, str]] = set()
# To say that a name is not in it, os.environ takes a tenth of a small call; its dictionary, a twentieth of that.
_inside: Any = getattr(os.environ, "_data", None) if os.name == "posix" else None
_environment, _variable = (os.environ, "FASTRNN_BACKEND") if _inside is None else (_inside, b"FASTRNN_BACKEND")


def load(name: str) -> ModuleType:
    """The backend's module; OptionError for a name that does not exist."""
    if not isinstance(name, str) or name not in REGISTRY:
        raise OptionError(f"unknown backend {name!r}; there are {', '.join(map(repr, REGISTRY))}")
    if name not in _loaded:
        _loaded[name] = importlib.import_module("." + REGISTRY[name], __name__)
    return _loaded[name]


def backends() -> list[str]:
    """The names of the backends that work on this machine, the preferred first."""
    return [name for name in REGISTRY if load(name).missing() is None]


class use_backend:
    """Force a backend for every call that names none, in all threads; None gives the choice back.

    Also a context manager, for as long as a block runs: `with fastrnn.use_backend("numpy"): ...`; of blocks that
    overlap, the one that began last counts, and a plain call within one counts until its end. Raises OptionError for a
    name that does not exist and BackendError for one that cannot run here.
    """

    def __init__(self, name: str | None) -> None:
        if name is not None and (reason := _working(name).broken()):
            raise BackendError(f"backend {name!r} cannot run here: {reason}")
        self._place = _blocks[-1]  # until this is known to begin a block of its own
        self._before, self._place.name = self._place.name, name
        self.name = name

    def __enter__(self) -> None:
        self._place.name = self._before
        _blocks.append(self)

    def __exit__(self, *exception: object) -> None:
        _blocks.remove(self)


class _Outside:
    """Where no block runs."""

    name: str | None = None


_blocks: list[use_backend | _Outside] = [_Outside()]  # those that run, the last to begin last


def forced() -> str | None:
    """The backend in force: use_backend's, else the environment's FASTRNN_BACKEND, else None."""
    name = _blocks[-1].name or _environment.get(_variable)
    return os.fsdecode(name) if name else None


def cpus() -> int:
    """How many processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_from_environment() -> int | None:
    """FASTRNN_NUM_THREADS, where it is set; OptionError where that is no number of threads."""
    given = os.environ.get("FASTRNN_NUM_THREADS")
    if given and (not given.strip().isdecimal() or int(given) < 1):
        raise OptionError(f"FASTRNN_NUM_THREADS must be an integer >= 1, not {given!r}")
    return int(given) if given else None


def choose(cell: Cell, backend: str | None = None) -> ModuleType:
    """The module that runs this cell: the one named, the one in force, or the first that can.

    A cell that the preferred backend cannot run goes to the next, with one FastrnnWarning. Raises BackendError
    where the backend named or in force cannot run here or cannot run the cell.
    """
    name = forced() if backend is None else backend
    if name is not None:
        module = _working(name)
        if reason := module.unsupported(cell):
            raise BackendError(f"backend {name!r} cannot run this cell: {reason}. backend=None picks one that can")
        return module
    for name in REGISTRY:
        module = _loaded.get(name) or load(name)
        if reason := module.missing() or module.unsupported(cell) or module.broken():
            _announce(name, reason)
        else:
            return module
    raise AssertionError("the NumPy backend runs every cell")


def empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array of any content; OutOfMemoryError where there is no room for it."""
    try:
        return np.empty(shape, dtype)
    except (MemoryError, ValueError) as error:
        raise OutOfMemoryError(f"an array {list(shape)} of {dtype} could not be allocated") from error


def in_silence(function: AnyCall) -> AnyCall:
    """NaN and infinity pass through the function without comment, whatever the caller has NumPy do about them."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with np.errstate(all="ignore"):  # one for each call: before NumPy 2 threads may not share one
            return function(*args, **kwargs)

    return call  # type: ignore[return-value]


def add_product(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    """out: [M, N] += a: [M, K] @ b: [K, N], for the layers around the recurrent ones.

    By the C kernels where they are in use: the threads of NumPy's BLAS, once woken, spin for a while on the cores
    that the next layer needs, which costs it more than half its speed. out is C-contiguous; a and b are of its dtype,
    with strides of any kind that are multiples of its size.
    """
    native = c_kernels()
    if native is not None:
        native.add_product(a, b, out)
    else:
        with np.errstate(all="ignore"):
            out += a @ b


def softmax_sums(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of rows x: [N, V], C-contiguous, their maximum peak [N, 1] and the sum of exp(x - peak), norm [N, 1].

    By the C kernels where they are in use. A NaN shows in norm.
    """
    peak, norm = np.empty((2, len(x), 1), x.dtype)
    native = c_kernels()
    if native is not None:
        native.softmax_sums(x, peak, norm)
        return peak, norm
    chunks = _chunks(x)
    spare = np.empty_like(x[chunks[0]]) if chunks else x
    with np.errstate(all="ignore"):
        for part in chunks:
            x[part].max(-1, keepdims=True, out=peak[part], initial=-np.inf)
            e = np.subtract(x[part], peak[part], out=spare[: part.stop - part.start])
            np.exp(e, out=e).sum(-1, keepdims=True, out=norm[part])
    return peak, norm


def scaled_exponentials(x: np.ndarray, peak: np.ndarray, factor: np.ndarray, out: np.ndarray) -> None:
    """out: [N, V] = exp(x - peak) * factor, with peak and factor [N, 1]. All are C-contiguous and of one dtype."""
    native = c_kernels()
    if native is not None:
        native.scaled_exponentials(x, peak, factor, out)
        return
    with np.errstate(all="ignore"):
        for part in _chunks(x):
            d = out[part]
            np.exp(np.subtract(x[part], peak[part], out=d), out=d)
            d *= factor[part]


def c_kernels() -> ModuleType | None:
    """The C backend's module, where it is in use: what has a way in C beside the one in NumPy asks for it."""
    module = load("c")
    return module if forced() in (None, "c") and module.missing() is None else None


def _chunks(rows: np.ndarray) -> list[slice]:
    """Slices of so many rows as fit into CHUNK, at least one."""
    count = max(1, CHUNK // max(1, rows.shape[-1] * rows.itemsize))
    return [slice(start, min(start + count, len(rows))) for start in range(0, len(rows), count)]


def _working(name: str) -> ModuleType:
    module = load(name)
    if reason := module.missing():
        raise BackendError(f"backend {name!r} cannot run here: {reason}. There are {', '.join(backends())}")
    return module


def _announce(name: str, reason: str) -> None:
    if (name, reason) not in _announced:
        warn(f"backend {name!r} is not used: {reason}")
        _announced.add((name, reason))
