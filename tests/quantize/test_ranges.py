"""Ranges per tensor, channel and group, and what clip search promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.reference.clip_search import clip_search
from tests.reference.octav import octav as octav_loop

from subtone import numerics
from subtone.quantize import Settings, quantize_weight, ranges
from subtone.quantize.grids import cells_of
from subtone.quantize.ranges import absmax, clip_candidates, fit_grid, fit_range, octav, percentile


def heavy_tailed(*shape: int, seed: int = 0) -> torch.Tensor:
    """Weights with outliers, where clipping pays."""
    values = np.random.default_rng(seed).standard_t(3, shape) / 10
    return torch.from_numpy(values.astype(np.float32))


def error_of(weight: torch.Tensor, settings: Settings, rows: tuple[int, int], power: int) -> np.ndarray:
    """Summed error per cell, in double precision: `rows` is the shape of `scale`."""
    difference = weight.numpy() - quantize_weight(weight, settings).dequantize()
    return (np.abs(difference, dtype=np.float64) ** power).reshape(*rows, -1).sum(axis=-1)


@pytest.mark.parametrize(
    ("granularity", "groups", "shape"), [("tensor", 1, (1, 1)), ("channel", 1, (6, 1)), ("group", 4, (6, 4))]
)
def test_the_granularity_is_the_shape_of_the_scale(granularity, groups, shape):
    flat = heavy_tailed(6, 32)
    size = 8 if granularity == "group" else None
    for grid, zero_point in (("symmetric", (1, 1)), ("asymmetric", shape)):
        chosen = Settings(bits=4, grid=grid, granularity=granularity, group_size=size)
        found = fit_grid(flat, chosen, group_count=groups)
        assert tuple(found.scale.shape) == shape
        assert tuple(found.zero_point.shape) == zero_point


def test_absmax_and_minmax_are_those_of_each_cell():
    flat = heavy_tailed(6, 32)
    cells = flat.numpy().reshape(6, 4, 8)
    chosen = Settings(bits=5, granularity="group", group_size=8)
    expected = (np.abs(cells).max(-1) / np.float32(15)).astype(np.float16)
    assert np.array_equal(fit_grid(flat, chosen, group_count=4).scale.numpy(), expected)
    chosen = Settings(bits=5, grid="asymmetric", granularity="tensor")
    expected = (flat.numpy().max() - flat.numpy().min()) / np.float32(31)
    assert fit_grid(flat, chosen).scale.item() == expected


def test_one_bit_takes_the_mean_magnitude():
    flat = heavy_tailed(3, 500)
    grid = fit_grid(flat, Settings(bits=1))
    mean = np.abs(flat.numpy().astype(np.float64)).mean(axis=1, keepdims=True).astype(np.float32)
    assert np.array_equal(grid.scale.numpy(), 2 * mean)
    assert grid.zero_point.item() == 0.5


def test_groups_lie_along_the_inputs_of_one_tap():
    weight = torch.zeros(1, 4, 2)
    weight[0, :, 0] = torch.tensor([1.0, 1.0, 2.0, 2.0])
    weight[0, :, 1] = torch.tensor([4.0, 4.0, 8.0, 8.0])
    stored = quantize_weight(weight, Settings(bits=8, granularity="group", group_size=2))
    expected = (np.array([[1, 2, 4, 8]], np.float32) / np.float32(127)).astype(np.float16)
    assert np.array_equal(stored.scale, expected)


@pytest.mark.parametrize("percent", [50.1, 75.0, 90.0, 99.0, 99.9, 100.0])
def test_a_percentile_is_the_nearest_rank(percent):
    cells = heavy_tailed(3, 2, 250)
    expected = np.percentile(cells.numpy(), percent, axis=-1, method="inverted_cdf")
    assert np.array_equal(percentile(cells, percent).numpy(), expected)


def test_the_hundredth_percentile_is_the_whole_range():
    flat = heavy_tailed(3, 64)
    for grid in ("symmetric", "asymmetric"):
        whole = fit_grid(flat, Settings(bits=4, grid=grid))
        found = fit_grid(flat, Settings(bits=4, grid=grid, range="percentile", percentile=100.0))
        assert all(torch.equal(*parts) for parts in zip(whole, found, strict=True))


def test_an_asymmetric_percentile_cuts_both_ends():
    flat = torch.arange(-10.0, 91.0).reshape(1, 101)
    grid = fit_grid(flat, Settings(bits=8, grid="asymmetric", range="percentile", percentile=90.0)).numpy()
    low, high = -grid.scale * grid.zero_point, grid.scale * (255 - grid.zero_point)
    np.testing.assert_allclose([low.item(), high.item()], [0.0, 80.0], atol=1e-5)


def test_candidates_are_those_of_the_papers():
    assert clip_candidates(Settings(bits=2, range="clip_search")) == [
        1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5,
    ]  # fmt: skip
    fine = Settings(bits=2, range="clip_search", clip_low=0.8, clip_step=0.02)
    assert len(clip_candidates(fine)) == 11
    assert clip_candidates(fine)[-1] == 0.8


def test_no_clipping_is_always_a_candidate():
    chosen = Settings(bits=2, range="clip_search", clip_low=0.5, clip_high=0.7, clip_step=0.1)
    assert clip_candidates(chosen) == [1.0, 0.7, 0.6, 0.5]


@pytest.mark.parametrize("is_squared", [True, False])
@pytest.mark.parametrize("is_symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_clip_search_equals_the_loop_of_the_reference(bits, is_symmetric, is_squared):
    flat = heavy_tailed(5, 60, seed=bits)
    chosen = Settings(
        bits=bits,
        grid="symmetric" if is_symmetric else "asymmetric",
        range="clip_search",
        error="mse" if is_squared else "mae",
    )
    found = fit_grid(flat, chosen).numpy()
    for row, cell in enumerate(flat.numpy()):
        expected = clip_search(
            cell, clip_candidates(chosen), bits, is_symmetric=is_symmetric, is_squared=is_squared
        )
        assert found.scale[row] == expected.scale
        assert np.broadcast_to(found.zero_point, (5, 1))[row] == expected.zero_point


@pytest.mark.parametrize(("error", "power"), [("mae", 1), ("mse", 2)])
@pytest.mark.parametrize("grid", ["symmetric", "asymmetric"])
@pytest.mark.parametrize(
    ("granularity", "size", "rows"),
    [("tensor", None, (1, 1)), ("channel", None, (8, 1)), ("group", 16, (8, 4))],
)
def test_clip_search_never_loses_to_no_clipping(error, power, grid, granularity, size, rows):
    weight = heavy_tailed(8, 64)
    shape = {"bits": 3, "grid": grid, "granularity": granularity, "group_size": size}
    plain = error_of(weight, Settings(**shape), rows, power)
    searched = error_of(weight, Settings(**shape, range="clip_search", error=error), rows, power)
    assert np.all(searched <= plain)
    assert searched.sum() < 0.99 * plain.sum()


def test_each_error_measure_wins_on_its_own_objective():
    weight = heavy_tailed(64, 256)
    totals = {
        (chosen, power): error_of(
            weight, Settings(bits=3, range="clip_search", error=chosen), (64, 1), power
        ).sum()
        for chosen in ("mae", "mse")
        for power in (1, 2)
    }
    assert totals["mae", 1] < totals["mse", 1]
    assert totals["mse", 2] < totals["mae", 2]


def test_of_two_equal_errors_the_wider_range_wins():
    """Three levels on [1, 0.75]: a range of 1 loses 0.25 of the second, 0.75 loses it of the first."""
    chosen = Settings(bits=2, range="clip_search", clip_low=0.75, clip_step=0.25)
    assert fit_grid(torch.tensor([[1.0, 0.75]]), chosen).scale.item() == 1.0


def test_clip_search_leaves_a_constant_group_exact():
    constant = torch.full((2, 8), 0.3)
    chosen = Settings(bits=2, grid="asymmetric", range="clip_search")
    assert np.array_equal(quantize_weight(constant, chosen).dequantize(), constant.numpy())
    assert not quantize_weight(torch.zeros(2, 8), chosen).dequantize().any()


@pytest.mark.parametrize("chosen", [{}, {"range": "clip_search"}])
@pytest.mark.parametrize("offset", [0.01, -0.01, 3.0])
@pytest.mark.parametrize("width", [1e-9, 1e-7, 1e-5, 1e-3])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_groups_of_weights_that_all_but_agree_stay_near_them(bits, width, offset, chosen):
    """The zero_point of such a range is beyond float16, or its scale below."""
    weight = offset + width * torch.rand(2, 32, generator=torch.Generator().manual_seed(0))
    settings = Settings(bits=bits, grid="asymmetric", granularity="group", group_size=16, **chosen)
    error = np.abs(quantize_weight(weight, settings).dequantize() - weight.numpy()).max()
    # Two roundings to float16, relative, and the range once: as wide as it is, or as it was moved.
    assert error <= 2 * 2.0**-11 * 1.001 * abs(offset) + 2 * width


@pytest.mark.parametrize(
    ("low", "width", "is_constant"),
    [(0.01, 1e-9, True), (-3.0, 1e-4, True), (0.01, 1e-4, False), (-3.0, 0.1, False), (-0.5, 1.0, False)],
)
@pytest.mark.parametrize("range_", ["minmax", "clip_search"])
def test_an_asymmetric_group_whose_range_float16_cannot_tell_apart_counts_as_constant(
    low, width, is_constant, range_
):
    """The rule of docs/numerics.md, in its own words."""
    group = np.float32(low) + np.linspace(0, width, 16, dtype=np.float32)
    lowest, highest = group.min(), group.max()
    scale = (highest - lowest) / np.float32(15)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        stored = np.float32(np.float16(scale)), np.float32(np.float16(-lowest / scale))
        assert is_constant == (not abs(stored[0] * -stored[1] - lowest) <= highest - lowest)
    settings = Settings(bits=4, grid="asymmetric", granularity="group", group_size=16, range=range_)
    weight = torch.from_numpy(np.stack([np.concatenate([group, np.linspace(-1, 1, 16, dtype=np.float32)])]))
    made = quantize_weight(weight, settings)
    if is_constant:
        assert (made.scale[0, 0], made.zero_point[0, 0]) == (np.float16(abs(lowest)), -np.sign(lowest))
        assert not made.codes[0, :16].any()
    else:
        assert len(np.unique(made.dequantize()[0, :16])) > 2


def test_the_search_measures_the_grid_as_it_is_stored():
    """Group scales are float16: what is chosen must win after that rounding."""
    flat = heavy_tailed(16, 64, seed=5)
    chosen = Settings(
        bits=8, granularity="group", group_size=16, range="clip_search", clip_low=0.99, clip_step=0.001
    )
    found = fit_grid(flat, chosen, group_count=4)
    assert torch.equal(found.scale, found.scale.to(torch.float16).float())
    cells = cells_of(flat, granularity="group", groups=4).numpy()
    totals = []
    for factor in clip_candidates(chosen):
        scale = numerics.symmetric_grid(absmax(torch.from_numpy(cells)).numpy() * np.float32(factor), 8).scale
        stored = numerics.Grid(scale.astype(np.float16).astype(np.float32)[..., None], np.float32(128))
        codes = numerics.codes_on_grid(cells, stored, 8, is_symmetric=True)
        difference = cells - stored.scale * (codes - stored.zero_point)
        totals.append(np.abs(difference).sum(-1, dtype=np.float64))
    difference = flat.numpy() - quantize_weight(flat, chosen).dequantize()
    assert np.array_equal(np.abs(difference).reshape(16, 4, 16).sum(-1, dtype=np.float64), np.min(totals, 0))


@pytest.mark.parametrize("at_once", [1, 7, 64 * 11 * 3, 2**26])
@pytest.mark.parametrize("grid", ["symmetric", "asymmetric"])
def test_the_search_finds_the_same_in_blocks_of_any_size(monkeypatch, grid, at_once):
    flat = heavy_tailed(10, 64, seed=3)
    shape = {"bits": 3, "grid": grid, "granularity": "group", "group_size": 16, "range": "clip_search"}
    expected = fit_range(flat, Settings(**shape), group_count=4)
    monkeypatch.setitem(ranges.SEARCHED_AT_ONCE, "cpu", at_once)
    found = fit_range(flat, Settings(**shape), group_count=4)
    assert all(torch.equal(*parts) for parts in zip(found.grid, expected.grid, strict=True))
    assert all(torch.equal(*parts) for parts in zip(found[1:], expected[1:], strict=True))


@pytest.mark.parametrize("grid", ["symmetric", "asymmetric"])
def test_a_fit_says_the_range_that_its_grid_covers(grid):
    """The grid of bits b is the range `factor * low` to `factor * high` in equal steps."""
    flat, bits = heavy_tailed(6, 40), 3
    found = fit_range(flat, Settings(bits=bits, grid=grid, range="clip_search"))
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    if grid == "symmetric":
        high = torch.maximum(high, -low)
        low = -high
    assert torch.equal(found.low, low)
    assert torch.equal(found.high, high)
    assert {round(factor, 2) for factor in found.factor.flatten().tolist()} <= set(
        clip_candidates(Settings(bits=bits, range="clip_search"))
    )
    lowest = 1 if grid == "symmetric" else 0
    ends = [found.grid.scale * (code - found.grid.zero_point) for code in (lowest, 2**bits - 1)]
    torch.testing.assert_close(ends, [found.factor * low, found.factor * high])


def test_a_scale_beyond_float16_is_not_chosen_where_a_clipped_one_fits():
    """70000 and 0.95 * 70000 exceed float16; 0.9 * 70000 is 63008 in it."""
    flat = torch.tensor([[70000.0, 1.0, 1.0, 1.0]])
    chosen = Settings(bits=2, granularity="group", group_size=2, range="clip_search", clip_low=0.9)
    assert fit_grid(flat, chosen, group_count=2).scale.tolist() == [[63008.0, 1.0]]


@pytest.mark.parametrize("bits", range(2, 9))
def test_octav_equals_the_loop_of_its_formula(bits):
    magnitudes = heavy_tailed(5, 2, 90, seed=bits).abs()
    magnitudes[0, 0] = 0.3
    magnitudes[1, 0] = 0
    magnitudes[2, 0, 1:] = 0
    found = octav(magnitudes, bits)
    expected = [[octav_loop(cell.tolist(), bits) for cell in row] for row in magnitudes]
    # Both are sums in double precision, in orders of their own, rounded to float32 once.
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1.2e-7, atol=0)


def test_octav_leaves_equal_magnitudes_exact():
    weight = torch.tensor([[0.3, -0.3, 0.3, -0.3], [0.0, 0.0, 0.0, 0.0]])
    found = fit_grid(weight, Settings(bits=4, range="octav"))
    assert torch.equal(found.scale, fit_grid(weight, Settings(bits=4)).scale)


@pytest.mark.parametrize("grid", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("bits", [2, 3, 4, 5])
def test_octav_lowers_the_squared_error_of_heavy_tails(bits, grid):
    """And clip search, which measures what OCTAV predicts, is at least as good."""
    weight, rows = heavy_tailed(8, 500), (8, 1)
    totals = [
        error_of(weight, Settings(bits=bits, grid=grid, **chosen), rows, 2).sum()
        for chosen in (
            {"range": "clip_search", "error": "mse", "clip_low": 0.02, "clip_step": 0.02},
            {"range": "octav"},
            {},
        )
    ]
    assert totals[0] <= totals[1] < 0.98 * totals[2]


def test_an_asymmetric_octav_clips_about_the_mean_and_never_beyond_the_range():
    flat = torch.cat((torch.full((1, 50), 2.0), torch.full((1, 49), 2.25), torch.tensor([[9.0]])), dim=1)
    found = fit_range(flat, Settings(bits=4, grid="asymmetric", range="octav"))
    assert found.low.item() == 2.0
    assert 2.25 < found.high.item() < 9.0


def test_an_empty_weight_is_refused():
    with pytest.raises(ValueError, match=r"a weight of shape \(0, 4\) has no values to quantize"):
        fit_grid(torch.zeros(0, 4), Settings(bits=4))
