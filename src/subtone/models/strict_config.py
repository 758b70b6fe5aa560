"""What the configs of networks share: whole numbers at the door, and JSON that knows every key."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


def require_whole(family: str, *, least: int = 1, **values: object) -> None:
    """ValueError unless each value is an int of at least `least`.

    >>> require_whole("lstm", num_features=0)
    Traceback (most recent call last):
    ValueError: lstm num_features=0 must be a whole number of at least 1
    """
    for name, value in values.items():
        if type(value) is not int or value < least:
            raise ValueError(f"{family} {name}={value!r} must be a whole number of at least {least}")


def from_keys(config: type, family: str, values: Mapping[str, Any]) -> Any:
    """`config(**values)` of a dataclass; ValueError names a key it does not know or lacks."""
    fields = {field.name: field for field in dataclasses.fields(config)}
    unknown = sorted(set(values) - set(fields))
    needed = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
    lacking = sorted(
        name for name in needed - set(values) if fields[name].default_factory is dataclasses.MISSING
    )
    if unknown or lacking:
        what = f"does not know {', '.join(unknown)}" if unknown else f"lacks {', '.join(lacking)}"
        raise ValueError(f"a config of family {family} {what}; its keys are {', '.join(fields)}")
    return config(**values)


def without_family(document: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a config's JSON: all but what names its family."""
    return {name: value for name, value in document.items() if name != "family"}
