"""RNN, LSTM and GRU over sequences, their cells for one step, and the stream.

Thin: they check what a caller gave, lay it out as the backend contract wants it
(`backends/__init__.py`), and keep what backward needs. Signatures, shapes, parameter names and
initialisation are PyTorch's. There is no arithmetic here: the equations are in
`backends/reference.py`, what a cell can be in `cell.py`.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
from numpy import ndarray

from .arguments import integer, probability
from .backends import choose, empty
from .cell import Activation, Cell, Stack
from .errors import DtypeError, OptionError, ShapeError, UsageError, warn
from .module import Block, Module, as_array, as_dtype, dropout_mask, generator
from .sequence import as_lengths

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "Layer", "RNNCell", "Recurrent", "SingleStep", "Stream"]

State = Any  # h; for an LSTM the pair (h, c)


@dataclass(eq=False, slots=True)
class _Call:
    """A call in training mode, for its backward."""

    backend: ModuleType
    tape: Any
    version: int  # of the parameters
    steps: int
    batch: int
    batched: bool  # whether the caller's arrays have B


class Recurrent(Module):
    """What layers and cells share: a `stack`, its parameters in one `block`, the calls to go back through."""

    kind: ClassVar[str]
    cell: Cell
    stack: Stack
    block: Block
    backend: str | None

    input_size = property(lambda self: self.stack.input_size, doc="I")
    hidden_size = property(lambda self: self.stack.hidden_size, doc="H")
    bias = property(lambda self: self.cell.bias, doc="Whether there are biases.")
    dtype = property(lambda self: self.block.dtype, doc="float32 or float64")

    def _build(self, stack: Stack, lead: tuple[int, ...], dtype: Any, seed: Any, backend: str | None) -> None:
        if backend is not None:
            choose(stack.cell, backend)  # raises now rather than at the first call
        self.cell, self.stack, self.seed, self.backend = stack.cell, stack, seed, backend
        self._lead = lead  # what a state's shape begins with: (L*D,), or () for a cell
        self._random = generator(seed)
        self._calls: list[_Call] = []
        self.block = Block(stack.shapes, as_dtype(dtype))
        self.reset_parameters()

    @classmethod
    def _for(cls, cell: Cell, classes: dict[str, type[Any]]) -> Any:
        """An empty object of this class, or of the one for the cell where this class is for any."""
        if not isinstance(cell, Cell):
            raise DtypeError(f"from_cell takes a Cell, such as Cell('lstm'), not {cell!r}")
        kind = getattr(cls, "kind", None)
        if kind not in (None, cell.kind):
            raise OptionError(f"{cls.__name__} takes a cell of kind {kind!r}, not {cell!r}")
        target: Any = cls if kind else classes[cell.kind]
        return target.__new__(target)

    def reset_parameters(self) -> None:
        """Draw every parameter from uniform(-1/sqrt(H), 1/sqrt(H)), as PyTorch does."""
        bound = 1 / math.sqrt(self.stack.hidden_size)
        flat = self.block.flat
        flat[:] = (2 * self._random.random(flat.size, flat.dtype) - 1) * bound
        self.block.touch()

    # ---------------------------------------------------------------- there and back

    def _run(
        self,
        x: np.ndarray,
        state: State,
        batched: bool,
        lengths: np.ndarray | None = None,
        masks: np.ndarray | None = None,
        cells: np.ndarray | None = None,
    ) -> tuple[np.ndarray, State]:
        """x [T, B, I] and the caller's state to y [T, B, D*P] and the caller's state; the rest as a backend has it."""
        steps, batch, _ = x.shape
        if state is not None:
            state = self._state_in(state, batch, batched, "state")
        backend, block = choose(self.cell, self.backend), self.block
        if self._calls:
            self._forget_calls()
        version, training = block.version, self.training  # as another thread may change them meanwhile
        y, state, tape = backend.forward(self.cell, block, x, state, lengths, training, masks=masks, cells=cells)
        if training:
            self._calls.append(_Call(backend, tape, version, steps, batch, batched))
        return y, self._state_out(state, batched)

    def _forget_calls(self) -> None:
        """Drop the tapes that a new call leaves of no use."""
        self._calls.clear()

    def _latest(self) -> _Call:
        if not self._calls:
            raise UsageError(
                f"backward has no call to go back through: train(), then {type(self).__name__.lower()}(x), then "
                "backward, once per call"
            )
        if self._calls[-1].version != self.block.version:
            raise UsageError("the parameters changed after the call that backward would go back through; call again")
        return self._calls[-1]

    def _back(self, call: _Call, dy: np.ndarray | None, dstate: State) -> tuple[np.ndarray, State]:
        """dy [T, B, D*P] and the caller's dstate to dx [T, B, I] and the caller's dstate0; adds to the gradients."""
        if dstate is not None:
            dstate = self._state_in(dstate, call.batch, call.batched, "dstate")
        if not self._calls or self._calls[-1] is not call:
            raise UsageError("another thread has gone back through the call, or made a new one, meanwhile")
        self._calls.pop()
        dx, dstate0, _ = call.backend.backward(call.tape, dy, dstate, self.block.grads)
        return dx, self._state_out(dstate0, call.batched)

    # ---------------------------------------------------------------- states

    def _state_in(self, state: State, batch: int, batched: bool, what: str) -> State:
        """The caller's state to h [L*D, B, P], or the pair with c [L*D, B, H]."""
        lead = (*self._lead, batch) if batched else self._lead
        if not self.cell.has_c:
            return self._part_in(state, (*lead, self.stack.output_size), batch, "h of " + what)
        if not (isinstance(state, (tuple, list)) and len(state) == 2):
            given = f"{len(state)} parts" if isinstance(state, (tuple, list)) else type(state).__name__
            raise ShapeError(f"{what} of an LSTM must be the pair (h, c), not {given}")
        h = self._part_in(state[0], (*lead, self.stack.output_size), batch, "h of " + what)
        return h, self._part_in(state[1], (*lead, self.stack.hidden_size), batch, "c of " + what)

    def _part_in(self, part: Any, shape: tuple[int, ...], batch: int, what: str) -> np.ndarray:
        array = as_array(part, self.block.dtype, what)
        if array.shape != shape:
            raise ShapeError(f"{what} must be {list(shape)}, not {list(array.shape)}")
        return array if len(shape) == 3 else array.reshape(len(self.stack.suffixes), batch, shape[-1])

    def _state_out(self, state: State, batched: bool) -> State:
        """The backend's state to the caller's, which has L*D if this is a layer, and B if it is batched."""
        if batched and self._lead:
            return state
        index: Any = ((slice(None),) if self._lead else (0,)) + (() if batched else (0,))
        return (state[0][index], state[1][index]) if self.cell.has_c else state[index]

    # ---------------------------------------------------------------- as an object

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_calls": []}  # a tape is its backend's

    def __repr__(self) -> str:
        usual, arguments = Cell(self.kind), []
        for name, parameter in inspect.signature(type(self)).parameters.items():
            source = self if hasattr(self, name) else self.cell
            if not hasattr(source, name):
                continue  # an argument that a subclass added
            value = getattr(source, name)
            text = repr(value.name) if isinstance(value, np.dtype) else repr(value)
            if parameter.default is parameter.empty:
                arguments.append(text)
            elif text != repr(getattr(usual, name, parameter.default)):
                arguments.append(f"{name}={text}")
        return f"{type(self).__name__}({', '.join(arguments)})"


