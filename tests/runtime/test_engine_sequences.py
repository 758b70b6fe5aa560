"""Every instruction set and number of threads gives the definition's bits: sequences, images, functions of a value."""

from __future__ import annotations

import numpy as np
import pytest
from tests.runtime.comparison import ISAS, assert_native_equals_numpy, assert_same_bits
from tests.runtime.random_programs import EPSILON
from tests.runtime.small_programs import packed_weight, program_of

from subtone.program import (
    FUNCTIONS,
    Affine,
    Attention,
    ChannelNorm,
    Clip,
    Conv1d,
    Conv2d,
    Embedding,
    Function,
    Glu,
    LayerNorm,
    Lstm,
    Program,
    Sinusoids,
    SwitchedLstm,
)
from subtone.runtime.engine import NativeEngine, NumpyEngine

TAMED = Clip(input="x", output="t", low=-9.0, high=9.0)
"""In front of what multiplies values with each other: features are very loud now and then."""


def floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(0, 1, shape).astype(np.float32)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions_are_equal_from_the_smallest_to_the_largest_value(isa, function):
    magnitudes = np.concatenate(
        [np.logspace(-45, 12, 400), np.linspace(0.6, 0.65, 99), np.arange(80, 95) - 0.5]
    )
    values = np.concatenate([magnitudes, -magnitudes, [0.0, -0.0, 0.625, -87.0, 88.0]]).astype(np.float32)
    program = program_of(Function(input="x", output="y", function=function), width_in=1, width_out=1)
    features = values[:, None]
    got = NativeEngine(program, {}, isa=isa).run(features)
    assert_same_bits(got, NumpyEngine(program, {}).run(features))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("width", [1, 2, 15, 16, 17, 33, 64, 100])
def test_norms_and_gates_of_every_width_are_equal(isa, width):
    rng = np.random.default_rng(width)
    constants = {"g": floats(rng, width), "b": floats(rng, width)}
    for kind in (LayerNorm, ChannelNorm):
        op = kind(input="t", output="y", gain="g", bias="b", epsilon=EPSILON)
        program = program_of(TAMED, op, width_in=width, width_out=width)
        assert_native_equals_numpy(program, constants, isa, (1, 2, 15, 16, 17, 40), threads=(1, 3))
    program = program_of(Glu(input="x", output="y"), width_in=2 * width, width_out=width)
    assert_native_equals_numpy(program, {}, isa, (1, 7), threads=(2,))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("left", "right"), [(-1, -1), (-1, 3), (5, -1), (0, 0), (64, 0), (15, 16), (300, 300)]
)
def test_attention_over_several_blocks_is_equal(isa, left, right):
    # 64 queries are a block, 256 rows are scored at once, four queries go together, 16 rows are a vector.
    rng = np.random.default_rng(left + right + 2)
    width, heads = 34, 2
    query, key, value = (Affine(input="t", output=name, gain=f"{name}.g", bias=f"{name}.b") for name in "qkv")
    constants = {f"{name}.{role}": floats(rng, width) for name in "qkv" for role in "gb"}
    ops = (TAMED, query, key, value)
    fields = {
        "query": "q",
        "key": "k",
        "value": "v",
        "output": "y",
        "heads": heads,
        "left": left,
        "right": right,
    }
    program = program_of(*ops, Attention(**fields), width_in=width, width_out=width)
    assert_native_equals_numpy(program, constants, isa, (1, 3, 16, 65, 330), threads=(1, 3))
    if (left < 0) != (right < 0):
        return
    constants |= {name: floats(rng, width) for name in ("u", "w")}
    fields |= {"positions": "p", "content_bias": "u", "position_bias": "w"}
    if left < 0:
        ops = (*ops, Sinusoids(input="x", output="p", columns=width))
    else:
        constants["p"] = floats(rng, left + right + 1, width)
    program = program_of(*ops, Attention(**fields), width_in=width, width_out=width)
    assert_native_equals_numpy(program, constants, isa, (1, 3, 16, 65, 330), threads=(1, 3))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bits", [0, 4, 8])
