"""The spoken corpus: disjoint parts, the same bits for a seed, whole or not there."""

from __future__ import annotations

import dataclasses
import itertools
import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from subtone.speech import synth
from subtone.speech.data import read_manifest
from subtone.speech.synth import SPLITS, VOICES, Corpus, make_corpus

PAIRS = list(itertools.combinations(SPLITS, 2))
COUNTS = {"num_train": 12, "num_dev": 3, "num_test": 5}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("synth") / "corpus", **COUNTS, seed=3)


def words_of(texts: set[str]) -> set[str]:
    return {word for text in texts for word in text.split()}


# Who and what ----------------------------------------------------------------------------


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_no_accent_and_no_variant_is_in_two_parts(one: str, other: str) -> None:
    for kind in ("accents", "variants"):
        mine, theirs = (set(getattr(VOICES[split], kind).split()) for split in (one, other))
        assert mine
        assert not mine & theirs


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_no_sentence_is_in_two_parts(one: str, other: str) -> None:
    planned = {split: {take.text for take in synth.plan(split, 400, seed=0)} for split in (one, other)}
    assert not planned[one] & planned[other]


@pytest.mark.parametrize("split", ["dev", "test"])
def test_every_word_that_is_tested_occurs_in_training(split: str) -> None:
    commands = {text for texts in synth.commands_of("train") for text in texts}
    tested = {text for texts in synth.commands_of(split) for text in texts}
    assert words_of(tested) <= words_of(commands) | set(synth.DIGITS)


def test_the_vocabulary_is_words_of_the_labels() -> None:
    words = synth.vocabulary()
    assert 60 <= len(words) <= 120
    assert words == sorted(set(words))
    assert set("".join(words)) <= set("abcdefghijklmnopqrstuvwxyz'")
    assert any("'" in word for word in words)


def test_no_voice_of_training_is_a_near_twin_of_one_that_is_tested() -> None:
    chosen = {variant for voices in VOICES.values() for variant in voices.variants.split()}
    assert not chosen & {"f5", "m3", "edward2", "mike2"}


def test_the_log_tells_how_the_voices_were_chosen() -> None:
    root = Path(__file__).parents[2]
    assert 'docs/lab-log.md, "the demo\'s corpus and training"' in Path(synth.__file__).read_text()
    log = (root / "docs" / "lab-log.md").read_text()
    entry = log.split("the demo's corpus and training\n")[1].split("\n## ")[0]
    assert "not chosen blind" in entry


def test_takes_stay_within_their_ranges_and_use_every_voice() -> None:
    takes = synth.plan("test", 2 * len(VOICES["test"].names()), seed=1)
    counts = [sum(take.voice == voice for take in takes) for voice in VOICES["test"].names()]
    assert counts == [2] * len(counts)
    for take in takes:
        assert synth.WORDS_PER_MINUTE[0] <= take.words_per_minute <= synth.WORDS_PER_MINUTE[1]
        assert synth.SNR_DB[0] <= take.snr_db <= synth.SNR_DB[1]
    assert {take.noise for take in takes} == set(synth.NOISES)


def test_every_voice_speaks() -> None:
    with synth.espeak.Espeak(seed=0) as voice_box:
        for voices in VOICES.values():
            for voice in voices.names():
                spoken = voice_box.say("one", voice=voice, words_per_minute=175, pitch=50)
                # A third of a second with a level that 16 bits hold well.
                assert len(spoken) > synth.espeak.SAMPLE_RATE_HZ // 6, voice
                assert np.abs(spoken.astype(int)).max() > 1000, voice


# Sound -----------------------------------------------------------------------------------


@pytest.mark.parametrize("num_samples", [1, 2, 1000, 32768])
@pytest.mark.parametrize("colour", synth.NOISES)
def test_noise_has_power_1(colour: str, num_samples: int) -> None:
    noise = synth.make_noise(colour, num_samples, np.random.default_rng(0))
    assert noise.shape == (num_samples,)
    assert np.mean(noise**2) == pytest.approx(1)


def test_pink_noise_falls_3_db_an_octave() -> None:
    noise = synth.make_noise("pink", 2**18, np.random.default_rng(0))
    power = np.abs(np.fft.rfft(noise)) ** 2
    octaves = np.array([power[2**k : 2 ** (k + 1)].mean() for k in range(8, 17)])
    # Half the power an octave: a mean of n >= 256 exponential values is off by 1/sqrt(n) = 6 %.
    assert octaves[1:] / octaves[:-1] == pytest.approx(np.full(8, 0.5), rel=0.2)


