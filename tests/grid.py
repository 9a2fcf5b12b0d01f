"""The case grid: every cell at many sizes, and the check that a backend computes what the reference does.

A covering design, not the product: each cell meets several shapes and each shape many cells, the degenerate shapes
among the ordinary ones. `check` is the one judge, of right backends in test_backends.py and of wrong ones in
test_wrong_kernels.py. The reference itself is tested in test_reference.py. Nothing here knows a backend's inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from fastrnn.backends import reference
from fastrnn.cell import ACTIVATIONS, Cell, Stack

# ---- cells -----------------------------------------------------------------------------------------------------------

# Every activation, with numbers at which it is easily got wrong.
NUMBERED = (
    *(name for name in ACTIVATIONS if name != "thresholded_relu"),
    ("affine", -0.7, 0.2),
    ("leaky_relu", 0.0),
    ("leaky_relu", 0.3),
    ("thresholded_relu", 0.1),
    ("thresholded_relu", -0.5),
    ("scaled_tanh", 1.5, -0.6),
    ("hard_sigmoid", 0.6, 0.45),
    ("elu", 0.4),
)


def _cells() -> dict[str, Cell]:
    """Every value of every option, each activation in each role with a bound on its input and without."""
    cells = {}
    for k in range(len(NUMBERED)):
        first, second, third = (NUMBERED[(k + 7 * role) % len(NUMBERED)] for role in range(3))
        name = "-".join(map(str, (first,) if isinstance(first, str) else first))
        cells[f"rnn-{name}"] = Cell("rnn", (first,))
        cells[f"rnn-{name}-clip"] = Cell("rnn", (first,), clip=0.6, bias=False)
        cells[f"lstm-{name}"] = Cell("lstm", (first, second, third))
        cells[f"lstm-{name}-diagonal-clip"] = Cell("lstm", (first, second, third), peephole="diagonal", clip=0.6)
        cells[f"gru-{name}"] = Cell("gru", (first, second))
        cells[f"gru-{name}-before-clip"] = Cell("gru", (first, second), reset="before", clip=0.6)
    for forget in ("gate", "none", "coupled"):
        for peephole in ("none", "diagonal", "full", "cell"):
            name = f"lstm-forget:{forget}-peephole:{peephole}"
            cells[name] = Cell("lstm", forget=forget, peephole=peephole)
            cells[f"{name}-proj"] = Cell("lstm", forget=forget, peephole=peephole, proj_size=1)  # the shape's P
        cells[f"lstm-forget:{forget}-clip-nobias"] = Cell("lstm", forget=forget, clip=0.3, bias=False)
    for reset in ("after", "before"):
        for update in ("keep", "write"):
            cells[f"gru-{reset}-{update}"] = Cell("gru", reset=reset, update=update)
            cells[f"gru-{reset}-{update}-clip-nobias"] = Cell("gru", reset=reset, update=update, clip=0.3, bias=False)
    return cells


CELLS = _cells()
# In all shapes: what everyone uses, and what goes a way of its own through the kernels.
EVERYWHERE = {
    "rnn": Cell("rnn"),
    "lstm": Cell("lstm"),
    "gru": Cell("gru"),
    "lstm-proj": Cell("lstm", proj_size=1),
    "gru-before": Cell("gru", reset="before"),
}

# ---- shapes ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """The sizes of a call, and which of its optional arrays are given."""

    T: int
    B: int
    I: int
    H: int
    P: int = 0  # of cells with a projection; 0: this shape is not for them
    L: int = 1
    D: int = 1
    lengths: str = "none"  # or "ragged", "zeros", "full", "short"
    state: bool = True
    masks: bool = False
    cells: bool = False
    dy: bool = True
    dstate: bool = True
    added: bool = False  # whether gradients are added to what is there

    def __str__(self) -> str:
        sizes = "".join(f"{name}{getattr(self, name)}" for name in "TBIHPLD")
        words = [self.lengths] if self.lengths != "none" else []
        words += [name for name in ("masks", "cells", "added") if getattr(self, name)]
        words += [f"no{name}" for name in ("state", "dy", "dstate") if not getattr(self, name)]
        return "-".join([sizes, *words])


# Lanes are 2, 4, 8 and 16: sizes at them, one off them and two vectors off them. Blocks are 6 and 8 rows; four rows
# a thread are enough for an LSTM to take its input with its state.
SHAPES = (
    Shape(T=5, B=3, I=3, H=5, P=2, L=2, D=2, lengths="ragged", masks=True, cells=True),
    Shape(T=1, B=1, I=1, H=1),
    Shape(T=4, B=2, I=2, H=3, P=1, D=2, state=False, dstate=False),
    Shape(T=3, B=5, I=4, H=4, P=3, L=3, masks=True, added=True),
    Shape(T=0, B=3, I=3, H=5, P=4, L=2, D=2, cells=True),
    Shape(T=7, B=9, I=9, H=9, P=7, L=2, D=2, lengths="ragged", added=True),
    Shape(T=4, B=4, I=0, H=6, P=5, state=False),
    Shape(T=6, B=7, I=5, H=8, P=4, D=2, lengths="full", dy=False),
    Shape(T=3, B=0, I=3, H=5, P=2, L=2, D=2, lengths="ragged", masks=True, cells=True),
    Shape(T=5, B=8, I=16, H=15, P=9, L=2, lengths="ragged", cells=True),
    Shape(T=1, B=13, I=7, H=16, P=15, D=2, masks=True),
    Shape(T=8, B=2, I=17, H=17, P=16, L=2, D=2, lengths="ragged", masks=True, added=True),
    Shape(T=4, B=3, I=3, H=5, P=2, L=2, D=2, lengths="zeros", cells=True),
    Shape(T=6, B=6, I=8, H=7, P=6, L=3, D=2, state=False, dstate=False, lengths="short"),
    Shape(T=9, B=1, I=33, H=31, P=17, L=2, D=1, cells=True),
    Shape(T=2, B=17, I=15, H=33, P=31, L=1, D=2, lengths="ragged", dy=False),
    Shape(T=12, B=1, I=1, H=2, P=1, L=2, D=2, added=True),
    Shape(T=3, B=25, I=31, H=12, P=8, L=2, lengths="ragged", masks=True),
    Shape(T=3, B=2, I=65, H=64, P=33, D=2, cells=True),
    Shape(T=3, B=5, I=96, H=16, P=9, L=2),
    Shape(T=0, B=0, I=0, H=1),
    Shape(T=6, B=5, I=2, H=65, P=64, lengths="ragged"),
    Shape(T=5, B=130, I=3, H=6, P=3, D=2, lengths="ragged", cells=True),
    Shape(T=40, B=3, I=6, H=10, P=5, L=2, D=2, lengths="ragged", added=True),
    Shape(T=3, B=14, I=5, H=9, P=4, L=2, D=2),
    # In shards of the batch, of as many rows or not.
    Shape(T=17, B=9, I=5, H=17, P=6, lengths="ragged", added=True),
    Shape(T=16, B=11, I=16, H=10, P=9, L=3, masks=True, cells=True),
)
# More rows than weight gradients take at once: in several chunks of steps, and in one step.
MANY_ROWS = (
    Shape(T=190, B=6, I=5, H=7, P=3, lengths="ragged"),
    Shape(T=1, B=600, I=2, H=3, P=2, L=2),
)


@dataclass(frozen=True)
class Case:
    """A cell in a shape."""

    name: str
    cell: Cell
    shape: Shape

    @property
    def stack(self) -> Stack:
        return Stack(self.cell, self.shape.I, self.shape.H, self.shape.L, self.shape.D == 2)

    def __str__(self) -> str:
        return f"{self.name}@{self.shape}"


def _case(name: str, cell: Cell, shape: Shape) -> Case:
    if cell.proj_size:
        cell = Cell(**{**cell.__dict__, "proj_size": shape.P})
    return Case(name, cell, shape)


def _cases() -> list[Case]:
    cases = [
        _case(name, cell, shape)
        for name, cell in EVERYWHERE.items()
        for shape in (*SHAPES, *MANY_ROWS)
        if shape.P or not cell.proj_size
    ]
    peepholes = "lstm-forget:gate-peephole:diagonal"
    cases += [_case(peepholes, CELLS[peepholes], shape) for shape in MANY_ROWS]
    for k, (name, cell) in enumerate(CELLS.items()):
        fit = [shape for shape in SHAPES if shape.P or not cell.proj_size]
        cases += [_case(name, cell, fit[(k + at) % len(fit)]) for at in (0, 5, 11)]
    return cases


CASES = _cases()

# ---- arrays ----------------------------------------------------------------------------------------------------------


@dataclass
class Arrays:
    """What a case gives to forward and backward, in one dtype."""

    params: dict[str, np.ndarray]
    x: np.ndarray
    state: Any
    lengths: np.ndarray | None
    masks: np.ndarray | None
    dy: np.ndarray | None
    dstate: Any
    grads: dict[str, np.ndarray] | None  # what is there before the gradients are added

    def flat(self) -> dict[str, np.ndarray]:
        """All of them by name."""
        found = {**self.params, "x": self.x, "lengths": self.lengths, "masks": self.masks, "dy": self.dy}
        for name, pair in (("state", self.state), ("dstate", self.dstate)):
            found |= {f"{name}[{k}]": part for k, part in enumerate(_parts(pair))}
        return {name: array for name, array in found.items() if array is not None}


def _parts(state: Any) -> tuple[np.ndarray, ...]:
    return () if state is None else state if isinstance(state, tuple) else (state,)


LENGTHS = {
    "none": lambda rng, T, B: None,
    "zeros": lambda rng, T, B: np.zeros(B, np.int64),
    "full": lambda rng, T, B: np.full(B, T, np.int64),
    "short": lambda rng, T, B: rng.integers(0, T, B),  # no row takes the last step
    "ragged": lambda rng, T, B: rng.permutation(np.r_[T, 0, rng.integers(0, T + 1, max(B - 2, 0))][:B]).astype(
        np.int64
    ),
}


def arrays(case: Case, dtype: Any) -> Arrays:
    """The same numbers for every dtype, but rounded."""
    stack, shape = case.stack, case.shape
    T, B, H, P, D, tracks = shape.T, shape.B, shape.H, stack.output_size, shape.D, len(stack.suffixes)
    rng = np.random.default_rng(0)

    def normal(scale: float, *size: int) -> np.ndarray:
        return (scale * rng.standard_normal(size)).astype(dtype)

    def state(scale: float) -> Any:
        h, c = normal(scale, tracks, B, P), normal(scale, tracks, B, H)
        return (h, c) if case.cell.has_c else h

    # As PyTorch draws them; where gates are not bounded, states would grow without bound too, so smaller.
    bounded = all(
        f.name in ("sigmoid", "tanh", "scaled_tanh", "hard_sigmoid", "softsign") for f in case.cell.activations
    )
    weight = (1 if bounded else 0.5) / np.sqrt(3 * H)
    return Arrays(
        params={name: normal(weight, *size) for name, size in stack.shapes.items()},
        x=normal(1, T, B, shape.I),
        state=state(0.5) if shape.state else None,
        lengths=LENGTHS[shape.lengths](rng, T, B),
        masks=(rng.integers(0, 3, (shape.L - 1, T, B, D * P)) * 0.75).astype(dtype) if shape.masks else None,
        dy=normal(1, T, B, D * P) if shape.dy else None,
        dstate=state(1) if shape.dstate else None,
        grads={name: normal(1, *size) for name, size in stack.shapes.items()} if shape.added else None,
    )


def run(module: Any, case: Case, given: Arrays) -> dict[str, np.ndarray]:
    """Forward and backward: every array that comes out of them, by name."""
    shape, dtype = case.shape, given.x.dtype
    cells = np.full((shape.T, shape.B, shape.D * shape.H), np.nan, dtype) if shape.cells and case.cell.has_c else None
    y, state, tape = module.forward(
        case.cell, given.params, given.x, given.state, given.lengths, True, masks=given.masks, cells=cells
    )
    grads = None if given.grads is None else {name: grad.copy() for name, grad in given.grads.items()}
    dx, dstate0, dparams = module.backward(tape, given.dy, given.dstate, grads)
    found = {"y": y, "dx": dx}
    found |= {f"state[{k}]": part for k, part in enumerate(_parts(state))}
    found |= {f"dstate0[{k}]": part for k, part in enumerate(_parts(dstate0))}
    found |= {f"d{name}": grad for name, grad in dparams.items()}
    return found if cells is None else {**found, "cells": cells}


# ---- the check -------------------------------------------------------------------------------------------------------

# Sums of the same terms in another order, in arrays so small that the plain computation's own error says little.
FLOOR = 32  # roundings of the largest number in the array


@cache
def _low(case: Case) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """The results for float32's arrays, computed in float64, and how far the plain float32 computation is from them."""
    given = arrays(case, np.float32)
    exact, plain = run(reference, case, _exactly(given)), run(reference, case, given)
    return exact, {name: _largest(plain[name] - array) for name, array in exact.items()}


