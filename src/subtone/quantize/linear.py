"""Round to nearest by rule: the baseline that every other method must beat.

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
from subtone.quantize.calibration import gather_input_means
from subtone.quantize.lloyd_max import codebook_levels
from subtone.quantize.method import Batch, Method, check_finite
from subtone.quantize.ranges import fit_grid, group_count, kernel_range
from subtone.quantize.rules import Settings
from subtone.quantize.weights import Weight, mean_product


class Linear(Method):
    """Method "linear": each weight to the nearest level of a grid, or of a codebook, fitted to it."""

    def freeze(self, model: nn.Module, *, calibration: Iterable[Batch] | None = None) -> Quantization:
        """Every weight rounded as its rule says, without any training.

        `calibration` is read only if a rule asks for bias correction, and then it must be there.
        """
        settings, weights = self.quantized(model)
        corrected = [path for path, of in settings.items() if of.bias_correction]
        if corrected and calibration is None:
            raise ValueError(
                f"recipe {self.recipe.name}: bias_correction=true ({corrected[0]}) needs calibration data; "
                "give some with --calibration, or set bias_correction = false"
            )
        stored = quantize_weights(weights, settings)
        shifts: dict[str, NDArray[np.float32]] = {}
        if corrected and calibration is not None:
            means = gather_input_means(model, calibration)
            for path in corrected:
                if path not in means:
                    raise ValueError(
                        f"recipe {self.recipe.name}: bias_correction=true, but the inputs of {path} "
                        "cannot be watched; add a rule for it without bias_correction"
                    )
                lost = weights[path].values().numpy() - stored[path].dequantize()
                shifts[path] = mean_product(lost, means[path])
        return self.quantization(stored, settings, weights, bias_shifts=shifts)


def quantize_weights(weights: Mapping[str, Weight], settings: Mapping[str, Settings]) -> dict[str, QTensor]:
    """Each weight in `settings` as they want it stored, all by round to nearest."""
    return {path: quantize_weight(weights[path].values(), of, name=path) for path, of in settings.items()}


def quantize_weight(weight: Tensor, settings: Settings, *, name: str = "the weight") -> QTensor:
    """`weight` (its own torch shape) as `settings` want it stored.

    Half precision is widened to float32 first. ValueError names the tensor: values that are not
    finite, a group that does not divide its inputs, a scale beyond what a file holds.

    >>> quantize_weight(torch.tensor([[-1.0, 0.0, 1.0]]), Settings(bits=4)).codes.tolist()
    [[1, 8, 15]]
    """
    bits = settings.bits
    if bits is None:
        raise ValueError(f"{name} is to stay float (keep_float = true); leave it out")
    weight = weight.detach().to("cpu", torch.float32)
    check_finite(name, weight)
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
