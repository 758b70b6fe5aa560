"""Batches: every utterance once an epoch, features as they are served, padding that says so."""

from __future__ import annotations

import dataclasses
import re
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
from lhotse import CutSet
from lhotse.cut import MixedCut, MixTrack

from subtone.models import build, preset
from subtone.speech.audio import AudioError, read_audio
from subtone.speech.data import Utterance, read_manifest
from subtone.speech.fbank import KaldiFbank
from subtone.speech.features import FrontEnd
from subtone.speech.normalize import CausalNormalize
from subtone.speech.synth import Corpus
from subtone.train import data
from subtone.train.data import FeatureDataset, check_utterances, cuts_of, frames_needed, loader
from subtone.train.fitting import ENGLISH


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


def test_a_batch_is_as_wide_as_the_rows_of_a_front_end_that_stacks(utterances) -> None:
    front_end = KaldiFbank(num_mels=40, stack=3, stride=3)
    cuts = cuts_of(utterances[:2], rate_hz=16000)
    batch = FeatureDataset(front_end, ENGLISH)[cuts]
    rows = [front_end(read_audio(utterance.audio_path)) for utterance in utterances[:2]]
    assert batch.features.shape == (2, 120, max(map(len, rows)))
    assert np.array_equal(batch.features[0, :, : len(rows[0])].T.numpy(), rows[0])


def test_threads_that_ask_for_one_cut_keep_and_count_it_once(utterances) -> None:
    both = threading.Barrier(2, timeout=60)

    class Meeting(FrontEnd):
        def __call__(self, samples: np.ndarray) -> np.ndarray:
            both.wait()  # neither finds the other's features
            return super().__call__(samples)

    dataset = FeatureDataset(Meeting(), ENGLISH)
    (cut,) = cuts_of(utterances[:1], rate_hz=16000)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(dataset.features, [cut, cut])
    assert np.array_equal(first, second)
    assert dataset._kept_bytes == first.nbytes


# Texts -----------------------------------------------------------------------------------


def test_texts_are_learnt_as_they_are_scored(utterances) -> None:
    written = dataclasses.replace(utterances[0], text="It\u2019s FIVE o'clock,  Ren\u00e9e!")
    (batch,) = batches([written])
    assert tuple(batch.texts) == ("it's five o'clock renee",)
    assert ENGLISH.decode(batch.labels.tolist()) == batch.texts[0]
    check([written])


def test_a_text_without_labels_is_refused_by_its_file(utterances) -> None:
    where = re.escape(str(utterances[0].audio_path))
    digits = dataclasses.replace(utterances[0], text="at 5")
    with pytest.raises(ValueError, match=f"^{where}: text='at 5' holds digits, which the model cannot spell"):
        check([digits])
    with pytest.raises(ValueError, match=f"^{where}: text='at 5' holds digits, which the model cannot spell"):
        batches([digits])
    for text in ("", "\u4e94", "?!"):
        with pytest.raises(
            ValueError, match=f"^{where}: no label for any character of text={text!r}".replace("?", r"\?")
        ):
            check([dataclasses.replace(utterances[0], text=text)])


def check(utterances: list[Utterance], *, frames_per_step: int = 1, fastest: float = 1.0) -> None:
    check_utterances("train", utterances, FrontEnd(), ENGLISH, frames_per_step, fastest=fastest)


# Frames for CTC --------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [[1, 2, 3], [1, 1], [1, 1, 1, 2, 2], [5] * 7])
def test_frames_needed_is_where_the_loss_of_ctc_becomes_infinite(labels: list[int]) -> None:
    for steps, is_finite in ((frames_needed(labels), True), (frames_needed(labels) - 1, False)):
        logits = torch.zeros(steps, 1, 10).log_softmax(dim=2)
        lengths = torch.tensor([steps]), torch.tensor([len(labels)])
        loss = torch.nn.functional.ctc_loss(logits, torch.tensor(labels), *lengths, blank=9)
        assert bool(torch.isfinite(loss)) == is_finite


def sound_of(path: Path, num_frames: int) -> Utterance:
    """An utterance whose manifest says 3 s, whose file holds `num_frames`."""
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 160 * num_frames)
    soundfile.write(path, noise, 16000)
    return Utterance(audio_path=path, duration_s=3.0, text="Too, soon", speaker="me")


