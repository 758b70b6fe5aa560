"""What an engine refuses and in which words; what the C ABI answers to a caller who is wrong."""

from __future__ import annotations

import gc
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.runtime.random_programs import random_program
from tests.runtime.small_programs import program_of

import subtone
from subtone.program import Relu
from subtone.runtime import engine as engine_module
from subtone.runtime import library as native
from subtone.runtime.engine import NativeEngine, NumpyEngine, available_isas, load_engine

NULL, SIZE, VALUE, PLAN, ISA, RANGE = 1, 2, 3, 4, 5, 9  # subtone_status of native/subtone.h
needs_library = pytest.mark.skipif(not available_isas(), reason="the native library was not built")
RELU = program_of(Relu(input="x", output="y"), width_in=3, width_out=3)
ENGINES = [NumpyEngine, pytest.param(NativeEngine, marks=needs_library)]


# Features -------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("features", "complaint"),
    [
        (np.zeros((2, 3)), "features are float64; use a float32 array"),
        ([[0.0] * 3], "features are <class 'list'>; use a float32 array"),
        (np.zeros((2, 4), np.float32), r"features have shape \(2, 4\), not \(frames, 3\)"),
        (np.zeros(3, np.float32), r"features have shape \(3,\), not \(frames, 3\)"),
        (np.full((2, 3), np.nan, np.float32), "features hold NaN or infinity"),
        (np.full((2, 3), -np.inf, np.float32), "features hold NaN or infinity"),
    ],
)
def test_features_that_do_not_fit_are_refused(engine, features, complaint):
    with pytest.raises(ValueError, match=complaint):
        engine(RELU, {}).run(features)


# Which engine ---------------------------------------------------------------------------


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kind=gpu is not an engine; use auto, native or numpy"):
        load_engine(RELU, {}, kind="gpu")


@needs_library
def test_auto_is_native_where_the_library_was_built(monkeypatch):
    monkeypatch.delenv("SUBTONE_ISA", raising=False)
    engine = load_engine(RELU, {}, threads=2)
    assert isinstance(engine, NativeEngine)
    assert engine.threads == 2
    assert engine.isa == available_isas()[0]
    assert isinstance(load_engine(RELU, {}, kind="numpy"), NumpyEngine)


def test_without_a_library_auto_is_numpy_and_native_says_what_is_missing(monkeypatch):
    monkeypatch.delenv("SUBTONE_ISA", raising=False)
    monkeypatch.setattr(native, "find_library", lambda: None)
    assert available_isas() == ()
    assert isinstance(load_engine(RELU, {}), NumpyEngine)
    with pytest.raises(ValueError, match=r"no libsubtone.* was built with this package"):
        load_engine(RELU, {}, kind="native")
    monkeypatch.setenv("SUBTONE_ISA", "scalar")  # a forced instruction set is never ignored
    with pytest.raises(ValueError, match=r"no libsubtone.* was built with this package"):
        load_engine(RELU, {})


def test_falling_back_to_numpy_is_said_once(monkeypatch, caplog):
    monkeypatch.delenv("SUBTONE_ISA", raising=False)
    monkeypatch.setattr(native, "find_library", lambda: None)
    engine_module._warn_of_numpy.cache_clear()
    load_engine(RELU, {}, kind="numpy")  # asked for: nothing to say
    assert caplog.messages == []
    for _ in range(2):
        load_engine(RELU, {})
    (message,) = caplog.messages
    assert re.fullmatch(r"no libsubtone\.\w+ was built .* run in NumPy, .* install subtone again .*", message)


def test_the_library_is_found_in_the_folders_of_the_package(monkeypatch, tmp_path):
    monkeypatch.delenv("SUBTONE_LIBRARY", raising=False)
    monkeypatch.setattr(subtone, "__path__", [str(tmp_path / "src"), str(tmp_path)])
    assert native.find_library() is None
    built = tmp_path / native.FILE_NAME
    built.touch()
    assert native.find_library() == built


@needs_library
@pytest.mark.parametrize("isa", available_isas())
def test_subtone_isa_forces_an_instruction_set(monkeypatch, isa):
    monkeypatch.setenv("SUBTONE_ISA", isa)
    assert load_engine(RELU, {}).isa == isa


@needs_library
@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads the flags of an x86-64 processor")
def test_every_instruction_set_of_the_processor_has_kernels_best_first():
    line = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    flags = set(line.split(":")[1].split())
    needs = {
        "avx512vbmi": {"avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512vbmi"},
        "avx512vnni": {"avx512f", "avx512bw", "avx512vl", "avx512_vnni"},
        "avx2": {"avx2"},
        "scalar": set(),
    }
    assert available_isas() == tuple(isa for isa, needed in needs.items() if needed <= flags)


