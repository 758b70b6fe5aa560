"""Rounding by rule, without training: to nearest, the baseline that every other method must beat, or so
that later columns compensate what earlier ones lost (compensation.py, refinement.py).

Bias correction (Nagel et al. 2019, section 4.2, with means from data): rounding moves the mean of a
product by `(W_float - W_quantized) E[x]`; what export adds to the output puts it back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from subtone.models.checkpoints import Quantization
from subtone.qtensor import QTensor
from subtone.quantize import grids
from subtone.quantize.calibration import InputMean, Statistic, second_moment_of, watch_inputs
from subtone.quantize.compensation import compensated
from subtone.quantize.lloyd_max import codebook_levels
from subtone.quantize.method import Batch, Method, check_finite
from subtone.quantize.ranges import fit_grid, group_count, kernel_range
from subtone.quantize.refinement import refined
from subtone.quantize.rules import Settings
from subtone.quantize.weights import Weight, mean_product


class Linear(Method):
    """Method "linear": each weight to the nearest level of a grid, or of a codebook, fitted to it.

    With `rounding = "compensated"` not always the nearest: the level that suits what other weights lost; with
    "refined" scales and codebooks that suit the levels as well.
    """

    def freeze(self, model: nn.Module, *, calibration: Iterable[Batch] | None = None) -> Quantization:
        """Every weight rounded as its rule says, without any training.

        `calibration` is read only if a rule compensates or corrects biases, and then it must be there.
        """
        settings, weights = self.quantized(model)
        hearing = {path: of.hears for path, of in settings.items() if of.hears}
        if hearing and calibration is None:
            path = next(iter(hearing))
            raise ValueError(
                f"recipe {self.recipe.name}: {hearing[path]} ({path}) needs calibration data; give some with "
                "--calibration, or remove it from the rule"
            )
        for path in hearing:
            check_finite(path, weights[path].parameter)  # else the inputs behind it would be blamed
        moments = {
            path: second_moment_of(weights[path]) for path, of in settings.items() if of.rounding != "nearest"
        }
        means = {path: InputMean() for path, of in settings.items() if of.bias_correction}
        if hearing and calibration is not None:
            watch_inputs(model, calibration, moments, means)
        for path, statistic in [*moments.items(), *means.items()]:
            if not statistic.num_frames:
                raise ValueError(
                    f"recipe {self.recipe.name}: {hearing[path]}, but the inputs of {path} cannot be watched; "
                    "add a rule for it without that"
                )
        stored = quantize_weights(weights, settings, moments=moments)
        shifts = {
            path: mean_product(weights[path].values().numpy() - stored[path].dequantize(), mean.value())
            for path, mean in means.items()
        }
        return self.quantization(stored, settings, weights, bias_shifts=shifts)


def quantize_weights(
    weights: Mapping[str, Weight],
    settings: Mapping[str, Settings],
    *,
    moments: Mapping[str, Statistic] | None = None,
) -> dict[str, QTensor]:
    """Each weight in `settings` as they want it stored, by rounding alone; `moments` of those that compensate."""
    known = moments or {}
    return {
        path: quantize_weight(
            weights[path].values(), of, name=path, moments=known[path].value() if path in known else None
        )
        for path, of in settings.items()
    }


def quantize_weight(
    weight: Tensor,
    settings: Settings,
    *,
    name: str = "the weight",
    moments: NDArray[np.float32] | None = None,
) -> QTensor:
    """`weight` (its own torch shape) as `settings` want it stored.

    Half precision is widened to float32 first. `moments`: of the inputs, where the rounding compensates
    (calibration.second_moment_of). ValueError names the tensor: values that are not
    finite, a group that does not divide its inputs, a scale beyond what a file holds.

    >>> quantize_weight(torch.tensor([[-1.0, 0.0, 1.0]]), Settings(bits=4)).codes.tolist()
    [[1, 8, 15]]
    """
    if settings.bits is None:
        raise ValueError(f"{name} is to stay float (keep_float = true); leave it out")
    weight = weight.detach().to("cpu", torch.float32)
    check_finite(name, weight)
    stored = _nearest(weight, settings, name)
    if settings.rounding == "nearest":
        return stored
    if moments is None:
        raise ValueError(
            f"{name}: rounding={settings.rounding!r} needs the second moments of its inputs; give moments"
        )
    better = refined if settings.rounding == "refined" else compensated
    return better(stored, weight.numpy(), moments, is_symmetric=settings.is_symmetric)


def _nearest(weight: Tensor, settings: Settings, name: str) -> QTensor:
    """`weight`, float32, on the grid or codebook fitted to it, each value at the nearest level."""
    bits = settings.bits
    assert bits is not None
    flat = grids.flatten_weight(weight)
    try:
        if settings.grid == "codebook":
            cells = grids.cells_of(flat, granularity=settings.granularity, groups=1)
            scale = kernel_range(cells, settings) / 128
            levels = codebook_levels(_normalized(flat, scale), bits)
            return QTensor.on_codebook(weight.numpy(), scale.numpy(), levels, bits)
        grid = fit_grid(flat, settings, group_count=group_count(tuple(weight.shape), settings, name=name))
        return QTensor.on_grid(weight.numpy(), grid.numpy(), bits, is_symmetric=settings.is_symmetric)
    except ValueError as error:
        raise ValueError(f"{name}: {error}" if name not in str(error) else str(error)) from error


def _normalized(flat: Tensor, scale: Tensor) -> NDArray[np.float32]:
    """Weights over their kernel's range, on [-1, 1]; rows of zeros are left out where others are not."""
    is_zero = scale == 0
    safe_scale = torch.where(is_zero, torch.ones_like(scale), scale)
    position = (flat / safe_scale / 128).clamp(-1, 1)
    kept = position[~is_zero.expand(len(flat), 1)[:, 0]]
    return (kept if kept.numel() else position).numpy()
