"""Word error rates with their intervals, paired differences, and how long hearing takes.

Intervals are 95 % percentile bootstraps that draw whole speakers, because the errors of one speaker
are not independent (DESIGN.md section 8). With a single speaker, utterances are drawn instead.

Latency is user-perceived: from the moment the whole sound lies in memory to its final text, hence
features, network and search, but no file reading. The real-time factor is the sum of these times
over the sum of the durations.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from subtone.files import write_text
from subtone.report.machine import peak_memory_mb
from subtone.speech.audio import read_audio
from subtone.speech.data import Utterance
from subtone.speech.listening import AnyRecognizer
from subtone.speech.text import WordErrors, reference_of, word_errors

BOOTSTRAP_SAMPLES = 10_000
BOOTSTRAP_SEED = 20221
INTERVAL_PERCENTILES = (2.5, 97.5)
LATENCY_PERCENTILES = (50, 90, 99)


class Progress(Protocol):
    """Called after each utterance."""

    def __call__(self, done: int, total: int) -> None: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heard:
    """One utterance as a model heard it. `audio` names it across models."""

    audio: str
    speaker: str
    duration_s: float
    reference: str
    hypothesis: str
    seconds: float

    @property
    def errors(self) -> WordErrors:
        return word_errors(self.reference, self.hypothesis)


def evaluate(
    recognizer: AnyRecognizer, utterances: Sequence[Utterance], progress: Progress | None = None
) -> list[Heard]:
    """Every utterance heard once, in order; references in the labels the model can spell.

    ValueError at a text with digits that the labels lack: dropping them would change what is right.
    """
    heard = []
    names = names_of([utterance.audio_path for utterance in utterances])
    for index, utterance in enumerate(utterances):
        reference = reference_of(utterance.text, recognizer.tokenizer, utterance.audio_path)
        samples = read_audio(utterance.audio_path, recognizer.front_end.rate_hz)
        start = time.perf_counter()
        hypothesis = recognizer.hear(samples)
        seconds = time.perf_counter() - start
        heard.append(
            Heard(
                audio=names[index],
                speaker=utterance.speaker,
                duration_s=len(samples) / recognizer.front_end.rate_hz,
                reference=reference,
                hypothesis=hypothesis,
                seconds=seconds,
            )
        )
        if progress:
            progress(index + 1, len(utterances))
    return heard


def names_of(paths: Sequence[Path]) -> list[str]:
    """Each path's last parts, two or as many as it takes to tell all apart: the same on every machine.

    >>> names_of([Path("/x/a/1.wav"), Path("/x/b/1.wav")])
    ['a/1.wav', 'b/1.wav']
    """
    deepest = max((len(path.parts) for path in paths), default=2)
    for count in range(2, deepest + 1):
        names = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    raise ValueError("the manifest names one audio file twice; every utterance needs a file of its own")


def summarize(heard: Sequence[Heard]) -> dict[str, Any]:
    """The numbers of one model: WER in percent with its interval, errors by kind, times, memory.

    ValueError where nothing was said: without words there is no word error rate.
    """
    errors = [item.errors for item in heard]
    total = sum(errors, WordErrors())
    if not total.words:
        raise ValueError("the references hold no word; a word error rate needs texts in the manifest")
    duration_s = sum(item.duration_s for item in heard)
    seconds = np.array([item.seconds for item in heard])
    low, high = interval(
        [item.speaker for item in heard], [item.errors for item in errors], [item.words for item in errors]
    )
    return {
        "wer_percent": round(100 * total.rate, 4),
        "wer_interval_percent": [round(low, 4), round(high, 4)],
        "substitutions": total.substitutions,
        "insertions": total.insertions,
        "deletions": total.deletions,
        "words": total.words,
        "utterances": len(heard),
        "speakers": len({item.speaker for item in heard}),
        "duration_s": round(duration_s, 3),
        "real_time_factor": float(seconds.sum() / duration_s),
        "latency_ms": {
            f"p{rank}": float(np.percentile(seconds, rank) * 1000) for rank in LATENCY_PERCENTILES
        },
        "peak_memory_mb": round(peak_memory_mb(), 1),
    }


def compare(before: Sequence[Heard], after: Sequence[Heard]) -> dict[str, Any]:
    """The paired difference in WER, `after` less `before`, in percentage points.

    Raises:
        ValueError: the two did not hear the same utterances.
    """
    pairs = _pair(before, after)
    words = [first.errors.words for first, _ in pairs]
    change = [second.errors.errors - first.errors.errors for first, second in pairs]
    low, high = interval([first.speaker for first, _ in pairs], change, words)
    first_total, second_total = summarize(before), summarize(after)
    return {
        "wer_percent": [first_total["wer_percent"], second_total["wer_percent"]],
        "difference_percent": round(100 * sum(change) / max(1, sum(words)), 4),
        "difference_interval_percent": [round(low, 4), round(high, 4)],
        **{
            kind: [first_total[kind], second_total[kind]]
            for kind in ("substitutions", "insertions", "deletions")
        },
        "utterances": len(pairs),
        "speakers": first_total["speakers"],
        "changed": [
            {
                "audio": first.audio,
                "reference": first.reference,
                "before": first.hypothesis,
                "after": second.hypothesis,
                "errors": [first.errors.errors, second.errors.errors],
            }
            for first, second in pairs
            if first.hypothesis != second.hypothesis
        ],
    }


def interval(speakers: Sequence[str], errors: Sequence[int], words: Sequence[int]) -> tuple[float, float]:
    """95 % bootstrap interval of `sum errors / sum words` in percent, drawing speakers.

    >>> interval(["a", "b"], [1, 1], [10, 10])
    (10.0, 10.0)
    """
    names, cluster = np.unique(np.asarray(speakers), return_inverse=True)
    if len(names) == 1:
        cluster = np.arange(len(speakers))
    errors_of = np.bincount(cluster, weights=errors)
    words_of = np.bincount(cluster, weights=words)
    random = np.random.default_rng(BOOTSTRAP_SEED)
    draws = random.multinomial(
        len(words_of), np.full(len(words_of), 1 / len(words_of)), size=BOOTSTRAP_SAMPLES
    )
    rates: NDArray[np.float64] = 100 * (draws @ errors_of) / np.maximum(draws @ words_of, 1)
    low, high = np.percentile(rates, INTERVAL_PERCENTILES)
    return float(low), float(high)


def save_heard(path: Path, heard: Iterable[Heard]) -> None:
    """One JSON line an utterance, for a later comparison."""
    write_text(path, "".join(json.dumps(dataclasses.asdict(item)) + "\n" for item in heard))


def load_heard(path: Path) -> list[Heard]:
    """What `save_heard` wrote; ValueError names the first line that is not of it."""
    kinds = {
        field.name: (int, float) if field.type == "float" else (str,) for field in dataclasses.fields(Heard)
    }
    heard = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            item = json.loads(line)
            is_right = item.keys() == kinds.keys() and all(type(item[name]) in kinds[name] for name in kinds)
        except (ValueError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path}:{number} is not a line of `subtone evaluate --save`") from error
        if not is_right or item["duration_s"] <= 0:
            raise ValueError(f"{path}:{number} is not a line of `subtone evaluate --save`")
        heard.append(Heard(**item))
    if not heard:
        raise ValueError(f"{path} holds no utterance")
    return heard


def _pair(before: Sequence[Heard], after: Sequence[Heard]) -> list[tuple[Heard, Heard]]:
    second = {item.audio: item for item in after}
    missing = [item.audio for item in before if item.audio not in second]
    if missing or len(before) != len(after):
        example = f", the first is {missing[0]}" if missing else ""
        raise ValueError(
            f"the two did not hear the same utterances: {len(before)} and {len(after)}, {len(missing)} of the "
            f"first are not in the second{example}; evaluate both on one manifest with one --limit"
        )
    pairs = [(item, second[item.audio]) for item in before]
    for first, other in pairs:
        if first.reference != other.reference:
            raise ValueError(
                f"{first.audio} has two references, {first.reference!r:.60} and {other.reference!r:.60}"
            )
    return pairs
