"""Every preset at its full width: packed at 8, 5, 4 and 2 bits, measured beside torch and ONNX Runtime.

    .venv/bin/python benchmarks/zoo.py                      # all, the smallest first
    .venv/bin/python benchmarks/zoo.py s8bqat-m1 cascaded   # some

The weights are random (a seed for all, BatchNorm statistics of the utterance) where ../shared has none trained, the utterance is 10 s of real speech
where ../shared has some, else noise: bytes, memory, time and the agreement of packed and fake-quantized network do
not need words. One thread everywhere; all candidates in turn in one process, the order drawn each round; CPU time
of that thread, which neighbours on the machine disturb least. What is timed of a transducer is its encoder, of a
cascade both.

Each preset's row is kept as runs/zoo/NAME.json and not measured again while it is there; the document of all rows
goes to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
import traceback
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from zoo_models import FRONT_ENDS, Heard, checkpoint_of, decoder_agreement, greedy_labels, rows_agreement
from zoo_peers import int8_session, machine_bounds, work

from subtone.export.lower import traces_kept
from subtone.export.package import package
from subtone.files import write_text
from subtone.models import MODELS, is_transducer
from subtone.models.accounting import counts
from subtone.pack import packed_sizes, write_packed
from subtone.quantize import Recipe
from subtone.quantize.apply import quantize_checkpoint
from subtone.quantize.simulate import simulated
from subtone.report.machine import machine
from subtone.report.race import race, summarize_race
from subtone.runtime.session import Session
from subtone.speech.audio import read_audio
from subtone.speech.data import read_manifest

ROOT = Path(__file__).resolve().parents[1]
SEED, SECONDS, RATE_HZ = 0, 10, 16000
RECIPES = ("ptq-w8", "ptq-w5", "ptq-w4", "ptq-w2")
MIXED = {"s8bqat-m3": ("ptq-m2-8-5",), "bifocal": ("ptq-bifocal-1-5",)}
"""Preset -> recipes of a paper's mixed bits; M-II is M-III's network by its own."""
FLOAT, INT8 = "PyTorch float", "ONNX Runtime int8"
PEAK = """
import sys
import numpy as np
from subtone.report.machine import peak_memory_mb
if len(sys.argv) > 1:
    from subtone.runtime.session import Session
    session = Session.load(sys.argv[1], threads=1)
    session.recognizer.hear(np.load(sys.argv[2]))
print(peak_memory_mb())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="presets; without any all")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "zoo")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    samples = speech(arguments.shared)
    names = sorted(arguments.names or MODELS, key=lambda name: counts(name).parameters)
    for name in names:
        path = arguments.work / f"{name}.json"
        if path.exists():
            continue
        print(name, flush=True)
        start = time.perf_counter()
        row = measure(name, samples, arguments.rounds, arguments.shared)
        row["measured_s"] = round(time.perf_counter() - start, 1)
        write_text(path, json.dumps(row, indent=1) + "\n")
    done = sorted(arguments.work.glob("*.json"), key=lambda path: counts(path.stem).parameters)
    document = {
        "what": "presets at full width, random weights, packed; one thread",
        "date": date.today().isoformat(),
        "machine": machine(),
        "seed": SEED,
        "seconds": SECONDS,
        "rounds": arguments.rounds,
        "bounds": machine_bounds(),
        "empty_process_mb": round(peak_mb(), 1),
        "rows": [json.loads(path.read_text()) for path in done],
    }
    name = f"{document['date']}_{document['machine']['commit']}_zoo.json"
    write_text(ROOT / "benchmarks" / "results" / name, json.dumps(document, indent=1) + "\n")


def speech(shared: Path) -> np.ndarray:
    """10 s of dev-clean-300, or noise."""
    folder = shared / "data" / "librispeech" / "dev-clean-300"
    if folder.is_dir():
        for utterance in read_manifest(folder):
            sound = read_audio(utterance.audio_path, RATE_HZ)
            if len(sound) >= SECONDS * RATE_HZ:
                return sound[: SECONDS * RATE_HZ]
    return np.random.default_rng(SEED).normal(0, 0.1, SECONDS * RATE_HZ).astype(np.float32)


