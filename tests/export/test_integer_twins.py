"""Each operation on levels beside its float twin on the same inputs: within a bound derived from its steps.

In every bound: `HALF` of the result's step, the last rounding; the error that docs/numerics.md, section 7, states of
the function; and `FLOATS`, 2**-20 of the values' magnitude, for the twin's own float32 and multipliers of 31 bits.
"""

from __future__ import annotations

import numpy as np
import pytest

from subtone.export.integer import integer_program
from subtone.export.making import Grid
from subtone.export.ranges import observe
from subtone.numerics import asymmetric_grid, symmetric_grid
from subtone.program import (
    FUNCTIONS,
    Attention,
    Clip,
    Columns,
    Constant,
    Conv1d,
    Embedding,
    Function,
    Glu,
    IntegerAttention,
    IntegerConv1d,
    IntegerWeight,
    LayerNorm,
    Lstm,
    Multiply,
    Op,
    Program,
    Scale,
    Sinusoids,
)
from subtone.qtensor import QTensor
from subtone.runtime.doors import levels_at
from subtone.runtime.engine import NumpyEngine
from subtone.runtime.sequence_ops import cell_step

HALF, FLOATS = 0.5, 2.0**-20
PROBABILITY = 2.0**-15
BYTE = Grid(scale=1 / 16, low=-127, high=127)
WORD = Grid(scale=2.0**-11, low=-(2**15) + 1, high=2**15 - 1)


def normal(*shape: int, seed: int = 0, deviation: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, deviation, shape).astype(np.float32)


def program_of(*ops: Op, width: int, width_out: int) -> Program:
    return Program(
        input="x", input_width=width, output="y", output_width=width_out, frames_per_step=1, ops=ops
    )


class Twins:
    """Both programs, and every value of both in real units for an input that both can hold."""

    def __init__(
        self, *ops: Op, x: np.ndarray, width_out: int, constants: dict[str, Constant] | None = None, output: Grid = BYTE
    ) -> None:  # fmt: skip
        program, constants = program_of(*ops, width=x.shape[1], width_out=width_out), constants or {}
        self.made, self.integers = integer_program(
            program, constants, observe(program, constants, [x]), output=output
        )
        door = self.made.doors[0]
        levels = levels_at(door, x)
        self.x = (levels * door.scale).astype(np.float32)
        self.float = NumpyEngine(program, constants).values(self.x)
        self.levels = NumpyEngine(self.made, self.integers).values(levels)
        self.integer = self.levels["y"] * output.scale
        self.step = output.scale

    def assert_within(self, bound: np.ndarray | float) -> None:
        expected = self.float["y"].astype(np.float64)
        limit = HALF * self.step + bound + FLOATS * (1 + np.abs(expected))
        error = np.abs(self.integer - expected)
        assert (error <= limit).all(), (error - limit).max()
        assert error.max() > 0 or self.step > 1  # they are not the same numbers


@pytest.mark.parametrize("output", [BYTE, WORD])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_is_within_its_stated_error_and_half_a_step(function, output):
    x = normal(40, 7, deviation=2.0)
    if function == "exp":
        x = -np.abs(x)
    twins = Twins(Function(input="x", output="y", function=function), x=x, width_out=7, output=output)
    largest = float(np.abs(twins.x).max())
    stated = {
        "sigmoid": 0.78 * PROBABILITY,
        "tanh": 1.06 * PROBABILITY,
        "exp": 3.4e-6 + 2.0**-31,
        "silu": 0.78 * PROBABILITY * largest,
        "gelu_tanh": 0.9 * PROBABILITY * largest,
        "gelu": 5.3e-4,
    }
    twins.assert_within(stated[function])


def test_a_glu_is_within_its_sigmoids_error_and_half_a_step():
    twins = Twins(Glu(input="x", output="y"), x=normal(40, 8, deviation=1.5), width_out=4, output=WORD)
    twins.assert_within(0.78 * PROBABILITY * np.abs(twins.x[:, :4]))


