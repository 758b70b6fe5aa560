"""Depthwise convolutions as transposed ones: the same sums, the same gradients."""

from __future__ import annotations

import pytest
import torch
from tests.reference.batch_norms import depthwise
from torch import nn

from subtone.quantize.batch_norms import held_still
from subtone.quantize.depthwise import can_be_turned, turned_depthwise


def layer_of(channels: int = 4, taps: int = 5, **options) -> nn.Conv1d:
    torch.manual_seed(0)
    return nn.Conv1d(channels, channels, taps, groups=channels, **options).requires_grad_(False)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("taps", "padding", "dilation"),
    [(5, 2, 1), (5, 0, 1), (4, 1, 1), (33, 16, 1), (7, 6, 2), (3, 2, 1), (2, 3, 4)],
)
@pytest.mark.parametrize("bias", [False, True])
def test_value_and_gradient_are_those_of_the_loop_and_of_torch(taps, padding, dilation, bias):
    layer = layer_of(taps=taps, padding=padding, dilation=dilation, bias=bias)
    features, pull = noise(2, 4, 40).requires_grad_(), None
    plain = layer(features)
    pull = noise(*plain.shape)
    (expected_gradient,) = torch.autograd.grad((plain * pull).sum(), features)
    with turned_depthwise(layer):
        turned = layer(features)
        (gradient,) = torch.autograd.grad((turned * pull).sum(), features)
    loop = depthwise(features[1].double().tolist(), layer.weight[:, 0].double().tolist(), padding, dilation)
    offset = layer.bias[:, None].double() if bias else 0.0
    # Sums of at most 33 products of about 1 in float32.
    torch.testing.assert_close(
        turned[1].double(), torch.tensor(loop, dtype=torch.float64) + offset, atol=1e-5, rtol=0
    )
    torch.testing.assert_close(turned, plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "layer",
    [
        layer_of(stride=2),
        layer_of(padding="same"),
        layer_of(padding=2, padding_mode="circular"),
        layer_of(padding=9),
        layer_of(taps=1),
        layer_of().requires_grad_(True),
        nn.Conv1d(4, 8, 3, groups=4).requires_grad_(False),
        nn.Conv1d(4, 4, 3, groups=2).requires_grad_(False),
        nn.Linear(2, 2).requires_grad_(False),
    ],
    ids=lambda layer: str(layer),
)
def test_what_is_not_the_same_sum_is_left_alone(layer):
    assert not can_be_turned(layer)
    with turned_depthwise(layer):
        assert "_conv_forward" not in vars(layer)


def test_one_utterance_without_a_batch_axis_is_left_to_torch():
    layer = layer_of(padding=2)
    with turned_depthwise(layer):
        torch.testing.assert_close(layer(noise(4, 9)), layer(noise(1, 4, 9))[0], atol=1e-6, rtol=0)


def test_bfloat16_products_give_gradients_of_the_inputs_type():
    layer, features = layer_of(padding=2), noise(2, 4, 30).requires_grad_()
    with turned_depthwise(layer), torch.autocast("cpu", torch.bfloat16):
        convolved = layer(features)
    assert convolved.dtype == torch.bfloat16
    (gradient,) = torch.autograd.grad(convolved.float().sum(), features)
    (expected,) = torch.autograd.grad(layer(features).sum(), features)
    assert gradient.dtype == torch.float32
    # Five products, each rounded to 8 bits, of about 0.4.
    torch.testing.assert_close(gradient, expected, atol=5 * 0.5 * 2**-8, rtol=0)


def test_a_network_is_afterwards_as_it_was():
    layer = layer_of(padding=2)
    network = nn.Sequential(layer, nn.ReLU())
    with held_still(network), turned_depthwise(network):
        assert "_conv_forward" in vars(layer)
    assert "_conv_forward" not in vars(layer)
