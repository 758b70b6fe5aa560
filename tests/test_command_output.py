"""What a command says, and where."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import logging
from subtone.command_output import show_log
show_log()
logging.getLogger("subtone.train").info("word " * %d)
"""


def test_a_line_of_the_log_is_a_line_however_long() -> None:
    """No terminal, 80 columns: rich would fold it."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM % 60],
        capture_output=True,
        text=True,
        check=True,
        env={"COLUMNS": "80"},
    )
    assert done.stderr == "word " * 60 + "\n"
    assert not done.stdout
