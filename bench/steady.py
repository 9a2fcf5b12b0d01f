"""Waiting, before a block is timed, until the machine is itself: for suite.py, promises.py and leave_out.py.

What tells is probe.py's `Mix`. Nothing is thrown away: a block that waited in vain is timed all the same.
"""

from __future__ import annotations

import time

from probe import Mix, ProbeError

STEADY = 0.85  # the share of the best seen below which the machine is not itself
WAITS_FOR = f"{STEADY:.0%} of what they ever did at once, in multiply-adds, other instructions and meetings"
LOOKS = 40  # at first, for something to compare with
PAUSE, WAIT = 0.1, 5.0  # seconds between two looks at it, and for a block at most


class Steady:
    """Waits until the machine does about as much at once as it was ever seen to do.

    A virtual machine's processors may be two threads of one core for a while, far apart, or have a busy neighbour on
    their cores' other threads: what is timed then says nothing of engines. All of them wait alike, WAIT seconds for a
    block and `patience` in a whole run at most.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._best: dict[int, float] = {}  # by number of threads
        self._found: list[tuple[int, float]] = []  # threads, and what they did when a block began
        self._mix: Mix | None = None
        self._blind = False  # nothing can be measured

    def wait(self, threads: int) -> None:
        """Until it does so with that many threads, or it has waited long enough."""
        if self._blind:
            return
        try:
            self._mix = self._mix or Mix()
            if threads not in self._best:
                self._best[threads] = max(self._mix.now(threads) for _ in range(LOOKS))
            found, begin = self._look(threads, self._mix), time.monotonic()
            while not self._is_itself(threads, found) and time.monotonic() - begin < min(WAIT, self._patience):
                time.sleep(PAUSE)
                found = self._look(threads, self._mix)
            self._patience -= time.monotonic() - begin
            self._found.append((threads, found))
        except ProbeError as error:
            print(f"without waiting for a steady machine: {error}")
            self._blind = True

    def held(self) -> tuple[int, int]:
        """How many blocks began so, by the best that was seen to the last, and how many there were."""
        return sum(self._is_itself(*found) for found in self._found), len(self._found)

    def close(self) -> None:
        """Remove what it measures with."""
        if self._mix:
            self._mix.close()

    def _look(self, threads: int, mix: Mix) -> float:
        found = mix.now(threads)
        self._best[threads] = max(found, self._best[threads])
        return found

    def _is_itself(self, threads: int, found: float) -> bool:
        return found >= STEADY * self._best[threads]
