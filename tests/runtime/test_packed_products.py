"""Weights of fewer than 8 bits are multiplied as they are packed, and the bits are those of the definition."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.runtime.comparison import ISAS, assert_native_equals_numpy
from tests.runtime.small_programs import GRIDS, packed_weight, program_of

from subtone.program import Conv1d, Lstm
from subtone.qtensor import QTensor
from subtone.runtime.engine import NativeEngine

WIDTHS = range(1, 8)
# Tiles of 1, 2, 4 and 6 frames, and their remainders; none.
LENGTHS = (1, 2, 3, 4, 5, 13, 0)


def product_program(weight: QTensor, **fields):
    op = Conv1d(input="x", output="y", weight="w", **{"activation_bits": 8, **fields})
    return program_of(op, width_in=weight.shape[1], width_out=weight.shape[0])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("bits", WIDTHS)
def test_every_width_is_multiplied_as_it_is_packed(isa, bits, grid):
    rng = np.random.default_rng(10 * bits)
    for outputs, inputs in ((1, 1), (64, 8), (65, 12), (130, 100), (29, 256)):
        groups = 4 if inputs % 4 == 0 else 1
        weight = packed_weight(rng, (outputs, inputs), bits=bits, grid=grid, groups=groups)
        constants = {"w": weight, "b": rng.normal(size=outputs).astype(np.float32)}
        program = product_program(weight, bias="b", relu=outputs > 64)
        assert_native_equals_numpy(program, constants, isa, LENGTHS, threads=(1, 2), seed=bits)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bits", WIDTHS)
def test_every_code_comes_from_its_own_bits(isa, bits):
    # One input at a time is 127, so that each result is one level: no sum hides two that changed places.
    inputs, codes = 24, np.arange(64 * 24, dtype=np.int64).reshape(64, 24)
    codes = (codes * 2654435761 >> 7) % 2**bits
    codes[0, : 2**bits] = np.arange(2**bits)[:inputs]
    for levels in (
        None,
        np.sort(np.random.default_rng(bits).permutation(256)[: 2**bits] - 128).astype(np.int8),
    ):
        weight = QTensor(
            codes=codes.astype(np.uint8),
            shape=codes.shape,
            scale=np.ones((64, 1), np.float32),
            zero_point=np.zeros((64, 1), np.float32)
            if levels is not None
            else np.full((64, 1), 0.25, np.float32),
            bits=bits,
            codebook=levels,
        )
        features = np.eye(inputs, dtype=np.float32) * 127
        got = np.concatenate(
            [
                NativeEngine(product_program(weight), {"w": weight}, isa=isa).run(features[k : k + 1])
                for k in range(24)
            ]
        )
        whole = NativeEngine(product_program(weight), {"w": weight}, isa=isa).run(features)
        assert np.array_equal(got, whole)
        assert np.array_equal(got.T / 127, weight.dequantize())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("end", ["lowest", "highest"])
@pytest.mark.parametrize("sign", [1, -1])
def test_no_sum_of_packed_weights_overflows(isa, bits, end, sign):
    inputs = 65535
    codes = np.full((65, inputs), 0 if end == "lowest" else 2**bits - 1, np.uint8)
    codes[64, 0] = 2**bits - 1  # all codes of a matrix say how many bits it takes
    scale = np.ones((1, 1), np.float32)
    weight = QTensor(codes=codes, shape=codes.shape, scale=scale, zero_point=0 * scale, bits=bits)
    book = QTensor(
        codes=codes,
        shape=codes.shape,
        scale=scale,
        zero_point=0 * scale,
        bits=bits,
        codebook=np.linspace(-128, 127, 2**bits).astype(np.int8),
    )
    # Levels that ascend by one from 0: the largest codes that are multiplied without a table.
    run = dataclasses.replace(book, codebook=np.arange(2**bits).astype(np.int8))
    for one in (weight, book, run):
        level = float(one.dequantize()[0, 0])
        for frames in (1, 2, 7):
            features = np.full((frames, inputs), sign * 127, np.float32)
            logits = NativeEngine(product_program(one), {"w": one}, isa=isa).run(features)
            assert np.all(logits[:, :64] == np.float32(level * sign * 127 * inputs))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("first", [-128, -40, -16, -3, 0, 5, 96])
def test_a_codebook_of_neighbours_is_a_codebook(isa, first):
    rng = np.random.default_rng(0)
    for codes in (rng.integers(0, 32, (65, 20)), np.zeros((65, 20)), np.full((65, 20), 31)):
        weight = QTensor(
            codes=codes.astype(np.uint8),
            shape=(65, 20),
            scale=np.full((65, 1), 0.01, np.float32),
            zero_point=np.zeros((65, 1), np.float32),
            bits=5,
            codebook=np.arange(first, first + 32).astype(np.int8),
        )
        assert_native_equals_numpy(product_program(weight), {"w": weight}, isa, (1, 3), threads=(1,))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("grid", ["symmetric", "group", "codebook"])
@pytest.mark.parametrize("bits", WIDTHS)
def test_a_recurrence_reads_packed_weights_step_by_step(isa, bits, grid):
    rng = np.random.default_rng(bits)
    for units in (1, 17, 40):
        weight = packed_weight(
            rng, (4 * units, units), bits=bits, grid=grid, groups=2 if units % 2 == 0 else 1
        )
        op = Lstm(input="x", output="y", cell="c", weight="w", bias="b", activation_bits=8)
        constants = {"w": weight, "b": rng.normal(size=4 * units).astype(np.float32)}
        program = program_of(op, width_in=4 * units, width_out=units)
        assert_native_equals_numpy(program, constants, isa, (1, 5), threads=(1, 2), seed=bits)


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads what Linux says of memory")
def test_a_model_takes_about_as_much_memory_as_its_packed_weights():
    # Layers a little larger than a huge page of 2 MiB, so that none fits behind another on one.
    code = """
