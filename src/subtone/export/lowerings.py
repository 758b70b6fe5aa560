"""One function per operator of torch: the operations of ours that compute it."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.fx import Node

import subtone.models.operators  # noqa: F401  registers our own operators with torch
from subtone.export.attention import lower_dot_product, table_view
from subtone.export.graph import (
    Graph,
    UnsupportedOperatorError,
    arguments_of,
    operands,
    refuse,
    sizes_of,
    source_of,
)
from subtone.export.views import ROWS, View
from subtone.program import (
    MAX_FLOAT32,
    Add,
    Affine,
    Attention,
    ChannelNorm,
    Clip,
    Columns,
    Concat,
    Conv1d,
    Conv2d,
    Embedding,
    Function,
    Glu,
    LayerNorm,
    Lstm,
    Multiply,
    Op,
    Relu,
    Scale,
    Sinusoids,
    Stack,
    SwitchedLstm,
)

aten = torch.ops.aten
BATCH_CHANNELS_ROWS = ((), (0,), (ROWS,))
BATCH_ROWS_CHANNELS = ((), (ROWS,), (0,))


# Products and convolutions -----------------------------------------------------------------


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
        node, op, factors=(sizes[1], sizes[3]), axes=((), _atom(0, sizes[1]), (ROWS,), _atom(1, sizes[3]))
    )


def _pair(sizes: list[int]) -> list[int]:
    return list(sizes) * 2 if len(sizes) == 1 else list(sizes)


def _atom(factor: int, size: int) -> tuple[int, ...]:
    return (factor,) if size > 1 else ()


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
    graph.emit(node, op, factors=(width,), axes=(*view.axes[:-1], _atom(0, width)))


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


# Norms ------------------------------------------------------------------------------------


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


# Value by value ---------------------------------------------------------------------------


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
    axes[axis % len(axes)] = _atom(0, view.width // 2)
    op = Glu(input=view.name, output=node.name, source=source_of(node))
    graph.emit(node, op, factors=(view.width // 2,), axes=tuple(axes))


# Views ------------------------------------------------------------------------------------


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
    axes[axis] = _atom(0, count)
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


# Sequences --------------------------------------------------------------------------------


def _lower_lstm(graph: Graph, node: Node) -> None:
    names = ("hx", "params", "has_biases", "num_layers", "dropout", "train", "bidirectional", "batch_first")
    options = arguments_of(node, **dict.fromkeys(names))
    if options["bidirectional"]:
        raise refuse(node, "is an LSTM in both directions")
    if any(
        state in graph.views or state not in graph.tensors or graph.tensors[state].any()
        for state in options["hx"]
    ):
        raise refuse(node, "starts an LSTM from states other than zeros")
    view = graph.columns(operands(node)[0], -1)
    if view.rows_axis != (1 if options["batch_first"] else 0):
        raise refuse(node, "runs an LSTM along something other than frames")
    per_layer = 4 if options["has_biases"] else 2
    parameters, features = options["params"], view.name
    if len(parameters) != per_layer * options["num_layers"]:
        raise refuse(node, "is an LSTM with a projection")
    for layer in range(options["num_layers"]):
        given = parameters[layer * per_layer : (layer + 1) * per_layer]
        biases = given[2:] if options["has_biases"] else (None, None)
        is_final = layer == options["num_layers"] - 1
        output = node.name if is_final else f"{node.name}.{layer}"
        gates = graph.product(node, features, given[0], biases[0], f"{output}.gates")
        recurrent = graph.weight(given[1])
        op: Op = Lstm(
            input=gates.output,
            output=output,
            cell=f"{output}.cell",
            weight=recurrent,
            bias=graph.bias(biases[1], recurrent),
            activation_bits=graph.activation_bits(recurrent),
            source=source_of(node),
        )
        graph.ops += [gates, op]
        features = output
    width = node.meta["val"][0].shape[-1]
    graph.parts[node] = [View(features, (width,), (*view.axes[:-1], _atom(0, width)), view.num_rows)]


def _lower_attention(graph: Graph, node: Node) -> None:
    names = ("key", "value", "positions", "content_bias", "position_bias", "heads", "left", "right")
    options = arguments_of(node, **dict.fromkeys(names))
    query, key, value = (
        graph.columns(source, 2) for source in (operands(node)[0], options["key"], options["value"])
    )
    positions = ""
    if options["positions"] is not None:
        source = options["positions"]
        positions = graph.constant(source) if source in graph.tensors else graph.columns(source, -1).name
    biases = {
        role: graph.constant(options[role])
        for role in ("content_bias", "position_bias")
        if options[role] is not None
    }
    for name in biases.values():
        bias = graph.constants[name]
        assert isinstance(bias, np.ndarray)
        graph.constants[name] = bias.reshape(-1)
    op = Attention(
        query=query.name,
        key=key.name,
        value=value.name,
        positions=positions,
        output=node.name,
        heads=options["heads"],
        left=options["left"],
        right=options["right"],
        source=source_of(node),
        **biases,
    )
    graph.emit(node, op, like=query)


def _lower_sinusoids(graph: Graph, node: Node) -> None:
    view, columns = graph.view(operands(node)[0]), operands(node)[1]
    op = Sinusoids(input=view.name, output=node.name, columns=columns, source=source_of(node))
    graph.emit(node, op, factors=(columns,), axes=((ROWS,), (0,)))


def _lower_stack(graph: Graph, node: Node) -> None:
    view, count = graph.columns(operands(node)[0], 2), operands(node)[1]
    op = Stack(input=view.name, output=node.name, count=count, source=source_of(node))
    graph.emit(node, op, factors=(view.width * count,), axes=BATCH_ROWS_CHANNELS)


def _lower_switched_lstm(graph: Graph, node: Node) -> None:
    names = ("gate", "weight_ih", "weight_hh", "bias", "small_weight_ih", "small_weight_hh", "small_bias")
    options = arguments_of(node, **dict.fromkeys(names))
    view, gate = graph.columns(operands(node)[0], 2), graph.view(options["gate"])
    gates = graph.product(node, view.name, options["weight_ih"], options["bias"], f"{node.name}.gates")
    small_inputs = options["small_weight_ih"].meta["val"].shape[1]
    narrow = view.name
    if small_inputs != view.width:
        narrow = f"{node.name}.narrow"
        graph.ops.append(
            Columns(input=view.name, output=narrow, first=0, count=small_inputs, source=source_of(node))
        )
    small = graph.product(
        node, narrow, options["small_weight_ih"], options["small_bias"], f"{node.name}.small"
    )
    recurrent = [graph.weight(options[name]) for name in ("weight_hh", "small_weight_hh")]
    graph.ops += [gates, small]
    op = SwitchedLstm(
        input=gates.output,
        small=small.output,
        gate=gate.name,
        output=node.name,
        cell=f"{node.name}.cell",
        weight=recurrent[0],
        small_weight=recurrent[1],
        activation_bits=graph.activation_bits(recurrent[0]),
        small_activation_bits=graph.activation_bits(recurrent[1]),
        source=source_of(node),
    )
    graph.emit(node, op, factors=(sizes_of(node)[2],), axes=BATCH_ROWS_CHANNELS)


def _custom(name: str) -> Any:
    """Our own operator, by the name under which models/operators.py registers it."""
    return getattr(torch.ops.subtone, name).default


LOWERINGS: dict[Any, Callable[[Graph, Node], None]] = {
    aten.conv1d.default: _lower_conv1d,
    aten.conv2d.default: _lower_conv2d,
    aten.pad.default: _lower_pad,
    aten.constant_pad_nd.default: _lower_pad,
    aten.linear.default: _lower_linear,
    aten.embedding.default: _lower_embedding,
    aten._native_batch_norm_legit_no_training.default: _lower_batch_norm,
    aten.layer_norm.default: _lower_layer_norm,
    aten.group_norm.default: _lower_group_norm,
    operator.getitem: _lower_getitem,
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
    aten.lstm.input: _lower_lstm,
    aten.scaled_dot_product_attention.default: lower_dot_product,
    _custom("attention"): _lower_attention,
    _custom("sinusoids"): _lower_sinusoids,
    _custom("stack_frames"): _lower_stack,
}
