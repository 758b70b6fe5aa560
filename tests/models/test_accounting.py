"""Counts, sizes and bit operations against what the papers print; PAPERS.md section 3 says where."""

from __future__ import annotations

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from subtone.models import CTC_MODELS, MODELS, build, preset
from subtone.models.accounting import (
    FRAMES_OF_10_S,
    OPERATION_BITS,
    PUBLISHED,
    Counts,
    counts,
    describe_models,
)

ONE_BIAS_A_GATE = {
    "conformer-transducer-s": (10_373_568, 10_374_848, 8_377_344),
    "conformer-transducer-m": (30_662_400, 30_664_960, None),
    "conformer-transducer-l": (118_614_784, 118_617_344, 112_197_632),
}
"""Parameters with one bias a gate, torch's, and the weights that int4 and int2 quantize."""


def part(name: str, path: str) -> int:
    with torch.device("meta"):
        return sum(value.numel() for value in build(preset(name).to_json()).get_submodule(path).parameters())


@pytest.mark.parametrize("name", ONE_BIAS_A_GATE)
def test_conformer_transducers_have_the_published_parameters(name: str) -> None:
    one_bias, torchs, quantized = ONE_BIAS_A_GATE[name]
    of = counts(name)
    assert (of.one_bias_a_gate, of.parameters) == (one_bias, torchs)
    assert quantized in (None, of.chosen)


@pytest.mark.parametrize(("name", "weights"), [("s8bqat-m1", 61_019_136), ("s8bqat-m3", 67_757_056)])
def test_s8bqats_networks_have_the_weights_of_its_table(name: str, weights: int) -> None:
    of = counts(name)
    assert of.weights == weights
    widths = preset(name).encoder.widths + preset(name).predictor.widths
    assert of.one_bias_a_gate - weights == 4 * sum(widths) + 512 + 512 + 2501  # the biases it does not list


def test_s8bqats_parts_have_the_millions_of_its_table() -> None:
    """47.8, 17.0 and 2.6 M: encoder and decoder with their projections, the joint layer with the embedding."""
    with torch.device("meta"):
        network = build(preset("s8bqat-m3").to_json())
    of = {path: value.numel() for path, value in network.named_parameters() if value.dim() > 1}
    encoder = sum(n for path, n in of.items() if path.startswith("encoder"))
    layers = sum(n for path, n in of.items() if path.startswith("predictor.layers"))
    encoder += of["joiner.encoder_projection.weight"]
    decoder = layers + of["joiner.predictor_projection.weight"]
    joint = of["joiner.combine.output.weight"] + of["predictor.embedding.weight"]
    assert [round(n / 1e6, 1) for n in (decoder, joint)] == [17.0, 2.6]
    first = (192 + 1024) * 4096 + (1024 + 1024) * 4096
    kernels = first + (2048 + 1120) * 4480 + 2 * (1120 + 1120) * 4480 + 1120 * 512
    assert encoder == kernels == 48_205_824  # by the table's own shapes; it prints 47.8 beside them
    assert encoder + decoder + joint == 67_757_056


def test_gqs_conformer_has_the_weights_of_its_table() -> None:
    config = preset("conformer-transducer-gq")
    embedding, between = 2501 * 256, 256 * 512  # unlisted; and ours, from the encoder to the joint layer
    listed = counts("conformer-transducer-gq").weights - embedding - between
    assert round(listed / 1e6, 2) == 27.76
    assert round((listed + embedding) / 1e6, 1) == 28.4
    assert (config.encoder.result_width, config.joint_width) == (256, 512)


def test_the_cascade_has_the_millions_that_int4_prints() -> None:
    assert round(part("cascaded", "encoder") / 1e6) == 47
    assert round(part("cascaded", "encoder2") / 1e6) == 60
    for suffix in ("", "2"):
        decoder = part("cascaded", f"predictor{suffix}") + part("cascaded", f"joiner{suffix}")
        assert round(decoder / 1e6, 1) == 4.4


def test_the_bifocal_network_has_a_large_and_a_small_encoder_of_five_layers() -> None:
    with torch.device("meta"):
        encoder = build(preset("bifocal").to_json()).encoder
    shapes = [
        (tuple(layer.large.weight_ih_l0.shape), tuple(layer.small.weight_ih_l0.shape))
        for layer in encoder.layers
    ]
    assert shapes == [((4096, 192), (1024, 192)), *[((4096, 1024), (1024, 256))] * 4]
    assert counts("bifocal").weights == 59_393_088  # by the printed dimensions; 30.07 MB at 8 bits are half


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("conformer-transducer-l", {32: 474.46, 8: 137.9, 4: 81.8, 2: 53.7}),
        ("conformer-transducer-s", {32: 41.49, 8: 16.36, 4: 12.17, 2: 10.08}),
    ],
)
def test_sizes_are_those_predicted_for_int2(name: str, sizes: dict[int, float]) -> None:
    found = {bits: counts(name).megabytes(bits) for bits in sizes}
    assert found == pytest.approx(sizes, abs=0.05 if name.endswith("l") else 0.005)


