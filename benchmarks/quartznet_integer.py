"""QuartzNet15x5 in integers alone, calibrated without a recording: words on all of test-clean-a, paired.

    .venv/bin/python benchmarks/quartznet_integer.py --shared ../shared --work runs/integer

Every row is a recipe with another source of calibration, over several seeds: the seeds of the synthetic
spectrograms, of the random ones, or which recordings were taken. Synthetic spectrograms take minutes of CPU
a seed; the work folder keeps them (synthetic-SEED.npz), and what was heard. Beside them stand the same weights with
8-bit dynamic activations and float sums: what is lost by integers, and what by the weights.

Writes one document to benchmarks/results/; `benchmarks/tables.py` makes docs/results.md of it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from quartznet_ptq import hear_float

from subtone.export.package import package
from subtone.export.static import calibrated
from subtone.files import write_text
from subtone.models.checkpoints import Checkpoint, load_checkpoint
from subtone.pack import write_packed
from subtone.quantize.apply import quantize_checkpoint
from subtone.quantize.rules import Recipe
from subtone.quantize.static import IntegerSettings, features_made
from subtone.report.evaluate import Heard, compare, evaluate, load_heard, save_heard, summarize
from subtone.report.inspect import describe
from subtone.report.machine import machine
from subtone.runtime.session import Session
from subtone.speech.audio import read_audio
from subtone.speech.data import Utterance, read_manifest

ROOT = Path(__file__).resolve().parents[1]
SEEDS = (0, 1, 2, 3)
SYNTHESIS = {"num_batches": 1, "iterations": 150, "precision": "bfloat16"}
"""As the recipes say."""
RECORDINGS = 32
"""Recordings of one calibration, 240 speakers' first ones divided among the seeds."""
MSE = {"range": "mse"}
WIDE = {"wide_products": ["blocks.1[456].*.pointwise"]}
"""As recipes/zero-shot-w8a8-quartznet15x5.toml: 11 of 171 products read 16 bits."""
ROWS: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
    ("W8A8, synthetic, 11 wide", {**MSE, **WIDE}, {"bits": 8}),
    ("W8A8, synthetic", MSE, {"bits": 8}),
    ("W8A8, synthetic, min/max", {}, {"bits": 8}),
    ("W8A8, synthetic, compensated", MSE, {"bits": 8, "rounding": "compensated"}),
    ("W6A8, synthetic", MSE, {"bits": 6}),
    ("W8A8, random", {"features": "random"}, {"bits": 8}),
    ("W6A8, random", {"features": "random"}, {"bits": 6}),
    ("W8A8, recordings", {"features": "recordings", **MSE}, {"bits": 8}),
)
ABLATIONS: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
    ("W8A8, synthetic, EMA", {"range": "ema"}, {"bits": 8}),
    ("W8A8, synthetic, signed", {**MSE, "unsigned": False}, {"bits": 8}),
    ("W8A8, synthetic, 8-bit sums", {**MSE, "sum_bits": 8}, {"bits": 8}),
    (
        "W4A8, synthetic, compensated codebook",
        MSE,
        {"bits": 4, "rounding": "compensated", "grid": "codebook"},
    ),
)
"""One seed each: what a choice costs, and weights of fewer bits."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "integer")
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS)
    parser.add_argument("--manifest", default="test-clean-a", help="folder of the speech")
    parser.add_argument("--only", nargs="*", help="labels of rows")
    arguments = parser.parse_args()
    work = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    speech = arguments.shared / "data" / "librispeech"
    utterances = read_manifest(speech / arguments.manifest)
    source = load_checkpoint(arguments.shared / "models" / "quartznet15x5-en.nemo")
    heard_float = hear_float(source, utterances, work / f"float-{arguments.manifest}.jsonl")
    document = {
        "what": f"QuartzNet15x5, integer-only, {arguments.manifest}",
        "date": date.today().isoformat(),
        "machine": machine(),
        "utterances": len(utterances),
        "float": summarize(heard_float),
        "rows": [],
    }
    name = f"{document['date']}_{document['machine']['commit']}_quartznet_integer.json"
    plans = [(row, arguments.seeds) for row in ROWS] + [(row, arguments.seeds[:1]) for row in ABLATIONS]
    for (label, integer, weights), seeds in plans:
        if arguments.only and label not in arguments.only:
            continue
        row = {"label": label, "seeds": []}
        document["rows"].append(row)
        for seed in seeds:
            measured = measure(
                source, recipe_of(label, integer, weights), seed, utterances, heard_float, work,
                speech / "train-clean-100-one-each", arguments.manifest,
            )  # fmt: skip
            row["seeds"].append(measured)
            write_text(ROOT / "benchmarks" / "results" / name, json.dumps(document, indent=1) + "\n")
            print(label, seed, measured["wer_percent"][1], measured["difference_percent"],
                  measured["difference_interval_percent"], flush=True)  # fmt: skip


def recipe_of(label: str, integer: dict[str, Any], weights: dict[str, Any]) -> Recipe:
    """One rule for all weights, per channel."""
    return Recipe.from_dict({"name": label, "method": "linear", "integer": integer, "rules": [weights]})


def measure(
    source: Checkpoint,
    recipe: Recipe,
    seed: int,
    utterances: list[Utterance],
    heard_float: list[Heard],
    work: Path,
    recordings: Path,
    manifest: str,
) -> dict[str, Any]:
    """One calibration of one recipe: its file, and its words against the float model's."""
    settings = IntegerSettings.of(recipe)
    assert settings is not None
    name = f"{recipe.name}-{seed}".replace(" ", "").replace(",", "-").replace("%", "").replace("/", "")
    file, words = work / f"{name}.subtone", work / f"{name}-{manifest}.jsonl"
    if not file.exists():
        examples = list(examples_of(source, settings, seed, work, recordings))
        is_hearing = any(rule.settings.hears for rule in recipe.rules)
        quantized = quantize_checkpoint(source, recipe, features=examples if is_hearing else ())
        checkpoint = calibrated(quantized, settings, examples)
        write_packed(file, package(checkpoint, name="quartznet15x5-en"))
    document = describe(file)
    assert document["is_integer"], document["float_parts"]
    if not words.exists():
        save_heard(words, evaluate(Session.load(file).recognizer, utterances))
    heard = load_heard(words)
    comparison = compare(heard_float, heard)
    changed = comparison.pop("changed")
    return {
        "seed": seed,
        "recipe": recipe.resolved(),
        "file_bytes": document["file_bytes"],
        "changed_utterances": len(changed),
        **comparison,
    }


def examples_of(
    source: Checkpoint, settings: IntegerSettings, seed: int, work: Path, recordings: Path
) -> Iterator[NDArray[np.float32]]:
    if settings.features == "recordings":
        for utterance in read_manifest(recordings)[seed :: len(SEEDS)][:RECORDINGS]:
            yield source.front_end(read_audio(utterance.audio_path, source.front_end.rate_hz))
        return
    synthesis = settings.synthesis.model_copy(update={"seed": seed, **SYNTHESIS})
    kept = work / f"synthetic-{seed}.npz"
    if settings.features == "synthetic" and kept.exists():
        made = [np.ascontiguousarray(each.T) for each in np.load(kept)["features"]]
    else:
        start = time.process_time()
        made = features_made(source, settings.model_copy(update={"synthesis": synthesis}))
        if settings.features == "synthetic":
            spent = time.process_time() - start
            np.savez(kept, features=np.stack([each.T for each in made]), cpu_seconds=spent)
    yield from made


if __name__ == "__main__":
    main()
