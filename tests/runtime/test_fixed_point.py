"""Integer functions: bits as the loop of the reference, errors as the page states over every input, edges."""

from __future__ import annotations

import ast
import inspect
import math
import zlib
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.reference import fixed_point as reference

from subtone.numerics import requantize_total
from subtone.program import FUNCTIONS as NAMES
from subtone.runtime import fixed_point, fixed_point_rows

WORD = np.arange(-(2**15), 2**15)
"""Every input of 16 bits."""
FRACTION_BITS = range(17)
LONG_EDGES = [-(2**31), -(2**31) + 1, -(2**16), -1, 0, 1, 2**16, 2**31 - 1]
REFERENCES = {
    "sigmoid": reference.sigmoid,
    "tanh": reference.tanh,
    "silu": reference.silu,
    "gelu": reference.gelu,
    "gelu_tanh": reference.gelu,
    "exp": reference.exp,
}
OF_16_BITS = ("silu", "gelu", "gelu_tanh")


def to_exp(fraction_bits: int) -> np.ndarray:
    """Every input at which exp is not constant, and some beyond."""
    return np.arange(-23 << fraction_bits, 1)


def true_sigmoid(x: np.ndarray) -> np.ndarray:
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, e) / (1 + e)


def test_functions_are_those_of_a_program():
    assert set(fixed_point.FUNCTIONS) == set(NAMES)
    assert set(REFERENCES) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fraction_bits", [0, 1, 4, 8, 12, 16])
def test_every_step_is_that_of_the_reference_and_none_overflows(name, fraction_bits):
    rng = np.random.default_rng(fraction_bits)
    inside = rng.integers(-(24 << fraction_bits), 24 << fraction_bits, 300)
    x = np.concatenate([np.clip(inside, -(2**15), 2**15 - 1), [-(2**15), 2**15 - 1, -1, 0, 1]])
    if name not in OF_16_BITS:
        x = np.concatenate([x, inside, LONG_EDGES])
    result = fixed_point.FUNCTIONS[name](x, fraction_bits)
    assert result.dtype == np.int32
    assert result.tolist() == [REFERENCES[name](value, fraction_bits) for value in x.tolist()]


@settings(deadline=None, max_examples=200)
@given(value=st.integers(-(2**31), 2**31 - 1), fraction_bits=st.integers(0, 16))
def test_every_step_is_that_of_the_reference_for_any_number(value, fraction_bits):
    for name, function in fixed_point.FUNCTIONS.items():
        x = value >> 16 if name in OF_16_BITS else value
        assert int(function(np.array([x]), fraction_bits)[0]) == REFERENCES[name](x, fraction_bits), name


@pytest.mark.parametrize(
    "module", [fixed_point, fixed_point_rows, reference], ids=lambda module: module.__name__
)
def test_no_floating_point_number_is_written_nor_made_by_a_division(module):
    tree = ast.parse(inspect.getsource(module))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Div)]
    assert not [node for node in ast.walk(tree) if isinstance(getattr(node, "value", None), float)]
    names = {getattr(node, "attr", getattr(node, "id", "")) for node in ast.walk(tree)}
    assert not {name for name in names if "float" in name or name in ("mean", "true_divide", "sqrt", "frexp")}


# exp -------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction_bits", FRACTION_BITS)
def test_exp_is_within_3_4e_6_of_its_value_and_never_rises(fraction_bits):
    x = to_exp(fraction_bits)
    value = fixed_point.exp(x, fraction_bits)
    truth = np.exp(x / 2**fraction_bits) * 2**30
    assert (np.abs(value - truth) <= 0.5 + 3.4e-6 * truth).all()
    assert (np.diff(value) >= 0).all()
    assert value[-1] == 2**30
    assert not value[x <= -22 << fraction_bits].any()
    assert value[x > -21 << fraction_bits].all()


def test_exp_is_0_far_below_and_1_above():
    assert fixed_point.exp(np.array([-(2**31), 1, 2**31 - 1]), 16).tolist() == [0, 2**30, 2**30]


def test_exps_polynomial_is_the_best_of_degree_4_with_its_ends():
    """Three coefficients are free once p(0) = 1 and p(1) = 1/2; where the relative error takes its largest magnitude four
    times under alternating signs, no others do better (Chebyshev; de la Vallee Poussin bounds what is left to gain)."""
    assert sum(fixed_point.POWERS) == -(2**29)
    r = np.linspace(0, 1, 100_001)
    power = np.polyval([*fixed_point.POWERS[::-1], 2**30], r) / 2**30
    error = power * 2**r - 1
    signs = np.sign(np.where(np.abs(error) > 1e-8, error, 0))
    parts = np.split(error, np.flatnonzero(np.diff(signs[signs != 0])) + 1 + np.flatnonzero(signs)[0])
    peaks = [part[np.abs(part).argmax()] for part in parts]
    assert len(peaks) == 4
    assert (np.sign(peaks[1:]) == -np.sign(peaks[:-1])).all()
    assert min(map(abs, peaks)) > 0.998 * max(map(abs, peaks))
    assert 3.33e-6 < max(map(abs, peaks)) < 3.35e-6


