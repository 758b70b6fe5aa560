"""A plan keeps apart what is alive together, holds what is needed later, wastes little, is made once for a length."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.reference.dependencies import dependencies
from tests.runtime.random_programs import random_program
from tests.runtime.small_programs import program_of
from tests.runtime.streaming_programs import streaming_program

from subtone.program import Add, Conv1d, Relu, inputs_of, results_of
from subtone.runtime.plan import MAX_PLANS, Plan, Planner
from subtone.runtime.tables import with_tables


def planner_of(seed: int, num_draws: int) -> Planner:
    """A planner of a program that can stream; what it makes of constants alone is made."""
    return Planner(*with_tables(*streaming_program(np.random.default_rng(seed), num_draws)))


def assert_apart(planner: Planner, plan: Plan) -> None:
    """What is alive at an op lies in whole cache lines of the arena, each value in bytes of its own."""
    ops, position = planner.program.ops, planner.index
    held = {name: int(plan.end[i] - plan.base[i]) * planner.widths[name] * 4 for name, i in position.items()}
    offsets = {name: int(plan.offsets[i]) for name, i in position.items()}
    ends = (*planner.program.inputs, planner.program.output)
    assert {name for name, offset in offsets.items() if offset < 0} == {
        name for name in ends if plan.base[position[name]] == plan.first[position[name]]
    }
    written = set(planner.program.inputs)
    for index, op in enumerate(ops):
        written |= set(results_of(op))
        read_later = {name for later in ops[index:] for name in inputs_of(later)} | {planner.program.output}
        alive = [name for name in (written & read_later) | set(results_of(op)) if offsets[name] >= 0]
        spans = sorted((offsets[name], offsets[name] + held[name]) for name in alive)
        assert all(one[1] <= other[0] for one, other in itertools.pairwise(spans))
        assert all(end <= plan.arena_bytes for _, end in spans)
    assert all(offset % 64 == 0 for offset in offsets.values() if offset >= 0)


@settings(deadline=None)
@given(
    seed=st.integers(0, 10**6), num_draws=st.integers(1, 10), sizes=st.lists(st.integers(0, 20), min_size=1)
)
def test_values_that_are_alive_together_never_overlap(seed, num_draws, sizes):
    planner, before = planner_of(seed, num_draws), None
    assert_apart(planner, planner.plan(sizes[0]))
    for index, rows in enumerate(sizes):
        plan = planner.plan(rows, before, is_last=index == len(sizes) - 1)
        assert_apart(planner, plan)
        before = plan.end


@settings(deadline=None)
@given(
    seed=st.integers(0, 10**6), num_draws=st.integers(1, 8), sizes=st.lists(st.integers(0, 20), max_size=5)
)
def test_a_plan_goes_on_where_the_one_before_stopped(seed, num_draws, sizes):
    planner = planner_of(seed, num_draws)
    ends, keep = planner.start(), planner.start()
    for rows in sizes:
        plan = planner.plan(rows, ends, is_last=False)
        assert plan.first.tolist() == ends.tolist()
        assert plan.base.tolist() == keep.tolist()
        assert (plan.base <= plan.first).all()
        assert (plan.first <= plan.end).all()
        assert planner.needed(plan.end).tolist() == plan.keep.tolist()
        ends, keep = plan.end, plan.keep
    last = planner.plan(3, ends)
    assert last.keep.tolist() == last.end.tolist()  # nothing follows, nothing is kept
    assert last.end.tolist() == planner.plan(sum(sizes) + 3).end.tolist()


@settings(deadline=None)
@given(
    seed=st.integers(0, 10**6),
    num_draws=st.integers(1, 8),
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=3),
)
def test_a_plan_of_a_long_stream_is_that_of_a_planner_which_never_heard_it(seed, num_draws, sizes):
    """A stream repeats itself, and its planner knows; another, asked for the first time, has to count."""
    planner = planner_of(seed, num_draws)
    ends = planner.start()
    for turn in range(60):
        rows = sizes[turn % len(sizes)]
        plan, counted = (
            planner.plan(rows, ends, is_last=False),
            planner_of(seed, num_draws).plan(rows, ends, is_last=False),
        )
        for field in ("base", "first", "end", "keep", "offsets"):
            assert getattr(plan, field).tolist() == getattr(counted, field).tolist()
        assert plan.arena_bytes == counted.arena_bytes
        ends = plan.end


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), num_draws=st.integers(1, 8), rows=st.integers(0, 25))
@example(seed=9740, num_draws=7, rows=8)  # whose last value has no row in the next 40
@example(seed=128, num_draws=4, rows=3)  # a dilated window that begins in front of the first row
def test_rows_kept_are_those_that_later_rows_depend_on(seed, num_draws, rows):
    """Against a trace of what each row of the next 40 depends on, or the next one, should it come later."""
    planner = planner_of(seed, num_draws)
    now, later = (planner.plan(count, is_last=False) for count in (rows, rows + 40))
    first = now.end.tolist()
    for op in planner.program.ops:
        (written, *_) = (planner.index[name] for name in results_of(op))
        for row in range(now.end[written], max(later.end[written], now.end[written] + 1)):
            for name, needed in dependencies(op, row).items():
                if name in planner.index:
                    place = planner.index[name]
                    first[place] = min([first[place], *(other for other in needed if other >= 0)])
    assert now.keep.tolist() == first


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
