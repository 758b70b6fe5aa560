"""The General Quantizer in training: when it acts, what it does to a kernel, and what it leaves behind."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.quantize.gq_models import freeze_unfinished, gq, invoke, kernel, zoo
from tests.reference import gq as reference
from torch import nn

from subtone.quantize import Recipe, decoded_twin, method_of, quantizable_weights
from subtone.quantize.gq import GQ, annealed_alpha
from subtone.quantize.mu_law import alpha_in_range, mu_law_levels

LITERAL = {"alpha_start": 10.0, "alpha_end": 400.0, "alpha_unit": "range", "mu": 8.0, "scale": "unit"}


# The schedule ----------------------------------------------------------------------------------


def test_alpha_lies_on_the_line_of_eq_4():
    method = gq("bits = 4", start_step=10, end_step=50, alpha_start=10.0, alpha_end=400.0)
    assert [method.alpha_at(step) for step in (10, 20, 50)] == [10.0, 107.5, 400.0]
    assert annealed_alpha(3, alpha_start=1, alpha_end=1, start_step=0, end_step=9) == 1


def test_weights_change_at_the_interval_and_from_the_end_on_lie_on_their_centroids():
    model, method = kernel(), gq("bits = 4", start_step=3, every_steps=4, end_step=13)
    method.attach(model)
    acted, is_on_grid = [], []
    for step in range(16):
        with torch.no_grad():
            model.weight += 1e-3
        before = model.weight.clone()
        method.after_step(step)
        if not torch.equal(before, model.weight):
            acted.append(step)
        is_on_grid.append(len(model.weight.unique()) <= 64 * 16)
    assert acted == [3, 7, 11, 13, 14, 15]
    assert is_on_grid.index(True) == 13
    assert all(is_on_grid[13:])


def test_after_the_end_weights_return_to_the_same_centroids_and_the_rest_trains_on():
    """The range and mu are held, so a small step of the optimizer is taken back exactly."""
    model, method = nn.Linear(32, 16), gq("bits = 4")
    invoke(method, model)
    held, bias = model.weight.clone(), model.bias.clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    for step in range(9, 12):
        model(torch.ones(1, 32)).sum().backward()
        optimizer.step()
        assert not torch.equal(model.weight, held)
        method.after_step(step)
        assert torch.equal(model.weight, held)
    assert not torch.equal(model.bias, bias)


# One invocation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("bits", [2, 4, 6])
def test_an_invocation_is_the_papers_on_weights_over_their_range(bits, granularity):
    """Eq. 1 to 3 in float64 with the outermost weight on its pole; float32 keeps 7 digits of a range,
    and alpha (below 260) amplifies what it loses: test_mu_law.py derives (alpha / 2 + 9) 2**-24."""
    model, method = kernel(16, 40), gq(f"bits = {bits}\ngranularity = '{granularity}'", mu=3.0)
    weights = model.weight.detach().double().numpy()
    invoke(method, model, range(1))
    high, low = (
        (weights.max(), weights.min())
        if granularity == "tensor"
        else (weights.max(1, keepdims=True), weights.min(1, keepdims=True))
    )
    scale = np.maximum(high / 127, -low / 128) * np.ones((16, 1))
    levels = mu_law_levels(bits, 3.0)
    alpha = alpha_in_range(2.0, levels, "gap")
    expected = [
        reference.soft(row / 128 / step, levels / 128, alpha) * 128 * step
        for row, step in zip(weights, scale[:, 0], strict=True)
    ]
    tolerance = 128 * scale.max() * (alpha + 9) * 2.0**-24
    np.testing.assert_allclose(model.weight.detach(), expected, rtol=0, atol=tolerance)


def test_the_outermost_weight_stays_on_its_pole():
    """Dividing by the plain magnitude would cost 1/128 an invocation where the largest weight is positive."""
    model = kernel()
    with torch.no_grad():
        model.weight[:, 0] = 0.4
    invoke(gq("bits = 4", end_step=100), model)
    assert model.weight.max().item() == pytest.approx(0.4, rel=1e-3)


@pytest.mark.parametrize(("bits", "left"), [(4, 0.738), (5, 0.730), (6, 0.726)])
def test_the_literal_alpha_of_10_shrinks_weights_by_a_quarter_in_one_invocation(bits, left):
    """PAPERS.md, GQ-shrink: 27 % at 5 bits. 65536 weights: a deviation of 0.3 % of itself."""
    model = kernel(256, 256)
    before = model.weight.detach().double().numpy().ravel()
    invoke(gq(f"bits = {bits}\ngranularity = 'tensor'", **LITERAL), model, range(1))
    assert model.weight.std().item() / before.std() == pytest.approx(left, abs=0.005)
    plain = reference.soft(before[:4096], np.array(reference.centroids(bits, 8.0)), 10.0)
    np.testing.assert_allclose(model.weight.detach().ravel()[:4096], plain, rtol=0, atol=1e-6)


def test_the_literal_annealing_leaves_a_sixth_of_the_deviation_and_ours_all_of_it():
    """120 invocations, or 24 by default, with nothing learnt between them; the table of GQOptions."""
    left, error = {}, {}
    for name, options in (("literal", LITERAL | {"end_step": 120}), ("ours", {"end_step": 24})):
        model = kernel(256, 256)
        before = model.weight.detach().clone()
        at_once = freeze_unfinished(gq("bits = 5\ngranularity = 'tensor'"), model).weights["weight"]
        invoke(gq("bits = 5\ngranularity = 'tensor'", **options), model)
        left[name] = (model.weight.std() / before.std()).item()
        least = float(np.square(at_once.dequantize() - before.numpy()).mean())
        error[name] = (model.weight - before).square().mean().item() / least
    assert left["literal"] == pytest.approx(0.16, abs=0.01)
    assert error["literal"] > 100
    assert left["ours"] == pytest.approx(1.0, abs=0.005)
    assert error["ours"] == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(("bits", "left"), [(3, 0.88), (4, 0.98), (5, 0.99), (6, 0.99), (7, 0.99), (8, 0.99)])
def test_the_default_annealing_keeps_the_deviation(bits, left):
    """The table of GQOptions, here with one scale a channel; `left` is a hundredth or two below it."""
    model = kernel(64, 256)
    before = model.weight.std().item()
    invoke(gq(f"bits = {bits}", end_step=24), model)
    assert left <= model.weight.std().item() / before <= 1.01


def test_the_mu_of_least_soft_error_wanders_from_what_will_be_stored():
    """Why `mu_error` is "hard" unless it is asked otherwise."""
    errors = {}
    for kind in ("soft", "hard"):
        model = kernel(64, 256)
        before = model.weight.detach().clone()
        method = gq("bits = 4", mu_error=kind)
        invoke(method, model)
        errors[kind] = (model.weight - before).square().mean().item()
    assert errors["soft"] > 1.1 * errors["hard"]


def test_one_bit_keeps_the_mean_magnitude_of_every_channel():
    """The poles are -128 and 127 levels, so a lopsided channel may be off by 1/255."""
    model = kernel(8, 500)
    means = model.weight.detach().abs().mean(1)
    method = gq("bits = 1", end_step=30)
    invoke(method, model, range(30))
    np.testing.assert_allclose(model.weight.detach().abs().mean(1), means, rtol=1e-5)
    method.after_step(30)
    np.testing.assert_allclose(model.weight.detach().abs().mean(1), means, rtol=1 / 255)
    assert all(len(row.unique()) == 2 for row in model.weight)


def test_a_percentile_clips_once_and_not_again():
    model, rule = kernel(8, 500), "bits = 2\nrange = 'percentile'\npercentile = 90.0"
    ranges = model.weight.detach().abs().kthvalue(450, dim=1).values
    invoke(gq(rule, end_step=100, alpha_start=8.0), model)
    # A negative pole is 128 levels where the positive is 127; this little softness leaves both in place.
    assert torch.all(model.weight.abs().amax(1) <= ranges * 128 / 127 * (1 + 1e-6))
    assert torch.all(model.weight.abs().amax(1) >= ranges * 0.99)


def test_each_kernel_has_its_own_mu():
    model = nn.ModuleDict({"narrow": kernel(deviation=0.01), "even": kernel()})
    with torch.no_grad():
        model["narrow"].weight[:, 0] = 0.1
        model["even"].weight.uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    method = gq("bits = 4")
    invoke(method, model)
    mu = method.state_dict()["mu"]
    assert mu["even.weight"] < 0.5
    assert mu["narrow.weight"] > 10


# What it leaves behind -------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_kernel_ends_on_k_128_of_its_scale_and_the_frozen_model_is_the_trained_one(
    bits, record_property
):
    model, method = zoo(), gq(f"bits = {bits}\nactivations = 'dynamic'", end_step=4)
    invoke(method, model)
    method.detach()
    assert not method.weights
    found = method.freeze(model)
    assert list(found.weights) == list(quantizable_weights(model))
    assert not found.bias_shifts
    assert found.recipe["method"] == "gq"
    twin = decoded_twin(model, found)
    for path, stored in found.weights.items():
        assert (stored.bits, stored.grid) == (bits, "codebook")
        levels = np.unique(stored.levels())
        assert len(levels) <= 2**bits
        values = model.get_parameter(path).detach().reshape(stored.num_rows, -1).numpy()
        for row, scale in zip(values, stored.scale[:, 0], strict=True):
            assert set(row.tolist()) <= set((scale * levels.astype(np.float32)).tolist())
        assert torch.equal(twin.get_parameter(path), model.get_parameter(path))
        record_property(f"{path}: levels used of {2**bits}", len(levels))  # Fig. 4's remark, not asserted
    assert found.activation_bits["lstm.weight_ih_l0"] == 8
    assert found.activation_bits["conv.weight"] == 0


def test_tied_weights_are_quantized_once_and_stay_tied():
    model, method = zoo(), gq("bits = 3")
    invoke(method, model)
    assert model.out.weight is model.embed.weight
    found = method.freeze(model)
    assert "embed.weight" in found.weights
    assert "out.weight" not in found.weights
    twin = decoded_twin(model, found)
    assert twin.out.weight is twin.embed.weight


def test_bits_differ_by_rule_and_what_stays_float_is_left_alone():
    model = nn.ModuleDict({"a": kernel(seed=1), "b": kernel(seed=2), "c": kernel(seed=3)})
    kept = model["c"].weight.clone()
    recipe = Recipe.from_dict(
        {
            "name": "r",
            "method": "gq",
            "options": {"end_step": 3, "every_steps": 1},
            "rules": [
                {"pattern": "a.*", "bits": 2, "grid": "codebook"},
                {"pattern": "b.*", "bits": 5, "grid": "codebook", "granularity": "tensor"},
                {"keep_float": True},
            ],
        }
    )
    method = method_of(recipe)
    assert isinstance(method, GQ)
    invoke(method, model)
    found = method.freeze(model)
    assert {path: stored.bits for path, stored in found.weights.items()} == {"a.weight": 2, "b.weight": 5}
    assert len(model["b"].weight.unique()) <= 32
    assert torch.equal(model["c"].weight, kept)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bits", [1, 4])
def test_half_precision_weights_end_on_the_grid_as_far_as_they_can_hold_it(dtype, bits):
    model, method = kernel().to(dtype), gq(f"bits = {bits}")
    invoke(method, model)
    assert model.weight.dtype == dtype
    found = method.freeze(model)  # no warning: as its dtype holds it, no weight moves
    assert torch.equal(decoded_twin(model, found).weight, model.weight)


def test_zeros_are_legal():
    model = nn.ModuleDict({"zero": kernel(deviation=0.0), "row": kernel()})
    with torch.no_grad():
        model["row"].weight[3] = 0
    for bits in (1, 4):
        method = gq(f"bits = {bits}")
        invoke(method, model)
        method.freeze(model)
        assert not model["zero"].weight.any()
        assert not model["row"].weight[3].any()
        assert model["row"].weight.isfinite().all()


def test_a_frozen_parameter_is_left_until_the_end_and_then_quantized_once():
    model = nn.ModuleDict({"frozen": kernel(seed=1), "live": kernel(seed=2)})
    model["frozen"].weight.requires_grad_(False)
    before, method = model["frozen"].weight.clone(), gq("bits = 4")
    expected = freeze_unfinished(gq("bits = 4"), model).weights["frozen.weight"].dequantize()
    invoke(method, model, range(8))
    assert torch.equal(model["frozen"].weight, before)
    method.after_step(8)
    assert np.array_equal(model["frozen"].weight.numpy(), expected)
    method.freeze(model)
