"""The trained range: forward values are the stored ones, gradients those of int2's Fig. 5."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.reference.subchannel import FAKE_QUANTIZE, greedy_search, surrogate

from subtone.quantize import Settings, fake_quantize_weight, quantize_weight
from subtone.quantize.range_gradient import round_weight, with_gradient
from subtone.quantize.ranges import clip_candidates

GRIDS = ["symmetric", "asymmetric"]
RANGES = [{}, {"range": "clip_search"}, {"range": "clip_search", "clip_low": 0.3, "clip_high": 0.5}]
SHAPES = {
    "matrix": (5, 24),
    "pointwise": (5, 24, 1),
    "conv": (5, 8, 3),
    "depthwise": (6, 1, 11),
    "conv2d": (4, 8, 3, 3),
}


def random_weight(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    values = np.random.default_rng(seed).standard_t(4, shape) / 10 + 0.02
    return torch.from_numpy(values.astype(np.float32)).to(dtype).requires_grad_()


def seen_by(weight: torch.Tensor, settings: Settings, *, scale_gradient: bool) -> torch.Tensor:
    return with_gradient(weight, round_weight(weight, settings), settings, scale_gradient=scale_gradient)


def gradient_of(
    weight: torch.Tensor, settings: Settings, upstream: torch.Tensor, *, scale_gradient: bool
) -> torch.Tensor:
    (found,) = torch.autograd.grad(seen_by(weight, settings, scale_gradient=scale_gradient), weight, upstream)
    return found


# Values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale_gradient", [True, False])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("bits", range(2, 9))
def test_the_forward_pass_sees_the_stored_weight_bit_for_bit(bits, grid, shape, scale_gradient):
    weight = random_weight(*shape, seed=bits)
    with torch.no_grad():
        weight[0] = 0
        weight[1] = 0.25
    for granularity in [{}, {"granularity": "tensor"}, {"granularity": "group", "group_size": 4}]:
        if granularity and shape[1] == 1:
            continue
        for chosen in [*RANGES, {"range": "percentile", "percentile": 95.0}]:
            settings = Settings(bits=bits, grid=grid, **granularity, **chosen)
            found = seen_by(weight, settings, scale_gradient=scale_gradient).detach().numpy()
            stored = quantize_weight(weight, settings).dequantize()
            assert np.array_equal(found.view(np.uint32), stored.view(np.uint32))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_values_and_clipping_are_those_of_the_papers_loop(bits, grid):
    """Per channel, in float32. Two candidates may be equal to the last bit of a double: an error is linear
    in the scale, with a whole number for slope, and that may be 0."""
    weight = random_weight(16, 10, seed=bits)
    settings = Settings(bits=bits, grid=grid, range="clip_search")
    found = seen_by(weight, settings, scale_gradient=True).detach()
    factors = round_weight(weight, settings).fit.factor
    for row, cell in enumerate(weight.detach().double()):
        least = FAKE_QUANTIZE[grid](
            cell, bits, greedy_search(cell, clip_candidates(settings), bits, grid), stop_gradient=True
        )
        expected = FAKE_QUANTIZE[grid](cell, bits, factors[row].item(), stop_gradient=True)
        assert (expected - cell).abs().sum() <= (least - cell).abs().sum() + 1e-6
        # The scale, the zero_point and their product are float32: three roundings of 2**-24.
        torch.testing.assert_close(found[row].double(), expected, rtol=0, atol=3 * 2.0**-24 * 2**bits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale_gradient", [True, False])
def test_half_precision_weights_are_rounded_in_float32_and_keep_their_type(dtype, scale_gradient):
    weight = random_weight(5, 24, dtype=dtype)
    settings = Settings(bits=3, grid="asymmetric", range="clip_search")
    found = seen_by(weight, settings, scale_gradient=scale_gradient)
    assert torch.equal(found, torch.from_numpy(quantize_weight(weight, settings).dequantize()).to(dtype))
    found.float().square().sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == dtype
    assert weight.grad.count_nonzero() > 100


# Gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scale_gradient", [True, False])
@pytest.mark.parametrize("chosen", RANGES)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_gradient_is_that_of_the_papers_figure(bits, grid, chosen, scale_gradient):
    weight, upstream = (
        random_weight(6, 40, seed=bits),
        torch.randn(6, 40, generator=torch.Generator().manual_seed(bits)),
    )
    settings = Settings(bits=bits, grid=grid, **chosen)
    found = gradient_of(weight, settings, upstream, scale_gradient=scale_gradient)
    factor = round_weight(weight, settings).fit.factor
    for row in range(6):
        cell = weight.detach()[row].double().requires_grad_()
        seen = FAKE_QUANTIZE[grid](cell, bits, factor[row].item(), stop_gradient=not scale_gradient)
        (expected,) = torch.autograd.grad(seen, cell, upstream[row].double())
        # A position is a float32 near 2**bits, so its rounding residue is right to 2**bits units of 2**-24;
        # a range's end gathers 40 of them.
        assert (found[row] - expected).abs().max() <= 40 * 2.0 ** (bits - 22)


@pytest.mark.parametrize("clipping", [1.0, 0.6])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("bits", [2, 4])
def test_the_gradient_is_the_difference_quotient_of_the_surrogate(bits, grid, clipping):
    weight = (torch.rand(1, 100, generator=torch.Generator().manual_seed(bits)) - 0.5) * 1.2
    weight[0, :2] = torch.tensor([-1.0, 1.0])  # more than half the rest: clipped, if it may be
    weight.requires_grad_()
    chosen = {"range": "clip_search", "clip_low": clipping, "clip_high": clipping} if clipping < 1 else {}
    settings = Settings(bits=bits, grid=grid, **chosen)
    assert round_weight(weight, settings).fit.factor.item() == pytest.approx(clipping)
    cell, upstream = weight.detach().numpy()[0].astype(np.float64), np.linspace(-1, 2, 100)
    found = gradient_of(
        weight, settings, torch.from_numpy(upstream.astype(np.float32))[None], scale_gradient=True
    )
    step = 1e-7
    for index in range(100):
        ends = []
        for sign in (1, -1):
            moved = cell.copy()
            moved[index] += sign * step
            ends.append(upstream @ surrogate(moved, cell, bits, clipping, grid))
        assert found[0, index].item() == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-4)


@pytest.mark.parametrize("grid", GRIDS)
def test_groups_are_trained_each_for_itself(grid):
    """As the same weights row by row, but for scales in float16."""
    weight, upstream = random_weight(3, 32), torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    found = gradient_of(
        weight, Settings(bits=2, grid=grid, granularity="group", group_size=16), upstream, scale_gradient=True
    )
    rows = weight.detach().reshape(6, 16).requires_grad_()
    expected = gradient_of(rows, Settings(bits=2, grid=grid), upstream.reshape(6, 16), scale_gradient=True)
    # Residues move by 2**-11 of a position up to 3, and a range's end gathers 16 of them.
    torch.testing.assert_close(found, expected.reshape(3, 32), atol=16 * 3 * 2.0**-11, rtol=0)


def test_the_gradient_of_groups_follows_the_weights_through_every_layout():
    """A convolution's groups lie along the inputs of one tap."""
    settings = Settings(bits=3, grid="asymmetric", granularity="group", group_size=4, range="clip_search")
    weight, upstream = (
        random_weight(3, 8, 5),
        torch.randn(3, 8, 5, generator=torch.Generator().manual_seed(1)),
    )
    found = gradient_of(weight, settings, upstream, scale_gradient=True)
    for tap in range(5):
        matrix = weight.detach()[:, :, tap].clone().requires_grad_()
        expected = gradient_of(matrix, settings, upstream[:, :, tap], scale_gradient=True)
        torch.testing.assert_close(found[:, :, tap], expected)


