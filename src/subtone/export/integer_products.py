"""Products by weights in an integer-only program: a weight's scales become multipliers, its bias an offset."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subtone.export.making import MAX_SHIFT, ROOM_BITS, Making, require_ratio
from subtone.numerics import dyadic_multiplier
from subtone.program import Conv1d, Conv2d, IntegerConv1d, IntegerConv2d, IntegerWeight, vector_of
from subtone.qtensor import QTensor

SILENT_ROW = 2.0**-16
"""Ratio of a row of nothing but zeros, of which only the bias is heard."""


def lower_product(making: Making, op: Conv1d | Conv2d, where: str) -> None:
    """A product; a Scale that alone reads it joins its multipliers."""
    name = making.brought(op.input, "narrow", where)
    scaled = making.scaled.get(op.output)
    output, factor = (scaled.output, scaled.factor) if scaled else (op.output, 1.0)
    source, grid = making.grids[name], making.grid_of(output, where)
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
    fields |= {"input": name, "output": output, "low": 0 if op.relu else grid.low, "high": grid.high, **roles}
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
