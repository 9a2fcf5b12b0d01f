"""What this machine can do at most: `python bench/probe.py` prints its float32 multiply-adds and its reads a second.

`measure()` compiles probe.c beside this file for the very machine, runs it for every level of memory and number of
threads, and gives the `Ceilings`: no program that has so many operations to do and so many bytes to read can take less
time. It knows nothing of networks, and needs nothing but a C compiler. Next: probe.c.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from arguments import counts, positive

LEVELS = ("l1", "l2", "l3", "memory")
SYSFS = Path("/sys/devices/system/cpu/cpu0/cache")
SOURCE = Path(__file__).resolve().with_name("probe.c")
# Loops begin where a line of the instruction cache does: elsewhere a loop of nothing but loads may lose 5 %.
FLAGS = ["-std=gnu11", "-O3", "-ffp-contract=fast", "-falign-loops=64", "-pthread"]
ROUNDS = 4  # each figure is measured so often, at times far apart: a neighbour's noise comes and goes
TIMEOUT = 120  # seconds, for a compilation or a figure, which take well under one


class ProbeError(RuntimeError):
    """The ceilings cannot be measured here; the message says why."""


@dataclass(frozen=True)
class Ceilings:
    """The most that the machine was seen to do.

    caches  bytes of "l1" (data), "l2" and "l3", as `caches()` gives them
    fma     GFLOP/s by number of threads: float32, a multiply-add counting as two
    read    GB/s (1e9 bytes) of all threads together, by level ("l1", "l2", "l3", "memory") and number of threads
    """

    caches: dict[str, int]
    fma: dict[int, float]
    read: dict[str, dict[int, float]]

    def bandwidth(self, bytes_per_thread: float, threads: int) -> float:
        """GB/s at which threads can read that much each, over and over: those of the nearest level that holds it.

        Raises KeyError for a number of threads that was not measured.
        """
        if bytes_per_thread <= self.caches["l1"]:
            level = "l1"
        elif bytes_per_thread <= self.caches["l2"]:
            level = "l2"
        elif bytes_per_thread * threads <= self.caches["l3"]:
            level = "l3"
        else:
            level = "memory"
        return self.read[level][threads]

    def sweep(self, bytes_per_thread: float, threads: int) -> float:
        """Seconds in which threads can read that much each, over and over, and to and fro: the last that was read is
        the first to be read again, so that each level gives what it can hold and only the rest comes from beyond.

        Raises KeyError for a number of threads that was not measured.
        """
        room = {**self.caches, "l3": self.caches["l3"] / threads, "memory": float("inf")}
        seconds = near = 0.0
        for level in LEVELS:
            within = min(bytes_per_thread, max(near, room[level]))
            seconds += (within - near) * threads / (1e9 * self.read[level][threads])
            near = within
        return seconds

    def __or__(self, other: Ceilings) -> Ceilings:
        """Of the same machine, with the other's numbers of threads as well."""
        read = {level: self.read[level] | other.read[level] for level in LEVELS}
        return Ceilings(self.caches, self.fma | other.fma, read)

    def to_json(self) -> dict[str, Any]:
        """The same as JSON can hold it, whose keys are strings."""
        return {
            "caches": dict(self.caches),
            "fma": {str(n): rate for n, rate in self.fma.items()},
            "read": {level: {str(n): rate for n, rate in rates.items()} for level, rates in self.read.items()},
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Ceilings:
        """What `to_json()` gave."""
        return cls(
            caches=dict(data["caches"]),
            fma={int(n): rate for n, rate in data["fma"].items()},
            read={level: {int(n): rate for n, rate in rates.items()} for level, rates in data["read"].items()},
        )


# ---- the caches ------------------------------------------------------------------------------------------------------


def caches(folder: Path = SYSFS) -> dict[str, int]:
    """Bytes of a core's L1 for data and its L2, and of one L3: "l1", "l2" and "l3", each larger than the one before.

    What the system does not tell, or tells as no larger than the level before, is taken to be 16 times that. A virtual
    machine may tell of an L3 that it shares with others.

    folder  where Linux describes the first processor's caches
    """
    told = _sysctl_caches() if sys.platform == "darwin" else _sysfs_caches(folder)
    sizes, before = {}, 2 << 10
    for level in ("l1", "l2", "l3"):
        size = told.get(level, 0)
        sizes[level] = before = size if size > before else 16 * before
    return sizes


def _sysfs_caches(folder: Path) -> dict[str, int]:
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    sizes = {}
    for index in folder.glob("index*"):
        try:
            level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        if kind != "Instruction" and size.rstrip("KMG").isdecimal():
            sizes[f"l{level}"] = int(size.rstrip("KMG")) * units.get(size[-1], 1)
    return sizes


def _sysctl_caches() -> dict[str, int]:
    if platform.machine() != "arm64":
        return {"l1": _sysctl("hw.l1dcachesize"), "l2": _sysctl("hw.l2cachesize"), "l3": _sysctl("hw.l3cachesize")}
    fast = "hw.perflevel0."  # the fast cores, several of which share an L2
    return {
        "l1": _sysctl(fast + "l1dcachesize"),
        "l2": _sysctl(fast + "l2cachesize") // max(1, _sysctl(fast + "cpusperl2")),
    }


def _sysctl(name: str) -> int:
    """A number that macOS tells; 0 where it does not."""
    text = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=False).stdout.strip()
    return int(text) if text.isdecimal() else 0


