"""Round to nearest by rule, bias correction, and the means that it needs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from subtone.models.quartznet import Block, QuartzNet, QuartzNetConfig
from subtone.quantize import (
    Recipe,
    Settings,
    decoded_twin,
    gather_input_means,
    method_of,
    quantizable_weights,
    quantize_weight,
)

HEAD = 'name = "r"\nmethod = "linear"\n'


def recipe(*rules: str) -> Recipe:
    return Recipe.from_toml(HEAD + "".join(f"[[rules]]\n{rule}\n" for rule in rules))


def freeze(model: nn.Module, *rules: str, calibration=None):
    return method_of(recipe(*rules)).freeze(model, calibration=calibration)


def network(seed: int = 0) -> QuartzNet:
    torch.manual_seed(seed)
    blocks = (
        Block(filters=64, kernel=5, stride=2),
        Block(filters=64, kernel=3, repeat=2, has_residual=True),
        Block(filters=96, kernel=3, is_separable=False),
    )
    return QuartzNet(QuartzNetConfig(blocks=blocks)).eval()


def batches(count: int = 2, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([40, 25, 31])
    return [(torch.randn(3, 64, 40, generator=generator) + 0.5, lengths) for _ in range(count)]


# Rounding ------------------------------------------------------------------------------------


def test_every_weight_is_stored_and_the_model_is_left_as_it_is():
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = freeze(model, "bits = 4\nactivations = 'dynamic'")
    assert list(found.weights) == list(quantizable_weights(model))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    for path, weight in quantizable_weights(model).items():
        assert found.weights[path].shape == weight.shape
        assert found.activation_bits[path] == (8 if weight.kind == "pointwise" else 0)
    assert found.recipe == recipe("bits = 4\nactivations = 'dynamic'").resolved()
    assert not found.bias_shifts


def test_what_is_kept_float_is_not_stored():
    found = freeze(network(), "pattern = 'head.*'\nkeep_float = true", "bits = 4")
    assert "head.weight" not in found.weights
    assert "head.weight" not in found.activation_bits


def test_a_group_of_all_inputs_is_a_channel():
    """QuartzNet's first layer has 64 inputs: groups of 64 are one scale a channel, in float32."""
    grouped = Settings(bits=4, granularity="group", group_size=64)
    weight = torch.randn(8, 64, 1, generator=torch.Generator().manual_seed(0))
    stored = quantize_weight(weight, grouped)
    assert stored.granularity == "channel"
    assert stored.scale.dtype == np.float32
    assert np.array_equal(stored.scale, quantize_weight(weight, Settings(bits=4)).scale)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("grid", ["symmetric", "asymmetric", "codebook"])
def test_the_stored_grid_is_the_one_asked_for(bits, grid):
    weight = torch.randn(6, 8, generator=torch.Generator().manual_seed(bits)) + 0.1
    stored = quantize_weight(weight, Settings(bits=bits, grid=grid))
    assert (stored.bits, stored.grid, stored.granularity) == (bits, grid, "channel")


def test_more_bits_leave_less_error():
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    for grid in ("symmetric", "asymmetric", "codebook"):
        errors = [
            np.square(
                weight.numpy() - quantize_weight(weight, Settings(bits=bits, grid=grid)).dequantize()
            ).sum()
            for bits in range(2, 9)
        ]
        assert np.all(np.diff(errors) < 0), grid


@pytest.mark.parametrize("bits", [3, 4, 5])
def test_a_codebook_beats_the_even_grid_on_bell_shaped_weights(bits):
    weight = torch.randn(4, 2000, generator=torch.Generator().manual_seed(0))
    even, book = (
        np.square(weight.numpy() - quantize_weight(weight, Settings(bits=bits, grid=grid)).dequantize()).sum()
        for grid in ("symmetric", "codebook")
    )
    assert book < 0.7 * even


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_a_codebook_has_one_scale_for_its_range(granularity):
    weight = torch.randn(4, 1, 50, generator=torch.Generator().manual_seed(0))
    weight[2] = 0
    stored = quantize_weight(weight, Settings(bits=4, grid="codebook", granularity=granularity))
    magnitude = weight.abs().amax() if granularity == "tensor" else weight.abs().amax((1, 2))
    assert np.array_equal(stored.scale.ravel(), (magnitude / 128).reshape(-1).numpy())
    if granularity == "channel":
        assert not stored.dequantize()[2].any()
    # No weight is further from its level than half the widest gap, or than the outer levels from
    # the ends of the range; float32 rounds quotient and product.
    levels = np.array([-128, *stored.codebook, 128], int)
    reach = max(np.diff(levels[1:-1]).max() / 2, levels[1] - levels[0], levels[-1] - levels[-2])
    error = np.abs(stored.dequantize() - weight.numpy())
    assert np.all(error <= stored.scale[:, :, None] * reach * (1 + 1e-6) + 1e-6)


