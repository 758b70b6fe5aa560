"""docs/numerics.md row by row; `test_<row>_...` holds the row of that name.

The rows about stored weights (codebook, flattening, groups, ...) are in tests/test_qtensor.py, those of section 6 in
tests/runtime, section 4, which has none, in tests/test_products.py.
Expected values come from the loops of tests/reference/numerics.py or are worked out beside them.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tests.reference import numerics as reference
from tests.reference.runtime_ops import activation_levels, float_convolution
from tests.runtime.definitions import result
from tests.runtime.small_programs import GRIDS, features_of, packed_weight, program_of

from subtone import numerics
from subtone.program import Conv1d
from subtone.runtime.engine import NativeEngine, NumpyEngine, available_isas
from subtone.runtime.products import quantized_product
from subtone.speech.audio import AudioError, check_samples

HERE = Path(__file__).resolve().parent
UNIT = 2.0**-24
"""One float32 operation errs by at most this share of its result."""
F32 = np.float32

moderate = st.floats(-8, 8, width=32).map(lambda value: value if abs(value) >= 2.0**-40 else 0.0)
"""Weights whose scales, at least 2**-40 / 255, are no subnormal numbers."""


def same_bits(got: np.ndarray, expected: np.ndarray) -> bool:
    return got.dtype == expected.dtype == np.float32 and got.tobytes() == expected.tobytes()


# The page --------------------------------------------------------------------------------

PAGE = (HERE.parent / "docs" / "numerics.md").read_text(encoding="utf-8")
# Section 7 names its own tests, and the reference whose steps are its rows.
ROWS = [
    line.split("|")[1].strip()
    for line in PAGE.partition("\n## 7.")[0].splitlines()
    if line.startswith("|") and not line.startswith(("|---", "| question |"))
]


def test_the_page_has_its_rows():
    # As many as when this was written: 15 on weights, 10 on activations, 4 on equality, 15 of section 6.
    assert len(ROWS) >= 44


@pytest.mark.parametrize("row", ROWS)
def test_every_row_has_a_test_of_its_name(row):
    name = re.sub(r"[^a-z0-9]+", "_", row.lower()).strip("_")
    files = ("test_numerics.py", "test_qtensor.py", "quantize/test_ranges.py", "runtime/test_*.py")
    text = "".join(path.read_text(encoding="utf-8") for file in files for path in HERE.glob(file))
    assert f"\ndef test_{name}_" in text


# Section 2: weights on a grid ------------------------------------------------------------


def test_rounding_is_the_floor_after_adding_one_half():
    values = [-2.5, -1.5, -1.0, -0.5, -0.0, 0.25, 0.5, 1.5, 2.5]
    assert numerics.round_half_up(np.array(values)).tolist() == [-2, -1, -1, 0, 0, 0, 1, 2, 3]


def test_rounding_takes_the_sum_in_the_precision_of_its_input():
    just_below = 0.49999997  # in float32 0.5 - 2**-25: the sum, 1 - 2**-25, lies half-way and becomes 1
    assert float(F32(just_below)) == 0.5 - 2.0**-25
    assert numerics.round_half_up(np.array([just_below], F32)).tolist() == [1]
    assert numerics.round_half_up(np.array([just_below], np.float64)).tolist() == [0]


@settings(deadline=None)
@given(st.floats(-(2.0**20), 2.0**20, width=32))
def test_rounding_equals_the_loop_of_the_reference(value):
    assert numerics.round_half_up(np.array([value], F32)).tolist() == [reference.rounded(F32(value))]


@settings(deadline=None)
@given(
    weights=hnp.arrays(F32, st.integers(1, 12), elements=moderate),
    scale=st.floats(2.0**-20, 4, width=32),
    zero_point=st.floats(-300, 300, width=32),
    bits=st.integers(1, 8),
    is_symmetric=st.booleans(),
)
def test_a_code_is_the_clipped_nearest_position(weights, scale, zero_point, bits, is_symmetric):
    grid = numerics.Grid(np.full((1,), scale, F32), np.full((1,), zero_point, F32))
    got = numerics.codes_on_grid(weights, grid, bits, is_symmetric=is_symmetric)
    lowest = 1 if is_symmetric and bits > 1 else 0
    assert got.dtype == np.uint8
    assert got.tolist() == [
        reference.code(weight, F32(scale), F32(zero_point), bits, lowest) for weight in weights
    ]


@pytest.mark.parametrize("bits", range(2, 9))
def test_symmetric_2_to_8_bits_leaves_code_0_unused(bits):
    absmax = F32(0.7)
    grid = numerics.symmetric_grid(np.array([[absmax]]), bits)
    scale, zero_point = reference.symmetric(absmax, bits)
    assert grid.scale.tolist() == [[scale]]
    assert grid.zero_point.tolist() == [[zero_point]]
    everything = np.linspace(-2 * absmax, 2 * absmax, 4001, dtype=F32)[None]
    codes = numerics.codes_on_grid(everything, grid, bits, is_symmetric=True)
    assert np.unique(codes).tolist() == list(range(1, 2**bits))


def test_symmetric_2_to_8_bits_has_three_of_four_levels_at_2_bits():
    grid = numerics.symmetric_grid(np.array([1.0]), 2)
    weights = np.array([-9, -1, -0.51, -0.5, 0, 0.49, 0.5, 1, 9], F32)
    assert numerics.codes_on_grid(weights, grid, 2, is_symmetric=True).tolist() == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    with pytest.raises(ValueError, match="bits=1 has no symmetric grid with a zero; use one_bit_grid"):
        numerics.symmetric_grid(np.array([1.0]), 1)


def test_1_bit_means_plus_and_minus_the_mean_magnitude():
    weights = np.array([-3.0, -1.0, 0.0, 1.0, 5.0], F32)  # mean |w| = 2
    grid = numerics.one_bit_grid(np.abs(weights).mean(keepdims=True))
    assert (grid.scale.tolist(), grid.zero_point.tolist()) == ([4.0], [0.5])
    codes = numerics.codes_on_grid(weights, grid, 1, is_symmetric=True)
    assert codes.tolist() == [0, 0, 1, 1, 1]
    assert [reference.real(code, *grid)[0] for code in codes] == [-2, -2, 2, 2, 2]


@settings(deadline=None)
@given(low=moderate, high=moderate, bits=st.integers(1, 8))
def test_asymmetric_grids_equal_the_loop_of_the_reference(low, high, bits):
    low, high = F32(min(low, high)), F32(max(low, high))
    grid = numerics.asymmetric_grid(np.array([low]), np.array([high]), bits)
    expected = reference.asymmetric(low, high, bits)
    assert (grid.scale[0], grid.zero_point[0]) == expected


def test_asymmetric_grids_need_not_hold_0():
    grid = numerics.asymmetric_grid(np.array([1.0]), np.array([4.0]), 2)  # levels 1, 2, 3, 4
    assert (grid.scale.tolist(), grid.zero_point.tolist()) == ([1.0], [-1.0])
    codes = numerics.codes_on_grid(np.array([0, 1, 2, 4, 9], F32), grid, 2, is_symmetric=False)
    assert codes.tolist() == [0, 0, 1, 3, 3]
    grid = numerics.asymmetric_grid(np.array([-1.0]), np.array([1.0]), 1)
    assert grid.zero_point.tolist() == [0.5]  # real, not rounded


@settings(deadline=None)
@given(st.floats(-(2.0**100), 2.0**100, width=32), st.integers(1, 8))
@example(0.1, 8)
@example(-0.1, 1)
@example(0.0, 4)
def test_a_constant_range_c_is_exact(constant, bits):
    value = np.array([constant], F32)
    grid = numerics.asymmetric_grid(value, value, bits)
    assert grid.scale[0] == abs(F32(constant))
    assert grid.zero_point[0] == -np.sign(constant)
    assert numerics.codes_on_grid(value, grid, bits, is_symmetric=False).tolist() == [0]
    assert reference.real(0, grid.scale[0], grid.zero_point[0]) == F32(constant)


@pytest.mark.parametrize(
    ("zero_point", "bits", "code"),
    [(0.5, 1, 1), (8, 4, 8), (2.4, 4, 2), (2.5, 4, 3), (-9, 4, 0), (99, 4, 15)],
)
def test_scale_0_gives_the_code_nearest_to_zero_point(zero_point, bits, code):
    grid = numerics.Grid(np.zeros((1, 1), F32), np.full((1, 1), zero_point, F32))
    codes = numerics.codes_on_grid(np.array([[0.0, 3.0]], F32), grid, bits, is_symmetric=False)
    assert codes.tolist() == [[code, code]]
    assert reference.code(F32(3), F32(0), F32(zero_point), bits) == code
    assert reference.real(code, F32(0), F32(zero_point)) == 0


def test_snapping_to_k_128_turns_plus_1_into_127_and_keeps_minus_1():
    values = np.array([-2, -1, -127.5 / 128, -0.5 / 128, 0, 0.5 / 128, 127 / 128, 1, 2], F32)
    assert numerics.snap_to_int8(values).tolist() == [-128, -128, -127, 0, 0, 1, 127, 127, 127]
    assert numerics.snap_to_int8(values).dtype == np.int8


@settings(deadline=None)
@given(st.floats(-2, 2, width=32))
def test_snapping_to_k_128_equals_the_loop_of_the_reference(value):
    assert numerics.snap_to_int8(np.array([value])).tolist() == [reference.snapped(F32(value))]


# Section 3: activations ------------------------------------------------------------------


def test_kinds_are_chosen_per_operation():
    rng = np.random.default_rng(0)
    weight = packed_weight(rng, (3, 8), bits=8, grid="symmetric")
    features = features_of(rng, 4, 8)
    of_bits = {}
    for bits in (0, 2, 4, 8):
        op = Conv1d(input="x", output="y", weight="w", activation_bits=bits)
        of_bits[bits] = result(op, {"x": features}, {"w": weight})
    assert same_bits(of_bits[0], float_convolution(features, weight.dequantize(), op))
    for bits in (2, 4, 8):
        assert same_bits(of_bits[bits], reference.product(features, weight, bits))
    assert numerics.quantize_static(features, 0.5).scale.tolist() == [[0.5]]  # whatever the frames hold


@pytest.mark.parametrize(("bits", "limit"), [(2, 1), (3, 3), (4, 7), (5, 15), (6, 31), (7, 63), (8, 127)])
def test_signed_grid_is_symmetric_and_held_in_int8(bits, limit):
    features = np.linspace(-1, 1, 1001, dtype=F32)[None]
    everything = list(range(-limit, limit + 1))
    for found in (
        numerics.quantize_dynamic(features, bits),
        numerics.quantize_static(2 * features, 1 / limit, bits),
    ):
        assert found.levels.dtype == np.int8
        assert sorted(set(found.levels.ravel().tolist())) == everything


@pytest.mark.parametrize("bits", [-1, 0, 1, 9])
def test_signed_grid_needs_2_to_8_bits(bits):
    message = f"bits={bits} is no signed activation grid; use 2 to 8"
    with pytest.raises(ValueError, match=message):
        numerics.quantize_dynamic(np.ones((1, 2), F32), bits)
    with pytest.raises(ValueError, match=message):
        numerics.quantize_static(np.ones((1, 2), F32), 1.0, bits)
    with pytest.raises(ValueError, match=message):
        numerics.requantize(np.array([1]), 2**30, 31, bits)


@pytest.mark.parametrize(("bits", "highest"), [(1, 1), (4, 15), (8, 255)])
def test_unsigned_grid_starts_at_0(bits, highest):
    features = np.array([[-5.0, 0.0, 0.49, 0.5, highest - 0.5, highest, 1e9]], F32)
    found = numerics.quantize_static(features, 1.0, bits, is_unsigned=True)
    assert found.levels.dtype == np.uint8
    expected = [reference.static_level(value, F32(1), 0, highest) for value in features[0]]
    assert found.levels.tolist() == [expected]
    assert (expected[:4], expected[-3:]) == ([0, 0, 0, 1], [highest] * 3)


@settings(deadline=None)
@given(
    frame=hnp.arrays(F32, st.integers(0, 9), elements=st.floats(-1, 1, width=32)),
    exponent=st.integers(-130, 100),
    bits=st.integers(2, 8),
)
def test_dynamic_levels_and_scale_equal_the_loop_of_the_reference(frame, exponent, bits):
    frame = np.ldexp(frame.astype(np.float64), exponent).astype(F32)
    found = numerics.quantize_dynamic(frame[None], bits)
    levels, scale = activation_levels(list(frame), bits)
    assert found.levels.tolist() == [levels]
    assert same_bits(found.scale, np.array([[scale]]))


def test_dynamic_divides_once_a_frame():
    # 7.5 of 15 is half-way between levels 63 and 64; float32(127/15) lies below 127/15, so 63.
    assert numerics.quantize_dynamic(np.array([[15, 7.5]], F32)).levels.tolist() == [[127, 63]]
    scale = numerics.quantize_dynamic(np.array([[37.0]], F32), 3).scale[0, 0]
    assert scale == F32(37) / F32(3) != F32(1) / (F32(3) / F32(37))


def test_dynamic_gives_every_frame_a_scale_of_its_own_wherever_a_stream_is_cut():
    rng = np.random.default_rng(1)
    features = features_of(rng, 12, 7)
    whole = numerics.quantize_dynamic(features)
    assert whole.scale.shape == (12, 1)
    changed = features.copy()
    changed[3] *= 100
    apart = numerics.quantize_dynamic(changed)
    others = np.arange(12) != 3
    assert np.array_equal(whole.levels[others], apart.levels[others])
    assert np.array_equal(whole.scale[others], apart.scale[others])
    assert apart.scale[3] > whole.scale[3]
    for cut in range(13):
        pieces = [numerics.quantize_dynamic(piece) for piece in (features[:cut], features[cut:])]
        assert np.array_equal(np.concatenate([piece.levels for piece in pieces]), whole.levels)
        assert np.array_equal(np.concatenate([piece.scale for piece in pieces]), whole.scale)


@settings(deadline=None)
@given(hnp.arrays(F32, (3, 6), elements=moderate), st.integers(2, 8))
def test_dynamic_error_is_at_most_half_a_step(features, bits):
    found = numerics.quantize_dynamic(features, bits)
    scale = found.scale.astype(np.float64)
    error = np.abs(scale * found.levels - features)
    # In steps: 1/2, and a rounding each of inverse, product, sum and scale, of at most 127.5.
    assert np.all(error <= scale * (0.5 + 5 * UNIT * 127.5))


def test_a_silent_frame_has_levels_and_scale_0_below_2_to_the_minus_100():
    border = F32(2.0**-100)
    below = np.nextafter(border, F32(0))
    features = np.array([[border, -border / 2], [below, -below], [0, -0.0], [-border, 0]], F32)
    found = numerics.quantize_dynamic(features)
    assert found.levels.tolist() == [[127, -63], [0, 0], [0, 0], [-127, 0]]  # floor(-63.5 + 0.5) = -63
    assert found.scale.ravel().tolist() == [border / F32(127), 0, 0, border / F32(127)]


def test_a_kernel_that_spans_frames_takes_float_activations_and_decoded_weights():
    rng = np.random.default_rng(2)
    weight = packed_weight(rng, (4, 1, 3), bits=4, grid="symmetric")
    fields = {"input": "x", "output": "y", "weight": "w", "kernel": 3, "padding": 1, "groups": 4}
    with pytest.raises(ValueError, match="spans frames or channels; integer activations need kernel 1"):
        program_of(Conv1d(**fields, activation_bits=8), width_in=4, width_out=4).shapes(9, {"w": weight})
    features = features_of(rng, 9, 4)
    op = Conv1d(**fields)
    whole = result(op, {"x": features}, {"w": weight})
    assert same_bits(whole, float_convolution(features, weight.dequantize(), op))
    for cut in range(1, 9):  # each part sees one frame beyond the cut, and gives that one up
        left = result(op, {"x": features[: cut + 1]}, {"w": weight})[:cut]
        right = result(op, {"x": features[cut - 1 :]}, {"w": weight})[1:]
        assert same_bits(np.concatenate([left, right]), whole)


@settings(deadline=None)
@given(
    features=hnp.arrays(F32, (2, 5), elements=st.floats(-100, 100, width=32)),
    scale=st.floats(2.0**-12, 4, width=32),
    bits=st.integers(2, 8),
    is_unsigned=st.booleans(),
)
def test_static_levels_are_clipped_and_take_one_inverse(features, scale, bits, is_unsigned):
    found = numerics.quantize_static(features, scale, bits, is_unsigned=is_unsigned)
    limit = 2 ** (bits - 1) - 1
    lowest, highest = (0, 2**bits - 1) if is_unsigned else (-limit, limit)
    expected = [
        [reference.static_level(value, F32(scale), lowest, highest) for value in row] for row in features
    ]
    assert found.levels.tolist() == expected
    assert found.scale.tolist() == [[F32(scale)]]


def test_static_rounds_the_inverse_once_and_does_not_divide():
    # 143.5 / 41 is 3.5, so 4; float32(1/41) lies below 1/41 and makes it 3.4999998, so 3.
    assert math.floor(F32(143.5) / F32(41) + F32(0.5)) == 4
    assert numerics.quantize_static(np.array([[143.5]], F32), 41).levels.tolist() == [[3]]


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf, 1e60, 2.0**-128, 1e-60])
def test_static_scales_have_an_inverse(scale):
    with pytest.raises(ValueError, match=r"scale=.* of a static activation must be finite and above 2"):
        numerics.quantize_static(np.ones((1, 1), F32), scale)


def test_static_values_far_outside_are_clipped():
    features = np.array([[-3e38, 3e38]], F32)  # times 1e10: beyond float32
    assert numerics.quantize_static(features, 1e-10).levels.tolist() == [[-127, 127]]


def test_lstm_recurrent_input_has_the_static_scale_1_127():
    inside = np.nextafter(F32(1), F32(0))
    hidden = np.concatenate([np.linspace(-inside, inside, 999, dtype=F32), np.tanh(np.arange(9, dtype=F32))])
    found = numerics.quantize_static(hidden[None], 1 / 127)
    assert (found.levels.min(), found.levels.max()) == (-127, 127)
    # 1 / float32(1/127) is 127 exactly, so a level is floor(127 h + 0.5): nothing is clipped.
    assert found.levels[0].tolist() == [math.floor(F32(127) * value + F32(0.5)) for value in hidden]
    error = np.abs(found.levels[0] / 127 - hidden.astype(np.float64))
    assert np.all(error <= (0.5 + 2 * UNIT * 127.5) / 127)  # roundings: the product, the sum


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_infinity_are_refused_where_sound_enters(value):
    with pytest.raises(AudioError, match="finite"):
        check_samples(np.array([0.0, value], F32))
    weight = packed_weight(np.random.default_rng(0), (2, 2), bits=8, grid="tensor")
    op = Conv1d(input="x", output="y", weight="w", activation_bits=8)
    engine = NumpyEngine(program_of(op, width_in=2, width_out=2), {"w": weight})
    with pytest.raises(ValueError, match="features hold NaN or infinity; a program is defined on finite"):
        engine.run(np.array([[0.0, value]], F32))


# Section 5: equality ---------------------------------------------------------------------

ISAS = available_isas() or [
    pytest.param("none", marks=pytest.mark.skip(reason="the native library was not built"))
]


def twin_outputs(isa: str, threads: int, **weight_fields) -> tuple[np.ndarray, np.ndarray]:
    """Logits of one product by the definition and by the native library."""
    rng = np.random.default_rng(3)
    weight = packed_weight(rng, (19, 24), **weight_fields)
    op = Conv1d(input="x", output="y", weight="w", activation_bits=8)
    program, features = program_of(op, width_in=24, width_out=19), features_of(rng, 7, 24)
    native = NativeEngine(program, {"w": weight}, threads=threads, isa=isa)
    return NumpyEngine(program, {"w": weight}).run(features), native.run(features)


@pytest.mark.parametrize("isa", ISAS)
def test_integers_are_equal_on_every_machine_and_for_every_number_of_threads(isa):
    # On a codebook with scale 1 the output is the integer sum times the frame's scale.
    for threads in (1, 2, 5):
        expected, got = twin_outputs(isa, threads, bits=8, grid="codebook")
        assert same_bits(got, expected)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("grid", GRIDS)
def test_floats_between_them_in_dynamic_mode_are_equal_too(isa, grid):
    expected, got = twin_outputs(isa, 2, bits=4, grid=grid, groups=3)
    assert same_bits(got, expected)


@pytest.mark.parametrize("grid", GRIDS)
def test_against_torch_only_the_order_of_sums_differs(grid):
    rng = np.random.default_rng(4)
    weight = packed_weight(rng, (5, 96), bits=4, grid=grid, groups=4)
    features = features_of(rng, 6, 96)
    x = numerics.quantize_dynamic(features)
    ours = quantized_product(features, weight, 8)
    decoded = torch.from_numpy(weight.dequantize())
    theirs = torch.nn.functional.linear(torch.from_numpy(x.levels * x.scale), decoded).numpy()
    # A sum of K products of values that were rounded at most twice each errs by no more than
    # (K + 4) units of its absolute terms; ours has less than 4 + 3 groups roundings after exact
    # sums. Absolute terms: scale * (|L| + |z|) * |x|, since ours subtracts z only from the sum.
    size = weight.num_columns // weight.scale.shape[1]
    spread = [np.repeat(part, size, axis=1) if part.shape[1] > 1 else part
              for part in (weight.scale.astype(np.float64), np.abs(weight.level_zero_point()))]  # fmt: skip
    terms = np.abs(spread[0]) * (np.abs(weight.levels().astype(np.float64)) + spread[1])
    absolute = np.abs(x.levels * x.scale.astype(np.float64)) @ np.broadcast_to(terms, (5, 96)).T
    units = (96 + 4) + (4 + 3 * weight.scale.shape[1])
    bound = units * UNIT / (1 - units * UNIT) * absolute
    assert np.all(np.abs(ours.astype(np.float64) - theirs) <= bound)


accumulators = st.one_of(st.integers(-(2**31), 2**31 - 1), st.sampled_from([-(2**31), -1, 0, 1, 2**31 - 1]))
mantissas = st.one_of(st.integers(2**30, 2**31 - 1), st.sampled_from([2**30, 2**30 + 1, 2**31 - 1]))


@settings(max_examples=300, deadline=None)
@given(accumulators, mantissas, st.one_of(st.integers(1, 62), st.integers(50, 62)), st.integers(2, 8))
@example(2**31 - 1, 2**31 - 1, 62, 8)
@example(-(2**31), 2**31 - 1, 62, 8)
@example(-(2**31), 2**31 - 1, 1, 8)
@example(3, 2**30, 31, 8)  # 1.5 becomes 2
@example(-3, 2**30, 31, 8)  # -1.5 becomes -1
def test_integer_only_requantization_equals_rational_arithmetic(accumulator, mantissa, shift, bits):
    limit = 2 ** (bits - 1) - 1
    expected = reference.requantized(accumulator, mantissa, shift, limit)
    got = numerics.requantize(np.array([accumulator], np.int64), mantissa, shift, bits)
    assert got.dtype == np.int8
    assert got.tolist() == [expected]
    if -(2**31) <= accumulator < 2**31:
        small = np.array([accumulator], np.int32)
        assert numerics.requantize(small, mantissa, shift, bits).tolist() == [expected]


def test_integer_only_requantization_rounds_half_up_and_saturates():
    mantissa, shift = numerics.dyadic_multiplier(0.5)
    sums = np.array([-1000, -255, -254, -3, -1, 0, 1, 3, 253, 254, 1000])
    got = numerics.requantize(sums, mantissa, shift)
    assert got.tolist() == [-127, -127, -127, -1, 0, 0, 1, 2, 127, 127, 127]


@pytest.mark.parametrize("shift", [-1, 0, 63, 64])
def test_integer_only_shifts_lie_in_1_to_62(shift):
    with pytest.raises(ValueError, match=rf"shift={shift} of a requantization must lie in 1..62"):
        numerics.requantize(np.array([1]), 2**30, shift)


@settings(deadline=None)
@given(st.floats(2.0**-31, 2.0**29))
@example(1 - 2.0**-53)  # the fraction rounds up to 2**31 and becomes 2**30 of the next exponent
@example(1.0)
@example(2.0**-31)
def test_integer_only_multipliers_are_31_bits_and_within_2_to_the_minus_31(ratio):
    mantissa, shift = numerics.dyadic_multiplier(ratio)
    assert 2**30 <= mantissa < 2**31
    assert 1 <= shift <= 62
    # The mantissa errs by at most 1/2, and is at least 2**30.
    error = abs(Fraction(mantissa, 2**shift) / Fraction(ratio) - 1)
    assert error <= Fraction(1, 2**31)


@pytest.mark.parametrize("ratio", [0.0, -1.0, math.nan, math.inf])
def test_integer_only_ratios_are_finite_and_positive(ratio):
    with pytest.raises(ValueError, match=r"ratio=.* of two scales must be finite and above 0"):
        numerics.dyadic_multiplier(ratio)


def test_integer_only_zero_points_become_a_second_term_with_its_own_multiplier():
    # y / S_out = sum L x * S - sum x * (S z), each with its own dyadic multiplier.
    rng = np.random.default_rng(5)
    weight = packed_weight(rng, (1, 32), bits=4, grid="asymmetric")
    x = rng.integers(-127, 128, 32).tolist()
    levels, offsets = reference.integer_levels(weight)
    ratio = Fraction(float(weight.scale[0, 0])) / Fraction(1, 8)  # S_in / S_out
    offset = Fraction(float(offsets[0][0]))
    sum_of_products = sum(level * value for level, value in zip(levels[0], x, strict=True))
    first, second = ratio * sum_of_products, -ratio * offset * sum(x)
    exact = first + second
    assert exact == sum(ratio * (level - offset) * value for level, value in zip(levels[0], x, strict=True))
    got = Fraction(0)
    for factor, integer in ((ratio, sum_of_products), (-ratio * offset, sum(x))):
        mantissa, shift = numerics.dyadic_multiplier(abs(float(factor)))
        got += (1 if factor > 0 else -1) * Fraction(mantissa * integer, 2**shift)
    # Each term errs by 2**-31 of itself, and float(factor) by another 2**-53.
    assert abs(got - exact) <= (Fraction(1, 2**31) + Fraction(1, 2**52)) * (abs(first) + abs(second))
