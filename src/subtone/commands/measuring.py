"""How good, how fast, how large: models, evaluate, compare, bench model, bench kernels, report figures."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from subtone.command_output import progress_bar, say, show
from subtone.commands.arguments import AsJson, Limit, Threads, listed, numbers, recognizer_of
from subtone.files import check_file_to_write, write_text

if TYPE_CHECKING:
    from subtone.report.evaluate import Heard


def models(as_json: AsJson = False) -> None:
    """List the networks: parameters, MB at each number of bits, bit operations; beside the papers' figures.

    BOPs are 10^12 products of weights times bits of weights times bits of activations, for 10 s of sound.

    Example: subtone models
    """
    from subtone.models.accounting import describe_models
    from subtone.report.tables import models as table_of

    document = describe_models()
    show(document, as_json=as_json, table=None if as_json else table_of(document))


def evaluate(
    file: Annotated[Path, typer.Argument(help="A packed file, a checkpoint folder or a .nemo file.")],
    manifest: Annotated[Path, typer.Argument(help="JSON lines, or the folder that holds manifest.jsonl.")],
    limit: Limit = None,
    save: Annotated[
        Path | None, typer.Option(help="Write what was heard, a .jsonl for `subtone compare`.")
    ] = None,
    threads: Threads = 0,
    as_json: AsJson = False,
) -> None:
    """Word error rate with its interval, errors by kind, real-time factor, latency and memory.

    Example: subtone evaluate q8.subtone test-clean/manifest.jsonl --json
    """
    from subtone.report.evaluate import save_heard, summarize
    from subtone.report.tables import evaluation

    if save is not None and save.suffix != ".jsonl":
        raise ValueError(f"save={save} must end in .jsonl")
    heard = hear_manifest(file, manifest, limit, threads)
    if save is not None:
        save_heard(save, heard)
    size = {"bytes": file.stat().st_size} if file.suffix == ".subtone" else {}
    document = {"model": str(file), "manifest": str(manifest), **size, **summarize(heard)}
    show(document, as_json=as_json, table=None if as_json else evaluation([document]))


def compare(
    before: Annotated[
        Path, typer.Argument(metavar="A", help="A model, or what `subtone evaluate --save` wrote.")
    ],
    after: Annotated[Path, typer.Argument(metavar="B", help="The same, to be compared with A.")],
    manifest: Annotated[
        Path | None, typer.Argument(help="What models hear; files of --save need none.")
    ] = None,
    limit: Limit = None,
    threads: Threads = 0,
    as_json: AsJson = False,
) -> None:
    """The paired difference in word error rate, B less A, with its interval over speakers.

    Example: subtone compare model.nemo q8.subtone test-clean/manifest.jsonl --json
    """
    from subtone.report.evaluate import compare as compare_heard
    from subtone.report.tables import comparison

    if {before.suffix, after.suffix} == {".jsonl"} and (manifest or limit):
        raise ValueError("two files of --save are compared as they are; leave out MANIFEST and --limit")
    heard = [_heard(path, manifest, limit, threads) for path in (before, after)]
    document = {
        "before": str(before),
        "after": str(after),
        "manifest": str(manifest or ""),
        **compare_heard(*heard),
    }
    show(document, as_json=as_json, table=None if as_json else comparison(document))


def bench_model(
    checkpoint: Annotated[Path, typer.Argument(help="The float checkpoint: a folder or a .nemo file.")],
    manifest: Annotated[Path, typer.Argument(help="What all hear.")],
    files: Annotated[list[Path], typer.Argument(help="Packed files of it; ratios are of the first.")],
    limit: Limit = 20,
    rounds: Annotated[int, typer.Option(min=1, help="Counted rounds.")] = 20,
    threads: Annotated[int, typer.Option(min=0, help="Threads of every candidate; 0: all cores.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Write the document here too.")] = None,
    as_json: AsJson = False,
) -> None:
    """Race packed files against PyTorch and ONNX Runtime, float and int8, in one process.

    Example: subtone bench model model.nemo dev-clean/ q8.subtone q4.subtone
    """
    from subtone.report.race import race_models
    from subtone.report.tables import race

    for file in files:
        if not file.is_file():
            raise ValueError(f"{file} is not a file; name files that `subtone pack` wrote")
    threads = threads or len(os.sched_getaffinity(0))
    check_file_to_write(out)
    with progress_bar("racing") as move:
        document = race_models(
            checkpoint, manifest, files, limit=limit, rounds=rounds, threads=threads, progress=move
        )
    if out is not None:
        write_text(out, json.dumps(document, indent=1) + "\n")
    show(document, as_json=as_json, table=None if as_json else race(document))


def bench_kernels(
    shapes: Annotated[str, typer.Option(help="Products OUTPUTSxINPUTS, or none.")] = "4096x4096",
    frames: Annotated[str, typer.Option(help="Frames at once.")] = "1",
    bits: Annotated[str, typer.Option(help="Widths of our weights.")] = "8,6,5,4,3,2,1",
    granularity: Annotated[str, typer.Option(help="channel, codebook, groups such as group64.")] = "channel",
    threads: Annotated[str, typer.Option(help="Threads of every candidate, race by race.")] = "1",
    rounds: Annotated[int, typer.Option(help="Counted rounds.")] = 20,
    peers: Annotated[
        str,
        typer.Option(help="all that are installed, none, or some of torch, onnxruntime, openvino, torchao."),
    ] = "all",
    cold: Annotated[bool, typer.Option("--cold", help="All products of S8BQAT's M-I in turn too.")] = False,
    lstm: Annotated[bool, typer.Option("--lstm", help="A step of an LSTM of 1024 units too.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the document here too.")] = None,
    as_json: AsJson = False,
) -> None:
    """Race our kernels against whichever peers are installed, and hold them against what the machine can do.

    Lists are divided by commas. Times are of the work alone: what a call costs without any is taken off, for all.

    Example: subtone bench kernels --shapes 4096x4096,512x2048 --frames 1,16 --bits 8,4,2 --peers onnxruntime
    """
    from subtone.bench.kernels import KernelSettings, measure_kernels
    from subtone.bench.products import Granularity, shape_of
    from subtone.bench.shown import kernels

    settings = KernelSettings(
        shapes=() if shapes == "none" else tuple(map(shape_of, listed(shapes))),
        frames=numbers(frames, "frames"),
        bits=numbers(bits, "bits"),
        granularities=tuple(map(Granularity.of, listed(granularity))),
        threads=numbers(threads, "threads"),
        rounds=rounds,
        peers=peers,
        is_cold=cold,
        has_lstm=lstm,
    )
    check_file_to_write(out)
    with progress_bar("racing") as move:
        document = measure_kernels(settings, move)
    if out is not None:
        write_text(out, json.dumps(document, indent=1) + "\n")
    show(document, as_json=as_json, table=None if as_json else kernels(document))


def report_figures(
    out: Annotated[Path, typer.Argument(help="The .html page to write.")],
    checkpoint: Annotated[
        Path | None, typer.Argument(help="Show a kernel of it too: our folder or a .nemo file.")
    ] = None,
    weight: Annotated[str | None, typer.Option(help="Which of its weights; else the largest.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the random weights.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Draw three figures of the papers from our own numbers, beside what theirs show.

    They are int2's Fig. 2, GQ's Fig. 1 and S8BQAT's Fig. 2.

    Example: subtone report figures figures.html model.nemo
    """
    from subtone.quantize.curves import paper_curves
    from subtone.report.figures import figures_page

    if out.suffix != ".html":
        raise ValueError(f"out={out} must end in .html")
    document = paper_curves(checkpoint, weight=weight, seed=seed)
    write_text(out, figures_page(document))
    say(document, as_json=as_json, line=f"{out}: three figures")


def hear_manifest(path: Path, manifest: Path, limit: int | None, threads: int) -> list[Heard]:
    from subtone.report.evaluate import evaluate
    from subtone.speech.data import read_manifest, spread

    utterances = spread(read_manifest(manifest), limit)
    recognizer = recognizer_of(path, threads)
    folder = manifest if manifest.is_dir() else manifest.parent
    with progress_bar(f"{path.name} hears {folder.resolve().name}") as move:
        return evaluate(recognizer, utterances, move)


def _heard(path: Path, manifest: Path | None, limit: int | None, threads: int) -> list[Heard]:
    """What a model hears of the manifest, or what a file says it heard."""
    from subtone.report.evaluate import load_heard

    if path.suffix == ".jsonl":
        if not path.is_file():
            raise ValueError(f"{path} is not a file; name a model, or what `subtone evaluate --save` wrote")
        return load_heard(path)
    if manifest is None:
        raise ValueError(f"{path} is a model, which needs a MANIFEST to hear; add it behind A and B")
    return hear_manifest(path, manifest, limit, threads)
