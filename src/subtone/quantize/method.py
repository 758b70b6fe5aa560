"""What every quantization method is: made from a recipe, and leaving QTensors behind."""

from __future__ import annotations

import abc
import copy
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, TypeVar

import numpy as np
import pydantic
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from subtone.models.checkpoints import Quantization
from subtone.qtensor import QTensor
from subtone.quantize.errors import one_line
from subtone.quantize.rules import STRICT, Recipe, Settings, assign
from subtone.quantize.weights import Weight, quantizable_weights

Model = TypeVar("Model", bound=nn.Module)
Batch = tuple[Tensor, Tensor]
"""Features (B, F, T) and their valid lengths (B,), as a model takes them."""


class NoOptions(pydantic.BaseModel):
    """Of a method that has none."""

    model_config = STRICT


class Method(abc.ABC):
    """One way to few bits. A new one is one file with a subclass, and one entry in METHODS.

    `Options` are the method's own settings, the table `[options]` of a recipe: a frozen pydantic
    model with the paper's values as defaults. `self.options` holds them, checked.
    """

    Options: ClassVar[type[pydantic.BaseModel]] = NoOptions
    learns_clips: ClassVar[bool] = False
    """Whether training by the method finds where activations are clipped."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        try:
            self.options = self.Options.model_validate(recipe.options)
        except pydantic.ValidationError as error:
            raise ValueError(f"recipe {recipe.name}: options: {one_line(error, (self.Options,))}") from error
        for index, rule in enumerate(recipe.rules):
            if rule.settings.activation_clip and not self.learns_clips:
                raise ValueError(
                    f"recipe {recipe.name}: rules[{index}]: activation_clip={rule.settings.activation_clip!r} is "
                    "learned in training by method native; use that, or remove activation_clip"
                )

    @abc.abstractmethod
    def freeze(self, model: nn.Module, *, calibration: Iterable[Batch] | None = None) -> Quantization:
        """Every weight as the recipe wants it stored; `model` itself is left as it is.

        `calibration`: real features, for recipes that need to see what goes into a layer.
        """

    def stored(self, model: nn.Module) -> Mapping[str, QTensor]:
        """The weights as `freeze` would store them now, whatever else is still to be learned."""
        return self.freeze(model).weights

    def quantized(self, model: nn.Module) -> tuple[dict[str, Settings], dict[str, Weight]]:
        """Parameter path -> what the recipe says of it, and the weight: of all that are not to stay float."""
        settings = {path: of for path, of in assign(self.recipe, model).items() if not of.keep_float}
        weights = quantizable_weights(model)
        return settings, {path: weights[path] for path in settings}

    def quantization(
        self,
        stored: Mapping[str, QTensor],
        settings: Mapping[str, Settings],
        weights: Mapping[str, Weight],
        *,
        bias_shifts: Mapping[str, NDArray[np.float32]] | None = None,
        activation_clips: Mapping[str, float] | None = None,
    ) -> Quantization:
        """What `freeze` returns: `stored`, each with the activations that `settings` want for its kind."""
        return Quantization(
            weights=stored,
            activation_bits={
                path: of.activation_bits_for(weights[path].kind) for path, of in settings.items()
            },
            bias_shifts=bias_shifts or {},
            activation_clips=activation_clips or {},
            recipe=self.recipe.resolved(),
        )


class TrainingMethod(Method):
    """A method that takes part in training, in at most three places, by three calls a step or fewer.

        method.attach(model)                 # once, before the first step
        for step in range(steps):
            loss(model, batch).backward()
            method.before_step(step)         # adds the gradient of its penalty
            optimizer.step()
            method.after_step(step)          # may rewrite weights
        method.detach()
        quantization = method.freeze(model)

    Steps count from 0. Parameters stay the objects they are, so an optimizer may be made before or
    after `attach`. `state_dict` holds all that a resumed run needs to be identical.

    * `settings`, `weights`: parameter path -> what the recipe says of it, and the parameter; only
      those that are quantized. Empty until `attach`.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        for index, rule in enumerate(recipe.rules):
            if rule.settings.hears:
                raise ValueError(
                    f"recipe {recipe.name}: rules[{index}]: {rule.settings.hears} is for weights that are not "
                    "trained; remove it"
                )
        self.settings: dict[str, Settings] = {}
        self.weights: dict[str, Weight] = {}

    def attach(self, model: nn.Module) -> None:
        """Take hold of `model`: assign the rules; a subclass may also change what the forward pass sees.

        ValueError names a weight that holds NaN or infinity, and what `assign` refuses.
        """
        if self.weights:
            raise ValueError(f"recipe {self.recipe.name}: the method is attached already; detach it first")
        settings, weights = self.quantized(model)
        for path, weight in weights.items():
            check_finite(path, weight.parameter)
        self.settings, self.weights = settings, weights

    def penalty(self, step: int) -> Tensor | None:
        """The term that the method adds to the loss at `step`, a scalar with a gradient; None without one."""
        return None

    def before_step(self, step: int) -> None:
        """Add the gradient of `penalty` to the gradients of the weights, after the loss's own backward pass."""
        penalty = self.penalty(step)
        if penalty is not None:
            penalty.backward()

    def after_step(self, step: int) -> None:
        """Rewrite weights after the optimizer's step number `step`, if it is time to."""

    def metrics(self) -> dict[str, float]:
        """How far it has come, by name, for the log of an epoch; {} where there is nothing to tell."""
        return {}

    def detach(self) -> None:
        """Let go of the model: plain modules and plain parameters again."""
        self.settings, self.weights = {}, {}

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values that `load_state_dict` needs; {} where the step says it all."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`, after `attach`."""


def check_finite(path: str, weight: Tensor) -> None:
    """ValueError that names `path` if its weight holds NaN or infinity."""
    if not torch.isfinite(weight).all():
        count = int((~torch.isfinite(weight)).sum())
        raise ValueError(
            f"{path} holds {count} of {weight.numel()} values that are not finite; repair the model"
        )


def decoded_twin(model: Model, quantization: Quantization) -> Model:
    """A copy of `model` in eval mode whose weights are the decoded ones.

    Bias shifts are not in it: most products they belong to have no bias that could take them.
    """
    twin = copy.deepcopy(model).eval()
    weights = quantizable_weights(twin)
    with torch.no_grad():
        for path, stored in quantization.weights.items():
            weights[path].parameter.copy_(torch.from_numpy(stored.dequantize()))
    return twin
