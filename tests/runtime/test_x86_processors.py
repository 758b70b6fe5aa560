"""The installed library on other x86-64 processors, under an emulator, and on this one at the end of readable memory.

A library for many processors must not run an instruction of one before it has asked which it is on: not in a kernel,
and not in what the loader calls. replay.cc loads it and runs recorded programs (tests/runtime/test_aarch64.py).
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.runtime.recordings import recording
from tests.runtime.test_aarch64 import float_cases, integer_cases, replayed

from subtone.runtime.engine import available_isas
from subtone.runtime.library import find_library

CASES = 40
pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or not available_isas(),
    reason="needs the native library of an x86-64 machine",
)


@pytest.fixture(scope="module")
def replay(tmp_path_factory) -> Path:
    compiler, library = shutil.which("g++"), find_library()
    if compiler is None:
        pytest.skip("needs g++")
    path = tmp_path_factory.mktemp("replay") / "replay"
    source = Path(__file__).with_name("replay.cc")
    command = [
        compiler,
        "-std=c++17",
        "-O1",
        str(source),
        str(library),
        f"-Wl,-rpath,{library.parent}",
        "-o",
        str(path),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> tuple[Path, int]:
    """A file of cases, and how many runs it holds."""
    cases = [*list(float_cases())[:CASES], *list(integer_cases())[:CASES]]
    file = tmp_path_factory.mktemp("recorded") / "cases"
    file.write_bytes(recording(cases))
    return file, 2 * sum(len(wholes) + len(steps) for _, _, wholes, steps in cases)


def test_no_kernel_of_this_machine_reads_or_writes_beyond_what_it_is_given(replay, recorded):
    file, runs = recorded
    assert replayed([str(replay)], file) == (0, "".join(f"{isa} {runs}\n" for isa in available_isas()))


def test_a_processor_without_avx_loads_the_library_and_runs_what_it_has(replay, recorded):
    # Not one with AVX2: QEMU 7.2 reads the lanes that a masked load leaves out, beyond the end of readable memory.
    emulator = shutil.which("qemu-x86_64")
    if emulator is None:
        pytest.skip("needs qemu-x86_64 (Debian: qemu-user)")
    file, runs = recorded
    assert replayed([emulator, "-cpu", "Nehalem", str(replay)], file) == (0, f"scalar {runs}\n")
