"""The absolute-cosine penalty against the loops of tests/reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.reference import absolute_cosine as reference

from subtone.quantize.absolute_cosine import AbsoluteCosine
from subtone.quantize.grids import Grid
from subtone.quantize.regions import Regions

THREE = Regions(edges=(-96, -32, 48, 112), spacings=(16, 4, 16))
ONE = Regions(edges=(-72, 63), spacings=(9,))
TWO_LEVELS = Regions(edges=(-21, 22), spacings=(43,), origin=-21)
LAYOUTS = [THREE, ONE, TWO_LEVELS]
STRENGTH = 5e-4


def penalty_of(regions: Regions, *, scale: torch.Tensor, shape: tuple[int, ...]) -> AbsoluteCosine:
    return AbsoluteCosine(grid=Grid(scale, torch.zeros(1, 1)), regions=regions, shape=shape)


def weights_for(scale: torch.Tensor, rows: int = 6, columns: int = 400, reach: int = 128) -> torch.Tensor:
    uniform = torch.rand(rows, columns, generator=torch.Generator().manual_seed(0))
    return (uniform * 2 - 1) * reach * scale


def as_paper(regions: Regions, scale: float = 1.0) -> list[reference.Region]:
    """Edges and frequencies over weights in [-1, 1]; an origin other than 0 is taken off the weights."""
    return [
        ((low - regions.origin) / 128, (high - regions.origin) / 128, 128 / spacing)
        for low, high, spacing in zip(regions.edges, regions.edges[1:], regions.spacings, strict=False)
    ]


def gradient_bound(regions: Regions, scale: float) -> float:
    """How far float32 may be off, lambda 1: the position w * (1 / scale) has three roundings, at most 128
    levels away from 0; the sine turns pi / m of them; ten more roundings of the result."""
    m = min(regions.spacings)
    return math.pi / (scale * m) * (3 * 2**-24 * 128 * math.pi / m + 10 * 2**-24)


@pytest.mark.parametrize("regions", LAYOUTS)
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_value_and_gradient_equal_the_loop_over_eq_1(regions, granularity):
    scale = torch.full((1, 1), 0.003) if granularity == "tensor" else torch.linspace(0.001, 0.2, 6)[:, None]
    weight = weights_for(scale).requires_grad_()
    penalty = penalty_of(regions, scale=scale, shape=(6, 400))
    gradient = torch.zeros_like(weight)
    penalty.add_gradient(weight, gradient, STRENGTH)
    total = 0.0
    for row in range(6):
        step = scale[row % len(scale)].double().item()
        positions = weight[row].detach().double() / step
        normalized = ((positions - regions.origin) / 128).tolist()
        total += reference.penalty(normalized, as_paper(regions), STRENGTH)
        expected = [reference.gradient(x, as_paper(regions), STRENGTH) / (128 * step) for x in normalized]
        # At the kink between two centroids the sign is that of a rounding error.
        phase = (positions - regions.origin) / min(regions.spacings) * 2
        is_smooth = (phase - phase.round()).abs() > 1e-4
        off = (gradient[row].double() - torch.tensor(expected)).abs()[is_smooth]
        assert off.max() <= STRENGTH * gradient_bound(regions, step)
    value = STRENGTH * penalty.value(weight)
    # Each term is below lambda and off by a few float32 roundings; their sum by a few more.
    assert value.item() == pytest.approx(total, abs=STRENGTH * weight.numel() * 1e-4, rel=1e-5)


@pytest.mark.parametrize("regions", LAYOUTS)
def test_the_gradient_is_that_of_autograd(regions):
    scale = torch.tensor([[0.01]])
    weight = weights_for(scale).requires_grad_()
    penalty = penalty_of(regions, scale=scale, shape=(6, 400))
    penalty.value(weight).backward()
    ours = torch.ones_like(weight)
    penalty.add_gradient(weight, ours, 1.0)
    # Added to 1, whose neighbours in float32 are 2**-23 apart.
    bound = 2 * gradient_bound(regions, 0.01) + 2**-23 * float(ours.abs().max())
    assert (ours - 1 - weight.grad).abs().max() <= bound


@pytest.mark.parametrize("regions", LAYOUTS)
@pytest.mark.parametrize("scale", [0.0078125, 0.0137])
def test_the_penalty_is_zero_exactly_on_centroids(regions, scale):
    weight = (torch.from_numpy(regions.levels).float() * scale).reshape(1, -1)
    penalty = penalty_of(regions, scale=torch.tensor([[scale]]), shape=tuple(weight.shape))
    assert penalty.value(weight).item() == 0
    gradient = torch.zeros_like(weight)
    penalty.add_gradient(weight, gradient, 1.0)
    exact = scale == 0.0078125  # a power of two: no rounding anywhere
    assert gradient.abs().max() <= (0 if exact else gradient_bound(regions, scale))
    off = weight + 0.25 * min(regions.spacings) * scale
    inside = off[:, :-1]
    assert penalty_of(regions, scale=torch.tensor([[scale]]), shape=tuple(inside.shape)).value(inside) > 0


@pytest.mark.parametrize("regions", LAYOUTS)
def test_a_step_against_the_gradient_leads_to_the_nearest_centroid(regions):
    scale = torch.tensor([[1.0]])
    weight = weights_for(scale)
    penalty = penalty_of(regions, scale=scale, shape=(6, 400))
    gradient = torch.zeros_like(weight)
    penalty.add_gradient(weight, gradient, 1.0)
    position, index = penalty.nearest(weight)
    levels = torch.from_numpy(regions.levels)
    distance = position - levels[index]
    is_inside = (position > regions.edges[0]) & (position < regions.edges[-1])
    is_clear = is_inside & (distance.abs() > 1e-3)
    assert torch.equal(gradient.sign()[is_clear], distance.sign()[is_clear])
    assert not gradient[~is_inside].any()


def test_eq_2_as_printed_pushes_half_of_the_weights_away():
    """PAPERS.md, S8-2: its intervals cover the line, so (-1)**xi is 1 everywhere; Eq. 1 has sign(cos)."""
    regions = as_paper(ONE)
    weights = np.linspace(-0.5, 0.48, 1001)
    true, printed = (
        np.array([of(float(weight), regions, 1.0) for weight in weights])
        for of in (reference.gradient, reference.printed_gradient)
    )
    assert np.allclose(np.abs(true), np.abs(printed))
    disagrees = np.mean(np.sign(true) != np.sign(printed))
    assert 0.45 < disagrees < 0.55
    step = 1e-6
    for weight in weights[5:-5:90]:
        slope = reference.penalty([float(weight + step)], regions, 1.0)
        slope = (slope - reference.penalty([float(weight - step)], regions, 1.0)) / (2 * step)
        assert slope == pytest.approx(reference.gradient(float(weight), regions, 1.0), abs=1e-3)


def test_outside_all_regions_there_is_no_penalty_and_clipping_brings_back():
    scale = torch.tensor([[0.01]])
    weight = torch.tensor([[-1.2, -0.9601, 0.0, 1.1201, 1.25]])
    penalty = penalty_of(THREE, scale=scale, shape=(1, 5))
    gradient = torch.zeros_like(weight)
    penalty.add_gradient(weight, gradient, 1.0)
    assert penalty.value(weight) == 0
    assert not gradient.any()
    penalty.clip(weight)
    assert torch.equal(weight, torch.tensor([[-96.0, -96.0, 0.0, 112.0, 112.0]]) * scale)


def test_rows_of_zeros_have_no_penalty_and_stay():
    scale = torch.tensor([[0.01], [0.0]])
    weight = torch.full((2, 3, 2), 0.013)
    penalty = penalty_of(TWO_LEVELS, scale=scale, shape=(2, 3, 2))
    gradient = torch.zeros_like(weight)
    penalty.add_gradient(weight, gradient, 1.0)
    assert gradient[0].all()
    assert not gradient[1].any()
    alone = penalty_of(TWO_LEVELS, scale=scale[:1], shape=(1, 3, 2))
    assert penalty.value(weight) == alone.value(weight[:1])
    penalty.clip(weight)
    assert not weight[1].any()
    penalty.compress(weight)
    assert not weight[1].any()


def test_a_single_centroid_has_no_penalty_and_takes_every_weight():
    regions = Regions(edges=(5,), spacings=())
    weight = torch.rand(2, 3, requires_grad=True)
    penalty = penalty_of(regions, scale=torch.tensor([[0.5]]), shape=(2, 3))
    penalty.value(weight).backward()
    assert not weight.grad.any()
    gradient = torch.zeros(2, 3)
    penalty.add_gradient(weight, gradient, 1.0)
    assert not gradient.any()
    penalty.clip(weight)
    assert torch.equal(weight.detach(), torch.full((2, 3), 2.5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    scale = torch.tensor([[0.01]])
    weight = weights_for(scale).to(dtype)
    penalty = penalty_of(THREE, scale=scale, shape=(6, 400))
    half, full = torch.zeros_like(weight), torch.zeros(6, 400)
    penalty.add_gradient(weight, half, STRENGTH)
    penalty.add_gradient(weight.float(), full, STRENGTH)
    assert torch.equal(half, full.to(dtype))
    penalty.clip(weight)
    penalty.compress(weight)
    position, index = penalty.nearest(weight)
    levels = torch.from_numpy(THREE.levels).float()
    assert weight.dtype == dtype
    # bfloat16 has eight digits: a level moves by 2**-8 of itself at most, so by less than half a level.
    assert (position - levels[index]).abs().max() <= 112 * 2**-8 * 1.001


@pytest.mark.parametrize("rows", [1, 3, 40_000])
def test_chunks_do_not_show(rows):
    """More weights than a chunk holds, and rows longer than a chunk."""
    columns = 120_000 // rows
    weight = weights_for(torch.tensor([[1.0]]), rows, columns)
    scale = torch.ones(rows, 1)
    whole = torch.zeros_like(weight)
    penalty_of(THREE, scale=scale, shape=(rows, columns)).add_gradient(weight, whole, 1.0)
    flat = torch.zeros(1, rows * columns)
    penalty_of(THREE, scale=scale[:1], shape=tuple(flat.shape)).add_gradient(weight.reshape(1, -1), flat, 1.0)
    assert torch.equal(whole.reshape(1, -1), flat)
