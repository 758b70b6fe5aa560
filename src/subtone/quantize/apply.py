"""A recipe applied to a whole checkpoint."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence

import torch

from subtone.models.checkpoints import Checkpoint
from subtone.quantize import method_of
from subtone.quantize.method import Batch, TrainingMethod, decoded_twin
from subtone.quantize.rules import Recipe
from subtone.speech.audio import read_audio
from subtone.speech.data import Utterance
from subtone.speech.front_end import MelFrontEnd


def quantize_checkpoint(
    checkpoint: Checkpoint,
    recipe: Recipe,
    *,
    utterances: Sequence[Utterance] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Checkpoint:
    """`checkpoint` with its weights as `recipe` wants them, at once; what it hears shows the damage.

    A method that takes part in training does so without any, and a UserWarning says it. `[training]` of
    a recipe is no part of what is stored, since it has not taken place.

    Args:
        utterances: recordings that a recipe with bias correction or compensated rounding listens to.
        progress: called with (done, total) after each of them.
    """
    checkpoint.require_float()
    if any(rule.settings.activation_clip for rule in recipe.rules):
        raise ValueError(
            f"recipe {recipe.name}: activation_clip='pact' is learned in training; give --train, or remove it"
        )
    method = method_of(recipe.model_copy(update={"training": {}}))
    if isinstance(method, TrainingMethod):
        warnings.warn(
            f"recipe {recipe.name}: method {recipe.method!r} was not trained: weights are rounded at once; "
            "give --train, or train with subtone.train.Quantize",
            stacklevel=2,
        )
    calibration = _features(utterances, checkpoint.front_end, progress) if utterances else None
    quantization = method.freeze(checkpoint.network, calibration=calibration)
    return dataclasses.replace(
        checkpoint, network=decoded_twin(checkpoint.network, quantization), quantization=quantization
    )


def check_sound(recipe: Recipe, *, has_calibration: bool, is_trained: bool) -> None:
    """ValueError if sound is given that `recipe` has no use for, or not given where it must hear some."""
    hears = next((rule.settings.hears for rule in recipe.rules if rule.settings.hears), None)
    if has_calibration and is_trained:
        raise ValueError("--calibration and --train exclude each other; leave one out")
    if has_calibration and not hears:
        raise ValueError(
            f"recipe {recipe.name} hears nothing; leave out --calibration, or set bias_correction = true or "
            "rounding = 'compensated'"
        )
    if is_trained and hears:
        raise ValueError(
            f"recipe {recipe.name}: {hears} is for weights that are not trained; remove it, or give "
            "--calibration in place of --train"
        )
    if hears and not has_calibration:
        raise ValueError(
            f"recipe {recipe.name}: {hears} needs recordings; give some with --calibration, or remove it"
        )


def _features(
    utterances: Sequence[Utterance], front_end: MelFrontEnd, progress: Callable[[int, int], None] | None
) -> Iterator[Batch]:
    for index, utterance in enumerate(utterances):
        features = torch.from_numpy(front_end(read_audio(utterance.audio_path, front_end.rate_hz)))
        yield features.T[None], torch.tensor([len(features)])
        if progress:
            progress(index + 1, len(utterances))
