"""subtone: speech recognition below eight bits.

>>> import subtone
>>> text = subtone.Session.load("model.subtone").hear_file("a.wav")  # doctest: +SKIP

What needs torch is imported when it is first named, so that what runs on a device never loads it:
`Recipe`, `accelerate`, and the packages `quantize`, `train`, `export`, `models`, `report` and `torch`.

>>> callback = subtone.train.Quantize(subtone.Recipe.load("recipe.toml"))  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from subtone.pack import PackedFileError
from subtone.qtensor import QTensor
from subtone.runtime.session import Session

if TYPE_CHECKING:
    from subtone import export, models, quantize, report, torch, train
    from subtone.quantize import Recipe
    from subtone.torch import accelerate

ON_DEMAND = ("export", "models", "quantize", "report", "torch", "train")
"""Packages that are attributes of this one before anybody has imported them."""


def __getattr__(name: str) -> Any:
    if name == "Recipe":
        return importlib.import_module("subtone.quantize").Recipe
    if name == "accelerate":
        return importlib.import_module("subtone.torch").accelerate
    if name in ON_DEMAND:
        return importlib.import_module(f"subtone.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "PackedFileError",
    "QTensor",
    "Recipe",
    "Session",
    "accelerate",
    "export",
    "models",
    "quantize",
    "report",
    "torch",
    "train",
]
