"""A program made smaller: a BatchNorm joins its convolution, a ReLU the operation before it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from subtone.program import (
    Add,
    Affine,
    Constant,
    Conv1d,
    Conv2d,
    Op,
    Relu,
    inputs_of,
    results_of,
    vector_of,
)
from subtone.qtensor import QTensor


def fold_affine(
    ops: list[Op], constants: Mapping[str, Constant], output: str
) -> tuple[list[Op], dict[str, Constant]]:
    """`ops` with every Affine taken in by the convolution that alone feeds it.

    `gain (W x + b) + bias = (gain W) x + (gain b + bias)`. A gain joins the float32 scales (or the
    float weight); beside float16 group scales it stays a vector of its own, so that the scales
    remain those that training saw, and beside a weight that several operations share. Gains may be
    negative or zero.
    """
    readers = _readers(ops, output)
    constants = dict(constants)
    folded: list[Op] = []
    by_output = {op.output: op for op in ops}
    taken = {
        op.input: op
        for op in ops
        if isinstance(op, Affine) and isinstance(by_output.get(op.input), Conv1d) and readers[op.input] == 1
    }
    uses = Counter(op.weight for op in ops if isinstance(op, Conv1d))
    for op in ops:
        if isinstance(op, Conv1d) and op.output in taken:
            folded.append(_take_in(op, taken[op.output], constants, is_shared=uses[op.weight] > 1))
        elif getattr(op, "input", None) not in taken:
            folded.append(op)
    return folded, constants


def _take_in(conv: Conv1d, affine: Affine, constants: dict[str, Constant], *, is_shared: bool) -> Conv1d:
    gain, weight = vector_of(constants, affine.gain), constants[conv.weight]
    keeps_gain = is_shared or (isinstance(weight, QTensor) and weight.group_size is not None)
    if isinstance(weight, QTensor) and not keeps_gain:
        constants[conv.weight] = dataclasses.replace(weight, scale=weight.scale * gain[:, None])
    elif isinstance(weight, np.ndarray) and not keeps_gain:
        constants[conv.weight] = weight * gain.reshape(-1, *[1] * (weight.ndim - 1))
    if conv.bias:
        constants[affine.bias] = vector_of(constants, affine.bias) + gain * vector_of(constants, conv.bias)
    return dataclasses.replace(
        conv,
        output=affine.output,
        gain=affine.gain if keeps_gain else "",
        bias=affine.bias,
        relu=affine.relu,
    )


def fuse_relu(ops: list[Op], output: str) -> list[Op]:
    """`ops` with every Relu done by the operation that alone feeds it."""
    readers = _readers(ops, output)
    writers = {op.output: op for op in ops}
    fused: dict[str, str] = {}
    for op in ops:
        if (
            isinstance(op, Relu)
            and readers[op.input] == 1
            and isinstance(writers.get(op.input), Conv1d | Conv2d | Affine | Add)
        ):
            fused[op.input] = op.output
    replaced = [
        _changed(op, output=fused[op.output], relu=True) if op.output in fused else op
        for op in ops
        if not (isinstance(op, Relu) and op.input in fused)
    ]
    return replaced


def rename_values(ops: list[Op], names: dict[str, str]) -> list[Op]:
    """`ops` with `names` for some values and v0, v1, ... for the others: torch's names fill a header.

    What no op writes keeps its name: an input that `names` holds, or a constant.
    """
    for op in ops:
        for result in results_of(op):
            names.setdefault(result, f"v{len(names)}")
    return [
        _changed(
            op,
            **{
                field: names.get(name, name)
                for field in (*op.VALUES, *op.RESULTS)
                if (name := getattr(op, field))
            },
        )
        for op in ops
    ]


def _readers(ops: list[Op], output: str) -> Counter[str]:
    return Counter([name for op in ops for name in inputs_of(op)] + [output])


def _changed(op: Op, **changes: Any) -> Op:
    return dataclasses.replace(cast(Any, op), **changes)
