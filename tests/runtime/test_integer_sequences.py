"""Functions, norms, attention and recurrences on levels: what exact integers give, and streams what whole utterances give."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reference import integer_sequences as reference
from tests.runtime.definitions import all_values
from tests.runtime.integer_programs import levels_for
from tests.runtime.integer_sequence_programs import DRAWS, WHOLE, integer_sequence_program, turns

from subtone.program import (
    Constant,
    Door,
    IntegerAttention,
    IntegerEmbedding,
    IntegerFunction,
    IntegerGlu,
    IntegerLayerNorm,
    IntegerLstm,
    IntegerOperation,
    IntegerSinusoids,
    IntegerWeight,
    Op,
    Program,
    results_of,
)
from subtone.runtime.engine import NumpyEngine

SEEDS = st.integers(0, 10**6)
LOOPS = {
    IntegerFunction: reference.integer_function,
    IntegerGlu: reference.integer_glu,
    IntegerLayerNorm: reference.integer_layer_norm,
    IntegerEmbedding: reference.integer_embedding,
    IntegerAttention: reference.integer_attention,
    IntegerSinusoids: reference.integer_sinusoids,
    IntegerLstm: reference.integer_lstm,
}


def by_loop(op: Op, values: dict[str, np.ndarray], constants: dict[str, Constant]) -> tuple[np.ndarray, ...]:
    read = [getattr(op, field) for field in op.VALUES]
    inputs = [values.get(name, constants.get(name)) if name else None for name in read]
    results = LOOPS[type(op)](op, *inputs, constants)
    return results if isinstance(results, tuple) else (results,)


def assert_equal_to_loops(program: Program, constants: dict[str, Constant], x: np.ndarray) -> None:
    values = all_values(program, constants, x)
    for op in program.ops:
        if type(op) in LOOPS:
            for name, expected in zip(results_of(op), by_loop(op, values, constants), strict=True):
                assert values[name].dtype == np.int32
                assert np.array_equal(values[name], expected), op


@settings(deadline=None, max_examples=60)
@given(SEEDS)
def test_the_definitions_are_what_exact_integers_give(seed):
    rng = np.random.default_rng(seed)
    program, constants = integer_sequence_program(rng, int(rng.integers(1, 5)), can_stream=False)
    assert_equal_to_loops(program, constants, levels_for(rng, program, int(rng.integers(0, 7))))


def test_every_operation_of_ours_is_among_the_random_ones():
    drawn = set()
    for seed in range(60):
        program, constants = integer_sequence_program(np.random.default_rng(seed), 5, can_stream=False)
        drawn |= {type(op) for op in program.ops}
        assert Program.from_json(program.to_json()) == program
        assert program.float_parts(constants) == []
    assert set(LOOPS) <= drawn
    assert all(issubclass(kind, IntegerOperation) for kind in LOOPS)
    assert len(DRAWS) + len(WHOLE) == len(LOOPS) + 1  # attention is drawn with and without an end


@settings(deadline=None, max_examples=60)
@given(seed=SEEDS, cuts=st.lists(st.integers(0, 20), max_size=4))
def test_a_stream_gives_what_the_whole_utterance_gives(seed, cuts):
    rng = np.random.default_rng(seed)
    program, constants = integer_sequence_program(rng, int(rng.integers(1, 6)), can_stream=True)
    engine, x = NumpyEngine(program, constants), levels_for(rng, program, int(rng.integers(0, 20)))
    state, outputs = engine.start(), []
    parts = np.split(x, sorted(min(cut, len(x)) for cut in cuts))
    for index, part in enumerate(parts):
        output, state = engine.step(state, np.ascontiguousarray(part), is_last=index == len(parts) - 1)
        outputs.append(output)
    assert np.array_equal(np.concatenate(outputs), engine.run(x))


# Ends of ranges --------------------------------------------------------------------------


WORDS, BYTES = Door(0.5, -(2**15), 2**15 - 1), Door(0.5, -127, 127)


def program_of(*ops: Op, width: int, width_out: int, door: Door = WORDS) -> Program:
    return Program(
        input="x", input_width=width, output="y", output_width=width_out, frames_per_step=1, ops=ops, doors=(door,),
        output_scale=0.25,
    )  # fmt: skip


FINISH = {"multiplier": 2**31 - 1, "shift": 40, "low": -(2**31) + 1, "high": 2**31 - 1}


@pytest.mark.parametrize("function", ["sigmoid", "tanh", "silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("fraction_bits", [0, 12, 16])
def test_functions_and_glu_are_exact_at_the_ends_of_16_bits(function, fraction_bits):
    x = np.array([[-(2**15), 2**15 - 1], [2**15 - 1, -(2**15)], [0, 1], [-1, 5000]], np.int32)
    op = IntegerFunction(input="x", output="y", function=function, fraction_bits=fraction_bits, **FINISH)
    assert_equal_to_loops(program_of(op, width=2, width_out=2), {}, x)
    glu = IntegerGlu(input="x", output="y", fraction_bits=fraction_bits, **FINISH)
    assert_equal_to_loops(program_of(glu, width=2, width_out=1), {}, x)


def test_a_norm_is_exact_at_the_ends_of_16_bits():
    x = np.array([[-(2**15)] * 3 + [2**15 - 1] * 3, [7] * 6, [0] * 5 + [1]], np.int32)
    constants: dict[str, Constant] = {
        "m": np.array([2**31 - 1, -(2**31) + 1, 5, 0, 1, 2**20], np.int32),
        "o": np.array([2**60, -(2**60), 0, 2**60, 1, -1], np.int64),
    }
    for epsilon in (0, 1, 2**61):
        op = IntegerLayerNorm(
            input="x",
            output="y",
            multiplier="m",
            offset="o",
            shift=32,
            epsilon=epsilon,
            low=-(2**30),
            high=2**30,
        )
        assert_equal_to_loops(program_of(op, width=6, width_out=6), constants, x)


def attention(**fields) -> IntegerAttention:
    names = dict.fromkeys(("query", "key", "value"), "x")
    return IntegerAttention(
        **{
            **names, "output": "y", "content_multiplier": 2**30, "score_shift": 30, "multiplier": 2**30, "shift": 45,
            "low": -127, "high": 127, **fields,
        }
    )  # fmt: skip


@pytest.mark.parametrize("multiplier", [2**31 - 1, -(2**31) + 1])
def test_attention_is_exact_where_every_sum_is_largest(multiplier):
    """All levels at their ends; scores that end at 32 bits; biases as large as a head's sum allows."""
    depth = 4
    x = np.array([[-128] * 8, [127] * 8, [-128, 127] * 4], np.int32)
    most = (2**31 - 1) // 128 // depth - 128
    constants: dict[str, Constant] = {
        "c": np.array([most, -most] * 4, np.int32),
        "p": np.array([-most, most] * 4, np.int32),
        "t": np.array([[-128] * 8, [127] * 8, [127, -128] * 4], np.int32),
    }
    for shift in (1, 20, 62):
        op = attention(
            heads=2, left=1, right=1, positions="t", content_bias="c", position_bias="p", score_shift=shift,
            content_multiplier=multiplier // 4, position_multiplier=-multiplier // 4,
        )  # fmt: skip
        program = program_of(op, width=8, width_out=8, door=Door(0.5, -128, 127))
        assert_equal_to_loops(program, constants, x)


