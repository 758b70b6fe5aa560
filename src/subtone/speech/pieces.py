"""Words in pieces: labels that are parts of words, and the way back to text.

A transducer over characters takes many steps a word; one over words cannot spell a new one. Pieces
lie between: common words are one label, rare ones several, and every character is a piece, so
that any text can be spelt. `subtone.train.pieces` learns them from texts; what it learns, pieces
and their scores, is all that is needed here, and all that a file holds.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping

from subtone.speech.text import CharTokenizer, Tokenizer, check_alphabet, normalized, spelled

SPACE = "\u2581"
"""Stands for a space, at the start of the piece that begins a word."""


@dataclasses.dataclass(frozen=True)
class PieceTokenizer:
    """One label a piece of a word; the blank comes after the last label.

    A text is cut where the sum of its pieces' scores is highest: the unigram model of Kudo 2018,
    Eq. 2 to 4, whose scores are logarithms of probabilities. Of equally good cuts the last piece
    is the longest.

    * `labels`: the pieces, no two equal, a space written as `SPACE`; every character of a piece is
      a piece too.
    * `scores`: one a piece, finite.

    >>> tokenizer = PieceTokenizer((SPACE, "a", "b", SPACE + "ab"), (-3.0, -2.0, -2.0, -1.0))
    >>> tokenizer.encode("ab ba"), tokenizer.decode([3, 0, 2, 1]), tokenizer.blank_index
    ([3, 0, 2, 1], 'ab ba', 4)
    """

    labels: tuple[str, ...]
    scores: tuple[float, ...]

    def __post_init__(self) -> None:
        if not (isinstance(self.labels, tuple) and len(self.labels) > 0):
            raise ValueError("labels are not a tuple of pieces")
        for label in self.labels:
            if not (isinstance(label, str) and label and " " not in label):
                raise ValueError(f"label {label!r} is not a piece: characters, a space as {SPACE!r}")
        if len(set(self.labels)) != len(self.labels):
            twice = next(label for label in self.labels if self.labels.count(label) > 1)
            raise ValueError(f"labels repeat the piece {twice!r}")
        missing = sorted({SPACE, *"".join(self.labels)} - set(self.labels))
        if missing:
            raise ValueError(f"characters {missing} of pieces are no pieces themselves; add them")
        if not (isinstance(self.scores, tuple) and len(self.scores) == len(self.labels)):
            raise ValueError(f"scores are not a tuple of {len(self.labels)} numbers, one a piece")
        for label, score in zip(self.labels, self.scores, strict=True):
            if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
                raise ValueError(f"score={score!r} of the piece {label!r} is not a finite number")

    @property
    def blank_index(self) -> int:
        return len(self.labels)

    @functools.cached_property
    def alphabet(self) -> tuple[str, ...]:
        """The characters that a text may have."""
        return tuple(label.replace(SPACE, " ") for label in self.labels if len(label) == 1)

    def encode(self, text: str) -> list[int]:
        """Labels of the best cut of `text`; ValueError at a character that has none (see `normalize`)."""
        check_alphabet(text, self.alphabet)
        if not text:
            return []
        written = (" " + text).replace(" ", SPACE)
        best = [0.0] + [-math.inf] * len(written)  # of each start of the text
        last = [0] * (len(written) + 1)  # the label that ends it
        for end in range(1, len(written) + 1):
            for start in range(max(0, end - self._longest), end):
                index = self._index_of.get(written[start:end])
                if index is not None and best[start] + self.scores[index] > best[end]:
                    best[end], last[end] = best[start] + self.scores[index], index
        found, end = [], len(written)
        while end:
            found.append(last[end])
            end -= len(self.labels[last[end]])
        return found[::-1]

    def decode(self, indices: Iterable[int]) -> str:
        """The text of label indices; ValueError at the blank and beyond."""
        return spelled(self.labels, indices).replace(SPACE, " ").removeprefix(" ")

    def normalize(self, text: str) -> str:
        """`text` in the characters of these pieces, as `CharTokenizer.normalize`."""
        return normalized(text, self.alphabet)

    def to_json(self) -> dict:
        return {"kind": "pieces", "labels": list(self.labels), "scores": list(self.scores)}

    @classmethod
    def from_json(cls, document: Mapping) -> PieceTokenizer:
        """The tokenizer a file describes; ValueError on anything else."""
        if not (isinstance(document, Mapping) and set(document) == {"kind", "labels", "scores"}):
            raise ValueError(
                f"a tokenizer of pieces needs the keys kind, labels and scores, not {document!r:.80}"
            )
        if document["kind"] != "pieces":
            raise ValueError(f"the tokenizer's kind={document['kind']!r} is not 'pieces'")
        for name in ("labels", "scores"):
            if not isinstance(document[name], list):
                raise ValueError(f"the tokenizer's {name} are not a list")
        return cls(tuple(document["labels"]), tuple(document["scores"]))

    @functools.cached_property
    def _index_of(self) -> dict[str, int]:
        return {label: index for index, label in enumerate(self.labels)}

    @functools.cached_property
    def _longest(self) -> int:
        return max(map(len, self.labels))


def tokenizer_from_json(document: Mapping) -> Tokenizer:
    """The tokenizer a file describes, of the kind it names; ValueError on anything else.

    >>> tokenizer_from_json({"kind": "characters", "labels": [" ", "a"]}).decode([1, 0, 1])
    'a a'
    """
    if isinstance(document, Mapping) and document.get("kind") == "pieces":
        return PieceTokenizer.from_json(document)
    return CharTokenizer.from_json(document)
