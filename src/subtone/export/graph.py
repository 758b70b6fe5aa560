"""torch's exported graph on its way to a list of operations: what a lowering reads and writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node

from subtone.export.sizes import Sizes, is_size
from subtone.export.views import ROWS, View
from subtone.models.checkpoints import Quantization
from subtone.program import Clip, Constant, Conv1d, Op

LABELS, FEATURES, FRAMES, SAMPLES = "labels", "features", "frames", "samples"
"""What an entry point reads: labels (B, U), features (B, F, T), frames (B, T, D), or samples (B, S) of sound."""
LAYOUTS = (LABELS, FEATURES, FRAMES, SAMPLES)


class UnsupportedOperatorError(ValueError):
    """The model computes something that no packed program can."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Input:
    """One input of an entry point: its name in the program, its layout (one of those above) and its width."""

    name: str
    layout: str
    width: int

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout={self.layout!r} is not known; use one of {', '.join(LAYOUTS)}")
        if self.width != 1 and self.layout in (LABELS, SAMPLES):
            raise ValueError(f"width={self.width} of {self.layout}; use 1, for they have no columns")

    def example(self, rows: int) -> Tensor:
        if self.layout == LABELS:
            return torch.zeros(1, rows, dtype=torch.int64)
        if self.layout == SAMPLES:
            return torch.zeros(1, rows)
        return torch.zeros((1, self.width, rows) if self.layout == FEATURES else (1, rows, self.width))

    def view(self, rows: int) -> View:
        columns = () if self.width == 1 else (0,)
        axes = {
            LABELS: ((), (ROWS,)),
            SAMPLES: ((), (ROWS,)),
            FEATURES: ((), columns, (ROWS,)),
            FRAMES: ((), (ROWS,), columns),
        }[self.layout]
        return View(self.name, (self.width,), axes, rows)