@pytest.mark.parametrize("has_gain", [True, False])
@pytest.mark.parametrize("deviation", [0.01, 1.0, 300.0])
def test_a_norm_is_within_half_a_step_however_large_its_input(has_gain, deviation):
    """epsilon counts where the row is faint: it moves 1e-2 by 5 percent."""
    constants: dict[str, Constant] = {"g": normal(12, seed=1), "b": normal(12, seed=2)}
    names = {"gain": "g", "bias": "b"} if has_gain else {}
    op = LayerNorm(input="x", output="y", epsilon=float(np.float32(1e-5)), **names)
    x = normal(40, 12, deviation=deviation) + np.float32(3 * deviation)
    twins = Twins(op, x=x, width_out=12, constants=constants, output=WORD)
    largest = np.sqrt(11) * (float(np.abs(constants["g"]).max()) if has_gain else 1)
    twins.assert_within((2.0**-23 + 2.0**-29 * np.sqrt(11) + FLOATS) * largest)


def attention(**fields) -> tuple[Op, ...]:
    parts = [Columns(input="x", output=name, first=6 * index, count=6) for index, name in enumerate("qkv")]
    return (*parts, Attention(query="q", key="k", value="v", output="y", heads=2, **fields))


def of_weights(scores: float, rows: int, values: np.ndarray) -> float:
    """What scores off by so much move a mean of values: every weight by a factor within exp(2 scores), the rest of
    section 7's softmax."""
    largest = float(np.abs(values).max())
    return (np.expm1(2 * scores) + 7e-6 + 3.1e-5 * rows / 2**15 + 0.51 * rows * 2.0**-22) * 2 * largest


@pytest.mark.parametrize(("left", "right"), [(-1, -1), (3, 2), (0, 0)])
def test_attention_is_within_half_a_unit_of_its_scores_and_half_a_step(left, right):
    x = normal(20, 18, deviation=2.0)
    twins = Twins(*attention(left=left, right=right), x=x, width_out=6, output=WORD)
    twins.assert_within(of_weights(2.0**-17 + 20 * FLOATS, 20, twins.x[:, 12:]))


def test_positions_and_biases_add_half_a_step_of_the_query_for_each_column():
    """The table has a grid of its own, so that it too is off by half a step for each column of a query."""
    depth, constants = 3, {"t": normal(6, 6, seed=4), "c": normal(6, seed=5), "p": normal(6, seed=6)}
    op = attention(positions="t", content_bias="c", position_bias="p", left=3, right=2)
    twins = Twins(*op, x=normal(20, 18, deviation=2.0), width_out=6, constants=constants, output=WORD)
    query, key = twins.x[:, :6], twins.x[:, 6:12]
    half = HALF * twins.made.doors[0].scale
    table = constants["t"]
    of_bias = half * depth * (float(np.abs(key).max()) + float(np.abs(table).max()) * (1 + 1 / 254))
    half_table = HALF * float(np.abs(table).max()) / 127
    of_table = half_table * depth * (float(np.abs(query).max()) + float(np.abs(constants["p"]).max()))
    scores = (of_bias + of_table) / np.sqrt(depth) + 2.0**-17 + 100 * FLOATS
    twins.assert_within(of_weights(scores, 6, twins.x[:, 12:]))
    assert np.median(np.abs(twins.integer - twins.float["y"])) < 0.03  # and mostly far within it


def test_a_table_of_positions_becomes_levels_on_a_grid_of_its_own():
    table = normal(4, 6, seed=4, deviation=1e-3)
    ops = attention(positions="t", left=2, right=1)
    twins = Twins(*ops, x=normal(9, 18), width_out=6, constants={"t": table})
    levels = twins.integers["t"]
    assert levels.dtype == np.int32
    assert np.abs(levels).max() == 127
    np.testing.assert_allclose(levels * (np.abs(table).max() / 127), table, atol=np.abs(table).max() / 254)
    (op,) = [op for op in twins.made.ops if isinstance(op, IntegerAttention)]
    assert op.positions == "t"


def test_sinusoids_are_within_half_a_level():
    ops = (Sinusoids(input="x", output="s", columns=8), Scale(input="s", output="y", factor=0.5))
    twins = Twins(*ops, x=normal(30, 1), width_out=8, output=WORD)
    twins.assert_within(0.5 * (0.51 / 127))


