"""Sound from files: any format, rate and number of channels in, float32 mono at one rate out.

Read by blocks, so that an hour takes the memory of a few seconds. What is wrong with a file is
said once, here, in one line: a NaN that slips through would turn a whole utterance into NaN.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

LOWEST_RATE_HZ, HIGHEST_RATE_HZ = 4000, 384000
LARGEST_SAMPLE = np.float32(2.0**31)
"""Beyond what 32-bit integers taken for floats reach, and far below where a power overflows."""
VALUES_AT_ONCE = 2**17
"""Samples times channels that one read takes: 0.5 MB, whatever a file's header says."""


class AudioError(ValueError):
    """A sound that cannot be heard: which, what is wrong with it, what to do."""


def read_audio(path: str | os.PathLike, rate_hz: int = 16000) -> NDArray[np.float32]:
    """The whole sound in `path`, mono at `rate_hz`, shape (S,), S >= 1.

    For utterances; a long file goes through `audio_blocks`. AudioError as there.
    """
    return np.concatenate(list(audio_blocks(path, rate_hz)))


def audio_blocks(path: str | os.PathLike, rate_hz: int = 16000) -> Iterator[NDArray[np.float32]]:
    """The sound in `path` piece by piece, mono (mean of the channels) at `rate_hz`.

    Resampled by soxr at its high quality, with its state carried from block to block: joined,
    the blocks are the sound resampled at once. Every block has 1 sample or more.

    AudioError: no such file, not audio, no samples, a rate that is none, a value that is not
    finite or absurdly large (with its time), a file that breaks off in the middle of a frame.
    """
    path = Path(path)
    with _open(path) as file:
        resampler = None if file.samplerate == rate_hz else soxr.ResampleStream(file.samplerate, rate_hz, 1)
        num_read = num_given = 0
        for block in _raw_blocks(path, file):
            _check_values(block, f"{path}: ", num_read, file.samplerate)
            num_read += len(block)
            mono = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float32)
            given = mono if resampler is None else resampler.resample_chunk(mono)
            num_given += len(given)
            if len(given):
                yield given
        if num_read == 0:
            raise AudioError(f"{path}: has no samples; record it again or leave it out")
        rest = np.zeros(0, np.float32)
        if resampler is not None:
            rest = resampler.resample_chunk(rest, last=True)
        if num_given + len(rest) == 0:  # so short a sound that no sample at rate_hz falls into it
            rest = mono[:1]
        if len(rest):
            yield rest


def check_samples(
    samples: NDArray,
    *,
    rate_hz: int = 16000,
    name: str = "samples",
    num_before: int = 0,
    may_be_empty: bool = False,
) -> NDArray[np.float32]:
    """`samples` as float32 (S,), if they are a sound: one channel, S >= 1, floating, finite.

    Of a stream they are the next ones, after `num_before`, and there may be none.

    Returns the array itself where it is float32 already. AudioError names the time of the first
    bad value, counted at `rate_hz`.

    >>> check_samples(np.array([0.0, 0.5])).dtype
    dtype('float32')
    """
    if not isinstance(samples, np.ndarray) or samples.ndim != 1:
        shape = getattr(samples, "shape", type(samples).__name__)
        raise AudioError(f"{name} of shape {shape} are not one channel; pass a NumPy array of shape (S,)")
    if not np.issubdtype(samples.dtype, np.floating):
        raise AudioError(f"{name} are {samples.dtype}; pass floats within -1 to 1 (int16: divide by 32768)")
    if samples.size:
        _check_values(samples[:, None], f"{name}: ", num_before, rate_hz)
    elif not may_be_empty:
        raise AudioError(f"{name} are empty; pass at least one sample")
    return samples.astype(np.float32, copy=False)


def _open(path: Path) -> soundfile.SoundFile:
    if not path.exists():
        raise AudioError(f"{path}: no such file; check the path")
    if not path.is_file():
        raise AudioError(f"{path}: is not a file; name a sound file")
    try:
        file = soundfile.SoundFile(path)
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: .raw says no rate
        # libsndfile's own reason is left out: for a broken mp3 it is "File does not exist".
        raise AudioError(
            f"{path}: is not sound that can be read here; check that it is one, and convert it to wav or flac"
        ) from error
    if not LOWEST_RATE_HZ <= file.samplerate <= HIGHEST_RATE_HZ:
        file.close()
        raise AudioError(
            f"{path}: has a rate of {file.samplerate} Hz; speech needs {LOWEST_RATE_HZ} to "
            f"{HIGHEST_RATE_HZ}, so correct its header or convert it"
        )
    return file


def _raw_blocks(path: Path, file: soundfile.SoundFile) -> Iterator[NDArray[np.float32]]:
    """Blocks (n, channels) as they lie in the file, n >= 1."""
    num_frames = max(1, VALUES_AT_ONCE // file.channels)
    while True:
        try:
            block = file.read(num_frames, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise AudioError(
                f"{path}: is damaged ({error.error_string.strip()}); copy or convert it again"
            ) from error
        if not len(block):
            return
        yield block


def _check_values(block: NDArray, where: str, num_before: int, rate_hz: int) -> None:
    """AudioError at the first value of `block` (n, channels) that no sound has."""
    # NaN compares false, so this one test finds it, infinities and absurd values at once.
    if np.max(block) <= LARGEST_SAMPLE and np.min(block) >= -LARGEST_SAMPLE:
        return
    index, channel = np.argwhere(~(np.abs(block) <= LARGEST_SAMPLE))[0]
    time_s = (num_before + index) / rate_hz
    raise AudioError(
        f"{where}sample {block[index, channel]} at {time_s:.3f} s; sound is finite and lies within "
        "-1 to 1, so export it again"
    )
