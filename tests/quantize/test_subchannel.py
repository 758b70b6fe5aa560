"""The 2-bit method: what training hears is what is stored, rounded once a step; what it refuses."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from subtone.quantize import (
    Recipe,
    decoded_twin,
    method_of,
    quantizable_weights,
    quantize_weight,
)
from subtone.quantize.subchannel import SubChannel

SUBCHANNEL = "bits = 2\ngrid = 'asymmetric'\ngranularity = 'group'\ngroup_size = 4\nrange = 'clip_search'"
CHANNEL = "bits = 2\ngrid = 'asymmetric'"


class Tied(nn.Module):
    """An embedding whose weight is the last layer's too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.middle = nn.Embedding(8, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 8, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.middle(self.embed(tokens)).tanh())


class First(nn.Module):
    """The output of a module that returns several."""

    def __init__(self, module: nn.Module, repeats: int = 1) -> None:
        super().__init__()
        self.module, self.repeats = module, repeats

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.module(*[features] * self.repeats)[0]


MODELS = {
    "linear": lambda: nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 4)),
    "conv": lambda: nn.Sequential(nn.Conv1d(4, 8, 3), nn.Conv1d(8, 8, 3, groups=8), nn.Conv1d(8, 4, 1)),
    "lstm": lambda: First(nn.LSTM(8, 8, num_layers=2, bidirectional=True, batch_first=True)),
    "attention": lambda: First(nn.MultiheadAttention(8, 2, batch_first=True), repeats=3),
    "tied": lambda: Tied(),
}
INPUTS = {
    "linear": torch.randn(5, 8, generator=torch.Generator().manual_seed(0)),
    "conv": torch.randn(2, 4, 20, generator=torch.Generator().manual_seed(0)),
    "lstm": torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)),
    "attention": torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)),
    "tied": torch.arange(8).reshape(2, 4),
}
RULES = (
    "kinds = ['depthwise', 'embedding']\nbits = 2\ngrid = 'asymmetric'\nrange = 'clip_search'",
    SUBCHANNEL,
)


def subchannel(*rules: str, options: str = "") -> SubChannel:
    text = "".join(f"[[rules]]\n{rule}\n" for rule in rules)
    method = method_of(Recipe.from_toml(f'name = "r"\nmethod = "subchannel"\n[options]\n{options}\n{text}'))
    assert isinstance(method, SubChannel)
    return method