def test_weights_that_share_an_extreme_share_its_gradient():
    """As Fig. 5's reduce_min and reduce_max do."""
    weight = torch.tensor([[-1.0, -1.0, 0.4, 0.9, 2.0, 2.0, 2.0]], requires_grad=True)
    upstream = torch.tensor([[0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]])
    found = gradient_of(weight, Settings(bits=2, grid="asymmetric"), upstream, scale_gradient=True)
    # 0.4 has position 1.4 and code 1: -0.4 / 3 goes to the three at the top, as much less to the two below.
    expected = torch.tensor([[0.4 / 6, 0.4 / 6, 1.0, 0.0, -0.4 / 9, -0.4 / 9, -0.4 / 9]])
    torch.testing.assert_close(found, expected)


def test_clipped_values_move_the_end_they_are_clipped_to():
    weight = torch.tensor([[-1.0, 0.0, 0.05, 0.1, 0.1, 1.0]], requires_grad=True)
    settings = Settings(bits=8, grid="asymmetric", range="clip_search", clip_low=0.5, clip_high=0.5)
    rounded = round_weight(weight, settings)._replace(
        is_inside=torch.tensor([[[False, True, True, True, True, False]]])
    )
    clipped = rounded._replace(
        on_grid=torch.tensor([[[-0.5, 0.0, 0.05, 0.1, 0.1, 0.5]]]),
        fit=rounded.fit._replace(factor=torch.full((1, 1), 0.5)),
    )
    upstream = torch.tensor([[3.0, 0.0, 0.0, 0.0, 0.0, 5.0]])
    for scale_gradient, expected in ((True, [1.5, 2.5]), (False, [0.0, 0.0])):
        seen = with_gradient(weight, clipped, settings, scale_gradient=scale_gradient)
        (found,) = torch.autograd.grad(seen, weight, upstream)
        assert found[0, [0, -1]].tolist() == expected


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("value", [0.0, 0.3, -0.3])
def test_a_constant_cell_passes_its_gradient_and_makes_no_nan(grid, value):
    weight = torch.full((2, 8), value, requires_grad=True)
    found = gradient_of(weight, Settings(bits=2, grid=grid), torch.ones(2, 8), scale_gradient=True)
    assert torch.equal(found, torch.ones(2, 8))


def test_without_a_range_gradient_it_is_fake_quantization():
    weight, upstream = random_weight(5, 24), torch.randn(5, 24, generator=torch.Generator().manual_seed(0))
    settings = Settings(bits=2, grid="asymmetric", range="clip_search")
    (expected,) = torch.autograd.grad(fake_quantize_weight(weight, settings), weight, upstream)
    assert torch.equal(gradient_of(weight, settings, upstream, scale_gradient=False), expected)
    assert not torch.equal(gradient_of(weight, settings, upstream, scale_gradient=True), expected)
