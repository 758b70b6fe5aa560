"""QTensor: the rows of docs/numerics.md about stored weights, its invariants, its facts.

`test_<row>_...` holds the row of that name; the others are in tests/test_numerics.py.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tests.reference import numerics as reference
from tests.runtime.small_programs import GRIDS, packed_weight

from subtone import numerics
from subtone.qtensor import (
    QTensor,
    as_stored,
    check_group_size,
    flatten_weight,
    spread_columns,
    unflatten_weight,
)
from subtone.quantize.weights import UNGROUPED_KINDS
from subtone.runtime.products import quantized_product

UNIT = 2.0**-24
"""One float32 operation errs by at most this share of its result."""
F32, F16 = np.float32, np.float16
SHAPES = {"Linear": (3, 6), "Conv1d": (3, 6, 4), "Conv2d": (3, 6, 2, 5), "depthwise": (3, 1, 7)}


def symmetric(weight: np.ndarray, bits: int, *, groups: int = 1) -> QTensor:
    """`weight` on the symmetric grid of the largest magnitude of each group, `groups` in a row."""
    cells = flatten_weight(weight).reshape(weight.shape[0], groups, -1)
    grid = numerics.symmetric_grid(np.abs(cells).max(axis=2), bits)
    return QTensor.on_grid(weight, grid, bits, is_symmetric=True)


def spread(part: np.ndarray, tensor: QTensor) -> np.ndarray:
    """A scale or zero_point for every code, in float64."""
    wide = spread_columns(part.astype(np.float64), tensor.num_columns)
    return np.broadcast_to(wide, tensor.codes.shape)


# Section 1 and the rows of section 2 -----------------------------------------------------


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("grid", GRIDS)
def test_a_decoded_weight_is_one_subtraction_and_one_product(bits, grid):
    tensor = packed_weight(np.random.default_rng(bits), (3, 6), bits=bits, grid=grid, groups=2)
    scale, zero_point = spread(tensor.scale, tensor), spread(tensor.zero_point, tensor)
    for row, column in np.ndindex(tensor.codes.shape):
        code = tensor.codes[row, column]
        level = code if tensor.codebook is None else tensor.codebook[code]
        expected = reference.real(int(level), F32(scale[row, column]), F32(zero_point[row, column]))
        assert tensor.dequantize()[row, column] == expected


def test_codebook_is_padded_by_its_last_level_and_num_levels_says_how_many_are_meant():
    weight = np.array([[-1.0, -0.1, 0.2, 0.9]], F32)
    tensor = QTensor.on_codebook(weight, np.full((1, 1), 1 / 128), np.array([-128, 0, 100], np.int8), bits=3)
    assert tensor.codebook.tolist() == [-128, 0, 100, 100, 100, 100, 100, 100]
    assert tensor.codebook.dtype == np.int8
    assert tensor.num_levels == 3
    assert tensor.zero_point.tolist() == [[0.0]]
    assert tensor.codes.tolist() == [[0, 1, 1, 2]]
    assert tensor.dequantize().tolist() == [[-1.0, 0.0, 0.0, 100 / 128]]  # k / 128 of a range of 1


@pytest.mark.parametrize("bits", range(1, 9))
def test_codebook_levels_are_1_to_as_many_as_the_bits_tell_apart(bits):
    full = np.linspace(-128, 127, 2**bits).astype(np.int8)
    assert np.array_equal(numerics.pad_codebook(full, bits), full)
    assert numerics.pad_codebook(full[:1], bits).tolist() == [-128] * 2**bits
    for levels in (np.zeros(0, np.int8), np.zeros(2**bits + 1, np.int8), np.zeros((1, 1), np.int8)):
        with pytest.raises(ValueError, match=rf"a codebook of bits={bits} holds 1 to {2**bits} levels, not"):
            numerics.pad_codebook(levels, bits)
    with pytest.raises(ValueError, match="codebook levels must ascend; sort them first"):
        numerics.pad_codebook(np.array([127, -128], np.int8), bits)  # their difference exceeds int8


@pytest.mark.parametrize("rows", [1, 3])
def test_codebook_scales_are_per_tensor_or_per_channel(rows):
    weight = np.random.default_rng(0).normal(size=(3, 8)).astype(F32)
    scale = np.linspace(0.01, 0.02, rows, dtype=F32)[:, None]
    levels = np.array([-90, -20, 0, 33, 127], np.int8)
    tensor = QTensor.on_codebook(weight, scale, levels, bits=4)
    assert tensor.scale.shape == (rows, 1)
    assert tensor.codes.tolist() == [
        [reference.nearest_level(value, scale[row % rows, 0], levels.tolist()) for value in weight[row]]
        for row in range(3)
    ]
    with pytest.raises(ValueError, match="a codebook has one scale per tensor or channel and zero_point 0"):
        dataclasses.replace(tensor, scale=np.ones((3, 2), F16), zero_point=np.zeros((1, 1), F16))


def test_nearest_level_of_a_codebook_is_the_upper_one_at_a_tie():
    levels = np.array([-128, -3, 4, 127], np.int8)  # midpoints -65.5, 0.5, 65.5
    positions = np.array([-999, -65.5, np.nextafter(F32(0.5), F32(0)), 0.5, 65.5, 999], F32)
    codes = numerics.codes_on_codebook(positions, np.ones(1, F32), levels)
    assert codes.tolist() == [0, 1, 1, 2, 3, 3]


@settings(deadline=None)
@given(
    weights=hnp.arrays(F32, 8, elements=st.floats(-8, 8, width=32)),
    scale=st.sampled_from([0.0, 1 / 128, -0.01, 0.1]),
    levels=st.lists(st.integers(-128, 127), min_size=1, max_size=20).map(sorted),
)
def test_nearest_level_of_a_codebook_equals_the_loop_of_the_reference(weights, scale, levels):
    got = numerics.codes_on_codebook(weights, np.array([scale], F32), np.array(levels, np.int8))
    assert got.tolist() == [reference.nearest_level(weight, F32(scale), levels) for weight in weights]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_flattening_lays_the_inputs_of_one_tap_together(shape):
    weight = np.random.default_rng(0).normal(size=shape).astype(F32)
    flat = flatten_weight(weight)
    assert flat.tolist() == reference.flattened(weight)
    back = unflatten_weight(flat, shape)
    assert np.array_equal(back, weight)
    assert back.flags.c_contiguous
    tensor = symmetric(weight, 8)  # what is stored lies the same way
    assert tensor.shape == shape
    assert np.array_equal(flatten_weight(tensor.dequantize()), tensor.scale * (tensor.codes - F32(128)))


@pytest.mark.parametrize("shape", [(2, 8), (2, 8, 3), (2, 8, 2, 2)], ids=["Linear", "Conv1d", "Conv2d"])
def test_groups_are_consecutive_inputs_of_one_tap(shape):
    weight = np.random.default_rng(1).normal(size=shape).astype(F32)
    groups = check_group_size(shape, 4)
    assert groups == 2 * np.prod(shape[2:])
    before = symmetric(weight, 4, groups=groups)
    assert before.scale.shape == (2, groups)
    assert before.group_size == 4
    for group in range(groups):
        tap = np.unravel_index(group // 2, shape[2:])
        louder = weight.copy()
        first = 4 * (group % 2)
        louder[(1, slice(first, first + 4), *tap)] *= 1000
        after = symmetric(louder, 4, groups=groups)
        assert np.argwhere(after.scale != before.scale).tolist() == [[1, group]]


@pytest.mark.parametrize(
    ("group_size", "inputs", "remedy"),
    [
        (48, 512, "use a divisor such as 128 or 64"),
        (5, 6, "use a divisor such as 2"),
        (0, 6, "use a divisor such as 2"),
        (2, 7, "use one scale a channel"),
    ],
)
def test_groups_divide_the_input_channels(group_size, inputs, remedy):
    message = f"group_size={group_size} does not divide {inputs} inputs of encoder.ffn1; {remedy}"
    with pytest.raises(ValueError, match=message):
        check_group_size((4, inputs, 3), group_size, name="encoder.ffn1")


def test_groups_of_a_tensor_stay_within_a_tap():
    one, zero = np.ones((1, 6), F16), np.zeros((1, 1), F16)
    with pytest.raises(ValueError, match="group_size=2 does not divide 3 inputs"):  # though it divides 12
        QTensor(codes=np.zeros((1, 12), np.uint8), shape=(1, 3, 4), scale=one, zero_point=zero, bits=4)


def test_groups_are_refused_for_depthwise_kernels_and_embeddings():
    weight = np.random.default_rng(2).normal(size=(4, 1, 5)).astype(F32)
    assert symmetric(weight, 8).scale.shape == (4, 1)
    with pytest.raises(ValueError, match="a kernel with one input has one scale a channel, not 5 groups"):
        symmetric(weight, 8, groups=5)
    assert set(UNGROUPED_KINDS) == {"depthwise", "embedding"}  # an embedding's shape does not tell


def test_groups_leave_each_gate_block_of_an_lstm_its_own_scales():
    rng = np.random.default_rng(3)
    weight = rng.normal(size=(4 * 5, 8)).astype(F32)  # gates i, f, g, o of 5 units each
    louder = weight.copy()
    louder[10:15] *= 1024  # the cell gate
    for groups in (1, 2):
        before, after = symmetric(weight, 4, groups=groups), symmetric(louder, 4, groups=groups)
        assert np.array_equal(before.codes, after.codes)
        assert np.array_equal(before.scale[:10], after.scale[:10])
        assert np.array_equal(before.scale[15:], after.scale[15:])
        assert np.all(after.scale[10:15] > before.scale[10:15])


def test_stored_scales_are_float32_per_tensor_and_channel_and_float16_per_group():
    weight = np.random.default_rng(4).normal(size=(3, 8)).astype(F32)
    per_tensor = QTensor.on_grid(weight, numerics.symmetric_grid(np.ones((1, 1)), 4), 4, is_symmetric=True)
    for tensor, dtype in (
        (per_tensor, F32),
        (symmetric(weight, 4), F32),
        (symmetric(weight, 4, groups=2), F16),
    ):
        assert (tensor.scale.dtype, tensor.zero_point.dtype) == (dtype, dtype)


def test_stored_scales_are_rounded_before_codes_are_chosen():
    # float16(0.1) = 0.09997559: 10.049 is 100.49 steps of 0.1, but 100.51 of what is stored.
    assert float(F16(0.1)) == 0.0999755859375
    weight = np.full((1, 4), 10.049, F32)
    for groups, code in ((1, 228), (2, 229)):
        grid = numerics.Grid(np.full((1, groups), 0.1, F32), np.full((1, 1), 128, F32))
        tensor = QTensor.on_grid(weight, grid, 8, is_symmetric=True)
        assert tensor.codes.tolist() == [[code] * 4]


def test_stored_zero_points_are_rounded_before_codes_are_chosen():
    # float16(100.3) = 100.3125: 0.19 more is 100.49, but 100.5025 from what is stored.
    assert float(F16(100.3)) == 100.3125
    weight = np.full((1, 4), 0.19, F32)
    for groups, code in ((1, 100), (2, 101)):
        grid = numerics.Grid(np.ones((1, groups), F32), np.full((1, groups), 100.3, F32))
        tensor = QTensor.on_grid(weight, grid, 8, is_symmetric=False)
        assert tensor.codes.tolist() == [[code] * 4]
        assert np.array_equal(tensor.dequantize(), code - tensor.zero_point[:, :1] + np.zeros((1, 4), F32))


def test_stored_scales_of_groups_equal_the_loop_of_the_reference():
    rng = np.random.default_rng(5)
    weight = rng.normal(size=(3, 6, 2)).astype(F32)
    flat = flatten_weight(weight)
    cells = flat.reshape(3, 4, 3)
    grid = numerics.asymmetric_grid(cells.min(axis=2), cells.max(axis=2), 4)
    tensor = QTensor.on_grid(weight, grid, 4, is_symmetric=False)
    for row, column in np.ndindex(flat.shape):
        cell = cells[row, column // 3]
        scale, zero_point = (F32(F16(part)) for part in reference.asymmetric(cell.min(), cell.max(), 4))
        assert tensor.codes[row, column] == reference.code(flat[row, column], scale, zero_point, 4)
        assert tensor.scale[row, column // 3] == scale
        assert tensor.zero_point[row, column // 3] == zero_point


@pytest.mark.parametrize("value", [65505.0, -1e30, np.inf])
def test_stored_scales_beyond_float16_are_refused(value):
    message = "a group's scale or zero_point exceeds float16; use one scale a channel for this weight"
    with pytest.raises(ValueError, match=message):
        as_stored(np.array([[1.0, value]]))
    with pytest.raises(ValueError, match=message):
        as_stored(np.array([[value]]), like=np.ones((1, 2)))
    assert as_stored(np.array([[value]])).dtype == F32  # per channel it fits
    assert as_stored(np.array([[1.0, 65504.0]])).tolist() == [[1.0, 65504.0]]


def test_level_128_below_zero_is_legal_in_storage_and_products():
    features = np.array([[127.0, -127.0]], F32)
    affine = QTensor(
        codes=np.array([[0, 255]], np.uint8),
        shape=(1, 2),
        scale=np.ones((1, 1), F32),
        zero_point=np.full((1, 1), 128, F32),
        bits=8,
    )
    book = QTensor.on_codebook(
        np.array([[-1.0, 1.0]], F32), np.full((1, 1), 1 / 128), np.array([-128, 127], np.int8), bits=1
    )
    assert affine.levels().tolist() == book.levels().tolist() == [[-128, 127]]
    assert quantized_product(features, affine, 8).tolist() == [[-128 * 127 - 127 * 127]]
    assert quantized_product(features, book, 8).tolist() == [[(-128 * 127 - 127 * 127) / 128]]


@pytest.mark.parametrize("grid", GRIDS)
def test_negative_scale_flips_the_sign_of_weights_and_products(grid):
    rng = np.random.default_rng(6)
    tensor = packed_weight(rng, (3, 8), bits=4, grid=grid, groups=2)
    mirrored = dataclasses.replace(tensor, scale=-tensor.scale)
    features = rng.normal(size=(4, 8)).astype(F32)
    assert np.array_equal(mirrored.dequantize(), -tensor.dequantize())
    assert np.array_equal(quantized_product(features, mirrored, 8), -quantized_product(features, tensor, 8))
    if grid != "codebook":  # and codes are chosen on it as on any other
        scales = numerics.Grid(mirrored.scale, mirrored.zero_point)
        is_symmetric = grid in ("tensor", "symmetric")
        again = QTensor.on_grid(mirrored.dequantize(), scales, 4, is_symmetric=is_symmetric)
        assert np.array_equal(again.codes, tensor.codes)


# Properties ------------------------------------------------------------------------------

moderate = st.floats(-8, 8, width=32).map(lambda value: value if abs(value) >= 2.0**-10 else 0.0)
"""Weights of which no group has a scale that float16 holds only as a subnormal number."""


@st.composite
def quantized(draw):
    """A weight of (3, 4, 2) and its QTensor on a drawn uniform grid and granularity."""
    weight = draw(hnp.arrays(F32, (3, 4, 2), elements=moderate))
    bits, rows = draw(st.integers(1, 8)), draw(st.sampled_from(["tensor", 1, 4]))
    flat = flatten_weight(weight)
    cells = flat.reshape((1, 1, -1) if rows == "tensor" else (3, rows, -1))
    if is_symmetric := draw(st.booleans()):
        magnitudes = np.abs(cells)
        grid = (
            numerics.one_bit_grid(magnitudes.mean(axis=2))
            if bits == 1
            else numerics.symmetric_grid(magnitudes.max(axis=2), bits)
        )
    else:
        grid = numerics.asymmetric_grid(cells.min(axis=2), cells.max(axis=2), bits)
        assume(np.abs(grid.zero_point).max() < 2**12)
    return weight, QTensor.on_grid(weight, grid, bits, is_symmetric=is_symmetric), is_symmetric


@settings(deadline=None)
@given(quantized())
def test_the_error_is_at_most_half_a_step_inside_the_range(drawn):
    weight, tensor, is_symmetric = drawn
    scale, zero_point = spread(tensor.scale, tensor), spread(tensor.zero_point, tensor)
    flat = flatten_weight(weight).astype(np.float64)
    lowest = 1 if is_symmetric and tensor.bits > 1 else 0
    low, high = scale * (lowest - zero_point), scale * (2**tensor.bits - 1 - zero_point)
    error = np.abs(flatten_weight(tensor.dequantize()) - flat)
    # In steps: 1/2, then w / scale, + zero_point, + 0.5 and the two of decoding, rounded each.
    largest = np.abs(zero_point) + 2**tensor.bits + 1
    bound = scale * (0.5 + 5 * UNIT * largest)
    inside = (flat >= low) & (flat <= high)
    assert np.all(error[inside] <= bound[inside])
    assert np.all(tensor.codes[flat > high + bound] == 2**tensor.bits - 1)
    assert np.all(tensor.codes[flat < low - bound] == lowest)


@settings(deadline=None)
@given(quantized())
def test_codes_of_decoded_weights_are_the_same_codes(drawn):
    _, tensor, is_symmetric = drawn
    grid = numerics.Grid(tensor.scale, tensor.zero_point)
    again = QTensor.on_grid(tensor.dequantize(), grid, tensor.bits, is_symmetric=is_symmetric)
    assert np.array_equal(again.codes, tensor.codes)


@settings(deadline=None)
@given(quantized(), st.permutations(range(3)))
def test_permuting_rows_permutes_the_result(drawn, order):
    weight, tensor, is_symmetric = drawn
    parts = [part[order] if part.shape[0] == 3 else part for part in (tensor.scale, tensor.zero_point)]
    permuted = QTensor.on_grid(weight[order], numerics.Grid(*parts), tensor.bits, is_symmetric=is_symmetric)
    assert np.array_equal(permuted.codes, tensor.codes[order])
    assert np.array_equal(permuted.dequantize(), tensor.dequantize()[order])


@settings(deadline=None)
@given(quantized())
def test_levels_and_their_zero_point_decode_to_the_same_weights(drawn):
    _, tensor, _ = drawn
    levels, zero_point = tensor.levels(), tensor.level_zero_point()
    assert levels.dtype == np.int8
    assert (zero_point.dtype, zero_point.shape) == (F32, tensor.zero_point.shape)
    assert np.array_equal(levels.astype(int), tensor.codes.astype(int) - 2 ** (tensor.bits - 1))
    decoded = spread(tensor.scale, tensor) * (levels - spread(zero_point, tensor))
    error = np.abs(flatten_weight(tensor.dequantize()) - decoded)
    # Roundings: of zero_point - code_offset, and the two of decoding.
    largest = np.abs(spread(tensor.zero_point, tensor)) + 2**tensor.bits
    assert np.all(error <= spread(tensor.scale, tensor) * 3 * UNIT * largest)
    if tensor.grid == "symmetric":  # a zero_point of 0 or -1/2: nothing is rounded but the product
        exact = tensor.scale.astype(F32).repeat(tensor.num_columns // tensor.scale.shape[1], axis=1)
        assert np.array_equal(flatten_weight(tensor.dequantize()), exact * (levels - zero_point))


@pytest.mark.parametrize("bits", range(1, 9))
def test_levels_of_a_codebook_are_its_own(bits):
    tensor = packed_weight(np.random.default_rng(bits), (3, 8), bits=bits, grid="codebook")
    assert np.array_equal(tensor.levels(), tensor.codebook[tensor.codes])
    assert tensor.code_offset == 0
    assert tensor.level_zero_point().tolist() == [[0.0]]
    assert np.array_equal(tensor.dequantize(), tensor.scale * tensor.levels().astype(F32))


def test_bits_are_1_to_8():
    assert [numerics.check_bits(bits) for bits in (1, 8, np.int64(4))] == [1, 8, 4]
    for bits in (0, 9, -1):
        with pytest.raises(ValueError, match=f"weight_bits={bits} cannot be stored; use 1 to 8"):
            numerics.check_bits(bits, name="weight_bits")
    for bits in (True, 4.0, "4", None):
        with pytest.raises(ValueError, match=f"bits={bits!r} is not a whole number; use 1 to 8"):
            numerics.check_bits(bits)


# Facts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grid", "bits", "granularity", "name", "group_size"),
    [
        ("tensor", 4, "tensor", "symmetric", None),
        ("tensor", 1, "tensor", "symmetric", None),
        ("symmetric", 8, "channel", "symmetric", None),
        ("asymmetric", 4, "channel", "asymmetric", None),
        ("group", 4, "group of 4", "asymmetric", 4),
        ("codebook", 4, "channel", "codebook", None),
    ],
)
def test_granularity_is_the_shape_of_scale_and_the_grid_is_that_of_zero_point(
    grid, bits, granularity, name, group_size
):
    tensor = packed_weight(np.random.default_rng(0), (3, 12), bits=bits, grid=grid, groups=3)
    assert (tensor.granularity, tensor.grid, tensor.group_size) == (granularity, name, group_size)
    assert (tensor.num_rows, tensor.num_columns) == (3, 12)


@pytest.mark.parametrize(
    ("grid", "bits", "num_bytes"),
    [
        ("tensor", 4, 18 + 4 + 4),  # 36 codes; float32 scale and zero_point
        ("symmetric", 3, 14 + 12 + 4),  # 108 bits are 13.5 bytes; three scales, one zero_point
        ("asymmetric", 8, 36 + 12 + 12),
        ("group", 1, 5 + 18 + 18),  # 9 scales and zero_points of two bytes
        ("codebook", 5, 23 + 12 + 4 + 32),  # 22.5 bytes; 2**5 levels of one byte
    ],
)
def test_bytes_are_codes_scales_zero_points_and_codebook(grid, bits, num_bytes):
    tensor = packed_weight(np.random.default_rng(0), (3, 12), bits=bits, grid=grid, groups=3)
    assert tensor.num_bytes == num_bytes


# Invariants ------------------------------------------------------------------------------

ONE, ZERO = np.ones((1, 1), F32), np.zeros((1, 1), F32)
PLAIN = {"codes": np.zeros((2, 6), np.uint8), "shape": (2, 6), "scale": ONE, "zero_point": ZERO, "bits": 2}
GROUPED = {**PLAIN, "scale": np.ones((2, 3), F16), "zero_point": np.zeros((1, 1), F16)}
BOOK = {**PLAIN, "codebook": np.array([-5, 0, 7, 7], np.int8), "num_levels": 3}


def codes_with(value: int) -> np.ndarray:
    return np.array([[0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, value]], np.uint8)


@pytest.mark.parametrize("fields", [PLAIN, GROUPED, BOOK], ids=["plain", "grouped", "book"])
def test_the_tensors_that_are_broken_below_are_valid(fields):
    assert QTensor(**fields).num_levels == fields.get("num_levels", 4)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({**PLAIN, "bits": 0}, "bits=0 cannot be stored; use 1 to 8"),
        ({**PLAIN, "bits": 9}, "bits=9 cannot be stored; use 1 to 8"),
        ({**PLAIN, "bits": True}, "bits=True is not a whole number"),
        ({**PLAIN, "bits": "4"}, "bits='4' is not a whole number"),
        ({**PLAIN, "codes": np.zeros((2, 6), np.int8)}, r"codes are int8 \(2, 6\), not uint8"),
        ({**PLAIN, "codes": np.zeros(12, np.uint8)}, r"codes are uint8 \(12,\), not uint8 \(out, columns\)"),
        ({**PLAIN, "shape": (2, 7)}, r"shape=\(2, 7\) does not hold 12 codes"),
        ({**PLAIN, "shape": (12,)}, r"shape=\(12,\) is not \(out, in\)"),
        ({**PLAIN, "shape": (2, 1, 1, 2, 3)}, r"shape=\(2, 1, 1, 2, 3\) is not \(out, in\)"),
        ({**PLAIN, "shape": (2, -2, -3)}, r"shape=\(2, -2, -3\) is not \(out, in\)"),
        ({**PLAIN, "shape": (0, 6), "codes": np.zeros((0, 6), np.uint8)}, r"shape=\(0, 6\) is not \(out, in\)"),
        ({**PLAIN, "shape": (3, 4)}, r"shape=\(3, 4\) does not have 2 rows"),
        ({**PLAIN, "scale": np.ones(2, F32)}, r"scale has shape \(2,\)"),
        ({**PLAIN, "scale": np.ones((3, 1), F32)}, r"scale has shape \(3, 1\)"),
        ({**PLAIN, "scale": np.ones((2, 0), F32)}, r"scale has shape \(2, 0\)"),
        ({**GROUPED, "scale": np.ones((1, 3), F16)}, "has groups but not one row a channel"),
        ({**GROUPED, "scale": np.ones((2, 4), F16)}, "4 groups do not divide 6 columns"),
        ({**GROUPED, "shape": (2, 3, 2)}, "group_size=2 does not divide 3 inputs"),
        ({**GROUPED, "shape": (2, 1, 6)}, "a kernel with one input has one scale a channel, not 3 groups"),
        ({**PLAIN, "scale": np.ones((1, 1), F16)}, "scale is float16, stored as float32"),
        ({**GROUPED, "scale": np.ones((2, 3), F32)}, "scale is float32, stored as float16"),
        ({**PLAIN, "zero_point": np.zeros((1, 1), F16)}, "zero_point is float16, stored as float32"),
        ({**GROUPED, "zero_point": np.zeros((1, 1), F32)}, "zero_point is float32, stored as float16"),
        ({**PLAIN, "zero_point": np.zeros((2, 1), F32)}, r"zero_point of shape \(2, 1\) does not fit scale \(1, 1\)"),
        ({**GROUPED, "zero_point": np.zeros((2, 1), F16)}, r"zero_point of shape \(2, 1\) does not fit"),
        ({**PLAIN, "scale": ONE * np.nan}, "scale is not finite"),
        ({**GROUPED, "scale": np.full((2, 3), np.inf, F16)}, "scale is not finite"),
        ({**PLAIN, "zero_point": ONE * -np.inf}, "zero_point is not finite"),
        ({**PLAIN, "num_levels": 5}, "num_levels=5 does not fit bits=2"),
        ({**PLAIN, "num_levels": -1}, "num_levels=-1 does not fit bits=2"),
        ({**PLAIN, "num_levels": 3}, "num_levels=3 without a codebook"),
        ({**PLAIN, "codes": codes_with(4)}, "a code is 4, beyond the 4 levels"),
        ({**BOOK, "codes": codes_with(3)}, "a code is 3, beyond the 3 levels"),
        ({**BOOK, "codebook": np.array([-5, 0, 7], np.int8)}, r"codebook is int8 \(3,\)"),
        ({**BOOK, "codebook": np.array([0, 1, 2, 2], np.uint8)}, r"codebook is uint8 \(4,\)"),
        ({**BOOK, "codebook": np.array([127, -128, 7, 7], np.int8)}, "codebook does not ascend"),
        ({**BOOK, "codebook": np.array([-5, 0, 7, 8], np.int8)}, "codebook is not padded by its last level"),
        ({**BOOK, "zero_point": ONE}, "one scale per tensor or channel and zero_point 0"),
        (
            {**BOOK, "scale": GROUPED["scale"], "zero_point": GROUPED["zero_point"]},
            "a codebook has one scale per tensor or channel",
        ),
    ],
)  # fmt: skip
def test_a_broken_invariant_is_refused_and_named(fields, complaint):
    with pytest.raises(ValueError, match=complaint):
        QTensor(**fields)


def test_a_tensor_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        QTensor(**PLAIN).bits = 4
