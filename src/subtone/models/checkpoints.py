"""Checkpoints: a network with all that is needed to hear with it, in a folder of ours or a `.nemo`.

Our folder holds `config.json` and `weights.safetensors`. A quantized weight lies in the latter as
its QTensor's parts (`<path>.codes`, `.scale`, `.zero_point`, `.codebook`), never as floats beside
them: one truth. Reading unpickles nothing.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray

from subtone.files import replacing
from subtone.models import Network, TransducerNetwork, build
from subtone.models.hearing import recognizer_of
from subtone.models.nemo import load_nemo
from subtone.qtensor import QTensor
from subtone.speech.features import front_end_from_json
from subtone.speech.front_end import MelFrontEnd
from subtone.speech.listening import AnyRecognizer
from subtone.speech.pieces import tokenizer_from_json
from subtone.speech.text import Tokenizer

FORMAT, VERSION = "subtone-checkpoint", 1
CONFIG_FILE, WEIGHTS_FILE = "config.json", "weights.safetensors"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantization:
    """What a method leaves behind: all that export needs beside the network itself.

    * `weights`: parameter path -> QTensor.
    * `bias_shifts`: parameter path -> float32 (out,), added to what that weight's product gives,
      before the BatchNorm behind it.
    * `activation_bits`: parameter path -> bits of the dynamic activations it meets; 0 is float.
    * `activation_clips`: parameter path -> the magnitude at which these activations are clipped before
      they are rounded, a value of float32 above 0; absent where nothing is clipped.
    * `ranges`: the lowest and highest of each value of the exported program, of an integer-only model; empty
      otherwise. `program_digest`: which program that was.
    * `recipe`: the resolved recipe.
    """

    weights: Mapping[str, QTensor]
    activation_bits: Mapping[str, int]
    bias_shifts: Mapping[str, NDArray[np.float32]]
    recipe: Mapping[str, Any]
    activation_clips: Mapping[str, float] = dataclasses.field(default_factory=dict)
    ranges: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    program_digest: str = ""

    def __post_init__(self) -> None:
        for path, clip in self.activation_clips.items():
            if not self.activation_bits.get(path):
                raise ValueError(f"activation_clips has {path}, whose activations are float; remove it")
            if not 0 < clip <= np.finfo(np.float32).max or float(np.float32(clip)) != clip:
                raise ValueError(f"activation_clips has {clip} for {path}; use a value of float32 above 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A network in eval mode, and what stands before and behind it.

    Where `quantization` is there, the network's weights are the decoded ones.
    """

    network: Network | TransducerNetwork
    front_end: MelFrontEnd
    tokenizer: Tokenizer
    quantization: Quantization | None = None

    def require_float(self) -> None:
        """ValueError if its weights are in few bits already."""
        if self.quantization is not None:
            name = self.quantization.recipe.get("name", "?")
            raise ValueError(f"the checkpoint is already quantized (by {name}); start from the float one")

    def recognizer(self) -> AnyRecognizer:
        """Hears with the network in torch, in float between the operations."""
        return recognizer_of(self.network, front_end=self.front_end, tokenizer=self.tokenizer)


def load_checkpoint(path: Path | str) -> Checkpoint:
    """The checkpoint in folder `path`, or in a `.nemo` file."""
    path = Path(path)
    if not path.exists():
        raise ValueError(f"checkpoint {path} does not exist")
    if path.is_dir():
        return _load_folder(path)
    if path.suffix != ".nemo":
        raise ValueError(f"{path} is neither a checkpoint folder nor a .nemo file")
    network, front_end, tokenizer = load_nemo(path)
    return Checkpoint(network=network, front_end=front_end, tokenizer=tokenizer)


def save_checkpoint(path: Path | str, checkpoint: Checkpoint) -> None:
    """Write the folder `path`, whole or not at all; a checkpoint already there is replaced.

    Raises:
        ValueError: `path` holds something else (`check_can_save`).
        OSError: it cannot be written, as on a full disk.
    """
    path = Path(path)
    check_can_save(path)
    quantization = checkpoint.quantization
    state = {name: value.contiguous() for name, value in checkpoint.network.state_dict().items()}
    document: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "model": checkpoint.network.config.to_json(),
        "front_end": checkpoint.front_end.to_json(),
        "tokenizer": checkpoint.tokenizer.to_json(),
    }
    if quantization is not None:
        document["recipe"] = dict(quantization.recipe)
        document["quantized"] = {name: _describe(name, quantization) for name in quantization.weights}
        if quantization.ranges:
            document["ranges"] = {name: list(ends) for name, ends in quantization.ranges.items()}
            document["program_digest"] = quantization.program_digest
        for name, weight in quantization.weights.items():
            del state[name]
            state |= {f"{name}.{part}": torch.from_numpy(value) for part, value in _parts(weight).items()}
        for name, shift in quantization.bias_shifts.items():
            state[f"{name}.bias_shift"] = torch.from_numpy(shift)
    with replacing(path) as beside:
        beside.mkdir()
        try:
            safetensors.torch.save_file(state, beside / WEIGHTS_FILE)
        except safetensors.SafetensorError as error:  # its own name for what the disk said
            raise OSError(str(error)) from error
        (beside / CONFIG_FILE).write_text(json.dumps(document, indent=1))
        # safetensors writes for the owner alone; who may read the one file may read the other.
        (beside / WEIGHTS_FILE).chmod((beside / CONFIG_FILE).stat().st_mode)


