"""Workloads: what one call of a candidate computes, ours and a peer's alike.

`Products`: each by an input of its own, in turn. One of them stays in the cache that holds it, from call to call: hot. All
of M-I's come again only after the 60 MB (at 8 bits) of the others: cold, as in a stream. `Recurrences`: LSTM layers, each
with its input's product and one step from no state, of an input of its own too, so that each is checked by itself.

Letters: T steps, D units, K inputs of a layer.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from subtone.bench.products import LSTM_INPUTS, M_I, Granularity, Product
from subtone.bench.turns import Candidate
from subtone.program import Constants, Conv1d, Lstm, Op, Program
from subtone.runtime.engine import NativeEngine
from subtone.runtime.functions import sigmoid, tanh

NAME = "subtone"
ACTIVATION_BITS = 8
CHANNEL = Granularity("channel")
UNITS = 1024
"""Of every LSTM of M-I."""
CHECKED_STEPS = 4
"""The first step's hidden state is 0, which would hide what the recurrent weight does."""


@dataclasses.dataclass(frozen=True)
class Workload(abc.ABC):
    """`products` that one call multiplies, `name` of what they are; `calls`: of a peer that takes them one by one."""

    name: str
    products: tuple[Product, ...]

    KIND = "products"

    @property
    def frames(self) -> int:
        return self.products[0].frames

    @property
    def calls(self) -> int:
        return len(self.products)

    @property
    def macs(self) -> int:
        return sum(each.macs for each in self.products)

    def num_bytes(self, bits: int, granularity: Granularity) -> int:
        """That one call must read and write at least: packed weights with their scales, and float32 values."""
        weights = sum(each.weight(bits, granularity).num_bytes for each in self.products)
        return weights + sum(each.value_bytes for each in self.products)

    @abc.abstractmethod
    def expected(self, bits: int, granularity: Granularity = CHANNEL) -> list[NDArray[np.float32]]:
        """What a call gives, but for the rounding of activations."""

    @abc.abstractmethod
    def ours(self, bits: int, granularity: Granularity, *, threads: int) -> Candidate:
        """Our candidate, its overhead not known."""

    def checked(self) -> Workload:
        """The same weights, where results tell more."""
        return self

    @abc.abstractmethod
    def without_work(self) -> Workload:
        """One call of the same kind with next to nothing to do."""


@dataclasses.dataclass(frozen=True)
class Products(Workload):
    def expected(self, bits: int, granularity: Granularity = CHANNEL) -> list[NDArray[np.float32]]:
        return [each.x @ each.weight(bits, granularity).dequantize().T for each in self.products]

    def ours(self, bits: int, granularity: Granularity, *, threads: int) -> Candidate:
        constants = {f"w{index}": each.weight(bits, granularity) for index, each in enumerate(self.products)}
        ops = [_product(index, f"y{index}") for index in range(len(self.products))]
        inputs = [each.x for each in self.products]
        return _ours(ops, [op.output for op in ops], inputs, constants, bits, granularity, threads)

    def without_work(self) -> Workload:
        return Products("nothing", (Product(64, 256, 1),))  # no peer's format wants fewer inputs


