"""S8BQAT: where its centroids come from, when it compresses, gamma, and what is left at the end."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.reference import absolute_cosine as reference
from torch import nn

from subtone.models.quartznet import QuartzNet, QuartzNetConfig, quartznet_blocks
from subtone.quantize import Recipe, assign, decoded_twin, method_of, quantizable_weights
from subtone.quantize.s8bqat import S8BQAT

RECIPES = Path(__file__).resolve().parents[2] / "recipes"

TENSOR = "granularity = 'tensor'"


def method(bits: int = 4, options: str = "", rule: str = TENSOR, first: str = "") -> S8BQAT:
    text = f'name = "r"\nmethod = "s8bqat"\n[options]\n{options}\n{first}\n[[rules]]\nbits = {bits}\n'
    made = method_of(Recipe.from_toml(f'{text}grid = "codebook"\n{rule}\n'))
    assert isinstance(made, S8BQAT)
    return made


def small_net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, 48), nn.Tanh(), nn.Linear(48, 8))


def problem(seed: int = 0) -> tuple[nn.Sequential, torch.Tensor, torch.Tensor]:
    net = small_net(seed)
    inputs = torch.randn(256, 16)
    return net, inputs, torch.tanh(inputs @ torch.randn(16, 12)) @ torch.randn(12, 8)


def loss_of(net: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (net(inputs) - targets).square().mean()


def train(net, data, made: S8BQAT | None, steps: range, optimizer) -> nn.Module:
    for index in steps:
        optimizer.zero_grad()
        loss_of(net, *data).backward()
        if made:
            made.before_step(index)
        optimizer.step()
        if made:
            made.after_step(index)
    return net


# Centroids -----------------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("bits", range(1, 9))
def test_a_frozen_model_is_its_hard_compressed_weights_exactly(bits, granularity):
    """At most 2**bits values, all on k/128 times the scale of the kernel or channel."""
    torch.manual_seed(bits)
    model = nn.ModuleDict({"linear": nn.Linear(40, 30), "depthwise": nn.Conv1d(12, 12, 33, groups=12)})
    made = method(bits, rule=f"granularity = '{granularity}'")
    made.attach(model)
    twin = decoded_twin(model, made.freeze(model))
    made.compress()
    quantization = made.freeze(model)
    for path, stored in quantization.weights.items():
        compressed = made.weights[path].parameter.detach().numpy()
        assert np.array_equal(stored.dequantize(), compressed)
        assert np.array_equal(twin.get_parameter(path).detach().numpy(), compressed)
        assert stored.num_levels <= 2**bits
        assert stored.granularity == granularity
        flat = compressed.reshape(len(compressed), -1)
        assert np.array_equal(np.rint(flat / stored.scale) * stored.scale, flat)
        assert np.abs(np.rint(flat / stored.scale)).max() <= 128


def test_the_scale_is_the_kernels_range():
    model, made = small_net(), method(rule="granularity = 'channel'")
    made.attach(model)
    scale = made.penalties["0.weight"].grid.scale
    assert torch.equal(scale[:, 0] * 128, model[0].weight.detach().abs().amax(1))
    clipped = method(rule="granularity = 'tensor'\nrange = 'percentile'\npercentile = 90.0")
    clipped.attach(model)
    magnitudes = model[0].weight.detach().abs().flatten().sort().values
    assert clipped.penalties["0.weight"].grid.scale.item() * 128 == magnitudes[691].item()  # 0.9 of 768


def test_channels_of_zeros_do_not_move_the_centroids():
    layer, pruned = nn.Linear(16, 4), nn.Linear(16, 40)
    with torch.no_grad():
        pruned.weight.zero_()
        pruned.weight[7:11] = layer.weight
    found = []
    for model in (layer, pruned):
        made = method(1, rule="granularity = 'channel'")
        made.attach(model)
        found.append(made.penalties["weight"].regions)
    assert found[0] == found[1]


def test_centroids_are_taken_once_when_the_warm_up_ends():
    net, *data = problem()
    made = method(options="warmup_steps = 5\ntau_steps = 3")
    made.attach(net)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    plain = copy.deepcopy(net)
    train(plain, data, None, range(5), torch.optim.Adam(plain.parameters(), 1e-2))
    train(net, data, made, range(4), optimizer)
    assert made.penalties == {}
    assert made.convergence() == {}
    assert math.isnan(made.mean_convergence())
    train(net, data, made, range(4, 5), optimizer)
    range_of = plain[0].weight.detach().abs().max()
    assert made.penalties["0.weight"].grid.scale.item() == pytest.approx(range_of.item() / 128)
    taken = made.penalties["0.weight"]
    # Clipped, but not compressed yet.
    low, high = (level * range_of / 128 for level in taken.regions.levels[[0, -1]].tolist())
    assert torch.allclose(net[0].weight.detach(), plain[0].weight.detach().clamp(low, high))
    train(net, data, made, range(5, 9), optimizer)
    assert made.penalties["0.weight"] is taken


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_diverge_in_the_warm_up_are_named(value):
    net, made = small_net(), method(options="warmup_steps = 1")
    made.attach(net)
    with torch.no_grad():
        net[2].weight[0, 0] = value
    with pytest.raises(ValueError, match=r"2\.weight holds 1 of 384 values that are not finite"):
        made.after_step(0)


# Compressing ---------------------------------------------------------------------------------


def test_the_hard_compressor_comes_every_tau_steps():
    net, *data = problem()
    made = method(options="warmup_steps = 2\ntau_steps = 4\npenalty_weight = 1e-5")
    made.attach(net)
    optimizer, settled = torch.optim.Adam(net.parameters(), 1e-2), []
    for index in range(15):
        train(net, data, made, range(index, index + 1), optimizer)
        settled.append(made.mean_convergence() == 1)
    assert [index + 1 for index, is_settled in enumerate(settled) if is_settled] == [6, 10, 14]


def test_gamma_equals_the_loop_over_eq_3_and_is_1_after_a_hard_compression():
    net, *data = problem()
    made = method(3, options="epsilon = 1e-4")
    made.attach(net)
    train(net, data, made, range(20), torch.optim.Adam(net.parameters(), 1e-2))
    found = made.convergence()
    for path, penalty in made.penalties.items():
        scale = penalty.grid.scale.double().item()
        weights = (net.get_parameter(path).detach().double() / scale / 128).flatten().tolist()
        expected = reference.gamma(weights, (penalty.regions.levels / 128).tolist(), 1e-4)
        np.testing.assert_allclose(found[path], expected, atol=1e-12)
        assert 0 < np.nanmean(found[path]) < 1
    mean = np.mean([np.nanmean(gamma) for gamma in found.values()])
    assert made.mean_convergence() == pytest.approx(mean)
    made.compress()
    assert all(np.nanmin(gamma) == 1 for gamma in made.convergence().values())
    assert made.mean_convergence() == 1


def test_rare_compression_and_a_tiny_penalty_leave_gamma_low():
    """Fig. 5 and the row tau = 120 of Table 3: without the hard compressor gamma stays low."""
    gammas = {}
    for strength, tau in ((1e-7, 10_000), (5e-3, 10_000), (1e-7, 60)):
        net, *data = problem()
        made = method(4, options=f"penalty_weight = {strength}\ntau_steps = {tau}")
        made.attach(net)
        train(net, data, made, range(120), torch.optim.Adam(net.parameters(), 1e-3))
        gammas[strength, tau] = made.mean_convergence()
    assert gammas[1e-7, 10_000] < 0.15
    # A penalty 50 times too strong still leaves the wide regions behind, whose gradient is the weaker.
    assert 2 * gammas[1e-7, 10_000] < gammas[5e-3, 10_000] < 0.5
    assert gammas[1e-7, 60] == 1


def test_weights_are_clipped_after_every_step():
    net, made = small_net(), method()
    made.attach(net)
    with torch.no_grad():
        net[0].weight[3] = 50.0
    made.after_step(0)
    penalty = made.penalties["0.weight"]
    highest = penalty.regions.levels[-1] * penalty.grid.scale
    assert torch.equal(net[0].weight[3].detach(), highest.expand(1, 16)[0].float())


def test_a_frozen_module_is_rounded_only_at_the_end():
    net, made = small_net(), method(options="tau_steps = 1")
    net[0].requires_grad_(False)
    before = net[0].weight.clone()
    made.attach(net)
    made.before_step(0)
    made.after_step(0)
    assert torch.equal(net[0].weight, before)
    assert net[0].weight.grad is None
    assert made.convergence()["2.weight"].min() == 1
    assert made.freeze(net).weights["0.weight"].num_levels == 16


# At the end ----------------------------------------------------------------------------------


def test_at_3_bits_it_ends_with_less_loss_than_rounding_the_float_model():
    net, *data = problem()
    train(net, data, None, range(300), torch.optim.Adam(net.parameters(), 1e-2))
    further = copy.deepcopy(net)
    train(further, data, None, range(300), torch.optim.Adam(further.parameters(), 3e-3))

    def rounded_loss(model: nn.Module, made) -> float:
        with torch.no_grad():
            return loss_of(decoded_twin(model, made.freeze(model)), *data).item()

    def linear(grid: str):
        text = f'name="r"\nmethod="linear"\n[[rules]]\nbits=3\ngrid="{grid}"\ngranularity="tensor"'
        return method_of(Recipe.from_toml(text))

    even = min(rounded_loss(model, linear("symmetric")) for model in (net, further))
    lloyd_max = min(rounded_loss(model, linear("codebook")) for model in (net, further))
    losses = {}
    for strength in (1e-4, 5e-2):
        made, ours = method(3, options=f"penalty_weight = {strength}\ntau_steps = 50"), copy.deepcopy(net)
        made.attach(ours)
        train(ours, data, made, range(300), torch.optim.Adam(ours.parameters(), 3e-3))
        made.detach()
        losses[strength] = rounded_loss(ours, made)
    # Measured over four seeds with five regions: 0.46 against 1.71 and 0.66.
    assert losses[1e-4] < 0.5 * even
    assert losses[1e-4] < 0.9 * lloyd_max
    assert losses[1e-4] < losses[5e-2]  # Table 3: so large a lambda hurts


@pytest.mark.parametrize(("killed_at", "bits"), [(1, 4), (5, 4), (9, 4), (9, 1)])
def test_a_run_killed_within_a_period_resumes_identically(killed_at, bits, tmp_path):
    options = "warmup_steps = 3\ntau_steps = 4"
    net, *data = problem()
    whole = copy.deepcopy(net)
    made = method(bits, options=options)
    made.attach(whole)
    train(whole, data, made, range(13), torch.optim.Adam(whole.parameters(), 1e-2))
    expected = made.freeze(whole)

    first, first_method = copy.deepcopy(net), method(bits, options=options)
    optimizer = torch.optim.Adam(first.parameters(), 1e-2)
    first_method.attach(first)
    train(first, data, first_method, range(killed_at), optimizer)
    saved = {
        "model": first.state_dict(),
        "optimizer": optimizer.state_dict(),
        "method": first_method.state_dict(),
    }
    torch.save(saved, tmp_path / "run.pt")
    saved = torch.load(tmp_path / "run.pt", weights_only=True)

    second, second_method = small_net(seed=9), method(bits, options=options)
    second.load_state_dict(saved["model"])
    second_method.attach(second)
    second_method.load_state_dict(saved["method"])
    optimizer = torch.optim.Adam(second.parameters(), 1e-2)
    optimizer.load_state_dict(saved["optimizer"])
    train(second, data, second_method, range(killed_at, 13), optimizer)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    for path, stored in second_method.freeze(second).weights.items():
        assert np.array_equal(stored.codes, expected.weights[path].codes)
        assert np.array_equal(stored.codebook, expected.weights[path].codebook)
        assert np.array_equal(stored.scale, expected.weights[path].scale)


def test_ending_within_the_warm_up_warns():
    net, made = small_net(), method(options="warmup_steps = 5")
    made.attach(net)
    with pytest.warns(UserWarning, match="training ended within warmup_steps=5"):
        made.freeze(net)


def test_the_first_layers_of_8_5_are_drawn_to_8_even_bits_and_never_compressed():
    """M-II: the first layers keep 8 bits and the linear method of the baseline."""
    net = small_net()
    first = "[[rules]]\npattern = '0.weight'\nbits = 8\ngrid = 'symmetric'"
    made = method(5, options="tau_steps = 1", first=first)
    made.attach(net)
    before = net[0].weight.detach().clone()
    made.before_step(0)
    assert net[0].weight.grad.any()
    made.after_step(0)
    assert torch.allclose(net[0].weight.detach(), before)
    assert list(made.convergence()) == ["2.weight"]
    weights = made.freeze(net).weights
    assert {path: (stored.bits, stored.grid) for path, stored in weights.items()} == {
        "0.weight": (8, "symmetric"),
        "2.weight": (5, "codebook"),
    }


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_a_weight_of_zeros_stays_zero(granularity):
    net, made = small_net(), method(rule=f"granularity = '{granularity}'", options="tau_steps = 1")
    with torch.no_grad():
        net[0].weight.zero_()
        net[2].weight[3] = 0
    made.attach(net)
    made.before_step(0)
    with torch.no_grad():
        net[0].weight.add_(0.1)
    made.after_step(0)
    assert not net[0].weight.any()
    assert np.isnan(made.convergence()["0.weight"]).all()
    assert made.mean_convergence() == 1
    assert not made.freeze(net).weights["0.weight"].dequantize().any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bits", [4, 8])
def test_half_precision_weights_keep_their_codes_through_compression(dtype, bits):
    torch.manual_seed(0)
    layer = nn.Linear(64, 32).to(dtype)
    made = method(bits)
    made.attach(layer)
    before = made.freeze(layer).weights["weight"]
    made.compress()
    after = made.freeze(layer).weights["weight"]
    assert layer.weight.dtype == dtype
    assert np.array_equal(before.codes, after.codes)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("regions = 0", r"options: regions=0 does not fit: .*greater than or equal to 1"),
        ("tau_steps = 0", r"options: tau_steps=0 does not fit"),
        ("epsilon = 0.0", r"options: epsilon=0.0 does not fit"),
        ("tau = 3", r"options: tau=3 is not a key"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        method(options=options)


# Recipes -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quartznet() -> QuartzNet:
    with torch.device("meta"):
        return QuartzNet(QuartzNetConfig(blocks=quartznet_blocks(3)))


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("acosr-8bit", {8}),
        ("acosr-6bit", {6}),
        ("acosr-5bit", {5}),
        ("acosr-4bit", {4}),
        ("s8bqat-5bit", {5}),
        ("s8bqat-4bit", {4}),
        ("s8bqat-8-5", {8, 5}),
    ],
)
def test_a_recipe_fits_quartznet(name, bits, quartznet):
    path = RECIPES / f"{name}.toml"
    recipe = Recipe.load(path)
    assert recipe.name == name
    assert path.read_text().startswith("# ")
    assert method_of(recipe).options.penalty_weight == 5e-5  # a tenth of the published one
    chosen = assign(recipe, quartznet)
    assert {of.bits for of in chosen.values()} == bits
    assert set(chosen) == set(quantizable_weights(quartznet))
    grids = {of.grid for of in chosen.values() if of.bits < 8}
    assert grids <= {"symmetric" if name.startswith("acosr") else "codebook"}
    if name == "s8bqat-8-5":
        first = [path for path, of in chosen.items() if of.bits == 8]
        assert first == [path for path in chosen if path.startswith("blocks.0.")]
