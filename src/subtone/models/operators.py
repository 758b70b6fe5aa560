"""Operations that networks share with the run time: named, so that an exported graph keeps them whole.

torch.export would take relative attention apart into thirty matrix products, masks and gathers, from
which nobody could read how many frames it looks back. Each operation here has two forms. The Python
function (`attention`) computes and differentiates; while torch.export traces, the same function puts
one node `subtone::attention` into the graph instead. The contract of a node is the docstring of its
function; `tests/reference/attention.py` computes it cell by cell.

Letters: B batch, T frames, D width, R relative positions, t a row that looks, s a row that it sees.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

UNLIMITED = -1
"""A context, in rows, without end."""
LONGEST_WAVE = 10_000.0
"""How much slower the last sinusoid is than the first, nearly (Vaswani et al. 2017, section 3.5)."""


_is_apart: ContextVar[bool] = ContextVar("_is_apart", default=False)


@contextmanager
def taken_apart() -> Iterator[None]:
    """While inside, an export of `attention`, `sinusoids` and `stack_frames` has torch's own operators in place of
    ours: for formats other than ours. The number of frames is then that of the example."""
    token = _is_apart.set(True)
    try:
        yield
    finally:
        _is_apart.reset(token)


def _is_kept_whole() -> bool:
    return torch.compiler.is_exporting() and not _is_apart.get()


def num_positions(frames: int, left: int, right: int) -> int:
    """Rows R of the table of relative positions: one for each distance that occurs.

    >>> num_positions(100, left=8, right=2), num_positions(100, left=UNLIMITED, right=0)
    (11, 199)
    """
    return 2 * frames - 1 if UNLIMITED in (left, right) else left + right + 1


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    positions: Tensor | None,
    content_bias: Tensor | None,
    position_bias: Tensor | None,
    heads: int,
    left: int,
    right: int,
    lengths: Tensor | None = None,
) -> Tensor:
    """Each row's mean of the values of the rows it sees, weighted by relative attention.

    Dai et al. 2019 (Transformer-XL), section 3.3, for each head, H = D / heads wide:
    score(t, s) = ((q_t + content_bias) . k_s + (q_t + position_bias) . p_(t - s)) / sqrt(H); softmax
    over s; sum of value rows. Row t sees t - left .. t + right, as far as there are rows.

    Args:
        query, key, value: (B, T, D), projected; heads lie side by side in D.
        positions: (R, D), projected, R = `num_positions`; row i is p of distance left - i, or
            T - 1 - i where a context is unlimited. None: scores are q_t . k_s / sqrt(H).
        content_bias, position_bias: (D,); None where `positions` is.
        heads: a divisor of D.
        left, right: rows seen before and behind a row; -1: all.
        lengths: (B,) rows that are valid: no row sees one beyond. An invalid row that sees none
            gets the mean of all values, which is finite and nobody reads.

    Returns:
        (B, T, D).

    >>> rows = torch.tensor([[[1.0], [2.0], [6.0]]])
    >>> flat = torch.zeros_like(rows)
    >>> attention(flat, flat, rows, None, None, None, heads=1, left=1, right=0)[0, :, 0].tolist()
    [1.0, 1.5, 4.0]
    """
    _check_attention(query, key, value, positions, content_bias, position_bias, heads, left, right)
    if _is_kept_whole():
        if lengths is not None:
            raise ValueError("lengths cannot be exported; export one whole utterance, lengths=None")
        return torch.ops.subtone.attention(
            query, key, value, positions, content_bias, position_bias, heads, left, right
        )
    return _attention(query, key, value, positions, content_bias, position_bias, heads, left, right, lengths)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    positions: Tensor | None,
    content_bias: Tensor | None,
    position_bias: Tensor | None,
    heads: int,
    left: int,
    right: int,
    lengths: Tensor | None,
) -> Tensor:
    frames = query.shape[1]
    rows = torch.arange(frames, device=query.device)
    distances = rows[:, None] - rows[None, :]
    content = query if content_bias is None else query + content_bias
    scores = _split(content, heads) @ _split(key, heads).transpose(-1, -2)
    if positions is not None:
        assert position_bias is not None
        by_position = _split(query + position_bias, heads) @ _split(positions[None], heads).transpose(-1, -2)
        farthest = frames - 1 if UNLIMITED in (left, right) else left
        index = (farthest - distances).clamp(0, positions.shape[0] - 1)
        scores = scores + by_position.gather(-1, index.expand(*scores.shape))
    is_hidden = torch.zeros_like(distances, dtype=torch.bool)
    if left != UNLIMITED:
        is_hidden = is_hidden | (distances > left)
    if right != UNLIMITED:
        is_hidden = is_hidden | (-distances > right)
    if lengths is not None:
        is_hidden = is_hidden | (rows >= lengths[:, None])[:, None, None, :]
    scores = scores / math.sqrt(query.shape[2] // heads)
    # Not minus infinity: a row that sees nothing must not become NaN, whose gradient spreads.
    scores = scores.masked_fill(is_hidden, torch.finfo(scores.dtype).min)
    seen = torch.softmax(scores, dim=-1) @ _split(value, heads)
    return seen.transpose(1, 2).flatten(2)


def _split(rows: Tensor, heads: int) -> Tensor:
    """(B, T, D) as (B, heads, T, D / heads)."""
    return rows.unflatten(2, (heads, -1)).transpose(1, 2)


def _check_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    positions: Tensor | None,
    content_bias: Tensor | None,
    position_bias: Tensor | None,
    heads: int,
    left: int,
    right: int,
) -> None:
    if query.dim() != 3 or query.shape != key.shape or query.shape != value.shape:
        shapes = tuple(query.shape), tuple(key.shape), tuple(value.shape)
        raise ValueError(f"query, key, value have shapes {shapes}; all must be one (B, T, D)")
    _, frames, width = query.shape
    if heads < 1 or width % heads:
        raise ValueError(f"heads={heads} does not divide the width {width}; use a divisor")
    if left < UNLIMITED or right < UNLIMITED:
        raise ValueError(f"left={left}, right={right} must be at least 0, or -1 for all rows")
    together = [part is None for part in (positions, content_bias, position_bias)]
    if len(set(together)) > 1:
        raise ValueError("positions, content_bias and position_bias go together; give all three or none")
    if positions is None:
        return
    expected = (num_positions(frames, left, right), width)
    if tuple(positions.shape) != expected:
        raise ValueError(
            f"positions has shape {tuple(positions.shape)}; {frames} rows with left={left}, right={right} "
            f"need {expected}"
        )


@torch.library.custom_op("subtone::attention", mutates_args=())
def _attention_node(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    positions: Tensor | None,
    content_bias: Tensor | None,
    position_bias: Tensor | None,
    heads: int,
    left: int,
    right: int,
) -> Tensor:
    return _attention(query, key, value, positions, content_bias, position_bias, heads, left, right, None)


@_attention_node.register_fake
def _(query, key, value, positions, content_bias, position_bias, heads, left, right):
    return torch.empty_like(value, memory_format=torch.contiguous_format)


def sinusoid_table(distances: range, width: int, like: Tensor | None = None) -> Tensor:
    """Sinusoids of distances, (len(distances), width): sines in even columns, cosines in odd.

    Vaswani et al. 2017, section 3.5: columns 2 i and 2 i + 1 hold sin and cos of
    d / 10000**(2 i / width). Computed in float64 and rounded once, so that the run time's table is
    the same; `like` gives device and type (float32 on the default device without).

    >>> sinusoid_table(range(1, -2, -1), width=2)[:, 0].tolist()
    [0.8414709568023682, 0.0, -0.8414709568023682]
    """
    if width < 2 or width % 2:
        raise ValueError(f"width={width} must be even, to hold a sine and a cosine of each frequency")
    device, dtype = (None, torch.float32) if like is None else (like.device, like.dtype)
    rows = torch.arange(distances.start, distances.stop, distances.step, dtype=torch.float64, device=device)
    columns = torch.arange(0, width, 2, dtype=torch.float64, device=device)
    angles = rows[:, None] * torch.exp(columns * (-math.log(LONGEST_WAVE) / width))
    return torch.stack((angles.sin(), angles.cos()), dim=2).flatten(1).to(dtype)


def sinusoids(reference: Tensor, width: int) -> Tensor:
    """Sinusoids (2 T - 1, width) of the distances T - 1 down to -(T - 1) between T rows.

    T is `reference.shape[1]`, whose device and type the table has; its values are not read.
    """
    if _is_kept_whole():
        return torch.ops.subtone.sinusoids(reference, width)
    frames = reference.shape[1]
    return sinusoid_table(range(frames - 1, -frames, -1), width, like=reference)


@torch.library.custom_op("subtone::sinusoids", mutates_args=())
def _sinusoids_node(reference: Tensor, width: int) -> Tensor:
    frames = reference.shape[1]
    return sinusoid_table(range(frames - 1, -frames, -1), width, like=reference)


@_sinusoids_node.register_fake
def _(reference, width):
    return reference.new_empty((2 * reference.shape[1] - 1, width))


def stack_frames(features: Tensor, count: int) -> Tensor:
    """Every `count` rows beside each other: (B, T, D) to (B, T // count, count * D), oldest first.

    An incomplete last stack is dropped.

    >>> stack_frames(torch.arange(5.0).reshape(1, 5, 1), 2).tolist()
    [[[0.0, 1.0], [2.0, 3.0]]]
    """
    if count < 1:
        raise ValueError(f"count={count} must be at least 1 frame a stack")
    if _is_kept_whole():
        return torch.ops.subtone.stack_frames(features, count)
    return _stack_frames(features, count)


def _stack_frames(features: Tensor, count: int) -> Tensor:
    batch, frames, width = features.shape
    stacks = frames // count
    return features[:, : stacks * count].reshape(batch, stacks, count * width)


@torch.library.custom_op("subtone::stack_frames", mutates_args=())
def _stack_frames_node(features: Tensor, count: int) -> Tensor:
    return _stack_frames(features, count).clone()  # a node may not return a view of what it read


@_stack_frames_node.register_fake
def _(features, count):
    batch, frames, width = features.shape
    return features.new_empty((batch, frames // count, count * width))
