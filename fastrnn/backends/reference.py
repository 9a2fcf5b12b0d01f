"""The NumPy backend: the equations, forward and backward side by side, as a textbook would put them.

Oracle and fallback at once. It runs every cell in the dtype it is given, and is not written for speed: one product
with the inputs of all steps, then a step at a time. The contract is in __init__.py, what a cell can be in ../cell.py.
Read from the top: activations, RNN, LSTM, GRU, one layer over time, the stack.

In comments h' is h before the step, p c is elementwise, W h is a matrix product; da is dL/da. Backward is
backpropagation through time as in Werbos, "Backpropagation through time: what it does and how to do it", Proceedings
of the IEEE 78 (1990).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..cell import Activation, Cell, Stack
from . import LayerTape, in_silence
from ._sequence import reverse_rows, state_parts, zero_gradients

Array = np.ndarray
Arrays = Sequence[np.ndarray]


# ---- activations -----------------------------------------------------------------------------------------------------
#
# y = f(a), and dy/da written in the output y, which is what the tape keeps. The formulas are those that ONNX lists at
# its operators RNN, GRU and LSTM, attribute `activations`. No power here can overflow.

ACTIVATIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "sigmoid": (lambda a, *_: np.exp(np.minimum(a, 0)) / (1 + np.exp(-abs(a))), lambda y, *_: y * (1 - y)),
    "tanh": (lambda a, *_: np.tanh(a), lambda y, *_: 1 - y * y),
    "relu": (lambda a, *_: np.maximum(a, 0), lambda y, *_: y > 0),
    "affine": (lambda a, alpha, beta: alpha * a + beta, lambda y, alpha, _: np.full_like(y, alpha)),
    "leaky_relu": (
        lambda a, alpha, _: np.where(a < 0, alpha * a, a),
        lambda y, alpha, _: np.where(y > 0, 1, alpha),
    ),
    "thresholded_relu": (lambda a, alpha, _: np.where(a < alpha, 0, a), lambda y, *_: y != 0),
    "scaled_tanh": (
        lambda a, alpha, beta: alpha * np.tanh(beta * a),
        lambda y, alpha, beta: beta * (alpha - y * y / alpha),
    ),
    "hard_sigmoid": (
        lambda a, alpha, beta: np.clip(alpha * a + beta, 0, 1),
        lambda y, alpha, _: np.where((y > 0) & (y < 1), alpha, 0),
    ),
    "elu": (
        lambda a, alpha, _: np.where(a < 0, alpha * np.expm1(np.minimum(a, 0)), a),
        lambda y, alpha, _: np.where(y > 0, 1, y + alpha),
    ),
    "softsign": (lambda a, *_: a / (1 + abs(a)), lambda y, *_: (1 - abs(y)) ** 2),
    "softplus": (lambda a, *_: np.logaddexp(0, a), lambda y, *_: -np.expm1(-y)),
}


def activate(f: Activation, a: Array, clip: float | None = None) -> Array:
    """f(a), in the shape and dtype of a. With clip, a is bounded to [-clip, clip] first."""
    if clip is not None:
        a = np.clip(a, -clip, clip)
    return np.asarray(ACTIVATIONS[f.name][0](a, f.alpha, f.beta), a.dtype)


def derivative(f: Activation, y: Array, clip: float | None = None) -> Array:
    """df/da at the output y = activate(f, a, clip), in the shape and dtype of y.

    With clip it is zero where a was at a bound or beyond, which is where y is the output of a bound.
    """
    slope = np.asarray(ACTIVATIONS[f.name][1](y, f.alpha, f.beta), y.dtype)
    if clip is None:
        return slope
    low, high = (activate(f, np.full_like(y, bound)) for bound in (-clip, clip))
    return np.where((y == low) | (y == high), 0, slope)


# ---- parameters ------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Weights:
    """The parameters of one layer and direction, or their gradients."""

    weight_ih: Array  # [G*H, I]
    weight_hh: Array  # [G*H, P], or [G*H, H] where the gates see c in place of h
    bias_ih: Array  # [G*H]; zeros, as bias_hh, where the cell has none
    bias_hh: Array  # [G*H]
    weight_hr: Array  # [P, H]; empty without projection
    weight_ch: Array  # [peephole gates * H], or [peephole gates * H, H]; empty without

    @classmethod
    def of(cls, stack: Stack, arrays: Mapping[str, Array], suffix: str) -> Weights:
        """Views of the arrays whose names end in the suffix."""
        rows, dtype = stack.shapes["weight_ih" + suffix][0], arrays["weight_ih" + suffix].dtype

        def array(name: str) -> Array:
            if name + suffix in stack.shapes:
                return np.asarray(arrays[name + suffix])
            return np.zeros(rows if name.startswith("bias") else 0, dtype)

        return cls(*map(array, cls.__annotations__))


# ---- RNN -------------------------------------------------------------------------------------------------------------
#
# h = f(a),  a = W_ih x + b_ih + W_hh h' + b_hh
#
# Elman, "Finding structure in time", Cognitive Science 14 (1990).
#
# Three functions a kind. A step takes ax = W_ih x + b_ih: [B, G*H] and the parts of the state before it, and returns
# its gates: [B, G, H] and the state after it. A step back takes gates, the states before and after, and the gradient
# of the state after; it returns da: [B, G*H] and the gradient of the state before. The third adds the gradients of
# the parameters that a step uses, from da: [N, G*H] and dh: [N, P] of all N steps that all rows took.


def rnn_step(cell: Cell, w: Weights, ax: Array, h: Array) -> Arrays:
    h = activate(cell.activations[0], ax + h @ w.weight_hh.T + w.bias_hh, cell.clip)
    return h[:, None], h


def rnn_step_back(cell: Cell, w: Weights, gates: Array, before: Arrays, after: Arrays, dh: Array) -> Arrays:
    (h,) = after
    # h = f(a)
    da = dh * derivative(cell.activations[0], h, cell.clip)
    # a = ax + W_hh h' + b_hh
    return da, da @ w.weight_hh


def rnn_grads(cell: Cell, dw: Weights, gates: Array, before: Arrays, after: Arrays, da: Array, dh: Array) -> None:
    (h_in,) = before
    # a = ax + W_hh h' + b_hh
    dw.weight_hh += da.T @ h_in
    dw.bias_hh += da.sum(axis=0)


# ---- LSTM ------------------------------------------------------------------------------------------------------------
#
# a = W_ih x + b_ih + W_hh h' + b_hh, the rows of all gates stacked
# i = s(a_i + p_i c')      f = s(a_f + p_f c')      g = t(a_g)      o = s(a_o + p_o c)
# c = f c' + i g
# m = o u(c)
# h = W_hr m, or h = m without projection
#
# Hochreiter and Schmidhuber, "Long short-term memory", Neural Computation 9 (1997): forget="none", f = 1. With a forget
# gate: Gers, Schmidhuber and Cummins, "Learning to forget", Neural Computation 12 (2000). With peepholes p: Gers,
# Schraudolph and Schmidhuber, "Learning precise timing with LSTM recurrent networks", JMLR 3 (2002), in the notation of
# Graves, arXiv:1308.0850 (2013), equations 7-11; where they are full, p c is a matrix product. Backward, and coupled
# gates, i = 1 - f: Greff et al., "LSTM: a search space odyssey", IEEE TNNLS 28 (2017). With projection: Sak, Senior and
# Beaufays, arXiv:1402.1128 (2014). With peephole="cell", a has W_hh c' in place of W_hh h', and m = u(o c).


def _peepholes(cell: Cell, w: Weights) -> dict[str, Array]:
    """The p of each gate that has one: [H], or [H, H] where they are full; views of weight_ch."""
    names = cell.peephole_gates
    return dict(zip(names, np.split(w.weight_ch, len(names)), strict=True)) if names else {}


def _see(cell: Cell, p: Array | None, c: Array) -> Any:
    """p c: [B, H]"""
    if p is None:
        return 0
    return c @ p.T if cell.peephole == "full" else p * c


def _see_back(cell: Cell, p: Array | None, da: Array) -> Any:
    """The part of dc: [B, H] that comes through p c."""
    if p is None:
        return 0
    return da @ p if cell.peephole == "full" else p * da


def _output(cell: Cell, o: Array, c: Array) -> Array:
    """m: [B, H]"""
    u = cell.activations[2]
    return activate(u, o * c) if cell.peephole == "cell" else o * activate(u, c)


def lstm_step(cell: Cell, w: Weights, ax: Array, h: Array, c: Array) -> Arrays:
    s, t, _ = cell.activations
    p = _peepholes(cell, w)
    stacked = ax + (c if cell.peephole == "cell" else h) @ w.weight_hh.T + w.bias_hh
    a = dict(zip(cell.gates, np.split(stacked, len(cell.gates), axis=1), strict=True))

    gate: dict[str, Array] = {}
    for name in ("i", "f"):
        if name in a:
            gate[name] = activate(s, a[name] + _see(cell, p.get(name), c), cell.clip)
    f = gate.get("f", 1)
    i = gate.get("i", 1 - f)
    g = gate["g"] = activate(t, a["g"], cell.clip)
    c = f * c + i * g
    o = gate["o"] = activate(s, a["o"] + _see(cell, p.get("o"), c), cell.clip)
    m = _output(cell, o, c)
    h = m @ w.weight_hr.T if cell.proj_size else m
    return np.stack([gate[name] for name in cell.gates], axis=1), h, c


def lstm_step_back(cell: Cell, w: Weights, gates: Array, before: Arrays, after: Arrays, dh: Array, dc: Array) -> Arrays:
    s, t, u = cell.activations
    p = _peepholes(cell, w)
    (_, c_in), (_, c) = before, after
    gate = {name: gates[:, k] for k, name in enumerate(cell.gates)}
    f = gate.get("f", 1)
    i, g, o = gate.get("i", 1 - f), gate["g"], gate["o"]

    # h = W_hr m
    dm = dh @ w.weight_hr if cell.proj_size else dh
    if cell.peephole == "cell":
        # m = u(o c)
        doc = dm * derivative(u, activate(u, o * c))
        do, dc = doc * c, dc + doc * o
    else:
        # m = o u(c)
        uc = activate(u, c)
        do, dc = dm * uc, dc + dm * o * derivative(u, uc)
    da: dict[str, Array] = {}
    # o = s(a_o + p_o c)
    da["o"] = do * derivative(s, o, cell.clip)
    dc = dc + _see_back(cell, p.get("o"), da["o"])
    # c = f c' + i g
    df, dc_in, di, dg = dc * c_in, dc * f, dc * g, dc * i
    if cell.forget == "coupled":
        # i = 1 - f
        df = df - di
    # g = t(a_g)
    da["g"] = dg * derivative(t, g, cell.clip)
    # i = s(a_i + p_i c'), f = s(a_f + p_f c')
    for name, dgate in (("i", di), ("f", df)):
        if name in gate:
            da[name] = dgate * derivative(s, gate[name], cell.clip)
            dc_in = dc_in + _see_back(cell, p.get(name), da[name])
    stacked = np.concatenate([da[name] for name in cell.gates], axis=1)
    if cell.peephole == "cell":
        # a = ax + W_hh c' + b_hh
        return stacked, np.zeros_like(dh), dc_in + stacked @ w.weight_hh
    # a = ax + W_hh h' + b_hh
    return stacked, stacked @ w.weight_hh, dc_in


def lstm_grads(cell: Cell, dw: Weights, gates: Array, before: Arrays, after: Arrays, da: Array, dh: Array) -> None:
    (h_in, c_in), (_, c) = before, after
    # a = ax + W_hh h' + b_hh, or a = ax + W_hh c' + b_hh
    dw.weight_hh += da.T @ (c_in if cell.peephole == "cell" else h_in)
    dw.bias_hh += da.sum(axis=0)
    # h = W_hr m
    if cell.proj_size:
        dw.weight_hr += dh.T @ _output(cell, gates[:, cell.gates.index("o")], c)
    # i = s(a_i + p_i c'), f = s(a_f + p_f c'), o = s(a_o + p_o c)
    for name, dp in _peepholes(cell, dw).items():
        da_gate = np.split(da, len(cell.gates), axis=1)[cell.gates.index(name)]
        seen = c if name == "o" else c_in
        dp += da_gate.T @ seen if cell.peephole == "full" else (da_gate * seen).sum(axis=0)


# ---- GRU -------------------------------------------------------------------------------------------------------------
#
# r = s(a_r + W_hr h' + b_hr)        z = s(a_z + W_hz h' + b_hz)        a = W_ih x + b_ih
# n = t(a_n + W_hn (r h') + b_hn)    reset="before" the product
# n = t(a_n + r (W_hn h' + b_hn))    reset="after" it
# h = z h' + (1 - z) n               update="keep"
# h = (1 - z) h' + z n               update="write"
#
# Cho et al., "Learning phrase representations using RNN encoder-decoder", arXiv:1406.1078 (2014), equations 5-8: before
# and keep. Chung et al., "Empirical evaluation of gated recurrent neural networks", arXiv:1412.3555 (2014): before and
# write. After and keep: what cuDNN's manual gives for CUDNN_GRU.


def _rz_and_n(stacked: Array, axis: int = 0) -> list[Array]:
    """Views of the rows for r and z, and of those for n, of 3*H stacked along the axis."""
    return np.split(stacked, [stacked.shape[axis] // 3 * 2], axis)


def gru_step(cell: Cell, w: Weights, ax: Array, h: Array) -> Arrays:
    s, t = cell.activations
    (w_rz, w_n), (b_rz, b_n), (a_rz, a_n) = _rz_and_n(w.weight_hh), _rz_and_n(w.bias_hh), _rz_and_n(ax, axis=1)

    r, z = np.split(activate(s, a_rz + h @ w_rz.T + b_rz, cell.clip), 2, axis=1)
    if cell.reset == "before":
        n = activate(t, a_n + (r * h) @ w_n.T + b_n, cell.clip)
    else:
        n = activate(t, a_n + r * (h @ w_n.T + b_n), cell.clip)
    h = z * h + (1 - z) * n if cell.update == "keep" else (1 - z) * h + z * n
    return np.stack([r, z, n], axis=1), h


def gru_step_back(cell: Cell, w: Weights, gates: Array, before: Arrays, after: Arrays, dh: Array) -> Arrays:
    (s, t), (h_in,) = cell.activations, before
    (w_rz, w_n), (_, b_n) = _rz_and_n(w.weight_hh), _rz_and_n(w.bias_hh)
    r, z, n = gates[:, 0], gates[:, 1], gates[:, 2]

    if cell.update == "keep":
        # h = z h' + (1 - z) n
        dz, dn, dh_in = dh * (h_in - n), dh * (1 - z), dh * z
    else:
        # h = (1 - z) h' + z n
        dz, dn, dh_in = dh * (n - h_in), dh * z, dh * (1 - z)
    da_n = dn * derivative(t, n, cell.clip)
    if cell.reset == "before":
        # n = t(a_n + W_hn (r h') + b_hn)
        drh = da_n @ w_n
        dr, dh_in = drh * h_in, dh_in + drh * r
    else:
        # n = t(a_n + r (W_hn h' + b_hn))
        dr, dh_in = da_n * (h_in @ w_n.T + b_n), dh_in + (da_n * r) @ w_n
    # r = s(a_r + W_hr h' + b_hr), z = s(a_z + W_hz h' + b_hz)
    da_rz = np.concatenate([dr * derivative(s, r, cell.clip), dz * derivative(s, z, cell.clip)], axis=1)
    return np.concatenate([da_rz, da_n], axis=1), dh_in + da_rz @ w_rz


def gru_grads(cell: Cell, dw: Weights, gates: Array, before: Arrays, after: Arrays, da: Array, dh: Array) -> None:
    (dw_rz, dw_n), (db_rz, db_n), (da_rz, da_n) = _rz_and_n(dw.weight_hh), _rz_and_n(dw.bias_hh), _rz_and_n(da, axis=1)
    (h_in,), r = before, gates[:, 0]
    # a_rz + W_rz h' + b_rz
    dw_rz += da_rz.T @ h_in
    db_rz += da_rz.sum(axis=0)
    if cell.reset == "before":
        # a_n + W_hn (r h') + b_hn
        dw_n += da_n.T @ (r * h_in)
        db_n += da_n.sum(axis=0)
    else:
        # a_n + r (W_hn h' + b_hn)
        dw_n += (da_n * r).T @ h_in
        db_n += (da_n * r).sum(axis=0)


# ---- one layer and direction over time -------------------------------------------------------------------------------

KINDS: dict[str, tuple[Callable[..., Any], ...]] = {
    "rnn": (rnn_step, rnn_step_back, rnn_grads),
    "lstm": (lstm_step, lstm_step_back, lstm_grads),
    "gru": (gru_step, gru_step_back, gru_grads),
}


@dataclass(eq=False)
class Track(LayerTape):
    """A LayerTape on which backward leaves the gradients of the outputs."""

    dh: Array | None = None  # [T, B, P] dL/dh after each step, over every way h goes on; zero where a row has ended


def track(cell: Cell, w: Weights, x: Array, initial: Arrays, ran: Array) -> Track:
    """Run one layer in one direction.

    x: [T, B, I] and ran: [T, B], whether a row takes the step, are in step order; initial is the state before the
    first step: h [B, P], and for an LSTM c [B, H].
    """
    step, *_ = KINDS[cell.kind]
    ax = x @ w.weight_ih.T + w.bias_ih
    gates = np.zeros((*ran.shape, len(cell.gates), ax.shape[2] // len(cell.gates)), x.dtype)
    state = [np.broadcast_to(part, (len(ran) + 1, *part.shape)).copy() for part in initial]
    for s, rows in enumerate(ran):
        gates[s, rows], *after = step(cell, w, ax[s, rows], *(part[s, rows] for part in state))
        for part, new in zip(state, after, strict=True):
            part[s + 1] = part[s]  # stands where a row has ended
            part[s + 1, rows] = new
    h, c, hn = state[0], state[1] if cell.has_c else None, None
    if cell.kind == "gru" and cell.reset == "after":
        hn = h[:-1] @ _rz_and_n(w.weight_hh)[1].T + _rz_and_n(w.bias_hh)[1]
    return Track(x, h, c, gates, hn)


def track_back(cell: Cell, w: Weights, dw: Weights, tape: Track, dy: Array, dstate: Arrays, ran: Array) -> Array:
    """Go back through `track`: dy [T, B, P] to dx [T, B, I], both in step order.

    Adds to dw. dstate, the gradient of the final state, becomes that of the initial one.
    """
    _, step_back, grads = KINDS[cell.kind]
    before = [part[:-1] for part in (tape.h, tape.c) if part is not None]
    after = [part[1:] for part in (tape.h, tape.c) if part is not None]
    da = np.zeros((*ran.shape, len(w.weight_ih)), tape.x.dtype)
    dh = np.zeros(dy.shape, dy.dtype)

    def taken(*at: Any) -> tuple[Array, list[Array], list[Array]]:
        return tape.gates[at], [part[at] for part in before], [part[at] for part in after]

    for s in reversed(range(len(ran))):
        rows = ran[s]
        dstate[0][rows] += dy[s, rows]
        dh[s, rows] = dstate[0][rows]
        da[s, rows], *dbefore = step_back(cell, w, *taken(s, rows), *(part[rows] for part in dstate))
        for part, new in zip(dstate, dbefore, strict=True):
            part[rows] = new
    # ax = W_ih x + b_ih
    dw.weight_ih += da[ran].T @ tape.x[ran]
    dw.bias_ih += da[ran].sum(axis=0)
    grads(cell, dw, *taken(ran), da[ran], dh[ran])
    tape.dh = dh
    return np.asarray(da @ w.weight_ih)


# ---- the stack: the contract of a backend ----------------------------------------------------------------------------


def missing() -> None:
    """NumPy is always there."""


def broken() -> None:
    """It never is."""


def unsupported(cell: Cell) -> None:
    """Every cell is supported."""


def describe() -> dict[str, Any]:
    """Nothing: the configuration names NumPy's version itself."""
    return {}


