"""NeMo's Conformers (ConformerEncoder with a CTC decoder) in our terms.

The non-causal encoder with relative positions and subsampling by convolutions of stride 2 is read, its
attention limited or not. NeMo's causal convolutions are refused: its causal subsampling pads the right
side too and gives another number of rows.

NeMo keeps 1x1 convolutions, which are linear layers here, and each bias of attention as (heads, D /
heads).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from subtone.models.conformer import ConformerCtc
from subtone.models.conformer_config import ConformerConfig, ConformerCtcConfig
from subtone.models.nemo_archive import Place
from subtone.models.nemo_keys import Keys, take
from subtone.models.operators import UNLIMITED

ENCODER = Keys(
    read={
        "feat_in": ("whole number", ...),
        "n_layers": ("whole number", ...),
        "d_model": ("whole number", ...),
        "n_heads": ("whole number", 4),
        "ff_expansion_factor": ("whole number", 4),
        "subsampling_conv_channels": ("whole number", -1),
        "att_context_size": ("list or null", None),
        "xscaling": ("true or false", True),
        "conv_kernel_size": ("whole number", 31),
        "conv_norm_type": ("text", "batch_norm"),
        "dropout": ("number", 0.1),
    },
    fixed={
        "feat_out": -1,
        "subsampling": "striding",
        "subsampling_factor": 4,
        "causal_downsampling": False,
        "reduction": None,
        "self_attention_model": "rel_pos",
        "att_context_style": "regular",
        "untie_biases": True,
        "conv_context_size": None,
        "use_bias": True,
        "global_tokens": 0,
    },
    # Dropout and stochastic depth are for training; the rest chooses among ways to the same numbers,
    # or belongs to what `fixed` has switched off.
    ignored=frozenset(
        {
            "_target_",
            "att_context_probs",
            "dropout_att",
            "dropout_emb",
            "dropout_pre_encoder",
            "global_attn_separate",
            "global_tokens_spacing",
            "pos_emb_max_len",
            "reduction_factor",
            "reduction_position",
            "stochastic_depth_drop_prob",
            "stochastic_depth_mode",
            "stochastic_depth_start_layer",
            "subsampling_conv_chunking_factor",
            "sync_max_audio_length",
            "use_pytorch_sdpa",
            "use_pytorch_sdpa_backends",
        }
    ),
)
NORMS = ("batch_norm", "layer_norm")
NORM_PARTS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def conformer_config(section: Any, num_outputs: int, path: Path) -> ConformerCtcConfig:
    """The config of an `encoder` section; ValueError names what we would compute otherwise."""
    taken = take(section, ENCODER, "encoder", path)
    width, kernel, norm = taken["d_model"], taken["conv_kernel_size"], taken["conv_norm_type"]
    if kernel % 2 == 0:
        raise ValueError(f"{path}: encoder.conv_kernel_size={kernel} must be odd, so that rows stay centred")
    if norm not in NORMS:
        raise ValueError(f"{path}: encoder.conv_norm_type={norm!r} must be one of {', '.join(NORMS)}")
    channels = taken["subsampling_conv_channels"]
    if channels != -1 and channels < 1:
        raise ValueError(f"{path}: encoder.subsampling_conv_channels={channels} must be at least 1, or -1")
    contexts = taken["att_context_size"] or [UNLIMITED, UNLIMITED]
    if len(contexts) != 2:
        raise ValueError(
            f"{path}: encoder.att_context_size={contexts!r:.80} must be two numbers, left and right"
        )
    try:
        encoder = ConformerConfig(
            num_features=taken["feat_in"],
            conv2d_channels=width if channels == -1 else channels,
            width=width,
            feed_forward_width=width * taken["ff_expansion_factor"],
            num_blocks=taken["n_layers"],
            heads=taken["n_heads"],
            kernel=kernel,
            left=contexts[0],
            right=contexts[1],
            norm="layer" if norm == "layer_norm" else "batch",
            is_input_scaled=taken["xscaling"],
            dropout=taken["dropout"],
        )
        return ConformerCtcConfig(encoder=encoder, num_outputs=num_outputs)
    except ValueError as error:
        raise ValueError(f"{path}: encoder: {error}") from error


def conformer_places(network: ConformerCtc) -> Iterator[Place]:
    """Where NeMo keeps every parameter and buffer, and as what shape."""
    config = network.config.encoder
    width = config.width
    yield from _pair("encoder.subsampling.convolutions.0", "encoder.pre_encode.conv.0")
    yield from _pair("encoder.subsampling.convolutions.1", "encoder.pre_encode.conv.2")
    yield from _pair("encoder.subsampling.out", "encoder.pre_encode.out")
    for index in range(config.num_blocks):
        ours, theirs = f"encoder.blocks.{index}", f"encoder.layers.{index}"
        for part in ("feed_forward1", "feed_forward2"):
            yield from _pair(f"{ours}.{part}.norm", f"{theirs}.norm_{part}")
            for linear in ("linear1", "linear2"):
                yield from _pair(f"{ours}.{part}.{linear}", f"{theirs}.{part}.{linear}")
        yield from _attention_places(f"{ours}.attention", theirs, config)
        own, conv = f"{ours}.convolution", f"{theirs}.conv"
        yield from _pair(f"{own}.norm", f"{theirs}.norm_conv")
        yield from _pair(f"{own}.pointwise1", f"{conv}.pointwise_conv1", (2 * width, width, 1))
        yield from _pair(f"{own}.depthwise", f"{conv}.depthwise_conv")
        for part in NORM_PARTS if config.norm == "batch" else NORM_PARTS[:2]:
            yield Place(f"{own}.inner_norm.{part}", f"{conv}.batch_norm.{part}")
        yield from _pair(f"{own}.pointwise2", f"{conv}.pointwise_conv2", (width, width, 1))
        yield from _pair(f"{ours}.norm", f"{theirs}.norm_out")
    yield from _pair("head", "decoder.decoder_layers.0", (network.config.num_outputs, width, 1))


def _attention_places(ours: str, theirs: str, config: ConformerConfig) -> Iterator[Place]:
    yield from _pair(f"{ours}.norm", f"{theirs}.norm_self_att")
    for part, short in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "out")):
        yield from _pair(f"{ours}.{part}", f"{theirs}.self_attn.linear_{short}")
    yield Place(f"{ours}.position.weight", f"{theirs}.self_attn.linear_pos.weight")
    by_head = (config.heads, config.width // config.heads)
    yield Place(f"{ours}.content_bias", f"{theirs}.self_attn.pos_bias_u", by_head)
    yield Place(f"{ours}.position_bias", f"{theirs}.self_attn.pos_bias_v", by_head)


def _pair(ours: str, theirs: str, shape: tuple[int, ...] | None = None) -> Iterator[Place]:
    """A module's weight, of `shape` in NeMo, and its bias."""
    yield Place(f"{ours}.weight", f"{theirs}.weight", shape)
    yield Place(f"{ours}.bias", f"{theirs}.bias")
