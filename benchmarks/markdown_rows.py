"""Lines of Markdown that every page of results is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def table(head: str, rows: Sequence[Sequence[str]]) -> list[str]:
    """A table, its heads divided by " | ".

    >>> table("a | b", [["1", "2"]])
    ['| a | b |', '|---|---|', '| 1 | 2 |']
    """
    names = head.split(" | ")
    return [
        f"| {head} |",
        "|" + "---|" * len(names),
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def source_line(document: Mapping[str, Any]) -> str:
    """Which file, which machine, which commit."""
    machine = document["machine"]
    isa = machine["isas"][0] if machine["isas"] else "no native library"
    return f"`{document['source']}`: {machine['processor']}, {machine['cores']} cores, {isa}, commit {machine['commit']}."
