"""What every operation of a program means, in NumPy.

This is the definition: native/ must give the same bits. Hence each sum says in which order it
is taken, and a product is rounded before it is added (no fused multiply-add). Sums of integers
have no order; they are taken in float64, where they are exact, because NumPy multiplies those
much faster than integers.

Letters: T frames, K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from subtone import numerics
from subtone.program import Add, Affine, Clip, Constant, Conv1d, Op, Relu, vector_of
from subtone.qtensor import QTensor

Matrix = NDArray[np.float32]
Values = Mapping[str, Matrix]
Constants = Mapping[str, Constant]


def quantized_product(features: Matrix, weight: QTensor, bits: int) -> Matrix:
    """(T, K) times a packed (N, K) weight in integers, one activation scale a frame: (T, N).

    For each group g of columns, in ascending order from 0:
    `total += (float32(sum levels * x) - zero_point * float32(sum x)) * scale`;
    then `y = total * frame scale`. The integer sums are exact in int32.
    """
    x = numerics.quantize_dynamic(features, bits)
    levels, groups = weight.levels(), weight.scale.shape[1]
    size = weight.num_columns // groups
    scale, zero_point = weight.scale.astype(np.float32), weight.level_zero_point()
    total = np.zeros((len(features), weight.num_rows), np.float32)
    for group in range(groups):
        columns = slice(group * size, (group + 1) * size)
        x_group = x.levels[:, columns].astype(np.float64)
        sums = (x_group @ levels[:, columns].T.astype(np.float64)).astype(np.float32)
        x_sums = x_group.sum(axis=1, keepdims=True).astype(np.float32)
        of_group = [part[:, group if part.shape[1] > 1 else 0] for part in (scale, zero_point)]
        total += (sums - of_group[1] * x_sums) * of_group[0]
    return total * x.scale


def float_convolution(features: Matrix, weight: Matrix, op: Conv1d) -> Matrix:
    """(T, in) with a float weight (out, in / groups, kernel), zeros beyond both ends: (T', out).

    Each output is summed from 0 over taps, and within a tap over inputs, both ascending.
    """
    frames_out = op.frames_out(len(features))
    padded = np.pad(features, ((op.padding, op.padding), (0, 0)))
    taps = np.moveaxis(weight.reshape(*weight.shape[:2], op.kernel), -1, 0)  # (kernel, out, in / groups)
    total = np.zeros((frames_out, weight.shape[0]), np.float32)
    for index, tap in enumerate(taps):
        start = index * op.dilation
        seen = padded[start : start + (frames_out - 1) * op.stride + 1 : op.stride][:frames_out]
        if op.groups > 1:
            total += seen * tap[:, 0]
        else:
            for channel in range(tap.shape[1]):
                total += seen[:, channel, None] * tap[:, channel]
    return total


def conv1d(op: Conv1d, values: Values, constants: Constants) -> Matrix:
    """`gain * (W * x) + bias`, each step rounded, then ReLU."""
    features, weight = values[op.input], constants[op.weight]
    if op.activation_bits:
        assert isinstance(weight, QTensor)
        result = quantized_product(features, weight, op.activation_bits)
    else:
        result = float_convolution(
            features, weight.dequantize() if isinstance(weight, QTensor) else weight, op
        )
    if op.gain:
        result = result * vector_of(constants, op.gain)
    if op.bias:
        result = result + vector_of(constants, op.bias)
    return _relu(result) if op.relu else result


def affine(op: Affine, values: Values, constants: Constants) -> Matrix:
    """`gain * x + bias` per channel, then ReLU."""
    result = values[op.input] * vector_of(constants, op.gain) + vector_of(constants, op.bias)
    return _relu(result) if op.relu else result


def add(op: Add, values: Values, constants: Constants) -> Matrix:
    """`left + right`, then ReLU."""
    result = values[op.left] + values[op.right]
    return _relu(result) if op.relu else result


def relu(op: Relu, values: Values, constants: Constants) -> Matrix:
    return _relu(values[op.input])


def _relu(values: Matrix) -> Matrix:
    return np.where(values > 0, values, np.float32(0))


def clip(op: Clip, values: Values, constants: Constants) -> Matrix:
    """`v = x > low ? x : low`, then `y = v < high ? v : high`.

    Of two zeros the end's sign wins; NaN, on which no program is defined, becomes `low`.
    """
    low, high, x = np.float32(op.low), np.float32(op.high), values[op.input]
    raised = np.where(x > low, x, low)
    return np.where(raised < high, raised, high)


DEFINITIONS: dict[type[Op], Callable[..., Matrix]] = {
    Conv1d: conv1d,
    Affine: affine,
    Add: add,
    Relu: relu,
    Clip: clip,
}
