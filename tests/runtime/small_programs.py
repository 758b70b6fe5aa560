"""Small weights and programs that tests of the run time are made of."""

from __future__ import annotations

import numpy as np

from subtone import numerics
from subtone.program import Add, Affine, Clip, Constant, Conv1d, Op, Program, Relu
from subtone.qtensor import QTensor

GRIDS = ("tensor", "symmetric", "asymmetric", "group", "codebook")


def packed_weight(
    rng: np.random.Generator, shape: tuple[int, ...], *, bits: int, grid: str, groups: int = 1
) -> QTensor:
    """A random weight on one of `GRIDS`; "group" splits the inputs into `groups`, asymmetrically."""
    weight = rng.normal(0.3, 1.0, shape).astype(np.float32)
    flat = weight.reshape(shape[0], -1)
    if grid == "codebook":
        count = int(rng.integers(1, 2**bits + 1))
        levels = np.sort(rng.integers(-128, 128, count)).astype(np.int8)
        scale = (np.abs(flat).max(axis=1, keepdims=True) / 128).astype(np.float32)
        return QTensor.on_codebook(weight, scale, levels, bits)
    if grid in ("tensor", "symmetric"):
        magnitude = np.abs(flat).max(axis=None if grid == "tensor" else 1, keepdims=True)
        symmetric = numerics.one_bit_grid if bits == 1 else lambda m: numerics.symmetric_grid(m, bits)
        return QTensor.on_grid(weight, symmetric(magnitude), bits, is_symmetric=True)
    grouped = flat.reshape(shape[0], groups if grid == "group" else 1, -1)
    # Ranges reach 0: two inputs that are nearly equal would ask for a zero_point beyond float16.
    low, high = np.minimum(grouped.min(axis=2), 0), np.maximum(grouped.max(axis=2), 0)
    limits = numerics.asymmetric_grid(low, high, bits)
    return QTensor.on_grid(weight, limits, bits, is_symmetric=False)


def program_of(*ops: Op, width_in: int, width_out: int) -> Program:
    """A program whose first value is `x` and whose last is `y`."""
    return Program(
        input="x", input_width=width_in, output="y", output_width=width_out, frames_per_step=1, ops=ops
    )


def features_of(rng: np.random.Generator, frames: int, width: int) -> np.ndarray:
    """Frames of very different loudness, every fifth one silent, with zeros of both signs."""
    loudness = np.exp(rng.normal(0, 4, (frames, 1)))
    values = (rng.normal(0, 1, (frames, width)) * loudness).astype(np.float32)
    values[rng.random(values.shape) < 0.1] = -0.0
    values[4::5] = 0
    return values


def random_program(rng: np.random.Generator, num_ops: int) -> tuple[Program, dict[str, Constant]]:
    """A program of `num_ops` random ops that keep or change width and frames and its constants.

    Any earlier value may be read, so that values of many ages are alive together.
    """
    width_in = int(rng.integers(1, 40))
    shapes = {"x": (width_in, 0)}  # name -> (width, a number that differs where frames may differ)
    ops: list[Op] = []
    constants: dict[str, Constant] = {}
    for index in range(num_ops):
        output = "y" if index == num_ops - 1 else f"v{index}"
        input = list(shapes)[-1] if rng.random() < 0.7 else str(rng.choice(list(shapes)))
        width, length = shapes[input]
        twins = [name for name, shape in shapes.items() if shape == shapes[input]]
        relu = bool(rng.random() < 0.5)
        kind = rng.choice(["product", "depthwise", "dense", "affine", "add", "relu", "clip"])
        new_width = int(rng.integers(1, 80)) if kind in ("product", "dense") else width
        weight, gain, bias = f"{output}.w", f"{output}.g", f"{output}.b"
        if kind in ("product", "depthwise", "dense"):
            scaling = {"gain": gain if rng.random() < 0.3 else "", "bias": bias if rng.random() < 0.6 else ""}
        if kind == "product":
            bits, grid = int(rng.integers(1, 9)), str(rng.choice(GRIDS))
            groups = int(rng.choice([d for d in range(1, width + 1) if width % d == 0]))
            constants[weight] = packed_weight(rng, (new_width, width), bits=bits, grid=grid, groups=groups)
            op: Op = Conv1d(
                input=input, output=output, weight=weight, activation_bits=int(rng.integers(2, 9)), relu=relu,
                **scaling,
            )  # fmt: skip
        elif kind in ("depthwise", "dense"):
            kernel, dilation = int(rng.integers(1, 8)), int(rng.integers(1, 4))
            is_same = rng.random() < 0.7
            stride = 1 if is_same else int(rng.integers(1, 4))
            padding = dilation * (kernel - 1) // 2 if is_same else int(rng.integers(0, 12))
            length = length if is_same and dilation * (kernel - 1) % 2 == 0 else index + 1
            depth = 1 if kind == "depthwise" else width
            constants[weight] = rng.normal(0, 1, (new_width, depth, kernel)).astype(np.float32)
            op = Conv1d(
                input=input, output=output, weight=weight, kernel=kernel, stride=stride, dilation=dilation,
                padding=padding, groups=width if kind == "depthwise" else 1, relu=relu, **scaling,
            )  # fmt: skip
        elif kind == "affine":
            op = Affine(input=input, output=output, gain=gain, bias=bias, relu=relu)
        elif kind == "add":
            op = Add(left=input, right=str(rng.choice(twins)), output=output, relu=relu)
        elif kind == "clip":
            low, high = np.sort(rng.normal(0, 2, 2).astype(np.float32)).tolist()
            op = Clip(input=input, output=output, low=low, high=high)
        else:
            op = Relu(input=input, output=output)
        for name in (gain, bias):
            if name in (getattr(op, "gain", ""), getattr(op, "bias", "")):
                constants[name] = rng.normal(0, 1, new_width).astype(np.float32)
        ops.append(op)
        shapes[output] = (new_width, length)
    program = program_of(*ops, width_in=width_in, width_out=shapes["y"][0])
    return program, constants
