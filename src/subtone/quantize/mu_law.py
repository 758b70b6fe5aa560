"""The two parts of the General Quantizer that know nothing of training: its centroids and its soft assignment.

GQ, section 3.1 to 3.3 (Zhen et al. 2022). Weights are *normalized* here: divided by their kernel's
range, so that they lie on [-1, 1]. Every centroid is k/128 before it is used, so `levels` int8 says
all of a codebook, and a weight's neighbours among the centroids follow from floor(128 w): one look
into a table of 257 entries, whatever the number of bits.

Symbols: `mu`, `alpha` as in Eq. 5 and Eq. 2; m = 2**bits centroids z.
"""

from __future__ import annotations

import functools
import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from subtone import numerics

Divisor = Literal["mu", "1+mu"]
AlphaUnit = Literal["gap", "range"]
CHUNK = 2**16
"""Weights that are assigned at a time: what they need beside the result fits a second-level cache."""
BINS = 4096
"""Of the histogram that stands for a kernel's weights while mu is searched: 16 within the least gap."""
CANDIDATES = 256
"""Values of mu that are tried, evenly spread over log(1 + mu)."""


# Centroids, Eq. 5 ---------------------------------------------------------------------------


def mu_law_centroids(bits: int, mu: float, *, divisor: Divisor = "mu") -> NDArray[np.float64]:
    """Centroids on [-1, 1], denser near zero the larger `mu` is.

    Eq. 5 of GQ, dividing by `mu` where the paper prints `1 + mu`, so that the outer
    centroids stay at -1 and 1 as its text says (docs/equations.md, GQ-5). `divisor="1+mu"` is the
    printed form, whose poles lie at mu / (1 + mu).

    Returns:
        shape (2**bits,), increasing, symmetric about 0; evenly spaced at `mu` 0, the limit.

    >>> mu_law_centroids(bits=2, mu=8.0).round(3).tolist()
    [-1.0, -0.135, 0.135, 1.0]
    >>> mu_law_centroids(bits=2, mu=8.0, divisor="1+mu").round(3).tolist()
    [-0.889, -0.12, 0.12, 0.889]
    """
    if not (math.isfinite(mu) and mu >= 0):
        raise ValueError(f"mu={mu} must be finite and at least 0; 8 is usual")
    count = 2 ** numerics.check_bits(bits)
    even = np.linspace(-1.0, 1.0, count)
    if mu == 0:
        return even if divisor == "mu" else np.zeros(count)
    warped = np.expm1(np.abs(even) * np.log1p(mu)) / (mu if divisor == "mu" else 1 + mu)
    return np.sign(even) * warped


def mu_law_levels(bits: int, mu: float, *, divisor: Divisor = "mu") -> NDArray[np.int8]:
    """The centroids as they are used and stored: k of k/128, ascending and distinct (GQ, section 3.3).

    +1 becomes 127/128. Centroids that meet on one k are one level; `largest_mu` says from when on.

    >>> mu_law_levels(bits=2, mu=8.0).tolist()
    [-128, -17, 17, 127]
    """
    return np.unique(numerics.snap_to_int8(mu_law_centroids(bits, mu, divisor=divisor)))


@functools.cache
def largest_mu(bits: int) -> float:
    """Up to this `mu` all 2**bits centroids stay apart on k/128; the search goes no further.

    0 at 1 bit, where mu has no effect, and at 8 bits, where even evenly spaced centroids meet (255
    levels are left): the search then has one candidate.

    >>> [round(largest_mu(bits), 1) for bits in (4, 5, 6, 7)]
    [89.8, 30.0, 9.9, 2.6]
    """
    apart, together = 0.0, 1e-3
    if bits == 1 or len(mu_law_levels(bits, 0.0)) < 2**bits:
        return 0.0
    while len(mu_law_levels(bits, together)) == 2**bits:
        apart, together = together, together * 1.01
    while together - apart > 1e-9 * together:
        middle = (apart + together) / 2
        if len(mu_law_levels(bits, middle)) == 2**bits:
            apart = middle
        else:
            together = middle
    return apart


