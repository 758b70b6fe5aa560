"""The parts of a transducer export as operations that the run time can stream, at any length."""

from __future__ import annotations

import pytest
import torch
from tests.models.transducer_variants import CASCADED, FEATURES, TRANSDUCERS, random_features, random_network

ALLOWED = {
    "aten.cat.default",
    "aten.linear.default",
    "aten.conv1d.default",
    "aten.pad.default",
    "aten.layer_norm.default",
    "aten.silu.default",
    "aten.glu.default",
    "aten.relu.default",
    "aten.tanh.default",
    "aten.add.Tensor",
    "aten.mul.Tensor",
    "aten.transpose.int",
    "aten.squeeze.dim",
    "aten.dropout.default",
    "aten.embedding.default",
    "aten.lstm.input",
    "aten.zeros.default",  # the states that an LSTM begins with
    "aten.clone.default",
    "aten.sym_size.int",
    "subtone.attention.default",
    "subtone.stack_frames.default",
    "subtone.switched_lstm.default",
    "<built-in function getitem>",
}
CONFIGS = {**TRANSDUCERS, "cascaded": CASCADED}
PARTS = [(name, part) for name, config in CONFIGS.items() for part in random_network(config).entries()]


def inputs_of(part: str, width: int, frames: int) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(frames)
    if part == "encoder":
        return (random_features(frames, batch=1, num_features=FEATURES),)
    if part.startswith("predictor"):
        return (torch.randint(0, 9, (1, frames)),)
    rows = torch.randn(1, frames, width)
    return (rows,) if part == "encoder2" else (rows, torch.randn(1, frames, width))


def run_graph(exported: torch.export.ExportedProgram, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What the nodes of a graph compute, at whatever length.

    Not `exported.module()`: while it traces an nn.LSTM, torch takes the length for the only one, and
    refuses others from then on, though no node holds it.
    """
    state, inputs = {**exported.state_dict, **exported.constants}, iter(given)
    specs = exported.graph_signature.input_specs
    values = [next(inputs) if spec.target is None else state[spec.target] for spec in specs]
    return torch.fx.Interpreter(exported.graph_module).run(*values)


@pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning")  # torch's own pytrees
@pytest.mark.filterwarnings("ignore:The tensor attribute.*_flat_weights:UserWarning")  # of every nn.LSTM
@pytest.mark.parametrize(("name", "part"), PARTS)
def test_an_exported_part_computes_the_same_at_any_length(name: str, part: str) -> None:
    config = CONFIGS[name]
    module = random_network(config).entries()[part]
    width = 8 if part == "encoder2" else config.joint_width
    axis = 2 if part == "encoder" else 1
    given = inputs_of(part, width, 24)
    dynamic = tuple({axis: torch.export.Dim.AUTO} for _ in given)
    exported = torch.export.export(module.eval(), given, dynamic_shapes=dynamic).run_decompositions({})
    called = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert called - ALLOWED == set()
    for frames in (24, 5, 31):
        given = inputs_of(part, width, frames)
        expected = module(*given)
        expected = expected if isinstance(expected, tuple) else (expected,)
        torch.testing.assert_close(run_graph(exported, *given), expected, rtol=0, atol=2e-6)