@dataclass(eq=False)
class Tape:
    """What forward kept for backward."""

    cell: Cell
    stack: Stack
    params: Mapping[str, Array]
    lengths: Array | None
    masks: Array | None
    x: Array
    layers: list[Track]  # one for each layer and direction, in the order of stack.suffixes


@in_silence
def forward(cell, params, x, state, lengths, train, *, masks=None, cells=None):  # type: ignore[no-untyped-def]
    """The contract's forward."""
    stack = Stack.of(cell, params)
    D, ran = stack.num_directions, _ran(x, lengths)
    initial, tracks, y = state_parts(stack, state, x), [], x
    for layer in range(stack.num_layers):
        below = y if layer == 0 or masks is None else y * masks[layer - 1]
        for d in range(D):
            k = layer * D + d
            w = Weights.of(stack, params, stack.suffixes[k])
            ordered = reverse_rows(below, lengths) if d else below
            tracks.append(track(cell, w, ordered, [part[k] for part in initial], ran))
        y = _outputs([tape.h for tape in tracks[-D:]], ran, lengths)
    if cells is not None:
        cells[...] = _outputs([tape.c for tape in tracks[-D:]], ran, lengths)
    final = np.stack([tape.h[-1] for tape in tracks])
    if cell.has_c:
        final = final, np.stack([tape.c[-1] for tape in tracks])
    return y, final, Tape(cell, stack, params, lengths, masks, x, tracks) if train else None