# Soft and hard assignment, Eq. 1 to 3 ---------------------------------------------------------


def alpha_in_range(alpha: float, levels: NDArray[np.int8], unit: AlphaUnit) -> float:
    """`alpha` per unit of the weights' range [-1, 1], as Eq. 2 has it.

    In the unit "gap" it is given per least distance of two neighbouring centroids: 2 is equally
    soft at every number of bits and every mu. "range" leaves it as it is.

    >>> alpha_in_range(2.0, mu_law_levels(bits=2, mu=8.0), "gap").__round__(2)
    7.53
    """
    if unit == "range":
        return alpha
    return alpha * 128 / int(np.diff(levels.astype(np.int64)).min())


def soft_assign(normalized: Tensor, levels: NDArray[np.int8], alpha: float) -> Tensor:
    """Each weight as the mean of all centroids, weighed by softmax(-alpha |w - z|): Eq. 1 to 3.

    Not by the (n, m) matrix of Eq. 1. Seen from a weight between its neighbours z_j <= w < z_(j+1),
    all centroids below keep their proportions wherever in that gap it lies, and so do those above:
    with A the mean of the former, B that of the latter and r the ratio of their masses at their
    nearest centroids,

        w_bar = A + (B - A) sigmoid(2 alpha (w - (z_j + z_(j+1)) / 2) + ln r).

    Nothing overflows, whatever alpha. Beyond the poles w_bar is constant.

    Args:
        normalized: float32, any shape; on [-1, 1] but for what lies beyond the poles.
        alpha: above 0, finite.

    Returns:
        a new tensor; no gradient.

    >>> soft_assign(torch.tensor([-0.25, 0.0, 0.2]), np.array([-128, -32, 32], np.int8), 10.0)
    tensor([-0.2471, -0.0003,  0.2410])
    """
    low, rise, middle = (part.to(normalized.device) for part in _tables(levels.tobytes(), alpha))
    flat = normalized.detach().contiguous().reshape(-1)
    result = torch.empty_like(flat)
    for start in range(0, flat.numel(), CHUNK):
        values = flat[start : start + CHUNK]
        entry = (values * 128).floor_().clamp_(-129, 127).add_(129).to(torch.int32)
        share = (values - middle.index_select(0, entry)).mul_(2 * alpha).sigmoid_()
        torch.addcmul(
            low.index_select(0, entry),
            rise.index_select(0, entry),
            share,
            out=result[start : start + CHUNK],
        )
    return result.reshape(normalized.shape)


def hard_assign(normalized: Tensor, levels: NDArray[np.int8]) -> Tensor:
    """The nearest level k (not k/128) of each weight, as float32: twin of `numerics.codes_on_codebook`.

    A tie goes up. All midpoints are multiples of half a level, so floor(256 w) finds the level.

    >>> hard_assign(torch.tensor([-1.0, 0.0, 0.4]), np.array([-128, -32, 32], np.int8))
    tensor([-128.,   32.,   32.])
    """
    borders = levels[1:].astype(np.int64) + levels[:-1]
    cells = np.searchsorted(borders, np.arange(-256, 256), side="right")
    nearest = torch.from_numpy(levels[cells].astype(np.float32)).to(normalized.device)
    flat = normalized.detach().contiguous().reshape(-1)
    result = torch.empty_like(flat)
    for start in range(0, flat.numel(), CHUNK):
        values = flat[start : start + CHUNK]
        entry = (values * 256).floor_().clamp_(-256, 255).add_(256).to(torch.int32)
        torch.index_select(nearest, 0, entry, out=result[start : start + CHUNK])
    return result.reshape(normalized.shape)


