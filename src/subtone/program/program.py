"""A list of operations with its ends: what one entry point of a packed model computes."""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from subtone.program.convolutions import Conv1d, Conv2d, Stack
from subtone.program.integer_rowwise import IntegerEmbedding, IntegerFunction, IntegerGlu, IntegerLayerNorm
from subtone.program.integer_sequences import IntegerAttention, IntegerLstm, IntegerSinusoids
from subtone.program.integers import (
    MAX_LEVEL,
    Bounds,
    IntegerAdd,
    IntegerAffine,
    IntegerConv1d,
    IntegerConv2d,
    IntegerMultiply,
    IntegerOperation,
    Rescale,
)
from subtone.program.operation import (
    MAX_FRAMES,
    MAX_SIZE,
    UNLIMITED,
    Constants,
    constants_of,
    inputs_of,
    require,
    results_of,
)
from subtone.program.rowwise import (
    Add,
    Affine,
    Clip,
    Columns,
    Concat,
    Embedding,
    Function,
    Glu,
    LayerNorm,
    Multiply,
    Relu,
    Scale,
)
from subtone.program.sequences import Attention, ChannelNorm, Lstm, OverWindow, Sinusoids, SwitchedLstm
from subtone.qtensor import QTensor

Op = (
    Conv1d | Conv2d | Stack | Affine | Add | Multiply | Scale | Relu | Clip | Function | Glu | LayerNorm
    | Concat | Columns | Embedding | Attention | Sinusoids | ChannelNorm | Lstm | SwitchedLstm
    | IntegerConv1d | IntegerConv2d | IntegerAdd | IntegerMultiply | Rescale | IntegerAffine
    | IntegerFunction | IntegerGlu | IntegerLayerNorm | IntegerEmbedding
    | IntegerAttention | IntegerSinusoids | IntegerLstm
)  # fmt: skip
OPS: dict[str, type] = {
    "conv1d": Conv1d,
    "conv2d": Conv2d,
    "stack": Stack,
    "affine": Affine,
    "add": Add,
    "multiply": Multiply,
    "scale": Scale,
    "relu": Relu,
    "clip": Clip,
    "function": Function,
    "glu": Glu,
    "layer_norm": LayerNorm,
    "concat": Concat,
    "columns": Columns,
    "embedding": Embedding,
    "attention": Attention,
    "sinusoids": Sinusoids,
    "channel_norm": ChannelNorm,
    "lstm": Lstm,
    "switched_lstm": SwitchedLstm,
    "integer_conv1d": IntegerConv1d,
    "integer_conv2d": IntegerConv2d,
    "integer_add": IntegerAdd,
    "integer_multiply": IntegerMultiply,
    "rescale": Rescale,
    "integer_affine": IntegerAffine,
    "integer_function": IntegerFunction,
    "integer_glu": IntegerGlu,
    "integer_layer_norm": IntegerLayerNorm,
    "integer_embedding": IntegerEmbedding,
    "integer_attention": IntegerAttention,
    "integer_sinusoids": IntegerSinusoids,
    "integer_lstm": IntegerLstm,
}
MAX_TABLE_VALUES = 2**26
"""Of all tables of a program, which are computed when it is loaded: 256 MB."""
KINDS = {kind: name for name, kind in OPS.items()}


