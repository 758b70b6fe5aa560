"""A transducer (RNN-T, Graves 2012): an encoder hears, a predictor remembers labels, a joiner decides.

    logits[t, u] = output(tanh(encoder_projection(encoder[t]) + predictor_projection(predictor[u])))

u counts the labels so far. The blank is the last of V outputs; its row of the predictor's embedding also
stands for the start. Which encoder and which predictor is data: any of ENCODERS, any of
`predictors.PREDICTORS`.

A device runs three parts on their own (`Transducer.entries`): encoder and predictor with their
projections, which each row needs once, and the joiner, which each pair of rows needs.

Letters: B batch, F features, T frames, U labels, V outputs (labels and the blank), D width, J the
joiner's width, N pairs of rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from subtone.models.bifocal import BifocalConfig, BifocalEncoder
from subtone.models.conformer import Conformer
from subtone.models.conformer_config import ConformerConfig
from subtone.models.lstm import LstmConfig, LstmEncoder
from subtone.models.predictors import PredictorConfig, build_predictor, predictor_config, with_start
from subtone.models.strict_config import from_keys, require_whole, without_family

FAMILY = "transducer"
ENCODERS: dict[str, tuple[Any, type[nn.Module]]] = {
    "lstm": (LstmConfig, LstmEncoder),
    "conformer": (ConformerConfig, Conformer),
    "bifocal": (BifocalConfig, BifocalEncoder),
}
"""Family -> an encoder's config and its module, (B, F, T) to (B, T', D)."""

EncoderConfig = Any
"""A config of ENCODERS."""


def encoder_config(document: Any) -> EncoderConfig:
    """The config of an encoder's `to_json`; ValueError names what it does not know."""
    family = document.get("family") if isinstance(document, Mapping) else document
    if family not in ENCODERS:
        raise ValueError(f"encoder family={family!r} is not known; use one of {', '.join(ENCODERS)}")
    return ENCODERS[family][0].from_json(document)


def build_encoder(config: EncoderConfig) -> nn.Module:
    """The encoder that `config` describes, with fresh weights."""
    (encoder,) = [module for kind, module in ENCODERS.values() if type(config) is kind]
    return encoder(config)


def encoder_width(config: EncoderConfig) -> int:
    """Width of a row of the encoder that `config` describes; no weight is made for it.

    >>> encoder_width(LstmConfig(widths=(8, 6)))
    6
    """
    with torch.device("meta"):
        return cast(int, build_encoder(config).width)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransducerConfig:
    """The network, as a checkpoint stores it.

    * `num_outputs`: labels and the blank, which is the last.
    * `has_encoder_projection`, `has_predictor_projection`: whether a linear layer to `joint_width`
      stands between; without one the rows must be that wide already.
    """

    encoder: EncoderConfig
    predictor: PredictorConfig
    joint_width: int
    num_outputs: int
    has_encoder_projection: bool = True
    has_predictor_projection: bool = True

    def __post_init__(self) -> None:
        if not any(type(self.encoder) is kind for kind, _ in ENCODERS.values()):
            raise ValueError(f"transducer encoder={self.encoder!r:.60} is not an encoder's config")
        require_whole(FAMILY, joint_width=self.joint_width)
        require_whole(FAMILY, least=2, num_outputs=self.num_outputs)
        for name in ("has_encoder_projection", "has_predictor_projection"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"transducer {name}={getattr(self, name)!r} must be true or false")
        if not self.has_predictor_projection and self.predictor.width != self.joint_width:
            raise ValueError(
                f"joint_width={self.joint_width} is not the predictor's width {self.predictor.width}; "
                "use has_predictor_projection"
            )

    @property
    def num_features(self) -> int:
        return self.encoder.num_features

    def with_ends(self, *, num_features: int, num_outputs: int) -> TransducerConfig:
        """The same network for other features and labels."""
        encoder = dataclasses.replace(self.encoder, num_features=num_features)
        return dataclasses.replace(self, encoder=encoder, num_outputs=num_outputs)

    def to_json(self) -> dict:
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        parts = {"encoder": self.encoder.to_json(), "predictor": self.predictor.to_json()}
        return {"family": FAMILY, **plain, **parts}

    @classmethod
    def from_json(cls, document: Mapping) -> TransducerConfig:
        """The config of `to_json`; ValueError names a key it does not know."""
        values = without_family(document)
        for name in ("encoder", "predictor"):
            if not isinstance(values.get(name), Mapping):
                raise ValueError(f"transducer {name}={values.get(name)!r} must describe one, with its family")
        values["encoder"] = encoder_config(values["encoder"])
        values["predictor"] = predictor_config(values["predictor"])
        return from_keys(cls, FAMILY, values)


class Combine(nn.Module):
    """Logits (..., V) of projected rows (..., J), which broadcast against each other."""

    def __init__(self, joint_width: int, num_outputs: int) -> None:
        super().__init__()
        self.output = nn.Linear(joint_width, num_outputs)

    def forward(self, encoded: Tensor, predicted: Tensor) -> Tensor:
        return self.output(torch.tanh(encoded + predicted))


