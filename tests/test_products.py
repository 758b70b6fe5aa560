"""docs/numerics.md, section 4: what an integer product and a float convolution sum, and in which order."""

from __future__ import annotations

import numpy as np
import pytest
from tests.reference import numerics as reference
from tests.runtime.definitions import result
from tests.runtime.small_programs import GRIDS, features_of, packed_weight

from subtone.program import Conv1d
from subtone.qtensor import QTensor
from subtone.runtime.products import quantized_product

F32 = np.float32


def same_bits(got: np.ndarray, expected: np.ndarray) -> bool:
    return got.dtype == expected.dtype == np.float32 and got.tobytes() == expected.tobytes()


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("grid", GRIDS)
def test_products_follow_the_formula_step_by_step(bits, grid):
    rng = np.random.default_rng(bits)
    weight = packed_weight(rng, (4, 12), bits=bits, grid=grid, groups=3)
    features = features_of(rng, 6, 12)
    gain, bias = rng.normal(size=(2, 4)).astype(F32)
    for activation_bits in (2, 4, 8):
        expected = reference.product(features, weight, activation_bits)
        assert same_bits(quantized_product(features, weight, activation_bits), expected)
    op = Conv1d(input="x", output="y", weight="w", gain="g", bias="b", relu=True, activation_bits=8)
    expected = reference.product(features, weight, 8, gain=gain, bias=bias, relu=True)
    assert same_bits(result(op, {"x": features}, {"w": weight, "g": gain, "b": bias}), expected)


@pytest.mark.parametrize("level", [-128, 127])
@pytest.mark.parametrize("x", [-127, 127])
def test_products_of_extreme_levels_are_exact_65535_wide(level, x):
    assert 128 * 127 * 65535 < 2**30
    codes = np.full((1, 65535), level + 128, np.uint8)
    one = np.ones((1, 1), F32)
    weight = QTensor(codes=codes, shape=(1, 65535), scale=one, zero_point=128 * one, bits=8)
    assert weight.levels().min() == weight.levels().max() == level
    got = quantized_product(np.full((1, 65535), x, F32), weight, 8)  # absmax 127: a frame scale of 1
    assert got.tolist() == [[float(F32(level * x * 65535))]]


@pytest.mark.parametrize(("rest", "expected"), [(1, 2**24), (2, 2**24 + 2), (3, 2**24 + 4)])
def test_products_convert_their_sums_to_the_nearest_even(rest, expected):
    # 1040 products of 127 * 127, then 24 * 127 + 8 * 1 make 2**24; the last column adds `rest`.
    levels = np.array([[127] * 1040 + [24, 8, rest]], np.int16)
    features = np.array([[127] * 1041 + [1, 1]], F32)
    assert int((levels * features.astype(np.int64)).sum()) == 2**24 + rest
    one = np.ones((1, 1), F32)
    codes = (levels + 128).astype(np.uint8)
    weight = QTensor(codes=codes, shape=codes.shape, scale=one, zero_point=128 * one, bits=8)
    assert quantized_product(features, weight, 8).tolist() == [[expected]]


def test_products_take_a_real_zero_point_as_a_second_integer_term():
    # (sum L x - z sum x) * scale with L = code - 8 in (-3, 2), x in (127, 64), z = 2.25 - 8.
    weight = QTensor(
        codes=np.array([[5, 10]], np.uint8),
        shape=(1, 2),
        scale=np.full((1, 1), 0.5, F32),
        zero_point=np.full((1, 1), 2.25, F32),
        bits=4,
    )
    got = quantized_product(np.array([[127, 64]], F32), weight, 8)
    assert got.tolist() == [[0.5 * ((-3 * 127 + 2 * 64) - (2.25 - 8) * (127 + 64))]]
    assert got.tolist() == [[0.5 * ((5 - 2.25) * 127 + (10 - 2.25) * 64)]]


def test_float_convolution_sums_over_taps_and_within_a_tap_over_inputs():
    # Of 2**24, 1, -2**24 and 1 the sum is 1 in this order (2**24 + 1 rounds to 2**24), else not.
    weight = np.array([[[2.0**24, -(2.0**24)], [1.0, 1.0]]], F32)  # (out, in, taps)
    op = Conv1d(input="x", output="y", weight="w", kernel=2)
    assert result(op, {"x": np.ones((2, 2), F32)}, {"w": weight}).tolist() == [[1.0]]
    inputs_outside = ((F32(2**24) + F32(-(2**24))) + F32(1)) + F32(1)
    assert inputs_outside == 2  # what the other order gives


def test_float_convolution_sees_zeros_beyond_both_ends():
    op = Conv1d(input="x", output="y", weight="w", kernel=3, padding=2)
    weight = np.array([[[1.0, 10.0, 100.0]]], F32)
    got = result(op, {"x": np.array([[3.0], [5.0]], F32)}, {"w": weight})
    assert got.ravel().tolist() == [300, 530, 53, 5]