def made(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return MODELS[name]()


def train(method: SubChannel, model: nn.Module, inputs: torch.Tensor, steps: range) -> torch.optim.Optimizer:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    go_on(method, model, optimizer, inputs, steps)
    return optimizer


def go_on(
    method: SubChannel,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: torch.Tensor,
    steps: range,
) -> None:
    for step in steps:
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        method.before_step(step)
        optimizer.step()
        method.after_step(step)


# What training hears is what is stored -------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_a_frozen_model_is_the_trained_forward_pass_exactly(name, dtype):
    model, inputs = made(name).to(dtype), INPUTS[name]
    inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs
    method = subchannel(*RULES)
    method.attach(model)
    train(method, model, inputs, range(3))
    model.eval()
    with torch.no_grad():
        heard = model(inputs)
    attached = method.freeze(model)
    method.detach()
    floats = {path: value.clone() for path, value in model.state_dict().items()}
    frozen = method.freeze(model)
    with torch.no_grad():
        assert torch.equal(decoded_twin(model, frozen)(inputs), heard)
    assert list(frozen.weights) == list(attached.weights) == list(quantizable_weights(model))
    for path, weight in frozen.weights.items():
        assert np.array_equal(weight.codes, attached.weights[path].codes)
        assert np.array_equal(weight.scale, attached.weights[path].scale)
        assert not torch.equal(torch.from_numpy(weight.dequantize()), floats[path].float())
    assert all(torch.equal(value, floats[path]) for path, value in model.state_dict().items())


@pytest.mark.parametrize("name", MODELS)
def test_every_weight_is_trained_and_stays_the_parameter_of_its_optimizer(name):
    model = made(name)
    before = {path: weight.parameter for path, weight in quantizable_weights(model).items()}
    values = {path: parameter.detach().clone() for path, parameter in before.items()}
    method = subchannel(*RULES)
    method.attach(model)
    train(method, model, INPUTS[name], range(1))
    method.detach()
    after = {path: weight.parameter for path, weight in quantizable_weights(model).items()}
    assert all(after[path] is before[path] for path in before)
    assert all(not torch.equal(after[path], values[path]) for path in before)
    assert torch.equal(copy.deepcopy(model)(INPUTS[name]), model(INPUTS[name]))


def test_a_tied_weight_is_stored_once_and_stays_tied():
    model, method = made("tied"), subchannel(*RULES)
    method.attach(model)
    train(method, model, INPUTS["tied"], range(2))
    assert torch.equal(model.embed.weight, model.head.weight)
    method.detach()
    assert model.head.weight is model.embed.weight
    frozen = method.freeze(model)
    assert list(frozen.weights) == ["embed.weight", "middle.weight"]
    twin = decoded_twin(model, frozen)
    assert twin.head.weight is twin.embed.weight


def test_what_is_kept_float_is_heard_and_left_as_it_is():
    model = made("linear")
    method = subchannel("pattern = '2.*'\nkeep_float = true", SUBCHANNEL)
    method.attach(model)
    assert list(method.settings) == ["0.weight"]
    assert torch.equal(model[2].weight, quantizable_weights(model)["2.weight"].parameter)
    assert list(method.freeze(model).weights) == ["0.weight"]


def test_a_module_that_is_not_trained_is_heard_as_it_is_stored():
    model = made("linear")
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    method = subchannel(SUBCHANNEL, options="msqe_weight = 0.1")
    method.attach(model)
    train(method, model, INPUTS["linear"], range(2))
    stored = method.freeze(model).weights["0.weight"].dequantize()
    assert torch.equal(model[0].weight, torch.from_numpy(stored))
    method.detach()
    assert torch.equal(model[0].weight, before)


def test_activations_are_those_that_the_packed_file_will_meet():
    found = subchannel(f"{CHANNEL}\nactivations = 'dynamic'").freeze(made("conv"))
    assert list(found.activation_bits.values()) == [0, 0, 8]
    assert found.recipe["method"] == "subchannel"
    assert not found.bias_shifts


# One rounding a step -------------------------------------------------------------------------


@pytest.fixture
def roundings(monkeypatch) -> list[str]:
    """The names of the weights that were rounded, in order."""
    names: list[str] = []
    module = __import__("subtone.quantize.subchannel", fromlist=["round_weight"])
    own = module.round_weight

    def counting(weight, settings, *, name):
        names.append(name)
        return own(weight, settings, name=name)

    monkeypatch.setattr(module, "round_weight", counting)
    return names


@pytest.mark.parametrize("name", MODELS)
def test_a_step_rounds_each_weight_once(name, roundings):
    model, method = made(name), subchannel(*RULES, options="msqe_weight = 0.1")
    method.attach(model)
    weights = list(quantizable_weights(model))
    assert sorted(roundings) == sorted(weights)
    train(method, model, INPUTS[name], range(3))
    assert sorted(roundings) == sorted(weights * 3)


def test_an_evaluation_rounds_once_and_training_goes_on_with_what_it_kept(roundings):
    model, method = made("lstm"), subchannel(*RULES)
    method.attach(model)
    method.after_step(0)
    roundings.clear()
    with torch.inference_mode():
        for _ in range(3):
            model(INPUTS["lstm"])
    model(INPUTS["lstm"]).sum().backward()
    assert sorted(roundings) == sorted(quantizable_weights(model))


def test_two_losses_of_one_step_may_run_backward_one_after_the_other():
    """Gradient accumulation, distillation: the kept values are no part of a graph that was freed."""
    model, inputs, method = made("linear"), INPUTS["linear"], subchannel(*RULES)
    method.attach(model)
    losses = [model(part).square().sum() for part in (inputs[:2], inputs[2:])]
    for loss in losses:
        loss.backward()
    apart = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    model(inputs).square().sum().backward()
    together = [parameter.grad for parameter in model.parameters()]
    torch.testing.assert_close(apart, together)


def test_a_changed_weight_is_rounded_anew_and_a_copy_is_another_weight():
    model, method = made("linear"), subchannel(SUBCHANNEL)
    method.attach(model)
    seen = model[0].weight.detach().clone()
    parameter = quantizable_weights(model)["0.weight"].parameter
    twin = copy.deepcopy(model)
    with torch.no_grad():
        parameter.mul_(2)
        assert torch.equal(model[0].weight, 2 * seen)
        assert torch.equal(twin[0].weight, seen)
    parameter.data = parameter.data * 2
    assert torch.equal(model[0].weight, 4 * seen)
    parameter.data.mul_(2)  # past torch's count of changes: seen after the step
    method.after_step(0)
    assert torch.equal(model[0].weight, 8 * seen)


def test_under_autocast_the_same_weights_are_heard():
    model, method = made("linear"), subchannel(*RULES)
    method.attach(model)
    expected = model[0].weight
    method.after_step(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model[0].weight, expected)


# Options -------------------------------------------------------------------------------------


def test_the_range_gradient_reaches_weights_that_the_loss_does_not_depend_on():
    """Only the ends of the range pass it on, to the largest and the smallest weight."""
    for options, is_reached in (("", True), ("scale_gradient = false", False)):
        model = nn.Linear(6, 1, bias=False)
        with torch.no_grad():
            model.weight.copy_(torch.tensor([[-1.0, 0.1, 0.2, 0.3, 0.4, 2.0]]))
        parameter = model.weight
        method = subchannel(CHANNEL, options=options)
        method.attach(model)
        model(torch.tensor([[0.0, 1.0, 0.0, 0.0, 0.0, 0.0]])).sum().backward()
        # 0.1 is 1.1 steps above the lowest: code 1, residue -0.1 of three steps.
        ends = [0.1 / 3, -0.1 / 3] if is_reached else [0.0, 0.0]
        expected = torch.tensor([[ends[0], 1.0, 0.0, 0.0, 0.0, ends[1]]])
        torch.testing.assert_close(parameter.grad, expected)


def test_msqe_is_the_summed_squared_error_and_draws_each_weight_to_its_grid():
    model, method = made("conv"), subchannel(*RULES, options="msqe_weight = 0.3")
    method.attach(model)
    penalty = method.penalty(0)
    penalty.backward()
    expected = 0.0
    for path, weight in quantizable_weights(model).items():
        values = weight.values()
        error = values - torch.from_numpy(quantize_weight(values, method.settings[path]).dequantize())
        expected += 0.3 * error.double().square().sum().item()
        torch.testing.assert_close(weight.parameter.grad, 0.6 * error)
    assert penalty.item() == pytest.approx(expected, rel=1e-5)


def test_without_msqe_there_is_no_penalty():
    model, method = made("linear"), subchannel(SUBCHANNEL)
    method.attach(model)
    assert method.penalty(0) is None
    frozen = subchannel(SUBCHANNEL, options="msqe_weight = 1.0")
    frozen.attach(made("linear").requires_grad_(False))
    assert frozen.penalty(0) is None


def test_two_bits_symmetric_are_three_levels_and_asymmetric_four():
    torch.manual_seed(0)
    model = nn.Linear(400, 3, bias=False)
    for rule, count in (("bits = 2", 3), (CHANNEL, 4)):
        method = subchannel(rule)
        method.attach(model)
        assert [len(row.unique()) for row in model.weight] == [count] * 3
        method.detach()


# Resuming ------------------------------------------------------------------------------------


def test_a_killed_run_resumes_identically_from_weights_and_optimizer_alone():
    model, inputs = made("lstm"), INPUTS["lstm"]
    method = subchannel(*RULES, options="msqe_weight = 0.01")
    method.attach(model)
    optimizer = train(method, model, inputs, range(3))
    state = copy.deepcopy((model.state_dict(), optimizer.state_dict(), method.state_dict()))
    go_on(method, model, optimizer, inputs, range(3, 6))
    resumed, again = made("lstm", seed=1), subchannel(*RULES, options="msqe_weight = 0.01")
    again.attach(resumed)
    later = torch.optim.Adam(resumed.parameters(), lr=0.01)
    resumed.load_state_dict(state[0])
    later.load_state_dict(state[1])
    again.load_state_dict(state[2])
    go_on(again, resumed, later, inputs, range(3, 6))
    assert state[2] == {}
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), resumed.parameters(), strict=True))


