"""ONNX of networks with operators of ours: the same numbers, and LSTMs that really have 8 bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from subtone.export.onnx import export_fixed_onnx, quantize_onnx
from subtone.models import operators

FRAMES, WIDTH = 12, 8


class Everything(nn.Module):
    """An LSTM, frames joined, and attention over all rows."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.position = nn.Linear(2 * WIDTH, 2 * WIDTH, bias=False)
        self.bias = nn.Parameter(torch.randn(2 * WIDTH))

    def forward(self, features: Tensor) -> Tensor:
        rows = operators.stack_frames(self.lstm(features.transpose(1, 2))[0], 2)
        table = self.position(operators.sinusoids(rows, 2 * WIDTH))
        return operators.attention(rows, rows, rows, table, self.bias, self.bias, 2, -1, -1)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path, Path]:
    folder = tmp_path_factory.mktemp("onnx")
    torch.manual_seed(0)
    network = Everything()
    export_fixed_onnx(network, FRAMES, folder / "float.onnx", num_features=WIDTH)
    quantize_onnx(folder / "float.onnx", folder / "int8.onnx")
    return network, folder / "float.onnx", folder / "int8.onnx"


def run(path: Path, features: Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"features": features.numpy()})[0]


def test_operators_of_ours_taken_apart_compute_the_same(written: tuple[nn.Module, Path, Path]) -> None:
    network, float_path, int8_path = written
    features = torch.randn(1, WIDTH, FRAMES)
    with torch.inference_mode():
        expected = network(features).numpy()
    # Float32 sums in another order: 16 terms in each of three products, over 12 steps of the recurrence.
    bound = 3 * 16 * FRAMES * np.finfo(np.float32).eps * np.abs(expected).max()
    assert np.abs(run(float_path, features) - expected).max() <= bound
    assert bound < np.abs(run(int8_path, features) - expected).max() < 0.1 * np.abs(expected).max()


def test_an_lstm_is_quantized_with_the_rest(written: tuple[nn.Module, Path, Path]) -> None:
    kinds = {node.op_type for node in onnx.load(written[2]).graph.node}
    assert "DynamicQuantizeLSTM" in kinds
    assert "LSTM" not in kinds
