"""A packed file, ready to hear: `Session.load("model.subtone").hear_file("a.wav")`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from subtone.pack import PackedFileError, PackedFileReason, PackedModel, read_packed
from subtone.program import Program
from subtone.runtime.engine import Engine, load_engine
from subtone.runtime.transducer import CascadeSearch, PackedTransducer
from subtone.speech.ctc_search import CtcGreedySearch
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
            beam: hypotheses that a transducer's search follows; 0 is greedy.

        Raises:
            PackedFileError: the file is not whole or not one of ours, or its front end, its
                program and its labels do not fit each other.
        """
        model = read_packed(Path(path))
        load = functools.partial(load_engine, constants=model.constants, kind=engine, threads=threads)
        encoder = load(model.program)
        parts = {name: load(part) for name, part in model.parts.items()}
        try:
            recognizer = _recognizer(model, encoder, parts, beam)
        except ValueError as error:
            raise PackedFileError(PackedFileReason.BAD_PROGRAM, str(error), path=path) from error
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
    hears: dict[str, Any] = {
        "front_end": front_end,
        "tokenizer": tokenizer,
        "frames_per_step": program.frames_per_step,
    }
    if program.obstacle or front_end.normalize == "per_feature":
        return Recognizer(**hears, logits=encoder.run)
    num_labels, blank_index = program.output_width, tokenizer.blank_index
    return StreamRecognizer(
        **hears,
        encoder=encoder,
        new_search=lambda: CtcGreedySearch(num_labels=num_labels, blank_index=blank_index),
    )


def _check_labels(tokenizer: Tokenizer, program: Program) -> None:
    if tokenizer.blank_index + 1 != program.output_width:
        raise ValueError(
            f"{len(tokenizer.labels)} labels and the blank do not fit the program's {program.output_width} outputs"
        )


def _transducer(
    encoder: Engine, parts: Mapping[str, Engine], front_end: MelFrontEnd, tokenizer: Tokenizer, beam: int
) -> StreamRecognizer:
    predictor, joiner = _part(parts, "predictor"), _part(parts, "joiner")
    _check_labels(tokenizer, joiner.program)
    program, width = encoder.program, joiner.program.input_width
    second = None
    if "encoder2" in parts:
        second = PackedTransducer(_part(parts, "predictor2"), _part(parts, "joiner2"))
    expected = width + (parts["encoder2"].program.input_width if second else 0)
    if not (width == predictor.program.output_width and program.output_width == expected):
        raise ValueError(
            f"the joiner takes rows of {width}; the encoder's are {program.output_width} wide, the predictor's "
            f"{predictor.program.output_width}"
        )
    first = PackedTransducer(predictor, joiner)

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


def _part(parts: Mapping[str, Engine], name: str) -> Engine:
    if name not in parts:
        raise ValueError(f"the file has no part {name}; a transducer needs a predictor and a joiner")
    return parts[name]
