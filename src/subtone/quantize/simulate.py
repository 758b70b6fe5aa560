"""The packed arithmetic inside torch: what a quantized checkpoint hears before it is packed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from subtone.models.checkpoints import Checkpoint, Quantization
from subtone.quantize.calibration import layers_of
from subtone.quantize.fake import fake_quantize_activations


def simulate(network: nn.Module, quantization: Quantization) -> list[RemovableHandle]:
    """Make `network`, whose weights are the decoded ones, clip and round its activations, and shift its biases.

    By hooks on every layer that holds such a weight (tied ones have several), so that the network
    stays plain torch; remove them by their handles.
    """
    handles: list[RemovableHandle] = []
    for path in quantization.weights:
        bits, clip = quantization.activation_bits[path], quantization.activation_clips.get(path)
        for module, channel_axis in layers_of(network, network.get_parameter(path)):
            if bits:
                handles.append(module.register_forward_pre_hook(_rounding(bits, clip, channel_axis)))
            if path in quantization.bias_shifts:
                shift = torch.from_numpy(quantization.bias_shifts[path])
                handles.append(module.register_forward_hook(_shifting(shift, channel_axis)))
    return handles


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