# ---------------------------------------------------------------- sequences


class Layer(Recurrent):
    """A stack of layers over sequences: the base of `RNN`, `LSTM` and `GRU`.

    Called as `layer(x, state=None, lengths=None, return_cells=False) -> y, state`:

    x        [T, B, I], or [T, I] for one sequence; with batch_first [B, T, I]. Anything with a buffer,
             `__array__` or DLPack; converted to the layer's dtype where it has another
    state    None for zeros, or h [L*D, B, P]; for an LSTM the pair (h, c [L*D, B, H]). Without B for one sequence;
             batch_first does not change it
    lengths  None, or B integers in any order, 0 <= lengths[b] <= T: past a row's length y is zero, its state is the
             one after its last step, and the reverse direction starts at its own end
    y        [T, B, D*P] as x is laid out

    and with `return_cells=True` an LSTM gives `y, state, cells`: the last layer's c at every step, [T, B, D*H] laid
    out as x is; no gradient flows through them.

    A layer starts in evaluation mode and keeps nothing. In training mode a call keeps what `backward` needs (x
    itself among it: do not write to it in between) until that, or the next call; the layer keeps the memory, and that
    of its last two large y and dx once they are dropped, for its next calls.

    Raises ShapeError, DtypeError, OptionError, BackendError.
    """

    batch_first: bool
    dropout: float
    num_layers = property(lambda self: self.stack.num_layers, doc="L")
    bidirectional = property(lambda self: self.stack.bidirectional, doc="Whether D is 2.")

    def _make(
        self,
        cell: Cell,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        dtype: Any = "float32",
        seed: Any = None,
        backend: str | None = None,
    ) -> None:
        dropout = probability("dropout", dropout)
        stack = Stack(cell, input_size, hidden_size, num_layers, bidirectional)
        if dropout and stack.num_layers == 1:
            warn(f"dropout={dropout} does nothing with num_layers=1: it acts between layers")
        self.batch_first, self.dropout = bool(batch_first), dropout
        self._build(stack, (len(stack.suffixes),), dtype, seed, backend)

    @classmethod
    def from_cell(cls, cell: Cell, input_size: int, hidden_size: int, **options: Any) -> Any:
        """The layer of a Cell: `LSTM.from_cell(cell, ...)`, or `Layer.from_cell(cell, ...)` for whichever it is.

        options: num_layers, batch_first, dropout, bidirectional, dtype, seed, backend.
        """
        layer = cls._for(cell, {"rnn": RNN, "lstm": LSTM, "gru": GRU})
        layer._make(cell, input_size, hidden_size, **options)
        return layer

    def forward(self, x: Any, state: State = None, lengths: Any = None, return_cells: bool = False) -> Any:
        """y and the final state; see the class."""
        x = as_array(x, self.block.dtype, "x")
        batched, size = x.ndim == 3, self.stack.input_size
        if not (batched or x.ndim == 2) or x.shape[-1] != size:
            order = "[B, T," if self.batch_first else "[T, B,"
            raise ShapeError(f"x must be {order} {size}], or [T, {size}] for one sequence, not {list(x.shape)}")
        if self.batch_first or not batched:
            x = self._time_first(x)
        cells = masks = None
        if lengths is not None:
            lengths = as_lengths(lengths, *x.shape[:2])
        if return_cells:
            if not self.cell.has_c:
                raise OptionError(f"return_cells is for an LSTM: a layer of kind {self.cell.kind!r} has no c")
            width = self.stack.num_directions * self.stack.hidden_size
            cells = empty((*x.shape[:2], width), self.dtype)
        if self.training and self.dropout and self.stack.num_layers > 1:
            masks = self._masks(*x.shape[:2])
        y, state = self._run(x, state, batched, lengths, masks, cells)
        if self.batch_first or not batched:
            y = self._as_given(y, batched)
        return (y, state) if cells is None else (y, state, self._as_given(cells, batched))

    def backward(self, dy: Any, dstate: State = None) -> tuple[np.ndarray, State]:
        """The gradients of the latest call's x and initial state; adds to the `grad` of every parameter.

        dy      None for zeros, or the gradient of y, laid out as it
        dstate  None for zeros, or the gradient of the final state

        Uses up what the call kept. Raises UsageError where there is no such call in training mode, or where
        the parameters changed since.
        """
        call = self._latest()
        if dy is not None:
            dy = as_array(dy, self.block.dtype, "dy")
            width = self.stack.num_directions * self.stack.output_size
            shape: tuple[int, ...] = (call.steps, call.batch, width)
            if not call.batched:
                shape = (call.steps, width)
            elif self.batch_first:
                shape = (call.batch, call.steps, width)
            if dy.shape != shape:
                raise ShapeError(f"dy must be {list(shape)} as y, not {list(dy.shape)}")
            dy = self._time_first(dy)
        dx, dstate0 = self._back(call, dy, dstate)
        return self._as_given(dx, call.batched), dstate0

    def stream(self, batch_size: int = 1) -> Stream:
        """Run this layer a step at a time; see `Stream`."""
        return Stream(self, batch_size)

    def _time_first(self, array: np.ndarray) -> np.ndarray:
        """The caller's layout to [T, B, ...]."""
        if array.ndim == 2:
            return array[:, None]
        return np.ascontiguousarray(array.swapaxes(0, 1)) if self.batch_first else array

    def _as_given(self, array: np.ndarray, batched: bool) -> np.ndarray:
        """[T, B, ...] to the caller's layout."""
        if not batched:
            return array[:, 0]
        return array.swapaxes(0, 1) if self.batch_first else array

    def _masks(self, steps: int, batch: int) -> np.ndarray:
        """[L-1, T, B, D*P] zeros with probability `dropout`, else 1 / (1 - dropout)."""
        stack = self.stack
        shape = (stack.num_layers - 1, steps, batch, stack.num_directions * stack.output_size)
        return dropout_mask(self._random, shape, self.dropout, self.dtype)


