"""Products of two bytes: what they keep, that they cost no new operation, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from tests.runtime.small_programs import GRIDS, packed_weight, program_of

from subtone.export.integer import Grids, integer_program
from subtone.export.making import WIDE_LIMIT
from subtone.export.ranges import Range, observe
from subtone.program import (
    Add,
    Constant,
    Conv1d,
    Conv2d,
    IntegerAdd,
    IntegerConv1d,
    Op,
    Program,
    Relu,
    Rescale,
    Scale,
)
from subtone.runtime.doors import levels_at
from subtone.runtime.engine import NumpyEngine, load_engine

RNG = np.random.default_rng(11)
F32 = np.float32
WIDE = Grids(wide_products=("wide*",))


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(F32)


def made_of(
    constants: dict[str, Constant], x: np.ndarray, *ops: Op, grids: Grids = WIDE
) -> tuple[Program, Program, dict[str, Constant]]:
    """The float program of `ops`, and the integer one that it becomes."""
    program = program_of(*ops, width_in=x.shape[1], width_out=len(constants["w"].codes))
    made, integers = integer_program(program, constants, observe(program, constants, [x]), grids=grids)
    made.widths(integers)
    assert not made.float_parts(integers)
    return program, made, integers


@pytest.mark.parametrize("bits", [1, 3, 8])
@pytest.mark.parametrize("grid", GRIDS)
def test_a_wide_product_is_the_real_one_of_levels_of_16_bits(grid: str, bits: int) -> None:
    """Half a level of y and 2**-29 of the largest that any level could give: 2**-30 for each of the two partial sums."""
    weight = packed_weight(RNG, (12, 16), bits=bits, grid=grid, groups=2)
    constants: dict[str, Constant] = {"w": weight, "b": floats(12)}
    x = floats(40, 16)
    op = Conv1d(input="x", output="y", weight="w", bias="b", source="wide")
    _, made, integers = made_of(constants, x, op)
    (door,) = made.doors
    assert (door.low, door.high) == (-WIDE_LIMIT, WIDE_LIMIT)
    levels = levels_at(door, x)
    exact = door.scale * levels.astype(np.float64) @ weight.dequantize().astype(np.float64).T + constants["b"]
    found = NumpyEngine(made, integers).run(levels) * made.output_scale
    reach = 129 * 256 * door.scale * np.abs(weight.dequantize()).sum(1).max() + np.abs(constants["b"]).max()
    decoding = 2.0**-23 * np.abs(exact).max() * 40  # dequantize() rounds each weight to float32
    assert np.abs(found - exact).max() <= 0.5 * made.output_scale + reach * 2.0**-29 + decoding


def test_two_bytes_are_the_value_itself_wherever_calibration_has_been_and_beyond() -> None:
    weight = packed_weight(RNG, (3, 1), bits=8, grid="symmetric")
    for ops, lowest in (
        ([Conv1d(input="x", output="y", weight="w", source="wide")], -WIDE_LIMIT),
        ([Relu(input="x", output="r"), Conv1d(input="r", output="y", weight="w", source="wide")], 0),
    ):
        _, made, integers = made_of({"w": weight}, floats(9, 1), *ops)
        engine = NumpyEngine(made, integers)
        name = "x" if len(ops) == 1 else "r"
        seen = engine.values(np.arange(-WIDE_LIMIT, WIDE_LIMIT + 1, dtype=np.int32)[:, None])
        high, low, x = (seen[each].ravel() for each in (f"{name}.high", f"{name}.low", name))
        is_kept = 256 * high + low == x
        assert x.min() == lowest
        assert is_kept[x <= 32639].all()
        assert x[~is_kept].size == (0 if lowest == 0 else WIDE_LIMIT - 32639)
        assert (low.min(), low.max()) == (-128, 127)


def test_what_16_bits_read_is_nearer_than_what_8_do() -> None:
    constants: dict[str, Constant] = {
        "w": packed_weight(RNG, (8, 8), bits=8, grid="symmetric"),
        "d": packed_weight(RNG, (8, 1, 3), bits=8, grid="symmetric"),
    }
    depthwise = Conv1d(input="x", output="a", weight="d", kernel=3, padding=1, groups=8, source="dw")
    ops = (depthwise, Conv1d(input="a", output="y", weight="w", relu=True, source="wide"))
    x = floats(200, 8) * np.array([8, 1, 1, 1, 1, 1, 1, 1], F32)
    errors = []
    for grids in (Grids(), WIDE, Grids(wide_products=("*",))):
        program, made, integers = made_of(constants, x, *ops, grids=grids)
        found = NumpyEngine(made, integers).run(levels_at(made.doors[0], x)) * made.output_scale
        errors.append(np.linalg.norm(found - NumpyEngine(program, constants).run(x)))
    assert errors[0] > errors[1] > errors[2]


def test_readers_of_one_value_share_its_bytes_and_a_narrow_reader_has_its_own() -> None:
    constants: dict[str, Constant] = {"w": packed_weight(RNG, (4, 4), bits=8, grid="symmetric")}
    ops = (
        Conv1d(input="x", output="a", weight="w", source="wide.0"),
        Conv1d(input="x", output="b", weight="w", source="wide.1"),
        Conv1d(input="x", output="c", weight="w", source="narrow"),
        Add(left="a", right="b", output="d"),
        Add(left="c", right="d", output="y"),
    )
    _, made, integers = made_of(constants, floats(20, 4), *ops)
    read = [op.input for op in made.ops if isinstance(op, IntegerConv1d)]
    assert read == ["x.high", "x.low", "x.high", "x.low", "x.narrow"]
    assert [op.output for op in made.ops if isinstance(op, Rescale)] == ["x.high", "x.narrow"]
    assert sum(not isinstance(value, np.ndarray) for value in integers.values()) == 1  # the weight, once


def test_a_gain_and_a_scale_behind_join_both_bytes() -> None:
    weight = packed_weight(RNG, (6, 16), bits=4, grid="group", groups=2)
    constants: dict[str, Constant] = {
        "w": weight,
        "g": np.array([1, -2, 0.5, 3, 1, 0.25], F32),
        "b": floats(6),
    }
    product = Conv1d(input="x", output="a", weight="w", gain="g", bias="b", source="wide")
    x = floats(30, 16)
    program, made, integers = made_of(constants, x, product, Scale(input="a", output="y", factor=-0.5))
    assert isinstance(made.ops[-1], IntegerAdd)
    found = NumpyEngine(made, integers).run(levels_at(made.doors[0], x)) * made.output_scale
    door = 0.5 * made.doors[0].scale * np.abs(weight.dequantize()).sum(1).max() * 3 * 0.5
    assert np.abs(found - NumpyEngine(program, constants).run(x)).max() <= door * 1.01 + 1e-5


def test_over_features_and_natively_two_bytes_give_the_same_integers() -> None:
    weight = packed_weight(RNG, (4, 2, 3, 3), bits=8, grid="symmetric")
    conv = Conv2d(
        input="x", output="y", weight="w", kernel=3, feature_kernel=3, padding=1, feature_padding=1,
        in_channels=2, relu=True, source="wide",
    )  # fmt: skip
    x = floats(25, 10)
    program = program_of(conv, width_in=10, width_out=20)
    ranges = observe(program, {"w": weight}, [x])
    made, integers = integer_program(program, {"w": weight}, ranges, grids=WIDE)
    levels = levels_at(made.doors[0], x)
    found = NumpyEngine(made, integers).run(levels)
    assert np.array_equal(load_engine(made, integers).run(levels), found)
    errors = np.abs(found * made.output_scale - NumpyEngine(program, {"w": weight}).run(x))
    assert (
        errors.max() <= 0.51 * made.doors[0].scale * np.abs(weight.dequantize()).sum((1, 2, 3)).max() + 1e-5
    )


@pytest.mark.parametrize("grid", GRIDS)
def test_natively_whole_and_in_any_cut_two_bytes_give_the_same_integers(grid: str) -> None:
    constants: dict[str, Constant] = {
        "w": packed_weight(RNG, (20, 24), bits=5, grid=grid, groups=2),
        "d": packed_weight(RNG, (24, 1, 3), bits=8, grid="symmetric"),
        "b": floats(20),
    }
    ops = (
        Conv1d(input="x", output="a", weight="d", kernel=3, padding=1, groups=24, source="wide.0"),
        Relu(input="a", output="r"),
        Conv1d(input="r", output="u", weight="w", bias="b", relu=True, source="wide.1"),
        Conv1d(input="a", output="v", weight="w", bias="b", source="wide.2"),
        Add(left="u", right="v", output="y"),
    )
    _, made, integers = made_of(constants, floats(40, 24), *ops)
    levels = RNG.integers(-WIDE_LIMIT, WIDE_LIMIT + 1, (60, 24)).astype(np.int32)
    expected = NumpyEngine(made, integers).run(levels)
    engine = load_engine(made, integers)
    assert np.array_equal(engine.run(levels), expected)
    state, parts = engine.start(), []
    for cut in np.array_split(levels, [1, 2, 30]):
        part, state = engine.step(state, cut)
        parts.append(part)
    parts.append(engine.step(state, levels[:0], is_last=True)[0])
    assert np.array_equal(np.concatenate(parts), expected)


def test_no_product_is_wide_where_sums_have_8_bits() -> None:
    weight = packed_weight(RNG, (4, 4), bits=8, grid="symmetric")
    op = Conv1d(input="x", output="y", weight="w", source="wide")
    _, made, _ = made_of({"w": weight}, floats(9, 4), op, grids=Grids(wide_limit=127, wide_products=("*",)))
    assert [type(one) for one in made.ops] == [IntegerConv1d]


def test_a_value_that_never_moved_is_refused_by_name_there_too() -> None:
    op = Conv1d(input="x", output="y", weight="w", source="wide")
    program = program_of(op, width_in=4, width_out=4)
    weight = packed_weight(RNG, (4, 4), bits=8, grid="symmetric")
    with pytest.raises(ValueError, match="the input x: x never moved from 0 in calibration"):
        integer_program(program, {"w": weight}, {"x": Range(0, 0), "y": Range(-1, 1)}, grids=WIDE)
