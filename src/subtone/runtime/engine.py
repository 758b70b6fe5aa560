"""Runs a program: features in, logits out, natively where the library was built, else in NumPy.

Both engines give the same bits (docs/numerics.md, section 5): `NumpyEngine` executes the
definitions of runtime/ops.py, `NativeEngine` calls the C++ library through its C ABI. A kernel
that is absent on this machine means the next one in the list; a library that is there but
broken is an error, never a silent change to something slower.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import threading
import weakref
from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from subtone.program import Constant, Program
from subtone.runtime import library as native
from subtone.runtime.ops import DEFINITIONS
from subtone.runtime.plan import Planner

Matrix = NDArray[np.float32]

log = logging.getLogger(__name__)


class Engine(Protocol):
    """What a program runs on."""

    program: Program

    def run(self, features: Matrix) -> Matrix:
        """Logits (T', output_width) of features (T, input_width), float32; no frames give no logits."""


class NumpyEngine:
    """A program in NumPy: the definition, slow, on any machine.

    Each value is dropped after the last operation that reads it.
    """

    def __init__(self, program: Program, constants: Mapping[str, Constant]) -> None:
        self.program = program
        self._constants = constants
        self._last_reads = Planner(program, constants).last_reads

    def run(self, features: Matrix) -> Matrix:
        features = _checked_features(features, self.program)
        if not len(features):
            return _no_logits(self.program)
        values = {self.program.input: features}
        for op, dead in zip(self.program.ops, self._last_reads, strict=True):
            values[op.output] = DEFINITIONS[type(op)](op, values, self._constants)
            for name in dead:
                del values[name]
        return values[self.program.output]


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
        constants: Mapping[str, Constant],
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
        self.isa = _chosen_isa(isa, native.isas_of(self._library))
        self._planner = Planner(program, constants)
        self._turn = threading.Lock()
        self._handle = self._create()
        weakref.finalize(self, self._library.subtone_destroy, self._handle)
        for position, op in enumerate(program.ops):
            record, _arrays = native.op_record(op, self._planner.index, constants)
            status = self._library.subtone_append(self._handle, ctypes.byref(record))
            native.require_ok(self._library, status, f"adding op {position} ({op.source or op.output})")

    def _create(self) -> ctypes.c_void_p:
        planner, handle = self._planner, ctypes.c_void_p()
        widths = np.array(list(planner.widths.values()), np.int64)
        ends = (planner.index[self.program.input], planner.index[self.program.output])
        status = self._library.subtone_create(
            self.isa.encode(),
            self.threads,
            native.address_of(widths),
            widths.size,
            *ends,
            ctypes.byref(handle),
        )
        native.require_ok(self._library, status, "making an engine")
        return handle

    def run(self, features: Matrix) -> Matrix:
        features = _checked_features(features, self.program)
        if not len(features):
            return _no_logits(self.program)
        with self._turn:
            plan = self._planner.plan(len(features))
            status = self._library.subtone_reserve(self._handle, plan.arena_bytes)
            native.require_ok(self._library, status, f"taking {plan.arena_bytes} bytes for values")
            frames_out = int(plan.frames[self._planner.index[self.program.output]])
            logits = np.empty((frames_out, self.program.output_width), np.float32)
            status = self._library.subtone_run(
                self._handle,
                native.address_of(plan.frames),
                native.address_of(plan.offsets),
                native.address_of(features),
                native.address_of(logits),
            )
        native.require_ok(self._library, status, f"running {len(features)} frames")
        return logits


def available_isas() -> tuple[str, ...]:
    """Instruction sets for which this machine has kernels, best first; none without the native library."""
    path = native.find_library()
    return () if path is None else native.isas_of(native.load_library(path))


def load_engine(
    program: Program, constants: Mapping[str, Constant], *, kind: str = "auto", threads: int = 0
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


def _chosen_isa(isa: str | None, available: tuple[str, ...]) -> str:
    name, asked = ("isa", isa) if isa else ("SUBTONE_ISA", os.environ.get("SUBTONE_ISA", ""))
    if asked and asked not in available:
        raise ValueError(f"{name}={asked} is not available on this machine; use {' or '.join(available)}")
    return asked or available[0]


def _num_cores() -> int:
    """Cores that this process may use, which a container or taskset may have made fewer."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, native.MAX_THREADS)


def _checked_features(features: Matrix, program: Program) -> Matrix:
    if not isinstance(features, np.ndarray) or features.dtype != np.float32:
        raise ValueError(f"features are {getattr(features, 'dtype', type(features))}; use a float32 array")
    if features.ndim != 2 or features.shape[1] != program.input_width:
        raise ValueError(f"features have shape {features.shape}, not (frames, {program.input_width})")
    if not np.isfinite(features).all():
        raise ValueError("features hold NaN or infinity; a program is defined on finite values")
    return np.require(features, np.float32, ["C", "A"])


def _no_logits(program: Program) -> Matrix:
    return np.empty((0, program.output_width), np.float32)
