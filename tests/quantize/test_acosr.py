"""ACosR: the formula, its gradient in a step, and what is left at the end."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from subtone.quantize import Recipe, decoded_twin, method_of, quantizable_weights
from subtone.quantize.acosr import ACosR

HEAD = 'name = "r"\nmethod = "acosr"\n'


def method(rule: str = "bits = 4", options: str = "") -> ACosR:
    made = method_of(Recipe.from_toml(f"{HEAD}[options]\n{options}\n[[rules]]\n{rule}\n"))
    assert isinstance(made, ACosR)
    return made


class Zoo(nn.Module):
    """Every kind of weight, an embedding tied to the head, and a path through all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.conv2d = nn.Conv2d(1, 2, 3, padding=1)
        self.depthwise = nn.Conv1d(16, 16, 3, padding=1, groups=16)
        self.conv = nn.Conv1d(16, 8, 3, padding=1)
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.conv2d(self.embed(tokens)[:, None])  # (B, 2, T, 8)
        x = self.conv(self.depthwise(x.permute(0, 1, 3, 2).flatten(1, 2))).mT
        x = self.lstm(x)[0]
        return self.head(self.attention(x, x, x, need_weights=False)[0])


def zoo(seed: int = 0) -> Zoo:
    torch.manual_seed(seed)
    return Zoo()


def loss_of(model: nn.Module) -> torch.Tensor:
    tokens = torch.arange(24).reshape(2, 12) % 12
    return nn.functional.cross_entropy(model(tokens).mT.float(), tokens)


def step(model: nn.Module, made: ACosR, optimizer: torch.optim.Optimizer, index: int) -> None:
    optimizer.zero_grad()
    loss_of(model).backward()
    made.before_step(index)
    optimizer.step()
    made.after_step(index)


@pytest.mark.parametrize("bits", range(2, 9))
def test_it_is_the_papers_formula_with_theta_fixed_by_the_bits(bits):
    """lambda sum (1 - |cos(pi theta w)|), w over the range, theta = 2**(bits-1) - 1."""
    layer = nn.Linear(20, 5)
    made = method(f"bits = {bits}\ngranularity = 'tensor'", "penalty_weight = 0.01")
    made.attach(layer)
    theta = 2 ** (bits - 1) - 1
    normalized = layer.weight.detach().double() / layer.weight.detach().abs().max().double()
    expected = 0.01 * (1 - torch.cos(math.pi * theta * normalized).abs()).sum()
    # Positions up to theta, rounded three times in float32, turn the cosine by pi times that.
    bound = 0.01 * 100 * (math.pi * theta + 4) * 3 * 2**-24
    assert made.penalty(0).item() == pytest.approx(expected.item(), abs=bound)


