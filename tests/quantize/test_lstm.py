"""An LSTM trained on integers: the bits of the loop in tests/reference, the behaviour of torch's own."""

from __future__ import annotations

import copy
import types

import numpy as np
import pytest
import torch
from tests.reference import lstm as reference
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

from subtone import numerics
from subtone.quantize import Recipe, Settings, decoded_twin, fake_quantize_weight
from subtone.quantize import lstm as ours
from subtone.quantize.integer import product_of_levels, static_activations, weight_levels
from subtone.quantize.lstm import QuantizedLstm, cell_step, fake_quantize_hidden, recurrent_scale
from subtone.quantize.native import Native

EPSILON = float(np.finfo(np.float32).eps)
DYNAMIC = {"activations": "dynamic"}
SHAPES = [
    {},
    {"bias": False},
    {"num_layers": 2, "batch_first": True},
    {"num_layers": 2, "bidirectional": True},
    {"num_layers": 3, "bidirectional": True, "batch_first": True, "dropout": 1.0},
]
"""What an LSTM of ours keeps of torch's; all of dropout is the only dropout that is not random."""


def native(*rules: dict, **options) -> Native:
    return Native(
        Recipe.from_dict({"name": "r", "method": "native", "options": options, "rules": list(rules)})
    )


def made(**shape) -> nn.LSTM:
    torch.manual_seed(0)
    lstm = nn.LSTM(6, 5, **shape)
    with torch.no_grad():
        for parameter in lstm.parameters():
            parameter.mul_(2.0)  # states that leave the middle of their range
    return lstm


def attached(lstm: nn.Module, *rules: dict, **options) -> Native:
    method = native(*(rules or ({"bits": 4, **DYNAMIC},)), **options)
    method.attach(lstm)
    return method


