"""The kernels of aarch64, cross-compiled and run under an emulator: every bit is that of the NumPy definition.

Python does not come along: programs are recorded with what NumPy makes of them, and replay.cc runs them through the C
ABI, with every buffer at the end of readable memory. The scalar integer kernels are compiled for a processor without
floating-point registers, as native/check_no_floats.sh does on x86-64; NEON's are beside them in the same library.

Needs a cross compiler and an emulator (Debian: g++-aarch64-linux-gnu and qemu-user), and is skipped without them.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.runtime.comparison import inputs_of
from tests.runtime.integer_programs import INT8, UINT8, integer_program, levels_for
from tests.runtime.integer_sequence_programs import integer_sequence_program
from tests.runtime.random_programs import random_program
from tests.runtime.recordings import recording
from tests.runtime.test_engine import product_program
from tests.runtime.test_integers import convolution, product_constants
from tests.runtime.test_integers import program_of as integer_program_of

from subtone.program import IntegerWeight
from subtone.qtensor import QTensor
from subtone.runtime.engine import NumpyEngine

ROOT = Path(__file__).resolve().parents[2]
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
SYSTEM = "/usr/aarch64-linux-gnu"
TOOLS = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def tool(name: str) -> str:
    """Where `name` lies; the test skips where it is absent."""
    found = shutil.which(name, path=TOOLS)
    if found is None:
        pytest.skip(f"needs {name} (Debian: g++-aarch64-linux-gnu, qemu-user, cmake, ninja-build)")
    return found


def built(folder: str, *options: str) -> Path:
    """`replay` in build/`folder`, where a second run compiles nothing. One process builds, others wait."""
    build = ROOT / "build" / folder
    build.mkdir(parents=True, exist_ok=True)
    cmake, ninja = tool("cmake"), tool("ninja")
    common = ["-S", str(ROOT), "-B", str(build), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    with open(build / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in ([*common, "-DSUBTONE_REPLAY=ON", *options], ["--build", str(build)]):
            done = subprocess.run([cmake, *command], capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
    return build / "replay"


@pytest.fixture(scope="module")
def emulated() -> list[str]:
    """The command that replays a file on an emulated aarch64 with dot products."""
    emulator = tool(EMULATOR)
    replay = built(
        "aarch64",
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        f"-DCMAKE_CXX_COMPILER={tool(COMPILER)}",
        "-DSUBTONE_NO_FLOATS=ON",
    )
    return [emulator, "-L", SYSTEM, "-cpu", "max", str(replay)]


def float_cases():
    """Random programs of floats, whole and as a stream."""
    for seed in range(80):
        rng = np.random.default_rng(seed)
        can_stream = seed % 4 == 0
        program, constants = random_program(
            rng, 1 + seed % 11, num_inputs=1 + seed % 2, can_stream=can_stream
        )
        wholes = [inputs_of(rng, program, frames) for frames in (1, int(rng.integers(2, 40)))]
        yield program, constants, wholes, steps_of(inputs_of(rng, program, 19)) if can_stream else ()


def integer_cases():
    """Random programs of integers alone: products and convolutions, then functions, norms, attention, recurrences."""
    for seed in range(120):
        rng = np.random.default_rng(seed)
        if seed % 2:
            program, constants = integer_program(rng, 1 + seed % 7)
        else:
            program, constants = integer_sequence_program(rng, 1 + seed % 6, can_stream=seed % 4 == 0)
        can_stream = seed % 2 or seed % 4 == 0
        wholes = [[levels_for(rng, program, rows)] for rows in (1, int(rng.integers(2, 60)))]
        yield program, constants, wholes, steps_of([levels_for(rng, program, 19)]) if can_stream else ()


def extreme_cases():
    """Products of nothing but the outermost levels, as wide as a float product may be and wider than what is spread at once."""
    for code in (0, 255):
        codes = np.full((17, 65535), code, np.uint8)
        scale = np.ones((1, 1), np.float32)
        weight = QTensor(codes=codes, shape=codes.shape, scale=scale, zero_point=128 * scale, bits=8)
        features = np.full((2, 65535), 127, np.float32) * np.array([[1], [-1]], np.float32)
        yield product_program(weight), {"w": weight}, [[features]], ()
        for bounds in (INT8, UINT8):
            narrow = IntegerWeight(codes=codes[:, :3000], shape=(17, 3000), bits=8)
            constants = product_constants(narrow, correction=True)
            program = integer_program_of(convolution(constants), width=3000, width_out=17, bounds=bounds)
            x = np.repeat(np.array([[bounds.low], [bounds.high]], np.int32), 3000, axis=1)
            yield program, constants, [[x]], ()


def steps_of(inputs: list[np.ndarray]):
    cuts = (0, 1, 8, 8, len(inputs[0]))
    return [
        ([rows[first:last] for rows in inputs], last == len(inputs[0]))
        for first, last in itertools.pairwise(cuts)
    ]


CASES = {"floats": float_cases, "integers alone": integer_cases, "the outermost levels": extreme_cases}


def replayed(command: list[str], file: Path) -> tuple[int, str]:
    """The exit status, and a line for each instruction set with the runs that gave the recorded bits."""
    done = subprocess.run([*command, str(file)], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("cases", CASES.values(), ids=list(CASES))
def test_neon_and_scalar_kernels_give_the_bits_of_the_definition(emulated, tmp_path, cases):
    file = tmp_path / "recording"
    recorded = list(cases())
    file.write_bytes(recording(recorded))
    runs = 2 * sum(len(wholes) + len(steps) for _, _, wholes, steps in recorded)  # on one thread and on two
    assert replayed(emulated, file) == (0, f"neon {runs}\nscalar {runs}\n")


def test_integer_kernels_touch_no_floating_point_register(emulated):
    """What the compiler was told (-mgeneral-regs-only), read from its machine code; the float kernels are full of them."""

    def uses_floats(source: str) -> bool:
        compiled = ROOT / "build" / "aarch64" / "CMakeFiles" / "subtone.dir" / "native" / f"{source}.o"
        command = [tool("aarch64-linux-gnu-objdump"), "-d", "--no-show-raw-insn", str(compiled)]
        code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        operands = [line.split("\t", 2)[2] for line in code.splitlines() if line.count("\t") == 2]
        assert len(operands) > 1000
        # A jump names its target in hexadecimal digits, then in angle brackets.
        return any(re.search(r"\b[qvdshb]\d+\b", text) for text in operands if "<" not in text)

    assert uses_floats("scalar.cc")
    assert not uses_floats("scalar_integers.cc")


def test_one_wrong_bit_is_found(emulated, tmp_path):
    rng = np.random.default_rng(0)
    program, constants = random_program(rng, 3)
    inputs = inputs_of(rng, program, 5)
    recorded = bytearray(recording([(program, constants, [inputs], ())]))
    expected = NumpyEngine(program, constants).run(*inputs).tobytes()
    recorded[recorded.rindex(expected)] ^= 1
    file = tmp_path / "recording"
    file.write_bytes(recorded)
    assert replayed(emulated, file) == (1, "run 0 differs\nneon, case 0, 1 threads\n")


def test_a_processor_without_dot_products_runs_the_scalar_kernels(emulated, tmp_path):
    rng = np.random.default_rng(1)
    program, constants = random_program(rng, 3)
    file = tmp_path / "recording"
    file.write_bytes(recording([(program, constants, [inputs_of(rng, program, 5)], ())]))
    older = ["cortex-a53" if word == "max" else word for word in emulated]
    assert replayed(older, file) == (0, "scalar 2\n")
