"""A trained checkpoint brought to few bits while it learns: what `subtone quantize --train` does."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from subtone.models import Network
from subtone.models.checkpoints import Checkpoint, Quantization
from subtone.quantize import Recipe, TrainingMethod, decoded_twin, method_of
from subtone.quantize.simulate import simulate
from subtone.quantize.starting import start_compensated
from subtone.speech.data import Utterance
from subtone.train.callbacks import Quantize
from subtone.train.data import Batch, FeatureDataset, cuts_of, loader, longest_s
from subtone.train.fitting import run
from subtone.train.module import CtcModule
from subtone.train.settings import TuneSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuned:
    """A checkpoint in few bits, and how it came there: `curve` has a row an epoch (CtcModule)."""

    checkpoint: Checkpoint
    curve: list[dict[str, float]]


class TuneModule(CtcModule):
    """CTC training of a network that can hear already, and may listen to what `teacher` hears.

    The loss is `(1 - distillation)` of CTC and `distillation` of the Kullback-Leibler divergence from
    the teacher's distribution over labels in each valid frame, its mean over frames (Hinton et al. 2015,
    at temperature 1). The teacher hears features without masks.
    """

    settings: TuneSettings

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        settings: TuneSettings,
        teacher: nn.Module | None,
        recipe: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(checkpoint.network, tokenizer=checkpoint.tokenizer, settings=settings, recipe=recipe)
        self._teacher = (teacher,)  # within a tuple, so that no checkpoint and no optimizer finds it

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One a parameter where learning rates are relative; one that is all zeros counts as 1."""
        if self.settings.learning_rate_unit == "absolute":
            return super().parameter_groups()
        groups = []
        for parameter in self.parameters():
            size = float(parameter.detach().square().mean().sqrt())
            groups.append({"params": [parameter], "lr": self.settings.learning_rate * (size or 1.0)})
        return groups

    def loss(self, features: Tensor, batch: Batch) -> Tensor:
        logits, lengths = self(features, batch.lengths)
        heard = logits.float().log_softmax(dim=-1)
        share, (teacher,) = self.settings.distillation, self._teacher
        if teacher is None:
            return self.ctc(heard, lengths, batch)
        with torch.no_grad():
            meant = teacher.to(self.device)(batch.features, batch.lengths)[0].float().log_softmax(dim=-1)
        distance = divergence(meant, heard, lengths)
        return share * distance + (1 - share) * self.ctc(heard, lengths, batch) if share < 1 else distance


def divergence(meant: Tensor, heard: Tensor, lengths: Tensor) -> Tensor:
    """KL(meant || heard) a frame, of log-probabilities (B, T, V), the mean over the first `lengths` (B,) of each.

    >>> even = torch.full((1, 3, 2), 0.5).log()
    >>> round(float(divergence(even, torch.tensor([0.25, 0.75]).log().expand(1, 3, 2), torch.tensor([2]))), 4)
    0.1438
    """
    frames = torch.arange(heard.shape[1], device=heard.device)
    is_valid = frames < lengths[:, None].to(heard.device)
    return (meant.exp() * (meant - heard)).sum(-1)[is_valid].mean()


def tune(
    folder: Path | str,
    checkpoint: Checkpoint,
    recipe: Recipe,
    *,
    train: Sequence[Utterance],
    dev: Sequence[Utterance] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Tuned:
    """`checkpoint` trained on `train` by the recipe's method and its table `[training]`, then frozen.

    A method that takes no part in training ("linear") rounds what training left: with `keep_float`
    everywhere that is the float model tuned identically, the control of any comparison.

    The state goes to `folder` after every epoch, and a killed run goes on there, if it is of the same
    recipe (subtone.train.fitting). `checkpoint` itself is left as it is.

    Raises:
        ValueError: no `[training]`, a quantized checkpoint, statistics to be taken anew of a network
            that has none, and what `fit` and the method refuse.
    """
    settings = TuneSettings.of(recipe)
    recipe = recipe.model_copy(update={"training": settings.model_dump(mode="json")})
    checkpoint.require_float()
    if settings.recalibration_batches and not batch_norms_of(checkpoint.network):
        raise ValueError(
            f"recalibration_batches={settings.recalibration_batches} has no effect on a network without "
            "BatchNorm; leave it out"
        )
    teacher = copy.deepcopy(checkpoint.network).eval() if settings.distillation else None
    network = copy.deepcopy(checkpoint.network)
    module = TuneModule(
        dataclasses.replace(checkpoint, network=network),
        settings=settings,
        teacher=teacher,
        recipe=recipe.resolved(),
    )
    method = method_of(recipe)
    if settings.compensation_batches:
        heard = batches_of(train, checkpoint, settings, settings.compensation_batches)
        start_compensated(network, method, ((one.features, one.lengths) for one in heard))
    set_modes(network, settings)
    callback = Quantize(recipe, submodule="network") if isinstance(method, TrainingMethod) else None
    run(
        folder,
        module,
        train=train,
        dev=dev,
        front_end=checkpoint.front_end,
        progress=progress,
        callbacks=[callback] if callback else [],
        precision="bf16-mixed" if settings.precision == "bfloat16" else "32-true",
    )
    network = cast(Network, network.cpu().eval())
    quantization = callback.freeze() if callback else method.freeze(network)
    twin = decoded_twin(network, quantization)
    if settings.recalibration_batches:
        batches = batches_of(train, checkpoint, settings, settings.recalibration_batches)
        # Cut to the shortest utterance of each: no padding, which would count as sound.
        recalibrate(twin, quantization, (one.features[:, :, : int(one.lengths.min())] for one in batches))
    tuned = dataclasses.replace(checkpoint, network=twin, quantization=quantization)
    return Tuned(checkpoint=tuned, curve=module.curve)


def set_modes(network: nn.Module, settings: TuneSettings) -> None:
    """Training mode, but for BatchNorms that are to keep their statistics; Lightning leaves it so."""
    network.train()
    if settings.batch_norm == "frozen":
        for norm in batch_norms_of(network):
            norm.eval()


def batch_norms_of(network: nn.Module) -> list[_BatchNorm]:
    """Every BatchNorm in `network`."""
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


def recalibrate(network: nn.Module, quantization: Quantization, batches: Iterable[Tensor]) -> None:
    """Give every BatchNorm of `network`, which holds decoded weights, the statistics of `batches` (B, F, T).

    Each is the mean over batches. All else hears as it serves, in eval mode, without dropout (torch's
    `update_bn` would turn it on), and so is the network left.
    """
    handles = simulate(network.eval(), quantization)
    norms = batch_norms_of(network)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.train().momentum = None
    with torch.no_grad():
        for features in batches:
            network(features)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval().momentum = momentum
    for handle in handles:
        handle.remove()


def batches_of(
    train: Sequence[Utterance], checkpoint: Checkpoint, settings: TuneSettings, count: int
) -> Iterator[Batch]:
    """The first `count` batches of as many passes over `train` as they need, at its own speed."""
    front_end = checkpoint.front_end
    cuts = cuts_of(train, rate_hz=front_end.rate_hz)
    dataset = FeatureDataset(
        front_end, checkpoint.tokenizer, frames_per_step=checkpoint.network.frames_per_step
    )
    batch_s = max(settings.batch_s, longest_s(cuts))
    passes = (
        loader(cuts, dataset, batch_s=batch_s, seed=settings.seed, is_shuffled=True, epoch=index)
        for index in itertools.count()
    )
    return itertools.islice(itertools.chain.from_iterable(passes), count)
