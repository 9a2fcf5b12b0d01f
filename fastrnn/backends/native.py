"""The C backend: fused kernels on packed weights, a whole stack in one call, without the GIL.

This file binds and nothing more: it owns the handles, turns codes into exceptions, and keeps what was packed
for as long as the parameters' version stands. The contract is in __init__.py, the C interface in csrc/fastrnn.h,
the kernels in csrc/kernels.h.
"""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections.abc import Callable, Mapping
from functools import cache, cached_property
from typing import Any, NamedTuple

import numpy as np

from ..cell import ACTIVATIONS, Cell, Stack
from ..errors import BackendError, DtypeError, OptionError, OutOfMemoryError, ShapeError, UsageError
from . import Gradients, LayerTape, threads_from_environment
from ._sequence import reverse_rows, zero_gradients

try:
    from .._c import ffi
    from .._c import lib as c

    _import_error = None
except ImportError as error:
    _import_error = str(error)

PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr", "weight_ch")
ALIGNMENT = 128  # of a tape, in bytes
RECYCLED_BYTES = 131072  # of an array, from which on an allocator may give its pages back to the system
RESULT_BYTES = 8192  # of a stream's results made at once, which live as long as one of them is held
COPIED_BYTES = 8192  # of a step's input, which to copy takes less than to ask NumPy where it is

ERRORS: dict[str, type[Exception]] = {
    "FRNN_ERROR_MEMORY": OutOfMemoryError,
    "FRNN_ERROR_SPEC": OptionError,
    "FRNN_ERROR_UNSUPPORTED": BackendError,
    "FRNN_ERROR_ISA": BackendError,
    "FRNN_ERROR_SIZE": ShapeError,
    "FRNN_ERROR_LENGTH": ShapeError,
    "FRNN_ERROR_NULL": UsageError,
    "FRNN_ERROR_UNPACKED": UsageError,
    "FRNN_ERROR_ROOM": UsageError,
}


def _check(code: int, what: str, *details: Any) -> None:
    """Raise the exception that a code of the C library stands for; `what` is formatted only then."""
    if code:
        error = next(error for name, error in ERRORS.items() if getattr(c, name) == code)
        raise error(f"{what.format(*details)}: {ffi.string(c.frnn_error(code)).decode()}")


# ---- the registry's questions ----------------------------------------------------------------------------------------


def missing() -> str | None:
    """Why the C library is not there, or None."""
    return None if _import_error is None else f"the C library was not built ({_import_error})"


def broken() -> None:
    """Once it is imported it works."""


def unsupported(cell: Cell) -> str | None:
    """Why the C kernels do not run this cell, or None."""
    if cell.peephole == "full":
        return "the C kernels have no full-matrix peepholes"
    if cell.peephole == "cell" and cell.proj_size:
        return "the C kernels have no projection where the gates see the cell"
    return None


def describe() -> dict[str, Any]:
    """Instruction set, threads and caches."""
    caches = ffi.new("int64_t[3]")
    c.frnn_cpu_caches(caches)
    return {
        "isa": chosen_isa(),
        "isas": ", ".join(isas()),
        "threads": get_num_threads(),
        "caches": ", ".join(f"{name} {size >> 10} KiB" for name, size in zip(("L1d", "L2", "L3"), caches, strict=True)),
    }


@cache
def isas() -> tuple[str, ...]:
    """The instruction sets that were built and that this CPU has, the best first."""
    found, i = [], 0
    while (name := c.frnn_isa_name(i)) != ffi.NULL:
        if c.frnn_isa_usable(i):
            found.append(ffi.string(name).decode())
        i += 1
    return tuple(found)


def chosen_isa() -> str:
    """FASTRNN_ISA, or the best instruction set; BackendError where the one forced is not to be had."""
    forced = os.environ.get("FASTRNN_ISA")
    if forced and forced not in isas():
        raise BackendError(f"FASTRNN_ISA={forced!r} is not on this machine; there are {', '.join(isas())}")
    return forced or isas()[0]


def set_num_threads(n: int) -> None:
    """The team's size from the next call on; more than this process may use count as that many."""
    c.frnn_set_threads(min(n, 2**31 - 1))