@pytest.mark.parametrize("rule", ["", "granularity = 'group'\ngroup_size = 4", "grid = 'asymmetric'"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_stored_weights_have_no_penalty(bits, rule):
    """Of every granularity and kernel shape: the zeros of the penalty are the levels that are stored."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"linear": nn.Linear(8, 6), "conv": nn.Conv1d(8, 5, 3)})
    made = method(f"bits = {bits}\n{rule}")
    made.attach(model)
    quantization = made.freeze(model)
    before = made.penalty(0).item()
    for path, stored in quantization.weights.items():
        with torch.no_grad():
            made.weights[path].parameter.copy_(torch.from_numpy(stored.dequantize()))
    # 1 - cos of a rounding error of a position up to 2**bits is the square of one.
    assert made.penalty(0).item() <= 200 * 5e-4 * (math.pi * 4 * 2**-24 * 2**bits) ** 2 + 1e-9
    assert before > 1e-4


def test_a_step_adds_the_gradient_of_the_penalty():
    model, made = zoo(), method("bits = 4", "penalty_weight = 0.01")
    made.attach(model)
    loss_of(model).backward()
    plain = {path: weight.parameter.grad.clone() for path, weight in made.weights.items()}
    made.before_step(0)
    stepped = {path: weight.parameter.grad.clone() for path, weight in made.weights.items()}
    model.zero_grad()
    made.penalty(0).backward()
    for path, weight in made.weights.items():
        difference = stepped[path] - plain[path] - weight.parameter.grad
        assert difference.abs().max() <= 1e-4 * weight.parameter.grad.abs().max(), path
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if "bias" in name)


def test_a_weight_without_a_gradient_gets_the_penaltys():
    model, made = zoo(), method()
    made.attach(model)
    made.before_step(0)
    assert all(weight.parameter.grad.any() for weight in made.weights.values())


def test_a_tied_weight_is_drawn_once_and_stays_tied():
    model, made = zoo(), method()
    made.attach(model)
    assert "embed.weight" in made.weights
    assert "head.weight" not in made.weights
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for index in range(3):
        step(model, made, optimizer, index)
    made.detach()
    twin = decoded_twin(model, made.freeze(model))
    assert twin.head.weight is twin.embed.weight
    loss_of(twin)


def test_a_frozen_weight_is_left_as_it_is_until_the_end():
    model, made = zoo(), method("bits = 3")
    model.lstm.requires_grad_(False)
    before = {name: value.clone() for name, value in model.lstm.state_dict().items()}
    made.attach(model)
    assert made.penalty(0).item() > 0
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    for index in range(3):
        step(model, made, optimizer, index)
    assert all(torch.equal(before[name], value) for name, value in model.lstm.state_dict().items())
    assert model.lstm.weight_hh_l0.grad is None
    assert "lstm.weight_hh_l0" in made.freeze(model).weights


def test_the_grid_stays_and_weights_that_leave_it_are_clipped():
    layer, made = nn.Linear(6, 3), method("bits = 4")
    made.attach(layer)
    range_before = layer.weight.detach().abs().amax(1)
    with torch.no_grad():
        layer.weight.mul_(3)
    made.after_step(0)
    assert torch.allclose(layer.weight.detach().abs().amax(1), range_before, rtol=1e-6)
    stored = made.freeze(layer).weights["weight"]
    assert np.array_equal(stored.scale[:, 0], (range_before / 7).numpy())


def test_without_training_it_is_round_to_nearest():
    model, recipe = zoo(), 'name = "r"\nmethod = "linear"\n[[rules]]\nbits = 4\nactivations = "dynamic"'
    ours = method("bits = 4\nactivations = 'dynamic'").freeze(model)
    plain = method_of(Recipe.from_toml(recipe)).freeze(model)
    assert ours.activation_bits == plain.activation_bits
    for path, stored in plain.weights.items():
        assert np.array_equal(ours.weights[path].dequantize(), stored.dequantize())
    assert list(ours.weights) == list(quantizable_weights(model))


def test_a_model_drawn_to_3_bits_loses_less_by_rounding_than_one_that_was_not():
    """lambda where the penalty and the loss push a weight about equally; 300 further steps for both."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 48), nn.Tanh(), nn.Linear(48, 8))
    inputs = torch.randn(256, 16)
    targets = torch.tanh(inputs @ torch.randn(16, 12)) @ torch.randn(12, 8)

    def train(model: nn.Module, made: ACosR | None, steps: int, rate: float) -> nn.Module:
        optimizer = torch.optim.Adam(model.parameters(), rate)
        for index in range(steps):
            optimizer.zero_grad()
            (model(inputs) - targets).square().mean().backward()
            if made:
                made.before_step(index)
            optimizer.step()
            if made:
                made.after_step(index)
        return model

    def rounded_loss(model: nn.Module, made: ACosR) -> float:
        with torch.no_grad():
            return (decoded_twin(model, made.freeze(model))(inputs) - targets).square().mean().item()

    def made_with(strength: float) -> ACosR:
        return method("bits = 3\ngranularity = 'tensor'", f"penalty_weight = {strength}")

    train(net, None, 300, 1e-2)
    further = train(copy.deepcopy(net), None, 300, 3e-3)
    plain = min(rounded_loss(model, made_with(0.0)) for model in (net, further))
    losses = {}
    for strength in (1e-4, 5e-3):
        ours, made = copy.deepcopy(net), made_with(strength)
        made.attach(ours)
        before = made.penalty(0).item()
        train(ours, made, 300, 3e-3)
        assert made.penalty(0).item() < before
        made.detach()
        losses[strength] = rounded_loss(ours, made)
    # Measured over four seeds: 1.03 against 1.71; too strong a penalty holds weights where they are.
    assert losses[1e-4] < 0.8 * plain
    assert losses[5e-3] > losses[1e-4]


def test_a_resumed_run_is_identical():
    def run(until: int, model: Zoo, made: ACosR, optimizer, start: int = 0) -> None:
        for index in range(start, until):
            step(model, made, optimizer, index)

    whole, whole_method = zoo(), method("bits = 3", "warmup_steps = 2")
    whole_method.attach(whole)
    run(8, whole, whole_method, torch.optim.SGD(whole.parameters(), 0.05))
    for killed_at in (1, 5):
        first, first_method = zoo(), method("bits = 3", "warmup_steps = 2")
        first_method.attach(first)
        run(killed_at, first, first_method, torch.optim.SGD(first.parameters(), 0.05))
        second, second_method = zoo(seed=1), method("bits = 3", "warmup_steps = 2")
        second.load_state_dict(first.state_dict())
        second_method.attach(second)
        second_method.load_state_dict(first_method.state_dict())
        run(8, second, second_method, torch.optim.SGD(second.parameters(), 0.05), killed_at)
        for name, value in whole.state_dict().items():
            assert torch.equal(value, second.state_dict()[name]), (killed_at, name)


def test_in_the_warm_up_nothing_happens_and_ending_there_warns():
    model, made = zoo(), method("bits = 4", "warmup_steps = 3")
    made.attach(model)
    for index in range(2):
        assert made.penalty(index) is None
        made.before_step(index)
        made.after_step(index)
    assert all(weight.parameter.grad is None for weight in made.weights.values())
    with pytest.warns(UserWarning, match="training ended within warmup_steps=3"):
        made.freeze(model)
    with torch.no_grad():
        model.conv.weight.mul_(2)
    made.after_step(2)
    largest = model.conv.weight.detach().flatten(1).abs().amax(1)
    assert torch.allclose(made.penalties["conv.weight"].grid.scale[:, 0] * 7, largest, rtol=1e-6)
    made.freeze(model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_parameters_are_trained_and_stored(dtype):
    layer, made = nn.Linear(8, 4).to(dtype), method()
    made.attach(layer)
    optimizer = torch.optim.SGD(layer.parameters(), 0.01)
    layer(torch.ones(2, 8, dtype=dtype)).sum().backward()
    made.before_step(0)
    optimizer.step()
    made.after_step(0)
    assert layer.weight.grad.dtype == dtype
    assert made.freeze(layer).weights["weight"].bits == 4


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match=r"grid='codebook' of weight is not even, as acosr needs it"):
        method("bits = 4\ngrid = 'codebook'", "warmup_steps = 5").attach(nn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"weight has sparse gradients.*use sparse=False"):
        method().attach(nn.Embedding(4, 4, sparse=True))
    with pytest.raises(ValueError, match=r"weight holds 1 of 16 values that are not finite"):
        layer = nn.Linear(4, 4)
        layer.weight.data[1, 2] = math.nan
        method().attach(layer)
    with pytest.raises(ValueError, match=r"options: penalty_weight=-1.0 does not fit"):
        method(options="penalty_weight = -1.0")
    made = method()
    made.attach(nn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"0\.weight is quantized either here or in the model to freeze"):
        made.freeze(nn.Sequential(nn.Linear(4, 4)))
    other = method()
    other.attach(nn.Sequential(nn.Linear(4, 4)))
    with pytest.raises(ValueError, match=r"0\.weight is quantized either here or in the saved state"):
        other.load_state_dict(made.state_dict())


def test_a_weight_that_diverged_is_named_at_the_end():
    layer, made = nn.Linear(4, 4), method()
    made.attach(layer)
    layer.weight.data[0, 0] = math.inf
    with pytest.raises(ValueError, match="weight holds 1 of 16 values that are not finite"):
        made.freeze(layer)