def states_for(lstm: nn.LSTM, batch: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    shape = (lstm.num_layers * (1 + lstm.bidirectional), batch, lstm.hidden_size)
    return torch.rand(shape, generator=generator) * 2 - 1, torch.randn(shape, generator=generator)


def features_for(lstm: nn.LSTM, frames: int = 7, batch: int = 3) -> Tensor:
    features = torch.randn(frames, batch, 6, generator=torch.Generator().manual_seed(1))
    features[2:3, 0] = 0  # a silent frame
    return features.transpose(0, 1) if lstm.batch_first else features


def same_bits(left, right) -> bool:
    left, right = (np.ascontiguousarray(side, np.float32).view(np.uint32) for side in (left, right))
    return np.array_equal(left, right)


# Against the reference -----------------------------------------------------------------------


def exact_cell_step(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """A cell of sums, products and limits, which have the same bits in torch and in NumPy."""
    taken, kept, candidate, given = gates.chunk(4, dim=-1)
    opened = [(gate * 0.25 + 0.5).clamp(0, 1) for gate in (taken, kept, given)]
    cell = opened[1] * cell + opened[0] * candidate.clamp(-1, 1)
    return opened[2] * cell.clamp(-1, 1), cell


def exact_in_numpy(gates: np.ndarray, cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    hidden, cell = exact_cell_step(torch.from_numpy(gates), torch.from_numpy(cell))
    return hidden.numpy(), cell.numpy()


def served(lstm: nn.LSTM, method: Native, features: Tensor, states: tuple[Tensor, Tensor]):
    """What the frozen weights compute: outputs and last states of the reference, (T, B, ...)."""
    quantization = method.freeze(lstm)
    hidden, cell = (part.numpy() for part in states)
    outputs, last = [], np.empty((2, *hidden.shape), np.float32)
    for b in range(features.shape[1]):
        x = features[:, b].numpy()
        for layer in range(lstm.num_layers):
            heard = []
            for suffix in ("", "_reverse") if lstm.bidirectional else ("",):
                names = [f"{part}_l{layer}{suffix}" for part in ("weight_ih", "weight_hh")]
                biases = [
                    getattr(lstm, name.replace("weight", "bias")).detach().numpy() if lstm.bias else None
                    for name in names
                ]
                bits = quantization.activation_bits[names[0]]
                of = reference.Direction(*(quantization.weights[name] for name in names), *biases, bits)
                row = layer * (1 + lstm.bidirectional) + len(heard)
                y, *last[:, row, b] = reference.lstm(
                    x, of, exact_in_numpy, hidden[row, b], cell[row, b], is_reversed=suffix == "_reverse"
                )
                heard.append(y)
            x = np.concatenate(heard, axis=1)
        outputs.append(x)
    return np.stack(outputs, axis=1), last


@pytest.mark.parametrize("activation_bits", [2, 4, 8])
@pytest.mark.parametrize(
    "rule",
    [
        {"bits": 4},
        {"bits": 8, "granularity": "tensor"},
        {"bits": 2, "range": "percentile", "percentile": 90.0},
        {"bits": 3, "granularity": "group", "group_size": 1},
    ],
)
def test_the_forward_pass_is_the_reference_on_frozen_weights_bit_for_bit(rule, activation_bits, monkeypatch):
    monkeypatch.setattr(ours, "cell_step", exact_cell_step)
    lstm = made(num_layers=2, bidirectional=True)
    method = attached(lstm, {**rule, **DYNAMIC, "activation_bits": activation_bits})
    features, states = features_for(lstm), states_for(lstm)
    outputs, last = lstm(features, states)
    expected, expected_last = served(lstm, method, features, states)
    assert same_bits(outputs.detach(), expected)
    assert same_bits(torch.stack(last).detach(), expected_last)


def test_without_biases_it_is_the_reference_too(monkeypatch):
    monkeypatch.setattr(ours, "cell_step", exact_cell_step)
    lstm = made(bias=False)
    method = attached(lstm)
    features, states = features_for(lstm), states_for(lstm)
    assert same_bits(lstm(features, states)[0].detach(), served(lstm, method, features, states)[0])


def test_the_cell_is_that_of_its_equations():
    gates, cell = torch.randn(50, 20), torch.randn(50, 5)
    hidden, after = cell_step(gates, cell)
    i, f, g, o = np.split(gates.double().numpy(), 4, axis=1)
    expected = cell.double().numpy() / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
    # Up to three functions that err by two units in the last place each, and three roundings.
    bound = 9 * EPSILON * (1 + np.abs(cell.numpy()))
    assert np.all(np.abs(after.numpy() - expected) <= bound)
    assert np.all(np.abs(hidden.numpy() - np.tanh(expected) / (1 + np.exp(-o))) <= 2 * bound)


# The recurrent product -----------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(2, 9))
def test_levels_of_a_hidden_state_are_those_of_numerics(bits):
    hidden = torch.cat([torch.linspace(-1.2, 1.2, 999), torch.tensor([-1.0, 1.0, 0.0])])
    expected = numerics.quantize_static(hidden[None].numpy(), recurrent_scale(bits), bits)
    found = static_activations(hidden, recurrent_scale(bits), bits)
    assert np.array_equal(found.levels.numpy(), expected.levels[0])
    assert same_bits(found.scale, expected.scale[0])
    assert same_bits(fake_quantize_hidden(hidden, bits), expected.levels[0] * expected.scale[0])
    inside = np.abs(hidden.numpy()) <= 1
    assert found.is_inside.numpy()[inside].all()
    assert found.is_inside.all() == (bits == 2)  # at 2 bits up to 1.5 is nearest to 1


def test_the_gradient_of_the_recurrent_product_is_that_of_the_fake_quantized_one():
    of = Settings(bits=4, range="percentile", percentile=80.0, activations="dynamic", activation_bits=8)
    hidden, weight = (torch.rand(9, 30) * 2.4 - 1.2).requires_grad_(), torch.randn(7, 30).requires_grad_()
    x = static_activations(hidden, recurrent_scale(8), 8)
    product = product_of_levels(hidden, x, weight, weight_levels(weight, of))
    upstream = torch.randn(9, 7)
    product.backward(upstream)
    to_hidden, to_weight = hidden.grad, weight.grad

    hidden.grad = weight.grad = None
    heard, seen = fake_quantize_hidden(hidden, 8), fake_quantize_weight(weight, of)
    (heard @ seen.T).backward(upstream)
    # Two sums of n float32 products, each rounded n times at most.
    bound_of_hidden = 2 * 7 * EPSILON * (upstream.abs() @ seen.detach().abs())
    bound_of_weight = 2 * 9 * EPSILON * (upstream.abs().T @ heard.detach().abs())
    assert torch.all((to_hidden - hidden.grad).abs() <= bound_of_hidden)
    assert torch.all((to_weight - weight.grad).abs() <= bound_of_weight)
    assert torch.equal(to_hidden == 0, hidden.grad == 0)  # where something was clipped, and nowhere else
    assert torch.equal(to_weight == 0, weight.grad == 0)
    assert (to_hidden == 0).any()
    assert (to_weight == 0).any()


# Against torch's own -------------------------------------------------------------------------


def with_our_forward(lstm: nn.LSTM) -> nn.LSTM:
    """A copy in double precision that computes by our recurrence, without any rounding."""
    twin = copy.deepcopy(lstm).double()
    twin.forward = types.MethodType(QuantizedLstm(products={}, is_integer=True).forward, twin)
    return twin


def flat(result) -> list[Tensor]:
    outputs, states = result
    return [outputs.data, *states]


def close(left: list[Tensor], right: list[Tensor]) -> bool:
    """Up to sums of 12 in another order, through 3 layers and 7 steps, of numbers of order 1."""
    return all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("has_states", [False, True])
def test_without_rounding_it_is_torchs_lstm_with_its_gradients(shape, has_states):
    lstm = made(**shape)
    ours_, theirs = with_our_forward(lstm), copy.deepcopy(lstm).double()
    states = [part.double() for part in states_for(lstm)] if has_states else None
    results = []
    for model in (ours_, theirs):
        features = features_for(lstm).double().requires_grad_()
        found = flat(model(features, states))
        sum(part.square().sum() for part in found).backward()
        results.append([*found, features.grad, *(parameter.grad for parameter in model.parameters())])
    assert close(*results)


@pytest.mark.parametrize("shape", [{}, {"batch_first": True, "bidirectional": True}])
def test_without_a_batch_it_is_torchs_lstm(shape):
    lstm = made(**shape)
    features, states = torch.randn(7, 6).double(), [part[:, 0].double() for part in states_for(lstm)]
    twin = copy.deepcopy(lstm).double()
    assert close(flat(with_our_forward(lstm)(features)), flat(twin(features)))
    assert close(flat(with_our_forward(lstm)(features, states)), flat(twin(features, states)))


@pytest.mark.parametrize("has_states", [False, True])
def test_a_packed_sequence_is_taken_and_given_as_torch_does(has_states):
    lstm = made(num_layers=2, bidirectional=True)
    sequences = [torch.randn(length, 6).double() for length in (3, 7, 1, 7)]
    packed = pack_sequence(sequences, enforce_sorted=False)
    states = [part.double() for part in states_for(lstm, batch=4)] if has_states else None
    found = with_our_forward(lstm)(packed, states)
    expected = copy.deepcopy(lstm).double()(packed, states)
    assert close(flat(found), flat(expected))
    for name in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        assert torch.equal(getattr(found[0], name), getattr(expected[0], name))


def test_with_float_activations_torchs_own_lstm_is_left_in_place():
    lstm = made()
    attached(lstm, {"bits": 4})
    assert "forward" not in vars(lstm)


def test_a_weight_with_float_activations_is_multiplied_in_float_beside_one_with_integers():
    lstm = made()
    method = attached(lstm, {"pattern": "weight_ih*", "bits": 4}, {"bits": 8, **DYNAMIC})
    assert method.freeze(lstm).activation_bits == {"weight_ih_l0": 0, "weight_hh_l0": 8}
    features, (hidden, cell) = features_for(lstm, frames=1), states_for(lstm)
    from_input = nn.functional.linear(features[0], lstm.weight_ih_l0)
    weight, of = lstm._parameters["weight_hh_l0"], method.settings["weight_hh_l0"]
    x = static_activations(hidden[0], recurrent_scale(8), 8)
    from_hidden = product_of_levels(hidden[0], x, weight, weight_levels(weight, of))
    gates = (from_input + lstm.bias_ih_l0) + (from_hidden + lstm.bias_hh_l0)
    # Sums of 6 may be taken in another order: 6 products of weights below 0.9 with features below 4.
    difference = lstm(features, (hidden, cell))[0][0] - cell_step(gates, cell[0])[0]
    assert difference.abs().max() <= 2 * 6 * EPSILON * 6 * 4


def test_rounding_activations_to_8_bits_moves_the_output_a_little_and_to_2_bits_more():
    lstm = made(num_layers=2)
    features = features_for(lstm)
    exact = decoded_twin(lstm, native({"bits": 8}).freeze(lstm))(features)[0]
    moved = []
    for bits in (8, 2):
        method = attached(lstm, {"bits": 8, **DYNAMIC, "activation_bits": bits})
        moved.append((lstm(features)[0] - exact).abs().mean().item())
        method.detach()
    assert 0 < moved[0] < 0.02 < moved[1]


def test_integer_and_fake_differ_by_the_rounding_of_float_sums_only():
    lstm, heard = made(), []
    features, states = features_for(lstm, frames=1), states_for(lstm)
    for forward in ("integer", "fake"):
        method = attached(lstm, forward=forward)
        heard.append(lstm(features, states)[0].detach())
        method.detach()
    # 11 products of weights below 0.9 with activations below 4, each of 14 steps rounded; slopes below 1.
    assert 0 < (heard[0] - heard[1]).abs().max() <= 14 * EPSILON * 11 * 4


def test_a_cell_of_its_own_computes_as_one_frame_of_an_lstm():
    lstm, cell = made(), nn.LSTMCell(6, 5)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in lstm.state_dict().items()})
    features, (hidden, memory) = features_for(lstm), states_for(lstm)
    attached(lstm)
    method = attached(cell)
    states = hidden[0], memory[0]
    for frame, output in zip(features, lstm(features, (hidden, memory))[0], strict=True):
        states = cell(frame, states)
        assert same_bits(states[0].detach(), output.detach())
    unbatched = cell(features[0, 0])
    assert same_bits(unbatched[0].detach(), lstm(features[:1, 0])[0][0].detach())
    method.detach()
    attached(cell, forward="fake")
    faked = cell(features[0, 0])
    assert 0 < (faked[1] - unbatched[1]).abs().max() <= 14 * EPSILON * 11 * 4  # as above


# What a model of sequences must keep ---------------------------------------------------------


@pytest.mark.parametrize("forward", ["integer", "fake"])
def test_future_frames_do_not_change_the_past(forward):
    lstm = made(num_layers=2)
    attached(lstm, forward=forward)
    features = features_for(lstm)
    before = lstm(features)[0].detach()
    features[4:] *= 100
    after = lstm(features)[0].detach()
    assert same_bits(before[:4], after[:4])
    assert not torch.equal(before[4:], after[4:])


def test_a_stream_cut_anywhere_equals_the_whole_utterance():
    lstm = made(num_layers=2, batch_first=True)
    attached(lstm)
    features = features_for(lstm)
    whole, last = lstm(features)
    for cut in range(1, 7):
        head, states = lstm(features[:, :cut])
        tail, end = lstm(features[:, cut:], states)
        assert same_bits(torch.cat([head, tail], 1).detach(), whole.detach())
        assert same_bits(torch.stack(end).detach(), torch.stack(last).detach())


def test_a_batch_equals_one_by_one_and_padding_changes_nothing():
    lstm = made(num_layers=2, bidirectional=True, batch_first=True)
    attached(lstm)
    sequences = [torch.randn(length, 6) for length in (2, 7, 5)]
    alone = [lstm(sequence) for sequence in sequences]
    padded = nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=50.0)
    lengths = torch.tensor([2, 7, 5])
    packed = pack_padded_sequence(padded, lengths, batch_first=True, enforce_sorted=False)
    outputs, states = lstm(packed)
    outputs, _ = pad_packed_sequence(outputs, batch_first=True)
    for index, (expected, last) in enumerate(alone):
        assert same_bits(outputs[index, : len(expected)].detach(), expected.detach())
        for state, of_one in zip(states, last, strict=True):
            assert same_bits(state[:, index].detach(), of_one.detach())


