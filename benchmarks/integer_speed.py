"""QuartzNet 5x5, 10x5 and 15x5 on 10 s of speech: integers alone beside our other forms, PyTorch and ONNX Runtime.

    .venv/bin/python benchmarks/integer_speed.py

The zero-shot paper's Fig. 2 (time and size) on a processor, on one thread and on two, all candidates in turn in one
process. 15x5 is trained where ../shared has it; the others have random weights, with the BatchNorm statistics of
the speech. Every calibration, ours and ONNX Runtime's, hears the very features that are timed: nobody's ranges are wrong.

ONNX Runtime's static int8 is given every chance: the float graph with BatchNorms folded, `quantize_static` by operators
(QLinearConv) with weights per channel and per tensor, activations unsigned and signed, and the form that its own
documentation advises (QDQ); the fastest of a race among them meets the others. All have one shape only, which helps them.

Beside it stand the sizes of every file, and the paper's Table I by our accounting (`subtone models`).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from integer_peers import STATIC_FORMS, float_onnx, quantize_static_onnx
from numpy.typing import NDArray
from zoo import SECONDS, SEED, speech
from zoo_models import FRONT_ENDS, Heard, checkpoint_of, rows_agreement

from subtone.export.onnx import quantize_onnx
from subtone.export.package import package
from subtone.export.static import calibrated
from subtone.files import write_text
from subtone.models.accounting import counts, describe_models
from subtone.models.checkpoints import Checkpoint
from subtone.pack import write_packed
from subtone.quantize.apply import quantize_checkpoint
from subtone.quantize.rules import Recipe
from subtone.quantize.static import IntegerSettings
from subtone.report.inspect import describe
from subtone.report.machine import machine
from subtone.report.race import Run, onnx_candidate, race, summarize_race, torch_candidate
from subtone.runtime.session import Session

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = ("quartznet5x5", "quartznet10x5", "quartznet15x5")
WIDE_NETWORK = NETWORKS[-1]
"""Whose blocks that recipe names."""
TABLE_1 = ("quartznet15x5", "jasper10x5", "conformer-ctc-l")
THREADS = (1, 2)
PRELIMINARY_ROUNDS = 5
OURS, DYNAMIC, OURS_FLOAT = "subtone w8a8, integers alone", "subtone w8, dynamic", "subtone float"
WIDE = "subtone w8a8, some products wide"
"""As recipes/zero-shot-w8a8-quartznet15x5.toml, of that network."""
TORCH, ONNX, ONNX_DYNAMIC = "PyTorch float", "ONNX Runtime float", "ONNX Runtime dynamic int8"
STATIC = "ONNX Runtime static int8"
BARS = {ONNX: 2.5, STATIC: 1.0}
"""Candidate -> how many times faster integers alone are to be than it, at least."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=NETWORKS)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "integer-speed")
    parser.add_argument("--threads", type=int, nargs="+", default=THREADS)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--limit", type=int, help="rounds of a try, whose document stays in the work folder")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    samples = speech(arguments.shared)
    document: dict[str, Any] = {
        "what": "QuartzNets in integers alone, 10 s of speech, beside PyTorch and ONNX Runtime",
        "date": date.today().isoformat(),
        "machine": machine(),
        "versions": versions(),
        "seed": SEED,
        "seconds": SECONDS,
        "rounds": arguments.limit or arguments.rounds,
        "bars": BARS,
        "table_1": describe_models(TABLE_1),
        "rows": [],
    }
    name = f"{document['date']}_{document['machine']['commit']}_integer_speed.json"
    path = (arguments.work if arguments.limit else ROOT / "benchmarks" / "results") / name
    for network in arguments.names:
        document["rows"].append(
            measure(network, samples, arguments.shared, arguments.threads, document["rounds"])
        )
        write_text(path, json.dumps(document, indent=1) + "\n")


