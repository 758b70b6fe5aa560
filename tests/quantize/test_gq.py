"""The General Quantizer in training: when it acts, what it does to a kernel, and what it leaves behind."""

from __future__ import annotations

import io
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.reference import gq as reference
from torch import nn

from subtone.quantize import METHODS, Recipe, assign, decoded_twin, method_of, quantizable_weights
from subtone.quantize.gq import GQ, annealed_alpha
from subtone.quantize.mu_law import alpha_in_range, mu_law_levels

FOLDER = Path(__file__).resolve().parents[2] / "recipes"
RECIPES = sorted(FOLDER.glob("gq-*.toml"))
LITERAL = {"alpha_start": 10.0, "alpha_end": 400.0, "alpha_unit": "range", "mu": 8.0, "scale": "unit"}


def gq(*rules: str, **options) -> GQ:
    """A method with a schedule of 8 steps, one invocation each, unless `options` say otherwise."""
    options = {"end_step": 8, "every_steps": 1} | options
    table = "".join(f"{name} = {value!r}\n" for name, value in options.items())
    text = f'name = "r"\nmethod = "gq"\n[options]\n{table}'
    found = method_of(Recipe.from_toml(text + "".join(f"[[rules]]\ngrid = 'codebook'\n{r}\n" for r in rules)))
    assert isinstance(found, GQ)
    return found


def kernel(rows: int = 64, columns: int = 64, deviation: float = 0.05, seed: int = 0) -> nn.Linear:
    layer = nn.Linear(columns, rows, bias=False)
    with torch.no_grad():
        layer.weight.normal_(0, deviation, generator=torch.Generator().manual_seed(seed))
    return layer


def invoke(method: GQ, model: nn.Module, steps: range | None = None) -> None:
    """A whole schedule in which nothing is learnt, or those of `steps`."""
    if not method.weights:
        method.attach(model)
    for step in steps or range(method.options.end_step + 1):
        method.after_step(step)


def freeze_unfinished(method: GQ, model: nn.Module):
    with pytest.warns(UserWarning, match="annealing is unfinished"):
        return method.freeze(model)


