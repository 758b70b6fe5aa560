"""What a transducer's predictor makes of the labels so far: an LSTM, or the last few of them.

Both take labels (B, U) that begin with the start label, the blank's row of the embedding, and give a row
for each prefix; row u knows labels 0..u and nothing behind, so both stream label by label.

* `LstmPredictor`: embedding, LSTM layers, a projection where one is wanted.
* `ReducedPredictor`: Botros et al. 2021 ("tied and reduced"): no recurrence. A weighted average of the
  embeddings of the last `context` labels, then a linear layer, LayerNorm and Swish:

      average_u = 1 / context * sum over n < context of position_n * embedding(label_(u - n))

  `position_n` is one learned weight per channel. The paper weighs by the product of embedding and
  position vector and averages over heads; ours is the same average with weights that do not depend on
  the label, so that it is one depthwise convolution over labels. Labels before the start count as zeros.
  The embedding is not tied to the joiner's output: their widths differ (320 and 384).

Letters: B batch, U labels, V outputs, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from torch import Tensor, nn

from subtone.models.strict_config import from_keys, require_whole, without_family


@dataclasses.dataclass(frozen=True, kw_only=True)
class LstmPredictorConfig:
    """Embedding and LSTM layers of `widths`; `projection_width` of a linear layer behind, or None."""

    embedding_width: int
    widths: tuple[int, ...]
    projection_width: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        require_whole("predictor", embedding_width=self.embedding_width)
        if not self.widths:
            raise ValueError("predictor widths is empty; use a reduced predictor for one without LSTM")
        for width in self.widths:
            require_whole("predictor", width=width)
        if self.projection_width is not None:
            require_whole("predictor", projection_width=self.projection_width)

    @property
    def width(self) -> int:
        """Of a row of the predictor."""
        return self.projection_width or self.widths[-1]

    def to_json(self) -> dict:
        return {"family": "lstm", **dataclasses.asdict(self), "widths": list(self.widths)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReducedPredictorConfig:
    """The last `context` labels' embeddings, averaged and passed through one linear layer."""

    embedding_width: int
    context: int = 2

    def __post_init__(self) -> None:
        require_whole("predictor", embedding_width=self.embedding_width, context=self.context)

    @property
    def width(self) -> int:
        """Of a row of the predictor."""
        return self.embedding_width

    def to_json(self) -> dict:
        return {"family": "reduced", **dataclasses.asdict(self)}


PredictorConfig = LstmPredictorConfig | ReducedPredictorConfig


class LstmPredictor(nn.Module):
    """Rows (B, U, D) from labels (B, U)."""

    def __init__(self, config: LstmPredictorConfig, num_outputs: int) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(num_outputs, config.embedding_width)
        inputs = [config.embedding_width, *config.widths[:-1]]
        self.layers = nn.ModuleList(
            nn.LSTM(of, width, batch_first=True) for of, width in zip(inputs, config.widths, strict=True)
        )
        width = config.projection_width
        self.projection = nn.Linear(config.widths[-1], width) if width else nn.Identity()

    @property
    def width(self) -> int:
        """D."""
        return self.config.width

    def forward(self, labels: Tensor) -> Tensor:
        rows = self.embedding(labels)
        for layer in self.layers:
            rows = layer(rows)[0]
        return self.projection(rows)


class ReducedPredictor(nn.Module):
    """Rows (B, U, D) from labels (B, U), each of the last `context` labels only."""

    def __init__(self, config: ReducedPredictorConfig, num_outputs: int) -> None:
        super().__init__()
        self.config = config
        width = config.embedding_width
        self.embedding = nn.Embedding(num_outputs, width)
        self.position = nn.Conv1d(width, width, config.context, groups=width, bias=False)
        nn.init.constant_(self.position.weight, 1 / config.context)  # the plain average
        self.projection = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    @property
    def width(self) -> int:
        """D."""
        return self.config.width

    def forward(self, labels: Tensor) -> Tensor:
        rows = self.embedding(labels).transpose(1, 2)
        rows = self.position(nn.functional.pad(rows, (self.config.context - 1, 0)))
        return nn.functional.silu(self.norm(self.projection(rows.transpose(1, 2))))


PREDICTORS: Mapping[str, tuple[type, type[nn.Module]]] = {
    "lstm": (LstmPredictorConfig, LstmPredictor),
    "reduced": (ReducedPredictorConfig, ReducedPredictor),
}
"""Family -> its config and its module."""


def predictor_config(document: Mapping) -> PredictorConfig:
    """The config of a predictor's `to_json`; ValueError names what it does not know."""
    family = str(document.get("family"))
    if family not in PREDICTORS:
        raise ValueError(f"predictor family={family!r} is not known; use one of {', '.join(PREDICTORS)}")
    return from_keys(PREDICTORS[family][0], f"predictor {family}", without_family(document))


def build_predictor(config: PredictorConfig, num_outputs: int) -> LstmPredictor | ReducedPredictor:
    """The predictor that `config` describes, over `num_outputs` labels with the blank."""
    if isinstance(config, LstmPredictorConfig):
        return LstmPredictor(config, num_outputs)
    return ReducedPredictor(config, num_outputs)


def with_start(labels: Tensor, start_index: int) -> Tensor:
    """Labels (B, U) behind the start label, (B, U + 1).

    >>> import torch
    >>> with_start(torch.tensor([[4, 2]]), start_index=9).tolist()
    [[9, 4, 2]]
    """
    return nn.functional.pad(labels, (1, 0), value=start_index)
