"""A float program made integer-only: what each operation keeps, what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tests.runtime.small_programs import GRIDS, packed_weight, program_of

from subtone.export.integer import Grids, integer_program
from subtone.export.lower import lower
from subtone.export.making import wants_of
from subtone.export.ranges import Range, observe
from subtone.models.quartznet import Block, QuartzNet, QuartzNetConfig
from subtone.program import (
    Add,
    Affine,
    ChannelNorm,
    Columns,
    Concat,
    Constant,
    Conv1d,
    Conv2d,
    IntegerConv1d,
    Op,
    Program,
    Relu,
    Rescale,
    Scale,
    Stack,
)
from subtone.qtensor import QTensor
from subtone.quantize.apply import quantize_module
from subtone.quantize.rules import Recipe
from subtone.runtime.doors import DoorEngine, levels_at
from subtone.runtime.engine import NumpyEngine

RNG = np.random.default_rng(5)
F32 = np.float32


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(F32)


def made_of(
    program: Program, constants: dict[str, Constant], x: np.ndarray, **settings
) -> tuple[Program, dict]:
    return integer_program(program, constants, observe(program, constants, [x]), grids=Grids(**settings))


def real_values(program: Program, constants: dict[str, Constant], x: np.ndarray) -> np.ndarray:
    """What the float program gives for the levels that x becomes at the integer program's door."""
    return NumpyEngine(program, constants).run(x)


# Products --------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("grid", GRIDS)
def test_a_product_is_the_real_one_to_half_a_level(grid: str, bits: int) -> None:
    """The total is the real product in units of 2**-shift, but for the rounding of its integers: half a unit of
    a multiplier for each unit of S, of a correction for each of Q, and of the offset."""
    weight = packed_weight(RNG, (12, 16), bits=bits, grid=grid, groups=2)
    constants: dict[str, Constant] = {"w": weight, "b": floats(12)}
    program = program_of(Conv1d(input="x", output="y", weight="w", bias="b"), width_in=16, width_out=12)
    x = floats(40, 16)
    made, integers = made_of(program, constants, x)
    levels = levels_at(made.doors[0], x)
    exact = made.doors[0].scale * levels.astype(np.float64) @ weight.dequantize().astype(np.float64).T
    exact += constants["b"].astype(np.float64)
    found = NumpyEngine(made, integers).run(levels) * made.output_scale
    shift = integers[made.ops[0].shift].astype(np.float64)
    units = 0.5 * (127 * 128 * 16 + 127 * 16 + 1) * 2.0**-shift
    decoding = 2.0**-23 * np.abs(exact).max() * 40  # dequantize() rounds each weight to float32
    assert (np.abs(found - exact) <= made.output_scale * (0.5 + units) + decoding).all()


def test_a_row_of_zeros_gives_its_bias() -> None:
    weight = floats(3, 8)
    weight[1] = 0
    for grid in ("symmetric", "asymmetric"):
        recipe = Recipe.from_toml(f'name="r"\nmethod="linear"\n[[rules]]\nbits=4\ngrid="{grid}"')
        stored = quantize_module(_linear(weight), recipe).weights["0.weight"]
        constants: dict[str, Constant] = {"w": stored, "b": np.array([0.5, -0.25, 1], F32)}
        program = program_of(Conv1d(input="x", output="y", weight="w", bias="b"), width_in=8, width_out=3)
        x = floats(20, 8)
        made, integers = made_of(program, constants, x)
        found = DoorEngine(NumpyEngine(made, integers)).run(x)[:, 1]
        assert np.abs(found + 0.25).max() <= made.output_scale


def _linear(weight: np.ndarray) -> torch.nn.Sequential:
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
    return torch.nn.Sequential(layer)


def test_a_faint_row_keeps_its_bias() -> None:
    """QuartzNet has such rows: their bias is 3e9 times what one level of theirs is worth."""
    weight = floats(2, 8) * np.array([[1], [1e-10]], F32)
    recipe = Recipe.from_toml('name="r"\nmethod="linear"\n[[rules]]\nbits=8')
    constants: dict[str, Constant] = {
        "w": quantize_module(_linear(weight), recipe).weights["0.weight"],
        "b": np.array([0, 2], F32),
    }
    program = program_of(Conv1d(input="x", output="y", weight="w", bias="b"), width_in=8, width_out=2)
    x = floats(20, 8)
    made, integers = made_of(program, constants, x)
    assert np.abs(DoorEngine(NumpyEngine(made, integers)).run(x)[:, 1] - 2).max() <= made.output_scale


