"""A float program made integer-only: every value gets a grid, every operation integers of its own.

Each value has one scale, found by calibration (ranges.py). What a value's readers want of it decides its grid:

* "narrow", products: levels of `activation_bits`, unsigned behind a ReLU.
* "wide", sums: 16 bits and room for four times what calibration saw. Residual sums are where integer
  networks lose their accuracy: a term of 8 bits would cost as much as one more rounding of every layer.
* "logits", the output: 31 bits, as what is compared at the end must not be clipped or made equal.

A value whose readers want different things is wide, and is brought to 8 bits once more for its products.

Every ratio of scales becomes a 31-bit multiplier and a shift (numerics.dyadic_multiplier), a bias an offset of its row's
total, a real zero point a correction by the sum of the activations. BatchNorms are folded before
(passes.py). What has no integer form is an error that names it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subtone.export.ranges import Range
from subtone.numerics import dyadic_multiplier
from subtone.program import (
    MAX_LEVEL,
    Add,
    Affine,
    Columns,
    Concat,
    Constant,
    Constants,
    Conv1d,
    Conv2d,
    Door,
    IntegerAdd,
    IntegerAffine,
    IntegerConv1d,
    IntegerConv2d,
    IntegerWeight,
    Op,
    Program,
    Relu,
    Rescale,
    Scale,
    Stack,
    inputs_of,
    vector_of,
)
from subtone.qtensor import QTensor

WIDE_LIMIT = 2**15 - 1
WIDE_ROOM = 4.0
LOGITS_LIMIT = 2**30
LOGITS_ROOM = 2.0**10
MAX_SHIFT = 62
ROOM_BITS = 61
"""Bits of a total's magnitude that the choice of a shift aims below; Program.widths then proves it."""
SILENT_ROW = 2.0**-16
"""Ratio of a row of nothing but zeros, of which only the bias is heard."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """Levels of a value: `scale` real units each, from `low` to `high`."""

    scale: float
    low: int
    high: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grids:
    """How values are divided: `activation_bits` of what products read; `unsigned` spends no bit on a sign that a
    ReLU has taken; `wide_limit` the outermost level of a sum (127 shows what 8 bits cost there)."""

    activation_bits: int = 8
    unsigned: bool = True
    wide_limit: int = WIDE_LIMIT


def integer_program(
    program: Program, constants: Constants, ranges: Mapping[str, Range], *, grids: Grids | None = None
) -> tuple[Program, dict[str, Constant]]:
    """`program` without a floating-point number between its input and its output, and its constants.

    Args:
        ranges: of every value that an operation writes, and of the input; `ranges.observe` of the same program.

    Raises:
        ValueError: an operation without an integer form, a weight that is float, a value that calibration has
            not seen or has only seen at 0, a ratio of scales beyond 32 bits. Each names the operation.
    """
    making = Making(program, constants, ranges, grids or Grids())
    for index, op in enumerate(program.ops):
        where = f"op {index} ({op.source or op.output})"
        lowering = LOWERINGS.get(type(op))
        if lowering is None:
            raise ValueError(
                f"{where} is a {type(op).__name__}, which has no integer form; leave this model in float, or "
                "replace the operation"
            )
        lowering(making, op, where)
    result = making.program()
    result.widths(making.made)
    return result, making.made


class Making:
    """The integer program so far."""

    def __init__(
        self, program: Program, constants: Constants, ranges: Mapping[str, Range], grids: Grids
    ) -> None:
        self.source, self.constants, self.ranges, self.settings = program, constants, ranges, grids
        self.ops: list[Op] = []
        self.made: dict[str, Constant] = {}
        self.grids: dict[str, Grid] = {}
        self._wants = wants_of(program)
        self._writers = {op.output: op for op in program.ops}
        self._narrowed: dict[str, str] = {}
        for name in program.inputs:
            self.grids[name] = self.grid_of(name, f"the input {name}")

    def program(self) -> Program:
        source = self.source
        doors = tuple(Door(*dataclasses.astuple(self.grids[name])) for name in source.inputs)
        scale = self.grids[source.output].scale
        return dataclasses.replace(source, ops=tuple(self.ops), doors=doors, output_scale=scale)

    # Grids -------------------------------------------------------------------------------

    def grid_of(self, name: str, where: str) -> Grid:
        """The grid of a value of the float program, by what its readers want."""
        wants, moved = self._wants[name], self._range_of(name, where)
        is_positive = moved.low >= 0 and getattr(
            self._writers.get(name), "relu", isinstance(self._writers.get(name), Relu)
        )
        if wants == {"narrow"}:
            return self._narrow(moved, is_positive=is_positive)
        limit, room = (
            (LOGITS_LIMIT, LOGITS_ROOM) if "logits" in wants else (self.settings.wide_limit, WIDE_ROOM)
        )
        room = room if limit > 2**10 else 1.0
        return Grid(scale=moved.magnitude * room / limit, low=0 if is_positive else -limit, high=limit)

    def _narrow(self, moved: Range, *, is_positive: bool) -> Grid:
        bits = self.settings.activation_bits
        if is_positive and self.settings.unsigned:
            return Grid(scale=moved.high / (2**bits - 1), low=0, high=2**bits - 1)
        limit = 2 ** (bits - 1) - 1
        return Grid(scale=moved.magnitude / limit, low=0 if is_positive else -limit, high=limit)

    def _range_of(self, name: str, where: str) -> Range:
        if name not in self.ranges:
            raise ValueError(f"{where}: {name} has no range; calibrate this very program")
        moved = self.ranges[name]
        if not np.isfinite([moved.low, moved.high]).all():
            raise ValueError(
                f"{where}: {name} has the range {moved.low} to {moved.high}; repair the calibration"
            )
        if moved.magnitude < 2.0**-60:
            raise ValueError(
                f"{where}: {name} never moved from 0 in calibration, which gives it no scale; calibrate with other "
                "features, or remove the operation"
            )
        return moved

    def narrowed(self, name: str, where: str) -> str:
        """`name` on a grid that a product may read: itself, or brought to 8 bits."""
        grid = self.grids[name]
        if (grid.low >= 0 and grid.high <= 255) or (grid.low >= -127 and grid.high <= 127):
            return name
        if name not in self._narrowed:
            narrow = self._narrow(self._range_of(name, where), is_positive=grid.low >= 0)
            self._narrowed[name] = self.rescaled(name, f"{name}.narrow", 1.0, narrow, where)
        return self._narrowed[name]

    def rescaled(self, name: str, output: str, factor: float, grid: Grid, where: str) -> str:
        """`factor` times the value `name`, as the value `output` on `grid`."""
        source = self.grids[name]
        ratio = factor * source.scale / grid.scale
        (multiplier,), shift = scalar_multipliers([ratio], [max(-source.low, source.high)], where)
        self.grids[output] = grid
        self.ops.append(
            Rescale(
                input=name, output=output, multiplier=multiplier, shift=shift, low=grid.low, high=grid.high, source=where_of(where)
            )
        )  # fmt: skip
        return output

    def add(self, op: Op, grid: Grid) -> None:
        self.ops.append(op)
        self.grids[op.output] = grid

    def constant(self, name: str, value: Constant) -> str:
        self.made[name] = value
        return name


def where_of(where: str) -> str:
    """The module's path in "op 3 (encoder.0.conv)"."""
    return where.partition("(")[2].rstrip(")")


