"""The command line: `subtone --help`.

Torch is imported only inside the commands that need it. Results go to stdout (with --json: one
document and nothing else), everything else to stderr. Exit codes: 0 done, 1 failed, 2 misused.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from subtone.command_errors import OneLineErrors, complain
from subtone.command_output import progress_bar, say, show, show_log, stage
from subtone.files import claimed, write_text

if TYPE_CHECKING:
    from subtone.models.checkpoints import Checkpoint
    from subtone.quantize.rules import Recipe
    from subtone.report.evaluate import Heard
    from subtone.speech.recognize import Recognizer


app = typer.Typer(
    name="subtone",
    cls=OneLineErrors,
    help="Speech recognition below eight bits: quantize, pack and run ASR models on a plain CPU.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(cls=OneLineErrors, help="Make or read corpora.", rich_markup_mode=None)
bench_app = typer.Typer(
    cls=OneLineErrors, help="Measure speed beside other run times.", rich_markup_mode=None
)
report_app = typer.Typer(cls=OneLineErrors, help="Make pages to read.", rich_markup_mode=None)
app.add_typer(data_app, name="data")
app.add_typer(bench_app, name="bench")
app.add_typer(report_app, name="report")

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Take that many utterances, evenly spread.")]
Threads = Annotated[int, typer.Option(min=0, help="Threads; 0: all cores.")]


def main() -> None:
    """Run the command line."""
    # libgomp's threads spin while they wait: on shared cores that takes them from the thread that works
    # (docs/lab-log.md: a training four times as fast beside other work, as fast alone).
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "1000"
    show_log()
    app()


def _out_and_run(out: Path) -> tuple[Path, Path]:
    """OUT, and OUT.run for the state of a run; absolute, because "." has no name and moves when replaced."""
    out = Path(os.path.abspath(out))
    return out, out.with_name(f"{out.name}.run")


def _recognizer(path: Path, threads: int) -> Recognizer:
    """Whatever `path` is: a packed file, or a checkpoint in torch."""
    if not path.exists():
        raise ValueError(f"{path} does not exist; name a .subtone file, a checkpoint folder or a .nemo file")
    if path.is_dir() or path.suffix == ".nemo":
        import torch

        from subtone.models.checkpoints import load_checkpoint
        from subtone.quantize.simulate import simulated

        torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
        return simulated(load_checkpoint(path)).recognizer()
    from subtone.runtime.session import Session

    return Session.load(path, threads=threads).recognizer


def _hear_manifest(path: Path, manifest: Path, limit: int | None, threads: int) -> list[Heard]:
    from subtone.report.evaluate import evaluate
    from subtone.speech.data import read_manifest, spread

    utterances = spread(read_manifest(manifest), limit)
    recognizer = _recognizer(path, threads)
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
    return _hear_manifest(path, manifest, limit, threads)


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where the corpus, the models and the results go.")] = Path(
        "demo"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Of the corpus and of training.")] = 0,
    as_json: AsJson = False,
) -> None:
    """The whole flow on a spoken corpus that it makes itself, in minutes; ends with a table.

    Example: subtone demo
    """
    from subtone.demo import run_demo
    from subtone.report.tables import evaluation

    rows = run_demo(folder, bar=stage, seed=seed)
    show(rows, as_json=as_json, table=None if as_json else evaluation(rows))


@data_app.command("synth")
def data_synth(
    folder: Annotated[Path, typer.Argument(help="Where the corpus goes.")],
    num_train: Annotated[int, typer.Option(min=0)] = 2000,
    num_dev: Annotated[int, typer.Option(min=0)] = 100,
    num_test: Annotated[int, typer.Option(min=0)] = 300,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: AsJson = False,
) -> None:
    """Make a spoken corpus of digits and commands; test voices are never heard in training.

    Example: subtone data synth corpus/ --num-train 500
    """
    from subtone.speech.synth import make_corpus

    with progress_bar("speaking") as move:
        corpus = make_corpus(
            folder, num_train=num_train, num_dev=num_dev, num_test=num_test, seed=seed, progress=move
        )
    counts = {"train": num_train, "dev": num_dev, "test": num_test}
    document = {
        "corpus": str(corpus.folder),
        "manifests": {split: str(corpus.manifest(split)) for split in counts},
        "utterances": counts,
        "seed": seed,
    }
    line = f"{corpus.folder}: {num_train} + {num_dev} + {num_test} utterances"
    say(document, as_json=as_json, line=line)


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A TOML recipe, such as recipes/train-demo.toml.")],
    train_manifest: Annotated[Path, typer.Option("--train", help="Manifest to learn from.")],
    dev_manifest: Annotated[Path, typer.Option("--dev", help="Manifest to watch progress on.")],
    out: Annotated[
        Path, typer.Option(help="Folder of the checkpoint; the state of the run lies in OUT.run.")
    ],
    as_json: AsJson = False,
) -> None:
    """Train a float model; a killed run goes on where it was.

    Example: subtone train recipes/train-demo.toml --train corpus/train --dev corpus/dev --out float/
    """
    from subtone.models.checkpoints import WEIGHTS_FILE, check_can_save, save_checkpoint
    from subtone.speech.data import read_manifest
    from subtone.train import TrainSettings, fit

    out, run = _out_and_run(out)
    check_can_save(out)
    settings = TrainSettings.load(recipe)
    heard, dev = read_manifest(train_manifest), read_manifest(dev_manifest)
    with claimed(run), progress_bar(f"training {settings.model}") as move:
        fitted = fit(run, settings=settings, train=heard, dev=dev, progress=move)
        save_checkpoint(out, fitted.checkpoint)
    errors = fitted.dev_errors
    document = {
        "checkpoint": str(out),
        "run": str(run),
        "bytes": (out / WEIGHTS_FILE).stat().st_size,
        "model": settings.model,
        "recipe": settings.name,
        "steps": settings.steps,
        "dev": {
            "wer_percent": round(100 * errors.rate, 4) if errors.words else None,
            **dataclasses.asdict(errors),
        },
    }
    say(document, as_json=as_json, line=f"{out}: dev WER {100 * errors.rate:.2f} %")


@app.command()
def quantize(
    checkpoint: Annotated[Path, typer.Argument(help="Our checkpoint folder or a .nemo file.")],
    recipe: Annotated[Path, typer.Argument(help="A TOML recipe, such as recipes/ptq-w8.toml.")],
    out: Annotated[
        Path, typer.Option(help="Folder of the quantized checkpoint; with --train, the run lies in OUT.run.")
    ],
    train_manifest: Annotated[
        Path | None, typer.Option("--train", help="Manifest to learn from meanwhile, as [training] says.")
    ] = None,
    dev_manifest: Annotated[
        Path | None, typer.Option("--dev", help="Manifest to watch progress on, after every epoch.")
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Manifest whose sound bias correction and compensated rounding hear.")
    ] = None,
    limit: Limit = None,
    as_json: AsJson = False,
) -> None:
    """Bring a checkpoint's weights to few bits, as a recipe says; at once, or trained by --train.

    --limit is of --train or --calibration. A killed training goes on where it was.

    Example: subtone quantize model.nemo recipes/ptq-w8.toml --out q8/
    """
    from subtone.models.checkpoints import check_can_save, load_checkpoint, save_checkpoint
    from subtone.quantize.apply import check_sound
    from subtone.quantize.rules import Recipe

    out, run = _out_and_run(out)
    if out.resolve() == checkpoint.resolve():
        raise ValueError(f"out={out} is the float checkpoint itself; choose another folder")
    check_can_save(out)
    settings = Recipe.load(recipe)
    check_sound(settings, has_calibration=bool(calibration), is_trained=bool(train_manifest))
    if limit and not (train_manifest or calibration):
        raise ValueError(f"limit={limit} has no effect without --train or --calibration; leave it out")
    if dev_manifest and not train_manifest:
        raise ValueError(f"dev={dev_manifest} has no effect without --train; leave it out")
    if settings.training:
        from subtone.train import TuneSettings

        TuneSettings.of(settings)  # a misspelt key is one without --train too
    source = load_checkpoint(checkpoint)
    if train_manifest:
        result, curve = _trained(run, source, settings, train_manifest, dev_manifest, limit)
    else:
        result, curve = _rounded(source, settings, calibration, limit), []
    save_checkpoint(out, result)
    assert result.quantization is not None
    document = {
        "checkpoint": str(out),
        "weights": len(result.quantization.weights),
        "recipe": dict(result.quantization.recipe),
        "curve": curve,
    }
    say(document, as_json=as_json, line=f"{out}: {document['weights']} weights by {settings.name}")


def _trained(
    run: Path, source: Checkpoint, recipe: Recipe, train: Path, dev: Path | None, limit: int | None
) -> tuple[Checkpoint, list[dict[str, float]]]:
    """`source` trained to few bits on the manifest `train`, and a row of what was seen every epoch."""
    from subtone.speech.data import read_manifest, spread
    from subtone.train import tune

    heard, watched = spread(read_manifest(train), limit), read_manifest(dev) if dev else []
    with claimed(run), progress_bar(f"training by {recipe.name}") as move:
        tuned = tune(run, source, recipe, train=heard, dev=watched, progress=move)
    return tuned.checkpoint, tuned.curve


def _rounded(source: Checkpoint, recipe: Recipe, calibration: Path | None, limit: int | None) -> Checkpoint:
    """`source` in few bits at once; a recipe that hears something hears the manifest `calibration`."""
    from subtone.quantize.apply import quantize_checkpoint
    from subtone.speech.data import read_manifest, spread

    heard = spread(read_manifest(calibration), limit) if calibration else []
    with progress_bar("quantizing") as move:
        return quantize_checkpoint(source, recipe, utterances=heard, progress=move)


@app.command()
def methods(as_json: AsJson = False) -> None:
    """List the ways to few bits: what each does, whether it trains, and its recipes.

    Example: subtone methods
    """
    from subtone.quantize import describe_methods
    from subtone.report.tables import methods as table_of

    document = describe_methods()
    show(document, as_json=as_json, table=None if as_json else table_of(document))


@app.command()
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


@app.command()
def inspect(file: Annotated[Path, typer.Argument(help="A packed file.")], as_json: AsJson = False) -> None:
    """List every layer of a packed file: bits, grid, distinct values, bytes; and what stayed float.

    Example: subtone inspect q8.subtone
    """
    from subtone.report.inspect import describe
    from subtone.report.tables import inspection

    document = describe(file)
    show(document, as_json=as_json, table=None if as_json else inspection(document))


@app.command()
def transcribe(
    file: Annotated[Path, typer.Argument(help="A packed file, a checkpoint folder or a .nemo file.")],
    audio: Annotated[list[Path], typer.Argument(help="Sound in any format soundfile reads.")],
    threads: Threads = 0,
    as_json: AsJson = False,
) -> None:
    """Print the words in each audio file, one line a file; one that cannot be heard stops no other.

    Example: subtone transcribe q8.subtone a.flac b.wav c.opus
    """
    from subtone.speech.audio import AudioError

    recognizer = _recognizer(file, threads)
    results = []
    for path in audio:
        try:
            with progress_bar(f"hearing {path.name}") as move:
                text = recognizer.transcript(path, progress=move).text
        except AudioError as error:
            complain(str(error))
            results.append({"audio": str(path), "error": str(error)})
            continue
        results.append({"audio": str(path), "text": text})
        if not as_json:
            print(f"{path}: {text}" if len(audio) > 1 else text, flush=True)
    if as_json:
        show(results, as_json=True, table=None)
    if any("error" in result for result in results):
        raise typer.Exit(2)


@app.command()
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
    heard = _hear_manifest(file, manifest, limit, threads)
    if save is not None:
        save_heard(save, heard)
    size = {"bytes": file.stat().st_size} if file.suffix == ".subtone" else {}
    document = {"model": str(file), "manifest": str(manifest), **size, **summarize(heard)}
    show(document, as_json=as_json, table=None if as_json else evaluation([document]))


@app.command()
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


@bench_app.command("model")
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
    with progress_bar("racing") as move:
        document = race_models(
            checkpoint, manifest, files, limit=limit, rounds=rounds, threads=threads, progress=move
        )
    if out is not None:
        write_text(out, json.dumps(document, indent=1) + "\n")
    show(document, as_json=as_json, table=None if as_json else race(document))


@report_app.command("figures")
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
