"""What goes into each layer on real speech: means for bias correction, second moments for compensation.

`watch_inputs` is the one gatherer; a `Statistic` is what it keeps of a layer's inputs.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from subtone.models import is_transducer
from subtone.models.hearing import hear_through, paths_of
from subtone.quantize.method import Batch
from subtone.quantize.weights import Weight, holders_of, quantizable_weights, weight_kind

CHANNEL_AXIS: dict[str, int] = {"linear": -1, "pointwise": -2, "conv": -2, "depthwise": -2, "conv2d": -3}
"""Where a layer's input has its channels, counted from the end, so that a batch axis may lack."""


class Statistic(abc.ABC):
    """A mean over all frames that enter a layer, summed in double precision, utterance after utterance."""

    def __init__(self) -> None:
        self._total: Tensor | None = None
        self.num_frames = 0

    @abc.abstractmethod
    def summed(self, features: Tensor, layer: nn.Module) -> Tensor:
        """The term of `features` (..., T, in), channels last, as they enter `layer`: a sum over frames."""

    def unfolded(self, mean: Tensor) -> Tensor:
        """The value, of the mean of what is summed: what is large is made only when it is asked for."""
        return mean

    def add(self, features: Tensor, layer: nn.Module) -> None:
        term = self.summed(features, layer).double()
        self._total = term if self._total is None else self._total + term
        self.num_frames += features[..., 0].numel()

    def value(self) -> NDArray[np.float32]:
        """The mean; at least one frame must have been seen."""
        assert self._total is not None
        return self.unfolded((self._total / self.num_frames).float()).cpu().numpy()

    def is_finite(self) -> bool:
        """Whether the value will be, in float32."""
        return self._total is None or bool(torch.isfinite(self._total.float()).all())


class InputMean(Statistic):
    """E[x]: (in,)."""

    def summed(self, features: Tensor, layer: nn.Module) -> Tensor:
        return features.reshape(-1, features.shape[-1]).double().sum(0)


class ChannelMoment(Statistic):
    """E[x x^T] over the channels of a frame: (1, in, in), for products of one frame."""

    def summed(self, features: Tensor, layer: nn.Module) -> Tensor:
        flat = features.reshape(-1, features.shape[-1])
        return (flat.T @ flat)[None]


class HiddenMoment(ChannelMoment):
    """The same of an LSTM's hidden states as they come back: all that it gives but the last of each utterance.

    The first state, zeros, adds nothing and is not counted.
    """


class TapMoment(Statistic):
    """The same over the taps of each channel of a depthwise Conv1d: (in, taps, taps).

    Entry (i, j) is the channel's autocorrelation at the lag between the taps i and j, over the whole
    utterance and not window by window: so it depends on neither stride nor padding, and one Fourier
    transform gives all of it. Only the lags are kept: (in, taps).
    """

    def summed(self, features: Tensor, layer: nn.Module) -> Tensor:
        assert isinstance(layer, nn.Conv1d)
        lags = torch.arange(layer.kernel_size[0], device=features.device) * layer.dilation[0]
        channels = features.reshape(-1, *features.shape[-2:]).movedim(-1, 0).double()  # (in, batch, T)
        size = channels.shape[-1] + int(lags[-1])  # so that no lag reaches around
        power = torch.fft.rfft(channels, size).abs().square()
        return torch.fft.irfft(power, size).sum(1)[:, lags]

    def unfolded(self, mean: Tensor) -> Tensor:
        taps = torch.arange(mean.shape[1], device=mean.device)
        return mean[:, (taps[:, None] - taps).abs()]


def second_moment_of(weight: Weight) -> Statistic:
    """The second moment of the inputs of `weight`, whose kind is one of COMPENSATED_KINDS.

    (groups, columns, columns) as compensation.py takes it.
    """
    if weight.kind == "depthwise":
        return TapMoment()
    is_recurrent = weight.kind == "lstm" and weight.name.startswith("weight_hh")
    return HiddenMoment() if is_recurrent else ChannelMoment()


def can_be_watched(weight: Weight) -> bool:
    """Whether hooks see what `weight` multiplies: of an LSTM only that of one layer and direction."""
    if weight.kind != "lstm":
        return True
    lstm = weight.module
    return isinstance(lstm, nn.LSTM) and not (lstm.num_layers > 1 or lstm.bidirectional or lstm.proj_size)


def gather_input_means(model: nn.Module, batches: Iterable[Batch]) -> dict[str, NDArray[np.float32]]:
    """Weight path -> the mean of each input channel (in,), over the valid frames of `batches`.

    Layers whose inputs cannot be watched or that never ran are absent.
    """
    means = {path: InputMean() for path in quantizable_weights(model)}
    watch_inputs(model, batches, means)
    return {path: mean.value() for path, mean in means.items() if mean.num_frames}


