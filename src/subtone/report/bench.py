"""How fast a model hears, beside PyTorch and ONNX Runtime, in one process.

All candidates take the same features of the same utterances, turn by turn: in each round every
candidate hears every utterance once, and the ratio is taken within the round, so that a machine
whose speed drifts does not decide. Times are of the network alone; the front end, which all
share, is timed beside it.
"""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Run = Callable[[NDArray[np.float32]], Any]
"""Takes features (T, F) of one utterance."""


def race(
    candidates: Mapping[str, Run],
    sounds: Sequence[NDArray[np.float32]],
    *,
    rounds: int,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float64]:
    """Seconds (rounds, candidates) for all `sounds`, after one warm-up round that is not counted."""
    names = list(candidates)
    seconds = np.zeros((rounds + 1, len(names)))
    for turn in range(rounds + 1):
        for place in range(len(names)):
            index = (place + turn) % len(names)  # nobody always follows the same neighbour
            start = time.perf_counter()
            for sound in sounds:
                candidates[names[index]](sound)
            seconds[turn, index] = time.perf_counter() - start
        if progress:
            progress(turn + 1, rounds + 1)
    return seconds[1:]


def summarize_race(
    names: Sequence[str], seconds: NDArray[np.float64], *, duration_s: float, ours: str
) -> list[dict[str, Any]]:
    """For each candidate: median seconds, real-time factor, and how many times faster `ours` is.

    The ratio is the median over rounds of (their seconds / our seconds), with its quartiles.
    """
    own = seconds[:, list(names).index(ours)]
    rows = []
    for index, name in enumerate(names):
        ratios = seconds[:, index] / own
        rows.append(
            {
                "candidate": name,
                "seconds": float(np.median(seconds[:, index])),
                "real_time_factor": float(np.median(seconds[:, index]) / duration_s),
                "ours_is_faster_by": float(np.median(ratios)),
                "quartiles": [float(value) for value in np.percentile(ratios, (25, 75))],
            }
        )
    return rows


def torch_candidate(network: Any, threads: int) -> Run:
    """The network in PyTorch, float32."""
    import torch

    torch.set_num_threads(threads)

    @torch.inference_mode()
    def run(features: NDArray[np.float32]) -> Any:
        return network(torch.from_numpy(features).T[None])[0]

    return run


def onnx_candidate(path: Path, threads: int) -> Run:
    """An ONNX file in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda features: session.run(None, {"features": features.T[None]})


def machine() -> dict[str, Any]:
    """Where a number was measured: processor, cores, versions, commit."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "commit": _commit(),
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )


def _commit() -> str:
    """The commit of the source this runs from; "" outside a checkout."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=10"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return ""
    return found.stdout.strip()
