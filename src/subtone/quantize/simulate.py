"""The packed arithmetic inside torch: what a quantized checkpoint hears before it is packed."""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from subtone.models.bifocal import SwitchedLayer
from subtone.models.checkpoints import Checkpoint, Quantization
from subtone.models.switched_lstm import Products, recurrence
from subtone.quantize.calibration import layers_of
from subtone.quantize.fake import fake_quantize_activations
from subtone.quantize.lstm import Product, QuantizedLstm, fake_quantize_hidden
from subtone.quantize.rules import Settings
from subtone.quantize.weights import quantizable_weights


class Removable(Protocol):
    """What takes away again what was put into a network."""

    def remove(self) -> None: ...


@dataclasses.dataclass(frozen=True)
class _Forward:
    """A forward pass in the place of a module's own."""

    module: nn.Module

    def remove(self) -> None:
        vars(self.module).pop("forward", None)


def simulate(network: nn.Module, quantization: Quantization) -> list[Removable]:
    """Make `network`, whose weights are the decoded ones, clip and round its activations, and shift its biases.

    By hooks on every layer that holds such a weight (tied ones have several), and in an LSTM, which no hook
    enters, by the recurrence of lstm.py; so the network stays plain torch. Remove them by their handles.
    """
    handles: list[Removable] = []
    for path in quantization.weights:
        bits, clip = quantization.activation_bits[path], quantization.activation_clips.get(path)
        for module, channel_axis in layers_of(network, network.get_parameter(path)):
            if bits:
                handles.append(module.register_forward_pre_hook(_rounding(bits, clip, channel_axis)))
            if path in quantization.bias_shifts:
                shift = torch.from_numpy(quantization.bias_shifts[path])
                handles.append(module.register_forward_hook(_shifting(shift, channel_axis)))
    return [*handles, *_simulate_lstms(network, quantization)]


def _simulate_lstms(network: nn.Module, quantization: Quantization) -> list[Removable]:
    """Every recurrence whose products meet integers, on the same rounded values."""
    bits_of: dict[nn.Module, dict[str, int]] = {}
    for path, weight in quantizable_weights(network).items():
        bits = quantization.activation_bits.get(path, 0)
        if weight.kind == "lstm" and bits:
            bits_of.setdefault(weight.module, {})[weight.name] = bits
    handles: list[Removable] = []
    for module in network.modules():
        if isinstance(module, SwitchedLayer):
            large, small = (bits_of.pop(cell, {}) for cell in (module.large, module.small))
            if large or small:
                module.forward = functools.partial(switched_forward, module, large, small)  # type: ignore[method-assign]
                handles.append(_Forward(module))
    for module, of_names in bits_of.items():
        products = {
            name: Product(path=name, settings=Settings(bits=8, activations="dynamic", activation_bits=bits))
            for name, bits in of_names.items()
        }
        lstm = QuantizedLstm(products=products, is_integer=False)
        forward = lstm.forward if isinstance(module, nn.LSTM) else lstm.forward_cell
        module.forward = types.MethodType(forward, module)
        handles.append(_Forward(module))
    return handles


def switched_forward(
    layer: SwitchedLayer, large: Mapping[str, int], small: Mapping[str, int], rows: Tensor, gate: Tensor
) -> Tensor:
    """`SwitchedLayer.forward`, with what meets each weight rounded to its bits; 0 or none: float."""

    def product(
        cell: nn.LSTM, bits: Mapping[str, int], name: str, bias: Tensor | None
    ) -> Callable[[Tensor], Tensor]:
        weight, rounded_to = getattr(cell, name), bits.get(name, 0)
        rounding = fake_quantize_hidden if name.startswith("weight_hh") else fake_quantize_activations

        def multiply(values: Tensor) -> Tensor:
            seen = rounding(values, rounded_to) if rounded_to else values
            return nn.functional.linear(seen, weight, bias)

        return multiply

    return recurrence(
        rows,
        gate,
        Products(
            product(layer.large, large, "weight_ih_l0", layer.large_bias),
            product(layer.large, large, "weight_hh_l0", None),
            product(layer.small, small, "weight_ih_l0", layer.small_bias),
            product(layer.small, small, "weight_hh_l0", None),
        ),
        width=layer.large.hidden_size,
        small_inputs=layer.small.input_size,
        small_width=layer.small.hidden_size,
    )


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
