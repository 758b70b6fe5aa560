"""The transducer's loss: minus the log-likelihood of the labels, over all their alignments (RNN-T).

Graves 2012, "Sequence Transduction with Recurrent Neural Networks", section 2. At frame t, with u labels
already said, a joiner's softmax gives each label and the blank a probability: a blank moves to frame t + 1, the
next label to u + 1. An alignment is a path of such moves from (0, 0) to a last blank at (T-1, U). With
`blank(t, u)` and `label(t, u)` the log-probabilities of the two moves from a cell (Eq. 14, 15), `(+)` for
logaddexp, and `alpha(0, 0) = beta(T, U) = 0`:

    alpha(t, u) = alpha(t-1, u) + blank(t-1, u)  (+)  alpha(t, u-1) + label(t, u-1)        Eq. 16
    beta(t, u)  = blank(t, u) + beta(t+1, u)     (+)  label(t, u) + beta(t, u+1)           Eq. 18
    loss        = -alpha(T, U)                                                             Eq. 17

and the share of alignments through a move, and so the gradient with respect to a logit k (Eq. 20, through the
softmax), is

    by_blank(t, u) = exp(alpha(t, u) + blank(t, u) + beta(t+1, u) + loss),    by_label alike
    d loss / d logit = softmax(k) * (by_blank + by_label) - by_blank [k is blank] - by_label [k is label]

Only the softmax's denominators are kept of it. The logits are read twice, block by block, each block small
enough to stay in a processor's last cache: for the denominators, and for the gradient, which is written where it
will be returned. No other array has V columns.

What makes it one recurrence:

* A row t = T is added, where the last blank leads. Padding is a corridor in it: from (T_b, U_b), where
  utterance b ends, moves of probability one lead down to T and across to U, and no others. So all utterances
  start and end in the same two cells, and padding is never read.
* beta is alpha of the lattice turned by half a turn; both are found together, as 2 B lattices.
* Cells of a diagonal t + u need the one before only. Lattices are laid out diagonal by diagonal, so that
  stepping back is a view, and a step is one addition and one logaddexp.

alpha, beta and the loss are sums of thousands of terms, and a share is the exponential of their small difference:
kept in float32, the gradient of 1600 frames and 200 labels is off by 3e-3 of its norm, in float64 by 3e-7
(everything else in float32 both times). So they are float64; V times fewer than the logits, they cost nothing.

Letters: B batch, T frames, U labels, V vocabulary with the blank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

BLOCK_ELEMENTS = {"cpu": 2**20, "cuda": 2**25}
"""Device -> logits at a time: for each thread of a processor, few MiB and few barriers; few launches elsewhere."""
REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda losses: losses,
    "mean": torch.mean,
    "sum": torch.sum,
}


def rnnt_loss(
    logits: Tensor,
    labels: Tensor,
    logit_lengths: Tensor,
    label_lengths: Tensor,
    *,
    blank_index: int,
    reduction: str = "mean",
) -> Tensor:
    """Minus the log-likelihood of `labels` under a transducer, in nats.

    Graves 2012, Eq. 16 to 20; with a gradient to `logits`, once. A loss is inf where logits of -inf forbid every
    alignment, and the gradient of that utterance is then NaN. NaN within the lengths gives NaN.

    Args:
        logits: (B, T, U+1, V), not normalized, of any float type; the softmax is taken in float32 at least.
        labels: (B, U), whole numbers in [0, V) other than `blank_index`; what lies behind a length is not read.
        logit_lengths: (B,), frames of each utterance, 1 to T.
        label_lengths: (B,), labels of each utterance, 0 to U.
        blank_index: the blank among the V.
        reduction: "none"; "mean", over utterances, not divided by lengths; or "sum".

    Returns:
        (B,) for "none", else a scalar; float32, or float64 where logits are.

    Raises:
        ValueError: shapes, types, lengths or labels that do not fit each other, and which utterance; at the
            backward pass, `create_graph=True`.

    >>> import math
    >>> logits = torch.zeros(1, 2, 2, 4)  # two frames, one label of four: two alignments of three moves
    >>> found = rnnt_loss(logits, torch.tensor([[1]]), torch.tensor([2]), torch.tensor([1]), blank_index=0)
    >>> round(found.item(), 4), round(-math.log(2 * 0.25**3), 4)
    (3.4657, 3.4657)
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction={reduction!r} is not known; use one of {', '.join(REDUCTIONS)}")
    _check_shapes(logits, labels, logit_lengths, label_lengths, blank_index)
    frames, said = logit_lengths.tolist(), label_lengths.tolist()
    _check_lengths("logit_lengths", frames, lowest=1, highest=logits.shape[1])
    _check_lengths("label_lengths", said, lowest=0, highest=labels.shape[1])
    _check_labels(labels, said, vocabulary=logits.shape[3], blank_index=blank_index)
    labels = labels.to(logits.device, torch.int64)
    losses: Tensor = _RnntLoss.apply(logits, labels, frames, said, blank_index)  # type: ignore[no-untyped-call]
    return REDUCTIONS[reduction](losses)


