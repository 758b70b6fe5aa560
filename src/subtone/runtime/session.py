"""A packed file, ready to hear: `Session.load("model.subtone").hear_file("a.wav")`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from subtone.pack import PackedFileError, PackedFileReason, PackedModel, read_packed
from subtone.program import Program
from subtone.runtime.doors import behind_doors
from subtone.runtime.engine import Engine, load_engine
from subtone.runtime.transducer import CascadeSearch, PackedTransducer
from subtone.speech.ctc_search import CtcBeamSearch, CtcGreedySearch
from subtone.speech.features import front_end_from_json
from subtone.speech.front_end import MelFrontEnd
from subtone.speech.listening import StreamRecognizer, WholeEncoder
from subtone.speech.pieces import tokenizer_from_json
from subtone.speech.recognize import Logits, Recognizer
from subtone.speech.search import Search
from subtone.speech.text import Tokenizer
from subtone.speech.transducer_search import TransducerBeamSearch, TransducerGreedySearch

GREEDY = 0
"""The width of a beam that is none."""


@dataclasses.dataclass(frozen=True)
class Session:
    """What one packed file needs to turn sound into words, on this machine."""

    model: PackedModel
    recognizer: Recognizer | StreamRecognizer
    engine: Engine
    """Of `model.program`: the network, or a transducer's encoder."""

    @property
    def logits(self) -> Logits:
        """Features (T, F) in, logits (T', V) out: the network alone; of a transducer the encoder's rows."""
        return self.engine.run

    @classmethod
    def load(cls, path: Path | str, *, engine: str = "auto", threads: int = 0, beam: int = GREEDY) -> Session:
        """The session of the packed file at `path`.

        A CTC model that cannot stream is heard in windows (`Recognizer`); every other model is heard as the
        sound comes (`StreamRecognizer`).

        Args:
            engine: "native", "numpy" (the definition, slow), or "auto": native where it was built.
            threads: 0 takes every core this process may use.
            beam: hypotheses that the search of a streaming model or a transducer follows; 0 is greedy.

        Raises:
            PackedFileError: the file is not whole or not one of ours, or its front end, its
                program and its labels do not fit each other.
        """
        path = Path(path)
        return cls.of(read_packed(path), engine=engine, threads=threads, beam=beam, path=path)

    @classmethod
    def of(
        cls,
        model: PackedModel,
        *,
        engine: str = "auto",
        threads: int = 0,
        beam: int = GREEDY,
        path: Path | str = "the model",
    ) -> Session:
        """The session of a packed model in memory; as `load`, whose errors name `path`."""
        if beam < 0:
            raise ValueError(f"beam={beam} follows no hypothesis; use 1 or more, or 0 for greedy")
        load = functools.partial(load_engine, constants=model.constants, kind=engine, threads=threads)
        encoder = behind_doors(load(model.program))
        parts = {name: behind_doors(load(part)) for name, part in model.parts.items()}
        try:
            recognizer = _recognizer(model, encoder, parts, beam)
        except ValueError as error:
            raise PackedFileError(PackedFileReason.BAD_PROGRAM, str(error), path=path) from error
        if beam and isinstance(recognizer, Recognizer):
            raise ValueError(
                f"beam={beam} is for models that stream and for transducers; leave it out for {path}"
            )
        return cls(model, recognizer, encoder)

    def hear_file(self, path: Path | str) -> str:
        """The words in an audio file of any length."""
        return self.recognizer.hear_file(Path(path))


