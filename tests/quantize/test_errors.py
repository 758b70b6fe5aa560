"""The one line that is made of pydantic's report."""

from __future__ import annotations

from pathlib import Path

import pytest

from subtone.quantize import Recipe, method_of
from subtone.train import TrainSettings

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def test_options_of_a_method_without_any_are_refused() -> None:
    text = 'name = "r"\nmethod = "linear"\noptions.x = 1\n[[rules]]\nbits = 4'
    with pytest.raises(ValueError, match=r"^recipe r: options: x=1 is not a key; .* none .* leave it out$"):
        method_of(Recipe.from_toml(text))


def test_a_recipe_for_training_says_so_where_one_for_quantizing_is_read() -> None:
    path = RECIPES / "train-demo.toml"
    with pytest.raises(ValueError) as caught:
        Recipe.load(path)
    assert str(caught.value) == (
        f"{path}: model and steps make this a recipe for `subtone train`; give it to that command"
    )


def test_a_recipe_for_quantizing_says_so_where_one_for_training_is_read() -> None:
    path = RECIPES / "ptq-w8.toml"
    with pytest.raises(ValueError) as caught:
        TrainSettings.load(path)
    assert str(caught.value) == (
        f"{path}: method and rules make this a recipe for `subtone quantize`; give it to that command"
    )


def test_one_key_of_the_other_kind_is_only_a_key_too_many() -> None:
    text = 'name = "r"\nmethod = "linear"\nsteps = 3\n[[rules]]\nbits = 4'
    with pytest.raises(ValueError, match=r"^recipe: steps=3 is not a key; use one of name, method, "):
        Recipe.from_toml(text)
