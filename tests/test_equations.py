"""docs/equations.md names functions and tests that exist."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TABLE = (ROOT / "docs" / "equations.md").read_text(encoding="utf-8").partition("## Deviations")[0]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TABLE.splitlines()
    if line.startswith("| ") and not line.startswith("| paper |")
]
ABBREVIATED = {"QTensor": "qtensor.QTensor"}


def exists(name: str) -> bool:
    """Whether `subtone.<name>` is a module, or something within one."""
    head, _, rest = name.partition(".")
    parts = f"subtone.{ABBREVIATED.get(head, head)}{'.' if rest else ''}{rest}".split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part, None)
        return found is not None
    return False


def test_there_are_rows():
    assert len(ROWS) >= 10
    assert all(len(row) == 4 for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_functions_and_tests_of_a_row_exist(row):
    functions, tests = re.findall(r"`([\w.]+)`", row[2]), re.findall(r"`(\w+(?:\.py)?)`", row[3])
    assert functions
    assert [name for name in functions if not exists(name)] == []
    files = [path for name in tests if name.endswith(".py") for path in (ROOT / "tests").rglob(name)]
    text = "".join(path.read_text(encoding="utf-8") for path in files)
    named = [name for name in tests if not name.endswith(".py")]
    assert named
    assert [name for name in named if f"def {name}(" not in text] == []
