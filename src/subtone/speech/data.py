"""Manifests: which sounds there are and what is said in them.

A manifest is a file of JSON lines with `audio_filepath` (relative to the manifest, or absolute),
`duration` in seconds, `text` and `speaker`: the layout NeMo and Lhotse read. Other keys are left
alone.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from subtone import files

MANIFEST_NAME = "manifest.jsonl"
LONGEST_S = 1e9

Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Utterance:
    """One recording and its words.

    `audio_path` is absolute. A manifest without speakers makes every utterance a speaker of its
    own (its path), so that intervals clustered by speaker are still intervals.
    """

    audio_path: Path
    duration_s: float
    text: str
    speaker: str


def read_manifest(path: str | os.PathLike) -> list[Utterance]:
    """The utterances of a manifest, or of the folder that holds a `manifest.jsonl`.

    ValueError with file and line: not JSON, a key that is missing or of a wrong type; in one
    line for all: audio files that are not there; a manifest without utterances.
    """
    path = Path(path)
    if path.is_dir():
        path = path / MANIFEST_NAME
    if not path.is_file():
        raise ValueError(
            f"{path}: no such manifest; name a file of JSON lines or the folder of a {MANIFEST_NAME}"
        )
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text ({error.reason}); name a file of JSON lines") from error
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise ValueError(f"{path}: has no utterances; write one JSON object a line")
    folder = path.absolute().parent
    utterances = [_utterance(line, f"{path}:{number}", folder) for number, line in numbered]
    missing = [
        f"{utterance.audio_path} (line {number})"
        for (number, _), utterance in zip(numbered, utterances, strict=True)
        if not utterance.audio_path.is_file()
    ]
    if missing:
        raise ValueError(
            f"{path}: {len(missing)} of {len(utterances)} audio files are missing, first {missing[0]}; "
            "paths count from the manifest's folder"
        )
    return utterances


def write_manifest(path: str | os.PathLike, utterances: Sequence[Utterance]) -> None:
    """Write what `read_manifest` reads: all of it or nothing (written beside, then renamed).

    Audio below the manifest's folder is named relative to it, so that the folder can be moved.
    """
    path = Path(path)
    if not utterances:
        raise ValueError(f"{path}: a manifest needs at least one utterance")
    folder = path.absolute().parent
    lines = []
    for utterance in utterances:
        audio_path = utterance.audio_path.absolute()
        if audio_path.is_relative_to(folder):
            audio_path = audio_path.relative_to(folder)
        entry = {
            "audio_filepath": audio_path.as_posix(),
            "duration": utterance.duration_s,
            "text": utterance.text,
            "speaker": utterance.speaker,
        }
        lines.append(json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n")
    files.write_text(path, "".join(lines))


def spread(items: Sequence[Item], limit: int | None) -> list[Item]:
    """`limit` items evenly spread over all, in order; all where there are no more, or for None.

    >>> spread(range(10), 4)
    [0, 2, 5, 7]
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit} leaves no utterance; use 1 or more")
    if limit is None or limit >= len(items):
        return list(items)
    return [items[index * len(items) // limit] for index in range(limit)]


def _utterance(line: str, where: str, folder: Path) -> Utterance:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: is not JSON ({error}); write one object a line") from error
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: is not a JSON object but {line.strip()!r:.60}")
    for name, kind in (("audio_filepath", str), ("duration", (int, float)), ("text", str)):
        if name not in entry:
            raise ValueError(
                f"{where}: lacks the key {name!r}; a line needs audio_filepath, duration and text"
            )
        if not isinstance(entry[name], kind) or isinstance(entry[name], bool):
            raise ValueError(f"{where}: {name}={entry[name]!r:.60} is of the wrong type")
    if not 0 < entry["duration"] < LONGEST_S:
        raise ValueError(f"{where}: duration={entry['duration']!r:.60} must be seconds above 0")
    audio_path = folder / entry["audio_filepath"]
    speaker = entry.get("speaker")
    return Utterance(
        audio_path=audio_path,
        duration_s=float(entry["duration"]),
        text=entry["text"],
        speaker=str(audio_path) if speaker in (None, "") else str(speaker),
    )
