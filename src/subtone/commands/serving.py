"""Packed files and what they hear: pack, inspect, transcribe."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from subtone.command_errors import complain
from subtone.command_output import progress_bar, say, show
from subtone.commands.arguments import AsJson, Threads, recognizer_of

if TYPE_CHECKING:
    from subtone.speech.listening import AnyRecognizer


def pack(
    checkpoint: Annotated[Path, typer.Argument(help="Our checkpoint folder or a .nemo file.")],
    file: Annotated[Path, typer.Argument(help="The packed file to write.")],
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint as one packed file that runs without torch.

    Example: subtone pack q8/ q8.subtone
    """
    from subtone.export.package import package
    from subtone.models.checkpoints import load_checkpoint
    from subtone.pack import write_packed
    from subtone.qtensor import QTensor

    if file.suffix != ".subtone":
        raise ValueError(f"file={file} must end in .subtone")
    if file.is_dir() or not file.absolute().parent.is_dir():
        raise ValueError(f"file={file} is a folder or lies in none; give a file in a folder that exists")
    with progress_bar(f"packing {checkpoint.name}") as move:
        move(0, 3)
        source = load_checkpoint(checkpoint)
        move(1, 3)
        model = package(source, name=checkpoint.name)
        move(2, 3)
        write_packed(file, model)
        move(3, 3)
    num_bytes = file.stat().st_size
    document = {
        "file": str(file),
        "bytes": num_bytes,
        "checkpoint": str(checkpoint),
        "parameters": model.provenance["parameters"],
        "operations": len(model.program.ops),
        "quantized_weights": sum(isinstance(value, QTensor) for value in model.constants.values()),
    }
    say(document, as_json=as_json, line=f"{file}: {num_bytes / 1e6:.2f} MB")


def inspect(
    file: Annotated[Path, typer.Argument(help="A packed file.")],
    verify_integer: Annotated[
        bool,
        typer.Option("--verify-integer", help="Fail if anything in it is or computes in floating point."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List every layer of a packed file: bits, grid, distinct values, bytes; and what stayed float.

    Example: subtone inspect q8.subtone
    """
    from subtone.report.inspect import describe
    from subtone.report.tables import inspection

    document = describe(file)
    show(document, as_json=as_json, table=None if as_json else inspection(document))
    if verify_integer and not document["is_integer"]:
        first, *others = document["float_parts"]
        complain(f"{file} is not integer-only: {first}" + (f" and {len(others)} others" if others else ""))
        raise typer.Exit(1)


def transcribe(
    file: Annotated[Path, typer.Argument(help="A packed file, a checkpoint folder or a .nemo file.")],
    audio: Annotated[
        list[Path], typer.Argument(help="Sound in any format soundfile reads; with --stream also - (stdin).")
    ],
    stream: Annotated[
        bool, typer.Option("--stream", help="Words as they come; - is raw 16-bit PCM at the model's rate.")
    ] = False,
    pace: Annotated[
        float | None,
        typer.Option(
            help="With --stream, a file's pace: 1 (as it comes) is real time, 0 as fast as it goes."
        ),
    ] = None,
    beam: Annotated[int, typer.Option(min=0, help="Hypotheses that the search follows; 0: greedy.")] = 0,
    threads: Threads = 0,
    as_json: AsJson = False,
) -> None:
    """Print the words in each audio file, one line a file; one that cannot be heard stops no other.

    Example: subtone transcribe q8.subtone a.flac b.wav c.opus

    Example: arecord -q -t raw -f S16_LE -r 16000 -c 1 | subtone transcribe rnnt.subtone --stream -
    """
    from subtone.speech.audio import AudioError

    if pace is not None and not stream:
        raise ValueError(f"pace={pace} has no effect without --stream; add it, or leave out --pace")
    if pace and not SLOWEST <= pace <= FASTEST:
        raise ValueError(f"pace={pace} must be 0, or {SLOWEST} to {FASTEST}; 1 is real time")
    if [str(path) for path in audio].count("-") > 1:
        raise ValueError("- is given twice; stdin holds one stream")
    hear = (_hear_stream if stream else _hear_file)(
        recognizer_of(file, threads, beam=beam), file, 1.0 if pace is None else pace
    )
    results: list[dict[str, Any]] = []
    for path in audio:
        try:
            result = hear(path, None if as_json else f"{path}: " if len(audio) > 1 else "")
        except AudioError as error:
            complain(str(error))
            result = {"error": str(error)}
        results.append({"audio": str(path), **result})
        if "interrupted" in result:
            break
    if as_json:
        show(results, as_json=True, table=None)
    if "interrupted" in results[-1]:
        raise KeyboardInterrupt
    if any("error" in result for result in results):
        raise typer.Exit(2)


SLOWEST, FASTEST = 0.1, 1000
"""Paces of a file."""

Hear = Callable[[Path, str | None], dict[str, Any]]
"""What a path's sound says, printed behind a label if there is one."""


def _hear_file(recognizer: AnyRecognizer, file: Path, pace: float) -> Hear:
    def hear(path: Path, label: str | None) -> dict[str, Any]:
        if str(path) == "-":
            raise ValueError("- is a stream on stdin; add --stream")
        with progress_bar(f"hearing {path.name}") as move:
            text = recognizer.transcript(path, progress=move).text
        if label is not None:
            print(f"{label}{text}", flush=True)
        return {"text": text}

    return hear


def _hear_stream(recognizer: AnyRecognizer, file: Path, pace: float) -> Hear:
    from subtone.commands.streaming import Line, hear_stream, sound_of, streaming
    from subtone.speech.audio import AudioError

    listener = streaming(recognizer, file)

    def hear(path: Path, label: str | None) -> dict[str, Any]:
        line = None if label is None else Line(label, is_terminal=sys.stdout.isatty())
        heard = hear_stream(listener, sound_of(path, listener.front_end.rate_hz, pace), line)
        if not heard["duration_s"] and "interrupted" not in heard:
            raise AudioError(f"{path}: has no samples; give a sound")
        return heard

    return hear
