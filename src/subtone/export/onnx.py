"""The same network as an ONNX file: float, or int8 by ONNX Runtime's dynamic quantization.

These are the peers that `subtone bench model` measures against; the file computes logits (B, T', V)
from features (B, F, T) of any length, or of one length where the network has operators of ours, which
ONNX must have taken apart (`operators.taken_apart`).
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim

from subtone.models import Network
from subtone.models.operators import taken_apart

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
    _export(LogitsOnly(network).eval(), example, path, dynamic_shapes={"features": {2: Dim.DYNAMIC}})


def export_fixed_onnx(module: nn.Module, frames: int, path: Path, *, num_features: int) -> None:
    """Write `module`, features (1, F, T) to rows (1, T', D), as ONNX for utterances of T = `frames` only.

    For networks with operators of ours, taken apart; one that cannot be is a torch.onnx error that names it.
    """
    with taken_apart():
        _export(module.eval(), torch.zeros(1, num_features, frames), path, dynamic_shapes=None)


def _export(module: nn.Module, example: torch.Tensor, path: Path, *, dynamic_shapes: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own internals
        torch.onnx.export(
            module,
            (example,),
            str(path),
            input_names=["features"],
            output_names=["logits"],
            dynamic_shapes=dynamic_shapes,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def quantize_onnx(float_path: Path, path: Path) -> None:
    """Write the int8 form of `float_path`: weights per tensor, activations dynamic.

    Constants are folded before: torch's exporter puts an LSTM's gates in ONNX's order by operators, behind which
    ONNX Runtime sees no weight and would leave the LSTM in float.
    """
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.getLogger().setLevel(logging.ERROR)  # it advises preprocessing, which changes nothing more here
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        folded = Path(folder) / "folded.onnx"
        options.optimized_model_filepath = str(folded)
        onnxruntime.InferenceSession(str(float_path), options, providers=["CPUExecutionProvider"])
        quantize_dynamic(str(folded), str(path), weight_type=QuantType.QInt8)
