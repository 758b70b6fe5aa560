"""What lies in a `.nemo` file, a tar: a config and named tensors, and how these come into a network.

Nothing is unpickled but tensors, and nothing is extracted to disk: members are read by name.
"""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor, nn

from subtone.models.nemo_keys import CONFIG_MEMBER, WEIGHTS_MEMBER

CHECKPOINT_LIMIT_BYTES = 8 * 2**30

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


class Place(NamedTuple):
    """Where a tensor of ours lies in NeMo's file: its name there, and its shape if that is another."""

    ours: str
    theirs: str
    shape: tuple[int, ...] | None = None


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


def fill(network: nn.Module, places: Iterable[Place], weights: Mapping[str, Tensor], path: Path) -> None:
    """`network` with the file's weights, none lacking and none left over; ValueError names the first."""
    state = network.state_dict()
    known = {place.theirs for place in places}
    missing = [
        place.theirs for place in places if place.theirs not in weights and "num_batches" not in place.ours
    ]
    if missing:
        raise ValueError(f"{path} lacks {len(missing)} weights, the first is {missing[0]}")
    unread = [name for name in weights if name.startswith(("encoder.", "decoder.")) and name not in known]
    if unread:
        raise ValueError(
            f"{path} has {len(unread)} weights that its config gives no place, the first is {unread[0]!r}; "
            "only what the encoders and the CTC decoder read here hold can be computed"
        )
    for ours, theirs, shape in places:
        if theirs not in weights:
            continue
        expected = tuple(state[ours].shape) if shape is None else shape
        if tuple(weights[theirs].shape) != expected:
            raise ValueError(
                f"{path}: {theirs} has shape {tuple(weights[theirs].shape)}, the config needs {expected}"
            )
        state[ours] = weights[theirs].to(state[ours].dtype).reshape(state[ours].shape)
    network.load_state_dict(state)


def _member(archive: tarfile.TarFile, name: str, path: Path) -> bytes:
    member = next((entry for entry in archive if entry.isfile() and Path(entry.name).name == name), None)
    if member is None:
        raise ValueError(f"{path} has no {name}; is it a whole .nemo file?")
    if member.size > CHECKPOINT_LIMIT_BYTES:
        raise ValueError(f"{path}: {name} claims {member.size} bytes, more than {CHECKPOINT_LIMIT_BYTES}")
    stream = archive.extractfile(member)
    assert stream is not None
    return stream.read()
