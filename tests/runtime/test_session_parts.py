"""A transducer whose parts do not fit each other is refused when it is loaded, and the file is named."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from tests.test_streaming_models import checkpoint_of

from subtone.export.package import package
from subtone.pack import PackedFileError, PackedModel, write_packed
from subtone.program import Attention, Columns, Program, Stack
from subtone.runtime.session import Session


@pytest.fixture(scope="module")
def models() -> dict[str, PackedModel]:
    return {
        name: package(checkpoint_of(name), name=name) for name in ("s8bqat-m1", "cascaded", "conformer-ctc-l")
    }


def with_op(program: Program, op: Stack | Attention | Columns, width: int) -> Program:
    """`program` with another operation behind its last."""
    ops = (*program.ops, dataclasses.replace(op, output="z"))
    return dataclasses.replace(program, ops=ops, output="z", output_width=width)


def changed(model: PackedModel, **parts: Program | None) -> PackedModel:
    kept = {name: part for name, part in {**model.parts, **parts}.items() if part is not None}
    read = {name for program in (model.program, *kept.values()) for name in program.constants_read}
    constants = {name: value for name, value in model.constants.items() if name in read}
    return dataclasses.replace(model, parts=kept, constants=constants)


def refusal(model: PackedModel, path: Path) -> str:
    write_packed(path, model)
    with pytest.raises(PackedFileError) as refused:
        Session.load(path, engine="numpy")
    assert str(refused.value).startswith(f"{path}: ")
    return str(refused.value)


def test_parts_must_be_those_of_a_transducer_or_a_cascade(models, tmp_path: Path) -> None:
    model = models["s8bqat-m1"]
    assert "has predictor and joiner" in refusal(changed(model, joiner=None), tmp_path / "a.subtone")
    odd = changed(model, more=model.parts["joiner"])
    assert "the file has the parts joiner, more, predictor" in refusal(odd, tmp_path / "b.subtone")


def test_a_predictor_gives_one_row_for_a_label(models, tmp_path: Path) -> None:
    model = models["s8bqat-m1"]
    predictor = model.parts["predictor"]
    width = predictor.output_width
    late = Attention(query="output", key="output", value="output", output="z", left=1, right=1)
    late = with_op(predictor, late, width)
    assert "predictor gives 0 rows for a label" in refusal(
        changed(model, predictor=late), tmp_path / "a.subtone"
    )
    whole = with_op(predictor, Attention(query="output", key="output", value="output", output="z"), width)
    assert "cannot stream" in refusal(changed(model, predictor=whole), tmp_path / "b.subtone")


def test_every_pass_fits_its_labels_and_its_widths(models, tmp_path: Path) -> None:
    model = models["cascaded"]
    joiner = model.parts["joiner2"]
    fewer = with_op(joiner, Columns(input="output", output="z", first=0, count=3), 3)
    text = refusal(changed(model, joiner2=fewer), tmp_path / "a.subtone")
    assert "8 labels and the blank do not fit the program's 3 outputs" in text
    encoder = model.parts["encoder2"]
    narrow = with_op(encoder, Columns(input="output", output="z", first=0, count=2), 2)
    text = refusal(changed(model, encoder2=narrow), tmp_path / "b.subtone")
    assert "encoder2 gives rows of 2; what reads them takes 8" in text


def test_a_beam_is_for_what_streams_or_is_a_transducer(models, tmp_path: Path) -> None:
    path = tmp_path / "m.subtone"
    write_packed(path, models["conformer-ctc-l"])
    with pytest.raises(
        ValueError, match="beam=4 is for models that stream and for transducers; leave it out"
    ):
        Session.load(path, engine="numpy", beam=4)
    with pytest.raises(ValueError, match="beam=-1 follows no hypothesis"):
        Session.load(path, engine="numpy", beam=-1)


def test_a_listener_of_whole_utterances_is_closed_once_it_has_finished(models, tmp_path: Path) -> None:
    checkpoint = checkpoint_of("conformer-transducer-s")
    front_end = dataclasses.replace(checkpoint.front_end, normalize="per_feature")
    recognizer = dataclasses.replace(checkpoint, front_end=front_end).recognizer()
    listener = recognizer.listen()
    listener.push(np.ones(4000, np.float32))
    listener.finish()
    with pytest.raises(ValueError, match="push after finish: listen anew"):
        listener.push(np.ones(10, np.float32))
    assert listener.duration_s == 0.25
