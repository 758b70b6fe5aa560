"""Ratios are taken within a round, and every candidate hears everything in every round."""

from __future__ import annotations

import numpy as np
import pytest

from subtone.report.race import race, summarize_race


def test_every_candidate_hears_every_sound_in_every_round() -> None:
    calls: list[tuple[str, int]] = []
    sounds = [np.zeros((frames, 2), np.float32) for frames in (3, 5)]
    candidates = {
        name: (lambda sound, name=name: calls.append((name, len(sound)))) for name in ("a", "b", "c")
    }
    seconds = race(candidates, sounds, rounds=3)
    assert seconds.shape == (3, 3)
    assert (seconds > 0).all()
    for name in candidates:
        assert calls.count((name, 3)) == calls.count((name, 5)) == 4  # a warm-up and three rounds


def test_nobody_always_follows_the_same_neighbour() -> None:
    order: list[str] = []
    candidates = {name: (lambda sound, name=name: order.append(name)) for name in ("a", "b", "c", "d")}
    race(candidates, [np.zeros((3, 2), np.float32)], rounds=19)
    rounds = [order[start : start + 4] for start in range(0, 80, 4)]
    for name in candidates:
        before = {turn[turn.index(name) - 1] for turn in rounds if turn.index(name)}
        assert before == set(candidates) - {name}


def test_ratios_are_of_the_same_round() -> None:
    # The machine slows down tenfold; theirs always takes twice as long.
    seconds = np.array([[1.0, 2.0], [10.0, 20.0], [5.0, 10.0]])
    ours, theirs = summarize_race(["ours", "theirs"], seconds, duration_s=10.0, ours="ours")
    assert ours["ours_is_faster_by"] == 1.0
    assert theirs["ours_is_faster_by"] == 2.0
    assert theirs["quartiles"] == [2.0, 2.0]
    assert theirs["real_time_factor"] == pytest.approx(1.0)
