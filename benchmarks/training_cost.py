"""What a training step costs by each method beside a float step: ratios, in turn, in one process.

    .venv/bin/python benchmarks/training_cost.py --rounds 20

QuartzNet15x5 on real speech, the same batch for all, forward, CTC loss, backward and Adam in bfloat16
autocast. What a method does only every so many steps (GQ's assignment, S8BQAT's hard compressor) is timed by
itself and its share of a step added, by the recipe's own period. And GQ's assignment on 10^7 weights, one
thread. One document in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import random
import statistics
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch

from subtone.files import write_text
from subtone.models.checkpoints import Checkpoint, load_checkpoint
from subtone.quantize import Recipe, TrainingMethod, method_of
from subtone.report.machine import machine
from subtone.speech.data import read_manifest, spread
from subtone.train.data import Batch, FeatureDataset, cuts_of
from subtone.train.module import SpeechModule
from subtone.train.settings import TuneSettings
from subtone.train.tuning import set_modes

ROOT = Path(__file__).resolve().parents[1]
RECIPES = (
    "native-i8w", "native-i4w", "native-i4wi8a", "acosr-4bit", "s8bqat-4bit", "gq-4bit", "int2-sym",
    "int2-asym-sc", "int2-asym-sc-subch-clip", "int2-asym-sc-subch-clip08",
)  # fmt: skip
PERIODS = {"gq": "every_steps", "s8bqat": "tau_steps"}
"""Method -> the option that says every how many steps it rewrites weights."""
SETTINGS = TuneSettings(steps=1000, batch_s=20.0, learning_rate=1e-6, precision="bfloat16")


class Candidate:
    """A model in training by one recipe, or in float; all see the same batch."""

    def __init__(self, name: str, checkpoint: Checkpoint, recipe: Recipe | None) -> None:
        self.name = name
        network = copy.deepcopy(checkpoint.network)
        self.module = SpeechModule(network, tokenizer=checkpoint.tokenizer, settings=SETTINGS)
        set_modes(network, SETTINGS)
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6)
        self.method: TrainingMethod | None = None
        self.period: int | None = None
        if recipe is not None:
            method = method_of(recipe)
            assert isinstance(method, TrainingMethod)
            self.method = method
            method.attach(network)
            if recipe.method in PERIODS:
                self.period = getattr(method.options, PERIODS[recipe.method])

    def step(self, batch: Batch) -> float:
        """Seconds of one ordinary step."""
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            loss = self.module.loss(batch.features, batch)
        loss.backward()
        if self.method:
            self.method.before_step(1)
        self.optimizer.step()
        if self.method:
            self.method.after_step(1)
        self.optimizer.zero_grad()
        return time.perf_counter() - start

    def rewrite(self) -> float:
        """Seconds of what comes once in a period; 0 where nothing does."""
        if self.period is None:
            return 0.0
        assert self.method is not None
        kept = copy.deepcopy(self.module.network.state_dict())
        step = 0 if self.name.startswith("gq") else self.period - 1
        start = time.perf_counter()
        self.method.after_step(step)
        seconds = time.perf_counter() - start
        with torch.no_grad():
            for name, value in self.module.network.state_dict().items():
                value.copy_(kept[name])
        return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="*", default=RECIPES)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    checkpoint = load_checkpoint(arguments.shared / "models" / "quartznet15x5-en.nemo")
    batch = batch_of(checkpoint, arguments.shared)
    rows = [
        measure(checkpoint, Recipe.load(ROOT / "recipes" / f"{name}.toml"), batch, arguments.rounds)
        for name in arguments.recipes
    ]
    document = {
        "what": "a training step of QuartzNet15x5, each method beside float, bfloat16 autocast",
        "date": date.today().isoformat(),
        "machine": machine(),
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "batch_s": round(float(batch.lengths.sum()) / 100, 2),
        "rows": rows,
        "gq_assignment": assignment(),
    }
    name = f"{document['date']}_{document['machine']['commit']}_training_cost.json"
    write_text(ROOT / "benchmarks" / "results" / name, json.dumps(document, indent=1) + "\n")


def assignment() -> dict[str, Any]:
    """Seconds of one soft assignment of GQ, mu fitted: 10 kernels of 1000 x 1000, 4 bits, one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    method = method_of(Recipe.load(ROOT / "recipes" / "gq-4bit.toml"))
    assert isinstance(method, TrainingMethod)
    method.attach(torch.nn.Sequential(*(torch.nn.Linear(1000, 1000, bias=False) for _ in range(10))))
    times = []
    for _ in range(7):
        start = time.perf_counter()
        method.after_step(0)
        times.append(time.perf_counter() - start)
    torch.set_num_threads(threads)
    return {"weights": 10**7, "bits": 4, "threads": 1, "seconds": round(statistics.median(times), 3)}


def batch_of(checkpoint: Checkpoint, shared: Path) -> Batch:
    """About 20 s of speech, in utterances of like lengths."""
    utterances = read_manifest(shared / "data" / "librispeech" / "train-clean-7h")
    like = spread([item for item in utterances if 9.5 <= item.duration_s <= 10.0], 2)
    dataset = FeatureDataset(
        checkpoint.front_end,
        checkpoint.tokenizer,
        frames_per_step=checkpoint.network.frames_per_step,
    )
    return dataset[cuts_of(like, rate_hz=checkpoint.front_end.rate_hz)]


def measure(checkpoint: Checkpoint, recipe: Recipe, batch: Batch, rounds: int) -> dict[str, Any]:
    """The ratio of the two steps, over rounds in which they take turns in an order drawn anew."""
    gc.collect()
    plain, ours = Candidate("float", checkpoint, None), Candidate(recipe.name, checkpoint, recipe)
    for candidate in (plain, ours):
        candidate.step(batch)  # warm-up
    ratios, floats, rewrites = [], [], []
    draw = random.Random(0)
    for _ in range(rounds):
        pair = [plain, ours]
        draw.shuffle(pair)
        seconds = {candidate.name: candidate.step(batch) for candidate in pair}
        rewrite = ours.rewrite()
        share = rewrite / ours.period if ours.period else 0.0
        ratios.append((seconds[ours.name] + share) / seconds[plain.name])
        floats.append(seconds[plain.name])
        rewrites.append(rewrite)
    low, median, high = statistics.quantiles(ratios, n=4)
    row = {
        "recipe": recipe.name,
        "ratio": round(median, 4),
        "quartiles": [round(low, 4), round(high, 4)],
        "float_step_s": round(statistics.median(floats), 4),
        "period_steps": ours.period,
        "rewrite_s": round(statistics.median(rewrites), 4) if ours.period else None,
    }
    print(json.dumps(row), flush=True)
    return row


if __name__ == "__main__":
    main()
