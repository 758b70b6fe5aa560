"""The NumPy definitions equal loops over single numbers, to the last bit."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from tests.reference import runtime_ops as reference
from tests.runtime.definitions import result
from tests.runtime.small_programs import GRIDS, features_of, packed_weight

from subtone.program import SAME, Add, Affine, Clip, Conv1d, Relu
from subtone.qtensor import QTensor
from subtone.runtime.products import quantized_product


def assert_same_bits(got: np.ndarray, expected: np.ndarray) -> None:
    assert got.dtype == expected.dtype == np.float32
    assert got.shape == expected.shape
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("grid", GRIDS)
def test_an_integer_product_is_the_loop_of_the_reference(bits, grid):
    rng = np.random.default_rng(bits)
    weight = packed_weight(rng, (5, 12), bits=bits, grid=grid, groups=3)
    features = features_of(rng, 6, 12)
    for activation_bits in (2, 4, 8):
        got = quantized_product(features, weight, activation_bits)
        assert_same_bits(got, reference.integer_product(features, weight, activation_bits))


@pytest.mark.parametrize(("frames", "inputs", "outputs"), [(0, 3, 2), (1, 1, 1), (2, 1, 3), (3, 2, 1)])
def test_an_integer_product_of_one_row_column_or_no_frame_is_defined(frames, inputs, outputs):
    rng = np.random.default_rng(0)
    weight = packed_weight(rng, (outputs, inputs), bits=8, grid="asymmetric")
    features = features_of(rng, frames, inputs)
    got = quantized_product(features, weight, 8)
    assert_same_bits(got, reference.integer_product(features, weight, 8))


def test_the_widest_product_of_the_outermost_levels_is_exact():
    # docs/numerics.md, section 4: 128 * 127 * 65535 < 2**30. Scale 1 and levels -128; x levels 127.
    one = np.ones((1, 1), np.float32)
    weight = QTensor(
        codes=np.zeros((1, 65535), np.uint8), shape=(1, 65535), scale=one, zero_point=128 * one, bits=8
    )
    features = np.full((1, 65535), 127.0, np.float32)  # absmax 127: frame scale 1
    got = quantized_product(features, weight, 8)
    assert got.tolist() == [[float(np.float32(-128 * 127 * 65535))]]


@pytest.mark.parametrize("groups", [1, 2, 4], ids=["dense", "in two groups", "depthwise"])
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "padding"),
    [(1, 1, 1, 0), (1, 2, 1, 3), (3, 1, 1, 1), (3, 2, 1, 0), (4, 1, 2, 9), (5, 3, 3, 2)],
)
def test_a_float_convolution_is_the_loop_of_the_reference(kernel, stride, dilation, padding, groups):
    rng = np.random.default_rng(kernel)
    weight = rng.normal(size=(4, 4 // groups, kernel)).astype(np.float32)
    op = Conv1d(
        input="x", output="y", weight="w", kernel=kernel, stride=stride, dilation=dilation, padding=padding,
        groups=groups,
    )  # fmt: skip
    for frames, behind in itertools.product((0, 1, 2, 7), (SAME, 0, 2)):
        features = features_of(rng, frames, 4)
        one_sided = dataclasses.replace(op, padding_behind=behind)
        got = result(one_sided, {"x": features}, {"w": weight})
        assert_same_bits(got, reference.float_convolution(features, weight, one_sided))


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("gain", "bias"), [("", ""), ("g", ""), ("", "b"), ("g", "b")])
def test_gain_bias_and_relu_follow_a_convolution_in_that_order(gain, bias, relu):
    rng = np.random.default_rng(5)
    features = features_of(rng, 4, 3)
    constants = {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in (("w", (2, 3)), ("g", (2,)), ("b", (2,)))
    }
    op = Conv1d(input="x", output="y", weight="w", gain=gain, bias=bias, relu=relu)
    expected = reference.finish(
        reference.float_convolution(features, constants["w"], op),
        constants.get(gain),
        constants.get(bias),
        relu=relu,
    )
    assert_same_bits(result(op, {"x": features}, constants), expected)


def test_a_packed_weight_in_a_float_convolution_is_decoded_first():
    rng = np.random.default_rng(6)
    weight = packed_weight(rng, (4, 1, 3), bits=4, grid="symmetric")
    features = features_of(rng, 5, 4)
    op = Conv1d(input="x", output="y", weight="w", kernel=3, padding=1, groups=4)
    got = result(op, {"x": features}, {"w": weight})
    assert_same_bits(got, reference.float_convolution(features, weight.dequantize(), op))


@pytest.mark.parametrize("relu", [False, True])
def test_affine_and_add_round_every_step(relu):
    rng = np.random.default_rng(7)
    left, right = features_of(rng, 5, 3), features_of(rng, 5, 3)
    gain, bias = rng.normal(size=(2, 3)).astype(np.float32)
    values, constants = {"l": left, "r": right}, {"g": gain, "b": bias}
    affine = result(Affine(input="l", output="y", gain="g", bias="b", relu=relu), values, constants)
    assert_same_bits(affine, reference.finish(left, gain, bias, relu=relu))
    total = result(Add(left="l", right="r", output="y", relu=relu), values, constants)
    for t, n in np.ndindex(left.shape):
        value = left[t, n] + right[t, n]
        assert total[t, n] == (value if not relu or value > 0 else 0)


def test_relu_turns_negative_zero_into_zero():
    values = {"x": np.array([[-1.0, -0.0, 0.0, 2.0]], np.float32)}
    got = result(Relu(input="x", output="y"), values, {})
    assert_same_bits(got, np.array([[0.0, 0.0, 0.0, 2.0]], np.float32))


@pytest.mark.parametrize(("low", "high"), [(-0.5, 0.5), (0.0, 6.0), (-3.0, -0.0), (-0.0, 1e-40)])
def test_a_clip_is_the_loop_of_the_reference(low, high):
    features = features_of(np.random.default_rng(8), 9, 7)
    features[0, :5] = np.float32([low, high, 0.0, -0.0, 1e-41])
    low, high = (float(np.float32(end)) for end in (low, high))
    got = result(Clip(input="x", output="y", low=low, high=high), {"x": features}, {})
    assert_same_bits(got, reference.clip(features, np.float32(low), np.float32(high)))
    assert low <= got.min() <= got.max() <= high


def test_a_clip_of_two_zeros_takes_the_ends_sign_and_of_no_number_its_lower_end():
    values = {"x": np.array([[-0.0, 0.0, np.nan, np.inf, -np.inf]], np.float32)}
    got = result(Clip(input="x", output="y", low=0.0, high=2.0), values, {})
    assert_same_bits(got, np.array([[0.0, 0.0, 0.0, 2.0, 0.0]], np.float32))
    got = result(Clip(input="x", output="y", low=-1.0, high=-0.0), values, {})
    assert_same_bits(got, np.array([[-0.0, -0.0, -1.0, -0.0, -1.0]], np.float32))
