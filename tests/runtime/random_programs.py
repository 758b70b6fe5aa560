"""Random programs of all operations, which whoever runs programs must run alike."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from tests.runtime.small_programs import GRIDS, packed_weight

from subtone.program import (
    FUNCTIONS,
    UNLIMITED,
    Add,
    Affine,
    Attention,
    ChannelNorm,
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
    Sinusoids,
    Stack,
    SwitchedLstm,
)

MOST_COLUMNS = 80
EPSILON = float(np.float32(1e-5))


class RandomProgram:
    """Grows a program by random operations; any earlier value may be read, so that many are alive together.

    Values keep away from infinity, where no program is defined: what is squared, multiplied or put into
    an exponential goes through a clip first.

    * `shapes`: name -> (width, a number that differs where rows may differ) of every value so far.
    """

    def __init__(self, rng: np.random.Generator, *, num_inputs: int = 1, can_stream: bool = False) -> None:
        self.rng, self.can_stream = rng, can_stream
        self.inputs = {f"x{i or ''}": self.size(1, 40) for i in range(num_inputs)}
        self.shapes = {name: (width, 0) for name, width in self.inputs.items()}
        self.ops: list[Op] = []
        self.constants: dict[str, Constant] = {}

    def program(self, num_ops: int) -> Program:
        for _ in range(num_ops):
            KINDS[self.rng.choice(list(KINDS))](self)
        last = list(self.shapes)[-1]
        self.add(Scale(input=last, output="y", factor=1.0), *self.shapes[last])
        (input, width), *others = self.inputs.items()
        return Program(
            input=input, input_width=width, output="y", output_width=self.shapes["y"][0], frames_per_step=1,
            ops=tuple(self.ops), others=tuple(others),
        )  # fmt: skip

    # What operations are made of -------------------------------------------------------------

    def size(self, least: int, most: int) -> int:
        return int(self.rng.integers(least, most + 1))

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def new(self) -> str:
        return f"v{len(self.shapes)}"

    def add(self, op: Op, width: int, length: int) -> str:
        self.ops.append(op)
        self.shapes[op.output] = (width, length)
        return op.output

    def any_value(self) -> str:
        names = list(self.shapes)
        return names[-1] if self.chance(0.7) else str(self.rng.choice(names))

    def twin(self, name: str, *, same_width: bool = True) -> str:
        """A value of as many rows, maybe itself."""
        width, length = self.shapes[name]
        return str(
            self.rng.choice(
                [
                    n
                    for n, (w, rows) in self.shapes.items()
                    if rows == length and (w == width or not same_width)
                ]
            )
        )

    def divisor(self, number: int) -> int:
        return int(self.rng.choice([d for d in range(1, number + 1) if number % d == 0]))

    def floats(self, *shape: int) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = self.rng.normal(0, 1, shape).astype(np.float32)
        return name

    def weight(self, *shape: int) -> str:
        """Of an op that multiplies floats, or looks rows up: floats, or few bits."""
        return self.floats(*shape) if self.chance(0.4) else self.packed(*shape)

    def packed(self, *shape: int) -> str:
        name, taps = f"c{len(self.constants)}", math.prod(shape[2:])
        groups = 1 if shape[1] == 1 else taps * self.divisor(shape[1])
        bits, grid = self.size(1, 8), str(self.rng.choice(GRIDS))
        self.constants[name] = packed_weight(self.rng, shape, bits=bits, grid=grid, groups=groups)
        return name

    def maybe(self, probability: float, *shape: int) -> str:
        return self.floats(*shape) if self.chance(probability) else ""

    def tame(self, name: str, limit: float = 20.0) -> str:
        return self.add(Clip(input=name, output=self.new(), low=-limit, high=limit), *self.shapes[name])

    def product(self, input: str, out: int) -> str:
        width, length = self.shapes[input]
        is_integer = self.chance(0.7)
        op = Conv1d(
            input=input, output=self.new(), relu=self.chance(0.3),
            weight=self.packed(out, width) if is_integer else self.weight(out, width),
            activation_bits=self.size(2, 8) if is_integer else 0,
            gain=self.maybe(0.3, out), bias=self.maybe(0.6, out),
        )  # fmt: skip
        return self.add(op, out, length)

    def taps(self, most: int) -> dict[str, int]:
        kernel = self.size(1, most)
        return {
            "kernel": kernel,
            "padding": self.size(0, kernel + 1),
            "padding_behind": self.size(-1, kernel),
        }

    # Operations ------------------------------------------------------------------------------

    def products(self) -> None:
        self.product(self.any_value(), self.size(1, MOST_COLUMNS))

    def convolution(self) -> None:
        input = self.any_value()
        width, length = self.shapes[input]
        taps, dilation = self.taps(7), self.size(1, 3)
        groups = width if self.chance(0.4) else self.divisor(width)
        out = width if self.chance(0.5) else groups * self.size(1, max(1, MOST_COLUMNS // groups))
        is_same = self.chance(0.6)
        if is_same:
            taps |= {"padding": dilation * (taps["kernel"] - 1)}
            taps |= {"padding_behind": 0}
        stride = 1 if is_same else self.size(1, 3)
        op = Conv1d(
            input=input, output=self.new(), weight=self.weight(out, width // groups, taps["kernel"]),
            gain=self.maybe(0.3, out), bias=self.maybe(0.6, out), relu=self.chance(0.3), dilation=dilation,
            stride=stride, groups=groups, **taps,
        )  # fmt: skip
        self.add(op, out, length if is_same else len(self.ops) + 1)

    def image(self) -> None:
        input = self.any_value()
        width = self.shapes[input][0]
        channels = self.divisor(width)
        taps = {**self.taps(4), **{f"feature_{name}": size for name, size in self.taps(4).items()}}
        taps["feature_kernel"] = min(taps["feature_kernel"], width // channels)
        taps["feature_stride"] = self.size(1, 3)
        groups = channels if self.chance(0.5) else 1
        out = groups * self.size(1, 3) if groups > 1 else self.size(1, 20)
        op = Conv2d(
            input=input, output=self.new(), in_channels=channels, groups=groups, stride=self.size(1, 3),
            weight=self.weight(out, channels // groups, taps["kernel"], taps["feature_kernel"]),
            bias=self.maybe(0.6, out), relu=self.chance(0.3), **taps,
        )  # fmt: skip
        wide = out * op.features_out(width // channels)
        if wide <= 4 * MOST_COLUMNS:
            self.add(op, wide, len(self.ops) + 1)

    def affine(self) -> None:
        input = self.any_value()
        width, length = self.shapes[input]
        gain, bias = self.floats(width), self.floats(width)
        op = Affine(input=input, output=self.new(), gain=gain, bias=bias, relu=self.chance(0.3))
        self.add(op, width, length)

    def single(self) -> None:
        input = self.any_value()
        low, high = np.sort(self.rng.normal(0, 2, 2).astype(np.float32)).tolist()
        factor = float(np.float32(self.rng.normal()))
        op = [
            Relu(input=input, output=self.new()),
            Clip(input=input, output=self.new(), low=low, high=high),
            Scale(input=input, output=self.new(), factor=factor),
        ][self.size(0, 2)]
        self.add(op, *self.shapes[input])

    def function(self) -> None:
        input = self.tame(self.any_value())
        op = Function(input=input, output=self.new(), function=str(self.rng.choice(FUNCTIONS)))
        self.add(op, *self.shapes[input])

    def pair(self) -> None:
        left = self.any_value()
        width, length = self.shapes[left]
        kind = self.size(0, 2)
        if kind == 0:
            op: Op = Add(left=left, right=self.twin(left), output=self.new(), relu=self.chance(0.3))
        elif kind == 1:
            right = self.tame(self.twin(left))
            op = Multiply(left=left, right=right, output=self.new())
        else:
            right = self.twin(left, same_width=False)
            width += self.shapes[right][0]
            op = Concat(left=left, right=right, output=self.new())
        if width <= 4 * MOST_COLUMNS:
            self.add(op, width, length)

    def columns(self) -> None:
        input = self.any_value()
        width, length = self.shapes[input]
        count = self.size(1, width)
        op = Columns(input=input, output=self.new(), first=self.size(0, width - count), count=count)
        self.add(op, count, length)

    def glu(self) -> None:
        input = self.product(self.any_value(), 2 * self.size(1, 40))
        width, length = self.shapes[input]
        self.add(Glu(input=input, output=self.new()), width // 2, length)

    def stack(self) -> None:
        input, count = self.any_value(), self.size(1, 3)
        width = self.shapes[input][0] * count
        if width <= 2 * MOST_COLUMNS:
            self.add(Stack(input=input, output=self.new(), count=count), width, len(self.ops) + 1)

    def norm(self) -> None:
        input = self.tame(self.any_value(), 1e4)
        width, length = self.shapes[input]
        fields = {"gain": self.maybe(0.5, width), "bias": self.maybe(0.5, width), "epsilon": EPSILON}
        kind = LayerNorm if self.can_stream or self.chance(0.5) else ChannelNorm
        self.add(kind(input=input, output=self.new(), **fields), width, length)

    def embedding(self) -> None:
        input = self.product(self.any_value(), 1)
        width = self.size(1, 40)
        op = Embedding(input=input, output=self.new(), weight=self.weight(self.size(1, 9), width))
        self.add(op, width, self.shapes[input][1])

    def attention(self) -> None:
        query = self.tame(self.any_value())
        key, value = self.tame(self.twin(query), 5.0), self.twin(query)
        width, length = self.shapes[query]
        left, right, positions = self.size(0, 6), self.size(0, 3), ""
        if not self.can_stream and self.chance(0.6):
            left, right = (UNLIMITED, UNLIMITED) if self.chance(0.6) else (UNLIMITED, right)
        if (left, right) == (UNLIMITED, UNLIMITED):
            if width % 2 == 0 and self.chance(0.6):
                turns = Sinusoids(input=query, output=self.new(), columns=width)
                positions = self.product(self.add(turns, width, len(self.ops) + 1), width)
        elif UNLIMITED not in (left, right) and self.chance(0.6):
            positions = self.floats(left + right + 1, width)
        op = Attention(
            query=query, key=key, value=value, output=self.new(), positions=positions, left=left, right=right,
            heads=self.divisor(width), content_bias=self.maybe(0.5, width),
            position_bias=self.maybe(0.5, width) if positions else "",
        )  # fmt: skip
        self.add(op, width, length)

    def recurrent(self, prefix: str, units: int) -> dict:
        is_integer = self.chance(0.6)
        weight = self.packed(4 * units, units) if is_integer else self.weight(4 * units, units)
        bits = self.size(2, 8) if is_integer else 0
        return {
            f"{prefix}weight": weight,
            f"{prefix}bias": self.maybe(0.5, 4 * units),
            f"{prefix}activation_bits": bits,
        }

    def lstm(self) -> None:
        input, units = self.any_value(), self.size(1, 40)
        gates, length = self.product(input, 4 * units), self.shapes[input][1]
        if self.chance(0.6):
            output = self.new()
            op: Op = Lstm(input=gates, output=output, cell=f"{output}.c", **self.recurrent("", units))
        else:
            few = self.size(1, units)
            small, gate = self.product(input, 4 * few), self.product(input, 1)
            fields = {**self.recurrent("", units), **self.recurrent("small_", few)}
            output = self.new()
            op = SwitchedLstm(
                input=gates, small=small, gate=gate, output=output, cell=f"{output}.c", **fields
            )
        self.add(op, units, length)
        self.shapes[f"{output}.c"] = (units, length)


KINDS: dict[str, Callable[[RandomProgram], None]] = {
    name: vars(RandomProgram)[name]
    for name in (
        *(
            "products",
            "convolution",
            "image",
            "affine",
            "single",
            "function",
            "pair",
            "columns",
            "glu",
            "stack",
        ),
        *("norm", "embedding", "attention", "lstm"),
    )
}


def random_program(
    rng: np.random.Generator, num_ops: int, *, num_inputs: int = 1, can_stream: bool = False
) -> tuple[Program, dict[str, Constant]]:
    """A program of about `num_ops` random operations, and its constants."""
    made = RandomProgram(rng, num_inputs=num_inputs, can_stream=can_stream)
    return made.program(num_ops), made.constants