def test_few_values_on_the_int8_grid_of_their_range_are_exact():
    weight = torch.tensor([[-128.0, -64.0, 0.0, 33.0], [-128.0, 33.0, 33.0, 0.0]]) * torch.tensor(
        [[0.5], [3.0]]
    )
    stored = quantize_weight(weight, Settings(bits=2, grid="codebook"))
    assert stored.codebook.tolist() == [-128, -64, 0, 33]
    assert np.array_equal(stored.dequantize(), weight.numpy())


@pytest.mark.parametrize("grid", ["symmetric", "asymmetric", "codebook"])
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_a_weight_of_zeros_is_legal(bits, grid):
    assert not quantize_weight(torch.zeros(3, 8, 5), Settings(bits=bits, grid=grid)).dequantize().any()


def test_half_precision_is_handled_as_float32():
    weight = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)).half()
    stored, widened = (quantize_weight(value, Settings(bits=4)) for value in (weight, weight.float()))
    assert np.array_equal(stored.codes, widened.codes)
    assert np.array_equal(stored.scale, widened.scale)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_stop_and_name_the_tensor(value):
    model = network()
    with torch.no_grad():
        model.blocks[1].units[0].pointwise.weight[3, 2, 0] = value
    with pytest.raises(
        ValueError, match=r"blocks\.1\.units\.0\.pointwise\.weight holds 1 of 4096 values that are not finite"
    ):
        freeze(model, "bits = 4")


def test_a_group_scale_beyond_float16_names_the_tensor():
    weight = torch.tensor([[1e6, 0.0, 1.0, 0.0]])
    chosen = Settings(bits=4, granularity="group", group_size=2)
    with pytest.raises(ValueError, match=r"^a\.weight: a group's scale or zero_point exceeds float16"):
        quantize_weight(weight, chosen, name="a.weight")


def test_what_stays_float_is_not_quantized_by_hand_either():
    with pytest.raises(ValueError, match=r"a\.weight is to stay float"):
        quantize_weight(torch.zeros(2, 2), Settings(keep_float=True), name="a.weight")


def test_an_lstm_gate_has_its_own_scales_and_an_embedding_its_rows():
    model = nn.ModuleDict({"embed": nn.Embedding(7, 4), "lstm": nn.LSTM(4, 3)})
    found = freeze(model, "bits = 4\nactivations = 'dynamic'")
    shapes = {path: stored.scale.shape for path, stored in found.weights.items()}
    assert shapes == {"embed.weight": (7, 1), "lstm.weight_ih_l0": (12, 1), "lstm.weight_hh_l0": (12, 1)}
    assert found.activation_bits == {"embed.weight": 0, "lstm.weight_ih_l0": 8, "lstm.weight_hh_l0": 8}


def test_the_decoded_twin_holds_the_stored_weights():
    model = network()
    found = freeze(model, "bits = 3")
    twin = decoded_twin(model, found)
    for path, stored in found.weights.items():
        assert np.array_equal(twin.get_parameter(path).detach().numpy(), stored.dequantize())
        assert not torch.equal(twin.get_parameter(path), model.get_parameter(path))


# Calibration and bias correction ---------------------------------------------------------------


def test_means_are_those_of_the_valid_frames():
    data = batches()
    found = gather_input_means(network(), iter(data))
    seen = torch.cat(
        [x[:, :length] for features, lengths in data for x, length in zip(features, lengths, strict=True)], 1
    )
    np.testing.assert_allclose(found["blocks.0.units.0.depthwise.weight"], seen.mean(1), atol=1e-6)
    assert {path: mean.shape for path, mean in found.items()} == {
        path: (weight.module.in_channels,) for path, weight in quantizable_weights(network()).items()
    }


def test_padding_and_batching_do_not_change_the_means():
    one_by_one = [
        (utterance[None, :, :length], length[None])
        for features, lengths in batches()
        for utterance, length in zip(features, lengths, strict=True)
    ]
    louder = [(features.clone(), lengths) for features, lengths in batches()]
    for features, lengths in louder:
        for utterance, length in zip(features, lengths, strict=True):
            utterance[:, length:] = 1e6
    expected = gather_input_means(network(), one_by_one)
    for data in (batches(), louder):
        found = gather_input_means(network(), data)
        assert all(np.array_equal(found[path], mean) for path, mean in expected.items())


