"""Candidates take turns: all in each round, each without its overhead, the fastest of several forms found."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time

import numpy as np
import pytest

from subtone.bench.turns import (
    LEAST_SHARE,
    LOOK_S,
    WARM_S,
    Candidate,
    error_of,
    fastest,
    lingering_of,
    overhead_of,
    take_turns,
    turn,
    work_of,
)

SHORT_S = 0.0002


class Clock:
    """A clock that only candidates move, so that a test does not depend on who else is on the machine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now_s)

    def busy(self, *seconds: float, calls: list[str] | None = None, name: str = "") -> Candidate:
        """A candidate whose calls take `seconds`, in turn."""
        takes = itertools.cycle(seconds)

        def run() -> None:
            if calls is not None:
                calls.append(name)
            self.now_s += next(takes)

        return Candidate(name=name, bits=8, run=run, results=lambda: [])


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_turn_gives_the_median_of_the_calls_that_it_holds(clock: Clock) -> None:
    run = clock.busy(9 * SHORT_S, 2 * SHORT_S, SHORT_S, 6 * SHORT_S, SHORT_S).run
    # The first call warms up and does not count; the others fill a turn of ten.
    assert turn(run, turn_s=9.5 * SHORT_S, warm_s=0.0) == pytest.approx(1.5 * SHORT_S)


def test_a_turn_shorter_than_a_call_holds_one(clock: Clock) -> None:
    calls: list[str] = []
    assert turn(clock.busy(SHORT_S, calls=calls).run, turn_s=0.0) == pytest.approx(SHORT_S)
    assert len(calls) == 1 + math.ceil(WARM_S / SHORT_S)


def test_every_candidate_has_a_turn_in_every_round_and_nobody_always_the_same_neighbour(clock: Clock) -> None:
    calls: list[str] = []
    candidates = [clock.busy(WARM_S, calls=calls, name=name) for name in "abcd"]
    seconds = take_turns(candidates, rounds=12, turn_s=0.0)
    assert seconds.shape == (12, 4)
    assert seconds.ravel().tolist() == pytest.approx([WARM_S] * 48)
    turns = calls[::2]  # a call that warms up, and one that counts
    assert calls[1::2] == turns
    rounds = [turns[start : start + 4] for start in range(0, 48, 4)]
    assert all(sorted(each) == list("abcd") for each in rounds)
    assert len(set(itertools.pairwise(turns))) > 6  # of 16 that there are; one order would give 4


def test_what_a_call_costs_without_work_is_taken_off(clock: Clock) -> None:
    known = dataclasses.replace(clock.busy(4 * SHORT_S), overhead_s=3 * SHORT_S)
    assert take_turns([known], rounds=3, turn_s=0.0) == pytest.approx(np.full((3, 1), SHORT_S))


def test_an_overhead_never_makes_a_call_free(clock: Clock) -> None:
    assert work_of(1.0, 2.0) == LEAST_SHARE
    assert overhead_of(clock.busy(SHORT_S)) == pytest.approx(SHORT_S)


@pytest.mark.parametrize(("spun_looks", "seen"), [(0, 0), (1, 1), (7, 7), (10**6, 40)])
def test_it_is_seen_how_long_a_candidate_computes_after_a_call(
    monkeypatch: pytest.MonkeyPatch, spun_looks: int, seen: int
) -> None:
    slept: list[float] = []
    calls: list[int] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(time, "perf_counter", lambda: sum(slept))
    monkeypatch.setattr(time, "process_time", lambda: sum(slept[calls[-1] :][:spun_looks]))
    lingers_s = lingering_of(lambda: calls.append(len(slept)))
    assert lingers_s == pytest.approx(seen * LOOK_S)  # a million looks end at LONGEST_WAIT_S


def test_nobody_follows_a_candidate_that_still_computes() -> None:
    events: list[tuple[str, float]] = []

    def named(name: str, lingers_s: float) -> Candidate:
        return Candidate(
            name=name,
            bits=8,
            run=lambda: events.append((name, time.perf_counter())),
            results=lambda: [],
            lingers_s=lingers_s,
        )

    take_turns([named("spins", 0.01), named("sleeps", 0.0)], rounds=4, turn_s=0.0)
    gaps = [
        after[1] - before[1]
        for before, after in itertools.pairwise(events)
        if before[0] == "spins" != after[0]
    ]
    assert gaps
    assert min(gaps) >= 0.01


def test_the_fastest_of_several_forms_is_found(clock: Clock) -> None:
    candidates = [clock.busy(seconds * SHORT_S, name=str(seconds)) for seconds in (2, 40, 1, 5)]
    assert fastest(candidates).name == "1"
    assert fastest(candidates[1:2]).name == "40"


def test_the_fastest_is_so_by_its_work_and_not_by_its_calls(clock: Clock) -> None:
    heavy = dataclasses.replace(clock.busy(5 * SHORT_S, name="heavy call"), overhead_s=4 * SHORT_S)
    assert fastest([clock.busy(2 * SHORT_S, name="light call"), heavy]).name == "heavy call"


def test_a_form_far_behind_has_one_call_only(clock: Clock) -> None:
    calls: list[str] = []
    near, far = (clock.busy(seconds, calls=calls, name=str(seconds)) for seconds in (WARM_S, 50 * WARM_S))
    assert fastest([near, far]) is near
    assert calls.count(far.name) == 1


@pytest.mark.parametrize("bad", [np.float32("nan"), np.float32("inf")])
def test_an_error_is_relative_and_of_what_is_no_number_infinite(bad: np.float32) -> None:
    expected = np.array([[3.0, 4.0]], np.float32)
    assert error_of(expected, expected) == 0.0
    assert error_of(expected * np.float32(1.5), expected) == pytest.approx(0.5)
    assert error_of(expected.T, expected) == float("inf")
    assert error_of(np.array([[3.0, bad]], np.float32), expected) == float("inf")
