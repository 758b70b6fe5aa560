"""What is trained natively is what will be served; freezing changes nothing."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.runtime.definitions import all_values
from torch import Tensor, nn

from subtone.export.lower import lower
from subtone.models.quartznet import QuartzNet, QuartzNetConfig, quartznet_blocks
from subtone.quantize import METHODS, Recipe, assign, decoded_twin, fake_quantize_weight, quantize_weight
from subtone.quantize.native import Native
from subtone.quantize.simulate import simulate
from subtone.quantize.weights import quantizable_weights

RECIPES = sorted(
    (Path(__file__).resolve().parents[2] / "recipes").glob("native-[fi]*.toml")
)  # not QuartzNet15x5's own
EPSILON = float(np.finfo(np.float32).eps)
DYNAMIC = {"activations": "dynamic", "activation_bits": 8}


def native(*rules: dict, **options) -> Native:
    rules = rules or ({"bits": 4},)
    return Native(
        Recipe.from_dict({"name": "r", "method": "native", "options": options, "rules": list(rules)})
    )


class Everything(nn.Module):
    """Every kind of weight there is, each heard in the output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embed = nn.Embedding(5, 8)
        self.front = nn.Conv2d(1, 1, 3, padding=1)
        self.depthwise = nn.Conv1d(8, 8, 3, padding=1, groups=8)
        self.pointwise = nn.Conv1d(8, 8, 1)
        self.lstm = nn.LSTM(8, 8, num_layers=2, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.linear = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        x = self.front(x[:, None])[:, 0]
        x = self.pointwise(self.depthwise(x.mT)).mT
        x = self.lstm(x)[0]
        return self.norm(self.linear(self.attention(x, x, x)[0] + x))


TOKENS = torch.tensor([[0, 1, 2, 3, 4, 2], [4, 4, 1, 0, 0, 3]])
IN_TORCH = {"pattern": "attention.*", "bits": 4}


def same_bits(left, right) -> bool:
    left, right = (np.ascontiguousarray(side, np.float32).view(np.uint32) for side in (left, right))
    return np.array_equal(left, right)


# The forward pass ----------------------------------------------------------------------------


def test_the_forward_pass_sees_the_stored_values_of_every_kind_of_weight():
    model, method = Everything().eval(), native()  # in training, attention sums in another order
    plain = copy.deepcopy(model)
    method.attach(model)
    trained = model(TOKENS).detach()
    method.detach()
    assert same_bits(trained, decoded_twin(plain, method.freeze(plain))(TOKENS).detach())
    assert not torch.equal(trained, plain(TOKENS))


def test_scales_follow_the_weights_at_every_forward_pass():
    model, method = nn.Linear(6, 3, bias=False), native()
    method.attach(model)
    with torch.no_grad():
        method.weights["weight"].parameter.mul_(3.0)
    expected = fake_quantize_weight(method.weights["weight"].parameter, method.settings["weight"])
    assert torch.equal(model(torch.eye(6)).T, expected)


def test_gradients_pass_straight_through_and_not_into_the_scale():
    """int4's stop-gradient: the largest weight gets its own gradient and nothing for setting the scale."""
    model, method = nn.Linear(6, 3, bias=False), native()
    method.attach(model)
    upstream = torch.randn(3, 6)
    (model.weight * upstream).sum().backward()
    assert torch.equal(method.weights["weight"].parameter.grad, upstream)


@pytest.mark.parametrize("activation_bits", [4, 8])
@pytest.mark.parametrize("is_pointwise", [True, False])
def test_a_packed_product_equals_the_trained_forward_pass_bit_for_bit(activation_bits, is_pointwise):
    torch.manual_seed(0)
    model, method = (
        OneProduct(is_pointwise=is_pointwise),
        native({"bits": 4, **DYNAMIC, "activation_bits": activation_bits}),
    )
    features = torch.randn(1, 40, 23) * 5
    method.attach(model)
    trained = model(features)[0].detach()[0].numpy()
    method.detach()
    quantization = method.freeze(model)
    program, constants = lower(model.eval(), num_features=40, frames_per_step=1, quantization=quantization)
    values = all_values(program, constants, np.ascontiguousarray(features[0].T.numpy()))
    assert same_bits(values[program.output], trained)


class OneProduct(nn.Module):
    """Features (B, 40, T) to (B, T, 17) by one product of frames and a bias."""

    def __init__(self, *, is_pointwise: bool) -> None:
        super().__init__()
        self.product = nn.Conv1d(40, 17, 1) if is_pointwise else nn.Linear(40, 17)

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        is_linear = isinstance(self.product, nn.Linear)
        return (self.product(features.mT) if is_linear else self.product(features).mT), lengths


@pytest.mark.parametrize("make", [lambda: nn.Linear(12, 5), lambda: nn.Conv1d(12, 5, 1)])
def test_integer_and_fake_differ_by_the_rounding_of_float_sums_only(make):
    torch.manual_seed(0)
    model = make()
    features = torch.randn(4, 9, 12) if isinstance(model, nn.Linear) else torch.randn(4, 12, 9)
    heard = []
    for forward in ("integer", "fake"):
        method = native({"bits": 4, **DYNAMIC}, forward=forward)
        method.attach(model)
        heard.append(model(features).detach())
        method.detach()
    difference = (heard[0] - heard[1]).abs().max()
    # 12 products of weights below 1/3 with activations below 4, each of 14 steps rounded.
    assert 0 < difference <= 14 * EPSILON * 12 * 4 / 3


def test_with_float_activations_fake_and_integer_are_one_computation():
    heard = []
    for forward in ("integer", "fake"):
        model, method = Everything(), native({"bits": 4}, forward=forward)
        method.attach(model)
        heard.append(model(TOKENS))
    assert torch.equal(*heard)


def test_a_kernel_that_spans_frames_keeps_float_activations():
    model, method = nn.Conv1d(4, 4, 3, groups=4), native({"bits": 4, **DYNAMIC})
    plain = copy.deepcopy(model)
    method.attach(model)
    quantization = method.freeze(model)
    assert quantization.activation_bits == {"weight": 0}
    features = torch.randn(2, 4, 9)
    assert torch.equal(model(features), decoded_twin(plain, quantization)(features))


def test_an_encoder_layer_hears_the_same_in_training_and_in_evaluation():
    """torch has a fast path for evaluation, which would read the weights past the integer product."""
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    method = native({"pattern": "self_attn.*", "bits": 4}, {"bits": 4, **DYNAMIC})
    method.attach(model)
    features = torch.randn(2, 5, 8)
    with torch.no_grad():
        trained, evaluated = model.train()(features), model.eval()(features)
        method.detach()
        native({"bits": 4}).attach(model)
        with_float_activations = model(features)
    # Attention sums 8 products and LayerNorm's outputs stay below 3; rounding activations does more.
    assert (trained - evaluated).abs().max() < 64 * EPSILON
    assert (trained - with_float_activations).abs().max() > 1e-3


def test_a_copy_of_an_attached_model_computes_with_its_own_weights():
    model, method = nn.Sequential(nn.Linear(6, 6)), native({"bits": 4, **DYNAMIC})
    method.attach(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        method.weights["0.weight"].parameter.zero_()
    assert twin(torch.randn(2, 6)).std(0).any()


# Freezing ------------------------------------------------------------------------------------


def test_detached_the_model_is_the_plain_one_with_trained_weights():
    model, plain = Everything(), Everything()
    method = native(IN_TORCH, {"bits": 4, **DYNAMIC})
    method.attach(model)
    attached = model(TOKENS)
    method.detach()
    assert not torch.equal(attached, plain(TOKENS))
    assert torch.equal(model(TOKENS), plain(TOKENS))
    assert list(model.state_dict()) == list(plain.state_dict())
    assert "forward" not in vars(model.linear)


def test_a_freeze_in_the_middle_of_training_equals_one_after_it():
    model, method = Everything(), native(IN_TORCH, {"bits": 4, **DYNAMIC})
    method.attach(model)
    middle = method.freeze(model)
    method.detach()
    after = method.freeze(model)
    assert middle.activation_bits == after.activation_bits
    products = ("pointwise", "lstm", "linear")
    assert after.activation_bits == {path: 8 * path.startswith(products) for path in after.weights}
    for path, weight in after.weights.items():
        assert np.array_equal(middle.weights[path].codes, weight.codes)
        assert weight.scale.shape == (weight.shape[0], 1)
        assert weight.grid == "symmetric"


def test_layers_of_more_bits_train_in_float_and_are_rounded_at_the_freeze():
    """int4, Table 2: "int4 QAT to the listed layers and int8 PTQ for the remaining layers"."""
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    method = native({"pattern": "0.*", "bits": 4, **DYNAMIC}, {"bits": 8, **DYNAMIC}, largest_trained_bits=4)
    method.attach(model)
    features = torch.randn(3, 6)
    last = nn.functional.linear(model[0](features), method.weights["1.weight"].parameter, model[1].bias)
    assert torch.equal(model(features), last)
    quantization = method.freeze(model)
    assert {path: weight.bits for path, weight in quantization.weights.items()} == {
        "0.weight": 4,
        "1.weight": 8,
    }
    assert quantization.activation_bits == {"0.weight": 8, "1.weight": 8}


def test_a_tied_weight_is_quantized_once_and_stays_tied():
    model = nn.ModuleDict({"embed": nn.Embedding(5, 4), "head": nn.Linear(4, 5, bias=False)})
    model.head.weight = model.embed.weight
    method = native({"bits": 4, **DYNAMIC})
    method.attach(model)
    assert torch.equal(model.head.weight, model.embed.weight)
    assert list(method.freeze(model).weights) == ["embed.weight"]
    method.detach()
    assert model.head.weight is model.embed.weight


def test_two_products_that_share_a_weight_are_both_integer_products():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    model[1].weight = model[0].weight
    method = native({"bits": 4, **DYNAMIC})
    method.attach(model)
    features = torch.randn(2, 6)
    one, other = model[0](features) - model[0].bias, model[1](features) - model[1].bias
    assert (one - other).abs().max() <= 4 * EPSILON * one.abs().max() + 4 * EPSILON


def test_a_module_that_is_not_trained_is_heard_as_it_will_be_stored():
    model, method = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2)), native()
    model[0].requires_grad_(False)
    method.attach(model)
    before = method.weights["0.weight"].parameter.clone()
    model(torch.randn(3, 6)).sum().backward()
    assert torch.equal(method.weights["0.weight"].parameter, before)
    assert torch.equal(
        model[0].weight, torch.from_numpy(method.freeze(model).weights["0.weight"].dequantize())
    )
    assert method.weights["1.weight"].parameter.grad is not None


