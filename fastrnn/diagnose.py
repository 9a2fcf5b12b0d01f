"""How gradients flow through a recurrent layer, how saturated its gates are, how its recurrence stretches.

What is measured is computed by the NumPy backend in float64, on a copy: the layer, its gradients and
its pending calls stay as they are. Nothing here changes or trains a model. matplotlib, the extra
`fastrnn[plot]`, is imported by the plots alone. Read next: backends/reference.py.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from .backends._sequence import reverse_rows
from .cell import Activation
from .errors import DtypeError, OptionError
from .layers import Layer, State

__all__ = [
    "Saturation",
    "eigenvalues",
    "gradient_norms",
    "plot_gradient_norms",
    "plot_saturation",
    "plot_spectrum",
    "saturation",
    "spectral_radius",
]


# ---------------------------------------------------------------- gradients


def gradient_norms(
    layer: Layer, x: Any, state: State = None, lengths: Any = None, dy: Any = None, dstate: State = None
) -> dict[str, np.ndarray]:
    """The norm of dL/dh[t] at every step, of each layer and direction: where gradients vanish or explode.

    layer              an RNN, LSTM or GRU; dropout between its layers is left out
    x, state, lengths  of a call of the layer
    dy, dstate         of its `backward`. With neither, L = sum(h[T]) / sqrt(B P) for the final h of each direction of
                       the last layer, so that the norm begins at 1 where that direction ends

    Returns {"h_l0": [T] float64, "h_l0_reverse": ...}: the Euclidean norm over B and P, in time order, a reverse
    direction's too, over every way that h[t] reaches L. For a last layer of one direction with the default loss this
    is the norm of the Jacobian product dh[T]/dh[t] along one direction: it shrinks or grows as the powers of the
    recurrence do (Hochreiter 1991; Bengio et al. 1994; Pascanu et al. 2013, section 2). Raises DtypeError where layer
    is none, and what its call and `backward` raise.
    """
    copy = _copy_of(layer)
    copy(x, state, lengths)
    call = copy._latest()
    if dy is None and dstate is None:
        dstate = _final_sum(copy, call.batch, call.batched)
    copy.backward(dy, dstate)
    norms = {}
    for suffix, track in zip(copy.stack.suffixes, call.tape.layers, strict=True):
        dh = reverse_rows(track.dh, call.tape.lengths) if suffix.endswith("_reverse") else track.dh
        norms["h" + suffix] = _norms(dh)
    return norms


def _norms(dh: np.ndarray) -> np.ndarray:
    """Of each dh[t], scaled by its greatest element first: its square may be beyond float64 either way."""
    peak = np.abs(dh).max(axis=(1, 2), keepdims=True, initial=0)
    with np.errstate(invalid="ignore"):  # inf / inf: nan, as after an overflow
        scaled = np.divide(dh, peak, out=np.zeros_like(dh), where=peak > 0)
    return peak[:, 0, 0] * np.sqrt(np.square(scaled).sum(axis=(1, 2)))


def _copy_of(layer: Any) -> Any:
    """The layer in float64 on the NumPy backend, in training mode."""
    if not isinstance(layer, Layer):
        raise DtypeError(f"layer must be an RNN, LSTM or GRU, not {type(layer).__name__}")
    copy = Layer.from_cell(
        layer.cell,
        layer.input_size,
        layer.hidden_size,
        num_layers=layer.num_layers,
        batch_first=layer.batch_first,
        bidirectional=layer.bidirectional,
        dtype="float64",
        seed=0,
        backend="numpy",
    )
    copy.load_state_dict(layer.state_dict())
    return copy.train()


def _final_sum(layer: Layer, batch: int, batched: bool) -> State:
    """dL/dstate of L = sum(h[T]) / sqrt(B P), for each direction of the last layer."""
    stack = layer.stack
    lead = (len(stack.suffixes), batch) if batched else (len(stack.suffixes),)
    dh = np.zeros((*lead, stack.output_size))
    dh[-stack.num_directions :] = 1 / math.sqrt(max(batch, 1) * stack.output_size)
    return (dh, np.zeros((*lead, stack.hidden_size))) if layer.cell.has_c else dh


# ---------------------------------------------------------------- gates


class Saturation(NamedTuple):
    """Which share of a gate's activations lies at the low and at the high end, each within 0..1."""

    low: float
    high: float


