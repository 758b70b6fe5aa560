"""Products of training have the bits of the run time and the gradients of fake quantization."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from subtone.quantize import Settings, fake_quantize_activations, fake_quantize_weight, quantize_weight
from subtone.quantize.integer import exact_sums, integer_product, weight_levels
from subtone.runtime.products import quantized_product

EPSILON = float(np.finfo(np.float32).eps)
KINDS = [
    {},
    {"granularity": "tensor"},
    {"granularity": "group", "group_size": 3},
    {"grid": "asymmetric"},
    {"grid": "asymmetric", "granularity": "group", "group_size": 3},
    {"range": "percentile", "percentile": 80.0},
]


def dynamic(bits: int, activation_bits: int = 8, **options) -> Settings:
    return Settings(bits=bits, activations="dynamic", activation_bits=activation_bits, **options)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def same_bits(left, right) -> bool:
    left, right = (np.ascontiguousarray(side, np.float32).view(np.uint32) for side in (left, right))
    return np.array_equal(left, right)


def served(features: torch.Tensor, weight: torch.Tensor, of: Settings) -> np.ndarray:
    """What the packed file computes."""
    return quantized_product(features.numpy(), quantize_weight(weight, of), of.activation_bits)


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("activation_bits", [2, 4, 8])
def test_a_product_has_the_bits_of_the_run_time(bits, activation_bits, options):
    features, weight = drawn(11, 30, seed=bits), drawn(7, 30, seed=activation_bits)
    features[3], weight[2] = 0, 0  # a silent frame, a channel of zeros
    of = dynamic(bits, activation_bits, **options)
    expected = served(features, weight, of)
    assert same_bits(integer_product(features, weight, of), expected)
    pointwise = integer_product(features.T, weight[:, :, None], of, channel_axis=-2)
    assert same_bits(pointwise.T, expected)


def test_one_bit_has_the_bits_of_the_run_time():
    """Levels -1 and 0 about a zero_point of -0.5, times two: the sum of activations takes part."""
    features, weight, of = drawn(11, 30), drawn(7, 30, seed=1), dynamic(1)
    assert same_bits(integer_product(features, weight, of), served(features, weight, of))


@settings(max_examples=60, deadline=None)
@given(
    frames=st.integers(1, 4),
    inputs=st.sampled_from([1, 2, 3, 8, 1031, 1032, 1033, 2100]),
    outputs=st.integers(1, 3),
    bits=st.integers(2, 8),
    seed=st.integers(0, 99),
)
def test_any_width_has_the_bits_of_the_run_time(frames, inputs, outputs, bits, seed):
    features, weight = drawn(frames, inputs, seed=seed), drawn(outputs, inputs, seed=seed + 1)
    assert same_bits(
        integer_product(features, weight, dynamic(bits)), served(features, weight, dynamic(bits))
    )


def test_sums_beyond_24_bits_are_rounded_once():
    """40000 products of +-127 by 127 nearly cancel or add up to 2**29: float32 would lose their ends."""
    generator = np.random.default_rng(0)
    levels = torch.from_numpy(generator.choice([-127.0, 126.0, 127.0], (3, 40000)).astype(np.float32))
    levels[0] = 127
    x = torch.full((2, 40000), 127.0)
    x[1] = torch.from_numpy(generator.integers(-127, 128, 40000).astype(np.float32))
    exact = (x.double() @ levels.double().T).float()
    assert torch.equal(exact_sums(levels, x, 8, 127, -1), exact)
    assert torch.equal(exact_sums(levels, x.T, 8, 127, -2), exact.T)
    assert not torch.equal(x @ levels.T, exact)


def test_levels_are_those_that_a_file_stores():
    weight = drawn(5, 6, 1)
    for options in KINDS:
        stored = quantize_weight(weight, dynamic(4, **options))
        of = weight_levels(weight, dynamic(4, **options))
        assert np.array_equal(of.levels.numpy(), stored.levels())
        assert same_bits(of.decoded, stored.dequantize()[:, :, 0])


@pytest.mark.parametrize("axis", [-1, -2])
@pytest.mark.parametrize("options", KINDS)
def test_the_gradient_is_that_of_the_fake_quantized_product(axis, options):
    of, shape = dynamic(4, **options), (2, 9, 30) if axis == -1 else (2, 30, 9)
    features, weight = drawn(*shape).requires_grad_(), drawn(7, 30, seed=1).requires_grad_()
    product = integer_product(features, weight, of, channel_axis=axis)
    upstream = drawn(*product.shape, seed=2)
    product.backward(upstream)

    rows = (features if axis == -1 else features.mT).detach().flatten(0, 1).requires_grad_()
    twin = weight.detach().clone().requires_grad_()
    seen, heard = fake_quantize_weight(twin, of), fake_quantize_activations(rows)
    flat = (upstream if axis == -1 else upstream.mT).flatten(0, 1)
    (heard @ seen.T).backward(flat)
    ours = (features.grad if axis == -1 else features.grad.mT).flatten(0, 1)
    # Two sums of n float32 products, each rounded n times at most.
    to_rows = 2 * 7 * EPSILON * (flat.abs() @ seen.detach().abs())
    to_weight = 2 * 18 * EPSILON * (flat.abs().T @ heard.detach().abs())
    assert torch.all((ours - rows.grad).abs() <= to_rows)
    assert torch.all((weight.grad - twin.grad).abs() <= to_weight)
    assert torch.equal(weight.grad == 0, twin.grad == 0)  # where the range clipped, and nowhere else


def test_autocast_changes_gradients_but_not_the_product():
    features, weight, of = drawn(9, 30), drawn(7, 30, seed=1).requires_grad_(), dynamic(4)
    expected = served(features, weight.detach(), of)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        product = integer_product(features, weight, of)
    assert same_bits(product.detach(), expected)
    product.backward(torch.ones_like(product))
    assert weight.grad.dtype == torch.float32
    assert torch.equal(weight.grad, weight.grad.bfloat16().float())


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(precision):
    features, weight = drawn(4, 6).to(precision), drawn(3, 6).to(precision).requires_grad_()
    product = integer_product(features, weight, dynamic(4))
    assert same_bits(product.detach(), served(features.float(), weight.detach().float(), dynamic(4)))
    product.sum().backward()
    assert weight.grad.dtype == precision


def test_what_has_no_integers_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"fc\.weight meets float activations; use activations='dynamic'"):
        integer_product(drawn(2, 4), drawn(3, 4), Settings(bits=4), name="fc.weight")
    with pytest.raises(ValueError, match=r"fc\.weight has no uniform grid to take levels from"):
        integer_product(drawn(2, 4), drawn(3, 4), dynamic(4, grid="codebook"), name="fc.weight")
