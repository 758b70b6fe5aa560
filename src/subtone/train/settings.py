"""How a network is trained: strict TOML, every mistake in it one line.

A float model's recipe is a file of its own (TrainSettings); a quantization recipe says in its table
`[training]` how a checkpoint is tuned while its weights go to few bits (TuneSettings).
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from subtone.models import preset
from subtone.models.options import with_options
from subtone.quantize.errors import one_line
from subtone.quantize.rules import STRICT, Recipe
from subtone.train.ends import check_front_end

Share = Annotated[float, Field(ge=0, le=1)]


class Learning(pydantic.BaseModel):
    """What every run has; frozen.

    * `steps`: optimizer steps in all. The length is in steps and not in epochs because batches
      hold a number of seconds, so that how many make an epoch varies.
    * `batch_s`: seconds of speech in a batch, padding included.
    * `epoch_s`: seconds of speech after which the state is saved and the dev set heard; left out,
      all there is. A corpus is divided into as many epochs of about this length, drawn by the seed.
    * `batches_per_step`: batches whose gradients are averaged before a step (accumulation), so that a
      large batch needs the memory of a small one.
    * `learning_rate`: the highest; it rises over `warmup_share` of the steps. "one-cycle" then lets it fall
      to almost nothing along a half cosine, "noam" by the root of the steps (schedules.py). AdamW with
      `weight_decay`.
    * `speeds`: each utterance is also heard resampled by these factors (pitch moves with speed).
    * `joined`: each utterance is also heard in a chain of 2 to so many, drawn anew in every pass, with
      silence between: what a stream goes through, and single utterances do not teach (epochs.py). At 1
      there are no chains.
    * `masks` bands of up to `mask_mels` features and `masks` spans of up to `mask_frames` frames
      are blanked in every utterance of every batch (SpecAugment without time warping).
    """

    model_config = STRICT

    steps: Annotated[int, Field(ge=2)]
    batch_s: Annotated[float, Field(gt=0)]
    epoch_s: Annotated[float, Field(gt=0)] | None = None
    batches_per_step: Annotated[int, Field(ge=1)] = 1
    schedule: Literal["one-cycle", "noam"] = "one-cycle"
    learning_rate: Annotated[float, Field(gt=0)]
    warmup_share: Share = 0.15
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    speeds: Annotated[tuple[float, ...], Field(strict=False, min_length=1)] = (1.0,)
    joined: Annotated[int, Field(ge=1)] = 1
    masks: Annotated[int, Field(ge=0)] = 2
    mask_mels: Annotated[int, Field(ge=0)] = 10
    mask_frames: Annotated[int, Field(ge=0)] = 20
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    @pydantic.model_validator(mode="after")
    def _check_warmup(self) -> Learning:
        """torch's OneCycleLR divides by the steps between its ends, and neither part may have one step only."""
        if self.schedule != "one-cycle":
            return self
        if self.warmup_share == 1:
            raise ValueError("warmup_share=1.0 leaves no step for the rate to fall; 0.15 is usual")
        if self.warmup_share * self.steps == 1:
            raise ValueError(
                f"warmup_share={self.warmup_share} of steps={self.steps} is a single step, and a rise needs two; "
                "use 0.0, or more"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _check_speeds(self) -> Learning:
        for speed in self.speeds:
            if not 0.5 <= speed <= 2:
                raise ValueError(f"speeds={self.speeds} must lie in 0.5..2; 0.9, 1.0 and 1.1 are usual")
        return self


class TrainSettings(Learning):
    """A float model from nothing: what every run has, and

    * `model`: a preset of `subtone.models.MODELS`, and `model_options` that replace parts of it:
      `{joint_width = 128, encoder = {widths = [192, 192]}}` (models/options.py).
    * `front_end`: what it hears: `kind` and the fields of that front end, `normalize` as a name
      (ends.py); left out, QuartzNet's.
    * `num_pieces`: its labels are so many pieces of words, learnt from the training texts; left out,
      the letters of English.
    * `averaged_epochs`: the result is the mean of the weights at the end of so many last epochs.
    """

    name: str
    model: str
    model_options: dict[str, Any] = {}
    front_end: dict[str, Any] = {}
    num_pieces: Annotated[int, Field(ge=1)] | None = None
    averaged_epochs: Annotated[int, Field(ge=1)] = 1

    @pydantic.model_validator(mode="after")
    def _check(self) -> TrainSettings:
        with_options(preset(self.model), self.model_options)
        check_front_end(self.front_end)
        return self

    @classmethod
    def load(cls, path: Path | str) -> TrainSettings:
        """The settings in the TOML file `path`."""
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"recipe {path} does not exist")
        try:
            document = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"recipe {path} is not TOML: {error}") from error
        return cls.from_dict(document, source=str(path))

    @classmethod
    def from_dict(cls, document: Mapping[str, Any], *, source: str = "recipe") -> TrainSettings:
        """The settings of a parsed file; `source` stands in errors.

        >>> TrainSettings.from_dict({"name": "x", "modle": "quartznet5x5"})
        Traceback (most recent call last):
        ValueError: recipe: modle='quartznet5x5' is not a key; did you mean model?
        """
        try:
            return cls.model_validate(document)
        except pydantic.ValidationError as error:
            raise ValueError(f"{source}: {one_line(error, (cls,))}") from error