class Door(NamedTuple):
    """How features enter an integer-only program: `scale` real units a level, levels of `low` to `high`."""

    scale: float
    low: int
    high: int

    @property
    def bounds(self) -> Bounds:
        return Bounds(self.low, self.high)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """One entry point: features (T, input_width) in, logits (T', output_width) out.

    `frames_per_step`: input frames from one output frame to the next. `others`: further inputs, as
    (name, width), whose rows come with those of the first.

    `doors`, one for each input, make it integer-only: its values are int32 levels, no operation computes in
    floating point, and one of its output is worth `output_scale`.

    An operation may read a constant where it reads a value: a table, the same for every utterance. What
    operations make of tables alone is a table too, and is computed once, when the program is loaded.
    """

    input: str
    input_width: int
    output: str
    output_width: int
    frames_per_step: int
    ops: tuple[Op, ...]
    others: tuple[tuple[str, int], ...] = ()
    doors: tuple[Door, ...] = ()
    output_scale: float = 0.0

    @property
    def is_integer(self) -> bool:
        """Whether no floating-point number lies between its inputs and its output."""
        return bool(self.doors)

    @property
    def dtype(self) -> np.dtype:
        """Of every value: int32 levels, or float32."""
        return np.dtype(np.int32 if self.is_integer else np.float32)

    @property
    def inputs(self) -> dict[str, int]:
        """Name -> width of every input, in order."""
        return {self.input: self.input_width, **dict(self.others)}

    @functools.cached_property
    def tables(self) -> frozenset[str]:
        """What operations read or write that no input reaches: constants in a value's place, and what comes of them."""
        reached = set(self.inputs)
        for op in self.ops:
            if any(name in reached for name in inputs_of(op)):
                reached.update(results_of(op))
        named = {name for op in self.ops for name in (*inputs_of(op), *results_of(op))}
        return frozenset(named - reached)

    @property
    def constants_read(self) -> tuple[str, ...]:
        """The constants it needs in the order in which it first reads them, which is their order in a file.

        Of one operation first those in a value's place, then its own, each in the order of its fields.
        """
        there, read = set(self.inputs), {}
        for op in self.ops:
            read.update(dict.fromkeys(name for name in inputs_of(op) if name not in there))
            read.update(dict.fromkeys(constants_of(op).values()))
            there.update(results_of(op))
        return tuple(read)

    @property
    def obstacle(self) -> str:
        """The first operation that keeps the program from streaming, in words; "" if it can stream."""
        for op in self.ops:
            if not op.can_stream and op.output not in self.tables:
                return f"{KINDS[type(op)]} of {op.source or op.output} needs the whole utterance"
        return ""

    def float_parts(self, constants: Constants) -> list[str]:
        """Every operation that computes in floating point, and every constant that is or decodes to floats."""
        ops = [
            f"op {index} ({KINDS[type(op)]} of {op.source or op.output})"
            for index, op in enumerate(self.ops)
            if op.ARITHMETIC == "float"
        ]
        kept = {name: constants[name] for name in self.constants_read}
        floats = [
            f"constant {name}"
            for name, value in kept.items()
            if isinstance(value, QTensor) or (isinstance(value, np.ndarray) and value.dtype.kind != "i")
        ]
        ends = [] if self.is_integer else [f"input {name}" for name in self.inputs]
        return [*ends, *ops, *floats]

    def widths(self, constants: Constants) -> dict[str, int]:
        """Width of every value and table; ValueError where operations do not fit each other.

        This and `shapes` are the one place that checks a program: an op that reads what is not there
        yet, a constant that is missing or has the wrong shape, widths that differ, sizes beyond what
        the run time holds, sums of integers that may overflow.
        """
        return self._walked(constants)[0]

    def bounds(self, constants: Constants) -> dict[str, Bounds]:
        """Of every value and table of an integer-only program; ValueError as `widths`."""
        return self._walked(constants)[1]

    def _walked(self, constants: Constants) -> tuple[dict[str, int], dict[str, Bounds]]:
        self._check_ends()
        widths = dict(self.inputs)
        bounds = {name: door.bounds for name, door in zip(self.inputs, self.doors, strict=False)}
        for index, op in enumerate(self.ops):
            where = f"op {index} ({KINDS[type(op)]} of {op.source or op.output})"
            for field in (*op.REQUIRED, *op.VALUES, *op.RESULTS):
                is_named = field in op.OPTIONAL or getattr(op, field) != ""
                require(is_named, f"{where} names no {field}")
            own = {}
            for name in constants_of(op).values():
                require(name in constants, f"{where} reads the constant {name}, which is missing")
                own[name] = constants[name]  # a mapped file unpacks it anew whenever it is asked for
            for name in inputs_of(op):
                if name not in widths and name in constants:
                    widths[name] = _table_width(name, constants, where, is_integer=self.is_integer)
                    bounds |= {name: _table_bounds(name, constants)} if self.is_integer else {}
                require(name in widths, f"{where} reads {name}, which no earlier op writes")
            read = {field: getattr(op, field) for field in op.VALUES if getattr(op, field)}
            width = op.width({field: widths[name] for field, name in read.items()}, own, where)
            if isinstance(op, OverWindow) and op.positions:
                _check_kind_of_positions(op, where, is_table=op.positions in self.tables)
            self._check_arithmetic(op, where)
            if self.is_integer:
                seen = {field: bounds[name] for field, name in read.items()}
                of_results = _bounds_of(op, seen, own, where)
                bounds |= {getattr(op, field): each for field, each in of_results.items()}
            for name in results_of(op):
                require(name not in widths, f"{where} writes {name} a second time")
                widths[name] = width
        require(self.output in widths, f"no op writes the output {self.output}")
        require(self.output not in self.tables, f"the output {self.output} depends on no input")
        require(
            widths[self.output] == self.output_width,
            f"the output has {widths[self.output]} columns, not {self.output_width}",
        )
        return widths, bounds

    def _check_ends(self) -> None:
        require(
            self.output not in self.inputs,
            f"the program's output is its input {self.output}; it computes nothing",
        )
        require(len(self.inputs) == 1 + len(self.others), "the program names an input twice")
        for name, width in self.inputs.items():
            require(
                1 <= width <= MAX_SIZE,
                f"input_width={width} must be 1 to {MAX_SIZE}"
                if name == self.input
                else f"the input {name} has width {width}; use 1 to {MAX_SIZE}",
            )
        if not self.is_integer:
            return
        require(
            len(self.doors) == len(self.inputs),
            f"the program has {len(self.doors)} doors for {len(self.inputs)} inputs; give each one",
        )
        for name, door in zip(self.inputs, self.doors, strict=True):
            fits = is_scale(door.scale) and -MAX_LEVEL <= door.low < door.high <= MAX_LEVEL
            require(fits, f"the door of {name} is {tuple(door)}; use a scale above 0 and levels that ascend")
        require(is_scale(self.output_scale), f"output_scale={self.output_scale} must be finite and above 0")

    def _check_arithmetic(self, op: Op, where: str) -> None:
        if self.is_integer:
            require(
                op.ARITHMETIC != "float",
                f"{where} computes in floating point, which an integer-only program does not hold",
            )
        else:
            require(op.ARITHMETIC != "integer", f"{where} computes in integers, and the program has no doors")

    def shapes(self, frames: int, constants: Constants) -> dict[str, tuple[int, int]]:
        """(rows, width) of every value and table for an utterance of `frames` input rows; ValueError as `widths`."""
        widths = self.widths(constants)
        ends = dict.fromkeys(self.inputs, frames)
        ends |= {
            name: constants[name].shape[0] for name in widths if name in constants and name in self.tables
        }
        for index, op in enumerate(self.ops):
            where = f"op {index} ({KINDS[type(op)]} of {op.source or op.output})"
            read = {field: ends[getattr(op, field)] for field in op.VALUES if getattr(op, field)}
            joined = [rows for field, rows in read.items() if field not in op.OPTIONAL]
            require(len(set(joined)) == 1, f"{where} joins {' and '.join(map(str, joined))} rows")
            if isinstance(op, OverWindow) and op.positions:
                _check_positions(op, read, where)
            end = op.end(read, is_last=True)
            check_frames(end, where)
            ends |= dict.fromkeys(results_of(op), end)
        num_table_values = sum(ends[name] * widths[name] for name in self.tables)
        require(
            num_table_values <= MAX_TABLE_VALUES,
            f"the program's tables hold {num_table_values} values, more than {MAX_TABLE_VALUES}",
        )
        return {name: (ends[name], width) for name, width in widths.items()}

    def to_json(self) -> dict:
        fields = {name: getattr(self, name) for name in _HEAD_FIELDS}
        more: dict = {"others": [list(entry) for entry in self.others]} if self.others else {}
        if self.is_integer:
            more["doors"] = [list(door) for door in self.doors]
            more["output_scale"] = self.output_scale
        return {**fields, **more, "ops": [_op_to_json(op) for op in self.ops]}

    @classmethod
    def from_json(cls, document: Mapping) -> Program:
        """The program a packed file describes; ValueError on a key, type or op it does not know."""
        require(isinstance(document, Mapping), "the program is not a JSON object")
        keys = set(document) - {"others", "doors", "output_scale"}
        require(keys == {*_HEAD_FIELDS, "ops"}, f"the program's keys are {sorted(map(str, document))}")
        require(isinstance(document["ops"], list), "the program's ops are not a list")
        ops = tuple(_op_from_json(entry) for entry in document["ops"])
        head = {name: document[name] for name in _HEAD_FIELDS}
        for name, value in head.items():
            _require_head(name, value, str if name in ("input", "output") else int)
        return cls(
            **head,
            ops=ops,
            others=_others_from_json(document.get("others", [])),
            **_doors_from_json(document),
        )


