"""What every operation of a program means, in NumPy: those that work row by row, and convolutions.

This is the definition: native/ must give the same bits. Hence each sum says in which order it
is taken, and a product is rounded before it is added (no fused multiply-add).

A definition is given the rows that its operation reads, by field, and gives rows `first` to `end - 1` of its
results: one matrix for each of the op's RESULTS. No row depends on which others are asked for at once.

Letters: T frames, K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from subtone.program import (
    Add,
    Affine,
    Attention,
    ChannelNorm,
    Clip,
    Columns,
    Concat,
    Constants,
    Conv1d,
    Conv2d,
    Embedding,
    Function,
    Glu,
    IntegerAdd,
    IntegerAffine,
    IntegerAttention,
    IntegerConv1d,
    IntegerConv2d,
    IntegerEmbedding,
    IntegerFunction,
    IntegerGlu,
    IntegerLayerNorm,
    IntegerLstm,
    IntegerMultiply,
    IntegerSinusoids,
    LayerNorm,
    Lstm,
    Multiply,
    Op,
    Relu,
    Rescale,
    Scale,
    Sinusoids,
    Stack,
    SwitchedLstm,
    vector_of,
)
from subtone.qtensor import QTensor
from subtone.runtime import functions
from subtone.runtime.integer_ops import (
    integer_add,
    integer_affine,
    integer_conv1d,
    integer_conv2d,
    integer_multiply,
    rescale,
)
from subtone.runtime.integer_row_ops import (
    integer_embedding,
    integer_function,
    integer_glu,
    integer_layer_norm,
)
from subtone.runtime.integer_sequence_ops import integer_attention, integer_lstm, integer_sinusoids
from subtone.runtime.products import decoded, quantized_product
from subtone.runtime.rows import Matrix, Rows
from subtone.runtime.sequence_ops import attention, channel_norm, lstm, sinusoids, switched_lstm

Seen = Mapping[str, Rows]


def float_convolution(x: Rows, weight: Matrix, op: Conv1d, first: int, end: int) -> Matrix:
    """Rows of a convolution with a float weight (out, in / groups, kernel), zeros beyond both ends of x.

    Each output is summed from 0 over taps, and within a tap over the inputs of its group, both ascending.
    """
    count, out = end - first, weight.shape[0]
    taps = np.moveaxis(weight.reshape(*weight.shape[:2], op.kernel), -1, 0)  # (kernel, out, in / groups)
    start = first * op.stride - op.padding
    seen = x[start : start + (count - 1) * op.stride + op.dilation * (op.kernel - 1) + 1]
    depth = taps.shape[2]
    total = np.zeros((count, op.groups, out // op.groups), np.float32)
    for index, tap in enumerate(taps):
        rows = seen[index * op.dilation :][: (count - 1) * op.stride + 1 : op.stride]
        of_tap = rows.reshape(count, op.groups, depth)
        tap = tap.reshape(op.groups, out // op.groups, depth)
        for channel in range(depth):
            total += of_tap[:, :, channel, None] * tap[None, :, :, channel]
    return total.reshape(count, out)


def conv1d(op: Conv1d, seen: Seen, constants: Constants, first: int, end: int) -> tuple[Matrix]:
    """`gain * (W * x) + bias`, each step rounded, then ReLU."""
    if op.activation_bits:
        weight = constants[op.weight]
        assert isinstance(weight, QTensor)
        result = quantized_product(seen["input"][first:end], weight, op.activation_bits)
    else:
        result = float_convolution(seen["input"], decoded(constants, op.weight), op, first, end)
    if op.gain:
        result = result * vector_of(constants, op.gain)
    if op.bias:
        result = result + vector_of(constants, op.bias)
    return (_relu(result) if op.relu else result,)


def conv2d(op: Conv2d, seen: Seen, constants: Constants, first: int, end: int) -> tuple[Matrix]:
    """`W * x + bias`; each output summed from 0 over taps in time, within those over taps in features, within
    those over channels, all ascending."""
    weight, count, x = decoded(constants, op.weight), end - first, seen["input"]
    start = first * op.stride - op.padding
    rows = x[start : start + (count - 1) * op.stride + op.kernel]
    features = x.held.shape[1] // op.in_channels
    wide = op.features_out(features)
    image = np.zeros(
        (len(rows), op.in_channels, (wide - 1) * op.feature_stride + op.feature_kernel), np.float32
    )
    room = image.shape[2] - op.feature_padding
    kept = max(0, min(features, room))
    image[:, :, op.feature_padding : op.feature_padding + kept] = rows.reshape(
        len(rows), op.in_channels, features
    )[:, :, :kept]
    depth, out = weight.shape[1], weight.shape[0]
    total = np.zeros((count, op.groups, out // op.groups, wide), np.float32)
    grouped = weight.reshape(op.groups, out // op.groups, depth, op.kernel, op.feature_kernel)
    for tap in range(op.kernel):
        for place in range(op.feature_kernel):
            seen_rows = image[tap:][: (count - 1) * op.stride + 1 : op.stride]
            cut = seen_rows[:, :, place:][:, :, : (wide - 1) * op.feature_stride + 1 : op.feature_stride]
            part = cut.reshape((count, op.groups, depth, wide))
            for channel in range(depth):
                total += part[:, :, None, channel] * grouped[None, :, :, channel, tap, place, None]
    result = total.reshape(count, out, wide)
    if op.bias:
        result = result + vector_of(constants, op.bias)[:, None]
    flat = result.reshape(count, out * wide)
    return (_relu(flat) if op.relu else flat,)


def stack(op: Stack, seen: Seen, constants: Constants, first: int, end: int) -> tuple[Matrix]:
    rows = seen["input"][first * op.count : end * op.count]
    return (rows.reshape(end - first, -1).copy(),)  # never a view of what the caller gave


def affine(op: Affine, seen: Seen, constants: Constants, first: int, end: int) -> tuple[Matrix]:
    """`gain * x + bias` per channel, then ReLU."""
    result = seen["input"][first:end] * vector_of(constants, op.gain) + vector_of(constants, op.bias)
    return (_relu(result) if op.relu else result,)


def add(op: Add, seen: Seen, constants: Constants, first: int, end: int) -> tuple[Matrix]:
    """`left + right`, then ReLU."""
    result = seen["left"][first:end] + seen["right"][first:end]
    return (_relu(result) if op.relu else result,)


def multiply(op: Multiply, seen: Seen, constants: Constants, first: int, end: int) -> tuple[Matrix]:
    return (seen["left"][first:end] * seen["right"][first:end],)


def scale(op: Scale, seen: Seen, constants: Constants, first: int, end: int) -> tuple[Matrix]:
    return (seen["input"][first:end] * np.float32(op.factor),)


def relu(op: Relu, seen: Seen, constants: Constants, first: int, end: int) -> tuple[Matrix]:
    return (_relu(seen["input"][first:end]),)


def _relu(values: Matrix) -> Matrix:
    return np.where(values > 0, values, np.float32(0))


def clip(op: Clip, seen: Seen, constants: Constants, first: int, end: int) -> tuple[Matrix]:
    """`v = x > low ? x : low`, then `y = v < high ? v : high`.

    Of two zeros the end's sign wins; NaN, on which no program is defined, becomes `low`.
    """
    low, high, x = np.float32(op.low), np.float32(op.high), seen["input"][first:end]
    raised = np.where(x > low, x, low)
    return (np.where(raised < high, raised, high),)


def function(op: Function, seen: Seen, constants: Constants, first: int, end: int) -> tuple[Matrix]:
    return (functions.FUNCTIONS[op.function](seen["input"][first:end]),)


def glu(op: Glu, seen: Seen, constants: Constants, first: int, end: int) -> tuple[Matrix]:
    rows = seen["input"][first:end]
    half = rows.shape[1] // 2
    return (rows[:, :half] * functions.sigmoid(rows[:, half:]),)


def layer_norm(op: LayerNorm, seen: Seen, constants: Constants, first: int, end: int) -> tuple[Matrix]:
    """`normalized(x) * gain + bias`, each step rounded."""
    result = functions.normalized(seen["input"][first:end], op.epsilon)
    if op.gain:
        result = result * vector_of(constants, op.gain)
    if op.bias:
        result = result + vector_of(constants, op.bias)
    return (result,)


def concat(op: Concat, seen: Seen, constants: Constants, first: int, end: int) -> tuple[Matrix]:
    return (np.concatenate([seen["left"][first:end], seen["right"][first:end]], axis=1),)


def columns(op: Columns, seen: Seen, constants: Constants, first: int, end: int) -> tuple[Matrix]:
    return (seen["input"][first:end][:, op.first : op.first + op.count].copy(),)


def embedding(op: Embedding, seen: Seen, constants: Constants, first: int, end: int) -> tuple[Matrix]:
    table = decoded(constants, op.weight)
    index = np.clip(seen["input"][first:end][:, 0], 0, len(table) - 1)
    return (table[index.astype(np.int64)],)


DEFINITIONS: dict[type[Op], Callable[..., tuple[Matrix, ...]]] = {
    Conv1d: conv1d,
    Conv2d: conv2d,
    Stack: stack,
    Affine: affine,
    Add: add,
    Multiply: multiply,
    Scale: scale,
    Relu: relu,
    Clip: clip,
    Function: function,
    Glu: glu,
    LayerNorm: layer_norm,
    Concat: concat,
    Columns: columns,
    Embedding: embedding,
    Attention: attention,
    Sinusoids: sinusoids,
    ChannelNorm: channel_norm,
    Lstm: lstm,
    SwitchedLstm: switched_lstm,
    IntegerConv1d: integer_conv1d,
    IntegerConv2d: integer_conv2d,
    IntegerAdd: integer_add,
    IntegerMultiply: integer_multiply,
    Rescale: rescale,
    IntegerAffine: integer_affine,
    IntegerFunction: integer_function,
    IntegerGlu: integer_glu,
    IntegerLayerNorm: integer_layer_norm,
    IntegerEmbedding: integer_embedding,
    IntegerAttention: integer_attention,
    IntegerSinusoids: integer_sinusoids,
    IntegerLstm: integer_lstm,
}
