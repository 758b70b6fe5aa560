"""The numbers behind three of the papers' figures, from the functions that quantize; no training.

* `channel_errors`: Fig. 2 of the 2-bit Conformer (int2), the error against the length of a channel.
* `soft_assignment`, `warped_centroids`: Fig. 1 of GQ, and `annealed_kernel`, what it does to weights.
* `region_penalty`: Fig. 2 of S8BQAT, MRACos and its gradient over the weights it was fitted to.

All give plain numbers, which `subtone report figures` prints or has drawn (report/figures.py). What a
figure leaves open is a constant here: int2's is reproducible from its text, GQ's and S8BQAT's show
weights that are not published.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from subtone.models.checkpoints import load_checkpoint
from subtone.quantize.absolute_cosine import AbsoluteCosine
from subtone.quantize.fake import fake_quantize_weight
from subtone.quantize.grids import Grid
from subtone.quantize.lloyd_max import lloyd_max
from subtone.quantize.method import check_finite
from subtone.quantize.mu_law import fit_mu, hard_assign, mu_law_centroids, mu_law_levels, soft_assign
from subtone.quantize.ranges import absmax
from subtone.quantize.regions import fit_regions
from subtone.quantize.rules import Settings
from subtone.quantize.weights import quantizable_weights

CHANNELS, CHANNEL_LENGTHS = 32, (32, 64, 128, 256, 512)
DRAWS = 20
"""Tensors [CHANNELS, length] that an error is the mean over; int2 does not say how many it drew."""
CURVES = ((1, False), (1, True), (4, False), (8, False), (4, True), (8, True))
"""(sub-channels, clipped): the curves of int2's Fig. 2, and a whole channel clipped besides."""
GQ_BITS, GQ_MU = 4, 8.0
"""mu is where GQ's training starts. The number of centroids in its Fig. 1 is not given."""
ALPHAS = (10.0, 30.0, 100.0, 500.0)
"""Of Eq. 2, per unit of [-1, 1]; the text names the first and the last."""
MUS = (0.0, 2.0, 8.0, 32.0, 89.0)
"""Up to where centroids of 4 bits begin to meet on k/128."""
S8BQAT_BITS, S8BQAT_REGIONS = 5, 3
"""Fig. 2a: 31 peaks in three regions."""
BETWEEN_CENTROIDS = np.concatenate((np.arange(0, 10) / 20, [0.4999, 0.5001], np.arange(11, 20) / 20))
"""Where the penalty is drawn, from one centroid to the next; halfway its gradient jumps."""
NORMAL_WEIGHTS = 65536
BINS = 256
"""Of a histogram: one a level k/128, which lies in its middle."""


def paper_curves(
    checkpoint: Path | None = None, *, weight: str | None = None, seed: int = 0
) -> dict[str, Any]:
    """All that `subtone report figures` shows: "int2_fig2", "gq_fig1" and "s8bqat_fig2".

    GQ's and S8BQAT's have one entry in "kernels" for normal weights, and one for a kernel of
    `checkpoint` where it is given.
    """
    kernels = {f"{NORMAL_WEIGHTS} normal weights": _normal_weights(seed)}
    if checkpoint is not None:
        name, values = kernel_of(checkpoint, weight)
        kernels[f"{name} of {checkpoint.name}"] = values
    elif weight is not None:
        raise ValueError(f"weight={weight!r} needs a CHECKPOINT that holds it; name one behind OUT")
    return {
        "seed": seed,
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "int2_fig2": {"channels": CHANNELS, "draws": DRAWS, "curves": channel_errors(seed=seed)},
        "gq_fig1": {
            "bits": GQ_BITS,
            "mu": GQ_MU,
            "assignment": soft_assignment(GQ_BITS, GQ_MU, ALPHAS),
            "warped": warped_centroids(GQ_BITS, MUS),
            "kernels": [
                {"name": name, **annealed_kernel(values, GQ_BITS, ALPHAS)} for name, values in kernels.items()
            ],
        },
        "s8bqat_fig2": {
            "bits": S8BQAT_BITS,
            "kernels": [
                {"name": name, **region_penalty(values, S8BQAT_BITS, max_regions=S8BQAT_REGIONS)}
                for name, values in kernels.items()
            ],
        },
    }


