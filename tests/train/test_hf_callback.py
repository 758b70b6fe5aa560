"""A model of the Hugging Face Trainer trains with any method, by a callback and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.pull import FEATURES, Pull, recipe_of, rows
from torch import Tensor, nn
from torch.utils.data import Dataset

from subtone.quantize import METHODS, Recipe

transformers = pytest.importorskip("transformers", reason="needs the extra hf")
from subtone.train import HfQuantize  # noqa: E402

SCALE = 1 + 2**-8  # what the stand-in makes of weights after its first step


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    monkeypatch.setitem(METHODS, "pull", Pull)


class Rows(Dataset):
    def __len__(self) -> int:
        return len(rows()[0])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        features, targets = rows()
        return {"features": features[index], "labels": targets[index]}


class UserModel(nn.Module):
    """As the Trainer wants it: a dictionary with the loss."""

    def __init__(self, *, loss_scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(FEATURES, 16), nn.Linear(16, 1)
        self.loss_scale = loss_scale
        with torch.no_grad():
            self.first.weight.copy_((self.first.weight * 64).round())
            self.first.weight /= 64

    def forward(self, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        loss = nn.functional.mse_loss(self.second(self.first(features).relu()), labels)
        return {"loss": self.loss_scale * loss}


def train(
    model: nn.Module, folder: Path, *callbacks: Any, resume: Any = None, **options: Any
) -> list[dict[str, float]]:
    """Batches of 8 rows in order, by stochastic gradient descent with a learning rate of 1/8; the log."""
    settings: dict[str, Any] = {
        "max_steps": 1,
        "learning_rate": 0.125,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "save_strategy": "no",
    }
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **{"logging_strategy": "no", **settings, **options},
    )
    trainer = transformers.Trainer(
        model=model, args=arguments, train_dataset=Rows(), callbacks=list(callbacks)
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer.state.log_history


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("is_bf16", [False, True])
def test_the_gradient_of_the_penalty_is_added_once_an_optimizer_step(accumulated, is_bf16, tmp_path):
    model, callback = UserModel(loss_scale=0.0), HfQuantize(recipe_of(strength=2.0))
    expected = model.first.weight.detach().clone()
    options = {"max_steps": 3, "gradient_accumulation_steps": accumulated, "bf16": is_bf16}
    train(model, tmp_path, callback, **options)
    for step in range(3):
        expected = (expected - 0.125 * (2.0 * expected)) * (1 + (step + 1) * 2**-8)
    assert torch.equal(model.first.weight, expected)
    assert callback.run.step == 3


def test_it_is_added_after_clipping_and_not_clipped(tmp_path):
    """Lightning's hook comes before: see `test_callbacks.py`."""
    model = UserModel(loss_scale=0.0)
    before = model.first.weight.detach().clone()
    train(model, tmp_path, HfQuantize(recipe_of(strength=2.0)), max_grad_norm=1e-3)
    assert torch.equal(model.first.weight, (before - 0.125 * (2.0 * before)) * SCALE)


@pytest.mark.parametrize("method", ["pull", "native"])
def test_a_run_resumed_from_a_checkpoint_goes_on_identically(method, tmp_path):
    options = {"max_steps": 4, "learning_rate": 0.01, "save_strategy": "steps", "save_steps": 2}
    whole, callback = UserModel(), HfQuantize(recipe_of(method))
    train(whole, tmp_path, callback, **options)
    resumed, again = UserModel(), HfQuantize(recipe_of(method))
    train(resumed, tmp_path, again, resume=str(tmp_path / "checkpoint-2"), **options)
    assert again.run.step == callback.run.step == 4
    assert all(torch.equal(*pair) for pair in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert type(resumed.first) is nn.Linear
    assert list(again.freeze().weights) == ["first.weight"]


def test_a_callback_can_be_made_again_from_its_state():
    callback = HfQuantize(recipe_of(strength=0.25), submodule="encoder")
    again = HfQuantize.from_state(callback.state())
    assert (again.run.recipe, again.run.submodule) == (callback.run.recipe, "encoder")


def test_mistakes_are_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"method='linear' has no part in training"):
        HfQuantize(recipe_of("linear"))
    two = [HfQuantize(recipe_of()), HfQuantize(recipe_of())]
    with pytest.raises(ValueError, match="callbacks holds 2 HfQuantize; give one"):
        train(UserModel(), tmp_path, *two)
    arguments = transformers.TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    for name in ("fsdp", "deepspeed"):
        setattr(arguments, name, ["full_shard"])
        with pytest.raises(ValueError, match=f"{name} shards weights"):
            HfQuantize(recipe_of()).on_train_begin(
                arguments, transformers.TrainerState(), transformers.TrainerControl(), model=UserModel()
            )
        setattr(arguments, name, None)


def test_a_model_of_the_library_trains_with_its_own_paths(tmp_path):
    """Wav2Vec2 with CTC, built from a configuration: convolutions, attention and projections at 4 bits."""
    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(
        vocab_size=5,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8, 8),
        conv_kernel=(10, 3),
        conv_stride=(5, 2),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        ctc_loss_reduction="mean",
        mask_time_prob=0.0,
    )
    model = transformers.Wav2Vec2ForCTC(config)
    rules = [
        {"pattern": "lm_head.*", "bits": 8, "activations": "dynamic"},
        {"bits": 4, "activations": "dynamic"},
    ]
    callback = HfQuantize(Recipe.from_dict({"name": "r", "method": "native", "rules": rules}))

    class Sounds(Dataset):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> dict[str, Tensor]:
            return {"input_values": torch.randn(200), "labels": torch.tensor([1, 2])}

    before = model.lm_head.weight.detach().clone()
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        save_strategy="no",
        logging_strategy="no",
    )
    transformers.Trainer(model=model, args=arguments, train_dataset=Sounds(), callbacks=[callback]).train()
    assert not torch.equal(model.lm_head.weight, before)
    frozen = callback.freeze()
    assert frozen.weights["lm_head.weight"].bits == 8
    assert frozen.weights["wav2vec2.encoder.layers.0.attention.q_proj.weight"].bits == 4


def test_what_a_method_tells_of_its_progress_is_in_the_trainers_log(tmp_path):
    recipe = Recipe.from_dict(
        {
            "name": "r",
            "method": "s8bqat",
            "options": {"tau_steps": 2, "warmup_steps": 1},
            "rules": [
                {"pattern": "first.*", "bits": 4, "grid": "codebook", "granularity": "tensor"},
                {"keep_float": True},
            ],
        }
    )
    settings = {"max_steps": 3, "logging_strategy": "steps", "logging_steps": 1}
    callback = HfQuantize(recipe)
    history = train(UserModel(), tmp_path, callback, **settings)
    gammas = [row["gamma"] for row in history if "loss" in row]
    assert gammas[2] == 1.0 > max(gammas[:2])  # two steps behind the warm-up: hard
    later: dict[str, float] = {}  # as Trainer.evaluate logs, when nothing trains any more
    callback.on_log(None, transformers.TrainerState(), transformers.TrainerControl(), logs=later)
    assert not later
