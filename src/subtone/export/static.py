"""A quantized checkpoint calibrated for integers alone, and its programs made of them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from subtone.export.integer import integer_program
from subtone.export.integer_parts import Ranges, integer_parts, observe_parts
from subtone.export.lower_checkpoint import ENCODER, lower_checkpoint
from subtone.export.making import Grids
from subtone.export.ranges import Observer, Range, observe, observer_of
from subtone.models import is_transducer
from subtone.models.cascaded import Cascaded
from subtone.models.checkpoints import Checkpoint
from subtone.models.hearing import paths_of
from subtone.program import Constant, Constants, Program
from subtone.quantize.static import IntegerSettings


def calibrated(
    checkpoint: Checkpoint,
    settings: IntegerSettings,
    examples: Iterable[NDArray[np.float32]],
    *,
    progress: Callable[[int], None] | None = None,
) -> Checkpoint:
    """`checkpoint`, quantized, with the ranges of every value of its programs over features `examples` (T, F).

    A transducer's predictor and joiner are calibrated on what the network itself hears in them, by greedy search.

    ValueError: a cascade; a glob of products that matches none; what `observe` refuses; a program without an integer
    form (`integer_program`).
    """
    _refuse_cascade(checkpoint)
    settings.require_products(checkpoint.network)
    programs, constants = lower_checkpoint(checkpoint)
    new_observer = observer_of(
        settings.range,
        percentile=settings.percentile,
        bits=settings.activation_bits,
        unsigned=settings.unsigned,
    )
    ranges = _observed(checkpoint, programs, constants, examples, new_observer, progress)
    _integers(programs, constants, ranges, settings)  # what cannot be packed is told now
    assert checkpoint.quantization is not None
    recipe = {**checkpoint.quantization.recipe, "integer": settings.resolved()}
    quantization = dataclasses.replace(
        checkpoint.quantization,
        ranges={
            f"{part}/{name}": (each.low, each.high)
            for part, of_part in ranges.items()
            for name, each in of_part.items()
        },
        program_digest=_digest(programs),
        recipe=recipe,
    )
    return dataclasses.replace(checkpoint, quantization=quantization)


def lower_to_integers(checkpoint: Checkpoint) -> tuple[dict[str, Program], dict[str, Constant]]:
    """The integer-only programs of a checkpoint that `calibrated` gave, and the constants of all."""
    quantization = checkpoint.quantization
    assert quantization is not None
    assert quantization.ranges
    programs, constants = lower_checkpoint(checkpoint)
    if _digest(programs) != quantization.program_digest:
        raise ValueError(
            "the checkpoint was calibrated for another program than this version exports; quantize it again"
        )
    ranges: Ranges = {part: {} for part in programs}
    for name, ends in quantization.ranges.items():
        part, _, value = name.partition("/")
        ranges[part][value] = Range(*ends)
    settings = IntegerSettings.model_validate(quantization.recipe["integer"])
    return _integers(programs, constants, ranges, settings)


def _observed(
    checkpoint: Checkpoint,
    programs: Mapping[str, Program],
    constants: Constants,
    examples: Iterable[NDArray[np.float32]],
    new_observer: Callable[[], Observer],
    progress: Callable[[int], None] | None,
) -> Ranges:
    network = checkpoint.network
    if not is_transducer(network):
        program = programs[ENCODER]
        return {ENCODER: observe(program, constants, examples, new_observer=new_observer, progress=progress)}
    heard = []
    for index, features in enumerate(examples):
        (path,) = paths_of(network, torch.from_numpy(features).T[None])
        heard.append((features, path.labels))
        if progress:
            progress(index + 1)
    return observe_parts(programs, constants, heard, new_observer=new_observer)


def _integers(
    programs: Mapping[str, Program], constants: Constants, ranges: Ranges, settings: IntegerSettings
) -> tuple[dict[str, Program], dict[str, Constant]]:
    grids = Grids(
        activation_bits=settings.activation_bits,
        unsigned=settings.unsigned,
        wide_limit=2 ** (settings.sum_bits - 1) - 1,
        wide_products=settings.wide_products,
    )
    if set(programs) != {ENCODER}:
        return integer_parts(programs, constants, ranges, grids=grids)
    made, integers = integer_program(programs[ENCODER], constants, ranges[ENCODER], grids=grids)
    return {ENCODER: made}, integers


def _refuse_cascade(checkpoint: Checkpoint) -> None:
    if isinstance(checkpoint.network, Cascaded):
        raise ValueError(
            "a cascade of two passes has no integer-only form yet; remove [integer] from the recipe, or take one pass"
        )


def _digest(programs: Mapping[str, Program]) -> str:
    documents = {name: program.to_json() for name, program in programs.items()}
    return hashlib.sha256(json.dumps(documents, sort_keys=True).encode()).hexdigest()[:16]