def test_the_model_comes_back_as_it_was():
    model = network()
    model.blocks[1].train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gather_input_means(model, batches(1))
    assert [block.training for block in model.blocks] == [False, True, False]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_channels_are_found_in_every_kind_of_layer():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.image, self.line = nn.Conv2d(1, 2, 3, padding=1), nn.Linear(16, 4)

        def forward(self, features, lengths):
            return self.line(self.image(features[:, None])[:, 0].transpose(1, 2))

    model = Mixed()
    features = torch.randn(1, 16, 9, generator=torch.Generator().manual_seed(0))
    found = gather_input_means(model, [(features, torch.tensor([9]))])
    np.testing.assert_allclose(found["image.weight"], [features.mean()], atol=1e-6)
    expected = model.image(features[:, None])[0, 0].detach().mean(1)
    np.testing.assert_allclose(found["line.weight"], expected, atol=1e-6)


def test_a_tied_weight_has_one_mean_over_all_the_layers_that_hold_it():
    """A Linear and a convolution whose frames differ, and an embedding, which has no input to watch."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.table = nn.Linear(16, 16), nn.Linear(16, 16), nn.Embedding(16, 16)
            self.second.weight = self.table.weight = self.first.weight

        def forward(self, features, lengths):
            last = self.second(2 * features.transpose(1, 2)[:, ::2])
            return self.first(features.transpose(1, 2)), last, self.table(lengths)

    model, length = Tied(), torch.tensor([9])
    features = torch.randn(1, 16, 9, generator=torch.Generator().manual_seed(0))
    found = gather_input_means(model, [(features, length)])
    seen = torch.cat([features[0], 2 * features[0, :, ::2]], 1)
    assert list(found) == ["first.weight"]
    np.testing.assert_allclose(found["first.weight"], seen.mean(1), atol=1e-6)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_bias_correction_brings_back_the_mean_of_every_output():
    """Exactly, for a product of one frame: the shift is what rounding took from E[W x]."""
    model, data = network(), batches()
    found = freeze(model, "bits = 3\nbias_correction = true", calibration=data)
    assert set(found.bias_shifts) == set(found.weights)
    path = "blocks.1.units.1.pointwise.weight"
    seen = []
    layer = model.get_submodule(path.removesuffix(".weight"))
    handle = layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    gather_input_means(model, data)
    handle.remove()
    inputs = torch.cat([x[0] for x in seen], 1).double().numpy()
    exact = (layer.weight[:, :, 0].detach().double().numpy() @ inputs).mean(1)
    rounded = (found.weights[path].dequantize()[:, :, 0].astype(np.float64) @ inputs).mean(1)
    shift = found.bias_shifts[path]
    assert shift.dtype == np.float32
    assert np.abs(rounded - exact).max() > 1e-3
    np.testing.assert_allclose(rounded + shift, exact, atol=1e-5)


def test_bias_correction_without_recordings_says_what_to_give():
    with pytest.raises(
        ValueError, match=r"bias_correction=true \(blocks\.0.*\) needs calibration.*--calibration"
    ) as caught:
        freeze(network(), "bits = 3\nbias_correction = true")
    assert "\n" not in str(caught.value)


def test_recordings_are_not_read_where_no_rule_needs_them():
    def unread():
        raise AssertionError("nobody asked")
        yield

    freeze(network(), "bits = 3", calibration=unread())


def test_empty_recordings_and_broken_features_are_refused():
    with pytest.raises(ValueError, match="calibration data holds no frame; give at least one utterance"):
        gather_input_means(network(), [])
    features = torch.full((1, 64, 20), math.nan)
    with pytest.raises(ValueError, match=r"the inputs of blocks\.0.* are not finite on the calibration data"):
        gather_input_means(network(), [(features, torch.tensor([20]))])


def test_a_layer_that_never_ran_cannot_be_corrected():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(16, 4), nn.Linear(16, 4)

        def forward(self, features, lengths):
            return self.used(features.transpose(1, 2))

    data = [(torch.zeros(1, 16, 3), torch.tensor([3]))]
    with pytest.raises(ValueError, match=r"the inputs of idle\.weight cannot be watched; add a rule for it"):
        freeze(Idle(), "bits = 4\nbias_correction = true", calibration=data)
