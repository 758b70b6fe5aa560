"""Transducers are trained: they learn, resume as if never killed, average, and are tuned to few bits."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.models.transducer_variants import CASCADED, TRANSDUCERS, random_network

from subtone.export.package import package
from subtone.models import build, preset
from subtone.models.checkpoints import Checkpoint
from subtone.models.losses import rnnt_loss
from subtone.models.options import with_options
from subtone.pack import write_packed
from subtone.quantize import Recipe
from subtone.quantize.simulate import simulated
from subtone.runtime.session import Session
from subtone.speech.audio import read_audio
from subtone.speech.data import Utterance, read_manifest
from subtone.speech.fbank import KaldiFbank
from subtone.speech.normalize import CausalNormalize, GlobalNormalize
from subtone.speech.pieces import PieceTokenizer
from subtone.speech.synth import Corpus
from subtone.train import SpeechModule, TrainSettings, fit, tune
from subtone.train.averaging import mean_of
from subtone.train.data import Batch, FeatureDataset, check_utterances, cuts_of
from subtone.train.distillation import outputs_of
from subtone.train.ends import ENGLISH, front_end_of, tokenizer_of
from subtone.train.fitting import STATE_NAME
from subtone.train.objectives import Rnnt, objective_of

RNNT: dict[str, Any] = {
    "name": "tiny",
    "model": "s8bqat-m1",
    "steps": 6,
    "batch_s": 12.0,
    "learning_rate": 0.005,
    "warmup_share": 0.34,
    "model_options": {
        "encoder": {"widths": [16, 16], "reduced_before": 1, "dropout": 0.1},
        "predictor": {"embedding_width": 8, "widths": [8]},
        "joint_width": 16,
    },
    "front_end": {"kind": "fbank", "num_mels": 20, "stack": 4, "stride": 4, "normalize": "causal"},
}
LONG_RUN = {
    **RNNT,
    "schedule": "noam",
    "averaged_epochs": 2,
    "batches_per_step": 2,
    "joined": 3,
    "epoch_s": 40.0,
}
FBANK = KaldiFbank(num_mels=20, stack=4, stride=4, normalize=CausalNormalize())


@pytest.fixture(scope="module")
def parts(tiny_corpus: Corpus) -> dict[str, list[Utterance]]:
    return {split: read_manifest(tiny_corpus.manifest(split)) for split in ("train", "dev")}


def network_of(settings: TrainSettings) -> Any:
    config = with_options(preset(settings.model), settings.model_options)
    return build(config.with_ends(num_features=FBANK.num_features, num_outputs=29).to_json())


def same_weights(one: Checkpoint, other: Checkpoint) -> bool:
    theirs = other.network.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in one.network.state_dict().items())


# Learning ---------------------------------------------------------------------------------


def test_a_transducer_learns_two_utterances_by_heart(parts) -> None:
    torch.manual_seed(0)
    options = {"encoder": {"widths": [48, 48], "reduced_before": 1, "has_norm": True}}
    settings = TrainSettings(**{**RNNT, "model_options": {**RNNT["model_options"], **options}, "masks": 0})
    network = network_of(settings)
    module = SpeechModule(network, tokenizer=ENGLISH, settings=settings)
    short = sorted(parts["train"], key=lambda one: len(one.text))[:2]
    batch = FeatureDataset(FBANK, ENGLISH, is_ctc=False)[cuts_of(short, rate_hz=16000)]
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(250):
        optimizer.zero_grad()
        module.loss(batch.features, batch).backward()
        optimizer.step()
    heard = module.objective.hear(network.eval(), batch)
    assert [ENGLISH.decode(labels) for labels in heard] == list(batch.texts)


def test_the_loss_is_nats_a_label_and_a_cascade_learns_from_both_passes(parts) -> None:
    network = random_network(CASCADED)
    labels = torch.tensor([[3, 1, 4], [5, 7, 0]])
    batch = Batch(
        features=torch.randn(2, 6, 12),
        lengths=torch.tensor([12, 8]),
        labels=torch.tensor([3, 1, 4, 5, 7]),
        label_lengths=torch.tensor([3, 2]),
        texts=("", ""),
    )
    objective = objective_of(network, blank_index=8)
    given = objective.pass_through(network, batch.features, batch)
    assert len(given.logits) == 2
    expected = [
        rnnt_loss(
            logits[index : index + 1],
            labels[index : index + 1],
            given.lengths[index : index + 1],
            batch.label_lengths[index : index + 1],
            blank_index=8,
        )
        / batch.label_lengths[index]
        for logits in given.logits
        for index in range(2)
    ]
    torch.testing.assert_close(objective.loss(given, batch), torch.stack(expected).mean())
    is_valid = objective.is_valid(given, batch)
    assert is_valid.shape == given.logits[0].shape[:3]
    assert int(is_valid.sum()) == int((given.lengths * (batch.label_lengths + 1)).sum())


def test_what_is_heard_in_a_batch_is_what_is_heard_alone() -> None:
    network = random_network(TRANSDUCERS["conformer"])
    features, lengths = torch.randn(3, 6, 20), torch.tensor([20, 9, 14])
    objective = Rnnt(8)

    def heard(of_features: torch.Tensor, of_lengths: torch.Tensor) -> list[list[int]]:
        count = len(of_lengths)
        return objective.hear(
            network, Batch(of_features, of_lengths, torch.empty(0), torch.empty(0), ("",) * count)
        )

    together = heard(features, lengths)
    assert any(together)
    assert together == [
        heard(one[None, :, :length], torch.tensor([length]))[0]
        for one, length in zip(features, lengths.tolist(), strict=True)
    ]


# Runs -------------------------------------------------------------------------------------


class PowerCutError(Exception):
    """Ends a run between two steps."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, parts) -> tuple[Path, Checkpoint, list[int]]:
    """An uninterrupted run of LONG_RUN: its folder, its checkpoint, the steps of its batches."""
    folder, seen = tmp_path_factory.mktemp("whole"), []
    settings = TrainSettings.from_dict(LONG_RUN)
    fitted = fit(folder, settings=settings, **parts, progress=lambda done, total: seen.append(done))
    return folder, fitted.checkpoint, seen


