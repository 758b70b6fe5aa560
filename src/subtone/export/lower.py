"""From torch to the program: torch.export's graph, our operations for each of its own.

An operator that is not in LOWERINGS is an error that names it and the module it came from;
nothing is approximated or skipped. passes.py makes the program smaller afterwards.

Letters: B batch (1 here), C channels, T frames.
"""

from __future__ import annotations

import warnings

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from subtone.export.graph import FEATURES, Graph, Input, UnsupportedOperatorError
from subtone.export.lowerings import LOWERINGS
from subtone.export.passes import fold_affine, fuse_relu, rename_values
from subtone.models.checkpoints import Quantization
from subtone.program import Constant, Op, Program, constants_of, inputs_of

EXAMPLE_ROWS = (64, 96)
"""Of the traced examples. Where an operator fixes the number of rows, two must give the same program."""
INPUT, OUTPUT = "features", "logits"


def lower(
    network: nn.Module,
    *,
    num_features: int,
    frames_per_step: int,
    quantization: Quantization | None = None,
) -> tuple[Program, dict[str, Constant]]:
    """The program of a CTC `network` and its constants, under their parameters' paths.

    Args:
        network: in eval mode; takes features (B, F, T), F = `num_features`, and gives the logits
            (B, T', V), or a tuple that begins with them.
        frames_per_step: input frames from one row of logits to the next.
        quantization: weights that a method brought to few bits, and the activations they meet.
    """
    inputs = (Input(name=INPUT, layout=FEATURES, width=num_features),)
    program, constants = lower_entry(
        network, inputs, output=OUTPUT, frames_per_step=frames_per_step, quantization=quantization
    )
    check_all_used(quantization, set(program.constants))
    return program, constants


def check_all_used(quantization: Quantization | None, used: set[str]) -> None:
    """ValueError if a quantized weight is not among the constants `used` by any entry point."""
    unused = sorted(set(quantization.weights if quantization else ()) - used)
    if unused:
        raise ValueError(
            f"{unused[0]} is quantized, but the exported network does not use it; is it the same network?"
        )


def lower_entry(
    network: nn.Module,
    inputs: tuple[Input, ...],
    *,
    output: str,
    frames_per_step: int,
    quantization: Quantization | None = None,
    whole: nn.Module | None = None,
    prefix: str = "",
) -> tuple[Program, dict[str, Constant]]:
    """One entry point: `network` takes `inputs` and gives (B, T', D), or a tuple that begins with it.

    Args:
        whole: what `network` is a part of, if it is; the quantization names parameters by their paths there.
        prefix: stands in front of the names of constants that are no parameters of `whole`.
    """
    if network.training:
        raise ValueError("the network is in training mode; call eval() before it is exported")
    _check_parametrizations(network)
    programs = []
    for rows in EXAMPLE_ROWS:
        exported, is_fixed = _export(network, inputs, rows)
        graph = Graph(
            exported, network, inputs, quantization, rows=rows, whole=whole or network, prefix=prefix
        )
        graph.lower(LOWERINGS)
        programs.append(_assemble(graph, inputs, output, frames_per_step))
        if not is_fixed:
            break
    if programs[0][0] != programs[-1][0]:
        raise UnsupportedOperatorError(
            f"the exported network is another one for {EXAMPLE_ROWS[1]} frames than for {EXAMPLE_ROWS[0]}; "
            "let nothing but sizes depend on the number of frames"
        )
    return programs[0]


def _assemble(
    graph: Graph, inputs: tuple[Input, ...], output: str, frames_per_step: int
) -> tuple[Program, dict[str, Constant]]:
    result = graph.output
    assert result is not None
    if not (len(result.axes) == 3 and result.rows_axis == 1 and result.has_columns(2)):
        raise ValueError("the network's logits are (B, V, T); give them as (B, T, V)")
    ops = _used(graph.ops, result.name)
    ops, constants = fold_affine(ops, graph.constants, result.name)
    ops = fuse_relu(ops, result.name)
    ops = rename_values(ops, {**{entry.name: entry.name for entry in inputs}, result.name: output})
    used = {name for op in ops for name in (*constants_of(op).values(), *inputs_of(op))}
    constants = {name: value for name, value in constants.items() if name in used}
    program = Program(
        input=inputs[0].name,
        input_width=inputs[0].width,
        output=output,
        output_width=result.width,
        frames_per_step=frames_per_step,
        ops=tuple(ops),
        others=tuple((entry.name, entry.width) for entry in inputs[1:]),
    )
    program.shapes(EXAMPLE_ROWS[0], constants)
    return program, constants


def _check_parametrizations(network: nn.Module) -> None:
    """A weight that is computed is exported as what it is now: torch's weight norm may be, others are in training."""
    for path, module in network.named_modules():
        for name, parts in getattr(module, "parametrizations", {}).items():
            if not all(type(part).__module__ == "torch.nn.utils.parametrizations" for part in parts):
                raise UnsupportedOperatorError(
                    f"{path or 'the model'} computes its {name}; remove parametrizations first"
                )


def _used(ops: list[Op], output: str) -> list[Op]:
    """`ops` without those that nothing reads."""
    needed, kept = {output}, []
    for op in reversed(ops):
        if op.output in needed:
            needed.update(inputs_of(op))
            kept.append(op)
    return kept[::-1]


def _export(network: nn.Module, inputs: tuple[Input, ...], rows: int) -> tuple[ExportedProgram, bool]:
    """The exported graph for an example of `rows` rows, and whether torch fixed that number."""
    examples = tuple(entry.example(rows) for entry in inputs)
    shapes = tuple({2 if entry.layout == FEATURES else 1: Dim.AUTO} for entry in inputs)
    with warnings.catch_warnings():
        # torch 2.13 copies its own pytrees through a check that it deprecated itself.
        warnings.filterwarnings("ignore", message=r".*LeafSpec.* is deprecated", category=FutureWarning)
        # Of every nn.LSTM; its flat weights are the parameters themselves.
        warnings.filterwarnings(
            "ignore", message=r"The tensor attribute.*_flat_weights", category=UserWarning
        )
        exported = torch.export.export(network, examples, dynamic_shapes=shapes)
        exported = exported.run_decompositions({})
    given = [
        node
        for node in exported.graph.nodes
        if node.op == "placeholder" and node.name in exported.graph_signature.user_inputs
    ]
    is_fixed = any(all(isinstance(size, int) for size in node.meta["val"].shape) for node in given)
    return exported, is_fixed
