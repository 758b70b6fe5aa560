"""Functions, norms, attention, recurrences and embeddings in an integer-only program; as integer.py.

Where a weight's row has a multiplier of its own, these have one for all: what they read has one scale, and what they
compute a unit that is a power of two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subtone.export.integer_products import product_integers, weight_of
from subtone.export.making import (
    MAX_SHIFT,
    ROOM_BITS,
    Grid,
    Making,
    require_ratio,
    round_half_up,
    scalar_multipliers,
)
from subtone.numerics import dyadic_multiplier, largest_symmetric_level
from subtone.program import (
    STATE_BITS,
    Attention,
    Embedding,
    Function,
    Glu,
    IntegerAttention,
    IntegerEmbedding,
    IntegerFunction,
    IntegerGlu,
    IntegerLayerNorm,
    IntegerLstm,
    IntegerSinusoids,
    LayerNorm,
    Lstm,
    Sinusoids,
    vector_of,
)
from subtone.runtime.fixed_point import PROBABILITY_BITS, UNIT_BITS
from subtone.runtime.fixed_point_rows import NORM_BITS, POSITION_LIMIT, WEIGHT_BITS
from subtone.runtime.sequence_ops import rotation


def lower_function(making: Making, op: Function, where: str) -> None:
    name = making.brought(op.input, "fixed", where)
    source, grid = making.grids[name], making.grid_of(op.output, where)
    if op.function == "exp":
        if making.ranges[op.input].high > 0:
            raise ValueError(
                f"{where} is exp of values above 0, which has no integer form; subtract the largest before"
            )
        if source.high > 0:
            name = making.rescaled(
                name, f"{name}.negative", 1.0, Grid(scale=source.scale, low=source.low, high=0), where
            )
            source = making.grids[name]
    unit_bits, most = {
        "exp": (UNIT_BITS, 1 << UNIT_BITS),
        "sigmoid": (PROBABILITY_BITS, 1 << PROBABILITY_BITS),
        "tanh": (PROBABILITY_BITS, 1 << PROBABILITY_BITS),
    }.get(op.function, (source.fraction_bits + PROBABILITY_BITS, source.magnitude << PROBABILITY_BITS))
    (multiplier,), shift = scalar_multipliers([2.0**-unit_bits / grid.scale], [most], where)
    making.add(
        IntegerFunction(
            input=name,
            output=op.output,
            function=op.function,
            fraction_bits=source.fraction_bits,
            multiplier=multiplier,
            shift=shift,
            low=grid.low,
            high=grid.high,
            source=op.source,
        ),
        grid,
    )


def lower_glu(making: Making, op: Glu, where: str) -> None:
    name = making.brought(op.input, "fixed", where)
    source, grid = making.grids[name], making.grid_of(op.output, where)
    ratio, most = source.scale * 2.0**-PROBABILITY_BITS / grid.scale, source.magnitude << PROBABILITY_BITS
    (multiplier,), shift = scalar_multipliers([ratio], [most], where)
    making.add(
        IntegerGlu(
            input=name,
            output=op.output,
            fraction_bits=source.fraction_bits,
            multiplier=multiplier,
            shift=shift,
            low=grid.low,
            high=grid.high,
            source=op.source,
        ),
        grid,
    )


def lower_layer_norm(making: Making, op: LayerNorm, where: str) -> None:
    """Gain and bias on the scale of the result, epsilon in units of (unit of x / columns)**2."""
    name = making.brought(op.input, "wide", where)
    source, grid = making.grids[name], making.grid_of(op.output, where)
    gain, bias = (
        vector_of(making.constants, each).astype(np.float64) if each else None for each in (op.gain, op.bias)
    )
    if gain is None:
        gain = np.ones(making.widths[op.input])
    ratios, offsets = gain * 2.0**-NORM_BITS / grid.scale, 0 if bias is None else bias / grid.scale
    largest = max(float(np.abs(ratios).max()), 2.0**-31)
    total = float((np.abs(ratios) * 2.0**30 + np.abs(offsets)).max())
    shift = min(dyadic_multiplier(largest)[1], MAX_SHIFT, ROOM_BITS - int(np.ceil(np.log2(max(total, 1.0)))))
    require_ratio(largest * 2.0**shift, shift, where)
    integers: dict[str, NDArray] = {"multiplier": np.floor(ratios * 2.0**shift + 0.5).astype(np.int32)}
    if bias is not None:
        integers["offset"] = np.floor(offsets * 2.0**shift + 0.5).astype(np.int64)
    making.add(
        IntegerLayerNorm(
            input=name,
            output=op.output,
            shift=shift,
            epsilon=round_half_up(op.epsilon * (len(gain) / source.scale) ** 2),
            low=grid.low,
            high=grid.high,
            source=op.source,
            **making.integers(op.output, integers),
        ),
        grid,
    )


def lower_attention(making: Making, op: Attention, where: str) -> None:
    """1 / sqrt(d) and the scales of both products join their multipliers; biases take the grid of the query."""
    names = {
        field: making.brought(name, "signed", where) for field in op.VALUES if (name := getattr(op, field))
    }
    source, grid = (
        {field: making.grids[name] for field, name in names.items()},
        making.grid_of(op.output, where),
    )
    query = source["query"].scale
    biases = {
        role: np.floor(vector_of(making.constants, name).astype(np.float64) / query + 0.5).astype(np.int32)
        for role in op.ROLES
        if (name := getattr(op, role))
    }
    depth = making.widths[op.query] // op.heads
    unit = query * 2.0**STATE_BITS / np.sqrt(depth)
    ratios = [unit * source[field].scale for field in ("key", "positions") if field in source]
    most = [128 * 128 * depth + 128 * int(np.abs(bias).sum()) for bias in biases.values()]
    scores, score_shift = scalar_multipliers(ratios, [max([128 * 128 * depth, *most])] * len(ratios), where)
    ratio = source["value"].scale * 2.0**-WEIGHT_BITS / grid.scale
    (multiplier,), shift = scalar_multipliers([ratio], [2**30], where)
    making.add(
        IntegerAttention(
            **names,
            **making.integers(op.output, biases),
            output=op.output,
            heads=op.heads,
            left=op.left,
            right=op.right,
            content_multiplier=scores[0],
            position_multiplier=scores[1] if op.positions else 0,
            score_shift=score_shift,
            multiplier=multiplier,
            shift=shift,
            low=grid.low,
            high=grid.high,
            source=op.source,
        ),
        grid,
    )


def lower_sinusoids(making: Making, op: Sinusoids, where: str) -> None:
    turns = np.floor(rotation(op.columns) * 2.0**UNIT_BITS + 0.5).astype(np.int32)
    making.add(
        IntegerSinusoids(
            input=op.input,
            output=op.output,
            columns=op.columns,
            low=-POSITION_LIMIT,
            high=POSITION_LIMIT,
            source=op.source,
            **making.integers(op.output, {"rotation": turns}),
        ),
        Grid(scale=1 / POSITION_LIMIT, low=-POSITION_LIMIT, high=POSITION_LIMIT),
    )


def lower_lstm(making: Making, op: Lstm, where: str) -> None:
    """W h in units of 2**-16, h of scale 1 / limit: what training on the grid of h has seen."""
    name = making.brought(op.input, "fixed", where)
    limit = largest_symmetric_level(making.settings.activation_bits)
    unit = 2.0**-STATE_BITS
    integers = product_integers(
        weight_of(making, op.weight, where), None, vector_of(making.constants, op.bias) if op.bias else None,
        ratio=1 / limit / unit, magnitude=limit, output_scale=unit, where=where,
    )  # fmt: skip
    making.add(
        IntegerLstm(
            input=name,
            output=op.output,
            cell=op.cell,
            weight=op.weight,
            fraction_bits=making.grids[name].fraction_bits,
            low=-limit,
            high=limit,
            source=op.source,
            **making.integers(op.output, integers),
        ),
        Grid(scale=1 / limit, low=-limit, high=limit),
    )
    making.grids[op.cell] = Grid(scale=unit, low=-(2**31) + 1, high=2**31 - 1)


def lower_embedding(making: Making, op: Embedding, where: str) -> None:
    grid = making.grid_of(op.output, where)
    if making.grids[op.input].scale != 1:
        raise ValueError(
            f"{where} reads {op.input}, which others read too; give the labels an input of their own"
        )
    integers = product_integers(
        weight_of(making, op.weight, where), None, None, ratio=1 / grid.scale, magnitude=1, output_scale=grid.scale, where=where,
    )  # fmt: skip
    making.add(
        IntegerEmbedding(
            input=op.input,
            output=op.output,
            weight=op.weight,
            low=grid.low,
            high=grid.high,
            source=op.source,
            **making.integers(op.output, integers),
        ),
        grid,
    )


LOWERINGS: dict[type, Callable[[Making, Any, str], None]] = {
    Function: lower_function,
    Glu: lower_glu,
    LayerNorm: lower_layer_norm,
    Attention: lower_attention,
    Sinusoids: lower_sinusoids,
    Lstm: lower_lstm,
    Embedding: lower_embedding,
}
