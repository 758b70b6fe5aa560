"""A float program made integer-only: every value gets a grid, every operation integers of its own.

Each value has one scale, found by calibration (ranges.py); what its readers want of it decides its grid (making.py).
Every ratio of scales becomes a 31-bit multiplier and a shift (numerics.dyadic_multiplier), a bias an offset of its row's
total, a real zero point a correction by the sum of the activations. BatchNorms are folded before
(passes.py), and what no input reaches is computed before, in floats: a table of positions is rounded once. What has no
integer form is an error that names it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from subtone.export import integer_sequences
from subtone.export.integer_products import lower_product
from subtone.export.making import MAX_SHIFT, ROOM_BITS, Grid, Grids, Making, require_ratio, scalar_multipliers
from subtone.export.ranges import Range
from subtone.numerics import dyadic_multiplier
from subtone.program import (
    Add,
    Affine,
    Clip,
    Columns,
    Concat,
    Constant,
    Constants,
    Conv1d,
    Conv2d,
    IntegerAdd,
    IntegerAffine,
    IntegerMultiply,
    Multiply,
    Program,
    Relu,
    Scale,
    Stack,
    vector_of,
)
from subtone.runtime.tables import with_tables


def integer_program(
    program: Program,
    constants: Constants,
    ranges: Mapping[str, Range],
    *,
    grids: Grids | None = None,
    output: Grid | None = None,
    prefix: str = "",
) -> tuple[Program, dict[str, Constant]]:
    """`program` without a floating-point number between its input and its output, and its constants.

    Args:
        ranges: of every value that an operation writes, and of the input; `ranges.observe` of the same program.
        output: the grid of the output, where another program reads it: its door.
        prefix: stands in front of the names of the integers that are made.

    Raises:
        ValueError: an operation without an integer form, a weight that is float, a value that calibration has
            not seen or has only seen at 0, a ratio of scales beyond 32 bits. Each names the operation.
    """
    program, constants = with_tables(program, constants)
    making = Making(program, constants, ranges, grids or Grids(), output=output, prefix=prefix)
    for index, op in enumerate(program.ops):
        where = f"op {index} ({op.source or op.output})"
        lowering = LOWERINGS.get(type(op))
        if lowering is None:
            raise ValueError(
                f"{where} is a {type(op).__name__}, which has no integer form; leave this model in float, or "
                "replace the operation"
            )
        making.module = op.source
        lowering(making, op, where)
    result = making.program()
    result.widths(making.made)
    return result, making.made


def lower_affine(making: Making, op: Affine, where: str) -> None:
    source, grid = making.grids[op.input], making.grid_of(op.output, where)
    gain, bias = (vector_of(making.constants, name).astype(np.float64) for name in (op.gain, op.bias))
    ratios, offsets = gain * source.scale / grid.scale, bias / grid.scale
    total = np.abs(ratios) * source.magnitude + np.abs(offsets)
    largest = np.maximum(np.abs(ratios), 2.0**-31)
    shift = np.array([min(dyadic_multiplier(float(each))[1], MAX_SHIFT) for each in largest])
    shift = np.minimum(shift, np.floor(ROOM_BITS - np.log2(np.maximum(total, 1.0))).astype(np.int64))
    require_ratio(float((largest * 2.0**shift).max()), int(shift.min()), where)
    integers = {
        "multiplier": np.floor(ratios * 2.0**shift + 0.5).astype(np.int32),
        "offset": np.floor(offsets * 2.0**shift + 0.5).astype(np.int64),
        "shift": shift.astype(np.int32),
    }
    making.add(
        IntegerAffine(
            input=op.input,
            output=op.output,
            low=0 if op.relu else grid.low,
            high=grid.high,
            source=op.source,
            **making.integers(op.output, integers),
        ),
        grid,
    )


def lower_add(making: Making, op: Add, where: str) -> None:
    grid, sides = making.grid_of(op.output, where), [making.grids[op.left], making.grids[op.right]]
    multipliers, shift = scalar_multipliers(
        [side.scale / grid.scale for side in sides], [side.magnitude for side in sides], where
    )
    making.add(
        IntegerAdd(
            left=op.left,
            right=op.right,
            output=op.output,
            left_multiplier=multipliers[0],
            right_multiplier=multipliers[1],
            shift=shift,
            low=0 if op.relu else grid.low,
            high=grid.high,
            source=op.source,
        ),
        grid,
    )


def lower_relu(making: Making, op: Relu, where: str) -> None:
    grid = making.grid_of(op.output, where)
    making.rescaled(op.input, op.output, 1.0, dataclasses.replace(grid, low=0), where)


def lower_multiply(making: Making, op: Multiply, where: str) -> None:
    names = [making.brought(name, "wide", where) for name in (op.left, op.right)]
    grid, (left, right) = making.grid_of(op.output, where), [making.grids[name] for name in names]
    (multiplier,), shift = scalar_multipliers(
        [left.scale * right.scale / grid.scale], [left.magnitude * right.magnitude], where
    )
    making.add(
        IntegerMultiply(
            left=names[0],
            right=names[1],
            output=op.output,
            multiplier=multiplier,
            shift=shift,
            low=grid.low,
            high=grid.high,
            source=op.source,
        ),
        grid,
    )


def lower_clip(making: Making, op: Clip, where: str) -> None:
    """The levels nearest to both ends, on a grid that reaches no further than calibration saw."""
    grid = making.grid_of(op.output, where)
    low, high = (min(max(round(end / grid.scale), grid.low), grid.high) for end in (op.low, op.high))
    if low >= high:
        raise ValueError(
            f"{where} clips to {op.low} to {op.high}, which is one level of {grid.scale:.3g}; calibrate again"
        )
    making.rescaled(op.input, op.output, 1.0, dataclasses.replace(grid, low=low, high=high), where)


def lower_scale(making: Making, op: Scale, where: str) -> None:
    if op.input in making.scaled:
        return  # its product has written the result
    making.rescaled(op.input, op.output, op.factor, making.grid_of(op.output, where), where)


def lower_mover(making: Making, op: Stack | Columns, where: str) -> None:
    making.add(op, making.grids[op.input])


def lower_concat(making: Making, op: Concat, where: str) -> None:
    grid = making.grid_of(op.output, where)
    names = [
        name if making.grids[name] == grid else making.rescaled(name, f"{op.output}.{side}", 1.0, grid, where)
        for side, name in (("left", op.left), ("right", op.right))
    ]
    making.add(dataclasses.replace(op, left=names[0], right=names[1]), grid)


LOWERINGS: dict[type, Callable[[Making, Any, str], None]] = {
    Conv1d: lower_product,
    Conv2d: lower_product,
    Affine: lower_affine,
    Add: lower_add,
    Relu: lower_relu,
    Scale: lower_scale,
    Multiply: lower_multiply,
    Clip: lower_clip,
    Stack: lower_mover,
    Columns: lower_mover,
    Concat: lower_concat,
    **integer_sequences.LOWERINGS,
}
