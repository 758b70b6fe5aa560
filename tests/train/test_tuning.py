"""A checkpoint trained to few bits: it learns, resumes identically, and what is frozen is what was trained."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from subtone.export.package import package
from subtone.models import build, preset
from subtone.models.checkpoints import Checkpoint, Quantization
from subtone.pack import write_packed
from subtone.quantize import Recipe, method_of, quantize_weight
from subtone.quantize.simulate import simulate, simulated
from subtone.quantize.starting import start_compensated
from subtone.runtime.session import Session
from subtone.speech.audio import read_audio
from subtone.speech.data import Utterance, read_manifest
from subtone.speech.features import FrontEnd
from subtone.speech.synth import Corpus
from subtone.train import TuneSettings, fit, tune
from subtone.train.data import Batch, FeatureDataset, cuts_of, loader
from subtone.train.fitting import ENGLISH
from subtone.train.tuning import TuneModule, batches_of, recalibrate

TRAINING = {"steps": 6, "batch_s": 10.0, "epoch_s": 15.0, "learning_rate": 1e-3}
FLOAT = {"method": "linear", "rules": [{"keep_float": True}]}
NATIVE = {"method": "native", "rules": [{"bits": 4, "activations": "dynamic"}]}
PACT = {"method": "native", "rules": [{"bits": 4, "activations": "dynamic", "activation_clip": "pact"}]}
WEIGHTS_ONLY = {"method": "native", "rules": [{"bits": 4}]}
S8BQAT = {
    "method": "s8bqat",
    "options": {"warmup_steps": 3, "tau_steps": 2},
    "rules": [{"bits": 4, "grid": "codebook"}],
}
SUBCHANNEL = {"method": "subchannel", "rules": [{"bits": 4, "grid": "asymmetric"}]}
EPSILON = float(np.finfo(np.float32).eps)
GQ = {
    "method": "gq",
    "options": {"end_step": 5, "every_steps": 1},
    "rules": [{"bits": 4, "grid": "codebook"}],
}


LAYERS = {"distillation": 1.0, "distilled_layers": "blocks.*"}
AS_SHIPPED = {
    **LAYERS,
    "compensation_batches": 1,
    "learning_rate": 1e-2,
    "learning_rate_unit": "rms",
    "others_rate": 0.01,
    "precision": "bfloat16",
}
SHORT_GQ = {**GQ, "options": {"end_step": 1, "every_steps": 1}}


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


@pytest.mark.parametrize(
    ("document", "training"),
    [(NATIVE, {}), (GQ, {}), (NATIVE, AS_SHIPPED), (S8BQAT, AS_SHIPPED)],
    ids=["native", "gq", "native-as-shipped", "s8bqat-as-shipped"],
)
def test_a_killed_run_ends_with_the_codes_of_a_whole_one(
    document, training, checkpoint, utterances, tmp_path
):
    """epoch_s is shorter than the corpus, so the state was saved in the middle of a pass."""
    recipe = recipe_of(document, **training)
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


@pytest.mark.parametrize(
    ("first", "then"),
    [(FLOAT, SUBCHANNEL), (SUBCHANNEL, FLOAT), (SHORT_GQ, {**GQ, "method": "linear", "options": {}})],
    ids=["linear-subchannel", "subchannel-linear", "gq-linear"],
)
def test_another_recipe_does_not_resume_a_run(first, then, checkpoint, utterances, tmp_path):
    tune(tmp_path, checkpoint, recipe_of(first, steps=2), train=utterances)
    with pytest.raises(
        ValueError, match=r"^(method|options)=.* of the recipe differs from the run begun in .*, wh"
    ):
        tune(tmp_path, checkpoint, recipe_of(then, steps=2), train=utterances)


def test_other_rules_do_not_resume_a_run(checkpoint, utterances, tmp_path):
    tune(tmp_path, checkpoint, recipe_of(FLOAT, steps=2), train=utterances)
    with pytest.raises(ValueError, match=r"^rules=.*'bits': 4.* of the recipe differs"):
        tune(tmp_path, checkpoint, recipe_of({**NATIVE, "method": "linear"}, steps=2), train=utterances)


@pytest.mark.parametrize("is_seen_in_the_loss", [True, False])
def test_a_run_that_diverges_keeps_its_last_good_state(
    is_seen_in_the_loss, checkpoint, utterances, tmp_path, monkeypatch
):
    """Or its last step does: a finite loss whose gradient is not."""
    right = TuneModule.loss

    def wrong(self: TuneModule, features: torch.Tensor, batch: Batch) -> torch.Tensor:
        loss = right(self, features, batch)
        if self.global_step < 5:
            return loss
        return loss * torch.nan if is_seen_in_the_loss else loss + (0 * loss).sqrt()

    monkeypatch.setattr(TuneModule, "loss", wrong)
    said = (
        "at step 6 of 6 the loss is nan"
        if is_seen_in_the_loss
        else r"after step 6 network\.\S+ is not finite"
    )
    with pytest.raises(ValueError, match=f"^training diverged: {said}; lower learning_rate=0.001"):
        tune(tmp_path, checkpoint, recipe_of(NATIVE), train=utterances)
    state = torch.load(tmp_path / "training.ckpt", weights_only=True)
    assert 0 < state["global_step"] < 6
    assert all(torch.isfinite(value).all() for value in state["state_dict"].values())


def test_modules_are_not_hidden_by_what_they_hold():
    import subtone.train.fitting as fitting
    import subtone.train.tuning as tuning

    assert (tuning.tune, fitting.fit) == (tune, fit)


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


@pytest.mark.parametrize("document", [NATIVE, PACT, WEIGHTS_ONLY], ids=["dynamic", "clipped", "weights-only"])
def test_what_is_frozen_is_packed_and_hears_the_same(document, checkpoint, utterances, tmp_path):
    recipe = recipe_of(document, recalibration_batches=2, masks=1, steps=2)
    tuned = tune(tmp_path / "run", checkpoint, recipe, train=utterances).checkpoint
    write_packed(tmp_path / "t.subtone", package(tuned, name="t"))
    assert bool(tuned.quantization.activation_clips) == (document is PACT)
    packed, in_torch = Session.load(tmp_path / "t.subtone").recognizer, simulated(tuned).recognizer()
    products = [one for one in tuned.network.modules() if isinstance(one, nn.Conv1d)]
    terms = max(one.weight[0].numel() for one in products)
    is_equal: list[bool] = []
    for utterance in utterances[:6]:
        samples = read_audio(utterance.audio_path)
        features = tuned.front_end(samples)
        ours, theirs = packed.logits(features), in_torch.logits(features)
        # Sums in another order: each product may lose half an epsilon a term.
        bound = len(products) * terms / 2 * EPSILON * np.abs(theirs).max()
        is_equal.extend((np.abs(ours - theirs) <= bound).all(1))
        if document is WEIGHTS_ONLY:
            assert packed.hear(samples) == in_torch.hear(samples)
    if document is WEIGHTS_ONLY:
        assert all(is_equal)
    else:
        # An activation on the border of two levels may fall to either, and then no bound holds for the frames
        # that hear of it; a BatchNorm or a scale that is another would reach all frames.
        assert np.mean(is_equal) > 0.5


def test_recalibration_leaves_dropout_off():
    """The mean over batches, of all rows: dropout would lose half of them and double the rest."""
    network = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(4)).eval()
    batches = [torch.randn(2, 4, 50, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    nothing = Quantization(weights={}, activation_bits={}, bias_shifts={}, recipe={})
    recalibrate(network, nothing, batches)
    expected = [torch.stack([of(one) for one in batches]).mean(0) for of in (channel_mean, channel_variance)]
    torch.testing.assert_close(network[1].running_mean, expected[0])
    torch.testing.assert_close(network[1].running_var, expected[1])
    assert network[1].momentum == 0.1
    assert not any(module.training for module in network.modules())


def channel_mean(features: torch.Tensor) -> torch.Tensor:
    return features.mean((0, 2))


def channel_variance(features: torch.Tensor) -> torch.Tensor:
    return features.var((0, 2))


def test_training_may_start_on_the_grid(checkpoint, utterances, tmp_path):
    """With a rate that moves nothing, what is stored is where training started."""
    still = {"steps": 2, "learning_rate": 1e-12}
    float_start = tune(tmp_path / "a", checkpoint, recipe_of(NATIVE, **still), train=utterances)
    recipe = recipe_of(NATIVE, **still, compensation_batches=2)
    on_grid = tune(tmp_path / "b", checkpoint, recipe, train=utterances)
    before, after = (one.checkpoint.quantization.weights for one in (float_start, on_grid))
    assert not np.array_equal(before["head.weight"].codes, after["head.weight"].codes)
    network = copy.deepcopy(checkpoint.network)
    batches = batches_of(utterances, checkpoint, TuneSettings(**TRAINING), 2)
    start_compensated(network, method_of(recipe), ((one.features, one.lengths) for one in batches))
    expected = method_of(recipe).freeze(network).weights
    assert all(np.array_equal(weight.codes, after[path].codes) for path, weight in expected.items())


def test_training_may_start_from_refined_weights(checkpoint, utterances, tmp_path):
    still = {"steps": 2, "learning_rate": 1e-12, "compensation_batches": 2}
    compensated = tune(tmp_path / "a", checkpoint, recipe_of(NATIVE, **still), train=utterances)
    recipe = recipe_of(NATIVE, **still, compensation="refined")
    refined = tune(tmp_path / "b", checkpoint, recipe, train=utterances)
    before, after = (one.checkpoint.quantization.weights["head.weight"] for one in (compensated, refined))
    assert not np.array_equal(before.scale, after.scale)


def test_a_refined_start_without_batches_is_refused():
    with pytest.raises(ValueError, match="compensation='refined' has no effect at compensation_batches=0"):
        TuneSettings.of(recipe_of(NATIVE, steps=2, compensation="refined"))


def test_batches_go_on_with_further_passes(checkpoint, utterances):
    settings = TuneSettings(**TRAINING)
    few = utterances[:6]
    one_pass = len(passes_over(few, [0]))
    assert one_pass < 5 < 3 * one_pass
    drawn = list(batches_of(few, checkpoint, settings, 5))
    expected = passes_over(few, [0, 1, 2])[:5]
    assert len(drawn) == 5
    for one, other in zip(drawn, expected, strict=True):
        assert torch.equal(one.features, other.features)
        assert torch.equal(one.lengths, other.lengths)


def passes_over(utterances: list[Utterance], epochs: list[int]) -> list[Batch]:
    cuts, dataset = cuts_of(utterances, rate_hz=16000), FeatureDataset(FrontEnd(), ENGLISH)
    batches = []
    for epoch in epochs:
        batches += loader(cuts, dataset, batch_s=10.0, seed=0, is_shuffled=True, epoch=epoch)
    return batches


def test_statistics_to_be_taken_anew_need_a_batch_norm(checkpoint, utterances, tmp_path):
    network = copy.deepcopy(checkpoint.network)
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm1d):
                setattr(module, name, nn.Identity())
    bare = dataclasses.replace(checkpoint, network=network)
    with pytest.raises(
        ValueError, match=r"^recalibration_batches=2 has no effect on a network without BatchN"
    ):
        tune(tmp_path, bare, recipe_of(FLOAT, recalibration_batches=2), train=utterances)


# What tune() does with its settings ------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(checkpoint, utterances, tmp_path_factory) -> dict[str, torch.Tensor]:
    """Two steps by the default settings."""
    folder = tmp_path_factory.mktemp("plain")
    return state_of(tune(folder, checkpoint, recipe_of(FLOAT, steps=2), train=utterances).checkpoint)


@pytest.mark.parametrize("setting", [{"distillation": 0.5}, {"precision": "bfloat16"}], ids=str)
def test_a_setting_changes_what_is_learnt(setting, plain, checkpoint, utterances, tmp_path):
    other = state_of(
        tune(tmp_path, checkpoint, recipe_of(FLOAT, steps=2, **setting), train=utterances).checkpoint
    )
    assert not torch.equal(plain["head.weight"], other["head.weight"])
    assert all(value.dtype == plain[name].dtype for name, value in other.items())


def test_statistics_of_a_tuned_model_are_those_of_its_batches(checkpoint, utterances, tmp_path):
    """By torch's own second pass over the first batches of the corpus, behind the weights as stored."""
    recipe = recipe_of(NATIVE, steps=2, recalibration_batches=2)
    tuned = tune(tmp_path, checkpoint, recipe, train=utterances).checkpoint
    twin = copy.deepcopy(tuned.network)
    simulate(twin, tuned.quantization)
    batches = passes_over(utterances, [0])[:2]
    update_bn([batch.features[:, :, : int(batch.lengths.min())] for batch in batches], twin)
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(tuned.network.state_dict()[name], value, msg=name)
        if "running" in name:
            assert not torch.allclose(checkpoint.network.state_dict()[name], value)


