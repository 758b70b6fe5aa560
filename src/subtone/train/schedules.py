"""How the learning rate moves over a run.

* "one-cycle" (Smith & Topin 2018, torch's form): up to the highest over `warmup_share` of the steps along a
  half cosine from a 25th of it, then down along another to almost nothing. The last step's weights are the
  best there are.
* "noam" (Vaswani et al. 2017, Eq. 3, the schedule that GQ and the Conformer were trained by): with W warm-up
  steps, at step k = 1, 2, ..

      rate(k) = highest * min(k / W, sqrt(W / k))

  The paper writes its height as `width**-0.5 * W**-0.5` times a factor; ours is given by its highest rate,
  which it has at step W. It never ends, so that averaged checkpoints belong to it.
"""

from __future__ import annotations

import math

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from subtone.train.settings import Learning


def noam_factor(step: int, *, warmup_steps: int) -> float:
    """The rate at `step`, counted from 1, as a share of the highest.

    >>> [noam_factor(step, warmup_steps=4) for step in (1, 4, 16)]
    [0.25, 1.0, 0.5]
    """
    return min(step / warmup_steps, math.sqrt(warmup_steps / step))


def warmup_steps_of(settings: Learning) -> int:
    """The steps over which the rate rises, at least one.

    >>> warmup_steps_of(Learning(steps=120_000, batch_s=600.0, learning_rate=2e-3, warmup_share=1 / 12))
    10000
    """
    return max(1, round(settings.warmup_share * settings.steps))


def schedule_of(optimizer: Optimizer, settings: Learning) -> LRScheduler:
    """The schedule of `settings` for `optimizer`, whose groups have their highest rates; a step is a step."""
    if settings.schedule == "noam":
        warmup_steps = warmup_steps_of(settings)
        return LambdaLR(optimizer, lambda done: noam_factor(done + 1, warmup_steps=warmup_steps))
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=settings.steps,
        pct_start=settings.warmup_share,
        cycle_momentum=False,
    )