def ibert_exp(x: np.ndarray) -> np.ndarray:
    """I-BERT's polynomial of degree 2, in float64."""
    z = np.floor(-x / math.log(2))
    p = x + z * math.log(2)
    return (0.35815147 * p * p + 0.96963238 * p + 1) / 2**z


def test_the_papers_polynomial_of_degree_2_is_500_times_as_far_off():
    x = np.linspace(-math.log(2), 0, 100_001)
    assert 1.90e-3 < np.abs(ibert_exp(x) - np.exp(x)).max() < 1.92e-3
    x = WORD / 2**12
    e = ibert_exp(-np.abs(x))
    assert 7.6e-4 < np.abs(np.where(x >= 0, 1, e) / (1 + e) - true_sigmoid(x)).max() < 7.8e-4
    ours = fixed_point.sigmoid(WORD, 12) / 2**15
    assert np.abs(ours - true_sigmoid(x)).max() < 2.4e-5


# What is made of it ----------------------------------------------------------------------


@pytest.mark.parametrize("fraction_bits", FRACTION_BITS)
def test_sigmoid_is_within_0_78_of_a_unit_and_rises(fraction_bits):
    value = fixed_point.sigmoid(WORD, fraction_bits)
    assert np.abs(value - true_sigmoid(WORD / 2**fraction_bits) * 2**15).max() <= 0.78
    assert (np.diff(value) >= 0).all()
    assert (value[1:] + value[:0:-1] == 2**15).all()  # x and -x
    assert fixed_point.sigmoid(np.array([-(2**31), 2**31 - 1]), fraction_bits).tolist() == [0, 2**15]


@pytest.mark.parametrize("fraction_bits", FRACTION_BITS)
def test_tanh_is_within_1_06_of_a_unit_and_odd_and_rises(fraction_bits):
    value = fixed_point.tanh(WORD, fraction_bits)
    assert np.abs(value - np.tanh(WORD / 2**fraction_bits) * 2**15).max() <= 1.06
    assert (np.diff(value) >= 0).all()
    assert (value[1:] == -value[:0:-1]).all()
    assert fixed_point.tanh(np.array([-(2**31), 2**31 - 1]), fraction_bits).tolist() == [-(2**15), 2**15]


@pytest.mark.parametrize("fraction_bits", FRACTION_BITS)
def test_silu_is_within_0_78_x_of_a_unit(fraction_bits):
    truth = WORD * true_sigmoid(WORD / 2**fraction_bits) * 2**15
    assert (np.abs(fixed_point.silu(WORD, fraction_bits) - truth) <= 0.78 * np.abs(WORD) + 1e-6).all()


@pytest.mark.parametrize("fraction_bits", FRACTION_BITS)
def test_gelu_is_within_0_9_x_of_a_unit_of_its_form_by_tanh(fraction_bits):
    x = WORD / 2**fraction_bits
    truth = WORD * true_sigmoid(math.sqrt(8 / math.pi) * (x + 0.044715 * x**3)) * 2**15
    assert (np.abs(fixed_point.gelu(WORD, fraction_bits) - truth) <= 0.9 * np.abs(WORD) + 1e-6).all()


def test_gelu_is_within_5_3e_4_of_its_form_by_erf_and_the_papers_within_1_9e_2():
    x = WORD[::3] / 2**12
    truth = x * 0.5 * (1 + np.array([math.erf(value / math.sqrt(2)) for value in x]))
    assert np.abs(fixed_point.gelu(WORD[::3], 12) / 2**27 - truth).max() < 5.3e-4
    distance = np.minimum(np.abs(x) / math.sqrt(2), 1.769)
    erf = np.sign(x) * (-0.2888 * (distance - 1.769) ** 2 + 1)
    assert 1.8e-2 < np.abs(x * 0.5 * (1 + erf) - truth).max() < 1.9e-2


# Whole numbers ---------------------------------------------------------------------------


@given(
    total=st.integers(-(2**62), 2**62),
    shift=st.integers(1, 62),
    ends=st.tuples(st.integers(-(2**31), 2**31 - 1), st.integers(-(2**31), 2**31 - 1)).map(sorted),
)
@example(total=2**62, shift=62, ends=(-127, 127))
@example(total=-(2**62), shift=1, ends=(-(2**31), 2**31 - 1))
def test_a_rescaled_total_is_the_exact_quotient_rounded_half_up(total, shift, ends):
    expected = min(max(math.floor(Fraction(total, 2**shift) + Fraction(1, 2)), ends[0]), ends[1])
    assert requantize_total(np.array([total]), shift, *ends).tolist() == [expected]
    assert reference.rescale(total, shift, *ends) == expected


