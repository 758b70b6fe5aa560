"""What a program makes of constants alone, made once when it is loaded."""

from __future__ import annotations

import dataclasses
from collections import ChainMap

import numpy as np

from subtone.program import Constants, Program, inputs_of, results_of
from subtone.runtime.ops import DEFINITIONS
from subtone.runtime.rows import Matrix, Rows


def table_of(constants: Constants, name: str) -> Matrix:
    """The constant in a value's place, which `Program.widths` has found to be an array."""
    table = constants[name]
    assert isinstance(table, np.ndarray)
    return table


def with_tables(program: Program, constants: Constants) -> tuple[Program, Constants]:
    """`program` without the operations that no input reaches, and `constants` with what they give.

    Computed by their definitions in NumPy, for every engine: projected relative positions, a few
    thousand rows in all.
    """
    widths = program.widths(constants)
    tables = program.tables
    steps = [op for op in program.ops if op.output in tables]
    if not steps:
        return program, constants
    made: dict[str, Matrix] = {}
    for op in steps:
        seen = {
            field: Rows(made[name] if name in made else table_of(constants, name))
            for field in op.VALUES
            if (name := getattr(op, field))
        }
        end = op.end({field: rows.end for field, rows in seen.items()}, is_last=True)
        nothing = np.empty((0, widths[op.output]), program.dtype)
        if op.memory:  # before the first row
            seen |= {field: Rows(nothing) for field in op.RESULTS}
        results = DEFINITIONS[type(op)](op, seen, constants, 0, end) if end else [nothing for _ in op.RESULTS]
        made |= dict(zip(results_of(op), results, strict=True))
    ops = tuple(op for op in program.ops if op.output not in tables)
    read = {name for op in ops for name in inputs_of(op)}
    kept = {name: table for name, table in made.items() if name in read}
    return dataclasses.replace(program, ops=ops), ChainMap(kept, constants)  # type: ignore[arg-type]
