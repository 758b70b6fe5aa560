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


@pytest.mark.parametrize("epoch_s", [None, 60.0])
def test_what_is_not_shuffled_comes_alike_in_every_pass(cuts, epoch_s):
    epochs = Epochs(cuts, batch_s=15.0, epoch_s=epoch_s, seed=3, is_shuffled=False)
    count, names = epochs.epochs_per_pass, [cut.id for cut in cuts]
    for part in range(count):
        once = drawn(epochs, part)
        assert drawn(epochs, part + count) == once
        assert sorted(flat(once), key=names.index) == names[part::count]


def test_an_utterance_longer_than_a_batch_is_named(cuts):
    Epochs(cuts, batch_s=7.0, epoch_s=None, seed=3, is_shuffled=True)
    message = (
        r"^6.wav lasts 7.00 s as it is heard, longer than a batch of batch_s=6.9; raise batch_s, or leave"
    )
    with pytest.raises(ValueError, match=message):
        Epochs(cuts, batch_s=6.9, epoch_s=None, seed=3, is_shuffled=True)


def test_epochs_without_utterances_are_refused(cuts):
    total_s = sum(cut.duration for cut in cuts)
    least = Epochs(cuts, batch_s=7.0, epoch_s=total_s / 60, seed=3, is_shuffled=True)
    assert all(drawn(least, epoch) for epoch in range(60))
    message = (
        rf"^epoch_s=1.0 makes {total_s:.0f} epochs of 60 utterances, .* use their mean of 3.90 s, or more$"
    )
    with pytest.raises(ValueError, match=message):
        Epochs(cuts, batch_s=7.0, epoch_s=1.0, seed=3, is_shuffled=True)


def test_an_epoch_follows_from_its_number_and_the_seed(cuts):
    one, same, other = (
        Epochs(cuts, batch_s=15.0, epoch_s=60.0, seed=seed, is_shuffled=True) for seed in (3, 3, 4)
    )
    drawn(one, 0)  # what came before does not matter
    assert drawn(one, 2) == drawn(same, 2)
    assert sorted(flat(drawn(one, 2))) != sorted(flat(drawn(other, 2)))
    assert sorted(flat(drawn(one, 0))) != sorted(flat(drawn(one, one.epochs_per_pass)))
