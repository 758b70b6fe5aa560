"""Operations of the native run time beside torch's, on one thread, and the bound that each meets.

    .venv/bin/python benchmarks/operations.py

Both compute the same values in float32, but for the LSTM of 8-bit weights and activations, beside torch's dynamic
int8 and float LSTMs; torch's also multiply their input, which is a product of its own in a program. Ours includes
the way through Python (45 microseconds for two 0.5 MB matrices). Times are CPU times of the calling thread, which
other programs on the machine disturb less than those of a clock.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from subtone import numerics
from subtone.files import write_text
from subtone.program import Attention, Conv1d, Conv2d, Function, LayerNorm, Lstm, Op, Program
from subtone.qtensor import QTensor
from subtone.report.machine import machine
from subtone.runtime.engine import NativeEngine

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 21
FRAMES, WIDTH, HEADS, UNITS = 250, 512, 8, 1024
RNG = np.random.default_rng(0)
EPSILON = float(np.float32(1e-5))


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(0, 0.3, shape).astype(np.float32)


def ours(op: Op, constants: dict, *inputs: np.ndarray) -> Callable[[], object]:
    names = [name for name in (getattr(op, field) for field in op.VALUES) if name and name not in constants]
    (first, *others), program_ops = names, (op,)
    widths = [matrix.shape[1] for matrix in inputs]
    plain = {
        "input": first,
        "input_width": widths[0],
        "output": "y",
        "frames_per_step": 1,
        "ops": program_ops,
    }
    known = dict(zip(names, widths, strict=True))
    given = {field: known[name] for field in op.VALUES if (name := getattr(op, field)) in known}
    program = Program(
        **plain,
        output_width=op.width(given, constants, "op"),
        others=tuple(zip(others, widths[1:], strict=True)),
    )
    engine = NativeEngine(program, constants, threads=1)
    return lambda: engine.run(*inputs)


def compare(name: str, bound: str, work: float, mine: Callable, theirs: Callable) -> dict:
    """One row: medians, and the quartiles of the ratios of rounds; `work` in 1e9 of what `bound` counts."""
    times = np.empty((ROUNDS + 2, 2))
    for turn in times:
        for place, run in enumerate((mine, theirs)):
            start = time.thread_time()
            run()
            turn[place] = time.thread_time() - start
    own, other = times[2:].T
    ratios = np.percentile(other / own, [25, 50, 75]).round(2).tolist()
    row = {
        "operation": name,
        "ours_ms": round(float(np.median(own)) * 1e3, 3),
        "torch_ms": round(float(np.median(other)) * 1e3, 3),
        "ratio_quartiles": ratios,
        "bound": bound,
        "per_s": round(work / float(np.median(own)), 1),
    }
    print(
        f"{name:34s} {row['ours_ms']:9.3f} ms  torch {row['torch_ms']:9.3f}  x{ratios[1]:.2f}  {row['per_s']} {bound}/s"
    )
    return row


def rowwise() -> list[dict]:
    x = floats(FRAMES, WIDTH) * 5
    there, rows, count = torch.from_numpy(x), [], x.size / 1e9
    for name, theirs in (("silu", functional.silu), ("tanh", torch.tanh), ("gelu", functional.gelu)):
        op = Function(input="x", output="y", function=name)
        rows.append(compare(name, "G values", count, ours(op, {}, x), lambda theirs=theirs: theirs(there)))
    constants = {"g": floats(WIDTH), "b": floats(WIDTH)}
    op = LayerNorm(input="x", output="y", gain="g", bias="b", epsilon=EPSILON)
    gain, bias = (torch.from_numpy(constants[name]) for name in "gb")
    mine = ours(op, constants, x)
    return [
        *rows,
        compare(
            "layer_norm", "G values", count, mine, lambda: functional.layer_norm(there, (WIDTH,), gain, bias)
        ),
    ]


def recurrent() -> list[dict]:
    weight = floats(4 * UNITS, UNITS)
    limits = numerics.symmetric_grid(np.abs(weight).max(axis=1, keepdims=True), 8)
    packed = QTensor.on_grid(weight, limits, 8, is_symmetric=True)
    steps, x = 100, floats(100, 4 * UNITS)
    network = torch.nn.LSTM(UNITS, UNITS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that this function will move
        integer = torch.ao.quantization.quantize_dynamic(network, {torch.nn.LSTM}, dtype=torch.qint8)
    features, rows = torch.randn(steps, 1, UNITS), []
    for name, bits, theirs in (("lstm int8", 8, integer), ("lstm float", 0, network)):
        op = Lstm(input="x", output="y", cell="c", weight="w", activation_bits=bits)
        gigabytes = steps * weight.size * (1 if bits else 4) / 1e9
        constants = {"w": packed if bits else weight}
        rows.append(
            compare(
                f"{name} {UNITS}, {steps} steps", "GB of weights", gigabytes, ours(op, constants, x),
                lambda theirs=theirs: theirs(features),
            )
        )  # fmt: skip
    return rows


def attention() -> list[dict]:
    query, key, value = (floats(FRAMES, WIDTH) for _ in range(3))
    there = [
        torch.from_numpy(matrix).view(FRAMES, HEADS, -1).transpose(0, 1)[None]
        for matrix in (query, key, value)
    ]
    rows = []
    for left, right in ((-1, -1), (64, 0)):
        op = Attention(query="q", key="k", value="v", output="y", heads=HEADS, left=left, right=right)
        distance = np.arange(FRAMES)[:, None] - np.arange(FRAMES)
        seen = (distance <= left) & (distance >= -right) if left >= 0 else distance == distance
        mask = torch.from_numpy(seen) if left >= 0 else None
        products = 2 * seen.sum() * WIDTH / 1e9
        rows.append(
            compare(
                f"attention {FRAMES} rows, left {left}", "G products", products,
                ours(op, {}, query, key, value),
                lambda mask=mask: functional.scaled_dot_product_attention(*there, attn_mask=mask),
            )
        )  # fmt: skip
    return rows


def convolutions() -> list[dict]:
    rows = []
    for channels, out, groups, frames, features in (
        (512, 512, 1, 250, 40), (512, 512, 512, 250, 40), (1, 512, 1, 1000, 80),
    ):  # fmt: skip
        x, weight = floats(frames, channels * features), floats(out, channels // groups, 3, 3)
        op = Conv2d(
            input="x", output="y", weight="w", in_channels=channels, kernel=3, stride=2, padding=1, groups=groups,
            feature_kernel=3, feature_stride=2, feature_padding=1,
        )  # fmt: skip
        there = torch.from_numpy(x).view(frames, channels, features).transpose(0, 1)[None].contiguous()
        kernel = torch.from_numpy(weight)
        rows.append(
            compare(
                f"conv2d {channels}->{out} 3x3/2, groups {groups}", "G products",
                frames / 2 * features / 2 * weight.size / 1e9, ours(op, {"w": weight}, x),
                lambda there=there, kernel=kernel, groups=groups: functional.conv2d(
                    there, kernel, stride=2, padding=1, groups=groups
                ),
            )
        )  # fmt: skip
    x, weight = floats(FRAMES, 768), floats(768, 48, 128)
    op = Conv1d(input="x", output="y", weight="w", kernel=128, padding=64, padding_behind=63, groups=16)
    there, kernel = torch.from_numpy(x).T[None].contiguous(), torch.from_numpy(weight)
    mine, work = ours(op, {"w": weight}, x), FRAMES * weight.size / 1e9
    theirs = lambda: functional.conv1d(there, kernel, padding=64, groups=16)  # noqa: E731
    return [*rows, compare("conv1d 768, 16 groups, 128 taps", "G products", work, mine, theirs)]


def main() -> None:
    torch.set_num_threads(1)
    with torch.inference_mode():
        rows = [*rowwise(), *recurrent(), *attention(), *convolutions()]
        left, right = torch.randn(1024, 1024), torch.randn(1024, 1024)
        times = []
        for _ in range(ROUNDS):
            start = time.thread_time()
            left @ right
            times.append(time.thread_time() - start)
    products = round(1024**3 / 1e9 / float(np.median(times)), 1)
    document = {
        "what": "operations on one thread beside torch's; CPU time",
        "date": date.today().isoformat(),
        "machine": machine(),
        "torch_matmul_g_products_per_s": products,
        "rows": rows,
    }
    name = f"{document['date']}_{document['machine']['commit']}_operations.json"
    write_text(ROOT / "benchmarks" / "results" / name, json.dumps(document, indent=1) + "\n")
    print(json.dumps({"operations": len(rows), "file": name}))


if __name__ == "__main__":
    main()
