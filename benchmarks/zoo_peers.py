"""What zoo.py holds a packed file against: ONNX Runtime's int8 form, and what the machine can do at best."""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from subtone.export.onnx import export_fixed_onnx, quantize_onnx
from subtone.program import Attention, Conv1d, Conv2d, Lstm, SwitchedLstm
from subtone.report.race import onnx_candidate
from subtone.runtime.session import Session

CACHE_BYTES = 4 << 20
"""Of the weights whose reading is timed: an LSTM of 1024 units has as many recurrent ones."""


def int8_session(heard: nn.Module, features: np.ndarray, folder: Path) -> Any:
    """The same network by ONNX Runtime's dynamic quantization, for utterances as long as `features`."""
    float_path, int8_path = folder / "float.onnx", folder / "int8.onnx"
    export_fixed_onnx(heard, len(features), float_path, num_features=features.shape[1])
    quantize_onnx(float_path, int8_path)
    float_path.unlink()
    run = onnx_candidate(int8_path, 1)
    int8_path.unlink()
    return run


@functools.cache
def machine_bounds() -> dict[str, float]:
    """What one thread can do: float products by torch's own matrix product, four times as many of int8 (a vector
    holds four times the values), and bytes read from the cache that holds a layer."""
    left, right = torch.randn(1024, 1024), torch.randn(1024, 1024)
    weights = np.ones(CACHE_BYTES // 4, np.float32)
    products, reads = [], []
    for _ in range(21):
        start = time.thread_time()
        left @ right
        middle = time.thread_time()
        np.dot(weights, weights)
        products.append(middle - start)
        reads.append(time.thread_time() - middle)
    float_rate = 1024**3 / float(np.median(products))
    return {
        "float_products_per_s": float_rate,
        "int8_products_per_s": 4 * float_rate,
        "bytes_per_s": CACHE_BYTES / float(np.median(reads)),
    }


def bound(session: Session, frames: int, rates: dict[str, float]) -> float:
    """Seconds that the encoders' products and the reading of recurrent weights take at the machine's best."""
    model, total = session.model, 0.0
    rows = frames
    for program in (model.program, *(model.parts[name] for name in model.parts if name == "encoder2")):
        shapes = program.shapes(rows, model.constants)
        for op in program.ops:
            height, width = shapes[op.output]
            if isinstance(op, Conv1d | Conv2d):
                positions = height if isinstance(op, Conv1d) else height * width // len_of(model, op.weight)
                rate = "int8" if getattr(op, "activation_bits", 0) else "float"
                total += positions * size_of(model, op.weight) / rates[f"{rate}_products_per_s"]
            elif isinstance(op, Lstm | SwitchedLstm):
                is_integer = bool(op.activation_bits)
                num_bytes = height * size_of(model, op.weight) * (1 if is_integer else 4)
                rate = rates[f"{'int8' if is_integer else 'float'}_products_per_s"]
                total += max(num_bytes / rates["bytes_per_s"], height * size_of(model, op.weight) / rate)
            elif isinstance(op, Attention):
                both_limited = op.left >= 0 and op.right >= 0
                seen = min(height, op.left + op.right + 1) if both_limited else height
                products = (3 if op.positions else 2) * height * seen * width
                total += products / rates["float_products_per_s"]
        rows = shapes[program.output][0]
    return total


def size_of(model: Any, name: str) -> int:
    return int(np.prod(model.constants[name].shape))


def len_of(model: Any, name: str) -> int:
    return int(model.constants[name].shape[0])
