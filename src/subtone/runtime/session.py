"""A packed file, ready to hear: `Session.load("model.subtone").hear_file("a.wav")`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from subtone.pack import PackedFileError, PackedFileReason, PackedModel, read_packed
from subtone.runtime.engine import load_engine
from subtone.speech.features import front_end_from_json
from subtone.speech.pieces import tokenizer_from_json
from subtone.speech.recognize import Logits, Recognizer


@dataclasses.dataclass(frozen=True)
class Session:
    """What one packed file needs to turn sound into words, on this machine."""

    model: PackedModel
    recognizer: Recognizer

    @property
    def logits(self) -> Logits:
        """Features (T, F) in, logits (T', V) out: the network alone."""
        return self.recognizer.logits

    @classmethod
    def load(cls, path: Path | str, *, engine: str = "auto", threads: int = 0) -> Session:
        """The session of the packed file at `path`.

        Args:
            engine: "native", "numpy" (the definition, slow), or "auto": native where it was built.
            threads: 0 takes every core this process may use.

        Raises:
            PackedFileError: the file is not whole or not one of ours, or its front end, its
                program and its labels do not fit each other.
        """
        model = read_packed(Path(path))
        runner = load_engine(model.program, model.constants, kind=engine, threads=threads)
        try:
            recognizer = _recognizer(model, runner.run)
        except ValueError as error:
            raise PackedFileError(PackedFileReason.BAD_PROGRAM, str(error), path=path) from error
        return cls(model, recognizer)

    def hear_file(self, path: Path | str) -> str:
        """The words in an audio file of any length."""
        return self.recognizer.hear_file(Path(path))


def _recognizer(model: PackedModel, logits: Logits) -> Recognizer:
    """ValueError where the front end or the labels are not as the program needs them."""
    program = model.program
    front_end, tokenizer = front_end_from_json(model.front_end), tokenizer_from_json(model.tokenizer)
    if front_end.num_features != program.input_width:
        raise ValueError(
            f"the front end gives num_features={front_end.num_features}, the program takes {program.input_width}"
        )
    if tokenizer.blank_index + 1 != program.output_width:
        raise ValueError(
            f"{len(tokenizer.labels)} labels and the blank do not fit the program's {program.output_width} outputs"
        )
    return Recognizer(
        front_end=front_end,
        tokenizer=tokenizer,
        frames_per_step=program.frames_per_step,
        logits=logits,
    )
