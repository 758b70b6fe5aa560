"""Peak memory is that of the process itself."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from subtone.report.machine import machine, peak_memory_mb


def test_a_large_parent_does_not_count() -> None:
    ballast = np.ones(60_000_000)  # 480 MB, touched
    script = "from subtone.report.machine import peak_memory_mb; print(peak_memory_mb())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 200
    assert peak_memory_mb() > ballast.nbytes / 1e6


def test_a_machine_says_what_a_number_depends_on() -> None:
    assert {"processor", "isas", "cores", "commit"} <= machine().keys()
