"""What a float program needs to become integer-only, and which grid a value gets that several read."""

from __future__ import annotations

import numpy as np
import pytest

from subtone.export.integer import integer_program
from subtone.export.ranges import Range
from subtone.program import (
    Attention,
    ChannelNorm,
    Conv1d,
    Embedding,
    Function,
    IntegerAttention,
    IntegerFunction,
    Op,
    Program,
    Relu,
    Rescale,
    Scale,
)


def program_of(*ops: Op, width: int = 2) -> Program:
    return Program(input="x", input_width=width, output="y", output_width=width, frames_per_step=1, ops=ops)


RANGES = {"x": Range(-1.0, 1.0), "y": Range(-1.0, 1.0), "v": Range(-1.0, 1.0)}


def refused(
    message: str,
    *ops: Op,
    ranges: dict[str, Range] | None = None,
    constants: dict | None = None,
    width: int = 2,
) -> None:
    with pytest.raises(ValueError, match=message):
        integer_program(program_of(*ops, width=width), constants or {}, {**RANGES, **(ranges or {})})


def test_a_function_that_reads_beyond_16_bits_is_refused():
    message = r"op 0 \(y\): x, which a function reads, has the range -2e\+04 to 2e\+04; beyond 16384 there are no units"
    ops = Function(input="x", output="y", function="tanh")
    refused(message.replace("op 0 \\(y\\)", "the input x"), ops, ranges={"x": Range(-2e4, 2e4)})


def made_ops(*ops: Op) -> tuple[Op, ...]:
    return integer_program(program_of(*ops), {}, RANGES)[0].ops


def test_attention_reads_a_value_behind_a_relu_with_its_sign() -> None:
    attention = Attention(query="v", key="v", value="v", output="y")
    ops = made_ops(Relu(input="x", output="v"), attention)
    assert (ops[0].low, ops[0].high) == (0, 127)
    assert [type(op) for op in ops] == [Rescale, IntegerAttention]


def test_a_function_that_reads_the_output_reads_it_once_more_in_16_bits() -> None:
    ops = made_ops(Scale(input="x", output="y", factor=0.5), Function(input="y", output="v", function="tanh"))
    assert [(type(op), op.output) for op in ops] == [
        (Rescale, "y"),
        (Rescale, "y.fixed"),
        (IntegerFunction, "v"),
    ]
    assert (ops[0].high, ops[1].high, ops[2].fraction_bits) == (2**30, 2**15 - 1, 12)


def test_functions_of_a_wide_range_read_coarser_units() -> None:
    op = Function(input="x", output="y", function="silu")
    for most, bits in ((0.01, 12), (3.9, 12), (4.1, 11), (16383.0, 0)):
        made = integer_program(program_of(op), {}, {**RANGES, "x": Range(-most, 0.0)})[0]
        assert made.doors[0].scale == 2.0**-bits
        assert made.ops[0].fraction_bits == bits


def test_exp_of_values_above_0_is_refused():
    refused(
        "is exp of values above 0, which has no integer form", Function(input="x", output="y", function="exp")
    )


def test_labels_that_something_else_reads_too_are_refused():
    weight = np.ones((4, 1), np.float32)
    ops = (Embedding(input="x", output="v", weight="w"), Relu(input="x", output="y"))
    refused(
        "reads x, which others read too; give the labels an input", *ops, constants={"w": weight}, width=1
    )


def test_an_embedding_or_an_lstm_of_float_weights_is_refused():
    op = Embedding(input="x", output="v", weight="w"), Conv1d(input="v", output="y", weight="w")
    refused(
        "the weight w is float, and an integer-only program needs it in 1 to 8 bits",
        *op,
        constants={"w": np.ones((1, 1), np.float32)},
        width=1,
    )


def test_a_norm_over_the_utterance_has_no_integer_form():
    refused("is a ChannelNorm, which has no integer form", ChannelNorm(input="x", output="y", epsilon=0.5))


def test_a_table_of_zeros_has_no_scale():
    op = Attention(query="x", key="x", value="x", output="y", positions="t", left=1, right=0)
    refused("the table t: t never moved from 0", op, constants={"t": np.zeros((2, 2), np.float32)})
