"""Characters and labels, and the count of wrong words."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from subtone.speech import CharTokenizer, WordErrors, word_errors
from subtone.speech.text import reference_of

ENGLISH = CharTokenizer(tuple(" abcdefghijklmnopqrstuvwxyz'"))
words = st.lists(st.sampled_from(["a", "b", "cd", "e'f"]), max_size=6)


@given(st.text(alphabet="".join(ENGLISH.labels)))
def test_decoding_undoes_encoding(text):
    assert ENGLISH.decode(ENGLISH.encode(text)) == text


def test_the_blank_comes_after_the_last_label():
    assert ENGLISH.blank_index == 28


def test_a_character_without_a_label_is_named():
    with pytest.raises(ValueError, match="character '7' of 'route 7' is no label; normalize"):
        ENGLISH.encode("route 7")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello,  World!", "hello world"),
        ("don\u2019t", "don't"),
        ("Ren\u00e9e", "renee"),
        ("Rene\u0301e", "renee"),
        ("\ufb01ne", "fine"),
        ("up-to-date", "up to date"),
        ("7 \u4f60", ""),
        ("", ""),
    ],
)
def test_text_is_normalized_to_the_labels(text, expected):
    assert ENGLISH.normalize(text) == expected


def test_a_reference_is_normalized_and_names_its_file_where_that_would_lose_a_digit():
    assert reference_of("Route  SEVEN!", ENGLISH, "a.wav") == "route seven"
    with_digits = CharTokenizer((*ENGLISH.labels, *"0123456789"))
    assert reference_of("Route 7", with_digits, "a.wav") == "route 7"
    for text in ("Route 7", "x\u00b2"):
        message = f"^x/a.wav: text={text!r} holds digits, which the model cannot spell; write numbers out"
        with pytest.raises(ValueError, match=message):
            reference_of(text, ENGLISH, Path("x/a.wav"))


def test_accents_and_case_stay_where_the_labels_have_them():
    german = CharTokenizer(tuple(" abcdefghijklmnopqrstuvwxyz\u00e4\u00f6\u00fc\u00df"))
    assert german.normalize("GR\u00d6\u00dfe u\u0308ber") == "gr\u00f6\u00dfe \u00fcber"
    assert CharTokenizer(tuple(" ABCDEFGHIJKLMNOPQRSTUVWXYZ")).normalize("Yes, no") == "YES NO"


@given(st.text())
def test_normalized_text_can_be_encoded_and_stays_as_it_is(text):
    normalized = ENGLISH.normalize(text)
    ENGLISH.encode(normalized)
    assert ENGLISH.normalize(normalized) == normalized


def test_json_gives_the_same_tokenizer_back():
    assert CharTokenizer.from_json(json.loads(json.dumps(ENGLISH.to_json()))) == ENGLISH


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "needs the keys kind and labels"),
        ({"kind": "characters"}, "needs the keys kind and labels"),
        ({"kind": "characters", "labels": ["a"], "blank": 1}, "needs the keys kind and labels"),
        ({"kind": "pieces", "labels": ["a"]}, "kind='pieces' is unknown"),
        ({"kind": "characters", "labels": "ab"}, "labels are not a list"),
        ({"kind": "characters", "labels": []}, "labels are not a tuple of characters"),
        ({"kind": "characters", "labels": ["a", "bc"]}, "label 'bc' is not one character"),
        ({"kind": "characters", "labels": ["a", 1]}, "label 1 is not one character"),
        ({"kind": "characters", "labels": ["a", "a"]}, "repeat a character"),
    ],
)
def test_a_tokenizer_that_cannot_be_is_refused(document, message):
    with pytest.raises(ValueError, match=message):
        CharTokenizer.from_json(document)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("a b c", "a b c", (0, 0, 0, 3)),
        ("a b c", "a x c", (1, 0, 0, 3)),
        ("a b c", "a c", (0, 0, 1, 3)),
        ("a c", "a b c", (0, 1, 0, 2)),
        ("", "", (0, 0, 0, 0)),
        ("", "a b", (0, 2, 0, 0)),
        ("a b", "", (0, 0, 2, 2)),
        ("  ", "a", (0, 1, 0, 0)),
        (" a  b\t", "a b", (0, 0, 0, 2)),
    ],
)
def test_word_errors_are_counted_by_kind(reference, hypothesis, expected):
    substitutions, insertions, deletions, num_words = expected
    assert word_errors(reference, hypothesis) == WordErrors(
        substitutions=substitutions, insertions=insertions, deletions=deletions, words=num_words
    )


def edit_distance(left: list[str], right: list[str]) -> int:
    """Levenshtein's distance by its recurrence."""
    previous = list(range(len(right) + 1))
    for row, one in enumerate(left, 1):
        current = [row]
        for column, other in enumerate(right, 1):
            current.append(min(previous[column] + 1, current[-1] + 1, previous[column - 1] + (one != other)))
        previous = current
    return previous[-1]


@given(words, words)
def test_word_errors_are_the_edit_distance(reference, hypothesis):
    found = word_errors(" ".join(reference), " ".join(hypothesis))
    assert found.errors == edit_distance(reference, hypothesis)
    assert found.words == len(reference)
    assert found.insertions - found.deletions == len(hypothesis) - len(reference)


def test_word_errors_add_up_and_have_a_rate():
    total = sum([word_errors("a b c d", "a b"), word_errors("a", "b c")], WordErrors())
    assert total == WordErrors(substitutions=1, insertions=1, deletions=2, words=5)
    assert total.rate == 4 / 5
    assert WordErrors().rate == 0
    assert math.isinf(word_errors("", "a").rate)
