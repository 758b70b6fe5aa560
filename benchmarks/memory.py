"""Peak resident memory of `subtone transcribe`: one utterance of 15 s, one file of 10 minutes.

    .venv/bin/python benchmarks/memory.py runs/ptq/ptq-w4-group64.subtone --shared ../shared

The sounds are made of test-clean-a, utterances joined and cut. Writes to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

import numpy as np
import soundfile

from subtone.files import write_text
from subtone.report.machine import machine
from subtone.speech.audio import read_audio
from subtone.speech.data import read_manifest

ROOT = Path(__file__).resolve().parents[1]
BARS_MB = {15: 150, 600: 250}
"""Seconds of sound -> peak MB that the main job allows."""
REPORTING = """
import sys
from subtone.cli import app
app(sys.argv[1:], standalone_mode=False)
from subtone.report.machine import peak_memory_mb
print(peak_memory_mb(), file=sys.stderr)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    arguments = parser.parse_args()
    utterances = read_manifest(arguments.shared / "data" / "librispeech" / "test-clean-a")
    sound, index = np.zeros(0, np.float32), 0
    while len(sound) < max(BARS_MB) * 16000:
        sound, index = np.concatenate([sound, read_audio(utterances[index].audio_path, 16000)]), index + 1
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seconds, bar in BARS_MB.items():
            path = Path(folder) / f"{seconds}.flac"
            soundfile.write(path, sound[: seconds * 16000], 16000)
            peak = peak_mb("transcribe", arguments.file, path)
            rows.append({"seconds": seconds, "peak_mb": round(peak, 1), "bar_mb": bar})
            print(rows[-1])
    document = {
        "what": "peak memory of transcribing",
        "date": date.today().isoformat(),
        "machine": machine(),
        "file": arguments.file.name,
        "file_bytes": arguments.file.stat().st_size,
        "rows": rows,
    }
    name = f"{document['date']}_{document['machine']['commit']}_memory.json"
    write_text(ROOT / "benchmarks" / "results" / name, json.dumps(document, indent=1) + "\n")


def peak_mb(*arguments: object) -> float:
    """Peak resident megabytes of `subtone ARGUMENTS`, by the process's own high-water mark."""
    done = subprocess.run(
        [sys.executable, "-c", REPORTING, *map(str, arguments)], capture_output=True, text=True, check=True
    )
    return float(done.stderr)


if __name__ == "__main__":
    main()
