"""A plan keeps apart what is alive together, wastes little, and is made once for a length."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.runtime.small_programs import program_of, random_program

from subtone.program import Add, Conv1d, Relu, inputs_of
from subtone.runtime.plan import MAX_PLANS, Planner


@given(seed=st.integers(0, 10**6), num_ops=st.integers(1, 12), frames=st.integers(0, 50))
def test_values_that_are_alive_together_never_overlap(seed, num_ops, frames):
    program, constants = random_program(np.random.default_rng(seed), num_ops)
    planner = Planner(program, constants)
    plan = planner.plan(frames)
    first_bytes = {name: int(plan.offsets[position]) for name, position in planner.index.items()}
    num_bytes = {n: int(plan.end[i]) * planner.widths[n] * 4 for n, i in planner.index.items()}
    for op_index, op in enumerate(program.ops):
        read_later = {name for later in program.ops[op_index:] for name in inputs_of(later)}
        written = {earlier.output for earlier in program.ops[:op_index]}
        alive = [n for n in (read_later & written) | {op.output} if first_bytes[n] >= 0]
        spans = sorted((first_bytes[name], first_bytes[name] + num_bytes[name]) for name in alive)
        assert all(one[1] <= other[0] for one, other in itertools.pairwise(spans))
        assert all(end <= plan.arena_bytes for _, end in spans)


@given(seed=st.integers(0, 10**6), frames=st.integers(0, 50))
def test_a_plan_has_the_frames_that_the_program_has(seed, frames):
    program, constants = random_program(np.random.default_rng(seed), 8)
    planner = Planner(program, constants)
    shapes = program.shapes(frames, constants)
    expected = [shapes[name][0] for name in planner.index]
    plan = planner.plan(frames)
    assert plan.end.tolist() == plan.keep.tolist() == expected
    assert not plan.first.any()
    assert not plan.base.any()


def test_offsets_are_whole_cache_lines_and_the_callers_buffers_have_none():
    program, constants = random_program(np.random.default_rng(3), 8)
    planner = Planner(program, constants)
    offsets = planner.plan(7).offsets
    outside = {planner.index["x"], planner.index["y"]}
    assert {i for i, offset in enumerate(offsets) if offset == -1} == outside
    assert all(offset % 64 == 0 for i, offset in enumerate(offsets) if i not in outside)


def test_a_residual_chain_of_any_depth_needs_three_values():
    # Alive at most: the block's input (for the sum), what an op reads and what it writes.
    ops, last = [], "x"
    for block in range(6):
        a, b, c = (f"{block}{letter}" for letter in "abc")
        ops += [Relu(input=last, output=a), Relu(input=a, output=b), Add(left=last, right=b, output=c)]
        last = c
    program = program_of(*ops, Relu(input=last, output="y"), width_in=16, width_out=16)
    assert Planner(program, {}).plan(10).arena_bytes == 3 * 10 * 16 * 4


def test_a_value_that_nothing_reads_has_a_place_of_its_own_while_it_is_written():
    ops = (Relu(input="x", output="a"), Relu(input="a", output="unread"), Relu(input="a", output="y"))
    planner = Planner(program_of(*ops, width_in=16, width_out=16), {})
    plan = planner.plan(1)
    assert plan.offsets[planner.index["unread"]] == 64
    assert planner.last_reads == ({"x"}, {"unread"}, {"a"})


def test_a_length_seen_lately_is_not_planned_again():
    program = program_of(Relu(input="x", output="y"), width_in=1, width_out=1)
    planner = Planner(program, {})
    first = planner.plan(1)
    for frames in range(2, MAX_PLANS + 1):
        planner.plan(frames)
    assert planner.plan(1).offsets is first.offsets
    for frames in range(100, 100 + MAX_PLANS):
        planner.plan(frames)
    assert planner.plan(1).offsets is not first.offsets


def test_a_negative_length_is_refused():
    program = program_of(Relu(input="x", output="y"), width_in=1, width_out=1)
    with pytest.raises(ValueError, match="frames=-1 is below 0"):
        Planner(program, {}).plan(-1)


def test_more_frames_than_the_library_counts_are_refused():
    ops = (Conv1d(input="x", output="a", weight="w", padding=2**24), Relu(input="a", output="y"))
    planner = Planner(program_of(*ops, width_in=1, width_out=1), {"w": np.ones((1, 1), np.float32)})
    with pytest.raises(ValueError, match="x gives 2147483649 frames, more than 2147483648"):
        planner.plan(2**31 + 1)
    with pytest.raises(ValueError, match="a gives 2180775936 frames, more than 2147483648"):
        planner.plan(2**31 - 2**18)


def test_more_bytes_than_64_bits_count_are_out_of_memory():
    """33 values of 2**31 frames and 2**24 numbers, 2**57 bytes each, all read at the end."""
    names = [f"v{index}" for index in range(33)]
    sums = ["v0", *(f"s{index}" for index in range(1, 32)), "y"]
    ops = [Relu(input="x", output=name) for name in names]
    ops += [Add(left=sums[i - 1], right=names[i], output=sums[i]) for i in range(1, 33)]
    planner = Planner(program_of(*ops, width_in=2**24, width_out=2**24), {})
    with pytest.raises(
        MemoryError, match="4899916394579099648 bytes are needed for values; hear less at once"
    ):
        planner.plan(2**31)


def test_a_program_that_does_not_fit_its_constants_is_refused():
    op = Conv1d(input="x", output="y", weight="w")
    with pytest.raises(ValueError, match="reads the constant w, which is missing"):
        Planner(program_of(op, width_in=1, width_out=1), {})