@needs_library
def test_an_instruction_set_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setenv("SUBTONE_ISA", "mmx")
    with pytest.raises(ValueError, match=r"SUBTONE_ISA=mmx is not available on this machine; use .*scalar$"):
        load_engine(RELU, {})
    with pytest.raises(ValueError, match="isa=sse9 is not available"):
        NativeEngine(RELU, {}, isa="sse9")


@needs_library
@pytest.mark.parametrize("threads", [-1, 257])
def test_an_impossible_number_of_threads_is_refused(threads):
    with pytest.raises(ValueError, match=rf"threads={threads} must be 0 \(all cores\) to 256"):
        NativeEngine(RELU, {}, threads=threads)


@needs_library
def test_zero_threads_are_all_cores_of_this_process():
    assert NativeEngine(RELU, {}).threads == min(256, len(os.sched_getaffinity(0)))


def test_a_library_that_is_named_but_missing_is_refused(monkeypatch):
    monkeypatch.setenv("SUBTONE_LIBRARY", "/nowhere/libsubtone.so")
    with pytest.raises(ValueError, match=r"SUBTONE_LIBRARY=/nowhere/libsubtone.so is not a file"):
        load_engine(RELU, {})


def test_a_broken_library_is_an_error_and_never_a_slower_engine(monkeypatch, tmp_path):
    broken = tmp_path / native.FILE_NAME
    broken.write_bytes(b"not a library")
    monkeypatch.setenv("SUBTONE_LIBRARY", str(broken))
    with pytest.raises(OSError, match=r"libsubtone.*; build libsubtone.* again .* unset SUBTONE_LIBRARY"):
        load_engine(RELU, {})


def test_a_library_that_is_not_ours_is_refused_with_a_remedy(monkeypatch):
    foreign = importlib.util.find_spec("numpy._core._multiarray_umath").origin
    monkeypatch.setenv("SUBTONE_LIBRARY", foreign)
    with pytest.raises(ValueError, match=r"is a library, but not subtone's; build .* unset SUBTONE_LIBRARY"):
        load_engine(RELU, {})


@needs_library
def test_a_library_may_be_named_relative_to_the_folder_one_is_in(monkeypatch, tmp_path):
    shutil.copy(native.find_library(), tmp_path / "ours.so")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SUBTONE_LIBRARY", "ours.so")
    assert isinstance(load_engine(RELU, {}), NativeEngine)


@needs_library
def test_a_library_of_another_version_is_refused(monkeypatch, tmp_path):
    copy = Path(shutil.copy(native.find_library(), tmp_path / native.FILE_NAME))
    monkeypatch.setattr(native, "ABI", native.ABI + 1)
    with pytest.raises(ValueError, match=r"has ABI \d+, this package needs \d+; build .* again"):
        native.load_library(copy)


# Life of an engine ----------------------------------------------------------------------


@needs_library
def test_threads_end_with_their_engine():
    def num_threads() -> int:
        return len(os.listdir("/proc/self/task"))

    before = num_threads()
    engine = NativeEngine(RELU, {}, threads=4)
    assert num_threads() == before + 3
    del engine
    gc.collect()
    assert num_threads() == before


@needs_library
def test_an_engine_keeps_no_constants_alive():
    program, constants = random_program(np.random.default_rng(0), 8)
    array = next(value for value in constants.values() if isinstance(value, np.ndarray))
    references = sys.getrefcount(array)
    engine = NativeEngine(program, constants)
    assert sys.getrefcount(array) == references
    constants.clear()
    assert engine.run(np.ones((9, program.input_width), np.float32)).shape[1] == program.output_width


@needs_library
def test_a_forked_engine_says_so_instead_of_waiting_for_threads_that_are_gone():
    script = """
import os, sys, warnings, numpy as np
from subtone.program import Program, Relu
from subtone.runtime.engine import NativeEngine
warnings.simplefilter("ignore")  # newer Pythons warn of forking with threads: the very point here
program = Program(input="x", input_width=1, output="y", output_width=1, frames_per_step=1,
                  ops=(Relu(input="x", output="y"),))
engine = NativeEngine(program, {}, threads=2)
if os.fork() == 0:
    try:
        engine.run(np.ones((4, 1), np.float32))
    except RuntimeError as error:
        print(error, flush=True)
    os._exit(0)
os.wait()
"""
    source = str(Path(subtone.__path__[0]).parent)
    library = str(native.find_library())
    environment = {**os.environ, "PYTHONPATH": source, "SUBTONE_LIBRARY": library}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60
    )
    assert "made before this process was forked" in done.stdout, done.stderr