@pytest.mark.parametrize(("left", "right"), [(-1, -1), (0, 0), (2, 0), (0, 3), (-1, 1), (2, -1), (9, 9)])
@pytest.mark.parametrize("rows", [0, 1, 2, 6])
def test_attention_is_exact_for_every_window_and_length(left, right, rows):
    x = np.random.default_rng(3).integers(-127, 128, (rows, 4)).astype(np.int32)
    program = program_of(attention(heads=2, left=left, right=right), width=4, width_out=4, door=BYTES)
    assert_equal_to_loops(program, {}, x)


def test_blocks_of_rows_change_no_bit(monkeypatch):
    x = np.random.default_rng(4).integers(-127, 128, (9, 4)).astype(np.int32)
    program = program_of(attention(heads=2), width=4, width_out=4, door=BYTES)
    whole = NumpyEngine(program, {}).run(x)
    monkeypatch.setattr("subtone.runtime.sequence_ops.VALUES_AT_ONCE", 1)
    assert np.array_equal(NumpyEngine(program, {}).run(x), whole)


def lstm_program(units: int, *, fraction_bits: int = 0, **fields) -> tuple[Program, dict[str, Constant]]:
    """Every level 127, and a shift that brings W h to some units of 2**-16 a step."""
    codes = np.full((4 * units, units), 255, np.uint8)
    constants: dict[str, Constant] = {
        "w": IntegerWeight(codes=codes, shape=(4 * units, units), bits=8),
        "m": np.full((4 * units, 1), 2**31 - 1, np.int32),
        "s": np.full(4 * units, 31, np.int32),
    }
    op = IntegerLstm(
        input="x", output="y", cell="c", weight="w", multiplier="m", shift="s", fraction_bits=fraction_bits,
        **{"low": -127, "high": 127, **fields},
    )  # fmt: skip
    return program_of(op, width=4 * units, width_out=units), constants


def test_an_lstm_is_exact_with_gates_at_the_ends_of_32_bits_and_a_cell_that_grows():
    program, constants = lstm_program(2)
    x = np.tile(np.int32([[2**15 - 1], [-(2**15)], [2**15 - 1]]).repeat(8, axis=1), (4, 1))
    assert_equal_to_loops(program, constants, x)
    values = all_values(program, constants, np.full((40, 8), 2**15 - 1, np.int32))
    assert (values["c"][:, 0] == 2**16 * np.arange(1, 41)).all()  # open gates: one more a step, tanh(g) = 1
    assert (values["y"][9:] == 127).all()


def test_an_embedding_takes_the_nearest_row_for_an_index_beyond_the_ends():
    constants: dict[str, Constant] = {
        "w": IntegerWeight(codes=np.array([[0, 1], [2, 3], [1, 0]], np.uint8), shape=(3, 2), bits=2),
        "m": np.array([[2**20], [2**21], [-(2**20)]], np.int32),
        "s": np.array([20, 20, 20], np.int32),
    }
    op = IntegerEmbedding(input="x", output="y", weight="w", multiplier="m", shift="s", low=-127, high=127)
    program = program_of(op, width=1, width_out=2)
    x = np.array([[-9], [0], [1], [2], [3]], np.int32)
    assert NumpyEngine(program, constants).run(x).tolist() == [[-2, -1], [-2, -1], [0, 2], [1, 2], [1, 2]]
    assert_equal_to_loops(program, constants, x)


def test_sinusoids_are_levels_of_127_and_as_many_as_distances():
    op = IntegerSinusoids(input="x", output="y", columns=4, rotation="r", low=-100, high=127)
    program = program_of(op, width=1, width_out=4)
    for rows in (0, 1, 5):
        assert_equal_to_loops(program, {"r": turns(4)}, np.zeros((rows, 1), np.int32))
    assert NumpyEngine(program, {"r": turns(4)}).run(np.zeros((2, 1), np.int32)).tolist() == [
        [107, 69, 1, 127], [0, 127, 0, 127], [-100, 69, -1, 127],
    ]  # fmt: skip
