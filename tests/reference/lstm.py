"""An LSTM on integers, one utterance and one step at a time: docs/numerics.md, sections 3 and 4.

The cell is float and is given from outside: its functions are those of a mathematical library.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from tests.reference.numerics import integer_levels, product, static_level

from subtone.qtensor import QTensor

CellStep = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Gates (4 D,) and cell state (D,) -> hidden and cell state (D,)."""


class Direction(NamedTuple):
    """One direction of one layer: packed weights, biases or None, bits of activations."""

    weight_ih: QTensor
    weight_hh: QTensor
    bias_ih: np.ndarray | None
    bias_hh: np.ndarray | None
    bits: int


def recurrent_product(hidden: np.ndarray, of: Direction) -> np.ndarray:
    """`W_hh h + b_hh` of one step: the levels of h lie on the static scale 1 / limit."""
    weight = of.weight_hh
    limit = 2 ** (of.bits - 1) - 1
    scale_of_hidden = np.float32(1 / limit)
    x = [static_level(value, scale_of_hidden, -limit, limit) for value in hidden]
    levels, offsets = integer_levels(weight)
    groups = weight.scale.shape[1]
    size = len(x) // groups
    result = np.empty(len(levels), np.float32)
    for n, row in enumerate(levels):
        scales = weight.scale[n if len(weight.scale) > 1 else 0]
        total = np.float32(0)
        for group in range(groups):
            columns = range(group * size, (group + 1) * size)
            sum_of_products = sum(row[k] * x[k] for k in columns)
            sum_of_x = sum(x[k] for k in columns)
            second = offsets[n][group * size] * np.float32(sum_of_x)
            difference = np.float32(sum_of_products) - second
            scaled = difference * np.float32(scales[group])
            total = total + scaled
        y = total * scale_of_hidden
        if of.bias_hh is not None:
            y = y + of.bias_hh[n]
        result[n] = y
    return result


def lstm(
    features: np.ndarray,
    of: Direction,
    cell_step: CellStep,
    hidden: np.ndarray,
    cell: np.ndarray,
    *,
    is_reversed: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(T, K) to hidden states (T, D), and the last hidden and cell state."""
    outputs = np.empty((len(features), len(hidden)), np.float32)
    order = range(len(features))
    for t in reversed(order) if is_reversed else order:
        from_input = product(features[t : t + 1], of.weight_ih, of.bits, bias=of.bias_ih)[0]
        from_hidden = recurrent_product(hidden, of)
        hidden, cell = cell_step(from_input + from_hidden, cell)
        outputs[t] = hidden
    return outputs, hidden, cell
