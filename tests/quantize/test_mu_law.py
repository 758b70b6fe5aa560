"""Centroids and assignments of GQ against the literal matrix of tests/reference, and mu by brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reference import gq as reference
from torch.utils._python_dispatch import TorchDispatchMode

from subtone import numerics
from subtone.quantize import mu_law
from subtone.quantize.mu_law import (
    alpha_in_range,
    fit_mu,
    hard_assign,
    largest_mu,
    mu_candidates,
    mu_law_centroids,
    mu_law_levels,
    soft_assign,
)

MUS = (0.0, 0.5, 2.0, 8.0, 80.0)


def normal(count: int, deviation: float = 0.25, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)).mul_(deviation).clamp_(-1, 1)


def telling(levels: np.ndarray) -> torch.Tensor:
    """Random weights, every multiple of 1/256, which are all centroids and all ties, and what lies beyond."""
    grid = torch.arange(-256, 257) / 256
    return torch.cat([normal(2000), grid, torch.tensor([-3.0, -1.0001, 1.0001, 3.0, -0.0])])


# Centroids -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("mu", MUS)
def test_centroids_are_eq_5_on_k_128(bits, mu):
    levels = mu_law_levels(bits, mu)
    assert levels.dtype == np.int8
    assert (levels / 128).tolist() == sorted(set(reference.centroids(bits, mu)))


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("mu", MUS)
def test_centroids_ascend_and_are_symmetric_with_their_poles_at_one(bits, mu):
    found = mu_law_centroids(bits, mu)
    assert found.shape == (2**bits,)
    assert np.all(np.diff(found) > 0)
    np.testing.assert_allclose(found, -found[::-1], rtol=0, atol=1e-15)
    np.testing.assert_allclose(found[[0, -1]], [-1, 1], rtol=0, atol=1e-15)


def test_the_printed_form_moves_the_poles_to_mu_over_one_plus_mu():
    printed, ours = (mu_law_centroids(4, 8.0, divisor=divisor) for divisor in ("1+mu", "mu"))
    assert printed[-1] == pytest.approx(8 / 9)
    np.testing.assert_allclose(printed * 9 / 8, ours, rtol=1e-14)
    assert not mu_law_centroids(4, 0.0, divisor="1+mu").any()


def test_a_larger_mu_brings_all_inner_centroids_nearer_to_zero():
    inner = np.array([mu_law_centroids(4, mu)[8:15] for mu in MUS])
    assert np.all(np.diff(inner, axis=0) < 0)
    np.testing.assert_allclose(mu_law_centroids(4, 1e-9), mu_law_centroids(4, 0.0), atol=1e-9)


@pytest.mark.parametrize("mu", [-1.0, math.nan, math.inf])
def test_a_mu_that_warps_nothing_is_refused(mu):
    with pytest.raises(ValueError, match=rf"mu={mu} must be finite and at least 0; 8 is usual"):
        mu_law_centroids(4, mu)


@pytest.mark.parametrize(("bits", "about"), [(4, 90), (5, 30), (6, 9.9), (7, 2.6)])
def test_centroids_stay_apart_up_to_the_largest_mu_and_meet_beyond(bits, about):
    """PAPERS.md, GQ-snap, has the four numbers."""
    largest = largest_mu(bits)
    assert largest == pytest.approx(about, rel=0.01)
    assert all(len(mu_law_levels(bits, mu)) == 2**bits for mu in np.linspace(0, largest, 300))
    assert len(mu_law_levels(bits, largest * (1 + 1e-6))) < 2**bits
    assert mu_candidates(bits)[-1] <= largest * (1 + 1e-9)


def test_where_no_mu_helps_there_is_one_candidate():
    assert largest_mu(1) == largest_mu(8) == 0
    assert mu_candidates(8).tolist() == [0]
    assert len(mu_law_levels(8, 0.0)) == 255


# Assignment ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("alpha", [0.5, 10.0, 100.0, 500.0, 20000.0])
def test_the_closed_form_is_the_softmax_over_all_centroids(bits, alpha):
    """To float32 rounding. With u = 2**-24: the table's midpoint is off by u/2, the sigmoid's argument
    t by alpha u + 3 u |t|, the sigmoid by a quarter of that (|t| sigmoid' < 1/4) and 2 u; times a
    rise of 2 at most, and 3 u for what is added: (alpha / 2 + 9) u. And no more than twice the error
    of the plain float32 matrix, where that is above the last three roundings."""
    u = 2.0**-24
    for mu in (0.0, min(8.0, largest_mu(bits))):
        levels = mu_law_levels(bits, mu)
        weights = telling(levels)
        z = levels / 128
        expected = reference.soft(weights.double().numpy(), z, alpha)
        error = np.abs(soft_assign(weights, levels, alpha).double().numpy() - expected).max()
        plain = torch.softmax(-alpha * (weights[:, None] - torch.from_numpy(z).float()).abs(), 1)
        plain_error = np.abs((plain @ torch.from_numpy(z).float()).double().numpy() - expected).max()
        assert error <= (alpha / 2 + 9) * u
        assert error <= max(2 * plain_error, 3 * u)


@settings(max_examples=100, deadline=None)
@given(
    levels=st.lists(st.integers(-128, 127), min_size=2, max_size=40, unique=True),
    weights=st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=20),
    alpha=st.floats(0.01, 1000),
)
def test_any_set_of_centroids_will_do(levels, weights, alpha):
    codebook = np.array(sorted(levels), np.int8)
    values = torch.tensor(weights, dtype=torch.float32)
    found = soft_assign(values, codebook, alpha).double().numpy()
    expected = reference.soft(values.double().numpy(), codebook / 128, alpha)
    assert np.abs(found - expected).max() <= (alpha / 2 + 9) * 2.0**-24
    nearest = hard_assign(values, codebook).double().numpy() / 128
    assert np.array_equal(nearest, reference.hard(values.double().numpy(), codebook / 128))


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_hard_assignment_is_the_stored_one_ties_included(bits):
    levels = mu_law_levels(bits, min(8.0, largest_mu(bits)))
    weights = telling(levels)
    codes = numerics.codes_on_codebook(weights.numpy() * 3, np.float32(3 / 128), levels)
    found = hard_assign((weights * 3) / torch.tensor(3 / 128) / 128, levels)
    assert np.array_equal(found.numpy(), levels[codes])


def test_softness_ranges_from_the_mean_of_all_centroids_to_the_nearest():
    levels, weights = mu_law_levels(4, 8.0), normal(500)
    z = torch.from_numpy(levels / 128).float()
    torch.testing.assert_close(soft_assign(weights, levels, 1e-6), z.mean().expand(500), rtol=0, atol=1e-5)
    is_near_a_tie = ((weights[:, None] - (z[1:] + z[:-1]) / 2).abs() < 1e-3).any(1)
    hard, soft = hard_assign(weights, levels) / 128, soft_assign(weights, levels, 1e4)
    torch.testing.assert_close(soft[~is_near_a_tie], hard[~is_near_a_tie], rtol=0, atol=1e-6)


def test_alpha_a_gap_is_equally_soft_for_every_codebook():
    """Within the least gap: the same share of the way."""
    shares = []
    for bits, mu in ((2, 0.0), (3, 4.0), (4, 8.0), (5, 20.0)):
        levels = mu_law_levels(bits, mu)
        least = int(np.diff(levels.astype(int)).argmin())
        low, high = (int(level) / 128 for level in levels[least : least + 2])
        alpha = alpha_in_range(12.0, levels, "gap")
        found = soft_assign(torch.tensor([low + 0.25 * (high - low)]), levels, alpha)
        shares.append((found.item() - low) / (high - low))
    np.testing.assert_allclose(shares, 1 / (1 + math.exp(12 * 0.5)), rtol=0.02)
    assert alpha_in_range(12.0, levels, "range") == 12.0


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.nan, math.inf])
def test_an_alpha_without_a_softmax_is_refused(alpha):
    with pytest.raises(ValueError, match=rf"alpha={alpha} must be finite and above 0"):
        soft_assign(torch.zeros(3), mu_law_levels(2, 8.0), alpha)


class LargestResult(TorchDispatchMode):
    """How many numbers the largest tensor held that any operation gave."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numel = max(self.numel, result.numel())
        return result


def test_no_matrix_of_weights_by_centroids_is_made(monkeypatch):
    """Nothing is larger than the weights themselves, and all but the results is a chunk or a table."""
    monkeypatch.setattr(mu_law, "CHUNK", 1000)
    weights, levels = normal(30_003).reshape(3, -1).T, mu_law_levels(6, 8.0)
    with LargestResult() as seen:
        pieces = soft_assign(weights, levels, 50.0), hard_assign(weights, levels)
        fit_mu(weights, 6, 50.0)
    assert seen.numel <= weights.numel()
    monkeypatch.setattr(mu_law, "CHUNK", 10**6)
    whole = soft_assign(weights, levels, 50.0), hard_assign(weights, levels)
    # A vectorized sigmoid and the one for what is left over may differ in the last bit.
    torch.testing.assert_close(pieces[0], whole[0], rtol=0, atol=2.0**-23)
    assert torch.equal(pieces[1], whole[1])
    assert pieces[0].shape == weights.shape


# mu --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("alpha", [2.0, 8.0, math.inf])
@pytest.mark.parametrize("shape", ["normal", "laplace", "narrow"])
def test_the_fitted_mu_is_as_good_as_the_best_of_a_brute_force_search(bits, alpha, shape):
    """Within 2 %: the histogram moves a weight by 1/4096 at most, 1/32 of the least gap."""
    weights = {
        "normal": normal(800),
        "laplace": torch.from_numpy(np.random.default_rng(0).laplace(0, 0.12, 800).clip(-1, 1)).float(),
        "narrow": torch.cat([normal(799, 0.03), torch.ones(1)]),
    }[shape]
    wide = weights.double().numpy()

    def error(mu: float) -> float:
        if math.isinf(alpha):
            return reference.error_of_mu(wide, bits, mu, alpha)
        return reference.error_of_mu(wide, bits, mu, alpha_in_range(alpha, mu_law_levels(bits, mu), "gap"))

    tried = np.geomspace(1e-3, largest_mu(bits), 60)
    assert error(fit_mu(weights, bits, alpha)) <= 1.02 * min(error(mu) for mu in tried)


def test_weights_nearer_to_zero_ask_for_a_larger_mu():
    found = [
        fit_mu(torch.cat([normal(5000, deviation), torch.ones(1)]), 4, math.inf)
        for deviation in (0.4, 0.2, 0.1, 0.05)
    ]
    assert found == sorted(found)
    assert found[0] < 4 < 12 < found[-1]


def test_the_printed_objective_at_a_fixed_alpha_is_an_option():
    weights = normal(5000)
    per_range = fit_mu(weights, 4, 10.0, unit="range")
    assert reference.error_of_mu(weights.double().numpy(), 4, per_range, 10.0) <= min(
        reference.error_of_mu(weights.double().numpy(), 4, mu, 10.0) * 1.02 for mu in (0.01, 0.5, 2, 8, 40)
    )
