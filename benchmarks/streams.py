"""Ten minutes of sound in chunks of 100 ms, heard by every family that streams: memory, state and time a chunk.

    .venv/bin/python benchmarks/streams.py

Presets at full width, 8 bits, random weights; the blank's bias is raised until it wins at nine of ten frames of 10 s,
so that labels come about as often as in speech. Each is heard by a process of its own that never loads torch. A minute's row
is taken at its end: resident memory, bytes of the encoders' state, and the CPU time of its 600 chunks on one thread.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from subtone.files import write_text
from subtone.report.machine import machine
from subtone.runtime.session import Session
from subtone.runtime.transducer import CascadeSearch
from subtone.speech.audio import read_audio
from subtone.speech.data import read_manifest

ROOT = Path(__file__).resolve().parents[1]
PRESETS = ("s8bqat-m1", "conformer-transducer-gq", "cascaded")
MINUTES, CHUNK_SAMPLES, RATE_HZ = 10, 1600, 16000
BLANK_SHARE, FRAME_GAIN = 0.9, 10.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--hear", type=Path, nargs=2, metavar=("FILE", "SAMPLES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.hear:
        print(json.dumps(hear(*arguments.hear)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        samples = speech(arguments.shared)
        samples.tofile(folder / "samples")
        for name in PRESETS:
            path = pack(name, samples[: 10 * RATE_HZ], folder)
            command = [sys.executable, __file__, "--hear", str(path), str(folder / "samples")]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rows.append({"model": name, "file_bytes": path.stat().st_size, **json.loads(done.stdout)})
            print(rows[-1], flush=True)
    document = {
        "what": "ten minutes streamed in chunks of 100 ms; one thread",
        "date": date.today().isoformat(),
        "machine": machine(),
        "recipe": "ptq-w8",
        "rows": rows,
    }
    name = f"{document['date']}_{document['machine']['commit']}_streams.json"
    write_text(ROOT / "benchmarks" / "results" / name, json.dumps(document, indent=1) + "\n")


def speech(shared: Path) -> np.ndarray:
    """Ten minutes: utterances joined, or noise where there are none."""
    size = MINUTES * 60 * RATE_HZ
    folder = shared / "data" / "librispeech" / "dev-clean-300"
    if not folder.is_dir():
        return np.random.default_rng(0).normal(0, 0.1, size).astype(np.float32)
    sounds: list[np.ndarray] = []
    for utterance in read_manifest(folder):
        sounds.append(read_audio(utterance.audio_path, RATE_HZ))
        if sum(map(len, sounds)) >= size:
            break
    return np.concatenate(sounds)[:size]


def pack(name: str, samples: np.ndarray, folder: Path) -> Path:
    """Preset `name` with a blank that is heard, as a packed file."""
    import torch
    from zoo_models import FRONT_ENDS, checkpoint_of

    from subtone.export.package import package
    from subtone.models import preset
    from subtone.models.cascaded import Cascaded
    from subtone.models.hearing import encoded
    from subtone.pack import write_packed
    from subtone.quantize import Recipe
    from subtone.quantize.apply import quantize_checkpoint

    torch.set_num_threads(1)
    features = FRONT_ENDS[preset(name).num_features](samples)
    checkpoint = checkpoint_of(name, features, seed=0)
    network = checkpoint.network
    given = torch.from_numpy(features).T[None]
    with torch.inference_mode():
        frames = {"2" if isinstance(network, Cascaded) else "": encoded(network, given)}
        if isinstance(network, Cascaded):
            joint = network.config.joint_width
            frames[""] = network.entries()["encoder"](given)[:, :, :joint]
        entries = network.entries()
        for which in frames:  # frames must decide what is heard, more than the labels before
            getattr(network, f"joiner{which}").encoder_projection.weight *= FRAME_GAIN
            getattr(network, f"joiner{which}").encoder_projection.bias *= FRAME_GAIN
            getattr(network, f"joiner{which}").predictor_projection.weight /= FRAME_GAIN
        for which, rows in frames.items():
            row = entries[f"predictor{which}"](torch.tensor([[network.blank_index]]))
            logits = entries[f"joiner{which}"](FRAME_GAIN * rows, row)[0]
            lead = logits[:, :-1].max(1).values - logits[:, -1]
            entries[f"joiner{which}"].output.bias[-1] += torch.quantile(lead, BLANK_SHARE)
    path = folder / f"{name}.subtone"
    recipe = Recipe.load(ROOT / "recipes" / "ptq-w8.toml")
    write_packed(path, package(quantize_checkpoint(checkpoint, recipe), name=name))
    return path


def hear(path: Path, samples: Path) -> dict[str, Any]:
    """A row for each minute."""
    session = Session.load(path, threads=1)
    assert session.recognizer.can_stream
    assert "torch" not in sys.modules
    listener = session.recognizer.listen()
    minutes: list[dict[str, Any]] = []
    times: list[float] = []
    for index in range(MINUTES * 600):
        # Not mapped: what was read of a mapped file would count as resident.
        chunk = np.fromfile(samples, np.float32, CHUNK_SAMPLES, offset=4 * index * CHUNK_SAMPLES)
        begin = time.thread_time()
        listener.push(chunk)
        times.append(time.thread_time() - begin)
        if index % 600 == 599:
            p50, p99 = np.percentile(times, [50, 99]) * 1e3
            states = [listener._state]  # nobody else asks how large they are
            if isinstance(listener._search, CascadeSearch):
                states.append(listener._search._state)
            minutes.append(
                {
                    "resident_mb": round(resident_mb(), 2),
                    "state_bytes": sum(state.rows.nbytes + state.ends.nbytes for state in states),
                    "chunk_ms": {
                        "mean": round(float(np.mean(times)) * 1e3, 3),
                        "p50": round(p50, 3),
                        "p99": round(p99, 3),
                    },
                    "labels": len(listener.tokens),
                }
            )
            times = []
    listener.finish()
    return {"minutes": minutes}


def resident_mb() -> float:
    """Resident megabytes of this process, now."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmRSS:")).split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    main()
