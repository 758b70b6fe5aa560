"""Clips are learned by PACT's gradient, relative to themselves, and travel with the run."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from subtone.quantize import Recipe, decoded_twin
from subtone.quantize.native import Native
from subtone.quantize.pact import LARGEST_STEP, LearnedClip, clip_activations, take_step
from subtone.quantize.simulate import simulate
from subtone.quantize.starting import start_compensated

PACT = {"bits": 4, "activations": "dynamic", "activation_bits": 4, "activation_clip": "pact"}
PLAIN = {**PACT, "activation_clip": None}
CPU = torch.device("cpu")


def native(*rules: dict, **options) -> Native:
    recipe = {"name": "r", "method": "native", "options": options, "rules": list(rules or [PACT])}
    return Native(Recipe.from_dict(recipe))


# The gradient --------------------------------------------------------------------------------


def test_value_and_gradient_equal_the_loop_and_autograd_of_the_formula():
    torch.manual_seed(0)
    values, upstream = torch.randn(3, 4, 5) * 2, torch.randn(3, 4, 5)
    values[0, 0, :3] = torch.tensor([1.5, -1.5, 0.0])  # on the ends: alpha's, not x's
    ours, alpha = values.clone().requires_grad_(), torch.tensor(1.5, requires_grad=True)
    clipped = clip_activations(ours, alpha)
    (clipped * upstream).sum().backward()

    total = 0.0
    for x, y, dx, g in zip(
        *(part.flatten().tolist() for part in (values, clipped, ours.grad, upstream)), strict=True
    ):
        is_clipped = abs(x) >= 1.5
        assert y == (math.copysign(1.5, x) if is_clipped else x)
        assert dx == (0 if is_clipped else g)
        total += g * math.copysign(1, x) * is_clipped
    # 60 terms below 4 in float32.
    assert abs(alpha.grad.item() - total) < 60 * 4 * 60 * np.finfo(np.float32).eps

    inside = values.abs() != 1.5  # where the paper's formula has a derivative
    theirs, free = values[inside].requires_grad_(), torch.tensor(1.5, requires_grad=True)
    formula = 0.5 * ((theirs + free).abs() - (theirs - free).abs())
    (formula * upstream[inside]).sum().backward()
    on_ends = (upstream * values.sign())[~inside].sum()
    torch.testing.assert_close(ours.grad[inside], theirs.grad)
    torch.testing.assert_close(alpha.grad, free.grad + on_ends)


def test_behind_a_relu_it_is_the_papers_one_sided_clip():
    values = torch.randn(50).relu().requires_grad_()
    alpha = torch.tensor(0.7, requires_grad=True)
    clip_activations(values, alpha).sum().backward()
    assert alpha.grad == (values >= 0.7).sum()
    assert torch.equal(values.grad, (values < 0.7).float())


def test_a_product_that_sees_the_features_themselves_has_a_gradient_too():
    """Features need no gradient, and autograd would leave the backward pass of such a clip out."""
    model, method = nn.Linear(6, 3), native()
    method.attach(model)
    model(torch.randn(5, 6)).sum().backward()
    assert method._clips["weight"].take_gradient() != 0
    assert method._clips["weight"].take_gradient() == 0  # taken


@pytest.mark.parametrize("forward", ["integer", "fake"])
@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 3), lambda: nn.Conv1d(6, 3, 1)])
def test_the_methods_gradient_is_that_of_the_explicit_formula(forward, make):
    torch.manual_seed(0)
    model, method = make(), native(forward=forward)
    is_linear = isinstance(model, nn.Linear)
    features = torch.randn(2, 9, 6)
    features = features if is_linear else features.mT.contiguous()
    method.attach(model)
    method._clips["weight"].start(1.25)
    upstream = torch.randn_like(model(features))
    model(features).backward(upstream)
    decoded = torch.from_numpy(method.freeze(model).weights["weight"].dequantize()).reshape(3, 6)
    to_features = upstream @ decoded if is_linear else decoded.T @ upstream
    expected = (to_features * features.sign() * (features.abs() >= 1.25)).sum().item()
    assert expected != 0
    assert method._clips["weight"].take_gradient() == pytest.approx(expected, rel=1e-4)


# The step ------------------------------------------------------------------------------------


def test_a_step_is_the_papers_gradient_and_decay_relative_to_alpha():
    for gradient, expected in ((0.02, 0.5 * (4 * 0.02 + 0.01)), (-0.03, 0.5 * (-4 * 0.03 + 0.01))):
        clip = LearnedClip()
        clip.start(4.0)
        clip._alpha.grad = torch.tensor(gradient)
        take_step([clip], learning_rate=0.5, decay=0.01, device=CPU)
        assert clip.alpha == pytest.approx(4.0 * math.exp(-expected), rel=1e-6)
        assert clip._alpha.grad is None


@pytest.mark.parametrize(
    ("gradient", "factor"),
    [(1e6, math.exp(-LARGEST_STEP)), (-1e6, math.exp(LARGEST_STEP)), (math.nan, 1.0), (math.inf, 1.0)],
)
def test_one_bad_batch_moves_a_clip_by_a_tenth_or_not_at_all(gradient, factor):
    clip = LearnedClip()
    clip.start(4.0)
    clip._alpha.grad = torch.tensor(gradient)
    take_step([clip], learning_rate=1.0, decay=0.0, device=CPU)
    assert clip.alpha == pytest.approx(4.0 * factor)


def test_a_clip_stays_positive_whatever_pulls_it_down():
    clip = LearnedClip()
    clip.start(1.0)
    for _ in range(2000):
        take_step([clip], learning_rate=1.0, decay=1.0, device=CPU)
    assert clip.alpha > 0


def test_the_default_decay_halves_a_clip_in_231_steps():
    clip, of = LearnedClip(), native().options
    clip.start(1.0)
    for _ in range(231):
        take_step([clip], learning_rate=of.clip_learning_rate, decay=of.clip_decay, device=CPU)
    assert clip.alpha == pytest.approx(0.5, rel=1e-3)


def test_it_starts_at_the_largest_magnitude_of_the_first_step_and_clips_nothing_there():
    model, method = nn.Linear(2, 2), native()
    method.attach(model)
    clip = method._clips["weight"]
    with torch.no_grad():
        model(torch.full((1, 2), 9.0))  # validation begins nothing
    assert clip.alpha is None
    for largest in (-3.0, 5.0, 4.0):  # three batches of one step
        features = torch.tensor([[0.5, largest]])
        assert torch.equal(clip(features), features)
        model(features).sum().backward()
    assert clip.alpha == 5.0
    assert method.state_dict() == {"clips": {}}
    method.after_step(0)
    assert method.state_dict() == {"clips": {"weight": 5.0}}
    assert clip(torch.tensor([-9.0, 7.0, 1.0])).tolist() == [-5.0, 5.0, 1.0]


def test_a_step_of_silence_does_not_start_a_clip():
    model, method = nn.Linear(2, 2), native()
    method.attach(model)
    model(torch.zeros(3, 2)).sum().backward()
    model(torch.zeros(0, 2)).sum().backward()
    method.after_step(0)
    assert method._clips["weight"].alpha is None
    model(torch.ones(1, 2)).sum().backward()
    method.after_step(1)
    assert method._clips["weight"].alpha == 1.0


def test_processes_average_their_gradients_and_start_at_the_largest_of_their_values(monkeypatch):
    """Of two processes, the other of which saw nothing in one product and 8.0 in the other."""
    others = [torch.tensor([-0.04, 0.02]), torch.tensor([0.0, 8.0])]

    def all_reduce(mine: Tensor, op=torch.distributed.ReduceOp.SUM) -> None:
        theirs = others.pop(0)
        is_sum = op == torch.distributed.ReduceOp.SUM
        mine.copy_(mine + theirs if is_sum else torch.maximum(mine, theirs))

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    known, unknown = LearnedClip(), LearnedClip()
    known.start(2.0)
    known._alpha.grad = torch.tensor(0.01)
    take_step([known, unknown], learning_rate=1.0, decay=0.0, device=CPU)
    assert known.alpha == pytest.approx(2.0 * math.exp(-2.0 * (0.01 - 0.04) / 2))
    assert unknown.alpha == 8.0
    assert unknown.is_started


# Training ------------------------------------------------------------------------------------


def spikes(*, seen: bool) -> tuple[nn.Module, Tensor, Tensor]:
    """A network and what it gives on features of which one in 32 is 20; `seen`, the targets know of them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8))
    features = torch.randn(256, 32)
    spiked = features.clone()
    spiked[torch.arange(256), torch.randint(0, 32, (256,))] = 20.0
    targets = model(spiked if seen else features).detach()
    return model, spiked, targets


