"""What comes of constants alone is computed when a program is loaded, by the definitions."""

from __future__ import annotations

import numpy as np
from tests.runtime.definitions import all_values, results, same_bits
from tests.runtime.small_programs import program_of

from subtone.program import Attention, Conv1d, Lstm, Relu, Sinusoids, Stack
from subtone.runtime.engine import NumpyEngine
from subtone.runtime.tables import with_tables

RNG = np.random.default_rng(0)
CONSTANTS = {
    "t": RNG.normal(size=(3, 4)).astype(np.float32),
    "w": RNG.normal(size=(4, 4)).astype(np.float32),
    "in": RNG.normal(size=(4, 4)).astype(np.float32),
}
PROJECTED = (
    Relu(input="t", output="a"),
    Conv1d(input="a", output="b", weight="w"),
    Conv1d(input="x", output="c", weight="in"),
    Attention(query="c", key="c", value="c", positions="b", output="y", left=1, right=1),
)


def test_tables_are_made_once_and_their_operations_are_gone():
    program = program_of(*PROJECTED, width_in=4, width_out=4)
    left, constants = with_tables(program, CONSTANTS)
    assert left.ops == PROJECTED[2:]
    (made,) = results(PROJECTED[1], {"a": np.maximum(CONSTANTS["t"], 0)}, CONSTANTS)
    assert same_bits(constants["b"], made)
    assert "a" not in constants  # nothing that is left reads it
    assert constants["in"] is CONSTANTS["in"]
    x = RNG.normal(size=(6, 4)).astype(np.float32)
    assert same_bits(NumpyEngine(program, CONSTANTS).run(x), all_values(program, CONSTANTS, x)["y"])


def test_a_program_without_tables_stays_as_it_is():
    program = program_of(Relu(input="x", output="y"), width_in=4, width_out=4)
    assert with_tables(program, CONSTANTS) == (program, CONSTANTS)
    plain = Attention(query="x", key="x", value="x", positions="t", output="y", left=1, right=1)
    one = program_of(plain, width_in=4, width_out=4)
    assert with_tables(one, CONSTANTS)[0].ops == (plain,)


def test_a_table_may_come_of_a_recurrence_or_of_too_few_rows():
    """An LSTM starts at 0 over a table too; a stack of four of three rows is a table without rows."""
    gates = {"g": RNG.normal(size=(3, 8)).astype(np.float32), "r": RNG.normal(size=(8, 2)).astype(np.float32)}
    recurrence = Lstm(input="g", output="h", cell="cell", weight="r")
    ops = (recurrence, Attention(query="x", key="x", value="x", positions="h", output="y", left=1, right=1))
    _, constants = with_tables(program_of(*ops, width_in=2, width_out=2), gates)
    assert same_bits(constants["h"], results(recurrence, gates, gates)[0])
    few = (
        Stack(input="t", output="s", count=4),
        Conv1d(input="s", output="unread", weight="deep", kernel=2, stride=2),
        Relu(input="x", output="y"),
    )
    deep = {**CONSTANTS, "deep": np.ones((1, 16, 2), np.float32)}
    program = program_of(*few, width_in=2, width_out=2)
    assert with_tables(program, deep)[0].ops == few[2:]


def test_positions_made_of_the_utterance_itself_are_values():
    """Sinusoids of all distances, projected: what relative attention over a whole utterance reads."""
    ops = (
        Sinusoids(input="x", output="s", columns=4),
        Conv1d(input="s", output="p", weight="w"),
        Attention(query="x", key="x", value="x", positions="p", output="y", heads=2),
    )
    program = program_of(*ops, width_in=4, width_out=4)
    assert program.tables == set()
    engine = NumpyEngine(program, CONSTANTS)
    for rows in (0, 1, 2, 9):
        x = RNG.normal(size=(rows, 4)).astype(np.float32)
        assert same_bits(engine.run(x), all_values(program, CONSTANTS, x)["y"])
