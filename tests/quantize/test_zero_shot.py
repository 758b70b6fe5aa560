"""Spectrograms made from BatchNorm statistics: nearer to the training data than noise, the network untouched."""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np
import pydantic
import pytest
import torch
from torch import nn

from subtone.models.conformer import ConformerCtc
from subtone.models.conformer_config import ConformerConfig, ConformerCtcConfig
from subtone.models.quartznet import Block, QuartzNet, QuartzNetConfig
from subtone.quantize.batch_norms import divergences
from subtone.quantize.zero_shot import Synthesis, SynthesisSettings, random_features, synthesize

F = 8
QUICK = SynthesisSettings(batch_size=4, num_frames=60, num_batches=1, iterations=60)


def speech_like(count: int = 16, frames: int = 60) -> torch.Tensor:
    """(N, F, T) with what noise lacks: features that move together and slowly; within what 60 steps of 0.05 reach."""
    generator = torch.Generator().manual_seed(5)
    slow = torch.randn(count, 2, frames + 8, generator=generator).unfold(2, 9, 1).mean(3)
    return torch.einsum("fk,nkt->nft", torch.randn(F, 2, generator=generator), slow)


def learn_statistics(network: nn.Module, features: torch.Tensor) -> nn.Module:
    """Every BatchNorm takes up those of `features`, as they are when all before it have theirs: eval's own."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm1d)]
    network.eval()
    with torch.no_grad():
        for norm in norms:
            norm.train().momentum = 1.0
            network(features)
            norm.eval()
    return network


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    body = Block(filters=16, kernel=5, repeat=2, has_residual=True)
    blocks = (Block(filters=12, kernel=5, stride=2), body, Block(filters=20, kernel=1, is_separable=False))
    return learn_statistics(
        QuartzNet(QuartzNetConfig(num_features=F, num_outputs=6, blocks=blocks)), speech_like()
    )


@pytest.fixture(scope="module")
def synthesis(network: nn.Module) -> Synthesis:
    return synthesize(network, QUICK, num_features=F)


def test_the_defaults_are_the_papers():
    given = SynthesisSettings()
    assert (given.batch_size, given.num_frames, given.num_batches) == (8, 500, 20)
    assert (given.iterations, given.learning_rate, given.betas) == (200, 0.05, (0.9, 0.999))
    assert (given.initial_bound, given.patience, given.least_learning_rate) == (0.3, 25, 1e-4)
    assert (given.epsilon, given.precision) == (1e-6, "float32")


def test_the_loss_falls_and_is_told_before_each_step_and_at_the_end(network, synthesis):
    assert synthesis.losses.shape == (1, 61)
    assert synthesis.losses[0, -1] < 0.2 * synthesis.losses[0, 0]
    at_the_end = sum(divergences(network, torch.from_numpy(synthesis.features)).values())
    assert synthesis.losses[0, -1] == pytest.approx(at_the_end, rel=1e-4)


def test_features_are_float32_of_the_shape_asked_for(synthesis):
    assert (synthesis.features.shape, synthesis.features.dtype) == ((4, F, 60), np.float32)
    assert np.isfinite(synthesis.features).all()
    assert synthesis.seconds.shape == synthesis.cpu_seconds.shape == (1,)
    assert synthesis.seconds > 0
    assert synthesis.cpu_seconds > 0


def test_the_features_are_nearer_than_noise_at_every_batch_norm(network, synthesis):
    near = divergences(network, torch.from_numpy(synthesis.features))
    assert (
        len(near) == 5
    )  # two blocks of one unit, one of two with a residual: all of them, the residual's too
    assert "blocks.1.residuals.0.norm" in near
    for bound in (0.3, 3.0):  # what they started as, and the paper's control
        random = random_features(num_spectrograms=4, num_features=F, num_frames=60, bound=bound)
        noise = divergences(network, torch.from_numpy(random))
        assert [path for path in near if near[path] >= noise[path]] == []
        assert sum(near.values()) < 0.2 * sum(noise.values())


def test_ranges_found_on_the_features_are_nearer_to_the_real_ones_than_on_noise(network, synthesis):
    """What it is all for: the largest input of every convolution."""

    def log_ranges(features: np.ndarray | torch.Tensor) -> np.ndarray:
        found: list[float] = []
        convolutions = [module for module in network.modules() if isinstance(module, nn.Conv1d)]
        handles = [
            conv.register_forward_pre_hook(lambda _, arguments: found.append(float(arguments[0].abs().max())))
            for conv in convolutions
        ]
        with torch.no_grad():
            network(torch.as_tensor(features))
        for handle in handles:
            handle.remove()
        return np.log(found)

    real = log_ranges(speech_like())
    noise = log_ranges(random_features(num_spectrograms=4, num_features=F, num_frames=60))
    apart = np.abs(log_ranges(synthesis.features) - real).mean()
    assert apart < 0.5 * np.abs(noise - real).mean()


def test_the_network_is_left_as_it_was(network):
    state = {name: value.clone() for name, value in network.state_dict().items()}
    network.train()
    network.head.bias.requires_grad_(False)
    try:
        synthesize(network, QUICK.model_copy(update={"iterations": 2}), num_features=F)
        assert all(module.training for module in network.modules())
        assert [name for name, value in network.named_parameters() if not value.requires_grad] == [
            "head.bias"
        ]
    finally:
        network.eval()
        network.head.bias.requires_grad_(True)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(module._forward_pre_hooks for module in network.modules())
    assert not any("_conv_forward" in vars(module) for module in network.modules())


def test_the_network_is_left_as_it_was_when_it_fails(network):
    def failing(features: torch.Tensor) -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        synthesize(network, QUICK, num_features=F, forward=failing)
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_the_seed_decides_and_more_batches_leave_the_first_as_they_are(network):
    few = QUICK.model_copy(update={"iterations": 3, "batch_size": 2})
    first = synthesize(network, few, num_features=F).features
    both = synthesize(network, few.model_copy(update={"num_batches": 2}), num_features=F).features
    other = synthesize(network, few.model_copy(update={"seed": 1}), num_features=F).features
    np.testing.assert_array_equal(first, both[:2])
    assert not np.array_equal(both[:2], both[2:])
    assert not np.array_equal(first, other)


def test_progress_tells_steps_and_the_loss(network):
    told: list[tuple[int, int, float]] = []
    few = QUICK.model_copy(update={"iterations": 2, "num_batches": 2})
    losses = synthesize(network, few, num_features=F, progress=lambda *news: told.append(news)).losses
    assert [news[:2] for news in told] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [news[2] for news in told] == losses[:, :-1].flatten().tolist()


def test_the_first_step_moves_every_value_by_the_learning_rate(network):
    """So Adam it is, and a gradient reaches each of them."""
    one = QUICK.model_copy(update={"iterations": 1})
    after = synthesize(network, one, num_features=F).features
    noise = torch.rand((4, F, 60), generator=torch.Generator().manual_seed(0)) * 2 - 1
    moved = np.abs(after - 0.3 * noise.numpy())
    assert np.abs(0.3 * noise.numpy()).max() <= 0.3
    # Adam divides by |gradient| + 1e-8: exactly the rate where the gradient is far above that.
    assert np.median(moved) == pytest.approx(one.learning_rate, rel=1e-3)
    assert (moved > 0.5 * one.learning_rate).mean() > 0.99


def test_bfloat16_products_find_features_as_near(network, synthesis):
    reduced = synthesize(network, QUICK.model_copy(update={"precision": "bfloat16"}), num_features=F)
    near = sum(divergences(network, torch.from_numpy(reduced.features)).values())
    assert reduced.features.dtype == np.float32
    assert near < 1.5 * synthesis.losses[0, -1]


def test_it_works_where_gradients_are_off(network):
    few = QUICK.model_copy(update={"iterations": 2})
    plain = synthesize(network, few, num_features=F).features
    with torch.no_grad():
        np.testing.assert_array_equal(synthesize(network, few, num_features=F).features, plain)


# Other networks ---------------------------------------------------------------------------------


def test_a_conformer_with_batch_norm_is_served_and_one_without_is_refused():
    torch.manual_seed(0)
    encoder = ConformerConfig(
        num_features=F, conv2d_channels=4, width=16, feed_forward_width=24, num_blocks=2, heads=2, kernel=5
    )
    network = learn_statistics(
        ConformerCtc(ConformerCtcConfig(encoder=encoder, num_outputs=6)), speech_like()
    )
    # Behind a LayerNorm in every block, the input's scale is all but gone: less to gain than in a QuartzNet.
    losses = synthesize(network, QUICK.model_copy(update={"iterations": 40}), num_features=F).losses
    assert losses[0, -1] < 0.5 * losses[0, 0]
    without = ConformerCtc(ConformerCtcConfig(encoder=dataclasses.replace(encoder, norm="layer")))
    with pytest.raises(
        ValueError, match=r"network=ConformerCtc has no BatchNorm.*calibrate it on recordings instead"
    ):
        synthesize(without, QUICK, num_features=F)


def test_hugging_faces_parakeet_takes_features_its_own_way():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    encoder = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "conv_kernel_size": 5,
        "subsampling_conv_channels": 4,
        "num_mel_bins": F,
    }
    config = transformers.ParakeetCTCConfig(vocab_size=11, pad_token_id=10, encoder_config=encoder)
    network = transformers.ParakeetForCTC(config).eval()

    def forward(features: torch.Tensor) -> object:
        return network(features.transpose(1, 2))

    with torch.no_grad():
        for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm1d)):
            norm.train().momentum = 1.0
            forward(speech_like())
            norm.eval()
    found = synthesize(network, QUICK.model_copy(update={"iterations": 40}), num_features=F, forward=forward)
    assert found.features.shape == (4, F, 60)
    assert found.losses[0, -1] < 0.5 * found.losses[0, 0]


def test_jaspers_dense_residuals_are_all_heard():
    torch.manual_seed(0)
    dense = {"has_residual": True, "has_dense_residual": True, "is_separable": False}
    body = [Block(filters=width, kernel=3, dropout=0.5, **dense) for width in (10, 12)]
    config = QuartzNetConfig(num_features=F, num_outputs=6, blocks=(Block(filters=8, kernel=3), *body))
    network = learn_statistics(QuartzNet(config), speech_like())
    found = synthesize(network, QUICK, num_features=F)
    # Units 1 + 1 + 1, residuals 1 + 2. Dropout would shake the loss; it is off.
    assert len(divergences(network, torch.from_numpy(found.features))) == 6
    assert found.losses[0, -1] < 0.1 * found.losses[0, 0]


def test_batch_norms_over_images_count_as_well():
    torch.manual_seed(0)
    images = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    with torch.no_grad():
        images[1].train().momentum = 1.0
        images(speech_like()[:, None])
        images.eval()
    found = synthesize(images, QUICK, num_features=F, forward=lambda features: images(features[:, None]))
    assert found.losses[0, -1] < 0.1 * found.losses[0, 0]


# What cannot be -----------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_names_the_batch_norm(network):
    broken = QuartzNet(network.config).eval()
    broken.load_state_dict(network.state_dict())
    with torch.no_grad():
        broken.blocks[1].units[0].pointwise.weight[0] = math.nan
    message = r"divergence at BatchNorm blocks.1.units.0.norm is nan \(batch 0, iteration 0\) with learning_rate=0.05; use a lower"
    with pytest.raises(ValueError, match=message):
        synthesize(broken, QUICK, num_features=F)


def test_a_batch_norm_that_the_pass_does_not_reach_is_named(network):
    with pytest.raises(ValueError, match=r"does not reach BatchNorm blocks.1.units.0.norm \(4 of 5 in all\)"):
        synthesize(
            network, QUICK, num_features=F, forward=lambda features: network.blocks[0]([features], None)
        )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("batch_size", 0),
        ("num_frames", 1),
        ("num_batches", 0),
        ("iterations", 0),
        ("learning_rate", 0.0),
        ("learning_rate", math.nan),
        ("initial_bound", -1.0),
        ("epsilon", 0.0),
        ("precision", "float16"),
        ("seed", -1),
        ("betas", (0.9, 1.0)),
        ("iteration", 5),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(key, value):
    with pytest.raises(pydantic.ValidationError, match=key):
        SynthesisSettings(**{key: value})


def test_betas_beyond_one_say_what_to_use():
    with pytest.raises(ValueError, match=re.escape("betas=(0.9, 1.0) must lie in [0, 1); use (0.9, 0.999)")):
        SynthesisSettings(betas=(0.9, 1.0))


def test_random_features_are_uniform_and_decided_by_their_seed():
    features = random_features(num_spectrograms=3, num_features=F, num_frames=400, seed=4)
    assert (features.shape, features.dtype) == ((3, F, 400), np.float32)
    assert -3 <= features.min() < -2.99
    assert 2.99 < features.max() <= 3
    # 9600 values of deviation sqrt(3): five standard errors of each.
    assert abs(features.mean()) < 5 * math.sqrt(3 / 9600)
    assert features.std() == pytest.approx(math.sqrt(3), abs=5 * math.sqrt(3) / math.sqrt(2 * 9600))
    np.testing.assert_array_equal(
        features, random_features(num_spectrograms=3, num_features=F, num_frames=400, seed=4)
    )


def test_counts_and_bounds_that_cannot_be_are_refused_by_name(network):
    with pytest.raises(ValueError, match="num_spectrograms=0 must be a whole number of at least 1"):
        random_features(num_spectrograms=0, num_features=F)
    with pytest.raises(ValueError, match=r"bound=nan must be finite and above 0; the paper's is 3"):
        random_features(num_spectrograms=1, num_features=F, bound=math.nan)
    with pytest.raises(ValueError, match=r"num_features=8.0 must be a whole number"):
        synthesize(network, QUICK, num_features=8.0)  # type: ignore[arg-type]
