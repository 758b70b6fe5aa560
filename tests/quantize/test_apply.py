"""A recipe applied to a whole checkpoint at once, without any training."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from subtone.models.checkpoints import Checkpoint
from subtone.models.quartznet import Block, QuartzNet, QuartzNetConfig
from subtone.quantize import METHODS, Recipe, TrainingMethod, quantize_weight
from subtone.quantize.apply import check_sound, quantize_checkpoint
from subtone.speech.features import FrontEnd
from subtone.speech.text import CharTokenizer

RULE = {"gq": {"bits": 4, "grid": "codebook"}, "s8bqat": {"bits": 4, "grid": "codebook"}}
"""What a method needs beyond `bits`."""


@pytest.fixture
def checkpoint() -> Checkpoint:
    torch.manual_seed(0)
    network = QuartzNet(QuartzNetConfig(blocks=(Block(filters=16, kernel=5, stride=2),))).eval()
    tokenizer = CharTokenizer(tuple(" abcdefghijklmnopqrstuvwxyz'"))
    return Checkpoint(network=network, front_end=FrontEnd(), tokenizer=tokenizer)


def recipe_of(method: str) -> Recipe:
    training = {"steps": 10, "batch_s": 10.0, "learning_rate": 1e-3}
    rules = [RULE.get(method, {"bits": 4})]
    return Recipe.from_dict({"name": "r", "method": method, "training": training, "rules": rules})


@pytest.mark.parametrize("name", [name for name in METHODS if issubclass(METHODS[name], TrainingMethod)])
@pytest.mark.filterwarnings("ignore:.*annealing is unfinished")  # GQ's, which says by how much
def test_a_training_method_without_training_says_so_and_leaves_no_claim_of_it(name, checkpoint):
    with pytest.warns(UserWarning, match=rf"^recipe r: method '{name}' was not trained: .* give --train"):
        made = quantize_checkpoint(checkpoint, recipe_of(name))
    assert made.quantization.recipe["method"] == name
    assert "training" not in made.quantization.recipe
    assert all(stored.bits == 4 for stored in made.quantization.weights.values())


@pytest.mark.parametrize("name", ["native", "subchannel", "acosr"])
def test_without_training_an_even_grid_is_round_to_nearest(name, checkpoint):
    with pytest.warns(UserWarning, match="was not trained"):
        stored = quantize_checkpoint(checkpoint, recipe_of(name)).quantization.weights["head.weight"]
    settings = recipe_of(name).rules[0].settings
    expected = quantize_weight(checkpoint.network.head.weight, settings)
    assert np.array_equal(stored.dequantize(), expected.dequantize())


def test_round_to_nearest_under_its_own_name_says_nothing(checkpoint):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = quantize_checkpoint(checkpoint, recipe_of("linear"))
    assert "training" not in made.quantization.recipe  # a recipe for --train, which was not given
    with pytest.raises(
        ValueError, match=r"the checkpoint is already quantized \(by r\); start from the float"
    ):
        quantize_checkpoint(made, recipe_of("linear"))


def test_a_recipe_that_hears_must_be_given_sound_and_no_other():
    deaf, hearing = (
        Recipe.from_dict({"name": "r", "method": "linear", "rules": [{"bits": 4, **more}]})
        for more in ({}, {"rounding": "compensated"})
    )
    check_sound(deaf, has_calibration=False, is_trained=False)
    check_sound(hearing, has_calibration=True, is_trained=False)
    with pytest.raises(
        ValueError, match=r"^recipe r: rounding='compensated' needs recordings; .*--calibration"
    ):
        check_sound(hearing, has_calibration=False, is_trained=False)
    with pytest.raises(
        ValueError, match=r"^recipe r: rounding='compensated' is for weights that are not trained"
    ):
        check_sound(hearing, has_calibration=False, is_trained=True)
    with pytest.raises(
        ValueError, match=r"^recipe r hears nothing; leave out --calibration, or set .*rounding ="
    ):
        check_sound(deaf, has_calibration=True, is_trained=False)