class Graph:
    """The exported graph on its way to a list of ops.

    * `views`: torch's nodes -> how they lie on a value of ours.
    * `parts`: nodes that give several results -> a view of each, None for one that we do not have.
    * `tensors`: nodes that no input reaches -> their tensor.
    * `sizes`: the values of nodes that depend on sizes alone, at any size.
    * `owners`: nodes that are lowered together with the attention whose mask they make -> that attention.
    * `contexts`: masks of sizes -> the rows that they let a row see before and behind it.

    Constants go by their paths in `whole`, of which `network` may be a part; `prefix` stands in front of the
    names of those that are none of its parameters.
    """

    def __init__(
        self,
        exported: ExportedProgram,
        network: nn.Module,
        inputs: tuple[Input, ...],
        quantization: Quantization | None,
        *,
        rows: int,
        whole: nn.Module,
        prefix: str,
    ) -> None:
        signature = exported.graph_signature
        self.nodes = list(exported.graph.nodes)
        self.quantization = quantization
        self.prefix = prefix
        self.ops: list[Op] = []
        self.constants: dict[str, Constant] = {}
        self.views: dict[Node, View] = {}
        self.parts: dict[Node, list[View | None]] = {}
        self.output: View | None = None
        stored = {**exported.state_dict, **exported.constants}
        names = _paths_in(whole, network)
        paths = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        paths |= signature.inputs_to_lifted_tensor_constants
        self.tensors: dict[Node, Tensor] = {}
        self.paths: dict[Node, str] = {}
        self.owners: dict[Node, Node] = {}
        self.contexts: dict[Node, tuple[int, int]] = {}
        given = iter(inputs)
        for node in self.nodes:
            if node.op == "placeholder" and node.name in paths:
                path = paths[node.name]
                self.tensors[node] = stored[path]
                self.paths[node] = names.get(path, prefix + path)
            elif node.op == "placeholder" and (entry := next(given, None)) is not None:
                self.views[node] = entry.view(rows)
        self.sizes = Sizes(self.nodes, tuple(self.views), self.tensors)

    def lower(self, lowerings: Mapping[Any, Callable[[Graph, Node], None]]) -> None:
        """All nodes to ops; UnsupportedOperatorError names an operator that no lowering knows, and its module."""
        for node in self.nodes:
            if node.op == "output":
                self.output = self.view(node.args[0][0] if isinstance(node.args[0], tuple) else node.args[0])
            elif node.op == "call_function" and not is_size(node) and node not in self.owners:
                self._lower_call(node, lowerings)

    def _lower_call(self, node: Node, lowerings: Mapping[Any, Callable[[Graph, Node], None]]) -> None:
        is_lowered = any(source in self.views or source in self.parts for source in node.all_input_nodes)
        if not is_lowered and not self._is_product_of_table(node):
            self._evaluate(node)
            return
        lowering = lowerings.get(node.target)
        if lowering is None:
            raise UnsupportedOperatorError(f"operator {node.target} of {source_of(node)} cannot be packed")
        lowering(self, node)

    def _evaluate(self, node: Node) -> None:
        """A node that no input reaches is computed now, if its sizes do not depend on the utterance."""
        if any(source not in self.tensors for source in node.all_input_nodes):
            return  # of a size; whoever reads it says so
        arguments = torch.fx.node.map_arg((node.args, node.kwargs), lambda source: self.tensors[source])
        result = node.target(*arguments[0], **arguments[1])  # type: ignore[operator]
        if isinstance(result, Tensor):
            self.tensors[node] = result
            module, is_parametrized, rest = source_of(node).partition(".parametrizations.")
            if is_parametrized:  # known by the path that it has once the parametrization is removed
                self.paths[node] = f"{self.prefix}{module}.{rest.split('.')[0]}"

    def _is_product_of_table(self, node: Node) -> bool:
        """Whether `node` multiplies a table, such as one of positions, and cannot be computed now: the table has as
        many rows as the utterance says, or the weight is to stay in few bits."""
        if node.target is not torch.ops.aten.linear.default:
            return False
        table, weight = node.all_input_nodes[:2]
        quantized = self.quantization.weights if self.quantization else {}
        return table not in self.tensors or self.paths.get(weight) in quantized

    # What a lowering needs -----------------------------------------------------------------

    def view(self, node: Any, *, allow_padding: bool = False) -> View:
        """How `node` lies on a value of ours."""
        if not isinstance(node, Node) or node not in self.views:
            name = self.paths.get(node, getattr(node, "name", node)) if isinstance(node, Node) else node
            raise UnsupportedOperatorError(
                f"the model computes with {name} outside a product; remove parametrizations first"
            )
        view = self.views[node]
        if view.is_padded and not allow_padding:
            raise UnsupportedOperatorError(
                f"{source_of(node)} pads what no convolution reads; it cannot be packed"
            )
        return view

    def columns(self, node: Node, axis: int, *, allow_padding: bool = False) -> View:
        """The view of `node`, all columns of which must lie along `axis`, in order."""
        view = self.view(node, allow_padding=allow_padding)
        if not view.has_columns(axis % len(view.axes)):
            raise UnsupportedOperatorError(
                f"an operator reads {node.name} of {source_of(node)} along frames; only channels can be mixed"
            )
        return view

    def emit(
        self, node: Node, op: Op, *, like: View | None = None, factors: tuple[int, ...] = (), axes: Any = None
    ) -> View:
        """`op` computes `node`, which lies as `like`, or with its own `factors` and `axes`."""
        self.ops.append(op)
        if like is not None:
            view = dataclasses.replace(like, name=op.output)
        else:
            rows = sizes_of(node)[next(axis for axis, atoms in enumerate(axes) if atoms == (ROWS,))]
            view = View(op.output, factors, axes, rows)
        self.views[node] = view
        return view

    def array(self, node: Node) -> NDArray[np.float32]:
        """A parameter, buffer or what was computed of them, as float32."""
        if node not in self.tensors:
            raise UnsupportedOperatorError(
                f"{source_of(node)} computes a weight; remove parametrizations first"
            )
        return self.tensors[node].detach().to(torch.float32).contiguous().numpy()

    def constant(self, node: Node) -> str:
        """The name of a float constant."""
        name = self.paths.get(node, f"{self.prefix}{node.name}")
        self.constants[name] = self.array(node)
        return name

    def weight(self, node: Node) -> str:
        """The name of a weight, now a constant: quantized where the quantization says so."""
        path = self.path(node)
        quantized = self.quantization.weights.get(path) if self.quantization else None
        self.constants[path] = self.array(node) if quantized is None else quantized
        return path

    def path(self, node: Node) -> str:
        if node not in self.paths:
            if node not in self.tensors:
                raise UnsupportedOperatorError(
                    f"{source_of(node)} computes a weight; remove parametrizations first"
                )
            return f"{self.prefix}{node.name}"
        return self.paths[node]

    def bias(self, node: Node | None, weight: str) -> str:
        """The name of a product's bias, with the shift that bias correction found; "" without either."""
        shift = self.quantization.bias_shifts.get(weight) if self.quantization else None
        parts = [part for part in (None if node is None else self.array(node), shift) if part is not None]
        if not parts:
            return ""
        name = self.path(node) if node is not None and shift is None else f"{weight}.bias"
        self.constants[name] = np.asarray(np.sum(parts, axis=0, dtype=np.float32))
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

    def product(self, node: Node, features: str, weight: Node, bias: Node | None, output: str) -> Conv1d:
        """`weight` times each row of `features`."""
        name = self.weight(weight)
        return Conv1d(
            input=self.clipped(node, features, name),
            output=output,
            weight=name,
            bias=self.bias(bias, name),
            activation_bits=self.activation_bits(name),
            source=source_of(node),
        )


def source_of(node: Node) -> str:
    """The path of the module that made `node`."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return stack[-1][0] if stack and stack[-1][0] else "the model"


def refuse(node: Node, what: str) -> UnsupportedOperatorError:
    return UnsupportedOperatorError(f"{source_of(node)} {what}; it cannot be packed")


def sizes_of(node: Node) -> tuple[int, ...]:
    """The shape of `node` in the example that was traced."""
    return tuple(size if isinstance(size, int) else size.node.hint for size in node.meta["val"].shape)


def operands(node: Node) -> tuple[Any, ...]:
    """The positional arguments of `node`."""
    return node.args


def arguments_of(node: Node, **defaults: Any) -> dict[str, Any]:
    """The node's arguments by name, after its first."""
    given = dict(zip(defaults, node.args[1:], strict=False))
    return {**defaults, **given, **{name: value for name, value in node.kwargs.items() if name in defaults}}


def _paths_in(whole: nn.Module, part: nn.Module) -> dict[str, str]:
    """Path in `part` -> path in `whole` of the same parameter or buffer, the first of several: that of a quantization."""
    first: dict[int, str] = {}
    for path, value in _stored(whole):
        first.setdefault(id(value), path)
    return {path: first[id(value)] for path, value in _stored(part) if id(value) in first}


def _stored(network: nn.Module) -> list[tuple[str, Tensor]]:
    return [
        *network.named_parameters(remove_duplicate=False),
        *network.named_buffers(remove_duplicate=False),
    ]
