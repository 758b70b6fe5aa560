"""Functions, norms, attention and recurrences on levels: every instruction set, number of threads and way of cutting
a stream gives what the NumPy definition gives, which test_integer_sequences.py holds against exact integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runtime.comparison import ISAS
from tests.runtime.integer_programs import levels_for
from tests.runtime.integer_sequence_programs import integer_sequence_program, turns
from tests.runtime.test_integers import assert_all_alike

from subtone.runtime.engine import NativeEngine, NumpyEngine

SEEDS = st.integers(0, 10**6)


@pytest.mark.parametrize("isa", ISAS)
@settings(deadline=None, max_examples=60)
@given(seed=SEEDS)
def test_random_programs_are_equal(isa, seed):
    rng = np.random.default_rng(seed)
    program, constants = integer_sequence_program(rng, int(rng.integers(1, 7)), can_stream=False)
    inputs = [levels_for(rng, program, rows) for rows in (0, 1, int(rng.integers(2, 40)))]
    assert_all_alike(program, constants, isa, inputs, threads=(1, int(rng.integers(2, 4))))


@pytest.mark.parametrize("isa", ISAS)
@settings(deadline=None, max_examples=40)
@given(seed=SEEDS, cuts=st.lists(st.integers(0, 12), max_size=6), threads=st.integers(1, 3))
def test_streams_of_random_programs_are_equal_however_they_are_cut(isa, seed, cuts, threads):
    rng = np.random.default_rng(seed)
    program, constants = integer_sequence_program(rng, int(rng.integers(1, 7)), can_stream=True)
    x = levels_for(rng, program, int(rng.integers(1, 40)))
    engine = NativeEngine(program, constants, threads=threads, isa=isa)
    chunks = np.split(x, np.minimum(np.cumsum(cuts, dtype=np.int64), len(x)))
    state, found = engine.start(), []
    for index, chunk in enumerate(chunks):
        output, state = engine.step(state, chunk, is_last=index == len(chunks) - 1)
        found.append(output)
    assert np.array_equal(np.concatenate(found), NumpyEngine(program, constants).run(x))
