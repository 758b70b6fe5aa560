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

from subtone.models import Network, TransducerNetwork, is_transducer
from subtone.models.checkpoints import Checkpoint, Quantization
from subtone.quantize import Recipe, TrainingMethod, decoded_twin, method_of
from subtone.quantize.simulate import simulate
from subtone.quantize.starting import start_compensated
from subtone.quantize.weights import quantizable_weights
from subtone.speech.data import Utterance
from subtone.train.callbacks import Quantize
from subtone.train.data import Batch, FeatureDataset, cuts_of, loader, longest_s
from subtone.train.distillation import divergence, matching_layers, outputs_of, relative_error
from subtone.train.fitting import check_speech, run
from subtone.train.module import SpeechModule
from subtone.train.settings import TuneSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuned:
    """A checkpoint in few bits, and how it came there: `curve` has a row an epoch (SpeechModule)."""

    checkpoint: Checkpoint
    curve: list[dict[str, float]]


class TuneModule(SpeechModule):
    """Training of a network that can hear already, and may listen to what `teacher` hears.

    The loss is `(1 - distillation)` of CTC or the transducer's, and `distillation` of how far it is from what
    the teacher has: the divergence of what it hears in each valid frame (a transducer: in each frame behind
    each part of the text), or the relative error of `distilled_layers` (distillation.py). The teacher hears
    features without masks.
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
        super().__init__(
            checkpoint.network,
            tokenizer=checkpoint.tokenizer,
            settings=settings,
            recipe=recipe,
            num_mels=checkpoint.front_end.num_mels,
        )
        assert (teacher is None) == (not settings.distillation)
        self._teacher = (teacher,)  # within a tuple, so that no checkpoint and no optimizer finds it
        pattern = settings.distilled_layers
        self._layers = matching_layers(self.network, pattern) if pattern else {}
        self._teachers_layers = matching_layers(teacher, pattern) if pattern and teacher is not None else {}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One a parameter, unless all have one rate; where rates are relative, all zeros count as 1."""
        settings, groups = self.settings, []
        if settings.learning_rate_unit == "absolute" and settings.others_rate == 1:
            return super().parameter_groups()
        weights = {id(weight.parameter) for weight in quantizable_weights(self.network).values()}
        for parameter in self.parameters():
            size = float(parameter.detach().square().mean().sqrt())
            unit = 1.0 if settings.learning_rate_unit == "absolute" else size or 1.0
            share = 1.0 if id(parameter) in weights else settings.others_rate
            groups.append({"params": [parameter], "lr": settings.learning_rate * unit * share})
        return groups

    def loss(self, features: Tensor, batch: Batch) -> Tensor:
        share, (teacher,) = self.settings.distillation, self._teacher
        if teacher is None:
            return super().loss(features, batch)
        with torch.no_grad(), outputs_of(self._teachers_layers) as meant_inside:
            meant = self.objective.pass_through(teacher.to(self.device), batch.features, batch)
        with outputs_of(self._layers) as given_inside:
            given = self.objective.pass_through(self.network, features, batch)
        if self._layers:
            distance = relative_error(given_inside, meant_inside)
        else:
            is_valid = self.objective.is_valid(given, batch)
            distances = [
                divergence(theirs.float().log_softmax(-1), ours.float().log_softmax(-1), is_valid)
                for theirs, ours in zip(meant.logits, given.logits, strict=True)
            ]
            distance = torch.stack(distances).mean()
        return share * distance + (1 - share) * self.objective.loss(given, batch) if share < 1 else distance


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
    check_speech(module, train=train, dev=dev, front_end=checkpoint.front_end)
    if settings.compensation_batches:
        heard = batches_of(train, checkpoint, settings, settings.compensation_batches)
        inputs = ((one.features, one.lengths) for one in heard)
        start_compensated(network, method, inputs, rounding=settings.compensation)
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
    network = cast(Network | TransducerNetwork, network.cpu().eval())
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
    network = checkpoint.network
    dataset = FeatureDataset(
        front_end,
        checkpoint.tokenizer,
        frames_per_step=network.frames_per_step,
        is_ctc=not is_transducer(network),
    )
    batch_s = max(settings.batch_s, longest_s(cuts))
    passes = (
        loader(cuts, dataset, batch_s=batch_s, seed=settings.seed, is_shuffled=True, epoch=index)
        for index in itertools.count()
    )
    return itertools.islice(itertools.chain.from_iterable(passes), count)
