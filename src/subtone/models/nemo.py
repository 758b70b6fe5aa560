"""NeMo's `.nemo` files: a tar of `model_config.yaml` and `model_weights.ckpt`.

CTC models are read whose encoder is a ConvASREncoder (QuartzNet, Jasper) or a ConformerEncoder. What we
would compute otherwise than NeMo is refused: each section's keys are a closed list (`nemo_keys`), and
no weight of the encoder or decoder may be left over (`nemo_archive`). One file a family says what its
keys mean and where its weights lie (`nemo_quartznet`, `nemo_conformer`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from subtone.models.conformer import ConformerCtc
from subtone.models.nemo_archive import fill, read_nemo
from subtone.models.nemo_conformer import conformer_config, conformer_places
from subtone.models.nemo_keys import Keys, section_of, take
from subtone.models.nemo_quartznet import quartznet_config, quartznet_places
from subtone.models.quartznet import QuartzNet
from subtone.speech.features import FrontEnd
from subtone.speech.text import CharTokenizer

__all__ = ["load_nemo", "network_from_nemo", "read_nemo"]

TABLE_TOLERANCE = 1e-6
"""How far a file's own window and mel filters may lie from ours: float32 rounding of other formulas."""

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


def load_nemo(path: Path) -> tuple[QuartzNet | ConformerCtc, FrontEnd, CharTokenizer]:
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


def network_from_nemo(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], path: Path
) -> QuartzNet | ConformerCtc:
    """The network with the file's weights, none lacking and none left over, in eval mode.

    It is a Conformer if its `encoder` has a `d_model`. That of a model of word pieces is read too.
    """
    section = section_of(config, "encoder", path)
    num_outputs = _num_outputs(config, path)
    if isinstance(section, Mapping) and "d_model" in section:
        conformer = ConformerCtc(conformer_config(section, num_outputs, path))
        fill(conformer, list(conformer_places(conformer)), weights, path)
        return conformer.eval()
    quartznet = QuartzNet(quartznet_config(section, num_outputs, path))
    fill(quartznet, list(quartznet_places(quartznet)), weights, path)
    return quartznet.eval()


def _num_outputs(config: Mapping[str, Any], path: Path) -> int:
    """Labels, or word pieces, and the blank."""
    pieces = _pieces(config)
    return (_tokenizer(config, path).blank_index if pieces is None else len(pieces)) + 1


def _pieces(config: Mapping[str, Any]) -> list | None:
    """The word pieces of a model that has a list of them instead of characters."""
    decoder = config.get("decoder")
    pieces = decoder.get("vocabulary") if isinstance(decoder, Mapping) else None
    return pieces if "labels" not in config and isinstance(pieces, list) and pieces else None


def _tokenizer(config: Mapping[str, Any], path: Path) -> CharTokenizer:
    pieces = _pieces(config)
    if pieces is not None:
        raise ValueError(
            f"{path}: decoder.vocabulary has {len(pieces)} word pieces, which cannot be spelt yet; "
            "network_from_nemo reads the network alone"
        )
    labels = section_of(config, "labels", path)
    if not isinstance(labels, list):
        raise ValueError(f"{path}: labels={labels!r:.80} is not a list of characters")
    try:
        return CharTokenizer(labels=tuple(labels))
    except ValueError as error:
        raise ValueError(f"{path}: labels: {error}") from error


def _front_end(config: Mapping[str, Any], weights: Mapping[str, Tensor], path: Path) -> FrontEnd:
    """The preprocessor in our units; the file's own window and mel filters must be ours."""
    taken = take(section_of(config, "preprocessor", path), PREPROCESSOR, "preprocessor", path)
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
