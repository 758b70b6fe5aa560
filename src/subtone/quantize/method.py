"""What every quantization method is: made from a recipe, and leaving QTensors behind."""

from __future__ import annotations

import abc
import copy
from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn

from subtone.models.checkpoints import Quantization
from subtone.quantize.rules import Recipe
from subtone.quantize.weights import quantizable_weights

Model = TypeVar("Model", bound=nn.Module)
Batch = tuple[Tensor, Tensor]
"""Features (B, F, T) and their valid lengths (B,), as a model takes them."""


class Method(abc.ABC):
    """One way to few bits. A new one is one file with a subclass, and one entry in METHODS.

    It holds the recipe; all it knows of a model comes in as an argument, so that one method serves
    a training process and its replicas.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    @abc.abstractmethod
    def freeze(self, model: nn.Module, *, calibration: Iterable[Batch] | None = None) -> Quantization:
        """Every weight as the recipe wants it stored; `model` itself is left as it is.

        `calibration`: real features, for recipes that need to see what goes into a layer.
        """


def decoded_twin(model: Model, quantization: Quantization) -> Model:
    """A copy of `model` in eval mode whose weights are the decoded ones.

    Bias shifts are not in it: most products they belong to have no bias that could take them.
    """
    twin = copy.deepcopy(model).eval()
    weights = quantizable_weights(twin)
    with torch.no_grad():
        for path, stored in quantization.weights.items():
            weights[path].parameter.copy_(torch.from_numpy(stored.dequantize()))
    return twin