class Joiner(nn.Module):
    """Logits from rows of the encoder and rows of the predictor; a projection may be the identity."""

    def __init__(
        self,
        *,
        encoder_width: int,
        predictor_width: int,
        joint_width: int,
        num_outputs: int,
        has_encoder_projection: bool = True,
        has_predictor_projection: bool = True,
    ) -> None:
        super().__init__()
        self.encoder_projection = _projection("encoder", encoder_width, joint_width, has_encoder_projection)
        self.predictor_projection = _projection(
            "predictor", predictor_width, joint_width, has_predictor_projection
        )
        self.combine = Combine(joint_width, num_outputs)

    def forward(self, encoded: Tensor, predicted: Tensor) -> Tensor:
        """Logits (B, T, U, V) of every pair of rows (B, T, D) and (B, U, D')."""
        encoded, predicted = self.encoder_projection(encoded), self.predictor_projection(predicted)
        return self.combine(encoded.unsqueeze(2), predicted.unsqueeze(1))


def _projection(name: str, width: int, joint_width: int, is_there: bool) -> nn.Module:
    if is_there:
        return nn.Linear(width, joint_width)
    if width != joint_width:
        raise ValueError(
            f"joint_width={joint_width} is not the {name}'s width {width}; use has_{name}_projection"
        )
    return nn.Identity()


class ProjectedEncoder(nn.Module):
    """Features (B, F, T) to frames (B, T', J): what a device runs on sound."""

    def __init__(self, encoder: nn.Module, projection: nn.Module) -> None:
        super().__init__()
        self.encoder, self.projection = encoder, projection

    def forward(self, features: Tensor) -> Tensor:
        return self.projection(self.encoder(features)[0])


class ProjectedPredictor(nn.Module):
    """Labels (B, U), the start label first, to rows (B, U, J): what a device runs on each label."""

    def __init__(self, predictor: nn.Module, projection: nn.Module) -> None:
        super().__init__()
        self.predictor, self.projection = predictor, projection

    def forward(self, labels: Tensor) -> Tensor:
        return self.projection(self.predictor(labels))


class Transducer(nn.Module):
    """Features and labels in, logits of every pair of a frame and a prefix out.

    >>> from subtone.models.predictors import LstmPredictorConfig
    >>> config = TransducerConfig(
    ...     encoder=LstmConfig(num_features=6, widths=(4,)),
    ...     predictor=LstmPredictorConfig(embedding_width=3, widths=(4,)),
    ...     joint_width=5,
    ...     num_outputs=8,
    ... )
    >>> logits, _ = Transducer(config)(torch.zeros(1, 6, 9), None, torch.tensor([[2, 3]]))
    >>> logits.shape
    torch.Size([1, 9, 3, 8])
    """

    def __init__(self, config: TransducerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config.encoder)
        self.predictor = build_predictor(config.predictor, config.num_outputs)
        self.joiner = Joiner(
            encoder_width=cast(int, self.encoder.width),
            predictor_width=self.predictor.width,
            joint_width=config.joint_width,
            num_outputs=config.num_outputs,
            has_encoder_projection=config.has_encoder_projection,
            has_predictor_projection=config.has_predictor_projection,
        )

    @property
    def frames_per_step(self) -> int:
        """Input frames from one row of the encoder to the next."""
        return cast(int, self.encoder.frames_per_step)

    @property
    def width(self) -> int:
        """Of a row of logits: labels and the blank."""
        return self.config.num_outputs

    @property
    def blank_index(self) -> int:
        """The last output; also the label before the first."""
        return self.config.num_outputs - 1

    def forward(
        self,
        features: Tensor,
        lengths: Tensor | None,
        labels: Tensor,
        label_lengths: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Logits (B, T', U + 1, V) and valid frames (B,).

        Args:
            features: (B, F, T); `lengths` (B,) of them valid, None: all.
            labels: (B, U) without the start label; padding may be any label.
            label_lengths: (B,) of them valid. Nothing is computed from it (no row of the predictor
                knows a later label), but a length beyond U is refused here.
        """
        check_labels(labels, label_lengths, self.config.num_outputs)
        rows, lengths = self.encoder(features, lengths)
        return self.joiner(rows, self.predictor(with_start(labels, self.blank_index))), lengths

    def entries(self) -> dict[str, nn.Module]:
        """The three modules a device runs, sharing this network's parameters.

        * "encoder": features (B, F, T) to frames (B, T', J).
        * "predictor": labels (B, U), the first of them the blank, to rows (B, U, J).
        * "joiner": frames (B, N, J) and rows (B, N, J), two and two, to logits (B, N, V).
        """
        joiner = self.joiner
        return in_mode(
            self.training,
            encoder=ProjectedEncoder(self.encoder, joiner.encoder_projection),
            predictor=ProjectedPredictor(self.predictor, joiner.predictor_projection),
            joiner=joiner.combine,
        )


def in_mode(is_training: bool, **entries: nn.Module) -> dict[str, nn.Module]:
    """`entries` in training mode or not: wrappers just made are, whatever the network they wrap."""
    return {name: module.train(is_training) for name, module in entries.items()}


def check_labels(labels: Tensor, label_lengths: Tensor | None, num_outputs: int) -> None:
    """ValueError unless `labels` (B, U) are whole numbers below `num_outputs`, and lengths fit them."""
    if labels.dim() != 2 or labels.dtype != torch.int64:
        raise ValueError(f"labels are {labels.dtype} of shape {tuple(labels.shape)}; use int64 (B, U)")
    if label_lengths is not None and bool((label_lengths > labels.shape[1]).any()):
        raise ValueError(f"label_lengths={label_lengths.tolist()} exceed the {labels.shape[1]} labels given")
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < num_outputs:
        raise ValueError(
            f"labels run from {int(labels.min())} to {int(labels.max())}; use 0 to {num_outputs - 1}"
        )
