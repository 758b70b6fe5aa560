"""One training run from utterances to a checkpoint, resumed where it was killed."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import pickle
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import nn

from subtone.files import replacing
from subtone.models import Network, TransducerNetwork, build, is_transducer, preset
from subtone.models.checkpoints import Checkpoint
from subtone.models.options import with_options
from subtone.speech.data import Utterance
from subtone.speech.front_end import MelFrontEnd
from subtone.speech.text import Tokenizer, WordErrors
from subtone.train.averaging import KeepEpochs, mean_of
from subtone.train.data import FeatureDataset, check_utterances, cuts_of, loader, longest_s
from subtone.train.ends import ENGLISH as ENGLISH
from subtone.train.ends import front_end_of, tokenizer_of
from subtone.train.module import SpeechModule
from subtone.train.settings import Learning, TrainSettings

Precision = Literal["32-true", "bf16-mixed"]
STATE_NAME = "training.ckpt"

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fitted:
    """A trained network and its word errors on the dev set."""

    checkpoint: Checkpoint
    dev_errors: WordErrors


def fit(
    folder: Path | str,
    *,
    settings: TrainSettings,
    train: Sequence[Utterance],
    dev: Sequence[Utterance],
    front_end: MelFrontEnd | None = None,
    tokenizer: Tokenizer | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Fitted:
    """Train `settings.model` on `train`; the last step's weights, or the mean of the last epochs'.

    `front_end` and `tokenizer` are those of the settings, unless given.

    After each epoch the state goes to `folder/training.ckpt`, whole or not at all. A call
    that finds one goes on from there and ends, on the same machine and number of threads, with
    the weights of a run that was never killed; one that finds a finished run returns it.

    `progress(done, total)` counts steps. A GPU is used where torch sees one, in bfloat16; on a CPU
    float32, since bfloat16 gained 16 % with AMX and loses without.

    Raises:
        ValueError: no utterances, a text that the labels cannot spell or that is too long for its
            sound, an utterance of `train` longer than a batch, a state in `folder` that belongs to
            other settings; a loss or a weight that is no longer finite, before that is saved.
    """
    if not dev:
        raise ValueError("dev has no utterances; give at least one")
    front_end = front_end or front_end_of(settings.front_end, train)
    tokenizer = tokenizer or tokenizer_of(settings.num_pieces, train)
    torch.manual_seed(settings.seed)
    ends = {"num_features": front_end.num_features, "num_outputs": len(tokenizer.labels) + 1}
    config = with_options(preset(settings.model), settings.model_options).with_ends(**ends)
    network = build(config.to_json())
    module = SpeechModule(network, tokenizer=tokenizer, settings=settings, num_mels=front_end.num_mels)
    run(
        folder,
        module,
        train=train,
        dev=dev,
        front_end=front_end,
        progress=progress,
        averaged_epochs=settings.averaged_epochs,
    )
    checkpoint = Checkpoint(network=network.cpu().eval(), front_end=front_end, tokenizer=tokenizer)
    return Fitted(checkpoint=checkpoint, dev_errors=module.errors)


def check_speech(
    module: SpeechModule, *, train: Sequence[Utterance], dev: Sequence[Utterance], front_end: MelFrontEnd
) -> None:
    """ValueError if `run` could not learn from `train` or be measured on `dev`, which may be empty."""
    steps = cast(Network | TransducerNetwork, module.network).frames_per_step
    fastest, is_ctc = max(module.settings.speeds), not is_transducer(module.network)
    check_utterances("train", train, front_end, module.tokenizer, steps, fastest=fastest, is_ctc=is_ctc)
    if dev:
        check_utterances("dev", dev, front_end, module.tokenizer, steps, fastest=1.0, is_ctc=is_ctc)


def run(
    folder: Path | str,
    module: SpeechModule,
    *,
    train: Sequence[Utterance],
    dev: Sequence[Utterance],
    front_end: MelFrontEnd,
    progress: Callable[[int, int], None] | None = None,
    callbacks: Sequence[Callback] = (),
    precision: Precision | None = None,
    averaged_epochs: int = 1,
) -> None:
    """Train `module` as its settings say, from the state in `folder` if there is one; see `fit`.

    `dev` may be empty; otherwise `module.errors` are those of the last step on it. Its batches hold
    `batch_s`, or its longest utterance. After more than one of `averaged_epochs` the weights are the mean of
    those at their ends, and `module.errors` theirs.
    """
    folder, settings = Path(folder), module.settings
    network = cast(Network | TransducerNetwork, module.network)
    check_speech(module, train=train, dev=dev, front_end=front_end)
    state = folder / STATE_NAME
    module.data = digest_of(train, front_end, module.tokenizer, network)
    epoch = epoch_to_resume(state, module) if state.is_file() else 0
    dataset, dev_set = (
        FeatureDataset(
            front_end,
            module.tokenizer,
            frames_per_step=network.frames_per_step,
            is_ctc=not is_transducer(network),
        )
        for _ in range(2)
    )
    train_loader = loader(
        cuts_of(train, rate_hz=front_end.rate_hz, speeds=settings.speeds),
        dataset,
        batch_s=settings.batch_s,
        epoch_s=settings.epoch_s,
        seed=settings.seed,
        is_shuffled=True,
        joined=settings.joined,
        epoch=epoch,
    )
    dev_loader = None
    if dev:
        dev_cuts = cuts_of(dev, rate_hz=front_end.rate_hz)
        dev_loader = loader(
            dev_cuts,
            dev_set,
            batch_s=max(settings.batch_s, longest_s(dev_cuts)),
            seed=settings.seed,
            is_shuffled=False,
        )
    folder.mkdir(parents=True, exist_ok=True)
    kept = KeepEpochs(averaged_epochs)
    if averaged_epochs > 1:
        callbacks = [kept, *callbacks]
    with quiet_lightning(), plain_interrupt():
        trainer = make_trainer(folder, settings, progress, callbacks, precision)
        ckpt_path = state if state.is_file() else None
        trainer.fit(module, train_loader, dev_loader, ckpt_path=ckpt_path, weights_only=True)
        if averaged_epochs > 1:
            network.load_state_dict(mean_of(kept.states))
            if dev_loader is not None:
                trainer.validate(module, dev_loader, verbose=False)


def digest_of(
    train: Sequence[Utterance], front_end: MelFrontEnd, tokenizer: Tokenizer, network: nn.Module
) -> str:
    """What a run begins with, so that another is not taken for it: who says what in which file (its folder's
    name and its own) of how many bytes and seconds, the features and labels, and the weights before the
    first step."""
    facts = []
    for item in train:
        path = item.audio_path
        facts.append(
            (path.parent.name, path.name, path.stat().st_size, item.duration_s, item.text, item.speaker)
        )
    document = [facts, front_end.to_json(), tokenizer.to_json()]
    digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode())
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        digest.update(value.cpu().numpy().tobytes())
    return digest.hexdigest()


def epoch_to_resume(state: Path, module: SpeechModule) -> int:
    """The epoch after the one at whose end `state` was written; ValueError if it is another run's.

    A run is what it learns from, its settings and its recipe: `module.data`, `.settings`, `.recipe`.

    The sampler must know it beforehand: Lightning draws the first batches before it tells it.
    """
    try:
        document = torch.load(state, map_location="cpu", weights_only=True)
        theirs, epoch, their_data = document["settings"], document["epoch"], document["data"]
        their_recipe = document["recipe"]
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        raise ValueError(f"{state} is damaged, or of another version; remove it to start over") from error
    ours = module.settings.model_dump(mode="json")
    if their_data != module.data:
        raise ValueError(
            f"the run begun in {state.parent} learns from other data, or began with other weights; choose "
            "another folder"
        )
    for name, value in ours.items():
        if theirs.get(name) != value:
            raise ValueError(
                f"{name}={value!r} differs from the run begun in {state.parent}, where it is "
                f"{theirs.get(name)!r}; choose another folder, or the same settings to go on"
            )
    for name in sorted({*module.recipe, *their_recipe}):
        if module.recipe.get(name) != their_recipe.get(name):
            raise ValueError(
                f"{name}={brief(module.recipe.get(name))} of the recipe differs from the run begun in "
                f"{state.parent}, where it is {brief(their_recipe.get(name))}; choose another folder, or the "
                "same recipe to go on"
            )
    return epoch + 1


def brief(value: object) -> str:
    """`value` in an error, not longer than a line."""
    return f"{value!r:.80}"


class WholeFiles(TorchCheckpointIO):
    """Lightning's states written beside and renamed, so that the last good one stands until the next does.

    Its own writer goes through the folder for temporary files; where that is another file system, the
    move from there writes over the old state bit by bit.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        # Through a file of Python's: torch's own turns a full disk into a RuntimeError.
        with replacing(os.fspath(path)) as beside, beside.open("wb") as file:
            torch.save(checkpoint, file)


