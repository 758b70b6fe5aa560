"""A session is refused where front end, program and labels of a file do not fit each other."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from tests.runtime.small_programs import program_of

from subtone.pack import PackedFileError, PackedFileReason, PackedModel, write_packed
from subtone.program import Conv1d
from subtone.runtime.session import Session
from subtone.speech.decode import greedy_ctc
from subtone.speech.fbank import KaldiFbank
from subtone.speech.features import FrontEnd
from subtone.speech.normalize import CausalNormalize
from subtone.speech.pieces import PieceTokenizer
from subtone.speech.text import CharTokenizer


def written(path: Path, *, width_in: int = 64, width_out: int = 3, **objects: dict) -> Path:
    """A file of one product, whose front end gives 64 features and which has two labels."""
    weight = np.random.default_rng(0).normal(0, 1, (width_out, width_in)).astype(np.float32)
    made = {"front_end": FrontEnd().to_json(), "tokenizer": CharTokenizer((" ", "a")).to_json(), **objects}
    program = program_of(Conv1d(input="x", output="y", weight="w"), width_in=width_in, width_out=width_out)
    write_packed(
        path, PackedModel(program=program, constants={"w": weight}, recipe={}, provenance={}, **made)
    )
    return path


def test_a_file_whose_parts_fit_hears(tmp_path: Path) -> None:
    session = Session.load(written(tmp_path / "m.subtone"))
    assert session.logits(np.ones((5, 64), np.float32)).shape == (5, 3)
    assert set(session.recognizer.hear(np.zeros(16000))) <= {" ", "a"}


def test_a_file_keeps_a_front_end_that_stacks_and_streams(tmp_path: Path) -> None:
    front_end = KaldiFbank(
        num_mels=40,
        stack=3,
        stride=3,
        normalize=CausalNormalize(mean=(-8.0625,) * 40, deviation=(3.3,) * 40),
    )
    path = written(tmp_path / "m.subtone", width_in=120, front_end=front_end.to_json())
    session = Session.load(path)
    assert session.recognizer.front_end == front_end
    assert set(session.recognizer.hear(np.zeros(16000))) <= {" ", "a"}


def test_a_file_whose_labels_are_pieces_of_words_hears(tmp_path: Path) -> None:
    pieces = PieceTokenizer(("\u2581", "a", "\u2581a"), (-1.5, -2.0, -3.0))
    path = written(tmp_path / "m.subtone", width_out=4, tokenizer=pieces.to_json())
    session = Session.load(path)
    assert session.recognizer.tokenizer == pieces
    samples = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    logits = session.logits(session.recognizer.front_end(samples))
    text = pieces.decode(greedy_ctc(logits, pieces.blank_index))
    assert session.recognizer.hear(samples) == " ".join(text.split()) != ""


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"width_in": 80}, "the front end gives num_features=64, the program takes 80"),
        ({"width_out": 29}, "2 labels and the blank do not fit the program's 29 outputs"),
        ({"width_out": 2}, "2 labels and the blank do not fit the program's 2 outputs"),
        ({"front_end": {"rate_hz": 16000}}, "the front end lacks"),
        ({"front_end": {"kind": "mfcc"}}, "the front end has kind='mfcc'; use log_mel or fbank"),
        ({"front_end": KaldiFbank(stack=2).to_json()}, "the front end gives num_features=160"),
        ({"front_end": {**FrontEnd().to_json(), "num_mels": "64"}}, "num_mels='64' is not a finite int"),
        (
            {"tokenizer": {"kind": "pieces", "labels": ["a"]}},
            "a tokenizer of pieces needs the keys kind, labels",
        ),
        ({"tokenizer": {"kind": "tones", "labels": ["a"]}}, "the tokenizer's kind='tones' is unknown"),
    ],
)
def test_parts_that_do_not_fit_are_refused_and_the_file_is_named(
    changes: dict, complaint: str, tmp_path: Path
) -> None:
    path = written(tmp_path / "m.subtone", **changes)
    with pytest.raises(PackedFileError) as caught:
        Session.load(path)
    assert caught.value.reason is PackedFileReason.BAD_PROGRAM
    assert str(caught.value).startswith(f"{path}: {complaint}")
    assert str(caught.value).endswith("; pack the model again with this version of subtone")


def test_an_impossible_step_is_refused_and_the_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.subtone"
    model = Session.load(written(path)).model
    fast = dataclasses.replace(model.program, frames_per_step=10**6)
    write_packed(path, dataclasses.replace(model, program=fast))
    with pytest.raises(PackedFileError, match=r"m\.subtone: overlap_s=4\.0 must hold a step"):
        Session.load(path)
