"""Layouts of evenly spaced centroids: legal ones, and the one of least squared error."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reference import absolute_cosine as reference

from subtone.quantize.lloyd_max import lloyd_max
from subtone.quantize.regions import Regions, fit_regions


def bell(seed: int = 0, *, shape: str = "normal", count: int = 20_000) -> np.ndarray:
    """Weights as positions: over their scale, 128 the range."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(count) if shape == "normal" else rng.laplace(size=count)
    return values / np.abs(values).max() * 128


def error_of(positions: np.ndarray, levels: np.ndarray) -> float:
    nearest = levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, positions, side="right")]
    return float(np.mean((positions - nearest) ** 2))


@pytest.mark.parametrize("max_regions", [1, 2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_no_layout_has_less_error_than_the_one_found(max_regions, seed):
    """All layouts of up to four centroids among -13 .. 13, around weights in -11 .. 11."""
    rng = np.random.default_rng(seed)
    positions = np.clip(rng.laplace(scale=4, size=14), -11, 11)
    found = fit_regions(positions, bits=2, max_regions=max_regions)
    assert set(found.levels.tolist()) <= set(range(-13, 14))
    least = reference.least_error(positions.tolist(), range(-13, 14), 4, max_regions)
    error = reference.squared_error(positions.tolist(), tuple(found.levels.tolist()))
    assert error == pytest.approx(least, rel=1e-9)


def test_at_one_bit_no_two_centroids_have_less_error():
    positions = np.clip(np.random.default_rng(0).laplace(loc=2, scale=6, size=40), -20, 20)
    found = fit_regions(positions, bits=1, max_regions=3)
    pairs = [(low, high) for low in range(-20, 21) for high in range(low, 21)]
    least = min(reference.squared_error(positions.tolist(), pair) for pair in pairs)
    error = reference.squared_error(positions.tolist(), tuple(found.levels.tolist()))
    assert error == pytest.approx(least, rel=1e-9)
    assert found.origin == found.levels[0]


@pytest.mark.parametrize("max_regions", [1, 3, 5])
@pytest.mark.parametrize("bits", range(1, 9))
def test_centroids_fit_the_bits_the_int8_grid_and_common_multiples(bits, max_regions):
    found = fit_regions(bell(bits, shape="laplace"), bits, max_regions=max_regions)
    levels = found.levels
    assert levels.size <= 2**bits
    assert levels.size > 2 ** (bits - 1) or bits == 8
    assert -128 <= levels[0] < levels[-1] <= 127
    assert len(found.spacings) <= max_regions
    for low, high, spacing in zip(found.edges, found.edges[1:], found.spacings, strict=False):
        assert (low - found.origin) % spacing == 0 == (high - found.origin) % spacing
    if bits > 1:
        assert found.origin == 0
    assert Regions.of_levels(levels.tolist(), origin=found.origin) == found


@pytest.mark.parametrize("shape", ["normal", "laplace"])
@pytest.mark.parametrize("bits", [2, 3, 4, 5])
def test_the_error_lies_between_lloyd_maxs_and_the_uniform_grids(bits, shape):
    positions = bell(bits, shape=shape)
    lower = lloyd_max(positions, 2**bits).errors[-1]
    limit = 2 ** (bits - 1) - 1
    uniform = error_of(positions, np.arange(-limit, limit + 1) * (128 / limit))
    errors = [error_of(positions, fit_regions(positions, bits, max_regions=r).levels) for r in (1, 2, 3, 5)]
    assert lower <= errors[-1] <= errors[2] <= errors[1] <= errors[0] < uniform
    assert errors[-1] < 1.25 * lower  # five regions come near


@pytest.mark.parametrize("bits", range(1, 9))
def test_more_bits_leave_less_error(bits):
    positions = bell()
    errors = [
        error_of(positions, fit_regions(positions, b, max_regions=3).levels) for b in range(1, bits + 1)
    ]
    assert np.all(np.diff(errors) < 0)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.floats(-140, 140, width=32), min_size=1, max_size=30), st.integers(1, 8), st.integers(1, 5)
)
def test_any_weights_have_a_layout_and_more_regions_never_hurt(values, bits, max_regions):
    """Weights beyond the range too, as a percentile leaves them."""
    positions = np.array(values)
    few, more = (fit_regions(positions, bits, max_regions=r) for r in (max_regions, max_regions + 1))
    slack = 1e-9 * (1 + float(np.square(positions).sum()))
    assert error_of(positions, more.levels) <= error_of(positions, few.levels) + slack
    assert few.levels.size <= 2**bits


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_equal_weights_are_one_centroid_without_a_region(bits):
    assert fit_regions(np.zeros(9), bits, max_regions=3) == Regions(edges=(0,), spacings=())
    assert fit_regions(np.full(9, 128.0), bits, max_regions=3).levels.tolist() == [127]
    assert fit_regions(np.full(9, -128.0), bits, max_regions=3).levels.tolist() == [-128]


@pytest.mark.parametrize(
    ("edges", "spacings", "complaint"),
    [
        ((-4, 4), (), "regions need one edge more"),
        ((4, -4), (2,), "must ascend and be positive"),
        ((-4, 4), (-2,), "must ascend and be positive"),
        ((-4, 4), (3,), "spacing=3 does not divide the edges -4 and 4"),
        ((-6, 3, 7), (3, 2), "spacing=2 does not divide the edges 3 and 7"),
    ],
)
def test_what_is_no_layout_is_refused(edges, spacings, complaint):
    with pytest.raises(ValueError, match=complaint):
        Regions(edges=edges, spacings=spacings)


@pytest.mark.parametrize("values", [np.zeros(0), np.array([0.0, np.nan]), np.array([np.inf])])
def test_weights_without_a_layout_are_refused(values):
    with pytest.raises(ValueError, match="regions of no weights, or of weights that are not finite"):
        fit_regions(values, 4, max_regions=3)


def test_a_number_of_regions_below_one_is_refused():
    with pytest.raises(ValueError, match="regions=0 must be at least 1; 3 is usual"):
        fit_regions(np.zeros(3), 4, max_regions=0)
