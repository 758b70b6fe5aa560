"""A training run: it learns, it resumes as if never killed, it refuses what cannot be trained."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from subtone.models import build, preset
from subtone.models.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from subtone.speech.audio import read_audio
from subtone.speech.data import Utterance, read_manifest
from subtone.speech.features import FrontEnd
from subtone.speech.synth import Corpus
from subtone.train import TrainSettings, fit
from subtone.train.fitting import ENGLISH, STATE_NAME, WholeFiles, digest_of

SETTINGS = TrainSettings(
    name="tiny", model="quartznet-demo", steps=9, batch_s=20.0, learning_rate=0.005, warmup_share=0.3
)


@pytest.fixture(scope="module")
def parts(tiny_corpus: Corpus) -> dict[str, list[Utterance]]:
    return {split: read_manifest(tiny_corpus.manifest(split)) for split in ("train", "dev")}


def weights_of(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in checkpoint.network.state_dict().items()}


class PowerCutError(Exception):
    """Ends a run between two steps."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, parts) -> tuple[Path, Checkpoint, list[tuple[int, int]]]:
    """An uninterrupted run: its folder, its checkpoint, what it told of its progress."""
    folder, seen = tmp_path_factory.mktemp("whole"), []
    fitted = fit(folder, settings=SETTINGS, **parts, progress=lambda done, total: seen.append((done, total)))
    assert fitted.dev_errors.words == sum(len(one.text.split()) for one in parts["dev"])
    return folder, fitted.checkpoint, seen


def test_progress_counts_the_steps(whole) -> None:
    assert whole[2] == [(done, SETTINGS.steps) for done in range(1, SETTINGS.steps + 1)]


def test_a_killed_run_ends_with_the_weights_of_a_whole_one(whole, parts, tmp_path: Path) -> None:
    def kill(done: int, total: int) -> None:
        if done == 7:
            raise PowerCutError

    with pytest.raises(PowerCutError):
        fit(tmp_path, settings=SETTINGS, **parts, progress=kill)
    state = torch.load(tmp_path / STATE_NAME, weights_only=True)
    assert 0 < state["global_step"] < 7
    resumed: list[int] = []
    fitted = fit(tmp_path, settings=SETTINGS, **parts, progress=lambda done, total: resumed.append(done))
    assert resumed[0] == state["global_step"] + 1  # it did not begin anew
    for name, value in weights_of(whole[1]).items():
        assert torch.equal(value, fitted.checkpoint.network.state_dict()[name]), name


def test_a_finished_run_is_returned_as_it_is(whole, parts) -> None:
    def refuse(done: int, total: int) -> None:
        raise AssertionError("trained again")

    again = fit(whole[0], settings=SETTINGS, **parts, progress=refuse)
    for name, value in weights_of(whole[1]).items():
        assert torch.equal(value, again.checkpoint.network.state_dict()[name]), name


def test_other_settings_do_not_resume_a_run(whole, parts) -> None:
    other = SETTINGS.model_copy(update={"learning_rate": 0.5})
    with pytest.raises(
        ValueError, match=r"learning_rate=0.5 differs from the run begun in .*, where it is 0.005"
    ):
        fit(whole[0], settings=other, **parts)


def test_other_data_do_not_resume_a_run(whole, parts) -> None:
    with pytest.raises(ValueError, match="learns from other data"):
        fit(whole[0], settings=SETTINGS, **{**parts, "train": parts["train"][1:]})


def test_other_durations_and_folders_are_other_data(parts) -> None:
    """Durations decide which utterances make a batch."""
    network = build(preset("quartznet-demo").to_json())
    train = parts["train"]
    moved = train[0].audio_path.parent.parent / "moved" / train[0].audio_path.name
    moved.parent.mkdir(exist_ok=True)
    moved.write_bytes(train[0].audio_path.read_bytes())
    digests = {
        digest_of([first, *train[1:]], FrontEnd(), ENGLISH, network)
        for first in (
            train[0],
            dataclasses.replace(train[0], duration_s=train[0].duration_s + 1),
            dataclasses.replace(train[0], audio_path=moved),
        )
    }
    assert len(digests) == 3


def test_a_state_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    class Unwritable:
        def __reduce__(self):
            raise OSError(28, "No space left on device")

    path = tmp_path / STATE_NAME
    WholeFiles().save_checkpoint({"a": torch.ones(3)}, path)
    with pytest.raises(OSError, match="No space left on device; nothing was written"):
        WholeFiles().save_checkpoint({"a": torch.zeros(1000), "b": Unwritable()}, path)
    assert torch.equal(torch.load(path, weights_only=True)["a"], torch.ones(3))
    assert list(tmp_path.iterdir()) == [path]