@cache
def _wanted(case: Case, dtype: Any) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """The exact results for what is given in that dtype, and the error that each may have.

    Exact is the reference in float64. In float32 an error may be twice that of the reference in float32, the plain
    low-precision computation. In float64, where exact has errors too, it may be three times what that error
    predicts: as much smaller as the roundings are.
    """
    exact, errors = _low(case)
    times = 2.0
    if dtype == np.float64:
        exact = run(reference, case, arrays(case, dtype))
        times = 3 * float(np.finfo(np.float64).eps) / float(np.finfo(np.float32).eps)
    floor = FLOOR * float(np.finfo(dtype).eps) / 2
    return exact, {name: times * errors[name] + floor * _largest(array) for name, array in exact.items()}


def same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    """For assertions, which should not compare bytes: where those differ, pytest in CI spells out how, for hours."""
    return one.tobytes() == other.tobytes()


def _exactly(given: Arrays) -> Arrays:
    """The same numbers in float64."""

    def double(array: Any) -> Any:
        if isinstance(array, tuple):
            return tuple(map(double, array))
        if isinstance(array, dict):
            return {name: double(value) for name, value in array.items()}
        return array if array is None or array.dtype == np.int64 else array.astype(np.float64)

    return Arrays(**{name: double(value) for name, value in given.__dict__.items()})