def train(model, method, features, targets, steps=range(0, 60), optimizer=None) -> None:
    optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=0.003)
    for step in steps:
        optimizer.zero_grad()
        nn.functional.mse_loss(model(features), targets).backward()
        method.before_step(step)
        optimizer.step()
        method.after_step(step)


def error_of(model, method, features, targets) -> float:
    """Of the frozen model with the activations that will be served."""
    quantization = method.freeze(model)
    twin = decoded_twin(model, quantization)
    simulate(twin, quantization)
    with torch.no_grad():
        return nn.functional.mse_loss(twin(features), targets).item()


def test_a_clip_falls_where_outliers_make_the_error_and_rises_where_clipping_does():
    clips = {}
    for seen in (False, True):
        model, features, targets = spikes(seen=seen)
        method = native(clip_decay=0.0)
        method.attach(model)
        method._clips["0.weight"].start(8.0)
        train(model, method, features, targets, range(15))
        clips[seen] = method._clips["0.weight"].alpha
    assert clips[False] < 0.8 * 8.0
    assert clips[True] > 1.2 * 8.0


def test_clipped_4_bit_products_err_less_on_features_with_outliers():
    errors = {}
    for name, rule in (("plain", PLAIN), ("pact", PACT)):
        model, features, targets = spikes(seen=False)
        method = native(rule)
        method.attach(model)
        train(model, method, features, targets)
        method.detach()
        errors[name] = error_of(model, method, features, targets)
    assert errors["pact"] < 0.6 * errors["plain"]


