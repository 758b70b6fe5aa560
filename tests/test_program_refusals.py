"""What the operations beyond convolutions, sums and clips refuse, each message by its text; inputs, tables, rows."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from tests.runtime.small_programs import packed_weight, program_of

from subtone.program import (
    UNLIMITED,
    Add,
    Attention,
    ChannelNorm,
    Columns,
    Concat,
    Conv1d,
    Conv2d,
    Embedding,
    Function,
    Glu,
    LayerNorm,
    Lstm,
    Multiply,
    Op,
    Program,
    Relu,
    Scale,
    Sinusoids,
    Stack,
    SwitchedLstm,
    constants_of,
    inputs_of,
    results_of,
)

RNG = np.random.default_rng(0)


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def attention(**fields) -> Attention:
    return Attention(**{"query": "x", "key": "x", "value": "x", "output": "y", **fields})


def conv2d(**fields) -> Conv2d:
    return Conv2d(**{"input": "x", "output": "y", "weight": "image", "in_channels": 2, **fields})


def lstm(**fields) -> Lstm:
    return Lstm(**{"input": "wide", "output": "y", "cell": "c", "weight": "recurrent", **fields})


def switched(**fields) -> SwitchedLstm:
    fields = {"small": "narrow", "gate": "one", "weight": "recurrent", "small_weight": "few", **fields}
    return SwitchedLstm(**{"input": "wide", "output": "y", "cell": "c", **fields})


CONSTANTS = {
    "image": ones(3, 2, 1, 1),
    "alone": ones(3, 1, 1, 1),
    "long": ones(3, 2, 3, 4),
    "recurrent": ones(16, 4),
    "few": ones(8, 2),
    "many": ones(32, 8),
    "packed": packed_weight(RNG, (16, 4), bits=4, grid="symmetric"),
    "w": ones(4, 4),
    "v": ones(4),
    "short": ones(3),
    "table": ones(3, 4),
    "number": ones(),
    "nothing": ones(0, 4),
}
# Values that an operation may read, each beside what makes it: x has 4 columns.
MAKERS = {
    "wide": Concat(left="eight", right="eight", output="wide"),
    "eight": Concat(left="x", right="x", output="eight"),
    "narrow": Columns(input="wide", output="narrow", first=0, count=8),
    "five": Concat(left="x", right="one", output="five"),
    "one": Columns(input="x", output="one", first=0, count=1),
}


def program_with(op: Op) -> Program:
    """`op` behind the makers of what it reads."""
    makers: list[Op] = []

    def need(name: str) -> None:
        if name in MAKERS and MAKERS[name] not in makers:
            for other in inputs_of(MAKERS[name]):
                need(other)
            makers.append(MAKERS[name])

    for name in inputs_of(op):
        need(name)
    return program_of(*makers, op, width_in=4, width_out=4)


@pytest.mark.parametrize(
    ("op", "complaint"),
    [
        (Relu(input="", output="y"), "(relu of y) names no input"),
        (Add(left="x", right="", output="y"), "(add of y) names no right"),
        (attention(key=""), "(attention of y) names no key"),
        (Relu(input="x", output=""), "(relu of ) names no output"),
        (lstm(cell=""), "(lstm of y) names no cell"),
        (lstm(cell="y"), "(lstm of y) writes y a second time"),
        (lstm(weight=""), "(lstm of y) names no weight"),
        (switched(small_weight=""), "(switched_lstm of y) names no small_weight"),
        (Embedding(input="one", output="y", weight=""), "(embedding of y) names no weight"),
        # Frames and features
        (conv2d(in_channels=0), "(conv2d of y) has in_channels=0; use 1 to 16777216"),
        (conv2d(kernel=0), "(conv2d of y) has kernel=0; use 1 to 16777216"),
        (conv2d(stride=0), "(conv2d of y) has stride=0; use 1 to 16777216"),
        (conv2d(feature_kernel=0), "(conv2d of y) has feature_kernel=0; use 1 to 16777216"),
        (conv2d(feature_stride=0), "(conv2d of y) has feature_stride=0; use 1 to 16777216"),
        (conv2d(dilation=2), "(conv2d of y) has dilation=2; use 1"),
        (conv2d(padding=-1), "(conv2d of y) has padding=-1; use 0 to 16777216"),
        (conv2d(padding_behind=-2), "(conv2d of y) has padding_behind=-2; use -1 to 16777216"),
        (conv2d(feature_padding=-1), "(conv2d of y) has feature_padding=-1; use 0 to 16777216"),
        (conv2d(feature_padding_behind=-2), "has feature_padding_behind=-2; use -1 to 16777216"),
        (conv2d(in_channels=3), "(conv2d of y) has in_channels=3, which does not divide 4"),
        (conv2d(groups=0), "has groups=0 for 2 channels and 3 outputs; use 1, or depthwise"),
        (conv2d(groups=2, weight="alone"), "has groups=2 for 2 channels and 3 outputs; use 1, or depthwise"),
        (conv2d(weight="number"), "has groups=1 for 2 channels and 0 outputs; use 1, or depthwise"),
        (conv2d(weight="alone"), "needs a weight of (3, 2, 1, 1), alone has (3, 1, 1, 1)"),
        (conv2d(weight="w"), "needs a weight of (4, 2, 1, 1), w has (4, 4)"),
        (conv2d(bias="v"), "(conv2d of y) needs bias of (3,), v does not fit"),
        (conv2d(weight="long", kernel=3, feature_kernel=4), "has more taps than features and padding"),
        (conv2d(feature_padding=2**24), "is 100663302 wide; use at most 16777216"),
        (Stack(input="x", output="y", count=0), "(stack of y) has count=0; use 1 to 16777216"),
        (Stack(input="x", output="y", count=2**23), "(stack of y) is 33554432 wide; use at most 16777216"),
        # Row by row
        (Multiply(left="x", right="five", output="y"), "(multiply of y) multiplies widths 4 and 5"),
        (Add(left="five", right="x", output="y"), "(add of y) adds widths 5 and 4"),
        (Scale(input="x", output="y", factor=0.1), "has factor=0.1; use a finite value of float32"),
        (Scale(input="x", output="y", factor=math.nan), "has factor=nan; use a finite value of float32"),
        (
            Function(input="x", output="y", function="sin"),
            "has function='sin'; use one of sigmoid, tanh, silu, gelu, gelu_tanh, exp",
        ),
        (Glu(input="five", output="y"), "(glu of y) halves 5 columns; use an even number"),
        (LayerNorm(input="x", output="y", epsilon=0.0), "has epsilon=0.0; use a float32 value above 0"),
        (LayerNorm(input="x", output="y", epsilon=1e-5), "has epsilon=1e-05; use a float32 value above 0"),
        (ChannelNorm(input="x", output="y", epsilon=-1.0), "has epsilon=-1.0; use a float32 value above 0"),
        (LayerNorm(input="x", output="y", epsilon=1.0, gain="short"), "needs gain of (4,), short does not fit"),
        (ChannelNorm(input="x", output="y", epsilon=1.0, bias="w"), "needs bias of (4,), w does not fit"),
        (Columns(input="x", output="y", first=-1, count=1), "has first=-1; use 0 to 16777216"),
        (Columns(input="x", output="y", first=0, count=0), "has count=0; use 1 to 16777216"),
        (Columns(input="x", output="y", first=2, count=3), "(columns of y) takes columns 2 to 4 of 4"),
        (Embedding(input="one", output="y", weight="v"), "needs a weight (rows, width), v has (4,)"),
        (Embedding(input="one", output="y", weight="nothing"), "needs a weight (rows, width), nothing has (0, 4)"),
        (Embedding(input="x", output="y", weight="w"), "(embedding of y) reads 4 columns; an index is one"),
        # Sequences
        (attention(heads=0), "(attention of y) has heads=0; use 1 to 16777216"),
        (attention(heads=3), "(attention of y) has heads=3, which does not divide 4"),
        (attention(left=-2), "(attention of y) has left=-2; use -1 to 16777216"),
        (attention(right=2**24 + 1), "(attention of y) has right=16777217; use -1 to 16777216"),
        (attention(value="five"), "needs equal widths, not {'query': 4, 'key': 4, 'value': 5}"),
        (
            attention(positions="table", left=2),
            "has left=2 and right=-1; with positions both are limited, or none",
        ),
        (attention(positions="table"), "has left=-1 and a table of positions; make them of the utterance's length"),
        (attention(position_bias="v"), "(attention of y) has a position_bias and no positions"),
        (attention(content_bias="short"), "needs content_bias of (4,), short does not fit"),
        (
            attention(positions="table", left=1, right=1, position_bias="short"),
            "needs position_bias of (4,), short does not fit",
        ),
        (
            attention(positions="x", left=1, right=1),
            "has left=1 and positions that depend on an input; make them of constants",
        ),
        (attention(positions="table", left=1, right=2), "(attention of y) has 3 rows of positions, not 4"),
        (Sinusoids(input="x", output="y", columns=1), "(sinusoids of y) has columns=1; use 2 to 16777216"),
        (Sinusoids(input="x", output="y", columns=3), "(sinusoids of y) has columns=3; use an even number"),
        (lstm(input="five"), "(lstm of y) reads 5 columns; four gates need a multiple of 4"),
        (lstm(weight="few"), "needs a recurrent weight of (16, 4), few has (8, 2)"),
        (lstm(bias="v"), "(lstm of y) needs bias of (16,), v does not fit"),
        (lstm(activation_bits=8), "needs a quantized weight for integer activations"),
        (lstm(weight="packed", activation_bits=1), "(lstm of y) has activation_bits=1; use 0 or 2..8"),
        (switched(small_activation_bits=9), "has small_activation_bits=9; use 0 or 2..8"),
        (switched(small_activation_bits=8), "needs a quantized weight for integer activations"),
        (switched(small_bias="v"), "(switched_lstm of y) needs small_bias of (8,), v does not fit"),
        (switched(small="wide", small_weight="few"), "needs a recurrent weight of (16, 4), few has (8, 2)"),
        (
            switched(input="narrow", weight="few", small="wide", small_weight="recurrent"),
            "has 4 units in the small LSTM and 2 in the large",
        ),
        (switched(gate="x"), "(switched_lstm of y) has a gate of 4 columns; use 1"),
        # Tables
        (Add(left="x", right="v", output="y"), "reads the constant v as a table; that needs a float array"),
        (Add(left="x", right="packed", output="y"), "reads the constant packed as a table; that needs a float"),
        (Add(left="x", right="table", output="y"), "(add of y) joins 9 and 3 rows"),
        (Multiply(left="table", right="x", output="y"), "(multiply of y) joins 3 and 9 rows"),
        (Relu(input="table", output="y"), "the output y depends on no input"),
    ],
)  # fmt: skip
def test_an_operation_that_does_not_fit_is_refused_and_named(op, complaint):
    with pytest.raises(ValueError) as refusal:
        program_with(op).shapes(9, CONSTANTS)
    assert complaint in str(refusal.value)


def test_rows_side_by_side_are_as_many():
    ops = (Stack(input="x", output="a", count=1), Conv1d(input="a", output="b", weight="w", stride=2))
    program = program_of(*ops, Concat(left="a", right="b", output="y"), width_in=4, width_out=8)
    with pytest.raises(ValueError, match=r"op 2 \(concat of y\) joins 9 and 5 rows"):
        program.shapes(9, CONSTANTS)
    program = program_of(*ops, attention(key="b", value="a"), width_in=4, width_out=4)
    with pytest.raises(ValueError, match=r"op 2 \(attention of y\) joins 9 and 5 and 9 rows"):
        program.shapes(9, CONSTANTS)


def test_what_is_too_wide_for_the_run_time_is_refused():
    half = Stack(input="x", output="a", count=2**22)
    join = Concat(left="a", right="a", output="y")
    with pytest.raises(ValueError, match=r"\(concat of y\) is 33554432 wide; use at most 16777216"):
        program_of(half, join, width_in=4, width_out=4).widths({})


# Inputs, tables, constants ---------------------------------------------------------------


def two_inputs(*others: tuple[str, int]) -> Program:
    return dataclasses.replace(
        program_of(Relu(input="x", output="y"), width_in=4, width_out=4), others=others
    )


def test_further_inputs_have_names_and_widths_of_their_own():
    assert two_inputs(("z", 3)).inputs == {"x": 4, "z": 3}
    assert two_inputs(("z", 3)).shapes(5, {}) == {"x": (5, 4), "z": (5, 3), "y": (5, 4)}
    with pytest.raises(ValueError, match="the program names an input twice"):
        two_inputs(("x", 4)).widths({})
    for width in (0, 2**24 + 1):
        with pytest.raises(ValueError, match=f"the input z has width {width}; use 1 to 16777216"):
            two_inputs(("z", width)).widths({})
    with pytest.raises(ValueError, match="the program's output is its input y; it computes nothing"):
        two_inputs(("y", 4)).widths({})


@pytest.mark.parametrize(
    ("others", "complaint"),
    [
        ({"z": 3}, "the program's others are not a list of [name, width]"),
        ([["z"]], "the program's others are not a list of [name, width]"),
        (["zz"], "the program's others are not a list of [name, width]"),
        ([["", 3]], "the program's others='' is not a valid str"),
        ([[3, 3]], "the program's others=3 is not a valid str"),
        ([["z", 0]], "the program's others=0 is not a valid int"),
        ([["z", True]], "the program's others=True is not a valid int"),
    ],
)
def test_further_inputs_that_json_gets_wrong_are_refused(others, complaint):
    with pytest.raises(ValueError) as refusal:
        Program.from_json({**two_inputs().to_json(), "others": others})
    assert str(refusal.value) == complaint


def test_further_inputs_come_back_from_json_and_are_left_out_where_there_are_none():
    program = two_inputs(("z", 3), ("a", 1))
    assert program.to_json()["others"] == [["z", 3], ["a", 1]]
    assert Program.from_json(program.to_json()) == program
    assert "others" not in two_inputs().to_json()


def test_tables_are_what_no_input_reaches():
    ops = (
        Conv1d(input="table", output="projected", weight="w"),
        Relu(input="x", output="a"),
        attention(query="a", positions="projected", left=1, right=1),
    )
    program = program_of(*ops, width_in=4, width_out=4)
    assert program.tables == {"table", "projected"}
    assert program.shapes(7, CONSTANTS) == {
        "x": (7, 4), "table": (3, 4), "projected": (3, 4), "a": (7, 4), "y": (7, 4),
    }  # fmt: skip
    assert program.constants_read == ("table", "w")


def test_constants_are_read_in_the_order_of_the_operations_tables_first():
    ops = (
        Conv1d(input="x", output="a", weight="w", bias="v"),
        attention(query="a", positions="table", content_bias="v"),
    )
    program = program_of(*ops, lstm(input="y", output="h", weight="few", bias="w"), width_in=4, width_out=4)
    assert program.constants_read == ("w", "v", "table", "few")


def test_what_an_operation_reads_and_writes_is_said_by_its_fields():
    op = switched(bias="b", small_bias="sb")
    assert inputs_of(op) == ("wide", "narrow", "one")
    assert results_of(op) == ("y", "c")
    assert constants_of(op) == {"weight": "recurrent", "bias": "b", "small_weight": "few", "small_bias": "sb"}
    assert inputs_of(attention()) == ("x", "x", "x")
    assert (attention().left, attention().can_stream) == (UNLIMITED, False)
