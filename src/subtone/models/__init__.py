"""Float networks, in torch. MODELS names every preset, FAMILIES every kind of network there is.

Networks with a CTC head take features and give logits (`Network`). Transducers take labels too
(`transducer`, `cascaded`).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from typing_extensions import TypeIs

from subtone.models import cascaded, conformer, conformer_config, presets, quartznet, transducer

Network = quartznet.QuartzNet | conformer.ConformerCtc
"""What has a CTC head: `config`, `frames_per_step`, and a forward pass as QuartzNet's."""

CtcConfig = quartznet.QuartzNetConfig | conformer_config.ConformerCtcConfig
"""What `Network.config` is."""

TransducerNetwork = transducer.Transducer | cascaded.Cascaded
"""What needs labels to compute: `config`, `frames_per_step`, `blank_index`, `entries()`."""

Config = CtcConfig | transducer.TransducerConfig | cascaded.CascadedConfig

CTC_FAMILIES: dict[str, tuple[Any, Any]] = {
    "quartznet": (quartznet.QuartzNetConfig, quartznet.QuartzNet),
    "conformer-ctc": (conformer_config.ConformerCtcConfig, conformer.ConformerCtc),
}
"""Family, as a checkpoint names it -> its config and its network."""

FAMILIES: dict[str, tuple[Any, Any]] = {
    **CTC_FAMILIES,
    transducer.FAMILY: (transducer.TransducerConfig, transducer.Transducer),
    cascaded.FAMILY: (cascaded.CascadedConfig, cascaded.Cascaded),
}
"""The same, of every family."""

CTC_MODELS: dict[str, CtcConfig] = {
    **{name: quartznet.QuartzNetConfig(blocks=blocks) for name, blocks in quartznet.PRESETS.items()},
    **conformer_config.CONFORMER_CTCS,
}
"""Preset with a CTC head -> config."""

MODELS: dict[str, Config] = {**CTC_MODELS, **presets.TRANSDUCERS, **presets.CASCADES}
"""Preset -> config."""


def preset(name: str) -> Config:
    """The config called `name`; a misspelt one suggests the nearest."""
    if name not in MODELS:
        raise ValueError(f"model={name!r} is not a preset; {_nearest(name, MODELS)}")
    return MODELS[name]


def is_transducer(network: object) -> TypeIs[TransducerNetwork]:
    """Whether `network` needs labels to compute."""
    return isinstance(network, transducer.Transducer | cascaded.Cascaded)


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]}?" if near else f"use one of {', '.join(names)}"


def build(document: Mapping) -> Network | TransducerNetwork:
    """The network that a config's `to_json()` describes, with fresh weights."""
    family = str(document.get("family"))
    if family not in FAMILIES:
        raise ValueError(f"model family={family!r} is not known; use one of {', '.join(FAMILIES)}")
    config, network = FAMILIES[family]
    return network(config.from_json(document))
