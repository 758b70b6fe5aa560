"""Anybody's module is packed under the paths of its own parameters, or the door says what is wrong."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.models.conformer_variants import STACKED, randomize
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from subtone.export.package import package_module
from subtone.models.conformer import ConformerCtc
from subtone.models.conformer_config import ConformerCtcConfig
from subtone.qtensor import QTensor
from subtone.quantize import decoded_twin
from subtone.quantize.apply import quantize_module, without_own_parametrizations
from subtone.quantize.rules import Recipe, Rule
from subtone.runtime.engine import NumpyEngine
from subtone.speech.features import FrontEnd
from subtone.speech.text import CharTokenizer

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
FOUR_BITS = Recipe(name="w4", method="linear", rules=[Rule(bits=4, grid="symmetric", granularity="channel")])
EPSILON = float(np.finfo(np.float32).eps)


class TransposingHead(nn.Conv1d):
    """Takes (B, T, C), as Parakeet's head does, and not what its weight multiplies."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features.transpose(1, 2)).transpose(1, 2)


class Own(nn.Module):
    """(B, 6, T) to (B, T, 3), with a kernel behind weight norm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = weight_norm(nn.Conv1d(6, 8, 3, padding=1)), TransposingHead(8, 3, 1)

    def forward(self, features: Tensor) -> tuple[Tensor, None]:
        return self.head(torch.relu(self.conv(features)).transpose(1, 2)), None


class WithPlainHead(Own):
    """The same numbers by torch's own Conv1d."""

    def __init__(self) -> None:
        super().__init__()
        head = nn.Conv1d(8, 3, 1)
        head.load_state_dict(self.head.state_dict())
        self.head = head

    def forward(self, features: Tensor) -> tuple[Tensor, None]:
        return self.head(torch.relu(self.conv(features))).transpose(1, 2), None


def packed(network: nn.Module, **options):
    given = {
        "layout": "features",
        "num_features": 6,
        "frames_per_step": 1,
        "tokenizer": CharTokenizer(("a", "b")),
        "name": "own",
    }
    return package_module(network.eval(), **{**given, **options})


def test_weights_keep_their_paths_and_what_weight_norm_computes_is_quantized_too() -> None:
    network = Own()
    quantization = quantize_module(network, FOUR_BITS)
    model = packed(network, quantization=quantization)
    stored = {name for name, value in model.constants.items() if isinstance(value, QTensor)}
    assert stored == quantization.weights.keys() == {"conv.weight", "head.weight"}
    assert model.recipe["name"] == "w4"
    assert model.provenance["parameters"] == sum(value.numel() for value in network.parameters())


def test_a_float_module_is_packed_with_what_its_weight_norm_computes_now() -> None:
    network = Own()
    model = packed(network)
    features = torch.randn(1, 6, 20)
    with torch.inference_mode():
        theirs = network(features)[0][0].numpy()
    ours = NumpyEngine(model.program, model.constants).run(features[0].T.contiguous().numpy())
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=30 * EPSILON * np.abs(theirs).max())
    assert set(model.constants) == {"conv.weight", "conv.bias", "head.weight", "head.bias"}
    assert model.front_end == {}


def test_the_module_is_left_as_it_is() -> None:
    network = Own().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    quantize_module(network, FOUR_BITS)
    plain = without_own_parametrizations(network)
    assert isinstance(plain.conv.weight, nn.Parameter)
    assert network.training
    assert network.conv.weight.shape == plain.conv.weight.shape  # still computed, by the original's own class
    assert "weight" in network.conv.parametrizations
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


def test_projected_positions_of_a_streaming_conformer_stay_in_few_bits() -> None:
    """Their table is a constant, and their product with it could be too: in 32 bits."""
    torch.manual_seed(0)
    network = ConformerCtc(ConformerCtcConfig(encoder=STACKED, num_outputs=3)).eval()
    randomize(network)
    quantization = quantize_module(network, FOUR_BITS)
    model = packed(network, quantization=dataclasses.replace(quantization, activation_bits={}))
    assert isinstance(model.constants["encoder.blocks.1.attention.position.weight"], QTensor)
    twin, features = decoded_twin(network, quantization), torch.randn(1, 6, 40)
    with torch.inference_mode():
        theirs = twin(features)[0][0].numpy()
    ours = NumpyEngine(model.program, model.constants).run(features[0].T.contiguous().numpy())
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=100 * EPSILON * np.abs(theirs).max())


@pytest.mark.parametrize("recipe_name", ["ptq-w4-compensated", "ptq-w4-correct"])
def test_a_head_with_a_forward_of_its_own_is_heard_where_its_weight_multiplies(recipe_name: str) -> None:
    """8 frames of 8 channels, so that no shape tells them apart."""
    network, plain = Own(), WithPlainHead()
    examples = [torch.randn(1, 6, 8)]
    recipe = Recipe.load(RECIPES / f"{recipe_name}.toml")
    found, expected = (quantize_module(one, recipe, examples=examples) for one in (network, plain))
    np.testing.assert_array_equal(found.weights["head.weight"].codes, expected.weights["head.weight"].codes)
    assert found.bias_shifts.keys() == expected.bias_shifts.keys()
    for path, shift in expected.bias_shifts.items():
        np.testing.assert_allclose(found.bias_shifts[path], shift, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"front_end": FrontEnd()}, "num_features=6, but the front end gives 64; use those of the front end"),
        (
            {"num_features": None},
            "num_features=None without a front end; give num_features, or the front end",
        ),
        ({"layout": "images"}, "layout='images' is not known"),
    ],
)
def test_what_does_not_fit_is_refused_at_the_door(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        packed(Own(), **options)


def test_a_quantization_of_another_module_is_refused() -> None:
    class Other(Own):
        def __init__(self) -> None:
            super().__init__()
            self.extra = nn.Linear(3, 3)

    with pytest.raises(
        ValueError, match=r"extra\.weight is quantized, but the exported network does not use it"
    ):
        packed(Own(), quantization=quantize_module(Other(), FOUR_BITS))


def test_a_recipe_for_training_says_that_nothing_was_trained() -> None:
    with pytest.warns(UserWarning, match="method 'native' was not trained"):
        quantize_module(Own(), Recipe.load(RECIPES / "native-i4w.toml"))


def test_a_linear_layer_with_a_forward_of_its_own_cannot_be_heard() -> None:
    class Odd(nn.Linear):
        def forward(self, features: Tensor) -> Tensor:
            return super().forward(features.transpose(1, 2))

    network = nn.Sequential(nn.Linear(8, 4), Odd(5, 3))
    with pytest.raises(ValueError, match=r"the inputs of 1\.weight cannot be watched; add a rule for it"):
        quantize_module(
            network, Recipe.load(RECIPES / "ptq-w4-compensated.toml"), examples=[torch.randn(1, 5, 8)]
        )
