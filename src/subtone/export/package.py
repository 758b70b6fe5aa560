"""A checkpoint as a packed model: its program and all that stands before and behind it."""

from __future__ import annotations

import importlib.metadata

from subtone.export.lower import lower
from subtone.models.checkpoints import Checkpoint
from subtone.pack import PackedModel


def package(checkpoint: Checkpoint, *, name: str) -> PackedModel:
    """What `write_packed` writes of `checkpoint`; `name` says where it came from."""
    network = checkpoint.network
    program, constants = lower(
        network,
        num_features=network.config.num_features,
        frames_per_step=network.frames_per_step,
        quantization=checkpoint.quantization,
    )
    quantization = checkpoint.quantization
    return PackedModel(
        program=program,
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
