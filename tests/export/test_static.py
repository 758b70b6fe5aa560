"""A recipe's integer-only checkpoint, kept, packed and heard: a CTC network, a transducer; what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.models.transducer_variants import CASCADED, FEATURES, TRANSDUCERS, random_network
from torch import nn

from subtone.export.package import package
from subtone.export.static import calibrated
from subtone.models.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from subtone.pack import read_packed, write_packed
from subtone.quantize.apply import quantize_checkpoint
from subtone.quantize.rules import Recipe
from subtone.quantize.static import IntegerSettings
from subtone.runtime.session import Session
from subtone.speech.features import KaldiFbank
from subtone.speech.text import CharTokenizer

RECIPE = Recipe.from_toml(
    'name = "r"\nmethod = "linear"\n[integer]\nfeatures = "recordings"\n[[rules]]\nbits = 8\n'
)
FRONT_END = KaldiFbank(num_mels=FEATURES)


def checkpoint_of(network: nn.Module) -> Checkpoint:
    return Checkpoint(network=network, front_end=FRONT_END, tokenizer=CharTokenizer(tuple("abcdefgh")))


def sound(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, 4000).astype(np.float32)


def made_of(checkpoint: Checkpoint) -> Checkpoint:
    settings = IntegerSettings.of(RECIPE)
    assert settings is not None
    examples = [FRONT_END(sound(seed)) for seed in range(3)]
    return calibrated(quantize_checkpoint(checkpoint, RECIPE), settings, examples)


@pytest.mark.parametrize("name", ["lstm", "conformer"])
def test_a_transducer_loses_its_floats_and_says_what_it_said(name: str, tmp_path: Path) -> None:
    source = checkpoint_of(random_network(TRANSDUCERS[name]))
    save_checkpoint(tmp_path / "q", made_of(source))
    write_packed(tmp_path / "q.subtone", package(load_checkpoint(tmp_path / "q"), name="q"))
    model = read_packed(tmp_path / "q.subtone")
    assert {"encoder", *model.parts} == {"encoder", "predictor", "joiner"}
    for program in model.programs:
        assert program.float_parts(model.constants) == []
    packed = Session.load(tmp_path / "q.subtone").recognizer
    whole = [packed.hear(sound(seed)) for seed in range(4)]
    numpy = Session.load(tmp_path / "q.subtone", engine="numpy").recognizer
    assert [numpy.hear(sound(seed)) for seed in range(1)] == whole[:1]
    # Its labels are a random network's, each near to others: most of what is said, not all, stays.
    said = [(ours, source.recognizer().hear(sound(seed))) for seed, ours in enumerate(whole)]
    alike = sum(one == other for ours, theirs in said for one, other in zip(ours, theirs, strict=False))
    assert alike >= 0.6 * sum(max(map(len, pair)) for pair in said)
    assert any(theirs for _, theirs in said)


def test_an_integer_only_transducer_streams_as_it_hears_the_whole(tmp_path: Path) -> None:
    packed = Session.of(package(made_of(checkpoint_of(random_network(TRANSDUCERS["lstm"]))), name="q"))
    for seed in range(3):
        listener = packed.recognizer.listen()
        for chunk in np.array_split(sound(seed), [100, 1000, 1001, 3000]):
            listener.push(chunk)
        assert listener.finish() == packed.recognizer.hear(sound(seed))


def test_a_model_that_was_not_calibrated_is_not_packed_as_floats() -> None:
    checkpoint = quantize_checkpoint(checkpoint_of(random_network(TRANSDUCERS["lstm"])), RECIPE)
    with pytest.raises(
        ValueError, match=r"recipe r has \[integer\], and the model was not calibrated; use subtone"
    ):
        package(checkpoint, name="q")


def test_a_cascade_is_refused() -> None:
    with pytest.raises(ValueError, match="a cascade of two passes has no integer-only form yet; remove"):
        made_of(checkpoint_of(random_network(CASCADED)))


def test_what_has_no_integer_form_is_told_when_it_is_calibrated() -> None:
    with pytest.raises(
        ValueError, match=r"encoder: op \d+ \(.*\) is a SwitchedLstm, which has no integer form"
    ):
        made_of(checkpoint_of(random_network(TRANSDUCERS["bifocal"])))


def test_calibration_moves_nothing_in_the_checkpoint_it_is_given() -> None:
    source = checkpoint_of(random_network(TRANSDUCERS["conformer"]))
    before = {name: value.clone() for name, value in source.network.state_dict().items()}
    made_of(source)
    assert all(torch.equal(value, before[name]) for name, value in source.network.state_dict().items())
