"""QuartzNet15x5 without training: every post-training recipe, packed, on all of test-clean-a, paired.

    .venv/bin/python benchmarks/quartznet_ptq.py --shared ../shared --work runs/ptq

Writes one document to benchmarks/results/; `benchmarks/tables.py` makes docs/results.md of it. What
the float model heard is kept in the work folder and taken from there by a second run.
"""

from __future__ import annotations

import argparse
import json
from datetime import date
from pathlib import Path

from subtone.export.package import package
from subtone.files import write_text
from subtone.models.checkpoints import Checkpoint, load_checkpoint
from subtone.pack import write_packed
from subtone.quantize.apply import quantize_checkpoint
from subtone.quantize.rules import Recipe
from subtone.report.evaluate import Heard, compare, evaluate, load_heard, save_heard, summarize
from subtone.report.inspect import describe
from subtone.report.machine import machine
from subtone.runtime.session import Session
from subtone.speech.data import Utterance, read_manifest, spread

ROOT = Path(__file__).resolve().parents[1]
RECIPES = (
    "ptq-w8", "ptq-w6", "ptq-w5", "ptq-w4",
    "ptq-w8-group64", "ptq-w6-group64", "ptq-w5-group64", "ptq-w4-group64",
    "ptq-w4-clip", "ptq-w4-group64-clip", "ptq-w4-correct",
    "ptq-w5-codebook", "ptq-w4-codebook", "ptq-w4-asymmetric",
    "ptq-w4-compensated", "ptq-w4-group64-compensated", "ptq-w4-codebook-compensated",
    "ptq-w5-codebook-compensated", "ptq-w5-codebook-refined", "ptq-quartznet-4-6-refined",
    "ptq-quartznet-5-6-compensated",
)  # fmt: skip
CALIBRATION_UTTERANCES = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "ptq")
    parser.add_argument("--limit", type=int, help="utterances, evenly spread")
    parser.add_argument("recipes", nargs="*", default=RECIPES)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    speech = arguments.shared / "data" / "librispeech"
    utterances = spread(read_manifest(speech / "test-clean-a"), arguments.limit)
    calibration = spread(read_manifest(speech / "train-clean-7h"), CALIBRATION_UTTERANCES)
    source = load_checkpoint(arguments.shared / "models" / "quartznet15x5-en.nemo")
    heard_float = hear_float(source, utterances, arguments.work / "float.jsonl")
    document = {
        "what": "QuartzNet15x5, post-training, packed, test-clean-a",
        "date": date.today().isoformat(),
        "machine": machine(),
        "utterances": len(utterances),
        "float": summarize(heard_float),
        "rows": [],
    }
    name = f"{document['date']}_{document['machine']['commit']}_quartznet_ptq.json"
    for recipe in arguments.recipes:
        row = measure(
            source,
            Recipe.load(ROOT / "recipes" / f"{recipe}.toml"),
            utterances,
            calibration,
            heard_float,
            arguments.work,
        )
        document["rows"].append(row)
        write_text(ROOT / "benchmarks" / "results" / name, json.dumps(document, indent=1) + "\n")
        print(
            recipe,
            row["file_bytes"],
            row["wer_percent"][1],
            row["difference_percent"],
            row["difference_interval_percent"],
            flush=True,
        )


def hear_float(source: Checkpoint, utterances: list[Utterance], path: Path) -> list[Heard]:
    if not path.exists():
        save_heard(path, evaluate(source.recognizer(), utterances))
    return load_heard(path)


def measure(
    source: Checkpoint,
    recipe: Recipe,
    utterances: list[Utterance],
    calibration: list[Utterance],
    heard_float: list[Heard],
    work: Path,
) -> dict:
    """One recipe: the size of its file and what was predicted, its words against the float model's."""
    needs_speech = any(rule.settings.hears for rule in recipe.rules)
    quantized = quantize_checkpoint(source, recipe, utterances=calibration if needs_speech else ())
    file = work / f"{recipe.name}.subtone"
    write_packed(file, package(quantized, name="quartznet15x5-en"))
    heard = evaluate(Session.load(file).recognizer, utterances)
    save_heard(work / f"{recipe.name}.jsonl", heard)
    document = describe(file)
    comparison = compare(heard_float, heard)
    changed = comparison.pop("changed")
    return {
        "recipe": recipe.resolved(),
        "file_bytes": document["file_bytes"],
        "predicted_bytes": predicted_bytes(quantized),
        "section_bytes": document["section_bytes"],
        "changed_utterances": len(changed),
        **comparison,
    }


def predicted_bytes(quantized: Checkpoint) -> int:
    """Codes, what decodes them, and float32 vectors, by arithmetic alone: no header, no padding, no
    vectors of bias correction.

    One bias a convolution with a BatchNorm behind it and one for the head; beside group scales one
    gain as well.
    """
    assert quantized.quantization is not None
    total = 0
    for path, weight in quantized.quantization.weights.items():
        is_normalized = "depthwise" not in path
        vectors = is_normalized * (1 + (weight.group_size is not None and not path.startswith("head")))
        total += weight.num_bytes + 4 * weight.num_rows * vectors
        per_tensor = weight.scale.shape == (1, 1)
        total += 4 * (weight.num_rows - 1) if per_tensor and is_normalized else 0
    return total


if __name__ == "__main__":
    main()
