"""Packed files of the given model against PyTorch and ONNX Runtime, as a file of results.

.venv/bin/python benchmarks/race.py runs/ptq/ptq-w8.subtone runs/ptq/ptq-w4-group64.subtone
"""

from __future__ import annotations

import argparse
import json
import os
from datetime import date
from pathlib import Path

from subtone.files import write_text
from subtone.report.race import race_models

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    document = race_models(
        arguments.shared / "models" / "quartznet15x5-en.nemo",
        arguments.shared / "data" / "librispeech" / "dev-clean-300",
        arguments.files,
        limit=arguments.limit,
        rounds=arguments.rounds,
        threads=len(os.sched_getaffinity(0)),
        progress=lambda done, total: print(f"round {done} of {total}", flush=True),
    )
    document["date"] = date.today().isoformat()
    name = f"{document['date']}_{document['machine']['commit']}_race.json"
    write_text(ROOT / "benchmarks" / "results" / name, json.dumps(document, indent=1) + "\n")
    for row in document["candidates"]:
        print(row["candidate"], f"{row['ours_is_faster_by']:.2f}", row["quartiles"])


if __name__ == "__main__":
    main()