def test_a_killed_run_ends_with_the_weights_of_a_whole_one(whole, parts, tmp_path: Path) -> None:
    def kill(done: int, total: int) -> None:
        if done == 5:
            raise PowerCutError

    settings = TrainSettings.from_dict(LONG_RUN)
    with pytest.raises(PowerCutError):
        fit(tmp_path, settings=settings, **parts, progress=kill)
    assert 0 < torch.load(tmp_path / STATE_NAME, weights_only=True)["global_step"] < 5
    assert same_weights(fit(tmp_path, settings=settings, **parts).checkpoint, whole[1])


def test_a_finished_run_is_returned_as_it_is(whole, parts) -> None:
    def refuse(done: int, total: int) -> None:
        raise AssertionError("trained again")

    again = fit(whole[0], settings=TrainSettings.from_dict(LONG_RUN), **parts, progress=refuse)
    assert same_weights(again.checkpoint, whole[1])
    assert again.dev_errors.words == sum(len(one.text.split()) for one in parts["dev"])


def test_the_result_is_the_mean_of_the_last_epochs(whole) -> None:
    state = torch.load(whole[0] / STATE_NAME, weights_only=True)
    (kept,) = [value for name, value in state["callbacks"].items() if "KeepEpochs" in name]
    assert len(kept["states"]) == 2
    last = {name.removeprefix("network."): value for name, value in state["state_dict"].items()}
    for name, value in whole[1].network.state_dict().items():
        first, second = (one[name] for one in kept["states"])
        assert torch.equal(second, last[name])
        torch.testing.assert_close(value, (first + second) / 2, rtol=1e-6, atol=1e-7)
        assert not torch.equal(first, second), name


def test_a_mean_keeps_what_is_no_float() -> None:
    states = [{"a": torch.tensor([value]), "n": torch.tensor(int(value))} for value in (1.0, 3.0, 8.0)]
    mean = mean_of(states)
    assert mean["a"].tolist() == [4.0]
    assert int(mean["n"]) == 8


def test_a_step_takes_several_batches(whole) -> None:
    """The last batches of an epoch may be fewer."""
    seen = whole[2]
    assert max(seen) == LONG_RUN["steps"]
    assert sorted(seen) == seen
    assert len(seen) > max(seen)


def test_each_batch_of_a_step_draws_other_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SpeechModule(
        torch.nn.Linear(1, 1), tokenizer=ENGLISH, settings=TrainSettings.from_dict(LONG_RUN)
    )
    seeds = []
    for step, batch_index in ((0, 0), (0, 1), (1, 2), (1, 3), (2, 0)):
        monkeypatch.setattr(SpeechModule, "global_step", step)
        module.on_train_batch_start(None, batch_index)  # type: ignore[arg-type]
        seeds.append(torch.initial_seed())
    assert seeds == [0, 1, 2, 3, 4]


