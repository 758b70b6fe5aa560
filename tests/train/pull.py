"""A training method whose effect is known in closed form, and a user's module to train with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pydantic
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from subtone.models.checkpoints import Quantization
from subtone.quantize import METHODS, Recipe, Rule, TrainingMethod, quantizable_weights, quantize_weight
from subtone.quantize.method import Batch
from subtone.quantize.rules import STRICT, assign
from subtone.train.fitting import quiet_lightning

ROOT = Path(__file__).resolve().parents[2]


class PullOptions(pydantic.BaseModel):
    model_config = STRICT
    strength: float = 0.5


class Pull(TrainingMethod):
    """Pulls every weight to 0: the penalty `strength / 2 * sum w**2`, whose gradient is `strength * w`."""

    Options = PullOptions
    options: PullOptions

    def attach(self, model: nn.Module) -> None:
        super().attach(model)
        self.before: list[int] = []
        self.after: list[int] = []
        self.total = torch.zeros(())

    def penalty(self, step: int) -> Tensor:
        self.before.append(step)
        return self.options.strength / 2 * sum(w.parameter.square().sum() for w in self.weights.values())

    def after_step(self, step: int) -> None:
        """Remembers, and rewrites by what it remembers, so that a lost state shows in the weights."""
        self.after.append(step)
        self.total += 1
        with torch.no_grad():
            for weight in self.weights.values():
                weight.parameter.mul_(1 + self.total.item() * 2**-8)

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.total = state["total"].clone()

    def freeze(self, model: nn.Module, *, calibration: Iterable[Batch] | None = None) -> Quantization:
        weights = quantizable_weights(model)
        settings = {path: of for path, of in assign(self.recipe, model).items() if not of.keep_float}
        return Quantization(
            weights={path: quantize_weight(weights[path].values(), of) for path, of in settings.items()},
            activation_bits=dict.fromkeys(settings, 0),
            bias_shifts={},
            recipe=self.recipe.resolved(),
        )


def recipe_of(method: str = "pull", **options: Any) -> Recipe:
    rules = [{"pattern": "*first.weight", "bits": 4}, {"keep_float": True}]
    return Recipe.from_dict({"name": "r", "method": method, "options": options, "rules": rules})


SCHEDULES = {"gq": {"end_step": 10, "every_steps": 2}, "s8bqat": {"tau_steps": 4}}
"""For runs of two epochs of six steps: each acts in both."""


def recipe_for(method: str) -> Recipe:
    """The stand-in's; or what the first of this method's recipes says of weights, for both layers."""
    if method == "pull":
        return recipe_of()
    paths = sorted((ROOT / "recipes").glob("*.toml"))
    found = [Recipe.load(path) for path in paths if f'method = "{method}"' in path.read_text()]
    if not found:
        return Recipe.from_dict({"name": method, "method": method, "rules": [{"bits": 4}]})
    settings = next(rule.settings for rule in found[0].rules if not rule.settings.keep_float)
    options = {**found[0].options, **SCHEDULES.get(method, {})}
    return found[0].model_copy(update={"rules": (Rule(settings=settings),), "options": options})


ROWS, FEATURES = 48, 8


def rows() -> tuple[Tensor, Tensor]:
    random = np.random.default_rng(0)
    features = torch.from_numpy(random.standard_normal((ROWS, FEATURES)).astype(np.float32))
    return features, features.square().sum(1, keepdim=True).sqrt()


class UserModule(lightning.LightningModule):
    """Not ours: two layers, one of them quantized, and a loss of its own; `loss_scale` 0 leaves the penalty."""

    def __init__(self, *, loss_scale: float = 1.0, learning_rate: float = 0.125) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(FEATURES, 16), nn.Linear(16, 1)
        self.loss_scale, self.learning_rate = loss_scale, learning_rate
        with torch.no_grad():
            self.first.weight.copy_((self.first.weight * 64).round())  # exact under the products of tests
            self.first.weight /= 64

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        # Every rank is given the whole batch and takes its share.
        features, targets = (part[self.global_rank :: self.trainer.world_size] for part in batch)
        return self.loss_scale * nn.functional.mse_loss(self.second(self.first(features).relu()), targets)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate, momentum=0.5 * (self.loss_scale > 0))


def fit_user_module(
    module: lightning.LightningModule,
    *callbacks: Any,
    ckpt_path: Any = None,
    **options: Any,
) -> lightning.Trainer:
    """`max_epochs` of six batches each, in order."""
    loader = DataLoader(TensorDataset(*rows()), batch_size=8, shuffle=False)
    settings: dict[str, Any] = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "devices": 1,
        "enable_checkpointing": False,
    }
    with quiet_lightning():
        trainer = lightning.Trainer(
            **{**settings, **options},
            callbacks=list(callbacks),
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, loader, ckpt_path=ckpt_path, weights_only=True)
    return trainer


def train_on_two_processes(folder: str, *methods: str) -> None:
    """Half a batch on each; the weights of rank 0 go to `folder/method.pt`."""
    from subtone.train import Quantize

    torch.set_num_threads(1)
    METHODS["pull"] = Pull
    options: dict[str, Any] = {"strategy": "ddp_fork", "devices": 2, "use_distributed_sampler": False}
    for method in methods:
        save = _Save(f"{folder}/{method}.pt")
        fit_user_module(UserModule(learning_rate=0.01), Quantize(recipe_for(method)), save, **options)


class _Save(lightning.Callback):
    """In the process that trained, since a fork gives back its weights only."""

    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        assert trainer.world_size == 2
        if trainer.is_global_zero:
            torch.save(module.state_dict(), self.path)
