"""What stands around the recurrent layers: Embedding, Linear, Dropout, Sequential, losses, sampling.

Each has its forward and its backward next to each other, in NumPy; the recurrent layers
themselves are in layers.py. There is no graph: a model's backward calls its parts' in reverse,
which `Sequential` does for a plain chain. Read next: optim.py, init.py.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np

from .arguments import integer, number, probability
from .backends import add_product, in_silence, scaled_exponentials, softmax_sums
from .errors import DtypeError, OptionError, ShapeError, UsageError
from .module import Block, Module, Parameter, as_array, as_dtype, dropout_mask, generator

__all__ = ["MSE", "CrossEntropy", "Dropout", "Embedding", "Linear", "Sequential", "log_softmax", "sample", "softmax"]

AnySingle = TypeVar("AnySingle", bound="Single")


class Single(Module):
    """The base of `Embedding`, `Linear` and `Dropout`, which undo their calls one by one.

    In training mode every call is kept, and `backward` goes back through the latest that is left, so that a loop of
    calls is undone by a loop of as many backward; a change of the parameters, a call in evaluation mode, `train()` and
    `eval()` drop them. So who calls in training mode and never goes back, to have dropout in predictions, calls
    `train()` before each. Inputs are kept as they are: do not write to them in between.
    """

    block: Block | None = None  # of the weight
    seed: Any
    _random: np.random.Generator

    def __init__(self) -> None:
        self._calls: list[tuple[int, Any]] = []

    def train(self: AnySingle, mode: bool = True) -> AnySingle:
        self._calls.clear()
        return super().train(mode)

    def _version(self) -> int:
        return 0 if self.block is None else self.block.version

    def _keep(self, kept: Any) -> None:
        """Keep, in training mode, what the backward of this call needs; drop what no backward can use."""
        version = self._version()
        if self._calls and not (self.training and self._calls[-1][0] == version):
            self._calls.clear()
        if self.training:
            self._calls.append((version, kept))

    def _latest(self) -> Any:
        name = type(self).__name__.lower()
        if not self._calls:
            raise UsageError(
                f"backward has no call to go back through: train(), then {name}(x), then backward, once per call"
            )
        version, kept = self._calls[-1]
        if version != self._version():
            raise UsageError("the parameters changed after the call that backward would go back through; call again")
        return kept

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_calls": []}

    def __repr__(self) -> str:
        return _repr(self)


# ---------------------------------------------------------------- layers


class Embedding(Single):
    """Rows of a table: y = weight[indices], as `torch.nn.Embedding`.

    num_embeddings  V, the rows of weight [V, E]
    embedding_dim   E
    padding_idx     None, or the index (from the end if negative) whose row starts as zeros and gets no gradient
    dtype, seed     of the weight, drawn from normal(0, 1)

    `embedding(indices) -> y [..., E]` takes integers of any dtype and shape, each 0 <= index < V; there is no
    counting from the end. `backward(dy)` adds to `weight.grad` and gives None: an index has no gradient. For which
    call, see `Single`. Raises DtypeError for indices that are no integers, ShapeError for one out of range.
    """

    block: Block

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        dtype: Any = "float32",
        seed: Any = None,
    ) -> None:
        super().__init__()
        self.num_embeddings = integer("num_embeddings", num_embeddings, 0, ShapeError)
        self.embedding_dim = integer("embedding_dim", embedding_dim, 0, ShapeError)
        if padding_idx is not None:
            padding_idx = integer("padding_idx", padding_idx)
            if not -self.num_embeddings <= padding_idx < self.num_embeddings:
                raise OptionError(f"padding_idx must be within the {num_embeddings} embeddings, not {padding_idx}")
            padding_idx %= self.num_embeddings
        self.padding_idx, self.seed, self._random = padding_idx, seed, generator(seed)
        self.block = Block({"weight": (self.num_embeddings, self.embedding_dim)}, as_dtype(dtype))
        self.reset_parameters()

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64"""
        return self.block.dtype

    def reset_parameters(self) -> None:
        """Draw the weight from normal(0, 1), as PyTorch does; the padding row is zero."""
        weight = self._weight()
        self._random.standard_normal(dtype=weight.dtype, out=weight)  # type: ignore[arg-type]
        if self.padding_idx is not None:
            weight[self.padding_idx] = 0
        self.block.touch()

    def _weight(self) -> np.ndarray:
        return self.block.flat.reshape(self.num_embeddings, self.embedding_dim)

    def forward(self, indices: Any) -> np.ndarray:
        """indices [...] to y [..., E]."""
        array = _integers(indices, "indices")
        _within(array, self.num_embeddings, "indices")
        rows = array.astype(np.intp)
        self._keep(rows)
        return self._weight().take(rows, axis=0)

    @in_silence
    def backward(self, dy: Any) -> None:
        """dy [..., E]; adds to the weight's gradient, the rows of an index that came twice too."""
        indices = self._latest()
        dy = _like(dy, (*indices.shape, self.embedding_dim), self.dtype)
        self._calls.pop()
        indices, dy = indices.reshape(-1), dy.reshape(indices.size, self.embedding_dim)
        if self.padding_idx is not None:
            kept = indices != self.padding_idx
            indices, dy = indices[kept], dy[kept]
        if not indices.size:
            return
        # Sorted, the rows of one index lie together and are summed at once: two to six times as fast as np.add.at.
        order = indices.argsort(kind="stable")
        indices = indices[order]
        starts = np.flatnonzero(np.diff(indices, prepend=-1))
        self.block.grads["weight"][indices[starts]] += np.add.reduceat(dy[order], starts, axis=0)