import gc, re, sys
from pathlib import Path
import numpy as np
from subtone.program import Conv1d
from subtone.qtensor import QTensor
from subtone.runtime.engine import NativeEngine
from tests.runtime.small_programs import program_of

def resident():
    gc.collect()
    return 1024 * int(re.search(r"Rss: +([0-9]+)", Path("/proc/self/smaps_rollup").read_text())[1])

names = ["x", *(f"v{index}" for index in range(7)), "y"]
ops, constants, size = [], {}, 0
for index, shape in enumerate([(4100, 1024), (1024, 4100)] * 4):
    codes = np.random.default_rng(index).integers(0, 16, shape, dtype=np.uint8)
    scale = np.ones((shape[0], 1), np.float32)
    constants[f"w{index}"] = QTensor(codes=codes, shape=shape, scale=scale, zero_point=0 * scale, bits=4)
    ops.append(Conv1d(input=names[index], output=names[index + 1], weight=f"w{index}", activation_bits=8))
    size += codes.size // 2
program = program_of(*ops, width_in=1024, width_out=1024)
before = resident()
engine = NativeEngine(program, constants, threads=1)
engine.run(np.ones((1, 1024), np.float32))
print((resident() - before) / size)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1.6


def test_weights_that_fill_several_pieces_of_memory_stay_where_they_are_read():
    # 1.2, 1.2, 2.5 and 0.2 MB: the second does not fit behind the first, the third is larger than any huge page.
    rng = np.random.default_rng(0)
    ops, constants, name = [], {}, "x"
    for index, (outputs, inputs) in enumerate([(1200, 1000), (1000, 1200), (2500, 1000), (80, 2500)]):
        weight = packed_weight(rng, (outputs, inputs), bits=8 if index % 2 == 0 else 7, grid="asymmetric")
        result = "y" if index == 3 else f"v{index}"
        ops.append(Conv1d(input=name, output=result, weight=f"w{index}", activation_bits=8))
        constants[f"w{index}"], name = weight, result
    program = program_of(*ops, width_in=1000, width_out=80)
    for isa in ISAS:
        assert_native_equals_numpy(program, constants, isa, (2, 1), threads=(1,))
