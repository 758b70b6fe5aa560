"""Torch's LSTM, and the operators of our own (models/operators.py, models/switched_lstm.py), as ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.fx import Node

import subtone.models.operators
import subtone.models.switched_lstm  # noqa: F401  both register operators of our own with torch
from subtone.export.attention import lower_dot_product
from subtone.export.graph import (
    Graph,
    arguments_of,
    operands,
    refuse,
    sizes_of,
    source_of,
)
from subtone.export.views import BATCH_ROWS_CHANNELS, ROWS, View, atoms_of
from subtone.program import (
    Attention,
    Columns,
    Lstm,
    Op,
    Sinusoids,
    Stack,
    SwitchedLstm,
)

aten = torch.ops.aten


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
    graph.parts[node] = [View(features, (width,), (*view.axes[:-1], atoms_of(0, width)), view.num_rows)]


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
    aten.scaled_dot_product_attention.default: lower_dot_product,
    aten.lstm.input: _lower_lstm,
    _custom("attention"): _lower_attention,
    _custom("sinusoids"): _lower_sinusoids,
    _custom("stack_frames"): _lower_stack,
    _custom("switched_lstm"): _lower_switched_lstm,
}
