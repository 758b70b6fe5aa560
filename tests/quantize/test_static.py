"""The table [integer] of a recipe."""

from __future__ import annotations

import pytest
from torch import nn

from subtone.quantize.apply import check_sound
from subtone.quantize.rules import Recipe
from subtone.quantize.static import IntegerSettings

RULE = "[[rules]]\nbits = 8\n"


def recipe(table: str, rule: str = RULE) -> Recipe:
    return Recipe.from_toml(f'name = "r"\nmethod = "linear"\n{table}\n{rule}')


def test_a_recipe_without_the_table_is_not_integer_only() -> None:
    assert IntegerSettings.of(recipe("")) is None
    assert "integer" not in recipe("").resolved()


def test_the_table_comes_back_from_the_resolved_recipe() -> None:
    written = recipe(
        '[integer]\nrange = "percentile"\npercentile = 99.9\nwide_products = ["head"]\n[integer.synthesis]\nnum_batches = 2\n'
    )
    settings = IntegerSettings.of(written)
    assert settings is not None
    assert (settings.features, settings.percentile, settings.synthesis.num_batches) == ("synthetic", 99.9, 2)
    assert IntegerSettings.of(Recipe.from_dict(written.resolved())) == settings
    assert IntegerSettings.model_validate(settings.resolved()) == settings


@pytest.mark.parametrize(
    ("table", "rule", "complaint"),
    [
        ("[integer]\nactivation_bits = 9", RULE, "recipe r: integer: activation_bits"),
        ("[integer]\nfeaturs = 'random'", RULE, "recipe r: integer: featurs='random' is not a key"),
        ("[integer.synthesis]\nnum_batch = 1", RULE, "recipe r: integer: .*num_batch"),
        (
            "[integer]\npercentile = 99.0",
            RULE,
            "percentile=99.0 goes with range='percentile' alone; give both",
        ),
        ("[integer]\nrange = 'percentile'", RULE, "percentile=None goes with range='percentile' alone"),
        (
            "[integer]\nsum_bits = 12\nwide_products = ['*']",
            RULE,
            "sum_bits=12 leaves nothing wide for wide_products to read; leave one of them out",
        ),
        (
            "[integer]\nwide_products = 'head'",
            RULE,
            r"integer: wide_products='head' does not fit: a list is needed, \['head'\]",
        ),
        (
            "[integer]",
            RULE + 'activations = "dynamic"\n',
            r"rules\[0\].activations='dynamic' contradicts \[integer\], where all scales are static; leave it out",
        ),
    ],
)
def test_a_mistake_in_the_table_is_one_line(table: str, rule: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as refused:
        IntegerSettings.of(recipe(table, rule))
    assert "\n" not in str(refused.value)


def test_a_glob_that_no_product_matches_is_refused_with_a_name_that_one_has() -> None:
    network = nn.ModuleDict(
        {"embed": nn.Embedding(4, 4), "front": nn.Conv1d(4, 4, 1), "head": nn.Linear(4, 4)}
    )
    for pattern in ("front", "h*", "*"):
        IntegerSettings(wide_products=(pattern,)).require_products(network)
    for pattern in ("haed", "head.weight", "embed", ""):
        complaint = f"integer.wide_products='{pattern}' matches no product of this model; its products are called like"
        with pytest.raises(ValueError, match=complaint):
            IntegerSettings(wide_products=("*", pattern)).require_products(network)


def test_recordings_are_asked_for_where_they_are_heard_and_nowhere_else() -> None:
    made, heard = recipe("[integer]"), recipe("[integer]\nfeatures = 'recordings'")
    check_sound(made, has_calibration=False, is_trained=False)
    check_sound(heard, has_calibration=True, is_trained=False)
    with pytest.raises(ValueError, match=r"integer\.features='recordings' needs recordings; give some"):
        check_sound(heard, has_calibration=False, is_trained=False)
    complaint = (
        r"recipe r hears nothing; leave out --calibration, or set integer\.features = 'recordings', bias_corr"
    )
    with pytest.raises(ValueError, match=complaint):
        check_sound(made, has_calibration=True, is_trained=False)
