"""From torch to the program: torch.export's graph, one of our operations for each of its own.

An operator that is not in LOWERINGS is an error that names it and the module it came from;
nothing is approximated or skipped. passes.py makes the program smaller afterwards.

Letters: B batch (1 here), C channels, T frames.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.fx import Node

from subtone.export.passes import fold_affine, fuse_relu, rename_values
from subtone.models.checkpoints import Quantization
from subtone.program import (
    MAX_FLOAT32,
    Add,
    Affine,
    Clip,
    Constant,
    Conv1d,
    Op,
    Program,
    Relu,
    constants_of,
)

EXAMPLE_FRAMES = 64
INPUT, OUTPUT = "features", "logits"
aten = torch.ops.aten


class UnsupportedOperatorError(ValueError):
    """The model computes something that no packed program can."""


def lower(
    network: nn.Module,
    *,
    num_features: int,
    frames_per_step: int,
    quantization: Quantization | None = None,
) -> tuple[Program, dict[str, Constant]]:
    """The program of `network` and its constants, under their parameters' paths.

    Args:
        network: in eval mode; takes features (B, F, T), F = `num_features`, and gives a tuple
            that begins with the logits (B, T', V).
        frames_per_step: input frames from one row of logits to the next.
        quantization: weights that a method brought to few bits, and the activations they meet.
    """
    if network.training:
        raise ValueError("the network is in training mode; call eval() before it is exported")
    graph = _Graph(_export(network, num_features), quantization)
    graph.name_tied(network)
    for node in graph.nodes:
        graph.lower(node)
    ops, constants = graph.ops, graph.constants
    ops, constants = fold_affine(ops, constants, graph.output)
    ops = fuse_relu(ops, graph.output)
    ops = rename_values(ops, {graph.input: INPUT, graph.output: OUTPUT})
    used = {name for op in ops for name in constants_of(op).values()}
    unused = sorted(set(quantization.weights if quantization else ()) - used)
    if unused:
        raise ValueError(
            f"{unused[0]} is quantized, but the exported network does not use it; is it the same network?"
        )
    program = Program(
        input=INPUT,
        input_width=num_features,
        output=OUTPUT,
        output_width=graph.output_width,
        frames_per_step=frames_per_step,
        ops=tuple(ops),
    )
    constants = {name: value for name, value in constants.items() if name in used}
    program.shapes(EXAMPLE_FRAMES, constants)
    return program, constants


def _export(network: nn.Module, num_features: int) -> ExportedProgram:
    example = torch.zeros(1, num_features, EXAMPLE_FRAMES)
    with warnings.catch_warnings():
        # torch 2.13 copies its own pytrees through a check that it deprecated itself.
        warnings.filterwarnings("ignore", message=r".*LeafSpec.* is deprecated", category=FutureWarning)
        exported = torch.export.export(network, (example,), dynamic_shapes=({2: Dim.AUTO},))
        return exported.run_decompositions({})


class _Graph:
    """The exported graph on its way to a list of ops.

    `names`: torch's nodes -> the value of ours that holds them, and the axis (1 or 2) along which
    its channels lie in torch. Our values are always (T, C), so a transpose only moves that axis.
    """

    def __init__(self, exported: ExportedProgram, quantization: Quantization | None) -> None:
        signature = exported.graph_signature
        self.nodes = list(exported.graph.nodes)
        self.paths = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self.tensors = {**exported.state_dict, **exported.constants}
        self.quantization = quantization
        self.ops: list[Op] = []
        self.constants: dict[str, Constant] = {}
        self.names: dict[Node, tuple[str, int]] = {}
        self.input = self.output = ""
        self.output_width = 0

    def lower(self, node: Node) -> None:
        if node.op == "placeholder":
            if node.name not in self.paths and not self.input:
                self.input = node.name
                self.names[node] = (node.name, 1)
        elif node.op == "output":
            self.output, axis = self.names[operands(node)[0][0]]
            self.output_width = int(operands(node)[0][0].meta["val"].shape[axis])
            if axis != 2:
                raise ValueError("the network's logits are (B, V, T); give them as (B, T, V)")
        else:
            lowering = LOWERINGS.get(node.target)
            if lowering is None:
                raise UnsupportedOperatorError(
                    f"operator {node.target} of {source_of(node)} cannot be packed"
                )
            lowering(self, node)

    def name_tied(self, network: nn.Module) -> None:
        """A parameter with several paths goes by the first, as in a quantization, whichever torch chose."""
        first: dict[int, str] = {}
        names = {
            path: first.setdefault(id(parameter), path)
            for path, parameter in network.named_parameters(remove_duplicate=False)
        }
        self.tensors |= {name: self.tensors[path] for path, name in names.items() if path in self.tensors}
        self.paths = {node: names.get(path, path) for node, path in self.paths.items()}

    # What a lowering needs -----------------------------------------------------------------

    def value(self, node: Node, *, channel_axis: int = 0) -> str:
        """Our value for torch's `node`, whose channels must lie along `channel_axis` if that is given."""
        if node not in self.names:
            raise UnsupportedOperatorError(
                f"the model computes with {self.paths.get(node.name, node.name)} outside a product; "
                "remove parametrizations first"
            )
        name, axis = self.names[node]
        if channel_axis and axis != channel_axis:
            raise UnsupportedOperatorError(
                f"an operator reads {node.name} of {source_of(node)} along frames; only channels can be mixed"
            )
        return name

    def axis(self, node: Node) -> int:
        return self.names[node][1]

    def emit(self, node: Node, op: Op, axis: int) -> None:
        self.ops.append(op)
        self.names[node] = (op.output, axis)

    def alias(self, node: Node, source: Node) -> None:
        self.names[node] = self.names[source]

    def array(self, node: Node) -> NDArray[np.float32]:
        """A parameter or buffer as float32."""
        return self.tensors[self._path(node)].detach().to(torch.float32).numpy()

    def weight(self, node: Node) -> str:
        """The name of a weight, now a constant: quantized where the quantization says so."""
        path = self._path(node)
        quantized = self.quantization.weights.get(path) if self.quantization else None
        self.constants[path] = self.array(node) if quantized is None else quantized
        return path

    def bias(self, node: Node | None, weight: str) -> str:
        """The name of a product's bias, with the shift that bias correction found; "" without either."""
        shift = self.quantization.bias_shifts.get(weight) if self.quantization else None
        parts = [part for part in (None if node is None else self.array(node), shift) if part is not None]
        if not parts:
            return ""
        name = self._path(node) if node is not None and shift is None else f"{weight}.bias"
        self.constants[name] = np.sum(parts, axis=0, dtype=np.float32)
        return name

    def activation_bits(self, weight: str) -> int:
        return self.quantization.activation_bits.get(weight, 0) if self.quantization else 0

    def clipped(self, node: Node, features: str, weight: str) -> str:
        """The value that the product `node` multiplies: `features`, behind a Clip where one was learned."""
        clip = self.quantization.activation_clips.get(weight) if self.quantization else None
        if clip is None:
            return features
        output = f"{node.name}.clipped"
        self.ops.append(Clip(input=features, output=output, low=-clip, high=clip, source=source_of(node)))
        return output

    def _path(self, node: Node) -> str:
        if node.name not in self.paths:
            raise UnsupportedOperatorError(
                f"{source_of(node)} computes a weight; remove parametrizations first"
            )
        return self.paths[node.name]


def source_of(node: Node) -> str:
    """The path of the module that made `node`."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return stack[-1][0] if stack and stack[-1][0] else "the model"


def operands(node: Node) -> tuple[Any, ...]:
    """The positional arguments of `node`."""
    return node.args


# One function per operator ---------------------------------------------------------------------


def _arguments(node: Node, **defaults: Any) -> dict[str, Any]:
    """The node's arguments by name, after its first."""
    given = dict(zip(defaults, operands(node)[1:], strict=False))
    return {**defaults, **given, **{name: value for name, value in node.kwargs.items() if name in defaults}}


def _lower_conv1d(graph: _Graph, node: Node) -> None:
    options = _arguments(node, weight=None, bias=None, stride=[1], padding=[0], dilation=[1], groups=1)
    weight = graph.weight(options["weight"])
    features = graph.clipped(node, graph.value(operands(node)[0], channel_axis=1), weight)
    groups, channels = options["groups"], options["weight"].meta["val"].shape[1] * options["groups"]
    if groups not in (1, channels):
        raise UnsupportedOperatorError(
            f"{source_of(node)} has groups={groups}; only 1 and depthwise can be packed"
        )
    op = Conv1d(
        input=features,
        output=node.name,
        weight=weight,
        bias=graph.bias(options["bias"], weight),
        kernel=options["weight"].meta["val"].shape[2],
        stride=options["stride"][0],
        padding=options["padding"][0],
        dilation=options["dilation"][0],
        groups=groups,
        activation_bits=graph.activation_bits(weight),
        source=source_of(node),
    )
    graph.emit(node, op, axis=1)


def _lower_linear(graph: _Graph, node: Node) -> None:
    options = _arguments(node, weight=None, bias=None)
    weight = graph.weight(options["weight"])
    op = Conv1d(
        input=graph.clipped(node, graph.value(operands(node)[0], channel_axis=2), weight),
        output=node.name,
        weight=weight,
        bias=graph.bias(options["bias"], weight),
        activation_bits=graph.activation_bits(weight),
        source=source_of(node),
    )
    graph.emit(node, op, axis=2)


def _lower_batch_norm(graph: _Graph, node: Node) -> None:
    gamma, beta, mean, variance = (
        None if arg is None else graph.array(arg).astype(np.float64) for arg in operands(node)[1:5]
    )
    gain = (1.0 if gamma is None else gamma) / np.sqrt(variance + operands(node)[6])
    bias = (0.0 if beta is None else beta) - mean * gain
    module = source_of(node)
    owner = module if f"{module}.gain" not in graph.constants else node.name  # a module may run twice
    names = f"{owner}.gain", f"{owner}.shift"
    graph.constants |= {names[0]: gain.astype(np.float32), names[1]: bias.astype(np.float32)}
    features = graph.value(operands(node)[0], channel_axis=1)
    graph.emit(
        node,
        Affine(input=features, output=node.name, gain=names[0], bias=names[1], source=source_of(node)),
        axis=1,
    )


def _lower_getitem(graph: _Graph, node: Node) -> None:
    if operands(node)[1] != 0:
        raise UnsupportedOperatorError(
            f"result {operands(node)[1]} of {operands(node)[0].name} in {source_of(node)} cannot be packed"
        )
    graph.alias(node, operands(node)[0])


def _lower_relu(graph: _Graph, node: Node) -> None:
    features = operands(node)[0]
    graph.emit(
        node,
        Relu(input=graph.value(features), output=node.name, source=source_of(node)),
        axis=graph.axis(features),
    )


def _lower_clamp(graph: _Graph, node: Node) -> None:
    """clamp(x, min=None, max=None) and hardtanh(x, min=-1, max=1), whose ends are numbers."""
    first, second = (-1.0, 1.0) if node.target is aten.hardtanh.default else (None, None)
    names = ("min_val", "max_val") if node.target is aten.hardtanh.default else ("min", "max")
    given = _arguments(node, **dict(zip(names, (first, second), strict=True)))
    _emit_clip(graph, node, given[names[0]], given[names[1]])


def _lower_relu6(graph: _Graph, node: Node) -> None:
    _emit_clip(graph, node, 0.0, 6.0)


def _emit_clip(graph: _Graph, node: Node, low: float | None, high: float | None) -> None:
    """A Clip; an end that is open, or beyond float32, is float32's own."""
    ends = -MAX_FLOAT32 if low is None else low, MAX_FLOAT32 if high is None else high
    low, high = (float(np.float32(min(max(end, -MAX_FLOAT32), MAX_FLOAT32))) for end in ends)
    if not low < high:
        raise UnsupportedOperatorError(
            f"{source_of(node)} clips to {low} and {high}, which do not ascend; it cannot be packed"
        )
    features = operands(node)[0]
    graph.emit(
        node,
        Clip(input=graph.value(features), output=node.name, low=low, high=high, source=source_of(node)),
        axis=graph.axis(features),
    )


def _lower_add(graph: _Graph, node: Node) -> None:
    left, right = operands(node)[:2]
    if not isinstance(right, Node) or node.kwargs or left not in graph.names or right not in graph.names:
        raise UnsupportedOperatorError(
            f"{source_of(node)} adds something other than two results; it cannot be packed"
        )
    axis = graph.axis(left)
    op = Add(
        left=graph.value(left),
        right=graph.value(right, channel_axis=axis),
        output=node.name,
        source=source_of(node),
    )
    graph.emit(node, op, axis=axis)


def _lower_transpose(graph: _Graph, node: Node) -> None:
    axes = {axis % 3 for axis in operands(node)[1:3]}
    if axes != {1, 2}:
        raise UnsupportedOperatorError(
            f"{source_of(node)} transposes {sorted(axes)}; only channels and frames can change places"
        )
    name, axis = graph.names[operands(node)[0]]
    graph.names[node] = (name, 3 - axis)


def _lower_identity(graph: _Graph, node: Node) -> None:
    graph.alias(node, operands(node)[0])


LOWERINGS: dict[Any, Callable[[_Graph, Node], None]] = {
    aten.conv1d.default: _lower_conv1d,
    aten.linear.default: _lower_linear,
    aten._native_batch_norm_legit_no_training.default: _lower_batch_norm,
    operator.getitem: _lower_getitem,
    aten.relu.default: _lower_relu,
    aten.relu6.default: _lower_relu6,
    aten.clamp.default: _lower_clamp,
    aten.hardtanh.default: _lower_clamp,
    aten.add.Tensor: _lower_add,
    aten.transpose.int: _lower_transpose,
    aten.clone.default: _lower_identity,
}
