"""Waiting for a machine that is itself, bench/steady.py: when it waits, how long at most, and what it tells of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import steady


@pytest.mark.parametrize(
    ("first", "looks", "patience", "held"),
    [
        (100, [90], 1.0, 1),
        (100, [80, 86], 1.0, 1),
        (110, [120], 1.0, 1),
        (100, [80, 80], 0.05, 0),
        (100, [80], 0.0, 0),
    ],
)
def test_blocks_wait_until_the_machine_is_itself(first: int, looks: list[int], patience: float, held: int) -> None:
    watch, moods = steady.Steady(patience), iter([first] * steady.LOOKS + looks + [1])
    watch._mix = SimpleNamespace(now=lambda threads: next(moods), close=lambda: None)
    watch.wait(2)
    assert watch.held() == (held, 1)
    assert next(moods) == 1  # looked at as often as told


def test_a_block_waits_no_longer_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    watch, now = steady.Steady(100.0), [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda s: now.append(now.pop() + s))
    monkeypatch.setattr(steady, "time", clock)
    rates = iter([100.0] * steady.LOOKS)
    watch._mix = SimpleNamespace(now=lambda threads: next(rates, 50.0))
    watch.wait(2)
    assert steady.WAIT <= now[0] <= steady.WAIT + steady.PAUSE
    assert watch.held() == (0, 1)
    for _ in range(100):
        watch.wait(2)
    assert now[0] < 100 + steady.WAIT + steady.PAUSE
    assert watch.held() == (0, 101)


def test_blocks_are_judged_by_the_best_that_was_seen_to_the_last() -> None:
    watch, moods = steady.Steady(0.0), iter([100] * steady.LOOKS + [100, 130])
    watch._mix = SimpleNamespace(now=lambda threads: next(moods))
    watch.wait(2)
    assert watch.held() == (1, 1)
    watch.wait(2)
    assert watch.held() == (1, 2)


def test_nobody_waits_where_nothing_can_be_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CC", "/nowhere/cc")
    watch = steady.Steady(1.0)
    watch.wait(2)
    watch.wait(2)
    assert watch.held() == (0, 0)
    assert capsys.readouterr().out.count("without waiting") == 1
