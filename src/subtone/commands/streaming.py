"""Sound as it comes, on the command line: `subtone transcribe --stream`."""

from __future__ import annotations

import dataclasses
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from subtone.command_errors import complain
from subtone.speech.audio import audio_blocks
from subtone.speech.listening import AnyRecognizer, StreamRecognizer

CHUNK_S = 0.1
"""Seconds of sound that are heard at once: what a listener waits for at least."""
FULL_SCALE = 32768.0
"""Of 16-bit samples."""
BYTES_PER_SAMPLE = 2
CONTAINERS = (b"RIFF", b"fLaC", b"OggS", b"ID3")
"""What a sound file begins with."""

Blocks = Iterable[NDArray[np.float32]]


def streaming(recognizer: AnyRecognizer, path: Path) -> StreamRecognizer:
    """`recognizer`, if words come out of it before the sound ends; ValueError otherwise."""
    if isinstance(recognizer, StreamRecognizer) and recognizer.can_stream:
        return recognizer
    if path.suffix != ".subtone":
        raise ValueError(f"{path} is a checkpoint; pack it first, with subtone pack, and stream the file")
    raise ValueError(f"{path} needs the whole utterance and cannot stream; leave out --stream")


def sound_of(audio: Path, rate_hz: int, pace: float) -> Blocks:
    """`audio` in chunks of CHUNK_S: a file at `pace` times real time (0: at once), or "-": stdin as it comes."""
    if str(audio) == "-":
        if sys.stdin is None:
            raise ValueError("stdin is closed; pipe raw 16-bit PCM into it")
        return pcm_blocks(sys.stdin.buffer, rate_hz)
    return paced(in_chunks(audio_blocks(audio, rate_hz), round(rate_hz * CHUNK_S)), rate_hz, pace)


def pcm_blocks(source: BinaryIO, rate_hz: int) -> Iterator[NDArray[np.float32]]:
    """Samples of raw PCM, 16 bits, little-endian, one channel at `rate_hz`, as soon as they are there."""
    most, held = round(rate_hz * CHUNK_S) * BYTES_PER_SAMPLE, b""
    read = getattr(source, "read1", source.read)
    is_first = True
    while piece := read(most):
        if is_first and piece.startswith(CONTAINERS):
            raise ValueError("stdin holds a sound file; give raw 16-bit PCM, or the file by its name")
        is_first = False
        held += piece
        whole = len(held) // BYTES_PER_SAMPLE * BYTES_PER_SAMPLE
        yield np.frombuffer(held[:whole], "<i2").astype(np.float32) / np.float32(FULL_SCALE)
        held = held[whole:]
    if held:
        complain("stdin ends in the middle of a sample; give 16-bit PCM, one channel")


def in_chunks(blocks: Blocks, size: int) -> Iterator[NDArray[np.float32]]:
    """`blocks` cut into pieces of at most `size` samples.

    >>> [len(piece) for piece in in_chunks([np.zeros(5, np.float32), np.zeros(1, np.float32)], 2)]
    [2, 2, 1, 1]
    """
    for block in blocks:
        yield from (block[start : start + size] for start in range(0, len(block), size))


def paced(blocks: Blocks, rate_hz: int, pace: float) -> Iterator[NDArray[np.float32]]:
    """`blocks`, each not before its last sample would have been spoken at `pace` times real time."""
    start, num_samples = time.perf_counter(), 0
    for block in blocks:
        num_samples += len(block)
        if pace:
            time.sleep(max(0.0, start + num_samples / rate_hz / pace - time.perf_counter()))
        yield block


@dataclasses.dataclass
class Line:
    """One line of a terminal that is written anew, behind a label; elsewhere only what it ends as is written."""

    label: str
    is_terminal: bool

    def rewrite(self, text: str) -> None:
        """Shows the end of `text`, as much of it as a line holds."""
        text = self.label + text
        if self.is_terminal:
            room = shutil.get_terminal_size().columns - 1
            shown = text if len(text) <= room else f"...{text[3 - room :]}"
            print(f"\r\x1b[2K{shown}", end="", flush=True)

    def settle(self, text: str) -> None:
        """Leaves the whole of `text` and goes to the next line."""
        text = self.label + text
        print(f"\r\x1b[2K{text}" if self.is_terminal else text, flush=True)


def hear_stream(recognizer: StreamRecognizer, blocks: Blocks, line: Line | None) -> dict[str, Any]:
    """What is heard in `blocks`, partial results on `line` as they come; Ctrl-C ends the sound.

    "latency_s": from the last sample to the last word. "interrupted": true after Ctrl-C.
    """
    listener, seen, is_interrupted = recognizer.listen(), "", False
    try:
        for block in blocks:
            listener.push(block)
            if line and line.is_terminal and (text := listener.text) != seen:
                seen = text
                line.rewrite(seen)
    except KeyboardInterrupt:
        is_interrupted = True
    end = time.perf_counter()
    text = listener.finish()
    latency_s = time.perf_counter() - end
    if line:
        line.settle(text)
    return {
        "text": text,
        "tokens": [dataclasses.asdict(token) for token in listener.tokens],
        "duration_s": listener.duration_s,
        "latency_s": round(latency_s, 4),
        **({"interrupted": True} if is_interrupted else {}),
    }
