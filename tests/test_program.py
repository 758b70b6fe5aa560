"""Programs: the shapes of their values, their JSON, and everything that is refused."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
import typing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runtime.definitions import all_values
from tests.runtime.random_programs import random_program
from tests.runtime.small_programs import packed_weight, program_of

from subtone.program import (
    KINDS,
    MAX_FRAMES,
    MAX_INTEGER_INPUTS,
    MAX_SIZE,
    OPS,
    Add,
    Affine,
    Clip,
    Conv1d,
    Program,
    Relu,
    constants_of,
    inputs_of,
)

F32 = np.float32


def weight_of(*shape: int) -> np.ndarray:
    return np.ones(shape, F32)


def conv(**fields) -> Conv1d:
    return Conv1d(**{"input": "x", "output": "y", "weight": "w", **fields})


def clip(**fields) -> Clip:
    return Clip(**{"input": "x", "output": "y", "low": -1.0, "high": 1.0, **fields})


def end_by_loop(frames: int, behind: int, *, kernel: int, stride: int, dilation: int, padding: int) -> int:
    """How often the kernel, moved by `stride`, lies within the padded frames; never where there are none."""
    starts = range(-padding, frames + behind, stride) if frames else ()
    return sum(start + dilation * (kernel - 1) < frames + behind for start in starts)


# Shapes ----------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    frames=st.integers(0, 40),
    kernel=st.integers(1, 9),
    stride=st.integers(1, 5),
    dilation=st.integers(1, 4),
    padding=st.integers(0, 12),
)
def test_a_convolution_ends_where_the_kernel_still_fits(frames, **geometry):
    op = conv(**geometry)
    assert op.end({"input": frames}, is_last=True) == end_by_loop(frames, op.padding, **geometry)
    assert op.end({"input": frames}, is_last=False) == end_by_loop(frames, 0, **geometry)
    for behind in (0, 5):
        one_sided = dataclasses.replace(op, padding_behind=behind)
        assert one_sided.end({"input": frames}, is_last=True) == end_by_loop(frames, behind, **geometry)


@pytest.mark.parametrize("stride", [1, 2, 3, 7])
def test_too_few_frames_give_none(stride):
    op = conv(kernel=5, stride=stride, dilation=2, padding=1)  # needs 9 - 2 frames
    ends = [op.end({"input": frames}, is_last=True) for frames in range(9)]
    assert ends == [0] * 7 + [1, 1 + (stride == 1)]


def test_shapes_follow_every_kind_of_operation():
    ops = (
        conv(output="a", weight="wide", kernel=3, stride=2, padding=1),
        conv(input="a", output="b", weight="deep", kernel=5, padding=2, groups=6),
        Affine(input="b", output="c", gain="g", bias="g"),
        Add(left="a", right="c", output="d"),
        Relu(input="d", output="e"),
        Clip(input="e", output="f", low=0.0, high=6.0),
        conv(input="f", weight="head"),
    )
    constants = {
        "wide": weight_of(6, 4, 3),
        "deep": weight_of(6, 1, 5),
        "g": weight_of(6),
        "head": weight_of(3, 6),
    }
    program = program_of(*ops, width_in=4, width_out=3)
    assert program.shapes(11, constants) == {
        "x": (11, 4), "a": (6, 6), "b": (6, 6), "c": (6, 6), "d": (6, 6), "e": (6, 6), "f": (6, 6), "y": (6, 3),
    }  # fmt: skip
    assert {shape[0] for name, shape in program.shapes(0, constants).items() if name != "x"} == {0}


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), num_ops=st.integers(1, 8), frames=st.integers(0, 30))
def test_shapes_are_those_of_the_values_that_are_computed(seed, num_ops, frames):
    program, constants = random_program(np.random.default_rng(seed), num_ops)
    expected = program.shapes(frames, constants)
    values = all_values(program, constants, np.zeros((frames, program.input_width), F32))
    assert {name: value.shape for name, value in values.items()} == {
        name: shape for name, shape in expected.items() if name not in constants
    }


@pytest.mark.parametrize("shape", [(3, 2), (3, 2, 1)], ids=["Linear", "Conv1d"])
def test_kernel_1_takes_the_weight_of_a_linear_layer_or_of_a_convolution(shape):
    program = program_of(conv(), width_in=2, width_out=3)
    assert program.shapes(5, {"w": weight_of(*shape)})["y"] == (5, 3)
    packed = packed_weight(np.random.default_rng(0), shape, bits=4, grid="symmetric")
    integer = program_of(conv(activation_bits=8), width_in=2, width_out=3)
    assert integer.shapes(5, {"w": packed})["y"] == (5, 3)


def test_products_of_65535_inputs_are_the_widest():
    rng = np.random.default_rng(0)
    constants = {"w": packed_weight(rng, (1, 65535), bits=1, grid="tensor")}
    op = conv(activation_bits=8)
    assert program_of(op, width_in=65535, width_out=1).shapes(1, constants)["y"] == (1, 1)
    constants = {"w": packed_weight(rng, (1, 65536), bits=1, grid="tensor")}
    with pytest.raises(ValueError, match="sums 65536 products, which may overflow int32"):
        program_of(op, width_in=65536, width_out=1).shapes(1, constants)


def test_inputs_and_constants_are_the_names_that_an_operation_reads():
    assert inputs_of(Add(left="a", right="b", output="y")) == ("a", "b")
    assert inputs_of(Relu(input="a", output="y")) == ("a",)
    assert constants_of(conv(bias="b")) == {"weight": "w", "bias": "b"}
    assert constants_of(Affine(input="x", output="y", gain="g", bias="b")) == {"gain": "g", "bias": "b"}
    assert constants_of(Relu(input="x", output="y")) == {}


# What does not fit -----------------------------------------------------------------------

PACKED = packed_weight(np.random.default_rng(0), (4, 4), bits=4, grid="symmetric")
DEEP = packed_weight(np.random.default_rng(0), (4, 1, 3), bits=4, grid="symmetric")
CONSTANTS = {
    "w": weight_of(4, 4),
    "packed": PACKED,
    "deep": DEEP,
    "square": weight_of(4, 4, 3),
    "half": weight_of(4, 2, 3),
    "flat": weight_of(4),
    "v": weight_of(4),
    "short": weight_of(3),
    "third": weight_of(3, 1),
    "number": weight_of(),
    "nothing": weight_of(0, 4),
    "matrix": weight_of(1, 4),
}
Y = "op 0 (conv1d of y)"


@pytest.mark.parametrize(
    ("op", "complaint"),
    [
        (conv(input="z"), f"{Y} reads z, which no earlier op writes"),
        (conv(input="y"), f"{Y} reads y, which no earlier op writes"),
        (Add(left="x", right="z", output="y"), "op 0 (add of y) reads z, which no earlier op writes"),
        (conv(output="x"), "op 0 (conv1d of x) writes x a second time"),
        (conv(weight=""), f"{Y} names no weight"),
        (Affine(input="x", output="y", gain="", bias="v"), "op 0 (affine of y) names no gain"),
        (Affine(input="x", output="y", gain="v", bias=""), "op 0 (affine of y) names no bias"),
        (conv(weight="q"), f"{Y} reads the constant q, which is missing"),
        (conv(gain="q"), f"{Y} reads the constant q, which is missing"),
        (conv(bias="q"), f"{Y} reads the constant q, which is missing"),
        (conv(source="encoder.0", bias="q"), "op 0 (conv1d of encoder.0) reads the constant q"),
        (conv(kernel=0), f"{Y} has kernel=0; use 1 to 16777216"),
        (conv(stride=0), f"{Y} has stride=0; use 1 to 16777216"),
        (conv(dilation=0), f"{Y} has dilation=0; use 1 to 16777216"),
        (conv(padding=-1), f"{Y} has padding=-1; use 0 to 16777216"),
        (conv(kernel=2**24 + 1), f"{Y} has kernel=16777217; use 1 to 16777216"),
        (conv(stride=2**62), f"{Y} has stride={2**62}; use 1 to 16777216"),
        (conv(dilation=2**24 + 1), f"{Y} has dilation=16777217; use 1 to 16777216"),
        (conv(padding=2**24 + 1), f"{Y} has padding=16777217; use 0 to 16777216"),
        (
            conv(padding_behind=-2),
            f"{Y} has padding_behind=-2; use -1 to 16777216",
        ),
        (conv(padding_behind=2**24 + 1), f"{Y} has padding_behind=16777217; use -1 to 16777216"),
        (
            conv(groups=0),
            f"{Y} has groups=0 for 4 inputs and 4 outputs; use 1, or what divides both",
        ),
        (
            conv(weight="half", kernel=3, groups=3),
            f"{Y} has groups=3 for 4 inputs and 4 outputs; use 1, or what divides both",
        ),
        (
            conv(weight="third", groups=4),
            f"{Y} has groups=4 for 4 inputs and 3 outputs; use 1, or what divides both",
        ),
        (
            conv(weight="square", kernel=3, groups=2),
            f"{Y} needs a weight of (4, 2, 3), square has (4, 4, 3)",
        ),
        (conv(weight="square"), f"{Y} needs a weight of (4, 4, 1), square has (4, 4, 3)"),
        (conv(kernel=3), f"{Y} needs a weight of (4, 4, 3), w has (4, 4)"),
        (conv(weight="flat"), f"{Y} needs a weight (out, in, kernel), flat has (4,)"),
        (conv(weight="number"), f"{Y} needs a weight (out, in, kernel), number has ()"),
        (conv(weight="nothing"), f"{Y} has 0 outputs; use 1 to 16777216"),
        (conv(weight="half", kernel=3), f"{Y} needs a weight of (4, 4, 3), half has (4, 2, 3)"),
        (
            conv(weight="square", kernel=3, groups=4),
            f"{Y} needs a weight of (4, 1, 3), square has (4, 4, 3)",
        ),
        (
            conv(weight="deep", kernel=3, padding=1, groups=4, activation_bits=8),
            f"{Y} spans frames or channels; integer activations need kernel 1, stride 1, padding 0, groups 1",
        ),
        (conv(weight="packed", stride=2, activation_bits=8), f"{Y} spans frames or channels"),
        (conv(weight="packed", padding=1, activation_bits=8), f"{Y} spans frames or channels"),
        (conv(weight="packed", padding_behind=1, activation_bits=8), f"{Y} spans frames or channels"),
        (conv(weight="packed", activation_bits=1), f"{Y} has activation_bits=1; use 0 or 2..8"),
        (conv(weight="packed", activation_bits=9), f"{Y} has activation_bits=9; use 0 or 2..8"),
        (conv(weight="packed", activation_bits=-8), f"{Y} has activation_bits=-8; use 0 or 2..8"),
        (conv(activation_bits=8), f"{Y} needs a quantized weight for integer activations"),
        (conv(gain="short"), f"{Y} needs gain of (4,), short does not fit"),
        (conv(bias="matrix"), f"{Y} needs bias of (4,), matrix does not fit"),
        (conv(gain="packed"), f"{Y} needs gain of (4,), packed does not fit"),
        (
            Affine(input="x", output="y", gain="short", bias="v"),
            "op 0 (affine of y) needs gain of (4,), short does not fit",
        ),
        (
            Affine(input="x", output="y", gain="v", bias="short"),
            "op 0 (affine of y) needs bias of (4,), short does not fit",
        ),
        (Relu(input="x", output="z"), "no op writes the output y"),
        (clip(low=1.0, high=1.0), "op 0 (clip of y) has low=1.0 and high=1.0; they must ascend"),
        (clip(low=2.0), "op 0 (clip of y) has low=2.0 and high=1.0; they must ascend"),
        (clip(high=math.inf), "op 0 (clip of y) has high=inf; use a finite value of float32"),
        (clip(low=math.nan), "op 0 (clip of y) has low=nan; use a finite value of float32"),
        (clip(high=1e39), "op 0 (clip of y) has high=1e+39; use a finite value of float32"),
        (clip(low=-0.1), "op 0 (clip of y) has low=-0.1; use a finite value of float32"),
    ],
)
def test_an_operation_that_does_not_fit_is_refused_and_named(op, complaint):
    with pytest.raises(ValueError) as refusal:
        program_of(op, width_in=4, width_out=4).shapes(9, CONSTANTS)
    assert complaint in str(refusal.value)


def test_values_of_unlike_shapes_are_not_added():
    constants = {"three": weight_of(3, 4), "w3": weight_of(4, 4, 3)}
    for weight, kernel, complaint in (
        ("three", 1, "adds widths 4 and 3"),
        ("w3", 3, "joins 9 and 7 rows"),
    ):
        other = conv(output="a", weight=weight, kernel=kernel)
        program = program_of(other, Add(left="x", right="a", output="y"), width_in=4, width_out=4)
        with pytest.raises(ValueError) as refusal:
            program.shapes(9, constants)
        assert str(refusal.value) == f"op 1 (add of y) {complaint}"


def test_a_value_is_written_once():
    program = program_of(Relu(input="x", output="y"), Relu(input="x", output="y"), width_in=2, width_out=2)
    with pytest.raises(ValueError, match=r"op 1 \(relu of y\) writes y a second time"):
        program.shapes(3, {})


def test_a_program_that_computes_nothing_is_refused():
    idle = dataclasses.replace(program_of(width_in=1, width_out=1), output="x")
    with pytest.raises(ValueError, match="the program's output is its input x; it computes nothing"):
        idle.shapes(1, {})


@pytest.mark.parametrize("width", [0, 2**24 + 1])
def test_a_width_that_no_machine_runs_is_refused(width):
    program = program_of(Relu(input="x", output="y"), width_in=width, width_out=width)
    with pytest.raises(ValueError, match=rf"input_width={width} must be 1 to 16777216"):
        program.shapes(1, {})


def test_a_value_has_at_most_2_to_31_frames():
    """Each padding within its limit, 64 of them together beyond that of frames."""
    names = ["x", *(f"v{index}" for index in range(1, 64)), "y"]
    ops = [conv(input=before, output=after, padding=MAX_SIZE) for before, after in itertools.pairwise(names)]
    program = program_of(*ops, width_in=4, width_out=4)
    with pytest.raises(
        ValueError, match=r"op 63 \(conv1d of y\) gives 2147483649 frames, more than 2147483648"
    ):
        program.shapes(1, CONSTANTS)
    fewer = dataclasses.replace(
        program, ops=(*ops[:-1], dataclasses.replace(ops[-1], padding_behind=2**24 - 1))
    )
    assert fewer.shapes(1, CONSTANTS)["y"] == (2**31, 4)


def test_the_limits_are_those_of_the_native_library():
    header = (Path(__file__).resolve().parents[1] / "native" / "subtone.h").read_text()
    for name, limit, written in (
        ("SIZE", MAX_SIZE, r"\(1 << 24\)"),
        ("FRAMES", MAX_FRAMES, r"\(INT64_C\(1\) << 31\)"),
        ("INTEGER_INPUTS", MAX_INTEGER_INPUTS, "65535"),
    ):
        assert re.search(rf"#define SUBTONE_MAX_{name} {written} ", header)
        assert limit == {"SIZE": 1 << 24, "FRAMES": 1 << 31, "INTEGER_INPUTS": 65535}[name]


def test_the_output_has_the_width_that_the_program_says():
    with pytest.raises(ValueError, match="the output has 4 columns, not 5"):
        program_of(conv(), width_in=4, width_out=5).shapes(9, CONSTANTS)


# JSON ------------------------------------------------------------------------------------


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), num_ops=st.integers(1, 10))
def test_a_program_comes_back_from_json(seed, num_ops):
    program, _ = random_program(np.random.default_rng(seed), num_ops)
    assert Program.from_json(json.loads(json.dumps(program.to_json()))) == program


@pytest.mark.parametrize("kind", OPS)
def test_every_field_comes_back_from_json(kind):
    unlike = {str: "other", int: 7, bool: True, float: 7.5}
    types_of = typing.get_type_hints(OPS[kind])
    fields = {field.name: unlike[types_of[field.name]] for field in dataclasses.fields(OPS[kind])}
    op = OPS[kind](**fields)
    program = program_of(op, width_in=1, width_out=1)
    assert program.to_json()["ops"] == [{"op": kind, **fields}]
    assert Program.from_json(program.to_json()).ops == (op,)
    assert KINDS[OPS[kind]] == kind


def test_json_says_only_what_differs_from_the_defaults():
    program = program_of(conv(stride=2), width_in=4, width_out=3)
    assert program.to_json() == {
        "input": "x",
        "input_width": 4,
        "output": "y",
        "output_width": 3,
        "frames_per_step": 1,
        "ops": [{"op": "conv1d", "input": "x", "output": "y", "weight": "w", "stride": 2}],
    }


CONV = {"op": "conv1d", "input": "x", "output": "y", "weight": "w"}


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ({"op": "gru", "input": "x"}, "unknown operation {'op': 'gru', 'input': 'x'}"),
        ({"input": "x"}, "unknown operation {'input': 'x'}"),
        ({"op": ["conv1d"]}, "unknown operation {'op': ['conv1d']}"),
        ({"op": None}, "unknown operation {'op': None}"),
        ("conv1d", "unknown operation 'conv1d'"),
        (None, "unknown operation None"),
        ({**CONV, "shift": 1}, "conv1d has no field 'shift'"),
        ({**CONV, "kernel": 3.0}, "conv1d.kernel=3.0 is not int"),
        ({**CONV, "kernel": "3"}, "conv1d.kernel='3' is not int"),
        ({**CONV, "kernel": True}, "conv1d.kernel=True is not int"),
        ({**CONV, "relu": 1}, "conv1d.relu=1 is not bool"),
        ({**CONV, "bias": None}, "conv1d.bias=None is not str"),
        ({"op": "conv1d", "output": "y"}, "conv1d lacks ['input', 'weight']"),
        ({"op": "add", "left": "x", "output": "y"}, "add lacks ['right']"),
        ({"op": "relu"}, "relu lacks ['input', 'output']"),
        ({"op": "clip", "input": "x", "output": "y", "low": 0.0}, "clip lacks ['high']"),
        ({"op": "clip", "input": "x", "output": "y", "low": 0, "high": 6.0}, "clip.low=0 is not float"),
    ],
)
def test_an_operation_that_json_gets_wrong_is_refused(entry, complaint):
    document = {**program_of(conv(), width_in=1, width_out=1).to_json(), "ops": [CONV, entry]}
    with pytest.raises(ValueError) as refusal:
        Program.from_json(document)
    assert str(refusal.value) == complaint


def test_an_unknown_operation_is_shown_in_short():
    document = {**program_of(conv(), width_in=1, width_out=1).to_json(), "ops": [{"op": "z" * 10**6}]}
    with pytest.raises(ValueError) as refusal:
        Program.from_json(document)
    assert len(str(refusal.value)) == len("unknown operation ") + 80


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("input", "", "the program's input='' is not a valid str"),
        ("output", "", "the program's output='' is not a valid str"),
        ("input", 3, "the program's input=3 is not a valid str"),
        ("input_width", 0, "the program's input_width=0 is not a valid int"),
        ("input_width", True, "the program's input_width=True is not a valid int"),
        ("output_width", -1, "the program's output_width=-1 is not a valid int"),
        ("output_width", "29", "the program's output_width='29' is not a valid int"),
        ("frames_per_step", 2.0, "the program's frames_per_step=2.0 is not a valid int"),
        ("frames_per_step", None, "the program's frames_per_step=None is not a valid int"),
        ("ops", {"0": CONV}, "the program's ops are not a list"),
    ],
)
def test_a_head_that_json_gets_wrong_is_refused(field, value, complaint):
    document = {**program_of(conv(), width_in=1, width_out=1).to_json(), field: value}
    with pytest.raises(ValueError) as refusal:
        Program.from_json(document)
    assert str(refusal.value) == complaint


def test_keys_of_a_program_are_exactly_its_own():
    document = program_of(conv(), width_in=1, width_out=1).to_json()
    for broken in ({**document, "version": 2}, {k: v for k, v in document.items() if k != "ops"}, {1: 2}):
        with pytest.raises(ValueError) as refusal:
            Program.from_json(broken)
        assert str(refusal.value) == f"the program's keys are {sorted(map(str, broken))}"
    with pytest.raises(ValueError, match="the program is not a JSON object"):
        Program.from_json([document])


def test_operations_and_programs_cannot_be_changed():
    for thing, field in ((conv(), "kernel"), (program_of(width_in=1, width_out=1), "ops")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(thing, field, 3)