def measure(
    name: str, samples: NDArray[np.float32], shared: Path, threads: list[int], rounds: int
) -> dict[str, Any]:
    """The row of one network: the bytes of its files, what they agree on, a race on each number of threads."""
    features = FRONT_ENDS[64](samples)
    checkpoint = checkpoint_of(name, features, seed=SEED, shared=shared)
    heard = Heard(checkpoint.network)
    with torch.inference_mode():
        expected = heard(torch.from_numpy(features).T[None])[0].numpy()
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        ours = (OURS, WIDE) if name == WIDE_NETWORK else (OURS,)
        files = {
            label: folder / f"{index}.subtone" for index, label in enumerate((*ours, DYNAMIC, OURS_FLOAT))
        }
        for label in ours:
            made = integers_of(checkpoint, features, is_wide=label == WIDE)
            write_packed(files[label], package(made, name=name))
            assert describe(files[label])["is_integer"]
        dynamic = quantize_checkpoint(checkpoint, Recipe.load(ROOT / "recipes" / "ptq-w8.toml"))
        write_packed(files[DYNAMIC], package(dynamic, name=name))
        write_packed(files[OURS_FLOAT], package(checkpoint, name=name))
        onnx = {ONNX: folder / "float.onnx", ONNX_DYNAMIC: folder / "dynamic.onnx"}
        folded = float_onnx(heard, features, onnx[ONNX])
        quantize_onnx(onnx[ONNX], onnx[ONNX_DYNAMIC])
        static = {}
        for form, options in STATIC_FORMS.items():
            static[form] = folder / f"static-{len(static)}.onnx"
            quantize_static_onnx(folded, static[form], features, **options)
        sizes = {label: file.stat().st_size for label, file in {**files, **onnx, **static}.items()}
        races, agreement = [], {}
        for count in threads:
            clock = time.thread_time if count == 1 else time.perf_counter
            forms = {form: onnx_candidate(file, count) for form, file in static.items()}
            seconds = race(forms, [features], rounds=min(rounds, PRELIMINARY_ROUNDS), clock=clock)
            medians = dict(zip(forms, np.median(seconds, 0).tolist(), strict=True))
            best = min(medians, key=medians.__getitem__)
            candidates: dict[str, Run] = {
                label: Session.load(file, threads=count).logits for label, file in files.items()
            }
            candidates[TORCH] = torch_candidate(checkpoint.network, count)
            candidates |= {label: onnx_candidate(file, count) for label, file in onnx.items()}
            candidates[STATIC] = forms[best]
            if not agreement:
                shown = {label: run for label, run in {**candidates, **forms}.items() if label != STATIC}
                agreement = {
                    label: rows_agreement(rows_of(run(features)), expected) for label, run in shown.items()
                }
            print(
                name,
                count,
                "threads; static forms:",
                {form: round(1000 * s, 1) for form, s in medians.items()},
            )
            seconds = race(candidates, [features], rounds=rounds, clock=clock)
            table = summarize_race(list(candidates), seconds, duration_s=SECONDS, ours=OURS)
            for row in table:
                print(f"  {row['candidate']:32} {1000 * row['seconds']:8.1f} ms {row['ours_is_faster_by']:6.2f}x",
                      [round(value, 2) for value in row["quartiles"]], flush=True)  # fmt: skip
            races.append({
                "threads": count,
                "clock": "CPU time of the thread" if count == 1 else "wall",
                "static_seconds": medians,
                "static_form": best,
                "candidates": table,
            })  # fmt: skip
    return {
        "model": name,
        "parameters": counts(name).parameters,
        "frames": len(features),
        "file_bytes": sizes,
        "agreement_with_float": agreement,
        "races": races,
    }


def integers_of(checkpoint: Checkpoint, features: NDArray[np.float32], *, is_wide: bool) -> Checkpoint:
    """At 8 bits by 8, as the recipe but for what calibration hears, `features`, and how its ranges are found."""
    name = "zero-shot-w8a8-quartznet15x5" if is_wide else "zero-shot-w8a8"
    loaded = Recipe.load(ROOT / "recipes" / f"{name}.toml")
    kept = {key: value for key, value in (loaded.integer or {}).items() if key == "wide_products"}
    recipe = loaded.model_copy(update={"integer": {"features": "recordings", **kept}})
    settings = IntegerSettings.of(recipe)
    assert settings is not None
    return calibrated(quantize_checkpoint(checkpoint, recipe), settings, [features])


def rows_of(result: Any) -> NDArray[np.float32]:
    """Logits (T', V) of whatever a candidate gives: ours as they are, others (1, T', V), ONNX Runtime in a list."""
    rows = np.asarray(result[0] if isinstance(result, list) else result, np.float32)
    return rows[0] if rows.ndim == 3 else rows


def versions() -> dict[str, str]:
    import onnx
    import onnxruntime

    return {"torch": torch.__version__, "onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}


if __name__ == "__main__":
    main()
