"""Where training to few bits may start: on the grid already, with rounding errors that cancel."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from subtone.quantize.calibration import can_be_watched, second_moment_of, watch_inputs
from subtone.quantize.compensation import compensated
from subtone.quantize.grids import flatten_weight, unflatten_weight
from subtone.quantize.method import Batch, Method
from subtone.quantize.rules import assign
from subtone.quantize.weights import COMPENSATED_KINDS, quantizable_weights


@torch.no_grad()
def start_compensated(model: nn.Module, method: Method, batches: Iterable[Batch]) -> None:
    """Move the weights of `model` to levels of the grids on which `method` would freeze it now.

    All but the ends of each scale (`with_ends`), and not to the nearest: each column of a product takes up
    what those before it have lost, by the second moments of its inputs over `batches` (compensation.py).
    From there a rounded forward pass is nearer to the float one, and training has less to repair. Weights
    of other kinds than COMPENSATED_KINDS, and those that stay float, are left as they are.
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
        values = with_ends(torch.from_numpy(found.dequantize()), weight.values(), found.scale.shape)
        weight.parameter.copy_(values)


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
