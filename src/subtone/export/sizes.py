"""What of an exported graph depends on nothing but sizes: computed, for any number of rows.

Networks make masks and tables of positions out of `arange` and the number of frames. Such nodes read no
value of the utterance, so their values can be had for as many rows as one likes, and compared with what
an operation of ours says it computes: at two lengths, one of them longer than a minute or so of speech.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

MOST_ROWS = 2**31
"""Of an input, before `rows_for` gives up."""


class Sizes:
    """Values and shapes of a graph's nodes at any number of rows of its inputs.

    * `reached`: nodes that depend on the values of an input, not on its size alone.
    """

    def __init__(self, nodes: Iterable[Node], given: Iterable[Node], tensors: Mapping[Node, Tensor]) -> None:
        self._tensors = tensors
        self._known: dict[tuple[Node, int], Any] = {}
        inputs = list(given)
        self._symbols = {
            symbol
            for node in inputs
            for size in node.meta["val"].shape
            if not isinstance(size, int)
            for symbol in size.node.expr.free_symbols
        }
        self.reached = set(inputs)
        for node in nodes:
            if not is_size(node) and any(source in self.reached for source in node.all_input_nodes):
                self.reached.add(node)

    @property
    def is_free(self) -> bool:
        """Whether torch left the number of rows open; else nothing is known of other lengths."""
        return bool(self._symbols)

    def size(self, size: Any, rows: int) -> int:
        """A size of a traced shape, for inputs of `rows` rows."""
        if isinstance(size, int):
            return size
        return int(size.node.expr.subs(dict.fromkeys(self._symbols, rows)))

    def shape(self, node: Node, rows: int) -> tuple[int, ...]:
        return tuple(self.size(size, rows) for size in node.meta["val"].shape)

    def rows_for(self, node: Node, axis: int, least: int) -> int:
        """Rows of the inputs for which `node` has at least `least` along `axis`."""
        rows = 1
        while self.shape(node, rows)[axis] < least:
            rows *= 2
            if rows > MOST_ROWS:
                raise ValueError(f"{node.name} never has {least} rows")
        return rows

    def value(self, node: Node, rows: int, given: Mapping[Node, Tensor] | None = None) -> Any:
        """The value of `node` for inputs of `rows` rows, where it depends on sizes, constants and `given` alone."""
        known = self._known if given is None else {}
        return self._value(node, rows, given or {}, known)

    def _value(
        self, node: Node, rows: int, given: Mapping[Node, Tensor], known: dict[tuple[Node, int], Any]
    ) -> Any:
        if node in given:
            return given[node]
        if node in self._tensors:
            return self._tensors[node].detach()
        if (node, rows) not in known:
            if isinstance(node.meta.get("val"), torch.SymInt):
                known[node, rows] = self.size(node.meta["val"], rows)
            else:
                assert node not in self.reached or given, node
                args, kwargs = torch.fx.node.map_arg(
                    (node.args, node.kwargs), lambda source: self._value(source, rows, given, known)
                )
                known[node, rows] = node.target(*args, **kwargs)  # type: ignore[operator]
        return known[node, rows]


def is_size(node: Node) -> bool:
    """Whether `node` is a number: a size, or what was computed of sizes."""
    return not isinstance(node.meta.get("val"), Tensor | tuple | list)
