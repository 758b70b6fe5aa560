"""The demo's Conformer with BatchNorm in integers alone: words on voices that training never heard, paired.

    .venv/bin/subtone train recipes/train-conformer-ctc-demo.toml --train demo/corpus/train --dev demo/corpus/dev --out cctc/
    .venv/bin/python benchmarks/conformer_integer.py cctc/ demo/corpus

Attention over the whole utterance with relative positions, Swish, GLU, LayerNorm, convolutions over images: all of it in
integers, calibrated on synthetic, random or recorded features, beside float and 8-bit weights with dynamic activations.
Writes one document to benchmarks/results/; `benchmarks/tables.py` makes docs/results.md of it.
"""

from __future__ import annotations

import argparse
import json
import time
from datetime import date
from pathlib import Path
from typing import Any

from subtone.export.package import package
from subtone.export.static import calibrated
from subtone.files import write_text
from subtone.models.checkpoints import Checkpoint, load_checkpoint
from subtone.quantize.apply import quantize_checkpoint
from subtone.quantize.rules import Recipe
from subtone.quantize.static import IntegerSettings, features_made
from subtone.report.evaluate import compare, evaluate, summarize
from subtone.report.machine import machine
from subtone.runtime.session import Session
from subtone.speech.audio import read_audio
from subtone.speech.data import Utterance, read_manifest, spread

ROOT = Path(__file__).resolve().parents[1]
DYNAMIC = "ptq-w8"
RECIPES = (DYNAMIC, "zero-shot-w8a8", "zero-shot-w6a8", "random-w8a8", "recordings-w8a8")
RECORDINGS = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="a trained network with BatchNorm and a CTC head")
    parser.add_argument("corpus", type=Path, help="with train/ and test/")
    arguments = parser.parse_args()
    source = load_checkpoint(arguments.checkpoint)
    utterances = read_manifest(arguments.corpus / "test")
    recordings = spread(read_manifest(arguments.corpus / "train"), RECORDINGS)
    heard_float = evaluate(Session.of(package(source, name="float")).recognizer, utterances)
    document: dict[str, Any] = {
        "what": "a Conformer with BatchNorm in integers alone, on the demo's test voices",
        "date": date.today().isoformat(),
        "machine": machine(),
        "utterances": len(utterances),
        "float": summarize(heard_float),
        "rows": [],
    }
    name = f"{document['date']}_{document['machine']['commit']}_conformer_integer.json"
    for recipe_name in RECIPES:
        recipe = Recipe.load(ROOT / "recipes" / f"{recipe_name}.toml")
        start = time.process_time()
        model = package(quantized(source, recipe, recordings), name="conformer-ctc-demo")
        spent = time.process_time() - start
        parts = [part for program in model.programs for part in program.float_parts(model.constants)]
        assert bool(parts) == (recipe_name == DYNAMIC), parts
        heard = evaluate(Session.of(model).recognizer, utterances)
        comparison = compare(heard_float, heard)
        changed = comparison.pop("changed")
        row = {
            "recipe": recipe.resolved(),
            "cpu_seconds": spent,
            "changed_utterances": len(changed),
            **comparison,
        }
        document["rows"].append(row)
        print(
            recipe_name, row["wer_percent"], row["difference_interval_percent"], f"{spent:.0f} s", flush=True
        )
    write_text(ROOT / "benchmarks" / "results" / name, json.dumps(document, indent=1) + "\n")


def quantized(source: Checkpoint, recipe: Recipe, recordings: list[Utterance]) -> Checkpoint:
    settings = IntegerSettings.of(recipe)
    result = quantize_checkpoint(source, recipe)
    if settings is None:
        return result
    if settings.features == "recordings":
        front_end = source.front_end
        examples = [front_end(read_audio(item.audio_path, front_end.rate_hz)) for item in recordings]
    else:
        examples = features_made(source, settings)
    return calibrated(result, settings, examples)


if __name__ == "__main__":
    main()
