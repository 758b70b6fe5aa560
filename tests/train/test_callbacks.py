"""Somebody else's LightningModule trains with any method, by a callback and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from tests.train.pull import ROOT, Pull, UserModule, fit_user_module, recipe_for, recipe_of
from torch import nn

from subtone.quantize import METHODS, TrainingMethod
from subtone.train import Quantize
from subtone.train.callbacks import SHARDED

EPSILON = torch.finfo(torch.float32).eps


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    monkeypatch.setitem(METHODS, "pull", Pull)


TRAINING = [name for name, method in METHODS.items() if issubclass(method, TrainingMethod)]


# What is added to gradients, when, how often --------------------------------------------------


@pytest.mark.parametrize("accumulated", [1, 2, 3])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_gradient_of_the_penalty_is_added_once_an_optimizer_step(accumulated, precision):
    """Without a loss, w becomes w (1 - lr * strength) at each step, and what the stand-in makes of it."""
    module, callback = UserModule(loss_scale=0.0), Quantize(recipe_of(strength=2.0))
    expected = module.first.weight.detach().clone()
    fit_user_module(module, callback, accumulate_grad_batches=accumulated, precision=precision)
    steps = 6 // accumulated
    for step in range(steps):
        expected = (expected - 0.125 * (2.0 * expected)) * (1 + (step + 1) * 2**-8)
    assert torch.equal(module.first.weight, expected)
    assert callback.run.step == steps
    assert callback.run._method.before == callback.run._method.after == list(range(steps))


def test_it_is_added_to_the_gradients_of_the_loss():
    gradients = {}

    class Watch(lightning.Callback):
        """Before the penalty joins (as listed before it) or after."""

        def __init__(self, name: str) -> None:
            self.name = name

        def on_before_optimizer_step(self, trainer, module, optimizer) -> None:
            gradients.setdefault(self.name, module.first.weight.grad.clone())

        @property
        def state_key(self) -> str:
            return self.name

    module = UserModule()
    before = module.first.weight.detach().clone()
    fit_user_module(module, Watch("loss"), Quantize(recipe_of(strength=2.0)), Watch("both"))
    assert gradients["loss"].any()
    assert torch.equal(gradients["both"], gradients["loss"] + 2.0 * before)


def test_it_is_clipped_together_with_that_of_the_loss():
    module = UserModule(loss_scale=0.0)
    before = module.first.weight.detach().clone()
    fit_user_module(
        module,
        Quantize(recipe_of(strength=2.0)),
        gradient_clip_val=0.25,
        gradient_clip_algorithm="value",
        limit_train_batches=1,
    )
    expected = (before - 0.125 * (2.0 * before).clamp(-0.25, 0.25)) * (1 + 2**-8)
    assert torch.equal(module.first.weight, expected)


def test_gradients_scaled_for_float16_are_unscaled_before():
    """What a GPU does in "16-mixed", by a scaler of the CPU."""
    plugin = lightning.pytorch.plugins.MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))
    module = UserModule(loss_scale=0.0)
    before = module.first.weight.detach().clone()
    fit_user_module(module, Quantize(recipe_of(strength=2.0)), plugins=[plugin], limit_train_batches=1)
    assert torch.equal(module.first.weight, (before - 0.125 * (2.0 * before)) * (1 + 2**-8))


class TwoOptimizers(UserModule):
    """Manual optimization, each layer with an optimizer of its own."""

    def __init__(self) -> None:
        super().__init__(loss_scale=0.0)
        self.automatic_optimization = False

    def training_step(self, batch, index) -> None:
        loss = super().training_step(batch, index)
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers(self):
        return [torch.optim.SGD(layer.parameters(), lr=0.125) for layer in (self.first, self.second)]


def test_of_several_optimizers_the_one_with_the_weights_counts():
    module, callback = TwoOptimizers(), Quantize(recipe_of(strength=2.0))
    before = module.first.weight.detach().clone()
    fit_user_module(module, callback, limit_train_batches=1)
    assert callback.run.step == 1
    assert torch.equal(module.first.weight, (before - 0.125 * (2.0 * before)) * (1 + 2**-8))


# Checkpoints and processes --------------------------------------------------------------------


class PowerCutError(Exception):
    """Ends a run between two steps."""


class PowerCut(lightning.Callback):
    def on_train_batch_end(self, trainer, *_) -> None:
        if trainer.global_step == 8:
            raise PowerCutError


def keep(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(
        folder, filename="state", save_on_train_epoch_end=True, enable_version_counter=False
    )


@pytest.mark.filterwarnings("ignore:.*annealing is unfinished")  # six steps are not meant to end it
@pytest.mark.parametrize("method", ["pull", *TRAINING])
def test_a_killed_run_goes_on_identically(method, tmp_path):
    recipe = recipe_for(method)
    whole, learning_rate = UserModule(learning_rate=0.01), 0.01
    callback = Quantize(recipe)
    fit_user_module(whole, callback, max_epochs=2)

    with pytest.raises(PowerCutError):
        killed = [Quantize(recipe), keep(tmp_path), PowerCut()]
        fit_user_module(
            UserModule(learning_rate=learning_rate), *killed, max_epochs=2, enable_checkpointing=True
        )
    state = torch.load(tmp_path / "state.ckpt", weights_only=True)
    assert list(state["state_dict"]) == list(UserModule().state_dict())
    assert state["callbacks"]["Quantize"]["step"] == 6
    plain = UserModule(learning_rate=learning_rate)
    fit_user_module(plain)
    assert not torch.equal(state["state_dict"]["first.weight"], plain.first.weight)  # it had acted by then

    resumed, again = UserModule(learning_rate=learning_rate), Quantize(recipe)
    fit_user_module(
        resumed,
        again,
        keep(tmp_path),
        ckpt_path=tmp_path / "state.ckpt",
        max_epochs=2,
        enable_checkpointing=True,
    )
    assert again.run.step == callback.run.step == 12
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    if method == "gq":  # and after it: the hard assignment came in the second epoch
        assert all(len(row.unique()) <= 2 for row in resumed.first.weight)
        assert any(len(row.unique()) > 2 for row in state["state_dict"]["first.weight"])
    frozen, expected = again.freeze(), callback.freeze()
    for path, weight in expected.weights.items():
        assert (frozen.weights[path].codes == weight.codes).all()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> Path:
    """Weights trained on two processes, `<method>.pt`."""
    folder = tmp_path_factory.mktemp("two")
    script = "import sys; from tests.train.pull import train_on_two_processes as train; train(*sys.argv[1:])"
    command = [sys.executable, "-c", script, str(folder), "pull", *TRAINING]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("method", ["pull", *TRAINING])
def test_two_processes_agree_with_one_on_the_same_batches(method, two_processes):
    ours = torch.load(two_processes / f"{method}.pt", weights_only=True)
    single = UserModule(learning_rate=0.01)
    start = {name: value.clone() for name, value in single.state_dict().items()}
    fit_user_module(single, Quantize(recipe_for(method)))
    for name, value in single.state_dict().items():
        # Six steps; each gradient is a sum over 8 rows in another order, then at most doubled by momentum.
        moved = (value - start[name]).abs().max()
        bound = 6 * 8 * 2 * EPSILON * (moved + value.abs().max())
        assert moved > 0
        assert (ours[name] - value).abs().max() <= bound, name


# After the fit --------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*annealing is unfinished")  # six steps are not meant to end it
@pytest.mark.parametrize("method", TRAINING)
def test_every_method_trains_freezes_and_leaves_a_plain_module(method):
    module, callback = UserModule(learning_rate=0.01), Quantize(recipe_for(method))
    before = module.first.weight.detach().clone()
    fit_user_module(module, callback)
    assert type(module.first) is nn.Linear
    assert list(module.state_dict()) == list(UserModule().state_dict())
    assert not torch.equal(module.first.weight, before)
    quantization = callback.freeze()
    assert set(quantization.weights) == {"first.weight", "second.weight"}
    assert quantization.recipe["method"] == method


def test_a_part_of_the_module_is_quantized_by_its_own_paths():
    class Wrapped(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.inner = UserModule()
            self.training_step = self.inner.training_step
            self.configure_optimizers = self.inner.configure_optimizers

    callback = Quantize(recipe_of(), submodule="inner")
    fit_user_module(Wrapped(), callback)
    assert list(callback.freeze().weights) == ["first.weight"]


def test_a_run_that_failed_leaves_a_plain_module_that_trains_again():
    module, callback = UserModule(), Quantize(recipe_of("native"))
    with pytest.raises(PowerCutError):
        fit_user_module(module, callback, PowerCut(), max_epochs=2)
    assert type(module.first) is nn.Linear
    fit_user_module(module, callback)
    assert callback.run.step == 6


# Mistakes -------------------------------------------------------------------------------------


def test_an_unknown_method_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"recipe r: method='nativ' is not known; did you mean native\?"):
        Quantize(recipe_of("nativ"))


def test_a_method_without_training_is_sent_to_the_command():
    with pytest.raises(ValueError, match=r"method='linear' has no part in training; use `subtone quantize`"):
        Quantize(recipe_of("linear"))


@pytest.mark.parametrize("strategy", SHARDED)
def test_strategies_that_shard_weights_are_refused(strategy):
    trainer = SimpleNamespace(strategy=strategy.__new__(strategy))
    with pytest.raises(ValueError, match=rf"{strategy.__name__} shards weights, .* use strategy=\"ddp\""):
        Quantize(recipe_of()).setup(trainer, UserModule(), "fit")
    assert {FSDPStrategy, DeepSpeedStrategy} <= set(SHARDED)


def test_a_submodule_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(
        ValueError, match=r"submodule='encoder' is not in UserModule; its modules are first, second"
    ):
        fit_user_module(UserModule(), Quantize(recipe_of(), submodule="encoder"))


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path):
    fit_user_module(UserModule(), Quantize(recipe_of()), keep(tmp_path), enable_checkpointing=True)
    other = [Quantize(recipe_of(strength=0.25)), keep(tmp_path)]
    with pytest.raises(
        ValueError, match=r"recipe r differs from the one that the checkpoint was trained with"
    ):
        fit_user_module(
            UserModule(), *other, ckpt_path=tmp_path / "state.ckpt", max_epochs=2, enable_checkpointing=True
        )


def test_an_optimizer_without_the_weights_is_refused():
    class OnlySecond(UserModule):
        def configure_optimizers(self):
            return torch.optim.SGD(self.second.parameters(), lr=0.1)

    module = OnlySecond()
    with pytest.raises(ValueError, match="recipe r: no optimizer holds any of its weights"):
        fit_user_module(module, Quantize(recipe_of("native")))
    assert type(module.first) is nn.Linear


def test_freezing_before_the_run_or_within_it_is_refused():
    callback = Quantize(recipe_of())
    with pytest.raises(ValueError, match="nothing has been trained yet"):
        callback.freeze()

    class TooEarly(lightning.Callback):
        def on_train_batch_end(self, *_) -> None:
            with pytest.raises(ValueError, match="training has not ended yet"):
                callback.freeze()

    fit_user_module(UserModule(), callback, TooEarly(), limit_train_batches=1)