# What readers want -----------------------------------------------------------------------

MOVERS = (Stack, Concat, Columns)


def wants_of(program: Program) -> dict[str, set[str]]:
    """Of every value what its readers want; what only moves it hands on what is wanted of its result."""
    wants: dict[str, set[str]] = {name: set() for name in program.inputs}
    wants |= {op.output: set() for op in program.ops}
    wants[program.output].add("logits")
    for op in reversed(program.ops):
        for name in inputs_of(op):
            if name in wants:
                wants[name] |= wants[op.output] if isinstance(op, MOVERS) else {WANTS.get(type(op), "wide")}
    return wants


WANTS: dict[type, str] = {Conv1d: "narrow", Conv2d: "narrow"}


# Ratios ----------------------------------------------------------------------------------


def scalar_multipliers(ratios: list[float], magnitudes: list[int], where: str) -> tuple[list[int], int]:
    """Multipliers with one shift for the sum of `ratios[i]` times a value of at most `magnitudes[i]`."""
    largest = max(abs(ratio) for ratio in ratios)
    if not largest:
        return [0] * len(ratios), 1
    shift = min(dyadic_multiplier(largest)[1], MAX_SHIFT)
    total = sum(abs(ratio) * magnitude for ratio, magnitude in zip(ratios, magnitudes, strict=True))
    while shift > 1 and total * 2.0**shift >= 2.0**ROOM_BITS:
        shift -= 1
    require_ratio(largest * 2.0**shift, shift, where)
    return [round_half_up(ratio * 2.0**shift) for ratio in ratios], shift


