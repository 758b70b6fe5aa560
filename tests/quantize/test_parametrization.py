"""Functions over weights: in place everywhere, out again without a trace."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from subtone.quantize.parametrization import Parametrized
from subtone.quantize.weights import quantizable_weights

MODELS = {
    "linear": lambda: nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)),
    "conv1d": lambda: nn.Sequential(nn.Conv1d(3, 6, 2), nn.Conv1d(6, 6, 2, groups=6)),
    "conv2d": lambda: nn.Conv2d(2, 4, 3),
    "lstm": lambda: nn.LSTM(4, 5, num_layers=2, batch_first=True),
    "embedding": lambda: nn.Embedding(7, 4),
    "attention": lambda: nn.MultiheadAttention(8, 2, batch_first=True),
    "encoder-layer": lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True),
}
INPUTS = {
    "linear": (torch.ones(2, 6),),
    "conv1d": (torch.ones(2, 3, 9),),
    "conv2d": (torch.ones(1, 2, 5, 5),),
    "lstm": (torch.ones(2, 3, 4),),
    "embedding": (torch.tensor([1, 2]),),
    "attention": (torch.ones(2, 3, 8),) * 3,
    "encoder-layer": (torch.ones(2, 3, 8),),
}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]()


def output_of(model: nn.Module, name: str) -> torch.Tensor:
    output = model(*INPUTS[name])
    return output[0] if isinstance(output, tuple) else output


def halved(model: nn.Module) -> Parametrized:
    weights = quantizable_weights(model)
    return Parametrized(model, weights, dict.fromkeys(weights, lambda weight: weight * 0.5))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("is_training", [True, False])
def test_the_forward_pass_sees_the_function_of_every_weight(name, is_training):
    model, twin = made(name).train(is_training), made(name).train(is_training)
    with torch.no_grad():
        for weight in quantizable_weights(twin).values():
            weight.parameter.mul_(0.5)
        halved(model)
        # Attention: fused for plain modules in eval mode, and its small products depend on where tensors lie
        # in memory, so that sums come in another order. All else is equal to the bit.
        is_attention = name in ("attention", "encoder-layer")
        rtol, atol = (1.3e-6, 1e-5) if is_attention else (0, 0)
        torch.testing.assert_close(output_of(model, name), output_of(twin, name), rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_reach_the_parameters_that_an_optimizer_holds(name):
    model = made(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    weights = quantizable_weights(model)
    before = {path: weight.parameter.detach().clone() for path, weight in weights.items()}
    hold = halved(model)
    output_of(model, name).square().sum().backward()
    optimizer.step()
    hold.detach()
    after = quantizable_weights(model)
    assert all(after[path].parameter is weights[path].parameter for path in weights)
    assert not any(torch.equal(after[path].parameter, before[path]) for path in weights)


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_has_the_names_of_the_plain_model_both_ways(name):
    model, plain = made(name), made(name)
    hold = halved(model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1.0)
    plain.load_state_dict(model.state_dict())
    assert all((value > -1).any() for value in plain.state_dict().values())
    model.load_state_dict(made(name).state_dict())
    hold.detach()
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), made(name).parameters(), strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_detached_it_is_the_plain_model_again(name):
    model, plain = made(name), made(name)
    hold = halved(model)
    output_of(model, name).sum().backward()
    hold.detach()
    assert [type(module) for module in model.modules()] == [type(module) for module in plain.modules()]
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(output_of(copy.deepcopy(model), name), output_of(plain, name))


@pytest.mark.parametrize("name", ["lstm", "attention"])
def test_each_weight_is_computed_once_a_forward_pass(name):
    model, calls = made(name), []
    weights = quantizable_weights(model)
    functions = {path: (lambda weight, path=path: calls.append(path) or weight * 1.0) for path in weights}
    Parametrized(model, weights, functions)
    calls.clear()
    output_of(model, name)
    assert sorted(calls) == sorted(weights)


def test_a_tied_weight_is_seen_in_every_module_and_stays_tied():
    model = nn.ModuleDict({"embed": nn.Embedding(5, 4), "head": nn.Linear(4, 5, bias=False)})
    model.head.weight = model.embed.weight
    hold = halved(model)
    assert torch.equal(model.head.weight, model.embed.weight)
    assert len(list(model.parameters())) == 1
    assert torch.equal(model.head.weight, next(model.parameters()) * 0.5)
    hold.detach()
    assert model.head.weight is model.embed.weight


def test_a_call_that_fails_leaves_nothing_remembered():
    model = made("linear")
    halved(model)
    with pytest.raises(RuntimeError):
        model(torch.ones(2, 5))
    with torch.no_grad():
        model[0]._parameters["weight"].fill_(3.0)
    assert (model[0].weight == 1.5).all()


def test_a_function_that_fails_does_not_uncover_the_parameter():
    model = nn.Linear(3, 3)
    Parametrized(model, quantizable_weights(model), {"weight": lambda weight: weight.no_such_thing})
    with pytest.raises(RuntimeError, match=r"the function of weight failed: .*no_such_thing"):
        model(torch.ones(1, 3))


@pytest.mark.parametrize("name", MODELS)
def test_names_order_and_gradient_hooks_of_parameters_stay(name):
    """The hooks are DDP's: it averages a gradient when its accumulator has run."""
    model, seen = made(name), []
    accumulators = [weight.view_as(weight).grad_fn.next_functions[0][0] for weight in model.parameters()]
    names = [name for name, _ in model.named_parameters()]
    for path, accumulator in zip(names, accumulators, strict=True):
        accumulator.register_hook(lambda *_, path=path: seen.append(path))
    halved(model)
    assert [name for name, _ in model.named_parameters()] == names
    assert list(quantizable_weights(model)) == list(quantizable_weights(made(name)))
    output_of(model, name).sum().backward()
    assert sorted(seen) == sorted(names)


def test_functions_over_functions_are_refused():
    model = nn.Linear(3, 3)
    halved(model)
    with pytest.raises(ValueError, match="Linear is seen through functions already; detach them first"):
        halved(model)
