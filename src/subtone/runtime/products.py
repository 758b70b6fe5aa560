"""Products by packed weights, in NumPy: the definition of every integer product (docs/numerics.md, section 4).

Sums of integers have no order; they are taken in float64, where they are exact, because NumPy multiplies
those much faster than integers.

Letters: T frames, K inputs, N outputs.
"""

from __future__ import annotations

import numpy as np

from subtone import numerics
from subtone.program import Constants, vector_of
from subtone.qtensor import QTensor
from subtone.runtime.rows import Matrix


def product_of_levels(x: numerics.Quantized, weight: QTensor) -> Matrix:
    """Levels (T, K) times a packed (N, K) weight in integers: (T, N), less the scale of the levels.

    For each group g of columns, in ascending order from 0:
    `total += (float32(sum levels * x) - zero_point * float32(sum x)) * scale`;
    then `y = total * frame scale`. The integer sums are exact in int32.
    """
    levels, groups = weight.levels(), weight.scale.shape[1]
    size = weight.num_columns // groups
    scale, zero_point = weight.scale.astype(np.float32), weight.level_zero_point()
    total = np.zeros((len(x.levels), weight.num_rows), np.float32)
    for group in range(groups):
        columns = slice(group * size, (group + 1) * size)
        x_group = x.levels[:, columns].astype(np.float64)
        sums = (x_group @ levels[:, columns].T.astype(np.float64)).astype(np.float32)
        x_sums = x_group.sum(axis=1, keepdims=True).astype(np.float32)
        of_group = [part[:, group if part.shape[1] > 1 else 0] for part in (scale, zero_point)]
        total += (sums - of_group[1] * x_sums) * of_group[0]
    return total * x.scale


def quantized_product(features: Matrix, weight: QTensor, bits: int) -> Matrix:
    """(T, K) times a packed (N, K) weight in integers, one activation scale a frame: (T, N)."""
    return product_of_levels(numerics.quantize_dynamic(features, bits), weight)


def decoded(constants: Constants, name: str) -> Matrix:
    """The weight called `name` in float32."""
    weight = constants[name]
    return weight.dequantize() if isinstance(weight, QTensor) else vector_of(constants, name)
