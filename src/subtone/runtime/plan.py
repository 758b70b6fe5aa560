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

from subtone.program import Constants, Program, check_frames, inputs_of, results_of

ALIGNMENT_BYTES = 64
"""Offsets are multiples of one cache line, which is also one vector of AVX-512."""

MAX_ARENA_BYTES = 2**62
"""No machine has as much; the C ABI counts bytes in 64 bits."""

MAX_PLANS = 64
"""Layouts kept for each engine; utterances come in many lengths, and a layout is a few kilobytes."""


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
    * `last_reads[op_index]`: values that nothing needs after that op, its own results included
      where nothing reads them.
    """

    def __init__(self, program: Program, constants: Constants) -> None:
        self.program = program
        widths = program.widths(constants)
        self.widths = {name: width for name, width in widths.items() if name not in program.tables}
        self.index = {name: position for position, name in enumerate(self.widths)}
        self.row_sizes = np.array(list(self.widths.values()), np.int64)
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

    def start(self) -> NDArray[np.int64]:
        """Ends of all values before the first row."""
        return np.zeros(len(self.index), np.int64)

    def state_size(self, ends: NDArray[np.int64]) -> int:
        """Numbers that the state of a stream holds once all values have `ends`."""
        return int((ends - self._needed(ends)) @ self.row_sizes)

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
        first = self.start() if before is None else before
        end = self._ends(first, rows, is_last=is_last)
        base = self._needed(first)
        keep = end if is_last else self._needed(end)
        offsets, arena_bytes = self._layout(end - base, first - base)
        return Plan(base, first, end, keep, offsets, arena_bytes)

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

    def _needed(self, ends: NDArray[np.int64]) -> NDArray[np.int64]:
        """The first row of every value that is needed once all have `ends`."""
        needed = ends.tolist()
        for op, reads, writes in self._steps:
            row = int(ends[writes[0]])
            firsts = op.first_needed(row)
            for field, value in reads.items():
                needed[value] = min(needed[value], firsts[field])
            for value in writes:
                needed[value] = min(needed[value], row - op.memory)
        return np.maximum(np.array(needed, np.int64), 0)

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
