"""Products by weights in an integer-only program: a weight's scales become multipliers, its bias an offset."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subtone.export.making import FITS, MAX_SHIFT, ROOM_BITS, Grid, Making, require_ratio, scalar_multipliers
from subtone.numerics import dyadic_multiplier
from subtone.program import Conv1d, Conv2d, IntegerAdd, IntegerConv1d, IntegerConv2d, IntegerWeight, vector_of
from subtone.qtensor import QTensor

PARTIAL_LIMIT = 2**30
"""The outermost level of a product by one byte of two."""
SILENT_ROW = 2.0**-16
"""Ratio of a row of nothing but zeros, of which only the bias is heard."""


def lower_product(making: Making, op: Conv1d | Conv2d, where: str) -> None:
    """A product; a Scale that alone reads it joins its multipliers."""
    scaled = making.scaled.get(op.output)
    output, factor = (scaled.output, scaled.factor) if scaled else (op.output, 1.0)
    is_wide = making.settings.is_wide(op)
    name = making.brought(op.input, "wide" if is_wide else "narrow", where)
    grid = making.grid_of(output, where)
    if is_wide and not FITS["narrow"](making.grids[name]):
        _lower_bytes(making, op, name, output, factor, grid, where)
    else:
        ends = (0 if op.relu else grid.low, grid.high)
        _add_product(making, op, name, output, factor, grid, ends, where)


def _lower_bytes(
    making: Making, op: Conv1d | Conv2d, name: str, output: str, factor: float, grid: Grid, where: str
) -> None:
    """A product of two bytes: `W x = 256 W high + W low`, each in 30 bits that no input can leave, then their sum.

    The two partial sums are rounded to 2**-30 of the largest that they could be, so that the one rounding that is
    heard is that of the sum.
    """
    weight = weight_of(making, op.weight, where)
    reach = np.abs(weight.dequantize().astype(np.float64)).reshape(weight.num_rows, -1).sum(1)
    if isinstance(op, Conv1d) and op.gain:
        reach = reach * np.abs(vector_of(making.constants, op.gain))
    reach = reach * 129 * 256 * making.grids[name].scale
    if op.bias:
        reach = reach + np.abs(vector_of(making.constants, op.bias))
    partial = Grid(
        scale=float(reach.max()) * abs(factor) / PARTIAL_LIMIT, low=-PARTIAL_LIMIT, high=PARTIAL_LIMIT
    )
    ends = (partial.low, partial.high)
    halves = making.bytes_of(name)
    parts = [f"{output}.of_high", f"{output}.of_low"]
    for half, part in zip(halves, parts, strict=True):
        own = dataclasses.replace(op, bias=op.bias if half is halves[0] else "")
        _add_product(making, own, half, part, factor, partial, ends, where)
    multipliers, shift = scalar_multipliers([partial.scale / grid.scale] * 2, [PARTIAL_LIMIT] * 2, where)
    making.add(
        IntegerAdd(
            left=parts[0], right=parts[1], output=output, left_multiplier=multipliers[0],
            right_multiplier=multipliers[1], shift=shift, low=0 if op.relu else grid.low, high=grid.high,
            source=op.source,
        ),
        grid,
    )  # fmt: skip


def _add_product(
    making: Making,
    op: Conv1d | Conv2d,
    name: str,
    output: str,
    factor: float,
    grid: Grid,
    ends: tuple[int, int],
    where: str,
) -> None:
    """`factor` times the product of the value `name`, as the value `output` on `grid`, clipped to `ends`."""
    source = making.grids[name]
    gain = vector_of(making.constants, op.gain) if isinstance(op, Conv1d) and op.gain else None
    bias = vector_of(making.constants, op.bias) if op.bias else None
    integers = product_integers(
        weight_of(making, op.weight, where), gain, bias, ratio=factor * source.scale / grid.scale,
        magnitude=source.magnitude, output_scale=grid.scale / factor, where=where,
    )  # fmt: skip
    roles = {"weight": op.weight, **making.integers(output, integers)}
    kind = IntegerConv1d if isinstance(op, Conv1d) else IntegerConv2d
    kept = {field.name for field in dataclasses.fields(kind)} & {
        field.name for field in dataclasses.fields(op)
    }
    fields: dict[str, Any] = {field: getattr(op, field) for field in kept}
    fields |= {"input": name, "output": output, "low": ends[0], "high": ends[1], **roles}
    making.add(kind(**fields), grid)


def weight_of(making: Making, name: str, where: str) -> QTensor:
    """The quantized weight `name`, whose levels join the constants; ValueError if it is a float one."""
    weight = making.constants[name]
    if not isinstance(weight, QTensor):
        raise ValueError(
            f"{where}: the weight {name} is float, and an integer-only program needs it in 1 to 8 bits; give it "
            "a rule with bits"
        )
    making.constant(name, IntegerWeight.of(weight))
    return weight


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