def test_each_product_has_a_clip_of_its_own_and_tied_ones_share_it():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6))
    model[2].weight = model[0].weight
    method = native({"pattern": "1.*", **PLAIN}, PACT)
    method.attach(model)
    train(model, method, torch.randn(5, 6), torch.randn(5, 6), range(2))
    assert list(method.freeze(model).activation_clips) == ["0.weight"]


def test_a_killed_run_goes_on_identically():
    whole, features, targets = spikes(seen=False)
    method, optimizer = native(), torch.optim.Adam(whole.parameters(), lr=0.003)
    method.attach(whole)
    train(whole, method, features, targets, range(3), optimizer)
    state = copy.deepcopy([whole.state_dict(), optimizer.state_dict(), method.state_dict()])
    train(whole, method, features, targets, range(3, 6), optimizer)

    resumed, _, _ = spikes(seen=False)
    again, optimizer = native(), torch.optim.Adam(resumed.parameters(), lr=0.003)
    resumed.load_state_dict(state[0])
    again.attach(resumed)
    optimizer.load_state_dict(state[1])
    again.load_state_dict(state[2])
    train(resumed, again, features, targets, range(3, 6), optimizer)
    assert again.state_dict() == method.state_dict() != state[2]
    expected = whole.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.state_dict().items())
    assert again.freeze(resumed).activation_clips == method.freeze(whole).activation_clips


@pytest.mark.parametrize("forward", ["integer", "fake"])
def test_it_trains_under_autocast_in_bfloat16_and_not_in_float16(forward):
    model, features, targets = spikes(seen=False)
    method = native(forward=forward)
    method.attach(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(features).dtype == torch.bfloat16
        nn.functional.mse_loss(model(features).float(), targets).backward()
    method.after_step(0)
    assert method.freeze(model).activation_clips["0.weight"] == 20.0
    message = r"activation_clip='pact' of 0\.weight cannot be trained in float16.*use bfloat16 or float32"
    with torch.autocast("cpu", dtype=torch.float16), pytest.raises(ValueError, match=message):
        model(features)


def test_a_compensated_start_needs_no_clip_yet():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(4, 4, 1), nn.Conv1d(4, 4, 1))
    before = model[0].weight.detach().clone()
    batch = torch.randn(2, 4, 9), torch.tensor([9, 7])

    class WithLengths(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = model

        def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
            return self.body(features)

    start_compensated(WithLengths(), native(), [batch])
    assert not torch.equal(model[0].weight, before)
