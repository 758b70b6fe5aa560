"""An LSTM layer of two cells that share one state, a gate choosing one of them at every frame.

Bifocal RNN-T (Macoskey et al. 2021; GQ section 4.1) has a large encoder and a small one and decides
frame by frame which of them works. How their states meet is not published. Our reading: one state of the
large cell's D units; the small cell reads and writes the first d of them and leaves the others as they
were. At frame t, x the row of features, first_k its first k values:

    gate_t > 0:   h, c       = cell(weight_ih x + weight_hh h + bias, c)
    otherwise:    h_d, c_d   = cell(small_weight_ih first_k(x) + small_weight_hh h_d + small_bias, c_d)
    output_t = h

with cell(gates, c) torch's: sigmoid(f) c + sigmoid(i) tanh(g), hidden sigmoid(o) tanh(c), gate blocks
in the order i, f, g, o. States begin at zero.

In training both cells compute, and the gate's gradient is that of sigmoid(gate) (straight through).

Letters: B batch, T frames, K inputs, D hidden units; k and d those of the small cell.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


def switched_lstm(
    features: Tensor,
    gate: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor,
    small_weight_ih: Tensor,
    small_weight_hh: Tensor,
    small_bias: Tensor,
) -> Tensor:
    """Hidden states (B, T, D) of two cells on one state; the large one works where `gate` > 0.

    Args:
        features: (B, T, K).
        gate: (B, T), logits.
        weight_ih, weight_hh, bias: (4 D, K), (4 D, D), (4 D,) of the large cell.
        small_weight_ih, small_weight_hh, small_bias: (4 d, k), (4 d, d), (4 d,), k <= K, d <= D.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    weights = (weight_ih, weight_hh, bias, small_weight_ih, small_weight_hh, small_bias)
    _check(features, gate, *weights)
    if torch.compiler.is_exporting():
        return torch.ops.subtone.switched_lstm(features, gate, *weights)
    return _switched_lstm(features, gate, *weights)


def _switched_lstm(
    features: Tensor,
    gate: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor,
    small_weight_ih: Tensor,
    small_weight_hh: Tensor,
    small_bias: Tensor,
) -> Tensor:
    linear = torch.nn.functional.linear
    products = Products(
        lambda rows: linear(rows, weight_ih, bias),
        lambda hidden: linear(hidden, weight_hh),
        lambda rows: linear(rows, small_weight_ih, small_bias),
        lambda hidden: linear(hidden, small_weight_hh),
    )
    return recurrence(
        features,
        gate,
        products,
        width=weight_hh.shape[1],
        small_inputs=small_weight_ih.shape[1],
        small_width=small_weight_hh.shape[1],
    )


class Products(NamedTuple):
    """What the large cell's gates get from a row and from the hidden state, and the small one's."""

    of_rows: Callable[[Tensor], Tensor]
    of_hidden: Callable[[Tensor], Tensor]
    small_of_rows: Callable[[Tensor], Tensor]
    small_of_hidden: Callable[[Tensor], Tensor]


def recurrence(
    features: Tensor, gate: Tensor, products: Products, *, width: int, small_inputs: int, small_width: int
) -> Tensor:
    """`switched_lstm` by given products: the small cell's of the first `small_inputs` features and `small_width`
    of `width` units."""
    soft = torch.sigmoid(gate)
    # The bracket is exactly zero; it only carries the gradient.
    is_large = ((gate > 0).to(soft.dtype) + (soft - soft.detach())).unsqueeze(2)
    from_input = products.of_rows(features).unbind(1)
    small_from_input = products.small_of_rows(features[..., :small_inputs]).unbind(1)
    hidden = cell = features.new_zeros(features.shape[0], width)
    outputs: list[Tensor] = []
    for frame in range(features.shape[1]):
        large = _cell(from_input[frame] + products.of_hidden(hidden), cell)
        own, others = hidden[:, :small_width], hidden[:, small_width:]
        small = _cell(small_from_input[frame] + products.small_of_hidden(own), cell[:, :small_width])
        chosen = is_large[:, frame]
        hidden = _mixed(chosen, large[0], torch.cat((small[0], others), dim=1))
        cell = _mixed(chosen, large[1], torch.cat((small[1], cell[:, small_width:]), dim=1))
        outputs.append(hidden)
    return torch.stack(outputs, dim=1) if outputs else features.new_zeros(features.shape[0], 0, width)


def _mixed(is_large: Tensor, large: Tensor, small: Tensor) -> Tensor:
    """One of both, exactly; the gradient of their weighted sum reaches `is_large` and the one chosen."""
    return is_large * large + (1 - is_large) * small


def _cell(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden and cell state (B, D) from gates (B, 4 D) and the cell state before."""
    taken, kept, candidate, given = gates.chunk(4, dim=-1)
    cell = torch.sigmoid(kept) * cell + torch.sigmoid(taken) * torch.tanh(candidate)
    return torch.sigmoid(given) * torch.tanh(cell), cell


def _check(
    features: Tensor,
    gate: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor,
    small_weight_ih: Tensor,
    small_weight_hh: Tensor,
    small_bias: Tensor,
) -> None:
    if features.dim() != 3 or gate.shape != features.shape[:2]:
        shapes = f"features {tuple(features.shape)} and gate {tuple(gate.shape)}"
        raise ValueError(f"{shapes} do not fit; use (B, T, K) and (B, T)")
    width, small_width = weight_hh.shape[1], small_weight_hh.shape[1]
    expected = {
        "weight_ih": (weight_ih, (4 * width, features.shape[2])),
        "weight_hh": (weight_hh, (4 * width, width)),
        "bias": (bias, (4 * width,)),
        "small_weight_ih": (small_weight_ih, (4 * small_width, small_weight_ih.shape[1])),
        "small_weight_hh": (small_weight_hh, (4 * small_width, small_width)),
        "small_bias": (small_bias, (4 * small_width,)),
    }
    for name, (value, shape) in expected.items():
        if tuple(value.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(value.shape)}, which does not fit; use {shape}")
    if small_width > width or small_weight_ih.shape[1] > features.shape[2]:
        raise ValueError(
            f"the small cell of {small_weight_ih.shape[1]} inputs and {small_width} units is larger than the "
            f"large one of {features.shape[2]} and {width}; exchange them"
        )


@torch.library.custom_op("subtone::switched_lstm", mutates_args=())
def _switched_lstm_node(
    features: Tensor,
    gate: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor,
    small_weight_ih: Tensor,
    small_weight_hh: Tensor,
    small_bias: Tensor,
) -> Tensor:
    return _switched_lstm(
        features, gate, weight_ih, weight_hh, bias, small_weight_ih, small_weight_hh, small_bias
    )


@_switched_lstm_node.register_fake
def _(features, gate, weight_ih, weight_hh, bias, small_weight_ih, small_weight_hh, small_bias):
    return features.new_empty((*features.shape[:2], weight_hh.shape[1]))