def watch_inputs(model: nn.Module, batches: Iterable[Batch], *wanted: Mapping[str, Statistic]) -> None:
    """Run `model` on `batches` once, and add what enters each layer to the statistics of its weight's path.

    In eval mode, one utterance at a time and cut to its length, so that no padding enters whatever the
    model's strides. A weight that several layers share has one statistic of what enters any of them.
    A transducer hears as it is served: its predictor what its own greedy search said, its joiner the pairs
    of a frame and a prefix on that way (hearing.hear_through).
    Nothing is added to those of layers whose inputs cannot be watched (an LSTM of several layers, embeddings,
    attention's own weights) or that never ran, as an LSTM that only holds weights for another module.
    """
    statistics: dict[str, list[Statistic]] = {}
    for mapping in wanted:
        for path, statistic in mapping.items():
            statistics.setdefault(path, []).append(statistic)
    weights = quantizable_weights(model)
    handles: list[Callable[[], None]] = []
    training = {module: module.training for module in model.modules()}
    model.eval()

    def watch() -> None:
        for path in statistics:
            handles.extend(_watched(model, weights[path], statistics[path]))

    def look_away() -> None:
        while handles:
            handles.pop()()

    num_heard = 0
    if not is_transducer(model):
        watch()
    try:
        with torch.inference_mode():
            for features, lengths in batches:
                for utterance, length in zip(features, lengths.tolist(), strict=True):
                    heard = utterance[None, :, :length]
                    num_heard += length > 0
                    if is_transducer(model):
                        paths = paths_of(model, heard)  # the search is not what is to be watched
                        watch()
                        hear_through(model, heard, paths)
                        look_away()
                    else:
                        model(heard, torch.tensor([length], device=features.device))
    finally:
        look_away()
        for module, mode in training.items():
            module.training = mode
    seen = [(path, of) for path, several in statistics.items() for of in several if of.num_frames]
    if statistics and not num_heard:
        raise ValueError("calibration data holds no frame; give at least one utterance")
    for path, statistic in seen:
        if not statistic.is_finite():
            raise ValueError(
                f"the inputs of {path} are not finite on the calibration data; repair the features"
            )


def layers_of(model: nn.Module, parameter: nn.Parameter) -> list[tuple[nn.Module, int]]:
    """Every layer whose input `parameter` multiplies, and the axis of its channels; several where it is tied.

    Not LSTM, embeddings and attention, which multiply something else or something of their own, nor a
    Linear whose class has a forward of its own.
    """
    holders = [(module, name) for module, name in holders_of(model, parameter) if name == "weight"]
    kinds = [(module, weight_kind(module, name)) for module, name in holders]
    return [
        (module, CHANNEL_AXIS[kind])
        for module, kind in kinds
        if kind in CHANNEL_AXIS and (_has_own_forward(module) or isinstance(module, nn.Conv1d | nn.Conv2d))
    ]


def _has_own_forward(module: nn.Module) -> bool:
    """Whether what the module is called with is what its weight multiplies, as in torch's own classes."""
    return type(module).forward in (nn.Linear.forward, nn.Conv1d.forward, nn.Conv2d.forward)


def _watch(layer: nn.Module, record: Callable[[Tensor], None]) -> Callable[[], None]:
    """Have `record` called with what the weight of `layer` multiplies; the result ends that.

    A convolution whose class has another forward (Parakeet's head takes (B, T, C) and transposes) is
    watched where all of them arrive: at torch's `_conv_forward`.
    """
    if _has_own_forward(layer):
        return layer.register_forward_pre_hook(lambda _, arguments: record(arguments[0])).remove
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    convolve: Callable[..., Tensor] = layer._conv_forward

    def recording(features: Tensor, *others: Any) -> Tensor:
        record(features)
        return convolve(features, *others)

    layer._conv_forward = recording  # type: ignore[method-assign, assignment]
    return lambda: delattr(layer, "_conv_forward")


def _watched(model: nn.Module, weight: Weight, statistics: Sequence[Statistic]) -> list[Callable[[], None]]:
    """Has what `weight` multiplies added to `statistics`, wherever it does; each result ends that at one place."""
    if weight.kind != "lstm":
        return [
            _watch(module, partial(_record, statistics, axis, module))
            for module, axis in layers_of(model, weight.parameter)
        ]
    if not can_be_watched(weight):
        return []
    if isinstance(statistics[0], HiddenMoment):
        return [weight.module.register_forward_hook(_record_hidden(statistics)).remove]
    record = partial(_record, statistics, -1, weight.module)
    return [weight.module.register_forward_pre_hook(lambda _, arguments: record(arguments[0])).remove]


def _record_hidden(statistics: Sequence[Statistic]) -> Callable[..., None]:
    def hook(layer: nn.LSTM, inputs: tuple[Any, ...], outputs: tuple[Tensor, Any]) -> None:
        frames = -2 if layer.batch_first or outputs[0].dim() == 2 else 0
        hidden = outputs[0].detach()
        hidden = hidden.narrow(frames, 0, hidden.shape[frames] - 1)
        for statistic in statistics:
            if hidden.numel():
                statistic.add(hidden, layer)

    return hook


def _record(statistics: Sequence[Statistic], channel_axis: int, layer: nn.Module, features: Tensor) -> None:
    features = features.detach().movedim(channel_axis, -1)
    for statistic in statistics:
        statistic.add(features, layer)