def test_the_convergence_of_s8bqat_is_in_the_curve(checkpoint, utterances, tmp_path):
    tuned = tune(tmp_path, checkpoint, recipe_of(S8BQAT), train=utterances)
    assert len(tuned.curve) > 1
    assert "gamma" not in tuned.curve[0]  # in the warm-up
    assert all(0 < row["gamma"] <= 1 for row in tuned.curve[1:])
    json.dumps(tuned.curve, allow_nan=False)


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

    return method_of(Recipe.from_dict({"name": "f", **FLOAT})).freeze(checkpoint.network)


def test_a_twin_of_the_teacher_has_nothing_to_learn_from_it(checkpoint, utterances):
    batch = FeatureDataset(FrontEnd(), ENGLISH)[cuts_of(utterances[:3], rate_hz=16000)]
    teacher = checkpoint.network
    for share in (1.0, 0.25):
        settings = TuneSettings(**TRAINING, distillation=share)
        module = TuneModule(checkpoint, settings=settings, teacher=teacher)
        plain = TuneModule(checkpoint, settings=TuneSettings(**TRAINING), teacher=None)
        loss, ctc = (one.loss(batch.features, batch) for one in (module, plain))
        torch.testing.assert_close(loss, (1 - share) * ctc, atol=1e-6, rtol=1e-5)
        assert not [name for name in module.state_dict() if "teacher" in name]