def check_can_save(path: Path) -> None:
    """ValueError unless `path` is free, an empty folder, or a checkpoint of ours and nothing else."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    contents = {item.name for item in path.iterdir()} if path.is_dir() else set()
    if contents == {CONFIG_FILE, WEIGHTS_FILE}:
        try:
            _read_config(path)
        except ValueError:
            contents = set()
    if contents != {CONFIG_FILE, WEIGHTS_FILE}:
        raise ValueError(f"{path} exists and is not a checkpoint; choose another folder")


def _load_folder(path: Path) -> Checkpoint:
    document = _read_config(path)
    weights_path = path / WEIGHTS_FILE
    if not weights_path.is_file():
        raise ValueError(f"{path} has no {WEIGHTS_FILE}; the checkpoint is not whole")
    weights_path.open("rb").close()  # safetensors calls a file that may not be read one that is not there
    try:
        state = safetensors.torch.load_file(weights_path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{weights_path} is damaged: {error}") from error
    try:
        network = build(document["model"])
        quantization = _take_quantization(document, state)
        for name, weight in quantization.weights.items() if quantization else ():
            state[name] = torch.from_numpy(weight.dequantize())
        network.load_state_dict(state)
        return Checkpoint(
            network=network.eval(),
            front_end=front_end_from_json(document["front_end"]),
            tokenizer=tokenizer_from_json(document["tokenizer"]),
            quantization=quantization,
        )
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        summary = str(error).strip().splitlines()[0]
        raise ValueError(f"{path} is not a whole checkpoint: {type(error).__name__}: {summary}") from error


def _read_config(path: Path) -> Mapping[str, Any]:
    if not (path / CONFIG_FILE).is_file():
        raise ValueError(f"{path} has no {CONFIG_FILE}; it is not a checkpoint folder")
    try:
        document = json.loads((path / CONFIG_FILE).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path / CONFIG_FILE} is not JSON: {error}") from error
    if not isinstance(document, Mapping) or document.get("format") != FORMAT:
        raise ValueError(f"{path / CONFIG_FILE} does not describe a subtone checkpoint")
    if document.get("version") != VERSION:
        raise ValueError(
            f"{path} is a checkpoint of version {document.get('version')}; this subtone reads {VERSION}"
        )
    return document


def _describe(name: str, quantization: Quantization) -> dict[str, Any]:
    weight, clip = quantization.weights[name], quantization.activation_clips.get(name)
    return {
        "shape": list(weight.shape),
        "bits": weight.bits,
        "num_levels": weight.num_levels,
        "activation_bits": quantization.activation_bits[name],
        **({} if clip is None else {"activation_clip": clip}),
    }


def _parts(weight: QTensor) -> dict[str, NDArray]:
    parts = {"codes": weight.codes, "scale": weight.scale, "zero_point": weight.zero_point}
    return parts if weight.codebook is None else parts | {"codebook": weight.codebook}


def _take_quantization(document: Mapping[str, Any], state: dict[str, torch.Tensor]) -> Quantization | None:
    """The quantization in `document`, its parts taken out of `state`."""
    if "quantized" not in document:
        return None
    weights, shifts, activation_bits, clips = {}, {}, {}, {}
    for name, entry in document["quantized"].items():
        parts = {part: state.pop(f"{name}.{part}").numpy() for part in ("codes", "scale", "zero_point")}
        codebook = state.pop(f"{name}.codebook", None)
        shift = state.pop(f"{name}.bias_shift", None)
        weights[name] = QTensor(
            **parts,
            shape=tuple(entry["shape"]),
            bits=entry["bits"],
            num_levels=entry["num_levels"],
            codebook=None if codebook is None else codebook.numpy(),
        )
        activation_bits[name] = entry["activation_bits"]
        if shift is not None:
            shifts[name] = shift.numpy()
        if "activation_clip" in entry:
            clips[name] = entry["activation_clip"]
    return Quantization(
        weights=weights,
        activation_bits=activation_bits,
        bias_shifts=shifts,
        activation_clips=clips,
        ranges={name: (float(low), float(high)) for name, (low, high) in document.get("ranges", {}).items()},
        program_digest=str(document.get("program_digest", "")),
        recipe=document["recipe"],
    )
