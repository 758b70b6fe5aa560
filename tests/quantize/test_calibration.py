"""Second moments of what goes into a layer; the means are in test_linear.py."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from subtone.quantize import quantizable_weights
from subtone.quantize.calibration import ChannelMoment, InputMean, second_moment_of, watch_inputs


class Taps(nn.Module):
    """One depthwise convolution of `taps` taps, `dilation` apart, and a Linear behind it."""

    def __init__(self, taps: int, dilation: int, stride: int = 1) -> None:
        super().__init__()
        self.kernel = nn.Conv1d(
            6, 6, taps, dilation=dilation, stride=stride, padding=dilation * taps, groups=6
        )
        self.line = nn.Linear(6, 2)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return self.line(self.kernel(features).transpose(1, 2))


def moments_in(model: nn.Module, data: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, np.ndarray]:
    statistics = {path: second_moment_of(weight) for path, weight in quantizable_weights(model).items()}
    watch_inputs(model, data, statistics)
    return {path: statistic.value() for path, statistic in statistics.items()}


def features(frames: int = 30, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 6, frames, generator=torch.Generator().manual_seed(seed)) + 0.2


def test_a_product_over_channels_has_the_mean_of_their_products():
    model, data = Taps(3, 1), [(features(), torch.tensor([30])), (features(20, 1), torch.tensor([20]))]
    found = moments_in(model, data)["line.weight"]
    with torch.no_grad():
        frames = torch.cat([model.kernel(x)[0] for x, _ in data], 1).double().numpy()
    assert found.shape == (1, 6, 6)
    # float32 products of some 70 terms each, in float32.
    np.testing.assert_allclose(found[0], frames @ frames.T / frames.shape[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("taps", "dilation"), [(1, 1), (4, 1), (5, 3), (40, 2)])
def test_a_depthwise_kernel_has_those_of_its_taps(taps, dilation):
    """Every window over the utterance with silence around it, which the layer's padding gives here."""
    model, x = Taps(taps, dilation), features()
    found = moments_in(model, [(x, torch.tensor([30]))])["kernel.weight"]
    padded = nn.functional.pad(x[0].double(), (dilation * taps, dilation * taps))
    span = dilation * (taps - 1) + 1
    windows = padded.unfold(1, span, 1)[:, :, ::dilation]
    expected = torch.einsum("cti,ctj->cij", windows, windows) / 30
    assert found.shape == (6, taps, taps)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_a_stride_does_not_change_the_moments_of_taps():
    data = [(features(), torch.tensor([30]))]
    found = [moments_in(Taps(5, 1, stride), data)["kernel.weight"] for stride in (1, 2)]
    assert np.array_equal(*found)


def test_padding_does_not_change_the_moments():
    lengths, x = torch.tensor([18, 30]), torch.cat([features(), features(seed=1)])
    alone = [(x[:1, :, :18], lengths[:1]), (x[1:], lengths[1:])]
    louder = x.clone()
    louder[0, :, 18:] = 1e6
    found, expected = moments_in(Taps(5, 2), [(louder, lengths)]), moments_in(Taps(5, 2), alone)
    # The weights of two Taps differ, and so does what enters the Linear behind them.
    assert np.array_equal(found["kernel.weight"], expected["kernel.weight"])


def test_several_statistics_of_one_layer_are_gathered_in_one_pass():
    model, mean, moment = Taps(3, 1), InputMean(), ChannelMoment()
    watch_inputs(
        model, iter([(features(), torch.tensor([30]))]), {"line.weight": mean}, {"line.weight": moment}
    )
    assert mean.num_frames == moment.num_frames == 34
    # Var = E[x x^T] - E[x] E[x]^T has no negative eigenvalue beyond rounding.
    spread = moment.value()[0] - np.outer(mean.value(), mean.value())
    assert np.linalg.eigvalsh(spread).min() > -1e-5


def test_inputs_that_are_not_finite_are_refused():
    with pytest.raises(
        ValueError, match=r"the inputs of kernel\.weight are not finite on the calibration data"
    ):
        moments_in(Taps(3, 1), [(torch.full((1, 6, 9), math.inf), torch.tensor([9]))])
