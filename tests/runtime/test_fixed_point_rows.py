"""Softmax, norms and sinusoids in integers: bits as the loop of the reference, errors as the page states, edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tests.reference import fixed_point as reference

from subtone.runtime import fixed_point_rows
from subtone.runtime.fixed_point import Integers
from subtone.runtime.sequence_ops import rotation, sinusoid_table

LONGEST = 2**15
WIDTHS = [1, 2, 3, 16, 17, 176, 512]


def rows_of(seed: int, width: int, deviation: float, count: int = 4) -> np.ndarray:
    values = np.random.default_rng(seed).normal(50, deviation, (count, width))
    return np.clip(np.round(values), -(2**15), 2**15 - 1).astype(np.int32)


# softmax ---------------------------------------------------------------------------------


def softmax_by_loop(scores: np.ndarray, fraction_bits: int, is_seen: np.ndarray) -> list[list[int]]:
    rows = zip(scores.tolist(), is_seen.tolist(), strict=True)
    return [reference.softmax_weights(row, fraction_bits, seen) for row, seen in rows]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("fraction_bits", [0, 8, 16])
def test_weights_are_those_of_the_reference(width, fraction_bits):
    rng = np.random.default_rng(width)
    scores = rng.integers(-(30 << fraction_bits), 30 << fraction_bits, (5, width))
    scores[0, 0], scores[1, -1] = -(2**31), 2**31 - 1
    is_seen = rng.random((5, width)) < 0.7
    is_seen[2] = False
    weights = fixed_point_rows.softmax_weights(scores, fraction_bits, is_seen=is_seen)
    assert weights.dtype == np.int32
    assert weights.tolist() == softmax_by_loop(scores, fraction_bits, is_seen)


@settings(deadline=None, max_examples=60)
@given(
    scores=hnp.arrays(np.int32, (2, 9), elements=st.integers(-(2**31), 2**31 - 1)),
    is_seen=hnp.arrays(np.bool_, (2, 9)),
    fraction_bits=st.integers(0, 16),
)
def test_weights_are_those_of_the_reference_for_any_scores(scores, is_seen, fraction_bits):
    weights = fixed_point_rows.softmax_weights(scores, fraction_bits, is_seen=is_seen)
    assert weights.tolist() == softmax_by_loop(scores, fraction_bits, is_seen)
    assert not weights[~is_seen].any()
    assert (np.abs(weights.sum(axis=1) - 2**22) <= 0.502 * is_seen.sum(axis=1))[is_seen.any(axis=1)].all()


@pytest.mark.parametrize("width", [1, 2, 3, 100, 3000, LONGEST])
@pytest.mark.parametrize("spread", [0, 2, 2000])
def test_each_weight_is_within_its_bound_and_their_sum_too(width, spread):
    scores = np.random.default_rng(width).normal(0, spread, (3, width)).round().astype(np.int32)
    weights = fixed_point_rows.softmax_weights(scores, 8)
    power = np.exp((scores - scores.max(axis=1, keepdims=True)) / 2**8)
    truth = power / power.sum(axis=1, keepdims=True) * 2**22
    assert (np.abs(weights - truth) <= 0.51 + truth * (7e-6 + 3.1e-5 * width / 2**15)).all()
    assert (np.abs(weights.sum(axis=1) - 2**22) <= 0.502 * width).all()


def test_the_longest_row_of_the_reference_overflows_nowhere():
    """All scores equal make the largest sum, one score far above the largest factor."""
    for scores in ([7] * LONGEST, [2**31 - 1] + [-(2**31)] * (LONGEST - 1)):
        expected = reference.softmax_weights(scores, 16, [True] * LONGEST)
        assert fixed_point_rows.softmax_weights(np.array([scores]), 16).tolist() == [expected]
    assert expected == [2**22] + [0] * (LONGEST - 1)


def test_a_row_of_equal_scores_has_equal_weights_where_i_berts_factor_loses_two_percent():
    """floor(2^32 / sum) of exponentials of 16 bits has 6 bits left when 1500 are equal."""
    equal = np.zeros((1, 1500), np.int32)
    assert set(fixed_point_rows.softmax_weights(equal, 8).ravel().tolist()) == {round(2**22 / 1500)}
    assert 0.01 < 1 - (2**16 * (2**32 // (1500 * 2**16))) * 1500 / 2**32 < 0.02


def test_what_is_not_seen_counts_nothing_and_a_constant_in_all_scores_neither():
    scores = np.random.default_rng(0).integers(-2000, 2000, (3, 40))
    is_seen = np.arange(40) < 25
    expected = fixed_point_rows.softmax_weights(scores[:, :25], 8)
    loud = np.where(is_seen, scores, 2**31 - 1)
    for heard in (scores, loud, loud - 12345):
        weights = fixed_point_rows.softmax_weights(heard, 8, is_seen=is_seen)
        assert np.array_equal(weights[:, :25], expected)
        assert not weights[:, 25:].any()


def test_a_higher_score_never_weighs_less():
    scores = np.sort(np.random.default_rng(1).integers(-3000, 3000, (4, 200)), axis=1)
    assert (np.diff(fixed_point_rows.softmax_weights(scores, 8), axis=1) >= 0).all()


def test_rows_of_which_nothing_is_seen_and_rows_of_no_columns_have_no_weight():
    nothing = fixed_point_rows.softmax_weights(np.full((2, 3), 9), 8, is_seen=np.zeros(3, np.bool_))
    assert nothing.tolist() == [[0, 0, 0]] * 2
    assert fixed_point_rows.softmax_weights(np.zeros((2, 0), np.int32), 8).shape == (2, 0)


# norms -----------------------------------------------------------------------------------


def real_norm(x: np.ndarray, epsilon: int) -> np.ndarray:
    """(x - mean) / sqrt(variance + epsilon / n^2): whole numbers in Python's integers up to the root."""
    rows = []
    for row in x.tolist():
        n, total = len(row), sum(row)
        variance = n * sum(value * value for value in row) - total * total + epsilon
        rows.append([(n * value - total) / math.sqrt(variance or 1) for value in row])
    return np.array(rows)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("deviation", [0, 0.6, 30, 5000, 1e6])