class TuneSettings(Learning):
    """A trained checkpoint on its way to few bits: what every run has, and

    * `learning_rate_unit`: "rms" multiplies the rate of each parameter by the root mean square of its
      values before training. Adam moves every weight by about the rate, whatever its size, and tensors
      of one network differ tenfold. "absolute" takes it as it is.
    * `batch_norm`: "frozen" keeps the statistics of every BatchNorm, gains and biases still learn;
      "batch" takes those of each batch, as in training from nothing.
    * `compensation_batches`: before the first step, weights move to the levels of the recipe's own grid on
      which their rounding errors compensate, by the inputs over so many batches (quantize.starting);
      0 starts from the float weights. `compensation`: "refined" then moves codes and scales of uniform grids on in
      turn, which takes longer.
    * `recalibration_batches`: after the freeze, the statistics are taken anew over so many batches of
      the training data, behind the weights as stored, in further passes where one has fewer; 0 leaves
      them.
    * `distillation`: share of the loss that is the distance from the float checkpoint; the rest is CTC.
      At 1 the texts have to be spelled, and nothing is learnt from them.
    * `distilled_layers`: a glob over module paths. Left out, the distance is the divergence of what is
      heard in each frame; else the relative squared error of what the outermost modules that match
      give, its mean over them. Each learns from its own alone; what lies behind the last from CTC,
      hence at 1 from nothing.
    * `others_rate`: factor of the learning rate of all that is no weight: biases, gains.
    * `precision`: of products and activations in training; weights stay float32.
    """

    learning_rate_unit: Literal["absolute", "rms"] = "absolute"
    batch_norm: Literal["frozen", "batch"] = "frozen"
    compensation_batches: Annotated[int, Field(ge=0)] = 0
    compensation: Literal["compensated", "refined"] = "compensated"
    recalibration_batches: Annotated[int, Field(ge=0)] = 0
    distillation: Share = 0.0
    distilled_layers: str = ""
    others_rate: Annotated[float, Field(ge=0)] = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    masks: Annotated[int, Field(ge=0)] = 0

    @pydantic.model_validator(mode="after")
    def _check_start(self) -> TuneSettings:
        if self.compensation == "refined" and not self.compensation_batches:
            raise ValueError("compensation='refined' has no effect at compensation_batches=0; 16 is usual")
        return self

    @pydantic.model_validator(mode="after")
    def _check_distillation(self) -> TuneSettings:
        if self.distilled_layers and not self.distillation:
            raise ValueError(
                f"distilled_layers={self.distilled_layers!r} has no effect at distillation=0; give a share, or "
                "leave it out"
            )
        return self

    @classmethod
    def of(cls, recipe: Recipe) -> TuneSettings:
        """The table `[training]` of a quantization recipe."""
        if not recipe.training:
            raise ValueError(
                f"recipe {recipe.name} has no [training]; add it, with steps, batch_s and learning_rate at least"
            )
        try:
            return cls.model_validate(recipe.training)
        except pydantic.ValidationError as error:
            raise ValueError(f"recipe {recipe.name}: training: {one_line(error, (cls,))}") from error
