"""The whole flow in one page: sound, training, few bits, a packed file, and what that costs.

`subtone demo` makes itself a spoken corpus, trains a small float model on it, brings it to 8 and to
4 bits, packs both, and has each hear voices that it never met. Everything is heard by a process of
its own, so that memory is that of hearing; the packed files by one in which torch cannot be
imported.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from subtone.export.package import package
from subtone.models.checkpoints import WEIGHTS_FILE, Checkpoint, load_checkpoint, save_checkpoint
from subtone.pack import write_packed
from subtone.quantize.apply import quantize_checkpoint
from subtone.quantize.rules import Recipe
from subtone.quantize.shipped import shipped_recipe
from subtone.speech.data import read_manifest
from subtone.speech.synth import Corpus, make_corpus
from subtone.train import TrainSettings, fit

Bar = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]
"""Opens a progress bar with a label; what it gives is called with (done, total)."""

NUM_TRAIN, NUM_DEV, NUM_TEST = 3000, 60, 300
RECIPES = {"8 bits": "ptq-w8", "4 bits": "ptq-w4-group64"}
WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; from subtone.cli import main; main()"


def run_demo(folder: Path, *, bar: Bar, seed: int = 0) -> list[dict[str, Any]]:
    """A row of results for the float model and for each packed file, all of it under `folder`.

    What a killed run left there is gone on with: the corpus, the training.
    """
    with bar("making a spoken corpus") as move:
        corpus = make_corpus(
            folder / "corpus",
            num_train=NUM_TRAIN,
            num_dev=NUM_DEV,
            num_test=NUM_TEST,
            seed=seed,
            progress=move,
        )
    with bar("training the float model") as move:
        float_folder = train(folder, corpus, seed, move)
    rows = [
        {
            **hear(float_folder, corpus, needs_torch=True),
            "model": "float, PyTorch",
            "bytes": (float_folder / WEIGHTS_FILE).stat().st_size,
        }
    ]
    checkpoint = load_checkpoint(float_folder)
    for label, recipe in RECIPES.items():
        with bar(f"packing and hearing with {label}") as move:
            move(0, 2)
            file = pack(checkpoint, recipe, folder)
            move(1, 2)
            rows.append({**hear(file, corpus), "model": f"{label}, packed", "bytes": file.stat().st_size})
            move(2, 2)
    return rows


def train(folder: Path, corpus: Corpus, seed: int, progress: Callable[[int, int], None]) -> Path:
    """The folder of the trained float checkpoint."""
    settings = TrainSettings.load(shipped_recipe("train-demo")).model_copy(update={"seed": seed})
    fitted = fit(
        folder / "training",
        settings=settings,
        train=read_manifest(corpus.manifest("train")),
        dev=read_manifest(corpus.manifest("dev")),
        progress=progress,
    )
    save_checkpoint(folder / "float", fitted.checkpoint)
    return folder / "float"


def pack(checkpoint: Checkpoint, recipe: str, folder: Path) -> Path:
    """`checkpoint` rounded by the shipped `recipe`, packed."""
    quantized = quantize_checkpoint(checkpoint, Recipe.load(shipped_recipe(recipe)))
    file = folder / f"{recipe}.subtone"
    write_packed(file, package(quantized, name="demo"))
    return file


def hear(model: Path, corpus: Corpus, *, needs_torch: bool = False) -> dict[str, Any]:
    """What `subtone evaluate --json` says of `model` on the test voices, in a process of its own."""
    start = ["-m", "subtone"] if needs_torch else ["-c", WITHOUT_TORCH]
    done = subprocess.run(
        [sys.executable, *start, "evaluate", str(model), str(corpus.manifest("test")), "--json"],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise OSError(f"evaluating {model} failed; what it said stands above")
    return json.loads(done.stdout)
