"""Torch's products, convolutions and embeddings as ours."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from subtone.export.attention import table_view
from subtone.export.graph import (
    Graph,
    arguments_of,
    operands,
    refuse,
    sizes_of,
    source_of,
)
from subtone.export.views import BATCH_CHANNELS_ROWS, ROWS, View, atoms_of
from subtone.program import (
    Conv1d,
    Conv2d,
    Embedding,
)

aten = torch.ops.aten


def _lower_conv1d(graph: Graph, node: Node) -> None:
    options = arguments_of(node, weight=None, bias=None, stride=[1], padding=[0], dilation=[1], groups=1)
    weight = graph.weight(options["weight"])
    view = graph.columns(operands(node)[0], 1, allow_padding=True)
    padding = options["padding"][0]
    op = Conv1d(
        input=graph.clipped(node, view.name, weight),
        output=node.name,
        weight=weight,
        bias=graph.bias(options["bias"], weight),
        kernel=options["weight"].meta["val"].shape[2],
        stride=options["stride"][0],
        dilation=options["dilation"][0],
        groups=options["groups"],
        activation_bits=graph.activation_bits(weight),
        source=source_of(node),
        **_paddings("padding", padding, _row_padding(view, 2)),
    )
    graph.emit(node, op, factors=(sizes_of(node)[1],), axes=BATCH_CHANNELS_ROWS)


def _row_padding(view: View, axis: int) -> tuple[int, int]:
    assert view.rows_axis == axis
    return view.padding


def _paddings(name: str, own: int, around: tuple[int, int]) -> dict[str, Any]:
    """A convolution's padding on both sides, with what was padded around its input before."""
    front, behind = own + around[0], own + around[1]
    return {name: front} if front == behind else {name: front, f"{name}_behind": behind}


def _lower_conv2d(graph: Graph, node: Node) -> None:
    options = arguments_of(
        node, weight=None, bias=None, stride=[1, 1], padding=[0, 0], dilation=[1, 1], groups=1
    )
    view = graph.view(operands(node)[0], allow_padding=True)
    if not (view.rows_axis == 2 and view.has_columns(1, 3)):
        raise refuse(node, "convolves an image that is not (B, C, T, F)")
    if any(size != 1 for size in options["dilation"]):
        raise refuse(node, f"has dilation={options['dilation']} in two dimensions")
    stride, padding = _pair(options["stride"]), _pair(options["padding"])
    kernel = options["weight"].meta["val"].shape[2:]
    weight = graph.weight(options["weight"])
    op = Conv2d(
        input=view.name,
        output=node.name,
        weight=weight,
        bias=graph.bias(options["bias"], weight),
        in_channels=sizes_of(operands(node)[0])[1],
        kernel=kernel[0],
        stride=stride[0],
        feature_kernel=kernel[1],
        feature_stride=stride[1],
        groups=options["groups"],
        source=source_of(node),
        **_paddings("padding", padding[0], view.padding),
        **_paddings("feature_padding", padding[1], view.last_padding),
    )
    sizes = sizes_of(node)
    graph.emit(
        node,
        op,
        factors=(sizes[1], sizes[3]),
        axes=((), atoms_of(0, sizes[1]), (ROWS,), atoms_of(1, sizes[3])),
    )


def _pair(sizes: list[int]) -> list[int]:
    return list(sizes) * 2 if len(sizes) == 1 else list(sizes)


def _lower_pad(graph: Graph, node: Node) -> None:
    """Zeros around the rows, or around the last axis: a convolution takes them in."""
    options = arguments_of(node, pad=None, mode="constant", value=None)
    is_plain = options["mode"] == "constant" if node.target is aten.pad.default else True
    fill = (
        operands(node)[2]
        if node.target is aten.constant_pad_nd.default and len(operands(node)) > 2
        else options["value"]
    )
    if not is_plain or fill not in (None, 0, 0.0):
        raise refuse(node, "pads with something other than zeros")
    view = graph.view(operands(node)[0], allow_padding=True)
    amounts = list(operands(node)[1])
    for place in range(0, len(amounts), 2):
        axis = len(view.axes) - 1 - place // 2
        sides = amounts[place], amounts[place + 1]
        if sides == (0, 0):
            continue
        if min(sides) < 0:
            raise refuse(node, "pads by less than nothing")
        if view.axes[axis] == (ROWS,):
            view = dataclasses.replace(view, padding=_sum(view.padding, sides))
        elif axis == len(view.axes) - 1 and len(view.axes) == 4:
            view = dataclasses.replace(view, last_padding=_sum(view.last_padding, sides))
        else:
            raise refuse(node, "pads along channels")
    graph.views[node] = view


def _sum(left: tuple[int, int], right: tuple[int, int]) -> tuple[int, int]:
    return left[0] + right[0], left[1] + right[1]


def _lower_linear(graph: Graph, node: Node) -> None:
    options = arguments_of(node, weight=None, bias=None)
    source = operands(node)[0]
    if source in graph.tensors:
        _lower_table(graph, node, options)
        return
    if source not in graph.views and source not in graph.sizes.reached:
        table_view(graph, source)
    view = graph.columns(source, -1)
    op = graph.product(node, view.name, options["weight"], options["bias"], node.name)
    width = sizes_of(node)[-1]
    graph.emit(node, op, factors=(width,), axes=(*view.axes[:-1], atoms_of(0, width)))


def _lower_table(graph: Graph, node: Node, options: dict[str, Any]) -> None:
    """A product with a constant: projected positions, which the run time computes once."""
    sizes = sizes_of(node)
    name = graph.constant(operands(node)[0])
    table = graph.constants[name]
    assert isinstance(table, np.ndarray)
    graph.constants[name] = table.reshape(-1, table.shape[-1])
    op = graph.product(node, name, options["weight"], options["bias"], node.name)
    graph.ops.append(op)
    axes = (*(() for _ in sizes[:-2]), (ROWS,), (0,))
    graph.views[node] = View(node.name, (sizes[-1],), axes, sizes[-2])


def _lower_embedding(graph: Graph, node: Node) -> None:
    table, index = operands(node)[:2]
    view = graph.view(index)
    op = Embedding(
        input=view.name,
        output=node.name,
        weight=graph.weight(table),
        source=source_of(node),
    )
    graph.emit(node, op, factors=(sizes_of(node)[-1],), axes=(*view.axes, (0,)))


LOWERINGS: dict[Any, Callable[[Graph, Node], None]] = {
    aten.conv1d.default: _lower_conv1d,
    aten.conv2d.default: _lower_conv2d,
    aten.pad.default: _lower_pad,
    aten.constant_pad_nd.default: _lower_pad,
    aten.linear.default: _lower_linear,
    aten.embedding.default: _lower_embedding,
}
