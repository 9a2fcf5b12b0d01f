"""Types of arguments for the programs of this folder: what is none of them is an error that argparse tells."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterable

__all__ = ["count", "counts", "names", "positive", "unknown"]


def positive(text: str) -> float:
    """A finite number above 0."""
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def count(text: str) -> int:
    """A whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def counts(text: str) -> list[int]:
    """Several, with commas between."""
    return [count(part) for part in names(text)]


def names(text: str) -> list[str]:
    """Words with commas between."""
    return text.split(",")


def unknown(parts: Iterable[str], whole: Collection[str]) -> str:
    """Which of the parts of names stand in none, for an error to tell; nothing where each has its name."""
    return ", ".join(part for part in parts if not any(part in name for name in whole))
