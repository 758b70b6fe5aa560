"""A recipe applied to a whole checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import torch

from subtone.models.checkpoints import Checkpoint
from subtone.quantize import method_of
from subtone.quantize.method import Batch, decoded_twin
from subtone.quantize.rules import Recipe
from subtone.speech.audio import read_audio
from subtone.speech.data import Utterance
from subtone.speech.features import FrontEnd


def quantize_checkpoint(
    checkpoint: Checkpoint,
    recipe: Recipe,
    *,
    utterances: Sequence[Utterance] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Checkpoint:
    """`checkpoint` with its weights as `recipe` wants them; what it hears shows the damage.

    Args:
        utterances: recordings that a recipe with bias correction listens to.
        progress: called with (done, total) after each of them.
    """
    if checkpoint.quantization is not None:
        name = checkpoint.quantization.recipe.get("name", "?")
        raise ValueError(f"the checkpoint is already quantized (by {name}); start from the float one")
    calibration = _features(utterances, checkpoint.front_end, progress) if utterances else None
    quantization = method_of(recipe).freeze(checkpoint.network, calibration=calibration)
    return dataclasses.replace(
        checkpoint, network=decoded_twin(checkpoint.network, quantization), quantization=quantization
    )


def check_sound(recipe: Recipe, *, has_calibration: bool, is_trained: bool) -> None:
    """ValueError if sound is given that `recipe` has no use for."""
    corrects = any(rule.settings.bias_correction for rule in recipe.rules)
    if has_calibration and is_trained:
        raise ValueError("--calibration and --train exclude each other; leave one out")
    if has_calibration and not corrects:
        raise ValueError(
            f"recipe {recipe.name} hears nothing; leave out --calibration, or set bias_correction = true"
        )
    if is_trained and corrects:
        raise ValueError(
            f"recipe {recipe.name}: bias_correction=true is for weights that are not trained; remove it, or "
            "give --calibration in place of --train"
        )


def _features(
    utterances: Sequence[Utterance], front_end: FrontEnd, progress: Callable[[int, int], None] | None
) -> Iterator[Batch]:
    for index, utterance in enumerate(utterances):
        features = torch.from_numpy(front_end(read_audio(utterance.audio_path, front_end.rate_hz)))
        yield features.T[None], torch.tensor([len(features)])
        if progress:
            progress(index + 1, len(utterances))
