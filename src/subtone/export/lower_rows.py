"""Torch's norms and functions, which work on each row by itself, as ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
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
    MAX_FLOAT32,
    Add,
    Affine,
    ChannelNorm,
    Clip,
    Function,
    Glu,
    LayerNorm,
    Multiply,
    Relu,
    Scale,
)

aten = torch.ops.aten


def _lower_batch_norm(graph: Graph, node: Node) -> None:
    gamma, beta, mean, variance = (
        None if arg is None else graph.array(arg).astype(np.float64) for arg in operands(node)[1:5]
    )
    assert mean is not None
    assert variance is not None
    gain = (1.0 if gamma is None else gamma) / np.sqrt(variance + operands(node)[6])
    bias = (0.0 if beta is None else beta) - mean * gain
    view = graph.columns(operands(node)[0], 1)
    _emit_affine(graph, node, view, gain, bias)
    graph.parts[node] = [graph.views[node]]


def _emit_affine(graph: Graph, node: Node, view: View, gain: Any, bias: Any) -> None:
    module = f"{graph.prefix}{source_of(node)}"
    owner = (
        module if f"{module}.gain" not in graph.constants else f"{graph.prefix}{node.name}"
    )  # it may run twice
    names = f"{owner}.gain", f"{owner}.shift"
    graph.constants |= {names[0]: gain.astype(np.float32), names[1]: bias.astype(np.float32)}
    op = Affine(input=view.name, output=node.name, gain=names[0], bias=names[1], source=source_of(node))
    graph.emit(node, op, like=view)


def _lower_layer_norm(graph: Graph, node: Node) -> None:
    options = arguments_of(node, normalized_shape=None, weight=None, bias=None, eps=1e-5)
    view = graph.columns(operands(node)[0], -1)
    if list(options["normalized_shape"]) != [view.width]:
        raise refuse(node, f"normalizes over {options['normalized_shape']}, not over a whole row")
    op = LayerNorm(
        input=view.name,
        output=node.name,
        epsilon=float(np.float32(options["eps"])),
        gain=graph.constant(options["weight"]) if options["weight"] is not None else "",
        bias=graph.constant(options["bias"]) if options["bias"] is not None else "",
        source=source_of(node),
    )
    graph.emit(node, op, like=view)


def _lower_group_norm(graph: Graph, node: Node) -> None:
    options = arguments_of(node, num_groups=None, weight=None, bias=None, eps=1e-5)
    view = graph.columns(operands(node)[0], 1)
    if options["num_groups"] != view.width:
        raise refuse(
            node, f"normalizes {view.width} channels in {options['num_groups']} groups, not each alone"
        )
    op = ChannelNorm(
        input=view.name,
        output=node.name,
        epsilon=float(np.float32(options["eps"])),
        gain=graph.constant(options["weight"]) if options["weight"] is not None else "",
        bias=graph.constant(options["bias"]) if options["bias"] is not None else "",
        source=source_of(node),
    )
    graph.emit(node, op, like=view)


def _lower_relu(graph: Graph, node: Node) -> None:
    view = graph.view(operands(node)[0])
    graph.emit(node, Relu(input=view.name, output=node.name, source=source_of(node)), like=view)


def _lower_function(function: str) -> Callable[[Graph, Node], None]:
    def lowering(graph: Graph, node: Node) -> None:
        view = graph.view(operands(node)[0])
        name = "gelu_tanh" if node.kwargs.get("approximate", "none") == "tanh" else function
        op = Function(input=view.name, output=node.name, function=name, source=source_of(node))
        graph.emit(node, op, like=view)

    return lowering


def _lower_clamp(graph: Graph, node: Node) -> None:
    """clamp(x, min=None, max=None) and hardtanh(x, min=-1, max=1), whose ends are numbers."""
    first, second = (-1.0, 1.0) if node.target is aten.hardtanh.default else (None, None)
    names = ("min_val", "max_val") if node.target is aten.hardtanh.default else ("min", "max")
    given = arguments_of(node, **dict(zip(names, (first, second), strict=True)))
    _emit_clip(graph, node, given[names[0]], given[names[1]])


def _lower_relu6(graph: Graph, node: Node) -> None:
    _emit_clip(graph, node, 0.0, 6.0)


def _emit_clip(graph: Graph, node: Node, low: float | None, high: float | None) -> None:
    """A Clip; an end that is open, or beyond float32, is float32's own."""
    ends = -MAX_FLOAT32 if low is None else low, MAX_FLOAT32 if high is None else high
    low, high = (float(np.float32(min(max(end, -MAX_FLOAT32), MAX_FLOAT32))) for end in ends)
    if not low < high:
        raise UnsupportedOperatorError(
            f"{source_of(node)} clips to {low} and {high}, which do not ascend; it cannot be packed"
        )
    view = graph.view(operands(node)[0])
    graph.emit(
        node, Clip(input=view.name, output=node.name, low=low, high=high, source=source_of(node)), like=view
    )