def get_num_threads() -> int:
    """The team's size."""
    return c.frnn_get_threads()


if _import_error is None and (_wanted := threads_from_environment()):
    set_num_threads(_wanted)


# ---- handles ---------------------------------------------------------------------------------------------------------


def _spec(stack: Stack, dtype: np.dtype[Any]) -> Any:
    cell = stack.cell
    spec = ffi.new("frnn_spec *")
    spec.real_size = dtype.itemsize
    spec.kind = ("rnn", "lstm", "gru").index(cell.kind)
    spec.forget = ("gate", "none", "coupled").index(cell.forget)
    spec.peephole = ("none", "diagonal", "cell", "full").index(cell.peephole)
    spec.reset = ("after", "before").index(cell.reset)
    spec.update = ("keep", "write").index(cell.update)
    for i, (name, alpha, beta) in enumerate(cell.activations):
        spec.activation[i], spec.alpha[i], spec.beta[i] = list(ACTIVATIONS).index(name), alpha, beta
    spec.clip = cell.clip or 0.0
    spec.input_size, spec.hidden_size, spec.proj_size = stack.input_size, stack.hidden_size, cell.proj_size
    spec.num_layers, spec.num_directions = stack.num_layers, stack.num_directions
    return spec


class TapeParts(NamedTuple):
    """What a tape is made of. A call overwrites all pointers in it but those to lengths, masks and the tape."""

    sizes: tuple[int, int] | None  # T and B; None where there are lengths or masks
    call: Any  # forward's, whose x, lengths, masks and tape backward reads
    grads: Any  # backward's
    memory: np.ndarray


class Engine:
    """Packed weights of one set of parameters, and a plan to run them with."""

    def __init__(self, cell: Cell, params: Mapping[str, np.ndarray]) -> None:
        self.stack = stack = Stack.of(cell, params)
        self.tracks, self.columns = len(stack.suffixes), stack.num_directions * stack.output_size
        self.dtype = params["weight_ih_l0"].dtype
        if self.dtype not in (np.float32, np.float64):
            raise DtypeError(f"the C kernels run float32 and float64, not {self.dtype}")
        out = ffi.new("frnn_weights **")
        isa = chosen_isa().encode()
        _check(c.frnn_weights_new(_spec(stack, self.dtype), isa, out), "{}", stack)
        self.weights = ffi.gc(out[0], c.frnn_weights_free)
        self.packed: tuple[Any, bool] | None = None
        self.plan = self.new_plan()
        self.pointers, alive = _pointers(stack, params)
        # A block keeps its arrays and this engine: to hold them would keep both from being freed.
        self.alive = None if hasattr(params, "cache") else alive
        self.gradients: tuple[Any, Any] = None, None  # those of the parameters' block, and their pointers
        self.spare: TapeParts | None = None  # what the last tape gave back, for the next one
        self.outputs, self.input_grads = Recycled(), Recycled()  # of training

    def new_plan(self) -> Any:
        """A plan of its own for another caller of the same weights."""
        out = ffi.new("frnn_plan **")
        _check(c.frnn_plan_new(self.weights, out), "a plan for {}", self.stack)
        return ffi.gc(out[0], c.frnn_plan_free)

    def pack(self, params: Mapping[str, np.ndarray], backward: bool) -> None:
        """Bring the packed weights up to date with the parameters, those that it was made of."""
        version = getattr(params, "version", None)
        if self.packed is not None and version is not None:
            if self.packed[0] == version and (self.packed[1] or not backward):
                return
            backward = backward or self.packed[1]  # who has trained will train again
        _check(c.frnn_weights_pack(self.weights, self.pointers, backward), "packing")
        self.packed = version, backward

    def tape_parts(self, T: int, B: int, lengths: Any, masks: Any) -> TapeParts:
        """For a tape: all that the last one gave back if it had that T and B, its memory if that is of such a size."""
        spare, self.spare = self.spare, None
        sizes = (T, B) if lengths is None and masks is None else None
        if spare is not None and sizes and spare.sizes == sizes:
            return spare
        call = _call(T, B, lengths, masks)
        size = c.frnn_tape_bytes(self.weights, call)
        if size < 0:
            _check(-size, "the tape of T={}, B={}", T, B)
        memory = None if spare is None else spare.memory
        if memory is None or not size <= memory.nbytes <= 2 * size:
            try:
                memory = _aligned(size)
            except (MemoryError, ValueError) as error:
                raise OutOfMemoryError(f"the tape, {size} bytes, could not be allocated") from error
        call.tape = ffi.from_buffer(memory)
        return TapeParts(sizes, call, ffi.new("frnn_grads *"), memory)


