"""Learned clips of activations: PACT (Choi et al. 2018, Eq. 1 to 3).

A product of few activation bits has a grid whose ends are its largest input, and one outlier makes all
steps coarse. PACT clips what comes in at `alpha`, which is learned by the gradient that a clipped value
no longer takes:

    y = clip(x, -alpha, alpha);   d y / d alpha = sign(x) where |x| >= alpha, else 0

Behind a ReLU, where no x is below 0, this is the paper's `clip(x, 0, alpha)` and its `1{x >= alpha}`.
Behind the clip a frame has its own scale as ever (docs/numerics.md, section 3), so a quiet frame keeps
fine steps, where the paper has one scale, alpha / (2**bits - 1), for all.

`alpha` is no parameter of the model, because an optimizer that exists already would not know it: it
starts at the largest magnitude that the first step brings, and the method moves it itself, by
gradient descent on `ln alpha`: a step is a share of alpha, whatever the unit of the activations, and
alpha stays positive (docs/equations.md, PACT-sgd):

    ln alpha <- ln alpha - clip_learning_rate * (alpha * d loss / d alpha + clip_decay)

`clip_decay` is the paper's L2 decay, which takes the same share of alpha at every step. It is what
makes a clip fall at all: that a finer grid rounds less is no part of a straight-through gradient. Where
alpha comes to rest, a clip that is one percent lower costs `clip_decay / 100` of loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

LEAST_ALPHA = 2.0**-60
"""Where a clip that nothing holds ends up; frames below 2**-100 are silent (docs/numerics.md)."""
LARGEST_STEP = 0.1
"""Of `ln alpha`: a loss that is a sum over a batch, or one bad batch, cannot throw a clip away."""


class _Clip(torch.autograd.Function):
    """`values` clipped at `alpha`, with the gradient of both."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, alpha: Tensor) -> Tensor:
        # One byte a value is kept for the backward pass: -1, 0 or 1.
        ctx.save_for_backward((values >= alpha).to(torch.int8) - (values <= -alpha).to(torch.int8))
        return torch.clamp(values, -alpha, alpha)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (side,) = ctx.saved_tensors  # type: ignore[attr-defined]
        (gradient,) = gradients
        to_values = gradient.masked_fill(side != 0, 0) if ctx.needs_input_grad[0] else None  # type: ignore[attr-defined]
        return to_values, (gradient * side).sum() if ctx.needs_input_grad[1] else None  # type: ignore[attr-defined]


def clip_activations(values: Tensor, alpha: Tensor) -> Tensor:
    """`values` (any shape, float32) within [-alpha, alpha]; `alpha` is a positive scalar tensor.

    >>> alpha = torch.tensor(1.0, requires_grad=True)
    >>> clip_activations(torch.tensor([-3.0, 0.5, 1.0, 2.0]), alpha).sum().backward()
    >>> alpha.grad  # of -3, 1 and 2: -1 + 1 + 1
    tensor(1.)
    """
    return _Clip.apply(values, alpha)  # type: ignore[no-any-return]


class LearnedClip:
    """The clip of one product: `alpha`, None until values have come, and its gradient.

    Until the first step is over, alpha follows the largest magnitude and nothing is clipped: several
    batches may make one step, and several products share a weight. Passes without a gradient
    (validation) are clipped too, but never begin it.
    """

    def __init__(self) -> None:
        self._alpha: Tensor | None = None
        self._is_started = False

    @property
    def alpha(self) -> float | None:
        """A value of float32, as it is stored."""
        return None if self._alpha is None else float(self._alpha.detach())

    @property
    def is_started(self) -> bool:
        """Whether the first step is over."""
        return self._is_started

    def start(self, alpha: float) -> None:
        """Go on from `alpha`, on whatever device the next values are."""
        self._alpha, self._is_started = torch.tensor(alpha, requires_grad=True), True

    def __call__(self, values: Tensor) -> Tensor:
        """`values` as float32, clipped."""
        values = values.to(torch.float32)
        if not self._is_started and torch.is_grad_enabled():
            self._reach(values.detach())
        if self._alpha is None:
            return values
        if self._alpha.device != values.device:
            self._alpha = self._alpha.detach().to(values.device).requires_grad_()
        return clip_activations(values, self._alpha)

    def take_gradient(self) -> float:
        """`d loss / d alpha` since it was last taken."""
        if self._alpha is None or self._alpha.grad is None:
            return 0.0
        gradient = float(self._alpha.grad)
        self._alpha.grad = None
        return gradient

    def move(self, step: float) -> None:
        """`ln alpha` by `step`, but no further than LARGEST_STEP; not at all by one that is not finite.

        A gradient that overflowed is one that the optimizer leaves out too.
        """
        assert self._alpha is not None
        if math.isfinite(step):
            with torch.no_grad():
                factor = math.exp(min(max(step, -LARGEST_STEP), LARGEST_STEP))
                self._alpha.mul_(factor).clamp_(min=LEAST_ALPHA)

    def _reach(self, values: Tensor) -> None:
        largest = values.abs().amax() if values.numel() else values.new_zeros(())
        if not LEAST_ALPHA <= float(largest) < math.inf:
            return
        if self._alpha is None:
            self._alpha = largest.clone().requires_grad_()
        else:
            with torch.no_grad():
                self._alpha.copy_(torch.maximum(self._alpha, largest.to(self._alpha.device)))


def take_step(
    clips: Sequence[LearnedClip], *, learning_rate: float, decay: float, device: torch.device
) -> None:
    """Move every clip that has seen values, after a step of the optimizer.

    The first step starts a clip and moves nothing. Under torch.distributed gradients are averaged over
    all processes, which call this together, and a start is the largest of theirs, so that all hold the
    same clips. `device` is where they exchange.
    """
    gradients = [clip.take_gradient() for clip in clips]
    starts = [0.0 if clip.alpha is None else clip.alpha for clip in clips]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        exchanged = torch.tensor([gradients, starts], dtype=torch.float32, device=device)
        torch.distributed.all_reduce(exchanged[0])
        torch.distributed.all_reduce(exchanged[1], op=torch.distributed.ReduceOp.MAX)
        gradients = (exchanged[0] / torch.distributed.get_world_size()).tolist()
        starts = exchanged[1].tolist()
    for clip, gradient, start in zip(clips, gradients, starts, strict=True):
        if not start:
            continue
        if not clip.is_started:
            clip.start(start)
            continue  # what came of the largest value alone says nothing
        clip.move(-learning_rate * (start * gradient + decay))
