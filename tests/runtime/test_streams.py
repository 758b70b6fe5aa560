"""A stream gives what the whole utterance gives, bit for bit, however it is cut; its state is small and never changes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.runtime.definitions import all_values, same_bits
from tests.runtime.small_programs import program_of
from tests.runtime.streaming_programs import inputs_for, streaming_program

from subtone.program import (
    KINDS,
    OPS,
    Attention,
    ChannelNorm,
    Columns,
    Conv1d,
    Lstm,
    Program,
    Relu,
    Sinusoids,
    Stack,
)
from subtone.runtime.engine import NumpyEngine
from subtone.runtime.state import StreamState

F32 = np.float32
SEEDS = st.integers(0, 10**6)
WHOLE_ONLY = {"sinusoids", "channel_norm"}


def chunks_of(inputs: list[np.ndarray], sizes: list[int]) -> list[list[np.ndarray]]:
    """The inputs cut at `sizes`, what is left at the end."""
    cuts = np.minimum(np.cumsum(sizes, dtype=np.int64), len(inputs[0]))
    return [list(parts) for parts in zip(*(np.split(values, cuts) for values in inputs), strict=True)]


def streamed(
    engine: NumpyEngine, chunks: list[list[np.ndarray]], state: StreamState | None = None
) -> np.ndarray:
    """What all chunks give from `state` on; the last one says so."""
    state, outputs = state or engine.start(), []
    for index, chunk in enumerate(chunks):
        output, state = engine.step(state, *chunk, is_last=index == len(chunks) - 1)
        outputs.append(output)
    return np.concatenate(outputs)


def engine_of(*ops, width: int = 2, constants: dict | None = None) -> NumpyEngine:
    return NumpyEngine(program_of(*ops, width_in=width, width_out=width), constants or {})


def convolution(**fields) -> Conv1d:
    return Conv1d(**{"input": "x", "output": "y", "weight": "w", "groups": 2, **fields})


def taps(kernel: int) -> dict[str, np.ndarray]:
    return {"w": np.random.default_rng(kernel).normal(size=(2, 1, kernel)).astype(F32)}


def rows_of(count: int, width: int = 2) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, width)).astype(F32)


# However it is cut -----------------------------------------------------------------------


def test_programs_are_drawn_from_all_operations_that_can_stream():
    drawn = {
        type(op) for seed in range(60) for op in streaming_program(np.random.default_rng(seed), 6)[0].ops
    }
    floating = {name for name, kind in OPS.items() if kind.ARITHMETIC != "integer"}
    assert {KINDS[kind] for kind in drawn} == floating - WHOLE_ONLY


@settings(deadline=None, max_examples=120)
@given(
    seed=SEEDS,
    num_draws=st.integers(1, 7),
    rows=st.integers(0, 30),
    sizes=st.lists(st.integers(0, 9), max_size=8),
)
@example(seed=0, num_draws=6, rows=0, sizes=[0, 0])
@example(seed=0, num_draws=6, rows=30, sizes=[1] * 30)
def test_streams_give_what_the_whole_gives_however_they_are_cut(seed, num_draws, rows, sizes):
    rng = np.random.default_rng(seed)
    program, constants = streaming_program(rng, num_draws)
    assert program.obstacle == ""
    engine, inputs = NumpyEngine(program, constants), inputs_for(rng, program, rows)
    whole = engine.run(*inputs)
    assert np.isfinite(whole).all()
    assert whole.shape == program.shapes(rows, constants)[program.output]
    assert same_bits(streamed(engine, chunks_of(inputs, sizes)), whole)


@settings(deadline=None, max_examples=40)
@given(seed=SEEDS, num_draws=st.integers(1, 6), rows=st.integers(1, 20))
def test_an_engine_gives_what_the_definitions_give_one_after_the_other(seed, num_draws, rows):
    rng = np.random.default_rng(seed)
    program, constants = streaming_program(rng, num_draws)
    inputs = inputs_for(rng, program, rows)
    expected = all_values(program, constants, *inputs)[program.output]
    assert same_bits(NumpyEngine(program, constants).run(*inputs), expected)


@settings(deadline=None, max_examples=40)
@given(seed=SEEDS, rows=st.integers(2, 20))
def test_what_comes_later_does_not_change_what_a_step_gave(seed, rows):
    rng = np.random.default_rng(seed)
    program, constants = streaming_program(rng, 5)
    engine = NumpyEngine(program, constants)
    one, other = inputs_for(rng, program, rows), inputs_for(rng, program, rows)
    early, _ = engine.step(engine.start(), *one)
    for tail in (one, other):
        whole = engine.run(*(np.concatenate(pair) for pair in zip(one, tail, strict=True)))
        assert same_bits(early, whole[: len(early)])


@pytest.mark.parametrize("cut", range(9))
def test_a_stream_may_end_in_the_middle_of_a_stride(cut):
    """Stacks of 3 after every other row of 8: 4 rows, hence one stack and a rest that is dropped."""
    ops = (convolution(output="a", kernel=2, stride=2), Stack(input="a", output="y", count=3))
    program = program_of(*ops, width_in=2, width_out=6)
    engine, x = NumpyEngine(program, taps(2)), rows_of(8)
    whole = engine.run(x)
    assert len(whole) == 1
    assert same_bits(streamed(engine, [[x[:cut]], [x[cut:]]]), whole)


@pytest.mark.parametrize("padding_behind", [0, 1, 2, 7])
def test_a_last_step_without_rows_gives_what_waited_for_the_end(padding_behind):
    engine = engine_of(convolution(kernel=5, padding=2, padding_behind=padding_behind), constants=taps(5))
    x = rows_of(6)
    first, state = engine.step(engine.start(), x)
    assert len(first) == 4  # of a row, 2 behind it are seen
    rest, _ = engine.step(state, x[:0], is_last=True)
    assert len(rest) == padding_behind
    assert same_bits(np.concatenate([first, rest]), engine.run(x))


def test_a_chunk_without_rows_gives_none_and_leaves_a_state_like_the_one_before():
    engine, x = engine_of(convolution(kernel=3, padding=2), constants=taps(3)), rows_of(5)
    for state in (engine.start(), engine.step(engine.start(), x)[1]):
        output, after = engine.step(state, x[:0])
        assert output.shape == (0, 2)
        assert after.ends.tolist() == state.ends.tolist()
        assert same_bits(after.rows, state.rows)
    assert engine.run(x[:0]).shape == (0, 2)
    assert engine.step(engine.start(), x[:0], is_last=True)[0].shape == (0, 2)


def test_rows_come_as_soon_as_what_they_depend_on():
    """A row a step from a causal kernel, one row late from a centred one, every third from a stride of 3."""
    for fields, expected in (
        ({"kernel": 3, "padding": 2, "padding_behind": 0}, [1, 1, 1, 1, 1, 1]),
        ({"kernel": 3, "padding": 1}, [0, 1, 1, 1, 1, 1]),
        ({"kernel": 3}, [0, 0, 1, 1, 1, 1]),
        ({"kernel": 1, "stride": 3}, [1, 0, 0, 1, 0, 0]),
        ({"kernel": 1, "padding": 2}, [3, 1, 1, 1, 1, 1]),
    ):
        engine = engine_of(convolution(**fields), constants=taps(fields["kernel"]))
        state, counts = engine.start(), []
        for _ in range(6):
            output, state = engine.step(state, rows_of(1))
            counts.append(len(output))
        assert counts == expected


# The state -------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(seed=SEEDS, rows=st.integers(0, 12), more=st.integers(0, 12), is_last=st.booleans())
def test_a_step_leaves_its_state_and_its_inputs_as_they_were(seed, rows, more, is_last):
    rng = np.random.default_rng(seed)
    program, constants = streaming_program(rng, 5)
    engine = NumpyEngine(program, constants)
    _, state = engine.step(engine.start(), *inputs_for(rng, program, rows))
    inputs = inputs_for(rng, program, more)
    before = [array.copy() for array in (state.ends, state.rows, *inputs)]
    output, after = engine.step(state, *inputs, is_last=is_last)
    again, _ = engine.step(state, *inputs, is_last=is_last)
    assert same_bits(output, again)
    for made in (output, after.rows, after.ends):
        made.fill(7)  # nothing that a step gives shares memory with what it was given
    for array, copy in zip((state.ends, state.rows, *inputs), before, strict=True):
        assert array.tobytes() == copy.tobytes()


@pytest.mark.parametrize(
    "op", [Columns(input="x", output="y", first=0, count=2), Stack(input="x", output="y", count=1)]
)
def test_what_only_moves_its_rows_gives_a_copy(op):
    engine, x = engine_of(op), rows_of(4)
    for output in (engine.run(x), engine.step(engine.start(), x)[0]):
        assert same_bits(output, x)
        assert not np.shares_memory(output, x)


@settings(deadline=None, max_examples=40)
@given(seed=SEEDS, rows=st.integers(0, 12), tails=st.lists(st.integers(0, 9), min_size=2, max_size=3))
def test_several_streams_may_go_on_from_one_state(seed, rows, tails):
    rng = np.random.default_rng(seed)
    program, constants = streaming_program(rng, 5)
    engine, head = NumpyEngine(program, constants), inputs_for(rng, program, rows)
    first, state = engine.step(engine.start(), *head)
    for count in tails:
        tail = inputs_for(rng, program, count)
        whole = engine.run(*(np.concatenate(parts) for parts in zip(head, tail, strict=True)))
        rest = streamed(engine, chunks_of(tail, [1, 3]), state)
        assert same_bits(np.concatenate([first, rest]), whole)


def test_a_state_holds_what_is_needed_and_no_more():
    """One conv of 5 taps: 4 rows. An LSTM: one row of h and of c. Attention: `left` keys and values, `right` queries."""
    cases = [
        ((convolution(kernel=5, padding=4, padding_behind=0),), taps(5), 4 * 2),
        ((convolution(kernel=1, stride=3),), taps(1), 0),
        ((Stack(input="x", output="y", count=1),), {}, 0),
        ((Attention(query="x", key="x", value="x", output="y", left=4, right=2),), {}, (4 + 2) * 2),
        (
            (convolution(output="gates", groups=1, weight="in"), Lstm(input="gates", output="y", cell="c", weight="w")),
            {"in": np.ones((8, 2), F32), "w": np.ones((8, 2), F32)},
            2 + 2,
        ),
    ]  # fmt: skip
    for ops, constants, expected in cases:
        engine = engine_of(*ops, constants=constants)
        _, state = engine.step(engine.start(), rows_of(30))
        assert state.rows.size == expected
        assert state.num_bytes == 4 * expected + 8 * len(state.ends)


@pytest.mark.parametrize("seed", range(6))
def test_a_long_stream_has_a_state_of_constant_size(seed):
    rng = np.random.default_rng(seed)
    program, constants = streaming_program(rng, 6)
    engine = NumpyEngine(program, constants)
    state, sizes = engine.start(), []
    for _ in range(150):
        _, state = engine.step(state, *inputs_for(rng, program, 4))
        sizes.append(state.num_bytes)
    assert max(sizes[75:]) <= max(sizes[:75])


# What is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "what"),
    [
        (Attention(query="x", key="x", value="x", output="y"), "attention of y"),
        (Attention(query="x", key="x", value="x", output="y", left=3, source="encoder.0"), "attention of encoder.0"),
        (Attention(query="x", key="x", value="x", output="y", right=3), "attention of y"),
        (ChannelNorm(input="x", output="y", epsilon=1.0), "channel_norm of y"),
        (Sinusoids(input="x", output="y", columns=2), "sinusoids of y"),
    ],
)  # fmt: skip
def test_what_needs_the_whole_utterance_cannot_stream_and_says_why(op, what):
    engine = engine_of(op)
    assert engine.program.obstacle == f"{what} needs the whole utterance"
    with pytest.raises(ValueError) as refusal:
        engine.start()
    assert str(refusal.value) == (
        f"the model cannot stream: {what} needs the whole utterance; let it hear whole utterances"
    )
    assert engine.run(rows_of(5)).shape[1] == 2


def test_a_table_is_no_obstacle():
    """An attention of constants alone is done when the program is loaded."""
    ops = (
        Attention(query="t", key="t", value="t", output="table"),
        Attention(query="x", key="x", value="x", positions="table", output="y", left=1, right=1),
    )
    engine = engine_of(*ops, constants={"t": rows_of(3)})
    assert engine.program.obstacle == ""
    assert same_bits(
        streamed(engine, [[rows_of(4)], [rows_of(2)]]), engine.run(np.concatenate([rows_of(4), rows_of(2)]))
    )


def test_a_stream_that_has_ended_does_not_go_on():
    engine = engine_of(Relu(input="x", output="y"))
    _, state = engine.step(engine.start(), rows_of(3), is_last=True)
    with pytest.raises(ValueError, match=r"is_last=True ended this stream; begin another with start\(\)"):
        engine.step(state, rows_of(3))


def test_the_state_of_another_program_is_refused():
    one, other = (
        engine_of(convolution(kernel=kernel, padding=kernel - 1), constants=taps(kernel)) for kernel in (2, 4)
    )
    longer = engine_of(Relu(input="x", output="a"), Relu(input="a", output="y"))
    _, state = one.step(one.start(), rows_of(5))
    for stranger in (other, longer):
        with pytest.raises(ValueError, match="the state is one of another program; use what start"):
            stranger.step(state, rows_of(5))


def test_inputs_come_as_many_and_as_long_as_the_program_takes():
    ops = (Columns(input="x", output="a", first=0, count=1), Columns(input="z", output="y", first=0, count=1))
    program = dataclasses.replace(program_of(*ops, width_in=2, width_out=1), others=(("z", 1),))
    engine = NumpyEngine(program, {})
    with pytest.raises(ValueError, match="1 inputs were given; the program takes 2: x, z"):
        engine.run(rows_of(3))
    with pytest.raises(ValueError, match=r"the inputs have \[3, 4\] rows; give each as many"):
        engine.step(engine.start(), rows_of(3), rows_of(4, 1))
    assert isinstance(engine.program, Program)
    assert same_bits(engine.run(rows_of(3), rows_of(3, 1)), rows_of(3, 1))