@pytest.mark.parametrize("forward", ["integer", "fake"])
def test_gradients_reach_every_parameter_the_features_and_the_first_states(forward):
    lstm = made(num_layers=2, bidirectional=True)
    attached(lstm, forward=forward)
    features, states = features_for(lstm).requires_grad_(), states_for(lstm)
    states = [part.requires_grad_() for part in states]
    lstm(features, states)[0].square().sum().backward()
    for value in (*(lstm._parameters.values()), features, *states):
        assert value.grad.abs().sum() > 0
    assert torch.all(features.grad.abs().sum((1, 2)) > 0)


def test_it_learns_through_its_rounding():
    """To hold the sign of the first frame for six more: only the recurrence can carry it."""
    lstm = made()
    features = torch.randn(7, 32, 6)
    wanted = features[0, :, 0].sign() * 0.8
    method = attached(lstm)
    optimizer = torch.optim.Adam(lstm.parameters(), lr=0.05)
    errors = []
    for _ in range(30):
        error = nn.functional.mse_loss(lstm(features)[0][-1, :, 0], wanted)
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert min(errors) < 0.64 / 2  # 0.8 squared is the error of who remembers nothing
    method.detach()


# Precision, copies, mistakes -----------------------------------------------------------------


def test_under_autocast_the_forward_pass_is_the_same_up_to_its_last_rounding():
    lstm = made(num_layers=2)
    attached(lstm)
    features = features_for(lstm)
    expected = lstm(features)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, (hidden, cell) = lstm(features)
    assert found.dtype == hidden.dtype == cell.dtype == torch.bfloat16
    assert torch.equal(found, expected.to(torch.bfloat16))
    found.sum().backward()
    assert lstm._parameters["weight_hh_l0"].grad.dtype == torch.float32