def _lower_add(graph: Graph, node: Node) -> None:
    left, right = operands(node)[:2]
    if node.kwargs or left not in graph.views or right not in graph.views:
        shift = right if left in graph.views else left
        if not node.kwargs and isinstance(shift, Node) and shift in graph.tensors:
            _lower_shift(graph, node, left if shift is right else right, shift)
            return
        raise UnsupportedOperatorError(
            f"{source_of(node)} adds something other than two results; it cannot be packed"
        )
    _join(graph, node, Add)


def _lower_shift(graph: Graph, node: Node, features: Any, shift: Node) -> None:
    """A vector added to every row, broadcast over them."""
    view = graph.view(features)
    if not view.has_columns(*(axis for axis in range(len(view.axes)) if axis != view.rows_axis)):
        raise refuse(node, "adds a constant to rows whose columns are in another order")
    shape = [1 if axis == view.rows_axis else size for axis, size in enumerate(sizes_of(node))]
    bias = torch.broadcast_to(graph.tensors[shift], shape).detach().to(torch.float32).reshape(-1).numpy()
    _emit_affine(graph, node, view, np.ones_like(bias), bias)


def _join(graph: Graph, node: Node, kind: type[Add] | type[Multiply]) -> None:
    left, right = (graph.view(source) for source in operands(node)[:2])
    if len(left.axes) != len(right.axes) or left.rows_axis != right.rows_axis:
        raise UnsupportedOperatorError(
            f"an operator reads {right.name} of {source_of(node)} along frames; only channels can be mixed"
        )
    if (left.factors, left.axes) != (right.factors, right.axes):
        raise refuse(node, "joins two results whose columns are in different orders")
    graph.emit(
        node, kind(left=left.name, right=right.name, output=node.name, source=source_of(node)), like=left
    )


def _lower_multiply(graph: Graph, node: Node) -> None:
    left, right = operands(node)[:2]
    if isinstance(right, Node) and right in graph.views and left in graph.views:
        _join(graph, node, Multiply)
        return
    factor = right if left in graph.views else left
    if isinstance(factor, Node) and factor in graph.tensors and graph.tensors[factor].numel() == 1:
        factor = graph.tensors[factor].item()
    if not isinstance(factor, int | float):
        raise refuse(node, "multiplies by something other than a number or a result")
    if node.target in (aten.div.Tensor, aten.div.Scalar):
        factor = 1 / factor
    view = graph.view(left if left in graph.views else right)
    op = Scale(input=view.name, output=node.name, factor=float(np.float32(factor)), source=source_of(node))
    graph.emit(node, op, like=view)


def _lower_glu(graph: Graph, node: Node) -> None:
    axis = arguments_of(node, dim=-1)["dim"]
    view = graph.columns(operands(node)[0], axis)
    axes: list[tuple[int, ...]] = [atoms if atoms == (ROWS,) else () for atoms in view.axes]
    axes[axis % len(axes)] = atoms_of(0, view.width // 2)
    op = Glu(input=view.name, output=node.name, source=source_of(node))
    graph.emit(node, op, factors=(view.width // 2,), axes=tuple(axes))


LOWERINGS: dict[Any, Callable[[Graph, Node], None]] = {
    aten._native_batch_norm_legit_no_training.default: _lower_batch_norm,
    aten.layer_norm.default: _lower_layer_norm,
    aten.group_norm.default: _lower_group_norm,
    aten.relu.default: _lower_relu,
    aten.relu6.default: _lower_relu6,
    aten.sigmoid.default: _lower_function("sigmoid"),
    aten.tanh.default: _lower_function("tanh"),
    aten.silu.default: _lower_function("silu"),
    aten.gelu.default: _lower_function("gelu"),
    aten.clamp.default: _lower_clamp,
    aten.hardtanh.default: _lower_clamp,
    aten.add.Tensor: _lower_add,
    aten.mul.Tensor: _lower_multiply,
    aten.mul.Scalar: _lower_multiply,
    aten.div.Tensor: _lower_multiply,
    aten.glu.default: _lower_glu,
}