def test_a_gain_beside_group_scales_joins_the_multipliers() -> None:
    weight = packed_weight(RNG, (6, 16), bits=4, grid="group", groups=2)
    gain = np.array([1, -2, 0.5, 3, 1, 0.25], F32)
    constants: dict[str, Constant] = {"w": weight, "g": gain}
    program = program_of(Conv1d(input="x", output="y", weight="w", gain="g"), width_in=16, width_out=6)
    x = floats(30, 16)
    made, integers = made_of(program, constants, x)
    exact = (levels_at(made.doors[0], x) * made.doors[0].scale) @ (weight.dequantize() * gain[:, None]).T
    found = DoorEngine(NumpyEngine(made, integers)).run(x)
    assert np.abs(found - exact).max() <= 1e-5 * np.abs(exact).max()


# Everything together ---------------------------------------------------------------------


def small_network() -> QuartzNet:
    torch.manual_seed(3)
    blocks = (
        Block(filters=8, kernel=5, stride=2),
        Block(filters=8, kernel=3, repeat=2, has_residual=True),
        Block(
            filters=10, kernel=3, dilation=2, is_separable=False, has_residual=True, has_dense_residual=True
        ),
    )
    return QuartzNet(QuartzNetConfig(num_features=6, num_outputs=5, blocks=blocks)).eval()


def lowered(bits: int) -> tuple[Program, dict[str, Constant]]:
    network = small_network()
    recipe = Recipe.from_toml(f'name="r"\nmethod="linear"\n[[rules]]\nbits={bits}')
    quantization = quantize_module(network, recipe)
    return lower(network, num_features=6, frames_per_step=2, quantization=quantization)


def distance(program: Program, constants: dict[str, Constant], examples: list, **settings) -> float:
    """The relative error of the logits, behind the integer program that `settings` give."""
    ranges = observe(program, constants, examples)
    made, integers = integer_program(program, constants, ranges, grids=Grids(**settings))
    assert not made.float_parts(integers)
    found = np.concatenate([DoorEngine(NumpyEngine(made, integers)).run(x) for x in examples])
    expected = np.concatenate([NumpyEngine(program, constants).run(x) for x in examples])
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_a_network_in_integers_is_near_to_it_in_floats_and_more_bits_are_nearer() -> None:
    program, constants = lowered(8)
    examples = [floats(frames, 6) for frames in (60, 31)]
    errors = [distance(program, constants, examples, activation_bits=bits) for bits in (8, 6, 4)]
    assert errors[0] < 0.02
    assert errors[0] < errors[1] < errors[2]


def test_wide_sums_are_nearer_than_sums_of_8_bits() -> None:
    program, constants = lowered(8)
    examples = [floats(90, 6)]
    assert distance(program, constants, examples) < distance(program, constants, examples, wide_limit=127)


def test_a_bit_that_a_relu_made_free_is_worth_having() -> None:
    program, constants = lowered(8)
    examples = [floats(90, 6)]
    assert distance(program, constants, examples) < distance(program, constants, examples, unsigned=False)


def test_every_operation_that_has_an_integer_form_keeps_its_values() -> None:
    recipe = Recipe.from_toml('name="r"\nmethod="linear"\n[[rules]]\nbits=8')
    image = torch.nn.Conv2d(1, 2, 3, padding=1, stride=2)
    stored = quantize_module(torch.nn.Sequential(image), recipe).weights["0.weight"]
    constants: dict[str, Constant] = {
        "k": stored, "kb": image.bias.detach().numpy(), "g": floats(8), "b": floats(8),
    }  # fmt: skip
    ops: tuple[Op, ...] = (
        Conv2d(
            input="x", output="c", weight="k", bias="kb", in_channels=1, kernel=3, stride=2, padding=1,
            feature_kernel=3, feature_stride=2, feature_padding=1,
        ),
        Affine(input="c", output="a", gain="g", bias="b"),
        Relu(input="a", output="r"),
        Scale(input="a", output="s", factor=-0.5),
        Add(left="r", right="s", output="t"),
        Columns(input="t", output="u", first=2, count=4),
        Concat(left="u", right="a", output="v"),
        Stack(input="v", output="w", count=2),
        Scale(input="w", output="y", factor=2.0),
    )  # fmt: skip
    program = program_of(*ops, width_in=8, width_out=24)
    x = floats(64, 8)
    made, integers = made_of(program, constants, x)
    expected = NumpyEngine(program, constants).run(x)
    found = DoorEngine(NumpyEngine(made, integers)).run(x)
    assert found.shape == expected.shape
    # Half a level of 127 at the door through nine weights and a gain; sums have 16 bits.
    door = 0.5 * made.doors[0].scale * np.abs(stored.dequantize()).sum((1, 2, 3)).max()
    assert np.abs(found - expected).max() <= 2 * 1.5 * door * np.abs(constants["g"]).max() * 1.05


