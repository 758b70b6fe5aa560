"""The General Quantizer: between two steps, weights move towards centroids; softly first, at the end for good.

GQ (Zhen et al. 2022), sections 3.1 to 3.4. Nothing is added to the loss and the forward pass stays
as it is. Every `every_steps` each kernel is divided by its range, mu is fitted to it, and each
weight is replaced by the soft mean of all centroids; alpha grows on the way, and with it the share
of the nearest centroid. At `end_step` each weight takes its nearest centroid and keeps it.

What the paper leaves open, and what we chose (docs/equations.md says why):

* The range: per tensor or channel, such that the outermost weight lies on its pole, 127/128 or
  -128/128; so an invocation does not eat the range. A percentile clips first. At 1 bit the two
  poles mean plus and minus the mean magnitude.
* alpha is given per least gap of the centroids, and mu is fitted to what will be stored. The paper's
  alpha of 10 shrinks weights, and the mu of least soft error wanders (`GQOptions` has numbers).
* A frozen parameter (requires_grad False) cannot answer: it is quantized once, hard, at the end.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import pydantic
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from subtone.models.checkpoints import Quantization
from subtone.qtensor import QTensor
from subtone.quantize import grids
from subtone.quantize.method import Batch, TrainingMethod, check_finite
from subtone.quantize.mu_law import (
    AlphaUnit,
    Divisor,
    alpha_in_range,
    fit_mu,
    hard_assign,
    largest_mu,
    mu_law_levels,
    soft_assign,
)
from subtone.quantize.ranges import kernel_range
from subtone.quantize.rules import STRICT, Recipe, Settings
from subtone.quantize.weights import Weight


class GQOptions(pydantic.BaseModel):
    """When GQ acts and how softly; the table `[options]` of its recipes.

    * `start_step`, `end_step` (s_start, s_end of Eq. 4; the hard assignment follows the optimizer's
      step number `end_step`, so a run needs at least `end_step + 1` steps); `every_steps`: the
      interval of the invocations between them; the paper's are 1k to 10k, of 120k.
    * `alpha_start`, `alpha_end`: of Eq. 4, in `alpha_unit`. "gap" (ours): per least distance of two
      centroids. "range" (the paper's): per unit of [-1, 1], 10 to 400.
    * `mu`: fitted to each kernel at each invocation where left out; a number is held (the paper's 8).
    * `mu_error`: what the fit minimizes. "hard" (ours): the error of what will be stored. "soft" (as
      printed): that of the soft assignment, which prefers centroids that soften least.
    * `divisor`: of Eq. 5; "1+mu" is the printed form and needs `mu`.
    * `scale`: "range" divides each kernel (or channel) by its range; "unit" takes weights as they
      are, in [-1, 1], as the paper writes it.

    Why not the paper's numbers: what is left of the standard deviation of 65536 normal weights of
    deviation 0.05, one scale a tensor, after 1 and after all invocations with nothing learnt between
    them, and how many times the error of quantizing at once (mu fitted) they end with:

                                                   4 bits            5 bits            6 bits
        alpha 10, mu 8, scale "unit", 120 times    0.74 0.00   82    0.73 0.00  287    0.73 0.00  1151
        alpha 10 to 400, otherwise so              0.74 0.47   32    0.73 0.16  217    0.73 0.31   674
        alpha 10 to 400, scale "range"             0.86 0.67   15    0.86 0.60   84    0.86 0.59   336
        2 to 8 a gap, mu_error "soft", 24 times    1.00 0.97  1.7    1.00 0.98  1.9    1.00 1.00   1.4
        2 to 8 a gap, 120 times                    0.99 0.99  1.0    1.00 1.00  1.0    1.00 1.00   1.0
        2 to 8 a gap, 24 times: the default        0.99 0.99  1.0    1.00 1.00  1.0    1.00 1.00   1.0

    Fewer bits shrink more (3 bits by default to 0.90, 2 bits with the 90th percentile as range to
    0.75; 4 to 8 a gap: 0.98 and 0.93), but there is a price: the harder and the more often, the less
    a weight that learns gets past a midpoint. On the problem of test_gq.py, 4 bits at learning rate
    3e-3, 400 steps: 0.12 by 2 to 6 a gap every 20 steps and 0.42 every 4; 0.25 by 2 to 20 every 20;
    0.26 by 4 to 20; 0.21 by straight-through training. So 10 to 25 invocations a run, as in Fig. 4a.
    """

    model_config = STRICT

    start_step: int = 0
    end_step: int = 120_000
    every_steps: int = 5_000
    alpha_start: float = 2.0
    alpha_end: float = 8.0
    alpha_unit: AlphaUnit = "gap"
    mu: float | None = None
    mu_error: Literal["hard", "soft"] = "hard"
    divisor: Divisor = "mu"
    scale: Literal["range", "unit"] = "range"

    @pydantic.model_validator(mode="after")
    def _check(self) -> GQOptions:
        start, end = self.start_step, self.end_step
        if not 0 <= start < end:
            raise ValueError(f"start_step={start} and end_step={end} must ascend from 0")
        if self.every_steps < 1:
            raise ValueError(
                f"every_steps={self.every_steps} must be at least 1; a tenth to a twentieth of the run is usual"
            )
        first, last = self.alpha_start, self.alpha_end
        if not (0 < first <= last and math.isfinite(last)):
            raise ValueError(f"alpha_start={first} and alpha_end={last} must ascend above 0; 2 to 8 is usual")
        if self.mu is not None and not (math.isfinite(self.mu) and self.mu >= 0):
            raise ValueError(f"mu={self.mu} must be finite and at least 0; leave it out to have it fitted")
        if self.divisor == "1+mu" and self.mu is None:
            raise ValueError("divisor='1+mu' needs mu; give 8.0")
        if self.mu_error == "soft" and self.mu is not None:
            raise ValueError(f"mu_error='soft' has no effect where mu={self.mu} is held; remove one of them")
        return self


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Codebook:
    """`scale * levels` are the values a kernel may take: `scale` (1, 1) or (out, 1) float32, `levels` int8."""

    mu: float
    scale: Tensor
    levels: NDArray[np.int8]


def annealed_alpha(
    step: int, *, alpha_start: float, alpha_end: float, start_step: int, end_step: int
) -> float:
    """alpha at `step`, on the line from `alpha_start` to `alpha_end`: Eq. 4.

    >>> annealed_alpha(60, alpha_start=10, alpha_end=400, start_step=0, end_step=120)
    205.0
    """
    return alpha_start + (step - start_step) * (alpha_end - alpha_start) / (end_step - start_step)


class GQ(TrainingMethod):
    """Method "gq": weights annealed onto mu-law centroids by a callback and nothing else.

    `codebooks`: parameter path -> what the last invocation fitted; after `end_step` it is held, and
    so are the weights: each further step ends with them back on it, while biases and norms train on.
    All else follows from the step and the weights, so a resumed run needs no more.
    """

    Options = GQOptions
    options: GQOptions

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.codebooks: dict[str, Codebook] = {}
        self.is_hard = False
        for index, rule in enumerate(recipe.rules):
            complaint = _complaint(rule.settings, self.options)
            if complaint:
                raise ValueError(f"recipe {recipe.name}: rules[{index}]: {complaint}")

    def attach(self, model: nn.Module) -> None:
        super().attach(model)
        self.codebooks, self.is_hard = {}, False

    def after_step(self, step: int) -> None:
        """Soft at every `every_steps` from `start_step` on; hard after each step from `end_step` on."""
        options = self.options
        is_hard = step >= options.end_step
        if not is_hard and (step < options.start_step or (step - options.start_step) % options.every_steps):
            return
        alpha = math.inf if is_hard else self.alpha_at(step)
        for path, weight in self.weights.items():
            if is_hard or weight.parameter.requires_grad:
                self._rewrite(path, weight, self.settings[path], alpha)
        self.is_hard = is_hard

    def alpha_at(self, step: int) -> float:
        """alpha at `step` of the schedule, in `alpha_unit`."""
        options = self.options
        return annealed_alpha(
            step,
            alpha_start=options.alpha_start,
            alpha_end=options.alpha_end,
            start_step=options.start_step,
            end_step=options.end_step,
        )

    def freeze(self, model: nn.Module, *, calibration: Iterable[Batch] | None = None) -> Quantization:
        """Every weight on its kernel's codebook; UserWarning with the gap in numbers if that moves any.

        After `end_step` it moves none. Before, the annealing is unfinished: each kernel gets the
        codebook of least error for what it holds now.
        """
        settings, weights = self.quantized(model)
        stored: dict[str, QTensor] = {}
        gaps: dict[str, Tensor] = {}
        for path, of in settings.items():
            parameter = weights[path].parameter.detach()
            check_finite(path, parameter)
            held = self.codebooks.get(path) if self.is_hard else None
            codebook = held or self._fit(_rows(parameter), of, math.inf)
            assert of.bits is not None
            scale = codebook.scale.cpu().numpy()
            stored[path] = QTensor.on_codebook(
                weights[path].values().numpy(), scale, codebook.levels, of.bits
            )
            gaps[path] = _gap(parameter, torch.from_numpy(stored[path].dequantize()), codebook.scale)
        self._warn_of(gaps)
        return self.quantization(stored, settings, weights)

    def state_dict(self) -> dict[str, Any]:
        """mu and scale of every kernel, and whether the hard assignment has taken place."""
        return {
            "is_hard": self.is_hard,
            "mu": {path: codebook.mu for path, codebook in self.codebooks.items()},
            "scale": {path: codebook.scale.clone() for path, codebook in self.codebooks.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`; ValueError if it was saved with other weights."""
        saved, here = set(state["mu"]), set(self.weights)
        strange = sorted(saved ^ here if state["is_hard"] else saved - here)
        if strange:
            raise ValueError(
                f"recipe {self.recipe.name}: {strange[0]} is quantized either here or where the state comes "
                "from; attach the model and use the recipe that it was saved with"
            )
        self.is_hard = bool(state["is_hard"])
        self.codebooks = {
            path: Codebook(
                mu=mu,
                scale=state["scale"][path].to(self.weights[path].parameter.device),
                levels=self._levels(self.settings[path], mu),
            )
            for path, mu in state["mu"].items()
        }

    # One kernel --------------------------------------------------------------------------------

    @torch.no_grad()
    def _rewrite(self, path: str, weight: Weight, settings: Settings, alpha: float) -> None:
        parameter = weight.parameter
        check_finite(path, parameter)
        values = _rows(parameter)
        if not self.is_hard:
            self.codebooks[path] = self._fit(values, settings, alpha)
        codebook = self.codebooks[path]
        normalized = _normalized(values, codebook.scale)
        if math.isinf(alpha):
            rewritten = hard_assign(normalized, codebook.levels) * codebook.scale
        else:
            alpha = alpha_in_range(alpha, codebook.levels, self.options.alpha_unit)
            rewritten = soft_assign(normalized, codebook.levels, alpha) * (128 * codebook.scale)
            if settings.bits == 1 and self.options.scale == "range":
                # Softness moves both poles inwards, and the next range with them; the mean stays instead.
                rewritten *= _mean_magnitude(values, settings) / _safe(_mean_magnitude(rewritten, settings))
        parameter.copy_(rewritten.reshape(parameter.shape))

    def _fit(self, values: Tensor, settings: Settings, alpha: float) -> Codebook:
        """The codebook for a kernel (out, columns) at `alpha` in `alpha_unit`; infinity: hard."""
        assert settings.bits is not None
        if self.options.scale == "unit":
            scale = values.new_full((1, 1), 1 / 128)
        else:
            scale = _scale(values, settings)
        mu = self.options.mu
        if mu is None and not largest_mu(settings.bits):
            mu = 0.0
        if mu is None:
            # Rows of zeros lie on no centroid and have nothing to say about mu.
            is_live = (scale > 0).expand(len(values), 1)[:, 0]
            normalized = _normalized(values, scale)[is_live]
            alpha = alpha if self.options.mu_error == "soft" else math.inf
            mu = fit_mu(normalized, settings.bits, alpha, unit=self.options.alpha_unit)
        return Codebook(mu=mu, scale=scale, levels=self._levels(settings, mu))

    def _levels(self, settings: Settings, mu: float) -> NDArray[np.int8]:
        assert settings.bits is not None
        return mu_law_levels(settings.bits, mu, divisor=self.options.divisor)

    def _warn_of(self, gaps: Mapping[str, Tensor]) -> None:
        """The unfinished annealing in numbers, if `gaps` (relative to each kernel's range) are not all 0."""
        largest = {path: float(gap.max()) for path, gap in gaps.items()}
        if not any(largest.values()):
            return
        worst = max(largest, key=largest.__getitem__)
        count = sum(gap.numel() for gap in gaps.values())
        rms = math.sqrt(sum(float(gap.double().square().sum()) for gap in gaps.values()) / count)
        warnings.warn(
            f"recipe {self.recipe.name}: the annealing is unfinished: freezing moves weights by up to "
            f"{largest[worst]:.2g} of their kernel's range ({worst}), {rms:.2g} root mean square; train until "
            f"step {self.options.end_step} has been taken (end_step)",
            UserWarning,
            stacklevel=3,
        )


def _complaint(settings: Settings, options: GQOptions) -> str | None:
    """Why a rule does not fit this method, with the remedy; None if it does."""
    if settings.keep_float:
        return None
    bits = settings.bits
    assert bits is not None
    if settings.grid != "codebook":
        return f"grid={settings.grid!r} has no centroids; use grid = 'codebook'"
    if settings.range != "absmax" and (bits == 1 or options.scale == "unit"):
        where = "bits=1, where the mean magnitude is the range" if bits == 1 else "scale='unit'"
        return f"range={settings.range!r} has no effect at {where}; leave it out"
    if options.scale == "unit" and settings.granularity != "tensor":
        return f"granularity={settings.granularity!r} does not fit scale='unit'; use 'tensor'"
    if options.mu is None or bits == 1:
        return None
    if len(mu_law_levels(bits, options.mu, divisor=options.divisor)) < 2**bits:
        limit = (
            f"use at most {largest_mu(bits):.3g}, or leave"
            if options.divisor == "mu" and bits < 8
            else "leave"
        )
        return f"mu={options.mu} lets centroids of bits={bits} meet on one k/128; {limit} it out to have it fitted"
    return None


def _rows(parameter: Tensor) -> Tensor:
    """A weight as (out, columns) in float32, apart from the graph."""
    return parameter.detach().to(torch.float32).reshape(parameter.shape[0], -1)


def _cells(values: Tensor, settings: Settings) -> Tensor:
    return grids.cells_of(values, granularity=settings.granularity, groups=1)


def _mean_magnitude(values: Tensor, settings: Settings) -> Tensor:
    """Per scale; the sum in double precision, so that its order does not show."""
    return _cells(values, settings).abs().double().mean(-1).float()


def _scale(values: Tensor, settings: Settings) -> Tensor:
    """Real units per level such that the outermost weight lies on its pole, +127 or -128; (1, 1) or (out, 1)."""
    if settings.bits == 1:
        return grids.divided(_mean_magnitude(values, settings), 127.5)
    cells = _cells(values, settings)
    high, low = cells.amax(-1), cells.amin(-1)
    if settings.range == "percentile":
        magnitude = kernel_range(cells, settings)
        high, low = torch.minimum(high, magnitude), torch.maximum(low, -magnitude)
    return torch.maximum(grids.divided(high, 127), -low / 128)


def _safe(divisor: Tensor) -> Tensor:
    return torch.where(divisor == 0, torch.ones_like(divisor), divisor)


def _normalized(values: Tensor, scale: Tensor) -> Tensor:
    """`values` over their range, 128 levels: on [-1, 1] but for what a percentile clips."""
    return (values / _safe(scale)).mul_(1 / 128)


def _gap(parameter: Tensor, decoded: Tensor, scale: Tensor) -> Tensor:
    """How far each weight is from its decoded value as its own dtype holds it, in ranges of its kernel."""
    distance = (parameter.cpu().float() - decoded.to(parameter.dtype).float()).abs()
    return _normalized(distance.reshape(parameter.shape[0], -1), scale.cpu())
