"""Float networks, in torch. MODELS names every one that a checkpoint may hold."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from subtone.models import conformer, conformer_config, quartznet

Network = quartznet.QuartzNet | conformer.ConformerCtc
"""What a checkpoint may hold: `config`, `frames_per_step`, and a forward pass as QuartzNet's."""

Config = quartznet.QuartzNetConfig | conformer_config.ConformerCtcConfig
"""What `Network.config` is."""

FAMILIES: dict[str, tuple[Any, Any]] = {
    "quartznet": (quartznet.QuartzNetConfig, quartznet.QuartzNet),
    "conformer-ctc": (conformer_config.ConformerCtcConfig, conformer.ConformerCtc),
}
"""Family, as a checkpoint names it -> its config and its network."""

MODELS: dict[str, Config] = {
    **{name: quartznet.QuartzNetConfig(blocks=blocks) for name, blocks in quartznet.PRESETS.items()},
    **conformer_config.CONFORMER_CTCS,
}
"""Preset -> config."""


def preset(name: str) -> Config:
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
