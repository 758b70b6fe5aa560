"""An integer-only program while it is made: a grid for every value, and integers for every ratio of scales.

What a value's readers want of it decides its grid:

* "narrow", products: levels of `activation_bits`, unsigned behind a ReLU. "signed", attention: never unsigned. A product
  that a recipe calls wide reads a "wide" value instead, byte by byte.
* "fixed", functions: 16 bits in units of 2**-f, f at most 12, with room for twice what calibration saw. So a function's
  constants hold for every scale; what lies beyond calibration is where sigmoid and tanh have long ended.
* "wide", sums and norms: 16 bits and room for four times the range that calibration found. Residual sums are where integer
  networks lose their accuracy: a term of 8 bits would cost as much as one more rounding of every layer.
* "index", embeddings: whole numbers as they are.
* "logits", the output: 31 bits, as what is compared at the end must not be clipped or made equal.

A value whose readers want different things has the finest grid that one of them wants, and is brought to another once
more for the others.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from subtone.export.ranges import Range
from subtone.numerics import dyadic_multiplier
from subtone.program import (
    MAX_LEVEL,
    Attention,
    Columns,
    Concat,
    Constant,
    Constants,
    Conv1d,
    Conv2d,
    Door,
    Embedding,
    Function,
    Glu,
    IntegerAdd,
    Lstm,
    Op,
    Program,
    Relu,
    Rescale,
    Scale,
    Sinusoids,
    Stack,
    inputs_of,
    results_of,
)

WIDE_LIMIT = 2**15 - 1
WIDE_ROOM = 4.0
FIXED_LIMIT, FIXED_ROOM = 2**15 - 1, 2.0
FIXED_BITS = 12
"""Units of 2**-12 cost a sigmoid at most 3e-5 and leave room up to 8, whatever calibration saw."""
LOGITS_LIMIT = 2**30
LOGITS_ROOM = 2.0**10
MAX_SHIFT = 62
ROOM_BITS = 61
"""Bits of a total's magnitude that the choice of a shift aims below; Program.widths then proves it."""