def working_sets(sizes: dict[str, int], threads: int) -> dict[str, int]:
    """Bytes for each thread to read, by level: well within it, well out of the level before."""
    l1, l2, l3 = sizes["l1"], sizes["l2"], sizes["l3"]
    return {
        "l1": l1 // 2,
        "l2": max(2 * l1, l2 // 2),
        "l3": max(2 * l2, min(8 * l2, l3 // 2 // threads)),
        "memory": min(4 * l3, (1 << 30) // threads),  # each thread 4 times L3: there may be an L3 for every few cores
    }


# ---- the program -----------------------------------------------------------------------------------------------------


def measure(threads: Sequence[int], seconds: float = 0.3, flags: Sequence[str] = ()) -> Ceilings:
    """The ceilings of this machine.

    threads  the numbers of threads to measure with, each at least 1
    seconds  about how long to take for a figure, of which there are five for each number of threads
    flags    more for the compiler, such as -mno-avx512f for what AVX2 alone can do

    Raises ProbeError where probe.c cannot be compiled or run.
    """
    counts, sizes = sorted(set(threads)), caches()
    fma = dict.fromkeys(counts, 0.0)
    read = {level: dict.fromkeys(counts, 0.0) for level in LEVELS}
    with tempfile.TemporaryDirectory() as folder:
        program = _compile(Path(folder), flags)
        for n in counts * ROUNDS:
            fma[n] = max(fma[n], _rate(program, "fma", n, seconds / ROUNDS))
            for level, size in working_sets(sizes, n).items():
                read[level][n] = max(read[level][n], _rate(program, "read", n, seconds / ROUNDS, size))
    for rates in (fma, *read.values()):
        for fewer, n in pairwise(counts):
            rates[n] = max(rates[n], rates[fewer])  # what fewer can do, more can
    return Ceilings(sizes, fma, read)


class Mix:
    """The rate of multiply-adds and other instructions at once in threads that meet often, to be looked at again and
    again: less where a neighbour has a core's other thread, or where processors are two threads of one core, or far
    apart. Raises ProbeError as `measure` does.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        try:
            self._program = _compile(Path(self._folder.name), ())
        except ProbeError:
            self.close()
            raise

    def close(self) -> None:
        """Remove the program."""
        self._folder.cleanup()

    def now(self, threads: int, seconds: float = 0.01) -> float:
        """1e9 instructions a second of so many threads."""
        return _rate(self._program, "mix", threads, seconds)


def compiler() -> list[str]:
    """The command of a C compiler: what $CC names, else the first there is; ProbeError where there is none."""
    installed = [path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))]
    command = shlex.split(os.environ.get("CC", "")) or installed[:1]
    if not command:
        raise ProbeError("no C compiler: cc, gcc or clang, or what $CC names")
    return command


def _compile(folder: Path, more: Sequence[str]) -> Path:
    """probe.c as a program in the folder, for this very machine where the compiler can do that."""
    command = compiler()
    native = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
    program = folder / "probe"
    for flags in ([native, *FLAGS, *more], [*FLAGS, *more]):
        done = _run([*command, *flags, str(SOURCE), "-o", str(program)])
        if done.returncode == 0:
            return program
    raise ProbeError(f"{command[0]} does not compile {SOURCE.name}:\n{done.stderr}")


def _rate(program: Path, *arguments: object) -> float:
    """What the program prints."""
    done = _run([str(program), *map(str, arguments)])
    if done.returncode != 0:
        raise ProbeError(f"probe {' '.join(map(str, arguments))} ended with {done.returncode}: {done.stderr.strip()}")
    return float(done.stdout)


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ProbeError(f"{Path(command[0]).name} cannot be run: {error}") from error


def main(argv: list[str] | None = None) -> None:
    """Print the ceilings; see --help."""
    every = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=counts, default=f"1,{every}", help="default: 1 and all, here %(default)s")
    parser.add_argument("--seconds", type=positive, default=0.3, help="per figure")
    args = parser.parse_args(argv)
    try:
        found = measure(args.threads, args.seconds)
    except ProbeError as error:
        raise SystemExit(str(error)) from error
    print(f"{'threads':<16}" + "".join(f"{n:>10}" for n in found.fma))
    print(f"{'fma GFLOP/s':<16}" + "".join(f"{rate:10.1f}" for rate in found.fma.values()))
    for level, rates in found.read.items():
        size = f"  {level} = {found.caches[level] >> 10} KiB" if level in found.caches else ""
        print(f"{level + ' GB/s':<16}" + "".join(f"{rate:10.1f}" for rate in rates.values()) + size)


if __name__ == "__main__":
    main()