class _Moves(NamedTuple):
    """Log-probabilities of the moves from each cell, both (B, T+1, U+1); padding is a corridor."""

    blank: Tensor
    label: Tensor


class _RnntLoss(torch.autograd.Function):
    """Losses (B,), without a reduction; see the module's docstring."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, frames: list[int], said: list[int], blank_index: int
    ) -> Tensor:
        denominators = _denominators(logits, frames, said)
        moves = _moves(logits, labels, denominators, frames, said, blank_index)
        if not ctx.needs_input_grad[0]:
            return -_lattices(moves, both_ways=False)[0][:, -1, -1].to(denominators.dtype)
        alpha, beta = _lattices(moves, both_ways=True)
        losses = -alpha[:, -1, -1]
        so_far = alpha + losses[:, None, None]
        by_blank = (so_far + moves.blank)[:, :-1].add_(beta[:, 1:]).exp_()
        by_label = (so_far + moves.label)[:, :-1, :-1].add_(beta[:, :-1, 1:]).exp_()
        shares = (by_blank.to(denominators.dtype), by_label.to(denominators.dtype))
        ctx.save_for_backward(logits, labels, denominators, *shares)
        ctx.sizes = frames, said, blank_index
        return losses.to(denominators.dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # a second derivative would leave out this one's dependence on the logits
            raise ValueError(
                "create_graph=True, but rnnt_loss has no second derivative; use create_graph=False"
            )
        logits, labels, denominators, by_blank, by_label = ctx.saved_tensors
        frames, said, blank_index = ctx.sizes
        by_blank, by_label = by_blank * upstream[:, None, None], by_label * upstream[:, None, None]
        by_either = by_blank + nn.functional.pad(by_label, (0, 1))
        gradient = torch.empty_like(logits)
        for b, (num_frames, num_labels) in enumerate(zip(frames, said, strict=True)):
            gradient[b, num_frames:] = 0
            gradient[b, :num_frames, num_labels + 1 :] = 0
        for b, cells in _blocks(logits, frames, said):
            target, block = gradient[b][cells], logits[b][cells]
            is_wide = target.dtype == denominators.dtype
            wide = target if is_wide else torch.empty_like(target, dtype=denominators.dtype)
            torch.sub(block, denominators[b][cells].unsqueeze(-1), out=wide)
            wide.exp_().mul_(by_either[b][cells].unsqueeze(-1))
            wide[..., blank_index] -= by_blank[b][cells]
            places = torch.arange(said[b], device=labels.device)
            wide[:, places, labels[b, : said[b]]] -= by_label[b][cells[0], : said[b]]
            if not is_wide:
                target.copy_(wide)
        return gradient, None, None, None, None


def _blocks(
    logits: Tensor, frames: Sequence[int], said: Sequence[int]
) -> Iterator[tuple[int, tuple[slice, slice]]]:
    """Utterance, and (frames, labels) of a block of its cells: all valid cells once, no padding."""
    is_cpu = logits.device.type == "cpu"
    elements = BLOCK_ELEMENTS["cpu"] * torch.get_num_threads() if is_cpu else BLOCK_ELEMENTS["cuda"]
    for b, (num_frames, num_labels) in enumerate(zip(frames, said, strict=True)):
        step = max(1, elements // ((num_labels + 1) * logits.shape[3]))
        for start in range(0, num_frames, step):
            yield b, (slice(start, min(start + step, num_frames)), slice(num_labels + 1))


def _denominators(logits: Tensor, frames: Sequence[int], said: Sequence[int]) -> Tensor:
    """log sum exp over V, (B, T, U+1), in float32 or wider; 0 in the padding.

    Where all V logits are -inf it is 0 too, so that each of them keeps probability 0 instead of NaN.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    denominators = logits.new_zeros(logits.shape[:3], dtype=dtype)
    for b, cells in _blocks(logits, frames, said):
        denominators[b][cells] = torch.logsumexp(logits[b][cells].to(dtype), dim=-1)
    return denominators.masked_fill_(denominators == -torch.inf, 0.0)


def _moves(
    logits: Tensor,
    labels: Tensor,
    denominators: Tensor,
    frames: Sequence[int],
    said: Sequence[int],
    blank_index: int,
) -> _Moves:
    """The two log-probabilities of each cell (Eq. 14, 15), and the corridor that padding is."""
    B, T, _, _ = logits.shape
    U = labels.shape[1]
    t = torch.arange(T + 1, device=logits.device)[:, None]
    u = torch.arange(U + 1, device=logits.device)
    ends_t, ends_u = (torch.tensor(ends, device=logits.device)[:, None, None] for ends in (frames, said))
    blank, label = (denominators.new_full((B, T + 1, U + 1), -torch.inf) for _ in range(2))
    blank[:, :T] = logits[..., blank_index] - denominators
    index = labels.masked_fill(u[:U] >= ends_u[:, 0], 0)[:, None, :, None].expand(B, T, U, 1)
    label[:, :T, :U] = logits[:, :, :U].gather(3, index).squeeze(3) - denominators[:, :, :U]
    blank.masked_fill_((t >= ends_t) | (u > ends_u), -torch.inf)
    label.masked_fill_((t >= ends_t) | (u >= ends_u), -torch.inf)
    blank.masked_fill_((t >= ends_t) & (t < T) & (u == ends_u), 0.0)
    label.masked_fill_((t == T) & (u >= ends_u) & (u < U), 0.0)
    return _Moves(blank, label)