@pytest.mark.parametrize("units", [1, 15, 16, 17, 150])  # 150: enough to be shared among threads
def test_recurrences_of_every_width_are_equal(isa, units, bits):
    rng = np.random.default_rng(units)
    few = (units + 1) // 2
    constants = {
        name: packed_weight(rng, (4 * size, size), bits=4, grid=grid) if bits else floats(rng, 4 * size, size)
        for name, size, grid in (("w", units, "asymmetric"), ("sw", few, "codebook"))
    }
    constants |= {"b": floats(rng, 4 * units), "sb": floats(rng, 4 * few)}
    op = Lstm(input="x", output="y", cell="c", weight="w", bias="b", activation_bits=bits)
    program = program_of(op, width_in=4 * units, width_out=units)
    assert_native_equals_numpy(program, constants, isa, (1, 2, 9))
    op = SwitchedLstm(
        input="x", small="s", gate="g", output="y", cell="c", weight="w", bias="b", activation_bits=bits,
        small_weight="sw", small_bias="sb", small_activation_bits=bits,
    )  # fmt: skip
    program = Program(
        input="x", input_width=4 * units, output="y", output_width=units, frames_per_step=1, ops=(op,),
        others=(("s", 4 * few), ("g", 1)),
    )  # fmt: skip
    assert_native_equals_numpy(program, constants, isa, (1, 2, 12))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("groups", [1, "all"], ids=["dense", "depthwise"])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "behind"), [(1, 1, 0, 0), (3, 2, 1, 1), (2, 3, 4, 0), (4, 1, 0, 5)]
)
def test_convolutions_over_images_are_equal(isa, kernel, stride, padding, behind, groups):
    rng = np.random.default_rng(kernel)
    for channels, features, out in ((1, 9, 5), (3, 20, 3), (17, 4, 34), (20, 5, 20), (3, 7, 130)):
        group = channels if groups == "all" else 1
        if out % group:
            continue
        op = Conv2d(
            input="x", output="y", weight="w", bias="b", in_channels=channels, groups=group, relu=out == 20,
            kernel=kernel, stride=stride, padding=padding, padding_behind=behind, feature_kernel=kernel,
            feature_stride=stride, feature_padding=padding, feature_padding_behind=behind,
        )  # fmt: skip
        constants = {"w": floats(rng, out, channels // group, kernel, kernel), "b": floats(rng, out)}
        width = out * op.features_out(features)
        program = program_of(op, width_in=channels * features, width_out=width)
        assert_native_equals_numpy(program, constants, isa, (1, 2, 3, 14), threads=(1, 3))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("groups", "depth", "out"), [(2, 1, 1), (2, 3, 65), (5, 4, 16), (7, 1, 2), (3, 17, 70)]
)
def test_grouped_convolutions_are_equal(isa, groups, depth, out):
    rng = np.random.default_rng(groups)
    constants = {"w": floats(rng, groups * out, depth, 5), "b": floats(rng, groups * out)}
    op = Conv1d(
        input="x", output="y", weight="w", bias="b", kernel=5, padding=4, padding_behind=0, groups=groups
    )
    program = program_of(op, width_in=groups * depth, width_out=groups * out)
    assert_native_equals_numpy(program, constants, isa, (1, 7, 100), threads=(1, 3))


@pytest.mark.parametrize("isa", ISAS)
def test_an_index_beyond_the_table_takes_the_nearest_row(isa):
    table = floats(np.random.default_rng(3), 4, 5)
    program = program_of(Embedding(input="x", output="y", weight="w"), width_in=1, width_out=5)
    features = np.float32([[-7.0], [0.0], [2.9], [3.0], [1e30], [-0.0]])
    got = NativeEngine(program, {"w": table}, isa=isa, threads=2).run(features)
    assert_same_bits(got, table[[0, 0, 2, 3, 3, 0]])
