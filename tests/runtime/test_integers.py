"""Integer-only programs: the NumPy definition is what exact integers give, and every instruction set, number of
threads and way of cutting a stream gives the same numbers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reference import integers as reference
from tests.runtime.comparison import ISAS
from tests.runtime.definitions import all_values
from tests.runtime.integer_programs import INT8, UINT8, integer_program, levels_for, random_weight

from subtone.numerics import requantize_total
from subtone.program import (
    Bounds,
    Constant,
    Door,
    IntegerAdd,
    IntegerAffine,
    IntegerConv1d,
    IntegerConv2d,
    IntegerMultiply,
    IntegerOperation,
    IntegerWeight,
    Op,
    Program,
    Rescale,
)
from subtone.runtime.engine import NativeEngine, NumpyEngine

SEEDS = st.integers(0, 10**6)
REFERENCE = {IntegerConv1d: reference.integer_conv1d, IntegerConv2d: reference.integer_conv2d}
WHOLE_INT8 = Bounds(-128, 127)


def program_of(*ops: Op, width: int, width_out: int, bounds: Bounds = INT8) -> Program:
    return Program(
        input="x", input_width=width, output="y", output_width=width_out, frames_per_step=1, ops=ops,
        doors=(Door(0.5, *bounds),), output_scale=0.25,
    )  # fmt: skip


def product_constants(
    weight: IntegerWeight,
    *,
    groups: int = 1,
    shift: int = 40,
    correction: bool = False,
    offset: bool = True,
    seed: int = 0,
) -> dict[str, Constant]:
    """`w` with random integers for it: `m`, `s`, and where asked for `q` and `b`."""
    rng, rows = np.random.default_rng(seed), weight.num_rows
    multiplier = rng.integers(2**30, 2**31, (rows, groups)) * rng.choice([-1, 1], (rows, groups))
    constants: dict[str, Constant] = {"w": weight, "m": multiplier.astype(np.int32)}
    constants["s"] = np.full(rows, shift, np.int32)
    if correction:
        constants["q"] = rng.integers(-(2**36), 2**36, (rows, groups))
    if offset:
        constants["b"] = rng.integers(-(2**46), 2**46, rows)
    return constants


def convolution(constants: dict[str, Constant], kind: type = IntegerConv1d, **fields) -> Op:
    """x to y, by whatever integers there are."""
    optional = {"correction": "q" if "q" in constants else "", "offset": "b" if "b" in constants else ""}
    names = {"weight": "w", "multiplier": "m", "shift": "s", **optional}
    return kind(**{"input": "x", "output": "y", "low": -(2**30), "high": 2**30, **names, **fields})


def assert_all_alike(
    program: Program,
    constants: dict[str, Constant],
    isa: str,
    inputs: list[np.ndarray],
    *,
    threads: tuple[int, ...] = (1, 2, 3),
) -> list[np.ndarray]:
    """One engine for all inputs, as in use; what the definition gives."""
    definition = NumpyEngine(program, constants)
    results = [definition.run(x) for x in inputs]
    for count in threads:
        engine = NativeEngine(program, constants, threads=count, isa=isa)
        for x, expected in zip(inputs, results, strict=True):
            found = engine.run(x)
            assert found.dtype == expected.dtype == np.int32
            assert found.shape == expected.shape
            assert np.array_equal(found, expected)
    return results


# The definition --------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(SEEDS)
def test_the_definition_is_what_exact_integers_give(seed):
    rng = np.random.default_rng(seed)
    program, constants = integer_program(rng, int(rng.integers(1, 6)))
    x = levels_for(rng, program, int(rng.integers(1, 12)))
    values = all_values(program, constants, x)
    for op in program.ops:
        if not isinstance(op, IntegerOperation):
            continue
        inputs = [values[getattr(op, field)] for field in op.VALUES]
        if type(op) in REFERENCE:
            if max(inputs[0].shape[1], values[op.output].size) > 400:
                continue
            expected = REFERENCE[type(op)](op, *inputs, constants)
        else:
            expected = reference.rowwise(op, inputs[0], inputs[-1], constants)
        assert np.array_equal(values[op.output], expected)


@given(st.integers(-(2**62), 2**62), st.integers(1, 62), st.integers(-(2**31) + 1, 2**31 - 2))
def test_a_total_of_64_bits_is_rounded_half_up_and_clipped(total, shift, low):
    found = requantize_total(np.array([total]), shift, low, low + 1)
    assert found.tolist() == [reference.requantized(total, shift, low, low + 1)]
    wide = requantize_total(np.array([total]), shift, -(2**31) + 1, 2**31 - 1)
    assert wide.tolist() == [reference.requantized(total, shift, -(2**31) + 1, 2**31 - 1)]


# Native ----------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", ISAS)
@settings(deadline=None, max_examples=50)
@given(seed=SEEDS)
def test_random_programs_are_equal(isa, seed):
    rng = np.random.default_rng(seed)
    program, constants = integer_program(rng, int(rng.integers(1, 8)))
    inputs = [levels_for(rng, program, rows) for rows in (0, 1, int(rng.integers(2, 100)))]
    assert_all_alike(program, constants, isa, inputs, threads=(1, int(rng.integers(2, 4))))


@pytest.mark.parametrize("isa", ISAS)
@settings(deadline=None, max_examples=30)
@given(seed=SEEDS, cuts=st.lists(st.integers(0, 12), max_size=8), threads=st.integers(1, 3))
def test_streams_of_random_programs_are_equal_however_they_are_cut(isa, seed, cuts, threads):
    rng = np.random.default_rng(seed)
    program, constants = integer_program(rng, int(rng.integers(1, 7)))
    x = levels_for(rng, program, int(rng.integers(1, 40)))
    engine = NativeEngine(program, constants, threads=threads, isa=isa)
    chunks = np.split(x, np.minimum(np.cumsum(cuts, dtype=np.int64), len(x)))
    state, found = engine.start(), []
    for index, chunk in enumerate(chunks):
        output, state = engine.step(state, chunk, is_last=index == len(chunks) - 1)
        assert state.rows.dtype == np.int32
        found.append(output)
    assert np.array_equal(np.concatenate(found), NumpyEngine(program, constants).run(x))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("columns", [1, 2, 3, 5, 16, 63, 64, 65, 257])
@pytest.mark.parametrize("shift", [31, 32, 45], ids="shift {}".format)
def test_products_of_every_edge_size_are_equal(isa, columns, shift):
    rng = np.random.default_rng(columns)
    for turn, outputs in enumerate((1, 15, 16, 17, 48, 64, 65, 130)):
        weight = random_weight(rng, (outputs, columns))
        constants = product_constants(weight, shift=shift, correction=turn % 3 == 0, seed=turn)
        bounds = (INT8, UINT8, WHOLE_INT8)[turn % 3]
        # No clip hides a result: a total is below 2**31 * 128 * 255 * 257, which is 2**23 after its shift.
        program = program_of(convolution(constants), width=columns, width_out=outputs, bounds=bounds)
        inputs = [levels_for(rng, program, rows) for rows in (1, 5, 6, 7, 33)]
        assert_all_alike(program, constants, isa, inputs, threads=(1 + turn % 3,))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("groups", [1, 2, 3, 5, 30])
@pytest.mark.parametrize("correction", [False, True])
def test_groups_that_share_quads_of_columns_or_span_taps_are_equal(isa, groups, correction):
    rng = np.random.default_rng(groups)
    for kernel, depth in ((1, 30), (3, 10), (5, 6)):
        weight = random_weight(rng, (70, depth, kernel))
        constants = product_constants(weight, groups=groups, correction=correction)
        program = program_of(convolution(constants, kernel=kernel, padding=1), width=depth, width_out=70)
        assert_all_alike(program, constants, isa, [levels_for(rng, program, rows) for rows in (4, 20)])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    "taps",
    [
        {"kernel": 33, "padding": 16, "stride": 2},
        {"kernel": 87, "padding": 86, "dilation": 2},
        {"kernel": 75, "padding": 37},
        {"kernel": 1},
        {"kernel": 4, "padding": 9, "padding_behind": 0, "dilation": 3, "stride": 3},
        {"kernel": 2, "padding": 1, "dilation": 5000},  # more rows than a block of bytes holds
        {"kernel": 6, "multipliers": 3},
    ],
    ids=lambda taps: " ".join(f"{name} {value}" for name, value in taps.items()),
)
def test_depthwise_convolutions_of_the_papers_shapes_are_equal(isa, taps):
    rng = np.random.default_rng(0)
    taps = dict(taps)
    groups = taps.pop("multipliers", 1)
    for turn, channels in enumerate((1, 16, 50)):
        weight = random_weight(rng, (channels, 1, taps["kernel"]), bits=8)
        for bounds, correction in ((INT8, turn == 0), (UINT8, turn == 1), (WHOLE_INT8, turn == 2)):
            constants = product_constants(weight, groups=groups, correction=correction, shift=30 + 6 * turn)
            op = convolution(constants, groups=channels, **taps)
            program = program_of(op, width=channels, width_out=channels, bounds=bounds)
            rows = 3 if taps.get("dilation") == 5000 else 150
            assert_all_alike(program, constants, isa, [levels_for(rng, program, n) for n in (rows, rows + 9)])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("groups", [1, 3])
def test_convolutions_over_images_are_equal_at_every_edge(isa, groups):
    rng = np.random.default_rng(groups)
    for features, taps in (
        (80, {"kernel": 3, "stride": 2, "padding": 1, "feature_kernel": 3, "feature_stride": 2}),
        (2, {"feature_kernel": 1, "feature_padding": 9}),
        (7, {"kernel": 2, "feature_kernel": 9, "feature_padding": 1}),
    ):
        outputs = 9 * groups
        shape = (outputs, 3 // groups, taps.get("kernel", 1), taps["feature_kernel"])
        constants = product_constants(random_weight(rng, shape), correction=True)
        op = convolution(constants, IntegerConv2d, in_channels=3, groups=groups, **taps)
        width_out = outputs * op.features_out(features)
        program = program_of(op, width=3 * features, width_out=width_out, bounds=UINT8)
        assert_all_alike(program, constants, isa, [levels_for(rng, program, rows) for rows in (5, 8)])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("channels", [1, 16, 37])
def test_depthwise_convolutions_over_images_are_equal(isa, channels):
    rng = np.random.default_rng(channels)
    for turn, (kernel, feature_kernel) in enumerate(((3, 3), (1, 4), (2, 1), (3, 3))):
        weight = random_weight(rng, (channels, 1, kernel, feature_kernel), bits=8)
        groups = 1 if turn < 3 else 3
        constants = product_constants(weight, groups=groups, correction=turn % 2 == 0, shift=31 + turn)
        taps = {"kernel": kernel, "feature_kernel": feature_kernel, "padding": 1, "feature_padding": turn}
        op = convolution(constants, IntegerConv2d, in_channels=channels, groups=channels, **taps)
        width_out = channels * op.features_out(9)
        bounds = (INT8, UINT8, WHOLE_INT8, UINT8)[turn]
        program = program_of(op, width=9 * channels, width_out=width_out, bounds=bounds)
        assert_all_alike(program, constants, isa, [levels_for(rng, program, rows) for rows in (1, 6)])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bounds", [WHOLE_INT8, UINT8], ids=["int8", "uint8"])
@pytest.mark.parametrize("code", [0, 255], ids=["level -128", "level 127"])
def test_the_outermost_levels_reach_the_ends_of_int32_and_no_further(isa, bounds, code):
    columns = (2**31 - 1) // (128 * bounds.magnitude)  # the widest product there is
    codes = np.full((2, columns), code, np.uint8)
    weight = IntegerWeight(codes=codes, shape=codes.shape, bits=8)
    ones = np.ones(2, np.int32)
    constants = {"w": weight, "m": ones[:, None], "s": ones, "b": np.array([0, 2**31 - 1])}
    top = {"low": -(2**31) + 1, "high": 2**31 - 1}
    program = program_of(convolution(constants, **top), width=columns, width_out=2, bounds=bounds)
    x = np.full((7, columns), 0, np.int32)
    x[0], x[1], x[6] = bounds.low, bounds.high, bounds.high
    (found,) = assert_all_alike(program, constants, isa, [x], threads=(1,))
    level = code - 128
    for row in (0, 1, 2):
        total = level * int(x[row, 0]) * columns
        assert found[row].tolist() == [
            reference.requantized(more, 1, top["low"], top["high"]) for more in (total, total + 2**31 - 1)
        ]
    assert abs(level * bounds.magnitude * columns) > 2**30


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("columns", [256, 1000, 4096])
def test_wide_products_at_the_outermost_levels_are_equal(isa, columns):
    rng = np.random.default_rng(columns)
    codes = np.zeros((65, columns), np.uint8)
    codes[1:] = rng.choice([0, 255], (64, columns))
    weight = IntegerWeight(codes=codes, shape=codes.shape, bits=8)
    for bounds in (WHOLE_INT8, UINT8):
        constants = product_constants(weight, shift=31)
        op = convolution(constants, low=-(2**31) + 1, high=2**31 - 1)
        program = program_of(op, width=columns, width_out=65, bounds=bounds)
        x = rng.choice([bounds.low, bounds.high], (13, columns)).astype(np.int32)
        x[0], x[1] = bounds.low, bounds.high
        assert_all_alike(program, constants, isa, [x], threads=(2,))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shift", [1, 2, 31, 32, 33, 61, 62])
def test_every_operation_of_rows_is_equal_at_every_shift(isa, shift):
    """Values of 30 bits, multipliers as large as the shift allows: totals up to 2**62."""
    rng = np.random.default_rng(shift)
    wide = Bounds(-(2**30), 2**30)
    top = {"low": -(2**31) + 1, "high": 2**31 - 1}
    constants: dict[str, Constant] = {
        "m": rng.integers(-(2**31) + 1, 2**31, 37).astype(np.int32),
        "o": rng.integers(-(2**60), 2**60, 37),
        "s": np.full(37, shift, np.int32),
    }
    more = {"shift": shift, **top}
    ops = (
        IntegerAdd(left="x", right="x", output="y", left_multiplier=2**31 - 1, right_multiplier=1 - 2**31, **more),
        IntegerAdd(left="x", right="x", output="y", left_multiplier=2**30, right_multiplier=2**30 + 7, **more),
        Rescale(input="x", output="y", multiplier=1 - 2**31, **more),
        IntegerAffine(input="x", output="y", multiplier="m", offset="o", shift="s", **top),
    )  # fmt: skip
    for op in ops:
        program = program_of(op, width=37, width_out=37, bounds=wide)
        x = levels_for(rng, program, 20)
        (found,) = assert_all_alike(program, constants, isa, [x], threads=(2,))
        assert np.array_equal(found, reference.rowwise(op, x, x, constants))
    narrow = Bounds(-(2**15), 2**15 - 1)
    op = IntegerMultiply(left="x", right="x", output="y", multiplier=2**31 - 1, **more)
    program = program_of(op, width=37, width_out=37, bounds=narrow)
    x = levels_for(rng, program, 20)
    (found,) = assert_all_alike(program, constants, isa, [x], threads=(2,))
    assert np.array_equal(found, reference.rowwise(op, x, x, constants))


@pytest.mark.parametrize("isa", ISAS)
def test_levels_beyond_those_of_a_door_are_refused_before_they_run(isa):
    constants = product_constants(random_weight(np.random.default_rng(0), (3, 4)))
    engine = NativeEngine(program_of(convolution(constants), width=4, width_out=3), constants, isa=isa)
    with pytest.raises(ValueError, match="features hold levels of 0 to 128; the program takes -127 to 127"):
        engine.run(np.array([[0, 0, 0, 128]], np.int32))
    with pytest.raises(ValueError, match="features are float32; use a int32 array"):
        engine.run(np.zeros((1, 4), np.float32))
    for twin in (engine, NumpyEngine(engine.program, constants)):
        with pytest.raises(ValueError, match="features are int64"):
            twin.run(np.zeros((1, 4), np.int64))


def test_a_program_of_floats_takes_no_levels_and_one_of_levels_no_floats():
    constants = product_constants(random_weight(np.random.default_rng(0), (3, 4)))
    program = program_of(convolution(constants), width=4, width_out=3)
    plain = dataclasses.replace(program, doors=(), output_scale=0.0)
    with pytest.raises(ValueError, match="computes in integers, and the program has no doors"):
        NumpyEngine(plain, constants)
