"""Torch's transposes, reshapes and cuts: most change a view and compute nothing."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from subtone.export.graph import (
    Graph,
    UnsupportedOperatorError,
    arguments_of,
    operands,
    refuse,
    sizes_of,
    source_of,
)
from subtone.export.views import ROWS, View, atoms_of
from subtone.program import (
    Columns,
    Concat,
    Conv1d,
)

aten = torch.ops.aten


def _lower_transpose(graph: Graph, node: Node) -> None:
    view = graph.view(operands(node)[0])
    first, second = (axis % len(view.axes) for axis in operands(node)[1:3])
    if 0 in (first, second) and view.axes[0] == () and (ROWS,) in (view.axes[first], view.axes[second]):
        raise UnsupportedOperatorError(
            f"{source_of(node)} transposes {sorted((first, second))}; only channels and frames can change places"
        )
    graph.views[node] = view.transposed(first, second)


def _lower_permute(graph: Graph, node: Node) -> None:
    view = graph.view(operands(node)[0])
    graph.views[node] = view.permuted(tuple(axis % len(view.axes) for axis in operands(node)[1]))


def _lower_reshape(graph: Graph, node: Node) -> None:
    view = graph.view(operands(node)[0])
    reshaped = view.reshaped(sizes_of(node))
    if reshaped is None:
        raise refuse(node, f"reshapes to {sizes_of(node)}, which cuts or mixes frames")
    graph.views[node] = reshaped


def _lower_identity(graph: Graph, node: Node) -> None:
    graph.views[node] = graph.view(operands(node)[0], allow_padding=True)


def _lower_getitem(graph: Graph, node: Node) -> None:
    source, index = operands(node)
    parts = graph.parts[source]
    part = parts[index] if index < len(parts) else None
    if part is not None:
        graph.views[node] = part
    elif node.users:
        raise UnsupportedOperatorError(
            f"result {index} of {source.name} in {source_of(node)} cannot be packed"
        )


def _lower_slice(graph: Graph, node: Node) -> None:
    options = arguments_of(node, dim=0, start=None, end=None, step=1)
    view, axis = graph.view(operands(node)[0]), options["dim"]
    size, taken = sizes_of(operands(node)[0])[axis], sizes_of(node)[axis]
    if taken == size:
        graph.views[node] = view
    elif options["step"] == 1 and view.has_columns(axis):
        first = options["start"] or 0
        _emit_columns(graph, node, view, axis, first % size if first < 0 else first, taken, node.name)
    elif options["step"] == 1 and view.axes[axis] == (ROWS,) and not options["start"]:
        _drop_last_rows(graph, node, view, size - taken)
    else:
        raise refuse(node, "takes some of the frames")


def _emit_columns(
    graph: Graph, node: Node, view: View, axis: int, first: int, count: int, output: str
) -> View:
    axes: list[tuple[int, ...]] = [atoms if atoms == (ROWS,) else () for atoms in view.axes]
    axes[axis] = atoms_of(0, count)
    op = Columns(input=view.name, output=output, first=first, count=count, source=source_of(node))
    graph.ops.append(op)
    graph.views[node] = View(output, (count,), tuple(axes), view.num_rows)
    return graph.views[node]


def _drop_last_rows(graph: Graph, node: Node, view: View, count: int) -> None:
    """A convolution that is padded too far behind, and cut: padded less."""
    op = graph.ops[-1]
    behind = None
    if isinstance(op, Conv1d) and op.output == view.name and op.stride == 1:
        behind = (op.padding if op.padding_behind < 0 else op.padding_behind) - count
    if behind is None or behind < 0:
        raise refuse(node, "drops its last frames")
    assert isinstance(op, Conv1d)
    graph.ops[-1] = dataclasses.replace(op, padding_behind=behind)
    graph.views[node] = dataclasses.replace(view, num_rows=view.num_rows - count)


def _lower_split(graph: Graph, node: Node) -> None:
    options = arguments_of(node, sizes=None, dim=0)
    view = graph.view(operands(node)[0])
    axis = options["dim"] % len(view.axes)
    if not view.has_columns(axis):
        raise refuse(node, "splits frames")
    sizes = options["sizes"]
    if isinstance(sizes, int):
        sizes = [min(sizes, view.width - first) for first in range(0, view.width, sizes)]
    first = 0
    parts: list[View | None] = []
    for index, count in enumerate(sizes):
        parts.append(_emit_columns(graph, node, view, axis, first, count, f"{node.name}.{index}"))
        first += count
    graph.parts[node] = parts


def _lower_concat(graph: Graph, node: Node) -> None:
    views = [graph.view(source) for source in operands(node)[0]]
    axis = arguments_of(node, dim=0)["dim"] % len(views[0].axes)
    if not all(view.has_columns(axis) for view in views):
        raise refuse(node, "concatenates frames")
    left, axes = views[0], list(views[0].axes)
    for index, right in enumerate(views[1:]):
        is_final = index == len(views) - 2
        output, width = node.name if is_final else f"{node.name}.{index}", left.width + right.width
        op = Concat(left=left.name, right=right.name, output=output, source=source_of(node))
        graph.ops.append(op)
        axes[axis] = (0,)
        left = View(output, (width,), tuple(axes), left.num_rows)
    graph.views[node] = left


LOWERINGS: dict[Any, Callable[[Graph, Node], None]] = {
    operator.getitem: _lower_getitem,
    aten.transpose.int: _lower_transpose,
    aten.permute.default: _lower_permute,
    aten.view.default: _lower_reshape,
    aten._unsafe_view.default: _lower_reshape,
    aten.reshape.default: _lower_reshape,
    aten.flatten.using_ints: _lower_reshape,
    aten.squeeze.dim: _lower_reshape,
    aten.squeeze.dims: _lower_reshape,
    aten.unsqueeze.default: _lower_reshape,
    aten.clone.default: _lower_identity,
    aten.contiguous.default: _lower_identity,
    aten.dropout.default: _lower_identity,
    aten.slice.Tensor: _lower_slice,
    aten.split.Tensor: _lower_split,
    aten.split_with_sizes.default: _lower_split,
    aten.cat.default: _lower_concat,
}