def require_ratio(multiplier: float, shift: int, where: str) -> None:
    if shift < 1 or multiplier > MAX_LEVEL:
        raise ValueError(
            f"{where}: a scale is 2**{30 - shift} times that of its result, beyond what 32 bits can bring together; "
            "calibrate with other features"
        )


def round_half_up(value: float) -> int:
    return int(np.floor(value + 0.5))


# Operations ------------------------------------------------------------------------------


def lower_product(making: Making, op: Conv1d | Conv2d, where: str) -> None:
    weight = making.constants[op.weight]
    if not isinstance(weight, QTensor):
        raise ValueError(
            f"{where}: the weight {op.weight} is float, and an integer-only program needs it in 1 to 8 bits; give it "
            "a rule with bits"
        )
    name = making.narrowed(op.input, where)
    source, grid = making.grids[name], making.grid_of(op.output, where)
    gain = vector_of(making.constants, op.gain) if isinstance(op, Conv1d) and op.gain else None
    bias = vector_of(making.constants, op.bias) if op.bias else None
    integers = product_integers(
        weight, gain, bias, ratio=source.scale / grid.scale, magnitude=max(-source.low, source.high),
        output_scale=grid.scale, where=where,
    )  # fmt: skip
    making.constant(op.weight, IntegerWeight.of(weight))
    roles = {role: making.constant(f"{op.output}.{role}", value) for role, value in integers.items()}
    kind = IntegerConv1d if isinstance(op, Conv1d) else IntegerConv2d
    kept = {field.name for field in dataclasses.fields(kind)} & {
        field.name for field in dataclasses.fields(op)
    }
    fields: dict[str, Any] = {field: getattr(op, field) for field in kept}
    fields |= {"input": name, "low": 0 if op.relu else grid.low, "high": grid.high, **roles}
    making.add(kind(**fields), grid)


