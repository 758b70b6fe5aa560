"""Attention in torch's own terms is read back from the graph, however its mask and its shift were written."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from subtone.export.graph import FRAMES, SAMPLES, Input, UnsupportedOperatorError
from subtone.export.lower import lower_entry
from subtone.models.operators import sinusoid_table
from subtone.program import Attention, Constant, Program, Scale, Sinusoids
from subtone.runtime.engine import NumpyEngine

WIDTH, HEADS = 8, 2
EPSILON = float(np.finfo(np.float32).eps)
BOUND = 4 * (8 * WIDTH + 100) * EPSILON
"""Four products deep, sums of 8 or of as many rows as are heard, of values below 4; times 4."""


class Attends(nn.Module):
    """Attention (B, T, 8) with two heads; `mask` is made of scores' sizes, `options` are torch's."""

    def __init__(self, mask: Callable[[Tensor], Tensor] | None = None, **options) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.mask, self.options = mask, options

    def heads(self, rows: Tensor) -> Tensor:
        return rows.view(1, -1, HEADS, WIDTH // HEADS).transpose(1, 2)

    def forward(self, features: Tensor) -> Tensor:
        query, key, value = (self.heads(of(features)) for of in (self.query, self.key, self.value))
        mask = self.mask(features) if self.mask else None
        seen = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, **self.options)
        return seen.transpose(1, 2).flatten(2)


class Relative(Attends):
    """The same with relative positions, whose scores `shift` (B, H, T, 2 T - 1) brings to (B, H, T, T)."""

    def __init__(
        self, shift: Callable[[Tensor], Tensor], *, factor: float = 0.5, table=None, **options
    ) -> None:
        super().__init__(**options)
        self.positions = nn.Linear(WIDTH, WIDTH, bias=False)
        self.content_bias, self.position_bias = (nn.Parameter(torch.randn(HEADS, 1, 4)) for _ in range(2))
        self.shift, self.factor, self.table = shift, factor, table or interleaved

    def forward(self, features: Tensor) -> Tensor:
        query, key, value = (self.heads(of(features)) for of in (self.query, self.key, self.value))
        frames = features.shape[1]
        table = self.table(torch.arange(frames - 1, -frames, -1)[:, None] * rates())
        by_position = (query + self.position_bias) @ self.heads(
            self.positions(table[None].to(query.dtype))
        ).transpose(2, 3)
        seen = functional.scaled_dot_product_attention(
            query + self.content_bias,
            key,
            value,
            attn_mask=self.shift(by_position) * self.factor,
            **self.options,
        )
        return seen.transpose(1, 2).flatten(2)


def rates() -> Tensor:
    return torch.exp(torch.arange(0, WIDTH, 2) * (-math.log(10000.0) / WIDTH))


def interleaved(angles: Tensor) -> Tensor:
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


def padded_and_cut(scores: Tensor) -> Tensor:
    """Appendix B of Transformer-XL."""
    _, heads, frames, positions = scores.shape
    scores = functional.pad(scores, (1, 0)).view(1, heads, positions + 1, frames)
    return scores[:, :, 1:].view(1, heads, frames, positions)[..., :frames]


def gathered(scores: Tensor) -> Tensor:
    frames = scores.shape[2]
    rows = torch.arange(frames)
    index = frames - 1 - (rows[:, None] - rows)
    return scores.gather(-1, index.expand(1, scores.shape[1], frames, frames))


def program_of(network: nn.Module) -> tuple[Program, dict[str, Constant]]:
    inputs = (Input(name="features", layout=FRAMES, width=WIDTH),)
    return lower_entry(network.eval(), inputs, output="logits", frames_per_step=1)


def attention_of(program: Program) -> Attention:
    (attention,) = (op for op in program.ops if isinstance(op, Attention))
    return attention


def assert_equals_torch(network: nn.Module, program: Program, constants: dict[str, Constant]) -> None:
    engine = NumpyEngine(program, constants)
    for frames in (1, 2, 7, 100):
        features = np.random.default_rng(frames).standard_normal((frames, WIDTH)).astype(np.float32)
        with torch.inference_mode():
            theirs = network.double()(torch.from_numpy(features).double()[None])[0].numpy()
        np.testing.assert_allclose(engine.run(features), theirs, rtol=0, atol=BOUND)


def distances(features: Tensor) -> Tensor:
    rows = torch.arange(features.shape[1])
    return rows[:, None] - rows


MASKS = {
    "none": (None, {}, (-1, -1)),
    "all": (lambda x: (distances(x) < 10**9)[None, None], {}, (-1, -1)),
    "one for all": (lambda x: torch.ones(1, 1, 1, 1, dtype=torch.bool), {}, (-1, -1)),
    "is_causal": (None, {"is_causal": True}, (-1, 0)),
    "causal": (lambda x: distances(x) >= 0, {}, (-1, 0)),
    "minus infinity": (
        lambda x: torch.full((x.shape[1], x.shape[1]), -math.inf).triu(1).to(x.dtype),
        {},
        (-1, 0),
    ),
    "band": (lambda x: (distances(x) <= 5) & (distances(x) >= -2), {}, (5, 2)),
    "long band": (lambda x: (distances(x) <= 80) & (distances(x) >= 0), {}, (80, 0)),
}


@pytest.mark.parametrize(("mask", "options", "context"), MASKS.values(), ids=MASKS)
def test_a_mask_of_distances_becomes_the_rows_that_are_seen(mask, options, context) -> None:
    network = Attends(mask, **options)
    program, constants = program_of(network)
    attention = attention_of(program)
    assert (attention.heads, attention.left, attention.right) == (HEADS, *context)
    assert (not program.obstacle) == (-1 not in context)
    assert_equals_torch(network, program, constants)


def test_another_scale_is_an_operation_of_its_own() -> None:
    network = Attends(scale=0.2)
    program, constants = program_of(network)
    assert [op.factor for op in program.ops if isinstance(op, Scale)] == [float(np.float32(0.2 * 2))]
    assert_equals_torch(network, program, constants)


@pytest.mark.parametrize("shift", [padded_and_cut, gathered])
def test_relative_attention_is_found_whatever_its_shift_is_made_of(shift) -> None:
    network = Relative(shift)
    program, constants = program_of(network)
    attention = attention_of(program)
    assert attention.positions
    np.testing.assert_array_equal(
        constants[attention.content_bias], network.content_bias.detach().numpy().reshape(-1)
    )
    np.testing.assert_array_equal(
        constants[attention.position_bias], network.position_bias.detach().numpy().reshape(-1)
    )
    assert sum(isinstance(op, Sinusoids) for op in program.ops) == 1
    assert_equals_torch(network, program, constants)


def of_values(features: Tensor) -> Tensor:
    return (features.sum(-1) > 0)[:, None, None]


def fixed(features: Tensor) -> Tensor:
    """A mask made outside torch, which so learns the number of frames."""
    return torch.from_numpy(np.tri(features.shape[1], dtype=bool))


REFUSED = {
    "of chunks": (Attends(lambda x: distances(x) % 4 == 0), "the model hides rows by something other"),
    "of penalties": (
        Attends(lambda x: -0.1 * distances(x).abs().to(x.dtype)),
        "hides rows by something other",
    ),
    "without itself": (Attends(lambda x: distances(x) > 0), "hides rows by something other"),
    "of values": (Attends(of_values), "operator aten.sum.dim_IntList of the model cannot be packed"),
    "mirrored": (
        Relative(lambda s: gathered(s.flip(-1))),
        "adds to its scores what is not relative attention",
    ),
    "scaled alone": (Relative(gathered, factor=0.6), "adds to its scores what is not relative attention"),
    "scaled": (
        Relative(gathered, factor=0.2, scale=0.2),
        r"scales relative attention by 0.2, not by 1 / sqrt\(4\)",
    ),
    "halves": (
        Relative(gathered, table=lambda angles: torch.cat((angles.sin(), angles.cos()), dim=-1)),
        "makes a table of positions that are not sinusoids",
    ),
}


@pytest.mark.parametrize(("network", "message"), REFUSED.values(), ids=REFUSED)
def test_attention_of_another_kind_is_refused_and_says_why(network: nn.Module, message: str) -> None:
    with pytest.raises(UnsupportedOperatorError, match=message):
        program_of(network)


class TwoQueries(Relative):
    """Looks for positions with something else than for contents."""

    def forward(self, features: Tensor) -> Tensor:
        frames = features.shape[1]
        table = interleaved(torch.arange(frames - 1, -frames, -1)[:, None] * rates())
        query, key, value = (self.heads(of(features)) for of in (self.query, self.key, self.value))
        by_position = key @ self.heads(self.positions(table[None])).transpose(2, 3)
        seen = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=gathered(by_position) * 0.5
        )
        return seen.transpose(1, 2).flatten(2)


class SharedKeys(Attends):
    """Two heads of queries, one of keys."""

    def forward(self, features: Tensor) -> Tensor:
        query, key = self.heads(self.query(features)), self.key(features)[:, None, :, :4]
        seen = functional.scaled_dot_product_attention(query, key, key, enable_gqa=True)
        return seen.transpose(1, 2).flatten(2)


class AcrossColumns(Attends):
    """Attends from column to column."""

    def forward(self, features: Tensor) -> Tensor:
        columns = features.transpose(1, 2)[:, None]
        return functional.scaled_dot_product_attention(columns, columns, columns)[:, 0].transpose(1, 2)


class WiderValues(Attends):
    """Heads of 4 columns that look, of 8 that are seen."""

    def forward(self, features: Tensor) -> Tensor:
        query, value = self.heads(self.query(features)), self.value(features)
        value = torch.cat((value, value), dim=-1).view(1, -1, HEADS, WIDTH).transpose(1, 2)
        return functional.scaled_dot_product_attention(query, query, value).transpose(1, 2).flatten(2)


class HeadsInTurn(Relative):
    """Relative positions whose columns go to the heads in turn, as those of nothing else here."""

    def forward(self, features: Tensor) -> Tensor:
        frames = features.shape[1]
        table = interleaved(torch.arange(frames - 1, -frames, -1)[:, None] * rates())
        query = self.heads(self.query(features))
        positions = self.positions(table).view(1, -1, WIDTH // HEADS, HEADS).permute(0, 3, 2, 1)
        mask = gathered(query @ positions) * 0.5
        return (
            functional.scaled_dot_product_attention(query, query, query, attn_mask=mask)
            .transpose(1, 2)
            .flatten(2)
        )


class LongerTable(Relative):
    """Distances between one row more than there are."""

    def forward(self, features: Tensor) -> Tensor:
        frames = features.shape[1] + 1
        table = interleaved(torch.arange(frames - 1, -frames, -1)[:, None] * rates())
        by_position = self.heads(self.query(features)) @ self.heads(self.positions(table[None])).transpose(
            2, 3
        )
        return by_position.sum(-1).transpose(1, 2)


class ByHand(Attends):
    """Softmax attention without torch's function for it."""

    def forward(self, features: Tensor) -> Tensor:
        return (features @ features.transpose(1, 2)).softmax(-1) @ features


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (TwoQueries(gathered), "looks for positions with another query than for contents"),
        (SharedKeys(), r"shares keys between heads \(enable_gqa\)"),
        (AcrossColumns(), r"attends to .*, which is not \(B, heads, T, D\)"),
        (WiderValues(), r"has heads of \(2, 4\), \(2, 4\) and \(2, 8\) columns"),
        (HeadsInTurn(gathered), r"has relative positions that are not \(B, heads, D, R\)"),
        (LongerTable(gathered), "makes positions of rows that nothing else has"),
        (Attends(fixed), "has a mask, and a number of frames that torch fixed"),
        (nn.Sequential(ByHand()), "operator aten.matmul.default of 0 cannot be packed"),
    ],
)
def test_attention_of_another_shape_is_refused_and_says_why(network: nn.Module, message: str) -> None:
    with pytest.raises(UnsupportedOperatorError, match=message):
        program_of(network)


def test_a_table_of_sizes_is_compared_at_a_length_that_no_example_has() -> None:
    """Right for 60 rows and wrong for 2000: it would be packed if only a short example were looked at."""

    def clipped(angles: Tensor) -> Tensor:
        return interleaved(angles.clamp(-1000, 1000))

    with pytest.raises(UnsupportedOperatorError, match="not sinusoids"):
        program_of(Relative(gathered, table=clipped))


def test_the_tables_compared_are_the_run_times_own() -> None:
    table = interleaved(torch.arange(9, -10, -1)[:, None] * rates())
    np.testing.assert_allclose(table, sinusoid_table(range(9, -10, -1), WIDTH), rtol=0, atol=10 * EPSILON)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"layout": "rows", "width": 8},
            "layout='rows' is not known; use one of labels, features, frames, samples",
        ),
        ({"layout": SAMPLES, "width": 8}, "width=8 of samples; use 1"),
    ],
)
def test_an_input_that_cannot_be_is_refused(given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Input(name="features", **given)