def _recognizer(
    model: PackedModel, encoder: Engine, parts: Mapping[str, Engine], beam: int
) -> Recognizer | StreamRecognizer:
    """ValueError where the front end or the labels are not as the program needs them."""
    program = model.program
    front_end, tokenizer = front_end_from_json(model.front_end), tokenizer_from_json(model.tokenizer)
    if front_end.num_features != program.input_width:
        raise ValueError(
            f"the front end gives num_features={front_end.num_features}, the program takes {program.input_width}"
        )
    if parts:
        return _transducer(encoder, parts, front_end, tokenizer, beam)
    _check_labels(tokenizer, program)
    can_stream = not program.obstacle and front_end.normalize != "per_feature"
    hears: dict[str, Any] = {
        "front_end": front_end,
        "tokenizer": tokenizer,
        "frames_per_step": program.frames_per_step,
    }
    if not can_stream:
        return Recognizer(**hears, logits=encoder.run)
    labels = {"num_labels": program.output_width, "blank_index": tokenizer.blank_index}
    return StreamRecognizer(
        **hears,
        encoder=encoder,
        new_search=lambda: CtcBeamSearch(**labels, beam=beam) if beam else CtcGreedySearch(**labels),
    )


def _check_labels(tokenizer: Tokenizer, program: Program) -> None:
    if tokenizer.blank_index + 1 != program.output_width:
        raise ValueError(
            f"{len(tokenizer.labels)} labels and the blank do not fit the program's {program.output_width} outputs"
        )


PASS = ("predictor", "joiner")
CASCADE = (*PASS, "encoder2", "predictor2", "joiner2")


def _transducer(
    encoder: Engine, parts: Mapping[str, Engine], front_end: MelFrontEnd, tokenizer: Tokenizer, beam: int
) -> StreamRecognizer:
    if set(parts) not in (set(PASS), set(CASCADE)):
        raise ValueError(
            f"the file has the parts {', '.join(sorted(parts))}; a transducer has {' and '.join(PASS)}, a cascade "
            "encoder2, predictor2 and joiner2 too"
        )
    program, width = encoder.program, parts["joiner"].program.input_width
    first, second = _pass(parts, "", tokenizer), None
    if "encoder2" in parts:
        second, rows = _pass(parts, "2", tokenizer), parts["encoder2"].program
        _require_width("encoder2", rows, parts["joiner2"].program.input_width)
        _require_width("the encoder", program, width + rows.input_width)
    else:
        _require_width("the encoder", program, width)

    def search_of(model: PackedTransducer) -> Search:
        return TransducerBeamSearch(model, beam=beam) if beam else TransducerGreedySearch(model)

    def new_search() -> Search | CascadeSearch:
        if second is None:
            return search_of(first)
        return CascadeSearch(search_of(first), parts["encoder2"], search_of(second), joint_width=width)

    can_stream = not program.obstacle and front_end.normalize != "per_feature"
    whole = WholeEncoder(encoder.run, width=program.output_width)
    return StreamRecognizer(
        front_end=front_end,
        tokenizer=tokenizer,
        encoder=whole if program.obstacle else encoder,
        new_search=new_search,
        frames_per_step=program.frames_per_step,
        can_stream=can_stream,
    )


def _pass(parts: Mapping[str, Engine], suffix: str, tokenizer: Tokenizer) -> PackedTransducer:
    """The predictor and the joiner of one pass; ValueError unless they fit each other and the labels."""
    predictor, joiner = (parts[f"{name}{suffix}"] for name in PASS)
    _check_labels(tokenizer, joiner.program)
    width = joiner.program.input_width
    if list(joiner.program.inputs.values()) != [width, width]:
        raise ValueError(
            f"joiner{suffix} takes rows of {list(joiner.program.inputs.values())}; it must take two of one width"
        )
    _require_width(f"predictor{suffix}", predictor.program, width)
    if list(predictor.program.inputs.values()) != [1]:
        raise ValueError(
            f"predictor{suffix} takes {list(predictor.program.inputs.values())} columns; a label is one"
        )
    first_row, _ = predictor.step(predictor.start(), np.full((1, 1), tokenizer.blank_index, np.float32))
    if len(first_row) != 1:
        raise ValueError(f"predictor{suffix} gives {len(first_row)} rows for a label; it must give one")
    return PackedTransducer(predictor, joiner)


def _require_width(name: str, program: Program, width: int) -> None:
    if program.output_width != width:
        raise ValueError(f"{name} gives rows of {program.output_width}; what reads them takes {width}")
