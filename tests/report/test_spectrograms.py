"""Spectrograms as one picture: every value has its pixel, every one its title and what was heard."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from subtone.report.spectrograms import (
    COLOURS,
    Spectrogram,
    heard_in,
    png_of,
    save_spectrograms,
    spectrogram_chart,
)
from subtone.speech.features import FrontEnd
from subtone.speech.recognize import Recognizer
from subtone.speech.text import CharTokenizer


def pixels_of(png: bytes) -> np.ndarray:
    """(rows, columns, 3), read back chunk by chunk with every checksum checked; no filters."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, place = {}, 8
    while place < len(png):
        (length,) = struct.unpack(">I", png[place : place + 4])
        body = png[place + 4 : place + 8 + length]
        assert struct.unpack(">I", png[place + 8 + length : place + 12 + length]) == (zlib.crc32(body),)
        chunks[body[:4]], place = body[4:], place + 12 + length
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    columns, rows, *kind = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert kind == [8, 2, 0, 0, 0]
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(rows, 1 + 3 * columns)
    assert not lines[:, 0].any()
    return lines[:, 1:].reshape(rows, columns, 3)


def noise(frames: int = 20, rows: int = 8) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, frames)).astype(np.float32)


def test_every_value_has_a_pixel_with_the_first_feature_at_the_bottom():
    features = np.array([[-3.0, -9.0, 0.0], [3.0, 9.0, 1.5]])
    pixels = pixels_of(png_of(features))
    assert pixels.shape == (2, 3, 3)
    low, middle, upper, high = COLOURS[0], COLOURS[2], COLOURS[3], COLOURS[4]
    assert [tuple(pixel) for pixel in pixels[1].tolist()] == [low, low, middle]
    assert [tuple(pixel) for pixel in pixels[0].tolist()] == [high, high, upper]


def test_higher_is_lighter_all_the_way():
    ramp = pixels_of(png_of(np.linspace(-3, 3, 500)[None]))[0].astype(float)
    luminance = ramp @ [0.2126, 0.7152, 0.0722]
    # Steps of half a level in each channel; never darker by more than that.
    assert (np.diff(luminance) >= -0.5).all()
    assert luminance[-1] - luminance[0] > 200


def test_the_picture_is_a_png_that_names_each_and_what_was_heard(tmp_path: Path):
    items = [
        Spectrogram(title="real", features=noise(), heard="the law <b>"),
        Spectrogram(title="random", features=noise(10), heard=""),
        Spectrogram(title="synthetic", features=noise(), heard="word " * 60),
    ]
    save_spectrograms(tmp_path / "figure.png", items)
    assert (tmp_path / "figure.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    panels = json.loads(spectrogram_chart(items).to_json())["vconcat"]
    assert [panel["title"]["text"] for panel in panels] == ["real", "random", "synthetic"]
    heard = [panel["title"]["subtitle"] for panel in panels]
    assert heard[0] == ["the law <b>"]
    assert heard[1] == ["(nothing)"]
    assert len(heard[2]) == 3
    assert " ".join(heard[2]).split() == ["word"] * 60
    # One scale of time: half the frames, half as wide.
    assert panels[1]["width"] * 2 == panels[0]["width"]


def test_a_picture_shows_the_values_it_was_given(tmp_path: Path):
    """Loud features and quiet ones give other pictures: the image is really drawn."""
    for name, level in (("quiet", -3.0), ("loud", 3.0)):
        item = Spectrogram(title="one", features=np.full((8, 20), level), heard="a")
        save_spectrograms(tmp_path / f"{name}.png", [item])
    quiet, loud = ((tmp_path / f"{name}.png").read_bytes() for name in ("quiet", "loud"))
    assert quiet != loud


def test_what_is_heard_is_the_greedy_text_of_the_features():
    labels = CharTokenizer(("a", " ", "b"))

    def logits(features: np.ndarray) -> np.ndarray:
        """Feature i of a frame is the logit of label i; the fourth is the blank's."""
        assert (features.shape, features.dtype) == ((6, 4), np.float32)
        return features

    recognizer = Recognizer(front_end=FrontEnd(), tokenizer=labels, frames_per_step=1, logits=logits)
    path = [0, 0, 3, 0, 1, 2]
    assert heard_in(recognizer, np.eye(4)[path].T) == "aa b"


def test_what_cannot_be_drawn_is_refused_by_its_title():
    with pytest.raises(ValueError, match=r"features of 'real' have shape \(1, 8, 5\); give one spectrogram"):
        Spectrogram(title="real", features=np.zeros((1, 8, 5)), heard="")
    with pytest.raises(ValueError, match=r"features of 'real' have shape \(8, 0\)"):
        Spectrogram(title="real", features=np.zeros((8, 0)), heard="")
    with pytest.raises(ValueError, match="features of 'real' are not finite; repair them"):
        Spectrogram(title="real", features=np.full((8, 5), np.nan), heard="")
    with pytest.raises(ValueError, match="spectrograms is empty; give at least one to draw"):
        spectrogram_chart([])
