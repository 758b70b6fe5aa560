"""A checkpoint trained to few bits: it learns, resumes identically, and what is frozen is what was trained."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from subtone.export.package import package
from subtone.models import build, preset
from subtone.models.checkpoints import Checkpoint
from subtone.pack import write_packed
from subtone.quantize import Recipe, quantize_weight
from subtone.quantize.simulate import simulated
from subtone.runtime.session import Session
from subtone.speech.audio import read_audio
from subtone.speech.data import Utterance, read_manifest
from subtone.speech.features import FrontEnd
from subtone.speech.synth import Corpus
from subtone.train import TuneSettings, tune
from subtone.train.fitting import ENGLISH
from subtone.train.tuning import TuneModule, divergence, recalibrate

TRAINING = {"steps": 6, "batch_s": 10.0, "epoch_s": 15.0, "learning_rate": 1e-3}
FLOAT = {"method": "linear", "rules": [{"keep_float": True}]}
NATIVE = {"method": "native", "rules": [{"bits": 4, "activations": "dynamic"}]}
GQ = {
    "method": "gq",
    "options": {"end_step": 5, "every_steps": 1},
    "rules": [{"bits": 4, "grid": "codebook"}],
}


def recipe_of(document: dict, **training: object) -> Recipe:
    return Recipe.from_dict({"name": "tuned", **document, "training": {**TRAINING, **training}})


@pytest.fixture(scope="module")
def utterances(tiny_corpus: Corpus) -> list[Utterance]:
    return read_manifest(tiny_corpus.manifest("train"))


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    torch.manual_seed(0)
    config = dataclasses.replace(preset("quartznet-demo"), num_outputs=len(ENGLISH.labels) + 1)
    network = build(config.to_json())
    for module in network.modules():  # statistics that are somebody's, not those of a fresh network
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2.0)
    return Checkpoint(network=network.eval(), front_end=FrontEnd(), tokenizer=ENGLISH)


def state_of(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in checkpoint.network.state_dict().items()}


class PowerCutError(Exception):
    """Ends a run between two steps."""


def test_training_moves_weights_and_leaves_the_source_as_it_is(checkpoint, utterances, tmp_path):
    before = state_of(checkpoint)
    tuned = tune(tmp_path, checkpoint, recipe_of(FLOAT), train=utterances)
    after = state_of(tuned.checkpoint)
    assert all(torch.equal(before[name], value) for name, value in state_of(checkpoint).items())
    assert not torch.equal(before["head.weight"], after["head.weight"])
    frozen = [name for name in before if "running" in name]
    assert frozen
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert tuned.checkpoint.quantization is not None
    assert not tuned.checkpoint.quantization.weights
    assert tuned.checkpoint.quantization.recipe["training"]["clip_norm"] == 1.0  # resolved, defaults and all


def test_batch_statistics_move_the_running_ones(checkpoint, utterances, tmp_path):
    before = state_of(checkpoint)
    tuned = tune(tmp_path, checkpoint, recipe_of(FLOAT, batch_norm="batch"), train=utterances)
    after = state_of(tuned.checkpoint)
    assert not any(torch.equal(before[name], after[name]) for name in before if "running_mean" in name)


@pytest.mark.parametrize("document", [NATIVE, GQ], ids=["native", "gq"])
def test_a_killed_run_ends_with_the_codes_of_a_whole_one(document, checkpoint, utterances, tmp_path):
    """epoch_s is shorter than the corpus, so the state was saved in the middle of a pass."""
    recipe = recipe_of(document)
    whole = tune(tmp_path / "whole", checkpoint, recipe, train=utterances, dev=utterances[:2])

    def kill(done: int, total: int) -> None:
        if done == 4:
            raise PowerCutError

    with pytest.raises(PowerCutError):
        tune(tmp_path / "cut", checkpoint, recipe, train=utterances, dev=utterances[:2], progress=kill)
    state = torch.load(tmp_path / "cut" / "training.ckpt", weights_only=True)
    assert 0 < state["global_step"] < 4
    seen: list[int] = []
    again = tune(
        tmp_path / "cut",
        checkpoint,
        recipe,
        train=utterances,
        dev=utterances[:2],
        progress=lambda done, total: seen.append(done),
    )
    assert seen[0] == state["global_step"] + 1
    assert again.curve == whole.curve
    assert [row["step"] for row in whole.curve][-1] == 6
    assert all(row["dev_wer_percent"] >= 0 for row in whole.curve)
    for path, weight in whole.checkpoint.quantization.weights.items():
        assert np.array_equal(weight.codes, again.checkpoint.quantization.weights[path].codes), path
    for name, value in state_of(whole.checkpoint).items():
        assert torch.equal(value, again.checkpoint.network.state_dict()[name]), name


def test_relative_rates_are_the_rate_times_the_size_of_each_parameter(checkpoint):
    module = TuneModule(checkpoint, settings=TuneSettings(**TRAINING, learning_rate_unit="rms"), teacher=None)
    groups = module.configure_optimizers()["optimizer"].param_groups
    rates = {id(parameter): group["max_lr"] for group in groups for parameter in group["params"]}
    parameters = list(module.parameters())
    assert len(groups) == len(rates) == len(parameters)
    assert any(not parameter.any() for parameter in parameters)  # the biases of BatchNorms
    for parameter in parameters:
        values = parameter.detach().double().numpy()
        size = np.sqrt((values**2).mean()) if values.any() else 1.0
        assert rates[id(parameter)] == pytest.approx(1e-3 * size, rel=1e-5)
    plain = TuneModule(checkpoint, settings=TuneSettings(**TRAINING), teacher=None)
    (group,) = plain.configure_optimizers()["optimizer"].param_groups
    assert group["max_lr"] == 1e-3
    assert len(group["params"]) == len(parameters)


def test_another_starting_point_does_not_resume_a_run(checkpoint, utterances, tmp_path):
    recipe = recipe_of(FLOAT, steps=2)
    first = tune(tmp_path, checkpoint, recipe, train=utterances)
    other = dataclasses.replace(first.checkpoint, quantization=None)
    with pytest.raises(ValueError, match="began with other weights; choose another folder"):
        tune(tmp_path, other, recipe, train=utterances)


def test_what_is_frozen_is_packed_and_hears_the_same(checkpoint, utterances, tmp_path):
    recipe = recipe_of(NATIVE, recalibration_batches=2, masks=1)
    tuned = tune(tmp_path / "run", checkpoint, recipe, train=utterances).checkpoint
    write_packed(tmp_path / "t.subtone", package(tuned, name="t"))
    session = Session.load(tmp_path / "t.subtone")
    features = tuned.front_end(read_audio(utterances[0].audio_path))
    packed, torch_logits = session.recognizer.logits(features), simulated(tuned).recognizer().logits(features)
    # Float32 sums in another order, and here and there an activation rounded to the next level.
    assert np.abs(packed - torch_logits).max() <= 0.02 * np.abs(torch_logits).max()


def test_recalibrated_statistics_are_those_of_the_stored_weights(checkpoint):
    """One batch: behind the first product, mean and variance over its frames."""
    first = checkpoint.network.blocks[0].units[0]
    features = torch.randn(2, 64, 50, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = first.pointwise(first.depthwise(features))
    assert not torch.allclose(first.norm.running_mean, expected.mean((0, 2)))
    twin = dataclasses.replace(checkpoint, network=build(checkpoint.network.config.to_json())).network
    twin.load_state_dict(checkpoint.network.state_dict())
    quantization = tune_nothing(checkpoint)
    recalibrate(twin.eval(), quantization, [features])
    norm = twin.blocks[0].units[0].norm
    torch.testing.assert_close(norm.running_mean, expected.mean((0, 2)))
    torch.testing.assert_close(norm.running_var, expected.var((0, 2)), rtol=1e-4, atol=1e-6)
    assert not twin.training
    assert not any(module._forward_pre_hooks for module in twin.modules())


def tune_nothing(checkpoint: Checkpoint):
    from subtone.quantize import method_of

    return method_of(Recipe.from_dict({"name": "f", **FLOAT})).freeze(checkpoint.network)


def test_a_twin_of_the_teacher_has_nothing_to_learn_from_it(checkpoint, utterances):
    from subtone.train.data import FeatureDataset, cuts_of

    batch = FeatureDataset(FrontEnd(), ENGLISH)[cuts_of(utterances[:3], rate_hz=16000)]
    teacher = checkpoint.network
    for share in (1.0, 0.25):
        settings = TuneSettings(**TRAINING, distillation=share)
        module = TuneModule(checkpoint, settings=settings, teacher=teacher)
        plain = TuneModule(checkpoint, settings=TuneSettings(**TRAINING), teacher=None)
        loss, ctc = (one.loss(batch.features, batch) for one in (module, plain))
        torch.testing.assert_close(loss, (1 - share) * ctc, atol=1e-6, rtol=1e-5)
        assert not [name for name in module.state_dict() if "teacher" in name]


def test_divergence_is_the_loop_over_valid_frames():
    generator = torch.Generator().manual_seed(0)
    meant, heard = (torch.randn(2, 5, 4, generator=generator).log_softmax(-1) for _ in range(2))
    lengths = [3, 5]
    total = 0.0
    for row, length in enumerate(lengths):
        for frame in range(length):
            for label in range(4):
                p, q = float(meant[row, frame, label]), float(heard[row, frame, label])
                total += np.exp(p) * (p - q)
    assert float(divergence(meant, heard, torch.tensor(lengths))) == pytest.approx(total / 8, rel=1e-5)


def test_a_method_without_training_rounds_what_training_left(checkpoint, utterances, tmp_path):
    rounded = {"method": "linear", "rules": [{"bits": 4}]}
    floats = tune(tmp_path / "a", checkpoint, recipe_of(FLOAT), train=utterances).checkpoint
    tuned = tune(tmp_path / "b", checkpoint, recipe_of(rounded), train=utterances).checkpoint
    settings = recipe_of(rounded).rules[0].settings
    expected = quantize_weight(floats.network.head.weight.detach(), settings)
    assert np.array_equal(tuned.quantization.weights["head.weight"].codes, expected.codes)


def test_mistakes_are_one_line(checkpoint, utterances, tmp_path):
    with pytest.raises(ValueError, match=r"recipe tuned has no \[training\]; add it, with steps"):
        tune(tmp_path, checkpoint, Recipe.from_dict({"name": "tuned", **NATIVE}), train=utterances)
    with pytest.raises(ValueError, match=r"recipe tuned: training: stepz=3 is not a key; did you mean steps"):
        tune(tmp_path, checkpoint, recipe_of(NATIVE, stepz=3), train=utterances)
    with pytest.raises(ValueError, match=r"training: distillation=1.5 does not fit"):
        tune(tmp_path, checkpoint, recipe_of(NATIVE, distillation=1.5), train=utterances)
    tuned = tune(tmp_path, checkpoint, recipe_of(NATIVE, steps=2), train=utterances).checkpoint
    with pytest.raises(ValueError, match=r"is already quantized \(by tuned\)"):
        tune(tmp_path, tuned, recipe_of(NATIVE), train=utterances)


def test_settings_travel_as_plain_json():
    resolved = recipe_of(GQ, distillation=0.5).resolved()
    assert Recipe.from_dict(json.loads(json.dumps(resolved))) == recipe_of(GQ, distillation=0.5)


def test_a_folder_of_a_run_is_made(checkpoint, utterances, tmp_path: Path):
    tune(tmp_path / "new", checkpoint, recipe_of(FLOAT, steps=2), train=utterances)
    assert (tmp_path / "new" / "training.ckpt").is_file()
