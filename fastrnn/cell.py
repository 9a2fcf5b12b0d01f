"""Which recurrence is meant: `Cell`, and `Stack`, a cell with its sizes.

Both are frozen data. They hold names and numbers, no arrays and no algorithm: the
equations are in `backends/reference.py`. Nothing else in the package branches on
the name of a layer class.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from .arguments import integer, number
from .errors import OptionError, ShapeError

__all__ = ["Activation", "Cell", "Stack"]

# name: (alpha, beta) by default; None where the formula has no such number. The list is ONNX's
# (operators RNN, GRU, LSTM, attribute `activations`), the defaults are those of its single operators.
ACTIVATIONS: dict[str, tuple[float | None, float | None]] = {
    "sigmoid": (None, None),  # 1 / (1 + exp(-a))
    "tanh": (None, None),
    "relu": (None, None),  # max(0, a)
    "affine": (1.0, 0.0),  # alpha a + beta
    "leaky_relu": (0.01, None),  # a if a >= 0 else alpha a
    "thresholded_relu": (1.0, None),  # a if a >= alpha else 0
    "scaled_tanh": (1.0, 1.0),  # alpha tanh(beta a)
    "hard_sigmoid": (0.2, 0.5),  # min(max(alpha a + beta, 0), 1)
    "elu": (1.0, None),  # a if a >= 0 else alpha (exp(a) - 1)
    "softsign": (None, None),  # a / (1 + |a|)
    "softplus": (None, None),  # log(1 + exp(a))
}

KINDS = ("rnn", "lstm", "gru")

# The activations a cell of each kind has, with torch's choice of each.
ROLES: dict[str, dict[str, str]] = {
    "rnn": {"hidden": "tanh"},
    "lstm": {"gate": "sigmoid", "candidate": "tanh", "output": "tanh"},
    "gru": {"gate": "sigmoid", "candidate": "tanh"},
}


# The fields that only one kind has.
FIELD_OF = {"forget": "lstm", "peephole": "lstm", "proj_size": "lstm", "reset": "gru", "update": "gru"}


class Activation(NamedTuple):
    """An activation with its numbers, e.g. `Activation("leaky_relu", 0.01, 0.0)`.

    alpha and beta are 0.0 where the formula has none.
    """

    name: str
    alpha: float = 0.0
    beta: float = 0.0

    @classmethod
    def of(cls, given: Any) -> Activation:
        """Read `"elu"`, `("elu", 0.5)` or an Activation; OptionError for anything else."""
        parts = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, (tuple, list)) else ()
        name, *numbers = parts or (given,)
        if not isinstance(name, str) or name not in ACTIVATIONS:
            raise OptionError(f"unknown activation {given!r}; there are {', '.join(ACTIVATIONS)}")
        defaults = ACTIVATIONS[name]
        if isinstance(given, Activation):
            numbers = [value for value, default in zip(given[1:], defaults, strict=True) if default is not None]
        taken = sum(default is not None for default in defaults)
        if len(numbers) > taken:
            raise OptionError(f"activation {name!r} takes {taken} numbers, {len(numbers)} were given: {numbers}")
        what = f"what activation {name!r} takes"
        values = [
            0.0 if default is None else number(what, numbers[i] if i < len(numbers) else default, finite=True)
            for i, default in enumerate(defaults)
        ]
        # Derivatives are written in the activation's output, which a negative slope would make ambiguous.
        if name in ("leaky_relu", "elu") and values[0] < 0:
            raise OptionError(f"activation {name!r} needs alpha >= 0, not {values[0]}")
        if name in ("scaled_tanh", "hard_sigmoid") and values[0] <= 0:
            raise OptionError(f"activation {name!r} needs alpha > 0, not {values[0]}")
        return cls(name, *values)

    def __repr__(self) -> str:
        numbers = [v for v, d in zip(self[1:], ACTIVATIONS[self.name], strict=True) if d is not None]
        return repr((self.name, *numbers)) if numbers else repr(self.name)


@dataclass(frozen=True)
class Cell:
    """The recurrence of one step.

    kind         "rnn", "lstm" or "gru"
    activations  one per role, or () for torch's: RNN (hidden); LSTM (gate, candidate, output);
                 GRU (gate, candidate). Each a name or (name, alpha[, beta]).
    forget       LSTM: "gate"; "none", c = c + i g, with gates i g o (Hochreiter and Schmidhuber 1997);
                 "coupled", i = 1 - f, with gates f g o (Greff et al. 2017, CIFG)
    peephole     LSTM: "none"; "diagonal", i and f see c[t-1], o sees c[t], a weight each (Gers et al. 2002);
                 "full", a whole matrix each; "cell", the recurrent product takes c[t-1] in place of h[t-1]
                 and h = output(o c)
    proj_size    LSTM: 0, or P with h = W_hr m (Sak et al. 2014)
    reset        GRU: "after" the recurrent product (cuDNN, torch), "before" it (Cho et al. 2014)
    update       GRU: "keep", h = z h + (1-z) n; "write", h = (1-z) h + z n
    clip         None, or the bound on the inputs of the gates' activations (as in ONNX; the LSTM's
                 output activation is not bounded)
    bias         whether there are biases

    Raises OptionError for a value that does not exist or does not go with the kind, ShapeError for a bad proj_size.
    """

    kind: str
    activations: tuple[Any, ...] = ()
    forget: str = "gate"
    peephole: str = "none"
    proj_size: int = 0
    reset: str = "after"
    update: str = "keep"
    clip: float | None = None
    bias: bool = True

    def __post_init__(self) -> None:
        _one_of("kind", self.kind, KINDS)
        _one_of("forget", self.forget, ("gate", "none", "coupled"))
        _one_of("peephole", self.peephole, ("none", "diagonal", "full", "cell"))
        _one_of("reset", self.reset, ("after", "before"))
        _one_of("update", self.update, ("keep", "write"))
        for field, kind in FIELD_OF.items():
            if self.kind != kind and getattr(self, field) != getattr(Cell, field):
                raise OptionError(f"{field}={getattr(self, field)!r} is for kind {kind!r}, not {self.kind!r}")
        object.__setattr__(self, "proj_size", integer("proj_size", self.proj_size, 0, ShapeError))
        if self.clip is not None:
            clip = number("clip", self.clip)
            if not clip > 0 or math.isinf(clip):
                raise OptionError(f"clip must be None or a finite number > 0, not {self.clip!r}")
            object.__setattr__(self, "clip", clip)
        roles = ROLES[self.kind]
        given = self.activations
        if not isinstance(given, (tuple, list)) or isinstance(given, Activation):
            given = (given,)
        if given and len(given) != len(roles):
            raise OptionError(
                f"{self.kind} takes {len(roles)} activations ({', '.join(roles)}), {len(given)} were given: {given}"
            )
        acts = tuple(Activation.of(a) for a in (given or roles.values()))
        object.__setattr__(self, "activations", acts)
        object.__setattr__(self, "bias", bool(self.bias))

    @cached_property
    def gates(self) -> tuple[str, ...]:
        """The gates in the order of the stacked rows, e.g. ("i", "f", "g", "o")."""
        if self.kind == "rnn":
            return ("h",)
        if self.kind == "gru":
            return ("r", "z", "n")
        return {"gate": ("i", "f", "g", "o"), "none": ("i", "g", "o"), "coupled": ("f", "g", "o")}[self.forget]

    @cached_property
    def peephole_gates(self) -> tuple[str, ...]:
        """The gates that have a peephole weight, in the order of weight_ch's rows."""
        if self.peephole not in ("diagonal", "full"):
            return ()
        return tuple(gate for gate in self.gates if gate != "g")

    @cached_property
    def has_c(self) -> bool:
        """Whether the state is a pair (h, c)."""
        return self.kind == "lstm"


