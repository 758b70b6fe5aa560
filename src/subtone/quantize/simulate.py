"""The packed arithmetic inside torch: what a quantized checkpoint hears before it is packed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from subtone.models.bifocal import SwitchedLayer
from subtone.models.checkpoints import Checkpoint, Quantization
from subtone.quantize.calibration import layers_of
from subtone.quantize.fake import fake_quantize_activations
from subtone.quantize.lstm import Product, QuantizedLstm, fake_quantize_hidden
from subtone.quantize.rules import Settings


class Handle(Protocol):
    """What puts back one thing that `simulate` changed."""

    def remove(self) -> None: ...


def simulate(network: nn.Module, quantization: Quantization) -> list[Handle]:
    """Make `network`, whose weights are the decoded ones, clip and round its activations, and shift its biases.

    By hooks on every layer that holds such a weight (tied ones have several), and by another forward
    pass of recurrences, which no hook enters; the modules stay plain torch. Remove all by their handles.
    """
    handles: list[Handle] = [*_simulate_recurrences(network, quantization.activation_bits)]
    for path in quantization.weights:
        bits, clip = quantization.activation_bits[path], quantization.activation_clips.get(path)
        for module, channel_axis in layers_of(network, network.get_parameter(path)):
            if bits:
                handles.append(module.register_forward_pre_hook(_rounding(bits, clip, channel_axis)))
            if path in quantization.bias_shifts:
                shift = torch.from_numpy(quantization.bias_shifts[path])
                handles.append(module.register_forward_hook(_shifting(shift, channel_axis)))
    return handles


def _simulate_recurrences(network: nn.Module, activation_bits: Mapping[str, int]) -> list[Handle]:
    """LSTMs, and a Bifocal encoder's layers of two cells, on the grids that will be served."""
    bits_of = {id(network.get_parameter(path)): bits for path, bits in activation_bits.items() if bits}
    handles: list[Handle] = []
    for module in network.modules():
        if isinstance(module, SwitchedLayer):
            rounding = _switched_rounding(module, bits_of)
            own = type(module).forward
            handles.append(_Replaced(module, functools.partial(own, module, rounding=rounding)))
        elif isinstance(module, nn.LSTM):
            named = module.named_parameters()
            products = {name: _product(bits) for name, value in named if (bits := bits_of.get(id(value)))}
            forward = QuantizedLstm(products=products, is_integer=False).forward
            if products:
                handles.append(_Replaced(module, functools.partial(forward, module)))
    return handles


def _product(bits: int) -> Product:
    settings = Settings(bits=8, activations="dynamic", activation_bits=bits)  # of the weight nothing is read
    return Product(path="", settings=settings)


def _switched_rounding(layer: SwitchedLayer, bits_of: Mapping[int, int]) -> dict[str, Callable[..., Tensor]]:
    rounding: dict[str, Callable[..., Tensor]] = {}
    for cell, prefix in ((layer.large, ""), (layer.small, "small_")):
        for name, function in (("ih", fake_quantize_activations), ("hh", fake_quantize_hidden)):
            if bits := bits_of.get(id(cell.get_parameter(f"weight_{name}_l0"))):
                rounding[f"{prefix}weight_{name}"] = functools.partial(function, bits=bits)
    return rounding


class _Replaced:
    """Another forward pass of `module`, until it is removed."""

    def __init__(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        self._module = module
        vars(module)["forward"] = forward

    def remove(self) -> None:
        del vars(self._module)["forward"]


def simulated(checkpoint: Checkpoint) -> Checkpoint:
    """`checkpoint`, hearing as its packed file will: up to the order of sums the same numbers."""
    if checkpoint.quantization is not None:
        simulate(checkpoint.network, checkpoint.quantization)
    return checkpoint


def _rounding(
    bits: int, clip: float | None, channel_axis: int
) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        features = inputs[0].movedim(channel_axis, -1)
        features = features if clip is None else features.clamp(-clip, clip)
        return (fake_quantize_activations(features, bits).movedim(-1, channel_axis), *inputs[1:])

    return hook


def _shifting(shift: Tensor, channel_axis: int) -> Callable[..., Tensor]:
    along_channels = shift.reshape(-1, *[1] * (-channel_axis - 1))

    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        return output + along_channels

    return hook
