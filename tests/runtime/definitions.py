"""Operations by their definitions, without an engine and without a plan: every value whole."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from subtone.program import Constant, Op, Program, results_of
from subtone.runtime.ops import DEFINITIONS
from subtone.runtime.rows import Rows


def results(
    op: Op, values: Mapping[str, np.ndarray], constants: Mapping[str, Constant]
) -> tuple[np.ndarray, ...]:
    """All that `op` writes for whole values; a constant may stand in a value's place."""
    read = {field: name for field in op.VALUES if (name := getattr(op, field))}
    seen = {field: Rows(values[name] if name in values else constants[name]) for field, name in read.items()}
    widths = {field: rows.held.shape[1] for field, rows in seen.items()}
    end = op.end({field: rows.end for field, rows in seen.items()}, is_last=True)
    dtype = np.int32 if op.ARITHMETIC == "integer" else np.float32
    nothing = np.empty((0, op.width(widths, constants, "the op")), dtype)
    if end == 0:
        return tuple(nothing for _ in op.RESULTS)
    if op.memory:  # before the first row there is nothing
        seen |= {field: Rows(nothing) for field in op.RESULTS}
    return DEFINITIONS[type(op)](op, seen, constants, 0, end)


def result(op: Op, values: Mapping[str, np.ndarray], constants: Mapping[str, Constant]) -> np.ndarray:
    """The first thing that `op` writes."""
    return results(op, values, constants)[0]


def all_values(
    program: Program, constants: Mapping[str, Constant], *inputs: np.ndarray
) -> dict[str, np.ndarray]:
    """Every value of `program` by its name, the inputs too."""
    values = dict(zip(program.inputs, inputs, strict=True))
    for op in program.ops:
        values |= dict(zip(results_of(op), results(op, values, constants), strict=True))
    return values


def same_bits(got: np.ndarray, expected: np.ndarray) -> bool:
    return (
        got.dtype == expected.dtype == np.float32
        and got.shape == expected.shape
        and got.tobytes() == expected.tobytes()
    )
