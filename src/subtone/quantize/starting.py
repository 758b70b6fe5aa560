"""Where training to few bits may start: on the grid already, with rounding errors that cancel."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from subtone.qtensor import QTensor, flatten_weight
from subtone.quantize.calibration import second_moment_of, watch_inputs
from subtone.quantize.compensation import compensated
from subtone.quantize.method import Batch, Method
from subtone.quantize.rules import assign
from subtone.quantize.weights import COMPENSATED_KINDS, quantizable_weights


@torch.no_grad()
def start_compensated(model: nn.Module, method: Method, batches: Iterable[Batch]) -> None:
    """Move the weights of `model` to levels of the grids on which `method` would freeze it now.

    Not to the nearest: each column of a product takes up what those before it have lost, by the second
    moments of its inputs over `batches` (compensation.py). From there a rounded forward pass is nearer to
    the float one, and training has less to repair. Weights of other kinds than COMPENSATED_KINDS, and
    those that stay float, are left as they are.
    """
    settings, weights = assign(method.recipe, model), quantizable_weights(model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*the annealing is unfinished")  # it has not begun
        stored = method.stored(model)
    moments = {
        path: second_moment_of(weights[path]) for path in stored if weights[path].kind in COMPENSATED_KINDS
    }
    if not moments:
        return
    watch_inputs(model, batches, moments)
    for path, moment in moments.items():
        if not moment.num_frames:
            raise ValueError(f"the inputs of {path} cannot be watched; leave compensation_batches out")
        weight = weights[path]
        found = compensated(
            stored[path],
            weight.values().numpy(),
            moment.value(),
            is_symmetric=settings[path].is_symmetric,
        )
        weight.parameter.copy_(
            torch.from_numpy(spanned(found, stored[path], weight.values().numpy()).dequantize())
        )


def spanned(found: QTensor, nearest: QTensor, weight: NDArray[np.float32]) -> QTensor:
    """`found`, with the codes of `nearest` where the largest and the least `weight` of each scale lie.

    A method that measures ranges anew would find another scale if compensation had moved them inwards
    (4 bits: in one row of a hundred), and with it round the whole row elsewhere.
    """
    flat = flatten_weight(weight)
    scales = nearest.scale.shape
    cells = flat.reshape(1, 1, -1) if scales[0] == 1 else flat.reshape(len(flat), scales[1], -1)
    codes, kept = (one.codes.reshape(cells.shape) for one in (found, nearest))
    codes = codes.copy()
    for ends in (cells.argmax(-1, keepdims=True), cells.argmin(-1, keepdims=True)):
        np.put_along_axis(codes, ends, np.take_along_axis(kept, ends, -1), -1)
    return dataclasses.replace(found, codes=codes.reshape(flat.shape))