class Zoo(nn.Module):
    """One of every kind of weight, an attention's projections, and two layers that share theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.conv = nn.Conv1d(8, 6, 3, padding=1)
        self.depthwise = nn.Conv1d(6, 6, 5, groups=6)
        self.image = nn.Conv2d(1, 4, 3)
        self.lstm = nn.LSTM(6, 8)
        self.attention = nn.MultiheadAttention(8, 2)
        self.out = nn.Linear(8, 12)
        self.out.weight = self.embed.weight


def zoo(seed: int = 0) -> Zoo:
    torch.manual_seed(seed)
    return Zoo()


# The schedule ----------------------------------------------------------------------------------


def test_alpha_lies_on_the_line_of_eq_4():
    method = gq("bits = 4", start_step=10, end_step=50, alpha_start=10.0, alpha_end=400.0)
    assert [method.alpha_at(step) for step in (10, 20, 50)] == [10.0, 107.5, 400.0]
    assert annealed_alpha(3, alpha_start=1, alpha_end=1, start_step=0, end_step=9) == 1


def test_weights_change_at_the_interval_and_from_the_end_on_lie_on_their_centroids():
    model, method = kernel(), gq("bits = 4", start_step=3, every_steps=4, end_step=13)
    method.attach(model)
    acted, is_on_grid = [], []
    for step in range(16):
        with torch.no_grad():
            model.weight += 1e-3
        before = model.weight.clone()
        method.after_step(step)
        if not torch.equal(before, model.weight):
            acted.append(step)
        is_on_grid.append(len(model.weight.unique()) <= 64 * 16)
    assert acted == [3, 7, 11, 13, 14, 15]
    assert is_on_grid.index(True) == 13
    assert all(is_on_grid[13:])


def test_after_the_end_weights_return_to_the_same_centroids_and_the_rest_trains_on():
    """The range and mu are held, so a small step of the optimizer is taken back exactly."""
    model, method = nn.Linear(32, 16), gq("bits = 4")
    invoke(method, model)
    held, bias = model.weight.clone(), model.bias.clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    for step in range(9, 12):
        model(torch.ones(1, 32)).sum().backward()
        optimizer.step()
        assert not torch.equal(model.weight, held)
        method.after_step(step)
        assert torch.equal(model.weight, held)
    assert not torch.equal(model.bias, bias)


# One invocation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("bits", [2, 4, 6])
def test_an_invocation_is_the_papers_on_weights_over_their_range(bits, granularity):
    """Eq. 1 to 3 in float64 with the outermost weight on its pole; float32 keeps 7 digits of a range,
    and alpha (below 260) amplifies what it loses: test_mu_law.py derives (alpha / 2 + 9) 2**-24."""
    model, method = kernel(16, 40), gq(f"bits = {bits}\ngranularity = '{granularity}'", mu=3.0)
    weights = model.weight.detach().double().numpy()
    invoke(method, model, range(1))
    high, low = (
        (weights.max(), weights.min())
        if granularity == "tensor"
        else (weights.max(1, keepdims=True), weights.min(1, keepdims=True))
    )
    scale = np.maximum(high / 127, -low / 128) * np.ones((16, 1))
    levels = mu_law_levels(bits, 3.0)
    alpha = alpha_in_range(2.0, levels, "gap")
    expected = [
        reference.soft(row / 128 / step, levels / 128, alpha) * 128 * step
        for row, step in zip(weights, scale[:, 0], strict=True)
    ]
    tolerance = 128 * scale.max() * (alpha + 9) * 2.0**-24
    np.testing.assert_allclose(model.weight.detach(), expected, rtol=0, atol=tolerance)


def test_the_outermost_weight_stays_on_its_pole():
    """Dividing by the plain magnitude would cost 1/128 an invocation where the largest weight is positive."""
    model = kernel()
    with torch.no_grad():
        model.weight[:, 0] = 0.4
    invoke(gq("bits = 4", end_step=100), model)
    assert model.weight.max().item() == pytest.approx(0.4, rel=1e-3)


@pytest.mark.parametrize(("bits", "left"), [(4, 0.738), (5, 0.730), (6, 0.726)])
def test_the_literal_alpha_of_10_shrinks_weights_by_a_quarter_in_one_invocation(bits, left):
    """PAPERS.md, GQ-shrink: 27 % at 5 bits. 65536 weights: a deviation of 0.3 % of itself."""
    model = kernel(256, 256)
    before = model.weight.detach().double().numpy().ravel()
    invoke(gq(f"bits = {bits}\ngranularity = 'tensor'", **LITERAL), model, range(1))
    assert model.weight.std().item() / before.std() == pytest.approx(left, abs=0.005)
    plain = reference.soft(before[:4096], np.array(reference.centroids(bits, 8.0)), 10.0)
    np.testing.assert_allclose(model.weight.detach().ravel()[:4096], plain, rtol=0, atol=1e-6)


def test_the_literal_annealing_leaves_a_sixth_of_the_deviation_and_ours_all_of_it():
    """120 invocations, or 24 by default, with nothing learnt between them; the table of GQOptions."""
    left, error = {}, {}
    for name, options in (("literal", LITERAL | {"end_step": 120}), ("ours", {"end_step": 24})):
        model = kernel(256, 256)
        before = model.weight.detach().clone()
        at_once = freeze_unfinished(gq("bits = 5\ngranularity = 'tensor'"), model).weights["weight"]
        invoke(gq("bits = 5\ngranularity = 'tensor'", **options), model)
        left[name] = (model.weight.std() / before.std()).item()
        least = float(np.square(at_once.dequantize() - before.numpy()).mean())
        error[name] = (model.weight - before).square().mean().item() / least
    assert left["literal"] == pytest.approx(0.16, abs=0.01)
    assert error["literal"] > 100
    assert left["ours"] == pytest.approx(1.0, abs=0.005)
    assert error["ours"] == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(("bits", "left"), [(3, 0.88), (4, 0.98), (5, 0.99), (6, 0.99), (7, 0.99), (8, 0.99)])
def test_the_default_annealing_keeps_the_deviation(bits, left):
    """The table of GQOptions, here with one scale a channel; `left` is a hundredth or two below it."""
    model = kernel(64, 256)
    before = model.weight.std().item()
    invoke(gq(f"bits = {bits}", end_step=24), model)
    assert left <= model.weight.std().item() / before <= 1.01


def test_the_mu_of_least_soft_error_wanders_from_what_will_be_stored():
    """Why `mu_error` is "hard" unless it is asked otherwise."""
    errors = {}
    for kind in ("soft", "hard"):
        model = kernel(64, 256)
        before = model.weight.detach().clone()
        method = gq("bits = 4", mu_error=kind)
        invoke(method, model)
        errors[kind] = (model.weight - before).square().mean().item()
    assert errors["soft"] > 1.1 * errors["hard"]


def test_one_bit_keeps_the_mean_magnitude_of_every_channel():
    """The poles are -128 and 127 levels, so a lopsided channel may be off by 1/255."""
    model = kernel(8, 500)
    means = model.weight.detach().abs().mean(1)
    method = gq("bits = 1", end_step=30)
    invoke(method, model, range(30))
    np.testing.assert_allclose(model.weight.detach().abs().mean(1), means, rtol=1e-5)
    method.after_step(30)
    np.testing.assert_allclose(model.weight.detach().abs().mean(1), means, rtol=1 / 255)
    assert all(len(row.unique()) == 2 for row in model.weight)


def test_a_percentile_clips_once_and_not_again():
    model, rule = kernel(8, 500), "bits = 2\nrange = 'percentile'\npercentile = 90.0"
    ranges = model.weight.detach().abs().kthvalue(450, dim=1).values
    invoke(gq(rule, end_step=100, alpha_start=8.0), model)
    # A negative pole is 128 levels where the positive is 127; this little softness leaves both in place.
    assert torch.all(model.weight.abs().amax(1) <= ranges * 128 / 127 * (1 + 1e-6))
    assert torch.all(model.weight.abs().amax(1) >= ranges * 0.99)


def test_each_kernel_has_its_own_mu():
    model = nn.ModuleDict({"narrow": kernel(deviation=0.01), "even": kernel()})
    with torch.no_grad():
        model["narrow"].weight[:, 0] = 0.1
        model["even"].weight.uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    method = gq("bits = 4")
    invoke(method, model)
    mu = method.state_dict()["mu"]
    assert mu["even.weight"] < 0.5
    assert mu["narrow.weight"] > 10


# What it leaves behind -------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_kernel_ends_on_k_128_of_its_scale_and_the_frozen_model_is_the_trained_one(
    bits, record_property
):
    model, method = zoo(), gq(f"bits = {bits}\nactivations = 'dynamic'", end_step=4)
    invoke(method, model)
    method.detach()
    assert not method.weights
    found = method.freeze(model)
    assert list(found.weights) == list(quantizable_weights(model))
    assert not found.bias_shifts
    assert found.recipe["method"] == "gq"
    twin = decoded_twin(model, found)
    for path, stored in found.weights.items():
        assert (stored.bits, stored.grid) == (bits, "codebook")
        levels = np.unique(stored.levels())
        assert len(levels) <= 2**bits
        values = model.get_parameter(path).detach().reshape(stored.num_rows, -1).numpy()
        for row, scale in zip(values, stored.scale[:, 0], strict=True):
            assert set(row.tolist()) <= set((scale * levels.astype(np.float32)).tolist())
        assert torch.equal(twin.get_parameter(path), model.get_parameter(path))
        record_property(f"{path}: levels used of {2**bits}", len(levels))  # Fig. 4's remark, not asserted
    assert found.activation_bits["lstm.weight_ih_l0"] == 8
    assert found.activation_bits["conv.weight"] == 0


def test_tied_weights_are_quantized_once_and_stay_tied():
    model, method = zoo(), gq("bits = 3")
    invoke(method, model)
    assert model.out.weight is model.embed.weight
    found = method.freeze(model)
    assert "embed.weight" in found.weights
    assert "out.weight" not in found.weights
    twin = decoded_twin(model, found)
    assert twin.out.weight is twin.embed.weight


def test_bits_differ_by_rule_and_what_stays_float_is_left_alone():
    model = nn.ModuleDict({"a": kernel(seed=1), "b": kernel(seed=2), "c": kernel(seed=3)})
    kept = model["c"].weight.clone()
    recipe = Recipe.from_dict(
        {
            "name": "r",
            "method": "gq",
            "options": {"end_step": 3, "every_steps": 1},
            "rules": [
                {"pattern": "a.*", "bits": 2, "grid": "codebook"},
                {"pattern": "b.*", "bits": 5, "grid": "codebook", "granularity": "tensor"},
                {"keep_float": True},
            ],
        }
    )
    method = method_of(recipe)
    assert isinstance(method, GQ)
    invoke(method, model)
    found = method.freeze(model)
    assert {path: stored.bits for path, stored in found.weights.items()} == {"a.weight": 2, "b.weight": 5}
    assert len(model["b"].weight.unique()) <= 32
    assert torch.equal(model["c"].weight, kept)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bits", [1, 4])
def test_half_precision_weights_end_on_the_grid_as_far_as_they_can_hold_it(dtype, bits):
    model, method = kernel().to(dtype), gq(f"bits = {bits}")
    invoke(method, model)
    assert model.weight.dtype == dtype
    found = method.freeze(model)  # no warning: as its dtype holds it, no weight moves
    assert torch.equal(decoded_twin(model, found).weight, model.weight)


def test_zeros_are_legal():
    model = nn.ModuleDict({"zero": kernel(deviation=0.0), "row": kernel()})
    with torch.no_grad():
        model["row"].weight[3] = 0
    for bits in (1, 4):
        method = gq(f"bits = {bits}")
        invoke(method, model)
        method.freeze(model)
        assert not model["zero"].weight.any()
        assert not model["row"].weight[3].any()
        assert model["row"].weight.isfinite().all()


def test_a_frozen_parameter_is_left_until_the_end_and_then_quantized_once():
    model = nn.ModuleDict({"frozen": kernel(seed=1), "live": kernel(seed=2)})
    model["frozen"].weight.requires_grad_(False)
    before, method = model["frozen"].weight.clone(), gq("bits = 4")
    expected = freeze_unfinished(gq("bits = 4"), model).weights["frozen.weight"].dequantize()
    invoke(method, model, range(8))
    assert torch.equal(model["frozen"].weight, before)
    method.after_step(8)
    assert np.array_equal(model["frozen"].weight.numpy(), expected)
    method.freeze(model)


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
            "bias_correction=true has no effect on trained weights; remove",
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
        ("bits = 4", {"every_steps": 0}, r"every_steps=0 must be at least 1; a twentieth of the run"),
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
def test_a_recipe_has_its_files_name_its_bits_and_a_purpose(path):
    recipe = Recipe.load(path)
    assert recipe.name == path.stem
    assert recipe.method in METHODS
    assert path.read_text().startswith("# ")
    assert Recipe.from_dict(recipe.resolved()) == recipe
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
