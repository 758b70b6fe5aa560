"""Where every value of a program lies in memory, planned once for each number of frames.

All values but the input and the output share one arena. A value's bytes are free again after the
last operation that reads it; a new value takes the lowest gap that holds it. Operations run in
program order, so this first fit along the list sees the few values that are alive (four in a
residual block) and costs microseconds, where a best packing over all pairs would cost more than
the plan saves: QuartzNet's arena is the sum of what is alive at its widest point, to the byte.
"""

from __future__ import annotations

import dataclasses
import math
from collections import OrderedDict
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from subtone.program import Constant, Conv1d, Program, check_frames, inputs_of

ALIGNMENT_BYTES = 64
"""Offsets are multiples of one cache line, which is also one vector of AVX-512."""

MAX_ARENA_BYTES = 2**62
"""No machine has as much; the C ABI counts bytes in 64 bits."""

MAX_PLANS = 64
"""Plans kept for each engine; utterances come in many lengths, and a plan is a few kilobytes."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """Frames and places of all values for one number of input frames, in the order of `Planner.index`.

    `frames`: int64, of every value. `offsets`: int64, bytes into the arena; -1 for the program's
    input and output, which live with the caller.
    """

    frames: NDArray[np.int64]
    offsets: NDArray[np.int64]
    arena_bytes: int


class Planner:
    """Plans of one program. Checks the program against its constants and then forgets them.

    * `widths`: of every value, in the order in which they are written, the input first.
    * `index`: position of every value in that order.
    * `last_reads[op_index]`: values that nothing needs after that op, its own output included
      where nothing reads it.
    """

    def __init__(self, program: Program, constants: Mapping[str, Constant]) -> None:
        self.program = program
        self.widths = {name: width for name, (_, width) in program.shapes(1, constants).items()}
        self.index = {name: position for position, name in enumerate(self.widths)}
        self.last_reads = _last_reads(program)
        self._plans: OrderedDict[int, Plan] = OrderedDict()

    def plan(self, frames: int) -> Plan:
        """The plan for `frames` input frames; one of the last `MAX_PLANS`, or a new one.

        >>> from subtone.program import Relu
        >>> ops = tuple(Relu(input=f"v{i}", output=f"v{i + 1}") for i in range(4))
        >>> program = Program(
        ...     input="v0", input_width=4, output="v4", output_width=4, frames_per_step=1, ops=ops
        ... )
        >>> plan = Planner(program, {}).plan(10)
        >>> plan.offsets.tolist(), plan.arena_bytes  # 160 bytes a value, 192 with its padding
        ([-1, 0, 192, 0, -1], 384)
        """
        if frames < 0:
            raise ValueError(f"frames={frames} is below 0")
        check_frames(frames, self.program.input)
        if frames in self._plans:
            self._plans.move_to_end(frames)
            return self._plans[frames]
        plan = self._plans[frames] = self._new_plan(frames)
        if len(self._plans) > MAX_PLANS:
            self._plans.popitem(last=False)
        return plan

    def _new_plan(self, input_frames: int) -> Plan:
        program = self.program
        frames = {program.input: input_frames}
        offsets = {program.input: -1, program.output: -1}
        alive: list[tuple[int, int, str]] = []  # (first byte, end, name), ascending
        arena_bytes = 0
        for op, dead in zip(program.ops, self.last_reads, strict=True):
            seen = frames[inputs_of(op)[0]]
            frames[op.output] = op.frames_out(seen) if isinstance(op, Conv1d) else seen
            check_frames(frames[op.output], op.source or op.output)
            if op.output != program.output:
                num_bytes = frames[op.output] * self.widths[op.output] * 4
                offset = _lowest_gap(alive, num_bytes)
                end = offset + math.ceil(num_bytes / ALIGNMENT_BYTES) * ALIGNMENT_BYTES
                offsets[op.output] = offset
                alive.append((offset, end, op.output))
                arena_bytes = max(arena_bytes, end)
            alive = sorted(place for place in alive if place[2] not in dead)
        if arena_bytes > MAX_ARENA_BYTES:
            raise MemoryError(f"{input_frames} frames need {arena_bytes} bytes for values; hear less at once")
        return Plan(
            np.array([frames[name] for name in self.index], np.int64),
            np.array([offsets[name] for name in self.index], np.int64),
            arena_bytes,
        )


def _last_reads(program: Program) -> tuple[frozenset[str], ...]:
    last: dict[str, int] = {}
    for index, op in enumerate(program.ops):
        last.update(dict.fromkeys((*inputs_of(op), op.output), index))
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
