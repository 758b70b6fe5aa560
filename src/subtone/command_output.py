"""What a command says: its result on stdout, a document or a table, all else on stderr."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

log = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
PLAIN_WIDTH = 120
"""Columns of a table that goes to a file or a pipe."""


class _Lines(logging.Handler):
    """Each record as a line of the console, never wrapped: rich's own handler folds at 80 columns."""

    def emit(self, record: logging.LogRecord) -> None:
        log.print(record.getMessage())


def show_log() -> None:
    """What the package logs, a line each on stderr, above a progress bar."""
    package = logging.getLogger("subtone")
    package.addHandler(_Lines())
    package.setLevel(logging.INFO)


def show(document: Any, *, as_json: bool, table: Any) -> None:
    """What a command found, on stdout: `document` with --json, else `table`."""
    if as_json:
        print(json.dumps(document, indent=1, allow_nan=False))  # whole, or an error and nothing
    else:
        console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)
        # A narrower terminal breaks lines; a table squeezed into it would lose digits.
        needed = Measurement.get(console, console.options, table).minimum
        console.print(table, width=max(console.width, needed), crop=False)


def say(document: dict[str, Any], *, as_json: bool, line: str) -> None:
    """What a command made: `document` on stdout with --json, else `line` on stderr."""
    if as_json:
        show(document, as_json=True, table=None)
    else:
        log.print(line)


@contextmanager
def stage(label: str) -> Iterator[Any]:
    """A progress bar; where there is no terminal to move it on, its label as a line."""
    if not log.is_terminal:
        log.print(label)
    with progress_bar(label) as move:
        yield move


@contextmanager
def progress_bar(label: str) -> Iterator[Any]:
    """A callback (done, total) that moves a bar on stderr; a third argument stands beside it, such as a loss."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=log, transient=True, disable=not log.is_terminal) as bar:
        task = bar.add_task(label, total=None)

        def move(done: int, total: int | None, note: str = "") -> None:
            bar.update(task, completed=done, total=total, description=f"{label} {note}".rstrip())

        yield move