# The door ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "options", "complaint"),
    [
        ("bits = 1", "", r"rules\[0\]: bits=1 is no sub-channel grid; use 2 to 8, or method 'gq'"),
        ("bits = 4\ngrid = 'codebook'", "", r"rules\[0\]: grid='codebook' has no scale to train; use 'asymmetric'"),
        ("bits = 4\nbias_correction = true", "", r"rules\[0\]: bias_correction=true is for weights that are not"),
        ("bits = 4\nrange = 'octav'", "", r"rules\[0\]: range='octav' has no end that is one weight; use"),
        (CHANNEL, "msqe_weight = -1.0", r"recipe r: options: msqe_weight=-1.0 does not fit"),
        (CHANNEL, "msqe_weight = nan", r"recipe r: options: msqe_weight=nan does not fit"),
        (CHANNEL, "scale_gradeint = true", r"scale_gradeint=True is not a key; did you mean scale_gradient"),
    ],
)  # fmt: skip
def test_what_the_method_cannot_do_is_refused_in_one_line(rule, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        subchannel(rule, options=options)


def test_octav_trains_without_a_range_gradient():
    model = made("linear")
    method = subchannel("bits = 4\nrange = 'octav'", options="scale_gradient = false")
    method.attach(model)
    train(method, model, INPUTS["linear"], range(2))
    stored = method.freeze(model).weights["0.weight"].dequantize()
    assert torch.equal(model[0].weight, torch.from_numpy(stored))


def test_a_weight_of_zeros_is_trained_and_values_that_are_not_finite_are_named():
    model = made("linear")
    nn.init.zeros_(model[2].weight)
    method = subchannel(SUBCHANNEL)
    method.attach(model)
    train(method, model, INPUTS["linear"], range(2))
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    model[2].bias.data.zero_()
    broken = made("linear")
    broken[2].weight.data[0, 0] = math.inf
    with pytest.raises(ValueError, match=r"2\.weight holds 1 of 48 values that are not finite"):
        subchannel(SUBCHANNEL).attach(broken)


def test_a_group_beyond_float16_is_named_and_nothing_stays_attached():
    model = made("linear")
    model[0].weight.data[0, 0] = 1e6
    method = subchannel(SUBCHANNEL)
    with pytest.raises(
        ValueError, match=r"0\.weight: a group's scale or zero_point exceeds float16; use one"
    ):
        method.attach(model)
    assert not method.settings
    assert type(model[0]) is nn.Linear
    subchannel(CHANNEL).attach(model)