def _call(T: int, B: int, lengths: Any, masks: Any) -> Any:
    """A call with all that its tape's size follows from."""
    call = ffi.new("frnn_call *", {"T": T, "B": B})
    if lengths is not None:
        call.lengths = ffi.from_buffer("int64_t[]", lengths)
    if masks is not None:
        call.masks = ffi.from_buffer(masks)
    return call


def _pointers(stack: Stack, arrays: Mapping[str, np.ndarray], writable: bool = False) -> tuple[Any, list[Any]]:
    """Six pointers for each layer and direction, and what keeps the arrays alive."""
    table = ffi.new("void *[]", len(PARAMETERS) * len(stack.suffixes))
    alive = []
    for i, name in enumerate(p + suffix for suffix in stack.suffixes for p in PARAMETERS):
        if name in stack.shapes:
            alive.append(ffi.from_buffer("char[]", np.asarray(arrays[name]), require_writable=writable))
            table[i] = alive[-1]
    return table, alive


def _engine(cell: Cell, params: Mapping[str, np.ndarray], backward: bool) -> Engine:
    cache = getattr(params, "cache", None)
    engine = cache.get("c") if cache is not None else None
    if engine is None or (engine.stack.cell is not cell and engine.stack.cell != cell):
        engine = Engine(cell, params)
        if cache is not None:
            cache["c"] = engine
    engine.pack(params, backward)
    return engine


def _aligned(size: int) -> np.ndarray:
    """`size` bytes that begin at a multiple of ALIGNMENT."""
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.__array_interface__["data"][0] % ALIGNMENT
    return raw[start : start + size]


