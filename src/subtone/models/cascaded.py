"""Two transducers on one causal encoder: a first pass at once, a second one that looks ahead.

int4 section 2.1 and Fig. 1 (Narayanan et al. 2021): the second encoder reads the rows of the first, so
what was computed for partial results is not computed again; each has a decoder of its own.

Letters: B batch, F features, T frames, U labels, V outputs, D width of the first encoder, J the joiners'.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from subtone.models.predictors import PredictorConfig, build_predictor, predictor_config, with_start
from subtone.models.strict_config import from_keys, require_whole, without_family
from subtone.models.transducer import (
    EncoderConfig,
    Joiner,
    ProjectedEncoder,
    ProjectedPredictor,
    build_encoder,
    check_labels,
    encoder_config,
    encoder_width,
    in_mode,
)

FAMILY = "cascaded"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CascadedConfig:
    """Both encoders; predictor and joiner are two of the same. The blank is the last output."""

    encoder: EncoderConfig
    encoder2: EncoderConfig
    predictor: PredictorConfig
    joint_width: int
    num_outputs: int

    def __post_init__(self) -> None:
        require_whole(FAMILY, joint_width=self.joint_width)
        require_whole(FAMILY, least=2, num_outputs=self.num_outputs)

    @property
    def num_features(self) -> int:
        return self.encoder.num_features

    def with_ends(self, *, num_features: int, num_outputs: int) -> CascadedConfig:
        """The same network for other features and labels; the second encoder takes the first one's rows."""
        encoder = dataclasses.replace(self.encoder, num_features=num_features)
        encoder2 = dataclasses.replace(self.encoder2, num_features=encoder_width(encoder))
        return dataclasses.replace(self, encoder=encoder, encoder2=encoder2, num_outputs=num_outputs)

    def to_json(self) -> dict:
        parts = {name: getattr(self, name).to_json() for name in ("encoder", "encoder2", "predictor")}
        return {
            "family": FAMILY,
            **parts,
            "joint_width": self.joint_width,
            "num_outputs": self.num_outputs,
        }

    @classmethod
    def from_json(cls, document: Mapping) -> CascadedConfig:
        """The config of `to_json`; ValueError names a key it does not know."""
        values = without_family(document)
        for name in ("encoder", "encoder2", "predictor"):
            if not isinstance(values.get(name), Mapping):
                raise ValueError(f"cascaded {name}={values.get(name)!r} must describe one, with its family")
            values[name] = (predictor_config if name == "predictor" else encoder_config)(values[name])
        return from_keys(cls, FAMILY, values)


class FirstEncoder(nn.Module):
    """Features (B, F, T) to (B, T', J + D): frames for the first joiner, and beside them the rows for the second
    pass."""

    def __init__(self, encoder: nn.Module, projection: nn.Module) -> None:
        super().__init__()
        self.encoder, self.projection = encoder, projection

    def forward(self, features: Tensor) -> Tensor:
        rows = self.encoder(features)[0]
        return torch.cat((self.projection(rows), rows), dim=2)


class SecondEncoder(ProjectedEncoder):
    """Rows (B, T', D) of the first encoder to frames (B, T', J) for the second joiner."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features.transpose(1, 2))


class Cascaded(nn.Module):
    """Features and labels in, the logits of both passes out."""

    def __init__(self, config: CascadedConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config.encoder)
        self.encoder2 = build_encoder(config.encoder2)
        if config.encoder2.num_features != self.encoder.width or self.encoder2.frames_per_step != 1:
            raise ValueError(
                f"encoder2 takes {config.encoder2.num_features} features and every "
                f"{self.encoder2.frames_per_step}th row; the first encoder gives rows of "
                f"{self.encoder.width}, all of which it must take"
            )
        self.predictor, self.joiner = self._decoder(cast(int, self.encoder.width))
        self.predictor2, self.joiner2 = self._decoder(cast(int, self.encoder2.width))

    def _decoder(self, encoder_width: int) -> tuple[nn.Module, Joiner]:
        predictor = build_predictor(self.config.predictor, self.config.num_outputs)
        joiner = Joiner(
            encoder_width=encoder_width,
            predictor_width=predictor.width,
            joint_width=self.config.joint_width,
            num_outputs=self.config.num_outputs,
        )
        return predictor, joiner

    @property
    def frames_per_step(self) -> int:
        """Input frames from one row of either encoder to the next."""
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
    ) -> tuple[tuple[Tensor, Tensor], Tensor | None]:
        """Logits (B, T', U + 1, V) of the first and of the second pass, and valid frames (B,).

        Arguments as `Transducer.forward`'s.
        """
        check_labels(labels, label_lengths, self.config.num_outputs)
        rows, lengths = self.encoder(features, lengths)
        rows2, _ = self.encoder2(rows.transpose(1, 2), lengths)
        labels = with_start(labels, self.blank_index)
        first = self.joiner(rows, self.predictor(labels))
        return (first, self.joiner2(rows2, self.predictor2(labels))), lengths

    def entries(self) -> dict[str, nn.Module]:
        """The modules a device runs, sharing this network's parameters.

        As `Transducer.entries`, a second set with a 2 behind the names; but "encoder" gives (B, T', J + D),
        the frames for the joiner and beside them the rows that "encoder2" takes.
        """
        return in_mode(
            self.training,
            encoder=FirstEncoder(self.encoder, self.joiner.encoder_projection),
            encoder2=SecondEncoder(self.encoder2, self.joiner2.encoder_projection),
            predictor=ProjectedPredictor(self.predictor, self.joiner.predictor_projection),
            joiner=self.joiner.combine,
            predictor2=ProjectedPredictor(self.predictor2, self.joiner2.predictor_projection),
            joiner2=self.joiner2.combine,
        )
