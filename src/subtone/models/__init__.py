"""Float networks, in torch. MODELS names every one that a checkpoint may hold."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from subtone.models import quartznet

Network = quartznet.QuartzNet
"""What a checkpoint may hold: `config`, `frames_per_step`, and a forward pass as QuartzNet's."""

FAMILIES = {"quartznet": (quartznet.QuartzNetConfig, quartznet.QuartzNet)}
"""Family, as a checkpoint names it -> its config and its network."""

MODELS = {name: quartznet.QuartzNetConfig(blocks=blocks) for name, blocks in quartznet.PRESETS.items()}
"""Preset -> config."""


def preset(name: str) -> quartznet.QuartzNetConfig:
    """The config called `name`; a misspelt one suggests the nearest."""
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(MODELS)}"
        raise ValueError(f"model={name!r} is not a preset; {hint}")
    return MODELS[name]


def build(document: Mapping) -> Network:
    """The network that a config's `to_json()` describes, with fresh weights."""
    family = document.get("family")
    if family not in FAMILIES:
        raise ValueError(f"model family={family!r} is not known; use one of {', '.join(FAMILIES)}")
    config, network = FAMILIES[family]
    return network(config.from_json(document))
