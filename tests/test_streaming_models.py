"""Every preset, narrowed, from torch to a packed file that streams: one transcript in torch, NumPy and C++."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from subtone.export.package import package
from subtone.models import MODELS, build
from subtone.models.bifocal import BifocalConfig
from subtone.models.cascaded import CascadedConfig
from subtone.models.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from subtone.models.conformer_config import ConformerConfig, ConformerCtcConfig
from subtone.models.lstm import LstmConfig
from subtone.models.transducer import TransducerConfig
from subtone.pack import read_packed, write_packed
from subtone.quantize import Recipe
from subtone.quantize.apply import quantize_checkpoint
from subtone.quantize.simulate import simulated
from subtone.runtime.engine import available_isas, load_engine
from subtone.runtime.session import Session
from subtone.speech.fbank import KaldiFbank
from subtone.speech.text import CharTokenizer

TOKENIZER = CharTokenizer(tuple(" abcdefg"))
RECIPES = Path(__file__).parents[1] / "recipes"
SAME_WHEN_NARROWED = {"s8bqat-m3", "conformer-transducer-m", "conformer-transducer-l"}
NAMES = [
    name for name in MODELS if not name.startswith(("quartznet", "jasper")) and name not in SAME_WHEN_NARROWED
]
STREAMS = {"s8bqat-m1", "bifocal", "conformer-transducer-gq", "cascaded", "conformer-ctc-demo"}


def narrowed(config: Any) -> Any:
    """The same network, a few units wide and two blocks deep, for 8 labels and the blank."""
    if isinstance(config, ConformerCtcConfig):
        return dataclasses.replace(config, encoder=narrowed_encoder(config.encoder), num_outputs=9)
    predictor = dataclasses.replace(config.predictor, embedding_width=6)
    if hasattr(predictor, "widths"):
        predictor = dataclasses.replace(predictor, widths=(8,) * len(predictor.widths))
    encoder = narrowed_encoder(config.encoder)
    changes = {"encoder": encoder, "predictor": predictor, "joint_width": 8, "num_outputs": 9}
    if isinstance(config, CascadedConfig):
        second = narrowed_encoder(config.encoder2)
        changes["encoder2"] = dataclasses.replace(second, num_features=encoder.width)
    return dataclasses.replace(config, **changes)


def narrowed_encoder(config: Any) -> Any:
    if isinstance(config, LstmConfig):
        return dataclasses.replace(config, num_features=12, widths=(8,) * len(config.widths))
    if isinstance(config, BifocalConfig):
        return dataclasses.replace(config, num_features=12, width=8, small_width=4)
    assert isinstance(config, ConformerConfig)
    sizes = {"width": 4 * config.heads, "num_blocks": 2, "feed_forward_width": 24, "kernel": 4}
    without = min(1, config.num_blocks_without_attention)
    contexts = {side: min(5, getattr(config, side)) for side in ("left", "right")}
    return dataclasses.replace(
        config, **sizes, **contexts, num_features=12, num_blocks_without_attention=without
    )


def network_of(name: str) -> torch.nn.Module:
    torch.manual_seed(3)
    config = MODELS[name]
    assert isinstance(config, TransducerConfig | CascadedConfig | ConformerCtcConfig)
    network = build(narrowed(config).to_json()).eval()
    with torch.no_grad():
        for value in network.parameters():  # fresh weights hardly listen
            value.mul_(2.0)
    return network


def checkpoint_of(name: str) -> Checkpoint:
    return Checkpoint(network=network_of(name), front_end=KaldiFbank(num_mels=12), tokenizer=TOKENIZER)


def sound(seconds: float) -> np.ndarray:
    rng = np.random.default_rng(5)
    return (rng.normal(0, 0.1, int(16000 * seconds)) * np.hanning(int(16000 * seconds))).astype(np.float32)


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_packed_and_hears_what_torch_hears(name: str, tmp_path: Path) -> None:
    """In float: as a folder of ours, in NumPy, in C++, and in C++ chunk by chunk."""
    save_checkpoint(tmp_path / "model", checkpoint_of(name))
    checkpoint, path = load_checkpoint(tmp_path / "model"), tmp_path / "m.subtone"
    write_packed(path, package(checkpoint, name=name))
    samples = sound(1.5)
    expected = checkpoint.recognizer().hear(samples)
    kinds = ("numpy", "native") if available_isas() else ("numpy",)
    for kind in kinds:
        recognizer = Session.load(path, engine=kind, threads=1).recognizer
        assert recognizer.hear(samples) == expected
    if name not in STREAMS:
        assert not getattr(recognizer, "can_stream", False)
        return
    assert recognizer.can_stream
    listener = recognizer.listen()
    for start in range(0, len(samples), 777):
        listener.push(samples[start : start + 777])
    assert listener.finish() == expected
    assert "".join(token.text for token in listener.tokens).split() == expected.split()


@pytest.mark.parametrize("recipe", ["ptq-w4"])
@pytest.mark.parametrize(
    "name", ["s8bqat-m1", "bifocal", "conformer-transducer-gq", "cascaded", "conformer-ctc-l"]
)
def test_a_quantized_preset_gives_the_same_bits_on_every_engine_and_nearly_those_of_torch(
    name: str, recipe: str, tmp_path: Path
) -> None:
    """Every product, LSTMs' and attention's projections too, in integers; rows of the encoder compared.

    Against torch with the same weights and rounded activations: a sum in another order moves an activation over
    a rounding border now and then, by one of 127 levels; a network of two blocks forgives that.
    """
    checkpoint = quantize_checkpoint(checkpoint_of(name), Recipe.load(RECIPES / f"{recipe}.toml"))
    path = tmp_path / "m.subtone"
    write_packed(path, package(checkpoint, name=name))
    model = read_packed(path)
    rng = np.random.default_rng(1)
    features = rng.normal(0, 1, (60, 12)).astype(np.float32)
    rows = load_engine(model.program, model.constants, kind="numpy").run(features)
    if available_isas():
        native = load_engine(model.program, model.constants, kind="native", threads=2)
        assert np.array_equal(native.run(features).view(np.int32), rows.view(np.int32))
    network = simulated(checkpoint).network
    with torch.inference_mode():
        heard = torch.from_numpy(features).T[None]
        entries = network.entries() if hasattr(network, "entries") else {"encoder": network}
        expected = entries["encoder"](heard)
    expected = (expected[0] if isinstance(expected, tuple) else expected)[0].numpy()
    assert rows.shape == expected.shape
    assert np.abs(rows - expected).mean() < 0.02 * np.abs(expected).max()
