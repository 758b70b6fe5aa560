"""A recipe applied to a whole network: a checkpoint of ours, or anybody's module."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize

from subtone.models.checkpoints import Checkpoint, Quantization
from subtone.quantize import method_of
from subtone.quantize.method import Batch, Method, TrainingMethod, decoded_twin
from subtone.quantize.rules import Recipe
from subtone.quantize.static import IntegerSettings
from subtone.speech.audio import read_audio
from subtone.speech.data import Utterance
from subtone.speech.front_end import MelFrontEnd


def quantize_checkpoint(
    checkpoint: Checkpoint,
    recipe: Recipe,
    *,
    utterances: Sequence[Utterance] = (),
    features: Sequence[NDArray[np.float32]] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Checkpoint:
    """`checkpoint` with its weights as `recipe` wants them, at once; what it hears shows the damage.

    A method that takes part in training does so without any, and a UserWarning says it. `[training]` of
    a recipe is no part of what is stored, since it has not taken place.

    Args:
        utterances: recordings that a recipe with bias correction or compensated rounding listens to;
        features: or features (T, F) in their place.
        progress: called with (done, total) after each of them.
    """
    checkpoint.require_float()
    method = _method_at_once(recipe)
    calibration: Iterable[Batch] | None = [
        (torch.from_numpy(one).T[None], torch.tensor([len(one)])) for one in features
    ]
    if utterances:
        calibration = _features(utterances, checkpoint.front_end, progress)
    calibration = calibration or None
    quantization = method.freeze(checkpoint.network, calibration=calibration)
    return dataclasses.replace(
        checkpoint, network=decoded_twin(checkpoint.network, quantization), quantization=quantization
    )


def quantize_module(module: nn.Module, recipe: Recipe, *, examples: Iterable[Tensor] = ()) -> Quantization:
    """The weights of any torch `module` as `recipe` wants them, at once; the module is left as it is.

    Weights are those of Linear, Conv1d, Conv2d, Embedding, LSTM and MultiheadAttention modules, under their
    parameters' paths; one behind torch's weight norm is quantized as the product that it is. Everything
    else stays float.

    Args:
        examples: inputs as `module` takes them, one utterance each (1, ...), time along any axis: a
            recipe with bias correction or compensated rounding listens to them.

    >>> from subtone.quantize.rules import Recipe, Rule
    >>> recipe = Recipe(name="w4", method="linear", rules=[Rule(bits=4, grid="symmetric", granularity="channel")])
    >>> stored = quantize_module(nn.Sequential(nn.Linear(8, 4), nn.ReLU()), recipe).weights["0.weight"]
    >>> stored.bits, stored.shape
    (4, (4, 8))
    """
    method = _method_at_once(recipe)
    plain = without_own_parametrizations(module)
    batches = [(example[None], torch.tensor([example.shape[1]])) for example in examples]
    return method.freeze(_Hearing(plain), calibration=batches or None)


def without_own_parametrizations(module: nn.Module) -> nn.Module:
    """A copy of `module` in eval mode in which what torch's weight norm computes is a plain parameter."""
    plain = copy.deepcopy(module).eval()
    for part in list(plain.modules()):
        own = [
            name
            for name, parts in getattr(part, "parametrizations", {}).items()
            if all(type(one).__module__ == "torch.nn.utils.parametrizations" for one in parts)
        ]
        if own:
            # The copy shares its class with the original, from which torch would take the parameter away.
            shared = type(part)
            part.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
        for name in own:
            parametrize.remove_parametrizations(part, name)
    return plain


class _Hearing(nn.Module):
    """A module under its own paths that takes a batch as methods give it: (1, ...) beside a length."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._modules, self._parameters = module._modules, module._parameters
        self._call = module.forward

    def forward(self, example: Tensor, lengths: Tensor) -> None:
        self._call(example[0])


def _method_at_once(recipe: Recipe) -> Method:
    """The method of `recipe` without training; a UserWarning where it would take part in some."""
    if any(rule.settings.activation_clip for rule in recipe.rules):
        raise ValueError(
            f"recipe {recipe.name}: activation_clip='pact' is learned in training; give --train, or remove it"
        )
    method = method_of(recipe.model_copy(update={"training": {}}))
    if isinstance(method, TrainingMethod):
        warnings.warn(
            f"recipe {recipe.name}: method {recipe.method!r} was not trained: weights are rounded at once; "
            "give --train, or train with subtone.train.Quantize",
            stacklevel=3,
        )
    return method


def check_sound(recipe: Recipe, *, has_calibration: bool, is_trained: bool) -> None:
    """ValueError if sound is given that `recipe` has no use for, or not given where it must hear some."""
    hears = next((rule.settings.hears for rule in recipe.rules if rule.settings.hears), None)
    integer = IntegerSettings.of(recipe)
    if integer is not None and integer.features == "recordings":
        if not has_calibration:
            raise ValueError(
                f"recipe {recipe.name}: integer.features='recordings' needs recordings; give some with --calibration, "
                "or use 'synthetic'"
            )
        if not hears:
            return
    if has_calibration and is_trained:
        raise ValueError("--calibration and --train exclude each other; leave one out")
    if has_calibration and not hears:
        heard = "" if integer is None else "integer.features = 'recordings', "
        raise ValueError(
            f"recipe {recipe.name} hears nothing; leave out --calibration, or set {heard}bias_correction = true or "
            "rounding = 'compensated'"
        )
    if is_trained and hears:
        raise ValueError(
            f"recipe {recipe.name}: {hears} is for weights that are not trained; remove it, or give "
            "--calibration in place of --train"
        )
    is_made = (
        integer is not None and integer.features != "recordings"
    )  # it hears what is made for calibration
    if hears and not has_calibration and not is_made:
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
