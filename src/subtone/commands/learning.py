"""From sound to a checkpoint in few bits: demo, data synth, train, quantize, methods."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from subtone.command_output import progress_bar, say, show, stage
from subtone.commands.arguments import AsJson, Limit, out_and_run, recognizer_of
from subtone.files import claimed

if TYPE_CHECKING:
    from subtone.models.checkpoints import Checkpoint
    from subtone.quantize.rules import Recipe


def demo(
    folder: Annotated[Path, typer.Option(help="Where the corpus, the models and the results go.")] = Path(
        "demo"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Of the corpus and of training.")] = 0,
    as_json: AsJson = False,
) -> None:
    """The whole flow on a spoken corpus that it makes itself, in minutes; ends with a table and a sentence as it comes.

    Example: subtone demo
    """
    from subtone.commands.streaming import Line, hear_stream, sound_of, streaming
    from subtone.demo import STREAMED, run_demo, sentence
    from subtone.report.tables import evaluation

    rows = run_demo(folder, bar=stage, seed=seed)
    show(rows, as_json=as_json, table=None if as_json else evaluation(rows))
    if not as_json:
        file = folder / STREAMED
        recognizer = streaming(recognizer_of(file, 1), file)
        line = Line("as it comes: ", is_terminal=sys.stdout.isatty())
        hear_stream(recognizer, sound_of(sentence(folder), recognizer.front_end.rate_hz, 1.0), line)


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

    out, run = out_and_run(out)
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

    out, run = out_and_run(out)
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


def methods(as_json: AsJson = False) -> None:
    """List the ways to few bits: what each does, whether it trains, and its recipes.

    Example: subtone methods
    """
    from subtone.quantize import describe_methods
    from subtone.report.tables import methods as table_of

    document = describe_methods()
    show(document, as_json=as_json, table=None if as_json else table_of(document))
