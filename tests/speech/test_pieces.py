"""Text in pieces of words and back: the best cut, files, and what is refused."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from subtone.speech import CharTokenizer, PieceTokenizer, tokenizer_from_json
from subtone.speech.text import reference_of

SCORES = {
    "_": -2.5,
    "a": -3.0,
    "b": -3.25,
    "'": -6.0,
    "ab": -4.5,
    "_a": -4.0,
    "ba": -6.5,
    "_ab": -5.0,
    "b'a": -9.0,
}
PIECES = PieceTokenizer(tuple(label.replace("_", "\u2581") for label in SCORES), tuple(SCORES.values()))


def best_cut(tokenizer: PieceTokenizer, written: str) -> float:
    """The highest sum of scores of all cuts into pieces, by trying each first piece."""
    if not written:
        return 0.0
    return max(
        score + best_cut(tokenizer, written[len(label) :])
        for label, score in zip(tokenizer.labels, tokenizer.scores, strict=True)
        if written.startswith(label)
    )


@given(st.text(alphabet="ab' ", max_size=8))
def test_encoding_finds_the_best_of_all_cuts(text):
    found = sum(PIECES.scores[index] for index in PIECES.encode(text))
    expected = best_cut(PIECES, "\u2581" + text.replace(" ", "\u2581")) if text else 0.0
    assert found == pytest.approx(expected, abs=1e-12)


@given(st.text(alphabet="ab' "))
def test_decoding_undoes_encoding(text):
    assert PIECES.decode(PIECES.encode(text)) == text


@given(st.lists(st.integers(0, 8)))
def test_any_labels_spell_a_text_that_can_be_encoded(indices):
    text = PIECES.decode(np.array(indices, np.int64))
    assert PIECES.decode(PIECES.encode(text)) == text


def test_of_equally_good_cuts_the_last_piece_is_the_longest():
    tied = PieceTokenizer(("\u2581", "a", "aa"), (-1.0, -2.0, -2.0))
    assert tied.encode("aaa") == [0, 1, 2]


def test_the_blank_comes_after_the_last_piece_and_spells_nothing():
    assert PIECES.blank_index == len(SCORES)
    message = "label=9 is none of 9 labels; drop blanks before, and use 0 to 8"
    with pytest.raises(ValueError, match=message):
        PIECES.decode([0, PIECES.blank_index])
    for tokenizer in (PIECES, CharTokenizer(("a", "b"))):
        with pytest.raises(ValueError, match="label=-1 is none of"):
            tokenizer.decode([-1])


def test_a_text_that_pieces_cannot_spell_is_the_error_of_characters():
    characters = CharTokenizer((" ", "a", "b", "'"))
    assert PIECES.alphabet == characters.alphabet
    messages = []
    for tokenizer in (PIECES, characters):
        with pytest.raises(ValueError, match="character '7' of 'a 7' is no label; normalize") as caught:
            tokenizer.encode("a 7")
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    with pytest.raises(ValueError, match="character '\u2581' of"):
        PIECES.encode("a\u2581b")


@given(st.text())
def test_text_is_normalized_as_by_characters(text):
    normalized = PIECES.normalize(text)
    assert normalized == CharTokenizer((" ", "a", "b", "'")).normalize(text)
    assert PIECES.decode(PIECES.encode(normalized)) == normalized


def test_a_reference_in_pieces_names_its_file_where_digits_would_be_lost():
    assert reference_of("B\u00e1  b\u2019A!", PIECES, "a.wav") == "ba b'a"
    with pytest.raises(ValueError, match=r"^a\.wav: text='a 7' holds digits, which the model cannot spell"):
        reference_of("a 7", PIECES, "a.wav")


@pytest.mark.parametrize("tokenizer", [PIECES, CharTokenizer((" ", "a"))], ids=["pieces", "characters"])
def test_json_gives_the_same_tokenizer_back(tokenizer):
    assert tokenizer_from_json(json.loads(json.dumps(tokenizer.to_json()))) == tokenizer


WHOLE = {"kind": "pieces", "labels": ["\u2581", "a"], "scores": [-1.0, -2]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": None}, "the tokenizer's scores are not a list"),
        ({"labels": "\u2581a"}, "the tokenizer's labels are not a list"),
        ({"model": ""}, "a tokenizer of pieces needs the keys kind, labels and scores"),
        ({"labels": [], "scores": []}, "labels are not a tuple of pieces"),
        ({"labels": ["\u2581", 1]}, "label 1 is not a piece"),
        ({"labels": ["\u2581", ""]}, "label '' is not a piece"),
        ({"labels": ["\u2581", " a"]}, "label ' a' is not a piece: characters, a space as '\u2581'"),
        ({"labels": ["\u2581", "\u2581"]}, "labels repeat the piece '\u2581'"),
        (
            {"labels": ["\u2581", "ab"]},
            r"characters \['a', 'b'\] of pieces are no pieces themselves; add them",
        ),
        ({"labels": ["a", "b"]}, r"characters \['\u2581'\] of pieces are no pieces themselves"),
        ({"scores": [-1.0]}, "scores are not a tuple of 2 numbers, one a piece"),
        ({"scores": [-1.0, math.nan]}, "score=nan of the piece 'a' is not a finite number"),
        ({"scores": [-1.0, True]}, "score=True of the piece 'a' is not a finite number"),
        ({"scores": [-1.0, "x"]}, "score='x' of the piece 'a' is not a finite number"),
        ({"kind": "tones"}, "the tokenizer needs the keys kind and labels"),
    ],
)
def test_a_tokenizer_that_cannot_be_is_refused(changes, message):
    assert tokenizer_from_json(WHOLE).labels == ("\u2581", "a")
    with pytest.raises(ValueError, match=message):
        tokenizer_from_json({**WHOLE, **changes})


def test_a_document_that_is_none_or_of_another_kind_is_refused():
    for document in ([], {}, None):
        with pytest.raises(ValueError, match="needs the keys kind and labels"):
            tokenizer_from_json(document)
    with pytest.raises(ValueError, match="the tokenizer's kind='tones' is unknown"):
        tokenizer_from_json({"kind": "tones", "labels": ["a"]})
    with pytest.raises(ValueError, match="the tokenizer's kind='characters' is not 'pieces'"):
        PieceTokenizer.from_json({**WHOLE, "kind": "characters"})
