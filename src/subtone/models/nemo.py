"""NeMo's `.nemo` files: a tar of `model_config.yaml` and `model_weights.ckpt`.

Only convolution models with a CTC head are read (EncDecCTCModel with a ConvASREncoder). Nothing is
unpickled but tensors, and nothing is extracted to disk: members are read by name.

What we would compute otherwise than NeMo is refused: each section's keys are a closed list, and no
weight of the encoder or decoder may be left over.
"""

from __future__ import annotations

import dataclasses
import io
import math
import pickle
import struct
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import yaml
from torch import Tensor

from subtone.models.quartznet import Block, ConvBlock, QuartzNet, QuartzNetConfig
from subtone.speech.features import FrontEnd
from subtone.speech.text import CharTokenizer

CONFIG_MEMBER, WEIGHTS_MEMBER = "model_config.yaml", "model_weights.ckpt"
CHECKPOINT_LIMIT_BYTES = 8 * 2**30
TABLE_TOLERANCE = 1e-6
"""How far a file's own window and mel filters may lie from ours: float32 rounding of other formulas."""

DAMAGES = (
    pickle.UnpicklingError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)
"""What torch.load raises at a damaged file, which it does not check before it builds tensors."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Keys:
    """The keys that one section of a config may have.

    * `read`: key -> (kind, value where it is absent; ... where it must be there).
    * `fixed`: key -> the one value that we compute, NeMo's own where the key is absent.
    * `ignored`: without effect on what a trained model hears.
    """

    read: Mapping[str, tuple[str, Any]]
    fixed: Mapping[str, Any]
    ignored: frozenset[str]


PREPROCESSOR = Keys(
    read={
        "sample_rate": ("whole number", ...),
        "window_size": ("number", ...),
        "window_stride": ("number", ...),
        "n_fft": ("whole number", ...),
        "features": ("whole number", ...),
        "preemph": ("number or null", 0.97),
        "lowfreq": ("number", 0.0),
        "highfreq": ("number or null", None),
        "log_zero_guard_value": ("number", 2.0**-24),
    },
    fixed={
        "normalize": "per_feature",
        "window": "hann",
        "log": True,
        "log_zero_guard_type": "add",
        "frame_splicing": 1,
        "mag_power": 2.0,
        "mel_norm": "slaney",
        "n_window_size": None,
        "n_window_stride": None,
        "exact_pad": False,
        "stft_exact_pad": False,
        "use_torchaudio": False,
    },
    # Dither and narrow-band augmentation are for training, padding is masked out behind, and
    # stft_conv is another way to the same numbers.
    ignored=frozenset(
        {
            "_target_",
            "dither",
            "nb_augmentation_prob",
            "nb_max_freq",
            "pad_align",
            "pad_to",
            "pad_value",
            "rng",
            "stft_conv",
        }
    ),
)
ENCODER = Keys(
    read={"feat_in": ("whole number", ...), "jasper": ("list", ...)},
    fixed={
        "activation": "relu",
        "normalization_mode": "batch",
        "residual_mode": "add",
        "norm_groups": -1,
        "conv_mask": True,
        "frame_splicing": 1,
        "quantize": False,
    },
    ignored=frozenset({"_target_", "init_mode"}),
)
ROW = Keys(
    read={
        "filters": ("whole number", ...),
        "kernel": ("whole number, alone or in a list", ...),
        "repeat": ("whole number", ...),
        "stride": ("whole number, alone or in a list", ...),
        "dilation": ("whole number, alone or in a list", ...),
        "dropout": ("number", 0.0),
        "separable": ("true or false", False),
        "residual": ("true or false", ...),
        "residual_dense": ("true or false", False),
    },
    fixed={
        "groups": 1,
        "heads": -1,
        "residual_mode": "add",
        "se": False,
        "kernel_size_factor": 1.0,
        "stride_last": False,
        "future_context": -1,
    },
    ignored=frozenset({"se_reduction_ratio", "se_context_size", "se_interpolation_mode"}),
)


def load_nemo(path: Path) -> tuple[QuartzNet, FrontEnd, CharTokenizer]:
    """The network in eval mode and what stands before and behind it; ValueError says what it lacks."""
    config, weights = read_nemo(path)
    front_end = _front_end(config, weights, path)
    network = network_from_nemo(config, weights, path)
    if network.config.num_features != front_end.num_mels:
        raise ValueError(
            f"{path}: encoder.feat_in={network.config.num_features} is not "
            f"preprocessor.features={front_end.num_mels}"
        )
    return network, front_end, _tokenizer(config, path)


def read_nemo(path: Path) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    """(config, state dict) of the `.nemo` at `path`, each weight a finite tensor."""
    try:
        with tarfile.open(path) as archive:
            config_bytes = _member(archive, CONFIG_MEMBER, path)
            weights_bytes = _member(archive, WEIGHTS_MEMBER, path)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{path} is not a .nemo file (a tar archive), or not all of it; copy it again"
        ) from error
    try:
        config = yaml.safe_load(config_bytes)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path}: {CONFIG_MEMBER} is not YAML") from error
    try:
        weights = torch.load(io.BytesIO(weights_bytes), map_location="cpu", weights_only=True)
    except DAMAGES as error:
        raise ValueError(
            f"{path}: {WEIGHTS_MEMBER} is not a file of tensors that torch reads safely"
        ) from error
    if not isinstance(config, Mapping) or not isinstance(weights, Mapping):
        raise ValueError(f"{path}: {CONFIG_MEMBER} or {WEIGHTS_MEMBER} does not hold named values")
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"{path}: {name!r} in {WEIGHTS_MEMBER} is a {type(value).__name__}, not a tensor"
            )
        if value.layout is not torch.strided or value.is_quantized:
            raise ValueError(
                f"{path}: {name!r} is a sparse or quantized tensor; only dense float ones are read"
            )
        if not torch.isfinite(value).all():
            raise ValueError(f"{path}: {name!r} holds values that are not finite; train or export it again")
    return config, dict(weights)


def network_from_nemo(config: Mapping[str, Any], weights: Mapping[str, Tensor], path: Path) -> QuartzNet:
    """The network with the file's weights, none lacking and none left over, in eval mode."""
    encoder = _take(_section(config, "encoder", path), ENCODER, "encoder", path)
    rows = tuple(_block(row, f"encoder.jasper[{index}]", path) for index, row in enumerate(encoder["jasper"]))
    if not rows:
        raise ValueError(f"{path}: encoder.jasper=[] has no rows; a network needs at least one")
    if encoder["feat_in"] < 1:
        raise ValueError(f"{path}: encoder.feat_in={encoder['feat_in']} must be at least 1")
    num_outputs = _tokenizer(config, path).blank_index + 1
    network = QuartzNet(
        QuartzNetConfig(num_features=encoder["feat_in"], num_outputs=num_outputs, blocks=rows)
    )
    names = dict(nemo_names(network))
    state = network.state_dict()
    missing = [
        theirs for ours, theirs in names.items() if theirs not in weights and "num_batches" not in ours
    ]
    if missing:
        raise ValueError(f"{path} lacks {len(missing)} weights, the first is {missing[0]}")
    known = set(names.values())
    unread = [name for name in weights if name.startswith(("encoder.", "decoder.")) and name not in known]
    if unread:
        raise ValueError(
            f"{path} has {len(unread)} weights that its config gives no place, the first is {unread[0]!r}; "
            "only what NeMo's ConvASREncoder and ConvASRDecoder hold is read"
        )
    for ours, theirs in names.items():
        if theirs not in weights:
            continue
        if weights[theirs].shape != state[ours].shape:
            raise ValueError(
                f"{path}: {theirs} has shape {tuple(weights[theirs].shape)}, "
                f"the config needs {tuple(state[ours].shape)}"
            )
        state[ours] = weights[theirs].to(state[ours].dtype)
    network.load_state_dict(state)
    return network.eval()


