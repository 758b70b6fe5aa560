"""Lloyd-Max against the loop of tests/reference, its own objective, and the INT8 grid."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tests.reference import lloyd_max as reference

from subtone.quantize import lloyd_max as module
from subtone.quantize.lloyd_max import codebook_levels, lloyd_max

weights = hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-1, 1, width=32))


def rounding_of(values) -> float:
    """How far two sums of squares taken in different orders may differ, per value."""
    values = np.asarray(values, np.float64)
    return 8 * np.finfo(np.float64).eps * max(1.0, float(np.dot(values, values)))


@pytest.mark.parametrize("num_centroids", [2, 3, 8, 16])
def test_it_equals_the_loop_of_the_reference(num_centroids):
    values = np.random.default_rng(num_centroids).standard_normal(300)
    start = np.sort(values)[((np.arange(num_centroids) + 0.5) / num_centroids * 300).astype(int)]
    expected = reference.lloyd_max(values.tolist(), start.tolist())
    found = lloyd_max(values, num_centroids)
    np.testing.assert_allclose(found.centroids, expected, rtol=0, atol=1e-12)
    error = reference.mean_squared_error(values.tolist(), expected)
    assert found.errors[-1] == pytest.approx(error, abs=rounding_of(values))


@settings(max_examples=60, deadline=None)
@given(values=weights, num_centroids=st.integers(1, 20))
def test_the_error_never_rises_and_centroids_ascend(values, num_centroids):
    found = lloyd_max(values, num_centroids)
    assert np.all(np.diff(found.errors) <= rounding_of(values))
    assert np.all(np.diff(found.centroids) > 0)
    assert 1 <= found.centroids.size <= num_centroids
    assert values.min() <= found.centroids[0]
    assert found.centroids[-1] <= values.max()


@settings(max_examples=60, deadline=None)
@given(values=weights, num_centroids=st.integers(1, 20))
def test_every_centroid_is_the_mean_of_its_cell(values, num_centroids):
    centroids = lloyd_max(values, num_centroids).centroids
    wide = values.astype(np.float64)
    cells = np.searchsorted((centroids[1:] + centroids[:-1]) / 2, wide, side="right")
    means = [wide[cells == index].mean() for index in range(centroids.size)]
    np.testing.assert_allclose(centroids, means, rtol=0, atol=1e-12)


def test_few_distinct_values_are_exact():
    values = np.array([0.25, -0.5, 0.25, 0.75, -0.5])
    found = lloyd_max(values, 8)
    assert found.centroids.tolist() == [-0.5, 0.25, 0.75]
    assert found.errors[-1] <= rounding_of(values)


def test_a_value_on_a_midpoint_belongs_to_the_upper_cell():
    assert lloyd_max(np.array([0.0, 1.0, 2.0]), 2).centroids.tolist() == [0.0, 1.5]


def test_a_pruned_kernel_still_gets_all_its_centroids():
    values = np.concatenate([np.zeros(900), np.random.default_rng(0).standard_normal(100)])
    assert lloyd_max(values, 16).centroids.size == 16


def test_it_beats_evenly_spaced_levels_on_normal_weights():
    values = np.random.default_rng(1).standard_normal(20000)
    grid = np.linspace(values.min(), values.max(), 16)
    uniform = np.min((values[:, None] - grid) ** 2, axis=1).mean()
    # Max 1960, table I: 16 levels on a unit normal leave 0.009497 of the variance.
    assert lloyd_max(values, 16).errors[-1] == pytest.approx(0.0095, rel=0.05)
    assert lloyd_max(values, 16).errors[-1] < 0.5 * uniform


def test_it_stops_at_the_limit_of_iterations():
    values = np.random.default_rng(2).standard_normal(5000)
    assert len(lloyd_max(values, 64, max_iterations=3).errors) == 4


@pytest.mark.parametrize(
    ("values", "num_centroids", "complaint"),
    [
        (np.zeros(0), 4, "no values; give at least one"),
        (np.array([0.0, np.nan]), 4, "not finite"),
        (np.array([-np.inf, 0.0]), 4, "not finite"),
        (np.zeros(3), 0, "num_centroids=0 must be at least 1"),
    ],
)
def test_what_has_no_centroids_is_refused(values, num_centroids, complaint):
    with pytest.raises(ValueError, match=complaint):
        lloyd_max(values, num_centroids)


@pytest.mark.parametrize("bits", range(1, 9))
def test_a_codebook_is_ascending_distinct_and_on_the_int8_grid(bits):
    values = np.random.default_rng(bits).standard_normal(4000)
    levels = codebook_levels(values / np.abs(values).max(), bits)
    assert levels.dtype == np.int8
    assert np.all(np.diff(levels.astype(int)) > 0)
    assert 2 ** (bits - 1) < levels.size <= 2**bits


def test_centroids_that_snap_together_become_one_level():
    values = np.array([0.500, 0.501, 0.502, -1.0])
    assert codebook_levels(values, bits=2).tolist() == [-128, 64]


def test_millions_of_weights_take_one_sort_and_cheap_iterations(monkeypatch):
    """An iteration looks values up by search; it never touches all of them."""
    values = np.random.default_rng(3).standard_normal(10**6)
    touched = []

    def search(ordered, wanted, **options):
        touched.append(len(wanted))
        return np.ndarray.searchsorted(ordered, wanted, **options)

    monkeypatch.setattr(module.np, "searchsorted", search)
    found = lloyd_max(values, 16, max_iterations=50)
    assert sum(touched) == 15 * (len(found.errors) + 1)