def recurrence(bits: int, *, is_symmetric: bool) -> dict[str, Constant]:
    weight = normal(12, 3, seed=3)
    low, high = weight.min(1, keepdims=True), weight.max(1, keepdims=True)
    grid = (
        symmetric_grid(np.abs(weight).max(1, keepdims=True), bits)
        if is_symmetric
        else asymmetric_grid(low, high, bits)
    )
    return {"w": QTensor.on_grid(weight, grid, bits, is_symmetric=is_symmetric), "b": normal(12, seed=4)}


@pytest.mark.parametrize("is_symmetric", [True, False])
def test_each_step_of_an_lstm_is_within_its_gates_and_functions_errors(is_symmetric):
    """Each row from the state that the integers had before it: a step further apart would be no error of its own."""
    constants = recurrence(8, is_symmetric=is_symmetric)
    op = Lstm(input="x", output="y", cell="c", weight="w", bias="b", activation_bits=8)
    byte = Grid(scale=1 / 127, low=-127, high=127)
    twins = Twins(op, x=normal(25, 12, deviation=2.0), width_out=3, constants=constants, output=byte)
    hidden, cells = twins.levels["y"] / 127, twins.levels["c"] * 2.0**-16
    before = [np.concatenate([np.zeros((1, 3)), each[:-1]]) for each in (hidden, cells)]
    gates = twins.x + before[0] @ constants["w"].dequantize().astype(np.float64).T + constants["b"]
    expected, expected_cells = cell_step(gates.astype(np.float32), before[1].astype(np.float32))
    of_gate = 2.0**-17 + 20 * FLOATS
    of_sigmoid, of_tanh = 0.78 * PROBABILITY + of_gate / 4, 1.06 * PROBABILITY + of_gate
    of_cell = of_sigmoid * (np.abs(before[1]) + 1) + of_tanh + 2.0**-17 + FLOATS * (1 + np.abs(before[1]))
    assert (np.abs(cells - expected_cells) <= of_cell).all()
    of_hidden = HALF / 127 + of_sigmoid + 1.06 * PROBABILITY + of_cell
    assert (np.abs(hidden - expected) <= of_hidden).all()
    assert np.abs(hidden).max() > 0.5


@pytest.mark.parametrize("is_symmetric", [True, False])
def test_an_embedding_is_within_half_a_step_of_the_rows_that_the_weight_means(is_symmetric):
    weight = normal(9, 5, seed=7)
    low, high = weight.min(1, keepdims=True), weight.max(1, keepdims=True)
    grid = (
        symmetric_grid(np.abs(weight).max(1, keepdims=True), 4)
        if is_symmetric
        else asymmetric_grid(low, high, 4)
    )
    constants: dict[str, Constant] = {"w": QTensor.on_grid(weight, grid, 4, is_symmetric=is_symmetric)}
    labels = np.array([[0], [8], [3], [3]], np.float32)
    twins = Twins(
        Embedding(input="x", output="y", weight="w"), x=labels, width_out=5, constants=constants, output=WORD
    )
    assert tuple(twins.made.doors[0]) == (1.0, 0, 8)
    assert isinstance(twins.integers["w"], IntegerWeight)
    twins.assert_within(FLOATS)


def test_products_by_value_and_clips_are_within_half_a_step_of_their_ends():
    ops = (
        Clip(input="x", output="c", low=-0.5, high=2.0),
        Multiply(left="c", right="x", output="y"),
    )
    twins = Twins(*ops, x=normal(30, 4), width_out=4, output=WORD)
    of_clip = (
        float(np.abs(twins.float["c"]).max()) * 4 / 2**15
    )  # one step of its own grid, which has room for four
    twins.assert_within(of_clip * np.abs(twins.x))


def test_a_scale_behind_a_product_costs_no_operation():
    weight = normal(4, 4, seed=8)
    packed = QTensor.on_grid(
        weight, symmetric_grid(np.abs(weight).max(1, keepdims=True), 8), 8, is_symmetric=True
    )
    ops = (
        Conv1d(input="x", output="p", weight="w", bias="b"),
        Scale(input="p", output="y", factor=-0.5),
    )
    constants: dict[str, Constant] = {"w": packed, "b": normal(4, seed=9)}
    twins = Twins(*ops, x=normal(30, 4), width_out=4, constants=constants, output=WORD)
    assert [type(op) for op in twins.made.ops] == [IntegerConv1d]
    twins.assert_within(0.0)
