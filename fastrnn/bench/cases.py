"""The table of what is timed: cases, their names, their work, and the data that every engine is given.

One table for the comparison with other engines, for pytest-benchmark and for CI. A case says what is to be done, never
by whom: that is engines.py. Input size equals hidden size throughout. Next: engines.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np

__all__ = ["CELLS", "GRID", "QUICK", "TABLE", "Case", "Data", "data"]

GATES = {"lstm": 4, "gru": 3, "rnn": 1}
CELLS = tuple(GATES)
HIDDEN = (16, 64, 128, 256, 512, 1024)
BATCH = (1, 8, 32, 128)
STEPS = 100
MODES = ("inference", "training", "step", "words")
LEARNING_RATE, LARGEST_NORM = 0.1, 5.0  # of a language model's step: plain SGD after clipping by norm
LARGEST = 1024 * 128  # H*B from which a sequence is SHORT: a second a call would tell nothing that a fifth does not
SHORT = 20


@dataclass(frozen=True)
class Case:
    """One thing to time: a network, the sizes of its input, and what is done with it.

    cell    "lstm", "gru" (reset after the product) or "rnn" (tanh), float32
    mode    "inference": a whole sequence, nothing kept; "training": forward, and backward with dx and all weight
            gradients, the weights having changed since the last time; "step": one step, the state carried over;
            "words": a training step of a language model: embedding, layers, tied softmax, clipping, update
    ragged  lengths are uniform in 1..T instead of T
    words   the size of the language model's vocabulary
    """

    cell: str
    mode: str
    hidden: int
    batch: int
    steps: int = STEPS
    layers: int = 1
    directions: int = 1
    ragged: bool = False
    words: int = 0

    @property
    def name(self) -> str:
        """For example "lstm-training-h128-b32", or "gru-inference-h64-b1-2x2" with layers x directions."""
        name = f"{self.cell}-{self.mode}-h{self.hidden}-b{self.batch}"
        if self.tracks != 1:
            name += f"-{self.layers}x{self.directions}"
        return name + "-ragged" * self.ragged

    @property
    def tracks(self) -> int:
        """Layers times directions."""
        return self.layers * self.directions

    @property
    def lengths(self) -> np.ndarray:
        """[B] real steps."""
        if not self.ragged:
            return np.full(self.batch, self.steps)
        return np.random.default_rng(0).integers(1, self.steps + 1, self.batch)

    @property
    def flops(self) -> float:
        """Floating-point operations of the matrix products over the real steps: 2 a multiply-add, training thrice."""
        sizes = [self.hidden] + [self.directions * self.hidden] * (self.layers - 1)
        columns = sum(self.directions * (size + self.hidden) for size in sizes)  # of [W_ih W_hh], layer by layer
        products = GATES[self.cell] * self.hidden * columns + self.hidden * self.words
        return 2.0 * products * int(self.lengths.sum()) * (3 if self.mode in ("training", "words") else 1)

    @property
    def bytes_per_sweep(self) -> int:
        """What a track must read in every step, before the next: recurrent weights; one step alone the input's too.

        A sequence reads the input's weights for many steps at once.
        """
        return 4 * GATES[self.cell] * self.hidden**2 * (2 if self.mode == "step" else 1)

    @property
    def sweeps_per_step(self) -> int:
        """How many such sweeps a step takes: one a track, in training another going back."""
        return self.tracks * (2 if self.mode in ("training", "words") else 1)

    def places(self, layer: int) -> list[str]:
        """What ends the names of a layer's parameters, by direction: ["_l0", "_l0_reverse"]."""
        return [f"_l{layer}{suffix}" for suffix in ("", "_reverse")[: self.directions]]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The layers' parameters, by PyTorch's names and in its order."""
        found: dict[str, tuple[int, ...]] = {}
        rows = GATES[self.cell] * self.hidden
        for layer in range(self.layers):
            size = self.hidden * (self.directions if layer else 1)
            for place in self.places(layer):
                found |= {f"weight_ih{place}": (rows, size), f"weight_hh{place}": (rows, self.hidden)}
                found |= {f"bias_ih{place}": (rows,), f"bias_hh{place}": (rows,)}
        return found

    def reordered(self, array: np.ndarray, order: Sequence[int]) -> np.ndarray:
        """[G*H, ...] with its gates in another order; order: which of the array's gates stands at each place."""
        gates = array.reshape(GATES[self.cell], self.hidden, -1)
        return gates[list(order)].reshape(array.shape)


class Data(NamedTuple):
    """What a case is done with, the same for every engine.

    params   the layers' parameters by PyTorch's names; with a vocabulary also "embedding" [V, H] and "bias" [V]
    x, dy    [T, B, H] and [T, B, D*H], zero past a sequence's end; of a language model tokens [T, B] and targets
    lengths  [B]
    """

    params: dict[str, np.ndarray]
    x: np.ndarray
    dy: np.ndarray
    lengths: np.ndarray


def data(case: Case) -> Data:
    """Draw them: parameters as PyTorch does, x and dy normal."""
    random = np.random.default_rng(1)
    bound = case.hidden**-0.5

    def uniform(limit: float, *shape: int) -> np.ndarray:
        return (limit * (2 * random.random(shape, np.float32) - 1)).astype(np.float32)

    params = {name: uniform(bound, *shape) for name, shape in case.shapes.items()}
    if case.words:
        params |= {"embedding": uniform(0.1, case.words, case.hidden), "bias": np.zeros(case.words, np.float32)}
        x, dy = random.integers(0, case.words, (2, case.steps, case.batch))
    else:
        x = random.standard_normal((case.steps, case.batch, case.hidden), np.float32)
        dy = random.standard_normal((case.steps, case.batch, case.directions * case.hidden), np.float32)
        past = np.arange(case.steps)[:, None] >= case.lengths
        x[past] = dy[past] = 0
    return Data(params, x, dy, case.lengths)


# ---------------------------------------------------------------- the table


def _grid() -> Iterator[Case]:
    for mode, cell, hidden, batch in product(("inference", "training"), CELLS, HIDDEN, BATCH):
        yield Case(cell, mode, hidden, batch, SHORT if hidden * batch >= LARGEST else STEPS)
    for cell, hidden in product(CELLS, (16, 32, 64, 128, 256, 512)):
        yield Case(cell, "step", hidden, 1, 1)


def _others() -> Iterator[Case]:
    for mode, cell, hidden, batch in product(("inference", "training"), CELLS, (64, 256), (1, 8)):
        yield Case(cell, mode, hidden, batch, layers=2)
    for mode, cell, hidden, batch in product(("inference", "training"), CELLS, (64, 256), (1, 32)):
        yield Case(cell, mode, hidden, batch, layers=2, directions=2)
    for mode, cell, hidden in product(("inference", "training"), CELLS, (128, 512)):
        yield Case(cell, mode, hidden, 32, ragged=True)
    for hidden in (200, 650):
        yield Case("lstm", "words", hidden, 20, 35, layers=2, words=10_000)


GRID = tuple(_grid())  # cells x sizes: what the heat maps show
TABLE = (*GRID, *_others())
QUICK = tuple(case for case in GRID if case.hidden in (16, 128, 512) and case.batch in (1, 32))
