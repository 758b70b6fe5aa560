"""What the transducer's loss costs: time beside torch's log-softmax and its bound, memory, and another's values.

    .venv/bin/python benchmarks/rnnt_loss.py --rounds 20 [--peer FOLDER]

The log-softmax of the same logits, with its backward pass, is what a loss pays that starts from log-probabilities,
before it has summed anything. The bound is the larger of two: logits read twice and a gradient written once, at
the speed of a copy; and two exponentials a logit, at the speed of torch's in cache. The peer is the package
warprnnt-numba, where FOLDER (or the environment) holds it: its values on random ragged batches; it comes last,
for it changes the number of threads. Peak memory is each process's own high-water mark. Processes that
want the same cores cost much more than their share: every operator waits for its slowest thread.
One document in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from subtone.files import write_text
from subtone.models.losses import BLOCK_ELEMENTS, rnnt_loss
from subtone.report.machine import machine, peak_memory_mb

ROOT = Path(__file__).resolve().parents[1]
SIZES = {"B": 8, "T": 200, "U": 41}
CASES = [(256, "float32"), (256, "bfloat16"), (2501, "float32"), (2501, "bfloat16")]
"""Vocabulary (2501: the word pieces of S8BQAT's models) and type of the logits."""
PEER = "warprnnt_numba"
BLANK = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer", type=Path, help="a folder that holds the peer's package")
    parser.add_argument("--peak", nargs=3, metavar=("WHAT", "V", "DTYPE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        what, V, dtype = arguments.peak
        print(json.dumps(peak_of(what, int(V), dtype)))
        return
    if arguments.peer:
        sys.path.append(str(arguments.peer))
    document = {
        "what": "RNN-T loss, forward and backward",
        "date": date.today().isoformat(),
        "machine": machine(),
        "torch": torch.__version__,
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "sizes": SIZES,
        "rows": [measure(*case, arguments.rounds) for case in CASES],
        "peer": compare() if importlib.util.find_spec(PEER) else None,
    }
    name = f"{document['date']}_{document['machine']['commit']}_rnnt_loss.json"
    write_text(ROOT / "benchmarks" / "results" / name, json.dumps(document, indent=1) + "\n")


def batch(V: int, dtype: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Arguments of the loss; no padding, so that all of it is work."""
    B, T, U = SIZES.values()
    draw = torch.Generator().manual_seed(0)
    logits = torch.empty(B, T, U + 1, V, dtype=getattr(torch, dtype)).normal_(generator=draw)
    labels = torch.randint(1, V, (B, U), generator=draw, dtype=torch.int32)
    frames, said = torch.full((B,), T, dtype=torch.int32), torch.full((B,), U, dtype=torch.int32)
    return logits.requires_grad_(), labels, frames, said


def peer_loss(logits: Tensor, labels: Tensor, frames: Tensor, said: Tensor, blank: int) -> Tensor:
    from warprnnt_numba.rnnt_loss import rnnt_pytorch

    return rnnt_pytorch.rnnt_loss(logits, labels, frames, said, blank=blank, reduction="none").flatten()


def candidates(V: int, dtype: str) -> dict[str, Callable[[], Any]]:
    """Name -> one forward and backward pass over the same logits."""
    given = batch(V, dtype)
    logits = given[0]

    def ours() -> None:
        torch.autograd.grad(rnnt_loss(*given, blank_index=BLANK), logits)

    def log_softmax() -> None:
        logs = torch.log_softmax(logits, -1)
        torch.autograd.grad(logs, logits, logs.detach())

    return {"ours": ours, "log_softmax": log_softmax}


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(V: int, dtype: str, rounds: int) -> dict[str, Any]:
    """Times in an order drawn anew each round, ratios to ours, the bound, and peak memory."""
    runs = candidates(V, dtype)
    for run in runs.values():
        run()  # warm-up
    times: dict[str, list[float]] = {name: [] for name in runs}
    draw = random.Random(0)
    for _ in range(rounds):
        for name in draw.sample(list(runs), len(runs)):
            times[name].append(seconds(runs[name]))
    bounds = bounds_of(V, dtype)
    ours = statistics.median(times["ours"])
    row: dict[str, Any] = {"V": V, "dtype": dtype, "ours_s": round(ours, 4)}
    row["ours_quartiles_s"] = [round(value, 4) for value in statistics.quantiles(times["ours"], n=4)]
    ratios = [mine / other for mine, other in zip(times["ours"], times["log_softmax"], strict=True)]
    row["ours_over_log_softmax"] = round(statistics.median(ratios), 3)
    row["ratio_quartiles"] = [round(value, 3) for value in statistics.quantiles(ratios, n=4)]
    row |= {name: round(value, 4) for name, value in bounds.items()}
    row["share_of_bound"] = round(max(bounds.values()) / ours, 3)
    row["peaks"] = [peak_in_a_process(name, V, dtype) for name in ("ours", "log_softmax")]
    print(json.dumps(row), flush=True)
    return row


def bounds_of(V: int, dtype: str) -> dict[str, float]:
    """Seconds that moving the bytes takes, and that the exponentials take, on this machine."""
    logits = batch(V, dtype)[0].detach()
    target = torch.empty_like(logits)
    copies = [seconds(lambda: target.copy_(logits)) for _ in range(8)][1:]
    block = torch.full((BLOCK_ELEMENTS["cpu"] * torch.get_num_threads(),), -1.0)
    repeats = max(1, logits.numel() // block.numel())

    def exponentials() -> None:
        for _ in range(repeats):
            torch.exp(block, out=result)

    result = torch.empty_like(block)
    exps = [seconds(exponentials) / (repeats * block.numel()) for _ in range(4)][1:]
    # A copy reads and writes once each; ours reads twice and writes once.
    return {"bytes_bound_s": 1.5 * min(copies), "exp_bound_s": 2 * logits.numel() * min(exps)}


def peak_in_a_process(what: str, V: int, dtype: str) -> dict[str, Any]:
    command = [
        sys.executable,
        __file__,
        "--threads",
        str(torch.get_num_threads()),
        "--peak",
        what,
        str(V),
        dtype,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def peak_of(what: str, V: int, dtype: str) -> dict[str, Any]:
    """Megabytes that one pass needs beyond the logits, in units of the logits too."""
    runs = candidates(V, dtype)
    B, T, U = SIZES.values()
    logits_mb = B * T * (U + 1) * V * getattr(torch, dtype).itemsize / 1e6
    before = peak_memory_mb()
    runs[what]()
    grown = peak_memory_mb() - before
    return {
        "of": what, "logits_mb": round(logits_mb, 1), "more_mb": round(grown, 1),
        "in_logits": round(grown / logits_mb, 3),
    }  # fmt: skip


def compare(rounds: int = 50) -> dict[str, Any]:
    """Largest differences from the peer on random ragged batches, and of both from our own in float64."""
    draw = np.random.default_rng(0)
    worst = dict.fromkeys(("loss", "gradient", "our_gradient_error", "peer_gradient_error"), 0.0)
    for _ in range(rounds):
        B, T, U, V = (int(draw.integers(*ends)) for ends in ((1, 6), (1, 40), (1, 15), (2, 60)))
        blank = int(draw.integers(V))
        frames, said = draw.integers(1, T + 1, B), draw.integers(0, U + 1, B)
        frames[0], said[0] = T, U  # the peer wants no padding beyond the longest
        values = torch.from_numpy(draw.normal(0, 2, (B, T, U + 1, V))).float()
        labels = torch.from_numpy(draw.choice(np.delete(np.arange(V), blank), (B, U))).int()
        rest = labels, torch.from_numpy(frames).int(), torch.from_numpy(said).int()

        def pair(logits: Tensor, loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
            losses = loss(logits.requires_grad_())
            return losses.detach().double(), torch.autograd.grad(losses.sum(), logits)[0].double()

        def of_ours(logits: Tensor, rest: Any = rest, blank: int = blank) -> Tensor:
            return rnnt_loss(logits, *rest, blank_index=blank, reduction="none")

        def of_peer(logits: Tensor, rest: Any = rest, blank: int = blank) -> Tensor:
            return peer_loss(logits, *rest, blank)

        ours, peer = pair(values.clone(), of_ours), pair(values.clone(), of_peer)
        exact = pair(values.double(), of_ours)
        found = {
            "loss": float(((ours[0] - peer[0]).abs() / exact[0]).max()),
            "gradient": float((ours[1] - peer[1]).abs().max()),
            "our_gradient_error": float((ours[1] - exact[1]).abs().max()),
            "peer_gradient_error": float((peer[1] - exact[1]).abs().max()),
        }
        worst = {name: max(worst[name], value) for name, value in found.items()}
    print(json.dumps(worst), flush=True)
    return {
        "name": PEER,
        "batches": rounds,
        "largest": {name: float(f"{v:.2e}") for name, v in worst.items()},
    }


if __name__ == "__main__":
    main()