def _lattices(moves: _Moves, *, both_ways: bool) -> tuple[Tensor, ...]:
    """alpha and, for `both_ways`, beta: each (B, T+1, U+1) in float64."""
    B, rows, columns = moves.blank.shape
    num_diagonals, ways = rows + columns - 1, 1 + both_ways
    # Moves that arrive at the cells of a diagonal: by label from the left, by blank from above.
    arriving = moves.blank.new_full((num_diagonals, ways, B, 2, columns), -torch.inf)
    by_label, by_blank = (_by_cell(arriving[:, 0, :, way], rows) for way in range(2))
    by_label[:, :, 1:] = moves.label[:, :, :-1]
    by_blank[:, 1:] = moves.blank[:, :-1]
    if both_ways:  # turned, what leaves a cell arrives there
        _by_cell(arriving[:, 1, :, 0], rows).copy_(moves.label.flip(1, 2))
        _by_cell(arriving[:, 1, :, 1], rows).copy_(moves.blank.flip(1, 2))
    # One column more, on the left, which nothing reaches.
    sums = arriving.new_full((num_diagonals, ways, B, columns + 1), -torch.inf, dtype=torch.float64)
    sums[0, :, :, 1] = 0.0
    left_and_above = sums.unfold(3, columns, 1)
    steps = zip(left_and_above[:-1], arriving[1:], sums[1:, ..., 1:], strict=True)
    for before, move, result in steps:
        by_label, by_blank = (before + move).unbind(2)
        torch.logaddexp(by_label, by_blank, out=result)
    alpha = _by_cell(sums[:, 0, :, 1:], rows)
    return (alpha, _by_cell(sums[:, 1, :, 1:], rows).flip(1, 2)) if both_ways else (alpha,)


def _by_cell(diagonals: Tensor, rows: int) -> Tensor:
    """A view (B, rows, columns) of what lies as (diagonal, B, column): cell (t, u) is at diagonal t + u."""
    (step, batch, column), (_, B, columns) = diagonals.stride(), diagonals.shape
    return diagonals.as_strided((B, rows, columns), (batch, step, step + column), diagonals.storage_offset())


def _check_shapes(
    logits: Tensor, labels: Tensor, logit_lengths: Tensor, label_lengths: Tensor, blank_index: int
) -> None:
    """That types and shapes fit each other."""
    if logits.ndim != 4 or not logits.is_floating_point() or 0 in logits.shape:
        raise ValueError(
            f"logits of shape {tuple(logits.shape)}, {logits.dtype} are no joiner's; "
            "use floats (batch, frames, labels + 1, vocabulary), none of them 0"
        )
    B, _, columns, V = logits.shape
    if labels.shape != (B, columns - 1) or not _is_whole(labels):
        raise ValueError(
            f"labels of shape {tuple(labels.shape)}, {labels.dtype} do not fit logits of shape "
            f"{tuple(logits.shape)}; use whole numbers of shape {(B, columns - 1)}"
        )
    for name, lengths in (("logit_lengths", logit_lengths), ("label_lengths", label_lengths)):
        if lengths.shape != (B,) or not _is_whole(lengths):
            raise ValueError(
                f"{name} of shape {tuple(lengths.shape)}, {lengths.dtype} do not fit {B} utterances; "
                f"use whole numbers of shape {(B,)}"
            )
    if not 0 <= blank_index < V:
        raise ValueError(f"blank_index={blank_index} lies outside a vocabulary of {V}; use 0 to {V - 1}")


def _is_whole(values: Tensor) -> bool:
    return not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)


def _check_lengths(name: str, lengths: Sequence[int], *, lowest: int, highest: int) -> None:
    for b, length in enumerate(lengths):
        if not lowest <= length <= highest:
            raise ValueError(
                f"{name}={length} of utterance {b} must lie in {lowest} to {highest}; correct it"
            )


def _check_labels(labels: Tensor, said: Sequence[int], *, vocabulary: int, blank_index: int) -> None:
    for b, (row, length) in enumerate(zip(labels.tolist(), said, strict=True)):
        for u, label in enumerate(row[:length]):
            if not 0 <= label < vocabulary:
                raise ValueError(
                    f"label={label} at {u} of utterance {b} lies outside a vocabulary of {vocabulary}; "
                    "use labels of the joiner's vocabulary, or a shorter label_lengths for padding"
                )
            if label == blank_index:
                raise ValueError(
                    f"label={label} at {u} of utterance {b} is the blank; leave blanks out of labels, "
                    "or use a shorter label_lengths for padding"
                )
