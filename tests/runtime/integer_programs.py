"""Random integer-only programs, which whoever runs programs must run alike."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from subtone.program import (
    Bounds,
    Columns,
    Concat,
    Constant,
    Door,
    IntegerAdd,
    IntegerAffine,
    IntegerConv1d,
    IntegerConv2d,
    IntegerMultiply,
    IntegerWeight,
    Op,
    Program,
    Rescale,
    Stack,
)

INT8, UINT8, WIDE = Bounds(-127, 127), Bounds(0, 255), Bounds(-(2**20), 2**20)


def random_weight(rng: np.random.Generator, shape: tuple[int, ...], bits: int | None = None) -> IntegerWeight:
    """Any width, with a codebook or without; the outermost levels are among them."""
    bits = bits or int(rng.integers(1, 9))
    codebook, num_levels = None, 2**bits
    if rng.random() < 0.4:
        num_levels = int(rng.integers(1, 2**bits + 1))
        levels = np.sort(rng.integers(-128, 128, num_levels)).astype(np.int8)
        codebook = np.concatenate([levels, np.full(2**bits - num_levels, levels[-1], np.int8)])
    codes = rng.integers(0, num_levels, (shape[0], int(np.prod(shape[1:])))).astype(np.uint8)
    codes[0, 0] = 0
    return IntegerWeight(codes=codes, shape=shape, bits=bits, codebook=codebook, num_levels=num_levels)


def multiplier_and_shift(rng: np.random.Generator) -> tuple[int, int]:
    """A ratio of about 2**-12 to 1, of any mantissa and sign."""
    shift = int(rng.integers(31, 43))
    return int(rng.integers(2**28, 2**31)) * int(rng.choice([-1, 1])), shift


class IntegerProgram:
    """Grows a program by random operations; any earlier value of as many rows may be read again."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.door = Door(0.5, *(INT8 if rng.random() < 0.5 else UINT8))
        self.bounds = {"x": self.door.bounds}
        self.widths = {"x": self.size(1, 40)}
        self.lengths = {"x": 0}  # a number that differs where rows may differ
        self.ops: list[Op] = []
        self.constants: dict[str, Constant] = {}

    def size(self, least: int, most: int) -> int:
        return int(self.rng.integers(least, most + 1))

    def constant(self, value: Constant) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = value
        return name

    def value(self) -> str:
        names = list(self.widths)
        return names[-1] if self.rng.random() < 0.7 else str(self.rng.choice(names))

    def twin(self, name: str, *, same_width: bool = True) -> str:
        """A value of as many rows, maybe itself."""
        alike = [
            other
            for other in self.widths
            if self.lengths[other] == self.lengths[name]
            and (self.widths[other] == self.widths[name] or not same_width)
        ]
        return str(self.rng.choice(alike))

    def add(self, op: Op, width: int, bounds: Bounds, *, of: str = "") -> str:
        self.ops.append(op)
        self.widths[op.output], self.bounds[op.output] = width, bounds
        self.lengths[op.output] = self.lengths[of] if of else len(self.lengths)
        return op.output

    def new(self) -> str:
        return f"v{len(self.widths)}"

    def range(self) -> Bounds:
        return [INT8, UINT8, WIDE, Bounds(0, 127), Bounds(-3, 4)][self.size(0, 4)]

    def narrow(self) -> str:
        """A value that a product may read."""
        name = self.value()
        bounds = self.bounds[name]
        if bounds in (INT8, UINT8):
            return name
        target = INT8 if self.rng.random() < 0.5 else UINT8
        shift = max(1, (bounds.magnitude // 100).bit_length())
        op = Rescale(
            input=name, output=self.new(), multiplier=1, shift=shift, low=target.low, high=target.high
        )
        return self.add(op, self.widths[name], target, of=name)

    def product(self, shape: tuple[int, ...], *, can_group: bool = True) -> dict[str, str]:
        """Names of random integers for a product by a weight of `shape`."""
        rng, rows, columns = self.rng, shape[0], int(np.prod(shape[1:]))
        divisors = [size for size in (1, 2, 4) if columns % size == 0 and can_group]
        groups = int(rng.choice(divisors)) if divisors else 1
        multiplier = rng.integers(-(2**31) + 1, 2**31, (rows, groups)) >> rng.integers(0, 6, (rows, groups))
        names = {
            "weight": self.constant(random_weight(rng, shape)),
            "multiplier": self.constant(multiplier.astype(np.int32)),
            "shift": self.constant(rng.integers(33, 46, rows).astype(np.int32)),
        }
        if rng.random() < 0.5:
            names["correction"] = self.constant(rng.integers(-(2**37), 2**37, (rows, groups)))
        if rng.random() < 0.7:
            names["offset"] = self.constant(rng.integers(-(2**50), 2**50, rows))
        return names

    def program(self, num_ops: int) -> tuple[Program, dict[str, Constant]]:
        for _ in range(num_ops):
            KINDS[self.rng.choice(list(KINDS))](self)
        last = list(self.widths)[-1]
        op = Rescale(input=last, output="y", multiplier=3, shift=1, low=-(2**30), high=2**30)
        self.add(op, self.widths[last], Bounds(op.low, op.high), of=last)
        program = Program(
            input="x", input_width=self.widths["x"], output="y", output_width=self.widths["y"], frames_per_step=1,
            ops=tuple(self.ops), doors=(self.door,), output_scale=0.25,
        )  # fmt: skip
        return program, self.constants


def draw_conv1d(made: IntegerProgram) -> None:
    name = made.narrow()
    width = made.widths[name]
    kind = made.rng.choice(["pointwise", "depthwise", "dense", "grouped"])
    groups, outputs = (width, width) if kind == "depthwise" else (1, made.size(1, 70))
    if kind == "grouped" and width % 2 == 0:
        groups, outputs = 2, 2 * made.size(1, 20)
    kernel = 1 if kind == "pointwise" else made.size(1, 9)
    is_plain = kind == "pointwise" and made.rng.random() < 0.7
    taps = {} if is_plain else {
        "stride": made.size(1, 2), "dilation": made.size(1, 3), "padding": made.size(0, 6), "padding_behind": made.size(-1, 6)
    }  # fmt: skip
    shape = (
        (outputs, width // groups, kernel)
        if kernel > 1 or made.rng.random() < 0.5
        else (outputs, width // groups)
    )
    bounds = made.range()
    op = IntegerConv1d(
        input=name, output=made.new(), kernel=kernel, groups=groups, low=bounds.low, high=bounds.high,
        **taps, **made.product(shape, can_group=groups == 1),
    )  # fmt: skip
    made.add(op, outputs, bounds, of=name if is_plain else "")


def draw_conv2d(made: IntegerProgram) -> None:
    name = made.narrow()
    width = made.widths[name]
    channels = int(made.rng.choice([count for count in (1, 2, 3, 4) if width % count == 0]))
    groups = channels if made.rng.random() < 0.4 else 1
    outputs = groups * made.size(1, 4 if groups > 1 else 20)
    kernel, feature_kernel = made.size(1, 3), made.size(1, min(3, width // channels))
    bounds = made.range()
    op = IntegerConv2d(
        input=name, output=made.new(), in_channels=channels, kernel=kernel, stride=made.size(1, 2), padding=made.size(0, 2),
        feature_kernel=feature_kernel, feature_stride=made.size(1, 2), feature_padding=made.size(0, 2), groups=groups,
        low=bounds.low, high=bounds.high,
        **made.product((outputs, channels // groups, kernel, feature_kernel), can_group=groups == 1),
    )  # fmt: skip
    made.add(op, outputs * op.features_out(width // channels), bounds)


def draw_add(made: IntegerProgram) -> None:
    left = made.value()
    right, bounds = made.twin(left), made.range()
    (left_multiplier, shift), (right_multiplier, _) = (multiplier_and_shift(made.rng) for _ in range(2))
    op = IntegerAdd(
        left=left, right=right, output=made.new(), left_multiplier=left_multiplier, right_multiplier=right_multiplier,
        shift=shift, low=bounds.low, high=bounds.high,
    )  # fmt: skip
    made.add(op, made.widths[left], bounds, of=left)


def draw_multiply(made: IntegerProgram) -> None:
    left = made.narrow()
    right, bounds = made.twin(left), made.range()
    multiplier, shift = multiplier_and_shift(made.rng)
    op = IntegerMultiply(
        left=left,
        right=right,
        output=made.new(),
        multiplier=multiplier,
        shift=shift,
        low=bounds.low,
        high=bounds.high,
    )
    made.add(op, made.widths[left], bounds, of=left)


def draw_rescale(made: IntegerProgram) -> None:
    name, bounds = made.value(), made.range()
    multiplier, shift = multiplier_and_shift(made.rng)
    op = Rescale(
        input=name, output=made.new(), multiplier=multiplier, shift=shift, low=bounds.low, high=bounds.high
    )
    made.add(op, made.widths[name], bounds, of=name)


def draw_affine(made: IntegerProgram) -> None:
    name, bounds = made.value(), made.range()
    width, rng = made.widths[name], made.rng
    names = {
        "multiplier": made.constant(rng.integers(-(2**31) + 1, 2**31, width).astype(np.int32)),
        "offset": made.constant(rng.integers(-(2**55), 2**55, width)),
        "shift": made.constant(rng.integers(25, 50, width).astype(np.int32)),
    }
    op = IntegerAffine(input=name, output=made.new(), low=bounds.low, high=bounds.high, **names)
    made.add(op, width, bounds, of=name)


def draw_stack(made: IntegerProgram) -> None:
    name = made.value()
    op = Stack(input=name, output=made.new(), count=made.size(1, 3))
    made.add(op, op.count * made.widths[name], made.bounds[name])


def draw_concat(made: IntegerProgram) -> None:
    left = made.value()
    right = made.twin(left, same_width=False)
    both = made.bounds[left], made.bounds[right]
    bounds = Bounds(min(each.low for each in both), max(each.high for each in both))
    width = made.widths[left] + made.widths[right]
    if width <= 200:
        made.add(Concat(left=left, right=right, output=made.new()), width, bounds, of=left)


def draw_columns(made: IntegerProgram) -> None:
    name = made.value()
    first = made.size(0, made.widths[name] - 1)
    count = made.size(1, made.widths[name] - first)
    made.add(
        Columns(input=name, output=made.new(), first=first, count=count), count, made.bounds[name], of=name
    )


KINDS: dict[str, Callable[[IntegerProgram], None]] = {
    "conv1d": draw_conv1d,
    "conv2d": draw_conv2d,
    "add": draw_add,
    "multiply": draw_multiply,
    "rescale": draw_rescale,
    "affine": draw_affine,
    "stack": draw_stack,
    "concat": draw_concat,
    "columns": draw_columns,
}


def integer_program(rng: np.random.Generator, num_ops: int) -> tuple[Program, dict[str, Constant]]:
    """A random program and its constants."""
    return IntegerProgram(rng).program(num_ops)


def levels_for(rng: np.random.Generator, program: Program, rows: int) -> np.ndarray:
    """Rows of the input; its outermost levels are among them."""
    (door,) = program.doors
    x = rng.integers(door.low, door.high + 1, (rows, program.input_width)).astype(np.int32)
    if rows:
        x[0] = door.low
        x[-1] = door.high
    return x
