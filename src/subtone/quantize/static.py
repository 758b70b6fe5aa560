"""What makes a recipe integer-only: its table `[integer]`.

    [integer]
    features = "synthetic"        # what calibration hears: or "random", "recordings"
    activation_bits = 8           # of what products read
    wide_products = ["blocks.16.*"]   # modules whose products read 16
    [integer.synthesis]           # quantize.zero_shot.SynthesisSettings
    num_batches = 1

Weights come from the recipe's rules as always; any method may have made them. The table says how everything
between them is divided, once and for all: static scales, so that nothing is measured while the model runs.
"""

from __future__ import annotations

import difflib
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal, Self

import numpy as np
import pydantic
from numpy.typing import NDArray
from pydantic import Field
from torch import nn

from subtone.models.checkpoints import Checkpoint
from subtone.quantize.errors import one_line
from subtone.quantize.rules import STRICT, Recipe
from subtone.quantize.weights import quantizable_weights
from subtone.quantize.zero_shot import Progress, SynthesisSettings, random_features, synthesize


class IntegerSettings(pydantic.BaseModel):
    """How the values of an integer-only program are divided.

    * `features`: what calibration hears: "synthetic" spectrograms made from the network's BatchNorms as
      `synthesis` says, "random" ones (as many, uniform in [-3, 3]: the paper's control), or "recordings".
    * `activation_bits`: of what products read, 2 to 8; `unsigned` spends no bit on the sign behind a ReLU.
    * `range`: "minmax" (the paper's text), "ema" of each example's (its code), "percentile" of magnitudes, or "mse",
      the range whose clipping and rounding together cost least.
    * `sum_bits`: of residual sums, 8 to 16: 8 shows what they cost.
    * `wide_products`: globs over modules whose products read 16 bits, as two products of 8: for the few that lose most.
    """

    model_config = STRICT

    features: Literal["synthetic", "random", "recordings"] = "synthetic"
    activation_bits: Annotated[int, Field(ge=2, le=8)] = 8
    unsigned: bool = True
    range: Literal["minmax", "ema", "percentile", "mse"] = "minmax"
    percentile: Annotated[float, Field(gt=50, le=100)] | None = None
    sum_bits: Annotated[int, Field(ge=8, le=16)] = 16
    wide_products: Annotated[tuple[str, ...], Field(strict=False)] = ()
    synthesis: SynthesisSettings = SynthesisSettings()

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if (self.range == "percentile") != (self.percentile is not None):
            raise ValueError(
                f"percentile={self.percentile} goes with range='percentile' alone; give both, such as 99.99, or neither"
            )
        if self.wide_products and self.sum_bits < 16:
            raise ValueError(
                f"sum_bits={self.sum_bits} leaves nothing wide for wide_products to read; leave one of them out"
            )
        return self

    @classmethod
    def of(cls, recipe: Recipe) -> IntegerSettings | None:
        """The table of `recipe`; None where it has none.

        ValueError: a key or value that is none; a rule with dynamic activations, which are measured while a model runs.
        """
        if recipe.integer is None:
            return None
        try:
            settings = cls.model_validate(recipe.integer)
        except pydantic.ValidationError as error:
            raise ValueError(
                f"recipe {recipe.name}: integer: {one_line(error, (cls, SynthesisSettings))}"
            ) from error
        for index, rule in enumerate(recipe.rules):
            if rule.settings.activations == "dynamic":
                raise ValueError(
                    f"recipe {recipe.name}: rules[{index}].activations='dynamic' contradicts [integer], where all "
                    "scales are static; leave it out"
                )
        return settings

    def require_products(self, network: nn.Module) -> None:
        """ValueError if a glob of `wide_products` matches no module of `network` that multiplies by a weight."""
        modules = [
            path.rpartition(".")[0]
            for path, weight in quantizable_weights(network).items()
            if weight.kind != "embedding"
        ]
        for pattern in self.wide_products:
            if not any(fnmatchcase(module, pattern) for module in modules):
                near = difflib.get_close_matches(pattern, modules, n=1, cutoff=0.0)
                called = f"; its products are called like {near[0]}" if near else ""
                raise ValueError(
                    f"integer.wide_products={pattern!r} matches no product of this model{called}; correct it or leave "
                    "it out"
                )

    def resolved(self) -> dict[str, Any]:
        """The whole table with its defaults, as plain JSON."""
        return self.model_dump(mode="json", exclude_none=True)


def features_made(
    checkpoint: Checkpoint, settings: IntegerSettings, progress: Progress | None = None
) -> list[NDArray[np.float32]]:
    """What calibration hears where no recording is needed: features (T, F), one array a spectrogram.

    `checkpoint` is the float one: the statistics in its BatchNorms belong to its own weights.
    """
    width, synthesis = checkpoint.front_end.num_features, settings.synthesis
    if settings.features == "synthetic":
        made = synthesize(checkpoint.network, synthesis, num_features=width, progress=progress).features
    else:
        assert settings.features == "random"
        made = random_features(
            num_spectrograms=synthesis.num_batches * synthesis.batch_size,
            num_features=width,
            num_frames=synthesis.num_frames,
            seed=synthesis.seed,
        )
    return [np.ascontiguousarray(each.T) for each in made]
