"""Random integer-only programs of functions, norms, attention and recurrences; as integer_programs.py."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tests.runtime.integer_programs import INT8, KINDS, IntegerProgram, multiplier_and_shift

from subtone.program import (
    FUNCTIONS,
    Bounds,
    Columns,
    Concat,
    Constant,
    IntegerAttention,
    IntegerEmbedding,
    IntegerFunction,
    IntegerGlu,
    IntegerLayerNorm,
    IntegerLstm,
    IntegerSinusoids,
    Program,
    Rescale,
)

INT16 = Bounds(-(2**15), 2**15 - 1)


class SequenceProgram(IntegerProgram):
    """`can_stream`: of operations that can, alone."""

    def __init__(self, rng: np.random.Generator, *, can_stream: bool) -> None:
        super().__init__(rng)
        self.can_stream = can_stream
        self.kinds = {**KINDS, **DRAWS, **({} if can_stream else WHOLE)}

    def program(self, num_ops: int) -> tuple[Program, dict[str, Constant]]:
        for index in range(num_ops):
            of_ours = DRAWS if self.can_stream else {**DRAWS, **WHOLE}
            kinds = of_ours if index % 2 == 0 else KINDS
            kinds[self.rng.choice(list(kinds))](self)
        return super().program(0)

    def within(self, bounds: Bounds, name: str = "") -> str:
        """`name`, or any value, brought within `bounds` where it is not."""
        name = name or self.value()
        own = self.bounds[name]
        if bounds.low <= own.low and own.high <= bounds.high:
            return name
        shift = max(1, (own.magnitude // max(1, bounds.magnitude)).bit_length())
        op = Rescale(
            input=name, output=self.new(), multiplier=1, shift=shift, low=bounds.low, high=bounds.high
        )
        return self.add(op, self.widths[name], bounds, of=name)

    def cut(self, name: str, multiple: int) -> str:
        """`name`, or as many columns of it twice, so that its width is a multiple."""
        width = self.widths[name]
        if width % multiple == 0:
            return name
        if width > multiple:
            op = Columns(input=name, output=self.new(), first=0, count=width - width % multiple)
            return self.add(op, op.count, self.bounds[name], of=name)
        while self.widths[name] % multiple:
            joined = Concat(left=name, right=name, output=self.new())
            name = self.add(joined, 2 * self.widths[name], self.bounds[name], of=name)
        return name

    def finish(self, most: int) -> dict[str, int]:
        """A multiplier and a shift that bring values of up to `most` to a few hundred, and the range drawn."""
        multiplier = int(self.rng.integers(2**29, 2**31)) * int(self.rng.choice([-1, 1]))
        shift = max(1, 30 + most.bit_length() - self.size(4, 14))
        return {"multiplier": multiplier, "shift": min(shift, 62)}


def draw_function(made: SequenceProgram) -> None:
    function, bounds = str(made.rng.choice(FUNCTIONS)), made.range()
    name = made.within(Bounds(-(2**15), 0) if function == "exp" else INT16)
    most = {"exp": 2**30, "sigmoid": 2**15, "tanh": 2**15}.get(function, made.bounds[name].magnitude << 15)
    op = IntegerFunction(
        input=name, output=made.new(), function=function, fraction_bits=made.size(0, 16), low=bounds.low,
        high=bounds.high, **made.finish(most),
    )  # fmt: skip
    made.add(op, made.widths[name], bounds, of=name)


def draw_glu(made: SequenceProgram) -> None:
    name, bounds = made.cut(made.within(INT16), 2), made.range()
    op = IntegerGlu(
        input=name, output=made.new(), fraction_bits=made.size(0, 16), low=bounds.low, high=bounds.high,
        **made.finish(made.bounds[name].magnitude << 15),
    )  # fmt: skip
    made.add(op, made.widths[name] // 2, bounds, of=name)


def draw_layer_norm(made: SequenceProgram) -> None:
    name, bounds, rng = made.within(INT16), made.range(), made.rng
    width = made.widths[name]
    gain = rng.integers(-(2**31) + 1, 2**31, width) >> rng.integers(0, 8, width)
    op = IntegerLayerNorm(
        input=name, output=made.new(), multiplier=made.constant(gain.astype(np.int32)), shift=made.size(40, 55),
        epsilon=int(2 ** rng.uniform(0, 40)) if rng.random() < 0.8 else 0,
        offset=made.constant(rng.integers(-(2**55), 2**55, width)) if rng.random() < 0.7 else "",
        low=bounds.low, high=bounds.high,
    )  # fmt: skip
    made.add(op, width, bounds, of=name)


def draw_embedding(made: SequenceProgram) -> None:
    name, bounds = made.value(), made.range()
    if made.widths[name] != 1:
        op = Columns(input=name, output=made.new(), first=made.size(0, made.widths[name] - 1), count=1)
        name = made.add(op, 1, made.bounds[name], of=name)
    width = made.size(1, 24)
    names = made.product((made.size(1, 40), width))
    names.pop("offset", None)
    embedding = IntegerEmbedding(input=name, output=made.new(), low=bounds.low, high=bounds.high, **names)
    made.add(embedding, width, bounds, of=name)


def score_fields(made: SequenceProgram, width: int, *, has_positions: bool) -> dict:
    """Biases, and scores of a few units of 2**-16 for levels drawn alike."""
    rng = made.rng
    fields: dict = {"content_multiplier": multiplier_and_shift(rng)[0], "score_shift": made.size(24, 40)}
    roles = ["content_bias"] + ["position_bias"] * has_positions
    for role in roles:
        if rng.random() < 0.6:
            fields[role] = made.constant(rng.integers(-200, 201, width).astype(np.int32))
    if has_positions:
        fields["position_multiplier"] = multiplier_and_shift(rng)[0]
    return fields


def draw_attention(made: SequenceProgram) -> None:
    left, right = made.size(0, 6), made.size(0, 3)
    add_attention(made, left, right, has_positions=bool(made.rng.random() < 0.6))


def draw_whole_attention(made: SequenceProgram) -> None:
    left, right = [(-1, -1), (-1, 2), (3, -1)][made.size(0, 2)]
    add_attention(made, left, right, has_positions=bool(left == right and made.rng.random() < 0.7))


def add_attention(made: SequenceProgram, left: int, right: int, *, has_positions: bool) -> None:
    bounds, width_of = made.range(), made.widths
    query = made.within(INT8)
    key, value = (made.within(INT8, made.twin(query)) for _ in range(2))
    width = width_of[query]
    positions = ""
    if has_positions and left >= 0:
        table = made.rng.integers(-127, 128, (left + right + 1, width)).astype(np.int32)
        positions = made.constant(table)
    elif has_positions:
        columns = width + width % 2
        made.add(sinusoids(made, query, columns), columns, INT8)
        positions = made.ops[-1].output
        if columns != width:
            positions = made.add(
                Columns(input=positions, output=made.new(), first=0, count=width), width, INT8, of=positions
            )
    heads = int(made.rng.choice([count for count in (1, 2, 3, 4) if width % count == 0]))
    op = IntegerAttention(
        query=query, key=key, value=value, positions=positions, output=made.new(), heads=heads, left=left, right=right,
        low=bounds.low, high=bounds.high, **made.finish(2**29),
        **score_fields(made, width, has_positions=bool(positions)),
    )  # fmt: skip
    made.add(op, width, bounds, of=query)


def turns(columns: int) -> np.ndarray:
    """Sines and cosines as runtime.sequence_ops.rotation has them, in units of 2**-30."""
    angles = [10000.0 ** (-column / columns) for column in range(0, columns, 2)]
    return np.array([[round(2**30 * np.sin(each)), round(2**30 * np.cos(each))] for each in angles], np.int32)


def sinusoids(made: SequenceProgram, name: str, columns: int) -> IntegerSinusoids:
    rotation = made.constant(turns(columns))
    return IntegerSinusoids(
        input=name, output=made.new(), columns=columns, rotation=rotation, low=-127, high=127
    )


def draw_sinusoids(made: SequenceProgram) -> None:
    columns = 2 * made.size(1, 8)
    made.add(sinusoids(made, made.value(), columns), columns, INT8)


def draw_lstm(made: SequenceProgram) -> None:
    name = made.cut(made.within(INT16), 4)
    units, limit = made.widths[name] // 4, int(made.rng.choice([127, 7, 1]))
    names = made.product((4 * units, units))
    names["shift"] = made.constant(made.rng.integers(22, 32, 4 * units).astype(np.int32))
    op = IntegerLstm(
        input=name, output=made.new(), cell=f"{made.new()}.cell", fraction_bits=made.size(6, 16), low=-limit, high=limit,
        **names,
    )  # fmt: skip
    made.add(op, units, Bounds(-limit, limit), of=name)
    if made.rng.random() < 0.5:
        cell = Rescale(input=op.cell, output=made.new(), multiplier=1, shift=12, low=-127, high=127)
        made.add(cell, units, INT8, of=name)


DRAWS: dict[str, Callable[[SequenceProgram], None]] = {
    "function": draw_function,
    "glu": draw_glu,
    "layer_norm": draw_layer_norm,
    "embedding": draw_embedding,
    "attention": draw_attention,
    "lstm": draw_lstm,
}
WHOLE: dict[str, Callable[[SequenceProgram], None]] = {
    "whole_attention": draw_whole_attention,
    "sinusoids": draw_sinusoids,
}


def integer_sequence_program(
    rng: np.random.Generator, num_ops: int, *, can_stream: bool
) -> tuple[Program, dict[str, Constant]]:
    """A random program and its constants."""
    return SequenceProgram(rng, can_stream=can_stream).program(num_ops)
