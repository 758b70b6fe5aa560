"""Small transducers of every encoder and predictor, with random weights, for tests."""

from __future__ import annotations

import dataclasses

import torch

from subtone.models.bifocal import BifocalConfig, BifocalEncoder
from subtone.models.cascaded import Cascaded, CascadedConfig
from subtone.models.conformer_config import ConformerConfig
from subtone.models.lstm import LstmConfig
from subtone.models.predictors import LstmPredictorConfig, ReducedPredictorConfig
from subtone.models.transducer import Transducer, TransducerConfig

FEATURES, OUTPUTS = 6, 9
LSTM = LstmConfig(num_features=FEATURES, widths=(8, 7, 5), reduced_before=1, has_norm=True)
BIFOCAL = BifocalConfig(num_features=FEATURES, num_layers=3, width=8, small_width=3, gate_width=4)
CONFORMER = ConformerConfig(
    num_features=FEATURES,
    conv2d_channels=0,
    width=8,
    feed_forward_width=12,
    num_blocks=1,
    heads=2,
    kernel=3,
    left=4,
    right=0,
    is_convolution_causal=True,
    norm="layer",
)
WITH_LSTM = LstmPredictorConfig(embedding_width=4, widths=(5, 7), projection_width=6)
REDUCED = ReducedPredictorConfig(embedding_width=6, context=2)

TRANSDUCERS = {
    "lstm": TransducerConfig(encoder=LSTM, predictor=WITH_LSTM, joint_width=6, num_outputs=OUTPUTS),
    "bifocal": TransducerConfig(
        encoder=BIFOCAL, predictor=REDUCED, joint_width=6, num_outputs=OUTPUTS, has_predictor_projection=False
    ),
    "conformer": TransducerConfig(
        encoder=CONFORMER, predictor=REDUCED, joint_width=8, num_outputs=OUTPUTS, has_encoder_projection=False
    ),
}
CASCADED = CascadedConfig(
    encoder=CONFORMER,
    encoder2=dataclasses.replace(CONFORMER, num_features=8, width=10, right=2),
    predictor=REDUCED,
    joint_width=7,
    num_outputs=OUTPUTS,
)
LABELS = torch.tensor([[3, 1, 4, 4], [5, 7, 2, 6], [0, 0, 8, 1]])
"""Of a batch of three; the eight is the blank, as padding may be."""
LABEL_LENGTHS = torch.tensor([4, 3, 2])
LENGTHS = torch.tensor([13, 6, 9])


def random_network(config: TransducerConfig | CascadedConfig, seed: int = 0) -> Transducer | Cascaded:
    """In eval mode; biases and norms are random too, so that none can be left out unseen."""
    torch.manual_seed(seed)
    network = (Transducer if isinstance(config, TransducerConfig) else Cascaded)(config).eval()
    with torch.no_grad():
        for value in network.parameters():
            value.add_(0.3 * torch.randn_like(value))
        if isinstance(network.encoder, BifocalEncoder):  # both cells get half of the frames
            gates = network.encoder.gates(random_features())
            network.encoder.gate_out.bias -= gates.quantile(0.5)
    return network


def random_features(frames: int = 13, batch: int = 3, num_features: int = FEATURES) -> torch.Tensor:
    torch.manual_seed(frames)
    return torch.randn(batch, num_features, frames)
