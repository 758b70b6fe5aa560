"""The sections of a NeMo config, read by closed lists of keys.

A key that we do not know could change what the model computes, so it is an error, never skipped.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONFIG_MEMBER, WEIGHTS_MEMBER = "model_config.yaml", "model_weights.ckpt"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Keys:
    """The keys that one section of a config may have.

    * `read`: key -> (kind, value where it is absent; ... where it must be there).
    * `fixed`: key -> the one value that we compute, NeMo's own where the key is absent.
    * `ignored`: without effect on what a trained model hears.
    """

    read: Mapping[str, tuple[str, Any]]
    fixed: Mapping[str, Any]
    ignored: frozenset[str]


def section_of(config: Mapping[str, Any], key: str, path: Path) -> Any:
    if key not in config:
        raise ValueError(absence(key, path))
    return config[key]


def take(section: Any, keys: Keys, place: str, path: Path) -> dict[str, Any]:
    """What `keys.read` names in `section`, each of its kind; ValueError names the first key not to be had."""
    if not isinstance(section, Mapping):
        raise ValueError(f"{path}: {place}={section!r:.80} is not a section of named values")
    for key, value in section.items():
        if key in keys.fixed and value != keys.fixed[key]:
            raise ValueError(
                f"{path}: {place}.{key}={value!r:.80} is not supported; only {keys.fixed[key]!r} is"
            )
        if key not in keys.fixed and key not in keys.read and key not in keys.ignored:
            raise ValueError(f"{path}: {place}.{key}={value!r:.80} is not known, so it cannot be computed")
    taken = {}
    for key, (kind, default) in keys.read.items():
        if key not in section and default is ...:
            raise ValueError(absence(f"{place}.{key}", path))
        value = section.get(key, default)
        if "in a list" in kind and isinstance(value, list) and len(value) == 1:
            value = value[0]
        if not _is_kind(value, kind):
            raise ValueError(f"{path}: {place}.{key}={value!r:.80} is not a {kind}")
        taken[key] = value
    return taken


def _is_kind(value: Any, kind: str) -> bool:
    if kind.startswith("whole number"):
        return type(value) is int
    if kind.startswith("number"):
        return (value is None and "null" in kind) or (
            type(value) in (int, float) and math.isfinite(value) and abs(value) < 1e9
        )
    if value is None and "null" in kind:
        return True
    return type(value) is {"true or false": bool, "text": str, "list": list}[kind.removesuffix(" or null")]


def absence(key: str, path: Path) -> str:
    return f"{path}: {CONFIG_MEMBER} has no {key}; only convolution models and Conformers with a CTC head are read"
