"""Pieces learnt from texts: they cut as their trainer's own encoder does, and always the same."""

from __future__ import annotations

import json
import random
import struct

import pytest
import sentencepiece

from subtone.speech import PieceTokenizer, tokenizer_from_json
from subtone.train.pieces import learn_pieces

STEMS = (
    "walk",
    "talk",
    "open",
    "start",
    "turn",
    "look",
    "play",
    "want",
    "listen",
    "light",
    "night",
    "the",
    "and",
)
ENDINGS = ("", "", "s", "ed", "ing", "er", "'s", "n't")


def texts_of(seed: int, count: int = 200) -> list[str]:
    """Sentences of stems and endings."""
    drawn = random.Random(seed)
    return [
        " ".join(drawn.choice(STEMS) + drawn.choice(ENDINGS) for _ in range(drawn.randint(1, 12)))
        for _ in range(count)
    ]


TEXTS = texts_of(0)
CHARACTERS = {" ", *"".join(TEXTS)}


@pytest.fixture(scope="module")
def learnt() -> PieceTokenizer:
    return learn_pieces(TEXTS, num_pieces=60)


def test_there_are_as_many_pieces_as_asked_and_every_character_is_one(learnt):
    assert len(learnt.labels) == learnt.blank_index == 60
    assert set(learnt.alphabet) == CHARACTERS
    assert "<unk>" not in learnt.labels


def test_pieces_are_learnt_the_same_again_and_in_any_order(learnt):
    assert learn_pieces(reversed(TEXTS), num_pieces=60) == learnt


def test_texts_take_fewer_labels_than_characters_and_come_back(learnt):
    unseen = texts_of(1)
    num_labels = sum(len(learnt.encode(text)) for text in unseen)
    assert [learnt.decode(learnt.encode(text)) for text in unseen] == unseen
    assert num_labels < sum(map(len, unseen)) / 2


def test_apostrophes_join_the_letters_of_their_word(learnt):
    assert {"'s", "n't"} & set(learnt.labels)


def test_cuts_are_those_of_the_trainers_own_encoder(learnt, tmp_path):
    """Its encoder, given our pieces and scores as its vocabulary."""

    # A model file of sentencepiece is a protocol buffer; its fields are written here by hand.
    def field(number: int, data: bytes) -> bytes:
        assert len(data) < 2**14
        size = len(data)
        head = bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])
        return bytes([number << 3 | 2]) + head + data

    def piece(label: str, score: float, kind: int) -> bytes:
        return field(
            1,
            field(1, label.encode()) + bytes([2 << 3 | 5]) + struct.pack("<f", score) + bytes([3 << 3, kind]),
        )

    rows = zip(learnt.labels, learnt.scores, strict=True)
    proto = piece("<unk>", 0.0, 2) + b"".join(piece(label, score, 1) for label, score in rows)
    proto += field(2, bytes([3 << 3, 1]))  # trainer: a unigram model
    proto += field(3, field(1, b"identity") + bytes([4 << 3, 0]))  # normalizer: leave spaces
    theirs = sentencepiece.SentencePieceProcessor(model_proto=proto)
    for text in [*TEXTS, *texts_of(1), " the  a ", "nnn'", ""]:
        assert [index - 1 for index in theirs.encode(text)] == learnt.encode(text)


def test_a_long_text_is_not_left_out():
    long = " ".join(["quartz"] * 2000)
    assert {*"quartz"} <= set(learn_pieces([long, "a b"], num_pieces=9).alphabet)


def test_a_file_says_a_score_in_few_digits(learnt):
    document = json.dumps(learnt.to_json())
    assert tokenizer_from_json(json.loads(document)) == learnt
    assert len(document) < 30 * len(learnt.labels)


@pytest.mark.parametrize(
    ("texts", "num_pieces", "message"),
    [
        ([], 9, "texts are empty; learn pieces from the texts of the training data"),
        (["", ""], 9, "texts are empty"),
        (["ab\tc"], 9, r"character '\\t' cannot be in a piece; normalize the texts"),
        (["a\u2581c"], 9, "character '\u2581' cannot be in a piece"),
        (["\u2585", "a b"], 4, "character '\u2585' cannot be in a piece"),
        (TEXTS, 5, f"num_pieces=5 is too few for {len(CHARACTERS)} characters; use more"),
        (TEXTS, 5000, r"num_pieces=5000 is more than these texts give; use \d+ or fewer"),
    ],
)
def test_what_cannot_be_learnt_is_refused(texts, num_pieces, message):
    with pytest.raises(ValueError, match=message):
        learn_pieces(texts, num_pieces=num_pieces)


def test_as_many_pieces_as_the_refusal_names_can_be_learnt():
    with pytest.raises(ValueError, match="num_pieces=5000 is more") as caught:
        learn_pieces(TEXTS, num_pieces=5000)
    most = int(str(caught.value).split("use ")[1].split()[0])
    assert len(learn_pieces(TEXTS, num_pieces=most).labels) == most
