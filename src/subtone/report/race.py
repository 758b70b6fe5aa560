"""How fast a model hears, beside PyTorch and ONNX Runtime, in one process.

All candidates take the same features of the same utterances, turn by turn: in each round every
candidate hears every utterance once, and the ratio is taken within the round, so that a machine
whose speed drifts does not decide. Times are of the network alone; the front end, which all
share, is timed beside it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subtone.report.machine import machine
from subtone.runtime.session import Session
from subtone.speech.audio import read_audio
from subtone.speech.data import read_manifest, spread

ORDER_SEED = 7
Run = Callable[[NDArray[np.float32]], Any]
"""Takes features (T, F) of one utterance."""


def race(
    candidates: Mapping[str, Run],
    sounds: Sequence[NDArray[np.float32]],
    *,
    rounds: int,
    progress: Callable[[int, int], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> NDArray[np.float64]:
    """Seconds (rounds, candidates) by `clock` for all `sounds`, after one warm-up round that is not counted.

    Each round has an order of its own, drawn from one seed, so that nobody always follows the same
    neighbour, whose threads may still spin.
    """
    names = list(candidates)
    random = np.random.default_rng(ORDER_SEED)
    seconds = np.zeros((rounds + 1, len(names)))
    for turn in range(rounds + 1):
        for index in random.permutation(len(names)):
            start = clock()
            for sound in sounds:
                candidates[names[index]](sound)
            seconds[turn, index] = clock() - start
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


def race_models(
    checkpoint: Path,
    manifest: Path,
    files: Sequence[Path],
    *,
    limit: int | None,
    rounds: int,
    threads: int,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Packed `files` of the float `checkpoint` against their peers.

    The first file is the one that ratios are of. All hear the first `limit` utterances, spread
    evenly, of `manifest`, as features.
    """
    from subtone.export.onnx import export_onnx, quantize_onnx
    from subtone.models import is_transducer
    from subtone.models.checkpoints import load_checkpoint

    source = load_checkpoint(checkpoint)
    if is_transducer(source.network):
        raise ValueError(f"{checkpoint} is a transducer; bench model takes networks with a CTC head")
    utterances = spread(read_manifest(manifest), limit)
    samples = [read_audio(item.audio_path, source.front_end.rate_hz) for item in utterances]
    start = time.perf_counter()
    sounds = [source.front_end(sound) for sound in samples]
    front_end_seconds = time.perf_counter() - start
    duration_s = sum(map(len, samples)) / source.front_end.rate_hz
    with tempfile.TemporaryDirectory() as folder:
        float_onnx, int8_onnx = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        export_onnx(source.network, float_onnx)
        quantize_onnx(float_onnx, int8_onnx)
        candidates = {f"subtone {path.stem}": Session.load(path, threads=threads).logits for path in files}
        ours = next(iter(candidates))
        candidates |= {
            "PyTorch float": torch_candidate(source.network, threads),
            "ONNX Runtime float": onnx_candidate(float_onnx, threads),
            "ONNX Runtime int8 (quantize_dynamic)": onnx_candidate(int8_onnx, threads),
        }
        seconds = race(candidates, sounds, rounds=rounds, progress=progress)
    return {
        "checkpoint": str(checkpoint),
        "manifest": str(manifest),
        "utterances": len(sounds),
        "duration_s": round(duration_s, 2),
        "threads": threads,
        "rounds": rounds,
        "ours": ours,
        "candidates": summarize_race(list(candidates), seconds, duration_s=duration_s, ours=ours),
        "front_end_real_time_factor": front_end_seconds / duration_s,
        "machine": machine(),
    }
