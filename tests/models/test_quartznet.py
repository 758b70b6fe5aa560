"""QuartzNet and Jasper: published counts, and what a padded batch may not change."""

from __future__ import annotations

import pytest
import torch

from subtone.models import MODELS, build, preset
from subtone.models.quartznet import Block, QuartzNet, QuartzNetConfig

SMALL = QuartzNetConfig(
    num_features=5,
    num_outputs=4,
    blocks=(
        Block(filters=6, kernel=5, stride=2),
        Block(filters=8, kernel=3, repeat=2, has_residual=True),
        Block(
            filters=8, kernel=5, dilation=2, is_separable=False, has_residual=True, has_dense_residual=True
        ),
    ),
)


def random_network(config: QuartzNetConfig = SMALL, seed: int = 0) -> QuartzNet:
    """A network in eval mode whose BatchNorms, too, do something: random, negative multipliers among them."""
    torch.manual_seed(seed)
    network = QuartzNet(config)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            torch.nn.init.normal_(module.weight)
            torch.nn.init.normal_(module.bias)
            torch.nn.init.normal_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    return network.eval()


@pytest.mark.parametrize(
    ("name", "parameters"),
    [  # PAPERS.md section 3; the two smaller QuartzNets are printed there as 6.71 M and 12.82 M
        ("quartznet15x5", 18_924_381),
        ("quartznet10x5", 12_818_781),
        ("quartznet5x5", 6_713_181),
        ("jasper10x5", 332_632_349),
    ],
)
def test_parameter_counts_are_the_published_ones(name: str, parameters: int) -> None:
    with torch.device("meta"):
        network = QuartzNet(preset(name))
    assert sum(value.numel() for value in network.parameters()) == parameters


def test_padding_does_not_change_valid_frames() -> None:
    network = random_network()
    torch.manual_seed(1)
    features = torch.randn(1, 5, 23)
    alone, _ = network(features, torch.tensor([23]))
    padded = torch.cat([features, torch.full((1, 5, 40), 1e3)], dim=2)
    beside, lengths = network(padded, torch.tensor([23]))
    assert lengths.tolist() == [12]  # ceil(23 / 2)
    # Float32 sums may be split differently for another length: a few units of the last place.
    torch.testing.assert_close(beside[:, :12], alone, rtol=0, atol=1e-5 * float(alone.detach().abs().max()))


def test_a_batch_equals_one_by_one() -> None:
    network = random_network()
    torch.manual_seed(2)
    lengths = torch.tensor([31, 8, 17])
    features = torch.randn(3, 5, 31)
    together, frames = network(features, lengths)
    for index, length in enumerate(lengths.tolist()):
        alone, _ = network(features[index : index + 1, :, :length])
        close = {"rtol": 0, "atol": 1e-5 * float(alone.detach().abs().max())}
        torch.testing.assert_close(together[index : index + 1, : frames[index]], alone, **close)


def test_without_lengths_every_frame_is_valid() -> None:
    network = random_network()
    features = torch.randn(1, 5, 20)
    torch.testing.assert_close(network(features)[0], network(features, torch.tensor([20]))[0], rtol=0, atol=0)
    assert network(features)[1] is None


def test_gradients_reach_every_parameter() -> None:
    network = random_network().train()
    logits, _ = network(torch.randn(2, 5, 20), torch.tensor([20, 12]))
    logits.square().sum().backward()
    silent = [
        name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()
    ]
    assert silent == []


def test_one_frame_is_enough() -> None:
    logits, lengths = random_network()(torch.randn(1, 5, 1), torch.tensor([1]))
    assert logits.shape == (1, 1, 4)
    assert lengths.tolist() == [1]


@pytest.mark.parametrize("name", MODELS)
def test_a_config_survives_json(name: str) -> None:
    config = preset(name)
    with torch.device("meta"):
        assert build(config.to_json()).config == config


def test_frames_per_step_multiplies_the_strides() -> None:
    blocks = (Block(filters=4, kernel=3, stride=2, repeat=2), Block(filters=4, kernel=3, stride=3))
    network = QuartzNet(QuartzNetConfig(num_features=4, blocks=blocks)).eval()
    assert network.frames_per_step == 12
    assert network(torch.randn(1, 4, 121))[0].shape[1] == 11  # ceil(121 / 12)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ({"filters": 8, "kernel": 4}, "kernel=4 must be odd"),
        ({"filters": 0, "kernel": 3}, "filters=0 must be a whole number"),
        ({"filters": 8, "kernel": 3, "dropout": 1.0}, r"dropout=1.0 must lie in \[0, 1\)"),
        ({"filters": 8, "kernel": 3, "stride": 2, "has_residual": True}, "cannot cross stride=2"),
    ],
)
def test_a_wrong_block_is_refused(mistake: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Block(**mistake)


def test_a_misspelt_preset_suggests_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean quartznet15x5"):
        preset("quartznet15x")


def test_an_unknown_key_of_a_config_is_named() -> None:
    with pytest.raises(ValueError, match="kernels"):
        build({"family": "quartznet", "blocks": [{"filters": 3, "kernels": 3}]})
    with pytest.raises(ValueError, match="family='whisper' is not known"):
        build({"family": "whisper"})
