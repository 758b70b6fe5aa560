"""What functions, norms, attention and recurrences of an integer-only program refuse, each message by its text."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from subtone.program import (
    MOST_COLUMNS,
    Bounds,
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
    Program,
)
from subtone.runtime.engine import NumpyEngine

INT8 = Bounds(-127, 127)
ENDS = {"low": -127, "high": 127}
FINISH = {"multiplier": 2**30, "shift": 40, **ENDS}
NAMES = {"query": "x", "key": "x", "value": "x", "output": "y"}
FUNCTION = IntegerFunction(input="x", output="y", function="silu", fraction_bits=8, **FINISH)
GLU = IntegerGlu(input="x", output="y", fraction_bits=8, **FINISH)
NORM = IntegerLayerNorm(input="x", output="y", multiplier="m", offset="o", shift=40, epsilon=1, **ENDS)
EMBEDDING = IntegerEmbedding(input="x", output="y", weight="w", multiplier="wm", shift="ws", **ENDS)
ATTENTION = IntegerAttention(**NAMES, heads=2, content_multiplier=2**30, score_shift=40, **FINISH)
PLACED = dataclasses.replace(ATTENTION, positions="t", left=1, right=1, position_multiplier=2**30)
SINUSOIDS = IntegerSinusoids(input="x", output="y", columns=4, rotation="r", **ENDS)
LSTM = IntegerLstm(
    input="x", output="y", cell="c", weight="h", multiplier="hm", shift="hs", fraction_bits=8, **ENDS
)


def constants() -> dict[str, Constant]:
    return {
        "m": np.full(4, 2**30, np.int32),
        "o": np.zeros(4, np.int64),
        "r": np.full((2, 2), 2**29, np.int32),
        "t": np.zeros((3, 4), np.int32),
        "b": np.zeros(4, np.int32),
        "w": IntegerWeight(codes=np.zeros((3, 4), np.uint8), shape=(3, 4), bits=8),
        "wm": np.full((3, 1), 2**20, np.int32),
        "ws": np.full(3, 30, np.int32),
        "wq": np.zeros((3, 1), np.int64),
        "h": IntegerWeight(codes=np.zeros((4, 1), np.uint8), shape=(4, 1), bits=8),
        "hm": np.full((4, 1), 2**20, np.int32),
        "hs": np.full(4, 30, np.int32),
    }


def program_of(op: IntegerOperation, *, width: int = 4, bounds: Bounds = INT8) -> Program:
    widths = {IntegerGlu: width // 2, IntegerEmbedding: 4, IntegerLstm: width // 4, IntegerSinusoids: 4}
    return Program(
        input="x", input_width=width, output="y", output_width=widths.get(type(op), width), frames_per_step=1,
        ops=(op,), doors=(Door(1.0, *bounds),), output_scale=1.0,
    )  # fmt: skip


def refused(op: IntegerOperation, message: str, *, changed: dict[str, Any] | None = None, **more) -> None:
    with pytest.raises(ValueError, match=message):
        program_of(op, **more).widths({**constants(), **(changed or {})})


def test_the_operations_here_are_sound_as_they_are():
    for op in (FUNCTION, GLU, NORM, ATTENTION, PLACED, SINUSOIDS, LSTM):
        assert program_of(op).widths(constants())["y"] >= 1
    assert program_of(EMBEDDING, width=1).widths(constants())["y"] == 4


WORDS = Bounds(-(2**15) - 1, 0)


@pytest.mark.parametrize(
    ("op", "what"), [(FUNCTION, "the function silu"), (GLU, "a GLU"), (NORM, "a norm"), (LSTM, "a gate")]
)
def test_levels_beyond_16_bits_are_refused(op, what):
    refused(op, rf"op 0 \(\w+ of y\) reads levels of -32769 to 0; {what} takes 16 bits", bounds=WORDS)
    refused(op, f"reads levels of 0 to 32768; {what} takes 16 bits", bounds=Bounds(0, 2**15))


@pytest.mark.parametrize("op", [FUNCTION, GLU, LSTM])
@pytest.mark.parametrize("bits", [-1, 17])
def test_units_beyond_2_to_the_16_are_refused(op, bits):
    refused(dataclasses.replace(op, fraction_bits=bits), f"has fraction_bits={bits}; use 0 to 16")


@pytest.mark.parametrize("op", [FUNCTION, GLU, NORM, ATTENTION])
@pytest.mark.parametrize("shift", [0, 63])
def test_a_shift_beyond_62_is_refused(op, shift):
    refused(dataclasses.replace(op, shift=shift), f"has shift={shift}; use 1 to 62")


@pytest.mark.parametrize("op", [FUNCTION, GLU, ATTENTION])
def test_a_multiplier_beyond_32_bits_is_refused(op):
    refused(dataclasses.replace(op, multiplier=2**31), f"has multiplier={2**31}; use")


def test_exp_takes_no_level_above_0():
    op = dataclasses.replace(FUNCTION, function="exp")
    refused(op, "reads levels up to 127; an integer exp takes 0 and below")
    assert program_of(op, bounds=Bounds(-127, 0)).widths({})["y"] == 4


def test_a_function_that_is_none_is_refused():
    refused(dataclasses.replace(FUNCTION, function="sine"), "has function='sine'; use one of sigmoid")


def test_a_glu_halves_an_even_row():
    refused(GLU, "halves 5 columns; use an even number", width=5)


@pytest.mark.parametrize("epsilon", [-1, 2**61 + 1])
def test_an_epsilon_beyond_61_bits_is_refused(epsilon):
    refused(dataclasses.replace(NORM, epsilon=epsilon), f"has epsilon={epsilon}; use 0 to {2**61}")


def test_a_norm_is_refused_what_may_overflow_or_does_not_fit():
    refused(
        NORM, f"normalizes {MOST_COLUMNS + 1} columns; an integer norm takes 32768", width=MOST_COLUMNS + 1
    )
    refused(
        NORM, r"needs multiplier of \(4,\) in int32, m does not fit", changed={"m": np.zeros(3, np.int32)}
    )
    refused(NORM, r"needs offset of \(4,\) in int64, o does not fit", changed={"o": np.zeros(4, np.int32)})
    most = np.full(4, 2**61 + 2**40)
    refused(NORM, r"has an offset of 2\.31e\+18, beyond 2\*\*61", changed={"o": most})


def test_an_embedding_is_refused_what_does_not_fit():
    refused(EMBEDDING, "reads 2 columns; an index is one", width=2)
    refused(
        EMBEDDING,
        "reads the weight w, which is not one of integers alone",
        width=1,
        changed={"w": np.zeros((3, 4))},
    )
    refused(EMBEDDING, r"needs shift of \(3,\) in int32", width=1, changed={"ws": np.zeros(2, np.int32)})
    cube = IntegerWeight(codes=np.zeros((3, 4), np.uint8), shape=(3, 2, 2), bits=8)
    refused(EMBEDDING, r"needs a weight \(rows, width\), w has \(3, 2, 2\)", width=1, changed={"w": cube})
    op, most = dataclasses.replace(EMBEDDING, correction="wq"), np.full((3, 1), 2**62)
    refused(op, "may reach a total of 4.61e", width=1, changed={"wq": most})


def test_attention_takes_int8_alone():
    refused(ATTENTION, "reads query of 0 to 128; an integer attention takes int8", bounds=Bounds(0, 128))
    table = np.full((3, 4), 128, np.int32)
    refused(PLACED, "reads positions of 128 to 128; an integer attention takes int8", changed={"t": table})


def test_attention_is_refused_what_may_overflow():
    op = dataclasses.replace(ATTENTION, content_bias="b")
    most = np.full(4, 2**22, np.int32)
    refused(
        op, "sums products of queries up to 2147516416 a head, which may overflow", changed={"b": most * 2}
    )
    refused(dataclasses.replace(ATTENTION, content_multiplier=2**31), f"has content_multiplier={2**31}; use")
    refused(
        dataclasses.replace(PLACED, position_multiplier=-(2**31)), f"has position_multiplier=-{2**31}; use"
    )
    refused(dataclasses.replace(ATTENTION, score_shift=63), "has shift=63; use 1 to 62")


def test_scores_beyond_62_bits_are_refused():
    bias = np.full(4, 2**22, np.int32)
    op = dataclasses.replace(
        PLACED,
        content_bias="b",
        position_bias="b",
        content_multiplier=2**31 - 1,
        position_multiplier=2**31 - 1,
    )
    refused(op, "may reach a total of 4.61e", changed={"b": bias})


def test_attention_is_refused_what_does_not_fit():
    op = dataclasses.replace(PLACED, position_bias="b")
    refused(op, r"needs position_bias of \(4,\) in int32", changed={"b": np.zeros(4, np.float32)})
    refused(dataclasses.replace(ATTENTION, heads=3), "has heads=3, which does not divide 4")
    refused(dataclasses.replace(ATTENTION, position_bias="b"), "has a position_bias and no positions")
    refused(
        dataclasses.replace(ATTENTION, left=MOST_COLUMNS, right=0),
        "sees 32769 rows; an integer softmax takes 32768",
    )
    refused(dataclasses.replace(PLACED, left=-1, right=-1), "has left=-1 and a table of positions")


@pytest.mark.parametrize(
    ("op", "what"), [(ATTENTION, "an integer softmax"), (SINUSOIDS, "a table of integer sinusoids")]
)
def test_an_utterance_too_long_for_a_softmax_is_refused_before_it_runs(op, what):
    engine = NumpyEngine(program_of(op), constants())
    message = f"32769 rows are more than {what} takes, 32768; cut the utterance"
    with pytest.raises(ValueError, match=message):
        engine.run(np.zeros((MOST_COLUMNS + 1, 4), np.int32))
    with pytest.raises(ValueError, match=message):
        program_of(op).shapes(MOST_COLUMNS + 1, constants())


def test_sinusoids_are_refused_what_they_do_not_have():
    refused(
        dataclasses.replace(SINUSOIDS, high=128),
        "has low=-127 and high=128; sinusoids have levels of -127 to 127",
    )
    refused(dataclasses.replace(SINUSOIDS, columns=3), "has columns=3; use an even number")
    refused(SINUSOIDS, r"needs rotation of \(2, 2\) in int32", changed={"r": np.zeros((1, 2), np.int32)})
    refused(SINUSOIDS, r"has a rotation longer than 2\*\*30", changed={"r": np.full((2, 2), 2**30, np.int32)})


def test_an_lstm_is_refused_what_does_not_fit():
    refused(LSTM, "reads 6 columns; four gates need a multiple of 4", width=6)
    refused(LSTM, r"needs a recurrent weight of \(8, 2\), h has \(4, 1\)", width=8)
    refused(
        dataclasses.replace(LSTM, low=-128), "has low=-128 and high=127; a hidden state takes -high to high"
    )
    refused(dataclasses.replace(LSTM, low=-255, high=255), "a hidden state takes -high to high, at most 127")
    refused(
        dataclasses.replace(LSTM, correction="q"),
        r"needs correction of \(4, 1\) in int64",
        changed={"q": np.zeros((4, 2), np.int64)},
    )
    most = np.full((4, 1), 2**57)
    refused(dataclasses.replace(LSTM, correction="q"), "may reach a total of", changed={"q": most})


def test_an_operation_on_levels_has_no_place_in_a_float_program():
    program = dataclasses.replace(program_of(SINUSOIDS), doors=(), output_scale=0.0)
    with pytest.raises(ValueError, match="computes in integers, and the program has no doors"):
        program.widths(constants())


def test_a_table_has_the_bounds_of_its_own_levels():
    table = np.array([[-3, 0, 0, 0], [0, 9, 0, 0], [0, 0, 0, 0]], np.int32)
    found = program_of(PLACED).bounds({**constants(), "t": table})
    assert found["t"] == Bounds(-3, 9)
    assert found["y"] == Bounds(-127, 127)


def test_a_cell_has_32_bits_and_the_hidden_state_8():
    found = program_of(LSTM).bounds(constants())
    assert found["y"] == Bounds(-127, 127)
    assert found["c"] == Bounds(-(2**31) + 1, 2**31 - 1)
