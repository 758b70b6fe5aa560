"""The grids of training equal those of the run time bit for bit; gradients pass where they should."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from subtone import numerics, qtensor
from subtone.quantize import Settings, fake_quantize_activations, fake_quantize_weight, quantize_weight
from subtone.quantize import grids as torch_grids

ALL_BITS = range(1, 9)
UNIFORM = [
    {"grid": "symmetric"},
    {"grid": "asymmetric"},
    {"grid": "symmetric", "granularity": "tensor"},
    {"grid": "asymmetric", "granularity": "tensor"},
    {"grid": "symmetric", "granularity": "group", "group_size": 4},
    {"grid": "asymmetric", "granularity": "group", "group_size": 4},
    {"grid": "symmetric", "granularity": "group", "group_size": 4, "range": "clip_search"},
    {"grid": "asymmetric", "range": "percentile", "percentile": 90.0},
]
floats = st.floats(-4, 4, width=32)
matrices = hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 9)), elements=floats)


def settings_of(bits: int, **options) -> Settings:
    if bits == 1 and options.get("grid") == "symmetric":
        options.pop("range", None)
    return Settings(bits=bits, **options)


def random_weight(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def same_bits(left, right) -> bool:
    left, right = (np.ascontiguousarray(side, np.float32).view(np.uint32) for side in (left, right))
    return np.array_equal(left, right)


# Weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", UNIFORM)
@pytest.mark.parametrize("bits", ALL_BITS)
def test_fake_weights_are_the_stored_weights_bit_for_bit(bits, options):
    weight = random_weight(6, 8, 3, seed=bits)
    weight[0] = 0
    weight[1] = 0.3
    chosen = settings_of(bits, **options)
    assert same_bits(fake_quantize_weight(weight, chosen), quantize_weight(weight, chosen).dequantize())


@settings(max_examples=150, deadline=None)
@given(weights=matrices, bits=st.sampled_from(ALL_BITS), is_symmetric=st.booleans())
def test_grids_and_codes_equal_those_of_numerics(weights, bits, is_symmetric):
    rows = torch.from_numpy(weights)
    if is_symmetric:
        magnitude = np.abs(weights).max(axis=1, keepdims=True)
        twin, own = (
            (torch_grids.one_bit_grid, numerics.one_bit_grid)
            if bits == 1
            else (
                lambda value: torch_grids.symmetric_grid(value, bits),
                lambda value: numerics.symmetric_grid(value, bits),
            )
        )
        found, expected = twin(torch.from_numpy(magnitude)), own(magnitude)
    else:
        low, high = weights.min(axis=1, keepdims=True), weights.max(axis=1, keepdims=True)
        found = torch_grids.asymmetric_grid(torch.from_numpy(low), torch.from_numpy(high), bits)
        expected = numerics.asymmetric_grid(low, high, bits)
    assert all(same_bits(mine, theirs) for mine, theirs in zip(found.numpy(), expected, strict=True))
    codes = torch_grids.codes_on_grid(rows, found, bits, is_symmetric=is_symmetric)
    expected_codes = numerics.codes_on_grid(weights, expected, bits, is_symmetric=is_symmetric)
    assert np.array_equal(codes.numpy(), expected_codes)


def test_rounding_and_flattening_equal_the_definitions():
    values = np.array([-2.5, -1.5, -0.5, 0.49999997, 0.5, 1.5, 8388609.0], np.float32)
    assert same_bits(torch_grids.round_half_up(torch.from_numpy(values)), numerics.round_half_up(values))
    weight = random_weight(2, 4, 3, 5)
    flat = torch_grids.flatten_weight(weight)
    assert same_bits(flat, qtensor.flatten_weight(weight.numpy()))
    assert same_bits(torch_grids.unflatten_weight(flat, (2, 4, 3, 5)), weight)


def test_group_scales_are_rounded_as_they_are_stored():
    grid = torch_grids.asymmetric_grid(-random_weight(3, 4).abs(), random_weight(3, 4, seed=1).abs(), 4)
    stored = torch_grids.as_stored(grid).numpy()
    assert same_bits(stored.scale, qtensor.as_stored(grid.numpy().scale))
    assert same_bits(stored.zero_point, qtensor.as_stored(grid.numpy().zero_point, like=stored.scale))


@settings(max_examples=80, deadline=None)
@given(weights=matrices, bits=st.sampled_from(ALL_BITS), is_symmetric=st.booleans())
def test_fake_quantization_is_idempotent_on_its_grid(weights, bits, is_symmetric):
    """Values on the grid stay: on the grid that made them, since a new fit may find another range."""
    flat = torch.from_numpy(weights)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    if is_symmetric:
        magnitude = flat.abs().amax(1, keepdim=True)
        one_bit = torch_grids.one_bit_grid(magnitude)
        grid = one_bit if bits == 1 else torch_grids.symmetric_grid(magnitude, bits)
    else:
        grid = torch_grids.asymmetric_grid(low, high, bits)
    codes = torch_grids.codes_on_grid(flat, grid, bits, is_symmetric=is_symmetric)
    once = torch_grids.values_on_grid(codes, grid)
    is_wide_enough = (grid.scale == 0) | (grid.scale.abs() > 1e-4 * (grid.scale * grid.zero_point).abs())
    again = torch_grids.codes_on_grid(once, grid, bits, is_symmetric=is_symmetric)
    assert torch.equal(*(torch.where(is_wide_enough, part, 0) for part in (again, codes)))


@settings(max_examples=80, deadline=None)
@given(weights=matrices, bits=st.integers(2, 8), grid=st.sampled_from(["symmetric", "asymmetric"]))
def test_the_error_is_at_most_half_a_step(weights, bits, grid):
    chosen = Settings(bits=bits, grid=grid)
    scale = quantize_weight(torch.from_numpy(weights), chosen).scale
    error = np.abs(fake_quantize_weight(torch.from_numpy(weights), chosen).numpy() - weights)
    # Float32 rounds the quotient, the sum with zero_point (up to 2**8 near it, beyond it for a
    # range far from 0) and the product: a few units in the last place of the largest weight.
    rounding = 6 * np.finfo(np.float32).eps * np.abs(weights).max(initial=0)
    assert np.all(error <= scale / 2 * (1 + 1e-5) + rounding)


@pytest.mark.parametrize("options", UNIFORM)
def test_permuting_channels_permutes_the_result(options):
    weight, order = random_weight(7, 8), torch.randperm(7, generator=torch.Generator().manual_seed(0))
    chosen = Settings(bits=4, **options)
    assert same_bits(fake_quantize_weight(weight[order], chosen), fake_quantize_weight(weight, chosen)[order])


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("value", [0.0, 0.1, -3.0, 1e-30])
def test_a_constant_range_is_exact(bits, value):
    weight = torch.full((2, 8), value)
    assert torch.equal(fake_quantize_weight(weight, Settings(bits=bits, grid="asymmetric")), weight)


def test_a_constant_group_is_exact_where_float16_holds_it():
    weight = torch.tensor([[0.25] * 4 + [-1.5] * 4 + [0.0] * 4])
    chosen = Settings(bits=2, grid="asymmetric", granularity="group", group_size=4)
    assert torch.equal(fake_quantize_weight(weight, chosen), weight)


def test_gradient_is_one_inside_the_range_and_zero_where_values_were_clipped():
    weight = torch.tensor([[-1.0, -0.2, 0.0, 0.3, 0.5, 10.0]], requires_grad=True)
    chosen = Settings(bits=4, range="percentile", percentile=60.0)
    output = fake_quantize_weight(weight, chosen)
    (output * torch.arange(1.0, 7.0)).sum().backward()
    # The 60th percentile of magnitudes is 0.5: -1 and 10 are clipped to it.
    assert output.detach()[0, 0] == -0.5
    assert weight.grad is not None
    assert weight.grad.tolist() == [[0.0, 2.0, 3.0, 4.0, 5.0, 0.0]]


def test_half_precision_keeps_its_type_and_is_computed_in_float32():
    weight = random_weight(3, 8).to(torch.bfloat16)
    output = fake_quantize_weight(weight, Settings(bits=4))
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, fake_quantize_weight(weight.float(), Settings(bits=4)).to(torch.bfloat16))


def test_what_stays_float_comes_back_and_a_codebook_is_refused():
    weight = random_weight(3, 8)
    assert fake_quantize_weight(weight, Settings(keep_float=True)) is weight
    with pytest.raises(ValueError, match=r"a\.weight has grid='codebook', which has no uniform grid"):
        fake_quantize_weight(weight, Settings(bits=4, grid="codebook"), name="a.weight")


# Activations ---------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(features=matrices, bits=st.integers(2, 8), exponent=st.integers(-140, 120))
def test_fake_activations_are_the_run_times_bit_for_bit(features, bits, exponent):
    features = (features.astype(np.float64) * 2.0**exponent).astype(np.float32)
    expected = numerics.quantize_dynamic(features, bits)
    found = fake_quantize_activations(torch.from_numpy(features), bits)
    assert same_bits(found, expected.levels.astype(np.float32) * expected.scale)


@pytest.mark.parametrize("width", [1, 2, 3, 64, 257, 1024])
def test_fake_activations_equal_the_run_time_at_every_width(width):
    features = np.random.default_rng(width).standard_normal((50, width)).astype(np.float32)
    expected = numerics.quantize_dynamic(features)
    found = fake_quantize_activations(torch.from_numpy(features))
    assert same_bits(found, expected.levels.astype(np.float32) * expected.scale)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_fake_activations_equal_the_run_time_half_way_between_levels(bits):
    """Where one unit in the last place of the inverse scale decides the level."""
    limit = numerics.largest_symmetric_level(bits)
    absmax = np.random.default_rng(bits).uniform(0.5, 2, (2000, 1)).astype(np.float32)
    halves = absmax * (np.arange(limit, dtype=np.float32) + np.float32(0.5)) / np.float32(limit)
    features = np.concatenate((absmax, halves, -halves), axis=1)
    expected = numerics.quantize_dynamic(features, bits)
    found = fake_quantize_activations(torch.from_numpy(features), bits)
    assert same_bits(found, expected.levels.astype(np.float32) * expected.scale)


def test_frames_do_not_see_each_other_whatever_stands_before_them():
    features = random_weight(2, 3, 5, 16)
    together = fake_quantize_activations(features, 4)
    assert torch.equal(together[1, 2, 3], fake_quantize_activations(features[1, 2, 3], 4))
    assert fake_quantize_activations(torch.zeros(0, 16)).shape == (0, 16)


def test_a_silent_frame_is_zero_and_passes_its_gradient():
    features = torch.stack([torch.zeros(4), torch.full((4,), 2.0**-101), torch.full((4,), 2.0**-100)])
    features.requires_grad_()
    output = fake_quantize_activations(features)
    output.sum().backward()
    assert output.detach()[:2].abs().max() == 0
    assert output.detach()[2].abs().min() > 0
    assert torch.equal(features.grad, torch.ones(3, 4))


@pytest.mark.parametrize("bits", [0, 1, 9])
def test_activations_need_a_signed_grid(bits):
    with pytest.raises(ValueError, match=f"activation_bits={bits} has no signed grid; use 2 to 8"):
        fake_quantize_activations(torch.zeros(1, 4), bits)


def test_under_autocast_values_still_come_from_float32():
    features = random_weight(4, 32).to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = fake_quantize_activations(features)
    assert torch.equal(found, fake_quantize_activations(features.float()).to(torch.bfloat16))