class Recycled:
    """Arrays in memory of earlier ones that nobody holds any more: to clear fresh pages takes the system up to a third
    of a small network's training step. It keeps two, for a loop makes the next while it holds the last.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.given: list[tuple[weakref.ref[np.ndarray], memoryview]] = []

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """One of that shape, of any content. A small one is the allocator's own business."""
        size = math.prod(shape) * dtype.itemsize
        # Not locked: another thread's call is here, or was when this process was forked.
        if size < RECYCLED_BYTES or not self.lock.acquire(blocking=False):
            return np.empty(shape, dtype)
        try:
            held, memory = [], None
            for array, block in self.given:
                if array() is not None:
                    held.append((array, block))
                elif size <= block.nbytes <= 2 * size:
                    memory = block
            self.given = held[-1:]  # what else there was is free before more is asked for
            if memory is None:
                memory = memoryview(_aligned(size))
            # Made of a memoryview, it is the base of all views of it and lives until the last one's end.
            flat = np.frombuffer(memory, dtype, size // dtype.itemsize)
            self.given.append((weakref.ref(flat), memory))
        finally:
            self.lock.release()
        return flat.reshape(shape)


# ---- the contract ----------------------------------------------------------------------------------------------------


class Tape:
    """What one forward call kept. The gates become their gradients when backward has run."""

    def __init__(
        self, engine: Engine, cell: Cell, params: Any, parts: TapeParts, x: np.ndarray, lengths: Any, masks: Any
    ) -> None:
        self.engine, self.cell, self.params, self.stack = engine, cell, params, engine.stack
        self.x, self.lengths, self.masks = x, lengths, masks
        self.parts: TapeParts | None = parts  # until backward gives them back

    @cached_property
    def layers(self) -> list[LayerTape]:
        """The sequences as plain arrays in step order, one LayerTape for each layer and direction."""
        if self.parts is None:
            raise UsageError("the tape's memory was given back when backward ran; read its layers before")
        layers: list[LayerTape] = []
        D, below = self.stack.num_directions, self.x
        for k in range(len(self.stack.suffixes)):
            if k and k % D == 0:
                below = self._between(layers[-D:], k // D - 1)
            layers.append(self._layer(k, reverse_rows(below, self.lengths) if k % D else below))
        return layers

    def _between(self, layers: list[LayerTape], layer: int) -> np.ndarray:
        """What the layer above read: [T, B, D*P]."""
        T, B = self.x.shape[:2]
        runs = np.arange(T)[:, None, None] < (np.full(B, T) if self.lengths is None else self.lengths)[:, None]
        outputs = [np.where(runs, tape.h[1:], 0) for tape in layers]
        y = np.concatenate([reverse_rows(h, self.lengths) if d else h for d, h in enumerate(outputs)], axis=2)
        return y if self.masks is None else y * self.masks[layer]

    def _layer(self, k: int, x: np.ndarray) -> LayerTape:
        """Unpack track k: on the tape rows are sorted by length and take no room past their ends, shard by shard."""
        assert self.parts
        stack, cell, (T, B) = self.stack, self.cell, self.x.shape[:2]
        view = ffi.new("frnn_tape_view *")
        _check(c.frnn_tape_layout(self.engine.weights, self.parts.call, k, view), "the tape's layout")
        reals = self.parts.memory.view(self.x.dtype)
        lengths = np.full(B, T) if self.lengths is None else self.lengths
        n, order = view.shards, np.argsort(-lengths, kind="stable")
        parts = [slice(B * i // n, B * (i + 1) // n) if self.lengths is None else slice(i, B, n) for i in range(n)]

        def unpack(at: int, ld: int, initial: bool) -> np.ndarray:
            out = np.zeros((T + initial, B, ld), reals.dtype)
            for rows in (order[part] for part in parts):
                steps = [rows[lengths[rows] > s] for s in range(T)]
                for s, active in enumerate([rows, *steps] if initial else steps):
                    if initial and s:
                        out[s, rows] = out[s - 1, rows]
                    out[s, active] = reals[at : at + len(active) * ld].reshape(len(active), ld)
                    at += len(active) * ld
            return out

        h = unpack(view.h, view.h_ld, True)[..., : stack.output_size]
        gates = unpack(view.gates, view.gates_ld, False).reshape(T, B, -1, view.plane)[..., : stack.hidden_size]
        states = unpack(view.c, view.c_ld, True)[..., : stack.hidden_size] if cell.has_c else None
        if cell.kind == "rnn":
            gates = h[1:, :, None]  # the kernels keep h alone
        hn = gates[:, :, 3] if cell.kind == "gru" and cell.reset == "after" else None
        return LayerTape(x, h, states, gates[:, :, [1, 2, 0]] if cell.kind == "gru" else gates, hn)


def forward(cell, params, x, state, lengths, train, *, masks=None, cells=None):  # type: ignore[no-untyped-def]
    """The contract's forward: one call of the C library."""
    engine, (T, B, _), dtype, buffer = _engine(cell, params, train), x.shape, x.dtype, ffi.from_buffer
    stack = engine.stack
    shape = T, B, engine.columns
    h0 = c0 = cn_at = ffi.NULL
    try:
        y = engine.outputs.array(shape, dtype) if train else np.empty(shape, dtype)
        hn = final = np.empty((engine.tracks, B, stack.output_size), dtype)
        if cell.has_c:
            cn = np.empty((engine.tracks, B, stack.hidden_size), dtype)
            cn_at, final = buffer(cn), (hn, cn)
    except (MemoryError, ValueError) as error:
        raise OutOfMemoryError(f"the output {shape} of {dtype} and the state could not be allocated") from error
    if state is not None:
        h0, c0 = map(buffer, state) if cell.has_c else (buffer(state), c0)
    places = buffer(x), h0, c0, buffer(y), buffer(hn), cn_at
    tape = None
    if not train and lengths is None and cells is None and masks is None:
        code = c.frnn_infer(engine.plan, T, B, *places)
    else:
        if train:
            parts = engine.tape_parts(T, B, lengths, masks)
            call, tape = parts.call, Tape(engine, cell, params, parts, x, lengths, masks)
        else:
            call = _call(T, B, lengths, masks)
        call.x, call.h0, call.c0, call.y, call.hn, call.cn = places
        call.cells = ffi.NULL if cells is None else buffer(cells)
        code = c.frnn_forward(engine.plan, call)
    if code:
        _check(code, "forward of T={}, B={}, {}", T, B, stack)
    return y, final, tape


def backward(tape, dy, dstate, dparams=None):  # type: ignore[no-untyped-def]
    """The contract's backward: one call of the C library."""
    parts = tape.parts
    if parts is None:
        raise UsageError("backward was called twice for one forward")
    engine, stack, grads, buffer = tape.engine, tape.stack, parts.grads, ffi.from_buffer
    dtype, (T, B, _) = engine.dtype, tape.x.shape
    engine.pack(tape.params, True)
    if dparams is None:
        dparams = zero_gradients(stack, dtype)
    shape = T, B, stack.input_size
    dhn = dcn = dc0_at = ffi.NULL
    try:
        dx = engine.input_grads.array(shape, dtype)
        dh0 = dstate0 = np.empty((engine.tracks, B, stack.output_size), dtype)
        if tape.cell.has_c:
            dc0 = np.empty((engine.tracks, B, stack.hidden_size), dtype)
            dc0_at, dstate0 = buffer(dc0), (dh0, dc0)
    except (MemoryError, ValueError) as error:
        raise OutOfMemoryError(f"dx {shape} of {dtype} and the state's gradient could not be allocated") from error
    if dstate is not None:
        dhn, dcn = map(buffer, dstate) if tape.cell.has_c else (buffer(dstate), dcn)
    known, pointers = engine.gradients
    if known is not dparams:
        pointers = _pointers(stack, dparams, writable=True)
        if type(dparams) is Gradients:
            engine.gradients = dparams, pointers
    grads.dy, grads.dhn, grads.dcn = ffi.NULL if dy is None else buffer(dy), dhn, dcn
    grads.dx, grads.dh0, grads.dc0, grads.params = buffer(dx), buffer(dh0), dc0_at, pointers[0]
    tape.parts = None
    code = c.frnn_backward(engine.plan, parts.call, grads)
    if code:
        _check(code, "backward of T={}, B={}, {}", T, B, stack)
    engine.spare = parts
    return dx, dstate0, dparams


def add_product(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    """out: [M, N] += a: [M, K] @ b: [K, N] on the team of threads. out is contiguous, a and b of any strides."""
    size = out.dtype.itemsize
    (M, K), N = a.shape, b.shape[1]
    strides = [stride // size for stride in (*a.strides, *b.strides)]
    pointers = [ffi.cast("void *", array.__array_interface__["data"][0]) for array in (a, b)]
    code = c.frnn_multiply(
        size, chosen_isa().encode(), M, N, K, pointers[0], *strides[:2], pointers[1], *strides[2:], ffi.from_buffer(out)
    )
    _check(code, "a product of [{}, {}] and [{}, {}]", M, K, K, N)


def softmax_sums(x: np.ndarray, peak: np.ndarray, norm: np.ndarray) -> None:
    """Of rows x: [N, V] their maximum into peak [N, 1] and the sum of exp(x - peak) into norm [N, 1]."""
    buffer = ffi.from_buffer
    code = c.frnn_softmax_sums(x.itemsize, chosen_isa().encode(), *x.shape, buffer(x), buffer(peak), buffer(norm))
    _check(code, "the softmax of [{}, {}]", *x.shape)


def scaled_exponentials(x: np.ndarray, peak: np.ndarray, factor: np.ndarray, out: np.ndarray) -> None:
    """out: [N, V] = exp(x - peak) * factor, with peak and factor [N, 1]."""
    buffer = ffi.from_buffer
    code = c.frnn_scaled_exponentials(
        x.itemsize, chosen_isa().encode(), *x.shape, buffer(x), buffer(peak), buffer(factor), buffer(out)
    )
    _check(code, "the exponentials of [{}, {}]", *x.shape)


def sum_of_squares(x: np.ndarray) -> float:
    """Of all numbers of a flat array, in float64."""
    sums = np.empty(-(-x.size // c.FRNN_SQUARES))
    code = c.frnn_sums_of_squares(
        x.itemsize, chosen_isa().encode(), x.size, ffi.from_buffer(x), ffi.from_buffer("double[]", sums)
    )
    _check(code, "the squares of {} numbers", x.size)
    return float(sums.sum())


def scale(x: np.ndarray, factor: float) -> None:
    """A flat array times a factor, in place."""
    code = c.frnn_scale(x.itemsize, chosen_isa().encode(), x.size, ffi.from_buffer(x), factor)
    _check(code, "scaling {} numbers", x.size)


def update(name: str, constants: Mapping[str, float], w: np.ndarray, **arrays: np.ndarray) -> None:
    """A step of the optimiser `name` for flat arrays; what it takes are the fields of frnn_*_step in csrc/fastrnn.h."""
    places = {key: ffi.from_buffer(array) for key, array in arrays.items()}
    step = ffi.new(f"frnn_{name}_step *", {"n": w.size, "w": ffi.from_buffer(w), **constants, **places})
    code = getattr(c, "frnn_" + name)(w.itemsize, chosen_isa().encode(), step)
    _check(code, "a step for {} parameters", w.size)


class Stepper:
    """One step at a time on a plan of its own, with the state h and c.

    advance(x)  x [B, I] of the layer's dtype, however it lies in memory, to y [B, P], a part of a block of results
    """

    advance: Callable[[np.ndarray], np.ndarray]

    def __init__(self, cell: Cell, params: Any, batch_size: int, dtype: np.dtype[Any]) -> None:
        version = params.version
        engine = _engine(cell, params, False)
        stack = engine.stack
        self.h = np.zeros((stack.num_layers, batch_size, stack.output_size), dtype)
        self.c = np.zeros((stack.num_layers, batch_size, stack.hidden_size), dtype) if cell.has_c else None
        h, c_ = ffi.from_buffer(self.h), ffi.NULL if self.c is None else ffi.from_buffer(self.c)
        plan = engine.new_plan()
        places = {"h0": h, "hn": h, "c0": c_, "cn": c_}
        self.call = call = ffi.new("frnn_call *", {"T": 1, "B": batch_size, **places})
        self._alive = h, c_  # plan and call live as long as the function below

        # A function of names of its own: to look up so many attributes would take a tenth of a small step's time.
        step, full, shape = c.frnn_step, -c.FRNN_ERROR_ROOM, (batch_size, stack.output_size)
        size = math.prod(shape) * dtype.itemsize
        copies = batch_size * stack.input_size * dtype.itemsize <= COPIED_BYTES
        # The stream that writes to a block, and the block's parts, of which the step says which it has made: neither an
        # exception nor another thread comes between the two.
        current: tuple[Any, list[np.ndarray]] = ffi.new("frnn_stream *", (plan, call)), []

        def advance(x: np.ndarray) -> np.ndarray:
            nonlocal version
            now = params.version  # another thread may move it while this one packs
            if now != version:
                engine.pack(params, False)
                version = now
            given = x.tobytes() if copies else ffi.from_buffer(np.require(x, None, ["C_CONTIGUOUS", "ALIGNED"]))
            stream, results = current
            index = step(stream, given)
            while index == full:  # more than once, where other threads are quick
                stream, results = new_block()
                index = step(stream, given)
            if index < 0:
                _check(-index, "a step of {}", stack)
            return results[index]

        def new_block() -> tuple[Any, list[np.ndarray]]:
            nonlocal current
            block = np.empty((max(1, RESULT_BYTES // max(size, 1)), *shape), dtype)
            current = ffi.new("frnn_stream *", (plan, call, ffi.from_buffer(block), len(block), 0)), list(block)
            return current

        self.advance = advance


make_stepper = Stepper