class Linear(Single):
    """y = x W^T + b, as `torch.nn.Linear`.

    in_features, out_features  the sizes of weight [out, in]
    bias                       whether there is b [out]
    weight                     None, or the weight of an Embedding or of another Linear, to be shared: a tied softmax
                               (Press and Wolf 2017; Inan et al. 2017) is `Linear(E, V, weight=embedding.weight)`. It
                               stays one parameter: both uses add to its gradient, and optimisers see it once
    dtype, seed                of the parameters, drawn from uniform(-1/sqrt(in), 1/sqrt(in)); a shared weight
                               keeps its dtype and its values

    `linear(x [..., in]) -> y [..., out]`; `backward(dy [..., out]) -> dx [..., in]` adds to the gradients. For which
    call, see `Single`. Raises ShapeError, DtypeError.
    """

    block: Block

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        weight: Parameter | None = None,
        dtype: Any = None,
        seed: Any = None,
    ) -> None:
        super().__init__()
        self.in_features = integer("in_features", in_features, 0, ShapeError)
        self.out_features = integer("out_features", out_features, 0, ShapeError)
        self.tied, self.seed, self._random = weight is not None, seed, generator(seed)
        shape = self.out_features, self.in_features
        self.block = Block({"weight": shape}, as_dtype(dtype)) if weight is None else _shared(weight, shape, dtype)
        # In a block of its own, so that the weight's holds nothing else and can be shared.
        self.bias_block = Block({"bias": shape[:1]}, self.block.dtype) if bias else None
        self.reset_parameters()

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64"""
        return self.block.dtype

    def reset_parameters(self) -> None:
        """Draw weight (unless it is another's) and bias from uniform(-1/sqrt(in), 1/sqrt(in)), as PyTorch does."""
        bound = 1 / math.sqrt(self.in_features) if self.in_features else 0.0
        for block in (None if self.tied else self.block, self.bias_block):
            if block is not None:
                block.flat[:] = (2 * self._random.random(block.flat.size, block.dtype) - 1) * bound
                block.touch()

    def _weight(self) -> np.ndarray:
        return self.block.flat.reshape(self.out_features, self.in_features)

    def forward(self, x: Any) -> np.ndarray:
        """x [..., in] to y [..., out]."""
        x = as_array(x, self.dtype, "x")
        if not x.ndim or x.shape[-1] != self.in_features:
            raise ShapeError(f"x must be [..., {self.in_features}], not {list(x.shape)}")
        self._keep(x)
        rows = _rows(x)
        y = np.empty((len(rows), self.out_features), self.dtype)
        y[...] = 0 if self.bias_block is None else self.bias_block.flat
        add_product(rows, self._weight().T, y)
        return y.reshape(*x.shape[:-1], self.out_features)

    def backward(self, dy: Any) -> np.ndarray:
        """dy [..., out] to dx [..., in]; adds to the gradients."""
        x = self._latest()
        dy = _rows(_like(dy, (*x.shape[:-1], self.out_features), self.dtype))
        self._calls.pop()
        # y = x W^T + b
        add_product(dy.T, _rows(x), self.block.grads["weight"])
        if self.bias_block is not None:
            add_product(np.ones((1, len(dy)), dy.dtype), dy, self.bias_block.grad[None])  # the sum over rows
        dx = np.zeros((len(dy), self.in_features), self.dtype)
        add_product(dy, self._weight(), dx)
        return dx.reshape(x.shape)

    def __repr__(self) -> str:
        return _repr(self, bias=self.bias_block is not None, weight=... if self.tied else None)


class Dropout(Single):
    """In training mode, zeros with probability p and the rest times 1/(1-p) (Srivastava et al. 2014).

    p       the probability
    locked  one mask for all steps: x [T, B, ...] times a mask [1, B, ...] (Gal and Ghahramani 2016)
    seed    None, an integer or a numpy Generator

    `dropout(x) -> y` of x's shape, x itself where nothing is dropped; `backward(dy) -> dx`. For which call, see
    `Single`. x keeps its dtype where that is float64, and is float32 otherwise. Raises OptionError for p outside
    0..1, ShapeError, DtypeError.
    """

    p: float
    locked: bool

    def __init__(self, p: float = 0.5, locked: bool = False, *, seed: Any = None) -> None:
        super().__init__()
        self.p, self.locked, self.seed, self._random = probability("p", p), bool(locked), seed, generator(seed)

    @in_silence
    def forward(self, x: Any) -> np.ndarray:
        """x to y, of one shape."""
        x = _floats(x, "x")
        if self.locked and x.ndim < 2:
            raise ShapeError(f"x must be [T, B, ...] for a locked mask, not {list(x.shape)}")
        mask = None
        if self.training and self.p:
            shape = (1, *x.shape[1:]) if self.locked else x.shape
            mask = dropout_mask(self._random, shape, self.p, x.dtype)
        self._keep((x.shape, x.dtype, mask))
        return x if mask is None else x * mask

    @in_silence
    def backward(self, dy: Any) -> np.ndarray:
        """dy to dx, of x's shape."""
        shape, dtype, mask = self._latest()
        dy = _like(dy, shape, dtype)
        self._calls.pop()
        return dy if mask is None else dy * mask


class Sequential(Module):
    """A chain of modules: the output of each is the input of the next, as `torch.nn.Sequential`.

    Of a recurrent layer, which gives `y, state`, the chain passes y on and drops the state: every call starts from
    zeros. Who carries states calls the layers one by one: `for module in sequential`. Parameters are named by place,
    `0.weight`. Indexing, a slice included, and `len` are a tuple's.

    Called as `sequential(x) -> y`; `backward(dy) -> dx` goes through the chain in reverse (None where it begins with
    an Embedding). Raises DtypeError for what is not a Module, and what its modules raise.
    """

    def __init__(self, *modules: Module) -> None:
        for i, module in enumerate(modules):
            if not isinstance(module, Module):
                raise DtypeError(f"module {i} of a Sequential must be a fastrnn Module, not {type(module).__name__}")
        self.modules = modules

    def _parts(self) -> Iterator[tuple[str, Module]]:
        return ((str(i), module) for i, module in enumerate(self.modules))

    def forward(self, x: Any) -> np.ndarray:
        """x, as the first module takes it, to y, as the last gives it."""
        for module in self.modules:
            y = module(x)
            x = y[0] if isinstance(y, tuple) else y
        return x

    def backward(self, dy: Any) -> np.ndarray | None:
        """dy to dx; adds to the gradients of every module."""
        for module in reversed(self.modules):
            dx = module.backward(dy)
            dy = dx[0] if isinstance(dx, tuple) else dx
        return dy

    def __len__(self) -> int:
        return len(self.modules)

    def __iter__(self) -> Iterator[Module]:
        return iter(self.modules)

    def __getitem__(self, index: Any) -> Any:
        try:
            part = self.modules[index]
        except (IndexError, TypeError) as error:
            raise OptionError(f"a Sequential of {len(self)} modules has no module {index!r}") from error
        return Sequential(*part) if isinstance(index, slice) else part

    def __repr__(self) -> str:
        return f"Sequential({', '.join(map(repr, self.modules))})"


# ---------------------------------------------------------------- losses


class CrossEntropy:
    """The cross-entropy of softmax(logits) with the targets, as `torch.nn.CrossEntropyLoss` (classes last).

    reduction     "mean" over the targets that count, or their "sum", in nats; `exp` of the mean is the perplexity
    ignore_index  a target of this value adds nothing, and its logits get no gradient

    `loss = cross_entropy(logits, targets)` takes logits [..., V], float32 or float64, and targets [...], integers
    0 <= target < V; `dlogits = cross_entropy.backward()` is the gradient of the latest call, once per call. It
    reads the logits again: do not write to them in between. Where no target counts the mean is nan, as PyTorch's,
    and the gradient zero. Beyond its result, neither allocates more than a few numbers a row, and where the C kernels
    are not in use a chunk of half a megabyte. Raises OptionError, ShapeError (a target out of range included),
    DtypeError, UsageError.
    """

    def __init__(self, reduction: str = "mean", ignore_index: int = -100) -> None:
        self.reduction = _reduction(reduction)
        self.ignore_index = integer("ignore_index", ignore_index)
        self._call: tuple[np.ndarray, ...] | None = None

    @in_silence
    def forward(self, logits: Any, targets: Any) -> float:
        """The loss."""
        self._call = None
        logits = _floats(logits, "logits")
        targets = _integers(targets, "targets")
        if not logits.ndim or logits.shape[:-1] != targets.shape:
            raise ShapeError(
                f"targets [...] must fit logits [..., V], not {list(targets.shape)} with {list(logits.shape)}"
            )
        counted = targets != self.ignore_index
        _within(targets, logits.shape[-1], "targets", counted)
        rows, which = _rows(logits), np.where(counted, targets, 0).astype(np.intp).reshape(-1)
        counted = np.flatnonzero(counted)
        peak, norm = softmax_sums(rows)
        self._call = logits, which, counted, peak, norm
        losses = np.log(norm[counted, 0]) - (rows[counted, which[counted]] - peak[counted, 0])
        total = float(losses.sum(dtype=np.float64))
        if self.reduction == "sum":
            return total
        return total / counted.size if counted.size else math.nan

    __call__ = forward

    @in_silence
    def backward(self, dloss: float = 1.0) -> np.ndarray:
        """dlogits [..., V], times the gradient of the loss itself where that is not 1."""
        if self._call is None:
            raise UsageError("backward has no call to go back through: cross_entropy(logits, targets), then backward")
        scale = number("dloss", dloss)
        (logits, which, counted, peak, norm), self._call = self._call, None
        dlogits, rows = np.empty_like(logits), _rows(logits)
        drows = dlogits.reshape(rows.shape)
        scale /= max(counted.size, 1) if self.reduction == "mean" else 1
        if counted.size:
            # losses = log(norm) - (x[target] - peak), and d log(norm) / dx = softmax(x) = exp(x - peak) / norm
            scaled_exponentials(rows, peak, scale / norm, drows)
            drows[counted, which[counted]] -= scale
        if counted.size < len(rows):
            drows[np.delete(np.arange(len(rows)), counted)] = 0
        return dlogits

    def __repr__(self) -> str:
        return _repr(self)


class MSE:
    """The squared error (y - target)^2, as `torch.nn.MSELoss`: its "mean" over all elements, or its "sum".

    `loss = mse(y, target)` takes two arrays of one shape, float32 or float64; there is no broadcasting.
    `dy = mse.backward()` is the gradient of the latest call, once per call. The mean of nothing is nan, as PyTorch's.
    Raises OptionError, ShapeError, DtypeError, UsageError.
    """

    def __init__(self, reduction: str = "mean") -> None:
        self.reduction = _reduction(reduction)
        self._error: np.ndarray | None = None

    @in_silence
    def forward(self, y: Any, target: Any) -> float:
        """The loss."""
        self._error = None
        y = _floats(y, "y")
        target = as_array(target, y.dtype, "target")
        if target.shape != y.shape:
            raise ShapeError(f"target must be {list(y.shape)} as y, not {list(target.shape)}")
        error = self._error = np.asarray(y - target)
        total = float(np.square(error).sum(dtype=np.float64))
        if self.reduction == "sum":
            return total
        return total / error.size if error.size else math.nan

    __call__ = forward

    @in_silence
    def backward(self, dloss: float = 1.0) -> np.ndarray:
        """dy, times the gradient of the loss itself where that is not 1."""
        if self._error is None:
            raise UsageError("backward has no call to go back through: mse(y, target), then backward")
        scale = 2 * number("dloss", dloss)
        dy, self._error = self._error, None
        dy *= scale / (max(dy.size, 1) if self.reduction == "mean" else 1)
        return dy

    def __repr__(self) -> str:
        return _repr(self)


# ---------------------------------------------------------------- functions


@in_silence
def softmax(x: Any) -> np.ndarray:
    """exp(x) / sum(exp(x)) over the last axis, with no overflow for large x. float64 stays so, the rest is float32.

    What would be subnormal is zero where the C kernels are in use.
    """
    x, peak, norm = _softmax_sums(x)
    y = np.empty_like(x)
    scaled_exponentials(_rows(x), peak, 1 / norm, _rows(y))
    return y


@in_silence
def log_softmax(x: Any) -> np.ndarray:
    """x - log(sum(exp(x))) over the last axis, with no overflow for large x and no log of 0 for small."""
    x, peak, norm = _softmax_sums(x)
    return (_rows(x) - peak - np.log(norm)).reshape(x.shape)


def _softmax_sums(x: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x as an array [..., V], and of each row its maximum and the sum of exp(x - maximum), [rows, 1]."""
    x = _floats(x, "x")
    if not x.ndim:
        raise ShapeError("x must have an axis, [..., V], not be a single number")
    return x, *softmax_sums(_rows(x))


@in_silence
def sample(logits: Any, temperature: float = 1.0, top_k: int | None = None, rng: Any = None) -> np.ndarray:
    """Draw from softmax(logits / temperature): logits [..., V] to indices [...], int64.

    temperature  > 0; 0 takes the likeliest
    top_k        None, or an integer >= 1: only the k likeliest can be drawn
    rng          None, an integer or a numpy Generator, which the draw moves on

    Raises OptionError for such a value that cannot be, or logits that give no probabilities (nan, inf, or all -inf);
    ShapeError where V is 0; DtypeError.
    """
    random = generator(rng)
    x = _floats(logits, "logits")
    if not x.ndim or not x.shape[-1]:
        raise ShapeError(f"logits must be [..., V] with V >= 1, not {list(x.shape)}")
    temperature = number("temperature", temperature, 0, finite=True)
    top_k = None if top_k is None else integer("top_k", top_k, 1)
    x = x.astype(np.float64)
    peak = x.max(-1, keepdims=True)
    if not np.isfinite(peak).all():
        raise OptionError("logits give no probabilities: a row of them holds nan or inf, or nothing but -inf")
    if not temperature:
        return x.argmax(-1)
    if top_k is not None and top_k < x.shape[-1]:
        np.put_along_axis(x, x.argpartition(-top_k, -1)[..., :-top_k], -np.inf, -1)
    share = np.exp((x - peak) / temperature).cumsum(-1)
    # Inverse of the distribution: the first index whose cumulated share exceeds a point within the total.
    point = random.random(peak.shape) * share[..., -1:]
    return (share > point).argmax(-1)


# ---------------------------------------------------------------- arguments


def _floats(value: Any, what: str) -> np.ndarray:
    """`value` as a contiguous array, float64 where it is that, else float32."""
    dtype = getattr(value, "dtype", None)
    double = str(getattr(dtype, "name", dtype)).endswith("float64")
    return as_array(value, np.dtype(np.float64 if double else np.float32), what)


def _like(dy: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    dy = as_array(dy, dtype, "dy")
    if dy.shape != shape:
        raise ShapeError(f"dy must be {list(shape)} as the output, not {list(dy.shape)}")
    return dy


def _rows(array: np.ndarray) -> np.ndarray:
    """[..., F] to [rows, F]."""
    return array.reshape(math.prod(array.shape[:-1]), array.shape[-1])


def _integers(value: Any, what: str) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ShapeError(f"{what} cannot be read as one array: {error}") from error
    except (TypeError, RuntimeError) as error:
        raise DtypeError(f"{what} of type {type(value).__name__} cannot be read as an array: {error}") from error
    if array.dtype.kind not in "iu":
        if array.size or not isinstance(value, (list, tuple)):  # NumPy reads [] as floats
            raise DtypeError(f"{what} must be integers, not {array.dtype}")
        return array.astype(np.intp)
    return array


def _within(array: np.ndarray, size: int, what: str, counted: np.ndarray | None = None) -> None:
    """ShapeError where an element, of those counted, is not within 0..size-1."""
    if not array.size or (array.min() >= 0 and array.max() < size):
        return
    wrong = (array < 0) | (array >= size)
    if counted is not None:
        wrong &= counted
    if wrong.any():
        place = tuple(np.argwhere(wrong)[0].tolist())
        raise ShapeError(f"{what}{list(place) or ''} is {array[place]}, which is not within 0..{size - 1}")


def _reduction(value: Any) -> str:
    if value not in ("mean", "sum"):
        raise OptionError(f"unknown reduction {value!r}; there are 'mean', 'sum'")
    return value


def _shared(weight: Any, shape: tuple[int, int], dtype: Any) -> Block:
    """The block of a weight that is given to be shared."""
    block = getattr(weight, "_block", None)
    if not isinstance(weight, Parameter) or block is None or list(block) != ["weight"] or weight.name is None:
        raise DtypeError(f"weight must be the weight of an Embedding or a Linear, not {type(weight).__name__}")
    if weight.shape != shape:
        raise ShapeError(f"weight must be [out_features, in_features] = {list(shape)}, not {list(weight.shape)}")
    if dtype is not None and as_dtype(dtype) != weight.dtype:
        raise DtypeError(f"a shared weight keeps its dtype {weight.dtype}; {as_dtype(dtype)} was given")
    return block


def _repr(module: Any, **given: Any) -> str:
    """The call that makes it: what has no default by place, what differs from its default by name."""
    arguments = []
    for name, parameter in inspect.signature(type(module)).parameters.items():
        value = given[name] if name in given else getattr(module, name)
        text = "..." if value is ... else repr(value.name if isinstance(value, np.dtype) else value)
        if name == "dtype" and text == "'float32'":
            continue
        if parameter.default is parameter.empty:
            arguments.append(text)
        elif text != repr(parameter.default):
            arguments.append(f"{name}={text}")
    return f"{type(module).__name__}({', '.join(arguments)})"
