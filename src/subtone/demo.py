"""The whole flow in one page: sound, training, few bits, a packed file, and what that costs.

`subtone demo` makes itself a spoken corpus, trains two small float models on it (one that hears whole
utterances, one that streams), brings them to 8 and to 4 bits, packs them, and has each hear voices that
it never met. Everything is heard by a process of
its own, so that memory is that of hearing; the packed files by one in which torch cannot be
imported.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
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
WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; from subtone.cli import main; main()"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One of the demo's models: the folder of its float checkpoint, its training, and how it is packed.

    `recipes`: label of a row -> shipped recipe; each packed file is called after `folder` and its recipe.
    """

    label: str
    folder: str
    training: str
    recipes: Mapping[str, str]


PARTS = (
    Part(
        label="QuartzNet",
        folder="float",
        training="train-demo",
        recipes={"8 bits": "ptq-w8", "4 bits": "ptq-w4-group64"},
    ),
    Part(
        label="transducer",
        folder="transducer",
        training="train-rnnt-demo",
        recipes={"8 bits": "ptq-w8", "4 bits": "ptq-w4-codebook-compensated"},
    ),
)
"""The second one streams: its LSTMs know nothing of later frames."""
STREAMED = "transducer-ptq-w4-codebook-compensated.subtone"
"""The packed file that the demo ends with, and hears a sentence as it comes."""


def run_demo(folder: Path, *, bar: Bar, seed: int = 0) -> list[dict[str, Any]]:
    """A row of results for each float model and each packed file, all of it under `folder`.

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
    return [row for part in PARTS for row in run_part(folder, part, corpus, bar=bar, seed=seed)]


def run_part(folder: Path, part: Part, corpus: Corpus, *, bar: Bar, seed: int) -> list[dict[str, Any]]:
    """The rows of one model."""
    with bar(f"training the {part.label} in float") as move:
        train(folder, part, corpus, seed, move)
    rows = [
        {
            **hear(folder / part.folder, corpus, needs_torch=True),
            "model": f"{part.label}, float, PyTorch",
            "bytes": (folder / part.folder / WEIGHTS_FILE).stat().st_size,
        }
    ]
    checkpoint = load_checkpoint(folder / part.folder)
    for label, recipe in part.recipes.items():
        with bar(f"packing the {part.label} and hearing with {label}") as move:
            move(0, 2)
            file = pack(checkpoint, recipe, folder / f"{part.folder}-{recipe}.subtone", corpus)
            move(1, 2)
            name = f"{part.label}, {label}, packed"
            rows.append({**hear(file, corpus), "model": name, "bytes": file.stat().st_size})
            move(2, 2)
    return rows


def train(folder: Path, part: Part, corpus: Corpus, seed: int, progress: Callable[[int, int], None]) -> None:
    """Leaves the trained float checkpoint in its folder."""
    settings = TrainSettings.load(shipped_recipe(part.training)).model_copy(update={"seed": seed})
    fitted = fit(
        folder / f"{part.folder}.run",
        settings=settings,
        train=read_manifest(corpus.manifest("train")),
        dev=read_manifest(corpus.manifest("dev")),
        progress=progress,
    )
    save_checkpoint(folder / part.folder, fitted.checkpoint)


def pack(checkpoint: Checkpoint, recipe: str, file: Path, corpus: Corpus) -> Path:
    """`checkpoint` rounded by the shipped `recipe`, packed; one that listens hears the dev set."""
    loaded = Recipe.load(shipped_recipe(recipe))
    listens = any(rule.settings.hears for rule in loaded.rules)
    heard = read_manifest(corpus.manifest("dev")) if listens else ()
    quantized = quantize_checkpoint(checkpoint, loaded, utterances=heard)
    write_packed(file, package(quantized, name="demo"))
    return file


def sentence(folder: Path) -> Path:
    """A recording of the test voices."""
    return read_manifest(folder / "corpus" / "test")[0].audio_path


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
