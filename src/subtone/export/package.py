"""A checkpoint, or anybody's module, as a packed model: its programs and all that stands before and behind them."""

from __future__ import annotations

import importlib.metadata

from torch import nn

from subtone.export.graph import SAMPLES, Input
from subtone.export.lower import INPUT, OUTPUT, check_all_used, lower_entry
from subtone.export.lower_checkpoint import ENCODER, lower_checkpoint
from subtone.export.static import lower_to_integers
from subtone.models.checkpoints import Checkpoint, Quantization
from subtone.pack import PackedModel
from subtone.speech.front_end import MelFrontEnd
from subtone.speech.text import Tokenizer


def package(checkpoint: Checkpoint, *, name: str) -> PackedModel:
    """What `write_packed` writes of `checkpoint`; `name` says where it came from."""
    quantization = checkpoint.quantization
    _require_calibrated(quantization)
    is_integer = quantization is not None and bool(quantization.ranges)
    programs, constants = lower_to_integers(checkpoint) if is_integer else lower_checkpoint(checkpoint)
    return PackedModel(
        program=programs.pop(ENCODER),
        parts=programs,
        constants=constants,
        front_end=checkpoint.front_end.to_json(),
        tokenizer=checkpoint.tokenizer.to_json(),
        recipe=dict(quantization.recipe) if quantization else {},
        provenance=_provenance(checkpoint.network, name),
    )


def package_module(
    module: nn.Module,
    *,
    layout: str,
    frames_per_step: int,
    tokenizer: Tokenizer,
    front_end: MelFrontEnd | None = None,
    num_features: int | None = None,
    quantization: Quantization | None = None,
    name: str,
) -> PackedModel:
    """What `write_packed` writes of a torch `module` that computes logits of a CTC model, whoever wrote it.

    Args:
        module: in eval mode. Its first argument is the utterance, the others have defaults; its result is
            (B, T', V) or begins with that, as the output of a Hugging Face model for CTC does.
        layout: of that argument: "features" (B, F, T), "frames" (B, T, F), or "samples" (B, S) of raw sound.
        frames_per_step: input rows from one row of logits to the next; 320 samples in wav2vec 2.0.
        front_end: makes the features, `num_features` of them. None where the module hears raw sound, or
            features of another kind: the file then runs in an engine, not in a `Session`.
        quantization: what `quantize_module` found; without it every weight is a float.
        name: says where the module came from.

    Raises:
        UnsupportedOperatorError: the module computes what no program can; the message names the operator and
            the module inside that it came from.
        ValueError: a layout that is none of these; a front end that gives another number of features.
    """
    _require_calibrated(quantization)
    width = 1 if layout == SAMPLES else num_features or (front_end.num_features if front_end else 0)
    if front_end is not None and front_end.num_features != width:
        raise ValueError(
            f"num_features={width}, but the front end gives {front_end.num_features}; use those of the front end"
        )
    if not width:
        raise ValueError("num_features=None without a front end; give num_features, or the front end")
    inputs = (Input(name=INPUT, layout=layout, width=width),)
    program, constants = lower_entry(
        module, inputs, output=OUTPUT, frames_per_step=frames_per_step, quantization=quantization
    )
    check_all_used(quantization, set(program.constants_read))
    return PackedModel(
        program=program,
        constants=constants,
        front_end=front_end.to_json() if front_end else {},
        tokenizer=tokenizer.to_json(),
        recipe=dict(quantization.recipe) if quantization else {},
        provenance=_provenance(module, name),
    )


def _require_calibrated(quantization: Quantization | None) -> None:
    """ValueError where a recipe asks for integers alone and nothing has calibrated for them: the file would hold floats."""
    if quantization is not None and "integer" in quantization.recipe and not quantization.ranges:
        raise ValueError(
            f"recipe {quantization.recipe.get('name', '?')} has [integer], and the model was not calibrated; use subtone "
            "quantize, or subtone.export.static.calibrated, or remove [integer] from the recipe"
        )


def _provenance(network: nn.Module, name: str) -> dict:
    return {
        "subtone": importlib.metadata.version("subtone"),
        "checkpoint": name,
        "parameters": sum(value.numel() for value in network.parameters()),
    }