Want = Literal["narrow", "signed", "fixed", "wide"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """Levels of a value: `scale` real units each, from `low` to `high`."""

    scale: float
    low: int
    high: int

    @property
    def magnitude(self) -> int:
        return max(-self.low, self.high)

    @property
    def fraction_bits(self) -> int:
        """f of a scale 2**-f, as functions want it; -1 of any other."""
        fraction, exponent = math.frexp(self.scale)
        return 1 - exponent if fraction == 0.5 and 0 <= 1 - exponent <= 16 else -1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grids:
    """How values are divided: `activation_bits` of what products read; `unsigned` spends no bit on a sign that a
    ReLU has taken; `wide_limit` the outermost level of a sum (127 shows what 8 bits cost there); products of a module
    that a glob of `wide_products` matches read a wide value, byte by byte."""

    activation_bits: int = 8
    unsigned: bool = True
    wide_limit: int = WIDE_LIMIT
    wide_products: tuple[str, ...] = ()

    def is_wide(self, op: Op) -> bool:
        """Whether `op` is a product that reads a wide value."""
        is_named = any(fnmatchcase(op.source, pattern) for pattern in self.wide_products)
        return isinstance(op, Conv1d | Conv2d) and is_named


class Making:
    """The integer program so far.

    Args:
        output: the grid of the program's output, where another program reads it; 31 bits otherwise.
        prefix: stands in front of the names of integers, which several programs of one file may not share.
    """

    def __init__(
        self,
        program: Program,
        constants: Constants,
        ranges: Mapping[str, Range],
        grids: Grids,
        *,
        output: Grid | None = None,
        prefix: str = "",
    ) -> None:
        self.source, self.constants, self.ranges, self.settings = program, constants, dict(ranges), grids
        self.ops: list[Op] = []
        self.made: dict[str, Constant] = {}
        self.grids: dict[str, Grid] = {}
        self.output, self.prefix = output, prefix
        self._wants = wants_of(program, grids)
        self._writers = {name: op for op in program.ops for name in results_of(op)}
        self.widths = program.widths(constants)
        self._brought: dict[tuple[str, Want], str] = {}
        self.module = ""
        """The path of the module whose operation is being lowered."""
        self.scaled = scaled_products(program)
        for name in program.inputs:
            self.grids[name] = self._index_grid(name) or self.grid_of(name, f"the input {name}")
        for name in sorted(program.tables):
            self._take_table(name)

    def program(self) -> Program:
        source = self.source
        doors = tuple(Door(*dataclasses.astuple(self.grids[name])) for name in source.inputs)
        scale = self.grids[source.output].scale
        return dataclasses.replace(source, ops=tuple(self.ops), doors=doors, output_scale=scale)

    # Grids -------------------------------------------------------------------------------

    def grid_of(self, name: str, where: str) -> Grid:
        """The grid of a value of the float program, by what its readers want."""
        if name == self.source.output and self.output is not None:
            return self.output
        wants = self._wants[name]
        if wants <= {"narrow", "signed"} and wants:
            return self._grid_for("signed" if "signed" in wants else "narrow", name, where)
        if "logits" in wants:
            limit, room = LOGITS_LIMIT, LOGITS_ROOM
            scale = self._range_of(name, where).magnitude * room / limit
            return Grid(scale=scale, low=0 if self._is_positive(name) else -limit, high=limit)
        return self._grid_for("fixed" if "fixed" in wants else "wide", name, where)

    def _grid_for(self, want: Want, name: str, where: str) -> Grid:
        moved, is_positive = self._range_of(name, where), self._is_positive(name)
        bits, limit, room = self.settings.activation_bits, self.settings.wide_limit, WIDE_ROOM
        if want == "fixed":
            return self._fixed_grid(name, moved, where, low=0 if is_positive else -FIXED_LIMIT)
        if want == "narrow" and is_positive and self.settings.unsigned:
            return Grid(scale=moved.high / (2**bits - 1), low=0, high=2**bits - 1)
        if want != "wide":
            limit = 2 ** (bits - 1) - 1
        room = room if limit > 2**10 else 1.0
        return Grid(scale=moved.magnitude * room / limit, low=0 if is_positive else -limit, high=limit)

    @staticmethod
    def _fixed_grid(name: str, moved: Range, where: str, *, low: int) -> Grid:
        fraction_bits = math.floor(math.log2(FIXED_LIMIT / (moved.magnitude * FIXED_ROOM)))
        if fraction_bits < 0:
            raise ValueError(
                f"{where}: {name}, which a function reads, has the range {moved.low:.4g} to {moved.high:.4g}; beyond "
                f"{FIXED_LIMIT / FIXED_ROOM:.0f} there are no units of 2**-f in 16 bits for it"
            )
        return Grid(scale=2.0 ** -min(fraction_bits, FIXED_BITS), low=low, high=FIXED_LIMIT)

    def _is_positive(self, name: str) -> bool:
        """Whether its operation gives nothing below 0, whatever it reads."""
        writer = self._writers.get(name)
        is_positive = getattr(writer, "relu", False) or isinstance(writer, Relu)
        return is_positive or (isinstance(writer, Function) and writer.function in ("sigmoid", "exp"))

    def _range_of(self, name: str, where: str) -> Range:
        if name not in self.ranges:
            raise ValueError(f"{where}: {name} has no range; calibrate this very program")
        moved = self.ranges[name]
        if not np.isfinite([moved.low, moved.high]).all():
            raise ValueError(
                f"{where}: {name} has the range {moved.low} to {moved.high}; repair the calibration"
            )
        if moved.magnitude < 2.0**-60:
            raise ValueError(
                f"{where}: {name} never moved from 0 in calibration, which gives it no scale; calibrate with other "
                "features, or remove the operation"
            )
        return moved

    def _index_grid(self, name: str) -> Grid | None:
        """Whole numbers from 0 on, of an input that nothing but an embedding reads."""
        if self._wants[name] != {"index"}:
            return None
        (reader,) = [op for op in self.source.ops if name in inputs_of(op)]
        assert isinstance(reader, Embedding)
        return Grid(scale=1.0, low=0, high=self.constants[reader.weight].shape[0] - 1)

    def _take_table(self, name: str) -> None:
        """A float constant in a value's place as levels; what it ranges over needs no calibration."""
        table = self.constants[name]
        assert isinstance(table, np.ndarray)
        self.ranges[name] = Range(float(table.min()), float(table.max()))
        grid = self.grids[name] = self.grid_of(name, f"the table {name}")
        levels = np.floor(table.astype(np.float64) / grid.scale + 0.5)
        self.constant(name, np.clip(levels, grid.low, grid.high).astype(np.int32))

    # Values ------------------------------------------------------------------------------

    def brought(self, name: str, want: Want, where: str) -> str:
        """`name` on a grid that a reader who wants `want` may read: itself, or brought there."""
        grid = self.grids[name]
        if FITS[want](grid):
            return name
        key = (name, want)
        if key not in self._brought:
            wanted = self._grid_for(want, name, where)
            self._brought[key] = self.rescaled(name, f"{name}.{want}", 1.0, wanted, where)
        return self._brought[key]

    def bytes_of(self, name: str) -> tuple[str, str]:
        """Two values of 8 bits for the wide one called `name`: `x = 256 high + low`, high = (x + 128) >> 8.

        Exactly, but for x above 32639 on a signed grid, four times what calibration saw: low then ends at 127.
        """
        grid, parts = self.grids[name], (f"{name}.high", f"{name}.low")
        if parts[0] not in self.grids:
            high = Grid(
                scale=256 * grid.scale, low=min(grid.low, 0) // 256, high=128 if grid.low >= 0 else 127
            )
            low = Grid(scale=grid.scale, low=-128, high=127)
            fields = {"source": self.module}
            self.add(
                Rescale(
                    input=name, output=parts[0], multiplier=1, shift=8, low=high.low, high=high.high, **fields
                ),
                high,
            )
            self.add(
                IntegerAdd(
                    left=name, right=parts[0], output=parts[1], left_multiplier=2, right_multiplier=-512, shift=1,
                    low=low.low, high=low.high, **fields,
                ),
                low,
            )  # fmt: skip
        return parts

    def rescaled(self, name: str, output: str, factor: float, grid: Grid, where: str) -> str:
        """`factor` times the value `name`, as the value `output` on `grid`."""
        source = self.grids[name]
        (multiplier,), shift = scalar_multipliers(
            [factor * source.scale / grid.scale], [source.magnitude], where
        )
        op = Rescale(
            input=name, output=output, multiplier=multiplier, shift=shift, low=grid.low, high=grid.high,
            source=self.module,
        )  # fmt: skip
        self.add(op, grid)
        return output

    def add(self, op: Op, grid: Grid) -> None:
        self.ops.append(op)
        self.grids[op.output] = grid

    def constant(self, name: str, value: Constant) -> str:
        self.made[name] = value
        return name

    def integers(self, output: str, values: Mapping[str, NDArray]) -> dict[str, str]:
        """Role -> name of integers, named by the value that they make."""
        return {role: self.constant(f"{self.prefix}{output}.{role}", value) for role, value in values.items()}


FITS = {
    "narrow": lambda grid: (grid.low >= 0 and grid.high <= 255) or (grid.low >= -127 and grid.high <= 127),
    "signed": lambda grid: grid.low >= -127 and grid.high <= 127,
    "fixed": lambda grid: grid.fraction_bits >= 0 and grid.magnitude <= FIXED_LIMIT,
    "wide": lambda grid: grid.magnitude <= FIXED_LIMIT,
}
"""Whether a grid serves a reader who wants that."""


# What readers want -----------------------------------------------------------------------

MOVERS = (Stack, Concat, Columns)
WANTS: dict[type, str] = {
    Conv1d: "narrow",
    Conv2d: "narrow",
    Attention: "signed",
    Function: "fixed",
    Glu: "fixed",
    Lstm: "fixed",
    Embedding: "index",
    Sinusoids: "",
}
"""What operations want of all that they read; others "wide". Sinusoids read no number, only how many rows there are."""


def wants_of(program: Program, grids: Grids | None = None) -> dict[str, set[str]]:
    """Of every value and table what its readers want; what only moves it hands on what is wanted of its result.

    `grids` says which products are wide; none without it.
    """
    wants: dict[str, set[str]] = {name: set() for name in (*program.inputs, *program.tables)}
    wants |= {name: set() for op in program.ops for name in results_of(op)}
    wants[program.output].add("logits")
    for op in reversed(program.ops):
        for name in inputs_of(op):
            wanted = wants[op.output] if isinstance(op, MOVERS) else {WANTS.get(type(op), "wide")}
            if grids and grids.is_wide(op):
                wanted = {"wide"}
            wants[name] |= wanted - {""}
    return wants


def scaled_products(program: Program) -> dict[str, Scale]:
    """Output of a product -> the Scale that alone reads it, which then costs nothing: it joins the multipliers."""
    read = [name for op in program.ops for name in inputs_of(op)] + [program.output]
    products = {op.output for op in program.ops if isinstance(op, Conv1d | Conv2d) and not op.relu}
    return {
        op.input: op
        for op in program.ops
        if isinstance(op, Scale) and op.input in products and read.count(op.input) == 1
    }


# Ratios ----------------------------------------------------------------------------------


def scalar_multipliers(ratios: list[float], magnitudes: list[int], where: str) -> tuple[list[int], int]:
    """Multipliers with one shift for the sum of `ratios[i]` times a value of at most `magnitudes[i]`."""
    largest = max(abs(ratio) for ratio in ratios)
    if not largest:
        return [0] * len(ratios), 1
    shift = min(dyadic_multiplier(largest)[1], MAX_SHIFT)
    total = sum(abs(ratio) * magnitude for ratio, magnitude in zip(ratios, magnitudes, strict=True))
    while shift > 1 and total * 2.0**shift >= 2.0**ROOM_BITS:
        shift -= 1
    require_ratio(largest * 2.0**shift, shift, where)
    return [round_half_up(ratio * 2.0**shift) for ratio in ratios], shift


def require_ratio(multiplier: float, shift: int, where: str) -> None:
    if shift < 1 or multiplier > MAX_LEVEL:
        raise ValueError(
            f"{where}: a scale is 2**{30 - shift} times that of its result, beyond what 32 bits can bring together; "
            "calibrate with other features"
        )


def round_half_up(value: float) -> int:
    return math.floor(value + 0.5)
