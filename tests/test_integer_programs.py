"""Integer-only programs: bounds from which no sum can overflow, everything that is refused, and their JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runtime.definitions import all_values
from tests.runtime.integer_programs import integer_program, levels_for

from subtone.numerics import symmetric_grid
from subtone.program import (
    MAX_LEVEL,
    Bounds,
    Columns,
    Concat,
    Constant,
    Door,
    IntegerAdd,
    IntegerAffine,
    IntegerConv1d,
    IntegerConv2d,
    IntegerMultiply,
    IntegerWeight,
    Op,
    Program,
    Relu,
    Rescale,
)
from subtone.qtensor import QTensor

RNG = np.random.default_rng(0)
INT8 = Bounds(-127, 127)
RANGE = {"low": -127, "high": 127}


def weight(rows: int, columns: int, *taps: int) -> IntegerWeight:
    codes = RNG.integers(0, 256, (rows, columns * int(np.prod(taps)))).astype(np.uint8)
    return IntegerWeight(codes=codes, shape=(rows, columns, *taps), bits=8)


def int32(*shape: int, value: int = 1) -> np.ndarray:
    return np.full(shape, value, np.int32)


CONSTANTS: dict[str, Constant] = {
    "w": weight(3, 4),
    "image": weight(3, 2, 1, 1),
    "floats": np.ones((3, 4), np.float32),
    "packed": QTensor.on_grid(
        np.ones((3, 4), np.float32), symmetric_grid(np.ones((3, 1)), 8), 8, is_symmetric=True
    ),
    "m": int32(3, 1),
    "by_two": int32(3, 2),
    "by_three": int32(3, 3),
    "three": int32(3),
    "offsets": np.full(3, 2**40),
    "four": int32(4),
    "large": int32(3, 1, value=MAX_LEVEL),
    "far": int32(3, value=63),
    "none": int32(3, value=0),
    "wide": np.ones((3, 1), np.int64),
    "wider": np.full((3, 1), 2**60),
    "offset": np.ones(4, np.int64),
    "offset_far": np.full(4, 2**62),
    "column": int32(3, 1),
}


def conv1d(**fields) -> IntegerConv1d:
    names = {"weight": "w", "multiplier": "m", "shift": "three"}
    return IntegerConv1d(**{"input": "x", "output": "y", **names, **RANGE, **fields})


def conv2d(**fields) -> IntegerConv2d:
    names = {"weight": "image", "multiplier": "m", "shift": "three"}
    return IntegerConv2d(**{"input": "x", "output": "y", "in_channels": 2, **names, **RANGE, **fields})


def add(**fields) -> IntegerAdd:
    factors = {"left_multiplier": 1, "right_multiplier": 1}
    return IntegerAdd(**{"left": "x", "right": "x", "output": "y", "shift": 1, **factors, **RANGE, **fields})


def multiply(**fields) -> IntegerMultiply:
    return IntegerMultiply(
        **{"left": "x", "right": "x", "output": "y", "multiplier": 1, "shift": 1, **RANGE, **fields}
    )


def rescale(**fields) -> Rescale:
    return Rescale(**{"input": "x", "output": "y", "multiplier": 1, "shift": 1, **RANGE, **fields})


def affine(**fields) -> IntegerAffine:
    names = {"multiplier": "four", "offset": "offset", "shift": "four"}
    return IntegerAffine(**{"input": "x", "output": "y", **names, **RANGE, **fields})


def program_of(*ops: Op, width: int = 4, width_out: int = 4, bounds: Bounds = INT8, **fields) -> Program:
    settings = {"doors": (Door(0.5, *bounds),), "output_scale": 0.25, **fields}
    return Program(
        input="x", input_width=width, output="y", output_width=width_out, frames_per_step=1, ops=ops, **settings
    )  # fmt: skip


@pytest.mark.parametrize(
    ("op", "complaint"),
    [
        # The end of every operation
        (rescale(low=5, high=5), "(rescale of y) has low=5 and high=5; they must ascend within -2147483647"),
        (add(high=2**31), "has low=-127 and high=2147483648; they must ascend within"),
        (conv1d(low=-(2**31)), "has low=-2147483648 and high=127; they must ascend within"),
        (rescale(shift=0), "(rescale of y) has shift=0; use 1 to 62"),
        (add(shift=63), "(integer_add of y) has shift=63; use 1 to 62"),
        (multiply(shift=-1), "(integer_multiply of y) has shift=-1; use 1 to 62"),
        (conv1d(shift="far"), "(integer_conv1d of y) has shift=63; use 1 to 62"),
        (conv1d(shift="none"), "(integer_conv1d of y) has shift=0; use 1 to 62"),
        (affine(shift="none"), "(integer_affine of y) needs shift of (4,) in int32, none does not fit"),
        # Products
        (conv1d(weight="floats"), "reads the weight floats, which is not one of integers alone"),
        (conv1d(weight="packed"), "reads the weight packed, which is not one of integers alone"),
        (conv1d(multiplier="by_three"), "(integer_conv1d of y) has 3 groups for 4 columns"),
        (conv1d(multiplier="three"), "needs multiplier of (3, 1) in int32, three does not fit"),
        (conv1d(multiplier="wide"), "needs multiplier of (3, 1) in int32, wide does not fit"),
        (conv1d(multiplier="w"), "needs multiplier of (3, 1) in int32, w does not fit"),
        (conv1d(correction="m"), "needs correction of (3, 1) in int64, m does not fit"),
        (conv1d(multiplier="by_two", correction="wide"), "needs correction of (3, 2) in int64, wide does not"),
        (conv1d(offset="three"), "needs offset of (3,) in int64, three does not fit"),
        (conv1d(shift="column"), "needs shift of (3,) in int32, column does not fit"),
        (conv1d(offset="missing"), "reads the constant missing, which is missing"),
        (conv1d(multiplier=""), "(integer_conv1d of y) names no multiplier"),
        (conv1d(kernel=2), "needs a weight of (3, 4, 2), w has (3, 4)"),
        (conv1d(groups=2), "has groups=2 for 4 inputs and 3 outputs; use 1, or what divides both"),
        (conv2d(in_channels=3), "(integer_conv2d of y) has in_channels=3, which does not divide 4"),
        (conv2d(weight="w"), "needs a weight of (3, 2, 1, 1), w has (3, 4)"),
        # Constants elsewhere
        (affine(multiplier="three"), "(integer_affine of y) needs multiplier of (4,) in int32, three does"),
        (affine(offset="four"), "(integer_affine of y) needs offset of (4,) in int64, four does not fit"),
        # Sums that might overflow
        (affine(offset="offset_far"), "(integer_affine of y) may reach a total of 4.61e+18, beyond 2**62; give"),
        (conv1d(correction="wider"), "(integer_conv1d of y) may reach a total of 5.86e+20, beyond 2**62"),
        (rescale(multiplier=2**31), "(rescale of y) has multiplier=2147483648; use -2147483647 to 2147483647"),
        (add(right_multiplier=-(2**31)), "has right_multiplier=-2147483648; use -2147483647 to 2147483647"),
        (multiply(multiplier=2**31), "(integer_multiply of y) has multiplier=2147483648; use"),
        # Only levels
        (Relu(input="x", output="y"), "(relu of y) computes in floating point, which an integer-only program"),
        (add(right="floats"), "reads the constant floats as a table; that needs an int32 array (rows, width)"),
        (add(right="three"), "reads the constant three as a table; that needs an int32 array (rows, width)"),
    ],
)  # fmt: skip
def test_an_operation_that_does_not_fit_is_refused_and_named(op, complaint):
    with pytest.raises(ValueError) as refusal:
        program_of(op, width_out=3 if isinstance(op, IntegerConv1d) else 4).widths(CONSTANTS)
    assert complaint in str(refusal.value)


@pytest.mark.parametrize(
    ("op", "bounds", "complaint"),
    [
        (conv1d(), Bounds(-129, 0), "reads levels of -129 to 0; a product takes int8 or uint8"),
        (conv1d(), Bounds(-1, 128), "reads levels of -1 to 128; a product takes int8 or uint8"),
        (conv1d(), Bounds(0, 256), "reads levels of 0 to 256; a product takes int8 or uint8"),
        (multiply(), Bounds(-46341, 0), "multiplies levels up to 2147488281, which may overflow int32"),
        (
            add(left_multiplier=MAX_LEVEL, right_multiplier=-MAX_LEVEL),
            Bounds(0, 2**30 + 1),
            "may reach a total of 4.61e+18, beyond 2**62; give it a larger range or a smaller multiplier",
        ),
    ],
)  # fmt: skip
def test_what_might_overflow_within_the_bounds_of_its_inputs_is_refused(op, bounds, complaint):
    width_out = 3 if isinstance(op, IntegerConv1d) else 4
    with pytest.raises(ValueError) as refusal:
        program_of(op, width_out=width_out, bounds=bounds).widths(CONSTANTS)
    assert complaint in str(refusal.value)


def test_what_is_just_within_the_bounds_is_not_refused():
    for op, bounds in (
        (conv1d(), Bounds(-128, 127)),
        (conv1d(), Bounds(0, 255)),
        (conv1d(multiplier="large", offset="offsets"), Bounds(0, 255)),
        (multiply(multiplier=MAX_LEVEL), Bounds(-46340, 46340)),
        (add(left_multiplier=MAX_LEVEL, right_multiplier=-MAX_LEVEL), Bounds(0, 2**30)),
        (rescale(multiplier=-MAX_LEVEL), Bounds(-MAX_LEVEL, MAX_LEVEL)),
        (affine(), Bounds(-MAX_LEVEL, MAX_LEVEL)),
    ):
        width_out = 3 if isinstance(op, IntegerConv1d) else 4
        program_of(op, width_out=width_out, bounds=bounds).widths(CONSTANTS)


@pytest.mark.parametrize(("bounds", "most"), [(Bounds(-128, 127), 131071), (Bounds(0, 255), 65793)])
def test_a_product_is_as_wide_as_int32_holds_and_no_wider(bounds, most):
    for columns in (most, most + 1):
        constants = {"w": weight(1, columns), "m": int32(1, 1), "s": int32(1)}
        op = conv1d(shift="s")
        program = program_of(op, width=columns, width_out=1, bounds=bounds)
        if columns == most:
            program.widths(constants)
            continue
        with pytest.raises(ValueError) as refusal:
            program.widths(constants)
        complaint = f"sums {columns} products of {bounds.magnitude} by 128, which may overflow int32"
        assert complaint in str(refusal.value)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6))
def test_every_value_stays_within_its_bounds_and_comes_back_from_json(seed):
    rng = np.random.default_rng(seed)
    program, constants = integer_program(rng, int(rng.integers(1, 8)))
    bounds = program.bounds(constants)
    for name, values in all_values(program, constants, levels_for(rng, program, 25)).items():
        assert values.dtype == np.int32
        assert not values.size or bounds[name].low <= values.min() <= values.max() <= bounds[name].high
    text = json.dumps(program.to_json())
    assert Program.from_json(json.loads(text)) == program
    assert program.is_integer


def test_what_moves_levels_has_the_bounds_of_all_that_it_moves():
    ops = (
        rescale(output="a", low=0, high=3),
        Concat(left="x", right="a", output="b"),
        Columns(input="b", output="y", first=2, count=4),
    )
    bounds = program_of(*ops).bounds({})
    assert bounds == {"x": INT8, "a": Bounds(0, 3), "b": INT8, "y": INT8}
    assert bounds["a"].magnitude == 3


# Doors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"doors": (Door(1.0, 0, 1),) * 2}, "the program has 2 doors for 1 inputs; give each one"),
        ({"others": (("z", 4),)}, "the program has 1 doors for 2 inputs; give each one"),
        ({"doors": (Door(0.0, 0, 1),)}, "the door of x is (0.0, 0, 1); use a scale above 0 and levels that ascend"),
        ({"doors": (Door(float("nan"), 0, 1),)}, "the door of x is (nan, 0, 1); use a scale above 0"),
        ({"doors": (Door(1, 0, 1),)}, "the door of x is (1, 0, 1); use a scale above 0"),
        ({"doors": (Door(1.0, 1, 1),)}, "the door of x is (1.0, 1, 1); use a scale above 0"),
        ({"doors": (Door(1.0, 0, 2**31),)}, "the door of x is (1.0, 0, 2147483648); use a scale above 0"),
        ({"output_scale": 0.0}, "output_scale=0.0 must be finite and above 0"),
        ({"output_scale": float("inf")}, "output_scale=inf must be finite and above 0"),
        ({"doors": ()}, "op 0 (rescale of y) computes in integers, and the program has no doors"),
    ],
)  # fmt: skip
def test_doors_that_cannot_be_are_refused(fields, complaint):
    with pytest.raises(ValueError) as refusal:
        program_of(rescale(), **fields).widths({})
    assert complaint in str(refusal.value)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"doors": {}}, "the program's doors are not a list of [scale, low, high]"),
        ({"doors": []}, "the program's doors are not a list of [scale, low, high]"),
        ({"doors": [[0.5, 0]]}, "the program's doors are not a list of [scale, low, high]"),
        ({"doors": [[1, 0, 1]]}, "the program's doors are not a list of [scale, low, high]"),
        ({"doors": [[0.5, 0.0, 1]]}, "the program's doors are not a list of [scale, low, high]"),
        ({"output_scale": None}, "the program's output_scale=None is not a float"),
        ({"output_scale": 1}, "the program's output_scale=1 is not a float"),
    ],
)
def test_doors_that_json_gets_wrong_are_refused(fields, complaint):
    document = {**program_of(rescale()).to_json(), **fields}
    with pytest.raises(ValueError) as refusal:
        Program.from_json(document)
    assert str(refusal.value) == complaint
    for missing in ("doors", "output_scale"):
        document = program_of(rescale()).to_json()
        del document[missing]
        with pytest.raises(ValueError, match=r"the program's (doors are not|output_scale=None is)"):
            Program.from_json(document)


# Weights of levels alone -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"bits": 0}, "bits=0"),
        ({"bits": 9}, "bits=9"),
        ({"codes": np.zeros((2, 2), np.int8)}, "not an IntegerWeight: codes are int8 (2, 2), not uint8 (out, col"),
        ({"codes": np.zeros(4, np.uint8)}, "not an IntegerWeight: codes are uint8 (4,), not uint8 (out, columns)"),
        ({"shape": (4,)}, "shape=(4,) is not (out, in), (out, in, width) or (out, in, height, width)"),
        ({"shape": (2, 2, 0)}, "shape=(2, 2, 0) is not (out, in)"),
        ({"shape": (2, 3)}, "shape=(2, 3) does not hold 4 codes"),
        ({"shape": (4, 1)}, "shape=(4, 1) does not have 2 rows"),
        ({"num_levels": 5}, "num_levels=5 does not fit bits=2"),
        ({"num_levels": 3, "codes": np.zeros((2, 2), np.uint8)}, "num_levels=3 without a codebook"),
        ({"codes": np.full((2, 2), 4, np.uint8)}, "a code is 4, beyond the 4 levels"),
        ({"codebook": np.zeros(3, np.int8)}, "codebook"),
        ({"codebook": np.array([1, 0, 2, 3], np.int8)}, "codebook"),
    ],
)  # fmt: skip
def test_a_weight_that_cannot_be_is_refused(fields, complaint):
    sound = {"codes": np.array([[0, 1], [2, 3]], np.uint8), "shape": (2, 2), "bits": 2}
    assert IntegerWeight(**sound).levels().tolist() == [[-2, -1], [0, 1]]
    with pytest.raises(ValueError) as refusal:
        IntegerWeight(**{**sound, **fields})
    assert complaint in str(refusal.value)


@pytest.mark.parametrize("bits", range(1, 9))
def test_a_weight_of_levels_alone_has_the_levels_of_the_weight_it_came_from(bits):
    values = RNG.normal(size=(5, 6)).astype(np.float32)
    grid = symmetric_grid(np.abs(values).max(1, keepdims=True), max(bits, 2))
    whole = QTensor.on_grid(values, grid, max(bits, 2), is_symmetric=True)
    book = np.unique(RNG.integers(-128, 128, 2**bits)).astype(np.int8)
    snapped = QTensor.on_codebook(values, np.full((5, 1), 0.02, np.float32), book, bits)
    for of in (whole, snapped):
        alone = IntegerWeight.of(of)
        assert np.array_equal(alone.levels(), of.levels())
        book_bytes = 0 if of.codebook is None else 2**bits
        assert alone.num_bytes == -(-30 * of.bits // 8) + book_bytes