def test_a_float_control_has_nothing_to_learn_from_its_own_layers(checkpoint, utterances, tmp_path):
    settings = {**LAYERS, "precision": "bfloat16"}
    tuned = tune(tmp_path, checkpoint, recipe_of(FLOAT, **settings), train=utterances)
    assert [row["loss"] for row in tuned.curve] == [0.0] * len(tuned.curve)
    after = state_of(tuned.checkpoint)
    assert all(torch.equal(value, after[name]) for name, value in state_of(checkpoint).items())


def test_layers_in_few_bits_come_nearer_to_the_float_ones(checkpoint, utterances, tmp_path):
    settings = {**LAYERS, "steps": 24, "epoch_s": 30.0, "learning_rate": 1e-2, "learning_rate_unit": "rms"}
    document = {**NATIVE, "rules": [{"bits": 3}]}
    curve = tune(tmp_path, checkpoint, recipe_of(document, **settings), train=utterances).curve
    assert curve[-1]["loss"] < 0.8 * curve[0]["loss"]


def test_biases_and_gains_may_learn_at_another_rate(checkpoint):
    settings = TuneSettings(**TRAINING, others_rate=0.25)
    module = TuneModule(checkpoint, settings=settings, teacher=None)
    groups = module.configure_optimizers()["optimizer"].param_groups
    rates = {id(parameter): group["max_lr"] for group in groups for parameter in group["params"]}
    for name, parameter in module.network.named_parameters():
        is_weight = parameter.dim() > 1
        assert rates[id(parameter)] == (1e-3 if is_weight else 2.5e-4), name


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
    with pytest.raises(ValueError, match=r"^train has no utterances; give at least one$"):
        tune(tmp_path, checkpoint, recipe_of(NATIVE, compensation_batches=1), train=[])
    with pytest.raises(
        ValueError, match=r"distilled_layers='x' has no effect at distillation=0; give a share"
    ):
        tune(tmp_path, checkpoint, recipe_of(NATIVE, distilled_layers="x"), train=utterances)
    with pytest.raises(ValueError, match=r"^distilled_layers='x' matches no module that is called; the netw"):
        tune(
            tmp_path, checkpoint, recipe_of(NATIVE, distillation=1.0, distilled_layers="x"), train=utterances
        )
    tuned = tune(tmp_path, checkpoint, recipe_of(NATIVE, steps=2), train=utterances).checkpoint
    with pytest.raises(ValueError, match=r"is already quantized \(by tuned\)"):
        tune(tmp_path, tuned, recipe_of(NATIVE), train=utterances)


def test_settings_travel_as_plain_json():
    resolved = recipe_of(GQ, distillation=0.5).resolved()
    assert Recipe.from_dict(json.loads(json.dumps(resolved))) == recipe_of(GQ, distillation=0.5)


def test_a_folder_of_a_run_is_made(checkpoint, utterances, tmp_path: Path):
    tune(tmp_path / "new", checkpoint, recipe_of(FLOAT, steps=2), train=utterances)
    assert (tmp_path / "new" / "training.ckpt").is_file()