def kernel_of(checkpoint: Path, weight: str | None = None) -> tuple[str, Tensor]:
    """Path and values of a weight of `checkpoint`, over its largest magnitude; by default the largest one."""
    weights = quantizable_weights(load_checkpoint(checkpoint).network)
    path = max(weights, key=lambda name: weights[name].parameter.numel()) if weight is None else weight
    if path not in weights:
        near = difflib.get_close_matches(path, weights, n=1, cutoff=0.0)
        raise ValueError(
            f"weight={path!r} is no weight of {checkpoint} that can be quantized; one is called {near[0]}"
        )
    check_finite(path, weights[path].parameter)
    values = weights[path].values()
    if values.min() == values.max():
        raise ValueError(
            f"weight={path!r} of {checkpoint} has one value only, which makes no figure; name another"
        )
    return path, _over_range(values)


# int2, Fig. 2 -------------------------------------------------------------------------------


def channel_errors(
    *, lengths: Sequence[int] = CHANNEL_LENGTHS, draws: int = DRAWS, seed: int = 0
) -> list[dict[str, Any]]:
    """The mean absolute error of 2-bit asymmetric quantization of standard normal weights.

    As in int2's section 2.2: tensors [32, length], quantized and decoded; clipped by its greedy search of
    section 2.4, 0.5 to 1 by 0.05. A draw is the same tensor for all curves.

    Returns:
        one row of CURVES each: `sub_channels`, `is_clipped`, and `points` of `channel_length`, `error`
        (over all draws) and `deviation` (of the error of one draw).
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = {length: torch.randn(draws * CHANNELS, length, generator=generator) for length in lengths}
    return [
        {
            "sub_channels": parts,
            "is_clipped": is_clipped,
            "points": [
                {"channel_length": length, **_error_of(weights, parts, draws, is_clipped=is_clipped)}
                for length, weights in drawn.items()
            ],
        }
        for parts, is_clipped in CURVES
    ]


def _error_of(weights: Tensor, parts: int, draws: int, *, is_clipped: bool) -> dict[str, float]:
    settings = Settings(
        bits=2,
        grid="asymmetric",
        granularity="channel" if parts == 1 else "group",
        group_size=None if parts == 1 else weights.shape[1] // parts,
        range="clip_search" if is_clipped else "minmax",
    )
    errors = (fake_quantize_weight(weights, settings) - weights).abs().double()
    per_draw = errors.reshape(draws, -1).mean(
        1
    )  # rows are quantized apart, so draws may lie below each other
    return {"error": float(per_draw.mean()), "deviation": float(per_draw.std(correction=0))}


# GQ, Fig. 1 ---------------------------------------------------------------------------------


def soft_assignment(bits: int, mu: float, alphas: Sequence[float]) -> list[dict[str, Any]]:
    """Fig. 1a: what Eq. 1 to 3 make of every weight from -1 to 1, one row per alpha.

    `from_weight` and `from_nearest` are the root mean square distances of the result from the weight
    itself and from its nearest centroid: how far a curve is from a straight line and from a staircase.
    """
    levels = mu_law_levels(bits, mu)
    weights = torch.linspace(-1, 1, 401)
    nearest = hard_assign(weights, levels) / 128
    rows = []
    for alpha in alphas:
        assigned = soft_assign(weights, levels, alpha)
        rows.append(
            {
                "alpha": alpha,
                "from_weight": _rms(assigned - weights),
                "from_nearest": _rms(assigned - nearest),
                "weights": _rounded(weights.numpy()),
                "assigned": _rounded(assigned.numpy()),
            }
        )
    return rows


def warped_centroids(bits: int, mus: Sequence[float]) -> list[dict[str, Any]]:
    """Fig. 1b: where Eq. 5 puts the centroids, one row per mu."""
    return [{"mu": mu, "centroids": _rounded(mu_law_centroids(bits, mu))} for mu in mus]


def annealed_kernel(normalized: Tensor, bits: int, alphas: Sequence[float]) -> dict[str, Any]:
    """What one soft assignment at each alpha does to a kernel, over centroids whose mu is fitted to it.

    `deviation_left` is the share of the standard deviation that remains; `on_centroids` that of weights
    within half a level (1/256) of a centroid. "histograms" begins with the kernel as it was, at alpha None.
    """
    mu = fit_mu(normalized, bits, math.inf)
    levels = mu_law_levels(bits, mu)
    results: list[tuple[float | None, Tensor]] = [(None, normalized)]
    results += [(alpha, soft_assign(normalized, levels, alpha)) for alpha in alphas]
    return {
        "mu": mu,
        "centroids": _rounded(levels / 128),
        "histograms": [
            {
                "alpha": alpha,
                "deviation_left": float(values.std() / normalized.std()),
                "on_centroids": float(
                    ((values * 128 - hard_assign(values, levels)).abs() <= 0.5).float().mean()
                ),
                "bins": _histogram(values),
            }
            for alpha, values in results
        ],
    }


# S8BQAT, Fig. 2 -----------------------------------------------------------------------------


def region_penalty(normalized: Tensor, bits: int, *, max_regions: int) -> dict[str, Any]:
    """Fig. 2: MRACos and its gradient from -1 to 1, lambda 1, over regions fitted to `normalized`.

    Beside them the centroids (of the regions and of Lloyd-Max), the squared error of a weight on its nearest
    one for both, each region's frequency theta and steepest gradient, and the weights' histogram.
    """
    regions = fit_regions((128 * normalized).numpy(), bits, max_regions=max_regions)
    points = _points(regions.levels / 128)
    flat = normalized.reshape(1, -1)
    penalty = AbsoluteCosine(
        grid=Grid(torch.full((1, 1), 1 / 128), torch.zeros(1, 1)), regions=regions, shape=(1, flat.shape[1])
    )
    gradient = torch.zeros(1, len(points))
    penalty.add_gradient(points[None], gradient, 1.0)
    slope = gradient[0].numpy()
    position, index = penalty.nearest(flat)
    optimum = lloyd_max(normalized.numpy(), 2**bits)
    return {
        "centroids": _rounded(regions.levels / 128),
        "lloyd_max_centroids": _rounded(optimum.centroids),
        "squared_error": float(
            ((position - torch.from_numpy(regions.levels)[index]) / 128).double().square().mean()
        ),
        "lloyd_max_squared_error": optimum.errors[-1],
        "mean_penalty": float(penalty.value(flat)) / flat.numel(),
        "regions": [
            {
                "low": low / 128,
                "high": high / 128,
                "theta": 128 / spacing,
                "steepest": float(np.abs(slope[_between(points, low / 128, high / 128)]).max()),
            }
            for low, high, spacing in zip(regions.edges, regions.edges[1:], regions.spacings, strict=False)
        ],
        "weights": _rounded(points.numpy()),
        "penalty": _rounded(np.array([float(penalty.value(point.reshape(1, 1))) for point in points])),
        "gradient": _rounded(slope),
        "bins": _histogram(normalized),
    }


def _points(centroids: NDArray[np.float64]) -> Tensor:
    """-1, then from the first centroid to the last, then 1."""
    between = centroids[:-1, None] + np.diff(centroids)[:, None] * BETWEEN_CENTROIDS
    return torch.from_numpy(
        np.concatenate(([-1.0], between.ravel(), centroids[-1:], [1.0])).astype(np.float32)
    )


def _between(points: Tensor, low: float, high: float) -> NDArray[np.bool_]:
    return ((points >= low) & (points <= high)).numpy()


# Weights and numbers ------------------------------------------------------------------------


def _normal_weights(seed: int) -> Tensor:
    return _over_range(torch.randn(1, NORMAL_WEIGHTS, generator=torch.Generator().manual_seed(seed)))


def _over_range(values: Tensor) -> Tensor:
    """All values of a weight, flat, over their largest magnitude."""
    flat = values.reshape(-1)
    return flat / absmax(flat)


def _histogram(normalized: Tensor) -> list[Mapping[str, float]]:
    """`low`, `high` and the `share` of all weights between, for one bin a level."""
    edges = (np.arange(BINS + 1) - 128.5) / 128
    inside = np.clip(normalized.numpy().reshape(-1), edges[0], edges[-1])
    counts = np.histogram(inside, edges)[0]
    return [
        {"low": float(low), "high": float(high), "share": count / inside.size}
        for low, high, count in zip(edges, edges[1:], counts.tolist(), strict=False)
    ]


def _rms(distances: Tensor) -> float:
    return float(distances.double().square().mean().sqrt())


def _rounded(values: NDArray) -> list[float]:
    return np.round(values.astype(np.float64), 6).tolist()
