"""Spectrograms below each other with what a model hears in them, as one PNG: zero-shot's Fig. 3 drawn again.

Pixels are coloured here and written as a PNG by the few lines that takes; Altair puts axes, titles and
text around them. (A rectangle per value, Altair's own way, is 32000 of them for five seconds.)

Letters: F features, T frames.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import os
import struct
import textwrap
import zlib
from collections.abc import Sequence
from pathlib import Path

import altair as alt
import numpy as np
from numpy.typing import NDArray

from subtone.files import replacing
from subtone.speech.decode import greedy_ctc
from subtone.speech.recognize import Recognizer

WIDTH = 760
"""Pixels of the longest spectrogram; the others are shorter as they are."""
ROW_PIXELS = 2
REACH = 3.0
"""Colours go from -REACH to REACH: normalized features have mean 0 and deviation 1 in every row."""
COLOURS = ((13, 8, 45), (84, 15, 109), (187, 55, 84), (249, 142, 9), (252, 255, 164))
"""From low to high. Lightness rises all the way, so that it reads without colour too."""
CAPTION_COLUMNS = 110


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spectrogram:
    """Features (F, T) as a network takes them, what they are, and what it hears in them.

    ValueError: `features` is not a table of finite numbers with at least one row and frame.
    """

    title: str
    features: NDArray[np.floating]
    heard: str

    def __post_init__(self) -> None:
        shape = np.shape(self.features)
        if len(shape) != 2 or 0 in shape:
            raise ValueError(
                f"features of {self.title!r} have shape {shape}; give one spectrogram (features, frames)"
            )
        if not np.isfinite(self.features).all():
            raise ValueError(f"features of {self.title!r} are not finite; repair them before they are drawn")


def heard_in(recognizer: Recognizer, features: NDArray[np.floating]) -> str:
    """What a CTC model hears in features (F, T), greedily: the caption of a `Spectrogram`."""
    logits = recognizer.logits(np.ascontiguousarray(features.T, dtype=np.float32))
    text = recognizer.tokenizer.decode(greedy_ctc(logits, recognizer.tokenizer.blank_index))
    return " ".join(text.split())


def save_spectrograms(
    path: str | os.PathLike, spectrograms: Sequence[Spectrogram], *, hop_ms: float = 10
) -> None:
    """Write the PNG at `path`, whole or not at all; `hop_ms` from one frame to the next."""
    picture = io.BytesIO()
    spectrogram_chart(spectrograms, hop_ms=hop_ms).save(picture, format="png", scale_factor=1.5)
    with replacing(Path(path)) as beside:
        beside.write_bytes(picture.getvalue())


def spectrogram_chart(spectrograms: Sequence[Spectrogram], *, hop_ms: float = 10) -> alt.VConcatChart:
    """All of `spectrograms` in one colour scale and one scale of time, the first on top."""
    if not spectrograms:
        raise ValueError("spectrograms is empty; give at least one to draw")
    longest = max(item.features.shape[1] for item in spectrograms)
    panels = [_panel(item, WIDTH * item.features.shape[1] / longest, hop_ms) for item in spectrograms]
    return alt.vconcat(*panels, spacing=18).configure_view(stroke=None).configure(background="white")


def png_of(features: NDArray[np.floating], *, reach: float = REACH) -> bytes:
    """A PNG of T x F pixels, the first feature at the bottom; values beyond `reach` have the last colours."""
    share = (np.clip(features[::-1], -reach, reach) + reach) / (2 * reach)
    stops = np.linspace(0, 1, len(COLOURS))
    channels = [np.interp(share, stops, [colour[index] for colour in COLOURS]) for index in range(3)]
    pixels = np.floor(np.stack(channels, axis=2) + 0.5).astype(np.uint8)
    rows, columns = features.shape
    # Each row of a PNG starts with its filter: 0, none.
    lines = np.concatenate([np.zeros((rows, 1), np.uint8), pixels.reshape(rows, -1)], axis=1)
    header = struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)  # 8 bits a channel, red green blue
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, content) for kind, content in parts)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _panel(item: Spectrogram, width: float, hop_ms: float) -> alt.LayerChart:
    rows, frames = item.features.shape
    height, seconds = ROW_PIXELS * rows, frames * hop_ms / 1000
    url = "data:image/png;base64," + base64.b64encode(png_of(item.features)).decode()
    corners = alt.Data(values=[{"seconds": 0, "feature": 0}, {"seconds": seconds, "feature": rows}])
    axes = (
        alt.Chart(corners)
        .mark_point(opacity=0)
        .encode(
            x=alt.X("seconds:Q", title=None)
            .scale(domain=[0, seconds], nice=False)
            .axis(grid=False, tickCount=6, format="~g", labelExpr="datum.label + ' s'"),
            y=alt.Y("feature:Q", title="feature")
            .scale(domain=[0, rows], nice=False)
            .axis(grid=False, tickCount=3),
        )
    )
    image = (
        alt.Chart(alt.Data(values=[{}]))
        .mark_image(url=url, width=width, height=height, aspect=False)
        .encode(x=alt.value(width / 2), y=alt.value(height / 2))
    )
    heard = textwrap.wrap(item.heard, CAPTION_COLUMNS) or ["(nothing)"]
    title = alt.TitleParams(item.title, subtitle=heard, anchor="start", subtitleColor="#555")
    return alt.LayerChart(layer=[axes, image], width=width, height=height, title=title)
