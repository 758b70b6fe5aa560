"""Batches: every utterance once an epoch, features as they are served, padding that says so."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from subtone.speech.audio import read_audio
from subtone.speech.data import Utterance, read_manifest
from subtone.speech.features import FrontEnd
from subtone.speech.synth import Corpus
from subtone.train import data
from subtone.train.data import FeatureDataset, cuts_of, loader
from subtone.train.fit import ENGLISH


@pytest.fixture(scope="module")
def utterances(tiny_corpus: Corpus) -> list[Utterance]:
    return read_manifest(tiny_corpus.manifest("train"))


def batches(utterances: list[Utterance], *, epoch: int = 0, is_shuffled: bool = True, **options: tuple):
    cuts = cuts_of(utterances, rate_hz=16000, **options)
    made = loader(cuts, FeatureDataset(FrontEnd(), ENGLISH), batch_s=8.0, seed=1, is_shuffled=is_shuffled)
    made.sampler.set_epoch(epoch)
    return list(made)


@pytest.mark.parametrize("is_shuffled", [False, True])
@pytest.mark.parametrize("epoch", [0, 1])
def test_an_epoch_holds_every_utterance_once(utterances, epoch: int, is_shuffled: bool) -> None:
    heard = batches(utterances, epoch=epoch, is_shuffled=is_shuffled)
    assert len(heard) > 2
    texts = Counter(text for batch in heard for text in batch.texts)
    assert texts == Counter(utterance.text for utterance in utterances)


def test_another_epoch_comes_in_another_order(utterances) -> None:
    texts = [[batch.texts for batch in batches(utterances, epoch=epoch)] for epoch in (0, 1, 0)]
    assert texts[0] == texts[2] != texts[1]


def test_features_are_those_that_are_served_and_padding_is_zero(utterances) -> None:
    served = {
        (one.text, FrontEnd().num_frames(round(one.duration_s * 16000))): FrontEnd()(
            read_audio(one.audio_path)
        )
        for one in utterances
    }
    assert len(served) == len(utterances)  # so text and length together name one
    for batch in batches(utterances):
        assert batch.features.shape[2] == batch.lengths.max()
        starts = torch.cumsum(batch.label_lengths, 0) - batch.label_lengths
        for row, length, text, start, count in zip(
            batch.features, batch.lengths, batch.texts, starts, batch.label_lengths, strict=True
        ):
            assert np.array_equal(row[:, :length].T.numpy(), served[text, int(length)])
            assert not row[:, length:].any()
            assert ENGLISH.decode(batch.labels[start : start + count].tolist()) == text


def test_batches_hold_no_more_seconds_than_asked(utterances) -> None:
    for batch in batches(utterances):
        # The sampler counts the longest so far times the number; the last cut may lengthen it.
        assert batch.features.shape[0] * batch.features.shape[2] <= 1.5 * 800


def test_a_speed_changes_the_length_and_adds_an_utterance(utterances) -> None:
    one = utterances[:1]
    heard = batches(one, speeds=(0.8, 1.0, 1.25))
    lengths = sorted(int(length) for batch in heard for length in batch.lengths)
    frames = FrontEnd().num_frames(round(one[0].duration_s * 16000))
    expected = sorted(frames / speed for speed in (0.8, 1.0, 1.25))
    assert lengths == pytest.approx(expected, abs=1.5)  # rounded up to samples, then to frames


def test_features_are_computed_once_and_not_beyond_the_limit(utterances, monkeypatch) -> None:
    cuts = list(cuts_of(utterances[:2], rate_hz=16000))
    dataset = FeatureDataset(FrontEnd(), ENGLISH)
    first = dataset.features(cuts[0])
    assert dataset.features(cuts[0]) is first
    monkeypatch.setattr(data, "MAX_CACHE_BYTES", first.nbytes)
    assert dataset.features(cuts[1]) is not dataset.features(cuts[1])
