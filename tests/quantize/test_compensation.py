"""Rounding that compensates its own error: the loop it equals, and what it is for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.reference import compensation as reference
from torch import nn

from subtone import numerics
from subtone.qtensor import QTensor, flatten_weight, spread_columns
from subtone.quantize import METHODS, Recipe, Settings, TrainingMethod, method_of, quantize_weight
from subtone.quantize.compensation import COLUMNS_AT_ONCE, DAMPING

GRIDS = {
    "symmetric": {"grid": "symmetric"},
    "asymmetric": {"grid": "asymmetric"},
    "codebook": {"grid": "codebook"},
    "tensor": {"granularity": "tensor"},
    "groups": {"granularity": "group", "group_size": 8},
    "asymmetric groups": {"grid": "asymmetric", "granularity": "group", "group_size": 8},
}


def moments_of(groups: int, columns: int, seed: int = 0) -> np.ndarray:
    """Second moments of inputs that share a few causes: correlated, and of various sizes."""
    random = np.random.default_rng(seed)
    causes = random.standard_normal((groups, columns, max(1, columns // 4)))
    frames = causes @ random.standard_normal((groups, causes.shape[2], 200))
    frames = (frames + 0.3 * random.standard_normal(frames.shape)) * random.uniform(0.5, 2, (columns, 1))
    return (frames @ frames.swapaxes(1, 2) / 200).astype(np.float32)


def weight_of(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + 0.1


def both(weight: torch.Tensor, moments: np.ndarray, bits: int = 4, **settings) -> tuple[QTensor, QTensor]:
    """`weight` to nearest, and compensated."""
    return (
        quantize_weight(weight, Settings(bits=bits, **settings)),
        quantize_weight(weight, Settings(bits=bits, rounding="compensated", **settings), moments=moments),
    )


def lost(stored: QTensor, weight: torch.Tensor, moments: np.ndarray) -> np.ndarray:
    """The mean squared error of each row's product."""
    error = flatten_weight(stored.dequantize() - weight.numpy()).astype(np.float64)
    of_row = np.repeat(moments.astype(np.float64), len(error) // len(moments), axis=0)
    return np.einsum("ri,rij,rj->r", error, of_row, error)


def by_the_loop(
    stored: QTensor, weight: torch.Tensor, moments: np.ndarray, *, is_symmetric: bool
) -> np.ndarray:
    """The codes of the reference, on the grid of `stored`."""
    flat = flatten_weight(weight.numpy())
    scale, zero_point = (
        np.broadcast_to(spread_columns(part.astype(np.float32), flat.shape[1]), flat.shape)
        for part in (stored.scale, stored.zero_point)
    )
    codes = []
    for row, values in enumerate(flat):

        def nearest(value: float, column: int, row: int = row) -> tuple[int, float]:
            one, own = np.array([value], np.float32), scale[row, column]
            if stored.codebook is not None:
                levels = stored.codebook[: stored.num_levels]
                code = int(numerics.codes_on_codebook(one, own, levels)[0])
                return code, float(own * np.float32(levels[code]))
            grid = numerics.Grid(own, zero_point[row, column])
            code = int(numerics.codes_on_grid(one, grid, stored.bits, is_symmetric=is_symmetric)[0])
            return code, float(own * (np.float32(code) - zero_point[row, column]))

        moment = moments[row * len(moments) // len(flat)].astype(np.float64)
        codes.append(reference.compensated_row(values, reference.damped(moment, DAMPING), nearest))
    return np.array(codes)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("grid", GRIDS)
def test_it_solves_the_least_squares_problem_of_each_column_that_remains(grid, bits):
    weight, moments = weight_of(5, 16, seed=bits), moments_of(1, 16, seed=bits)
    nearest, compensated = both(weight, moments, bits, **GRIDS[grid])
    expected = by_the_loop(nearest, weight, moments, is_symmetric="asymmetric" not in grid)
    assert np.array_equal(compensated.codes, expected)


@pytest.mark.parametrize("columns", [1, 2, COLUMNS_AT_ONCE - 1, COLUMNS_AT_ONCE, 2 * COLUMNS_AT_ONCE + 3])
def test_columns_at_once_are_as_good_as_one_by_one(columns):
    weight, moments = weight_of(3, columns), moments_of(1, columns)
    nearest, compensated = both(weight, moments)
    assert np.array_equal(compensated.codes, by_the_loop(nearest, weight, moments, is_symmetric=True))


@pytest.mark.parametrize("per_channel", [1, 3])
def test_a_depthwise_kernel_has_a_moment_a_channel(per_channel):
    weight, moments = weight_of(4 * per_channel, 1, 9), moments_of(4, 9)
    nearest, compensated = both(weight, moments)
    assert np.array_equal(compensated.codes, by_the_loop(nearest, weight, moments, is_symmetric=True))
    alone = both(weight[:per_channel], moments[:1])[1]
    assert np.array_equal(compensated.codes[:per_channel], alone.codes)


@pytest.mark.parametrize("grid", GRIDS)
def test_the_product_loses_less_though_the_weights_lose_more(grid):
    weight, moments = weight_of(32, 64), moments_of(1, 64)
    nearest, compensated = both(weight, moments, 3, **GRIDS[grid])
    assert lost(compensated, weight, moments).sum() < 0.5 * lost(nearest, weight, moments).sum()
    distance = [np.square(of.dequantize() - weight.numpy()).sum() for of in (nearest, compensated)]
    assert distance[0] < distance[1]


@pytest.mark.parametrize("grid", GRIDS)
def test_inputs_that_are_not_correlated_leave_round_to_nearest(grid):
    weight = weight_of(6, 72)
    nearest, compensated = both(weight, np.eye(72, dtype=np.float32)[None] * 3, **GRIDS[grid])
    assert np.array_equal(nearest.codes, compensated.codes)


@pytest.mark.parametrize("grid", GRIDS)
def test_grid_and_codebook_are_those_of_the_float_weights(grid):
    weight = weight_of(6, 16)
    nearest, compensated = both(weight, moments_of(1, 16), **GRIDS[grid])
    for name in ("scale", "zero_point", "codebook"):
        assert np.array_equal(getattr(nearest, name), getattr(compensated, name))
    assert (nearest.num_levels, nearest.grid) == (compensated.num_levels, compensated.grid)
    assert not np.array_equal(nearest.codes, compensated.codes)


@pytest.mark.parametrize("grid", ["symmetric", "asymmetric", "groups"])
def test_permuting_the_rows_permutes_the_result(grid):
    weight, order = weight_of(7, 80), torch.randperm(7, generator=torch.Generator().manual_seed(0))
    _, compensated = both(weight, moments_of(1, 80), **GRIDS[grid])
    _, permuted = both(weight[order], moments_of(1, 80), **GRIDS[grid])
    assert np.array_equal(permuted.codes, compensated.codes[order])


def test_a_dead_channel_neither_fails_nor_changes_the_others():
    weight, moments = weight_of(4, 12), moments_of(1, 12)
    moments[:, 3], moments[:, :, 3] = 0, 0
    nearest, compensated = both(weight, moments)
    assert np.array_equal(nearest.codes[:, 3], compensated.codes[:, 3])
    silent = both(weight, np.zeros((1, 12, 12), np.float32))
    assert np.array_equal(silent[0].codes, silent[1].codes)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_a_weight_of_zeros_stays_zeros(grid, bits):
    _, compensated = both(torch.zeros(3, 16), moments_of(1, 16), bits, **GRIDS[grid])
    assert not compensated.dequantize().any()


def test_what_the_inputs_are_must_be_known():
    with pytest.raises(
        ValueError, match=r"^a\.weight: rounding='compensated' needs the second moments of its"
    ):
        quantize_weight(torch.ones(2, 2), Settings(bits=4, rounding="compensated"), name="a.weight")


# By rule ----------------------------------------------------------------------------------------


class Stack(nn.Module):
    """A depthwise and a pointwise convolution and a Linear, of features (B, 16, T)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.depthwise = nn.Conv1d(16, 16, 7, padding=3, groups=16, bias=False)
        self.pointwise, self.line = nn.Conv1d(16, 24, 1), nn.Linear(24, 8)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return self.line(self.pointwise(self.depthwise(features)).relu().transpose(1, 2))


def recipe(*rules: str, method: str = "linear") -> Recipe:
    head = f'name = "r"\nmethod = "{method}"\n'
    return Recipe.from_toml(head + "".join(f"[[rules]]\n{rule}\n" for rule in rules))


def smooth(frames: int = 400) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Features that change slowly and together, as speech does."""
    noise = torch.randn(1, 16, frames + 4, generator=torch.Generator().manual_seed(0))
    slow = noise.unfold(2, 5, 1).mean(-1)
    return [(slow + 4 * slow.mean(1, keepdim=True), torch.tensor([frames]))]


def test_every_layer_hears_less_error_by_rule():
    model, data = Stack(), smooth()
    compensate = recipe('bits = 3\nrounding = "compensated"')
    found = {
        name: method_of(chosen).freeze(model, calibration=data).weights
        for name, chosen in (("nearest", recipe("bits = 3")), ("compensated", compensate))
    }
    inputs = {}
    layers = dict(model.named_children())
    for name, layer in layers.items():
        layer.register_forward_pre_hook(lambda _, given, name=name: inputs.update({name: given[0]}))
    with torch.no_grad():
        model(*data[0])
        for name, layer in layers.items():
            exact, error = layer(inputs[name]), {}
            kept = layer.weight.detach().clone()
            for rounding, stored in found.items():
                layer.weight.copy_(torch.from_numpy(stored[f"{name}.weight"].dequantize()))
                error[rounding] = (layer(inputs[name]) - exact).square().mean().item()
            layer.weight.copy_(kept)
            assert error["compensated"] < 0.8 * error["nearest"], name


def test_recordings_are_heard_once_for_both_of_what_needs_them():
    once = iter(smooth())
    chosen = recipe('bits = 3\nrounding = "compensated"\nbias_correction = true')
    found = method_of(chosen).freeze(Stack(), calibration=once)
    assert set(found.bias_shifts) == set(found.weights)
    assert found.recipe["rules"][0]["rounding"] == "compensated"


def test_without_recordings_it_says_what_to_give():
    with pytest.raises(
        ValueError,
        match=r"^recipe r: rounding='compensated' \(depthwise\.weight\) needs calib.*--calibration",
    ):
        method_of(recipe('bits = 3\nrounding = "compensated"')).freeze(Stack())


def test_broken_weights_are_named_before_anything_is_heard():
    model = Stack()
    with torch.no_grad():
        model.pointwise.weight[0] = torch.nan
    with pytest.raises(ValueError, match=r"^pointwise\.weight holds 16 of 384 values that are not finite"):
        method_of(recipe('bits = 3\nrounding = "compensated"')).freeze(model, calibration=smooth())


@pytest.mark.parametrize("name", [name for name in METHODS if issubclass(METHODS[name], TrainingMethod)])
@pytest.mark.parametrize("setting", ["rounding = 'compensated'", "bias_correction = true"])
def test_no_method_that_trains_takes_what_is_for_weights_that_are_not_trained(name, setting):
    rule = f"bits = 4\ngrid = '{'codebook' if name in ('gq', 's8bqat') else 'symmetric'}'\n{setting}"
    with pytest.raises(
        ValueError, match=r"^recipe r: rules\[1\]: \w+=\S+ is for weights that are not trained; rem"
    ):
        method_of(recipe("pattern = 'head.*'\nkeep_float = true", rule, method=name))
