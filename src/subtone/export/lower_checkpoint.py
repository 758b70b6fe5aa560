"""All programs of a checkpoint: the network of a CTC model, or a transducer's parts by their names."""

from __future__ import annotations

from subtone.export.graph import FEATURES, FRAMES, LABELS, Input
from subtone.export.lower import check_all_used, lower, lower_entry
from subtone.models import TransducerNetwork, is_transducer
from subtone.models.cascaded import Cascaded
from subtone.models.checkpoints import Checkpoint, Quantization
from subtone.program import Constant, Program

ENCODER = "encoder"
"""The entry point that hears the features; a transducer's others are its parts."""


def lower_checkpoint(checkpoint: Checkpoint) -> tuple[dict[str, Program], dict[str, Constant]]:
    """A program for each entry point, that of the features first, and the constants of all."""
    network, quantization = checkpoint.network, checkpoint.quantization
    if is_transducer(network):
        return _lower_parts(network, quantization)
    program, constants = lower(
        network,
        num_features=network.config.num_features,
        frames_per_step=network.frames_per_step,
        quantization=quantization,
    )
    return {ENCODER: program}, constants


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
