"""The table of what is timed, and the work that a case stands for.

One table for pytest-benchmark and for the comparison with other engines; names come from it. Input size equals hidden
size throughout, and there are T = 100 steps but where a case would be too long. Next: engines.py.
"""

from __future__ import annotations

from dataclasses import dataclass

GATES = {"lstm": 4, "gru": 3, "rnn": 1}
MODES = ("forward", "train", "step")


@dataclass(frozen=True)
class Case:
    """One timing: a cell, its sizes, and what is done with it.

    mode  "forward": a whole sequence, nothing kept; "train": forward and backward with dx and all weight gradients,
          the weights having changed; "step": one step with the state carried over
    """

    cell: str
    hidden: int
    batch: int
    mode: str

    @property
    def steps(self) -> int:
        """T."""
        if self.mode == "step":
            return 1
        return 20 if self.hidden * self.batch > 60_000 else 100

    @property
    def flops(self) -> float:
        """Floating-point operations of the matrix products: 2 per multiply-add, three times as many in training."""
        products = 2 * 2 * GATES[self.cell] * self.hidden**2 * self.batch * self.steps
        return products * (3 if self.mode == "train" else 1)

    @property
    def name(self) -> str:
        """For example "lstm-h128-b32-train"."""
        return f"{self.cell}-h{self.hidden}-b{self.batch}-{self.mode}"


def cases(
    cells: tuple[str, ...] = ("lstm", "gru", "rnn"),
    hidden: tuple[int, ...] = (16, 128, 512),
    batch: tuple[int, ...] = (1, 32),
    modes: tuple[str, ...] = MODES,
) -> list[Case]:
    """The product of the choices; a step is timed at batch 1 alone."""
    return [
        Case(cell, h, b, mode)
        for mode in modes
        for cell in cells
        for h in hidden
        for b in ((1,) if mode == "step" else batch)
    ]
