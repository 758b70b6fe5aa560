"""QuartzNet15x5 trained to few bits: each recipe beside its controls, packed, on all of test-clean-a, paired.

    .venv/bin/python benchmarks/quartznet_tuned.py tuned-float native-i4w gq-4bit --work runs/tuned

Controls: the float model as given, the float model trained identically (recipe `tuned-float`, run it first),
and, with --rounded, each recipe's rules rounded to nearest without training. One document in
benchmarks/results/ holds the rows of all calls that share a work folder; a killed call goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from quartznet_ptq import hear_float

from subtone.export.package import package
from subtone.files import write_text
from subtone.models.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from subtone.pack import write_packed
from subtone.quantize import Recipe
from subtone.quantize.apply import quantize_checkpoint
from subtone.report.evaluate import Heard, compare, evaluate, load_heard, save_heard, summarize
from subtone.report.machine import machine
from subtone.runtime.session import Session
from subtone.speech.data import Utterance, read_manifest, spread
from subtone.train import TuneSettings, tune

ROOT = Path(__file__).resolve().parents[1]
CONTROL = "tuned-float"
NUM_DEV = 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "tuned")
    parser.add_argument("--rounded", action="store_true", help="hear each recipe without training too")
    parser.add_argument("--limit", type=int, help="utterances of the test set, evenly spread")
    parser.add_argument("--steps", type=int, help="optimizer steps, in place of the recipe's")
    arguments = parser.parse_args()
    work, speech = arguments.work, arguments.shared / "data" / "librispeech"
    work.mkdir(parents=True, exist_ok=True)
    utterances = spread(read_manifest(speech / "test-clean-a"), arguments.limit)
    train = read_manifest(speech / "train-clean-7h")
    dev = spread(read_manifest(speech / "dev-clean-300"), NUM_DEV)
    source = load_checkpoint(arguments.shared / "models" / "quartznet15x5-en.nemo")
    for name in arguments.recipes:
        recipe = Recipe.load(ROOT / "recipes" / f"{name}.toml")
        if arguments.steps is not None:
            recipe, name = in_steps(recipe, arguments.steps), f"{name}-{arguments.steps}"
        if not (work / f"{name}.json").exists():
            row = measure(source, recipe, train, dev, utterances, work)
            write_text(work / f"{name}.json", json.dumps(row, indent=1) + "\n")
            print(name, row["wer_percent"], flush=True)
        if arguments.rounded and not (work / f"{name}-rounded.jsonl").exists():
            print(name, "rounded", round_only(source, recipe, utterances, work), flush=True)
    write_document(work, len(utterances), hear_float(source, utterances, work / "float.jsonl"))


def in_steps(recipe: Recipe, steps: int) -> Recipe:
    """The recipe under a name of its own, trained for `steps`; what counts steps in its options goes with them."""
    ratio = steps / TuneSettings.of(recipe).steps
    counted = ("end_step", "every_steps", "tau_steps")
    options = {
        key: round(value * ratio) if key in counted else value for key, value in recipe.options.items()
    }
    training = {**recipe.training, "steps": steps}
    return recipe.model_copy(
        update={"name": f"{recipe.name}-{steps}", "options": options, "training": training}
    )


def measure(
    source: Checkpoint,
    recipe: Recipe,
    train: Sequence[Utterance],
    dev: Sequence[Utterance],
    utterances: Sequence[Utterance],
    work: Path,
) -> dict[str, Any]:
    """One recipe: trained, packed and heard."""
    settings = TuneSettings.of(recipe)
    start = time.perf_counter()
    tuned = tune(
        work / f"{recipe.name}.run", source, recipe, train=train, dev=dev, progress=report(recipe.name, start)
    )
    seconds = time.perf_counter() - start
    save_checkpoint(work / recipe.name, tuned.checkpoint)
    assert tuned.checkpoint.quantization is not None
    heard = hear_packed(tuned.checkpoint, utterances, work / recipe.name)
    return {
        "recipe": dict(tuned.checkpoint.quantization.recipe),
        "speech_h": settings.steps * settings.batch_s / 3600,
        "training_s": round(seconds, 1),
        "curve": tuned.curve,
        "file_bytes": (work / f"{recipe.name}.subtone").stat().st_size,
        **summarize(heard),
    }


def round_only(source: Checkpoint, recipe: Recipe, utterances: Sequence[Utterance], work: Path) -> float:
    """WER of the recipe's rules rounded to nearest, without training."""
    rounding = recipe.model_copy(update={"method": "linear", "options": {}, "training": {}})
    heard = hear_packed(quantize_checkpoint(source, rounding), utterances, work / f"{recipe.name}-rounded")
    return summarize(heard)["wer_percent"]


def hear_packed(checkpoint: Checkpoint, utterances: Sequence[Utterance], path: Path) -> list[Heard]:
    """What the packed file hears; both the file and its words are left beside `path`."""
    file = path.with_name(f"{path.name}.subtone")
    write_packed(file, package(checkpoint, name="quartznet15x5-en"))
    heard = evaluate(Session.load(file).recognizer, list(utterances))
    save_heard(path.with_name(f"{path.name}.jsonl"), heard)
    return heard


def difference(before: list[Heard], after: list[Heard]) -> dict[str, Any]:
    """Paired, in percent, with its interval over speakers."""
    compared = compare(before, after)
    return {"percent": compared["difference_percent"], "interval": compared["difference_interval_percent"]}


def report(name: str, start: float) -> Any:
    def tell(done: int, total: int) -> None:
        if done % 20 == 0:
            print(f"{name} {done}/{total} {time.perf_counter() - start:.0f} s", flush=True)

    return tell


def write_document(work: Path, num_utterances: int, heard_float: list[Heard]) -> None:
    """All rows that lie in `work`, each beside the control."""
    rows = [json.loads(path.read_text()) for path in sorted(work.glob("*.json"))]
    control = work / f"{CONTROL}.jsonl"
    for row in rows:
        name = row["recipe"]["name"]
        heard, rounded = load_heard(work / f"{name}.jsonl"), work / f"{name}-rounded.jsonl"
        row["less_float"] = difference(heard_float, heard)
        row["less_control"] = difference(load_heard(control), heard) if control.exists() else None
        row["rounded_wer_percent"] = (
            summarize(load_heard(rounded))["wer_percent"] if rounded.exists() else None
        )
    document = {
        "what": "QuartzNet15x5, trained to few bits, packed, test-clean-a",
        "date": date.today().isoformat(),
        "machine": machine(),
        "utterances": num_utterances,
        "float": summarize(heard_float),
        "rows": rows,
    }
    name = f"{document['date']}_{document['machine']['commit']}_quartznet_tuned.json"
    write_text(ROOT / "benchmarks" / "results" / name, json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
