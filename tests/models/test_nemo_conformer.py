"""A Conformer in NeMo's layout is read whole, and what we would compute otherwise is refused."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
import torch
import yaml
from tests.models.conformer_variants import random_frames, randomize
from torch import Tensor

from subtone.models.checkpoints import load_checkpoint
from subtone.models.conformer import ConformerCtc
from subtone.models.conformer_config import CONFORMER_CTCS, ConformerConfig, ConformerCtcConfig
from subtone.models.nemo import load_nemo, network_from_nemo, read_nemo
from subtone.models.nemo_conformer import conformer_places

LABELS = [" ", "a", "b"]
WIDTH, HEADS, BLOCKS, KERNEL, CHANNELS, FEATURES = 8, 2, 2, 5, 3, 12
ENCODER = {
    "_target_": "nemo.collections.asr.modules.ConformerEncoder",
    "feat_in": FEATURES,
    "feat_out": -1,
    "n_layers": BLOCKS,
    "d_model": WIDTH,
    "subsampling": "striding",
    "subsampling_factor": 4,
    "subsampling_conv_channels": CHANNELS,
    "ff_expansion_factor": 2,
    "self_attention_model": "rel_pos",
    "n_heads": HEADS,
    "att_context_size": [-1, -1],
    "xscaling": True,
    "untie_biases": True,
    "pos_emb_max_len": 5000,
    "conv_kernel_size": KERNEL,
    "conv_norm_type": "batch_norm",
    "dropout": 0.1,
    "dropout_emb": 0.0,
    "dropout_att": 0.1,
}
PREPROCESSOR = {
    "sample_rate": 16000,
    "normalize": "per_feature",
    "window_size": 0.025,
    "window_stride": 0.01,
    "window": "hann",
    "features": FEATURES,
    "n_fft": 512,
    "log": True,
}
HEAD_WIDTH, WIDE = WIDTH // HEADS, 2 * WIDTH
BANDS = 3  # 12 features halved twice
BLOCK_SHAPES = {
    **{
        f"norm_{part}.weight": (WIDTH,)
        for part in ("feed_forward1", "self_att", "conv", "feed_forward2", "out")
    },
    **{
        f"norm_{part}.bias": (WIDTH,)
        for part in ("feed_forward1", "self_att", "conv", "feed_forward2", "out")
    },
    **{f"feed_forward{index}.linear1.weight": (WIDE, WIDTH) for index in (1, 2)},
    **{f"feed_forward{index}.linear1.bias": (WIDE,) for index in (1, 2)},
    **{f"feed_forward{index}.linear2.weight": (WIDTH, WIDE) for index in (1, 2)},
    **{f"feed_forward{index}.linear2.bias": (WIDTH,) for index in (1, 2)},
    **{f"self_attn.linear_{part}.weight": (WIDTH, WIDTH) for part in ("q", "k", "v", "out", "pos")},
    **{f"self_attn.linear_{part}.bias": (WIDTH,) for part in ("q", "k", "v", "out")},
    **{f"self_attn.pos_bias_{part}": (HEADS, HEAD_WIDTH) for part in "uv"},
    "conv.pointwise_conv1.weight": (2 * WIDTH, WIDTH, 1),
    "conv.pointwise_conv1.bias": (2 * WIDTH,),
    "conv.depthwise_conv.weight": (WIDTH, 1, KERNEL),
    "conv.depthwise_conv.bias": (WIDTH,),
    **{f"conv.batch_norm.{part}": (WIDTH,) for part in ("weight", "bias", "running_mean", "running_var")},
    "conv.batch_norm.num_batches_tracked": (),
    "conv.pointwise_conv2.weight": (WIDTH, WIDTH, 1),
    "conv.pointwise_conv2.bias": (WIDTH,),
}
"""NeMo's names and shapes within a layer, written down apart from the code that reads them."""
SHAPES = {
    "encoder.pre_encode.conv.0.weight": (CHANNELS, 1, 3, 3),
    "encoder.pre_encode.conv.0.bias": (CHANNELS,),
    "encoder.pre_encode.conv.2.weight": (CHANNELS, CHANNELS, 3, 3),
    "encoder.pre_encode.conv.2.bias": (CHANNELS,),
    "encoder.pre_encode.out.weight": (WIDTH, CHANNELS * BANDS),
    "encoder.pre_encode.out.bias": (WIDTH,),
    **{
        f"encoder.layers.{index}.{name}": shape
        for index in range(BLOCKS)
        for name, shape in BLOCK_SHAPES.items()
    },
    "decoder.decoder_layers.0.weight": (len(LABELS) + 1, WIDTH, 1),
    "decoder.decoder_layers.0.bias": (len(LABELS) + 1,),
}


