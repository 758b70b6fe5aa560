"""Candidates that take turns, and what one call of each costs.

A turn of a candidate is a few calls that are not counted, which bring its weights back into the cache, then as many
timed ones as a few milliseconds hold; it gives their median. Each round is a turn of every candidate in an order drawn
anew, and gives one ratio for each pair. Who still computes after a call (ONNX Runtime's second thread spins for 30 ms)
would take somebody else's core: behind a turn of it all wait for as long as that was seen to last.

What a call costs beside its work (the way through Python, sessions, bindings) would decide where the work takes
microseconds. So each candidate has an `overhead_s`, measured by the same call of a product that has next to no work,
on one thread; it is taken off its times, peers' and ours alike. Waking further threads is not in it: that is part of
the work.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

ORDER_SEED = 7
TURN_S = 0.003
WARM_S = 0.0015
"""Of a turn, before anything counts; one call at least."""
LOOK_S = 0.005
"""How long it is watched whether this process computes while nobody asked for anything: more than a tick of the kernel's
clock, at which it learns what threads on other cores have used."""
QUIET_LOOKS = 2
"""In a row: another program may have had the core of who spins."""
IDLE_SHARE = 0.1
"""Of one core, below which nobody spins."""
LONGEST_WAIT_S = 0.2
LINGERINGS = 3
OVERHEAD_TURNS = 7
LEAST_SHARE = 0.05
"""Of a call's time that is work at the least: an overhead cannot make a call free."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """Something that multiplies.

    * `name`: who; `form`: which of its ways, "" where it has one; `bits` of its stored weights.
    * `run`: one call. `results`: the outputs of such a call, one array for each product.
    * `overhead_s`: of a call without work; `lingers_s`: for which its threads compute after a call.
    """

    name: str
    bits: int
    run: Callable[[], Any]
    results: Callable[[], list[NDArray[np.float32]]]
    form: str = ""
    overhead_s: float = 0.0
    lingers_s: float = 0.0


def lingering_of(run: Callable[[], Any]) -> float:
    """Seconds for which this process goes on computing after a call, the most of LINGERINGS times; 0 where it does not."""
    longest = 0.0
    for _ in range(LINGERINGS):
        run()
        start = now = last_busy = time.perf_counter()
        quiet = 0
        while quiet < QUIET_LOOKS and now - start < LONGEST_WAIT_S:
            looked, used = now, time.process_time()
            time.sleep(LOOK_S)
            now = time.perf_counter()
            is_quiet = time.process_time() - used < IDLE_SHARE * (now - looked)
            quiet = quiet + 1 if is_quiet else 0
            last_busy = last_busy if is_quiet else now
        longest = max(longest, last_busy - start)
    return longest


def turn(run: Callable[[], Any], *, turn_s: float = TURN_S, warm_s: float = WARM_S) -> float:
    """Seconds of a call: the median of as many as `turn_s` holds, one at least, behind one or more that do not count."""
    clock = time.perf_counter
    end = clock() + warm_s
    run()
    while clock() < end:
        run()
    seconds: list[float] = []
    end = clock() + turn_s
    while not seconds or clock() < end:
        start = clock()
        run()
        seconds.append(clock() - start)
    return float(np.median(seconds))


def take_turns(
    candidates: Sequence[Candidate],
    *,
    rounds: int,
    turn_s: float = TURN_S,
    progress: Callable[[], None] | None = None,
) -> NDArray[np.float64]:
    """Seconds (rounds, candidates) of a call's work, the overhead taken off."""
    random = np.random.default_rng(ORDER_SEED)
    seconds = np.empty((rounds, len(candidates)))
    for row in seconds:
        for index in random.permutation(len(candidates)):
            row[index] = work_of(turn(candidates[index].run, turn_s=turn_s), candidates[index].overhead_s)
            time.sleep(candidates[index].lingers_s)
        if progress:
            progress()
    return seconds


def work_of(call_s: float, overhead_s: float) -> float:
    """What is left of a call without its overhead; LEAST_SHARE of it where noise would leave less.

    >>> work_of(10.0, 4.0), work_of(4.0, 5.0)
    (6.0, 0.2)
    """
    return max(call_s - overhead_s, LEAST_SHARE * call_s)


def overhead_of(candidate: Candidate) -> float:
    """Seconds of a call of `candidate`, which has next to no work: the least of several turns."""
    return min(turn(candidate.run) for _ in range(OVERHEAD_TURNS))


def fastest(candidates: Sequence[Candidate], *, turns: int = 3, turn_s: float = TURN_S) -> Candidate:
    """The candidate with the least median work; those three times slower at a first call have no turn."""
    first = [work_of(_first_call(each.run), each.overhead_s) for each in candidates]
    near = [each for each, seconds in zip(candidates, first, strict=True) if seconds <= 3 * min(first)]
    if len(near) == 1:
        return near[0]
    seconds = take_turns(near, rounds=turns, turn_s=turn_s)
    return near[int(np.argmin(np.median(seconds, axis=0)))]


def _first_call(run: Callable[[], Any]) -> float:
    """Seconds of a call, the least of those that WARM_S holds: its weights may have to come into the cache."""
    seconds: list[float] = []
    end = time.perf_counter() + WARM_S
    while not seconds or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def error_of(result: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Root mean square of the difference, in that of `expected`; infinite where shapes differ or one is not finite."""
    if result.shape != expected.shape or not np.isfinite(result).all():
        return float("inf")
    difference = result.astype(np.float64) - expected
    return float(np.sqrt(np.mean(difference**2) / np.mean(expected.astype(np.float64) ** 2)))