@dataclasses.dataclass(frozen=True)
class Recurrences(Workload):
    """Layers; two products each, of the input (4 D, K) and of the hidden state (4 D, D); T frames."""

    KIND = "lstm"

    @property
    def calls(self) -> int:
        return len(self.layers)

    @property
    def layers(self) -> list[tuple[Product, Product]]:
        return list(zip(self.products[::2], self.products[1::2], strict=True))

    def expected(self, bits: int, granularity: Granularity = CHANNEL) -> list[NDArray[np.float32]]:
        results = []
        for of_input, of_hidden in self.layers:
            gates = of_input.x @ of_input.weight(bits, granularity).dequantize().T
            recurrent = of_hidden.weight(bits, granularity).dequantize().T
            hidden = cell = np.zeros(of_hidden.inputs, np.float32)
            rows = []
            for row in gates:
                i, f, g, o = np.split(row + hidden @ recurrent, 4)
                cell = sigmoid(f) * cell + sigmoid(i) * tanh(g)
                hidden = sigmoid(o) * tanh(cell)
                rows.append(hidden)
            results.append(np.stack(rows))
        return results

    def ours(self, bits: int, granularity: Granularity, *, threads: int) -> Candidate:
        constants: dict[str, object] = {}
        ops: list[Op] = []
        for index, (of_input, of_hidden) in enumerate(self.layers):
            constants[f"w{index}"] = of_input.weight(bits, granularity)
            constants[f"r{index}"] = of_hidden.weight(bits, granularity)
            recurrence = Lstm(
                input=f"g{index}", output=f"y{index}", cell=f"c{index}", weight=f"r{index}",
                activation_bits=ACTIVATION_BITS,
            )  # fmt: skip
            ops += [_product(index, f"g{index}"), recurrence]
        inputs = [of_input.x for of_input, _ in self.layers]
        outputs = [f"y{index}" for index in range(len(self.layers))]
        return _ours(ops, outputs, inputs, constants, bits, granularity, threads)  # type: ignore[arg-type]

    def checked(self) -> Workload:
        products = [dataclasses.replace(each, frames=CHECKED_STEPS) for each in self.products]
        return dataclasses.replace(self, products=tuple(products))

    def without_work(self) -> Workload:
        return Recurrences("nothing", (Product(4 * 16, 64, 1), Product(4 * 16, 16, 1)))


def hot(outputs: int, inputs: int, frames: int) -> Products:
    """One product, again and again."""
    product = Product(outputs, inputs, frames)
    return Products(str(product), (product,))


def cold(frames: int) -> Products:
    """Every product of a step of M-I in turn."""
    products = [Product(*shape, frames, place) for place, shape in enumerate(M_I)]
    return Products("M-I, cold", tuple(products))


def lstm_step(*, is_cold: bool) -> Recurrences:
    """One step of one layer of 1024 units, or of every layer of M-I in turn."""
    layers = LSTM_INPUTS if is_cold else (UNITS,)
    inputs = [width for layer in layers for width in (layer, UNITS)]
    products = [Product(4 * UNITS, width, 1, place) for place, width in enumerate(inputs)]
    return Recurrences(f"LSTM {UNITS}, {'cold' if is_cold else 'hot'}", tuple(products))


def _product(index: int, output: str) -> Conv1d:
    return Conv1d(input=f"x{index}", output=output, weight=f"w{index}", activation_bits=ACTIVATION_BITS)


def _ours(
    ops: Sequence[Op],
    outputs: Sequence[str],
    inputs: Sequence[NDArray[np.float32]],
    constants: Constants,
    bits: int,
    granularity: Granularity,
    threads: int,
) -> Candidate:
    """`ops`, which read x0, x1, ..., as a program; results are its values `outputs`, the last of which it gives."""
    (first, width), *others = [(f"x{index}", x.shape[1]) for index, x in enumerate(inputs)]
    program = Program(
        input=first,
        input_width=width,
        others=tuple(others),
        output=outputs[-1],
        output_width=_width_of(ops, outputs[-1], dict([(first, width), *others]), constants),
        frames_per_step=1,
        ops=tuple(ops),
    )
    engine = NativeEngine(program, constants, threads=threads)

    def results() -> list[NDArray[np.float32]]:
        values = engine.values(*inputs)
        return [values[name] for name in outputs]

    return Candidate(
        name=NAME, form=str(granularity), bits=bits, run=engine.repeatable(*inputs), results=results
    )


def _width_of(ops: Sequence[Op], output: str, widths: dict[str, int], constants: Constants) -> int:
    for op in ops:
        read = {field: widths[name] for field in op.VALUES if (name := getattr(op, field)) in widths}
        widths |= dict.fromkeys(
            (getattr(op, field) for field in op.RESULTS), op.width(read, constants, op.output)
        )
    return widths[output]