class RNN(Layer):
    """h[t] = act(W_ih x[t] + b_ih + W_hh h[t-1] + b_hh) (Elman 1990), as `torch.nn.RNN`.

    nonlinearity  "tanh", "relu", "sigmoid" or any other `Activation`, such as ("leaky_relu", 0.1)
    clip          None, or the bound on the activation's input
    dropout       between layers, in training mode, drawn afresh for every element and call
    seed          of the initialisation and of dropout: None, an integer or a numpy Generator
    backend       None for the choice of `fastrnn.use_backend`, or "c", "numba", "numpy"

    Calls, shapes and errors: see `Layer`.
    """

    kind = "rnn"
    nonlinearity = property(lambda self: self.cell.activations[0], doc="The Activation.")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str | tuple[Any, ...] | Activation = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        dtype: Any = "float32",
        clip: float | None = None,
        seed: Any = None,
        backend: str | None = None,
    ) -> None:
        cell = Cell("rnn", (nonlinearity,), clip=clip, bias=bias)
        self._make(cell, input_size, hidden_size, num_layers, batch_first, dropout, bidirectional, dtype, seed, backend)


class LSTM(Layer):
    """Long short-term memory (Hochreiter and Schmidhuber 1997; forget gate: Gers et al. 2000), as `torch.nn.LSTM`.

        i, f, o = gate(W_i* x[t] + b_i* + W_h* h[t-1] + b_h*)          g = candidate(...)
        c[t] = f c[t-1] + i g          h[t] = o output(c[t]), or W_hr of it where proj_size

    activations, forget, peephole, clip  as `Cell` has them
    dropout, seed, backend               as `RNN` has them

    The state is the pair (h, c). Calls, shapes and errors: see `Layer`.
    """

    kind = "lstm"
    proj_size = property(lambda self: self.cell.proj_size, doc="0, or P.")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        *,
        dtype: Any = "float32",
        activations: tuple[Any, ...] = (),
        forget: str = "gate",
        peephole: str = "none",
        clip: float | None = None,
        seed: Any = None,
        backend: str | None = None,
    ) -> None:
        cell = Cell("lstm", activations, forget, peephole, proj_size, clip=clip, bias=bias)
        self._make(cell, input_size, hidden_size, num_layers, batch_first, dropout, bidirectional, dtype, seed, backend)


