"""Which parameters of a model are weights that can reach few bits, and what kind each one is.

A kind says two things: along which axis groups may lie, and whether the weight meets one frame at
a time. Only the latter may take integer activations with a scale a frame (docs/numerics.md,
section 3).
"""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Kind = Literal["linear", "pointwise", "lstm", "conv", "depthwise", "conv2d", "embedding"]
KINDS: tuple[Kind, ...] = get_args(Kind)
PER_FRAME_KINDS: tuple[Kind, ...] = ("linear", "pointwise", "lstm")
"""Weights that meet one frame at a time: their activations may take one scale a frame."""
UNGROUPED_KINDS: tuple[Kind, ...] = ("depthwise", "embedding")
"""One scale per channel or row: there are no input channels for a group to lie along."""
COMPENSATED_KINDS: tuple[Kind, ...] = ("linear", "pointwise", "depthwise", "lstm")
"""Products whose inputs' second moments are one small matrix: of all channels, of a channel's taps, of the
rows or the hidden states that enter an LSTM.
Those of a kernel with both are as wide as taps times channels, 19200 in Jasper."""

ATTENTION_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Weight:
    """A parameter of a model that can be quantized: `parameter` is `module`'s, under `name`."""

    kind: Kind
    module: nn.Module
    name: str
    parameter: nn.Parameter

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.parameter.shape)

    def values(self) -> Tensor:
        """The weight in float32 on the CPU, apart from the graph; half precision is widened."""
        return self.parameter.detach().to("cpu", torch.float32)


def weight_kind(module: nn.Module, parameter_name: str) -> Kind | None:
    """The kind of `module`'s parameter, or None for what is never quantized (a bias, a norm).

    `pointwise` is exactly the Conv1d that may run in integers (program.Conv1d): kernel 1, stride 1,
    no padding, one group. Every other Conv1d that is not depthwise is `conv`. Transposed
    convolutions and GRUs have no kind: no program can hold them.

    >>> weight_kind(nn.Conv1d(64, 64, 3, groups=64), "weight")
    'depthwise'
    """
    is_weight = parameter_name == "weight"
    if isinstance(module, nn.Linear):
        return "linear" if is_weight else None
    if isinstance(module, nn.Conv1d):
        return _conv1d_kind(module) if is_weight else None
    if isinstance(module, nn.Conv2d):
        return "conv2d" if is_weight else None
    if isinstance(module, nn.Embedding):
        return "embedding" if is_weight else None
    if isinstance(module, (nn.LSTM, nn.LSTMCell)):
        return "lstm" if parameter_name.startswith("weight_") else None
    if isinstance(module, nn.MultiheadAttention):
        return "linear" if parameter_name in ATTENTION_WEIGHTS else None
    return None


def _conv1d_kind(module: nn.Conv1d) -> Kind:
    if module.groups > 1 and module.groups == module.in_channels:
        return "depthwise"
    geometry = (module.kernel_size, module.stride, module.padding, module.groups)
    return "pointwise" if geometry == ((1,), (1,), (0,), 1) else "conv"


def quantizable_weights(model: nn.Module) -> dict[str, Weight]:
    """Parameter path -> weight, in the order of `model.named_modules()`.

    A parameter that two modules share is listed once, under its first path. Biases, norms and
    whatever else has no kind are absent: they stay float.
    """
    found: dict[str, Weight] = {}
    seen: set[int] = set()
    for module_path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            kind = weight_kind(module, name)
            if kind is None or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            path = f"{module_path}.{name}" if module_path else name
            found[path] = Weight(kind=kind, module=module, name=name, parameter=parameter)
    return found


def holders_of(model: nn.Module, parameter: nn.Parameter) -> list[tuple[nn.Module, str]]:
    """Every (module, name) of `model` under which `parameter` is held: several where it is tied."""
    return [
        (module, name)
        for module in model.modules()
        for name, held in module.named_parameters(recurse=False, remove_duplicate=False)
        if held is parameter
    ]


def mean_product(weight: NDArray[np.float32], means: NDArray[np.float32]) -> NDArray[np.float32]:
    """The output's mean (out,), if input channel i has the mean `means[i]` in every tap.

    `weight` (out, in / groups, *taps); the number of groups follows from the length of `means`.
    Zeros beyond the ends of an utterance are not counted.
    """
    outputs, inputs = weight.shape[:2]
    groups = means.size // inputs
    if groups * inputs != means.size:
        raise ValueError(f"{means.size} input means do not fit a weight of shape {weight.shape}")
    per_input = weight.reshape(outputs, inputs, -1).sum(axis=2, dtype=np.float64)
    seen = np.repeat(means.astype(np.float64).reshape(groups, inputs), outputs // groups, axis=0)
    return (per_input * seen).sum(axis=1).astype(np.float32)
