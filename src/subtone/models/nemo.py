"""NeMo's `.nemo` files: a tar of `model_config.yaml` and `model_weights.ckpt`.

Only convolution models with a CTC head are read (EncDecCTCModel with a ConvASREncoder). Nothing is
unpickled but tensors, and nothing is extracted to disk: members are read by name.
"""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from torch import Tensor

from subtone.models.quartznet import Block, ConvBlock, QuartzNet, QuartzNetConfig

CONFIG_MEMBER, WEIGHTS_MEMBER = "model_config.yaml", "model_weights.ckpt"
CHECKPOINT_LIMIT_BYTES = 8 * 2**30


def read_nemo(path: Path) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    """(config, state dict) of the `.nemo` at `path`; ValueError says what it lacks."""
    try:
        with tarfile.open(path) as archive:
            config = yaml.safe_load(_member(archive, CONFIG_MEMBER, path))
            weights = torch.load(
                io.BytesIO(_member(archive, WEIGHTS_MEMBER, path)), map_location="cpu", weights_only=True
            )
    except tarfile.TarError as error:
        raise ValueError(f"{path} is not a .nemo file (a tar archive): {error}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: {CONFIG_MEMBER} is not YAML") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path}: {WEIGHTS_MEMBER} is not a file of tensors that torch reads safely"
        ) from error
    if not isinstance(config, Mapping) or not isinstance(weights, Mapping):
        raise ValueError(f"{path}: {CONFIG_MEMBER} or {WEIGHTS_MEMBER} does not hold named values")
    return config, dict(weights)


def network_from_nemo(config: Mapping[str, Any], weights: Mapping[str, Tensor], path: Path) -> QuartzNet:
    """The network of a ConvASREncoder config, with its weights, in eval mode."""
    rows = tuple(_block(row) for row in _required(config, "encoder.jasper", path))
    labels = _required(config, "labels", path)
    features = _required(config, "encoder.feat_in", path)
    network = QuartzNet(QuartzNetConfig(num_features=features, num_outputs=len(labels) + 1, blocks=rows))
    names = dict(nemo_names(network))
    state = network.state_dict()
    missing = [
        theirs for ours, theirs in names.items() if theirs not in weights and "num_batches" not in ours
    ]
    if missing:
        raise ValueError(f"{path} lacks {len(missing)} weights, the first is {missing[0]}")
    for ours, theirs in names.items():
        if theirs not in weights:
            continue
        if weights[theirs].shape != state[ours].shape:
            raise ValueError(
                f"{path}: {theirs} has shape {tuple(weights[theirs].shape)}, the config needs {tuple(state[ours].shape)}"
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


def front_end_from_nemo(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The preprocessor's settings in our units, checked against what our front end computes."""
    section = _required(config, "preprocessor", path)
    fixed = {"normalize": "per_feature", "window": "hann", "log": True, "frame_splicing": 1}
    for key, value in fixed.items():
        if section.get(key, value) != value:
            raise ValueError(
                f"{path}: preprocessor.{key}={section[key]!r} is not supported; only {value!r} is"
            )
    return {
        "rate_hz": section["sample_rate"],
        "window_ms": round(1000 * section["window_size"]),
        "hop_ms": round(1000 * section["window_stride"]),
        "fft_size": section["n_fft"],
        "num_mels": section["features"],
        "preemphasis": section.get("preemph", 0.97),
    }


def _block(row: Mapping[str, Any]) -> Block:
    return Block(
        filters=row["filters"],
        kernel=row["kernel"][0],
        repeat=row["repeat"],
        stride=row["stride"][0],
        dilation=row["dilation"][0],
        dropout=row.get("dropout", 0.0),
        is_separable=row.get("separable", False),
        has_residual=row["residual"],
        has_dense_residual=row.get("residual_dense", False),
    )


def _member(archive: tarfile.TarFile, name: str, path: Path) -> bytes:
    member = next((entry for entry in archive if entry.isfile() and Path(entry.name).name == name), None)
    if member is None:
        raise ValueError(f"{path} has no {name}; is it a whole .nemo file?")
    if member.size > CHECKPOINT_LIMIT_BYTES:
        raise ValueError(f"{path}: {name} claims {member.size} bytes, more than {CHECKPOINT_LIMIT_BYTES}")
    stream = archive.extractfile(member)
    assert stream is not None
    return stream.read()


def _required(config: Mapping[str, Any], key: str, path: Path) -> Any:
    value: Any = config
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise ValueError(
                f"{path}: {CONFIG_MEMBER} has no {key}; only convolution models with a CTC head are read"
            )
        value = value[part]
    return value
