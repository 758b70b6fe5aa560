"""The divergence from what a BatchNorm saw in training, and the networks that have one to look at."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reference import batch_norms as reference
from torch import nn

from subtone.quantize.batch_norms import divergence, divergences, held_still, trained_batch_norms

EPSILON = 1e-6


def norm_of(means: list[float], variances: list[float]) -> nn.BatchNorm1d:
    norm = nn.BatchNorm1d(len(means))
    norm.running_mean = torch.tensor(means)
    norm.running_var = torch.tensor(variances)
    return norm


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(1, 3, 2), (2, 3, 50), (5, 3, 1)])
def test_it_equals_the_loop_over_eq_2(shape):
    entering, means, variances = noise(*shape) * 2 + 0.5, [0.3, -1.0, 0.0], [0.5, 3.0, 0.0]
    expected = reference.layer_divergence(entering.double().tolist(), means, variances, EPSILON)
    found = float(divergence(entering, norm_of(means, variances), epsilon=EPSILON))
    # (sigma_hat^2 + (mu_hat - mu)^2) / sigma^2 is of some 100 float32 terms.
    assert found == pytest.approx(expected, rel=1e-4)


def test_two_dimensions_and_none_are_statistics_over_all_but_the_channels():
    norm, entering = norm_of([0.3, -1.0], [0.5, 3.0]), noise(3, 2, 4, 5)
    flat = float(divergence(entering.flatten(2), norm, epsilon=EPSILON))
    assert float(divergence(entering, norm, epsilon=EPSILON)) == pytest.approx(flat, rel=1e-6)
    rows = entering.movedim(1, -1).reshape(-1, 2)
    assert float(divergence(rows, norm, epsilon=EPSILON)) == pytest.approx(flat, rel=1e-5)


def test_it_is_zero_where_the_statistics_are_those_the_batch_norm_stored():
    norm, entering = nn.BatchNorm1d(6, momentum=1.0), noise(4, 6, 100) * 3 - 1
    norm.train()(entering)
    # Rounding of both variances, about the square root of 400 terms each.
    assert float(divergence(entering, norm, epsilon=EPSILON)) == pytest.approx(0.0, abs=1e-5)


@settings(max_examples=50, deadline=None)
@given(
    shift=st.floats(-5, 5),
    ratio=st.floats(-3, 3).map(math.exp),
    epsilon=st.sampled_from([1e-6, 1e-2]),
)
def test_it_is_above_zero_wherever_the_statistics_differ(shift, ratio, epsilon):
    norm, entering = nn.BatchNorm1d(3, momentum=1.0), noise(2, 3, 40)
    norm.train()(entering)
    found = float(divergence(entering * ratio + shift, norm, epsilon=epsilon))
    assert found >= -1e-6
    if abs(shift) > 0.05 or abs(math.log(ratio)) > 0.05:
        assert found > 1e-4


def test_the_stored_gaussian_comes_first():
    """KL(stored || features) punishes features that are too narrow; the other direction those too wide."""
    norm, entering = norm_of([0.0], [1.0]), noise(1, 1, 4000)
    narrow = float(divergence(entering / 4, norm, epsilon=EPSILON))
    wide = float(divergence(entering * 4, norm, epsilon=EPSILON))
    assert narrow > 5 * wide
    assert narrow == pytest.approx(math.log(1 / 4) - 0.5 * (1 - 16), rel=0.1)


def test_gradients_reach_what_enters():
    entering = noise(2, 3, 20).requires_grad_()
    divergence(entering, norm_of([1.0, 0.0, 0.0], [1.0, 1.0, 4.0]), epsilon=EPSILON).backward()
    assert entering.grad is not None
    assert (entering.grad.abs().sum((0, 2)) > 0).all()


def test_a_channel_that_never_moved_has_a_finite_divergence_and_draws_values_together():
    entering = noise(1, 1, 100).requires_grad_()
    found = divergence(entering, norm_of([0.0], [0.0]), epsilon=EPSILON)
    found.backward()
    assert math.isfinite(float(found.detach()))
    after = divergence(entering.detach() - 0.1 * entering.grad, norm_of([0.0], [0.0]), epsilon=EPSILON)
    assert float(after) < float(found.detach())


def test_a_network_without_batch_norm_is_told_to_calibrate_on_recordings():
    with pytest.raises(ValueError, match=r"network=Linear has no BatchNorm.*calibrate it on recordings"):
        trained_batch_norms(nn.Linear(2, 2))


def test_a_batch_norm_without_statistics_of_training_is_named():
    network = nn.Sequential(norm_of([1.0], [2.0]), nn.BatchNorm1d(1))
    with pytest.raises(
        ValueError, match=r"BatchNorm 1 has running_mean=0 and running_var=1 in all 1 channels"
    ):
        trained_batch_norms(network)
    network[1] = nn.BatchNorm1d(1, track_running_stats=False)
    with pytest.raises(ValueError, match="BatchNorm 1 has track_running_stats=False"):
        trained_batch_norms(network)
    for mean, variance in ((math.nan, 1.0), (0.0, -1.0), (0.0, math.inf)):
        network[1] = norm_of([mean], [variance])
        with pytest.raises(
            ValueError, match="BatchNorm 1 holds statistics that are not finite or a variance below 0"
        ):
            trained_batch_norms(network)


def test_a_batch_norm_that_is_not_reached_is_named():
    network = nn.Sequential(norm_of([1.0], [2.0]), norm_of([1.0], [2.0]))
    with pytest.raises(ValueError, match=r"does not reach BatchNorm 1 \(1 of 2 in all\)"):
        divergences(network, noise(1, 1, 5), forward=network[0])


def test_one_that_is_entered_twice_counts_twice():
    norm = norm_of([0.5], [2.0])
    once = divergences(nn.Sequential(norm), noise(1, 1, 50))
    again = divergences(nn.Sequential(norm), noise(1, 1, 50), forward=lambda x: (norm(x), norm(x)))
    assert again["0"] == pytest.approx(2 * once["0"], rel=1e-6)


def test_a_network_held_still_is_afterwards_as_it_was():
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Linear(2, 2))
    network[1].eval()
    network[2].weight.requires_grad_(False)
    before = [(module.training) for module in network.modules()]
    wanted = [parameter.requires_grad for parameter in network.parameters()]
    with held_still(network):
        assert not any(module.training for module in network.modules())
        assert not any(parameter.requires_grad for parameter in network.parameters())
    assert [module.training for module in network.modules()] == before
    assert [parameter.requires_grad for parameter in network.parameters()] == wanted
    assert np.any(before)
