"""What each value of a program reaches on features that it hears: static calibration.

A program is run whole on every example and each of its values is shown to an observer. So ranges are known of
all that a program computes, whatever network it came from: sums and products inside a block too, which are
no module of their own in torch.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from subtone.program import Constants, Program
from subtone.runtime.engine import load_engine

Calibration = Literal["minmax", "ema", "percentile", "mse"]
EMA_MOMENTUM = 0.95
"""Of the zero-shot paper's own code; its text says min/max."""
BINS = 4096


class Range(NamedTuple):
    """The lowest and the highest that a value was seen at."""

    low: float
    high: float

    @property
    def magnitude(self) -> float:
        return max(-self.low, self.high)


class Observer(abc.ABC):
    """Sees one value again and again, and says its range."""

    @abc.abstractmethod
    def see(self, values: NDArray[np.float32]) -> None:
        """`values` (T, width) of one example, T >= 1."""

    @abc.abstractmethod
    def range(self) -> Range:
        """Of what it saw; at least one example."""


class MinMax(Observer):
    """The lowest and the highest of all."""

    def __init__(self) -> None:
        self._low, self._high = math.inf, -math.inf

    def see(self, values: NDArray[np.float32]) -> None:
        self._low = min(self._low, float(values.min()))
        self._high = max(self._high, float(values.max()))

    def range(self) -> Range:
        return Range(self._low, self._high)


class Ema(Observer):
    """An exponential mean of each example's lowest and highest, which begins with the first example's."""

    def __init__(self) -> None:
        self._ends: NDArray[np.float64] | None = None

    def see(self, values: NDArray[np.float32]) -> None:
        ends = np.array([values.min(), values.max()], np.float64)
        before = ends if self._ends is None else self._ends
        self._ends = EMA_MOMENTUM * before + (1 - EMA_MOMENTUM) * ends

    def range(self) -> Range:
        assert self._ends is not None
        return Range(*map(float, self._ends))


class Histogram(Observer):
    """Counts magnitudes in BINS equal bins of a span that doubles when something lies beyond it, two bins
    becoming one. Its range is symmetric, or from 0 on where nothing was below."""

    def __init__(self) -> None:
        self._span = 0.0
        self._counts = np.zeros(BINS, np.int64)
        self._is_signed = False

    @abc.abstractmethod
    def end(self, counts: NDArray[np.int64], span: float) -> float:
        """The outermost magnitude, of `counts` in bins of up to `span` > 0."""

    def see(self, values: NDArray[np.float32]) -> None:
        self._is_signed |= bool(values.min() < 0)
        magnitudes = np.abs(values).reshape(-1)
        largest = float(magnitudes.max())
        if not self._span:
            self._span = largest
        while self._span and largest > self._span:
            pairs = self._counts.reshape(-1, 2).sum(1)
            self._counts = np.concatenate([pairs, np.zeros(BINS // 2, np.int64)])
            self._span *= 2
        if self._span:
            self._counts += np.histogram(magnitudes, BINS, (0, self._span))[0]

    def range(self) -> Range:
        end = self.end(self._counts, self._span) if self._span else 0.0
        return Range(-end if self._is_signed else 0.0, end)


class Percentile(Histogram):
    """The range within which so many percent of all magnitudes lie, to less than two bins above it: 1/2048 of
    the largest magnitude."""

    def __init__(self, percent: float) -> None:
        super().__init__()
        self._percent = percent

    def end(self, counts: NDArray[np.int64], span: float) -> float:
        counted = np.cumsum(counts)
        reached = int(np.searchsorted(counted, self._percent / 100 * counted[-1]))
        return (min(reached, BINS - 1) + 1) * span / BINS


class LeastSquares(Histogram):
    """The range that costs least: what lies beyond it is clipped, what lies within rounded.

    Of all bin edges t the one with the least `sum over |x| > t of (|x| - t)^2 + N step^2 / 12`, step = t over the
    outermost level of `bits`: the squared error that is expected of a static grid. `unsigned` as `Grids`.
    """

    def __init__(self, *, bits: int, unsigned: bool) -> None:
        super().__init__()
        self._bits, self._unsigned = bits, unsigned

    def end(self, counts: NDArray[np.int64], span: float) -> float:
        has_sign = self._is_signed or not self._unsigned
        limit = 2 ** (self._bits - 1) - 1 if has_sign else 2**self._bits - 1
        edges = np.arange(1, BINS + 1) * span / BINS
        middles = edges - span / (2 * BINS)
        moments = [np.cumsum((counts * middles**power)[::-1])[::-1] for power in range(3)]
        beyond = [np.append(moment[1:], 0.0) for moment in moments]  # of the bins above each edge
        clipped = beyond[2] - 2 * edges * beyond[1] + edges**2 * beyond[0]
        rounded = counts.sum() * (edges / limit) ** 2 / 12
        return float(edges[int(np.argmin(clipped + rounded))])


def observer_of(
    calibration: Calibration, *, percentile: float | None = None, bits: int = 8, unsigned: bool = True
) -> Callable[[], Observer]:
    """Makes an observer for each value."""
    if calibration == "percentile":
        assert percentile is not None
        return lambda: Percentile(percentile)
    if calibration == "mse":
        return lambda: LeastSquares(bits=bits, unsigned=unsigned)
    return MinMax if calibration == "minmax" else Ema


def observe(
    program: Program,
    constants: Constants,
    examples: Iterable[NDArray[np.float32] | tuple[NDArray[np.float32], ...]],
    *,
    new_observer: Callable[[], Observer] = MinMax,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Range]:
    """The range of every value of a float `program`, its inputs and its output included, over `examples`.

    Args:
        examples: what the program's one input takes, (T, width) each, or a tuple for all of its inputs; those without
            rows are passed over.
        progress: called with the number of examples seen, after each.

    Raises:
        ValueError: no example has a row; features that are not finite, or all of them 0: a range would mean nothing; a
            value that is not finite, by its name.
    """
    engine = load_engine(program, constants)
    observers: dict[str, Observer] = {}
    moved = False
    for index, example in enumerate(examples):
        inputs = example if isinstance(example, tuple) else (example,)
        if not all(np.isfinite(each).all() for each in inputs):
            raise ValueError(f"calibration example {index} holds NaN or infinity; repair the features")
        moved |= any(bool(np.any(each)) for each in inputs)
        for name, values in engine.values(
            *(np.ascontiguousarray(each, np.float32) for each in inputs)
        ).items():
            if not np.isfinite(values).all():
                raise ValueError(
                    f"the value {name} reaches NaN or infinity on calibration example {index}; give features of the "
                    "size that the network was trained on, and see that its weights are finite"
                )
            if len(values):
                observers.setdefault(name, new_observer()).see(values)
        if progress:
            progress(index + 1)
    if not observers:
        raise ValueError("calibration has no example with a frame; give at least one")
    if not moved:
        raise ValueError("calibration features are all 0; give features of sound, or synthetic ones")
    return {name: observer.range() for name, observer in observers.items()}


def ranges_to_json(ranges: Mapping[str, Range]) -> dict[str, list[float]]:
    return {name: [each.low, each.high] for name, each in ranges.items()}


def ranges_from_json(document: Mapping[str, list[float]]) -> dict[str, Range]:
    return {name: Range(*ends) for name, ends in document.items()}
