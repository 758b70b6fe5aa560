"""Every instruction set and every number of threads gives the bits of the NumPy definition."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runtime.comparison import ISAS, assert_native_equals_numpy, assert_same_bits, inputs_of
from tests.runtime.random_programs import random_program
from tests.runtime.small_programs import GRIDS, features_of, packed_weight, program_of

from subtone.program import Add, Affine, Clip, Conv1d
from subtone.qtensor import QTensor
from subtone.runtime.engine import NativeEngine, NumpyEngine, available_isas

EDGES = (1, 2, 3, 15, 16, 17, 63, 64, 65, 257)
LENGTHS = (0, 1, 2, 5, 6, 7, 33)


def product_program(weight: QTensor, **fields):
    outputs, inputs = weight.shape[:2]
    op = Conv1d(input="x", output="y", weight="w", **{"activation_bits": 8, **fields})
    return program_of(op, width_in=inputs, width_out=outputs)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("inputs", EDGES)
def test_products_of_every_edge_size_are_equal(isa, inputs):
    rng = np.random.default_rng(inputs)
    for turn, outputs in enumerate(EDGES):
        weight = packed_weight(rng, (outputs, inputs), bits=8, grid="asymmetric")
        constants = {"w": weight, "b": rng.normal(size=outputs).astype(np.float32)}
        program = product_program(weight, bias="b", relu=turn % 2 == 0)
        assert_native_equals_numpy(program, constants, isa, (LENGTHS[turn % 7], 6), threads=(1 + turn % 3,))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("bits", range(1, 9))
def test_products_of_every_stored_width_are_equal(isa, grid, bits):
    rng = np.random.default_rng(bits)
    weight = packed_weight(rng, (33, 60), bits=bits, grid=grid, groups=4)
    constants = {"w": weight, "g": rng.normal(size=33).astype(np.float32)}
    for activation_bits in (2, bits if bits > 1 else 4, 8):
        program = product_program(weight, activation_bits=activation_bits, gain="g")
        assert_native_equals_numpy(program, constants, isa, LENGTHS)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("group_size", [1, 2, 3, 5, 16, 17, 64])
@pytest.mark.parametrize("groups", [2, 3])
def test_groups_of_any_size_are_equal(isa, group_size, groups):
    rng = np.random.default_rng(group_size)
    weight = packed_weight(rng, (70, group_size * groups), bits=4, grid="group", groups=groups)
    assert_native_equals_numpy(product_program(weight), {"w": weight}, isa, (1, 7), threads=(1, 2))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("code", [0, 255], ids=["level -128", "level 127"])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_outermost_levels_do_not_saturate(isa, code, sign):
    inputs, scale = 65535, np.ones((1, 1), np.float32)
    codes = np.full((17, inputs), code, np.uint8)
    weight = QTensor(codes=codes, shape=codes.shape, scale=scale, zero_point=128 * scale, bits=8)
    features = np.full((7, inputs), sign * 127, np.float32)  # frame scale 1, levels +-127
    logits = NativeEngine(product_program(weight), {"w": weight}, isa=isa, threads=2).run(features)
    assert np.all(logits == np.float32((code - 128) * sign * 127 * inputs))


@pytest.mark.parametrize("isa", ISAS)
def test_silent_frames_are_zero_plus_bias(isa):
    weight = packed_weight(np.random.default_rng(1), (5, 9), bits=4, grid="asymmetric")
    bias = np.arange(5, dtype=np.float32)
    features = np.zeros((3, 9), np.float32)
    features[1] = np.float32(2.0**-101)  # below the silent magnitude
    features[2] = -0.0
    program = product_program(weight, bias="b")
    logits = NativeEngine(program, {"w": weight, "b": bias}, isa=isa).run(features)
    assert np.array_equal(logits, np.tile(bias, (3, 1)))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("is_depthwise", [True, False], ids=["depthwise", "dense"])
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "padding"),
    [
        (1, 1, 1, 0),
        (1, 3, 1, 2),
        (3, 1, 1, 1),
        (11, 1, 1, 5),
        (11, 2, 1, 5),
        (9, 1, 2, 8),
        (33, 1, 1, 40),  # every tap of some outputs lies beyond an end
        (8, 3, 3, 50),
        (40, 2, 1, 0),  # no output for short utterances
    ],
)
def test_float_convolutions_are_equal(isa, is_depthwise, kernel, stride, dilation, padding):
    rng = np.random.default_rng(kernel)
    fields = {"kernel": kernel, "stride": stride, "dilation": dilation, "padding": padding}
    for channels in (1, 15, 16, 17, 50):
        outputs = channels if is_depthwise else 70
        depth = 1 if is_depthwise else channels
        weight = rng.normal(size=(outputs, depth, kernel)).astype(np.float32)
        constants = {"w": weight, "b": rng.normal(size=outputs).astype(np.float32)}
        op = Conv1d(
            input="x", output="y", weight="w", bias="b", groups=channels if is_depthwise else 1, **fields
        )
        program = program_of(op, width_in=channels, width_out=outputs)
        assert_native_equals_numpy(program, constants, isa, (1, 2, 7, 33, 70), threads=(1, 3))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("outputs", [1, 16, 33, 48, 64, 65, 130])
def test_dense_convolutions_of_every_panel_width_are_equal(isa, outputs):
    rng = np.random.default_rng(outputs)
    constants = {"w": rng.normal(size=(outputs, 3, 5)).astype(np.float32)}
    op = Conv1d(input="x", output="y", weight="w", kernel=5, padding=2)
    program = program_of(op, width_in=3, width_out=outputs)
    assert_native_equals_numpy(program, constants, isa, LENGTHS)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("low", "high"), [(-0.5, 0.5), (0.0, 6.0), (-3.0, -0.0)])
def test_clips_of_every_length_are_equal_down_to_the_sign_of_zero(isa, low, high):
    for width in EDGES:
        op = Clip(input="x", output="y", low=low, high=high)
        program = program_of(op, width_in=width, width_out=width)
        assert_native_equals_numpy(program, {}, isa, LENGTHS, threads=(1, 3))
        ends = np.resize(np.float32([low, high, 0.0, -0.0]), (2, width))
        expected = NumpyEngine(program, {}).run(ends)
        got = NativeEngine(program, {}, isa=isa).run(ends)
        assert np.array_equal(got.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("isa", ISAS)
def test_a_clip_brings_infinity_to_its_ends_and_no_number_to_the_lower_one(isa):
    """Neither enters a program, but both may arise within one."""
    huge = np.full(3, 3e38, np.float32)
    constants = {"up": huge, "down": -huge, "b": np.zeros(3, np.float32)}
    ops = (
        Affine(input="x", output="inf", gain="up", bias="b"),
        Affine(input="x", output="-inf", gain="down", bias="b"),
        Add(left="inf", right="-inf", output="nan"),
        Clip(input="inf", output="a", low=-1.0, high=2.0),
        Clip(input="nan", output="c", low=-1.0, high=2.0),
        Add(left="a", right="c", output="y"),
    )
    program = program_of(*ops, width_in=3, width_out=3)
    features = np.array([[2.0, -2.0, 0.0]], np.float32)
    with np.errstate(all="ignore"):
        assert NumpyEngine(program, constants).run(features).tolist() == [[1.0, -2.0, 0.0]]
    assert NativeEngine(program, constants, isa=isa).run(features).tolist() == [[1.0, -2.0, 0.0]]


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), num_ops=st.integers(1, 12), frames=st.integers(0, 60))
def test_whole_programs_are_equal(isa, seed, num_ops, frames):
    program, constants = random_program(np.random.default_rng(seed), num_ops, num_inputs=1 + seed % 2)
    assert_native_equals_numpy(program, constants, isa, (frames, 3, frames + 1), threads=(1, 2), seed=seed)


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), num_ops=st.integers(1, 12), frames=st.integers(0, 60))
def test_however_a_stream_is_cut_output_and_state_are_equal(isa, seed, num_ops, frames):
    rng = np.random.default_rng(seed)
    program, constants = random_program(rng, num_ops, num_inputs=1 + seed % 2, can_stream=True)
    inputs = inputs_of(rng, program, frames)
    definition = NumpyEngine(program, constants)
    engines = [NativeEngine(program, constants, threads=count, isa=isa) for count in (1, 2, 3)]
    expected = definition.run(*inputs)
    states, outputs = [engine.start() for engine in (definition, *engines)], []
    at, is_last = 0, False
    while not is_last:
        stop = at + int(rng.integers(0, 12))
        is_last, chunk = stop >= frames, [features[at:stop] for features in inputs]
        steps = [
            engine.step(state, *chunk, is_last=is_last)
            for engine, state in zip((definition, *engines), states, strict=True)
        ]
        for output, state in steps[1:]:
            assert_same_bits(output, steps[0][0])
            assert_same_bits(state.rows, steps[0][1].rows)
        states = [state for _, state in steps]
        outputs.append(steps[1][0])
        at = stop
    assert_same_bits(np.concatenate(outputs), expected)


@pytest.mark.parametrize("isa", ISAS)
def test_many_frames_are_split_into_blocks_without_a_seam(isa):
    # 96 frames are a block of a product, 128 one of a depthwise convolution, 24 the unit of a split.
    rng = np.random.default_rng(11)
    constants = {
        "w": rng.normal(size=(20, 1, 9)).astype(np.float32),
        "p": packed_weight(rng, (70, 20), bits=4, grid="group", groups=2),
    }
    ops = (
        Conv1d(input="x", output="a", weight="w", kernel=9, padding=4, groups=20),
        Conv1d(input="a", output="y", weight="p", activation_bits=8),
    )
    program = program_of(*ops, width_in=20, width_out=70)
    assert_native_equals_numpy(program, constants, isa, (95, 96, 97, 128, 129, 143, 144, 145, 400))


@pytest.mark.parametrize("isa", ISAS)
def test_a_changing_number_of_frames_never_changes_a_result(isa):
    program, constants = random_program(np.random.default_rng(21), 10)
    lengths = np.random.default_rng(22).permutation(100).tolist()  # more than the plans that are kept
    assert_native_equals_numpy(program, constants, isa, (*lengths, *lengths[:20]), threads=(2,))


@pytest.mark.parametrize("isa", ISAS)
def test_more_threads_than_work_give_the_same_bits(isa):
    program, constants = random_program(np.random.default_rng(23), 8)
    assert_native_equals_numpy(program, constants, isa, (1, 2, 50), threads=(17,))


@pytest.mark.skipif(not available_isas(), reason="the native library was not built")
def test_callers_on_several_threads_take_turns():
    program, constants = random_program(np.random.default_rng(24), 8)
    engine, definition = NativeEngine(program, constants, threads=2), NumpyEngine(program, constants)
    rng = np.random.default_rng(25)
    inputs = [features_of(rng, frames, program.input_width) for frames in (1, 9, 30, 31)]
    expected = [definition.run(features) for features in inputs]
    wrong: list[int] = []

    def call(which: int) -> None:
        for _ in range(30):
            if not np.array_equal(engine.run(inputs[which]), expected[which]):
                wrong.append(which)

    callers = [threading.Thread(target=call, args=(which,)) for which in range(len(inputs))]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


@pytest.mark.parametrize("isa", ISAS)
def test_features_of_any_memory_layout_are_read_right(isa):
    program, constants = random_program(np.random.default_rng(26), 5)
    features = features_of(np.random.default_rng(27), 20, program.input_width)
    engine = NativeEngine(program, constants, isa=isa)
    expected = engine.run(features)
    unaligned = np.frombuffer(b"\0" + features.tobytes(), np.uint8)[1:].view(np.float32)
    for same in (
        np.asfortranarray(features),
        features[::-1][::-1],
        unaligned.reshape(features.shape),
    ):
        assert np.array_equal(engine.run(same), expected)


def test_no_frames_give_no_logits():
    for (program, constants), kind in itertools.product(
        [random_program(np.random.default_rng(seed), 6) for seed in range(5)], (NumpyEngine, NativeEngine)
    ):
        if kind is NativeEngine and not available_isas():
            continue
        logits = kind(program, constants).run(np.empty((0, program.input_width), np.float32))
        assert logits.shape == (0, program.output_width)
        assert logits.dtype == np.float32
