"""Programs of every operation that can stream, drawn at random."""

from __future__ import annotations

import numpy as np
from tests.runtime.small_programs import GRIDS, packed_weight

from subtone.program import (
    FUNCTIONS,
    SAME,
    Add,
    Affine,
    Attention,
    Clip,
    Columns,
    Concat,
    Constant,
    Conv1d,
    Conv2d,
    Embedding,
    Function,
    Glu,
    LayerNorm,
    Lstm,
    Multiply,
    Op,
    Program,
    Relu,
    Scale,
    Stack,
    SwitchedLstm,
)


class Drawn:
    """A program that grows. Values of one `kind` have equally many rows, however late some of them come."""

    def __init__(self, rng: np.random.Generator, inputs: dict[str, int]) -> None:
        self.rng = rng
        self.inputs = inputs
        self.widths = dict(inputs)
        self.kinds: dict[str, tuple] = dict.fromkeys(inputs, ())
        self.ops: list[Op] = []
        self.constants: dict[str, Constant] = {}

    def new(self, kind: type, width: int, of: tuple, **fields) -> str:
        """Adds an operation that writes a new value, and gives its name."""
        name = f"v{len(self.ops)}"
        self.ops.append(kind(output=name, **fields))
        self.widths[name], self.kinds[name] = width, of
        return name

    def floats(self, *shape: int) -> str:
        """A new constant; a weight keeps the size of what it meets."""
        name = f"c{len(self.constants)}"
        scale = 1 / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 1
        self.constants[name] = self.rng.normal(0, scale, shape).astype(np.float32)
        return name

    def packed(self, *shape: int) -> str:
        name = f"c{len(self.constants)}"
        bits, grid = int(self.rng.integers(2, 9)), str(self.rng.choice(GRIDS))
        self.constants[name] = packed_weight(self.rng, shape, bits=bits, grid=grid)
        return name

    def any_value(self) -> str:
        names = list(self.widths)
        return names[-1] if self.rng.random() < 0.6 else str(self.rng.choice(names))

    def twin(self, name: str) -> str:
        """A value with as many rows, often the same."""
        return str(self.rng.choice([other for other in self.kinds if self.kinds[other] == self.kinds[name]]))

    def product(self, name: str, width: int) -> str:
        """`name` in another width, by a product in float or in integers."""
        is_integer = self.rng.random() < 0.5
        weight = (self.packed if is_integer else self.floats)(width, self.widths[name])
        bits = int(self.rng.integers(4, 9)) if is_integer else 0
        return self.new(Conv1d, width, self.kinds[name], input=name, weight=weight, activation_bits=bits)

    def tame(self, name: str) -> str:
        return self.new(Clip, self.widths[name], self.kinds[name], input=name, low=-4.0, high=4.0)

    def program(self) -> Program:
        first, *others = self.inputs.items()
        last = self.ops[-1].output
        return Program(
            input=first[0], input_width=first[1], output=last, output_width=self.widths[last],
            frames_per_step=1, ops=tuple(self.ops), others=tuple(others),
        )  # fmt: skip


def span(rng: np.random.Generator) -> tuple[dict[str, int], bool]:
    """Kernel, stride and paddings; whether there are as many rows behind it as in front of it."""
    kernel, dilation = int(rng.integers(1, 5)), int(rng.integers(1, 3))
    reach = dilation * (kernel - 1)
    fields = {"kernel": kernel, "dilation": dilation}
    if rng.random() < 0.6:  # as many rows: causal, centred, or seeing ahead only
        front = int(rng.integers(0, reach + 1))
        return {**fields, "padding": front, "padding_behind": reach - front}, True
    paddings = {"padding": int(rng.integers(0, 6)), "padding_behind": int(rng.integers(SAME, 6))}
    return {**fields, "stride": int(rng.integers(1, 4)), **paddings}, False