def test_a_value_that_is_summed_and_multiplied_is_wide_and_made_narrow_once() -> None:
    weight = packed_weight(RNG, (4, 4), bits=8, grid="symmetric")
    constants: dict[str, Constant] = {"w": weight}
    ops = (
        Conv1d(input="x", output="a", weight="w"),
        Conv1d(input="a", output="b", weight="w"),
        Conv1d(input="a", output="c", weight="w"),
        Add(left="a", right="b", output="d"),
        Add(left="c", right="d", output="y"),
    )
    program = program_of(*ops, width_in=4, width_out=4)
    assert wants_of(program)["a"] == {"narrow", "wide"}
    made, _ = made_of(program, constants, floats(20, 4))
    (narrow,) = [op for op in made.ops if isinstance(op, Rescale)]
    assert (narrow.input, narrow.low, narrow.high) == ("a", -127, 127)
    assert [op.input for op in made.ops if isinstance(op, IntegerConv1d)] == [
        "x",
        narrow.output,
        narrow.output,
    ]


# Refusals --------------------------------------------------------------------------------


def refusal(program: Program, constants: dict[str, Constant], **changed: Range) -> str:
    ranges = {name: Range(-1, 1) for name in program.widths(constants)} | changed
    with pytest.raises(ValueError) as refused:
        integer_program(program, constants, ranges)
    return str(refused.value)


def test_what_cannot_be_integers_is_named() -> None:
    weight = packed_weight(RNG, (4, 4), bits=8, grid="symmetric")
    conv = Conv1d(input="x", output="y", weight="w", source="encoder.0")
    program = program_of(conv, width_in=4, width_out=4)
    norm = ChannelNorm(input="x", output="y", epsilon=2.0**-10, source="norm")
    assert "op 0 (norm) is a ChannelNorm, which has no integer form" in refusal(
        program_of(norm, width_in=4, width_out=4), {}
    )
    complaint = "op 0 (encoder.0): the weight w is float, and an integer-only program needs it in 1 to 8 bits"
    assert complaint in refusal(program, {"w": floats(4, 4)})
    complaint = "op 0 (encoder.0): y never moved from 0 in calibration, which gives it no scale"
    assert complaint in refusal(program, {"w": weight}, y=Range(0, 0))
    assert "y has the range nan to 1.0; repair" in refusal(program, {"w": weight}, y=Range(float("nan"), 1.0))
    complaint = "op 0 (encoder.0): a scale is 2**"
    assert complaint in refusal(program, {"w": weight}, x=Range(-1e30, 1e30), y=Range(-1e-15, 1e-15))
    with pytest.raises(ValueError, match="the input x: x has no range; calibrate this very program"):
        integer_program(program, {"w": weight}, {})


def test_a_weight_of_two_products_is_stored_once() -> None:
    weight = packed_weight(RNG, (4, 4), bits=4, grid="codebook")
    ops = (Conv1d(input="x", output="a", weight="w"), Conv1d(input="a", output="y", weight="w"))
    made, integers = made_of(program_of(*ops, width_in=4, width_out=4), {"w": weight}, floats(9, 4))
    assert [op.weight for op in made.ops] == ["w", "w"]
    assert sum(not isinstance(value, np.ndarray) for value in integers.values()) == 1
    assert not any(isinstance(value, QTensor) for value in integers.values())
    assert dataclasses.replace(made, doors=()).float_parts(integers) == ["input x"]
