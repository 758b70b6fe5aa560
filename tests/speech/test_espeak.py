"""eSpeak NG in process: fresh state each time, and one line where it cannot speak."""

from __future__ import annotations

import importlib
import signal
import tempfile

import numpy as np
import pytest

from subtone.speech.espeak import SAMPLE_RATE_HZ, Espeak


def say_twice(seed: int) -> tuple[np.ndarray, np.ndarray]:
    with Espeak(seed=seed) as espeak:
        said = [espeak.say("seven nine", voice="en-US+f1", words_per_minute=175, pitch=50) for _ in range(2)]
    return said[0], said[1]


def test_two_libraries_say_the_same_in_the_same_order() -> None:
    first, second = say_twice(0), say_twice(0)
    assert all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))
    # The reason for a library each: within one, the second time sounds different.
    assert not np.array_equal(first[0], first[1])


def test_ctrl_c_while_the_library_works_is_not_lost() -> None:
    """The signal's handler runs in the callback, whose exceptions ctypes prints and forgets."""

    class Interrupted(Espeak):
        def _take(self, samples: int | None, num_samples: int, _events: int | None) -> int:
            signal.raise_signal(signal.SIGINT)
            return 0

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with Interrupted(seed=0) as espeak, pytest.raises(KeyboardInterrupt):
            espeak.say("seven", voice="en-US+f1", words_per_minute=175, pitch=50)
    finally:
        signal.signal(signal.SIGINT, before)


def test_faster_speech_is_shorter() -> None:
    with Espeak(seed=0) as espeak:
        slow, fast = (
            espeak.say("turn on the light", voice="en+m2", words_per_minute=rate, pitch=50)
            for rate in (120, 240)
        )
    assert 0.2 * SAMPLE_RATE_HZ < len(fast) < len(slow)


@pytest.mark.parametrize("voice", ["en-US+nobody", "en-xx+f1", "en-US", ""])
def test_a_voice_that_is_not_there_is_an_error(voice: str) -> None:
    with Espeak(seed=0) as espeak, pytest.raises(ValueError, match=r"voice='.*' is not in espeak-ng's data"):
        espeak.say("one", voice=voice, words_per_minute=175, pitch=50)


def test_without_the_library_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(ValueError, match=r'pip install "subtone\[train\]"$'):
        Espeak(seed=0)


def test_a_temporary_folder_too_deep_is_named(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with pytest.raises(ValueError, match=r"TMPDIR=.* is too long"):
        Espeak(seed=0)
    assert not any(deep.iterdir())