def check_frames(frames: int, where: str) -> None:
    """ValueError unless a value of the run time may have that many frames."""
    require(frames <= MAX_FRAMES, f"{where} gives {frames} frames, more than {MAX_FRAMES}")


def is_scale(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value) and value > 0


def _bounds_of(op: Op, seen: Mapping[str, Bounds], constants: Constants, where: str) -> dict[str, Bounds]:
    """Of the results of `op`, by their fields; of one that moves levels those of all it reads."""
    if isinstance(op, IntegerOperation):
        return op.bounds(seen, constants, where)
    moved = Bounds(min(each.low for each in seen.values()), max(each.high for each in seen.values()))
    return dict.fromkeys(op.RESULTS, moved)


def _table_bounds(name: str, constants: Constants) -> Bounds:
    """Of a table, which `_table_width` has found to be one of int32."""
    table = constants[name]
    assert isinstance(table, np.ndarray)
    return Bounds(int(table.min()), int(table.max())) if table.size else Bounds(0, 0)


def _table_width(name: str, constants: Constants, where: str, *, is_integer: bool) -> int:
    table, kind = constants[name], "int32" if is_integer else "float"
    require(
        isinstance(table, np.ndarray) and table.dtype.name.startswith(kind) and len(table.shape) == 2,
        f"{where} reads the constant {name} as a table; that needs a{'n' * is_integer} {kind} array (rows, width)",
    )
    return table.shape[1]


