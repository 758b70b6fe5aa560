"""Our kernels beside their peers on the products of the papers' models, as a file of results.

    .venv/bin/python benchmarks/kernels.py                 all parts, a quarter of an hour on two quiet cores
    .venv/bin/python benchmarks/kernels.py narrow cold     these parts only, half of that

Parts: `narrow` (one frame, hot in cache, every shape, width and granularity), `wide` (4 to 256 frames), `cold` (all of
M-I in turn; LSTM steps hot and cold). Each needs the peers installed: pip install -c constraints.txt onnx onnxruntime
openvino torchao. The file is written after every part; parts measured one by one on one day and commit meet in one file.
"""

from __future__ import annotations

import argparse
import functools
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

from subtone.bench.bounds import library
from subtone.bench.kernels import KernelSettings, measure_kernels
from subtone.bench.peers import PACKAGES
from subtone.bench.products import SHAPES, Granularity
from subtone.bench.workloads import CHANNEL
from subtone.files import write_text

ROOT = Path(__file__).resolve().parents[1]
LARGEST, OTHERS = SHAPES[0], SHAPES[1:]
FRAMES = (4, 16, 64, 256)
CODEBOOK = Granularity("codebook")
FEW_BITS = (8, 5, 4, 2)
COMPILED = "torchao"
"""Its int8 layer takes half a minute to compile for each shape: it takes part at the largest alone."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=["narrow", "wide", "cold"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--peers", default=",".join(PACKAGES))
    parser.add_argument("--limit", type=int, help="rounds of a try, whose document stays in runs/kernels")
    arguments = parser.parse_args()
    known = {"peers": arguments.peers, "threads": tuple(arguments.threads)}
    known["rounds"] = arguments.limit or arguments.rounds
    runs = {
        part: list(settings_of(part, known)) for part in arguments.parts
    }  # mistakes before an hour's work
    for part, settings in runs.items():
        started = time.monotonic()
        for each in settings:
            document = measure_kernels(each, functools.partial(say, part))
            path = write(document, ROOT / ("runs/kernels" if arguments.limit else "benchmarks/results"))
        print(
            json.dumps(
                {"part": part, "minutes": round((time.monotonic() - started) / 60, 1), "file": path.name}
            )
        )


def say(part: str, done: int, total: int, label: str) -> None:
    print(f"{part}: {done} of {total}, {label}", flush=True)


def settings_of(part: str, known: dict[str, Any]) -> Iterator[KernelSettings]:
    """What `part` races; ValueError where there is no such part."""
    others = {**known, "peers": without(known["peers"], COMPILED)}
    if part == "narrow":
        for shape in SHAPES:
            kinds = (CHANNEL, group_of(shape[1]), CODEBOOK)
            yield KernelSettings(
                shapes=(shape,), granularities=kinds, **(known if shape == LARGEST else others)
            )
    elif part == "wide":
        yield KernelSettings(
            shapes=(LARGEST,), frames=FRAMES, granularities=(CHANNEL, group_of(LARGEST[1])), **others
        )
        yield KernelSettings(shapes=OTHERS, frames=FRAMES, bits=FEW_BITS, **others)
    elif part == "cold":
        kinds = (CHANNEL, group_of(192), CODEBOOK)
        yield KernelSettings(shapes=(), is_cold=True, has_lstm=True, granularities=kinds, **others)
    else:
        raise ValueError(f"part={part} is not known; use narrow, wide or cold")


def group_of(inputs: int) -> Granularity:
    """Groups of 64, or of 32 where those do not divide."""
    return Granularity("group", 64 if inputs % 64 == 0 else 32)


def without(peers: str, package: str) -> str:
    """`peers` but for one package; "none" where nobody is left."""
    return ",".join(name for name in peers.split(",") if name != package) or "none"


def write(document: dict[str, Any], folder: Path) -> Path:
    """Adds the races of `document` to the file of this day and commit, in the place of races of the same."""
    document = {
        "what": "products of the papers' models by our kernels and by peers, and what the machine can do",
        "date": date.today().isoformat(),
        "stripped_library_bytes": stripped_bytes(Path(library()._name)),
        **document,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{document['date']}_{document['machine']['commit'].removesuffix('-dirty')}_kernels.json"
    if path.exists():
        document = joined(json.loads(path.read_text()), document)
    write_text(path, json.dumps(document, indent=1) + "\n")
    return path


def joined(before: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """One document of two of the same commit; races of the same workload, frames and threads are those of `new`."""

    def key(race: dict[str, Any]) -> tuple[str, int, int]:
        return race["workload"], race["frames"], race["threads"]

    renewed = {key(race) for race in new["races"]}
    kept = [race for race in before["races"] if key(race) not in renewed]
    peaks = {
        threads: max(document["int8_per_s"].get(threads, 0.0) for document in (before, new))
        for threads in {**before["int8_per_s"], **new["int8_per_s"]}
    }
    versions = {**before["versions"], **new["versions"]}
    rounds = min(before["rounds"], new["rounds"])  # "or more" in the tables
    return {**new, "rounds": rounds, "versions": versions, "int8_per_s": peaks, "races": kept + new["races"]}


def stripped_bytes(built: Path) -> int | None:
    """Of the native library without its symbols; None where there is no `strip`."""
    if shutil.which("strip") is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        stripped = Path(folder) / built.name
        subprocess.run(["strip", "-o", str(stripped), str(built)], check=True)
        return stripped.stat().st_size


if __name__ == "__main__":
    main()
