"""A packed predictor and joiner behave as a search expects."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.test_streaming_models import checkpoint_of, sound

from subtone.export.package import package
from subtone.models import build
from subtone.models.hearing import TorchTransducer
from subtone.pack import write_packed
from subtone.runtime.engine import load_engine
from subtone.runtime.session import Session
from subtone.runtime.transducer import PackedTransducer


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[PackedTransducer, TorchTransducer, Path]:
    checkpoint = checkpoint_of("s8bqat-m1")
    model = package(checkpoint, name="m")
    path = tmp_path_factory.mktemp("packed") / "m.subtone"
    write_packed(path, model)
    parts = {name: load_engine(part, model.constants, threads=1) for name, part in model.parts.items()}
    return PackedTransducer(parts["predictor"], parts["joiner"]), TorchTransducer.of(checkpoint.network), path


def test_it_says_what_torch_says_label_by_label_and_may_go_on_from_any_state(packed) -> None:
    """Float32 on both sides, two LSTMs of 8 units: sums in another order, far below 1e-5."""
    ours, theirs, _ = packed
    rng = np.random.default_rng(0)
    states = {(): (ours.start(), theirs.start())}
    for labels in [(8,), (8, 0), (8, 3), (8, 0, 5), (8, 3, 5), (8, 0, 0)]:
        before = states[labels[:-1]]
        row, mine = ours.predict(labels[-1], before[0])
        expected, other = theirs.predict(labels[-1], before[1])
        np.testing.assert_allclose(row, expected, rtol=0, atol=1e-5)
        states[labels] = mine, other
        frame = rng.normal(0, 1, row.shape).astype(np.float32)
        predicted = np.stack([row, -row])
        np.testing.assert_allclose(
            ours.join(frame, predicted), theirs.join(frame, predicted), rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("label", [-1, 9])
def test_a_label_outside_the_vocabulary_is_refused(packed, label: int) -> None:
    with pytest.raises(ValueError, match=rf"label={label} is outside the vocabulary; use 0 to 8"):
        packed[0].predict(label, packed[0].start())


def test_a_beam_hears_at_least_as_likely_words_as_the_greedy_search(packed) -> None:
    samples = sound(1.0)
    scores = []
    for beam in (0, 8):
        recognizer = Session.load(packed[2], threads=1, beam=beam).recognizer
        listener = recognizer.listen()
        listener.push(samples)
        listener.finish()
        scores.append(listener._best.score)
    assert scores[1] >= scores[0]


def test_a_long_stream_carries_no_more_than_a_short_one(packed) -> None:
    recognizer = Session.load(packed[2], threads=1).recognizer
    listener, chunk = recognizer.listen(), sound(0.1)
    sizes = []
    for _ in range(200):
        listener.push(chunk)
        sizes.append(listener._state.num_bytes)
    assert len(set(sizes[20:])) <= 4  # one for each place within a stack and a mel window
    assert max(sizes[100:]) == max(sizes[20:100])


def test_a_second_pass_that_needs_the_whole_utterance_hears_it_at_the_end(tmp_path: Path) -> None:
    """Its attention is unlimited: words of the first pass come meanwhile, and none of no sound."""
    checkpoint = checkpoint_of("cascaded")
    config = checkpoint.network.config
    encoder2 = dataclasses.replace(config.encoder2, left=-1, right=-1)
    torch.manual_seed(3)
    network = build(dataclasses.replace(config, encoder2=encoder2).to_json()).eval()
    path = tmp_path / "m.subtone"
    write_packed(path, package(dataclasses.replace(checkpoint, network=network), name="m"))
    recognizer = Session.load(path, threads=1).recognizer
    samples = sound(1.0)
    listener = recognizer.listen()
    for start in range(0, len(samples), 3000):
        listener.push(samples[start : start + 3000])
    assert listener.finish() == recognizer.hear(samples)
    assert recognizer.listen().finish() == ""
    search = recognizer.new_search()
    assert search.finish().labels == ()