@dataclass(frozen=True)
class Stack:
    """A cell with its sizes: L layers of D directions.

    Names and shapes of the parameters are torch's; `weight_ch` holds the peepholes: `[len(peephole_gates)*H]`,
    or `[len(peephole_gates)*H, H]` for full matrices. Raises ShapeError for a size below its least.
    """

    cell: Cell
    input_size: int
    hidden_size: int
    num_layers: int = 1
    bidirectional: bool = False

    def __post_init__(self) -> None:
        for field, least in (("input_size", 0), ("hidden_size", 1), ("num_layers", 1)):
            object.__setattr__(self, field, integer(field, getattr(self, field), least, ShapeError))
        object.__setattr__(self, "bidirectional", bool(self.bidirectional))
        if self.cell.proj_size >= self.hidden_size:
            proj_size, H = self.cell.proj_size, self.hidden_size
            raise ShapeError(f"proj_size must be smaller than hidden_size={H}, not {proj_size}")

    @cached_property
    def num_directions(self) -> int:
        """D, 1 or 2."""
        return 2 if self.bidirectional else 1

    @cached_property
    def output_size(self) -> int:
        """P, the size of h: proj_size, or hidden_size without projection."""
        return self.cell.proj_size or self.hidden_size

    @cached_property
    def recurrent_size(self) -> int:
        """The columns of weight_hh: P, or H where the gates see c in place of h."""
        return self.hidden_size if self.cell.peephole == "cell" else self.output_size

    def layer_input_size(self, layer: int) -> int:
        """The columns of weight_ih of that layer."""
        return self.num_directions * self.output_size if layer else self.input_size

    @cached_property
    def suffixes(self) -> tuple[str, ...]:
        """One per layer and direction, in the order of h: "_l0", "_l0_reverse", "_l1", ..."""
        ends = ("", "_reverse")[: self.num_directions]
        return tuple(f"_l{layer}{end}" for layer in range(self.num_layers) for end in ends)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every parameter's name and shape, in torch's order."""
        cell, rows = self.cell, len(self.cell.gates) * self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {}
        for k, suffix in enumerate(self.suffixes):
            shapes["weight_ih" + suffix] = (rows, self.layer_input_size(k // self.num_directions))
            shapes["weight_hh" + suffix] = (rows, self.recurrent_size)
            if cell.bias:
                shapes["bias_ih" + suffix] = shapes["bias_hh" + suffix] = (rows,)
            if cell.proj_size:
                shapes["weight_hr" + suffix] = (cell.proj_size, self.hidden_size)
            if cell.peephole_gates:
                eyes = len(cell.peephole_gates) * self.hidden_size
                shapes["weight_ch" + suffix] = (eyes, self.hidden_size) if cell.peephole == "full" else (eyes,)
        return shapes

    @classmethod
    def of(cls, cell: Cell, params: Mapping[str, Any]) -> Stack:
        """Read the sizes off the parameters; ShapeError where one is missing, unknown or of another shape."""
        try:
            rows, input_size = params["weight_ih_l0"].shape
        except (KeyError, ValueError) as error:
            raise ShapeError("parameters must hold a matrix weight_ih_l0 [G*H, I]") from error
        layers = 0
        while f"weight_ih_l{layers}" in params:
            layers += 1
        stack = cls(cell, input_size, rows // len(cell.gates), layers, "weight_ih_l0_reverse" in params)
        for name, shape in stack.shapes.items():
            if name not in params:
                raise ShapeError(f"parameter {name} {list(shape)} is missing")
            if params[name].shape != shape:
                raise ShapeError(f"parameter {name} must be {list(shape)}, not {list(params[name].shape)}")
        if unknown := set(params) - set(stack.shapes):
            raise ShapeError(f"unknown parameters: {', '.join(sorted(unknown))}")
        return stack


def _one_of(field: str, value: Any, allowed: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise OptionError(f"unknown {field} {value!r}; there are {', '.join(map(repr, allowed))}")