class GRU(Layer):
    """Gated recurrent unit (Cho et al. 2014; reset after the product, as in cuDNN), as `torch.nn.GRU`.

        r, z = gate(W_i* x[t] + b_i* + W_h* h[t-1] + b_h*)
        n = candidate(W_in x[t] + b_in + r (W_hn h[t-1] + b_hn))          h[t] = z h[t-1] + (1 - z) n

    activations, reset, update, clip  as `Cell` has them
    dropout, seed, backend            as `RNN` has them

    Calls, shapes and errors: see `Layer`.
    """

    kind = "gru"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        dtype: Any = "float32",
        activations: tuple[Any, ...] = (),
        reset: str = "after",
        update: str = "keep",
        clip: float | None = None,
        seed: Any = None,
        backend: str | None = None,
    ) -> None:
        cell = Cell("gru", activations, reset=reset, update=update, clip=clip, bias=bias)
        self._make(cell, input_size, hidden_size, num_layers, batch_first, dropout, bidirectional, dtype, seed, backend)


# ---------------------------------------------------------------- one step


class SingleStep(Recurrent):
    """One step of one layer: the base of `RNNCell`, `LSTMCell` and `GRUCell`.

    Called as `cell(x, state=None) -> state`, with x [B, I] or [I], and state None for zeros, h [B, P] or [P], or for
    an LSTM the pair with c [B, H] or [H]. Parameters are `weight_ih`, `weight_hh`, `bias_ih`, `bias_hh`.

    In training mode every call is kept, and `backward` goes back through the latest that is left, so that a loop of
    calls is undone by a loop of as many backward; a change of the parameters, and a call in evaluation mode, drop
    them. Raises ShapeError, DtypeError, OptionError, BackendError.
    """

    def _make(
        self,
        cell: Cell,
        input_size: int,
        hidden_size: int,
        dtype: Any = "float32",
        seed: Any = None,
        backend: str | None = None,
    ) -> None:
        self._build(Stack(cell, input_size, hidden_size), (), dtype, seed, backend)

    @classmethod
    def from_cell(cls, cell: Cell, input_size: int, hidden_size: int, **options: Any) -> Any:
        """The module of a Cell: `LSTMCell.from_cell(cell, ...)`, or `SingleStep.from_cell` for whichever it is.

        options: dtype, seed, backend.
        """
        module = cls._for(cell, {"rnn": RNNCell, "lstm": LSTMCell, "gru": GRUCell})
        module._make(cell, input_size, hidden_size, **options)
        return module

    def forward(self, x: Any, state: State = None) -> State:
        """The next state; see the class."""
        x = as_array(x, self.block.dtype, "x")
        size = self.stack.input_size
        if x.ndim not in (1, 2) or x.shape[-1] != size:
            raise ShapeError(f"x must be [B, {size}], or [{size}] for one row, not {list(x.shape)}")
        batched = x.ndim == 2
        return self._run(x[None] if batched else x[None, None], state, batched)[1]

    def backward(self, dstate: State) -> tuple[np.ndarray, State]:
        """The gradients of the x and the state given to the latest call left; adds to every parameter's `grad`.

        dstate is the gradient of the state that the call gave: dh, or for an LSTM the pair (dh, dc). Raises
        UsageError where no call in training mode is left, or the parameters changed since.
        """
        call = self._latest()
        dx, dstate0 = self._back(call, None, dstate)
        return dx[0] if call.batched else dx[0, 0], dstate0

    def _forget_calls(self) -> None:
        if not (self.training and self._calls[-1].version == self.block.version):
            self._calls.clear()

    def _public(self, key: str) -> str:
        return key.removesuffix("_l0")


