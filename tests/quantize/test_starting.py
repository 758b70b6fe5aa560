"""Training that starts on the grid: nearer to the float outputs than rounding to nearest, and on it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from subtone.quantize import Recipe, decoded_twin, method_of
from subtone.quantize.starting import start_compensated

METHODS = {
    "native": {"rules": [{"bits": 3}]},
    "gq": {"rules": [{"bits": 3, "grid": "codebook"}]},
    "s8bqat": {"rules": [{"bits": 3, "grid": "codebook"}]},
    "subchannel": {
        "rules": [
            {"kinds": ["depthwise"], "bits": 3, "grid": "asymmetric"},
            {"bits": 3, "grid": "asymmetric", "granularity": "group", "group_size": 8},
        ]
    },
}


class Net(nn.Module):
    """Features (B, F, T) through a depthwise and a pointwise kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(16, 16, 7, padding=3, groups=16, bias=False)
        self.pointwise = nn.Conv1d(16, 24, 1)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.pointwise(self.depthwise(features)), lengths


@pytest.fixture
def heard() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Correlated over channels and over frames, as speech is."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(4, 16, 200, generator=generator).cumsum(2)
    mixed = torch.einsum("ij,bjt->bit", torch.randn(16, 16, generator=generator), noise)
    return [(mixed / mixed.std(), torch.tensor([200, 180, 150, 200]))]


def recipe_of(name: str) -> Recipe:
    return Recipe.from_dict({"name": "start", "method": name, **METHODS[name]})


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.filterwarnings("ignore:.*annealing is unfinished")
def test_outputs_are_nearer_to_the_float_ones_than_by_rounding_to_nearest(name, heard):
    torch.manual_seed(0)
    model = Net().eval()
    method = method_of(recipe_of(name))
    started = copy.deepcopy(model)
    start_compensated(started, method, heard)
    assert type(started.pointwise) is nn.Conv1d
    features, lengths = heard[0]
    with torch.no_grad():
        meant = model(features, lengths)[0]
        nearest = decoded_twin(model, method.freeze(model))(features, lengths)[0]
        compensated = started(features, lengths)[0]
    assert (compensated - meant).square().mean() < 0.7 * (nearest - meant).square().mean()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.filterwarnings("ignore:.*annealing is unfinished")
def test_weights_take_the_values_of_the_methods_own_grid(name, heard):
    torch.manual_seed(0)
    model = Net().eval()
    stored = method_of(recipe_of(name)).freeze(model).weights
    start_compensated(model, method_of(recipe_of(name)), heard)
    for path, weight in (
        ("depthwise.weight", model.depthwise.weight),
        ("pointwise.weight", model.pointwise.weight),
    ):
        qtensor = stored[path]
        for row in range(len(weight)):
            allowed = {
                float(value)
                for scale, zero_point in zip(
                    *(
                        part.astype("float32")[min(row, len(part) - 1)]
                        for part in (qtensor.scale, qtensor.zero_point)
                    ),
                    strict=True,
                )
                for value in (
                    [scale * level for level in qtensor.codebook.astype("float32")]
                    if qtensor.codebook is not None
                    else [scale * (torch.tensor(float(code)) - float(zero_point)) for code in range(8)]
                )
            }
            distance = min_distance(weight[row].detach().flatten(), torch.tensor(sorted(allowed)))
            assert distance <= 1e-6, (path, row)


def min_distance(values: torch.Tensor, allowed: torch.Tensor) -> float:
    """The largest distance of any value to its nearest allowed one."""
    return float((values[:, None] - allowed).abs().amin(1).max())


def test_what_stays_float_is_left_alone(heard):
    recipe = Recipe.from_dict(
        {
            "name": "s",
            "method": "native",
            "rules": [{"kinds": ["pointwise"], "bits": 4}, {"keep_float": True}],
        }
    )
    torch.manual_seed(0)
    model = Net().eval()
    before = copy.deepcopy(model)
    start_compensated(model, method_of(recipe), heard)
    assert torch.equal(model.depthwise.weight, before.depthwise.weight)
    assert torch.equal(model.pointwise.bias, before.pointwise.bias)
    assert not torch.equal(model.pointwise.weight, before.pointwise.weight)


@pytest.mark.filterwarnings("ignore:.*annealing is unfinished")
@pytest.mark.parametrize("name", ["native", "gq"])
def test_ranges_measured_anew_are_those_the_grid_was_made_of(name, heard):
    """Else the next forward pass would round to another grid. Rows enough that some would move inwards."""
    torch.manual_seed(0)
    model = Net()
    model.pointwise = nn.Conv1d(16, 256, 1)
    method = method_of(recipe_of(name))
    before = method.freeze(model).weights["pointwise.weight"]
    start_compensated(model, method, heard)
    after = method.freeze(model).weights["pointwise.weight"]
    np.testing.assert_allclose(after.scale, before.scale, rtol=1e-6)