def saturation(
    layer: Layer, x: Any, state: State = None, lengths: Any = None, *, margin: float = 0.1
) -> dict[str, Saturation]:
    """How much of each gate is near the ends of its range, where its slope is small (Karpathy et al. 2015, figure 4).

    layer              an RNN, LSTM or GRU; dropout between its layers is left out
    x, state, lengths  of a call of the layer; steps past a row's length do not count
    margin             how near, 0 <= margin < 0.5, in units of the largest activation: sigmoids <= 0.1 or >= 0.9,
                       tanh <= -0.9 or >= 0.9 by default. An end that a function does not have is never near; relu is
                       low where it is 0

    Returns {"i_l0": Saturation(low, high), "f_l0": ...}, by gate, layer and direction; of an RNN the "gate" is h. Both
    shares are nan where no step ran. Raises DtypeError where layer is none, OptionError for such a margin, and what a
    call of the layer raises.
    """
    if isinstance(margin, bool) or not isinstance(margin, numbers.Real) or not 0 <= margin < 0.5:
        raise OptionError(f"margin must be a number within 0..0.5, 0.5 excluded, not {margin!r}")
    copy = _copy_of(layer)
    copy(x, state, lengths)
    call = copy._latest()
    ran = np.ones((call.steps, call.batch), bool)
    if call.tape.lengths is not None:
        ran = np.arange(call.steps)[:, None] < call.tape.lengths  # in step order, so of both directions
    shares = {}
    for suffix, track in zip(copy.stack.suffixes, call.tape.layers, strict=True):
        for k, gate in enumerate(copy.cell.gates):
            values = track.gates[:, :, k][ran]
            low, high = _ends(_activation(copy.cell, gate), margin)
            near = [float(n.mean()) if n.size else math.nan for n in (values <= low, values >= high)]
            shares[gate + suffix] = Saturation(*near)
    return shares


def _activation(cell: Any, gate: str) -> Activation:
    """The activation of a gate: an RNN has one, the others' first is the gates', their second the candidate's."""
    return cell.activations[1 if gate in ("g", "n") else 0]


# Where an activation is saturated, as (low, high), of (margin, alpha).
_ENDS: dict[str, Callable[[float, float], tuple[float, float]]] = {
    "sigmoid": lambda margin, _: (margin, 1 - margin),
    "hard_sigmoid": lambda margin, _: (margin, 1 - margin),
    "tanh": lambda margin, _: (margin - 1, 1 - margin),
    "softsign": lambda margin, _: (margin - 1, 1 - margin),
    "scaled_tanh": lambda margin, alpha: (alpha * (margin - 1), alpha * (1 - margin)),
    "elu": lambda margin, alpha: (alpha * (margin - 1), math.inf),
    "softplus": lambda margin, _: (margin, math.inf),
    "relu": lambda *_: (0.0, math.inf),
    "thresholded_relu": lambda *_: (0.0, math.inf),
    "leaky_relu": lambda *_: (-math.inf, math.inf),
    "affine": lambda *_: (-math.inf, math.inf),
}


def _ends(activation: Activation, margin: float) -> tuple[float, float]:
    return _ENDS[activation.name](margin, activation.alpha)


# ---------------------------------------------------------------- the recurrent matrices


