"""2-bit sub-channel training (int2: Rybakov et al. 2023): a grid per channel or per group, found anew at
every step from the weights as they are.

The paper's rows are settings of the rules and one option:

    I2Wsym                grid = "symmetric", scale_gradient = false      three levels at 2 bits
    I2Wasym               grid = "asymmetric", scale_gradient = false     all four
    I2WasymSc             grid = "asymmetric"                             the range is trained too
    I2WasymScSubchClip    the same with granularity = "group", range = "clip_search"
    + MSQE                msqe_weight above 0

Ours differs from the text here (docs/equations.md has the rest): groups are consecutive inputs of one
tap; `scale_gradient = false` stops the gradient of both ends of a range (range_gradient.py); at 3 to 8
bits all is as at 2. Weights only, as in the paper: where a rule asks for dynamic activations, the packed
file rounds them and training does not hear it; method "native" does.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable

import pydantic
import torch
from torch import Tensor, nn

from subtone.models.checkpoints import Quantization
from subtone.quantize.linear import quantize_weights
from subtone.quantize.method import Batch, TrainingMethod
from subtone.quantize.parametrization import Parametrized
from subtone.quantize.range_gradient import Rounded, cells_of_weight, round_weight, with_gradient
from subtone.quantize.rules import STRICT, Recipe, Settings


class SubChannelOptions(pydantic.BaseModel):
    """What the forward pass passes back, and what the loss adds.

    * `scale_gradient`: the gradient flows into the smallest and the largest weight of each cell, which
      set its range (int2, section 2.3); off, straight-through only.
    * `msqe_weight`: of the squared quantization error, *summed* over all weights (int2, Table 2, E2,
      which has their mean and prints no weight). A weight is then drawn to its grid by
      `2 * msqe_weight * error` whatever the size of the model, as by a weight decay towards the grid.
    """

    model_config = STRICT

    scale_gradient: bool = True
    msqe_weight: float = pydantic.Field(default=0.0, ge=0, allow_inf_nan=False)


class SeenOnGrid:
    """The function through which a forward pass sees one weight; it rounds once per value of the weight.

    What was rounded is kept until the weight changes, as torch counts changes, so that the three reads
    of an LSTM, tied modules, a penalty and a whole evaluation cost one rounding. Only values are kept,
    never a graph: each read has a gradient of its own. A write past torch's count (`weight.data.mul_`)
    is seen after `forget`.
    """

    def __init__(self, settings: Settings, *, name: str, scale_gradient: bool) -> None:
        self.settings, self.name, self.scale_gradient = settings, name, scale_gradient
        self._kept: Rounded | None = None
        self._of: tuple[weakref.ref[Tensor], int, int] | None = None

    def __call__(self, weight: Tensor) -> Tensor:
        return with_gradient(weight, self.rounded(weight), self.settings, scale_gradient=self.scale_gradient)

    def rounded(self, weight: Tensor) -> Rounded:
        """`weight` on its grid as it is now."""
        # The address tells a weight that was moved; a copied module holds another weight altogether.
        now = (weakref.ref(weight), weight._version, weight.data_ptr())
        if self._kept is None or self._of is None or self._of[0]() is not weight or self._of[1:] != now[1:]:
            with torch.inference_mode(False):  # what an evaluation keeps must serve training too
                self._kept = round_weight(weight, self.settings, name=self.name)
            self._of = now
        return self._kept

    def forget(self) -> None:
        self._kept = self._of = None


class SubChannel(TrainingMethod):
    """Method "subchannel": uniform grids of 2 to 8 bits, per channel or group, trained through.

    A frozen model equals the trained forward pass: `freeze` rounds the float weights that training left
    behind to exactly what the last pass saw. Half-precision parameters are widened before they are
    rounded, and what the forward pass sees is rounded to their precision again. A weight that is not
    trained (`requires_grad=False`) is heard as it will be stored all the same. A step needs 5 bytes a
    weight for what it has rounded. There is no state: a resumed run needs the weights and the optimizer.
    """

    Options = SubChannelOptions
    options: SubChannelOptions

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        for index, rule in enumerate(recipe.rules):
            if not rule.settings.keep_float:
                _check_settings(rule.settings, self.options, where=f"recipe {recipe.name}: rules[{index}]")
        self._seen: dict[str, SeenOnGrid] = {}
        self._parametrized: Parametrized | None = None

    def attach(self, model: nn.Module) -> None:
        """From now on the forward pass of `model` sees weights on their grids."""
        super().attach(model)
        seen = {
            path: SeenOnGrid(of, name=path, scale_gradient=self.options.scale_gradient)
            for path, of in self.settings.items()
        }
        for path, function in seen.items():
            if not torch.isfinite(function.rounded(self.weights[path].parameter).on_grid).all():
                super().detach()
                raise ValueError(
                    f"{path}: a group's scale or zero_point exceeds float16; use one scale a channel for this weight"
                )
        self._seen = seen
        self._parametrized = Parametrized(model, self.weights, seen)

    def penalty(self, step: int) -> Tensor | None:
        """`msqe_weight` times the squared error of all trained weights; its gradient is 2 (w - on grid).

        Values on the grid count as constants: rounding is piecewise constant, and straight-through
        they would follow the weights and leave nothing to draw on.
        """
        trained = [path for path, weight in self.weights.items() if weight.parameter.requires_grad]
        if not (self.options.msqe_weight and trained):
            return None
        errors = []
        for path in trained:
            parameter = self.weights[path].parameter
            error = (
                cells_of_weight(parameter, self.settings[path]) - self._seen[path].rounded(parameter).on_grid
            )
            errors.append(error.square().sum())
        return self.options.msqe_weight * torch.stack(errors).sum()

    def after_step(self, step: int) -> None:
        """Nothing is rewritten; what was rounded for this step is let go."""
        for function in self._seen.values():
            function.forget()

    def detach(self) -> None:
        """Plain modules again, with the float weights: not what the forward pass saw, before a freeze."""
        if self._parametrized is not None:
            self._parametrized.detach()
        self._seen, self._parametrized = {}, None
        super().detach()

    def freeze(self, model: nn.Module, *, calibration: Iterable[Batch] | None = None) -> Quantization:
        """Every weight rounded as its rule says, attached or detached; `model` is left as it is.

        `calibration` is not read: no range comes from data.
        """
        settings, weights = self.quantized(model)
        return self.quantization(quantize_weights(weights, settings), settings, weights)


def _check_settings(of: Settings, options: SubChannelOptions, *, where: str) -> None:
    if of.grid == "codebook":
        raise ValueError(f"{where}: grid='codebook' has no scale to train; use 'asymmetric' or 'symmetric'")
    if of.bits == 1:
        raise ValueError(f"{where}: bits=1 is no sub-channel grid; use 2 to 8, or method 'gq'")
    if of.range == "octav" and options.scale_gradient:
        raise ValueError(
            f"{where}: range='octav' has no end that is one weight; use 'clip_search', or scale_gradient = false"
        )
