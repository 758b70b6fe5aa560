"""What stands before and behind a network in a run: a front end and labels, as a recipe asks for them.

    num_pieces = 100            # labels; left out: the letters of English

    [front_end]
    kind = "fbank"              # or "log_mel"; every other key is a field of that front end
    num_mels = 40
    stack = 3
    stride = 3
    normalize = "causal"        # or "none", "per_feature", "global"

"global" and "causal" need the mean and deviation of every feature: those of the training data are measured
before the run, over utterances evenly spread. A run's digest holds the front end, and so the numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from subtone.speech.audio import read_audio
from subtone.speech.data import Utterance, spread
from subtone.speech.features import FRONT_ENDS, FrontEnd
from subtone.speech.front_end import MelFrontEnd
from subtone.speech.normalize import BY_NAME, CausalNormalize, GlobalNormalize, statistics_of
from subtone.speech.text import CharTokenizer, Tokenizer, reference_of
from subtone.train.pieces import learn_pieces

ENGLISH = CharTokenizer(tuple(" abcdefghijklmnopqrstuvwxyz'"))
MEASURED = ("global", "causal")
"""Ways to normalize whose numbers are measured."""
NUM_MEASURED = 200
"""Utterances whose features are measured."""


def check_front_end(table: Mapping[str, Any]) -> None:
    """ValueError unless a front end can be made of `table`.

    >>> check_front_end({"kind": "fbank", "stack": 3, "stride": 4})
    Traceback (most recent call last):
    ValueError: front_end: stride=4 must lie in 1..3: a larger one skips frames between rows of stack=3
    """
    _plain(table)


def front_end_of(table: Mapping[str, Any], train: Sequence[Utterance]) -> MelFrontEnd:
    """The front end that `table` describes; its statistics, if it has any, are those of `train`."""
    plain, normalize = _plain(table), table.get("normalize")
    if normalize not in MEASURED:
        return plain
    fields = {name: value for name, value in plain.to_json().items() if name != "kind"}
    frames = type(plain)(**{**fields, "stack": 1, "stride": 1})
    heard = (read_audio(one.audio_path, plain.rate_hz) for one in spread(train, NUM_MEASURED))
    mean, deviation = statistics_of(frames(samples) for samples in heard)
    if normalize == "global":
        measured: Any = GlobalNormalize(mean=mean, deviation=deviation)
    else:
        measured = CausalNormalize(mean=mean, deviation=deviation, **_prior(table))
    return type(plain)(**{**fields, "normalize": measured})


def tokenizer_of(num_pieces: int | None, train: Sequence[Utterance]) -> Tokenizer:
    """The letters of English, or `num_pieces` pieces of words learnt from the texts of `train`."""
    if num_pieces is None:
        return ENGLISH
    return learn_pieces(
        (reference_of(one.text, ENGLISH, one.audio_path) for one in train), num_pieces=num_pieces
    )


def _plain(table: Mapping[str, Any]) -> MelFrontEnd:
    """The front end of `table`; what is to be measured is "none" in it."""
    kind = table.get("kind", FrontEnd.kind)
    if not isinstance(kind, str) or kind not in FRONT_ENDS:
        raise ValueError(f"front_end.kind={kind!r} is not a front end; use {' or '.join(FRONT_ENDS)}")
    fields = {name: value for name, value in table.items() if name not in ("kind", "prior_frames")}
    known = sorted({"prior_frames", *(field.name for field in dataclasses.fields(FRONT_ENDS[kind]))})
    known.remove("normalize")
    for name in fields:
        if name not in ("normalize", *known):
            raise ValueError(
                f"front_end.{name}={table[name]!r} is not a key of {kind!r}; use one of kind, normalize, "
                f"{', '.join(known)}"
            )
    normalize = fields.get("normalize")
    if normalize is not None and normalize not in (*BY_NAME, *MEASURED):
        raise ValueError(
            f"front_end.normalize={normalize!r} is not known; use one of {', '.join((*BY_NAME, *MEASURED))}"
        )
    if "prior_frames" in table:
        if normalize != "causal":
            raise ValueError(
                f"front_end.prior_frames={table['prior_frames']!r} has no effect with normalize={normalize!r}; "
                "use normalize='causal'"
            )
        CausalNormalize(**_prior(table))
    if normalize in MEASURED:
        fields["normalize"] = "none"
    try:
        return FRONT_ENDS[kind](**fields)
    except ValueError as error:
        raise ValueError(f"front_end: {error}") from error


def _prior(table: Mapping[str, Any]) -> dict[str, Any]:
    return {name: table[name] for name in ("prior_frames",) if name in table}
