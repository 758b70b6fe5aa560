"""What several commands take: options, the folders of a run, and a model to hear with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from subtone.speech.listening import AnyRecognizer

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Take that many utterances, evenly spread.")]
Threads = Annotated[int, typer.Option(min=0, help="Threads; 0: all cores.")]


def listed(text: str) -> list[str]:
    """What stands between the commas of an option.

    >>> listed("8, 4,2")
    ['8', '4', '2']
    """
    return [item.strip() for item in text.split(",")]


def numbers(text: str, name: str) -> tuple[int, ...]:
    """The whole numbers of the option `name`; ValueError where something else stands there.

    >>> numbers("8,4", "bits")
    (8, 4)
    """
    for item in listed(text):
        if not (item.isascii() and item.isdigit() and len(item) <= 9):
            raise ValueError(f"{name}={item} is not a whole number; write numbers divided by commas, as 8,4")
    return tuple(map(int, listed(text)))


def out_and_run(out: Path) -> tuple[Path, Path]:
    """OUT, and OUT.run for the state of a run; absolute, because "." has no name and moves when replaced."""
    out = Path(os.path.abspath(out))
    return out, out.with_name(f"{out.name}.run")


def recognizer_of(path: Path, threads: int, *, beam: int = 0) -> AnyRecognizer:
    """Whatever `path` is: a packed file, or a checkpoint in torch; `beam` is for packed transducers.

    A checkpoint calibrated for integers alone is heard as it will be packed: torch has no such arithmetic.
    """
    if not path.exists():
        raise ValueError(f"{path} does not exist; name a .subtone file, a checkpoint folder or a .nemo file")
    from subtone.runtime.session import Session

    if path.is_dir() or path.suffix == ".nemo":
        if beam:
            raise ValueError(f"beam={beam} needs a packed file; {path} is a checkpoint: pack it first")
        import torch

        from subtone.models.checkpoints import load_checkpoint
        from subtone.quantize.simulate import simulated

        torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
        checkpoint = load_checkpoint(path)
        if checkpoint.quantization is None or not checkpoint.quantization.ranges:
            return simulated(checkpoint).recognizer()
        from subtone.export.package import package

        return Session.of(package(checkpoint, name=path.name), threads=threads).recognizer
    return Session.load(path, threads=threads, beam=beam).recognizer