def random_state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    state = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    for name in state:
        if name.endswith("running_var"):
            state[name] = state[name].abs() + 0.5
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
    return state


def write(
    path: Path, *, state: dict | None = None, encoder: dict | None = None, config: dict | None = None
) -> Path:
    """`encoder` changes entries of that section, `config` of the whole; ... removes one."""
    document = {"labels": LABELS, "preprocessor": PREPROCESSOR, "encoder": ENCODER | (encoder or {})} | (
        config or {}
    )
    document = {key: value for key, value in document.items() if value is not ...}
    weights = io.BytesIO()
    torch.save(random_state() if state is None else state, weights)
    with tarfile.open(path, "w") as archive:
        parts = {
            "model_config.yaml": yaml.safe_dump(document).encode(),
            "model_weights.ckpt": weights.getvalue(),
        }
        for name, data in parts.items():
            entry = tarfile.TarInfo(f"./{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def test_a_conformer_is_read_with_its_front_end_and_labels(tmp_path: Path) -> None:
    network, front_end, tokenizer = load_nemo(write(tmp_path / "a.nemo"))
    assert isinstance(network, ConformerCtc)
    assert not network.training
    assert network.config == ConformerCtcConfig(
        encoder=ConformerConfig(
            num_features=FEATURES,
            conv2d_channels=CHANNELS,
            width=WIDTH,
            feed_forward_width=WIDE,
            num_blocks=BLOCKS,
            heads=HEADS,
            kernel=KERNEL,
            is_input_scaled=True,
        ),
        num_outputs=4,
    )
    assert (front_end.num_mels, front_end.window_ms, tokenizer.labels) == (FEATURES, 25, tuple(LABELS))


def test_every_weight_of_the_file_has_its_effect(tmp_path: Path) -> None:
    """A weight that were read into nothing would not change the logits."""
    path = write(tmp_path / "a.nemo")
    features = random_frames(24, num_features=FEATURES)
    before = load_nemo(path)[0](features)[0]
    config, state = read_nemo(path)
    for name, value in state.items():
        if name.endswith(("num_batches_tracked", "linear_k.bias")):
            continue  # no effect in eval mode; none on softmax
        network = network_from_nemo(config, state | {name: value + 0.5 * torch.rand(value.shape)}, path)
        assert not torch.allclose(network(features)[0], before, atol=1e-5), name


# Pairs of one shape, which a mistake could exchange unseen.
SAME_SHAPE = {
    "blocks.1.attention.content_bias": "layers.1.self_attn.pos_bias_u",  # meets the key
    "blocks.1.attention.position_bias": "layers.1.self_attn.pos_bias_v",
    "blocks.1.attention.query.weight": "layers.1.self_attn.linear_q.weight",
    "blocks.1.attention.key.weight": "layers.1.self_attn.linear_k.weight",
    "blocks.1.attention.value.weight": "layers.1.self_attn.linear_v.weight",
    "blocks.1.attention.position.weight": "layers.1.self_attn.linear_pos.weight",
    "blocks.1.attention.out.weight": "layers.1.self_attn.linear_out.weight",
    "blocks.1.attention.norm.weight": "layers.1.norm_self_att.weight",
    "blocks.1.convolution.norm.weight": "layers.1.norm_conv.weight",
    "blocks.1.convolution.inner_norm.weight": "layers.1.conv.batch_norm.weight",
    "blocks.1.feed_forward1.norm.weight": "layers.1.norm_feed_forward1.weight",
    "blocks.1.feed_forward2.norm.weight": "layers.1.norm_feed_forward2.weight",
    "blocks.1.feed_forward1.linear1.weight": "layers.1.feed_forward1.linear1.weight",
    "blocks.1.feed_forward2.linear1.weight": "layers.1.feed_forward2.linear1.weight",
    "blocks.1.norm.weight": "layers.1.norm_out.weight",
}


def test_weights_of_one_shape_are_not_exchanged(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nemo")
    ours, theirs = load_nemo(path)[0].state_dict(), read_nemo(path)[1]
    for name, source in SAME_SHAPE.items():
        assert torch.equal(ours[f"encoder.{name}"].flatten(), theirs[f"encoder.{source}"].flatten()), name


def test_what_is_written_by_name_comes_back_as_the_same_network(tmp_path: Path) -> None:
    config = load_nemo(write(tmp_path / "a.nemo"))[0].config
    torch.manual_seed(1)
    network = ConformerCtc(config).eval()
    randomize(network)
    ours = network.state_dict()
    state = {
        place.theirs: ours[place.ours] if place.shape is None else ours[place.ours].reshape(place.shape)
        for place in conformer_places(network)
    }
    assert {name: tuple(value.shape) for name, value in state.items()} == SHAPES
    loaded = load_checkpoint(write(tmp_path / "b.nemo", state=state)).network
    features = random_frames(30, num_features=FEATURES)
    assert torch.equal(loaded(features)[0], network(features)[0])


def test_limited_contexts_and_layer_norm_are_read(tmp_path: Path) -> None:
    state = {
        name: value for name, value in random_state().items() if "running" not in name and "num_b" not in name
    }
    changes = {"att_context_size": [6, 2], "conv_norm_type": "layer_norm", "xscaling": False}
    encoder = load_nemo(write(tmp_path / "a.nemo", state=state, encoder=changes))[0].config.encoder
    assert (encoder.left, encoder.right, encoder.norm, encoder.is_input_scaled) == (6, 2, "layer", False)


def test_the_large_model_has_a_place_in_the_file_for_every_weight() -> None:
    with torch.device("meta"):
        network = ConformerCtc(CONFORMER_CTCS["conformer-ctc-l"])
    places = list(conformer_places(network))
    assert {place.ours for place in places} == set(network.state_dict())
    assert len({place.theirs for place in places}) == len(places)


def test_a_model_of_word_pieces_gives_its_network_and_says_what_it_lacks(tmp_path: Path) -> None:
    pieces = {"labels": ..., "decoder": {"vocabulary": ["<unk>", "\u2581a", "b"]}}
    path = write(tmp_path / "a.nemo", config=pieces)
    assert network_from_nemo(*read_nemo(path), path).config.num_outputs == 4
    with pytest.raises(ValueError, match=r"decoder\.vocabulary has 3 word pieces, which cannot be spelt yet"):
        load_nemo(path)


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ({"subsampling": "dw_striding"}, "encoder.subsampling='dw_striding' is not supported"),
        ({"causal_downsampling": True}, "encoder.causal_downsampling=True is not supported"),
        ({"conv_context_size": "causal"}, "encoder.conv_context_size='causal' is not supported"),
        ({"self_attention_model": "abs_pos"}, "encoder.self_attention_model='abs_pos' is not supported"),
        ({"use_bias": False}, "encoder.use_bias=False is not supported"),
        ({"gates": 1}, "encoder.gates=1 is not known"),
        ({"n_layers": "two"}, "encoder.n_layers='two' is not a whole number"),
        ({"n_layers": 3}, r"lacks \d+ weights, the first is encoder.layers.2.norm_feed_forward1.weight"),
        ({"n_layers": 1}, "weights that its config gives no place, the first is 'encoder.layers.1."),
        ({"conv_kernel_size": 4}, "encoder.conv_kernel_size=4 must be odd"),
        (
            {"conv_norm_type": "group_norm2"},
            "conv_norm_type='group_norm2' must be one of batch_norm, layer_norm",
        ),
        ({"conv_norm_type": 3}, "conv_norm_type=3 is not a text"),
        ({"att_context_size": [1]}, r"att_context_size=\[1\] must be two numbers"),
        (
            {"att_context_size": [[70, 13], [70, 0]]},
            r"encoder: conformer left=\[70, 13\] must be a whole number",
        ),
        ({"subsampling_conv_channels": 0}, "subsampling_conv_channels=0 must be at least 1, or -1"),
        ({"n_heads": 3}, "encoder: conformer heads=3 does not divide width=8"),
        ({"n_heads": 4}, r"self_attn.pos_bias_u has shape \(2, 4\), the config needs \(4, 2\)"),
        ({"feat_in": 11}, "encoder.feat_in=11 is not preprocessor.features=12"),
    ],
)
def test_what_would_be_computed_otherwise_is_refused_in_one_line(
    tmp_path: Path, encoder: dict, message: str
) -> None:
    path = write(tmp_path / "a.nemo", encoder=encoder)
    with pytest.raises(ValueError, match=message) as caught:
        load_nemo(path)
    assert "a.nemo" in str(caught.value)
    assert "\n" not in str(caught.value)