def make_trainer(
    folder: Path,
    settings: Learning,
    progress: Callable[[int, int], None] | None,
    callbacks: Sequence[Callback],
    precision: Precision | None,
) -> lightning.Trainer:
    """Lightning's part: the loop, clipping, devices and the state on disk."""
    on_gpu = torch.cuda.is_available()
    keep_state = ModelCheckpoint(
        folder,
        filename=Path(STATE_NAME).stem,
        enable_version_counter=False,
        save_on_train_epoch_end=True,
    )
    return lightning.Trainer(
        default_root_dir=folder,
        accelerator="gpu" if on_gpu else "cpu",
        devices=1,
        precision=precision or ("bf16-mixed" if on_gpu else "32-true"),
        # Watch counts the steps: a Trainer with max_steps that resumes at an epoch's end counts that
        # epoch twice (2.6.6), and tells the sampler so.
        max_epochs=-1,
        gradient_clip_val=settings.clip_norm,
        accumulate_grad_batches=settings.batches_per_step,
        plugins=[WholeFiles()],
        callbacks=[keep_state, Watch(settings.steps, progress), *callbacks],
        use_distributed_sampler=False,  # Lhotse's sampler splits between processes itself
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


class Watch(Callback):
    """Ends the run after `steps`, tells `progress` of each, and the log where a run goes on."""

    def __init__(self, steps: int, progress: Callable[[int, int], None] | None) -> None:
        self.steps = steps
        self.progress = progress

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        trainer.should_stop = trainer.global_step >= self.steps  # resumed after its end
        if trainer.global_step:
            log.info("going on after step %d of %d", trainer.global_step, self.steps)

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: object) -> None:
        trainer.should_stop = trainer.global_step >= self.steps
        if self.progress:
            self.progress(trainer.global_step, self.steps)


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
    """Without Lightning's greetings, and without those warnings that do not apply here."""
    greeter = logging.getLogger("lightning.pytorch")
    level = greeter.level
    greeter.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # Features lie in memory; a worker process would only copy them.
            warnings.filterwarnings("ignore", message=".*does not have many workers")
            # A dev set is a choice, and so are BatchNorms that keep their statistics.
            warnings.filterwarnings("ignore", message=".*have no `val_dataloader`")
            warnings.filterwarnings("ignore", message=".*module\\(s\\) in eval mode at the start")
            # Resuming means to find the state in the folder.
            warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
            # torch renamed a class that Lightning 2.6 still asks for (DESIGN.md, section 5).
            warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
            yield
    finally:
        greeter.setLevel(level)


@contextlib.contextmanager
def plain_interrupt() -> Iterator[None]:
    """Ctrl-C as KeyboardInterrupt; Lightning turns it into a silent exit and ignores the next one."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise OSError("training was ended by a signal; run the same command again to go on") from error
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt("the same command goes on after the last epoch") from error
