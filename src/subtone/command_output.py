"""What a command says: its result on stdout, a document or a table, all else on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

log = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
PLAIN_WIDTH = 120
"""Columns of a table that goes to a file or a pipe."""


def show(document: Any, *, as_json: bool, table: Any) -> None:
    """What a command found, on stdout: `document` with --json, else `table`."""
    if as_json:
        print(json.dumps(document, indent=1, allow_nan=False))  # whole, or an error and nothing
    else:
        Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH).print(table)


def say(document: dict[str, Any], *, as_json: bool, line: str) -> None:
    """What a command made: `document` on stdout with --json, else `line` on stderr."""
    if as_json:
        show(document, as_json=True, table=None)
    else:
        log.print(line)


@contextmanager
def progress_bar(label: str) -> Iterator[Any]:
    """A callback (done, total) that moves a bar on stderr."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=log, transient=True, disable=not log.is_terminal) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
