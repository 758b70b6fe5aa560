"""The recipes that come with subtone."""

from __future__ import annotations

from pathlib import Path

import subtone


def shipped_recipes() -> dict[str, Path]:
    """Name -> TOML file, sorted by name: of the checkout this runs from, else as installed."""
    places = [Path(__file__).parents[3], *map(Path, subtone.__path__)]
    folder = next((place / "recipes" for place in places if (place / "recipes").is_dir()), None)
    return {path.stem: path for path in sorted(folder.glob("*.toml"))} if folder else {}


def shipped_recipe(name: str) -> Path:
    """The file of the recipe called `name`."""
    recipes = shipped_recipes()
    if name not in recipes:
        raise ValueError(f"recipe {name} was not installed with this package; install it again")
    return recipes[name]
