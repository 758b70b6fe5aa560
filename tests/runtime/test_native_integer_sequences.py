"""Functions, norms, attention and recurrences on levels: every instruction set, number of threads and way of cutting
a stream gives what the NumPy definition gives, which test_integer_sequences.py holds against exact integers."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runtime.comparison import ISAS
from tests.runtime.integer_programs import levels_for, random_weight
from tests.runtime.integer_sequence_programs import INT16, integer_sequence_program, turns
from tests.runtime.test_integer_sequences import FINISH, attention, lstm_program, program_of
from tests.runtime.test_integers import assert_all_alike, product_constants

from subtone.program import (
    FUNCTIONS,
    Constant,
    Door,
    IntegerEmbedding,
    IntegerFunction,
    IntegerGlu,
    IntegerLayerNorm,
    IntegerLstm,
    IntegerSinusoids,
    Op,
    Program,
)
from subtone.runtime.engine import NativeEngine, NumpyEngine

SEEDS = st.integers(0, 10**6)


@pytest.mark.parametrize("isa", ISAS)
@settings(deadline=None, max_examples=60)
@given(seed=SEEDS)
def test_random_programs_are_equal(isa, seed):
    rng = np.random.default_rng(seed)
    program, constants = integer_sequence_program(rng, int(rng.integers(1, 7)), can_stream=False)
    inputs = [levels_for(rng, program, rows) for rows in (0, 1, int(rng.integers(2, 40)))]
    assert_all_alike(program, constants, isa, inputs, threads=(1, int(rng.integers(2, 4))))


@pytest.mark.parametrize("isa", ISAS)
@settings(deadline=None, max_examples=40)
@given(seed=SEEDS, cuts=st.lists(st.integers(0, 12), max_size=6), threads=st.integers(1, 3))
def test_streams_of_random_programs_are_equal_however_they_are_cut(isa, seed, cuts, threads):
    rng = np.random.default_rng(seed)
    program, constants = integer_sequence_program(rng, int(rng.integers(1, 7)), can_stream=True)
    x = levels_for(rng, program, int(rng.integers(1, 40)))
    engine = NativeEngine(program, constants, threads=threads, isa=isa)
    chunks = np.split(x, np.minimum(np.cumsum(cuts, dtype=np.int64), len(x)))
    state, found = engine.start(), []
    for index, chunk in enumerate(chunks):
        output, state = engine.step(state, chunk, is_last=index == len(chunks) - 1)
        found.append(output)
    assert np.array_equal(np.concatenate(found), NumpyEngine(program, constants).run(x))


def test_no_kernel_of_an_integer_only_program_has_a_floating_point_number():
    native = Path(__file__).parents[2] / "native"
    shared = ("plain_levels.h", "quotients.h", "vector_quads.h", "vector_integers.h", "scalar_integers.h")
    names = ("integer*.h", "*_numbers.h", "*_integer_*.h", *shared)
    files = [path for name in names for path in native.glob(name)]
    assert len(files) == 15
    for path in files:
        code = re.sub(r"//.*", "", path.read_text())
        assert not re.search(r"\b(float|floats|double)\b|_p[sd]\(|\d\.\d*f", code), path.name


# Edges -----------------------------------------------------------------------------------

BYTES = Door(0.5, -128, 127)


def rows_of(levels: np.ndarray, width: int) -> np.ndarray:
    return np.ascontiguousarray(levels.reshape(-1, width).astype(np.int32))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions_of_every_level_of_16_bits_are_equal(isa, function):
    """A shift of 1 and no clip: every bit of a value is seen. Their range: 2**30, of which half stays."""
    levels = np.arange(-(2**15), 1 if function == "exp" else 2**15)
    door = Door(0.5, int(levels[0]), int(levels[-1]))
    for fraction_bits in (0, 4, 11, 16):
        op = IntegerFunction(
            input="x", output="y", function=function, fraction_bits=fraction_bits,
            **{**FINISH, "multiplier": 1, "shift": 1},
        )  # fmt: skip
        program = program_of(op, width=1, width_out=1, door=door)
        assert_all_alike(program, {}, isa, [rows_of(levels, 1)], threads=(2,))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("multiplier", [1 - 2**31, 2**31 - 1])
@pytest.mark.parametrize("width", [1, 7, 8, 9, 17])
def test_functions_and_glu_are_equal_at_every_width_shift_and_end(isa, multiplier, width):
    rng = np.random.default_rng(width)
    x = rng.choice([INT16.low, INT16.low + 1, -1, 0, 1, INT16.high], (5, 2 * width)).astype(np.int32)
    for shift in (1, 31, 32, 62):
        numbers = {**FINISH, "multiplier": multiplier, "shift": shift, "fraction_bits": shift % 17}
        glu = IntegerGlu(input="x", output="y", **numbers)
        assert_all_alike(program_of(glu, width=2 * width, width_out=width), {}, isa, [x], threads=(3,))
        op = IntegerFunction(input="x", output="y", function="silu", **numbers)
        assert_all_alike(program_of(op, width=2 * width, width_out=2 * width), {}, isa, [x], threads=(1,))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("width", [1, 2, 7, 8, 9, 31, 300, 2**15])
def test_norms_are_equal_at_every_width_and_at_the_ends_of_16_bits(isa, width):
    rng = np.random.default_rng(width)
    constants: dict[str, Constant] = {
        "m": rng.choice([2**31 - 1, 1 - 2**31, 3, 2**20], width).astype(np.int32),
        "o": rng.integers(-(2**60), 2**60, width),
    }
    x = rng.choice([INT16.low, INT16.high], (6, width)).astype(np.int32)
    x[0], x[1], x[2] = INT16.low, 0, rng.integers(-2, 3, width)
    x[3, : width // 2], x[3, width // 2 :] = INT16.low, INT16.high  # the largest variance
    x[4], x[4, -1] = 5, 6  # the largest normalized value
    for epsilon, shift, offset in ((0, 31, ""), (1, 32, "o"), (2**61, 50, "o")):
        op = IntegerLayerNorm(
            input="x", output="y", multiplier="m", offset=offset, shift=shift, epsilon=epsilon, low=1 - 2**31,
            high=2**31 - 1,
        )  # fmt: skip
        assert_all_alike(program_of(op, width=width, width_out=width), constants, isa, [x], threads=(2,))


@pytest.mark.parametrize("isa", ISAS)
def test_the_norm_of_a_root_of_exactly_2_to_30_is_equal(isa):
    """Rows -1, 1 have v = 4, a power of two: floor(2**61 / root) is 2**31, which fits no int32."""
    constants: dict[str, Constant] = {"m": np.full(2, 2**31 - 1, np.int32)}
    op = IntegerLayerNorm(
        input="x", output="y", multiplier="m", shift=32, epsilon=0, low=1 - 2**31, high=2**31 - 1
    )
    x = np.array([[-1, 1], [1, -1], [-(2**15), -(2**15) + 2]], np.int32)
    (found,) = assert_all_alike(program_of(op, width=2, width_out=2), constants, isa, [x])
    assert found[:2].tolist() == [[-(2**21), 2**21], [2**21, -(2**21)]]  # of 2**22 * (2**31 - 1) / 2**32


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("groups", [1, 3])
def test_embeddings_take_the_rows_that_are_named_and_the_nearest_of_others(isa, groups):
    rng = np.random.default_rng(groups)
    constants = product_constants(random_weight(rng, (9, 6)), groups=groups, shift=32, correction=True)
    op = IntegerEmbedding(
        input="x", output="y", weight="w", multiplier="m", shift="s", correction="q", low=-1000, high=900
    )
    x = rows_of(np.array([-(2**15), -1, *range(10), 2**15 - 1]), 1)
    (found,) = assert_all_alike(program_of(op, width=1, width_out=6), constants, isa, [x])
    assert len(np.unique(found[2:-2], axis=0)) == 9


def levels(rng: np.random.Generator, rows: int, width: int) -> np.ndarray:
    return rng.integers(-128, 128, (rows, width)).astype(np.int32)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("left", "right"), [(-1, -1), (0, 0), (5, 0), (0, 300), (-1, 1), (2, -1), (40, 17)])
def test_attention_is_equal_for_every_window_and_length(isa, left, right):
    """Lengths on both sides of a panel of 16 keys and of a block of 256 queries; heads narrower than a quad of bytes, and as
    wide as whole vectors of bytes and more."""
    rng = np.random.default_rng(3)
    for depth, lengths in ((3, (1, 2, 15, 16, 17)), (20, (258, 300)), (64, (5,)), (65, (18,)), (203, (4,))):
        op = attention(heads=2, left=left, right=right, shift=43, content_multiplier=2**30 // depth)
        program = program_of(op, width=2 * depth, width_out=2 * depth, door=BYTES)
        inputs = [levels(rng, rows, 2 * depth) for rows in lengths]
        found = assert_all_alike(program, {}, isa, inputs, threads=(3,))
        assert all(result.std() > 1 for result in found)


def with_positions(width: int, left: int, *, heads: int = 2) -> tuple[tuple[Op, ...], dict[str, Constant]]:
    """Attention over a window with a table of positions, or over all rows with positions of as many."""
    rng = np.random.default_rng(width)
    constants: dict[str, Constant] = {
        "c": rng.integers(-9000, 9000, width).astype(np.int32),
        "p": rng.integers(-9000, 9000, width).astype(np.int32),
        "t": levels(rng, max(1, left + 6), width),
        "r": turns(width),
    }
    op = attention(
        heads=heads, left=left, right=5 if left >= 0 else -1, positions="t" if left >= 0 else "z", content_bias="c",
        position_bias="p", content_multiplier=2**22, position_multiplier=-(2**23), shift=44,
    )  # fmt: skip
    table = IntegerSinusoids(input="x", output="z", columns=width, rotation="r", low=-127, high=120)
    return ((op,) if left >= 0 else (table, op)), constants


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("left", [-1, 0, 3, 50])
def test_attention_to_positions_is_equal_as_a_table_and_as_a_value(isa, left):
    rng = np.random.default_rng(5)
    for width, lengths in ((2, (1, 2, 40)), (12, (16, 17, 33, 270)), (150, (20,))):
        ops, constants = with_positions(width, left)
        program = program_of(*ops, width=width, width_out=width, door=BYTES)
        inputs = [levels(rng, rows, width) for rows in lengths]
        assert_all_alike(program, constants, isa, inputs, threads=(1, 2))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("multiplier", [2**31 - 1, 1 - 2**31])
def test_attention_is_equal_where_every_sum_is_largest(isa, multiplier):
    x = np.array([[-128] * 8, [127] * 8, [-128, 127] * 4], np.int32)
    most = (2**31 - 1) // 128 // 4 - 128
    constants: dict[str, Constant] = {
        "c": np.array([most, -most] * 4, np.int32),
        "p": np.array([-most, most] * 4, np.int32),
        "t": np.array([[-128] * 8, [127] * 8, [127, -128] * 4], np.int32),
    }
    for shift in (1, 20, 62):
        op = attention(
            heads=2, left=1, right=1, positions="t", content_bias="c", position_bias="p", score_shift=shift,
            content_multiplier=multiplier // 4, position_multiplier=-multiplier // 4, multiplier=multiplier,
        )  # fmt: skip
        assert_all_alike(program_of(op, width=8, width_out=8, door=BYTES), constants, isa, [x], threads=(1,))


@pytest.mark.parametrize("isa", ISAS)
def test_sums_of_weighted_values_are_equal_where_they_are_largest(isa):
    """All weight on values of -128: 2**22 times it, 2**29, and so from one row or from many."""
    for rows in (1, 3, 1000):
        x = np.full((rows, 2), -128, np.int32)
        program = program_of(attention(shift=30), width=2, width_out=2, door=BYTES)
        assert_all_alike(program, {}, isa, [x], threads=(1,))


@pytest.mark.parametrize("isa", ISAS)
def test_sinusoids_are_equal_for_every_length(isa):
    op = IntegerSinusoids(input="x", output="y", columns=6, rotation="r", low=-100, high=127)
    program = program_of(op, width=1, width_out=6)
    inputs = [np.zeros((rows, 1), np.int32) for rows in (0, 1, 2, 900)]
    assert_all_alike(program, {"r": turns(6)}, isa, inputs)


def random_lstm(units: int, groups: int, *, fraction_bits: int = 9) -> tuple[Program, dict[str, Constant]]:
    constants = product_constants(
        random_weight(np.random.default_rng(units), (4 * units, units)),
        groups=groups, shift=29, correction=groups > 1, seed=units,
    )  # fmt: skip
    op = IntegerLstm(
        input="x", output="y", cell="c", weight="w", multiplier="m", shift="s", offset="b",
        correction="q" if groups > 1 else "", fraction_bits=fraction_bits, low=-127, high=127,
    )  # fmt: skip
    return program_of(op, width=4 * units, width_out=units), constants


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("units", "groups"), [(1, 1), (15, 3), (16, 1), (17, 1), (33, 11), (200, 1)])
def test_recurrences_of_every_size_are_equal_and_shared_by_threads(isa, units, groups):
    """200 units have 160,000 weights, enough for three threads."""
    program, constants = random_lstm(units, groups)
    rng = np.random.default_rng(units)
    inputs = [rng.integers(-1500, 1500, (rows, 4 * units)).astype(np.int32) for rows in (1, 9)]
    found = assert_all_alike(program, constants, isa, inputs)
    assert found[1].std() > 10


@pytest.mark.parametrize("isa", ISAS)
def test_a_recurrence_is_equal_with_gates_at_the_ends_of_32_bits_and_a_cell_that_grows(isa):
    program, constants = lstm_program(2)
    ends = np.int32([[2**15 - 1], [-(2**15)], [2**15 - 1]]).repeat(8, axis=1)
    grows = np.full((40, 8), 2**15 - 1, np.int32)
    assert_all_alike(program, constants, isa, [np.tile(ends, (4, 1)), grows])


@pytest.mark.parametrize("isa", ISAS)
def test_a_stream_of_attention_and_a_recurrence_is_equal_row_by_row(isa):
    (op,), constants = with_positions(8, 20)
    program = program_of(op, width=8, width_out=8, door=BYTES)
    for made, held in ((program, constants), random_lstm(16, 1)):
        rng, rows = np.random.default_rng(1), 45
        x = levels(rng, rows, made.input_width)
        engine = NativeEngine(made, held, threads=2, isa=isa)
        state, found = engine.start(), []
        for row in range(rows):
            output, state = engine.step(state, x[row : row + 1], is_last=row == rows - 1)
            found.append(output)
        assert np.array_equal(np.concatenate(found), NumpyEngine(made, held).run(x))