def nemo_names(network: QuartzNet) -> Iterator[tuple[str, str]]:
    """(our name, NeMo's name) of every parameter and buffer.

    NeMo numbers a block's layers in one list: convolution(s), BatchNorm, then ReLU and dropout
    between two repeats.
    """
    norm_parts = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    for index, module in enumerate(network.blocks):
        block = cast(ConvBlock, module)
        ours, theirs = f"blocks.{index}", f"encoder.encoder.{index}"
        position = 0
        for repeat, unit in enumerate(block.units):
            for name, _ in unit.named_children():
                source, target = f"{ours}.units.{repeat}.{name}", f"{theirs}.mconv.{position}"
                if name == "norm":
                    yield from ((f"{source}.{part}", f"{target}.{part}") for part in norm_parts)
                else:
                    yield f"{source}.weight", f"{target}.conv.weight"
                position += 1
            position += 2
        for place in range(len(block.residuals)):
            yield f"{ours}.residuals.{place}.conv.weight", f"{theirs}.res.{place}.0.conv.weight"
            yield from (
                (f"{ours}.residuals.{place}.norm.{part}", f"{theirs}.res.{place}.1.{part}")
                for part in norm_parts
            )
    for part in ("weight", "bias"):
        yield f"head.{part}", f"decoder.decoder_layers.0.{part}"


def _tokenizer(config: Mapping[str, Any], path: Path) -> CharTokenizer:
    labels = _section(config, "labels", path)
    if not isinstance(labels, list):
        raise ValueError(f"{path}: labels={labels!r:.80} is not a list of characters")
    try:
        return CharTokenizer(labels=tuple(labels))
    except ValueError as error:
        raise ValueError(f"{path}: labels: {error}") from error


