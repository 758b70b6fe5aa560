"""From torch to the program: torch.export's graph, one of our operations for each of its own.

An operator that is not in LOWERINGS is an error that names it and the module it came from;
nothing is approximated or skipped. Afterwards two passes make the program smaller: a BatchNorm
joins the convolution before it, a ReLU the operation before it.

Letters: B batch (1 here), C channels, T frames.
"""

from __future__ import annotations

import dataclasses
import operator
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.fx import Node

from subtone.models.checkpoints import Quantization
from subtone.program import Add, Affine, Constant, Conv1d, Op, Program, Relu, constants_of, inputs_of
from subtone.qtensor import QTensor

EXAMPLE_FRAMES = 64
INPUT, OUTPUT = "features", "logits"
aten = torch.ops.aten


class UnsupportedOperatorError(ValueError):
    """The model computes something that no packed program can."""


def lower(
    network: nn.Module, *, quantization: Quantization | None = None
) -> tuple[Program, dict[str, Constant]]:
    """The program of `network` and its constants, under their parameters' paths.

    Args:
        network: takes features (B, F, T) and gives (logits (B, T', V), lengths); has `config`
            with num_features and num_outputs, and `frames_per_step`. In eval mode.
        quantization: weights that a method brought to few bits, and the activations they meet.
    """
    if network.training:
        raise ValueError("the network is in training mode; call eval() before it is exported")
    graph = _Graph(_export(network), quantization)
    for node in graph.nodes:
        graph.lower(node)
    ops, constants = graph.ops, graph.constants
    ops, constants = fold_affine(ops, constants, graph.output)
    ops = fuse_relu(ops, graph.output)
    ops = rename_values(ops, {graph.input: INPUT, graph.output: OUTPUT})
    used = {name for op in ops for name in constants_of(op).values()}
    program = Program(
        input=INPUT,
        input_width=network.config.num_features,
        output=OUTPUT,
        output_width=network.config.num_outputs,
        frames_per_step=network.frames_per_step,
        ops=tuple(ops),
    )
    constants = {name: value for name, value in constants.items() if name in used}
    program.shapes(EXAMPLE_FRAMES, constants)
    return program, constants


def _export(network: nn.Module) -> ExportedProgram:
    example = torch.zeros(1, network.config.num_features, EXAMPLE_FRAMES)
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
        self.tensors = {**exported.state_dict}
        self.quantization = quantization
        self.ops: list[Op] = []
        self.constants: dict[str, Constant] = {}
        self.names: dict[Node, tuple[str, int]] = {}
        self.input = self.output = ""

    def lower(self, node: Node) -> None:
        if node.op == "placeholder":
            if node.name not in self.paths and not self.input:
                self.input = node.name
                self.names[node] = (node.name, 1)
        elif node.op == "output":
            self.output, axis = self.names[node.args[0][0]]
            if axis != 2:
                raise ValueError("the network's logits are (B, V, T); give them as (B, T, V)")
        else:
            lowering = LOWERINGS.get(node.target)
            if lowering is None:
                raise UnsupportedOperatorError(
                    f"operator {node.target} of {source_of(node)} cannot be packed"
                )
            lowering(self, node)

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
        name = f"{weight}.bias" if node is None else self._path(node)
        self.constants[name] = np.sum(parts, axis=0, dtype=np.float32)
        return name

    def activation_bits(self, weight: str) -> int:
        return self.quantization.activation_bits.get(weight, 0) if self.quantization else 0

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


# One function per operator ---------------------------------------------------------------------


def _arguments(node: Node, **defaults: Any) -> dict[str, Any]:
    """The node's arguments by name, after its first."""
    given = dict(zip(defaults, node.args[1:], strict=False))
    return {**defaults, **given, **{name: value for name, value in node.kwargs.items() if name in defaults}}


def _lower_conv1d(graph: _Graph, node: Node) -> None:
    options = _arguments(node, weight=None, bias=None, stride=[1], padding=[0], dilation=[1], groups=1)
    weight = graph.weight(options["weight"])
    groups, channels = options["groups"], options["weight"].meta["val"].shape[1] * options["groups"]
    if groups not in (1, channels):
        raise UnsupportedOperatorError(
            f"{source_of(node)} has groups={groups}; only 1 and depthwise can be packed"
        )
    op = Conv1d(
        input=graph.value(node.args[0], channel_axis=1),
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
        input=graph.value(node.args[0], channel_axis=2),
        output=node.name,
        weight=weight,
        bias=graph.bias(options["bias"], weight),
        activation_bits=graph.activation_bits(weight),
        source=source_of(node),
    )
    graph.emit(node, op, axis=2)


def _lower_batch_norm(graph: _Graph, node: Node) -> None:
    gamma, beta, mean, variance = (
        None if arg is None else graph.array(arg).astype(np.float64) for arg in node.args[1:5]
    )
    gain = (1.0 if gamma is None else gamma) / np.sqrt(variance + node.args[6])
    bias = (0.0 if beta is None else beta) - mean * gain
    module = source_of(node)
    owner = module if f"{module}.gain" not in graph.constants else node.name  # a module may run twice
    names = f"{owner}.gain", f"{owner}.shift"
    graph.constants |= {names[0]: gain.astype(np.float32), names[1]: bias.astype(np.float32)}
    features = graph.value(node.args[0], channel_axis=1)
    graph.emit(
        node,
        Affine(input=features, output=node.name, gain=names[0], bias=names[1], source=source_of(node)),
        axis=1,
    )


