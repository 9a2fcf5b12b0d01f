"""Parameters in one flat block, and the modules that own them.

A `Block` is one contiguous array with named views, so that an optimiser, clipping, zeroing
and saving are one loop each. A `Parameter` is such a view: arithmetic on it gives plain
arrays, and every way to write to it moves the block's version, by which a backend knows that
weights it has packed are stale. There is no graph and no autograd here: a module that has a
gradient says so in its own `backward`. Read next: layers.py.
"""

from __future__ import annotations

import copy
import math
import operator
import os
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, wraps
from itertools import accumulate, count, pairwise
from typing import IO, Any, NamedTuple, TypeVar

import numpy as np
from numpy import ndarray

from .backends import Gradients, empty
from .errors import DtypeError, FastrnnError, OptionError, OutOfMemoryError, ShapeError

__all__ = [
    "Block", "LoadedKeys", "Module", "Parameter", "as_array", "as_dtype", "dropout_mask", "generator", "reading",
    "replacing",
]  # fmt: skip

ALIGNMENT = 64  # bytes: a cache line, and the widest vector
# What NumPy, zipfile and zlib raise where a file is not what it should be.
DAMAGED = (
    ValueError, TypeError, KeyError, AttributeError, EOFError, OSError, RuntimeError, zipfile.BadZipFile,
    zlib.error,
)  # fmt: skip
_spares = count()  # for files that have no name yet
PLAIN: set[type] = {bool, int, float, str, type(None)}  # of attributes that hold no parameters, as they are met


# ---------------------------------------------------------------- arrays in


def as_dtype(dtype: Any) -> np.dtype[Any]:
    """float32 (also for None) or float64, by NumPy's or PyTorch's name; DtypeError for any other."""
    if dtype is None:
        return np.dtype(np.float32)
    try:
        result = np.dtype(str(dtype).removeprefix("torch.") if str(dtype).startswith("torch.") else dtype)
    except (TypeError, ValueError) as error:
        raise DtypeError(f"dtype must be float32 or float64, not {dtype!r}") from error
    if result not in (np.float32, np.float64):
        raise DtypeError(f"dtype must be float32 or float64, not {result}")
    return result


def as_array(value: Any, dtype: np.dtype[Any], what: str) -> np.ndarray:
    """`value` as a C-contiguous, aligned, native array of `dtype`: itself where it is one already.

    Takes whatever NumPy reads, DLPack, and PyTorch's tensors, those that require a gradient and bfloat16
    included. Raises DtypeError for what is not real numbers, ShapeError for ragged lists; both begin with `what`.
    """
    if type(value) is ndarray and (value.dtype is dtype or value.dtype == dtype):
        flags = value.flags
        if flags.c_contiguous and flags.aligned:
            return value
    array = _read(value, what)
    if array.dtype.kind not in "biuf" and not np.can_cast(array.dtype, dtype):
        given = f"{array.dtype} ({type(value).__name__})"
        raise DtypeError(f"{what} must hold real numbers, which convert to {dtype}, not {given}")
    return np.require(array, dtype, ["C_CONTIGUOUS", "ALIGNED"])


def _read(value: Any, what: str) -> np.ndarray:
    try:
        if hasattr(value, "batch_sizes"):
            raise DtypeError(f"{what} is a PackedSequence: give the padded array, and lengths= for its rows' lengths")
        if hasattr(value, "detach") and hasattr(value, "is_floating_point"):
            value = value.detach()
            if value.is_floating_point() and value.element_size() < 4:
                value = value.float()  # NumPy has no bfloat16
        if hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
            return np.from_dlpack(value)
        return np.asarray(value)
    except ValueError as error:
        raise ShapeError(f"{what} cannot be read as one array: {error}") from error
    except (TypeError, AttributeError, RuntimeError, BufferError) as error:
        raise DtypeError(f"{what} of type {type(value).__name__} cannot be read as an array: {error}") from error


def generator(seed: Any) -> np.random.Generator:
    """A random generator from None, an integer >= 0 or a Generator (itself); OptionError for anything else."""
    try:
        return np.random.default_rng(seed)
    except (TypeError, ValueError) as error:
        raise OptionError(f"seed must be None, an integer >= 0 or a numpy Generator, not {seed!r}") from error


