"""What a quantized checkpoint hears before it is packed: every layer rounds what enters it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from subtone.export.graph import FEATURES, Input
from subtone.export.lower import lower_entry
from subtone.models.bifocal import BifocalConfig, BifocalEncoder
from subtone.models.checkpoints import Quantization
from subtone.models.lstm import LstmConfig, LstmEncoder
from subtone.qtensor import QTensor
from subtone.quantize import Recipe, method_of
from subtone.quantize.fake import fake_quantize_activations
from subtone.quantize.method import decoded_twin
from subtone.quantize.simulate import simulate
from subtone.runtime.engine import NumpyEngine


def quantization_of(module: nn.Module, name: str, *, activation_bits: int) -> Quantization:
    """`module`'s weight in 8 bits, and a shift of 1, 2, ... for its outputs."""
    weight = module.get_parameter(name).detach().numpy()
    scale = np.abs(weight).reshape(len(weight), -1).max(1, keepdims=True) / 128
    stored = QTensor.on_codebook(weight, scale.astype(np.float32), np.arange(-128, 128, dtype=np.int8), 8)
    shift = np.arange(1, len(weight) + 1, dtype=np.float32)
    return Quantization(
        weights={name: stored}, activation_bits={name: activation_bits}, bias_shifts={name: shift}, recipe={}
    )


class Tied(nn.Module):
    """Two Linears and a table that share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.table = nn.Embedding(4, 4)
        self.second.weight = self.table.weight = self.first.weight


def test_both_layers_of_a_tied_weight_are_rounded_and_shifted() -> None:
    torch.manual_seed(0)
    model, inputs = Tied(), torch.randn(2, 5, 4)
    rounded = fake_quantize_activations(inputs, 4)
    expected = [layer(rounded) + torch.arange(1, 5) for layer in (model.first, model.second)]
    looked_up = model.table(torch.tensor([2, 0]))
    handles = simulate(model, quantization_of(model, "first.weight", activation_bits=4))
    for layer, ours in zip((model.first, model.second), expected, strict=True):
        torch.testing.assert_close(layer(inputs), ours, rtol=0, atol=0)
    assert torch.equal(model.table(torch.tensor([2, 0])), looked_up)
    for handle in handles:
        handle.remove()
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(3, 2), (1, 6, 3)),
        (nn.Conv1d(3, 2, 1), (1, 3, 6)),
        (nn.Conv2d(3, 2, 3), (1, 3, 6, 6)),
    ],
    ids=["Linear", "Conv1d", "Conv2d"],
)
def test_a_shift_lies_along_the_channels_of_every_kind_of_layer(layer: nn.Module, shape: tuple) -> None:
    inputs = torch.ones(shape)
    before = layer(inputs)
    simulate(layer, quantization_of(layer, "weight", activation_bits=0))
    moved = (layer(inputs) - before).movedim(-1 if isinstance(layer, nn.Linear) else 1, -1)
    torch.testing.assert_close(moved, torch.tensor([1.0, 2.0]).expand(moved.shape))


class RowsOnly(nn.Module):
    """An encoder without its lengths."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.encoder(features)[0]


@pytest.mark.parametrize("activation_bits", [8, 4])
@pytest.mark.parametrize(
    "encoder",
    [
        lambda: LstmEncoder(LstmConfig(num_features=6, widths=(8, 5), reduced_before=1)),
        lambda: BifocalEncoder(
            BifocalConfig(num_features=6, num_layers=2, width=8, small_width=3, gate_width=4)
        ),
    ],
    ids=["lstm", "bifocal"],
)
def test_recurrences_are_heard_as_their_packed_form(encoder, activation_bits: int) -> None:
    """Packed and simulated differ by the order of sums alone: float32's, in at most 16 terms and 2 layers of 20 steps;
    without rounding what enters, the difference is that of the grid, a thousand times as much."""
    torch.manual_seed(1)
    model = RowsOnly(encoder()).eval()
    rule = {"bits": 4, "activations": "dynamic", "activation_bits": activation_bits}
    quantization = method_of(Recipe.from_dict({"name": "few", "method": "linear", "rules": [rule]})).freeze(
        model
    )
    inputs = (Input(name="features", layout=FEATURES, width=6),)
    program, constants = lower_entry(
        model, inputs, output="rows", frames_per_step=1, quantization=quantization
    )
    features = torch.randn(1, 6, 20)
    packed = NumpyEngine(program, constants).run(np.ascontiguousarray(features[0].T.numpy()))
    twin = decoded_twin(model, quantization)
    with torch.inference_mode():
        plain = twin(features)[0].numpy()
        handles = simulate(twin, quantization)
        heard = twin(features)[0].numpy()
        for handle in handles:
            handle.remove()
        assert np.array_equal(twin(features)[0].numpy(), plain)
    bound = 2 * 20 * 16 * np.finfo(np.float32).eps
    assert np.abs(packed - heard).max() <= bound < np.abs(packed - plain).max()
