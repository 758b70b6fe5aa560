"""Training recipes: the demo's own holds, and every mistake is one line that names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from subtone.train.settings import TrainSettings

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
GOOD = {"name": "x", "model": "quartznet5x5", "steps": 10, "batch_s": 5.0, "learning_rate": 0.1}


@pytest.mark.parametrize("path", sorted(RECIPES.glob("train-*.toml")), ids=lambda path: path.stem)
def test_each_recipe_in_the_repository_holds(path: Path) -> None:
    assert TrainSettings.load(path).name == path.stem


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stepz": 3}, r"recipe: stepz=3 is not a key; did you mean steps\?"),
        ({"steps": 1}, r"recipe: steps=1 does not fit: "),
        ({"steps": 10.0}, r"recipe: steps=10.0 does not fit: "),
        ({"learning_rate": -1.0}, r"recipe: learning_rate=-1.0 does not fit: "),
        ({"warmup_share": 1.5}, r"recipe: warmup_share=1.5 does not fit: "),
        (
            {"model": "quartznet5x6"},
            r"recipe: model='quartznet5x6' is not a preset; did you mean quartznet5x5\?",
        ),
        ({"speeds": [0.9, 3.0]}, r"recipe: speeds=\(0.9, 3.0\) must lie in 0.5..2"),
        (
            {"warmup_share": 1.0},
            r"recipe: warmup_share=1.0 leaves no step for the rate to fall; 0.15 is usual",
        ),
        (
            {"warmup_share": 0.1},
            r"recipe: warmup_share=0.1 of steps=10 is a single step, .*; use 0.0, or more",
        ),
        ({"joined": 0}, r"recipe: joined=0 does not fit: "),
        ({"speeds": []}, r"recipe: speeds=\[\] does not fit: "),
    ],
)
def test_a_mistake_is_one_line(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        TrainSettings.from_dict({**GOOD, **change})
    assert "\n" not in str(caught.value)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ValueError, match=r"recipe: steps is missing; add it"):
        TrainSettings.from_dict({name: value for name, value in GOOD.items() if name != "steps"})


def test_a_file_that_is_absent_or_no_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"recipe .*absent.toml does not exist"):
        TrainSettings.load(tmp_path / "absent.toml")
    (tmp_path / "bad.toml").write_text("steps = = 3")
    with pytest.raises(ValueError, match=r"recipe .*bad.toml is not TOML: "):
        TrainSettings.load(tmp_path / "bad.toml")
