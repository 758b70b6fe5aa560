"""An encoder of LSTM layers, as those of S8BQAT and GQ (Table 1 of S8BQAT).

Every layer is an `nn.LSTM` of its own: widths may differ, frames may be joined between two layers, and
the run time finds one recurrence per module. States begin at zero, nothing looks ahead.

    x_0 = the features, frames stacked by the front end
    x_n = LSTM_n(x_(n-1)), where two frames of x_(n-1) enter at once in the layer `reduced_before`

Letters: B batch, F features, T frames, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from torch import Tensor, nn

from subtone.models import operators
from subtone.models.lengths import check_lengths
from subtone.models.strict_config import from_keys, require_whole, without_family

FAMILY = "lstm"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LstmConfig:
    """The encoder, as a checkpoint stores it.

    * `widths`: hidden units of each layer, the first to the last.
    * `reduced_before`: the layer, counted from 0, that takes `reduction` frames at once and so sees
      that many times fewer; None: none does. Frames that fill no stack are dropped.
    * `has_norm`: a LayerNorm on what each layer gives.
    """

    num_features: int = 192
    widths: tuple[int, ...]
    reduced_before: int | None = None
    reduction: int = 2
    has_norm: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        if not self.widths:
            raise ValueError("lstm widths is empty; an encoder needs at least one layer")
        require_whole(FAMILY, num_features=self.num_features, reduction=self.reduction)
        for width in self.widths:
            require_whole(FAMILY, width=width)
        if self.reduced_before is not None:
            require_whole(FAMILY, least=0, reduced_before=self.reduced_before)
            if self.reduced_before >= len(self.widths):
                raise ValueError(
                    f"lstm reduced_before={self.reduced_before} names none of {len(self.widths)} layers; "
                    "count from 0"
                )
        if type(self.has_norm) is not bool:
            raise ValueError(f"lstm has_norm={self.has_norm!r} must be true or false")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lstm dropout={self.dropout} must lie in [0, 1)")

    def to_json(self) -> dict:
        return {"family": FAMILY, **dataclasses.asdict(self), "widths": list(self.widths)}

    @classmethod
    def from_json(cls, document: Mapping) -> LstmConfig:
        """The config of `to_json`; ValueError names a key it does not know."""
        return from_keys(cls, FAMILY, without_family(document))

    def input_widths(self) -> list[int]:
        """What enters each layer.

        >>> LstmConfig(num_features=192, widths=(1024, 1024, 1120), reduced_before=2).input_widths()
        [192, 1024, 2048]
        """
        widths = [self.num_features, *self.widths[:-1]]
        if self.reduced_before is not None:
            widths[self.reduced_before] *= self.reduction
        return widths


class LstmEncoder(nn.Module):
    """Features in, one row every `frames_per_step` frames out.

    >>> import torch
    >>> config = LstmConfig(num_features=6, widths=(4, 3), reduced_before=1)
    >>> rows, lengths = LstmEncoder(config)(torch.zeros(1, 6, 9), torch.tensor([9]))
    >>> rows.shape, lengths
    (torch.Size([1, 4, 3]), tensor([4]))
    """

    def __init__(self, config: LstmConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(
            nn.LSTM(inputs, width, batch_first=True)
            for inputs, width in zip(config.input_widths(), config.widths, strict=True)
        )
        self.norms = nn.ModuleList(
            nn.LayerNorm(width) if config.has_norm else nn.Identity() for width in config.widths
        )
        self.dropout = nn.Dropout(config.dropout)

    @property
    def frames_per_step(self) -> int:
        """Input frames from one row to the next."""
        return 1 if self.config.reduced_before is None else self.config.reduction

    @property
    def width(self) -> int:
        """Of a row."""
        return self.config.widths[-1]

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Rows (B, T', D) and their valid lengths (B,), from features (B, F, T).

        Without `lengths` every frame is valid (and None comes back): one utterance, or export. What
        lies behind an utterance's end changes no row before it, so nothing is masked.
        """
        check_lengths(features, lengths)
        rows = features.transpose(1, 2)
        for index, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            if index == self.config.reduced_before:
                rows = operators.stack_frames(rows, self.config.reduction)
                lengths = None if lengths is None else lengths // self.config.reduction
            rows = self.dropout(norm(layer(rows)[0]))
        return rows, lengths