def test_a_square_root_is_the_exact_floor():
    roots = np.random.default_rng(0).integers(1, 2**31, 5_000, np.int64) >> np.arange(5_000) % 31
    roots = np.concatenate([roots[roots > 0], [1, 2, 3, 2**30, 2**31 - 1]])
    squares = roots * roots
    values = np.concatenate([np.arange(2**16), squares - 1, squares, squares + roots, [2**62 - 1]])
    assert fixed_point.floor_sqrt(values).tolist() == [math.isqrt(value) for value in values.tolist()]


@given(value=st.integers(0, 2**62 - 1))
def test_a_square_root_is_the_exact_floor_for_any_number(value):
    assert int(fixed_point.floor_sqrt(value)) == math.isqrt(value) == reference.floor_sqrt(value)


def test_five_steps_of_newton_are_too_few_for_a_square_root(monkeypatch):
    """Of one less than a square little above 2^60, where the start is nearly twice the root."""
    value = 1153086974158627875
    assert int(fixed_point.floor_sqrt(value)) == math.isqrt(value)
    monkeypatch.setattr(fixed_point, "SQRT_STEPS", 5)
    assert int(fixed_point.floor_sqrt(value)) == math.isqrt(value) + 1


def test_bit_lengths_are_pythons():
    powers = 2 ** np.arange(62, dtype=np.int64)
    values = np.concatenate([np.arange(300), powers, powers - 1, [2**62 - 1]])
    assert fixed_point.bit_length(values).tolist() == [value.bit_length() for value in values.tolist()]


# The same bits for ever ------------------------------------------------------------------

CHECKSUMS = {
    "exp": {4: 0xEAF7738E, 8: 0xE8C9257B, 12: 0x3DE128E3, 16: 0x1E9A6C8C},
    "sigmoid": {4: 0xBE862F14, 8: 0x938F0C90, 12: 0x2763CF65, 16: 0xFE5D9F0B},
    "tanh": {4: 0x6670614D, 8: 0x08637540, 12: 0xD50B6AEA, 16: 0x237F1A2D},
    "silu": {4: 0x78910349, 8: 0xA9F8C9D1, 12: 0x27C47CF9, 16: 0x8F4361F1},
    "gelu": {4: 0x50B968CB, 8: 0x1CF8AB19, 12: 0xA054F08D, 16: 0x4F0A5CD5},
}
"""CRC-32 of the results, little-endian int32, for every input of 16 bits at each number of fraction bits (exp: of those
up to 0); as first written, when the bounds above held."""


@pytest.mark.parametrize("name", CHECKSUMS)
def test_no_bit_has_changed(name):
    x = WORD[WORD <= 0] if name == "exp" else WORD
    found = {
        bits: zlib.crc32(fixed_point.FUNCTIONS[name](x, bits).astype("<i4").tobytes())
        for bits in CHECKSUMS[name]
    }
    assert found == CHECKSUMS[name]


# At the door -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fraction_bits", [-1, 17])
def test_fraction_bits_that_do_not_fit_are_refused(name, fraction_bits):
    message = rf"fraction_bits={fraction_bits} of an integer function must lie in 0\.\.16"
    with pytest.raises(ValueError, match=message):
        fixed_point.FUNCTIONS[name](np.zeros(1, np.int32), fraction_bits)


@pytest.mark.parametrize("name", OF_16_BITS)
def test_more_than_16_bits_are_refused(name):
    with pytest.raises(ValueError, match=r"x=-32769\.\.0 is wider than 16 bits; rescale it"):
        fixed_point.FUNCTIONS[name](np.array([0, -32769]), 8)


@pytest.mark.parametrize("shift", [0, 63])
def test_a_shift_that_no_64_bits_hold_is_refused(shift):
    with pytest.raises(ValueError, match=f"shift={shift} of a requantization must lie in 1..62"):
        requantize_total(np.zeros(1, np.int64), shift, -127, 127)


@pytest.mark.parametrize(("low", "high"), [(1, 0), (0, 2**31)])
def test_a_range_that_is_none_is_refused(low, high):
    with pytest.raises(ValueError, match=f"low={low}, high={high} are no range of 32-bit levels"):
        requantize_total(np.zeros(1, np.int64), 8, low, high)


@pytest.mark.parametrize("value", [-1, 2**62])
def test_a_square_root_beyond_62_bits_is_refused(value):
    with pytest.raises(ValueError, match=rf"values={value}\.\.{value} of a square root must lie in 0"):
        fixed_point.floor_sqrt(np.array([value]))
