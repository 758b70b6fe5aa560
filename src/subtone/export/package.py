"""A checkpoint as a packed model: its programs and all that stands before and behind them."""

from __future__ import annotations

import importlib.metadata

from subtone.export.graph import FEATURES, FRAMES, LABELS, Input
from subtone.export.lower import check_all_used, lower, lower_entry
from subtone.models import TransducerNetwork, is_transducer
from subtone.models.cascaded import Cascaded
from subtone.models.checkpoints import Checkpoint, Quantization
from subtone.pack import PackedModel
from subtone.program import Constant, Program

ENCODER = "encoder"
"""The entry point of a transducer that hears the features; the others are its parts."""


def package(checkpoint: Checkpoint, *, name: str) -> PackedModel:
    """What `write_packed` writes of `checkpoint`; `name` says where it came from."""
    network, quantization = checkpoint.network, checkpoint.quantization
    if is_transducer(network):
        programs, constants = _lower_parts(network, quantization)
    else:
        program, constants = lower(
            network,
            num_features=network.config.num_features,
            frames_per_step=network.frames_per_step,
            quantization=quantization,
        )
        programs = {ENCODER: program}
    return PackedModel(
        program=programs.pop(ENCODER),
        parts=programs,
        constants=constants,
        front_end=checkpoint.front_end.to_json(),
        tokenizer=checkpoint.tokenizer.to_json(),
        recipe=dict(quantization.recipe) if quantization else {},
        provenance={
            "subtone": importlib.metadata.version("subtone"),
            "checkpoint": name,
            "parameters": sum(value.numel() for value in network.parameters()),
        },
    )


def _lower_parts(
    network: TransducerNetwork, quantization: Quantization | None
) -> tuple[dict[str, Program], dict[str, Constant]]:
    """A program for each of `network.entries()`, and the constants of all."""
    programs: dict[str, Program] = {}
    constants: dict[str, Constant] = {}
    for name, module in network.entries().items():
        program, own = lower_entry(
            module,
            _inputs_of(name, network),
            output="output",
            frames_per_step=network.frames_per_step if name == ENCODER else 1,
            quantization=quantization,
            whole=network,
            prefix=f"{name}/",
        )
        programs[name] = program
        constants |= own
    check_all_used(quantization, set(constants))
    return programs, constants


def _inputs_of(name: str, network: TransducerNetwork) -> tuple[Input, ...]:
    """What the entry point `name` takes; a cascade's second set of parts has a 2 behind its names."""
    part, joint = name.rstrip("2"), network.config.joint_width
    if name == ENCODER:
        return (Input(name="features", layout=FEATURES, width=network.config.num_features),)
    if part == ENCODER:
        assert isinstance(network, Cascaded)
        return (Input(name="rows", layout=FRAMES, width=network.config.encoder2.num_features),)
    if part == "predictor":
        return (Input(name="labels", layout=LABELS, width=1),)
    return tuple(Input(name=each, layout=FRAMES, width=joint) for each in ("frames", "rows"))