def test_states_are_written_in_the_folder_of_the_run(parts, tmp_path: Path, monkeypatch) -> None:
    """A folder for temporary files may lie on another file system, from where nothing can be renamed."""
    moves: list[Path] = []
    replace = os.replace

    def watch(source: Path, target: Path) -> None:
        moves.extend([Path(source).parent, Path(target).parent])
        replace(source, target)

    monkeypatch.setattr(os, "replace", watch)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "absent"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    fit(tmp_path / "run", settings=SETTINGS.model_copy(update={"steps": 2}), **parts)
    assert set(moves) == {tmp_path / "run"}


def test_a_diverged_run_is_an_error_and_saves_nothing(parts, tmp_path: Path) -> None:
    wild = SETTINGS.model_copy(update={"learning_rate": 1e20})
    message = (
        r"^training diverged: at step \d of 9 the loss is (nan|inf); lower learning_rate=1e\+20\. No state"
    )
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, settings=wild, **parts)
    assert not (tmp_path / STATE_NAME).exists()


def test_utterances_longer_than_a_batch_are_named_before_the_run(parts, tmp_path: Path) -> None:
    longest = max(parts["train"], key=lambda one: one.duration_s)
    short = SETTINGS.model_copy(update={"batch_s": longest.duration_s - 0.01})
    lasts = re.escape(f"{longest.audio_path} lasts {longest.duration_s:.2f} s as it is heard, longer than")
    with pytest.raises(ValueError, match=rf"^{lasts} a batch of batch_s=.*; raise batch_s, or leave it out$"):
        fit(tmp_path / "run", settings=short, **parts)
    assert not (tmp_path / "run").exists()
    slow = SETTINGS.model_copy(update={"batch_s": 1.5 * longest.duration_s, "speeds": (0.5, 1.0)})
    with pytest.raises(ValueError, match=rf"lasts {2 * longest.duration_s:.2f} s as it is heard"):
        fit(tmp_path / "run", settings=slow, **parts)


def test_the_dev_set_may_hold_what_is_longer_than_a_batch(parts, tmp_path: Path) -> None:
    by_length = sorted(parts["train"], key=lambda one: one.duration_s)
    settings = SETTINGS.model_copy(update={"steps": 2, "batch_s": by_length[3].duration_s + 0.01})
    fitted = fit(tmp_path, settings=settings, train=by_length[:4], dev=by_length[-2:])
    assert fitted.dev_errors.words == sum(len(one.text.split()) for one in by_length[-2:])


def test_a_damaged_state_says_how_to_start_over(parts, tmp_path: Path) -> None:
    (tmp_path / STATE_NAME).write_bytes(b"not a state")
    with pytest.raises(ValueError, match="is damaged, or of another version; remove it to start over"):
        fit(tmp_path, settings=SETTINGS, **parts)


def test_a_signal_that_ends_training_is_an_error(parts, tmp_path: Path) -> None:
    def terminate(done: int, total: int) -> None:
        raise SystemExit(0)  # as Lightning's answer to SIGTERM

    with pytest.raises(OSError, match="ended by a signal; run the same command again"):
        fit(tmp_path, settings=SETTINGS, **parts, progress=terminate)


def test_training_lowers_the_loss_and_the_checkpoint_hears_the_same(parts, tmp_path: Path) -> None:
    one = parts["train"][:2]
    settings = SETTINGS.model_copy(update={"steps": 50, "masks": 0, "learning_rate": 0.01})
    fitted = fit(tmp_path / "run", settings=settings, train=one, dev=one)
    # Two sentences, fifty steps: learnt by heart, from a model that at first spells noise.
    assert fitted.dev_errors.rate <= 0.5
    save_checkpoint(tmp_path / "checkpoint", fitted.checkpoint)
    loaded = load_checkpoint(tmp_path / "checkpoint")
    samples = read_audio(one[0].audio_path)
    features = loaded.front_end(samples)
    expected = fitted.checkpoint.recognizer().logits(features)
    assert np.array_equal(loaded.recognizer().logits(features), expected)


def test_an_interrupt_stays_one_and_the_next_is_heard_too(parts, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, settings=SETTINGS, **parts, progress=interrupt)
    assert signal.getsignal(signal.SIGINT) is handler


def test_what_cannot_be_trained_is_refused(parts, tmp_path: Path) -> None:
    train, dev = parts["train"], parts["dev"]
    for name in ("train", "dev"):
        with pytest.raises(ValueError, match=f"{name} has no utterances"):
            fit(tmp_path, settings=SETTINGS, **{**parts, name: []})
    spelled = [dataclasses.replace(train[0], text="route 7")]
    with pytest.raises(ValueError, match=r"text='route 7' holds digits"):
        fit(tmp_path, settings=SETTINGS, train=spelled, dev=dev)
    hurried = [dataclasses.replace(train[0], text="one " * 100)]
    with pytest.raises(ValueError, match=r"frames for 399 labels of 'one one .*leave it out of train"):
        fit(tmp_path, settings=SETTINGS, train=hurried, dev=dev)
    assert not (tmp_path / STATE_NAME).exists()
