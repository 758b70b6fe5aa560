"""The demo's table as a file of results: `subtone demo` from nothing, and how long it took.

.venv/bin/python benchmarks/demo.py
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

from subtone.files import write_text
from subtone.report.machine import machine

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "subtone", "demo", "--folder", f"{folder}/demo", "--json"]
        start = time.monotonic()
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        seconds = time.monotonic() - start
    document = {
        "what": "subtone demo",
        "date": date.today().isoformat(),
        "machine": machine(),
        "seconds": round(seconds, 1),
        "rows": json.loads(done.stdout),
    }
    name = f"{document['date']}_{document['machine']['commit']}_demo.json"
    write_text(ROOT / "benchmarks" / "results" / name, json.dumps(document, indent=1) + "\n")
    print(f"{seconds:.0f} s")


if __name__ == "__main__":
    main()