def test_with_the_whole_encoder_in_four_bits_sizes_are_those_of_int4() -> None:
    sizes = [counts(f"conformer-transducer-{of}").encoder_megabytes(4) for of in "ls"]
    assert [round(size, 2) for size in sizes] == [61.05, 6.02]


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_the_paper_prints_is_ours_to_a_hundredth_or_has_a_note(name: str) -> None:
    of, paper = counts(name), PUBLISHED[name]
    pairs = [(of.megabytes(bits), size) for bits, size in paper.megabytes.items()]
    if paper.parameters is not None:
        pairs.append((of.counted(paper.counted) / 1e6, paper.parameters))
    pairs += [(of.bit_operations(*OPERATION_BITS[key]) / 1e12, n) for key, n in paper.bit_operations.items()]
    is_near = [abs(ours - theirs) <= 0.01 * theirs for ours, theirs in pairs]
    assert all(is_near) or paper.note


def test_the_sizes_that_zero_shot_prints_of_quartznet_are_kib_of_the_network_without_its_head() -> None:
    """And every parameter of it in as many bits, biases and BatchNorms too; ours leave those in float32."""
    without_head = counts("quartznet15x5").parameters - part("quartznet15x5", "head")
    assert without_head == 18_894_656
    for bits, printed in PUBLISHED["quartznet15x5"].megabytes.items():
        assert round(without_head * bits / 8 / 1024 / 1000, 2) == pytest.approx(printed, abs=0.005)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("quartznet15x5", 18_924_381), ("jasper10x5", 332_632_349), ("conformer-ctc-l", 121_501_313)],
)
def test_sizes_of_zero_shots_networks_are_four_bytes_a_parameter_or_fewer_bits_a_weight(
    name: str, parameters: int
) -> None:
    of, printed = counts(name), PUBLISHED[name].megabytes
    assert of.megabytes(32) * 1e6 == 4 * parameters
    with torch.device("meta"):
        shapes = [value.shape for value in build(preset(name).to_json()).parameters()]
    for bits in (8, 6):
        size = sum(shape.numel() * (bits / 8 if len(shape) > 1 else 4) for shape in shapes)
        assert of.megabytes(bits) * 1e6 == pytest.approx(size, rel=1e-12)
        # The paper's own are as many of 32 bits of one figure, to half a unit of the last digit that it prints.
        assert printed[bits] / printed[32] == pytest.approx(bits / 32, rel=3e-4)


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("jasper10x5", {"32x32": 170.6, "8x8": 10.66, "6x8": 8.00}),
        ("conformer-ctc-l", {"32x32": 43.98, "8x8": 2.75, "6x8": 2.06}),
        ("quartznet15x5", {"32x32": 9.67, "8x8": 0.604, "6x8": 0.453}),
    ],
)
def test_bit_operations_of_ten_seconds_are_the_predicted_ones(name: str, printed: dict[str, float]) -> None:
    found = {key: counts(name).bit_operations(*OPERATION_BITS[key]) / 1e12 for key in printed}
    assert found == pytest.approx(printed, rel=1.2e-3)


@pytest.mark.parametrize("name", ["quartznet-demo", "conformer-ctc-demo"])
def test_products_are_those_that_torch_counts_but_for_attentions_own(name: str) -> None:
    with torch.device("meta"):
        network = build(preset(name).to_json()).eval()
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, 64, FRAMES_OF_10_S))
    found = counter.get_flop_counts()["Global"]
    without_weights = found.get(torch.ops.aten.bmm, 0)
    assert counts(name).macs_10_s == (sum(found.values()) - without_weights) // 2


def test_products_of_lstms_are_their_weights_times_their_rows() -> None:
    """333 stacks of three frames in the first two layers, 166 pairs of them behind."""
    first, last = 1216 * 4096 + 2048 * 4096, 3072 * 4096 + 2 * 2048 * 4096
    assert counts("s8bqat-m1").macs_10_s == 333 * first + 166 * last


def test_every_preset_is_described_and_only_demos_have_no_paper() -> None:
    rows = describe_models()
    assert [row["model"] for row in rows] == list(MODELS)
    assert {row["model"] for row in rows if row["published"] is None} == {
        name for name in CTC_MODELS if name.endswith("-demo")
    }
    assert all(row["quantized_weights"] <= row["weights"] <= row["parameters"] for row in rows)


def test_a_size_is_chosen_bits_and_the_rest_in_float() -> None:
    of = Counts(parameters=110, second_biases=10, weights=80, encoder=60, chosen=40, macs_10_s=7)
    assert of.megabytes(4) * 1e6 == 40 / 2 + 60 * 4
    assert of.encoder_megabytes(4) * 1e6 == 60 / 2 + 40
    assert of.bit_operations(6, 8) == 7 * 48


@pytest.mark.parametrize("name", MODELS)
def test_a_config_as_json_builds_the_same_network(name: str) -> None:
    document = json.loads(json.dumps(MODELS[name].to_json()))
    with torch.device("meta"):
        network = build(document)
    assert network.config == MODELS[name]


def test_a_preset_or_a_family_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="model='bifokal' is not a preset; did you mean bifocal"):
        preset("bifokal")
    with pytest.raises(ValueError, match="model family='gru' is not known; use one of quartznet"):
        build({"family": "gru"})
