"""Conformers: the loop, the counts of the papers, and what padding and the future may not change."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tests.models.conformer_variants import (
    FULL,
    OPEN,
    PAST,
    STACKED,
    STREAMING,
    VARIANTS,
    random_encoder,
    random_frames,
)
from tests.reference import conformer as reference
from torch import Tensor, nn

from subtone.models.conformer import Conformer, ConformerCtc
from subtone.models.conformer_config import (
    CONFORMER_CTCS,
    CONFORMERS,
    ConformerConfig,
    ConformerCtcConfig,
)
from subtone.models.operators import sinusoid_table
from subtone.quantize.weights import quantizable_weights


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    """Equal but for float32 sums that another length may split differently: a few units of the last place."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.detach().abs().max()))


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("frames", [6, 13])
def test_a_conformer_equals_its_loop(config: ConformerConfig, frames: int) -> None:
    encoder = random_encoder(config).double()
    if encoder.table is not None:  # float32 until here, for what trains and runs is
        encoder.table = sinusoid_table(range(config.left, -config.right - 1, -1), config.width, encoder.table)
    features = random_frames(frames).double()
    weights = {name: value.numpy() for name, value in encoder.state_dict().items()}
    theirs = reference.conformer(features[0].T.numpy(), weights, config)
    ours, _ = encoder(features)
    assert ours.shape == (1, *theirs.shape)
    # float64 on both sides: sums of dozens of terms, in another order, through two blocks.
    np.testing.assert_allclose(ours[0].detach().numpy(), theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_padding_does_not_change_valid_rows(config: ConformerConfig) -> None:
    encoder = random_encoder(config)
    features = random_frames(22)
    alone, lengths = encoder(features, torch.tensor([22]))
    padded = torch.cat([features, torch.full((1, 6, 17), 1e3)], dim=2)
    beside, padded_lengths = encoder(padded, torch.tensor([22]))
    assert torch.isfinite(beside).all()
    assert padded_lengths.tolist() == lengths.tolist() == [alone.shape[1]]
    assert_close(beside[:, : alone.shape[1]], alone)


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_a_batch_equals_one_by_one(config: ConformerConfig) -> None:
    encoder = random_encoder(config)
    lengths = torch.tensor([31, 8, 18, 3])
    features = random_frames(31, batch=4)
    together, rows = encoder(features, lengths)
    for index, length in enumerate(lengths.tolist()):
        alone, _ = encoder(features[index : index + 1, :, :length])
        assert alone.shape[1] == rows[index]
        assert_close(together[index : index + 1, : rows[index]], alone)


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_without_lengths_every_frame_is_valid(config: ConformerConfig) -> None:
    encoder = random_encoder(config)
    features = random_frames(20)
    assert torch.equal(encoder(features)[0], encoder(features, torch.tensor([20]))[0])
    assert encoder(features)[1] is None


def first_row_changed(encoder: Conformer, frames: int, changed: int) -> int:
    """The first row of the result that a change from frame `changed` on reaches."""
    features = random_frames(frames)
    before = encoder(features)[0]
    features[:, :, changed:] += 1.0
    is_changed = (encoder(features)[0] - before).abs().amax(dim=(0, 2)) > 1e-6
    return int(is_changed.nonzero()[0])


@pytest.mark.parametrize("config", [STREAMING, OPEN, PAST], ids=["streaming", "open", "past"])
def test_future_frames_do_not_change_a_causal_conformer(config: ConformerConfig) -> None:
    assert config.is_causal
    encoder = random_encoder(config)
    for changed in (13, 24, 28):
        # Row t is finished with frame 4 t: stride 2 twice, each kernel ending at its own frame.
        assert first_row_changed(encoder, 32, changed) == -(-changed // 4)


def test_each_block_looks_as_far_ahead_as_it_may_and_no_farther() -> None:
    config = dataclasses.replace(STACKED, num_blocks=3, num_blocks_without_attention=0, right=2)
    assert not config.is_causal
    # Three blocks, two rows ahead each, three frames a row: frame 60 is part of row 20, seen from row 14.
    assert first_row_changed(random_encoder(config), 72, 60) == 20 - 3 * 2


def test_an_encoder_with_unlimited_attention_hears_the_last_frame_in_the_first_row() -> None:
    assert first_row_changed(random_encoder(FULL), 32, 31) == 0


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_gradients_reach_every_parameter(config: ConformerConfig) -> None:
    model = ConformerCtc(ConformerCtcConfig(encoder=config, num_outputs=5)).train()
    for name, value in model.named_parameters():
        if "norm" not in name and value.dim() == 1:
            nn.init.normal_(value)
    logits, lengths = model(random_frames(24, batch=2), torch.tensor([24, 12]))
    torch.log_softmax(logits, dim=2)[0, : lengths[0], 1].sum().backward()
    for name, value in model.named_parameters():
        if name.endswith("attention.key.bias"):
            continue  # adds one number to all scores of a row, which softmax takes away again
        assert value.grad is not None, name
        assert value.grad.abs().max() > 1e-9, name
        assert torch.isfinite(value.grad).all(), name


def num_parameters(model: nn.Module) -> int:
    return sum(value.numel() for value in model.parameters())


def encoder_of(name: str) -> Conformer:
    with torch.device("meta"):
        return Conformer(CONFORMERS[name])


# PAPERS.md section 3 counts transducers; what is not encoder: vocabulary 1024, embedding 128, one LSTM
# layer of 320 or 640 units with one bias a gate, joint 640 with biases.
@pytest.mark.parametrize(
    ("name", "transducer", "predictor"),
    [("s", 10_373_568, 320), ("m", 30_662_400, 640), ("l", 118_614_784, 640)],
)
@pytest.mark.parametrize("suffix", ["", "-causal"])
def test_encoders_have_the_count_that_the_published_transducers_leave(
    name: str, transducer: int, predictor: int, suffix: str
) -> None:
    encoder = encoder_of(f"conformer-{name}{suffix}")
    embedding, lstm = 1024 * 128, 4 * predictor * (128 + predictor) + 4 * predictor
    joint = (encoder.width + predictor) * 640 + 2 * 640 + 640 * 1024 + 1024
    assert num_parameters(encoder) == transducer - embedding - lstm - joint


@pytest.mark.parametrize(("name", "quantized"), [("s", 8_377_344), ("l", 112_197_632)])
def test_the_set_that_int4_and_int2_quantize_has_the_published_count(name: str, quantized: int) -> None:
    weights = quantizable_weights(encoder_of(f"conformer-{name}"))
    dense = [weight for weight in weights.values() if weight.kind == "linear"]
    assert sum(weight.parameter.numel() for weight in dense) == quantized


def test_gqs_kernels_have_the_counts_of_its_table() -> None:
    encoder = encoder_of("conformer-gq")
    kernels = {name: value.numel() for name, value in encoder.named_parameters() if value.dim() > 1}
    by_part: dict[str, int] = {}
    for name, count in kernels.items():
        by_part[name.split(".")[0]] = by_part.get(name.split(".")[0], 0) + count
    assert by_part == {
        "subsampling": 3 * 3 * 128 + 3 * 3 * 128 * 128 + 6144 * 256,  # 1.72 M
        "blocks": 14 * 1_581_056 - 256 * 1024,  # 21.87 M
        "projection": 262_144,
    }
    assert encoder.width == 256


def test_nemos_large_ctc_model_has_its_count() -> None:
    with torch.device("meta"):
        assert num_parameters(ConformerCtc(CONFORMER_CTCS["conformer-ctc-l"])) == 121_501_313


def test_cascaded_widths_come_nearest_to_the_published_counts() -> None:
    """int4 prints 47 M and 60 M; heads are 8, so widths are multiples of 8."""
    for name, published in (("cascaded-causal", 47e6), ("cascaded-noncausal", 60e6)):
        counts = {}
        config = CONFORMERS[name]
        for width in range(config.width - 8, config.width + 9, 8):
            with torch.device("meta"):
                resized = dataclasses.replace(config, width=width, feed_forward_width=4 * width)
                counts[width] = num_parameters(Conformer(resized))
        assert min(counts, key=lambda width: abs(counts[width] - published)) == config.width
        assert round(counts[config.width] / 1e6) == published / 1e6


def test_the_second_encoder_of_a_cascade_reads_the_first() -> None:
    first, second = CONFORMERS["cascaded-causal"], CONFORMERS["cascaded-noncausal"]
    assert (first.result_width, first.is_causal) == (second.num_features, True)
    assert second.right * second.num_blocks == 30
    shrunk = {"width": 16, "feed_forward_width": 16}
    rows, lengths = Conformer(dataclasses.replace(first, **shrunk))(
        torch.randn(2, 512, 9), torch.tensor([9, 4])
    )
    again, lengths = Conformer(dataclasses.replace(second, num_features=16, **shrunk))(
        rows.transpose(1, 2), lengths
    )
    assert (again.shape, lengths.tolist()) == ((2, 9, 16), [9, 4])


def test_every_product_of_a_conformer_can_reach_few_bits() -> None:
    with torch.device("meta"):
        model = ConformerCtc(CONFORMER_CTCS["conformer-ctc-demo"])
    weights = quantizable_weights(model)
    assert {name for name, value in model.named_parameters() if value.dim() > 1} == set(weights)
    kinds = {weight.kind for weight in weights.values()}
    assert kinds == {"linear", "depthwise", "conv2d"}
