"""Runs a program: features in, logits out, natively where the library was built, else in NumPy.

Both engines give the same bits (docs/numerics.md, section 5): `NumpyEngine` executes the
definitions of runtime/ops.py, `NativeEngine` calls the C++ library through its C ABI. A kernel
that is absent on this machine means the next one in the list; a library that is there but
broken is an error, never a silent change to something slower.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import logging
import os
import threading
import weakref
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from subtone.program import Constants, Door, Program, results_of
from subtone.runtime import library as native
from subtone.runtime.ops import DEFINITIONS
from subtone.runtime.plan import Plan, Planner
from subtone.runtime.rows import Matrix, Rows
from subtone.runtime.state import StreamState
from subtone.runtime.tables import table_of, with_tables

log = logging.getLogger(__name__)


class Engine(Protocol):
    """What a program runs on."""

    program: Program

    def run(self, *inputs: Matrix) -> Matrix:
        """The output (T', output_width) for whole inputs (T, width), float32; no rows give none."""

    def start(self) -> StreamState:
        """The state of a stream that has heard nothing; ValueError if the program cannot stream."""

    def values(self, *inputs: Matrix) -> dict[str, Matrix]:
        """Every value of a whole run by its name, inputs and output included: what calibration looks at.

        All of them at once, so that they take the memory that a run saves.
        """

    def step(self, state: StreamState, *inputs: Matrix, is_last: bool = False) -> tuple[Matrix, StreamState]:
        """What new rows of the inputs add to the output, and the state behind them.

        The outputs of all steps, one after the other, are bit for bit what `run` gives for all rows at
        once, however they are cut, if the last step says that it `is_last`.
        """


class NumpyEngine:
    """A program in NumPy: the definition, slow, on any machine.

    Each value is dropped after the last operation that reads it.
    """

    def __init__(self, program: Program, constants: Constants) -> None:
        self.program = program
        self._ops, self._constants = with_tables(program, constants)
        self._planner = Planner(self._ops, self._constants)

    def run(self, *inputs: Matrix) -> Matrix:
        return self._execute(_checked(inputs, self.program), None, is_last=True)[0]

    def values(self, *inputs: Matrix) -> dict[str, Matrix]:
        state = self._execute(_checked(inputs, self.program), None, is_last=True, keeps_all=True)[1]
        return _split(state.ends, self._planner, state.rows)

    def start(self) -> StreamState:
        return start_of(self._planner)

    def step(self, state: StreamState, *inputs: Matrix, is_last: bool = False) -> tuple[Matrix, StreamState]:
        return self._execute(_checked(inputs, self.program), state, is_last=is_last)

    def _execute(
        self, inputs: list[Matrix], state: StreamState | None, *, is_last: bool, keeps_all: bool = False
    ) -> tuple[Matrix, StreamState]:
        planner, constants = self._planner, self._constants
        plan = plan_of(planner, state, len(inputs[0]), is_last=is_last, keeps_all=keeps_all)
        carried = _split(plan.first - plan.base, planner, None if state is None else state.rows)
        values: dict[str, Rows] = {}
        kept: dict[str, Matrix] = {}

        def settle(name: str, fresh: Matrix) -> None:
            position = planner.index[name]
            held = np.concatenate([carried[name], fresh]) if len(carried[name]) else fresh
            values[name] = Rows(held, int(plan.base[position]))
            kept[name] = held[int(plan.keep[position] - plan.base[position]) :]

        for name, fresh in zip(self._ops.inputs, inputs, strict=True):
            settle(name, fresh)
        for op, dead in zip(self._ops.ops, planner.last_reads, strict=True):
            seen = {
                field: values[name] if name in values else Rows(table_of(constants, name))
                for field in op.VALUES
                if (name := getattr(op, field))
            }
            position = planner.index[op.output]
            first, end = int(plan.first[position]), int(plan.end[position])
            if op.memory:
                seen |= {
                    field: Rows(carried[name := getattr(op, field)], int(plan.base[planner.index[name]]))
                    for field in op.RESULTS
                }
            widths = [planner.widths[name] for name in results_of(op)]
            results = (
                DEFINITIONS[type(op)](op, seen, constants, first, end)
                if end > first
                else tuple(np.empty((0, width), self._ops.dtype) for width in widths)
            )
            for name, fresh in zip(results_of(op), results, strict=True):
                settle(name, fresh)
            for name in dead:
                values.pop(name, None)
        position = planner.index[self._ops.output]
        output = values[self._ops.output].held[int(plan.first[position] - plan.base[position]) :]
        rows = np.concatenate([kept[name].reshape(-1) for name in planner.index])
        return output, StreamState(plan.end, rows, is_last)


def start_of(planner: Planner) -> StreamState:
    """The state before the first row; ValueError if the program cannot stream."""
    if obstacle := planner.program.obstacle:
        raise ValueError(f"the model cannot stream: {obstacle}; let it hear whole utterances")
    return StreamState(planner.start(), np.empty(0, planner.program.dtype))


def plan_of(
    planner: Planner, state: StreamState | None, rows: int, *, is_last: bool, keeps_all: bool = False
) -> Plan:
    """The plan of a step from `state`, or of a whole run from None; ValueError unless a step may go on from it.

    `keeps_all`, of a whole run: the state behind it holds all rows of every value.
    """
    if state is None:
        plan = planner.plan(rows)
        return dataclasses.replace(plan, keep=plan.base) if keeps_all else plan
    if state.is_ended:
        raise ValueError("is_last=True ended this stream; begin another with start()")
    if len(state.ends) == len(planner.index):
        plan = planner.plan(rows, state.ends, is_last=is_last)
        if (plan.first - plan.base) @ planner.row_sizes == state.rows.size:
            return plan
    raise ValueError("the state is one of another program; use what start() or step() of this engine gave")


def _split(counts: NDArray[np.int64], planner: Planner, rows: Matrix | None) -> dict[str, Matrix]:
    """The rows of every value that a state carries."""
    sizes = counts * planner.row_sizes
    if rows is None:
        rows = np.empty(0, planner.program.dtype)
    assert rows.size == sizes.sum()
    parts = np.split(rows, np.cumsum(sizes)[:-1])
    return {
        name: part.reshape(-1, width)
        for part, (name, width) in zip(parts, planner.widths.items(), strict=True)
    }


class NativeEngine:
    """A program in the native library, its weights packed once for the kernels of this machine.

    It keeps no reference to `constants`. Several threads may call `run`; they take turns.

    Args:
        threads: threads of one run, the caller's included; 0 is one for each core this process
            may use. The others sleep between runs.
        isa: one of `available_isas()`; None takes what SUBTONE_ISA names, else the first.
    """

    def __init__(
        self,
        program: Program,
        constants: Constants,
        *,
        threads: int = 0,
        isa: str | None = None,
    ) -> None:
        if not 0 <= threads <= native.MAX_THREADS:
            raise ValueError(f"threads={threads} must be 0 (all cores) to {native.MAX_THREADS}")
        path = native.find_library()
        if path is None:
            raise ValueError(
                f"no {native.FILE_NAME} was built with this package; install it with a C++ compiler present, "
                "or use the engine kind 'numpy'"
            )
        self.program = program
        self.threads = threads or _num_cores()
        self._library = native.load_library(path)
        self.isa = chosen_isa(isa, native.isas_of(self._library))
        self._ops, constants = with_tables(program, constants)
        self._planner = Planner(self._ops, constants)
        self._turn = threading.Lock()
        self._handle = self._create()
        weakref.finalize(self, self._library.subtone_destroy, self._handle)
        bounds = self._ops.bounds(constants)
        for position, op in enumerate(self._ops.ops):
            record, _arrays = native.op_record(op, self._planner.index, constants, bounds)
            status = self._library.subtone_append(self._handle, ctypes.byref(record))
            native.require_ok(self._library, status, f"adding op {position} ({op.source or op.output})")

    def _create(self) -> ctypes.c_void_p:
        planner, handle = self._planner, ctypes.c_void_p()
        widths = np.array(list(planner.widths.values()), np.int64)
        status = self._library.subtone_create(
            self.isa.encode(),
            self.threads,
            native.address_of(widths),
            widths.size,
            len(self._ops.inputs),
            planner.index[self._ops.output],
            ctypes.byref(handle),
        )
        native.require_ok(self._library, status, "making an engine")
        return handle

    def run(self, *inputs: Matrix) -> Matrix:
        return self._execute(_checked(inputs, self.program), None, is_last=True)[0]

    def values(self, *inputs: Matrix) -> dict[str, Matrix]:
        state = self._execute(_checked(inputs, self.program), None, is_last=True, keeps_all=True)[1]
        return _split(state.ends, self._planner, state.rows)

    def start(self) -> StreamState:
        return start_of(self._planner)

    def step(self, state: StreamState, *inputs: Matrix, is_last: bool = False) -> tuple[Matrix, StreamState]:
        return self._execute(_checked(inputs, self.program), state, is_last=is_last)

    def repeatable(self, *inputs: Matrix) -> Callable[[], Matrix]:
        """A function that runs these whole `inputs` anew at each call and gives the output, the same array each time.

        All that a run needs beside its work is made once, here: what is timed of a call is the library. Later
        changes of `inputs` in place are seen where they were contiguous and aligned; they are not checked again.
        """
        checked = _checked(inputs, self.program)
        with self._turn:
            plan = plan_of(self._planner, None, len(checked[0]), is_last=True)
            call, output, _ = self._call(checked, plan, np.empty(0, self._ops.dtype))

        def again() -> Matrix:
            with self._turn:
                status = call()
            if status:
                native.require_ok(self._library, status, f"running {len(checked[0])} frames")
            return output

        return again

    def _execute(
        self, inputs: list[Matrix], state: StreamState | None, *, is_last: bool, keeps_all: bool = False
    ) -> tuple[Matrix, StreamState]:
        with self._turn:
            plan = plan_of(self._planner, state, len(inputs[0]), is_last=is_last, keeps_all=keeps_all)
            before = np.empty(0, self._ops.dtype) if state is None else state.rows
            call, output, after = self._call(inputs, plan, before)
            status = call()
        native.require_ok(self._library, status, f"running {len(inputs[0])} frames")
        return output, StreamState(plan.end, after, is_last)

    def _call(
        self, inputs: list[Matrix], plan: Plan, before: NDArray
    ) -> tuple[Callable[[], int], Matrix, NDArray]:
        """What runs `plan` from the state's rows `before`; where its output and the state behind it will lie."""
        planner, position, dtype = self._planner, self._planner.index[self._ops.output], self._ops.dtype
        addresses = np.array([native.address_of(features) for features in inputs], np.uintp)
        rows = np.stack([plan.base, plan.first, plan.end, plan.keep, plan.offsets], axis=1)
        after = np.empty(int((plan.end - plan.keep) @ planner.row_sizes), dtype)
        output = np.empty((int(plan.end[position] - plan.first[position]), self._ops.output_width), dtype)
        status = self._library.subtone_reserve(self._handle, plan.arena_bytes)
        native.require_ok(self._library, status, f"taking {plan.arena_bytes} bytes for values")
        held = (rows, addresses, output, before, after)
        places = [*map(native.address_of, held)]
        function = functools.partial(
            self._library.subtone_run, self._handle, *places[:4], before.size, places[4], after.size
        )

        def call(_held: object = (held, inputs)) -> int:  # what the addresses point to lives as long as it
            return function()

        return call, output, after


def available_isas() -> tuple[str, ...]:
    """Instruction sets for which this machine has kernels, best first; none without the native library."""
    path = native.find_library()
    return () if path is None else native.isas_of(native.load_library(path))


def load_engine(
    program: Program, constants: Constants, *, kind: str = "auto", threads: int = 0
) -> NumpyEngine | NativeEngine:
    """An engine of `kind` "native", "numpy", or "auto": native where the library was built.

    Where "auto" falls back to NumPy, one line of logging says so, once a process. `threads` 0 is one
    for each core this process may use; the NumPy engine leaves that to NumPy.
    """
    if kind not in ("auto", "native", "numpy"):
        raise ValueError(f"kind={kind} is not an engine; use auto, native or numpy")
    is_forced = bool(os.environ.get("SUBTONE_ISA"))  # then the slower engine is no answer
    if kind == "auto" and native.find_library() is None and not is_forced:
        _warn_of_numpy()
        kind = "numpy"
    if kind == "numpy":
        return NumpyEngine(program, constants)
    return NativeEngine(program, constants, threads=threads)


@functools.cache  # one line, however many engines
def _warn_of_numpy() -> None:
    log.warning(
        "no %s was built with this package: networks run in NumPy, which is slow; "
        "install subtone again with a C++ compiler present",
        native.FILE_NAME,
    )


def chosen_isa(isa: str | None, available: tuple[str, ...]) -> str:
    """`isa`, else what SUBTONE_ISA names, else the best; ValueError if this machine has no kernels for it."""
    name, asked = ("isa", isa) if isa else ("SUBTONE_ISA", os.environ.get("SUBTONE_ISA", ""))
    if asked and asked not in available:
        raise ValueError(f"{name}={asked} is not available on this machine; use {' or '.join(available)}")
    return asked or available[0]


def _num_cores() -> int:
    """Cores that this process may use, which a container or taskset may have made fewer."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, native.MAX_THREADS)


def _checked(inputs: tuple[Matrix, ...], program: Program) -> list[Matrix]:
    """The inputs as engines read them; ValueError where they are not what the program takes."""
    widths = program.inputs
    if len(inputs) != len(widths):
        raise ValueError(
            f"{len(inputs)} inputs were given; the program takes {len(widths)}: {', '.join(widths)}"
        )
    bounds: list[Door | None] = list(program.doors) if program.is_integer else [None] * len(widths)
    checked = [
        _checked_features(features, width, door)
        for features, width, door in zip(inputs, widths.values(), bounds, strict=True)
    ]
    if len({len(features) for features in checked}) > 1:
        raise ValueError(f"the inputs have {[len(features) for features in checked]} rows; give each as many")
    return checked


def _checked_features(features: Matrix, width: int, door: Door | None) -> Matrix:
    """`features` as they lie in memory for an engine: floats, or levels within a door's bounds."""
    dtype = np.dtype(np.float32 if door is None else np.int32)
    if not isinstance(features, np.ndarray) or features.dtype != dtype:
        raise ValueError(f"features are {getattr(features, 'dtype', type(features))}; use a {dtype} array")
    if features.ndim != 2 or features.shape[1] != width:
        raise ValueError(f"features have shape {features.shape}, not (frames, {width})")
    if door is None and not np.isfinite(features).all():
        raise ValueError("features hold NaN or infinity; a program is defined on finite values")
    if door is not None and features.size and not door.low <= features.min() <= features.max() <= door.high:
        raise ValueError(
            f"features hold levels of {features.min()} to {features.max()}; the program takes {door.low} to {door.high}"
        )
    return np.require(features, dtype, ["C", "A"])
