"""What counts as a weight, and of which kind."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from subtone.quantize import quantizable_weights, weight_kind
from subtone.quantize.weights import KINDS, mean_product


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        (nn.Linear(4, 3), "linear"),
        (nn.Conv1d(4, 3, 1), "pointwise"),
        (nn.Conv1d(4, 3, 1, stride=2), "conv"),
        (nn.Conv1d(4, 3, 1, padding=1), "conv"),
        (nn.Conv1d(4, 3, 5), "conv"),
        (nn.Conv1d(4, 4, 5, groups=2), "conv"),
        (nn.Conv1d(1, 3, 5), "conv"),
        (nn.Conv1d(4, 4, 5, groups=4), "depthwise"),
        (nn.Conv1d(4, 8, 1, groups=4), "depthwise"),
        (nn.Conv2d(1, 3, 3), "conv2d"),
        (nn.Embedding(5, 4), "embedding"),
        (nn.ConvTranspose1d(4, 3, 5), None),
        (nn.LayerNorm(4), None),
        (nn.BatchNorm1d(4), None),
    ],
)
def test_the_module_decides_the_kind(module, kind):
    assert weight_kind(module, "weight") == kind
    assert kind is None or kind in KINDS


@pytest.mark.parametrize("module", [nn.Linear(4, 3), nn.Conv1d(4, 3, 1), nn.Conv2d(1, 3, 3)])
def test_a_bias_is_never_a_weight(module):
    assert weight_kind(module, "bias") is None


def test_every_matrix_of_an_lstm_is_one_and_no_bias_is():
    lstm = nn.LSTM(4, 3, num_layers=2, proj_size=2)
    found = {name for name, _ in lstm.named_parameters() if weight_kind(lstm, name) == "lstm"}
    assert found == {name for name, value in lstm.named_parameters() if value.ndim == 2}
    assert weight_kind(nn.LSTMCell(4, 3), "weight_hh") == "lstm"


def test_attention_counts_as_linear():
    attention = nn.MultiheadAttention(8, 2, kdim=4, vdim=4)
    paths = {path: weight.kind for path, weight in quantizable_weights(attention).items()}
    assert paths == dict.fromkeys(
        ("q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"), "linear"
    )


def test_paths_are_parameter_paths_and_tied_parameters_come_once():
    model = nn.ModuleDict({"embed": nn.Embedding(5, 4), "norm": nn.LayerNorm(4), "head": nn.Linear(4, 5)})
    model["head"].weight = model["embed"].weight
    found = quantizable_weights(model)
    assert list(found) == ["embed.weight"]
    assert found["embed.weight"].parameter is model["head"].weight
    assert list(quantizable_weights(nn.Linear(2, 2))) == ["weight"]


def test_half_precision_is_widened_and_leaves_the_graph():
    model = nn.Linear(4, 3).to(torch.bfloat16)
    values = quantizable_weights(model)["weight"].values()
    assert values.dtype == torch.float32
    assert not values.requires_grad
    torch.testing.assert_close(values, model.weight.detach().float(), rtol=0, atol=0)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_the_mean_of_a_product_is_the_product_of_the_means(groups):
    """For a constant input, away from the ends, a convolution gives just that."""
    conv = nn.Conv1d(6, 12, 3, groups=groups, bias=False)
    means = np.random.default_rng(groups).standard_normal(6).astype(np.float32)
    output = conv(torch.from_numpy(means)[None, :, None].expand(1, 6, 9)).detach()[0, :, 0].numpy()
    np.testing.assert_allclose(mean_product(conv.weight.detach().numpy(), means), output, rtol=0, atol=1e-5)


def test_means_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="5 input means do not fit a weight of shape"):
        mean_product(np.zeros((4, 3, 1), np.float32), np.zeros(5, np.float32))
