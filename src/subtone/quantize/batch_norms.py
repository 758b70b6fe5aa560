"""How far what enters each BatchNorm is from what it saw in training: Eq. 2 of zero-shot quantization.

A BatchNorm keeps the mean and variance of what entered it on the training data. Kim et al. 2022
(Integer-only Zero-shot Quantization, Eq. 2) take both as those of a Gaussian and ask for features
whose own are near: KL(N(stored) || N(of the features)), the stored one first, so that what the
training data spread over may not be missing.

    kl = log(sigma / sigma_hat) + (sigma_hat^2 + (mu_hat - mu)^2) / (2 sigma^2) - 1/2

per channel, hats on the stored ones; the mean over a layer's channels, summed over layers (as the
authors' code, PAPERS.md zs-loss). Ours: `epsilon` is added to both variances, so that equal statistics
have a divergence of exactly 0 and a channel that never moves one that is finite; the variance is the
unbiased one, since that is what a BatchNorm stores.

Letters: B batch, C channels, T frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Forward = Callable[[Tensor], object]
"""Runs a network on features (B, F, T), whatever layout it takes itself."""


def trained_batch_norms(network: nn.Module) -> dict[str, _BatchNorm]:
    """Path -> every BatchNorm of `network`.

    ValueError: there is none, or one without statistics of training data: none are kept, they are as new
    (mean 0 and variance 1 in all channels), or they are no mean and variance at all.
    """
    norms = {path: module for path, module in network.named_modules() if isinstance(module, _BatchNorm)}
    if not norms:
        raise ValueError(
            f"network={type(network).__name__} has no BatchNorm, whose statistics synthetic features are "
            "made from; calibrate it on recordings instead"
        )
    for path, norm in norms.items():
        mean, variance = norm.running_mean, norm.running_var
        if mean is None or variance is None:
            raise ValueError(
                f"BatchNorm {path} has track_running_stats=False, so it keeps no statistics of its training data; "
                "calibrate on recordings instead"
            )
        if not (torch.isfinite(mean).all() and torch.isfinite(variance).all() and (variance >= 0).all()):
            raise ValueError(
                f"BatchNorm {path} holds statistics that are not finite or a variance below 0; "
                "repair the checkpoint"
            )
        if not mean.any() and (variance == 1).all():
            raise ValueError(
                f"BatchNorm {path} has running_mean=0 and running_var=1 in all {norm.num_features} channels, as one "
                "that was never trained; train the network, or calibrate it on recordings instead"
            )
    return norms


def divergence(entering: Tensor, norm: _BatchNorm, *, epsilon: float) -> Tensor:
    """KL(N(stored) || N(entering)), the mean over channels: a scalar of at least 0, with a gradient.

    `entering` (B, C, ...): what enters `norm`; at least two values a channel. Computed in float32.

    >>> norm = nn.BatchNorm1d(1)
    >>> float(divergence(torch.tensor([[[-1.0, 0.0, 1.0]]]), norm, epsilon=1e-6))  # mean 0, variance 1
    0.0
    """
    values = entering.float().reshape(*entering.shape[:2], -1)
    count = values.shape[0] * values.shape[2]
    # Over frames first: torch reduces the last axis alone ten times as quickly as axes 0 and 2 at once.
    mean = values.mean(2).mean(0)
    centred = values - mean[:, None]
    variance = centred.square().sum(2).sum(0) / (count - 1) + epsilon
    assert norm.running_mean is not None
    assert norm.running_var is not None
    stored = norm.running_var.float() + epsilon
    apart = (norm.running_mean.float() - mean).square()
    return (0.5 * (torch.log(variance / stored) + (stored + apart) / variance - 1)).mean()


@contextmanager
def watched(norms: dict[str, _BatchNorm], *, epsilon: float) -> Iterator[dict[str, Tensor]]:
    """Path -> the divergence at that BatchNorm in the last forward pass; clear it before the next one.

    One that is entered several times in a pass has the sum over them.
    """
    found: dict[str, Tensor] = {}

    def watch(path: str, norm: _BatchNorm) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            value = divergence(arguments[0], norm, epsilon=epsilon)
            found[path] = found[path] + value if path in found else value

        return hook

    handles = [norm.register_forward_pre_hook(watch(path, norm)) for path, norm in norms.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def held_still(network: nn.Module) -> Iterator[None]:
    """`network` in eval mode and without gradients into its parameters; afterwards as it was."""
    training = {module: module.training for module in network.modules()}
    wanted = {parameter: parameter.requires_grad for parameter in network.parameters()}
    network.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
        for parameter, is_wanted in wanted.items():
            parameter.requires_grad_(is_wanted)


def divergences(
    network: nn.Module, features: Tensor, *, forward: Forward | None = None, epsilon: float = 1e-6
) -> dict[str, float]:
    """Path of each BatchNorm -> its divergence (see `divergence`) when `network` hears `features` (B, F, T).

    `forward` runs the network where it does not take (B, F, T); by default it is called itself.
    ValueError as `trained_batch_norms`, and where no BatchNorm is reached.
    """
    with held_still(network), torch.no_grad():
        norms = trained_batch_norms(network)
        with watched(norms, epsilon=epsilon) as found:
            (forward or network)(features)
        check_reached(norms, found)
        return {path: float(value) for path, value in found.items()}


def check_reached(norms: dict[str, _BatchNorm], found: dict[str, Tensor]) -> None:
    """ValueError names a BatchNorm that a forward pass did not enter."""
    missed = [path for path in norms if path not in found]
    if missed:
        raise ValueError(
            f"the forward pass does not reach BatchNorm {missed[0]} ({len(missed)} of {len(norms)} in all); "
            "give a forward that runs the whole network"
        )