class RNNCell(SingleStep):
    """One step of `RNN`, as `torch.nn.RNNCell`; options as there, calls and errors as `SingleStep` has them."""

    kind = "rnn"
    nonlinearity = property(lambda self: self.cell.activations[0], doc="The Activation.")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str | tuple[Any, ...] | Activation = "tanh",
        *,
        dtype: Any = "float32",
        clip: float | None = None,
        seed: Any = None,
        backend: str | None = None,
    ) -> None:
        self._make(Cell("rnn", (nonlinearity,), clip=clip, bias=bias), input_size, hidden_size, dtype, seed, backend)


class LSTMCell(SingleStep):
    """One step of `LSTM`, as `torch.nn.LSTMCell`; options as there, calls and errors as `SingleStep` has them."""

    kind = "lstm"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        dtype: Any = "float32",
        activations: tuple[Any, ...] = (),
        forget: str = "gate",
        peephole: str = "none",
        proj_size: int = 0,
        clip: float | None = None,
        seed: Any = None,
        backend: str | None = None,
    ) -> None:
        cell = Cell("lstm", activations, forget, peephole, proj_size, clip=clip, bias=bias)
        self._make(cell, input_size, hidden_size, dtype, seed, backend)


class GRUCell(SingleStep):
    """One step of `GRU`, as `torch.nn.GRUCell`; options as there, calls and errors as `SingleStep` has them."""

    kind = "gru"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        dtype: Any = "float32",
        activations: tuple[Any, ...] = (),
        reset: str = "after",
        update: str = "keep",
        clip: float | None = None,
        seed: Any = None,
        backend: str | None = None,
    ) -> None:
        cell = Cell("gru", activations, reset=reset, update=update, clip=clip, bias=bias)
        self._make(cell, input_size, hidden_size, dtype, seed, backend)


# ---------------------------------------------------------------- streams


