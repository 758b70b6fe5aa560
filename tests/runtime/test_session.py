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
from subtone.speech.features import FrontEnd
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


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"width_in": 80}, "the front end gives num_mels=64, the program takes 80"),
        ({"width_out": 29}, "2 labels and the blank do not fit the program's 29 outputs"),
        ({"width_out": 2}, "2 labels and the blank do not fit the program's 2 outputs"),
        ({"front_end": {"rate_hz": 16000}}, "the front end lacks"),
        ({"front_end": {**FrontEnd().to_json(), "num_mels": "64"}}, "num_mels='64' is not a finite int"),
        ({"tokenizer": {"kind": "pieces", "labels": ["a"]}}, "the tokenizer's kind='pieces' is unknown"),
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
    write_packed(path, PackedModel(**{**vars(model), "program": fast}))
    with pytest.raises(PackedFileError, match=r"m\.subtone: overlap_s=4\.0 must hold a step"):
        Session.load(path)
