"""ACosR: a penalty that draws every weight to the nearest level of an even grid while it is trained.

Nguyen, Alexandridis and Mouchtaris, Interspeech 2020, as S8BQAT and GQ cite it ("linear-QAT", the
baseline of both): lambda sum (1 - |cos(pi theta w)|), one region, theta fixed by the number of bits.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import pydantic
import torch
from pydantic import Field
from torch import Tensor, nn

from subtone.models.checkpoints import Quantization
from subtone.qtensor import QTensor
from subtone.quantize import grids
from subtone.quantize.absolute_cosine import AbsoluteCosine
from subtone.quantize.grids import Grid
from subtone.quantize.method import Batch, TrainingMethod, check_finite
from subtone.quantize.ranges import fit_grid, group_count
from subtone.quantize.regions import Regions
from subtone.quantize.rules import STRICT, Recipe, Settings
from subtone.quantize.weights import Weight


class ACosROptions(pydantic.BaseModel):
    """Settings of the penalty.

    * `penalty_weight`: lambda. The penalty is a *sum* over weights, so it does not fade as a model grows,
      while the gradient of a mean loss does. It pulls at one weight by lambda pi theta / range at
      most; where that is far above the loss's gradient, every weight is held at the centroid that it
      happens to be near. On a small problem the best lambda made both about equal. S8BQAT's 5e-4,
      the only published number, is the default.
    * `warmup_steps`: plain steps before the grids are fitted and the penalty starts; 0 fits them to the
      model as it is attached.
    """

    model_config = STRICT

    penalty_weight: float = Field(default=5e-4, ge=0, allow_inf_nan=False)
    warmup_steps: int = Field(default=0, ge=0)


class ACosR(TrainingMethod):
    """Method "acosr": the absolute-cosine penalty of one region, on the uniform grid of a rule.

    The grid (scale per tensor, channel or group, `range` as the rule says) is fitted to the weights once,
    at `attach` or after `warmup_steps`, and stays, so that the penalty's zeros do; it is stored at the
    end: theta = 2**(bits-1) - 1 per unit of the range. Weights that leave it are clipped after each
    step. The paper takes weights in [-1, 1] and says neither.

    Asymmetric grids work by the same equation with a phase, which the papers do not have. A weight that is
    not trained (requires_grad=False) is left as it is until `freeze`. Weights of zeros stay zeros.

    * `penalties`: parameter path -> its penalty and grid. They outlive `detach`, for `freeze`.
    """

    Options: ClassVar[type[pydantic.BaseModel]] = ACosROptions
    options: ACosROptions

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.penalties: dict[str, AbsoluteCosine] = {}
        self._is_warming_up = False

    def attach(self, model: nn.Module) -> None:
        """Take hold of `model`; without a warm-up, fit the grids now. ValueError names a weight that has none."""
        super().attach(model)
        for path, weight in self.weights.items():
            check_dense_gradient(path, weight)
        fitted = self._fitted(self.settings, self.weights)  # in a warm-up too, to refuse at the door
        self._is_warming_up = self.options.warmup_steps > 0
        self.penalties = {} if self._is_warming_up else fitted

    def _fitted(
        self, settings: Mapping[str, Settings], weights: Mapping[str, Weight]
    ) -> dict[str, AbsoluteCosine]:
        """The penalty of each weight in `settings`, on the grid that fits it as it is now."""
        return {path: self._fit(path, weights[path], of) for path, of in settings.items()}

    def _fit(self, path: str, weight: Weight, settings: Settings) -> AbsoluteCosine:
        if settings.grid == "codebook":
            raise ValueError(
                f"recipe {self.recipe.name}: grid='codebook' of {path} is not even, as acosr needs it; "
                "use grid = 'symmetric', or method = 's8bqat'"
            )
        return even_penalty(path, weight, settings)

    def penalty(self, step: int) -> Tensor | None:
        """lambda times the sum over all weights that are trained; None before there are grids."""
        terms = [
            self.penalties[path].value(weight.parameter)
            for path, weight in self.weights.items()
            if path in self.penalties and weight.parameter.requires_grad
        ]
        return self.options.penalty_weight * torch.stack(terms).sum() if terms else None

    def before_step(self, step: int) -> None:
        """Add the gradient of `penalty`, computed without a graph.

        The gradients must be unscaled ones (`GradScaler.unscale_`).
        """
        for path, parameter in self._trained():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            self.penalties[path].add_gradient(parameter, parameter.grad, self.options.penalty_weight)

    def after_step(self, step: int) -> None:
        """Clip every trained weight to its grid; at the end of the warm-up, fit the grids first."""
        if self._is_warming_up:
            if step + 1 < self.options.warmup_steps:
                return
            self.penalties, self._is_warming_up = self._fitted(self.settings, self.weights), False
        for path, parameter in self._trained():
            self.penalties[path].clip(parameter)

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        return [
            (path, self.weights[path].parameter)
            for path in self.penalties
            if path in self.weights and self.weights[path].parameter.requires_grad
        ]

    def freeze(self, model: nn.Module, *, calibration: Iterable[Batch] | None = None) -> Quantization:
        """Every weight at the nearest level of the grid it was trained on.

        A method that was never attached fits the grids now: round to nearest. So does one whose warm-up
        is not over, with a UserWarning.
        """
        if self._is_warming_up:
            warnings.warn(
                f"recipe {self.recipe.name}: training ended within warmup_steps={self.options.warmup_steps}; "
                "the weights are rounded without having been drawn to a grid",
                stacklevel=2,
            )
        settings, weights = self.quantized(model)
        for path, weight in weights.items():
            check_finite(path, weight.parameter)
        penalties = self.penalties or self._fitted(settings, weights)
        self._check_paths(set(penalties), set(settings), "the model to freeze")
        stored = {path: self._stored(weights[path], penalties[path], of) for path, of in settings.items()}
        return self.quantization(stored, settings, weights)

    def _stored(self, weight: Weight, penalty: AbsoluteCosine, settings: Settings) -> QTensor:
        """`weight` on the penalty's grid: its centroids are the levels."""
        assert settings.bits is not None
        values, grid = weight.values().numpy(), penalty.grid.numpy()
        if settings.grid == "codebook":
            levels = penalty.regions.levels.astype("int8")
            return QTensor.on_codebook(values, grid.scale, levels, settings.bits)
        return QTensor.on_grid(values, grid, settings.bits, is_symmetric=settings.is_symmetric)

    def _check_paths(self, held: set[str], wanted: set[str], where: str) -> None:
        strange = sorted(held ^ wanted)
        if strange:
            raise ValueError(
                f"recipe {self.recipe.name}: {strange[0]} is quantized either here or in {where}, not in both; "
                "use the model and the recipe that were trained"
            )

    def state_dict(self) -> dict[str, Any]:
        """Grid and regions of every weight; none in the warm-up."""
        return {
            "penalties": {
                path: {
                    "scale": penalty.grid.scale.clone(),
                    "zero_point": penalty.grid.zero_point.clone(),
                    "edges": list(penalty.regions.edges),
                    "spacings": list(penalty.regions.spacings),
                    "origin": penalty.regions.origin,
                }
                for path, penalty in self.penalties.items()
            }
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`, after `attach`; ValueError if it was saved with other weights."""
        saved = state["penalties"]
        self._is_warming_up = self.options.warmup_steps > 0 and not saved
        if not self._is_warming_up:
            self._check_paths(set(saved), set(self.weights), "the saved state")
        self.penalties = {
            path: AbsoluteCosine(
                grid=Grid(entry["scale"].clone(), entry["zero_point"].clone()),
                regions=Regions(
                    edges=tuple(entry["edges"]), spacings=tuple(entry["spacings"]), origin=entry["origin"]
                ),
                shape=self.weights[path].shape,
            )
            for path, entry in saved.items()
        }


def even_penalty(path: str, weight: Weight, settings: Settings) -> AbsoluteCosine:
    """The penalty whose zeros are the levels of the uniform grid that `settings` ask for.

    Positions are codes: w / scale + zero_point, so there is one region of spacing 1.
    """
    assert settings.bits is not None
    check_finite(path, weight.parameter)
    values = weight.values()
    count = group_count(weight.shape, settings, name=path)
    grid = fit_grid(grids.flatten_weight(values), settings, group_count=count)
    lowest = grids.lowest_code(settings.bits, is_symmetric=settings.is_symmetric)
    edges = (lowest, 2**settings.bits - 1)
    return AbsoluteCosine(grid=grid, regions=Regions(edges=edges, spacings=(1,)), shape=weight.shape)


def check_dense_gradient(path: str, weight: Weight) -> None:
    """ValueError for an embedding with sparse gradients: the penalty moves every row."""
    if getattr(weight.module, "sparse", False):
        raise ValueError(
            f"{path} has sparse gradients, and the penalty moves every row; use sparse=False, "
            "or a rule with keep_float = true"
        )
