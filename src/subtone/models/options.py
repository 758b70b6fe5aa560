"""A preset with parts of it replaced, as a recipe's `[model_options]` says: a narrower network is data, too.

Options are a table like a config's own JSON, as deep as they need to be:

    [model_options]
    joint_width = 128
    encoder = {widths = [192, 192, 192], dropout = 0.1}
    predictor = {family = "reduced", embedding_width = 128}

A table within it is merged into the preset's; one that names a `family` replaces it whole. What the front
end and the tokenizer decide, `num_features` and `num_outputs`, is no option.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, cast

from subtone.models import FAMILIES, Config

ENDS = ("num_features", "num_outputs")


def with_options(config: Config, options: Mapping[str, Any]) -> Config:
    """`config` with what `options` name replaced; a key or value that cannot be is a ValueError.

    >>> from subtone.models import preset
    >>> with_options(preset("s8bqat-m1"), {"joint_width": 96, "encoder": {"dropout": 0.1}}).joint_width
    96
    >>> with_options(preset("s8bqat-m1"), {"joint_widht": 96})
    Traceback (most recent call last):
    ValueError: model_options.joint_widht=96 is not a key; did you mean joint_width?
    """
    if not options:
        return config
    document = config.to_json()
    kind, _ = FAMILIES[document["family"]]
    merged = _merged(document, options, "model_options")
    try:
        return cast(Config, kind.from_json(merged))
    except ValueError as error:
        raise ValueError(f"model_options: {error}") from error


def _merged(document: Mapping[str, Any], options: Mapping[str, Any], path: str) -> dict[str, Any]:
    merged = dict(document)
    for name, value in options.items():
        where = f"{path}.{name}"
        if name in ENDS:
            raise ValueError(f"{where}={value!r} follows from the front end and the tokenizer; leave it out")
        if name == "family" or name not in document:
            near = difflib.get_close_matches(name, document, n=1)
            advice = f"did you mean {near[0]}?" if near else f"use one of {', '.join(document)}"
            raise ValueError(f"{where}={value!r:.60} is not a key; {advice}")
        before = document[name]
        is_merged = isinstance(before, Mapping) and isinstance(value, Mapping) and "family" not in value
        if isinstance(before, Mapping) != isinstance(value, Mapping):
            raise ValueError(
                f"{where}={value!r:.60} must be {'a table' if isinstance(before, Mapping) else 'a value'}"
            )
        if isinstance(before, list) and not isinstance(value, list):
            raise ValueError(f"{where}={value!r:.60} must be a list")
        merged[name] = _merged(before, value, where) if is_merged else value
    return merged
