"""The command line: `subtone --help`. COMMANDS lists every command; `subtone.commands` holds them by topic.

Torch is imported only inside the commands that need it. Results go to stdout (with --json: one
document and nothing else), everything else to stderr. Exit codes: 0 done, 1 failed, 2 misused.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import typer

from subtone.command_errors import OneLineErrors
from subtone.command_output import show_log
from subtone.commands import learning, measuring, serving

COMMANDS: Mapping[str, Callable[..., None]] = {
    "demo": learning.demo,
    "train": learning.train,
    "quantize": learning.quantize,
    "methods": learning.methods,
    "models": measuring.models,
    "pack": serving.pack,
    "inspect": serving.inspect,
    "transcribe": serving.transcribe,
    "evaluate": measuring.evaluate,
    "compare": measuring.compare,
    "data synth": learning.data_synth,
    "bench model": measuring.bench_model,
    "bench kernels": measuring.bench_kernels,
    "report figures": measuring.report_figures,
}
"""What is typed -> what runs, in the order of `--help`."""

GROUPS: Mapping[str, str] = {
    "data": "Make or read corpora.",
    "bench": "Measure speed beside other run times.",
    "report": "Make pages to read.",
}
"""First word of a command of two -> what such commands are for."""


def assembled() -> typer.Typer:
    """The command line that COMMANDS and GROUPS list."""
    plain: dict[str, Any] = {"cls": OneLineErrors, "rich_markup_mode": None}
    top = typer.Typer(
        name="subtone",
        help="Speech recognition below eight bits: quantize, pack and run ASR models on a plain CPU.",
        add_completion=False,
        pretty_exceptions_enable=False,
        **plain,
    )
    groups = {word: typer.Typer(help=what, **plain) for word, what in GROUPS.items()}
    for typed, command in COMMANDS.items():
        group, _, name = typed.rpartition(" ")
        (groups[group] if group else top).command(name)(command)
    for word, group_app in groups.items():
        top.add_typer(group_app, name=word)
    return top


app = assembled()


def main() -> None:
    """Run the command line."""
    # libgomp's threads spin while they wait: on shared cores that takes them from the thread that works
    # (docs/lab-log.md: a training four times as fast beside other work, as fast alone).
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "1000"
    show_log()
    app()
