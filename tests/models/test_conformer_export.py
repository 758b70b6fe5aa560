"""An exported Conformer is made of operations that the run time can stream, at any length."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tests.models.conformer_variants import FULL, OPEN, STACKED, random_frames, randomize

from subtone.models.conformer import ConformerCtc
from subtone.models.conformer_config import ConformerConfig, ConformerCtcConfig

ALLOWED = {
    "aten.linear.default",
    "aten.conv1d.default",
    "aten.conv2d.default",
    "aten.pad.default",
    "aten.layer_norm.default",
    "aten.batch_norm.default",
    "aten._native_batch_norm_legit_no_training.default",
    "aten.silu.default",
    "aten.glu.default",
    "aten.relu.default",
    "aten.add.Tensor",
    "aten.mul.Tensor",
    "aten.transpose.int",
    "aten.unsqueeze.default",
    "aten.flatten.using_ints",
    "aten.view.default",
    "aten.clone.default",
    "aten._unsafe_view.default",
    "aten.dropout.default",
    "aten.sym_size.int",
    "subtone.attention.default",
    "subtone.sinusoids.default",
    "subtone.stack_frames.default",
    # Sizes of what is flattened, and the first of a BatchNorm's three results.
    "<built-in function add>",
    "<built-in function floordiv>",
    "<built-in function getitem>",
}
# Between them each operation occurs; torch takes a second a block.
CHOSEN = {
    "full": dataclasses.replace(FULL, num_blocks=1),
    "open": dataclasses.replace(OPEN, num_blocks=1),
    "stacked": STACKED,
}


@pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning")  # torch's own pytrees
@pytest.mark.parametrize("config", CHOSEN.values(), ids=CHOSEN)
def test_an_exported_conformer_computes_the_same_at_any_length(config: ConformerConfig) -> None:
    torch.manual_seed(0)
    model = ConformerCtc(ConformerCtcConfig(encoder=config, num_outputs=5)).eval()
    randomize(model)
    dynamic = ({2: torch.export.Dim.AUTO},)
    exported = torch.export.export(model, (random_frames(64),), dynamic_shapes=dynamic)
    exported = exported.run_decompositions({})
    called = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert not called - ALLOWED
    for frames in (64, 17, 90):
        features = random_frames(frames)
        torch.testing.assert_close(exported.module()(features)[0], model(features)[0], rtol=0, atol=1e-5)
