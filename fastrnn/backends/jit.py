"""The numba backend: kernels that are compiled when first used, for where the C library is not.

This file packs the parameters, lays out the memory, shares the work among threads and takes a stack apart; the
kernels are in _jit_kernels.py. numba itself is imported by the first forward, never by importing fastrnn; what it
compiles it keeps on disk. The contract is in __init__.py, the equations are in reference.py.

Forward keeps a row's bits whatever the batch, the padding, the number of threads and the cuts in time.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import version
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np

from ..cell import Cell, Stack
from ..errors import BackendError
from . import LayerTape, cpus, empty, in_silence, load, threads_from_environment
from ._sequence import reverse_rows, state_parts, zero_gradients

Array = np.ndarray

CHUNK = 48  # rows of x, of all steps together, that go through W_ih at once
SHARED = 1e7  # multiply-adds: below this a thread costs more than it brings

_threads: int | None = None  # by set_num_threads


# ---- the registry's questions ----------------------------------------------------------------------------------------


def missing() -> str | None:
    """Why numba is not there, or None."""
    return None if find_spec("numba") else 'numba is not installed (pip install "fastrnn[numba]")'


@cache
def broken() -> str | None:
    """Why numba, which is there, cannot compile."""
    try:
        from numba import config
    except Exception as error:  # of a NumPy newer than it knows, among others
        return f"numba cannot be imported: {error}"
    return "NUMBA_DISABLE_JIT is set" if config.DISABLE_JIT else None


def unsupported(cell: Cell) -> None:
    """Every cell is supported."""


def describe() -> dict[str, Any]:
    """Versions, and the number of threads."""
    return {"numba": version("numba"), "llvmlite": version("llvmlite"), "threads": get_num_threads()}


def get_num_threads() -> int:
    """As many as the C backend; where it is not built, what was set, or else what this process may run on."""
    native = load("c")
    if native.missing() is None:
        return int(native.get_num_threads())
    return min(_threads or threads_from_environment() or cpus(), cpus())


def set_num_threads(n: int) -> None:
    """As many from the next call on, where the C backend is not built; no more than this process may run on."""
    global _threads
    _threads = n


@cache
def kernels() -> ModuleType:
    """The compiled half; BackendError where there can be none."""
    if reason := broken():
        raise BackendError(f"backend 'numba' cannot run here: {reason}")
    from . import _jit_kernels

    return _jit_kernels


# ---- parameters as the kernels read them -----------------------------------------------------------------------------


class Packed:
    """The parameters of one version, packed layer by layer and direction by direction."""

    def __init__(self, cell: Cell, params: Mapping[str, Any]) -> None:
        K = kernels()
        self.version = getattr(params, "version", None)
        self.stack = stack = Stack.of(cell, params)
        self.dtype = dtype = params["weight_ih_l0"].dtype
        self.U = -(-stack.hidden_size // K.lanes(dtype)) * K.lanes(dtype)
        self.spec = K.Spec(
            kind=("rnn", "lstm", "gru").index(cell.kind),
            forget=("gate", "none", "coupled").index(cell.forget),
            peephole=("none", "diagonal", "full", "cell").index(cell.peephole),
            reset_after=int(cell.kind == "gru" and cell.reset == "after"),
            keep=int(cell.update == "keep"),
            G=len(cell.gates),
            H=stack.hidden_size,
            P=stack.output_size,
            projected=int(cell.proj_size > 0),
        )
        numbers = [(f.alpha, f.beta, np.inf if cell.clip is None else cell.clip, 0, 0) for f in cell.activations]
        self.acts = K.Activations(
            codes=np.array([K.NAMES.index(f.name) for f in cell.activations], np.int64),
            numbers=np.array(numbers, dtype),
        )
        self.acts.numbers[2:, 2] = np.inf  # an LSTM's output activation is not bounded
        # Without the parameters themselves: their block keeps this, and neither could be freed.
        self._forward: list[Any] | None = None
        self._backward: list[Any] | None = None

    @classmethod
    def of(cls, cell: Cell, params: Mapping[str, Any]) -> Packed:
        """What params.cache keeps of this version, else new."""
        cache = getattr(params, "cache", None)
        if cache is None:
            return cls(cell, params)
        found = cache.get("numba")
        if found is None or found.version != getattr(params, "version", None) or found.stack.cell != cell:
            found = cache["numba"] = cls(cell, params)
        return found

    def forward(self, params: Mapping[str, Any]) -> list[Any]:
        """For each layer and direction the kernels' Weights for the way there."""
        if self._forward is None:
            self._forward = [self._there(params, suffix) for suffix in self.stack.suffixes]
        return self._forward

    def backward(self, params: Mapping[str, Any]) -> list[Any]:
        """For each layer and direction the kernels' Weights for the way back."""
        if self._backward is None:
            self._backward = [self._back(params, suffix) for suffix in self.stack.suffixes]
        return self._backward

    def _arrays(self, params: Mapping[str, Any], suffix: str, *names: str) -> list[Array]:
        """Parameters, or none of one that the cell has not."""
        found = (name + suffix for name in names)
        return [np.asarray(params[name]) if name in self.stack.shapes else np.zeros(0, self.dtype) for name in found]

    def _spread(self, rows: Array) -> Array:
        """[gates * H, ...] with each gate's rows rounded up to U by zeros."""
        H = self.stack.hidden_size
        spread = np.zeros((len(rows) // H, self.U, *rows.shape[1:]), self.dtype)
        spread[:, :H] = rows.reshape(len(spread), H, *rows.shape[1:])
        return spread.reshape(len(spread) * self.U, *rows.shape[1:])

    def _there(self, params: Mapping[str, Any], suffix: str) -> Any:
        K, cell, H = kernels(), self.stack.cell, self.stack.hidden_size
        w_ih, w_hh, w_ch, w_hr = self._arrays(params, suffix, "weight_ih", "weight_hh", "weight_ch", "weight_hr")
        bias, b_hh = self._arrays(params, suffix, "bias_ih", "bias_hh")
        none, n, bias_n = np.zeros(0, self.dtype), w_hh[2 * H :], np.zeros(H, self.dtype)
        if not cell.bias:
            bias = b_hh = np.zeros(len(cell.gates) * H, self.dtype)
        if self.spec.reset_after:
            bias_n, b_hh = b_hh[2 * H :], np.concatenate([b_hh[: 2 * H], np.zeros(H, self.dtype)])
        gru, full = cell.kind == "gru", cell.peephole == "full"
        return K.Weights(
            bias=self._spread(bias + b_hh),
            x=self._packed(w_ih),
            h=self._packed(w_hh[: 2 * H] if gru else w_hh),
            n=self._packed(n) if gru else none,
            bias_n=self._spread(bias_n),
            peep=none.reshape(0, 0) if full else w_ch.reshape(-1, H).copy(),
            see=self._packed(w_ch[:-H]) if full else none,
            see_o=self._packed(w_ch[-H:]) if full else none,
            r=K.pack(w_hr.T) if cell.proj_size else none,
        )

    def _packed(self, rows: Array) -> Array:
        return kernels().pack(self._spread(rows).T)

    def _back(self, params: Mapping[str, Any], suffix: str) -> Any:
        K, cell, H = kernels(), self.stack.cell, self.stack.hidden_size
        w_hh, w_ch, w_hr = self._arrays(params, suffix, "weight_hh", "weight_ch", "weight_hr")
        none = np.zeros(0, self.dtype)
        gru, full = cell.kind == "gru", cell.peephole == "full"
        return K.Weights(
            bias=none,
            x=none,
            h=K.pack(w_hh[: 2 * H] if gru else w_hh),
            n=K.pack(w_hh[2 * H :]) if gru else none,
            bias_n=none,
            peep=none.reshape(0, 0) if full else w_ch.reshape(-1, H).copy(),
            see=K.pack(w_ch[:-H]) if full else none,
            see_o=K.pack(w_ch[-H:]) if full else none,
            r=K.pack(w_hr) if cell.proj_size else none,
        )


# ---- rows, threads, memory -------------------------------------------------------------------------------------------


class Shares:
    """Who runs what: each direction's rows, the longest first, in as many shares as there are threads to take them."""

    def __init__(self, stack: Stack, T: int, lengths: Array | None, B: int) -> None:
        self.D, sizes = stack.num_directions, stack.layer_input_size(0) + stack.recurrent_size
        steps = T * B if lengths is None else int(lengths.sum())
        work = self.D * steps * len(stack.cell.gates) * stack.hidden_size * sizes
        self.threads = get_num_threads() if work > SHARED else 1
        parts = max(self.threads // self.D, 1)
        # Neighbours share cache lines, so a thread takes neighbours; where lengths differ it takes long and short.
        if lengths is None:
            ends = np.full(B, T)
            shares = [np.arange(B * part // parts, B * (part + 1) // parts) for part in range(parts)]
        else:
            ends, order = lengths, np.argsort(-lengths, kind="stable")
            shares = [order[part::parts].copy() for part in range(parts)]  # contiguous, as kernels are compiled for
        self.calls = [(d, rows, ends[rows]) for d in range(self.D) for rows in shares if len(rows)]

    def run(self, job: Callable[[int, Array, Array], None]) -> None:
        """job(d, rows, ends) for every share of each direction d."""
        if self.threads == 1 or len(self.calls) == 1:
            for call in self.calls:
                job(*call)
            return
        first, *others = self.calls
        helpers = [_submit(self.threads - 1, job, *call) for call in others]
        try:
            job(*first)
        finally:
            wait(helpers)
        for helper in helpers:
            helper.result()


def _submit(threads: int, job: Callable[..., None], *call: Any) -> Future[None]:
    """Have a helper do it; when Python ends, which takes no more helpers, at once."""
    try:
        return _pool(threads).submit(job, *call)
    except RuntimeError as error:
        if not str(error).startswith("cannot schedule"):  # else a helper may have it
            raise
        done: Future[None] = Future()
        job(*call)
        done.set_result(None)
        return done


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """So many threads beside the caller's, made once."""
    return ThreadPoolExecutor(threads, "fastrnn")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads stay behind


def _matrix(array: Array | None, dtype: Any) -> Array:
    """[T, B, ...] as [T*B, ...], none as [0, 0]: of the one type that kernels are compiled for."""
    if array is None:
        return np.empty((0, 0), dtype)
    matrix = array.reshape(array.shape[0] * array.shape[1], math.prod(array.shape[2:]))
    return np.require(matrix, requirements=["C", "A", "W", "E"])


def _work(packed: Packed, rows: int) -> Any:
    """What a kernel needs for so many rows of the batch."""
    K, U, dtype = kernels(), packed.U, packed.dtype
    taken = rows * max(CHUNK // rows, 1)
    return K.Work(
        pre=empty((taken, packed.spec.G * U), dtype),
        m=empty((K.BLOCK, U), dtype),
        u=empty((K.BLOCK, U), dtype),
        plain=np.arange(max(taken, K.BLOCK)),
        x=empty((taken,), np.int64),
        at=K.At(*empty((5, K.BLOCK), np.int64)),
    )


def _states(packed: Packed, T: int, initial: list[Array], train: bool) -> Any:
    """Room for a layer and direction, with the initial state: in training for all steps, else for two by turns."""
    spec, dtype, B = packed.spec, packed.dtype, len(initial[0])
    sequences = []
    for part in initial:
        sequences.append(empty(((T + 1 if train else 2) * B, part.shape[1]), dtype))
        sequences[-1][:B] = part
    steps = T * B if train else 0
    return kernels().States(
        h=sequences[0],
        c=sequences[1] if len(sequences) == 2 else np.empty((0, 0), dtype),
        gates=empty((0 if packed.stack.cell.kind == "rnn" else steps, spec.G * spec.H), dtype),
        hn=empty((steps if spec.reset_after else 0, spec.H), dtype),
    )


# ---- the contract ----------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Tape:
    """What forward kept for backward."""

    packed: Packed
    cell: Cell
    params: Mapping[str, Any]
    lengths: Array | None
    masks: Array | None
    inputs: list[Array]  # what each layer read: [T, B, I]
    states: list[Any]  # the kernels' States of each layer and direction

    @property
    def stack(self) -> Stack:
        return self.packed.stack

    @cached_property
    def ran(self) -> Array | None:
        """[T, B] whether a row takes the step, or None where all do."""
        return None if self.lengths is None else np.arange(len(self.inputs[0]))[:, None] < self.lengths

    def taken(self, array: Array) -> Array:
        """Those rows of [T, B, n], or [T*B, n], that take the step: [N, n]."""
        T, B = self.inputs[0].shape[:2]
        array = array.reshape(T, B, array.shape[-1])
        return array.reshape(T * B, array.shape[2]) if self.ran is None else array[self.ran]

    def placed(self, rows: Array) -> Array:
        """[N, n] back to [T, B, n], zeros elsewhere."""
        shape = (*self.inputs[0].shape[:2], rows.shape[1])
        if self.ran is None:
            return rows.reshape(shape)
        array = np.zeros(shape, rows.dtype)
        array[self.ran] = rows
        return array

    @cached_property
    def layers(self) -> list[LayerTape]:
        """The sequences, one LayerTape for each layer and direction, in the order of stack.suffixes."""
        (T, B), D, spec = self.inputs[0].shape[:2], self.stack.num_directions, self.packed.spec
        layers = []
        for k, s in enumerate(self.states):
            x = self.inputs[k // D]
            h = s.h.reshape(T + 1, B, spec.P)
            layers.append(
                LayerTape(
                    x=reverse_rows(x, self.lengths) if k % D else x,
                    h=h,
                    c=s.c.reshape(T + 1, B, spec.H) if self.cell.has_c else None,
                    gates=h[1:, :, None] if self.cell.kind == "rnn" else s.gates.reshape(T, B, spec.G, spec.H),
                    hn=s.hn.reshape(T, B, spec.H) if spec.reset_after else None,
                )
            )
        return layers


@in_silence
def forward(cell, params, x, state, lengths, train, *, masks=None, cells=None):  # type: ignore[no-untyped-def]
    """The contract's forward."""
    packed = Packed.of(cell, params)
    stack, dtype, (T, B) = packed.stack, packed.dtype, x.shape[:2]
    D, shares, train = stack.num_directions, Shares(stack, T, lengths, B), bool(train)
    initial = state_parts(stack, state, x)
    final = [np.empty(part.shape, dtype) for part in initial]
    slots, ends = T + 1 if train else 2, T if lengths is None else lengths
    weights, inputs, states = packed.forward(params), [x], []
    for layer in range(stack.num_layers):
        y = empty((T, B, D * stack.output_size), dtype)
        filled = cells if layer == stack.num_layers - 1 else None
        if lengths is not None:
            y[...] = 0  # also past the ends
            if filled is not None:
                filled[...] = 0
        tracks = [_states(packed, T, [part[layer * D + d] for part in initial], train) for d in range(D)]
        _forward_layer(packed, shares, weights[layer * D :], inputs[layer], tracks, y, filled, train)
        for d, own in enumerate(tracks):
            for part, sequence in zip(final, own, strict=False):
                part[layer * D + d] = sequence.reshape(slots, B, sequence.shape[1])[ends % slots, np.arange(B)]
        inputs.append(y if masks is None or layer == len(masks) else y * masks[layer])
        states += tracks
    tape = Tape(packed, cell, params, lengths, masks, inputs[:-1], states) if train else None
    return y, tuple(final) if cell.has_c else final[0], tape


def _forward_layer(packed, shares, weights, x, tracks, y, cells, train):  # type: ignore[no-untyped-def]
    """Run one layer with its weights: x to y and, where there are any, cells, with the States in tracks."""
    K, spec, dtype, B = kernels(), packed.spec, packed.dtype, x.shape[1]
    sequences = [_matrix(array, dtype) for array in (x, y, cells)]

    def job(d: int, rows: Array, ends: Array) -> None:
        s = tracks[d] if train else tracks[d]._replace(gates=empty((K.BLOCK, spec.G * spec.H), dtype))
        work = _work(packed, len(rows))
        K.forward(spec, packed.acts, weights[d], rows, ends, B, d, train, *sequences, s, work)

    shares.run(job)


@in_silence
def backward(tape, dy, dstate, dparams=None):  # type: ignore[no-untyped-def]
    """The contract's backward."""
    packed, stack, lengths, masks = tape.packed, tape.stack, tape.lengths, tape.masks
    dtype, (T, B), D = packed.dtype, tape.inputs[0].shape[:2], stack.num_directions
    shares = Shares(stack, T, lengths, B)
    if dparams is None:
        dparams = zero_gradients(stack, dtype)
    weights = packed.backward(tape.params)
    dinitial = [part.copy() for part in state_parts(stack, dstate, tape.inputs[0])]
    for layer in reversed(range(stack.num_layers)):
        tracks = [_grads(packed, T, [part[layer * D + d] for part in dinitial]) for d in range(D)]
        _backward_layer(packed, shares, weights[layer * D :], tape.states[layer * D :], dy, tracks)
        dbelow = np.zeros(tape.inputs[layer].shape, dtype)
        for d, own in enumerate(tracks):
            k = layer * D + d
            for part, grad in zip(dinitial, own, strict=False):
                part[k] = grad[:, : part.shape[2]]
            # a = W_ih x + ...
            dx = tape.placed(tape.taken(own.a) @ np.asarray(tape.params["weight_ih" + stack.suffixes[k]]))
            dbelow += reverse_rows(dx, lengths) if d else dx
            for name, grad in _gradients(tape, k, own).items():
                array = np.asarray(dparams[name + stack.suffixes[k]])
                array += grad
        dy = dbelow if layer == 0 or masks is None else dbelow * masks[layer - 1]
    return dy, tuple(dinitial) if stack.cell.has_c else dinitial[0], dparams


def _grads(packed: Packed, T: int, final: list[Array]) -> Any:
    """Room for the gradients of a layer and direction, with those of its final state."""
    spec, dtype, B = packed.spec, packed.dtype, len(final[0])
    width = -(-spec.P // kernels().lanes(dtype)) * kernels().lanes(dtype)
    ends = []
    for part, columns in zip(final, (width, packed.U), strict=False):
        ends.append(np.zeros((B, columns), dtype))
        ends[-1][:, : part.shape[1]] = part
    return kernels().Grads(
        h=ends[0],
        c=ends[1] if len(ends) == 2 else np.empty((0, 0), dtype),
        a=empty((T * B, spec.G * spec.H), dtype),
        hn=empty((T * B if spec.reset_after else 0, spec.H), dtype),
        dh=empty((T * B if spec.projected else 0, spec.P), dtype),
        m=empty((T * B if spec.projected else 0, spec.H), dtype),
    )


def _backward_layer(packed, shares, weights, states, dy, tracks):  # type: ignore[no-untyped-def]
    """Go back through one layer with its weights: fills the Grads in tracks."""
    K, spec, dy, B = kernels(), packed.spec, _matrix(dy, packed.dtype), len(tracks[0].h)

    def job(d: int, rows: Array, ends: Array) -> None:
        acts, work = packed.acts._replace(numbers=packed.acts.numbers.copy()), _work(packed, len(rows))
        K.backward(spec, acts, weights[d], rows, ends, B, d, states[d], dy, tracks[d], work)

    shares.run(job)


def _gradients(tape: Tape, k: int, d: Any) -> dict[str, Array]:
    """The gradients of the parameters of a layer and direction, each a sum over all steps of all rows."""
    cell, own, H = tape.cell, tape.layers[k], tape.stack.hidden_size
    da, h_in = tape.taken(d.a), tape.taken(own.h[:-1])
    # a = W_ih x + b_ih + W_hh h' + b_hh
    found = {"weight_ih": da.T @ tape.taken(own.x)}
    if cell.bias:
        found["bias_ih"] = found["bias_hh"] = da.sum(axis=0)
    if cell.kind == "gru":
        # a_n + r (W_hn h' + b_hn), or a_n + W_hn (r h')
        after = cell.reset == "after"
        dn = tape.taken(d.hn) if after else da[:, 2 * H :]
        n_in = h_in if after else tape.taken(own.gates[:, :, 0]) * h_in
        found["weight_hh"] = np.concatenate([da[:, : 2 * H].T @ h_in, dn.T @ n_in])
        if cell.bias:
            found["bias_hh"] = np.concatenate([found["bias_ih"][: 2 * H], dn.sum(axis=0)])
        return found
    if cell.kind == "rnn":
        found["weight_hh"] = da.T @ h_in
        return found
    # W_hh h', or W_hh c'
    cells: Any = own.c
    c_in, c = tape.taken(cells[:-1]), tape.taken(cells[1:])
    found["weight_hh"] = da.T @ (c_in if cell.peephole == "cell" else h_in)
    # h = W_hr m
    if cell.proj_size:
        found["weight_hr"] = tape.taken(d.dh).T @ tape.taken(d.m)
    # i = s(a_i + p_i c'), f = s(a_f + p_f c'), o = s(a_o + p_o c)
    if cell.peephole_gates:
        peepholes = []
        for gate in cell.peephole_gates:
            at = cell.gates.index(gate) * H
            da_gate, seen = da[:, at : at + H], c if gate == "o" else c_in
            peepholes.append(da_gate.T @ seen if cell.peephole == "full" else (da_gate * seen).sum(axis=0))
        found["weight_ch"] = np.concatenate(peepholes)
    return found
