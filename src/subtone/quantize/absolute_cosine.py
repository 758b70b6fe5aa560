"""The absolute-cosine penalty on one weight: zero on its centroids, largest halfway between two.

Eq. 1 of S8BQAT (MRACos), and with a single region the ACosR of Nguyen et al. 2020:

    penalty = sum_i sum_r delta_r(x_i) lambda (1 - |cos(pi theta_r x_i)|)

x are weights over their kernel's range. Here they appear as positions `p = w / scale + zero_point`, in
which centroids are whole numbers and a region's frequency is one over its spacing m:
theta_r x = (p - origin) / m_r. A weight outside all regions has no penalty; `clip` brings it back.

The gradient is that of Eq. 1. With y = theta_r x and its distance f = y - round(y) to the nearest centroid,

    d penalty / d w = lambda pi theta_r sin(pi y) sign(cos(pi y)) dx/dw = lambda pi / (scale m_r) sin(pi f),

because sin(pi y) and cos(pi y) change their signs together when y passes a half. Eq. 2 as printed has
(-1)^xi in place of the sign, with xi = 0 on intervals [(t-2)/theta, t/theta], t odd, that cover the whole
line: taken so, half of all weights are pushed away from their centroid. PAPERS.md, S8-2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from subtone.quantize import grids
from subtone.quantize.grids import Grid
from subtone.quantize.regions import Regions

CHUNK = 2**15
"""Weights whose gradient is computed at a time on a CPU: what they need fits a second-level cache."""


class AbsoluteCosine:
    """The centroids of one weight of `shape`, and the penalty on its distance from them.

    lambda is left to the caller.

    Args:
        grid: (rows, groups) scale and zero_point, of the flattened weight. A scale of 0 marks weights
            that are all 0: they have no penalty and stay 0.
        regions: where the centroids lie, in positions.
    """

    def __init__(self, *, grid: Grid, regions: Regions, shape: tuple[int, ...]) -> None:
        self.grid, self.regions, self.shape = grid, regions, shape
        self._spread_over(grid.scale.device)

    def _spread_over(self, device: torch.device) -> None:
        """What every step needs, in a shape that broadcasts against the weight, on its device."""
        scale, zero_point = (_spread(part.to(device), self.shape) for part in self.grid)
        # Over infinity any weight is the 0 that a scale of 0 asks for.
        self._scale, self._divisor = scale, torch.where(scale == 0, math.inf, scale)
        self._inverse, self._zero_point = self._divisor.reciprocal(), zero_point
        self._is_shifted = bool(zero_point.any())
        self._levels = torch.from_numpy(self.regions.levels).to(device, torch.float32)
        self._low, self._high = (scale * (self._levels[end] - zero_point) for end in (0, -1))
        per_level = [
            1 / spacing
            for low, high, spacing in zip(
                self.regions.edges, self.regions.edges[1:], self.regions.spacings, strict=False
            )
            for _ in range(low, high)
        ]
        self._frequencies = torch.tensor([*per_level, *per_level[-1:]], device=device)
        """1 / m for every whole level from the first centroid to the last."""

    @property
    def has_range(self) -> Tensor:
        """False for the weights that a scale of 0 keeps at 0; broadcasts against the weight."""
        return self._scale != 0

    def value(self, weight: Tensor) -> Tensor:
        """Eq. 1 with lambda = 1, a float32 scalar with a gradient to `weight`."""
        if not self.regions.spacings:
            return weight.float().sum() * 0
        self._follow(weight)
        position = weight.float() * self._inverse + self._zero_point
        first, last = self.regions.edges[0], self.regions.edges[-1]
        is_inside = (position >= first) & (position <= last) & self.has_range
        frequency = self._frequencies[(position.detach().clamp(first, last) - first).to(torch.int64)]
        wave = torch.cos((position - self.regions.origin) * frequency * math.pi)
        return torch.where(is_inside, 1 - wave.abs(), 0.0).sum()

    @torch.no_grad()
    def add_gradient(self, weight: Tensor, gradient: Tensor, strength: float) -> None:
        """Add `strength` (lambda) times the gradient of `value` to `gradient`, in place."""
        if not self.regions.spacings:
            return
        self._follow(weight)
        first, last = self.regions.edges[0], self.regions.edges[-1]
        origin, is_one_region = self.regions.origin, len(self.regions.spacings) == 1
        for rows in self._chunks(weight):
            inverse = _rows_of(self._inverse, rows)
            position = weight[rows].float() * inverse
            if self._is_shifted:
                position.add_(_rows_of(self._zero_point, rows))
            position.clamp_(first, last)  # on the outermost centroids the gradient is 0
            if is_one_region:
                frequency = self._frequencies[:1]
            else:
                level = (position - first).to(torch.int32).reshape(-1)
                frequency = self._frequencies.index_select(0, level).reshape(position.shape)
            cycles = position.sub_(origin).mul_(frequency) if origin else position.mul_(frequency)
            push = cycles.sub_(cycles.round()).mul_(math.pi).sin_().mul_(inverse)
            gradient[rows].add_(push.mul_(frequency), alpha=strength * math.pi)

    @torch.no_grad()
    def clip(self, weight: Tensor) -> None:
        """Bring what lies outside all regions to the outermost centroids, in place."""
        self._follow(weight)
        low, high = (end.to(weight.dtype) for end in (self._low, self._high))
        # Half the time of clamp_ between tensors.
        torch.minimum(torch.maximum(weight, low, out=weight), high, out=weight)

    @torch.no_grad()
    def nearest(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Each weight's position, float32, and the index of the centroid nearest to it; a tie goes up.

        By the division that `QTensor.on_codebook` does, so the indices are the codes it stores.
        """
        self._follow(weight)
        position = (weight.float() / self._divisor).add_(self._zero_point)
        borders = (self._levels[1:] + self._levels[:-1]) / 2
        return position, torch.bucketize(position, borders, right=True, out_int32=True)

    @torch.no_grad()
    def compress(self, weight: Tensor) -> None:
        """Put every weight on its nearest centroid, in place."""
        _, index = self.nearest(weight)
        weight.copy_(self._scale * (self._levels[index] - self._zero_point))

    def _follow(self, weight: Tensor) -> None:
        """Move to the weight's device, if the model was moved."""
        if self._inverse.device != weight.device:
            self._spread_over(weight.device)

    def _chunks(self, weight: Tensor) -> Iterator[slice]:
        rows = len(weight)
        step = max(1, CHUNK * rows // weight.numel()) if weight.device.type == "cpu" else rows
        return (slice(start, start + step) for start in range(0, rows, step))


def _spread(part: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(1, 1), (out, 1) or (out, groups) in a shape that broadcasts against a weight of `shape`."""
    rows, groups = part.shape
    if groups == 1:
        return part.reshape(rows, *(1 for _ in shape[1:]))
    columns = math.prod(shape[1:])
    return grids.unflatten_weight(part.repeat_interleave(columns // groups, dim=1), shape)


def _rows_of(part: Tensor, rows: slice) -> Tensor:
    return part if len(part) == 1 else part[rows]