class Stream:
    """A layer run a step at a time, with the state it carries: `layer.stream(batch_size)` makes it.

    It starts from zeros, follows the layer's parameters as they change, always evaluates (no dropout, nothing for
    backward), and keeps the backend that was in force when it was made. Raises OptionError for a bidirectional
    layer, whose reverse direction starts at an end that a stream has not seen; ShapeError for batch_size < 1.
    """

    def __init__(self, layer: Layer, batch_size: int = 1) -> None:
        if layer.bidirectional:
            raise OptionError(
                "stream() needs bidirectional=False: the reverse direction starts at the end of a sequence, "
                "which a stream has not seen"
            )
        self.layer, self.batch_size = layer, integer("batch_size", batch_size, 1, ShapeError)
        self._dtype, self._shape = layer.dtype, (self.batch_size, layer.input_size)
        backend = choose(layer.cell, layer.backend)
        make = getattr(backend, "make_stepper", None)
        if make is None:
            self._stepper: Any = _Stepper(backend, layer, self.batch_size)
        else:
            self._stepper = make(layer.cell, layer.block, self.batch_size, layer.dtype)
        self._advance = self._stepper.advance

    def step(self, x: Any) -> np.ndarray:
        """x [B, I] to y [B, P], a new array; of [I] to [P] where batch_size is 1. Moves the state on.

        Raises ShapeError and DtypeError, and then leaves the state as it was.
        """
        if type(x) is ndarray and x.shape == self._shape and x.dtype is self._dtype:
            return self._advance(x)
        x = as_array(x, self._dtype, "x")
        if x.shape == self._shape:
            return self._advance(x)
        if x.shape == self._shape[1:] and self.batch_size == 1:
            return self._advance(x[None])[0]
        size = self._shape[1]
        single = f" or [{size}]" if self.batch_size == 1 else ""
        raise ShapeError(f"x must be {list(self._shape)}{single}, not {list(x.shape)}")

    @property
    def state(self) -> State:
        """A copy of h [L, B, P], or of the pair (h, c [L, B, H]). Assign the same, or None for zeros."""
        copies = tuple(own.copy() for own in self._states())
        return copies if self.layer.cell.has_c else copies[0]

    @state.setter
    def state(self, state: State) -> None:
        if state is None:
            self.reset()
            return
        given = self.layer._state_in(state, self.batch_size, True, "state")
        for own, new in zip(self._states(), given if self.layer.cell.has_c else (given,), strict=True):
            own[...] = new

    def __getstate__(self) -> dict[str, Any]:
        return {"layer": self.layer, "batch_size": self.batch_size, "state": self.state}

    def __setstate__(self, kept: dict[str, Any]) -> None:
        Stream.__init__(self, kept["layer"], kept["batch_size"])
        self.state = kept["state"]

    def reset(self, rows: Any = None) -> None:
        """Set the state to zero: of every row of the batch, or of `rows`.

        rows: an index, a slice, a sequence of indices or a boolean mask [B]. Raises ShapeError where one is out of
        range or the mask of another size, DtypeError for anything else.
        """
        index = slice(None) if rows is None else self._rows(rows)
        for own in self._states():
            own[:, index] = 0

    def _rows(self, rows: Any) -> Any:
        batch = self.batch_size
        try:
            index = np.arange(batch)[rows] if isinstance(rows, slice) else np.asarray(rows)
        except (TypeError, ValueError, RuntimeError) as error:
            raise DtypeError(f"rows must be an index, a slice, indices or a mask, not {rows!r}") from error
        if index.dtype.kind not in "biu" and index.shape != (0,):  # NumPy reads [] as floats
            raise DtypeError(f"rows must be an index, a slice, indices or a mask, not {rows!r}")
        if index.dtype == bool and index.shape != (batch,):
            raise ShapeError(f"a mask of rows must be [{batch}], not {list(index.shape)}")
        if index.dtype != bool and ((index < -batch) | (index >= batch)).any():
            raise ShapeError(f"rows must be within the batch of {batch}, not {rows!r}")
        return index if index.size else slice(0)

    def _states(self) -> list[np.ndarray]:
        return [self._stepper.h, self._stepper.c] if self.layer.cell.has_c else [self._stepper.h]

    def __repr__(self) -> str:
        return f"{self.layer!r}.stream({self.batch_size})"


class _Stepper:
    """`make_stepper` of a backend that has none: a forward of one step. x may lie in memory in any way."""

    def __init__(self, backend: ModuleType, layer: Layer, batch: int) -> None:
        stack = layer.stack
        self.backend, self.layer = backend, layer
        self.h = np.zeros((stack.num_layers, batch, stack.output_size), layer.dtype)
        self.c = np.zeros((stack.num_layers, batch, stack.hidden_size), layer.dtype) if layer.cell.has_c else None

    def advance(self, x: np.ndarray) -> np.ndarray:
        cell = self.layer.cell
        state = (self.h, self.c) if cell.has_c else self.h
        x = np.require(x[None], None, ["C_CONTIGUOUS", "ALIGNED"])
        y, state, _ = self.backend.forward(cell, self.layer.block, x, state, None, False)
        self.h, self.c = state if cell.has_c else (state, None)
        return y[0]
