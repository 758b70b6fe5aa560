"""Rows of stacked frames: equal to the loop, no frame lost, nothing invented."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reference import fbank as reference

from subtone.speech import FrontEnd, KaldiFbank
from subtone.speech.stacking import Stacker


@settings(max_examples=100, deadline=None)
@given(
    num_frames=st.integers(0, 20),
    stack=st.integers(1, 6),
    stride=st.integers(1, 6),
    cuts=st.lists(st.integers(0, 20), max_size=4),
)
def test_rows_equal_the_loop_however_frames_come(num_frames, stack, stride, cuts):
    stride = min(stride, stack)
    frames = np.arange(num_frames * 2, dtype=np.float32).reshape(-1, 2)
    stacker = Stacker(stack=stack, stride=stride, num_features=2)
    parts = [stacker.push(part) for part in np.split(frames, sorted(min(cut, num_frames) for cut in cuts))]
    found = np.concatenate([*parts, stacker.finish()])
    assert found.shape == (-(-num_frames // stride), 2 * stack)
    assert found.tolist() == reference.stacked(frames.tolist(), stack, stride)


@pytest.mark.parametrize(("num_mels", "fft_size", "stack", "width"), [(64, 512, 3, 192), (128, 1024, 4, 512)])
def test_the_papers_rows(num_mels, fft_size, stack, width):
    """S8BQAT hears 3 frames of 64 mels every 3, int4 and int2 hear 4 of 128 every 3."""
    sizes = {"num_mels": num_mels, "fft_size": fft_size}
    samples = np.random.default_rng(0).standard_normal(16000).astype(np.float32) / 10
    frames = KaldiFbank(**sizes)(samples)
    front_end = KaldiFbank(**sizes, stack=stack, stride=3)
    rows = front_end(samples)
    assert rows.shape == (34, width) == (front_end.num_frames(16000), front_end.num_features)
    assert front_end.hop_samples == 480
    assert np.array_equal(rows[5], frames[15 : 15 + stack].ravel())
    assert np.array_equal(rows[33], np.tile(frames[99], stack))


def test_frames_are_normalized_before_they_are_stacked():
    samples = np.random.default_rng(0).standard_normal(16000).astype(np.float32) / 10
    rows = FrontEnd(stack=2, stride=2)(samples)
    assert np.array_equal(rows, FrontEnd()(samples).reshape(50, 128))
