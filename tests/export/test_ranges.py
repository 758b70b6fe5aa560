"""Ranges of all values, by each observer; what calibration refuses."""

from __future__ import annotations

import numpy as np
import pytest
from tests.runtime.small_programs import program_of

from subtone.export.ranges import (
    EMA_MOMENTUM,
    Ema,
    LeastSquares,
    MinMax,
    Percentile,
    Range,
    observe,
    observer_of,
)
from subtone.program import Relu, Scale

F32 = np.float32


def seen_by(observer, *examples: np.ndarray) -> Range:
    for example in examples:
        observer.see(example.astype(F32))
    return observer.range()


def test_the_lowest_and_the_highest_of_all() -> None:
    assert seen_by(MinMax(), np.array([[1, 2]]), np.array([[-3, 0]])) == Range(-3, 2)


def test_an_exponential_mean_begins_with_the_first_example() -> None:
    first, second = np.array([[-2, 4]]), np.array([[-4, 0]])
    assert seen_by(Ema(), first) == Range(-2, 4)
    share = 1 - EMA_MOMENTUM
    assert seen_by(Ema(), first, second) == pytest.approx((-2 - 2 * share, 4 - 4 * share))


@pytest.mark.parametrize("percent", [60, 99, 99.9, 100])
def test_a_percentile_is_above_that_of_the_sorted_magnitudes_by_less_than_two_bins(percent: float) -> None:
    rng = np.random.default_rng(1)
    examples = [rng.normal(size=(200, 5)) * scale for scale in (1, 0.1, 20, 3)]  # the span doubles on the way
    found = seen_by(Percentile(percent), *examples)
    magnitudes = np.sort(np.abs(np.concatenate(examples).astype(F32)).reshape(-1))
    exact = magnitudes[int(np.ceil(percent / 100 * len(magnitudes))) - 1]
    assert exact <= found.high <= exact + magnitudes[-1] / 1024
    assert found.low == -found.high


@pytest.mark.parametrize("is_signed", [True, False])
def test_no_other_range_has_a_smaller_squared_error(is_signed: bool) -> None:
    rng = np.random.default_rng(2)
    values = rng.laplace(size=(4000, 5)).astype(F32)
    values = values if is_signed else np.abs(values)
    found = seen_by(LeastSquares(bits=4, unsigned=True), values)
    limit = 7 if is_signed else 15

    def error(end: float) -> float:
        step = end / limit
        levels = np.clip(np.floor(values / step + 0.5), -limit, limit)
        return float(((levels * step - values) ** 2).mean())

    ends = np.abs(values).max() * np.linspace(0.05, 1, 96)
    assert error(found.high) <= 1.02 * min(
        map(error, ends)
    )  # what is expected of rounding is not what it does
    assert found.high < 0.7 * np.abs(values).max()
    assert found.low == (-found.high if is_signed else 0)


def test_what_is_never_below_0_has_no_lower_end() -> None:
    assert seen_by(Percentile(99), np.abs(np.random.default_rng(0).normal(size=(50, 2)))).low == 0


def test_every_value_of_a_program_is_seen_and_whole_examples_only() -> None:
    program = program_of(
        Scale(input="x", output="a", factor=-2.0), Relu(input="a", output="y"), width_in=2, width_out=2
    )
    examples = [np.array([[1, -3]], F32), np.empty((0, 2), F32), np.array([[2, 2], [0, 1]], F32)]
    told: list[int] = []
    ranges = observe(program, {}, examples, new_observer=observer_of("minmax"), progress=told.append)
    assert ranges == {"x": Range(-3, 2), "a": Range(-4, 6), "y": Range(0, 6)}
    assert told == [1, 2, 3]


@pytest.mark.parametrize(
    ("examples", "complaint"),
    [
        ([], "calibration has no example with a frame; give at least one"),
        ([np.empty((0, 2), F32)], "calibration has no example with a frame"),
        (
            [np.zeros((3, 2), F32)],
            "calibration features are all 0; give features of sound, or synthetic ones",
        ),
        ([np.ones((3, 2), F32), np.full((3, 2), np.nan, F32)], "calibration example 1 holds NaN or infinity"),
    ],
)
def test_what_says_nothing_of_ranges_is_refused(examples: list, complaint: str) -> None:
    program = program_of(Relu(input="x", output="y"), width_in=2, width_out=2)
    with pytest.raises(ValueError, match=complaint):
        observe(program, {}, examples)


@pytest.mark.parametrize("calibration", ["minmax", "ema", "mse"])
def test_a_value_that_leaves_the_floats_is_named(calibration) -> None:
    program = program_of(Scale(input="x", output="y", factor=2.0**126), width_in=2, width_out=2)
    examples = [np.ones((3, 2), F32), np.full((3, 2), 1e3, F32)]
    with pytest.raises(
        ValueError, match="the value y reaches NaN or infinity on calibration example 1; give"
    ):
        observe(program, {}, examples, new_observer=observer_of(calibration))
