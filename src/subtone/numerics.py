"""Rounding, grids and integer steps, defined once for training and for run time.

docs/numerics.md states the same rules in words and is normative; tests/test_numerics.py holds
one test for each of its rows. Everything here is NumPy and elementwise IEEE arithmetic in the
precision of its inputs: no fused multiply-add and no library function that may differ between
two machines, so that a kernel in another language can equal it bit for bit.

Letters: T frames, K inputs of a product, N outputs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MIN_BITS, MAX_BITS = 1, 8
SILENT_ABSMAX = np.float32(2.0**-100)
"""A frame whose largest magnitude is below this is silent: its levels and its scale are 0."""
STATIC_SCALE_FLOOR = np.float32(2.0**-128)
"""A static scale lies above this: the inverse of any smaller one exceeds float32."""


class Grid(NamedTuple):
    """Where the codes of a weight lie: `real = scale * (code - zero_point)`, all float32.

    `zero_point` has the shape of `scale`, or one entry where all share it.
    """

    scale: NDArray[np.float32]
    zero_point: NDArray[np.float32]


class Quantized(NamedTuple):
    """Activations on an integer grid: `real ~ scale * levels`."""

    levels: NDArray[np.int8] | NDArray[np.uint8]
    scale: NDArray[np.float32]


def check_bits(bits: int, *, name: str = "bits") -> int:
    """`bits` itself, if a weight can be stored in that many.

    >>> check_bits(4)
    4
    """
    if not isinstance(bits, (int, np.integer)) or isinstance(bits, bool):
        raise ValueError(f"{name}={bits!r} is not a whole number; use 1 to 8")
    if not MIN_BITS <= bits <= MAX_BITS:
        raise ValueError(f"{name}={bits} cannot be stored; use 1 to 8")
    return int(bits)


def round_half_up(values: NDArray) -> NDArray:
    """floor(x + 0.5): the one rounding rule, the sum taken in the precision of `values`.

    >>> round_half_up(np.array([-1.5, -0.5, 0.5, 1.5, 2.5])).tolist()
    [-1.0, 0.0, 1.0, 2.0, 3.0]
    """
    values = np.asarray(values)
    return np.floor(values + values.dtype.type(0.5))


# Weights ---------------------------------------------------------------------------------


def largest_symmetric_level(bits: int) -> int:
    """The outermost level of a symmetric grid, `2**(bits-1) - 1`; for activations too.

    >>> [largest_symmetric_level(bits) for bits in (8, 4, 2)]
    [127, 7, 1]
    """
    return 2 ** (bits - 1) - 1


def symmetric_grid(absmax: NDArray, bits: int) -> Grid:
    """Grid of 2 to 8 bits with real 0 at code `2**(bits-1)` and code 0 unused.

    At 2 bits that is three levels of four, as in the 2-bit Conformer's "sym".
    """
    if bits == 1:
        raise ValueError("bits=1 has no symmetric grid with a zero; use one_bit_grid")
    scale = np.asarray(absmax, np.float32) / np.float32(largest_symmetric_level(bits))
    return Grid(scale, np.full((1,) * scale.ndim, 2.0 ** (bits - 1), np.float32))


def one_bit_grid(mean_magnitude: NDArray) -> Grid:
    """Codes {0, 1} that mean -m and +m for m = mean |w|: the least squared error of two levels."""
    scale = np.float32(2.0) * np.asarray(mean_magnitude, np.float32)
    return Grid(scale, np.full((1,) * scale.ndim, 0.5, np.float32))


def asymmetric_grid(low: NDArray, high: NDArray, bits: int) -> Grid:
    """Grid whose first code means `low` and whose last means `high`; 0 is not forced onto it.

    A constant range (`low == high`) is exact: scale |low| and zero_point -sign(low), so that
    code 0 means `low` (the 2-bit Conformer's divide_no_nan).
    """
    low, high = np.asarray(low, np.float32), np.asarray(high, np.float32)
    step = (high - low) / np.float32(2**bits - 1)
    is_constant = step == 0
    scale = np.where(is_constant, np.abs(low), step)
    with np.errstate(invalid="ignore", divide="ignore"):
        zero_point = np.where(is_constant, -np.sign(low), -low / scale)
    return Grid(scale.astype(np.float32), zero_point.astype(np.float32))


def codes_on_grid(weights: NDArray, grid: Grid, bits: int, *, is_symmetric: bool) -> NDArray[np.uint8]:
    """Nearest codes: `clip(floor(w / scale + zero_point + 0.5))`, float32 throughout.

    A scale of 0 (a group of zeros) gives the code nearest to its zero_point. Symmetric grids
    of 2 bits and more leave code 0 unused.
    """
    weights = np.asarray(weights, np.float32)
    safe_scale = np.where(grid.scale == 0, np.float32(1), grid.scale)
    position = np.where(grid.scale == 0, np.float32(0), weights / safe_scale) + grid.zero_point
    lowest = 1 if is_symmetric and bits > 1 else 0
    return np.clip(round_half_up(position), lowest, 2**bits - 1).astype(np.uint8)


def snap_to_int8(values: NDArray) -> NDArray[np.int8]:
    """Nearest k/128 for values on [-1, 1], as k in [-128, 127].

    +1 becomes 127 and -1 becomes -128: the asymmetric pole of int8 (PAPERS.md, GQ-snap).

    >>> snap_to_int8(np.array([-1.0, -0.25, 0.0, 1.0])).tolist()
    [-128, -32, 0, 127]
    """
    scaled = np.asarray(values, np.float32) * np.float32(128)
    return np.clip(round_half_up(scaled), -128, 127).astype(np.int8)


def pad_codebook(levels: NDArray[np.int8], bits: int) -> NDArray[np.int8]:
    """`levels`, ascending, made `2**bits` long by repeating the last.

    >>> pad_codebook(np.array([-3, 0, 5], np.int8), bits=2).tolist()
    [-3, 0, 5, 5]
    """
    levels = np.asarray(levels, np.int8)
    if levels.ndim != 1 or not 1 <= levels.size <= 2**bits:
        raise ValueError(f"a codebook of bits={bits} holds 1 to {2**bits} levels, not {levels.shape}")
    if np.any(np.diff(levels.astype(np.int16)) < 0):
        raise ValueError("codebook levels must ascend; sort them first")
    return np.pad(levels, (0, 2**bits - levels.size), mode="edge")


def codes_on_codebook(weights: NDArray, scale: NDArray, levels: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Index of the nearest level of `levels` (not padded) to `w / scale`; a tie goes up."""
    levels = np.asarray(levels, np.float32)
    safe_scale = np.where(scale == 0, np.float32(1), scale)
    position = np.where(scale == 0, np.float32(0), np.asarray(weights, np.float32) / safe_scale)
    borders = (levels[1:] + levels[:-1]) * np.float32(0.5)
    return np.searchsorted(borders, position, side="right").astype(np.uint8)


# Activations -----------------------------------------------------------------------------


def _signed_limit(bits: int) -> int:
    """The outermost level of a signed activation grid, which int8 holds."""
    if not 2 <= bits <= MAX_BITS:
        raise ValueError(f"bits={bits} is no signed activation grid; use 2 to {MAX_BITS}")
    return largest_symmetric_level(bits)


def quantize_dynamic(features: NDArray[np.float32], bits: int = 8) -> Quantized:
    """Signed levels with one scale a frame, from that frame's largest magnitude.

    `inverse = limit / absmax`, `level = floor(x * inverse + 0.5)`, `scale = absmax / limit`,
    limit = `2**(bits-1) - 1`. One division a frame instead of one a value: the product is as
    well defined, and a kernel pays a fifth for it.

    Args:
        features: shape (T, K), finite.

    Returns:
        levels int8 (T, K) within [-limit, limit], scale (T, 1).
    """
    limit = np.float32(_signed_limit(bits))
    absmax = np.max(np.abs(features), axis=1, keepdims=True, initial=np.float32(0))
    is_silent = absmax < SILENT_ABSMAX
    inverse = np.where(is_silent, np.float32(0), limit / np.where(is_silent, np.float32(1), absmax))
    scale = np.where(is_silent, np.float32(0), absmax / limit)
    return Quantized(round_half_up(features * inverse).astype(np.int8), scale)


def quantize_static(
    features: NDArray[np.float32], scale: float, bits: int = 8, *, is_unsigned: bool = False
) -> Quantized:
    """Levels on a scale known beforehand, clipped; unsigned `0 .. 2**bits-1` after a ReLU.

    `level = clip(floor(x * inverse + 0.5))` with `inverse = 1 / scale` rounded to float32 once.
    """
    limit = 2 ** check_bits(bits) - 1 if is_unsigned else _signed_limit(bits)
    with np.errstate(over="ignore"):  # what is beyond float32 is beyond the grid too
        step = np.float32(scale)
        if not (np.isfinite(step) and step > STATIC_SCALE_FLOOR):
            raise ValueError(f"scale={scale} of a static activation must be finite and above 2**-128")
        position = round_half_up(features * (np.float32(1) / step))
    levels = np.clip(position, 0 if is_unsigned else -limit, limit)
    return Quantized(levels.astype(np.uint8 if is_unsigned else np.int8), np.full((1, 1), step))


def dyadic_multiplier(ratio: float) -> tuple[int, int]:
    """(mantissa, shift) with `ratio ~ mantissa * 2**-shift` and mantissa of 31 bits.

    >>> dyadic_multiplier(0.5)
    (1073741824, 31)
    """
    if not (np.isfinite(ratio) and ratio > 0):
        raise ValueError(f"ratio={ratio} of two scales must be finite and above 0")
    fraction, exponent = np.frexp(np.float64(ratio))  # 0.5 <= fraction < 1
    mantissa = int(np.floor(fraction * 2**31 + 0.5))
    if mantissa == 2**31:
        mantissa, exponent = 2**30, exponent + 1
    return mantissa, 31 - int(exponent)


def requantize(
    accumulators: NDArray[np.integer], mantissa: int, shift: int, bits: int = 8
) -> NDArray[np.int8]:
    """Accumulators times `mantissa * 2**-shift`, rounded half up in integers, on signed `bits`.

    The product takes 63 bits and the rounding term never overflows them, for |accumulator| <
    2**31 and 1 <= shift <= 62. No floating-point value takes part.
    """
    limit = _signed_limit(bits)
    total = np.asarray(accumulators, np.int64) * np.int64(mantissa)
    return requantize_total(total, shift, -limit, limit).astype(np.int8)


def requantize_total(
    total: NDArray[np.int64], shift: int | NDArray[Any], low: int, high: int
) -> NDArray[np.int32]:
    """`clip((total + 2**(shift - 1)) >> shift, low, high)`: how every operation of an integer-only program ends.

    |total| <= 2**62 and 1 <= shift <= 62, one for all or one for each column, so that the sum cannot overflow.

    >>> requantize_total(np.array([5, 6, 7, -6, 400]), 2, -8, 8).tolist()
    [1, 2, 2, -1, 8]
    """
    wide = np.asarray(shift, np.int64)
    if wide.size and not 1 <= wide.min() <= wide.max() <= 62:
        raise ValueError(f"shift={shift} of a requantization must lie in 1..62")
    if not -(2**31) <= low <= high < 2**31:
        raise ValueError(f"low={low}, high={high} are no range of 32-bit levels; use low <= high")
    rounded = (total + (np.int64(1) << (wide - 1))) >> wide
    return np.clip(rounded, low, high).astype(np.int32)
