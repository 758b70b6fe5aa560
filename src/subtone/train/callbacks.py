"""A callback is all you need (GQ, section 3.4): any LightningModule trains with any TrainingMethod.

Lightning 2.6.6 calls, in this order, what matters here:

    setup, then the checkpoint's weights and callback states, then the strategy wraps the model (DDP)
    and makes the optimizers, `on_fit_start`: attach. Ranks hold equal weights by now, on their device
    a batch: forward, backward; accumulated batches end here
    AMP unscales the gradients, `on_before_optimizer_step`: before_step
    gradient clipping, the optimizer's step, `on_train_batch_end`: after_step
    ModelCheckpoint saves and validation runs, in any case after after_step
    `on_fit_end`, or `on_exception`: detach

So the gradient of a penalty is added once an optimizer step, in full precision, and is clipped together
with that of the loss. Under DDP the loss's gradient is averaged by then; each rank adds the same
gradient to the same weights, because DDP takes no part in a backward pass without a forward pass.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import nn

from subtone.models.checkpoints import Quantization
from subtone.quantize import Recipe, TrainingMethod, method_of

SHARDED = (FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy)


def training_method_of(recipe: Recipe) -> TrainingMethod:
    """The method of `recipe`; ValueError if it has no part in training."""
    method = method_of(recipe)
    if not isinstance(method, TrainingMethod):
        raise ValueError(
            f"recipe {recipe.name}: method={recipe.method!r} has no part in training; "
            "use `subtone quantize` on the trained checkpoint"
        )
    return method


class MethodInRun:
    """A training method's part in one run, whatever framework steps: attach, count, save, resume, freeze.

    Args:
        recipe: names the method.
        submodule: path of the module to quantize within the one that trains; "" is the whole.
    """

    def __init__(self, recipe: Recipe, *, submodule: str = "") -> None:
        training_method_of(recipe)
        self.recipe = recipe
        self.submodule = submodule
        self.step = 0
        """Optimizer steps since the method was attached, over all resumed runs."""
        self._method: TrainingMethod | None = None
        self._model: nn.Module | None = None
        self.is_attached = False
        """Whether training goes on now, from `begin` to `end`."""
        self._is_step_open = False
        self._state: Mapping[str, Any] | None = None

    def begin(self, module: nn.Module, *, state: Mapping[str, Any] | None) -> None:
        """Attach a new method to the part of `module` that is meant, and go on from `state` if given."""
        self.end()  # a run that ended in an exception, where no hook says so
        if state is not None and state["recipe"] != self.recipe.resolved():
            raise ValueError(
                f"recipe {self.recipe.name} differs from the one that the checkpoint was trained with "
                f"({state['recipe']['name']}); resume with that one, or start a run without the checkpoint"
            )
        self._model = _part_of(module, self.submodule)
        self._method = training_method_of(self.recipe)
        self._method.attach(self._model)
        self.is_attached, self._is_step_open, self.step = True, False, 0
        if state is not None:
            self.step = state["step"]
            self._method.load_state_dict(state["method"])

    def holds_any_of(self, parameters: list[nn.Parameter]) -> bool:
        """Whether one of `parameters` is a weight that is being quantized."""
        assert self._method is not None
        ours = {id(weight.parameter) for weight in self._method.weights.values()}
        return any(id(parameter) in ours for parameter in parameters)

    def before_step(self) -> None:
        """Once the gradients of a step are whole."""
        assert self._method is not None
        self._method.before_step(self.step)
        self._is_step_open = True

    def after_step(self) -> None:
        """Any time after a step; nothing where there was none."""
        if not self._is_step_open:
            return
        assert self._method is not None
        self._method.after_step(self.step)
        self._is_step_open = False
        self.step += 1

    def metrics(self) -> dict[str, float]:
        """What the method has to tell of its progress now."""
        assert self._method is not None
        return self._method.metrics()

    def end(self) -> None:
        """Detach, if anything is attached."""
        if self.is_attached:
            assert self._method is not None
            self._state = self.state_dict()
            self._method.detach()
            self.is_attached = False

    def state_dict(self) -> dict[str, Any]:
        """What `begin` needs to go on; {} before the first run."""
        if self.is_attached:
            assert self._method is not None
            method = copy.deepcopy(self._method.state_dict())
            return {"recipe": self.recipe.resolved(), "step": self.step, "method": method}
        return dict(self._state or {})

    def freeze(self) -> Quantization:
        """What the run has trained, as the recipe wants it stored."""
        if self._method is None or self._model is None:
            raise ValueError(f"recipe {self.recipe.name}: nothing has been trained yet; freeze after the run")
        if self.is_attached:
            raise ValueError(f"recipe {self.recipe.name}: training has not ended yet; freeze after the run")
        return self._method.freeze(self._model)


def _part_of(module: nn.Module, path: str) -> nn.Module:
    try:
        return module.get_submodule(path)
    except AttributeError as error:
        names = ", ".join(name for name, _ in module.named_children()) or "none"
        raise ValueError(
            f"submodule={path!r} is not in {type(module).__name__}; its modules are {names}"
        ) from error


class Quantize(Callback):
    """Trains any LightningModule by a recipe: `Trainer(callbacks=[Quantize(Recipe.load("gq.toml"))])`.

    Steps count from 0 where the method first joins, whatever `trainer.global_step` is by then. The state
    travels in Lightning's checkpoints, whose weights keep the names of the plain model; a resumed run
    goes on identically. After the fit the module is plain again and its weights are float ones;
    `freeze()` gives what will be stored.

    After each epoch it logs the method's metrics (S8BQAT: "gamma") as `self.log` in the module would.

    Works with automatic and manual optimization. Of several optimizers only the one that holds the
    quantized weights counts steps; if it steps several times within one batch, these are one step.

    Args:
        recipe: its method takes part in training; "linear" does not.
        submodule: path of the module to quantize within the LightningModule, to which the recipe's
            patterns are relative; "" is the whole.

    Raises:
        ValueError: an unknown method or one without training, a submodule that is not there, an
            optimizer that holds none of the weights, a strategy that shards them, a checkpoint of
            another recipe; and what the method refuses when it is attached.
    """

    def __init__(self, recipe: Recipe, *, submodule: str = "") -> None:
        self.run = MethodInRun(recipe, submodule=submodule)
        self._resumed: Mapping[str, Any] | None = None

    def freeze(self) -> Quantization:
        """What the fit has trained; ValueError before it has ended."""
        return self.run.freeze()

    def setup(self, trainer: lightning.Trainer, module: lightning.LightningModule, stage: str) -> None:
        if stage == "fit" and isinstance(trainer.strategy, SHARDED):
            raise ValueError(
                f"{type(trainer.strategy).__name__} shards weights, and a method needs them whole; use "
                'strategy="ddp"'
            )

    def on_fit_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.run.begin(module, state=self._resumed)
        self._resumed = None
        if not any(self.run.holds_any_of(_parameters_of(one)) for one in trainer.optimizers):
            self.run.end()
            raise ValueError(
                f"recipe {self.run.recipe.name}: no optimizer holds any of its weights; pass them to one, or "
                "use `subtone quantize`"
            )

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if self.run.holds_any_of(_parameters_of(optimizer)):
            self.run.before_step()

    def on_train_batch_end(self, *_: object) -> None:
        self.run.after_step()

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        module.log_dict(self.run.metrics(), sync_dist=True)  # equal in all processes, as weights are

    def on_fit_end(self, *_: object) -> None:
        self.run.end()

    def on_exception(self, *_: object) -> None:
        self.run.end()

    def state_dict(self) -> dict[str, Any]:
        return self.run.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resumed = state_dict


def _parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