def product_integers(
    weight: QTensor,
    gain: NDArray[np.float32] | None,
    bias: NDArray[np.float32] | None,
    *,
    ratio: float,
    magnitude: int,
    output_scale: float,
    where: str,
) -> dict[str, NDArray]:
    """multiplier, shift and, where they are needed, correction and offset of IntegerProduct for `weight`.

    Args:
        ratio: the scale of the activations over that of the result; `magnitude` their largest level.
    """
    groups = weight.scale.shape[1]
    shape = (weight.num_rows, groups)
    ratios = np.broadcast_to(weight.scale, shape).astype(np.float64) * ratio
    zero_point = np.array(np.broadcast_to(weight.level_zero_point(), shape), np.float64)
    if gain is not None:
        ratios = ratios * gain[:, None].astype(np.float64)
    silent: NDArray[np.bool_] = (ratios == 0).all(axis=1)
    if silent.any():  # all codes of such a row are alike: what they mean is taken away again
        ratios = np.where(silent[:, None], SILENT_ROW * ratio, ratios)
        zero_point = np.where(silent[:, None], weight.levels()[:, :1].astype(np.float64), zero_point)
    largest = np.abs(ratios).max(axis=1)
    shift = np.array([min(dyadic_multiplier(float(each))[1], MAX_SHIFT) for each in largest])
    per_row = (
        magnitude * (weight.num_columns // groups) * (np.abs(ratios) * (128 + np.abs(zero_point))).sum(1)
    )
    if bias is not None:
        per_row = per_row + np.abs(bias.astype(np.float64)) / output_scale
    room = np.floor(ROOM_BITS - np.log2(np.maximum(per_row, 1.0))).astype(np.int64)
    shift = np.minimum(shift, room)
    for row in (int(shift.argmin()), int((largest * 2.0**shift).argmax())):
        require_ratio(float(largest[row] * 2.0 ** shift[row]), int(shift[row]), where)
    scaled = ratios * 2.0 ** shift[:, None]
    integers = {
        "multiplier": np.floor(scaled + 0.5).astype(np.int32),
        "shift": shift.astype(np.int32),
    }
    if zero_point.any():
        integers["correction"] = np.floor(-scaled * zero_point + 0.5).astype(np.int64)
    if bias is not None:
        offset = bias.astype(np.float64) / output_scale * 2.0**shift
        integers["offset"] = np.floor(offset + 0.5).astype(np.int64)
    return integers


def lower_affine(making: Making, op: Affine, where: str) -> None:
    source, grid = making.grids[op.input], making.grid_of(op.output, where)
    gain, bias = (vector_of(making.constants, name).astype(np.float64) for name in (op.gain, op.bias))
    ratios, offsets = gain * source.scale / grid.scale, bias / grid.scale
    total = np.abs(ratios) * max(-source.low, source.high) + np.abs(offsets)
    largest = np.maximum(np.abs(ratios), 2.0**-31)
    shift = np.array([min(dyadic_multiplier(float(each))[1], MAX_SHIFT) for each in largest])
    shift = np.minimum(shift, np.floor(ROOM_BITS - np.log2(np.maximum(total, 1.0))).astype(np.int64))
    require_ratio(float((largest * 2.0**shift).max()), int(shift.min()), where)
    making.add(
        IntegerAffine(
            input=op.input,
            output=op.output,
            multiplier=making.constant(
                f"{op.output}.multiplier", np.floor(ratios * 2.0**shift + 0.5).astype(np.int32)
            ),
            offset=making.constant(
                f"{op.output}.offset", np.floor(offsets * 2.0**shift + 0.5).astype(np.int64)
            ),
            shift=making.constant(f"{op.output}.shift", shift.astype(np.int32)),
            low=0 if op.relu else grid.low,
            high=grid.high,
            source=op.source,
        ),
        grid,
    )


def lower_add(making: Making, op: Add, where: str) -> None:
    grid, sides = making.grid_of(op.output, where), [making.grids[op.left], making.grids[op.right]]
    multipliers, shift = scalar_multipliers(
        [side.scale / grid.scale for side in sides], [max(-side.low, side.high) for side in sides], where
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


def lower_scale(making: Making, op: Scale, where: str) -> None:
    making.rescaled(op.input, op.output, op.factor, making.grid_of(op.output, where), where)


def lower_mover(making: Making, op: Stack | Columns, where: str) -> None:
    making.add(op, making.grids[op.input])


def lower_concat(making: Making, op: Concat, where: str) -> None:
    grid = making.grid_of(op.output, where)
    names = [
        making.rescaled(name, f"{op.output}.{side}", 1.0, grid, where)
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
    Stack: lower_mover,
    Columns: lower_mover,
    Concat: lower_concat,
}
