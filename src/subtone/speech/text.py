"""Words as labels and back, and how many words are wrong."""

from __future__ import annotations

import dataclasses
import os
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Protocol

import jiwer


class Tokenizer(Protocol):
    """Text to labels and back: `CharTokenizer`, `PieceTokenizer`. The blank comes after the last label."""

    @property
    def labels(self) -> tuple[str, ...]:
        """What each label stands for."""

    @property
    def blank_index(self) -> int: ...

    @property
    def alphabet(self) -> tuple[str, ...]:
        """The characters that a text may have."""

    def encode(self, text: str) -> list[int]:
        """The labels of `text`; ValueError at a character outside the alphabet."""

    def decode(self, indices: Iterable[int]) -> str:
        """The text of label indices; ValueError at the blank and beyond."""

    def normalize(self, text: str) -> str:
        """`text` in the alphabet."""

    def to_json(self) -> dict: ...


@dataclasses.dataclass(frozen=True)
class CharTokenizer:
    """One label a character; the CTC blank comes after the last label.

    >>> tokenizer = CharTokenizer((" ", "a", "b"))
    >>> tokenizer.encode("a b"), tokenizer.decode([1, 0, 2]), tokenizer.blank_index
    ([1, 0, 2], 'a b', 3)
    """

    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        _require(
            isinstance(self.labels, tuple) and len(self.labels) > 0, "labels are not a tuple of characters"
        )
        for label in self.labels:
            _require(isinstance(label, str) and len(label) == 1, f"label {label!r} is not one character")
        _require(len(set(self.labels)) == len(self.labels), f"labels {self.labels} repeat a character")

    @property
    def blank_index(self) -> int:
        return len(self.labels)

    @property
    def alphabet(self) -> tuple[str, ...]:
        return self.labels

    def encode(self, text: str) -> list[int]:
        """Label of each character; ValueError at one that has none (see `normalize`)."""
        check_alphabet(text, self.labels)
        index_of = {label: index for index, label in enumerate(self.labels)}
        return [index_of[character] for character in text]

    def decode(self, indices: Iterable[int]) -> str:
        """The characters of label indices; ValueError at the blank and beyond."""
        return spelled(self.labels, indices)

    def normalize(self, text: str) -> str:
        """`text` in these labels: lower case and without accents where the labels lack them.

        What they cannot spell becomes a space, spaces are joined. Write numbers out first: a
        digit without a label is lost.

        >>> CharTokenizer(tuple(" abcdefghijklmnopqrstuvwxyz'")).normalize("Don\u2019t  stop, Ren\u00e9e!")
        "don't stop renee"
        """
        return normalized(text, self.labels)

    def to_json(self) -> dict:
        return {"kind": "characters", "labels": list(self.labels)}

    @classmethod
    def from_json(cls, document: Mapping) -> CharTokenizer:
        """The tokenizer a file describes; ValueError on anything else."""
        _require(
            isinstance(document, Mapping) and set(document) == {"kind", "labels"},
            f"the tokenizer needs the keys kind and labels, not {document!r:.80}",
        )
        _require(document["kind"] == "characters", f"the tokenizer's kind={document['kind']!r} is unknown")
        _require(isinstance(document["labels"], list), "the tokenizer's labels are not a list")
        return cls(tuple(document["labels"]))


def check_alphabet(text: str, alphabet: Collection[str]) -> None:
    """ValueError at a character that no label can spell."""
    for character in text:
        if character not in alphabet:
            raise ValueError(
                f"character {character!r} of {text!r:.60} is no label; normalize the text or "
                f"leave the utterance out (labels: {''.join(alphabet)!r})"
            )


def spelled(labels: Sequence[str], indices: Iterable[int]) -> str:
    """What label indices spell; ValueError at one that is no label.

    >>> spelled(("a", "b"), [1, 0])
    'ba'
    """
    found = []
    for index in indices:
        if not 0 <= index < len(labels):
            raise ValueError(
                f"label={index} is none of {len(labels)} labels; drop blanks before, and use 0 to {len(labels) - 1}"
            )
        found.append(labels[index])
    return "".join(found)


def normalized(text: str, alphabet: Collection[str]) -> str:
    """`text` in the characters of `alphabet`, as `CharTokenizer.normalize` says."""
    composed = unicodedata.normalize("NFC", text).replace("\u2019", "'")
    return " ".join("".join(_spell(character, alphabet) for character in composed).split())


def _spell(character: str, alphabet: Collection[str]) -> str:
    """`character` in the alphabet: as it is, in the other case, or its parts without accents."""
    for candidate in (character, character.lower(), character.upper()):
        if candidate in alphabet:
            return candidate
    parts = [part for part in unicodedata.normalize("NFKD", character) if not unicodedata.combining(part)]
    return " " if parts == [character] else "".join(_spell(part, alphabet) for part in parts)


def reference_of(text: str, tokenizer: Tokenizer, audio_path: str | os.PathLike) -> str:
    """What was said in `audio_path`, in the tokenizer's labels: what is learnt and what is scored.

    ValueError at a digit that the labels lack: `normalize` would drop it, which changes what is right.

    >>> reference_of("It's FIVE o'clock.", CharTokenizer(tuple(" abcdefghijklmnopqrstuvwxyz'")), "a.wav")
    "it's five o'clock"
    """
    if any(character.isdigit() and character not in tokenizer.alphabet for character in text):
        raise ValueError(
            f"{os.fspath(audio_path)}: text={text!r:.60} holds digits, which the model cannot spell; "
            "write numbers out in the manifest"
        )
    return tokenizer.normalize(text)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WordErrors:
    """How many words were exchanged, put in and left out, of how many in the reference.

    >>> word_errors("a b c", "a x") + word_errors("", "y")
    WordErrors(substitutions=1, insertions=1, deletions=1, words=3)
    """

    substitutions: int = 0
    insertions: int = 0
    deletions: int = 0
    words: int = 0

    @property
    def errors(self) -> int:
        return self.substitutions + self.insertions + self.deletions

    @property
    def rate(self) -> float:
        """Errors per reference word; without any words 0 if there are no errors, else infinite."""
        if self.words:
            return self.errors / self.words
        return float("inf") if self.errors else 0.0

    def __add__(self, other: WordErrors) -> WordErrors:
        mine, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        return WordErrors(**{name: mine[name] + theirs[name] for name in mine})


def word_errors(reference: str, hypothesis: str) -> WordErrors:
    """Fewest word changes that turn `reference` into `hypothesis`, words as they are spelt.

    Both are split at white space; an empty reference makes every word of the hypothesis an
    insertion, an empty hypothesis every word of the reference a deletion.
    """
    reference, hypothesis = (" ".join(text.split()) for text in (reference, hypothesis))
    counts = jiwer.process_words(reference, hypothesis)
    return WordErrors(
        substitutions=counts.substitutions,
        insertions=counts.insertions,
        deletions=counts.deletions,
        words=len(reference.split()),
    )


def _require(holds: bool, complaint: str) -> None:
    if not holds:
        raise ValueError(complaint)
