"""Training that starts on the grid: nearer to the float outputs than rounding to nearest, and on it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from subtone.qtensor import QTensor
from subtone.quantize import Recipe, decoded_twin, method_of
from subtone.quantize.starting import start_compensated, with_ends, with_grid_ends

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
    floats = copy.deepcopy(model)
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
            of_row = floats.get_parameter(path)[row].detach().flatten()
            for cell in of_row.reshape(
                qtensor.scale.shape[1], -1
            ):  # ends of a scale stay, and bound the rest
                allowed |= {float(cell.max()), float(cell.min())}
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
@pytest.mark.parametrize("name", METHODS)
def test_what_is_measured_anew_leaves_weights_where_they_started(name, heard):
    """Scales are the same, and a freeze moves hardly more than the ends, which lie on no level."""
    torch.manual_seed(0)
    model = Net()
    model.pointwise = nn.Conv1d(16, 256, 1)
    floats, method = model.pointwise.weight.detach().clone().numpy(), method_of(recipe_of(name))
    before = method.freeze(model).weights["pointwise.weight"]
    start_compensated(model, method, heard)
    after = method.freeze(model).weights["pointwise.weight"]
    assert np.array_equal(after.scale, before.scale)
    moved = np.square(after.dequantize() - model.pointwise.weight.detach().numpy()).mean()
    assert moved < 0.5 * np.square(before.dequantize() - floats).mean()


@pytest.mark.parametrize("cells", [(1, 1), (3, 1), (3, 4), (1, 4)])
def test_the_ends_of_every_scale_stay(cells):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(cells[0] if cells[0] > 1 else 2 - (cells[1] > 1), 8, generator=generator)
    values = torch.zeros_like(weight)
    expected = values.clone()
    for cell in np.split(np.arange(weight.numel()), int(np.prod(cells))):
        of_cell = weight.flatten()[cell]
        for end in (of_cell.argmax(), of_cell.argmin()):
            expected.view(-1)[cell[end]] = of_cell[end]
    assert torch.equal(with_ends(values, weight, cells), expected)
    assert not values.any()


def test_nothing_to_compensate_is_an_error(heard):
    recipe = Recipe.from_dict({"name": "s", "method": "native", "rules": [{"keep_float": True}]})
    with pytest.raises(
        ValueError, match=r"^compensation_batches has no effect: no linear or pointwise or dept"
    ):
        start_compensated(Net(), method_of(recipe), heard)


REFINED = {
    "native": [{"bits": 3}],
    "subchannel": METHODS["subchannel"]["rules"],
    "subchannel in 2 bits": [
        {"bits": 2, "grid": "asymmetric", "granularity": "group", "group_size": 8, "kinds": ["pointwise"]},
        {"keep_float": True},
    ],
}


def refined_recipe(name: str) -> Recipe:
    return Recipe.from_dict({"name": "start", "method": name.split()[0], "rules": REFINED[name]})


@pytest.mark.parametrize("name", REFINED)
def test_refined_weights_are_nearer_still_and_measured_anew_as_they_are(name, heard):
    """Also where scales moved: each has an end in use, so that the method finds it again."""
    torch.manual_seed(0)
    model = Net().eval()
    compensated, refined = copy.deepcopy(model), copy.deepcopy(model)
    start_compensated(compensated, method_of(refined_recipe(name)), heard)
    start_compensated(refined, method_of(refined_recipe(name)), heard, rounding="refined")
    features, lengths = heard[0]
    errors = []
    for started in (compensated, refined):
        served = decoded_twin(started, method_of(refined_recipe(name)).freeze(started))
        with torch.no_grad():
            lost = served(features, lengths)[0] - model(features, lengths)[0]
        errors.append(float(lost.square().mean()))
    assert errors[1] < errors[0]
    before = method_of(refined_recipe(name)).freeze(model).weights["pointwise.weight"]
    after = method_of(refined_recipe(name)).freeze(refined).weights["pointwise.weight"]
    assert not np.array_equal(before.scale, after.scale)
    floats = refined.pointwise.weight.detach().numpy()
    # A group's scale and zero point are halves (11 bits): no level moves by more than a few of their units.
    assert np.abs(after.dequantize() - floats).max() <= 2**-9 * np.abs(floats).max()
    assert np.array_equal(after.codes, on_scales_of(after, floats))


def on_scales_of(stored: QTensor, weight: np.ndarray) -> np.ndarray:
    """The codes of the levels nearest to `weight`, (out, in, 1)."""
    columns = weight.shape[1] // stored.scale.shape[1]
    scale, zero_point = (
        np.repeat(part.astype(np.float64), columns, axis=1) for part in (stored.scale, stored.zero_point)
    )
    return np.rint(weight[..., 0] / scale + zero_point).astype(np.uint8)


def two_cells(*codes: int) -> QTensor:
    """Of three weights each, in steps of 0.5 around code 4."""
    scale = np.full((1, 2), 0.5, np.float16)
    return QTensor(codes=np.array([codes], np.uint8), shape=(1, 6), bits=3, scale=scale, zero_point=8 * scale)


def test_a_cell_in_which_no_code_is_an_end_gets_one():
    """Codes 5 and 6 of 0 to 7: the smallest weight goes to 0 and the largest to 7, all others stay."""
    found = two_cells(5, 6, 5, 0, 7, 3)
    weight = torch.tensor([[0.2, 0.9, -0.4, 0.0, 0.1, 0.2]])
    moved = with_grid_ends(found, weight, is_symmetric=False)
    assert moved.tolist() == [[0.5, 1.5, -2.0, -2.0, 1.5, -0.5]]
    one_end = with_grid_ends(found, weight, is_symmetric=True)
    assert one_end.tolist() == [[0.5, 1.5, 0.5, -2.0, 1.5, -0.5]]


def test_of_a_symmetric_cell_the_largest_magnitude_takes_the_end_of_its_sign():
    found = two_cells(3, 4, 5, 5, 4, 3)
    weight = torch.tensor([[-0.9, 0.1, 0.2, 0.9, 0.0, -0.2]])
    moved = with_grid_ends(found, weight, is_symmetric=True)
    assert moved.tolist() == [[-1.5, 0.0, 0.5, 1.5, 0.0, -0.5]]


@pytest.mark.parametrize("value", [0.2, -0.2])
@pytest.mark.filterwarnings("ignore:.*annealing is unfinished")
def test_a_group_of_equal_weights_stays_what_it_is(heard, value):
    torch.manual_seed(0)
    model = Net().eval()
    with torch.no_grad():
        model.pointwise.weight[3, :8] = value
        model.pointwise.weight[4, 8:] = value + 1e-5 * torch.arange(8)[:, None]
    start_compensated(model, method_of(refined_recipe("subchannel")), heard, rounding="refined")
    assert torch.allclose(model.pointwise.weight[3, :8], torch.tensor(value), atol=0.02)
    assert torch.allclose(model.pointwise.weight[4, 8:], torch.tensor(value), atol=0.02)


def test_a_codebook_is_refused_before_anything_is_heard_or_moved():
    recipe = Recipe.from_dict(
        {
            "name": "s",
            "method": "s8bqat",
            "rules": [{"kinds": ["depthwise"], "bits": 8}, {"bits": 3, "grid": "codebook"}],
        }
    )
    model = Net()
    before = copy.deepcopy(model.state_dict())

    def nothing_is_heard():
        raise AssertionError
        yield

    with pytest.raises(ValueError, match=r"'refined' does not fit grid='codebook' of pointwise\.weight"):
        start_compensated(model, method_of(recipe), nothing_is_heard(), rounding="refined")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
