"""Which rows of what it reads one row of an operation depends on, written out."""

from __future__ import annotations

from subtone.program import Attention, Conv1d, Conv2d, Lstm, Op, Stack, SwitchedLstm, inputs_of


def dependencies(op: Op, row: int) -> dict[str, set[int]]:
    """Name -> rows, for what `op` reads and, where it goes on from its own row before, for what it writes."""
    if isinstance(op, Conv1d | Conv2d):
        start = row * op.stride - op.padding
        last = start + (op.kernel - 1) * op.dilation
        return {op.input: set(range(start, last + 1))}  # rows between two taps are held too
    if isinstance(op, Stack):
        return {op.input: {row * op.count + part for part in range(op.count)}}
    if isinstance(op, Attention):
        seen = set(range(row - op.left, row + op.right + 1))
        rows: dict[str, set[int]] = {op.query: {row}}
        for name in (op.key, op.value):  # all three may be one value
            rows[name] = rows.get(name, set()) | seen
        return rows
    rows = {name: {row} for name in inputs_of(op)}
    if isinstance(op, Lstm | SwitchedLstm):
        rows |= {op.output: {row - 1}, op.cell: {row - 1}}
    return rows