def test_the_noise_under_a_take_has_its_ratio() -> None:
    take = dataclasses.replace(synth.plan("train", 1, seed=0)[0], noise="white", snr_db=10.0, tract=1.0)
    spoken = (8000 * np.sin(np.arange(22050) * 0.1)).astype(np.int16)
    heard = synth.as_heard(take, spoken).astype(float)
    assert np.abs(heard).max() == pytest.approx(take.peak * 32767, abs=1)
    lead = round(take.silence_s[0] * synth.SAMPLE_RATE_HZ)
    inner = heard[lead : lead + 16000]
    carrier = np.exp(1j * np.arange(16000) * 0.1 * 22050 / 16000)
    speech_power = 2 * np.abs(np.mean(inner * carrier)) ** 2  # of a sine: half its amplitude squared
    snr_db = 10 * np.log10(speech_power / (np.mean(inner**2) - speech_power))
    # The power of 16000 samples of noise is known to sqrt(2/16000) = 1.1 %, 0.05 dB: four times that.
    assert snr_db == pytest.approx(10, abs=0.2)


def test_a_shorter_tract_raises_every_frequency() -> None:
    take = dataclasses.replace(synth.plan("train", 1, seed=0)[0], snr_db=40.0, silence_s=(0.0, 0.0))
    spoken = (8000 * np.sin(2 * np.pi * 1000 * np.arange(22050) / 22050)).astype(np.int16)
    for tract in (0.9, 1.1):
        heard = synth.as_heard(dataclasses.replace(take, tract=tract), spoken)
        assert len(heard) == pytest.approx(16000 / tract, abs=1)
        peak_hz = np.argmax(np.abs(np.fft.rfft(heard))) * 16000 / len(heard)
        assert peak_hz == pytest.approx(1000 * tract, abs=2)  # two bins of one hertz


# The folder ------------------------------------------------------------------------------


def test_manifests_describe_the_files(corpus: Corpus) -> None:
    for split in SPLITS:
        utterances = read_manifest(corpus.manifest(split))
        assert len(utterances) == COUNTS[f"num_{split}"]
        for utterance in utterances:
            samples, rate_hz = soundfile.read(utterance.audio_path, dtype="int16")
            assert (rate_hz, samples.ndim) == (16000, 1)
            assert len(samples) / rate_hz == pytest.approx(utterance.duration_s, abs=1e-4)
            assert utterance.speaker in VOICES[split].names()


def test_one_seed_gives_one_corpus_and_another_seed_another(corpus: Corpus, tmp_path: Path) -> None:
    again = make_corpus(tmp_path / "again", **COUNTS, seed=3)
    other = make_corpus(tmp_path / "other", **COUNTS, seed=4)
    files = sorted(path.relative_to(corpus.folder) for path in corpus.folder.rglob("*") if path.is_file())
    assert len(files) == 12 + 3 + 5 + 3 + 1
    for name in files:
        assert (corpus.folder / name).read_bytes() == (again.folder / name).read_bytes(), name
    assert [path.text for path in read_manifest(other.manifest("train"))] != [
        path.text for path in read_manifest(corpus.manifest("train"))
    ]


def test_a_finished_corpus_is_not_made_again(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synth, "speak_all", None)
    assert make_corpus(corpus.folder, **COUNTS, seed=3) == corpus


def test_the_digest_changes_with_the_tables_the_ranges_and_espeak(monkeypatch: pytest.MonkeyPatch) -> None:
    digests = [synth.recipe_digest()]
    assert digests == [synth.recipe_digest()]
    voices = {**VOICES, "dev": dataclasses.replace(VOICES["dev"], variants="Mike")}
    for name, value in (("COMMANDS", ("stop",)), ("VOICES", voices), ("PEAK", (0.1, 0.8))):
        with monkeypatch.context() as patch:
            patch.setattr(synth, name, value)
            digests.append(synth.recipe_digest())
    with monkeypatch.context() as patch:
        patch.setattr(synth.metadata, "version", lambda package: f"{package} 99")
        digests.append(synth.recipe_digest())
    assert len(set(digests)) == 5


def test_an_interrupted_corpus_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_corpus(tmp_path / "corpus", num_train=2, num_test=0, progress=interrupt)
    assert not any(tmp_path.iterdir())


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    make_corpus(tmp_path, num_train=2, num_test=1, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert not (tmp_path / "dev").exists()


def test_a_folder_that_holds_something_else_is_left_alone(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"folder=.* holds a corpus made with other settings"):
        make_corpus(corpus.folder, **COUNTS, seed=99)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"folder=.* holds something else; choose another"):
        make_corpus(tmp_path, **COUNTS)
    assert json.loads((corpus.folder / "corpus.json").read_text())["seed"] == 3


def test_wrong_arguments_are_named(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"num_dev=-1 must be 0 or more"):
        make_corpus(tmp_path / "x", num_train=1, num_dev=-1, num_test=1)
    with pytest.raises(ValueError, match=r"split='eval' is not in the corpus; use one of train, dev, test"):
        corpus.manifest("eval")


def test_ctrl_c_while_takes_are_drawn_is_never_lost() -> None:
    """NumPy swallows it where one string of an array is asked for."""
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for _ in range(50):
            with pytest.raises(KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_REAL, 0.002)
                deadline = time.monotonic() + 1
                while time.monotonic() < deadline:
                    synth.plan("train", 20, seed=0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
