"""How weights reach few bits, in torch: recipes, grids, ranges, fake quantization, methods.

METHODS names every method; adding one is one file and one line here.
"""

from __future__ import annotations

import difflib
import tomllib
from typing import Any

from subtone.models.checkpoints import Quantization
from subtone.quantize.acosr import ACosR
from subtone.quantize.calibration import gather_input_means
from subtone.quantize.fake import fake_quantize_activations, fake_quantize_weight
from subtone.quantize.gq import GQ
from subtone.quantize.linear import Linear, quantize_weight
from subtone.quantize.method import Batch, Method, TrainingMethod, decoded_twin
from subtone.quantize.native import Native
from subtone.quantize.rules import Recipe, Rule, Settings, assign
from subtone.quantize.s8bqat import S8BQAT
from subtone.quantize.shipped import shipped_recipes
from subtone.quantize.subchannel import SubChannel
from subtone.quantize.weights import quantizable_weights, weight_kind
from subtone.quantize.zero_shot import Synthesis, SynthesisSettings, random_features, synthesize

METHODS: dict[str, type[Method]] = {
    "acosr": ACosR,
    "gq": GQ,
    "linear": Linear,
    "native": Native,
    "s8bqat": S8BQAT,
    "subchannel": SubChannel,
}
"""Method, as a recipe names it -> its class."""


def method_of(recipe: Recipe) -> Method:
    """The method that `recipe` asks for; a misspelt one suggests the nearest."""
    if recipe.method not in METHODS:
        near = difflib.get_close_matches(recipe.method, METHODS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(METHODS)}"
        raise ValueError(f"recipe {recipe.name}: method={recipe.method!r} is not known; {hint}")
    return METHODS[recipe.method](recipe)


def describe_methods() -> list[dict[str, Any]]:
    """A row a method: `method`, `what` (its docstring's summary), `trains`, and `recipes`, those shipped."""
    recipes: dict[str, list[str]] = {name: [] for name in METHODS}
    for name, path in shipped_recipes().items():
        method = tomllib.loads(path.read_text(encoding="utf-8")).get("method")
        if method in recipes:
            recipes[method].append(name)
    return [
        {
            "method": name,
            "what": " ".join((method.__doc__ or "").split("\n\n")[0].split()).partition(": ")[2],
            "trains": issubclass(method, TrainingMethod),
            "recipes": recipes[name],
        }
        for name, method in METHODS.items()
    ]


__all__ = [
    "METHODS",
    "Batch",
    "Method",
    "Quantization",
    "Recipe",
    "Rule",
    "Settings",
    "Synthesis",
    "SynthesisSettings",
    "TrainingMethod",
    "assign",
    "decoded_twin",
    "describe_methods",
    "fake_quantize_activations",
    "fake_quantize_weight",
    "gather_input_means",
    "method_of",
    "quantizable_weights",
    "quantize_weight",
    "random_features",
    "synthesize",
    "weight_kind",
]
