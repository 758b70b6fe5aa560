"""Which utterances come when: each once a pass, in the order that the seed and the number of the epoch say."""

from __future__ import annotations

from pathlib import Path

import pytest

from subtone.speech.data import Utterance
from subtone.train.data import cuts_of
from subtone.train.epochs import Epochs


@pytest.fixture(scope="module")
def cuts():
    return cuts_of(
        [
            Utterance(audio_path=Path(f"{index}.wav"), duration_s=1 + index % 7, text="a", speaker="s")
            for index in range(60)
        ],
        rate_hz=16000,
    )


def drawn(epochs: Epochs, number: int) -> list[list[str]]:
    epochs.set_epoch(number)
    return [[cut.id for cut in batch] for batch in epochs]


def flat(batches: list[list[str]]) -> list[str]:
    return [name for batch in batches for name in batch]


@pytest.mark.parametrize("epoch_s", [None, 1000.0, 60.0, 11.0])
def test_each_utterance_comes_once_a_pass(cuts, epoch_s):
    epochs = Epochs(cuts, batch_s=15.0, epoch_s=epoch_s, seed=3, is_shuffled=True)
    total_s = sum(cut.duration for cut in cuts)
    assert epochs.epochs_per_pass == (max(1, round(total_s / epoch_s)) if epoch_s else 1)
    for first in (0, epochs.epochs_per_pass):
        names = [
            name
            for epoch in range(first, first + epochs.epochs_per_pass)
            for name in flat(drawn(epochs, epoch))
        ]
        assert sorted(names) == sorted(cut.id for cut in cuts)


def test_batches_hold_their_seconds_and_like_lengths(cuts):
    lengths = {cut.id: cut.duration for cut in cuts}
    for batch in drawn(Epochs(cuts, batch_s=15.0, epoch_s=60.0, seed=3, is_shuffled=True), 1):
        assert max(lengths[name] for name in batch) * len(batch) <= 15.0


def test_an_epoch_follows_from_its_number_and_the_seed(cuts):
    one, same, other = (
        Epochs(cuts, batch_s=15.0, epoch_s=60.0, seed=seed, is_shuffled=True) for seed in (3, 3, 4)
    )
    drawn(one, 0)  # what came before does not matter
    assert drawn(one, 2) == drawn(same, 2)
    assert sorted(flat(drawn(one, 2))) != sorted(flat(drawn(other, 2)))
    assert sorted(flat(drawn(one, 0))) != sorted(flat(drawn(one, one.epochs_per_pass)))