def _largest(array: np.ndarray) -> float:
    return float(np.abs(array).max(initial=0))


def check(module: Any, case: Case, dtype: Any) -> None:
    """AssertionError where the module's results are not those of the reference, or an input was written to."""
    given = arrays(case, dtype)
    before = {name: array.copy() for name, array in given.flat().items()}
    found = run(module, case, given)
    exact, allowed = _wanted(case, dtype)
    assert found.keys() == exact.keys()
    for name, array in found.items():
        assert array.dtype == dtype and array.shape == exact[name].shape, f"{name}: {array.dtype} {array.shape}"
        error = _largest(array - exact[name])
        assert error <= allowed[name], f"{name} is off by {error:.3g}, more than {allowed[name]:.3g}"  # also where NaN
    for name in {"y", "dx", "cells"} & found.keys():
        assert not found[name][_past_ends(case, given.lengths)].any(), f"{name} is not zero past a row's end"
    for name, array in given.flat().items():
        assert np.array_equal(array, before[name]), f"{name} was written to"


def _past_ends(case: Case, lengths: np.ndarray | None) -> np.ndarray:
    """[T, B]"""
    steps = np.arange(case.shape.T)[:, None]
    return steps >= (np.full(case.shape.B, case.shape.T) if lengths is None else lengths)
