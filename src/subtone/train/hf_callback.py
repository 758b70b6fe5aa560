"""The same callback for the Trainer of Hugging Face (extra `hf`).

transformers 5.23 calls, in this order: the checkpoint's weights and the optimizer are there,
`on_train_begin`: attach; the batches of a step; gradient clipping, which unscales the gradients under
fp16 even where `max_grad_norm` is 0; `on_pre_optimizer_step`: before_step; the optimizer's step,
`on_optimizer_step`: after_step; evaluation and saving; `on_train_end`: detach.

Hence, unlike on Lightning, the gradient of a penalty is added after clipping and is not clipped: a
weight of a penalty that was found with clipping pulls harder here. The hook before clipping that
Lightning has does not exist.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from subtone.models.checkpoints import Quantization
from subtone.quantize import Recipe
from subtone.train.callbacks import MethodInRun


class HfQuantize(TrainerCallback, ExportableState):
    """Trains any model of a Hugging Face Trainer by a recipe: `Trainer(..., callbacks=[HfQuantize(recipe)])`.

    The state travels in the Trainer's own `trainer_state.json`, and `train(resume_from_checkpoint=...)`
    goes on from it. After training the model is plain again; `freeze()` gives what will be stored.

    Args:
        recipe: its method takes part in training; "linear" does not.
        submodule: path of the module to quantize within the model; "" is the whole.

    Raises:
        ValueError: as `subtone.train.Quantize`; FSDP and DeepSpeed are refused.
    """

    def __init__(self, recipe: Recipe, *, submodule: str = "") -> None:
        self.run = MethodInRun(recipe, submodule=submodule)

    def freeze(self) -> Quantization:
        """What the run has trained; ValueError before it has ended."""
        return self.run.freeze()

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **_: Any,
    ) -> None:
        for name in ("fsdp", "deepspeed"):
            if getattr(args, name, None):
                raise ValueError(f"{name} shards weights, and a method needs them whole; train without it")
        assert model is not None
        callbacks: Any = state.stateful_callbacks
        saved = callbacks.get(type(self).__name__)
        if isinstance(saved, list):
            raise ValueError(f"callbacks holds {len(saved)} {type(self).__name__}; give one")
        text = saved["attributes"]["state"] if saved and state.global_step else ""
        self.run.begin(model, state=_from_text(text) if text else None)

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.run.before_step()

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.run.after_step()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """The method's metrics (S8BQAT: gamma) join what is logged: the history, the printed line.

        Loggers of `report_to` come before any callback of the user's, and do not see them.
        """
        if not self.run.is_attached:  # Trainer.evaluate, before or after training
            return
        metrics = self.run.metrics()
        state.log_history[-1].update(metrics)
        if logs is not None:
            logs.update(metrics)  # for the callbacks behind this one

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.run.end()

    def state(self) -> dict[str, Any]:
        """As JSON: the Trainer writes it beside its own state."""
        state = self.run.state_dict()
        return {
            "args": {"recipe": self.run.recipe.resolved(), "submodule": self.run.submodule},
            "attributes": {"state": _to_text(state) if state else ""},
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> HfQuantize:
        """Of `restore_callback_states_from_checkpoint`, which puts a new callback in place of ours."""
        return cls(Recipe.from_dict(state["args"]["recipe"]), submodule=state["args"]["submodule"])


def _to_text(state: dict[str, Any]) -> str:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _from_text(text: str) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(
        io.BytesIO(base64.b64decode(text)), map_location="cpu", weights_only=True
    )
    return loaded