@in_silence
def backward(tape, dy, dstate, dparams=None):  # type: ignore[no-untyped-def]
    """The contract's backward. Leaves `dh` on each of the tape's layers."""
    cell, stack, lengths, masks = tape.cell, tape.stack, tape.lengths, tape.masks
    D, P, ran = stack.num_directions, stack.output_size, _ran(tape.x, lengths)
    if dparams is None:
        dparams = zero_gradients(stack, tape.x.dtype)
    if dy is None:
        dy = np.zeros((*ran.shape, D * P), tape.x.dtype)
    dinitial = [part.copy() for part in state_parts(stack, dstate, tape.x)]
    for layer in reversed(range(stack.num_layers)):
        dbelow = np.zeros((*ran.shape, stack.layer_input_size(layer)), tape.x.dtype)
        for d in range(D):
            k = layer * D + d
            w, dw = (Weights.of(stack, arrays, stack.suffixes[k]) for arrays in (tape.params, dparams))
            dh = dy[:, :, d * P : (d + 1) * P]
            dh = reverse_rows(dh, lengths) if d else dh
            dx = track_back(cell, w, dw, tape.layers[k], dh, [part[k] for part in dinitial], ran)
            dbelow += reverse_rows(dx, lengths) if d else dx
        # below = y * mask
        dy = dbelow if layer == 0 or masks is None else dbelow * masks[layer - 1]
    return dy, tuple(dinitial) if cell.has_c else dinitial[0], dparams


def _ran(x: Array, lengths: Array | None) -> Array:
    """[T, B] whether a row takes the step."""
    T, B = x.shape[:2]
    return np.ones((T, B), bool) if lengths is None else np.arange(T)[:, None] < lengths


def _outputs(states: list[Array], ran: Array, lengths: Array | None) -> Array:
    """The state sequences [T+1, B, P] of D directions as [T, B, D*P] in time order, zero where a row has ended."""
    steps = [np.where(ran[:, :, None], state[1:], 0) for state in states]
    return np.concatenate([reverse_rows(h, lengths) if d else h for d, h in enumerate(steps)], axis=2)
