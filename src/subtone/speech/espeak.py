"""eSpeak NG in this process: text in, 22050 Hz speech out.

The library keeps state from one utterance to the next (noise, the phase of the voice's flutter)
and resets it nowhere, so the same call gives other samples later on. Hence every `Espeak` loads a
copy of the library of its own: two of them that say the same things in the same order give the
same bits. The copy lies beside the few data files that English needs, because the library cuts
paths off near 160 bytes, and site-packages may lie deeper.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE_HZ = 22050
MAX_PATH_BYTES = 100

_SYNCHRONOUS, _DONT_EXIT, _UTF8, _BY_CHARACTER = 2, 0x8000, 1, 1
_SPEED, _PITCH = 1, 3
_ON_SAMPLES = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)


class Espeak:
    """A speaking voice; a context manager, since the library's copy is removed at the end.

    >>> with Espeak(seed=0) as espeak:
    ...     espeak.say("seven", voice="en-US+f2", words_per_minute=175, pitch=50).dtype
    dtype('int16')
    """

    def __init__(self, *, seed: int) -> None:
        loader = espeak_loader()
        self._folder = Path(tempfile.mkdtemp(prefix="subtone-"))
        try:
            self._library = self._load(loader, seed)
        except BaseException:
            shutil.rmtree(self._folder)
            raise

    def _load(self, loader: ModuleType, seed: int) -> ctypes.CDLL:
        if len(os.fsencode(self._folder)) > MAX_PATH_BYTES:
            raise ValueError(
                f"TMPDIR={tempfile.gettempdir()} is too long for espeak-ng, which takes "
                f"{MAX_PATH_BYTES} bytes; set TMPDIR to a shorter folder"
            )
        data = self._folder / "espeak-ng-data"
        copy_english(Path(loader.get_data_path()), data)
        path = shutil.copy(loader.get_library_path(), self._folder)
        library = ctypes.CDLL(str(path))
        library.espeak_Synth.argtypes = [
            ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int,
            ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p,
        ]  # fmt: skip
        rate_hz = library.espeak_Initialize(_SYNCHRONOUS, 0, os.fsencode(self._folder), _DONT_EXIT)
        if rate_hz != SAMPLE_RATE_HZ:
            raise RuntimeError(f"espeak-ng did not start: rate {rate_hz}, expected {SAMPLE_RATE_HZ}")
        library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        self._chunks: list[bytes] = []
        self._callback = _ON_SAMPLES(self._take)  # kept: the library holds only a pointer
        library.espeak_SetSynthCallback(self._callback)
        return library

    def _take(self, samples: int | None, num_samples: int, _events: int | None) -> int:
        if samples and num_samples > 0:
            self._chunks.append(ctypes.string_at(samples, 2 * num_samples))
        return 0

    def say(self, text: str, *, voice: str, words_per_minute: int, pitch: int) -> NDArray[np.int16]:
        """Samples at 22050 Hz. `voice`: a language file, then `+` and a variant file; `pitch` 0..100."""
        library, data = self._library, self._folder / "espeak-ng-data"
        accent, _, variant = voice.partition("+")
        files = (data / "lang" / "gmw" / accent, data / "voices" / "!v" / variant)
        # The library itself takes an unknown variant for none, without a word.
        is_known = accent and variant and all(path.is_file() for path in files)
        if not is_known or library.espeak_SetVoiceByName(f"gmw/{voice}".encode()):
            raise ValueError(f"voice={voice!r} is not in espeak-ng's data; use one such as en-US+f2")
        library.espeak_SetParameter(_SPEED, words_per_minute, 0)
        library.espeak_SetParameter(_PITCH, pitch, 0)
        self._chunks.clear()
        spelled = text.encode() + b"\0"
        with raising_from_callbacks():
            failed = library.espeak_Synth(spelled, len(spelled), 0, _BY_CHARACTER, 0, _UTF8, None, None)
        if failed:
            raise RuntimeError(f"espeak-ng could not say {text!r} as {voice}")
        return np.frombuffer(b"".join(self._chunks), np.int16)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._library.espeak_Terminate()
        shutil.rmtree(self._folder)


@contextlib.contextmanager
def raising_from_callbacks() -> Iterator[None]:
    """Raises afterwards what a callback raised: ctypes would print it and go on, Ctrl-C included.

    A signal that comes while the library works is answered at the next step in Python, a callback's first.
    """
    raised: list[BaseException] = []
    hook = sys.unraisablehook

    def keep(report: Any) -> None:
        raised.append(report.exc_value)

    sys.unraisablehook = keep
    try:
        yield
    finally:
        sys.unraisablehook = hook
    if raised:
        raise raised[0]


def espeak_loader() -> ModuleType:
    """The package that brings the library; ValueError where it is not installed."""
    try:
        return importlib.import_module("espeakng_loader")
    except ModuleNotFoundError as error:
        raise ValueError(
            'espeakng-loader is not installed; speech synthesis needs it: pip install "subtone[train]"'
        ) from error


def copy_english(source: Path, target: Path) -> None:
    """What English needs of espeak-ng's data, 1.3 MB of 18: sounds, dictionary, accents, variants."""
    (target / "lang" / "gmw").mkdir(parents=True)
    for name in ("phondata", "phonindex", "phontab", "intonations", "en_dict"):
        shutil.copy(source / name, target)
    for accent in sorted((source / "lang" / "gmw").glob("en*")):
        shutil.copy(accent, target / "lang" / "gmw")
    shutil.copytree(source / "voices", target / "voices")