def _front_end(config: Mapping[str, Any], weights: Mapping[str, Tensor], path: Path) -> FrontEnd:
    """The preprocessor in our units; the file's own window and mel filters must be ours."""
    taken = _take(_section(config, "preprocessor", path), PREPROCESSOR, "preprocessor", path)
    try:
        front_end = FrontEnd(
            rate_hz=taken["sample_rate"],
            window_ms=_whole_ms(taken, "window_size"),
            hop_ms=_whole_ms(taken, "window_stride"),
            fft_size=taken["n_fft"],
            num_mels=taken["features"],
            low_hz=float(taken["lowfreq"]),
            high_hz=float(taken["highfreq"] or taken["sample_rate"] / 2),
            preemphasis=float(taken["preemph"] or 0.0),
            log_floor=float(taken["log_zero_guard_value"]),
        )
    except ValueError as error:
        raise ValueError(f"{path}: preprocessor: {error}") from error
    for name, ours in (("window", front_end.window), ("fb", front_end.mel_filters[None])):
        theirs = weights.get(f"preprocessor.featurizer.{name}")
        if theirs is None:
            continue
        is_same = theirs.shape == ours.shape and np.allclose(
            theirs.detach().double().numpy(), ours, rtol=0, atol=TABLE_TOLERANCE
        )
        if not is_same:
            raise ValueError(
                f"{path}: preprocessor.featurizer.{name} is not what the preprocessor's config gives; "
                "features computed here would not be those the model was trained on"
            )
    return front_end


def _whole_ms(taken: Mapping[str, Any], key: str) -> int:
    milliseconds = 1000 * taken[key]
    if abs(milliseconds - round(milliseconds)) > 1e-6:
        raise ValueError(f"{key}={taken[key]} is not a whole number of milliseconds")
    return round(milliseconds)


def _block(row: Any, place: str, path: Path) -> Block:
    taken = _take(row, ROW, place, path)
    try:
        return Block(
            filters=taken["filters"],
            kernel=taken["kernel"],
            repeat=taken["repeat"],
            stride=taken["stride"],
            dilation=taken["dilation"],
            dropout=taken["dropout"],
            is_separable=taken["separable"],
            has_residual=taken["residual"],
            has_dense_residual=taken["residual_dense"],
        )
    except ValueError as error:
        raise ValueError(f"{path}: {place}: {error}") from error


def _member(archive: tarfile.TarFile, name: str, path: Path) -> bytes:
    member = next((entry for entry in archive if entry.isfile() and Path(entry.name).name == name), None)
    if member is None:
        raise ValueError(f"{path} has no {name}; is it a whole .nemo file?")
    if member.size > CHECKPOINT_LIMIT_BYTES:
        raise ValueError(f"{path}: {name} claims {member.size} bytes, more than {CHECKPOINT_LIMIT_BYTES}")
    stream = archive.extractfile(member)
    assert stream is not None
    return stream.read()


def _section(config: Mapping[str, Any], key: str, path: Path) -> Any:
    if key not in config:
        raise ValueError(_absence(key, path))
    return config[key]


def _take(section: Any, keys: Keys, place: str, path: Path) -> dict[str, Any]:
    """What `keys.read` names in `section`, each of its kind; ValueError names the first key not to be had."""
    if not isinstance(section, Mapping):
        raise ValueError(f"{path}: {place}={section!r:.80} is not a section of named values")
    for key, value in section.items():
        if key in keys.fixed and value != keys.fixed[key]:
            raise ValueError(
                f"{path}: {place}.{key}={value!r:.80} is not supported; only {keys.fixed[key]!r} is"
            )
        if key not in keys.fixed and key not in keys.read and key not in keys.ignored:
            raise ValueError(f"{path}: {place}.{key}={value!r:.80} is not known, so it cannot be computed")
    taken = {}
    for key, (kind, default) in keys.read.items():
        if key not in section and default is ...:
            raise ValueError(_absence(f"{place}.{key}", path))
        value = section.get(key, default)
        if "in a list" in kind and isinstance(value, list) and len(value) == 1:
            value = value[0]
        if not _is_kind(value, kind):
            raise ValueError(f"{path}: {place}.{key}={value!r:.80} is not a {kind}")
        taken[key] = value
    return taken


def _is_kind(value: Any, kind: str) -> bool:
    if kind.startswith("whole number"):
        return type(value) is int
    if kind.startswith("number"):
        return (value is None and "null" in kind) or (
            type(value) in (int, float) and math.isfinite(value) and abs(value) < 1e9
        )
    return type(value) is {"true or false": bool, "list": list}[kind]


def _absence(key: str, path: Path) -> str:
    return f"{path}: {CONFIG_MEMBER} has no {key}; only convolution models with a CTC head are read"
