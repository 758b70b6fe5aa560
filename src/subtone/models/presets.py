"""The transducers of the papers, by name. What a paper leaves out is solved for its counts, and says so.

Each count is held in tests/models/test_presets.py, beside the paper's figure in `accounting.PUBLISHED`.
"""

from __future__ import annotations

from subtone.models.bifocal import BifocalConfig
from subtone.models.cascaded import CascadedConfig
from subtone.models.conformer_config import CONFORMERS
from subtone.models.lstm import LstmConfig
from subtone.models.predictors import LstmPredictorConfig, ReducedPredictorConfig
from subtone.models.transducer import EncoderConfig, TransducerConfig

WORD_PIECES = 2501
"""S8BQAT and GQ: 2500 and the blank."""


def s8bqat(last_widths: int, predictor_width: int) -> TransducerConfig:
    """S8BQAT, section 3.1 and Table 1: five layers whose last three, and the predictor, vary.

    The table's kernels need 2048 inputs in layer L2: two frames of L1 enter there.
    """
    return TransducerConfig(
        encoder=LstmConfig(widths=(1024, 1024, *[last_widths] * 3), reduced_before=2),
        predictor=LstmPredictorConfig(embedding_width=512, widths=(predictor_width,) * 2),
        joint_width=512,
        num_outputs=WORD_PIECES,
    )


def gulati(encoder: EncoderConfig, predictor_width: int) -> TransducerConfig:
    """Gulati et al. 2020, Table 1, over 1024 outputs; embedding and joint widths as published counts need."""
    return TransducerConfig(
        encoder=encoder,
        predictor=LstmPredictorConfig(embedding_width=128, widths=(predictor_width,)),
        joint_width=640,
        num_outputs=1024,
    )


BIFOCAL = TransducerConfig(
    encoder=BifocalConfig(),
    predictor=LstmPredictorConfig(embedding_width=512, widths=(1024, 1024)),
    joint_width=512,
    num_outputs=WORD_PIECES,
)
"""GQ, section 4.1: the RNN-T of S8BQAT with a second encoder of 256 units, no two frames joined."""

GQ_CONFORMER = TransducerConfig(
    encoder=CONFORMERS["conformer-gq"],
    predictor=LstmPredictorConfig(embedding_width=256, widths=(640,)),
    joint_width=512,
    num_outputs=WORD_PIECES,
)
"""GQ, Table 1. Its encoder ends 256 wide, its joint layer is 512: the 131,072 weights between are ours."""

CASCADED = CascadedConfig(
    encoder=CONFORMERS["cascaded-causal"],
    encoder2=CONFORMERS["cascaded-noncausal"],
    predictor=ReducedPredictorConfig(embedding_width=320, context=2),
    joint_width=384,
    num_outputs=5632,
)
"""int4, section 3.3. The number of word pieces is not published; 5632 is solved for a decoder of 4.4 M."""

TRANSDUCERS: dict[str, TransducerConfig] = {
    "s8bqat-m1": s8bqat(1024, 1024),
    "s8bqat-m3": s8bqat(1120, 1088),
    "conformer-transducer-s": gulati(CONFORMERS["conformer-s"], 320),
    "conformer-transducer-m": gulati(CONFORMERS["conformer-m"], 640),
    "conformer-transducer-l": gulati(CONFORMERS["conformer-l"], 640),
    "conformer-transducer-gq": GQ_CONFORMER,
    "bifocal": BIFOCAL,
}
"""Name -> config. M-II is M-III with its first layers (L0) left at 8 bits: one network, two recipes."""

CASCADES: dict[str, CascadedConfig] = {"cascaded": CASCADED}
"""Name -> config."""