# What stands before and behind --------------------------------------------------------------


def test_normalization_is_measured_on_the_training_data(parts) -> None:
    table = {"kind": "fbank", "num_mels": 20, "stack": 2, "stride": 2, "normalize": "global"}
    front_end = front_end_of(table, parts["train"])
    assert isinstance(front_end.normalize, GlobalNormalize)
    rows = [front_end(read_audio(one.audio_path, 16000)) for one in parts["train"]]
    frames = np.concatenate(rows).reshape(-1, 20)
    np.testing.assert_allclose(frames.mean(0), 0, atol=0.02)  # the end of a sound repeats frames in a row
    np.testing.assert_allclose(frames.std(0), 1, atol=0.02)
    prior = front_end_of({**table, "normalize": "causal", "prior_frames": 30.0}, parts["train"]).normalize
    assert isinstance(prior, CausalNormalize)
    assert (prior.mean, prior.prior_frames) == (front_end.normalize.mean, 30.0)
    assert front_end_of({}, parts["train"]).to_json() == front_end_of({}, []).to_json()


def test_pieces_are_learnt_from_the_training_texts_in_any_order(parts) -> None:
    tokenizer = tokenizer_of(40, parts["train"])
    assert isinstance(tokenizer, PieceTokenizer)
    assert len(tokenizer.labels) == 40
    assert tokenizer.to_json() == tokenizer_of(40, parts["train"][::-1]).to_json()
    assert tokenizer_of(None, parts["train"]) is ENGLISH


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model_options": {"joint_widht": 3}},
            "model_options.joint_widht=3 is not a key; did you mean joint_width?",
        ),
        (
            {"model_options": {"encoder": {"num_features": 3}}},
            "model_options.encoder.num_features=3 follows from the front end",
        ),
        ({"model_options": {"encoder": 3}}, "model_options.encoder=3 must be a table"),
        ({"model_options": {"joint_width": {"a": 3}}}, "must be a value"),
        ({"model_options": {"joint_width": 0}}, "transducer joint_width=0 must be a whole number"),
        ({"model_options": {"encoder": {"widths": []}}}, "lstm widths is empty"),
        ({"model_options": {"encoder": {"widths": 7}}}, "model_options.encoder.widths=7 must be a list"),
        (
            {"model_options": {"encoder": {"widths": ["a"]}}},
            "model_options: lstm width='a' must be a whole number",
        ),
        (
            {"model_options": {"encoder": {"family": "conformer"}}},
            "model_options: not a Conformer config: ",
        ),
        ({"front_end": {"kind": "fbank", "stack": "3"}}, "front_end: stack='3' is not a finite int"),
        ({"front_end": {"kind": "mfcc"}}, "front_end.kind='mfcc' is not a front end; use log_mel or fbank"),
        ({"front_end": {"num_mel": 3}}, "front_end.num_mel=3 is not a key of 'log_mel'; use one of kind, "),
        ({"front_end": {"normalize": "local"}}, "front_end.normalize='local' is not known; use one of "),
        (
            {"front_end": {"prior_frames": 3.0}},
            "front_end.prior_frames=3.0 has no effect with normalize=None; use normalize='causal'",
        ),
        ({"front_end": {"normalize": "causal", "prior_frames": -1.0}}, "prior_frames=-1.0 must be a number"),
        ({"front_end": {"stack": 2, "stride": 3}}, "stride=3 must lie in 1..2"),
        ({"schedule": "linear"}, "schedule='linear' is not known; use 'one-cycle' or 'noam'"),
        ({"batches_per_step": 0}, "batches_per_step=0 does not fit"),
        ({"averaged_epochs": 0}, "averaged_epochs=0 does not fit"),
        ({"num_pieces": 0}, "num_pieces=0 does not fit"),
    ],
)
def test_a_mistake_in_a_recipe_is_one_line(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^recipe: .*{re.escape(message)}") as caught:
        TrainSettings.from_dict({**RNNT, **change})
    assert "\n" not in str(caught.value)


def test_a_predictor_of_another_family_replaces_the_presets() -> None:
    reduced = {"family": "reduced", "embedding_width": 8, "context": 2}
    config = with_options(preset("s8bqat-m1"), {"predictor": reduced})
    assert config.to_json()["predictor"] == reduced


def test_a_cascades_second_encoder_takes_the_rows_of_the_first() -> None:
    config = with_options(preset("cascaded"), {"encoder": {"width": 64}}).with_ends(
        num_features=40, num_outputs=29
    )
    assert (config.encoder.num_features, config.encoder2.num_features) == (40, 64)


# Doors --------------------------------------------------------------------------------------


def test_a_text_may_be_longer_than_its_sound_but_a_sound_must_give_a_row(parts) -> None:
    one = dataclasses.replace(parts["train"][0], text="a very long text for so little sound " * 20)
    check_utterances("train", [one], FBANK, ENGLISH, 2, fastest=1.0, is_ctc=False)
    with pytest.raises(ValueError, match="frames for"):
        check_utterances("train", [one], FBANK, ENGLISH, 2, fastest=1.0)
    short = dataclasses.replace(one, duration_s=0.04)
    with pytest.raises(
        ValueError, match="has frames=1 of features, and a row of the encoder takes 2; leave it out of train"
    ):
        check_utterances("train", [short], FBANK, ENGLISH, 2, fastest=1.0, is_ctc=False)
    with pytest.raises(ValueError, match="give 0 frames for 1 labels"):
        FeatureDataset(FBANK, ENGLISH, frames_per_step=10_000, is_ctc=False)[cuts_of([one], rate_hz=16000)]


# Few bits -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(parts) -> Checkpoint:
    torch.manual_seed(0)
    network = network_of(TrainSettings.from_dict(RNNT)).eval()
    front_end = front_end_of(RNNT["front_end"], parts["train"])
    return Checkpoint(network=network, front_end=front_end, tokenizer=ENGLISH)


def tuned_by(checkpoint: Checkpoint, train: list[Utterance], folder: Path, **training: object) -> Any:
    document = {
        "name": "tuned",
        "method": "native",
        "training": {"steps": 2, "batch_s": 3.0, "epoch_s": 3.0, "learning_rate": 1e-3, **training},
        "rules": [{"bits": 4, "activations": "dynamic"}],
    }
    return tune(folder, checkpoint, Recipe.from_dict(document), train=train)


def test_a_tuned_transducer_hears_the_same_packed(checkpoint, parts, tmp_path: Path) -> None:
    train = sorted(parts["train"], key=lambda one: one.duration_s)[:3]
    tuned = tuned_by(checkpoint, train, tmp_path / "run")
    write_packed(tmp_path / "tuned.subtone", package(tuned.checkpoint, name="tiny"))
    session = Session.load(tmp_path / "tuned.subtone", engine="numpy")
    simulation = simulated(tuned.checkpoint).recognizer()
    samples = read_audio(train[0].audio_path, 16000)[:8000]  # an untrained network spells without end
    assert session.recognizer.hear(samples) == simulation.hear(samples)


@pytest.mark.parametrize(
    ("training", "untouched"),
    [
        ({"distillation": 0.5, "compensation_batches": 1}, ""),
        ({"distillation": 1.0, "distilled_layers": "encoder.layers.*"}, "joiner.combine.output.bias"),
    ],
)
def test_a_transducer_learns_from_its_float_teacher(checkpoint, parts, training, untouched, tmp_path) -> None:
    train = sorted(parts["train"], key=lambda one: one.duration_s)[:3]
    training = {"weight_decay": 0.0, **training}
    tuned = tuned_by(checkpoint, train, tmp_path, **training)
    assert all(np.isfinite(row["loss"]) for row in tuned.curve)
    after = tuned.checkpoint.network.state_dict()
    before = checkpoint.network.state_dict()
    assert not torch.equal(before["encoder.layers.0.bias_ih_l0"], after["encoder.layers.0.bias_ih_l0"])
    if untouched:
        assert torch.equal(before[untouched], after[untouched])


def test_layers_of_an_encoder_are_compared_within_their_lengths() -> None:
    network = random_network(TRANSDUCERS["lstm"])
    features, lengths = torch.randn(2, 6, 9), torch.tensor([9, 4])
    with outputs_of({"encoder": network.encoder, "encoder.layers.0": network.encoder.layers[0]}) as given:
        rows, valid = network.encoder(features, lengths)
    assert given["encoder"].shape == (2, 5, 4)  # channels before rows, as a block of QuartzNet
    assert torch.equal(given["encoder"][1, :, int(valid[1]) :], torch.zeros(5, 2))
    assert torch.equal(given["encoder"][0].T, rows[0])
    assert given["encoder.layers.0"].shape == (2, 9, 8)
