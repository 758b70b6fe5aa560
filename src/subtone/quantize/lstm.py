"""An LSTM whose two products run on the grids that will be served, for training.

torch computes an LSTM in one piece, which no hook enters. Here is the same recurrence step by step, on
the parameters of the plain `nn.LSTM`:

    gates  = (W_ih x + b_ih) + (W_hh h + b_hh)        in this order; torch's blocks: i, f, g, o
    c      = sigmoid(f) * c + sigmoid(i) * tanh(g)
    h      = sigmoid(o) * tanh(c)

`x` has one scale a frame, like what enters any product. `h` lies in [-1, 1] whatever the model, so its
scale is static, `1 / limit` (1/127 at 8 bits), and no step waits for a maximum (docs/numerics.md,
section 3). A weight whose activations stay float is multiplied in float. The cell is float.

What `nn.LSTM.forward` takes and gives is kept: layers, directions, `batch_first`, no batch, dropout,
initial states, `PackedSequence`. A projection (`proj_size`) is refused by native.py: what it feeds back
lies in no known range. torch's one piece is faster, on a GPU by far. Initial states beyond [-1, 1] are
clipped.

Letters: B batch, T frames, K inputs, D hidden units.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from subtone.numerics import largest_symmetric_level
from subtone.quantize.fake import fake_quantize_activations, straight_through
from subtone.quantize.integer import (
    autocast_type,
    integer_product,
    product_of_levels,
    static_activations,
    weight_levels,
)
from subtone.quantize.rules import Settings

States = tuple[Tensor, Tensor]
"""Hidden and cell state."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Product:
    """A weight of an LSTM whose activations are quantized: its path, for errors, and its settings."""

    path: str
    settings: Settings


def recurrent_scale(bits: int) -> float:
    """The static scale of a hidden state, which lies in [-1, 1].

    >>> recurrent_scale(4) == 1 / 7
    True
    """
    return 1 / largest_symmetric_level(bits)


def fake_quantize_hidden(hidden: Tensor, bits: int) -> Tensor:
    """A hidden state on its static grid, with the gradient of `hidden` where it was not clipped.

    >>> fake_quantize_hidden(torch.tensor([0.5, 3.0]), bits=2)
    tensor([1., 1.])
    """
    with torch.no_grad():
        x = static_activations(hidden, recurrent_scale(bits), bits)
        assert x.is_inside is not None
    return straight_through(hidden, (x.levels * x.scale).to(hidden.dtype), x.is_inside)


