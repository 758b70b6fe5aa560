"""Which utterances come when: each once a pass, in the order that the seed and the number of the epoch say."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from lhotse import CutSet
from lhotse.cut import MixedCut

from subtone.speech.data import Utterance
from subtone.train.data import cuts_of, parts_of
from subtone.train.epochs import PAUSE_S, Epochs, chains_of


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
    message = rf"^epoch_s=1.0 makes {total_s:.0f} epochs of 60 utterances, and some would hold none; use 3.90 s, or more$"
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


# Chains -----------------------------------------------------------------------------------


def joined_epochs(cuts: CutSet, *, joined: int = 4, epoch_s: float | None = None, is_shuffled: bool = True):
    return Epochs(cuts, batch_s=15.0, epoch_s=epoch_s, seed=3, is_shuffled=is_shuffled, joined=joined)


@pytest.mark.parametrize("epoch_s", [None, 60.0])
def test_each_utterance_comes_as_it_is_and_once_more_in_a_chain(cuts, epoch_s):
    epochs = joined_epochs(cuts, epoch_s=epoch_s)
    for first in (0, epochs.epochs_per_pass):
        heard = []
        for epoch in range(first, first + epochs.epochs_per_pass):
            epochs.set_epoch(epoch)
            heard += [cut for batch in epochs for cut in batch]
        parts = Counter(part.id for cut in heard for part in parts_of(cut))
        assert parts == {cut.id: 2 for cut in cuts}
        single = {cut.id for cut in heard if not isinstance(cut, MixedCut)}
        assert single == {cut.id for cut in cuts}
        assert {len(parts_of(cut)) for cut in heard} == {1, 2, 3, 4}


def test_one_joined_is_no_chain(cuts):
    plain = Epochs(cuts, batch_s=15.0, epoch_s=None, seed=3, is_shuffled=True)
    assert drawn(joined_epochs(cuts, joined=1), 1) == drawn(plain, 1)


def test_a_pass_joins_others_than_the_last_and_the_same_again_by_its_number(cuts):
    first, second, again = (drawn(joined_epochs(cuts), number) for number in (0, 1, 0))
    assert first == again
    chains = [{name for name in flat(batches) if "+" in name} for batches in (first, second)]
    assert not chains[0] & chains[1]
    kept = joined_epochs(cuts, is_shuffled=False)
    assert sorted(flat(drawn(kept, 0))) == sorted(flat(drawn(kept, 1)))


def test_utterances_of_a_chain_follow_each_other_after_a_pause(cuts):
    *chains, last = chains_of(list(cuts), joined=3, batch_s=100.0, rng=random.Random(0))
    assert len(parts_of(last)) < 3  # what is left
    for chain in chains:
        assert isinstance(chain, MixedCut)
        assert chain.tracks[0].offset == 0
        for one, other in pairwise(chain.tracks):
            assert PAUSE_S[0] <= other.offset - (one.offset + one.cut.duration) <= PAUSE_S[1]
        assert chain.duration == pytest.approx(chain.tracks[-1].offset + chain.tracks[-1].cut.duration)
        assert chain.id == "+".join(part.id for part in parts_of(chain))
    assert {len(chain.tracks) for chain in chains} == {2, 3}


def test_a_chain_fits_a_batch(cuts):
    chains = chains_of(list(cuts), joined=9, batch_s=11.5, rng=random.Random(0))
    assert max(chain.duration for chain in chains) <= 11.5
    sizes = Counter(len(parts_of(chain)) for chain in chains)
    assert max(sizes) > 2
    assert sum(size * count for size, count in sizes.items()) == 60
    # In 7.05 s what lasts 7 s fits with nothing, the shortest pause included, and stays what it was.
    alone = chains_of(list(cuts), joined=2, batch_s=7.05, rng=random.Random(0))
    longest = [cut for cut in cuts if cut.duration == 7]
    assert all(any(chain is cut for chain in alone) for cut in longest)


def test_a_chain_has_one_speed():
    both = cuts_of(
        [
            Utterance(audio_path=Path(f"{index}.wav"), duration_s=2.0, text="a", speaker="s")
            for index in range(9)
        ],
        rate_hz=16000,
        speeds=(0.8, 1.0),
    )
    chains = chains_of(list(both), joined=4, batch_s=60.0, rng=random.Random(0))
    assert any(isinstance(chain, MixedCut) for chain in chains)
    for chain in chains:
        assert len({part.custom["speed"] for part in parts_of(chain)}) == 1


def test_epochs_too_short_for_the_utterances_of_chains_are_refused(cuts):
    epochs = joined_epochs(cuts)
    epochs.set_epoch(0)
    total_s = sum(cut.duration for batch in epochs for cut in batch)
    message = (
        rf"^epoch_s=2.0 makes {total_s / 2:.0f} epochs of 60 utterances, .* use {total_s / 60:.2f} s, or"
    )
    with pytest.raises(ValueError, match=message):
        joined_epochs(cuts, epoch_s=2.0)
    assert all(
        drawn(joined_epochs(cuts, epoch_s=round(total_s / 60 + 0.005, 2)), epoch) for epoch in range(120)
    )