def measure(name: str, samples: np.ndarray, rounds: int, shared: Path) -> dict[str, Any]:
    """The row of one preset."""
    config = MODELS[name]
    front_end = FRONT_ENDS[config.num_features]
    features = front_end(samples)
    checkpoint = checkpoint_of(name, features, seed=SEED, shared=shared)
    network = checkpoint.network
    heard = Heard(network)
    given = torch.from_numpy(features).T[None].contiguous()
    with torch.inference_mode():
        rows = heard(given)[0].numpy()
        is_bifocal = hasattr(getattr(network, "encoder", None), "gates")
        large_share = float((network.encoder.gates(given) > 0).float().mean()) if is_bifocal else 1.0
    labels = greedy_labels(network, rows) if is_transducer(network) else []
    with tempfile.TemporaryDirectory() as text, traces_kept():
        folder = Path(text)
        np.save(folder / "samples.npy", samples)
        packed, candidates = [], {}
        for recipe in (None, *RECIPES, *MIXED.get(name, ())):
            print(" ", recipe or "float", flush=True)
            one, path = pack_one(checkpoint, recipe, name, folder)
            session = Session.load(path, threads=1)
            model = one.pop("model")
            with torch.inference_mode():
                plain = Heard(model.network)(given)[0].numpy()
            twin = simulated(model).network
            with torch.inference_mode():
                expected = Heard(twin)(given)[0].numpy()
            run = packed_run(session, twin)
            found = run(features)
            one |= {
                "rows": rows_agreement(found, expected),
                "rows_float_activations": rows_agreement(found, plain),
            }
            if labels:
                one["joiner"] = decoder_agreement(session, twin, found, expected, labels)
            one["peak_mb"] = round(peak_mb(path, folder / "samples.npy"), 1)
            one["work"] = work(session, len(features), large_share=large_share)
            packed.append(one)
            if recipe:
                candidates[recipe] = run
            del model, twin, session
        peers, int8_says = {FLOAT: torch_run(heard)}, ""
        try:
            peers[INT8] = int8_session(heard, features, folder)
        except Exception as error:  # whatever the exporter raises is what is told
            int8_says = one_line(error)
            traceback.print_exc(limit=1)
        candidates |= peers
        seconds = race(candidates, [features], rounds=rounds, clock=time.thread_time)
    summary = summarize_race(list(candidates), seconds, duration_s=SECONDS, ours=RECIPES[0])
    return {
        "model": name,
        "parameters": counts(name).parameters,
        "frames": len(features),
        "large_share": large_share,
        "packed": packed,
        "race": summary,
        "int8_says": int8_says,
    }


def pack_one(checkpoint: Any, recipe: str | None, name: str, folder: Path) -> tuple[dict[str, Any], Path]:
    """Packed by one recipe: bytes and what it took; "model" is the checkpoint that was packed."""
    times, path = [time.perf_counter()], folder / f"{recipe or 'float'}.subtone"
    model = checkpoint
    if recipe:
        model = quantize_checkpoint(checkpoint, Recipe.load(ROOT / "recipes" / f"{recipe}.toml"))
    times.append(time.perf_counter())
    # The float network with what is stored in place of its weights: so it is traced once for all recipes.
    whole = package(dataclasses.replace(checkpoint, quantization=model.quantization), name=name)
    times.append(time.perf_counter())
    write_packed(path, whole)
    times.append(time.perf_counter())
    quantize_s, export_s, write_s = np.diff(times).round(2).tolist()
    sizes = packed_sizes(path)
    return {
        "recipe": recipe or "float",
        "file_bytes": sizes.file_bytes,
        "header_bytes": sizes.header_bytes,
        "quantize_s": quantize_s,
        "export_s": export_s,
        "write_s": write_s,
        "model": model,
    }, path


def packed_run(session: Session, network: Any) -> Any:
    """Features to the rows of `Heard`: a cascade's second encoder reads the first's rows."""
    if "encoder2" not in session.model.parts:
        return session.logits
    from subtone.runtime.engine import load_engine

    second = load_engine(session.model.parts["encoder2"], session.model.constants, threads=1)
    joint = network.config.joint_width
    return lambda features: second.run(np.ascontiguousarray(session.logits(features)[:, joint:]))


def torch_run(heard: torch.nn.Module) -> Any:
    @torch.inference_mode()
    def run(features: np.ndarray) -> Any:
        return heard(torch.from_numpy(features).T[None])

    return run


def peak_mb(*arguments: object) -> float:
    """Peak resident megabytes of a process that loads a packed file and hears; of an empty one without arguments."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *map(str, arguments)], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if "subtone" in line or "aten" in line]
    return (lines or [str(error).strip().splitlines()[0]])[0][:200]


if __name__ == "__main__":
    main()