@functools.lru_cache(maxsize=2 * CANDIDATES)
def _tables(level_bytes: bytes, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """A, B - A and the point where w_bar is halfway between them, for floor(128 w) = -129 .. 127.

    Masses and moments of all centroids on one side, as seen from the nearest of them, by a
    recursion over neighbours: every exponent is that of one gap, and negative.
    """
    if not (math.isfinite(alpha) and alpha > 0):
        raise ValueError(f"alpha={alpha} must be finite and above 0")
    levels = np.frombuffer(level_bytes, np.int8).astype(np.int64)
    z, count = levels / 128, len(levels)
    decay = np.exp(-alpha * np.diff(z))
    below_mass, below_moment = np.ones(count), z.copy()
    above_mass, above_moment = np.ones(count), z.copy()
    for j in range(1, count):
        below_mass[j] += decay[j - 1] * below_mass[j - 1]
        below_moment[j] += decay[j - 1] * below_moment[j - 1]
    for j in range(count - 2, -1, -1):
        above_mass[j] += decay[j] * above_mass[j + 1]
        above_moment[j] += decay[j] * above_moment[j + 1]
    below, above = below_moment / below_mass, above_moment / above_mass
    low = np.concatenate((above[:1], below))
    rise = np.concatenate(([0.0], above[1:] - below[:-1], [0.0]))
    halfway = (z[1:] + z[:-1]) / 2 - np.log(above_mass[1:] / below_mass[:-1]) / (2 * alpha)
    middle = np.concatenate(([0.0], halfway, [0.0]))
    cell = np.searchsorted(levels, np.arange(-129, 128), side="right")
    tables = [torch.from_numpy(part[cell].astype(np.float32)) for part in (low, rise, middle)]
    return tables[0], tables[1], tables[2]


# mu of a kernel -----------------------------------------------------------------------------


def fit_mu(normalized: Tensor, bits: int, alpha: float, *, unit: AlphaUnit = "gap") -> float:
    """The mu of least squared error |w_bar - w| over a kernel at this `alpha`; infinity: hard.

    The minimum that section 3.2 asks for, over CANDIDATES values up to `largest_mu`; of equal
    errors the least mu. The weights
    enter as a histogram of BINS, so a kernel costs one pass and a small product; the error of every
    bin for every candidate is the same for all kernels of one invocation.

    >>> fit_mu(torch.linspace(-1, 1, 1000), bits=4, alpha=math.inf)
    0.0
    """
    candidates, errors = _candidate_errors(bits, alpha, unit)
    counts = _histogram(normalized)
    return float(candidates[int(np.argmin(errors @ counts))])


def mu_candidates(bits: int) -> NDArray[np.float64]:
    """The values of mu that are tried, ascending from 0."""
    highest = largest_mu(bits)
    return np.expm1(np.linspace(0, np.log1p(highest), CANDIDATES)) if highest else np.zeros(1)


@functools.lru_cache(maxsize=8)
def _candidate_errors(
    bits: int, alpha: float, unit: AlphaUnit
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """mu of each candidate, and its squared error at the centre of each bin: (candidates, BINS)."""
    centres = (torch.arange(BINS) + 0.5) * (2 / BINS) - 1
    candidates = mu_candidates(bits)
    errors = np.empty((len(candidates), BINS))
    for index, mu in enumerate(candidates):
        levels = mu_law_levels(bits, float(mu))
        if math.isinf(alpha):
            assigned = hard_assign(centres, levels) / 128
        else:
            assigned = soft_assign(centres, levels, alpha_in_range(alpha, levels, unit))
        errors[index] = (assigned - centres).square().numpy()
    return candidates, errors


def _histogram(normalized: Tensor) -> NDArray[np.int64]:
    """How many weights lie in each of BINS equal parts of [-1, 1]; what is beyond counts at the end."""
    flat = normalized.detach().contiguous().reshape(-1)
    counts = torch.zeros(BINS, dtype=torch.int64, device=flat.device)
    for start in range(0, flat.numel(), CHUNK):
        values = flat[start : start + CHUNK]
        entry = (values + 1).mul_(BINS / 2).clamp_(0, BINS - 1).to(torch.int32)
        counts += torch.bincount(entry, minlength=BINS)
    return counts.cpu().numpy()
