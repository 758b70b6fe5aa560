"""Candidates take turns: all in each round, each without its overhead, the fastest of several forms found."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from subtone.bench.turns import (
    LEAST_SHARE,
    LOOK_S,
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


def busy(seconds: float, calls: list[str] | None = None, name: str = "") -> Candidate:
    """A candidate that computes for so long; a slow machine makes it longer, nothing makes it shorter."""

    def run() -> None:
        if calls is not None:
            calls.append(name)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass

    return Candidate(name=name, bits=8, run=run, results=lambda: [])


def test_a_turn_gives_the_time_of_one_call() -> None:
    assert SHORT_S <= turn(busy(SHORT_S).run, turn_s=10 * SHORT_S) < 10 * SHORT_S


def test_every_candidate_has_a_turn_in_every_round_and_nobody_always_the_same_neighbour() -> None:
    calls: list[str] = []
    candidates = [busy(0.0, calls, name) for name in "abcd"]
    seconds = take_turns(candidates, rounds=12, turn_s=0.0)
    assert seconds.shape == (12, 4)
    assert (seconds > 0).all()
    turns = [name for index, name in enumerate(calls) if index == 0 or calls[index - 1] != name]
    assert {name: calls.count(name) > 0 for name in "abcd"} == dict.fromkeys("abcd", True)
    pairs = set(itertools.pairwise(turns))
    assert len(pairs) > 6  # of 12 that there are; one order would give 4


def test_what_a_call_costs_without_work_is_taken_off() -> None:
    candidate = busy(4 * SHORT_S)
    known = Candidate(name="", bits=8, run=candidate.run, results=candidate.results, overhead_s=3 * SHORT_S)
    whole, work = (take_turns([each], rounds=3, turn_s=0.0).min() for each in (candidate, known))
    assert whole >= 4 * SHORT_S
    assert work < whole - 2 * SHORT_S


def test_an_overhead_never_makes_a_call_free() -> None:
    assert work_of(1.0, 2.0) == LEAST_SHARE
    assert overhead_of(busy(SHORT_S)) >= SHORT_S


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


def test_the_fastest_of_several_forms_is_found() -> None:
    candidates = [busy(seconds * SHORT_S, None, str(seconds)) for seconds in (2, 40, 1, 5)]
    assert fastest(candidates, turn_s=0.0).name in ("1", "2")
    assert fastest(candidates[1:2]).name == "40"


def test_a_form_far_behind_has_one_call_only() -> None:
    calls: list[str] = []
    fastest([busy(0.0, calls, "near"), busy(50 * SHORT_S, calls, "far")], turn_s=0.0)
    assert calls.count("far") == 1


@pytest.mark.parametrize("bad", [np.float32("nan"), np.float32("inf")])
def test_an_error_is_relative_and_of_what_is_no_number_infinite(bad: np.float32) -> None:
    expected = np.array([[3.0, 4.0]], np.float32)
    assert error_of(expected, expected) == 0.0
    assert error_of(expected * np.float32(1.5), expected) == pytest.approx(0.5)
    assert error_of(expected.T, expected) == float("inf")
    assert error_of(np.array([[3.0, bad]], np.float32), expected) == float("inf")