def test_a_sound_shorter_than_its_manifest_says_is_refused_by_name(tmp_path: Path) -> None:
    network = build(preset("quartznet-demo").to_json())
    assert network.frames_per_step == 3
    dataset = FeatureDataset(FrontEnd(), ENGLISH, frames_per_step=network.frames_per_step)
    needed = frames_needed(ENGLISH.encode("too soon"))
    assert needed == 10  # oo and oo: a blank each
    enough, short = (
        sound_of(tmp_path / f"{num_frames}.flac", num_frames)
        for num_frames in (3 * needed - 2, 3 * needed - 3)
    )
    check([enough, short], frames_per_step=network.frames_per_step)  # the manifest is believed
    batch = dataset[cuts_of([enough], rate_hz=16000)]
    assert int(network(batch.features, batch.lengths)[1]) == needed  # the least that has a finite loss
    message = (
        f"{short.audio_path}: its 0.27 s of sound (by its manifest 3.00) give 9 frames for 10 labels of "
        "'Too, soon'; copy the file again or leave it out"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        dataset[cuts_of([enough, short], rate_hz=16000)]


def test_a_speed_that_leaves_too_few_frames_is_refused(tmp_path: Path) -> None:
    dataset = FeatureDataset(FrontEnd(), ENGLISH)
    utterance = sound_of(tmp_path / "a.flac", 10)
    dataset[cuts_of([utterance], rate_hz=16000)]
    with pytest.raises(
        ValueError, match=r"its 0.10 s of sound \(by its manifest 3.00\) give 5 frames for 10"
    ):
        dataset[cuts_of([utterance], rate_hz=16000, speeds=[2.0])]


def test_a_manifest_with_too_little_time_is_refused_before_any_file_is_read(utterances) -> None:
    hurried = dataclasses.replace(
        utterances[0], duration_s=0.27, audio_path=Path("/no/such.flac"), text="too soon"
    )
    check([hurried], frames_per_step=2)
    check(
        [dataclasses.replace(hurried, duration_s=0.28)], frames_per_step=3
    )  # 28 frames: the tenth row is begun
    with pytest.raises(
        ValueError, match=r"/no/such.flac has 9 frames for 10 labels of 'too soon'; leave it out of train"
    ):
        check([hurried], frames_per_step=3)
    with pytest.raises(ValueError, match="has 7 frames for 10 labels"):
        check([hurried], frames_per_step=2, fastest=2.0)
    with pytest.raises(ValueError, match="train has no utterances; give at least one"):
        check([])


def test_sound_that_cannot_be_read_is_named(utterances, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.flac"
    content = utterances[0].audio_path.read_bytes()
    for kept, complaint in ((len(content) // 2, "is damaged"), (20, "is not sound that can be read here")):
        damaged.write_bytes(content[:kept])
        broken = dataclasses.replace(utterances[0], audio_path=damaged)
        with pytest.raises(AudioError, match=f"^{re.escape(str(damaged))}: {complaint}"):
            batches([*utterances[1:3], broken])


# Chains ----------------------------------------------------------------------------------


def chain_of(utterances: list[Utterance], *offsets_s: float, speed: float = 1.0) -> CutSet:
    cuts = cuts_of(utterances, rate_hz=16000, speeds=[speed])
    tracks = [MixTrack(cut=cut, offset=offset) for cut, offset in zip(cuts, offsets_s, strict=True)]
    return CutSet.from_cuts([MixedCut(id="chain", tracks=tracks)])


@pytest.mark.parametrize("speed", [1.0, 1.25])
def test_a_chain_is_heard_as_one_sound_with_silence_between(utterances, speed: float) -> None:
    front_end = KaldiFbank(num_mels=40, stack=3, stride=3, normalize=CausalNormalize())
    first, second = (read_audio(one.audio_path) for one in utterances[:2])
    if speed != 1:
        first, second = (soxr.resample(samples, speed * 16000, 16000) for samples in (first, second))
    pause = np.zeros(3200, np.float32)
    chain = chain_of(utterances[:2], 0.0, len(first) / 16000 + 0.2, speed=speed)
    dataset = FeatureDataset(front_end, ENGLISH)
    batch = dataset[chain]
    expected = front_end(np.concatenate([first, pause, second]))
    assert np.array_equal(batch.features[0].T.numpy(), expected)
    assert batch.lengths.tolist() == [len(expected)]
    assert batch.texts == (f"{utterances[0].text} {utterances[1].text}",)
    assert ENGLISH.decode(batch.labels.tolist()) == batch.texts[0]
    assert not dataset._kept  # the next pass joins others


def test_a_chain_keeps_its_pauses_where_a_file_is_shorter_than_its_manifest(tmp_path: Path) -> None:
    short = sound_of(tmp_path / "a.flac", 200)
    batch = FeatureDataset(FrontEnd(), ENGLISH)[chain_of([short, short], 0.0, 3.5)]
    assert int(batch.lengths) == FrontEnd().num_frames(160 * (200 + 50 + 200))


def test_a_chain_with_too_few_frames_names_its_files(tmp_path: Path) -> None:
    one, other = (sound_of(tmp_path / f"{name}.flac", 5) for name in "ab")
    message = (
        f"{one.audio_path} + {other.audio_path}: its 0.20 s of sound (by its manifest 6.10) give 20 frames for "
        "21 labels of 'Too, soon Too, soon'; copy the file again or leave it out"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        FeatureDataset(FrontEnd(), ENGLISH)[chain_of([one, other], 0.0, 3.1)]


def test_what_is_wrong_with_a_part_of_a_chain_names_its_file(utterances, tmp_path: Path) -> None:
    absent = dataclasses.replace(utterances[1], audio_path=tmp_path / "absent.flac")
    digits = dataclasses.replace(utterances[1], text="at 5")
    dataset = FeatureDataset(FrontEnd(), ENGLISH)
    with pytest.raises(AudioError, match=f"^{re.escape(str(absent.audio_path))}"):
        dataset[chain_of([utterances[0], absent], 0.0, 9.0)]
    with pytest.raises(ValueError, match=f"^{re.escape(str(digits.audio_path))}: text='at 5' holds digits"):
        dataset[chain_of([utterances[0], digits], 0.0, 9.0)]


@pytest.mark.parametrize("is_shuffled", [False, True])
def test_batches_of_chains_hold_every_utterance_twice(utterances, is_shuffled: bool) -> None:
    cuts = cuts_of(utterances, rate_hz=16000)
    made = loader(
        cuts, FeatureDataset(FrontEnd(), ENGLISH), batch_s=9.0, seed=1, is_shuffled=is_shuffled, joined=3
    )
    texts = [text for batch in made for text in batch.texts]
    assert len(texts) < 2 * len(utterances)
    words = Counter(word for text in texts for word in text.split())
    assert words == Counter(word for one in utterances for _ in range(2) for word in one.text.split())
