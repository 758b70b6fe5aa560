"""Shared operations equal their loops, and stay whole under torch.export."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from tests.reference import attention as reference
from torch import Tensor, nn

from subtone.models import operators

HEADS, WIDTH = 2, 6
CONTEXTS = [(-1, -1), (-1, 0), (3, 0), (0, 0), (2, 4), (3, -1), (50, 50)]


def inputs(frames: int, left: int, right: int, batch: int = 1, dtype=torch.float64) -> list[Tensor]:
    """Query, key, value, positions and the two biases."""
    torch.manual_seed(frames)
    rows = [torch.randn(batch, frames, WIDTH, dtype=dtype) for _ in range(3)]
    table = torch.randn(operators.num_positions(frames, left, right), WIDTH, dtype=dtype)
    return [*rows, table, *(torch.randn(WIDTH, dtype=dtype) for _ in range(2))]


@pytest.mark.parametrize(("left", "right"), CONTEXTS)
@pytest.mark.parametrize("frames", [1, 2, 9])
def test_attention_equals_its_loop(frames: int, left: int, right: int) -> None:
    given = inputs(frames, left, right)
    settings = {"heads": HEADS, "left": left, "right": right}
    ours = operators.attention(*given, **settings)
    arrays = [value.numpy() for value in given]
    theirs = reference.attention(*[value[0] for value in arrays[:3]], *arrays[3:], **settings)
    # float64 on both sides: what is left is the order of a few dozen additions.
    np.testing.assert_allclose(ours[0].numpy(), theirs, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("left", "right"), CONTEXTS)
def test_attention_without_positions_equals_its_loop(left: int, right: int) -> None:
    given = inputs(7, left, right)[:3]
    settings = {"heads": HEADS, "left": left, "right": right}
    ours = operators.attention(*given, None, None, None, **settings)
    theirs = reference.attention(*[value[0].numpy() for value in given], None, None, None, **settings)
    np.testing.assert_allclose(ours[0].numpy(), theirs, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("left", "right"), CONTEXTS)
def test_no_row_sees_padding(left: int, right: int) -> None:
    lengths = torch.tensor([9, 4, 1])
    given = inputs(9, left, right, batch=3)
    settings = {"heads": HEADS, "left": left, "right": right}
    ours = operators.attention(*given, **settings, lengths=lengths)
    assert torch.isfinite(ours).all()  # rows that see nothing too, for the sake of gradients
    for index, length in enumerate(lengths.tolist()):
        rows = [value[index].numpy() for value in given[:3]]
        shared = [value.numpy() for value in given[3:]]
        theirs = reference.attention(*rows, *shared, **settings, length=length)
        np.testing.assert_allclose(ours[index, :length].numpy(), theirs[:length], rtol=0, atol=1e-13)


def test_attention_differentiates_as_differences_do() -> None:
    given = [value.requires_grad_() for value in inputs(4, 2, 1, batch=2)]
    lengths = torch.tensor([4, 1])

    def result(*values: Tensor) -> Tensor:
        return operators.attention(*values, HEADS, 2, 1, lengths)[:, :1]

    assert torch.autograd.gradcheck(result, given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key": torch.zeros(1, 4, 6)}, r"shapes .*\(1, 4, 6\).* must be one \(B, T, D\)"),
        ({"heads": 4}, "heads=4 does not divide the width 6"),
        ({"left": -2}, "left=-2, right=0 must be at least 0, or -1"),
        ({"position_bias": None}, "go together; give all three or none"),
        ({"positions": torch.zeros(4, 6)}, r"has shape \(4, 6\); 5 rows with left=2, right=0 need \(3, 6\)"),
    ],
)
def test_a_wrong_call_says_what_attention_needs(changes: dict, message: str) -> None:
    names = ("query", "key", "value", "positions", "content_bias", "position_bias")
    given = dict(zip(names, inputs(5, 2, 0, dtype=torch.float32), strict=True))
    with pytest.raises(ValueError, match=message):
        operators.attention(**{**given, "heads": HEADS, "left": 2, "right": 0, **changes})


@pytest.mark.parametrize("frames", [1, 2, 30])
def test_sinusoids_equal_their_loop_to_float32(frames: int) -> None:
    table = operators.sinusoids(torch.zeros(1, frames, 3), 8).numpy()
    theirs = reference.sinusoids(list(range(frames - 1, -frames, -1)), 8)
    assert table.dtype == np.float32
    # One rounding of a number of at most 1, beside float64 angles of up to 30.
    np.testing.assert_allclose(table, theirs, rtol=0, atol=2.0**-24)


def test_a_table_of_limited_contexts_is_a_part_of_the_whole_one() -> None:
    whole = operators.sinusoids(torch.zeros(1, 10, 1), 4)
    part = operators.sinusoid_table(range(3, -3, -1), 4)
    assert torch.equal(part, whole[9 - 3 : 9 + 3])


def test_an_odd_width_of_sinusoids_is_refused() -> None:
    with pytest.raises(ValueError, match="width=7 must be even"):
        operators.sinusoids(torch.zeros(1, 2, 1), 7)


@pytest.mark.parametrize(("frames", "count"), list(itertools.product([0, 1, 2, 7], [1, 2, 3])))
def test_stacked_frames_equal_their_loop(frames: int, count: int) -> None:
    torch.manual_seed(0)
    features = torch.randn(2, frames, 3, dtype=torch.float64)
    ours = operators.stack_frames(features, count)
    for row, utterance in zip(ours, features, strict=True):
        assert np.array_equal(row.numpy(), reference.stack_frames(utterance.numpy(), count))


def test_a_stack_of_no_frames_is_refused() -> None:
    with pytest.raises(ValueError, match="count=0 must be at least 1"):
        operators.stack_frames(torch.zeros(1, 4, 2), 0)


class All(nn.Module):
    """Every operation once."""

    def __init__(self) -> None:
        super().__init__()
        self.content_bias = nn.Parameter(torch.randn(WIDTH))
        self.position_bias = nn.Parameter(torch.randn(WIDTH))

    def forward(self, features: Tensor) -> Tensor:
        rows = operators.stack_frames(features, 2)
        table = operators.sinusoids(rows, WIDTH)
        return operators.attention(
            rows, rows, rows, table, self.content_bias, self.position_bias, HEADS, -1, -1
        )


@pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning")  # torch's own pytrees
def test_an_exported_graph_keeps_each_operation_whole_at_any_length() -> None:
    torch.manual_seed(0)
    module = All().eval()
    example = torch.randn(1, 20, WIDTH // 2)
    dynamic = {"features": {1: torch.export.Dim.AUTO}}
    exported = torch.export.export(module, (example,), dynamic_shapes=dynamic).run_decompositions({})
    called = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert called == [
        "subtone.stack_frames.default",
        "subtone.sinusoids.default",
        "subtone.attention.default",
    ]
    for frames in (20, 33, 6):
        features = torch.randn(1, frames, WIDTH // 2)
        assert torch.equal(exported.module()(features), module(features))


class Padded(nn.Module):
    def forward(self, rows: Tensor, lengths: Tensor) -> Tensor:
        return operators.attention(rows, rows, rows, None, None, None, 1, 2, 0, lengths)


def test_lengths_are_not_exported() -> None:
    with pytest.raises(ValueError, match="lengths cannot be exported"):
        torch.export.export(Padded(), (torch.zeros(2, 5, 2), torch.tensor([5, 3])))


@pytest.mark.parametrize("name", ["attention", "sinusoids", "stack_frames"])
def test_a_node_says_the_shape_that_it_gives(name: str) -> None:
    rows = torch.randn(2, 9, WIDTH)
    arguments = {
        "attention": (*inputs(9, 2, 1, batch=2, dtype=torch.float32), HEADS, 2, 1),
        "sinusoids": (rows, 8),
        "stack_frames": (rows, 2),
    }
    operator = getattr(torch.ops.subtone, name).default
    torch.library.opcheck(operator, arguments[name], test_utils=("test_schema", "test_faketensor"))