def eigenvalues(layer: Layer) -> dict[str, np.ndarray]:
    """The eigenvalues of each recurrent matrix, gate by gate.

    Returns {"h_l0": [H] complex128} of an RNN, {"i_l0": ..., "f_l0": ...} of the others, with "_reverse" for the other
    direction: of the gate's rows of weight_hh [H, H], or with a projection of weight_hr times them, [P, P]; the map
    from one h to the next before any activation. nan where the matrix holds nan or inf. Raises DtypeError where layer
    is none.
    """
    if not isinstance(layer, Layer):
        raise DtypeError(f"layer must be an RNN, LSTM or GRU, not {type(layer).__name__}")
    found = {}
    for suffix in layer.stack.suffixes:
        recurrent = np.asarray(layer.block["weight_hh" + suffix], np.float64)
        for gate, matrix in zip(layer.cell.gates, np.split(recurrent, len(layer.cell.gates)), strict=True):
            if matrix.shape[0] != matrix.shape[1]:
                matrix = np.asarray(layer.block["weight_hr" + suffix], np.float64) @ matrix
            finite = np.isfinite(matrix).all()
            found[gate + suffix] = np.linalg.eigvals(matrix) + 0j if finite else np.full(len(matrix), np.nan + 0j)
    return found


def spectral_radius(layer: Layer) -> dict[str, float]:
    """The largest modulus of each matrix's `eigenvalues`.

    Below 1 gradients of a plain RNN must vanish; above 1 they may explode (Pascanu et al. 2013, section 2.1).
    """
    return {name: float(np.abs(values).max()) for name, values in eigenvalues(layer).items()}


# ---------------------------------------------------------------- plots


def plot_gradient_norms(norms: Mapping[str, np.ndarray], ax: Any = None) -> Any:
    """Draw `gradient_norms(...)`, a line each on a logarithmic scale; zero, inf and nan are gaps.

    ax  matplotlib axes to draw on, or None for new ones, which are returned. Raises ImportError without matplotlib.
    """
    ax = _axes(ax)
    positive = {name: np.where((values > 0) & (values < np.inf), values, np.nan) for name, values in norms.items()}
    for name, values in positive.items():
        ax.plot(np.arange(len(values)), values, label=name)
    if any(np.isfinite(values).any() for values in positive.values()):
        ax.set_yscale("log")
    ax.set(xlabel="step t", ylabel="norm of dL/dh[t]", title="Gradient flow")
    return _legend(ax)


def plot_saturation(shares: Mapping[str, Saturation], ax: Any = None) -> Any:
    """Draw `saturation(...)` as bars: for each gate the low end's share to the left, the high end's to the right.

    ax and errors as `plot_gradient_norms` has them.
    """
    ax = _axes(ax)
    places = np.arange(len(shares))
    ax.barh(places, [-share.low for share in shares.values()], label="low end")
    ax.barh(places, [share.high for share in shares.values()], label="high end")
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_yticks(places, list(shares))
    ax.invert_yaxis()  # the first on top
    ax.set_xticks([-1, -0.5, 0, 0.5, 1], ["1", "0.5", "0", "0.5", "1"])
    ax.set(xlim=(-1, 1), xlabel="share of activations", title="Saturation")
    return _legend(ax)


def plot_spectrum(values: Mapping[str, np.ndarray], ax: Any = None) -> Any:
    """Draw `eigenvalues(...)` as points of the complex plane, with the unit circle.

    ax and errors as `plot_gradient_norms` has them.
    """
    ax = _axes(ax)
    angle = np.linspace(0, 2 * np.pi, 361)
    ax.plot(np.cos(angle), np.sin(angle), color="black", linewidth=0.8, label="unit circle")
    for name, points in values.items():
        ax.plot(points.real, points.imag, ".", label=name)
    ax.set_aspect("equal")
    ax.set(xlabel="real part", ylabel="imaginary part", title="Eigenvalues of the recurrent matrices")
    return _legend(ax)


def _legend(ax: Any) -> Any:
    if ax.get_legend_handles_labels()[1]:
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1))  # beside the axes, where it hides nothing
    return ax


def _axes(ax: Any) -> Any:
    if ax is not None:
        return ax
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install fastrnn[plot]") from error
    return plt.subplots(layout="constrained")[1]