def test_norms_are_those_of_the_reference_and_within_their_bound(width, deviation):
    x = rows_of(width, width, deviation)
    for epsilon in (0, 1, 12345, 2**61):
        y = fixed_point_rows.normalize(x, epsilon=epsilon)
        assert y.dtype == np.int32
        assert y.tolist() == [reference.normalize(row, epsilon) for row in x.tolist()]
        truth = real_norm(x, epsilon)
        assert (np.abs(y / 2**22 - truth) <= 2**-23 + 2**-29 * np.abs(truth)).all()


@settings(deadline=None, max_examples=100)
@given(
    x=hnp.arrays(np.int32, (1, 7), elements=st.integers(-(2**15), 2**15 - 1)), epsilon=st.integers(0, 2**61)
)
def test_norms_are_those_of_the_reference_for_any_row(x, epsilon):
    assert fixed_point_rows.normalize(x, epsilon=epsilon).tolist() == [
        reference.normalize(x[0].tolist(), epsilon)
    ]


@pytest.mark.parametrize("lonely", [-(2**15), 2**15 - 1])
@pytest.mark.parametrize("rest", [-(2**15), 2**15 - 1, 0])
def test_the_longest_row_of_a_norm_overflows_nowhere(lonely, rest):
    """One number apart from all others is the farthest that any can be: sqrt(n - 1) deviations."""
    row = [lonely] + [rest] * (LONGEST - 1)
    y = fixed_point_rows.normalize(np.array([row]))
    assert y[0].tolist() == reference.normalize(row, 0)
    assert abs(int(y[0, 0])) == (0 if lonely == rest else round(math.sqrt(LONGEST - 1) * 2**22))


