"""Integer-only files beside the float model where it is hard to hear: the same sounds, paired, in six conditions.

    .venv/bin/python benchmarks/integer_robustness.py runs/integer/W8A8-synthetic-*.subtone

Static ranges were found on clean or on made-up features; here they meet others. conditions.py says how each condition is
made. The float model is the same network as a packed float program in our own run time, which is four times as fast
as PyTorch and agrees with it to a millionth (docs/results.md, every preset). What was heard is kept in the work folder and
taken from there by a second run. With --limit it is a try, whose document stays in the work folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any

import conditions
from conditions import CONDITIONS, Sound

from subtone.export.package import package
from subtone.files import write_text
from subtone.models.checkpoints import load_checkpoint
from subtone.pack import write_packed
from subtone.report.evaluate import Heard, compare, load_heard, save_heard, summarize
from subtone.report.inspect import describe
from subtone.report.machine import machine
from subtone.runtime.session import Session
from subtone.speech.data import read_manifest, spread
from subtone.speech.listening import AnyRecognizer
from subtone.speech.text import reference_of

ROOT = Path(__file__).resolve().parents[1]
BAR_PERCENT = 0.5
"""The most that integers may lose against float, in any condition."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+", help="packed, integer-only")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "robustness")
    parser.add_argument("--limit", type=int, help="utterances, evenly spread")
    parser.add_argument("--threads", type=int, default=0, help="0: every core")
    arguments = parser.parse_args()
    work = arguments.work / ("all" if arguments.limit is None else f"limit-{arguments.limit}")
    work.mkdir(parents=True, exist_ok=True)
    for file in arguments.files:
        if not describe(file)["is_integer"]:
            raise ValueError(f"{file} is not integer-only; pack what a recipe with [integer] gave")
    manifest = arguments.shared / "data" / "librispeech" / "test-clean-a"
    utterances = spread(read_manifest(manifest), arguments.limit)
    float_file = float_program(arguments.shared / "models" / "quartznet15x5-en.nemo", work / "float.subtone")
    models = {file: f"{file.stem}-{digest(file)}" for file in (float_file, *arguments.files)}
    document: dict[str, Any] = {
        "what": "QuartzNet15x5, integer-only beside float, test-clean-a in six conditions",
        "date": date.today().isoformat(),
        "machine": machine(),
        "utterances": len(utterances),
        "bar_percent": BAR_PERCENT,
        "babble": {"voices": conditions.NUM_VOICES, "seed": conditions.SEED},
        "band": {"hz": conditions.BAND_HZ, "order": conditions.BAND_ORDER},
        "files": [{"file": file.name, "bytes": file.stat().st_size} for file in arguments.files],
        "rows": [],
    }
    name = f"{document['date']}_{document['machine']['commit']}_integer_robustness.json"
    path = (work if arguments.limit else ROOT / "benchmarks" / "results") / name
    for condition, made in CONDITIONS.items():
        sounds: list[Sound] = []  # made at most once, and only where somebody has still to hear them
        heard = {}
        for file, label in models.items():
            words = work / f"{label}-{slug(condition)}.jsonl"
            if not words.exists():
                sounds = sounds or list(made(utterances))
                recognizer = Session.load(file, threads=arguments.threads).recognizer
                save_heard(words, hear(recognizer, sounds))
            heard[file] = load_heard(words)
        for file in arguments.files:
            row = compare(heard[float_file], heard[file])
            row["changed_utterances"] = len(row.pop("changed"))
            row["duration_s"] = summarize(heard[file])["duration_s"]
            document["rows"].append({"condition": condition, "file": file.name, **row})
            verdict = "holds" if row["difference_percent"] <= BAR_PERCENT else "FAILS"
            print(condition, file.stem, row["wer_percent"], f"{row['difference_percent']:+.2f}",
                  row["difference_interval_percent"], verdict, flush=True)  # fmt: skip
        write_text(path, json.dumps(document, indent=1) + "\n")


def hear(recognizer: AnyRecognizer, sounds: Iterable[Sound]) -> list[Heard]:
    """Every sound heard once, in order; as `evaluate`, of sounds that lie in no file."""
    heard = []
    for sound in sounds:
        start = time.perf_counter()
        hypothesis = recognizer.hear(sound.samples)
        seconds = time.perf_counter() - start
        heard.append(
            Heard(
                audio=sound.name,
                speaker=sound.speaker,
                duration_s=len(sound.samples) / conditions.RATE_HZ,
                reference=reference_of(sound.text, recognizer.tokenizer, sound.name),
                hypothesis=hypothesis,
                seconds=seconds,
            )
        )
    return heard


def float_program(checkpoint: Path, path: Path) -> Path:
    if not path.exists():
        write_packed(path, package(load_checkpoint(checkpoint), name="quartznet15x5-en"))
    return path


def digest(file: Path) -> str:
    """Of its bytes: a file made anew is heard anew."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:8]


def slug(condition: str) -> str:
    return condition.replace(",", "").replace(" ", "-")


if __name__ == "__main__":
    main()
