"""Pydantic's report of several lines as the one line that a user needs."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import pydantic

MARKS = {"subtone train": ("model", "steps"), "subtone quantize": ("method", "rules")}
"""Command -> keys that every recipe for it has, and a recipe for the other never."""
HIDDEN = "settings"
"""The part of a rule's location that does not stand in the file: (rules, 0, settings, bits)."""


def one_line(error: pydantic.ValidationError, models: Sequence[type[pydantic.BaseModel]]) -> str:
    """The mistake that explains the others: `where.key=value`, what is needed, what to do.

    A misspelt key comes first, because it usually makes another one missing; before it, that the
    whole file is meant for another command. `models` are those whose fields may stand where the
    mistake is.
    """
    mistakes = error.errors(include_url=False)
    unknown = {entry["loc"] for entry in mistakes if entry["type"] == "extra_forbidden"}
    for command, keys in MARKS.items():
        if all((key,) in unknown for key in keys):
            return f"{' and '.join(keys)} make this a recipe for `{command}`; give it to that command"
    mistake = next((entry for entry in mistakes if entry["type"] == "extra_forbidden"), mistakes[0])
    location = list(mistake["loc"])
    if location[2:3] == [HIDDEN]:
        del location[2]
    where, value, kind = _dotted(location), mistake.get("input"), mistake["type"]
    if kind == "extra_forbidden":
        return (
            f"{where}={_shown(value)} is not a key; {_nearest_key(str(location[-1]), len(location), models)}"
        )
    if kind == "missing":
        return f"{where} is missing; add it"
    if kind == "literal_error":
        expected = mistake["ctx"]["expected"]
        near = difflib.get_close_matches(
            str(value), expected.replace("'", "").replace(" or ", ", ").split(", "), n=1
        )
        hint = f"did you mean {near[0]!r}?" if near else f"use {expected}"
        return f"{where}={_shown(value)} is not known; {hint}"
    if kind == "value_error":
        message = str(mistake["ctx"]["error"])
        return f"{where}: {message}" if where else message
    if kind == "tuple_type":
        return f"{where}={_shown(value)} does not fit: a list is needed, [{_shown(value)}]"
    return f"{where}={_shown(value)} does not fit: {mistake['msg'][:1].lower()}{mistake['msg'][1:]}"


def _nearest_key(key: str, depth: int, models: Sequence[type[pydantic.BaseModel]]) -> str:
    allowed_models = models[:1] if depth == 1 else models[1:]
    allowed = [name for model in allowed_models for name in model.model_fields if name != HIDDEN]
    if not allowed:
        return "there are none here; leave it out"
    near = difflib.get_close_matches(key, allowed, n=1)
    return f"did you mean {near[0]}?" if near else f"use one of {', '.join(allowed)}"


def _dotted(location: Sequence[int | str]) -> str:
    """("rules", 0, "bits") as `rules[0].bits`."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _shown(value: object) -> str:
    return repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."
