"""A packed file, ready to hear: `Session.load("model.subtone").hear_file("a.wav")`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from subtone.pack import PackedModel, read_packed
from subtone.runtime.engine import load_engine
from subtone.speech.features import FrontEnd
from subtone.speech.recognize import Logits, Recognizer
from subtone.speech.text import CharTokenizer


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
            PackedFileError: the file is not whole or not one of ours.
        """
        model = read_packed(Path(path))
        runner = load_engine(model.program, model.constants, kind=engine, threads=threads)
        recognizer = Recognizer(
            front_end=FrontEnd.from_json(model.front_end),
            tokenizer=CharTokenizer.from_json(model.tokenizer),
            frames_per_step=model.program.frames_per_step,
            logits=runner.run,
        )
        return cls(model, recognizer)

    def hear_file(self, path: Path | str) -> str:
        """The words in an audio file of any length."""
        return self.recognizer.hear_file(Path(path))