def dropout_mask(random: np.random.Generator, shape: tuple[int, ...], p: float, dtype: np.dtype[Any]) -> np.ndarray:
    """Zeros with probability p, the rest 1 / (1 - p)."""
    kept = random.random(dtype=dtype, out=empty(shape, dtype)) >= p  # type: ignore[arg-type]
    return np.multiply(kept, 1 / (1 - p) if p < 1 else 0.0, dtype=dtype)


# ---------------------------------------------------------------- files


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A file to write to that becomes `path` at the end; after an exception what was there before still is.

    What is no ordinary file, or lies in a folder that cannot be written to, is written to itself; so is, when all is
    written elsewhere, what cannot be replaced, such as a file that is mounted by itself. Raises OSError; where that
    comes last of all, it names the file beside it in which all is.
    """
    path = os.fsdecode(os.path.realpath(path))
    there, folder = os.path.exists(path), os.path.dirname(path)
    if (there and not (os.path.isfile(path) and os.access(path, os.W_OK))) or not os.access(folder, os.W_OK):
        with open(path, "wb") as file:
            yield file
        return
    spare = os.path.join(folder, f".{os.getpid()}-{next(_spares)}.tmp")
    try:
        with open(spare, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # or, after a power cut, the new name may stand for an empty file
        if there:
            shutil.copymode(path, spare)
    except BaseException:
        if os.path.exists(spare):
            os.remove(spare)
        raise
    try:
        os.replace(spare, path)
    except OSError:
        try:
            shutil.copyfile(spare, path)
        except OSError as error:
            raise OSError(f"{path} could not be written to, and {spare} is what it should be: {error}") from error
        os.remove(spare)


@contextmanager
def reading(path: str | os.PathLike[str], kind: str) -> Iterator[Any]:
    """The arrays of an .npz file by name, while it is open; OptionError where it cannot be read as `kind`.

    Where there is no such file, or none that may be read, the OSError says so.
    """
    with open(path, "rb") as file:
        try:
            with np.load(file) as arrays:
                yield arrays
        except FastrnnError:
            raise
        except DAMAGED as error:
            raise OptionError(f"{os.fspath(path)} is not {kind}: {error}") from error


# ---------------------------------------------------------------- parameters


class Parameter(np.ndarray):
    """A named view of a block. Made by `Block`; read as an ndarray.

    What is computed from it is a plain ndarray. Its memory is read-only, so `np.asarray(p)` cannot be written to;
    `p[...] = v`, `p += v`, `out=p`, `p.fill(v)` and `np.copyto(p, v)` write through to the block and move its version,
    as they do on the views that basic indexing gives, such as `p[:H]`. `copy.deepcopy` and `pickle` take the whole
    block along; of a view, its values alone.
    """

    name: str | None = None  # in the block; None for a view such as p[:H]
    _block: Block | None = None  # None for what NumPy made of a parameter in passing

    @property
    def grad(self) -> np.ndarray:
        """The gradient: a plain ndarray of the same shape, writable. To assign None sets it to zero."""
        return self._alias(self._owner().grad)

    @grad.setter
    def grad(self, value: Any) -> None:
        self.grad[...] = 0 if value is None else value

    def _owner(self) -> Block:
        if self._block is None:
            raise AttributeError("this array was derived from a parameter and belongs to no block; use the parameter")
        return self._block

    def _alias(self, flat: np.ndarray) -> np.ndarray:
        """The part of `flat` that lies where this view lies in the block."""
        offset = self.__array_interface__["data"][0] - self._owner().flat.__array_interface__["data"][0]
        return np.ndarray(self.shape, self.dtype, flat, offset, self.strides)

    def _plain(self) -> np.ndarray:
        return self.view(np.ndarray)

    def _writable(self) -> np.ndarray:
        return self._plain() if self._block is None else self._alias(self._block.flat)

    def __getitem__(self, key: Any) -> Any:
        result = self._plain()[key]
        if self._block is None or not isinstance(result, np.ndarray) or not np.may_share_memory(result, self):
            return result
        view = result.view(Parameter)
        view._block = self._block
        return view

    def __setitem__(self, key: Any, value: Any) -> None:
        if value is None:
            raise DtypeError("a parameter cannot be set to None")  # of which NumPy would make NaN
        with _writing((self,)):
            self._writable()[key] = value

    def fill(self, value: Any) -> None:
        self[...] = value

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        out = kwargs.get("out", ())
        written = inputs[:1] if method == "at" else out
        arguments = [_lent(a, written) for a in inputs]
        if out:
            kwargs["out"] = tuple(_lent(a, written) for a in out)
        with _writing(written):
            result = getattr(ufunc, method)(*arguments, **kwargs)
        if not out:
            return result
        results = result if isinstance(result, tuple) else (result,)
        given = tuple(r if o is None else o for o, r in zip(out, results, strict=True))
        return given if len(given) > 1 else given[0]

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        written = args[:1] if func in _WRITES_FIRST else _outs(kwargs.get("out"))
        with _writing(written):
            result = func(*[_lent(a, written) for a in args], **{k: _lent(a, written) for k, a in kwargs.items()})
        return written[0] if len(written) == 1 and func not in _WRITES_FIRST else result

    def __copy__(self) -> np.ndarray:  # type: ignore[override]
        return np.array(self)

    def __deepcopy__(self, memo: dict[int, Any] | None) -> np.ndarray:  # type: ignore[override]
        if self._block is None or self.name is None:
            return np.array(self)
        return copy.deepcopy(self._block, memo)[self.name]

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self._block is None or self.name is None:
            return self._plain().__reduce_ex__(protocol)
        return operator.getitem, (self._block, self.name)


_WRITES_FIRST = (np.copyto, np.put, np.place, np.putmask, np.fill_diagonal, np.put_along_axis)


def _outs(out: Any) -> tuple[Any, ...]:
    return () if out is None else out if isinstance(out, tuple) else (out,)


def _lent(value: Any, written: tuple[Any, ...]) -> Any:
    """`value` with plain arrays for its parameters: writable for those that are written, else read-only."""
    if isinstance(value, Parameter):
        return value._writable() if any(value is w for w in written) else value._plain()
    if isinstance(value, (list, tuple)):
        return type(value)([_lent(v, written) for v in value]) if type(value) in (list, tuple) else value
    return value


class _writing:
    """Moves the version of what was written, also where the writer failed half-way."""

    def __init__(self, written: tuple[Any, ...]) -> None:
        self.blocks = [w._block for w in written if isinstance(w, Parameter) and w._block is not None]

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exception: object) -> None:
        for block in self.blocks:
            block.touch()


def _plainly(name: str) -> Callable[..., Any]:
    method = getattr(np.ndarray, name)

    @wraps(method)
    def call(self: Parameter, *args: Any, **kwargs: Any) -> Any:
        return method(self._plain(), *args, **kwargs)

    return call


# ndarray's methods that would give a Parameter which is none: a copy, or a view that NumPy made.
COPYING = """argpartition argsort astype byteswap choose compress conj conjugate copy cumprod cumsum diagonal dot
    flatten ravel repeat reshape round squeeze swapaxes take trace transpose"""
for _name in COPYING.split():
    setattr(Parameter, _name, _plainly(_name))
Parameter.T = property(lambda self: self._plain().T)  # type: ignore[assignment,method-assign]


class Block(Mapping[str, Parameter]):
    """Named parameters in one flat array, and their gradients in another.

    shapes  name -> shape, in the order they lie in, without gaps
    dtype   float32 or float64

    A mapping from name to Parameter; what a backend gets as `params`. Whoever writes to `flat` itself calls `touch()`
    afterwards. A copy, or one back from pickle, has the parameters alone: no gradient, an empty cache, version 0.
    Raises OutOfMemoryError.
    """

    flat: np.ndarray  # [n] every parameter, 64-byte aligned
    version: int  # moves with every write
    cache: dict[str, Any]  # what backends made of this version, under their names

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], dtype: Any = np.float32) -> None:
        self.dtype = as_dtype(dtype)
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}
        ends = list(accumulate(map(math.prod, self.shapes.values()), initial=0))
        self._spans = {name: slice(*span) for name, span in zip(self.shapes, pairwise(ends), strict=True)}
        self.flat = _zeros(ends[-1], self.dtype)
        self.version = 0
        self.cache = {}
        self._grad: np.ndarray | None = None
        # Over a read-only buffer: no view of it can be made writable again.
        self._shown = np.asarray(self.flat.data.toreadonly())

    def __getitem__(self, name: str) -> Parameter:
        parameter = self._shown[self._spans[name]].reshape(self.shapes[name]).view(Parameter)
        parameter._block, parameter.name = self, name
        return parameter

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    __eq__ = object.__eq__  # a Mapping compares values, which are arrays
    __hash__ = object.__hash__

    @property
    def grad(self) -> np.ndarray:
        """[n] the gradient of `flat`; made, as zeros, when first asked for. To assign None sets it to zero."""
        if self._grad is None:
            self._grad = _zeros(self.flat.size, self.dtype)
        return self._grad

    @grad.setter
    def grad(self, value: Any) -> None:
        self.grad[...] = 0 if value is None else value

    @cached_property
    def grads(self) -> Gradients:
        """name -> gradient, writable views of `grad`; what a backend gets as `dparams`."""
        return Gradients({name: self.grad[span].reshape(self.shapes[name]) for name, span in self._spans.items()})

    def zero_grad(self) -> None:
        """Set the gradient to zero, where there is one."""
        if self._grad is not None:
            self._grad.fill(0)

    def touch(self) -> None:
        """Say that `flat` was written to."""
        self.version += 1

    def __reduce__(self) -> Any:
        return _block_of, (self.shapes, self.flat)

    def __repr__(self) -> str:
        return f"Block({self.shapes}, {self.dtype.name!r})"


def _block_of(shapes: dict[str, tuple[int, ...]], values: np.ndarray) -> Block:
    block = Block(shapes, values.dtype)
    block.flat[:] = values
    return block


def _zeros(size: int, dtype: np.dtype[Any]) -> np.ndarray:
    spare = ALIGNMENT // dtype.itemsize
    try:
        raw = np.zeros(size + spare, dtype)
    except (MemoryError, ValueError, OverflowError) as error:
        raise OutOfMemoryError(f"{size} parameters of {dtype} ({size * dtype.itemsize} bytes) do not fit") from error
    start = -raw.__array_interface__["data"][0] % ALIGNMENT // dtype.itemsize
    return raw[start : start + size]


# ---------------------------------------------------------------- modules


class LoadedKeys(NamedTuple):
    """What `load_state_dict(strict=False)` left aside."""

    missing_keys: list[str]
    unexpected_keys: list[str]


AnyModule = TypeVar("AnyModule", bound="Module")


class Module:
    """Anything with parameters: the Blocks among its attributes are its own, the Modules among them its parts.

    Names are dotted as in PyTorch (`lstm.weight_ih_l0`); modules in a list or tuple are counted (`layers.0.weight`).
    Two modules may share a Block: then they share its parameters, which `parameters()` and `blocks()` give once and
    `state_dict()` under each name. A parameter reads as an attribute; assigning to it copies the values in. A new
    module is in evaluation mode, unlike PyTorch's: `train()` makes the calls that follow keep what backward needs.
    A subclass gives `forward`, which is what calling the module does.
    """

    training: bool = False
    forward: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    # ------------------------------------------------ the tree

    def _public(self, key: str) -> str:
        """The name that the parameter `key` of an own block goes by."""
        return key

    def _own(self) -> Iterator[tuple[str, Block, str]]:
        for value in vars(self).values():
            if isinstance(value, Block):
                yield from ((self._public(key), value, key) for key in value)

    def _parts(self) -> Iterator[tuple[str, Module]]:
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value
            elif isinstance(value, (list, tuple)):
                yield from ((f"{name}.{i}", part) for i, part in enumerate(value) if isinstance(part, Module))

    def _tree(self) -> Iterator[Module]:
        """Itself and all modules within; one that is shared, each time."""
        yield self
        for _, part in self._parts():
            yield from part._tree()

    def _all(self) -> Iterator[tuple[str, Block, str]]:
        yield from self._own()
        for prefix, part in self._parts():
            yield from ((f"{prefix}.{name}", block, key) for name, block, key in part._all())

    def _find(self, name: str) -> Parameter | None:
        return next((block[key] for public, block, key in self._own() if public == name), None)

    def __getattr__(self, name: str) -> Any:
        parameter = self._find(name)
        if parameter is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return parameter

    def __setattr__(self, name: str, value: Any) -> None:
        parameter = self._find(name)
        if parameter is None:
            object.__setattr__(self, name, value)
        else:
            parameter[...] = _fitting(name, value, parameter)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *(name for name, _, _ in self._own())]

    # ------------------------------------------------ parameters

    def named_parameters(self) -> list[tuple[str, Parameter]]:
        """Every parameter with its dotted name; one that is shared, once."""
        first: dict[tuple[int, str], tuple[str, Parameter]] = {}
        for name, block, key in self._all():
            first.setdefault((id(block), key), (name, block[key]))
        return list(first.values())

    def parameters(self) -> list[Parameter]:
        """Every parameter, in the order of `named_parameters()`."""
        return [parameter for _, parameter in self.named_parameters()]

    def blocks(self) -> list[Block]:
        """Every block once: what an optimiser loops over."""
        found: dict[Block, None] = {}
        self._add_blocks(found)
        return list(found)

    def _add_blocks(self, found: dict[Block, None]) -> None:
        parts: list[Module] = []
        for value in self.__dict__.values():  # as _own and _parts have them, without their names
            kind = type(value)
            if kind in PLAIN:
                continue
            if kind is Block:
                found[value] = None
            elif kind is list or kind is tuple or isinstance(value, (list, tuple)):
                for part in value:
                    if type(part) not in PLAIN and isinstance(part, Module):
                        parts.append(part)
            elif isinstance(value, Module):
                parts.append(value)
            elif isinstance(value, Block):  # which asks Mapping, and takes its time
                found[value] = None
            else:
                PLAIN.add(kind)
        for part in parts:
            part._add_blocks(found)

    @property
    def num_parameters(self) -> int:
        """How many numbers the parameters hold."""
        return sum(block.flat.size for block in self.blocks())

    @property
    def grad(self) -> dict[str, np.ndarray]:
        """Dotted name -> gradient, writable; made, as zeros, when first asked for."""
        return {name: block.grads[key] for name, block, key in self._all()}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Set every gradient to zero. set_to_none is PyTorch's, and changes nothing: a gradient here is never none."""
        for block in self.blocks():
            block.zero_grad()

    def train(self: AnyModule, mode: bool = True) -> AnyModule:
        """Keep what backward needs from here on (or, with mode=False, not any more), in the parts too."""
        self.training = bool(mode)
        for _, part in self._parts():
            part.train(mode)
        return self

    def eval(self: AnyModule) -> AnyModule:
        """`train(False)`."""
        return self.train(False)

    # ------------------------------------------------ in and out

    def state_dict(self) -> dict[str, np.ndarray]:
        """Dotted name -> a copy of the parameter. `torch.as_tensor` of each is what PyTorch's module loads."""
        return {name: np.array(block[key]) for name, block, key in self._all()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> LoadedKeys:
        """Copy in the values of a `state_dict()`, this package's or PyTorch's, of whatever float dtype.

        With strict=False, parameters that are missing keep their value and names that are unknown are left aside;
        the result says which. Raises ShapeError for missing, unknown or wrong-shaped parameters, all of them in one
        message, and DtypeError for what is no array; then nothing has changed.
        """
        if not isinstance(state, Mapping):
            raise DtypeError(f"state_dict must be a mapping of names to arrays, not {type(state).__name__}")
        places = {name: block[key] for name, block, key in self._all()}
        missing = [name for name in places if name not in state]
        unexpected = [str(name) for name in state if name not in places]
        problems = [f"missing: {', '.join(missing)}"] if missing and strict else []
        problems += [f"unexpected: {', '.join(unexpected)}"] if unexpected and strict else []
        values = {}
        for name, parameter in places.items():
            if name in state:
                try:
                    values[name] = _fitting(name, state[name], parameter)
                except ShapeError as error:
                    problems.append(str(error))
        if problems:
            raise ShapeError(f"state_dict does not fit this {type(self).__name__}; " + "; ".join(problems))
        for name, value in values.items():
            places[name][...] = value
        return LoadedKeys(missing, unexpected)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `state_dict()` to an .npz file of that very name; what was there is replaced once it is whole."""
        with replacing(path) as file:
            np.savez(file, **self.state_dict())  # type: ignore[arg-type]

    def load(self, path: str | os.PathLike[str]) -> LoadedKeys:
        """`load_state_dict` from an .npz file; OptionError where it is not one."""
        with reading(path, "an .npz file of parameters") as arrays:
            return self.load_state_dict(dict(arrays))


def _fitting(name: str, value: Any, parameter: Parameter) -> np.ndarray:
    array = as_array(value, parameter.dtype, name)
    if array.shape != parameter.shape:
        raise ShapeError(f"{name} must be {list(parameter.shape)}, not {list(array.shape)}")
    return array