def _lower_getitem(graph: _Graph, node: Node) -> None:
    if node.args[1] != 0:
        raise UnsupportedOperatorError(
            f"result {node.args[1]} of {node.args[0].name} in {source_of(node)} cannot be packed"
        )
    graph.alias(node, node.args[0])


def _lower_relu(graph: _Graph, node: Node) -> None:
    features = node.args[0]
    graph.emit(
        node,
        Relu(input=graph.value(features), output=node.name, source=source_of(node)),
        axis=graph.axis(features),
    )


def _lower_add(graph: _Graph, node: Node) -> None:
    left, right = node.args[:2]
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
    axes = {axis % 3 for axis in node.args[1:3]}
    if axes != {1, 2}:
        raise UnsupportedOperatorError(
            f"{source_of(node)} transposes {sorted(axes)}; only channels and frames can change places"
        )
    name, axis = graph.names[node.args[0]]
    graph.names[node] = (name, 3 - axis)


def _lower_identity(graph: _Graph, node: Node) -> None:
    graph.alias(node, node.args[0])


LOWERINGS: dict[Any, Callable[[_Graph, Node], None]] = {
    aten.conv1d.default: _lower_conv1d,
    aten.linear.default: _lower_linear,
    aten._native_batch_norm_legit_no_training.default: _lower_batch_norm,
    operator.getitem: _lower_getitem,
    aten.relu.default: _lower_relu,
    aten.add.Tensor: _lower_add,
    aten.transpose.int: _lower_transpose,
    aten.clone.default: _lower_identity,
}


# Passes ----------------------------------------------------------------------------------------


def fold_affine(
    ops: list[Op], constants: Mapping[str, Constant], output: str
) -> tuple[list[Op], dict[str, Constant]]:
    """`ops` with every Affine taken in by the convolution that alone feeds it.

    `gain (W x + b) + bias = (gain W) x + (gain b + bias)`. A gain joins the float32 scales (or the
    float weight); beside float16 group scales it stays a vector of its own, so that the scales
    remain those that training saw, and beside a weight that several operations share. Gains may be
    negative or zero.
    """
    readers = _readers(ops, output)
    constants, folded = dict(constants), []
    by_output = {op.output: op for op in ops}
    taken = {
        op.input: op
        for op in ops
        if isinstance(op, Affine) and isinstance(by_output.get(op.input), Conv1d) and readers[op.input] == 1
    }
    uses = Counter(op.weight for op in ops if isinstance(op, Conv1d))
    for op in ops:
        if op.output in taken:
            folded.append(_take_in(op, taken[op.output], constants, is_shared=uses[op.weight] > 1))
        elif getattr(op, "input", None) not in taken:
            folded.append(op)
    return folded, constants


def _take_in(conv: Conv1d, affine: Affine, constants: dict[str, Constant], *, is_shared: bool) -> Conv1d:
    gain, bias = constants[affine.gain], constants[affine.bias]
    weight = constants[conv.weight]
    assert not isinstance(gain, QTensor)
    if is_shared or (isinstance(weight, QTensor) and weight.group_size is not None):
        gain_name = affine.gain
    elif isinstance(weight, QTensor):
        constants[conv.weight] = dataclasses.replace(weight, scale=weight.scale * gain[:, None])
        gain_name = ""
    else:
        constants[conv.weight] = weight * gain.reshape(-1, *[1] * (weight.ndim - 1))
        gain_name = ""
    if conv.bias:
        constants[affine.bias] = bias + gain * constants[conv.bias]
    return dataclasses.replace(conv, output=affine.output, gain=gain_name, bias=affine.bias, relu=affine.relu)


def fuse_relu(ops: list[Op], output: str) -> list[Op]:
    """`ops` with every Relu done by the operation that alone feeds it."""
    readers = _readers(ops, output)
    writers = {op.output: op for op in ops}
    fused: dict[str, str] = {}
    for op in ops:
        if (
            isinstance(op, Relu)
            and readers[op.input] == 1
            and isinstance(writers.get(op.input), Conv1d | Affine | Add)
        ):
            fused[op.input] = op.output
    replaced = [
        dataclasses.replace(op, output=fused[op.output], relu=True) if op.output in fused else op
        for op in ops
        if not (isinstance(op, Relu) and op.input in fused)
    ]
    return replaced


def rename_values(ops: list[Op], names: dict[str, str]) -> list[Op]:
    """`ops` with `names` for some values and v0, v1, ... for the others: torch's names fill a header."""
    for op in ops:
        names.setdefault(op.output, f"v{len(names)}")
    fields = ("input", "left", "right", "output")
    return [
        dataclasses.replace(
            op, **{field: names[getattr(op, field)] for field in fields if hasattr(op, field)}
        )
        for op in ops
    ]


def _readers(ops: list[Op], output: str) -> Counter[str]:
    return Counter([name for op in ops for name in inputs_of(op)] + [output])
