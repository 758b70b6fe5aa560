"""What zoo.py hears with: presets of random weights, and how far a packed file lies from its torch twin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from subtone.models import TransducerNetwork, build, is_transducer, preset
from subtone.models.cascaded import Cascaded
from subtone.models.checkpoints import Checkpoint, load_checkpoint
from subtone.models.hearing import encoded
from subtone.runtime.engine import load_engine
from subtone.runtime.session import Session
from subtone.speech.fbank import KaldiFbank
from subtone.speech.features import FrontEnd
from subtone.speech.pieces import SPACE, PieceTokenizer

FRONT_ENDS: dict[int, Any] = {
    64: FrontEnd(),
    80: KaldiFbank(),
    192: KaldiFbank(num_mels=64, stack=3, stride=3),
    512: KaldiFbank(num_mels=128, stack=4, stride=3, fft_size=1024),
}
"""Width of a frame -> what makes it of sound."""
NORM_BIAS = 2.0
"""Of BatchNorms, in their deviations: most values pass the ReLU behind. With 0 a random network amplifies what enters
by some 1.2 a layer: in QuartzNet15x5 the last bit of a float became 5 % of the logits."""
TRAINED = {"quartznet15x5": "models/quartznet15x5-en.nemo"}
"""Preset -> where trained weights of it lie."""
PATH_FRAMES = 100
"""Frames of the encoder that the greedy path of the comparison crosses."""


class Heard(nn.Module):
    """Features (B, F, T) to the rows that are compared and timed: logits, or the (last) joiner's frames."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if is_transducer(self.network):
            return encoded(self.network, features)
        return self.network(features)[0]


def checkpoint_of(name: str, features: np.ndarray, *, seed: int, shared: Path | None = None) -> Checkpoint:
    """Preset `name`, its weights drawn, its BatchNorms' statistics those of `features` (T, F); or trained, if `shared`
    has it."""
    if shared and name in TRAINED and (shared / TRAINED[name]).exists():
        return load_checkpoint(shared / TRAINED[name])
    config = preset(name)
    torch.manual_seed(seed)
    network = build(config.to_json())
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    network.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        nn.init.constant_(norm.bias, NORM_BIAS)
        norm.momentum = 1.0
        norm.train()
    if norms:
        with torch.inference_mode():
            given = torch.from_numpy(features).T[None]
            encoded(network, given) if is_transducer(network) else network(given)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return Checkpoint(
        network=network.eval(),
        front_end=FRONT_ENDS[config.num_features],
        tokenizer=pieces(config.num_outputs - 1),
    )


def pieces(count: int) -> PieceTokenizer:
    """As many word pieces, of up to three letters: what a header must hold of a vocabulary."""
    letters = [SPACE, *"abcdefghijklmnopqrstuvwxyz'"]
    labels = [*letters]
    for length in (2, 3):
        parts = [""]
        for _ in range(length):
            parts = [part + letter for part in parts for letter in letters]
        labels += parts
    return PieceTokenizer(tuple(labels[:count]), tuple(-float(index) for index in range(count)))


def last_parts(network: TransducerNetwork) -> tuple[nn.Module, nn.Module, str]:
    """The (last) predictor and joiner as a device runs them, and what stands behind their names."""
    entries, last = network.entries(), "2" if isinstance(network, Cascaded) else ""
    return entries[f"predictor{last}"], entries[f"joiner{last}"], last


@torch.inference_mode()
def greedy_labels(network: TransducerNetwork, rows: np.ndarray) -> list[int]:
    """The likeliest label, not the blank, at each of the first frames, given those before: a path of one label a
    frame, which a network of random weights would leave too soon or never."""
    predictor, joiner, _ = last_parts(network)
    labels = [network.blank_index]
    for row in rows[:PATH_FRAMES:4]:
        predicted = predictor(torch.tensor([labels]))[:, -1:]
        logits = joiner(torch.from_numpy(row)[None, None], predicted)[0, 0]
        labels.append(int(logits[:-1].argmax()))
    return labels


def decoder_agreement(
    session: Session, network: TransducerNetwork, found: np.ndarray, expected: np.ndarray, labels: list[int]
) -> dict[str, float]:
    """Packed against torch along the path of `labels`: each label's row with the frame that gave the next one."""
    predictor, joiner, last = last_parts(network)
    frames = np.arange(0, len(expected[:PATH_FRAMES]), 4)
    with torch.inference_mode():
        rows = predictor(torch.tensor([labels[: len(frames)]]))
        theirs = joiner(torch.from_numpy(expected[frames])[None], rows)[0].numpy()
    model = session.model
    of = {
        part: load_engine(model.parts[f"{part}{last}"], model.constants, threads=1)
        for part in ("predictor", "joiner")
    }
    predicted = of["predictor"].run(np.array(labels[: len(frames)], np.float32)[:, None])
    return rows_agreement(of["joiner"].run(np.ascontiguousarray(found[frames]), predicted), theirs)


def rows_agreement(found: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """The share of rows whose largest column is the same, and the largest difference over the largest value."""
    assert found.shape == expected.shape, (found.shape, expected.shape)
    return {
        "same_argmax": float((found.argmax(1) == expected.argmax(1)).mean()),
        "largest_difference": float(np.abs(found - expected).max() / np.abs(expected).max()),
    }
