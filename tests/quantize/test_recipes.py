"""The recipes that come with the project, on the networks they are meant for."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from subtone.models import build, preset
from subtone.models.nemo import network_from_nemo, read_nemo
from subtone.models.quartznet import QuartzNet, QuartzNetConfig, quartznet_blocks
from subtone.quantize import METHODS, Recipe, assign, quantizable_weights, quantize_weight
from subtone.quantize.static import IntegerSettings

FOLDER = Path(__file__).resolve().parents[2] / "recipes"
PTQ = sorted(FOLDER.glob("ptq-w*.toml"))
TO_FEW_BITS = sorted(path for path in FOLDER.glob("*.toml") if not path.stem.startswith("train-"))


@pytest.fixture(scope="module")
def quartznet() -> QuartzNet:
    with torch.device("meta"):
        return QuartzNet(QuartzNetConfig(blocks=quartznet_blocks(3)))


@pytest.mark.parametrize("path", TO_FEW_BITS, ids=lambda path: path.stem)
def test_a_recipe_has_its_files_name_a_known_method_and_a_purpose(path):
    recipe = Recipe.load(path)
    assert recipe.name == path.stem
    assert recipe.method in METHODS
    assert path.read_text().startswith("# ")
    assert Recipe.from_dict(recipe.resolved()) == recipe


@pytest.mark.parametrize("path", PTQ, ids=lambda path: path.stem)
def test_a_recipe_fits_quartznet_and_any_model_of_divisible_widths(path, quartznet):
    bits = int(path.stem.split("-")[1].removeprefix("w"))
    lstm = nn.ModuleDict(
        {"embed": nn.Embedding(30, 64), "front": nn.Conv2d(1, 64, 3), "lstm": nn.LSTM(64, 128)}
    )
    for model in (quartznet, lstm):
        if model is lstm and any(rule.settings.bias_correction for rule in Recipe.load(path).rules):
            continue
        chosen = assign(Recipe.load(path), model)
        kinds = {path: weight.kind for path, weight in quantizable_weights(model).items()}
        # 2 bits a channel destroy a kernel of few values: ptq-w2 leaves 8 where there is no product of one frame.
        wide = 8 if path.stem == "ptq-w2" else bits
        expected = {
            name: wide if kind in ("depthwise", "embedding", "conv2d") else bits
            for name, kind in kinds.items()
        }
        assert {name: settings.bits for name, settings in chosen.items()} == expected
        assert {settings.activations for settings in chosen.values()} == {"dynamic"}


@pytest.mark.parametrize(
    ("name", "model", "few", "bits"),
    [
        ("ptq-m2-8-5", "s8bqat-m3", r"(encoder|predictor)\.layers\.0\.|joiner\.combine\.", (8, 5)),
        ("ptq-bifocal-1-5", "bifocal", r"encoder\.layers\.\d\.small\.", (1, 5)),
        ("ptq-quartznet-4-6-refined", "quartznet15x5", r"blocks\.(?!1[567])", (4, 6)),
        ("ptq-quartznet-5-6-compensated", "quartznet15x5", r"blocks\.(?!1[567])", (5, 6)),
    ],
)
def test_mixed_bits_lie_where_the_papers_table_or_the_lab_log_has_them(name, model, few, bits):
    with torch.device("meta"):
        network = build(preset(model).to_json())
    chosen = assign(Recipe.load(FOLDER / f"{name}.toml"), network)
    for path, settings in chosen.items():
        assert settings.bits == bits[0 if re.match(few, path) else 1], path
    assert {settings.bits for settings in chosen.values()} == set(bits)


@pytest.mark.parametrize("name", ["ptq-w4", "ptq-w4-group64", "ptq-w8"])
def test_sizes_are_what_the_arithmetic_predicts(name, quartznet):
    """bits/8 a weight; 4 bytes a channel and a zero_point of 4, or 2 bytes a group and one of 2."""
    chosen, weights = assign(Recipe.load(FOLDER / f"{name}.toml"), quartznet), quantizable_weights(quartznet)
    distinct = {(weights[path].shape, settings): path for path, settings in chosen.items()}
    for (shape, settings), path in distinct.items():
        outputs, inputs, width = shape
        groups = inputs // settings.group_size if settings.group_size else 1
        bytes_each = 2 if groups > 1 else 4
        predicted = outputs * inputs * width * settings.bits / 8 + (outputs * groups + 1) * bytes_each
        assert quantize_weight(torch.zeros(shape), settings, name=path).num_bytes == predicted


@pytest.mark.speech
def test_on_a_trained_model_groups_and_clipping_and_codebooks_pay(shared):
    """Relative error of the stored weights, root mean square over a few layers of QuartzNet15x5."""
    path = shared / "models" / "quartznet15x5-en.nemo"
    model = network_from_nemo(*read_nemo(path), path)
    weights = dict(list(quantizable_weights(model).items())[20:24])

    def damage(name: str) -> float:
        chosen = assign(Recipe.load(FOLDER / f"{name}.toml"), model)
        errors = []
        for path, weight in weights.items():
            values = weight.values()
            difference = values.numpy() - quantize_weight(values, chosen[path], name=path).dequantize()
            errors.append(np.linalg.norm(difference) / np.linalg.norm(values))
        return float(np.sqrt(np.mean(np.square(errors))))

    assert damage("ptq-w8") < damage("ptq-w6") < damage("ptq-w5") < damage("ptq-w4")
    assert damage("ptq-w4-group64") < damage("ptq-w4")
    assert damage("ptq-w4-group64-clip") < damage("ptq-w4-group64")
    assert damage("ptq-w4-clip") < damage("ptq-w4")
    assert damage("ptq-w4-codebook") < damage("ptq-w4-clip")


def test_the_recipe_for_quartznet15x5_names_11_products_of_it_and_none_of_another(quartznet):
    settings = IntegerSettings.of(Recipe.load(FOLDER / "zero-shot-w8a8-quartznet15x5.toml"))
    settings.require_products(quartznet)
    modules = [path.rpartition(".")[0] for path in quantizable_weights(quartznet)]
    assert sum(fnmatchcase(module, *settings.wide_products) for module in modules) == 11
    assert len(modules) == 171
    plain = IntegerSettings.of(Recipe.load(FOLDER / "zero-shot-w8a8.toml"))
    assert settings.model_copy(update={"wide_products": ()}) == plain
    with torch.device("meta"):
        small = QuartzNet(QuartzNetConfig(blocks=quartznet_blocks(1)))
    plain.require_products(small)
    with pytest.raises(
        ValueError, match="matches no product of this model; its products are called like blocks"
    ):
        settings.require_products(small)