@pytest.mark.parametrize("forward", ["integer", "fake"])
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_parameters_in_half_precision_train(forward, precision):
    lstm = made(num_layers=2).to(precision)
    attached(lstm, forward=forward)
    outputs, states = lstm(features_for(lstm).to(precision))
    assert {part.dtype for part in (outputs, *states)} == {precision}
    outputs.sum().backward()
    assert all(parameter.grad.dtype == precision for parameter in lstm._parameters.values())


def test_detached_it_is_torchs_lstm_with_the_same_parameters():
    lstm, plain = made(num_layers=2), made(num_layers=2)
    parameters = dict(lstm.named_parameters())
    method = attached(lstm)
    assert not torch.equal(lstm(features_for(lstm))[0], plain(features_for(plain))[0])
    assert list(lstm.state_dict()) == list(plain.state_dict())
    method.detach()
    assert "forward" not in vars(lstm)
    assert all(parameters[name] is parameter for name, parameter in lstm.named_parameters())
    assert torch.equal(lstm(features_for(lstm))[0], plain(features_for(plain))[0])


def test_two_lstms_that_share_a_weight_both_hear_it_on_integers():
    one, other = made(), made()
    other.weight_hh_l0 = one.weight_hh_l0
    model = nn.ModuleList([one, other])
    features = features_for(one)
    method = attached(model, {"bits": 4})
    with_float_activations = one(features)[0].detach()
    method.detach()
    attached(model)
    assert same_bits(one(features)[0].detach(), other(features)[0].detach())
    assert not torch.equal(one(features)[0], with_float_activations)


