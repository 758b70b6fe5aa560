"""The General Quantizer over whole runs: cut short, resumed, learning, misused, and its recipes."""

from __future__ import annotations

import io
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.quantize.gq_models import freeze_unfinished, gq, invoke, kernel, zoo
from tests.reference import gq as reference
from torch import nn

from subtone.quantize import Recipe, assign, decoded_twin, method_of
from subtone.quantize.gq import GQ

FOLDER = Path(__file__).resolve().parents[2] / "recipes"
RECIPES = sorted(FOLDER.glob("gq-*.toml"))


# An unfinished annealing -------------------------------------------------------------------------------


def test_freezing_before_the_end_warns_with_the_gap_in_numbers():
    model = nn.ModuleDict({"fine": kernel(seed=1), "coarse": kernel(seed=2)})
    with torch.no_grad():
        model["coarse"].weight[0, :4] = torch.tensor([1.0, 0.62, 0.62, 0.62])
    method = gq("pattern = 'coarse.*'\nbits = 1\ngranularity = 'tensor'", "bits = 4")
    invoke(method, model, range(2))
    with pytest.warns(UserWarning, match="unfinished") as caught:
        found = method.freeze(model)
    gaps = {
        path: np.abs(model.get_parameter(path).detach().numpy() - stored.dequantize()) / 128 / stored.scale
        for path, stored in found.weights.items()
    }
    rms = math.sqrt(np.mean([np.square(gap).mean() for gap in gaps.values()]))
    assert len(caught) == 1
    assert str(caught[0].message) == (
        "recipe r: the annealing is unfinished: freezing moves weights by up to "
        f"{gaps['coarse.weight'].max():.2g} of their kernel's range (coarse.weight), {rms:.2g} root mean "
        "square; train until step 8 has been taken (end_step)"
    )
    assert caught[0].filename == __file__


def test_steps_that_were_not_followed_by_a_call_are_told_too():
    model, method = kernel(), gq("bits = 4")
    invoke(method, model)
    method.freeze(model)
    with torch.no_grad():
        model.weight[0, 0] += 1e-3
    freeze_unfinished(method, model)


def test_freezing_without_any_training_takes_the_mu_of_least_error():
    model = kernel()
    stored = freeze_unfinished(gq("bits = 4"), model).weights["weight"]
    wide = (model.weight.detach().double().numpy() / stored.scale / 128).ravel()
    error = np.square(wide - stored.levels().ravel() / 128).sum()
    tried = [reference.error_of_mu(wide, 4, mu, math.inf) for mu in np.geomspace(0.01, 80, 40)]
    assert error <= 1.02 * min(tried)


# Resuming, and learning ----------------------------------------------------------------------------------


