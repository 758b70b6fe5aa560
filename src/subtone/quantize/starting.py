"""Where training to few bits may start: on the grid already, with rounding errors that cancel."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from subtone.qtensor import QTensor
from subtone.quantize.calibration import can_be_watched, second_moment_of, watch_inputs
from subtone.quantize.compensation import compensated
from subtone.quantize.grids import flatten_weight, unflatten_weight
from subtone.quantize.method import Batch, Method
from subtone.quantize.refinement import refined
from subtone.quantize.rules import assign
from subtone.quantize.weights import COMPENSATED_KINDS, quantizable_weights

Rounding = Literal["compensated", "refined"]


@torch.no_grad()
def start_compensated(
    model: nn.Module, method: Method, batches: Iterable[Batch], *, rounding: Rounding = "compensated"
) -> None:
    """Move the weights of `model` to levels of the grids on which `method` would freeze it now.

    All but the ends of each scale (`with_ends`), and not to the nearest: each column of a product takes up
    what those before it have lost, by the second moments of its inputs over `batches` (compensation.py).
    "refined" then chooses codes and scales in turn (refinement.py), and weights move to levels of these scales,
    which the method measures again where each has an end in use (`with_grid_ends`; range = "octav", whose ends are
    no weights, measures others). From there a rounded forward pass is nearer to the float one, and training has
    less to repair. Weights of other kinds than COMPENSATED_KINDS, and those that stay float, are left as they are.

    Raises:
        ValueError: no weight that could be compensated, inputs that cannot be watched, a codebook to refine:
            the method would fit another one to what it finds.
    """
    settings, weights = assign(method.recipe, model), quantizable_weights(model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*the annealing is unfinished")  # it has not begun
        stored = method.stored(model)
    moments = {
        path: second_moment_of(weights[path])
        for path in stored
        if weights[path].kind in COMPENSATED_KINDS and can_be_watched(weights[path])
    }
    if not moments:
        raise ValueError(
            f"compensation_batches has no effect: no {' or '.join(COMPENSATED_KINDS)} weight reaches few bits; "
            "leave it out"
        )
    for path in moments:
        if rounding == "refined" and stored[path].codebook is not None:
            raise ValueError(
                f"compensation='refined' does not fit grid='codebook' of {path}, which the method fits anew to what it "
                "finds; use 'compensated'"
            )
    watch_inputs(model, batches, moments)
    for path, moment in moments.items():
        if not moment.num_frames:
            raise ValueError(f"the inputs of {path} cannot be watched; leave compensation_batches out")
        weight, is_refined = weights[path], rounding == "refined"
        better = refined if is_refined else compensated
        floats, is_symmetric = weight.values(), settings[path].is_symmetric
        found = better(stored[path], floats.numpy(), moment.value(), is_symmetric=is_symmetric)
        if is_refined:
            weight.parameter.copy_(with_grid_ends(found, floats, is_symmetric=is_symmetric))
        else:
            values = torch.from_numpy(found.dequantize())
            weight.parameter.copy_(with_ends(values, floats, found.scale.shape))


def with_grid_ends(found: QTensor, weight: Tensor, *, is_symmetric: bool) -> Tensor:
    """The values of `found`, codes of `weight`, and where none lies on an end of its grid one that does.

    The method would measure another scale there, and other levels for all. So the smallest weight of a cell takes
    the lowest level if no other has it, the largest the highest; on a symmetric grid, of which one end is
    enough, the largest magnitude. Cells whose weights are all the same, nearly, are left alone: their grid has
    one level for all and nothing at its ends. 1 symmetric bit has no ends: its scale is a mean.
    """
    codes, top = found.codes.astype(np.int64).reshape(*found.scale.shape, -1), 2**found.bits - 1
    given = flatten_weight(weight).numpy().reshape(codes.shape)
    if not is_symmetric:
        is_flat = np.ptp(given, -1, keepdims=True) < np.abs(found.scale[..., None].astype(np.float32)) / 2
        _put_end(codes, given.argmin(-1, keepdims=True), 0, (codes == 0) | is_flat)
        _put_end(codes, given.argmax(-1, keepdims=True), top, (codes == top) | is_flat)
    elif found.bits > 1:
        place = np.abs(given).argmax(-1, keepdims=True)
        end = np.where(np.take_along_axis(given, place, -1) < 0, 1, top)
        _put_end(codes, place, end, (codes == 1) | (codes == top))
    moved = dataclasses.replace(found, codes=codes.reshape(found.codes.shape).astype(np.uint8))
    return torch.from_numpy(moved.dequantize())


def _put_end(codes: NDArray[np.int64], place: NDArray, end: NDArray | int, is_end: NDArray) -> None:
    """`end` at `place` of each cell (the last axis) in which nothing `is_end`."""
    there = np.take_along_axis(codes, place, -1)
    np.put_along_axis(codes, place, np.where(is_end.any(-1, keepdims=True), there, end), -1)


def with_ends(values: Tensor, weight: Tensor, cells: tuple[int, ...]) -> Tensor:
    """`values` within the range of `weight`, and where its ends lie in each scale, those themselves.

    A method that measures ranges anew would find other scales if these had moved, and other levels: in 1
    row of 100 where the largest weight lies on a level (4 bits), in every row where it does not (S8BQAT).

    Args:
        cells: the shape of the scales, (1, 1), (out, 1) or (out, groups).
    """
    flat, given = (flatten_weight(one).clone().reshape(*cells, -1) for one in (values, weight))
    flat = flat.clamp(given.amin(-1, keepdim=True), given.amax(-1, keepdim=True))
    for ends in (given.argmax(-1, keepdim=True), given.argmin(-1, keepdim=True)):
        flat.scatter_(-1, ends, given.gather(-1, ends))
    return unflatten_weight(flat.reshape(len(weight), -1), tuple(weight.shape))
