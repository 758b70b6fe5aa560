"""Pieces of words learnt from texts: a vocabulary for models that spell words in few labels.

`sentencepiece` learns them, a unigram model (Kudo 2018): it starts from the frequent parts of
words, and drops again and again those whose loss costs the texts' probability least. Byte pairs,
the other choice, are merged in an order that encoding must repeat; here the best cut is
one sum, so that `PieceTokenizer` needs nothing but pieces and scores.
"""

from __future__ import annotations

import io
from collections.abc import Iterable

import numpy as np
import sentencepiece

from subtone.speech.pieces import SPACE, PieceTokenizer

UNKNOWN = "\u2585"
"""sentencepiece's own mark; it leaves out, in silence, texts that have it."""


def learn_pieces(texts: Iterable[str], *, num_pieces: int) -> PieceTokenizer:
    """A tokenizer of `num_pieces` pieces that cut these texts best.

    The same texts, in any order, give the same pieces: one thread, no sampling.

    Args:
        texts: as `normalize` of an alphabet leaves them; empty ones do not count. Every
            character of them becomes a piece.
        num_pieces: labels without the blank, at least as many as there are characters.

    Raises:
        ValueError: no texts; a character that cannot be written; more or fewer pieces than
            these texts allow.
    """
    texts = sorted(filter(None, texts))
    if not texts:
        raise ValueError("texts are empty; learn pieces from the texts of the training data")
    alphabet = {" ", *"".join(texts)}
    for character in sorted(alphabet):
        if character in (SPACE, UNKNOWN) or not character.isprintable():
            raise ValueError(f"character {character!r} cannot be in a piece; normalize the texts")
    if num_pieces < len(alphabet):
        raise ValueError(
            f"num_pieces={num_pieces} is too few for {len(alphabet)} characters; use more, or texts of fewer"
        )
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="unigram",
        vocab_size=num_pieces + 1,  # its unknown piece, which we leave out
        hard_vocab_limit=False,  # else too few pieces are an error that is not ours
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_by_unicode_script=False,  # an apostrophe is of no script, and belongs to its word
        max_sentence_length=4 * max(map(len, texts)),  # bytes; longer ones would be left out in silence
        unk_id=0,
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    learnt = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    indices = range(1, learnt.get_piece_size())
    if len(indices) != num_pieces:
        raise ValueError(
            f"num_pieces={num_pieces} is more than these texts give; use {len(indices)} or fewer"
        )
    tokenizer = PieceTokenizer(
        tuple(learnt.id_to_piece(index) for index in indices),
        tuple(
            float(str(np.float32(learnt.get_score(index)))) for index in indices
        ),  # as few digits as say it
    )
    assert alphabet == set(tokenizer.alphabet)
    return tokenizer