@pytest.mark.parametrize("forward", ["integer", "fake"])
def test_a_projection_is_refused_with_the_remedy(forward):
    model = nn.Sequential(nn.LSTM(6, 5, proj_size=2))
    message = (
        r"activations='dynamic' of 0\.weight_ih_l0 cannot be trained, because proj_size=2 feeds back.*"
        "add a rule for it with activations = 'float'"
    )
    with pytest.raises(ValueError, match=message):
        attached(model, forward=forward)
    attached(model, {"bits": 4})


def test_an_lstm_with_a_forward_pass_of_its_own_is_refused():
    class Doubled(nn.LSTM):
        def forward(self, input, hx=None):
            outputs, states = super().forward(input, hx)
            return 2 * outputs, states

    for forward in ("integer", "fake"):
        with pytest.raises(ValueError, match="because Doubled keeps them to itself"):
            attached(Doubled(6, 5), forward=forward)


def test_shapes_that_do_not_fit_are_refused():
    lstm = made()
    attached(lstm)
    with pytest.raises(ValueError, match=r"takes 2 axes, or 3 with a batch, not \(2, 3, 4, 6\)"):
        lstm(torch.zeros(2, 3, 4, 6))
    with pytest.raises(ValueError, match="needs at least one frame"):
        lstm(torch.zeros(0, 3, 6))
    with pytest.raises(RuntimeError, match="Expected 6, got 7"):
        lstm(torch.zeros(4, 3, 7))
    with pytest.raises(RuntimeError, match="hidden"):
        lstm(torch.zeros(4, 3, 6), (torch.zeros(1, 2, 5), torch.zeros(1, 3, 5)))
