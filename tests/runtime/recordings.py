"""Programs with their inputs and what the NumPy definition makes of them, as a file for a machine without Python.

tests/runtime/replay.cc says what is in it and runs it there. An op goes over as the very bytes that the C ABI reads,
with the offsets of its pointers and what they point at: both sides are little-endian with pointers of 64 bits, and
`replay` refuses an op of another size.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator, Sequence

import numpy as np

from subtone.program import Constants, Program
from subtone.runtime import library
from subtone.runtime.engine import NumpyEngine, plan_of
from subtone.runtime.plan import Planner
from subtone.runtime.tables import with_tables

Step = tuple[Sequence[np.ndarray], bool]
"""New rows of every input, and whether the stream ends behind them."""


def recording(
    cases: Sequence[tuple[Program, Constants, Sequence[Sequence[np.ndarray]], Sequence[Step]]],
) -> bytes:
    """The file of `cases`: of each program whole runs on these inputs, then the steps of one stream."""
    parts = [_numbers(ctypes.sizeof(library.OpRecord), len(cases))]
    for program, constants, wholes, steps in cases:
        parts += _case(program, constants, wholes, steps)
    return b"".join(parts)


def _case(
    program: Program, constants: Constants, wholes: Sequence[Sequence[np.ndarray]], steps: Sequence[Step]
) -> Iterator[bytes]:
    ops, held = with_tables(program, constants)
    planner, bounds = Planner(ops, held), ops.bounds(held)
    yield _blob(np.array(list(planner.widths.values()), np.int64))
    yield _numbers(len(ops.inputs), planner.index[ops.output], len(ops.ops))
    for op in ops.ops:
        record, arrays = library.op_record(op, planner.index, held, bounds)
        yield _op(record, {library.address_of(array): array for array in arrays})
    yield _numbers(len(wholes) + len(steps))
    engine = NumpyEngine(program, constants)
    for inputs in wholes:
        plan = plan_of(planner, None, len(inputs[0]), is_last=True)
        yield _run(plan, np.empty(0, ops.dtype), inputs, engine.run(*inputs), np.empty(0, ops.dtype))
    state = engine.start() if steps else None
    for inputs, is_last in steps:
        assert state is not None
        plan = plan_of(planner, state, len(inputs[0]), is_last=is_last)
        output, after = engine.step(state, *inputs, is_last=is_last)
        yield _run(plan, state.rows, inputs, output, after.rows)
        state = after


def _run(
    plan, before: np.ndarray, inputs: Sequence[np.ndarray], output: np.ndarray, after: np.ndarray
) -> bytes:
    rows = np.stack([plan.base, plan.first, plan.end, plan.keep, plan.offsets], axis=1)
    return b"".join(
        [
            _blob(rows),
            _numbers(plan.arena_bytes),
            *(_blob(array) for array in (before, *inputs, output, after)),
        ]
    )


def _op(record: ctypes.Structure, arrays: dict[int, np.ndarray]) -> bytes:
    pointers = [(offset, address) for offset, address in _pointers(record) if address]
    parts = [_blob(np.frombuffer(bytes(record), np.uint8)), _numbers(len(pointers))]
    for offset, address in pointers:
        parts += [_numbers(offset), _blob(arrays[address])]
    return b"".join(parts)


def _pointers(record: ctypes.Structure, base: int = 0) -> Iterator[tuple[int, int | None]]:
    for name, kind in type(record)._fields_:  # type: ignore[misc]
        offset = base + getattr(type(record), name).offset
        if kind is ctypes.c_void_p:
            yield offset, getattr(record, name)
        elif issubclass(kind, ctypes.Structure):
            yield from _pointers(getattr(record, name), offset)


def _numbers(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}q", *values)


def _blob(array: np.ndarray) -> bytes:
    data = np.ascontiguousarray(array).tobytes()
    return _numbers(len(data)) + data + bytes(-len(data) % 8)
