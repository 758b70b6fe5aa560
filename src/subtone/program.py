"""The program: what a packed model computes, as a flat list of few documented operations.

Beside QTensor the second thing that crosses from torch to the device, so it imports no torch.
A value is a float32 matrix (T, width) of one utterance, frames first, whatever its layout was
in torch: a transpose between (B, C, T) and (B, T, C) costs nothing here. A constant is a
QTensor or a float32 array, held beside the program under its parameter's path.

A new operation is one class here, one definition in runtime/ops.py and one entry in
export/lower.py; what a packed file says in JSON are these fields.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from subtone.qtensor import QTensor

Constant = QTensor | NDArray[np.float32]

MAX_SIZE = 2**24
"""Of a width, kernel, stride, dilation, padding; native/subtone.h has the same limits."""
MAX_FRAMES = 2**31
"""Of one value."""
MAX_FLOAT32 = float(np.finfo(np.float32).max)
MAX_INTEGER_INPUTS = 2**16 - 1
"""Of a product in int32: 128 * 127 * 65535 < 2**30."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conv1d:
    """Convolution over frames; with `kernel` 1 also what torch calls Linear.

    `y = gain * (W * x) + bias`, then ReLU if `relu`. Shapes: W (out, in / groups, kernel); gain
    and bias float32 (out,), absent where ""; x (T, in); y (T', out) with
    T' = (T + 2 padding - dilation (kernel - 1) - 1) // stride + 1.

    `activation_bits` 0: float products with the decoded weight. 2..8: x gets one scale a frame
    and the product is one of integers (docs/numerics.md); only with kernel 1, stride 1 and
    groups 1, since a scale may not span frames. `groups` is 1, or `in` (depthwise, out == in).
    """

    input: str
    output: str
    weight: str
    gain: str = ""
    bias: str = ""
    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    padding: int = 0
    groups: int = 1
    relu: bool = False
    activation_bits: int = 0
    source: str = ""

    def frames_out(self, frames: int) -> int:
        return max(0, (frames + 2 * self.padding - self.dilation * (self.kernel - 1) - 1) // self.stride + 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Affine:
    """`y = gain * x + bias` per channel: a BatchNorm that no convolution could take in."""

    input: str
    output: str
    gain: str
    bias: str
    relu: bool = False
    source: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Add:
    """`y = left + right`, then ReLU if `relu`."""

    left: str
    right: str
    output: str
    relu: bool = False
    source: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Relu:
    """`y = max(x, 0)`."""

    input: str
    output: str
    source: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    """`y = min(max(x, low), high)`: a hardtanh, a ReLU6, or a learned clip in front of a product.

    `low < high`, both finite and values of float32, which is what they are compared in.
    """

    input: str
    output: str
    low: float
    high: float
    source: str = ""


Op = Conv1d | Affine | Add | Relu | Clip
OPS: dict[str, type] = {"conv1d": Conv1d, "affine": Affine, "add": Add, "relu": Relu, "clip": Clip}
KINDS = {kind: name for name, kind in OPS.items()}
REQUIRED_ROLES: dict[type, tuple[str, ...]] = {Conv1d: ("weight",), Affine: ("gain", "bias")}
"""Constants that an operation cannot do without."""


def inputs_of(op: Op) -> tuple[str, ...]:
    """The values that `op` reads."""
    return (op.left, op.right) if isinstance(op, Add) else (op.input,)


def constants_of(op: Op) -> dict[str, str]:
    """Role -> name of the constants that `op` reads."""
    roles = {role: getattr(op, role, "") for role in ("weight", "gain", "bias")}
    return {role: name for role, name in roles.items() if name}


def vector_of(constants: Mapping[str, Constant], name: str) -> NDArray[np.float32]:
    """The gain or bias called `name`, which `Program.shapes` has found to be a float array."""
    value = constants[name]
    assert not isinstance(value, QTensor)
    return value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """One entry point: features (T, input_width) in, logits (T', output_width) out.

    `frames_per_step`: input frames from one output frame to the next.
    """

    input: str
    input_width: int
    output: str
    output_width: int
    frames_per_step: int
    ops: tuple[Op, ...]

    def shapes(self, frames: int, constants: Mapping[str, Constant]) -> dict[str, tuple[int, int]]:
        """(frames, width) of every value for `frames` input frames; ValueError where ops do not fit.

        This is the one place that checks a program: an op that reads what is not there yet, a
        constant that is missing or has the wrong shape, widths that differ, sizes beyond what the
        run time holds.
        """
        _require(
            self.output != self.input, f"the program's output is its input {self.input}; it computes nothing"
        )
        _require(1 <= self.input_width <= MAX_SIZE, f"input_width={self.input_width} must be 1 to {MAX_SIZE}")
        shapes = {self.input: (frames, self.input_width)}
        for index, op in enumerate(self.ops):
            where = f"op {index} ({KINDS[type(op)]} of {op.source or op.output})"
            for name in inputs_of(op):
                _require(name in shapes, f"{where} reads {name}, which no earlier op writes")
            for role in REQUIRED_ROLES.get(type(op), ()):
                _require(bool(getattr(op, role)), f"{where} names no {role}")
            for name in constants_of(op).values():
                _require(name in constants, f"{where} reads the constant {name}, which is missing")
            _require(op.output not in shapes, f"{where} writes {op.output} a second time")
            shapes[op.output] = _shape_out(op, shapes, constants, where)
            check_frames(shapes[op.output][0], where)
        _require(self.output in shapes, f"no op writes the output {self.output}")
        _require(
            shapes[self.output][1] == self.output_width,
            f"the output has {shapes[self.output][1]} columns, not {self.output_width}",
        )
        return shapes

    def to_json(self) -> dict:
        fields = {name: getattr(self, name) for name in _HEAD_FIELDS}
        return {**fields, "ops": [_op_to_json(op) for op in self.ops]}

    @classmethod
    def from_json(cls, document: Mapping) -> Program:
        """The program a packed file describes; ValueError on a key, type or op it does not know."""
        _require(isinstance(document, Mapping), "the program is not a JSON object")
        _require(
            set(document) == {*_HEAD_FIELDS, "ops"}, f"the program's keys are {sorted(map(str, document))}"
        )
        _require(isinstance(document["ops"], list), "the program's ops are not a list")
        ops = tuple(_op_from_json(entry) for entry in document["ops"])
        head = {name: document[name] for name in _HEAD_FIELDS}
        for name, value in head.items():
            expected = str if name in ("input", "output") else int
            _require(
                type(value) is expected and (value > 0 if isinstance(value, int) else value != ""),
                f"the program's {name}={value!r} is not a valid {expected.__name__}",
            )
        return cls(**head, ops=ops)


def check_frames(frames: int, where: str) -> None:
    """ValueError unless a value of the run time may have that many frames."""
    _require(frames <= MAX_FRAMES, f"{where} gives {frames} frames, more than {MAX_FRAMES}")


_HEAD_FIELDS = ("input", "input_width", "output", "output_width", "frames_per_step")


def _shape_out(
    op: Op, shapes: dict[str, tuple[int, int]], constants: Mapping[str, Constant], where: str
) -> tuple[int, int]:
    if isinstance(op, Add):
        left, right = shapes[op.left], shapes[op.right]
        _require(left == right, f"{where} adds {left} and {right} (frames, width)")
        return left
    frames, width = shapes[op.input]
    if isinstance(op, Clip):
        for field, end in (("low", op.low), ("high", op.high)):
            _require(_is_float32(end), f"{where} has {field}={end}; use a finite value of float32")
        _require(op.low < op.high, f"{where} has low={op.low} and high={op.high}; they must ascend")
    if isinstance(op, Conv1d):
        weight = constants[op.weight]
        _require(
            len(weight.shape) in (2, 3),
            f"{where} needs a weight (out, in, kernel), {op.weight} has {tuple(weight.shape)}",
        )
        out = weight.shape[0]
        for field, lowest in (("kernel", 1), ("stride", 1), ("dilation", 1), ("padding", 0)):
            size = getattr(op, field)
            _require(lowest <= size <= MAX_SIZE, f"{where} has {field}={size}; use {lowest} to {MAX_SIZE}")
        _require(1 <= out <= MAX_SIZE, f"{where} has {out} outputs; use 1 to {MAX_SIZE}")
        _require(
            op.groups in (1, width) and (op.groups == 1 or out == width),
            f"{where} has groups={op.groups} for {width} inputs; use 1, or depthwise",
        )
        kernel = () if op.kernel == 1 and len(weight.shape) == 2 else (op.kernel,)
        expected = (out, width // op.groups, *kernel)
        _require(
            tuple(weight.shape) == expected,
            f"{where} needs a weight of {expected}, {op.weight} has {tuple(weight.shape)}",
        )
        if op.activation_bits:
            is_pointwise = (op.kernel, op.stride, op.padding, op.groups) == (1, 1, 0, 1)
            _require(
                is_pointwise,
                f"{where} spans frames or channels; integer activations need kernel 1, stride 1, padding 0, groups 1",
            )
            _require(
                2 <= op.activation_bits <= 8,
                f"{where} has activation_bits={op.activation_bits}; use 0 or 2..8",
            )
            _require(isinstance(weight, QTensor), f"{where} needs a quantized weight for integer activations")
            _require(width <= MAX_INTEGER_INPUTS, f"{where} sums {width} products, which may overflow int32")
        frames, width = op.frames_out(frames), out
    for role in ("gain", "bias"):
        name = constants_of(op).get(role)
        if name:
            _require(
                not isinstance(constants[name], QTensor) and tuple(constants[name].shape) == (width,),
                f"{where} needs {role} of {(width,)}, {name} does not fit",
            )
    return frames, width


def _is_float32(value: float) -> bool:
    """Whether `value` is finite and float32 holds it exactly."""
    return math.isfinite(value) and abs(value) <= MAX_FLOAT32 and float(np.float32(value)) == value


def _op_to_json(op: Op) -> dict:
    """Fields that differ from their defaults, so that a header stays small."""
    fields = {
        field.name: getattr(op, field.name)
        for field in dataclasses.fields(op)
        if getattr(op, field.name) != field.default
    }
    return {"op": KINDS[type(op)], **fields}


def _op_from_json(entry: Mapping) -> Op:
    is_known = isinstance(entry, Mapping) and isinstance(entry.get("op"), str) and entry["op"] in OPS
    _require(is_known, f"unknown operation {entry!r:.80}")
    kind = OPS[entry["op"]]
    types_of = typing.get_type_hints(kind)
    values = {name: value for name, value in entry.items() if name != "op"}
    for name, value in values.items():
        _require(name in types_of, f"{entry['op']} has no field {name!r}")
        _require(
            type(value) is types_of[name], f"{entry['op']}.{name}={value!r} is not {types_of[name].__name__}"
        )
    required = {field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING}
    _require(required <= set(values), f"{entry['op']} lacks {sorted(required - set(values))}")
    return kind(**values)


def _require(holds: bool, complaint: str) -> None:
    if not holds:
        raise ValueError(complaint)