def cell_step(gates: Tensor, cell: Tensor) -> States:
    """Hidden and cell state (B, D) after one step, from `gates` (B, 4 D) and the cell state before."""
    taken, kept, candidate, given = gates.chunk(4, dim=-1)
    cell = torch.sigmoid(kept) * cell.to(gates.dtype) + torch.sigmoid(taken) * torch.tanh(candidate)
    return torch.sigmoid(given) * torch.tanh(cell), cell


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizedLstm:
    """The forward pass of an `nn.LSTM` without projection, or of an `nn.LSTMCell`, on quantized values.

    * `products`: parameter's name -> how it is multiplied; those that are not in it meet floats.
    * `is_integer`: these products are computed on integers, else on the same rounded values in float.
    """

    products: Mapping[str, Product]
    is_integer: bool

    def forward(self, module: nn.LSTM, input: Tensor | PackedSequence, hx: States | None = None) -> Any:
        """As `nn.LSTM.forward`: outputs (T, B, directions * D), and the last hidden and cell states."""
        if isinstance(input, PackedSequence):
            return self._forward_packed(module, input, hx)
        if input.dim() not in (2, 3):
            raise ValueError(f"an LSTM takes 2 axes, or 3 with a batch, not {tuple(input.shape)}")
        is_batched, batch_axis = input.dim() == 3, 0 if module.batch_first else 1
        features = input if is_batched else input.unsqueeze(batch_axis)
        if hx is not None and not is_batched:
            hx = hx[0].unsqueeze(1), hx[1].unsqueeze(1)
        states = hx or _silence(module, features, features.shape[batch_axis])
        module.check_forward_args(features, states, None)
        frames_first = features.transpose(0, 1) if module.batch_first else features
        outputs, (hidden, cell) = self._layers(module, frames_first, states, None)
        outputs = outputs.transpose(0, 1) if module.batch_first else outputs
        if is_batched:
            return outputs, (hidden, cell)
        return outputs.squeeze(batch_axis), (hidden.squeeze(1), cell.squeeze(1))

    def forward_cell(self, module: nn.LSTMCell, input: Tensor, hx: States | None = None) -> States:
        """As `nn.LSTMCell.forward`: the hidden and cell state (B, D) after one frame (B, K)."""
        if hx is None:
            zeros = input.new_zeros(*input.shape[:-1], module.hidden_size)
            hx = zeros, zeros
        gates = self._multiplier(module, "ih")(input) + self._multiplier(module, "hh")(hx[0])
        result_type = autocast_type(input, otherwise=input.dtype)
        hidden, cell = cell_step(gates, hx[1])
        return hidden.to(result_type), cell.to(result_type)

    def _forward_packed(self, module: nn.LSTM, packed: PackedSequence, hx: States | None) -> Any:
        """The batch padded in the order in which it was packed, longest first, and packed again."""
        features, lengths = pad_packed_sequence(PackedSequence(packed.data, packed.batch_sizes))
        if hx is None:
            states = _silence(module, features, len(lengths))
        else:
            states = module.permute_hidden(hx, packed.sorted_indices)
        module.check_forward_args(packed.data, states, packed.batch_sizes)
        outputs, states = self._layers(module, features, states, lengths)
        data = pack_padded_sequence(outputs, lengths).data
        return packed._replace(data=data), module.permute_hidden(states, packed.unsorted_indices)

    def _layers(
        self, module: nn.LSTM, features: Tensor, states: States, lengths: Tensor | None
    ) -> tuple[Tensor, States]:
        """(T, B, K) to (T, B, directions * D), and the last states (layers * directions, B, D)."""
        if not len(features):
            raise ValueError("an LSTM needs at least one frame; leave out empty utterances")
        is_valid = None
        if lengths is not None:
            is_valid = (torch.arange(len(features))[:, None] < lengths)[..., None].to(features.device)
        result_type = autocast_type(features, otherwise=features.dtype)
        last: list[States] = []
        for layer in range(module.num_layers):
            if layer:
                features = nn.functional.dropout(features, module.dropout, module.training)
            outputs = []
            for suffix in ("", "_reverse") if module.bidirectional else ("",):
                start = states[0][len(last)], states[1][len(last)]
                output, end = self._direction(module, f"l{layer}{suffix}", features, start, is_valid)
                outputs.append(output)
                last.append(end)
            features = torch.cat(outputs, dim=-1)
        hidden, cell = (torch.stack(parts).to(result_type) for parts in zip(*last, strict=True))
        return features.to(result_type), (hidden, cell)

    def _direction(
        self, module: nn.LSTM, suffix: str, features: Tensor, states: States, is_valid: Tensor | None
    ) -> tuple[Tensor, States]:
        """(T, B, K) to (T, B, D), and the states at its end; invalid frames leave the states as they are."""
        from_input = self._multiplier(module, f"ih_{suffix}")(features).unbind(0)
        from_hidden = self._multiplier(module, f"hh_{suffix}")
        hidden, cell = states
        outputs: list[Tensor] = []
        order = range(len(from_input))
        for frame in reversed(order) if suffix.endswith("_reverse") else order:
            after, cell_after = cell_step(from_input[frame] + from_hidden(hidden), cell)
            if is_valid is None:
                hidden, cell = after, cell_after
            else:
                hidden = torch.where(is_valid[frame], after, hidden)
                cell = torch.where(is_valid[frame], cell_after, cell)
            outputs.append(hidden)
        if suffix.endswith("_reverse"):
            outputs.reverse()
        return torch.stack(outputs), (hidden, cell)

    def _multiplier(self, module: nn.Module, suffix: str) -> Callable[[Tensor], Tensor]:
        """The product by `weight_<suffix>`, with its bias; the weight is read and rounded once."""
        product = self._product(module, f"weight_{suffix}")
        bias = getattr(module, f"bias_{suffix}", None)
        return product if bias is None else lambda features: product(features) + bias

    def _product(self, module: nn.Module, name: str) -> Callable[[Tensor], Tensor]:
        if name in self.products and self.is_integer:
            return _integer_product(module._parameters[name], name, self.products[name])
        seen: Tensor = getattr(module, name)
        rounded = _rounding(name, self.products.get(name))
        return lambda features: nn.functional.linear(rounded(features).to(seen.dtype), seen)


def _integer_product(weight: Tensor | None, name: str, of: Product) -> Callable[[Tensor], Tensor]:
    assert weight is not None
    assert of.settings.activation_bits is not None
    settings, bits = of.settings, of.settings.activation_bits
    if not _is_recurrent(name):
        return lambda features: integer_product(features, weight, settings, name=of.path)
    levels = weight_levels(weight, settings, name=of.path)
    scale = recurrent_scale(bits)
    return lambda hidden: product_of_levels(hidden, static_activations(hidden, scale, bits), weight, levels)


def _rounding(name: str, of: Product | None) -> Callable[[Tensor], Tensor]:
    """What a float product does to its activations beforehand."""
    if of is None:
        return lambda features: features
    assert of.settings.activation_bits is not None
    function = fake_quantize_hidden if _is_recurrent(name) else fake_quantize_activations
    return functools.partial(function, bits=of.settings.activation_bits)


def _is_recurrent(name: str) -> bool:
    return name.startswith("weight_hh")


def _silence(module: nn.LSTM, features: Tensor, batch: int) -> States:
    """The states that an LSTM starts from where none are given."""
    zeros = features.new_zeros(module.num_layers * (1 + module.bidirectional), batch, module.hidden_size)
    return zeros, zeros
