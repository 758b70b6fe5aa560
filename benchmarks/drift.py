"""Whether the tenth minute of a stream is heard as if it came first: word errors by the minute.

    .venv/bin/python benchmarks/drift.py rnnt.subtone --manifest demo/corpus/test

Utterances of a manifest, in an order drawn for each stream, half a second of silence behind each, are joined to ten
minutes and heard in chunks of 100 ms. A minute's words are the labels between the start of its first utterance and
that of the next minute's. The last minute is also heard alone, by a stream that begins with it, and its utterances
one by one: the first comparison is what nine minutes before cost, the second what joining costs.
One document in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from subtone.files import write_text
from subtone.report.machine import machine
from subtone.runtime.session import Session
from subtone.speech.audio import read_audio
from subtone.speech.data import Utterance, read_manifest
from subtone.speech.listening import StreamRecognizer
from subtone.speech.text import WordErrors, word_errors

ROOT = Path(__file__).resolve().parents[1]
MINUTES, CHUNK_S, PAUSE_S = 10, 0.1, 0.5


class Minute(NamedTuple):
    """The utterances that start in it, and where in the stream the first of them does."""

    start: int
    utterances: list[Utterance]

    @property
    def text(self) -> str:
        return " ".join(one.text for one in self.utterances)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+", help="packed files that stream")
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--streams", type=int, default=10)
    arguments = parser.parse_args()
    utterances = read_manifest(arguments.manifest)
    document = {
        "what": "ten minutes of joined utterances streamed in chunks of 100 ms; word errors by the minute",
        "date": date.today().isoformat(),
        "machine": machine(),
        "pause_s": PAUSE_S,
        "streams": arguments.streams,
        "utterances": len(utterances),
        "rows": [measure(file, utterances, arguments.streams) for file in arguments.files],
    }
    name = f"{document['date']}_{document['machine']['commit']}_drift.json"
    write_text(ROOT / "benchmarks" / "results" / name, json.dumps(document, indent=1) + "\n")


def measure(file: Path, utterances: Sequence[Utterance], num_streams: int) -> dict[str, Any]:
    """Errors of all streams together: of every minute, and of the last one heard in three ways."""
    recognizer = Session.load(file, threads=1).recognizer
    if not getattr(recognizer, "can_stream", False):
        raise ValueError(f"{file} hears whole utterances; give a model that streams")
    minutes = [WordErrors()] * MINUTES
    first, one_by_one, changed, num_same = WordErrors(), WordErrors(), WordErrors(), 0
    for seed in range(num_streams):
        sound, parts = stream_of(utterances, recognizer.front_end.rate_hz, seed)
        heard = heard_by_minute(recognizer, sound, parts)
        minutes = [
            errors + word_errors(part.text, words)
            for errors, part, words in zip(minutes, parts, heard, strict=True)
        ]
        last = parts[-1]
        (alone,) = heard_by_minute(recognizer, sound[last.start :], [last._replace(start=0)])
        first += word_errors(last.text, alone)
        changed += word_errors(alone, heard[-1])
        num_same += alone == heard[-1]
        for one in last.utterances:
            words = recognizer.hear(read_audio(one.audio_path, recognizer.front_end.rate_hz))
            one_by_one += word_errors(one.text, words)
    row = {
        "model": file.stem,
        "file_bytes": file.stat().st_size,
        "minutes_wer_percent": [percent(errors) for errors in minutes],
        "last_minute": {
            "words": minutes[-1].words,
            "after_nine_wer_percent": percent(minutes[-1]),
            "first_wer_percent": percent(first),
            "one_by_one_wer_percent": percent(one_by_one),
            "words_changed_percent": percent(changed),
            "streams_unchanged": num_same,
        },
    }
    print(json.dumps(row), flush=True)
    return row


def percent(errors: WordErrors) -> float:
    return round(100 * errors.rate, 2)


def stream_of(
    utterances: Sequence[Utterance], rate_hz: int, seed: int
) -> tuple[NDArray[np.float32], list[Minute]]:
    """Ten minutes of sound, and which utterances start in each; where there are too few they come again."""
    draw = random.Random(seed)
    pause = np.zeros(round(PAUSE_S * rate_hz), np.float32)
    minutes = [Minute(0, []) for _ in range(MINUTES)]
    pieces: list[NDArray[np.float32]] = []
    size, waiting = 0, []
    while size < MINUTES * 60 * rate_hz:
        waiting = waiting or draw.sample(list(utterances), len(utterances))
        one, index = waiting.pop(), size // (60 * rate_hz)
        if not minutes[index].utterances:
            minutes[index] = Minute(size, [])
        minutes[index].utterances.append(one)
        pieces += [read_audio(one.audio_path, rate_hz), pause]
        size += len(pieces[-2]) + len(pause)
    return np.concatenate(pieces), minutes


def heard_by_minute(
    recognizer: StreamRecognizer, sound: NDArray[np.float32], minutes: Sequence[Minute]
) -> list[str]:
    """The words of each minute: every label belongs to the last one that has begun."""
    rate_hz = recognizer.front_end.rate_hz
    listener, chunk = recognizer.listen(), round(CHUNK_S * rate_hz)
    for start in range(0, len(sound), chunk):
        listener.push(sound[start : start + chunk])
    listener.finish()
    index_of = {label: index for index, label in enumerate(recognizer.tokenizer.labels)}
    borders_s = [minute.start / rate_hz for minute in minutes] + [float("inf")]
    words = []
    for begin_s, end_s in pairwise(borders_s):
        labels = [index_of[token.text] for token in listener.tokens if begin_s <= token.start_s < end_s]
        words.append(" ".join(recognizer.tokenizer.decode(labels).split()))
    return words


if __name__ == "__main__":
    main()
