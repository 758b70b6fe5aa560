"""How the native engine is compared with the definition: bit by bit, so that even zeros have one sign."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from tests.runtime.small_programs import features_of

from subtone.program import Constants, Program
from subtone.runtime.engine import NativeEngine, NumpyEngine, available_isas

ISAS = available_isas() or [
    pytest.param("none", marks=pytest.mark.skip(reason="the native library was not built"))
]


def assert_same_bits(got: np.ndarray, expected: np.ndarray) -> None:
    assert got.dtype == expected.dtype == np.float32
    assert got.shape == expected.shape
    assert np.array_equal(got.view(np.uint32), expected.view(np.uint32))


def inputs_of(rng: np.random.Generator, program: Program, frames: int) -> list[np.ndarray]:
    return [features_of(rng, frames, width) for width in program.inputs.values()]


def assert_native_equals_numpy(
    program: Program,
    constants: Constants,
    isa: str,
    lengths: Iterable[int],
    *,
    threads: Iterable[int] = (1, 2, 3),
    seed: int = 0,
) -> None:
    """One engine for all lengths, as in use."""
    rng = np.random.default_rng(seed)
    definition = NumpyEngine(program, constants)
    engines = [NativeEngine(program, constants, threads=count, isa=isa) for count in threads]
    for frames in lengths:
        inputs = inputs_of(rng, program, frames)
        expected = definition.run(*inputs)
        for engine in engines:
            assert_same_bits(engine.run(*inputs), expected)