def _check_kind_of_positions(op: OverWindow, where: str, *, is_table: bool) -> None:
    """Of limited contexts positions are the same for every utterance, a table; of unlimited ones never."""
    require(
        (op.left == UNLIMITED) == (op.right == UNLIMITED),
        f"{where} has left={op.left} and right={op.right}; with positions both are limited, or none",
    )
    require(
        is_table or op.left == UNLIMITED,
        f"{where} has left={op.left} and positions that depend on an input; make them of constants",
    )
    require(
        not is_table or op.left != UNLIMITED,
        f"{where} has left={op.left} and a table of positions; make them of the utterance's length",
    )


def _check_positions(op: OverWindow, rows: Mapping[str, int], where: str) -> None:
    expected = max(0, 2 * rows["query"] - 1) if op.left == UNLIMITED else op.left + op.right + 1
    require(
        rows["positions"] == expected, f"{where} has {rows['positions']} rows of positions, not {expected}"
    )


_HEAD_FIELDS = ("input", "input_width", "output", "output_width", "frames_per_step")


def _require_head(name: str, value: Any, expected: type) -> None:
    require(
        type(value) is expected and (value > 0 if isinstance(value, int) else value != ""),
        f"the program's {name}={value!r} is not a valid {expected.__name__}",
    )


def _others_from_json(document: Any) -> tuple[tuple[str, int], ...]:
    is_list = isinstance(document, list) and all(
        isinstance(entry, list) and len(entry) == 2 for entry in document
    )
    require(is_list, "the program's others are not a list of [name, width]")
    for name, width in document:
        _require_head("others", name, str)
        _require_head("others", width, int)
    return tuple((name, width) for name, width in document)


def _doors_from_json(document: Mapping) -> dict[str, Any]:
    """`doors` and `output_scale`: both, or none."""
    if "doors" not in document and "output_scale" not in document:
        return {}
    doors, scale = document.get("doors"), document.get("output_scale")
    entries = doors if isinstance(doors, list) else []
    fits = [isinstance(entry, list) and [*map(type, entry)] == [float, int, int] for entry in entries]
    require(bool(fits) and all(fits), "the program's doors are not a list of [scale, low, high]")
    require(type(scale) is float, f"the program's output_scale={scale!r} is not a float")
    return {"doors": tuple(Door(*entry) for entry in entries), "output_scale": scale}


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
    require(is_known, f"unknown operation {entry!r:.80}")
    kind = OPS[entry["op"]]
    types_of = _field_types(kind)
    values = {name: value for name, value in entry.items() if name != "op"}
    for name, value in values.items():
        require(name in types_of, f"{entry['op']} has no field {name!r}")
        require(
            type(value) is types_of[name], f"{entry['op']}.{name}={value!r} is not {types_of[name].__name__}"
        )
    required = {field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING}
    require(required <= set(values), f"{entry['op']} lacks {sorted(required - set(values))}")
    return kind(**values)


@functools.cache
def _field_types(kind: type) -> dict[str, type]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}