def test_a_weight_of_zeros_trains():
    model, method = nn.Linear(6, 3), native({"bits": 4, **DYNAMIC})
    nn.init.zeros_(model.weight)
    method.attach(model)
    model(torch.randn(4, 6)).sum().backward()
    assert method.weights["weight"].parameter.grad.abs().sum() > 0
    assert not method.freeze(model).weights["weight"].dequantize().any()


# Training ------------------------------------------------------------------------------------


def problem() -> tuple[nn.Module, Tensor, Tensor]:
    """A teacher on features of few directions: which way a weight is rounded matters, not how far."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    features = torch.randn(256, 4) @ torch.randn(4, 16)
    return model, features, model(features).detach()


def optimizer_of(model: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(model.parameters(), lr=0.003, eps=1e-4)  # 1e-8 is 0 in float16


def train(
    model: nn.Module,
    method: Native,
    optimizer: torch.optim.Adam,
    features: Tensor,
    targets: Tensor,
    steps: range = range(0, 120),
) -> None:
    """`steps` of 120, the learning rate falling to 0."""
    for step in steps:
        optimizer.param_groups[0]["lr"] = 0.003 * (1 - step / 120)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(features).float(), targets).backward()
        method.before_step(step)
        optimizer.step()
        method.after_step(step)


def error_of(model: nn.Module, method: Native, features: Tensor, targets: Tensor) -> float:
    """Of the frozen model with the activations that will be served."""
    quantization = method.freeze(model)
    twin = decoded_twin(model, quantization)
    simulate(twin, quantization)
    with torch.no_grad():
        return nn.functional.mse_loss(twin(features), targets).item()


@pytest.mark.parametrize("rule", [{"bits": 4}, {"bits": 4, **DYNAMIC}, {"bits": 3}])
def test_it_beats_rounding_to_nearest_at_its_bits(rule):
    model, features, targets = problem()
    method = native(rule)
    rounded = error_of(model, method, features, targets)
    method.attach(model)
    train(model, method, optimizer_of(model), features, targets)
    method.detach()
    assert error_of(model, method, features, targets) < rounded / 2


def test_a_killed_run_goes_on_identically():
    rule = {"bits": 4, **DYNAMIC}
    whole, features, targets = problem()
    method, optimizer = native(rule), optimizer_of(whole)
    method.attach(whole)
    train(whole, method, optimizer, features, targets, range(3))
    state = copy.deepcopy([whole.state_dict(), optimizer.state_dict(), method.state_dict()])
    train(whole, method, optimizer, features, targets, range(3, 6))

    resumed, _, _ = problem()
    again, optimizer = native(rule), optimizer_of(resumed)
    resumed.load_state_dict(state[0])  # before `attach`: the names are those of the plain model
    again.attach(resumed)
    optimizer.load_state_dict(state[1])
    again.load_state_dict(state[2])
    train(resumed, again, optimizer, features, targets, range(3, 6))
    trained, expected = resumed.state_dict(), whole.state_dict()
    assert all(torch.equal(trained[name], value) for name, value in expected.items())


@pytest.mark.parametrize("forward", ["integer", "fake"])
def test_it_trains_under_autocast_in_bfloat16(forward):
    model, features, targets = problem()
    method = native({"bits": 4, **DYNAMIC}, forward=forward)
    rounded = error_of(model, method, features, targets)
    method.attach(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        train(model, method, optimizer_of(model), features, targets)
        assert model(features).dtype == torch.bfloat16
    method.detach()
    assert error_of(model, method, features, targets) < rounded


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_parameters_in_half_precision_train_and_freeze_to_what_was_heard(precision):
    model, features, targets = problem()
    model, features = model.to(precision), features.to(precision)
    method = native()
    method.attach(model)
    train(model, method, optimizer_of(model), features, targets, range(2))
    heard, stored = model[0].weight.detach(), method.freeze(model).weights["0.weight"]
    assert heard.dtype == precision
    assert torch.equal(heard, torch.from_numpy(stored.dequantize()).to(precision))


# Recipes and mistakes ------------------------------------------------------------------------


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_fits_quartznet_and_has_its_files_name(path):
    recipe = Recipe.load(path)
    assert recipe.name == path.stem
    assert path.read_text().startswith("# ")
    assert Recipe.from_dict(recipe.resolved()) == recipe
    assert isinstance(METHODS[recipe.method](recipe), Native)
    with torch.device("meta"):
        network = QuartzNet(QuartzNetConfig(blocks=quartznet_blocks(3)))
    assert set(assign(recipe, network)) == set(quantizable_weights(network))


def test_every_row_of_the_papers_table_has_its_recipe():
    rows = {}
    for path in RECIPES:
        settings = Recipe.load(path).rules[-1].settings
        rows[path.stem.removeprefix("native-")] = (settings.bits, settings.activation_bits)
    assert rows == {
        "i8w": (8, None),
        "i4w": (4, None),
        "i8wa": (8, 8),
        "i4wi8a": (4, 8),
        "i4wa": (4, 4),
        "i4wa-pact": (4, 4),
        "fakei4w": (4, None),
        "i4w-first": (8, None),
    }


@pytest.mark.parametrize(("name", "bits"), [("native-i4wi8a", 8), ("native-i8wa", 8), ("native-i4wa", 4)])
def test_recipes_with_integer_activations_train_an_lstm_on_them(name, bits):
    model = nn.ModuleDict({"lstm": nn.LSTM(8, 8), "out": nn.Linear(8, 8)})
    method = Native(Recipe.load(RECIPES[0].parent / f"{name}.toml"))
    method.attach(model)
    assert set(method.freeze(model).activation_bits.values()) == {bits}
    model.out(model.lstm(torch.randn(3, 2, 8))[0]).sum().backward()
    assert all(weight.parameter.grad.any() for weight in method.weights.values())


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"bits": 1}, r"rules\[0\]: bits=1 has no native grid"),
        ({"bits": 4, "grid": "asymmetric"}, r"rules\[0\]: grid='asymmetric' .* native needs 'symmetric'"),
        ({"bits": 4, "grid": "codebook"}, r"rules\[0\]: grid='codebook' .* native needs 'symmetric'"),
        ({"bits": 4, "bias_correction": True}, r"rules\[0\]: bias_correction=true .* remove it"),
    ],
)
def test_settings_that_native_cannot_train_are_refused_at_the_door(rule, message):
    with pytest.raises(ValueError, match=message):
        native(rule)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"forward": "float"}, "options: forward"),
        ({"largest_trained_bits": 9}, "options: largest_trained_bits"),
        ({"alpha": 10}, "options: alpha"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        native({"bits": 4}, **options)


@pytest.mark.parametrize("forward", ["integer", "fake"])
@pytest.mark.parametrize(
    ("model", "path"),
    [
        (nn.MultiheadAttention(4, 2), "in_proj_weight"),
        (nn.Sequential(nn.MultiheadAttention(4, 2)), "0.in_proj_weight"),
    ],
)
def test_activations_out_of_reach_are_refused_with_the_remedy(model, path, forward):
    method = native({"bits": 4, **DYNAMIC}, forward=forward)
    message = (
        f"activations='dynamic' of {path} cannot be trained.*add a rule for it with activations = 'float'"
    )
    with pytest.raises(ValueError, match=message):
        method.attach(model)
    assert not method.weights


def test_a_linear_with_a_forward_pass_of_its_own_is_refused_but_can_be_faked():
    class Doubled(nn.Linear):
        def forward(self, features: Tensor) -> Tensor:
            return 2 * super().forward(features)

    model = nn.Sequential(Doubled(4, 4))
    with pytest.raises(
        ValueError, match=r"of 0\.weight cannot be trained, because Doubled keeps them to itself"
    ):
        native({"bits": 4, **DYNAMIC}).attach(model)
    native({"bits": 4, **DYNAMIC}, forward="fake").attach(model)
    assert model(torch.ones(1, 4)).shape == (1, 4)


def test_a_weight_that_is_not_finite_is_named():
    model = nn.Sequential(nn.Linear(4, 4))
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"0\.weight holds 1 of 16 values that are not finite"):
        native().attach(model)


def test_attaching_twice_is_refused():
    model, method = nn.Linear(4, 4), native()
    method.attach(model)
    with pytest.raises(ValueError, match="attached already"):
        method.attach(model)


def test_frozen_values_do_not_depend_on_the_activations():
    weight = torch.randn(4, 6)
    of = native({"bits": 4, **DYNAMIC}).recipe.rules[0].settings
    assert same_bits(quantize_weight(weight, of).dequantize(), fake_quantize_weight(weight, of))
