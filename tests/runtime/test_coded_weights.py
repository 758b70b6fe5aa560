"""Weights that float ops multiply stay in their bits: every width, grid and kind gives the floats of NumPy."""

from __future__ import annotations

import ctypes
import itertools
import resource

import numpy as np
import pytest
from tests.runtime.comparison import ISAS, assert_native_equals_numpy
from tests.runtime.small_programs import GRIDS, packed_weight, program_of

from subtone.program import Conv1d, Conv2d, Embedding, Lstm, Op
from subtone.qtensor import QTensor
from subtone.runtime import library
from subtone.runtime.engine import NativeEngine, available_isas

OPS: dict[str, tuple[Op, tuple[int, ...], int, int]] = {
    "depthwise": (
        Conv1d(input="x", output="y", weight="w", kernel=19, padding=9, groups=37, relu=True),
        (37, 1, 19), 37, 37,
    ),
    "strided": (
        Conv1d(input="x", output="y", weight="w", kernel=8, padding=2, stride=2, dilation=3, groups=20),
        (20, 1, 8), 20, 20,
    ),
    "many panels": (  # more than are decoded at once
        Conv1d(input="x", output="y", weight="w", kernel=300, padding=150, groups=272),
        (272, 1, 300), 272, 272,
    ),
    "dense": (Conv1d(input="x", output="y", weight="w", kernel=3, padding=1), (115, 24, 3), 24, 115),
    "in groups": (Conv1d(input="x", output="y", weight="w", kernel=2, groups=3), (90, 8, 2), 24, 90),
    "pointwise": (Conv1d(input="x", output="y", weight="w"), (70, 48), 48, 70),
    "groups of many panels": (  # the last 48 wide
        Conv1d(input="x", output="y", weight="w", kernel=2, padding=1, groups=2),
        (352, 8, 2), 16, 352,
    ),
    "twice as many outputs": (Conv1d(input="x", output="y", weight="w", kernel=3, groups=12), (24, 1, 3), 12, 24),
    "one large panel": (  # more floats than are decoded at once
        Conv1d(input="x", output="y", weight="w", kernel=130, padding=129), (70, 12, 130), 12, 70,
    ),
    "image in pieces": (
        Conv2d(input="x", output="y", weight="w", in_channels=64, kernel=3, feature_kernel=3, padding=2),
        (150, 64, 3, 3), 64 * 4, 150 * 2,
    ),
    "image": (
        Conv2d(input="x", output="y", weight="w", in_channels=4, kernel=3, padding=1, feature_kernel=3, stride=2),
        (18, 4, 3, 3), 4 * 7, 18 * 5,
    ),
    "image, depthwise": (
        Conv2d(input="x", output="y", weight="w", in_channels=17, groups=17, kernel=2, feature_kernel=3),
        (17, 1, 2, 3), 17 * 5, 17 * 3,
    ),
}  # fmt: skip
"""An op of one weight, the shape of that, columns of x and of y."""


LARGE = ("many panels", "one large panel", "image in pieces")


def case(name: str, bits: int, grid: str):
    op, shape, width_in, width_out = OPS[name]
    groups = 1 if shape[1] == 1 else 4 * int(np.prod(shape[2:]))
    weight = packed_weight(np.random.default_rng(bits), shape, bits=bits, grid=grid, groups=groups)
    return program_of(op, width_in=width_in, width_out=width_out), {"w": weight}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", OPS)
def test_a_convolution_is_that_of_numpy_at_every_width_and_grid(isa, name):
    widths, lengths = ((3, 8), [1, 9]) if name in LARGE else (range(1, 9), [1, 9, 50])
    for bits in widths:
        for grid in GRIDS:
            assert_native_equals_numpy(*case(name, bits, grid), isa, lengths, threads=[1, 3])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("grid", GRIDS)
def test_rows_of_an_embedding_are_those_of_numpy(isa, grid):
    for bits in range(1, 9):
        weight = packed_weight(np.random.default_rng(bits), (9, 60), bits=bits, grid=grid, groups=4)
        op = Embedding(input="x", output="y", weight="w")
        assert_native_equals_numpy(
            program_of(op, width_in=1, width_out=60), {"w": weight}, isa, [20], threads=[1]
        )


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("grid", GRIDS)
def test_a_recurrence_that_hears_floats_is_that_of_numpy(isa, grid):
    """Its weights are decoded once: every step multiplies all of them."""
    for bits in (1, 3, 4, 7, 8):
        weight = packed_weight(np.random.default_rng(bits), (4 * 20, 20), bits=bits, grid=grid, groups=5)
        op = Lstm(input="x", output="y", cell="c", weight="w")
        program = program_of(op, width_in=80, width_out=20)
        assert_native_equals_numpy(program, {"w": weight}, isa, [1, 7], threads=[1, 2])


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_what_crosses_to_the_library_are_codes(bits):
    """No floats are ever made of a weight of few bits."""
    program, constants = case("dense", bits, "asymmetric")
    record, _ = library.op_record(program.ops[0], {"x": 0, "y": 1}, constants, {})
    weight = constants["w"]
    assert isinstance(weight, QTensor)
    assert record.weight.floats is None
    assert ctypes.string_at(record.weight.codes, weight.codes.size) == weight.codes.tobytes()


@pytest.mark.skipif(not available_isas(), reason="the native library was not built")
def test_few_bits_take_little_memory():
    """Depthwise kernels of 50 million weights in 4 bits: 25 MB and their scales, where floats are 200 MB."""
    channels, taps, ops = 4096, 1024, 12
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (channels, taps)).astype(np.uint8)
    scale = np.ones((channels, 1), np.float32)
    weight = QTensor(codes=codes, shape=(channels, 1, taps), scale=scale, zero_point=7.5 * scale, bits=4)
    values = ["x", *(f"v{i}" for i in range(1, ops)), "y"]
    chain = [
        Conv1d(input=input, output=output, weight="w", kernel=taps, padding=taps // 2, groups=channels)
        for input, output in itertools.pairwise(values)
    ]
    before = resident_bytes()
    engine = NativeEngine(program_of(*chain, width_in=channels, width_out=channels), {"w": weight}, threads=1)
    grown = resident_bytes() - before
    assert engine.isa
    assert grown < 0.3 * 4 * ops * codes.size


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
