"""A quantized checkpoint calibrated for integers alone, and its program made of them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from subtone.export.integer import Grids, integer_program
from subtone.export.lower import lower
from subtone.export.ranges import Range, observe, observer_of
from subtone.models import is_transducer
from subtone.models.checkpoints import Checkpoint
from subtone.program import Constant, Program
from subtone.quantize.static import IntegerSettings


def calibrated(
    checkpoint: Checkpoint,
    settings: IntegerSettings,
    examples: Iterable[NDArray[np.float32]],
    *,
    progress: Callable[[int], None] | None = None,
) -> Checkpoint:
    """`checkpoint`, quantized, with the ranges of every value of its program over features `examples` (T, F).

    ValueError: a transducer; what `observe` refuses; a program without an integer form (`integer_program`).
    """
    program, constants = _float_program(checkpoint)
    ranges = observe(
        program,
        constants,
        examples,
        new_observer=observer_of(
            settings.range,
            percentile=settings.percentile,
            bits=settings.activation_bits,
            unsigned=settings.unsigned,
        ),
        progress=progress,
    )
    integer_program(program, constants, ranges, grids=_grids(settings))  # what cannot be packed is told now
    assert checkpoint.quantization is not None
    recipe = {**checkpoint.quantization.recipe, "integer": settings.resolved()}
    quantization = dataclasses.replace(
        checkpoint.quantization,
        ranges={name: (each.low, each.high) for name, each in ranges.items()},
        program_digest=_digest(program),
        recipe=recipe,
    )
    return dataclasses.replace(checkpoint, quantization=quantization)


def lower_to_integers(checkpoint: Checkpoint) -> tuple[Program, dict[str, Constant]]:
    """The integer-only program of a checkpoint that `calibrated` gave, and its constants."""
    quantization = checkpoint.quantization
    assert quantization is not None
    assert quantization.ranges
    program, constants = _float_program(checkpoint)
    if _digest(program) != quantization.program_digest:
        raise ValueError(
            "the checkpoint was calibrated for another program than this version exports; quantize it again"
        )
    settings = IntegerSettings.model_validate(quantization.recipe["integer"])
    ranges = {name: Range(*ends) for name, ends in quantization.ranges.items()}
    return integer_program(program, constants, ranges, grids=_grids(settings))


def _grids(settings: IntegerSettings) -> Grids:
    return Grids(
        activation_bits=settings.activation_bits,
        unsigned=settings.unsigned,
        wide_limit=2 ** (settings.sum_bits - 1) - 1,
    )


def _float_program(checkpoint: Checkpoint) -> tuple[Program, dict[str, Constant]]:
    network = checkpoint.network
    if is_transducer(network):
        raise ValueError(
            "a transducer has no integer-only form yet, only networks with a CTC head; remove [integer] from the recipe"
        )
    return lower(
        network,
        num_features=network.config.num_features,
        frames_per_step=network.frames_per_step,
        quantization=checkpoint.quantization,
    )


def _digest(program: Program) -> str:
    return hashlib.sha256(json.dumps(program.to_json(), sort_keys=True).encode()).hexdigest()[:16]
