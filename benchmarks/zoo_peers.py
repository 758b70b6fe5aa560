"""What zoo.py holds a packed file against: ONNX Runtime's int8 form, and what the machine can do at best."""

from __future__ import annotations

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


def machine_bounds() -> dict[str, float]:
    """The best that one thread did in 200 turns: float products by torch's own matrix product, four times as many of
    int8 (a vector holds four times the values), and bytes read from the cache that holds a layer."""
    left, right = torch.randn(1024, 1024), torch.randn(1024, 1024)
    weights = torch.ones(CACHE_BYTES // 4)
    products, reads = [], []
    for _ in range(200):
        start = time.thread_time()
        left @ right
        middle = time.thread_time()
        for _ in range(8):
            weights.sum()
        products.append(middle - start)
        reads.append((time.thread_time() - middle) / 8)
    return {
        "float_products_per_s": 1024**3 / min(products),
        "int8_products_per_s": 4 * 1024**3 / min(products),
        "bytes_per_s": CACHE_BYTES / min(reads),
    }


def work(session: Session, frames: int, *, large_share: float) -> dict[str, int]:
    """What the encoders must do at least: products of floats and of int8, and bytes of recurrent weights that every
    step reads anew. `large_share` of the frames meet the large cell of a Bifocal encoder."""
    model, total = session.model, {"float_products": 0, "int8_products": 0, "recurrent_bytes": 0}
    rows = frames
    for program in (model.program, *(model.parts[name] for name in model.parts if name == "encoder2")):
        shapes = program.shapes(rows, model.constants)
        for op in program.ops:
            height, width = shapes[op.output]
            kind = "int8" if getattr(op, "activation_bits", 0) else "float"
            if isinstance(op, Conv1d):
                total[f"{kind}_products"] += height * size_of(model, op.weight)
            elif isinstance(op, Conv2d):
                positions = height * width // model.constants[op.weight].shape[0]
                total[f"{kind}_products"] += positions * size_of(model, op.weight)
            elif isinstance(op, Lstm | SwitchedLstm):
                weights = size_of(model, op.weight)
                if isinstance(op, SwitchedLstm):
                    small = size_of(model, op.small_weight)
                    weights = round(large_share * weights + (1 - large_share) * small)
                total["recurrent_bytes"] += height * weights * (1 if kind == "int8" else 4)
            elif isinstance(op, Attention):
                is_limited = op.left >= 0 and op.right >= 0
                seen = min(height, op.left + op.right + 1) if is_limited else height
                total["float_products"] += (3 if op.positions else 2) * height * seen * width
        rows = shapes[program.output][0]
    return total


def size_of(model: Any, name: str) -> int:
    return int(np.prod(model.constants[name].shape))
