"""How far every value of a program comes with a chunk, and where its rows lie in memory.

A stream is a program run again and again on what came since: each value goes on where it stopped, and the
rows that something later still needs are carried from one run to the next, in the stream's state. A whole
utterance is one run that is also the last.

All values but those that live with the caller share one arena. A value's bytes are free again after the
last operation that reads it; a new value takes the lowest gap that holds it. Operations run in
program order, so this first fit along the list sees the few values that are alive (four in a
residual block) and costs microseconds, where a best packing over all pairs would cost more than
the plan saves: QuartzNet's arena is the sum of what is alive at its widest point, to the byte.
"""

from __future__ import annotations

import dataclasses
import math
from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from subtone.program import (
    Constants,
    Op,
    OverFrames,
    Program,
    Stack,
    check_frames,
    inputs_of,
    results_of,
)

ALIGNMENT_BYTES = 64
"""Offsets are multiples of one cache line, which is also one vector of AVX-512."""

MAX_ARENA_BYTES = 2**62
"""No machine has as much; the C ABI counts bytes in 64 bits."""

MAX_PLANS = 64
"""Layouts kept for each engine; utterances come in many lengths, and a layout is a few kilobytes."""

LONGEST_PERIOD = 2**16
"""Input rows after which a stream may repeat itself and is still watched for that."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """Rows and places of all values for one run, each an int64 array in the order of `Planner.index`.

    Rows are counted from the start of the utterance: those from `base` to `first - 1` come from the state, `first`
    to `end - 1` are computed (or given), `keep` to `end - 1` go to the state. `offsets`: bytes into the arena
    where row `base` lies; -1 for what lives with the caller: an input or the output without rows of the state.
    """

    base: NDArray[np.int64]
    first: NDArray[np.int64]
    end: NDArray[np.int64]
    keep: NDArray[np.int64]
    offsets: NDArray[np.int64]
    arena_bytes: int


class Planner:
    """Plans of one program. Checks the program against its constants and then forgets them.

    * `widths`: of every value (tables are none), in the order in which they are written, the inputs first.
    * `index`: position of every value in that order; `row_sizes`: its widths, as an array.
    * `period`: input rows after which a stream that has begun repeats itself: all strides, multiplied.
    * `last_reads[op_index]`: values that nothing needs after that op, its own results included
      where nothing reads them.
    """

    def __init__(self, program: Program, constants: Constants) -> None:
        self.program = program
        widths = program.widths(constants)
        self.widths = {name: width for name, width in widths.items() if name not in program.tables}
        self.index = {name: position for position, name in enumerate(self.widths)}
        self.row_sizes = np.array(list(self.widths.values()), np.int64)
        self.period = math.prod(stride_of(op) for op in program.ops)
        self.last_reads = _last_reads(program)
        self._steps = [
            (
                op,
                {
                    field: self.index[name]
                    for field in op.VALUES
                    if (name := getattr(op, field)) and name in self.index
                },
                [self.index[name] for name in results_of(op)],
            )
            for op in program.ops
        ]
        self._layouts: OrderedDict[bytes, tuple[NDArray[np.int64], int]] = OrderedDict()
        self._steady: dict[tuple[int, int], Plan] = {}
        self._a_period = np.empty(0, np.int64)

    def start(self) -> NDArray[np.int64]:
        """Ends of all values before the first row."""
        return np.zeros(len(self.index), np.int64)

    def plan(self, rows: int, before: NDArray[np.int64] | None = None, *, is_last: bool = True) -> Plan:
        """The plan for `rows` new rows of every input, behind `before`, the `end` of the run before.

        >>> from subtone.program import Relu
        >>> ops = tuple(Relu(input=f"v{i}", output=f"v{i + 1}") for i in range(4))
        >>> program = Program(
        ...     input="v0", input_width=4, output="v4", output_width=4, frames_per_step=1, ops=ops
        ... )
        >>> plan = Planner(program, {}).plan(10)
        >>> plan.offsets.tolist(), plan.arena_bytes  # 160 bytes a value, 192 with its padding
        ([-1, 0, 192, 0, -1], 384)
        """
        if rows < 0:
            raise ValueError(f"frames={rows} is below 0")
        if before is None:
            before = self.start()
        if is_last:
            return self._new_plan(rows, before, is_last=True)
        first_row = int(before[0])
        key = first_row % self.period, rows
        steady = self._steady.get(key)
        if steady is not None and first_row >= steady.first[0]:
            check_frames(first_row + rows, self.program.input)
            plan = _moved(steady, (first_row - int(steady.first[0])) // self.period, self._a_period)
            if np.array_equal(plan.first, before):
                return plan
        plan = self._new_plan(rows, before, is_last=False)
        if len(self._steady) < MAX_PLANS and self._is_steady(plan):
            self._steady[key] = plan
        return plan

    def _new_plan(self, rows: int, before: NDArray[np.int64], *, is_last: bool) -> Plan:
        end = self._ends(before, rows, is_last=is_last)
        base = self.needed(before)
        keep = end if is_last else self.needed(end)
        offsets, arena_bytes = self._layout(end - base, before - base)
        return Plan(base, before, end, keep, offsets, arena_bytes)

    def _is_steady(self, plan: Plan) -> bool:
        """Whether each later run of as many rows, whole periods on, is this one with all rows moved on.

        An end is a floor of a line in the ends before it, and so is the first row needed, once no end is 0 and
        nothing in front of row 0 is asked for: then a period, which every stride divides, moves all by
        whole rows.
        """
        if (
            self.period > LONGEST_PERIOD
            or self.program.obstacle
            or plan.first.min() < 1
            or self._first_needed(plan.first).min() < 1
        ):
            return False
        if not self._a_period.size:
            self._a_period = self._ends(plan.first, self.period, is_last=False) - plan.first
        return True

    def _ends(self, before: NDArray[np.int64], rows: int, *, is_last: bool) -> NDArray[np.int64]:
        ends = before.tolist()
        for name in self.program.inputs:
            ends[self.index[name]] += rows
            check_frames(ends[self.index[name]], name)
        for op, reads, writes in self._steps:
            end = op.end({field: ends[value] for field, value in reads.items()}, is_last=is_last)
            check_frames(end, op.source or op.output)
            for value in writes:
                ends[value] = end
        return np.array(ends, np.int64)

    def needed(self, ends: NDArray[np.int64]) -> NDArray[np.int64]:
        """The first row of every value that is needed once all have `ends`."""
        return np.maximum(self._first_needed(ends), 0)

    def _first_needed(self, ends: NDArray[np.int64]) -> NDArray[np.int64]:
        """The same, below 0 where rows in front of the first are asked for."""
        needed = ends.tolist()
        for op, reads, writes in self._steps:
            row = int(ends[writes[0]])
            firsts = op.first_needed(row)
            for field, value in reads.items():
                needed[value] = min(needed[value], firsts[field])
            for value in writes:
                needed[value] = min(needed[value], row - op.memory)
        return np.array(needed, np.int64)

    def _layout(self, held: NDArray[np.int64], carried: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
        """Offsets for `held` rows of every value, `carried` of which come from the state, and the arena's bytes."""
        key = held.tobytes() + (carried > 0).tobytes()
        if key in self._layouts:
            self._layouts.move_to_end(key)
            return self._layouts[key]
        layout = self._layouts[key] = self._new_layout(held, carried)
        if len(self._layouts) > MAX_PLANS:
            self._layouts.popitem(last=False)
        return layout

    def _new_layout(
        self, held: NDArray[np.int64], carried: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], int]:
        outside = {
            name for name in (*self.program.inputs, self.program.output) if not carried[self.index[name]]
        }
        offsets = dict.fromkeys(outside, -1)
        alive: list[tuple[int, int, str]] = []  # (first byte, end, name), ascending
        arena_bytes = 0
        for names, dead in [(tuple(self.program.inputs), frozenset()), *self._writes()]:
            for name in names:
                if name in outside:
                    continue
                num_bytes = int(held[self.index[name]]) * self.widths[name] * 4
                offset = _lowest_gap(alive, num_bytes)
                end = offset + math.ceil(num_bytes / ALIGNMENT_BYTES) * ALIGNMENT_BYTES
                offsets[name] = offset
                alive = sorted([*alive, (offset, end, name)])
                arena_bytes = max(arena_bytes, end)
            alive = [place for place in alive if place[2] not in dead]
        if arena_bytes > MAX_ARENA_BYTES:
            raise MemoryError(f"{arena_bytes} bytes are needed for values; hear less at once")
        return np.array([offsets[name] for name in self.index], np.int64), arena_bytes

    def _writes(self) -> list[tuple[tuple[str, ...], frozenset[str]]]:
        return [(results_of(op), dead) for op, dead in zip(self.program.ops, self.last_reads, strict=True)]


def stride_of(op: Op) -> int:
    """Rows of its input from one row of its output to the next."""
    if isinstance(op, OverFrames):
        return op.stride
    return op.count if isinstance(op, Stack) else 1


def _moved(plan: Plan, count: int, rows: NDArray[np.int64]) -> Plan:
    """`plan`, `count` times `rows` later."""
    by = count * rows
    return dataclasses.replace(
        plan, base=plan.base + by, first=plan.first + by, end=plan.end + by, keep=plan.keep + by
    )


def _last_reads(program: Program) -> tuple[frozenset[str], ...]:
    last: dict[str, int] = {}
    for index, op in enumerate(program.ops):
        last.update(dict.fromkeys((*inputs_of(op), *results_of(op)), index))
    last.pop(program.output, None)
    dead: list[set[str]] = [set() for _ in program.ops]
    for name, index in last.items():
        dead[index].add(name)
    return tuple(map(frozenset, dead))


def _lowest_gap(alive: list[tuple[int, int, str]], num_bytes: int) -> int:
    """First byte of the lowest gap of `num_bytes` between places that are in ascending order."""
    candidate = 0
    for first, end, _ in alive:
        if first - candidate >= num_bytes:
            break
        candidate = max(candidate, end)
    return candidate
