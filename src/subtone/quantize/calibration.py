"""What goes into each layer on real speech: the mean of every input channel, for bias correction."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from subtone.quantize.method import Batch
from subtone.quantize.weights import holders_of, quantizable_weights, weight_kind

CHANNEL_AXIS: dict[str, int] = {"linear": -1, "pointwise": -2, "conv": -2, "depthwise": -2, "conv2d": -3}
"""Where a layer's input has its channels, counted from the end, so that a batch axis may lack."""


class _Mean:
    """Running sum per channel in double precision."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.count = 0

    def add(self, features: Tensor, channel_axis: int) -> None:
        channels_last = features.detach().movedim(channel_axis, -1)
        flat = channels_last.reshape(-1, channels_last.shape[-1]).double()
        total = flat.sum(0)
        self.total = total if self.total is None else self.total + total
        self.count += len(flat)


def gather_input_means(model: nn.Module, batches: Iterable[Batch]) -> dict[str, NDArray[np.float32]]:
    """Weight path -> the mean of each input channel (in,), over the valid frames of `batches`.

    The model runs in eval mode, one utterance at a time and cut to its length, so that no padding
    enters a mean whatever the model's strides. A weight that several layers share has one mean over
    what enters any of them. Layers whose inputs cannot be watched (LSTM, embeddings, attention's own
    weights) or that never ran are absent.
    """
    layers = {path: layers_of(model, weight.parameter) for path, weight in quantizable_weights(model).items()}
    watched = {path: of for path, of in layers.items() if of}
    means = {path: _Mean() for path in watched}
    handles = [
        module.register_forward_pre_hook(partial(_record, means[path], axis))
        for path, of in watched.items()
        for module, axis in of
    ]
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.inference_mode():
            for features, lengths in batches:
                for utterance, length in zip(features, lengths.tolist(), strict=True):
                    model(utterance[None, :, :length], torch.tensor([length], device=features.device))
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in training.items():
            module.training = mode
    seen = {path: mean for path, mean in means.items() if mean.total is not None and mean.count}
    if watched and not seen:
        raise ValueError("calibration data holds no frame; give at least one utterance")
    return {path: _finite(path, mean) for path, mean in seen.items()}


def layers_of(model: nn.Module, parameter: nn.Parameter) -> list[tuple[nn.Module, int]]:
    """Every layer whose input `parameter` multiplies, and the axis of its channels; several where it is tied.

    Not LSTM, embeddings and attention, which multiply something else or something of their own.
    """
    holders = [(module, name) for module, name in holders_of(model, parameter) if name == "weight"]
    kinds = [(module, weight_kind(module, name)) for module, name in holders]
    return [(module, CHANNEL_AXIS[kind]) for module, kind in kinds if kind in CHANNEL_AXIS]


def _record(mean: _Mean, channel_axis: int, module: nn.Module, arguments: tuple[Any, ...]) -> None:
    mean.add(arguments[0], channel_axis)


def _finite(path: str, mean: _Mean) -> NDArray[np.float32]:
    assert mean.total is not None
    values = (mean.total / mean.count).cpu().numpy().astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f"the inputs of {path} are not finite on the calibration data; repair the features")
    return values
