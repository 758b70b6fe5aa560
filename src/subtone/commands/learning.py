"""From sound to a checkpoint in few bits: demo, data synth, train, quantize, methods."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from subtone.command_output import progress_bar, say, show, stage
from subtone.commands.arguments import AsJson, Limit, out_and_run, recognizer_of
from subtone.files import claimed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from subtone.models.checkpoints import Checkpoint
    from subtone.quantize.rules import Recipe
    from subtone.quantize.static import IntegerSettings


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
    save_images: Annotated[
        Path | None,
        typer.Option(
            help="PNG of the spectrograms that calibration hears, and what the model hears in them."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Bring a checkpoint's weights to few bits, as a recipe says; at once, or trained by --train.

    --limit is of --train or --calibration. A killed training goes on where it was. A recipe with [integer] also
    divides all that lies between the weights, so that the packed file computes in integers alone; it needs no
    recording but for integer.features = "recordings".

    Example: subtone quantize model.nemo recipes/ptq-w8.toml --out q8/

    Example: subtone quantize model.nemo recipes/zero-shot-w8a8.toml --out w8a8/
    """
    from subtone.models.checkpoints import check_can_save, load_checkpoint, save_checkpoint
    from subtone.quantize.apply import check_sound
    from subtone.quantize.rules import Recipe
    from subtone.quantize.static import IntegerSettings

    out, run = out_and_run(out)
    if out.resolve() == checkpoint.resolve():
        raise ValueError(f"out={out} is the float checkpoint itself; choose another folder")
    check_can_save(out)
    settings = Recipe.load(recipe)
    integer = IntegerSettings.of(settings)
    is_shown = integer is not None and integer.features != "recordings" and save_images is not None
    has_calibration = bool(calibration) and not is_shown  # of which a picture may show one
    check_sound(settings, has_calibration=has_calibration, is_trained=bool(train_manifest))
    if save_images is not None and (integer is None or save_images.suffix != ".png"):
        raise ValueError(
            f"save_images={save_images} needs a recipe with [integer] and a name that ends in .png; leave it out, or "
            "name such a file"
        )
    if limit and not (train_manifest or calibration):
        raise ValueError(f"limit={limit} has no effect without --train or --calibration; leave it out")
    if dev_manifest and not train_manifest:
        raise ValueError(f"dev={dev_manifest} has no effect without --train; leave it out")
    if settings.training:
        from subtone.train import TuneSettings

        TuneSettings.of(settings)  # a misspelt key is one without --train too
    source = load_checkpoint(checkpoint)
    source.require_float()
    if integer is not None:
        integer.require_products(source.network)
    examples = [] if integer is None else _calibration_features(source, integer, calibration, limit)
    if save_images is not None:
        _draw(save_images, source, examples, calibration)
    if train_manifest:
        result, curve = _trained(run, source, settings, train_manifest, dev_manifest, limit)
    else:
        made = examples if integer is not None and integer.features != "recordings" else []
        result, curve = _rounded(source, settings, calibration, limit, made), []
    if integer is not None:
        result = _calibrated(result, integer, examples)
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


def _rounded(
    source: Checkpoint,
    recipe: Recipe,
    calibration: Path | None,
    limit: int | None,
    made: list[NDArray[np.float32]],
) -> Checkpoint:
    """`source` in few bits at once; a recipe that hears something hears features `made` for it, or `calibration`."""
    from subtone.quantize.apply import quantize_checkpoint
    from subtone.speech.data import read_manifest, spread

    heard = spread(read_manifest(calibration), limit) if calibration and not made else []
    with progress_bar("quantizing") as move:
        return quantize_checkpoint(source, recipe, utterances=heard, features=made, progress=move)


def _calibration_features(
    source: Checkpoint, settings: IntegerSettings, calibration: Path | None, limit: int | None
) -> list[NDArray[np.float32]]:
    """What the float network is calibrated on: features (T, F), made from it or of the manifest `calibration`."""
    from subtone.quantize.static import features_made
    from subtone.speech.audio import read_audio
    from subtone.speech.data import read_manifest, spread

    if settings.features != "recordings":
        with progress_bar(f"making {settings.features} spectrograms") as move:
            told = functools.partial(_tell_loss, move)
            return features_made(source, settings, told)
    assert calibration is not None
    front_end = source.front_end
    heard = spread(read_manifest(calibration), limit)
    return [front_end(read_audio(utterance.audio_path, front_end.rate_hz)) for utterance in heard]


def _tell_loss(move: Callable[..., None], done: int, total: int, loss: float) -> None:
    move(done, total, f"(loss {loss:.3f})")


def _calibrated(
    checkpoint: Checkpoint, settings: IntegerSettings, examples: list[NDArray[np.float32]]
) -> Checkpoint:
    from subtone.export.static import calibrated

    with progress_bar("calibrating") as move:
        return calibrated(checkpoint, settings, examples, progress=lambda done: move(done, len(examples)))


def _draw(
    path: Path, source: Checkpoint, examples: list[NDArray[np.float32]], calibration: Path | None
) -> None:
    """Noise, the first two of `examples` and the first recording of `calibration`, if there is one, with what the
    float network hears in each."""
    from subtone.quantize.zero_shot import random_features
    from subtone.report.spectrograms import Spectrogram, heard_in, save_spectrograms
    from subtone.speech.audio import read_audio
    from subtone.speech.data import read_manifest
    from subtone.speech.recognize import Recognizer

    recognizer, front_end = source.recognizer(), source.front_end
    if not isinstance(recognizer, Recognizer):
        raise ValueError(
            f"save_images={path} draws what a CTC network hears in whole spectrograms; leave it out"
        )
    width, frames = front_end.num_features, len(examples[0])
    noise = random_features(num_spectrograms=1, num_features=width, num_frames=frames)
    kinds = [
        ("random", noise[0]),
        *((f"calibration {index + 1}", each.T) for index, each in enumerate(examples[:2])),
    ]
    if calibration is not None:
        first = read_manifest(calibration)[0].audio_path
        kinds.insert(0, ("real", front_end(read_audio(first, front_end.rate_hz)).T))
    pictures = [
        Spectrogram(title=kind, features=features, heard=heard_in(recognizer, features))
        for kind, features in kinds
    ]
    save_spectrograms(path, pictures)


def methods(as_json: AsJson = False) -> None:
    """List the ways to few bits: what each does, whether it trains, and its recipes.

    Example: subtone methods
    """
    from subtone.quantize import describe_methods
    from subtone.report.tables import methods as table_of

    document = describe_methods()
    show(document, as_json=as_json, table=None if as_json else table_of(document))
