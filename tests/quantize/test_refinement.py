"""Codes, scales and codebooks refined in turn: the loops they equal, and that none of them ever loses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.quantize.test_compensation import GRIDS, Stack, lost, moments_of, recipe, smooth, weight_of
from tests.reference import refinement as reference

from subtone.qtensor import QTensor, flatten_weight, spread_columns
from subtone.quantize import Settings, method_of, quantize_weight
from subtone.quantize import refinement as ours
from subtone.quantize.compensation import COLUMNS_AT_ONCE, damped


def rounded(weight: torch.Tensor, moments: np.ndarray, rounding: str, bits: int = 4, **settings) -> QTensor:
    return quantize_weight(weight, Settings(bits=bits, rounding=rounding, **settings), moments=moments)


def problem(bits: int, grid: str, *, columns: int = 16) -> tuple[QTensor, np.ndarray, np.ndarray]:
    """A compensated weight of 5 rows, and what the parts of a refinement take: flat values and damped moments."""
    weight, moments = weight_of(5, columns, seed=bits), moments_of(1, columns, seed=bits)
    stored = rounded(weight, moments, "compensated", bits, **GRIDS[grid])
    return stored, flatten_weight(weight.numpy()).astype(np.float64), damped(moments)


def levels_of(stored: QTensor) -> np.ndarray:
    """What multiplies the scale of each weight."""
    if stored.codebook is not None:
        return stored.codebook[stored.codes].astype(float)
    return stored.codes - spread_columns(stored.zero_point.astype(np.float32), stored.num_columns)


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("columns", [16, COLUMNS_AT_ONCE + 8])
def test_codes_are_those_of_trying_each_in_each_column(grid, bits, columns, monkeypatch):
    monkeypatch.setattr(ours, "PASSES", 1)
    stored, flat, matrix = problem(bits, grid, columns=columns)
    is_symmetric = "asymmetric" not in grid and grid != "codebook"
    found = ours.with_codes(stored, flat, matrix, is_symmetric=is_symmetric)
    scale = np.broadcast_to(spread_columns(stored.scale.astype(np.float64), columns), flat.shape)
    zero_point = np.broadcast_to(spread_columns(stored.zero_point.astype(np.float64), columns), flat.shape)
    tried = range(int(is_symmetric and bits > 1), stored.num_levels)
    for row, codes in enumerate(stored.codes):

        def value_of(code: int, column: int, row: int = row) -> float:
            level = code if stored.codebook is None else stored.codebook[code]
            return scale[row, column] * (level - zero_point[row, column])

        expected = reference.descended_row(flat[row], matrix[0], codes.tolist(), value_of, tried)
        assert found.codes[row].tolist() == expected


@pytest.mark.parametrize("grid", ["symmetric", "asymmetric", "codebook", "groups", "asymmetric groups"])
def test_scales_of_a_row_solve_its_least_squares_problem(grid):
    stored, flat, matrix = problem(3, grid)
    found = ours.with_scales(stored, flat, matrix)
    size = flat.shape[1] // stored.scale.shape[1]
    is_in_group = np.arange(flat.shape[1]) // size
    for row, levels in enumerate(levels_of(stored)):
        parts = [np.where(is_in_group == group, levels, 0)[None] for group in range(stored.scale.shape[1])]
        expected = reference.fitted(flat[row][None], matrix[0], parts)
        precision = float(np.finfo(stored.scale.dtype).eps)
        assert found.scale[row] == pytest.approx(expected, rel=precision, abs=0)


def test_one_scale_for_all_rows_solves_the_problem_of_all():
    stored, flat, matrix = problem(3, "tensor")
    expected = reference.fitted(flat, matrix[0], [levels_of(stored)])
    assert ours.with_scales(stored, flat, matrix).scale[0] == pytest.approx(expected, rel=1e-6)


def test_a_codebook_is_the_least_squares_solution_snapped():
    stored, flat, matrix = problem(3, "codebook", columns=64)
    found = ours.with_codebook(stored, flat, matrix)
    parts = [np.where(stored.codes == level, stored.scale, 0) for level in range(stored.num_levels)]
    expected = reference.fitted(flat, matrix[0], parts)
    assert found.codebook.tolist() == np.clip(np.floor(expected + 0.5), -128, 127).tolist()
    assert found.codebook.tolist() != stored.codebook.tolist()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("grid", GRIDS)
def test_no_part_of_it_ever_makes_the_error_larger(grid, bits):
    stored, flat, matrix = problem(bits, grid)
    is_symmetric = "asymmetric" not in grid
    errors = [ours.errors_of(stored, flat, matrix).sum()]
    for _ in range(3):
        stored = ours.with_codebook(stored, flat, matrix)
        errors.append(ours.errors_of(stored, flat, matrix).sum())
        stored = ours.with_scales(stored, flat, matrix)
        errors.append(ours.errors_of(stored, flat, matrix).sum())
        stored = ours.with_codes(stored, flat, matrix, is_symmetric=is_symmetric)
        errors.append(ours.errors_of(stored, flat, matrix).sum())
    assert np.all(np.diff(errors) <= 1e-6 * errors[0])  # float32 decides between levels equally far away


@pytest.mark.parametrize("grid", GRIDS)
def test_the_product_loses_less_than_by_compensation_alone(grid):
    weight, moments = weight_of(32, 64), moments_of(1, 64)
    before, after = (rounded(weight, moments, name, 3, **GRIDS[grid]) for name in ("compensated", "refined"))
    assert lost(after, weight, moments).sum() < 0.9 * lost(before, weight, moments).sum()
    assert (after.shape, after.bits, after.grid, after.granularity, after.num_levels) == (
        before.shape, before.bits, before.grid, before.granularity, before.num_levels,
    )  # fmt: skip


def test_a_depthwise_kernel_has_a_moment_a_channel():
    weight, moments = weight_of(4, 1, 9), moments_of(4, 9)
    together = rounded(weight, moments, "refined")
    for channel in range(4):
        alone = rounded(weight[channel : channel + 1], moments[channel : channel + 1], "refined")
        assert np.array_equal(together.codes[channel : channel + 1], alone.codes)
        assert together.scale[channel] == pytest.approx(alone.scale[0])


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_a_weight_of_zeros_stays_zeros(grid, bits):
    found = rounded(torch.zeros(3, 16), moments_of(1, 16), "refined", bits, **GRIDS[grid])
    assert not found.dequantize().any()


def test_a_row_of_zeros_and_a_dead_channel_do_not_disturb_the_rest():
    weight, moments = weight_of(4, 12), moments_of(1, 12)
    weight[2] = 0
    moments[:, 3], moments[:, :, 3] = 0, 0
    found = rounded(weight, moments, "refined")
    assert not found.dequantize()[2].any()
    others = [0, 1, 3]
    assert np.array_equal(found.codes[others], rounded(weight[others], moments, "refined").codes)


def test_weights_on_the_grid_stay_there():
    levels = torch.tensor([[-7.0, 3.0, 0.0, 7.0], [7.0, -7.0, 2.0, -1.0]])
    found = rounded(levels, moments_of(1, 4), "refined")
    assert np.array_equal(found.dequantize(), levels.numpy())


def test_every_layer_hears_less_error_by_rule():
    model, data = Stack(), smooth()
    found = {
        name: method_of(recipe(f'bits = 3\nrounding = "{name}"')).freeze(model, calibration=data)
        for name in ("compensated", "refined")
    }
    assert found["refined"].recipe["rules"][0]["rounding"] == "refined"
    inputs = {}
    layers = dict(model.named_children())
    for name, layer in layers.items():
        layer.register_forward_pre_hook(lambda _, given, name=name: inputs.update({name: given[0]}))
    with torch.no_grad():
        model(*data[0])
        for name, layer in layers.items():
            exact, error = layer(inputs[name]), {}
            kept = layer.weight.detach().clone()
            for rounding, quantization in found.items():
                stored = quantization.weights[f"{name}.weight"]
                layer.weight.copy_(torch.from_numpy(stored.dequantize()))
                error[rounding] = (layer(inputs[name]) - exact).square().mean().item()
            layer.weight.copy_(kept)
            assert error["refined"] < error["compensated"], name


def test_what_the_inputs_are_must_be_known():
    with pytest.raises(ValueError, match=r"^a\.weight: rounding='refined' needs the second moments of its"):
        quantize_weight(torch.ones(2, 2), Settings(bits=4, rounding="refined"), name="a.weight")


def test_kinds_that_cannot_compensate_cannot_be_refined():
    with pytest.raises(
        ValueError, match=r"rounding='refined' does not fit the embedding weights.*use 'nearest'"
    ):
        recipe('kinds = ["embedding"]\nbits = 4\nrounding = "refined"')
