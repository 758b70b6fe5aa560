"""S8BQAT: centroids near those of Lloyd-Max, a penalty that draws weights to them, a periodic jump onto them.

Zhen et al. 2022. The centroids of a kernel are taken once from its weights, of a pre-trained or a
partly trained model (`warmup_steps`), and stay: evenly spaced within each of a few regions on the
k/128 grid (regions.py). From then on MRACos, Eq. 1 (absolute_cosine.py), is the soft compressor of every
step, and every `tau_steps` the hard compressor puts each weight on its nearest centroid.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import pydantic
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from subtone.quantize import grids
from subtone.quantize.absolute_cosine import AbsoluteCosine
from subtone.quantize.acosr import ACosR, ACosROptions, even_penalty
from subtone.quantize.grids import Grid
from subtone.quantize.method import check_finite
from subtone.quantize.ranges import kernel_range
from subtone.quantize.regions import fit_regions
from subtone.quantize.rules import Settings
from subtone.quantize.weights import Weight


class S8BQATOptions(ACosROptions):
    """Those of ACosR, and

    * `regions`: the most regions a kernel may have; Fig. 2a shows 3.
    * `tau_steps`: steps from one hard compression to the next. The paper's best tau is 35 epochs of
      1000 steps, of 120 epochs in all.
    * `warmup_steps`: plain steps before the centroids are taken; the paper has 10k of 850k. 0 takes
      those of the model that is attached: its introduction has a pre-trained one.
    * `epsilon`: Eq. 3's bound on the squared distance from a centroid, in units of the kernel's range.
      Unpublished; ours is a thousandth of the range, squared: an eighth of an INT8 step.
    """

    regions: int = Field(default=3, ge=1)
    tau_steps: int = Field(default=35_000, ge=1)
    epsilon: float = Field(default=1e-6, gt=0, allow_inf_nan=False)


class S8BQAT(ACosR):
    """Method "s8bqat": weights with grid = "codebook" reach few centroids on k/128 of their kernel's range.

    * The paper takes weights in [-1, 1]. Ours are divided by their range (`range`: the largest magnitude, or
      a percentile), one per kernel (granularity "tensor") or per output channel ("channel", which
      depthwise kernels need), measured when the centroids are taken. lambda is that of the
      divided weights, so its gradient grows as a kernel's range shrinks.
    * Weights outside all regions are clipped to the outermost centroids, after every step.
    * The last hard compression is `freeze`, with the same centroids.
    * A weight with another grid, such as the 8-bit layers of M-II, gets what ACosR does, and no
      hard compression. What is said there of frozen modules and zeros holds here.
    """

    Options: ClassVar[type[pydantic.BaseModel]] = S8BQATOptions
    options: S8BQATOptions

    def _fit(self, path: str, weight: Weight, settings: Settings) -> AbsoluteCosine:
        if settings.grid != "codebook":
            return even_penalty(path, weight, settings)
        assert settings.bits is not None
        check_finite(path, weight.parameter)
        flat = grids.flatten_weight(weight.values())
        cells = grids.cells_of(flat, granularity=settings.granularity, groups=1)
        scale = kernel_range(cells, settings) / 128
        is_zero = scale == 0
        positions = flat / torch.where(is_zero, torch.ones_like(scale), scale)
        kept = positions[~is_zero.expand(len(flat), 1)[:, 0]]
        regions = fit_regions(
            (kept if kept.numel() else positions).numpy(), settings.bits, max_regions=self.options.regions
        )
        return AbsoluteCosine(grid=Grid(scale, torch.zeros(1, 1)), regions=regions, shape=weight.shape)

    def after_step(self, step: int) -> None:
        """Clip, and every `tau_steps` compress; at the end of the warm-up, take the centroids first."""
        super().after_step(step)
        done = step + 1 - self.options.warmup_steps
        if done > 0 and done % self.options.tau_steps == 0:
            self.compress()

    def compress(self) -> None:
        """The hard compressor: every trained weight with a codebook onto its nearest centroid."""
        for path, parameter in self._trained():
            if self.settings[path].grid == "codebook":
                self.penalties[path].compress(parameter)

    def convergence(self) -> dict[str, NDArray[np.float64]]:
        """gamma of Eq. 3: of the weights nearest to a centroid, the share that lies on it.

        Parameter path -> one number per centroid, ascending; NaN where no weight is nearest. "On it" is a
        squared distance below `epsilon`, in units of the kernel's range. Rows of zeros are not
        counted. Empty in the warm-up.
        """
        return {
            path: _convergence(self.weights[path].parameter, penalty, self.options.epsilon)
            for path, penalty in self.penalties.items()
            if path in self.weights and self.settings[path].grid == "codebook"
        }

    def mean_convergence(self) -> float:
        """gamma on average (Fig. 5): over the centroids of a kernel that have weights, then over kernels.

        NaN where there is none: in the warm-up.
        """
        used = [gamma[~np.isnan(gamma)] for gamma in self.convergence().values()]
        means = [gamma.mean() for gamma in used if gamma.size]
        return float(np.mean(means)) if means else math.nan

    def metrics(self) -> dict[str, float]:
        """`gamma`: `mean_convergence`, once there are centroids; that of each is in `convergence`."""
        gamma = self.mean_convergence()
        return {} if math.isnan(gamma) else {"gamma": gamma}


def _convergence(weight: Tensor, penalty: AbsoluteCosine, epsilon: float) -> NDArray[np.float64]:
    position, index = penalty.nearest(weight)
    levels = torch.from_numpy(penalty.regions.levels).to(weight.device)
    is_on = ((position - levels[index]) / 128).square() < epsilon
    is_counted = penalty.has_range.expand_as(is_on)
    members, settled = (
        torch.bincount(index[chosen], minlength=len(levels)).double()
        for chosen in (is_counted, is_on & is_counted)
    )
    return torch.where(members > 0, settled / members, math.nan).cpu().numpy()