def test_half_low_half_high_is_the_largest_variance_and_overflows_nowhere():
    row = [-(2**15), 2**15 - 1] * (LONGEST // 2)
    for epsilon in (0, 2**61):
        y = fixed_point_rows.normalize(np.array([row]), epsilon=epsilon)
        assert y.tolist() == [reference.normalize(row, epsilon)]


@settings(deadline=None, max_examples=60)
@given(x=hnp.arrays(np.int32, (2, 12), elements=st.integers(-9000, 9000)), constant=st.integers(-9000, 9000))
def test_a_constant_in_all_columns_and_a_factor_of_two_change_no_bit_of_a_norm(x, constant):
    expected = fixed_point_rows.normalize(x)
    assert np.array_equal(fixed_point_rows.normalize(x + constant), expected)
    assert np.array_equal(fixed_point_rows.normalize(2 * x), expected)
    order = np.random.default_rng(0).permutation(12)
    assert np.array_equal(fixed_point_rows.normalize(x[:, order]), expected[:, order])
    assert np.abs(fixed_point_rows.normalize(-x) + expected).max() <= 1  # ties alone


def affine(width: int, scale: float, shift: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Real gain and bias, and both as `layer_norm` takes them for levels of `scale`."""
    rng = np.random.default_rng(width)
    gain, bias = rng.normal(1, 0.3, width), rng.normal(0, 0.5, width)
    return (
        gain,
        bias,
        np.floor(gain / scale * 2 ** (shift - 22) + 0.5).astype(np.int32),
        np.floor(bias / scale * 2**shift + 0.5).astype(np.int64),
    )


@pytest.mark.parametrize("width", [2, 176, 512])
@pytest.mark.parametrize("deviation", [2, 40, 3000])
def test_layer_norm_is_that_of_the_reference_and_of_real_numbers_to_half_a_level(width, deviation):
    x, shift, scale = rows_of(1, width, deviation), 44, 0.02
    gain, bias, gain_levels, bias_levels = affine(width, scale, shift)
    epsilon = round(width**2 * 1e-5 / 0.01**2)  # x in units of 0.01
    real_epsilon = epsilon * 0.01**2 / width**2
    levels = fixed_point_rows.layer_norm(x, gain_levels, bias_levels, shift=shift, epsilon=epsilon)
    lists = (gain_levels.tolist(), bias_levels.tolist(), shift, epsilon, -127, 127)
    assert levels.tolist() == [reference.layer_norm(row, *lists) for row in x.tolist()]
    real = x * 0.01
    centred = real - real.mean(axis=1, keepdims=True)
    real = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + real_epsilon) * gain + bias
    assert np.abs(levels - np.clip(real / scale, -127, 127)).max() < 0.5 + 1e-3


def test_a_whole_mean_and_a_whole_deviation_as_in_the_paper_cost_more_than_a_quarter_of_a_deviation():
    """I-BERT's norm of what lies within 3 levels of its mean; ours is within 2^-22, at any deviation."""
    x = rows_of(0, 176, 3, count=200).astype(np.int64)
    centred = x - np.floor(x.mean(axis=1, keepdims=True) + 0.5).astype(np.int64)
    deviation = np.sqrt((centred**2).sum(axis=1, keepdims=True) // 176).astype(np.int64)
    error = centred * (2**31 // deviation) / 2**31 - real_norm(x, 0)
    assert np.abs(error).max() > 0.25
    assert np.abs(fixed_point_rows.normalize(x) / 2**22 - real_norm(x, 0)).max() < 2**-22


def test_epsilon_is_not_dropped():
    """Two levels of 0.001 apart: their variance is a tenth of epsilon, which a norm without it would hide."""
    x = np.array([[5, 5, 7, 7]])
    epsilon = 4**2 * 10  # 1e-5 in units of 0.001^2 / n^2
    y = fixed_point_rows.normalize(x, epsilon=epsilon) / 2**22
    assert np.abs(y - [[-1, -1, 1, 1] / np.sqrt(11)]).max() < 2**-22
    assert (fixed_point_rows.normalize(x) == [[-(2**22)] * 2 + [2**22] * 2]).all()


@pytest.mark.parametrize("width", [2, 3, 16, 176])
def test_rounding_epsilon_costs_at_most_a_quarter_over_n_less_1(width):
    """Of a row that is not constant n^2 times the variance is n - 1 or more, so that half a unit of epsilon more changes
    its root by `0.5 / (2 (n - 1))` at most: here a whole one, twice that, in the row that varies least."""
    x = np.zeros((1, width), np.int32)
    x[0, 0] = 1
    first, second = (fixed_point_rows.normalize(x, epsilon=epsilon).astype(np.int64) for epsilon in (0, 1))
    assert (np.abs(first - second) <= np.abs(first) / (2 * (width - 1)) + 2).all()
    assert (first != second).all()


@pytest.mark.parametrize("epsilon", [0, 7])
def test_a_constant_row_gives_the_bias(epsilon):
    _, bias, gain_levels, bias_levels = affine(16, 0.02, 40)
    x = np.full((2, 16), -(2**15), np.int32)
    levels = fixed_point_rows.layer_norm(x, gain_levels, bias_levels, shift=40, epsilon=epsilon)
    assert np.array_equal(levels, np.tile(np.floor(bias / 0.02 + 0.5), (2, 1)))


def test_the_largest_gain_and_bias_overflow_nowhere():
    row = [2**15 - 1] + [-(2**15)] * (LONGEST - 1)
    gain, bias = [1 - 2**31] * LONGEST, [-(2**61)] * LONGEST
    expected = reference.layer_norm(row, gain, bias, 62, 0, -127, 127)
    taken = (np.array([row]), np.array(gain), np.array(bias))
    assert fixed_point_rows.layer_norm(*taken, shift=62).tolist() == [expected]
    assert (expected[0], expected[1]) == (-1, 0)  # -0.83 and -0.496


# sinusoids -------------------------------------------------------------------------------


def fixed_rotation(columns: int) -> Integers:
    return np.floor(rotation(columns) * 2**30 + 0.5).astype(np.int64)


@pytest.mark.parametrize(("num_rows", "columns"), [(1, 2), (2, 4), (70, 16)])
def test_sinusoids_are_those_of_the_reference(num_rows, columns):
    turns = fixed_rotation(columns)
    table = fixed_point_rows.sinusoids(num_rows, turns)
    assert table.dtype == np.int32
    assert table.tolist() == reference.sinusoids(num_rows, turns.tolist())


def test_sinusoids_are_the_float_tables_to_the_nearest_level_but_where_it_lies_between_two():
    table = fixed_point_rows.sinusoids(400, fixed_rotation(144))
    assert np.abs(table - 127 * sinusoid_table(400, 144).astype(np.float64)).max() <= 0.5 + 127 * 3e-6


def test_the_drift_after_2_to_the_15_turns_is_within_its_bound_and_no_level_leaves_the_grid():
    turns = fixed_rotation(16)
    table = fixed_point_rows.sinusoids(LONGEST, turns)
    angles = np.arange(LONGEST)[:, None] * np.array([10000.0 ** (-column / 16) for column in range(0, 16, 2)])
    ahead = table[LONGEST - 1 :: -1].reshape(LONGEST, 8, 2)  # distances ascend from 0
    truth = 127 * np.stack([np.sin(angles), np.cos(angles)], axis=-1)
    assert np.abs(ahead - truth).max() <= 0.5 + 127 * 4.4e-5
    assert np.abs(table).max() == 127
    assert np.array_equal(table[LONGEST - 1 :].reshape(LONGEST, 8, 2), ahead * (-1, 1))
    assert table[:, :2].tolist() == reference.sinusoids(LONGEST, turns[:1].tolist())


# At the door -----------------------------------------------------------------------------


def test_rows_too_long_for_64_bits_are_refused():
    long = np.zeros((1, LONGEST + 1), np.int32)
    with pytest.raises(ValueError, match="scores of width=32769 are longer than 32768; cut the utterance"):
        fixed_point_rows.softmax_weights(long, 8)
    with pytest.raises(ValueError, match="x of width=32769 cannot be normalized in 64 bits; use 1 to 32768"):
        fixed_point_rows.normalize(long)
    with pytest.raises(ValueError, match="x of width=0 cannot be normalized"):
        fixed_point_rows.normalize(long[:, :0])


@pytest.mark.parametrize("num_rows", [0, LONGEST + 1])
def test_a_number_of_rows_that_no_bound_covers_is_refused(num_rows):
    with pytest.raises(ValueError, match=rf"num_rows={num_rows} of sinusoids must lie in 1\.\.32768"):
        fixed_point_rows.sinusoids(num_rows, fixed_rotation(2))


def test_numbers_of_a_norm_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"x=0\.\.32768 is wider than 16 bits"):
        fixed_point_rows.normalize(np.array([[0, 2**15]]))
    for epsilon in (-1, 2**61 + 1):
        with pytest.raises(ValueError, match=rf"epsilon={epsilon} must lie in 0\.\.2\*\*61; give x coarser"):
            fixed_point_rows.normalize(np.zeros((1, 2), np.int32), epsilon=epsilon)


@pytest.mark.parametrize(("field", "value"), [("gain", -(2**31)), ("bias", -(2**61) - 1)])
def test_a_gain_or_bias_that_does_not_fit_is_refused(field, value):
    taken = {"gain": np.ones(1, np.int64), "bias": np.zeros(1, np.int64)} | {field: np.array([value])}
    message = rf"{field}={value}\.\.{value} exceeds \d+ in magnitude; use a smaller shift"
    with pytest.raises(ValueError, match=message):
        fixed_point_rows.layer_norm(np.zeros((1, 1), np.int32), **taken, shift=30)