def conv1d(made: Drawn) -> str:
    name, (fields, is_same) = made.any_value(), span(made.rng)
    width = made.widths[name]
    groups = int(made.rng.choice([d for d in range(1, width + 1) if width % d == 0]))
    out = groups * int(made.rng.integers(1, 3))
    shape = (out, width // groups, fields["kernel"])
    weight = made.packed(*shape) if made.rng.random() < 0.3 else made.floats(*shape)
    of = made.kinds[name] if is_same else (*made.kinds[name], tuple(fields.items()))
    bias = made.floats(out)
    return made.new(Conv1d, out, of, input=name, weight=weight, bias=bias, groups=groups, relu=True, **fields)


def conv2d(made: Drawn) -> str:
    name, (fields, is_same) = made.any_value(), span(made.rng)
    width = made.widths[name]
    if fields.pop("dilation") > 1:  # a Conv2d has none
        fields, is_same = {"kernel": fields["kernel"], "padding": 1}, False
    channels = int(made.rng.choice([d for d in range(1, width + 1) if width % d == 0]))
    features = width // channels
    feature_kernel = int(made.rng.integers(1, min(3, features) + 1))
    out, groups = (channels, channels) if made.rng.random() < 0.5 else (2, 1)
    weight = made.floats(out, channels // groups, fields["kernel"], feature_kernel)
    op = {
        "in_channels": channels,
        "feature_kernel": feature_kernel,
        "feature_stride": 2,
        "groups": groups,
        **fields,
    }
    features_out = (features - feature_kernel) // 2 + 1
    of = made.kinds[name] if is_same else (*made.kinds[name], tuple(fields.items()), "2d")
    return made.new(Conv2d, out * features_out, of, input=name, weight=weight, **op)


def stack(made: Drawn) -> str:
    name, count = made.any_value(), int(made.rng.integers(1, 4))
    return made.new(Stack, count * made.widths[name], (*made.kinds[name], count), input=name, count=count)


def rowwise(made: Drawn) -> str:
    name = made.any_value()
    width, of = made.widths[name], made.kinds[name]
    kind = made.rng.choice(["affine", "scale", "relu", "function", "norm", "columns", "glu", "embedding"])
    if kind == "affine":
        return made.new(Affine, width, of, input=name, gain=made.floats(width), bias=made.floats(width))
    if kind == "scale":
        return made.new(Scale, width, of, input=name, factor=-0.75)
    if kind == "function":
        function = str(made.rng.choice(FUNCTIONS))
        return made.new(Function, width, of, input=made.tame(name), function=function)
    if kind == "norm":
        return made.new(LayerNorm, width, of, input=name, epsilon=2.0**-17, gain=made.floats(width))
    if kind == "columns":
        first = int(made.rng.integers(0, width))
        return made.new(Columns, width - first, of, input=name, first=first, count=width - first)
    if kind == "glu":
        return made.new(Glu, 3, of, input=made.product(name, 6))
    if kind == "embedding":
        one = made.new(Columns, 1, of, input=name, first=0, count=1)
        return made.new(Embedding, 4, of, input=one, weight=made.floats(3, 4))
    return made.new(Relu, width, of, input=name)


def joined(made: Drawn) -> str:
    left = made.any_value()
    right, of = made.twin(left), made.kinds[left]
    kind = made.rng.choice([Add, Multiply, Concat])
    if kind is Concat:
        return made.new(Concat, made.widths[left] + made.widths[right], of, left=left, right=right)
    right = made.product(right, made.widths[left])
    made.new(kind, made.widths[left], of, left=left, right=right)
    return made.tame(made.ops[-1].output)


def attention(made: Drawn) -> str:
    width, heads = 4, int(made.rng.choice([1, 2, 4]))
    query = made.any_value()
    names = [made.product(name, width) for name in (query, made.twin(query), made.twin(query))]
    left, right = (int(side) for side in made.rng.integers(0, 4, 2))
    fields = {}
    if made.rng.random() < 0.6:
        table = made.floats(left + right + 1, 3)
        fields["positions"] = made.new(Conv1d, width, ("table",), input=table, weight=made.floats(width, 3))
        del made.widths[fields["positions"]], made.kinds[fields["positions"]]  # no value to go on from
        fields |= {"content_bias": made.floats(width), "position_bias": made.floats(width)}
    sides = {"left": left, "right": right, "heads": heads}
    return made.new(
        Attention, width, made.kinds[query], query=names[0], key=names[1], value=names[2], **sides, **fields
    )


def recurrence(made: Drawn) -> str:
    name, units = made.any_value(), 3
    is_integer = made.rng.random() < 0.5
    weight = (made.packed if is_integer else made.floats)(4 * units, units)
    gates = {"weight": weight, "bias": made.floats(4 * units), "activation_bits": 8 * is_integer}
    cell, of = f"cell{len(made.ops)}", made.kinds[name]
    fields = {"input": made.product(name, 4 * units), "cell": cell, **gates}
    if made.rng.random() < 0.5:
        written = made.new(Lstm, units, of, **fields)
    else:
        gate, small = made.product(made.twin(name), 1), made.product(made.twin(name), 8)
        of_small = {
            "small": small,
            "gate": gate,
            "small_weight": made.packed(8, 2),
            "small_activation_bits": 8,
        }
        written = made.new(SwitchedLstm, units, of, **fields, **of_small)
    made.widths[cell], made.kinds[cell] = units, of
    return written


DRAWS = (conv1d, conv2d, stack, rowwise, rowwise, joined, attention, recurrence)
WIDEST = 24


def streaming_program(rng: np.random.Generator, num_draws: int) -> tuple[Program, dict[str, Constant]]:
    """A program that can stream, of one or two inputs, and its constants; wide values are narrowed again."""
    inputs = {"x": int(rng.integers(1, 7))} | ({"z": 2} if rng.random() < 0.3 else {})
    made = Drawn(rng, inputs)
    for _ in range(num_draws):
        written = rng.choice(DRAWS)(made)
        if made.widths[written] > WIDEST:
            made.product(written, 5)
    return made.program(), made.constants


def inputs_for(rng: np.random.Generator, program: Program, rows: int) -> list[np.ndarray]:
    return [rng.normal(0, 1, (rows, width)).astype(np.float32) for width in program.inputs.values()]
