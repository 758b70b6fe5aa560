"""What integer_speed.py holds integers against: ONNX Runtime's float graph, and its static int8 in every form.

Static quantization by operators is ONNX Runtime's own integer path: QLinearConv has int8 in and out, as our integer-only
programs have.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import nn

from subtone.export.onnx import export_fixed_onnx

STATIC_FORMS: dict[str, dict[str, Any]] = {
    "QOperator, per channel, unsigned": {"per_channel": True, "activation_type": QuantType.QUInt8},
    "QOperator, per channel, signed": {"per_channel": True, "activation_type": QuantType.QInt8},
    "QOperator, per tensor, unsigned": {"per_channel": False, "activation_type": QuantType.QUInt8},
    "QOperator, per tensor, signed": {"per_channel": False, "activation_type": QuantType.QInt8},
    "QDQ, per channel, unsigned": {
        "per_channel": True,
        "activation_type": QuantType.QUInt8,
        "quant_format": QuantFormat.QDQ,
    },
}
"""Name -> options of `quantize_static_onnx`; signedness is that of activations, weights are signed."""


class OneExample(CalibrationDataReader):
    """Features (T, F), once: what calibration hears."""

    def __init__(self, features: NDArray[np.float32]) -> None:
        self._examples = iter([{"features": np.ascontiguousarray(features.T[None])}])

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self._examples, None)


def float_onnx(heard: nn.Module, features: NDArray[np.float32], path: Path) -> Path:
    """Writes `heard` for utterances as long as `features` to `path`; gives the same with BatchNorms folded, beside it."""
    export_fixed_onnx(heard, len(features), path, num_features=features.shape[1])
    folded = path.with_name(f"folded-{path.name}")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folded)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return folded


def quantize_static_onnx(
    folded: Path,
    path: Path,
    features: NDArray[np.float32],
    *,
    per_channel: bool,
    activation_type: QuantType,
    quant_format: QuantFormat = QuantFormat.QOperator,
) -> None:
    """Writes the int8 form of `folded`, its ranges the least and the largest over `features`."""
    logging.getLogger().setLevel(logging.ERROR)  # it advises preprocessing, which `folded` has had
    quantize_static(
        str(folded),
        str(path),
        OneExample(features),
        quant_format=quant_format,
        per_channel=per_channel,
        activation_type=activation_type,
        weight_type=QuantType.QInt8,
    )