class Task:
    """A student of 3 layers learns what a teacher says of 512 points; the loss is the mean squared error."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.inputs = torch.randn(512, 12, generator=generator)
        directions = torch.randn(12, 6, generator=generator)
        self.targets = torch.sin(self.inputs @ directions) + 0.3 * self.inputs[:, :6]

    def student(self) -> nn.Sequential:
        torch.manual_seed(2)
        return nn.Sequential(nn.Linear(12, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 6))

    def loss(self, model: nn.Module) -> torch.Tensor:
        return (model(self.inputs) - self.targets).square().mean()

    def train(self, model, optimizer, steps: range, method: GQ | None = None) -> None:
        for step in steps:
            optimizer.zero_grad()
            self.loss(model).backward()
            if method:
                method.before_step(step)
            optimizer.step()
            if method:
                method.after_step(step)


@pytest.mark.parametrize("killed_after", [5, 12, 17, 22])
def test_killed_and_resumed_training_continues_identically(killed_after):
    """Between two invocations, right after one, at the end of the annealing (17 + 1 steps) and beyond."""
    task, options = Task(), {"start_step": 2, "every_steps": 5, "end_step": 17}

    def begin():
        model, method = task.student(), gq("bits = 4", **options)
        method.attach(model)
        return model, torch.optim.Adam(model.parameters(), lr=1e-2), method

    straight = begin()
    task.train(straight[0], straight[1], range(25), straight[2])
    first = begin()
    task.train(first[0], first[1], range(killed_after + 1), first[2])
    file = io.BytesIO()
    torch.save([part.state_dict() for part in first], file)
    file.seek(0)
    second = begin()
    for part, state in zip(second, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    task.train(second[0], second[1], range(killed_after + 1, 25), second[2])
    for one, other in zip(straight[0].parameters(), second[0].parameters(), strict=True):
        assert torch.equal(one, other)
    assert straight[2].state_dict()["mu"] == second[2].state_dict()["mu"]
    frozen = [part[2].freeze(part[0]).weights for part in (straight, second)]
    for path, stored in frozen[0].items():
        assert np.array_equal(stored.dequantize(), frozen[1][path].dequantize())


@pytest.mark.parametrize("bits", [3, 4])
def test_it_learns_what_rounding_to_nearest_destroys(bits):
    task = Task()
    model = task.student()
    task.train(model, torch.optim.Adam(model.parameters(), lr=1e-2), range(400))
    rounded_recipe = f'name = "r"\nmethod = "linear"\n[[rules]]\nbits = {bits}'
    rounded = method_of(Recipe.from_toml(rounded_recipe)).freeze(model)
    at_once = freeze_unfinished(gq(f"bits = {bits}"), model)
    losses = {
        name: task.loss(decoded_twin(model, found)).item()
        for name, found in (("rounded", rounded), ("at once", at_once))
    }
    method = gq(f"bits = {bits}", end_step=400, every_steps=20)
    method.attach(model)
    task.train(model, torch.optim.Adam(model.parameters(), lr=2e-3), range(401), method)
    method.detach()
    losses["annealed"] = task.loss(decoded_twin(model, method.freeze(model))).item()
    assert losses["annealed"] < 0.8 * min(losses["rounded"], losses["at once"])


# Bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "options", "complaint"),
    [
        (
            "grid = 'symmetric'\nbits = 4",
            {},
            r"rules\[0\]: grid='symmetric' has no centroids; use grid = 'cod",
        ),
        ("bits = 9", {}, r"bits=9 cannot be stored; use 1 to 8"),
        ("bits = 1\nrange = 'percentile'\npercentile = 99.0", {}, "has no effect at bits=1, where the mean"),
        (
            "bits = 4\nrange = 'percentile'\npercentile = 99.0\ngranularity = 'tensor'",
            {"scale": "unit"},
            "unit'; l",
        ),
        ("bits = 4", {"scale": "unit"}, "granularity='channel' does not fit scale='unit'; use 'tensor'"),
        (
            "bits = 4\nbias_correction = true",
            {},
            "bias_correction=true is for weights that are not trained; remove",
        ),
        (
            "bits = 6",
            {"mu": 12.0},
            r"mu=12.0 lets centroids of bits=6 meet on one k/128; use at most 9.89, or",
        ),
        ("bits = 8", {"mu": 1.0}, r"mu=1.0 lets centroids of bits=8 meet on one k/128; leave it out"),
        ("bits = 4", {"mu": -1.0}, r"options: mu=-1.0 must be finite and at least 0; leave it out"),
        ("bits = 4", {"mu": 8.0, "mu_error": "soft"}, "mu_error='soft' has no effect where mu=8.0 is held"),
        ("bits = 4", {"divisor": "1+mu"}, r"options: divisor='1\+mu' needs mu; give 8.0"),
        ("bits = 4", {"start_step": 8}, r"start_step=8 and end_step=8 must ascend from 0"),
        (
            "bits = 4",
            {"every_steps": 0},
            r"every_steps=0 must be at least 1; a tenth to a twentieth of the run",
        ),
        (
            "bits = 4",
            {"alpha_start": 30.0},
            r"alpha_start=30.0 and alpha_end=8.0 must ascend above 0; 2 to 8",
        ),
        ("bits = 4", {"alpha_end": math.inf}, r"alpha_end=inf must ascend above 0"),
        ("bits = 4", {"alpha_unit": "gaps"}, r"alpha_unit='gaps' is not known; did you mean 'gap'\?"),
        ("bits = 4", {"every_step": 3}, r"every_step=3 is not a key; did you mean every_steps\?"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(rule, options, complaint):
    settings = dict(line.split(" = ", 1) for line in ["grid = 'codebook'", *rule.split("\n")])
    text = "\n".join(f"{name} = {value}" for name, value in settings.items())
    table = "".join(f"{name} = {value!r}\n" for name, value in ({"end_step": 8} | options).items())
    with pytest.raises(ValueError, match=complaint) as caught:
        method_of(Recipe.from_toml(f'name = "r"\nmethod = "gq"\n[options]\n{table}[[rules]]\n{text}'))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("recipe")


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    "rule", ["bits = 4", "bits = 1", "bits = 4\nrange = 'percentile'\npercentile = 90.0"]
)
def test_values_that_are_not_finite_stop_training_and_name_the_tensor(value, rule):
    model, method = nn.ModuleDict({"a": kernel()}), gq(rule)
    invoke(method, model, range(1))
    with torch.no_grad():
        model["a"].weight[1, 2] = value
    with pytest.raises(ValueError, match=r"a\.weight holds 1 of 4096 values that are not finite"):
        method.after_step(1)
    with pytest.raises(ValueError, match=r"a\.weight holds 1 of 4096"):
        method.freeze(model)
    with pytest.raises(ValueError, match=r"a\.weight holds 1 of 4096"):
        gq(rule).attach(model)


def test_a_state_of_other_weights_is_refused():
    method = gq("bits = 4")
    invoke(method, nn.ModuleDict({"a": kernel()}))
    other = gq("bits = 4")
    other.attach(nn.ModuleDict({"b": kernel()}))
    with pytest.raises(
        ValueError, match=r"recipe r: a\.weight is quantized either here or where the state com"
    ):
        other.load_state_dict(method.state_dict())


# Recipes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_has_the_bits_of_its_name(path):
    recipe = Recipe.load(path)
    method_of(recipe)
    bits = int(path.stem.removeprefix("gq-")[0])
    chosen = assign(recipe, zoo())
    assert min(settings.bits for settings in chosen.values()) == bits
    assert "dynamic" in {settings.activations for settings in chosen.values()}


def test_the_literal_recipe_is_the_papers_setting():
    method = method_of(Recipe.load(FOLDER / "gq-4bit-literal.toml"))
    assert isinstance(method, GQ)
    options = method.options
    assert (options.alpha_start, options.alpha_end, options.alpha_unit) == (10, 400, "range")
    assert (options.mu, options.divisor, options.scale) == (8, "mu", "unit")
    assert (options.end_step, options.every_steps) == (120_000, 1_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        invoke(method, kernel(), range(120_000, 120_001))
