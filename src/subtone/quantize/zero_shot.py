"""Spectrograms for calibration, made from a network and no recording: zero-shot quantization.

Kim et al. 2022, Integer-only Zero-shot Quantization for Efficient Speech Recognition, section II-C.
Noise goes into the float network; Adam moves it, not the network, until what enters every BatchNorm
has the mean and deviation that the BatchNorm keeps of its training data (Eq. 2, batch_norms.py).
What the network then computes lies where it does on speech, and ranges can be taken from it.

    synthesis = synthesize(network, SynthesisSettings(num_batches=1), num_features=64)
    synthesis.features      # (8, 64, 500), for calibration in place of real ones

How few steps do, on QuartzNet15x5: the loss of one batch, and how far the largest input of its 171
convolutions is from that on 32 recordings of train-clean-100 (mean of |log2| of the ratio):

    iterations      0     25     50     75    100    150    200
    loss          932   22.9   15.9   12.8   10.7    8.3    6.9
    apart               0.59   0.48   0.40   0.38   0.37   0.36     seed 0; seeds 1 to 3: 0.40 0.31 0.47 at 150

U[-3, 3] has a loss of 288 and is 0.82 apart; 32 other recordings are 0.23, 8 others 0.24 or 0.33, one
alone 0.59. All four batches together are 0.39 apart: more of them widen the ranges (from 0.99 of the real
ones, the geometric mean, to 1.16) and bring them no nearer. So a CPU does with one batch of 150
iterations where the paper has 20 of 200. An iteration took 2.5 s of one core in float32 (4.8 before depthwise.py), 1.6 in
bfloat16: 4 minutes a batch, where all 20 x 200 in float32 take 2.8 hours. In bfloat16 the loss fell alike
(13.4 after 70 iterations, 13.6 in float32; its features heard in float32 have the same loss).

Letters: N spectrograms in all, B of them at once, F features, T frames.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Literal, Self

import numpy as np
import pydantic
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from subtone.quantize.batch_norms import (
    Forward,
    check_reached,
    held_still,
    trained_batch_norms,
    watched,
)
from subtone.quantize.depthwise import turned_depthwise
from subtone.quantize.rules import STRICT

Progress = Callable[[int, int, float], None]
"""Called with the steps done, those in all, and the loss of the last one."""


class SynthesisSettings(pydantic.BaseModel):
    """How spectrograms are made; the defaults are the paper's.

    * `batch_size`, `num_frames`: B and T of a batch; `num_batches` of them are made one after another.
    * `initial_bound`: the noise at the start is uniform in [-initial_bound, initial_bound].
    * `iterations` (the paper: 200 or 250) of Adam at `learning_rate` (0.03 to 0.06) with `betas`; where the
      loss has not fallen for `patience` of them, the rate falls to a tenth, down to `least_learning_rate`.
    * `epsilon`: added to every variance.
    * `precision`: "bfloat16" runs products so, on machines that are quick at it.
    * `seed`: the noise. More batches leave the first ones as they are.
    """

    model_config = STRICT

    batch_size: int = Field(default=8, ge=1)
    num_frames: int = Field(default=500, ge=2)
    num_batches: int = Field(default=20, ge=1)
    initial_bound: float = Field(default=0.3, gt=0, allow_inf_nan=False)
    iterations: int = Field(default=200, ge=1)
    learning_rate: float = Field(default=0.05, gt=0, allow_inf_nan=False)
    betas: tuple[float, float] = Field(default=(0.9, 0.999), strict=False)
    patience: int = Field(default=25, ge=0)
    least_learning_rate: float = Field(default=1e-4, ge=0, allow_inf_nan=False)
    epsilon: float = Field(default=1e-6, gt=0, allow_inf_nan=False)
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = Field(default=0, ge=0, lt=2**63)

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={self.betas} must lie in [0, 1); use (0.9, 0.999)")
        return self


@dataclasses.dataclass(frozen=True, kw_only=True)
class Synthesis:
    """What `synthesize` gives.

    * `features` (N, F, T) float32, batch after batch.
    * `losses` (num_batches, iterations + 1): Eq. 2 before each step, and of the features as they are given.
    * `seconds`, `cpu_seconds` (num_batches,): what each batch took, by the clock and of all cores together.
    """

    features: NDArray[np.float32]
    losses: NDArray[np.float64]
    seconds: NDArray[np.float64]
    cpu_seconds: NDArray[np.float64]


def synthesize(
    network: nn.Module,
    settings: SynthesisSettings,
    *,
    num_features: int,
    forward: Forward | None = None,
    progress: Progress | None = None,
) -> Synthesis:
    """Features that leave in every BatchNorm of `network` the statistics of its training data.

    Where the network lies (CPU, GPU) and with the weights it has, which should be the float ones; it is
    afterwards as it was. It is called with float32 features (B, F, T), F = `num_features`, or by `forward`
    where it takes another layout: `forward=lambda features: model(features.transpose(1, 2))`.

    ValueError: the network has no trained BatchNorm (`trained_batch_norms`) or the pass does not reach one;
    the loss is not finite, which names the BatchNorm and the batch.
    """
    _check_count(num_features=num_features)
    generator = torch.Generator().manual_seed(settings.seed)
    shape = (settings.batch_size, num_features, settings.num_frames)
    features, losses, spent = [], [], []
    with torch.inference_mode(False), torch.enable_grad(), held_still(network), turned_depthwise(network):
        loss_of = _Loss(network, forward or network, settings)
        for batch_index in range(settings.num_batches):
            start_s = time.perf_counter(), time.process_time()
            noise = torch.rand(shape, generator=generator) * 2 - 1
            batch = (noise * settings.initial_bound).to(loss_of.device).requires_grad_()
            losses.append(_descend(batch, loss_of, settings, batch_index, progress))
            features.append(batch.detach().cpu().numpy())
            spent.append((time.perf_counter() - start_s[0], time.process_time() - start_s[1]))
    seconds, cpu_seconds = np.array(spent).T
    return Synthesis(
        features=np.concatenate(features), losses=np.array(losses), seconds=seconds, cpu_seconds=cpu_seconds
    )


def _descend(
    batch: Tensor, loss_of: _Loss, settings: SynthesisSettings, batch_index: int, progress: Progress | None
) -> list[float]:
    """Moves `batch` in place; the losses on the way."""
    optimizer = torch.optim.Adam([batch], lr=settings.learning_rate, betas=settings.betas)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, patience=settings.patience, min_lr=settings.least_learning_rate
    )
    losses = []
    for iteration in range(settings.iterations):
        where = f"batch {batch_index}, iteration {iteration}"
        loss = loss_of(batch, where)
        (batch.grad,) = torch.autograd.grad(loss, [batch])
        losses.append(float(loss.detach()))
        optimizer.step()
        schedule.step(losses[-1])
        if progress is not None:
            done = batch_index * settings.iterations + iteration + 1
            progress(done, settings.num_batches * settings.iterations, losses[-1])
    with torch.no_grad():
        losses.append(float(loss_of(batch, f"batch {batch_index}, at its end")))
    return losses


class _Loss:
    """Eq. 2 of a batch; `where` is for its complaint."""

    def __init__(self, network: nn.Module, forward: Forward, settings: SynthesisSettings) -> None:
        self.norms = trained_batch_norms(network)
        first = next(iter(self.norms.values())).running_mean
        assert first is not None
        self.device = first.device
        self.forward = forward
        self.settings = settings

    def __call__(self, batch: Tensor, where: str) -> Tensor:
        is_reduced = self.settings.precision == "bfloat16"
        with watched(self.norms, epsilon=self.settings.epsilon) as found:
            with torch.autocast(batch.device.type, torch.bfloat16, enabled=is_reduced):
                self.forward(batch)
            check_reached(self.norms, found)
        loss = torch.stack(list(found.values())).sum()
        if not math.isfinite(float(loss.detach())):
            path = next((path for path, value in found.items() if not torch.isfinite(value)), "?")
            raise ValueError(
                f"the divergence at BatchNorm {path} is {float(found[path].detach())} ({where}) with "
                f"learning_rate={self.settings.learning_rate:g}; use a lower learning_rate, and see that the "
                "network's weights are finite"
            )
        return loss


def random_features(
    *, num_spectrograms: int, num_features: int, num_frames: int = 500, bound: float = 3.0, seed: int = 0
) -> NDArray[np.float32]:
    """Uniform noise in [-bound, bound], shape (N, F, T): the paper's control (section IV-A, Table II).

    >>> random_features(num_spectrograms=2, num_features=64).shape
    (2, 64, 500)
    """
    _check_count(num_spectrograms=num_spectrograms, num_features=num_features, num_frames=num_frames)
    if not (math.isfinite(bound) and bound > 0):
        raise ValueError(f"bound={bound} must be finite and above 0; the paper's is 3")
    shape = (num_spectrograms, num_features, num_frames)
    return np.random.default_rng(seed).uniform(-bound, bound, shape).astype(np.float32)


def _check_count(**counts: int) -> None:
    for name, count in counts.items():
        if type(count) is not int or count < 1:
            raise ValueError(f"{name}={count!r} must be a whole number of at least 1")
