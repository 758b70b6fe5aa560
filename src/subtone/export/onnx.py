"""The same network as an ONNX file: float, or int8 by ONNX Runtime's dynamic quantization.

These are the peers that `subtone bench model` measures against; the file computes logits (B, T', V)
from features (B, F, T) of any length.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.export import Dim

from subtone.models import Network

EXAMPLE_FRAMES = 64


class LogitsOnly(nn.Module):
    """The network without its lengths, which one whole utterance does not need."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.network(features)[0]


def export_onnx(network: Network, path: Path) -> None:
    """Write `network` as ONNX with float32 weights; input "features", output "logits"."""
    example = torch.zeros(1, network.config.num_features, EXAMPLE_FRAMES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own internals
        torch.onnx.export(
            LogitsOnly(network).eval(),
            (example,),
            str(path),
            input_names=["features"],
            output_names=["logits"],
            dynamic_shapes={"features": {2: Dim.DYNAMIC}},
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def quantize_onnx(float_path: Path, path: Path) -> None:
    """Write the int8 form of `float_path`: weights per tensor, activations dynamic."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.getLogger().setLevel(logging.ERROR)  # it advises preprocessing, which changes nothing here
    quantize_dynamic(str(float_path), str(path), weight_type=QuantType.QInt8)
