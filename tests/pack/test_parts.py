"""Files of version 2: a model of several programs, of which one hears and the others are its parts."""

from __future__ import annotations

import dataclasses
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from tests.pack.test_container import tiny_model
from tests.pack.test_damaged_files import manifest_of, rebuilt, refused

from subtone.pack import PackedFileReason, PackedModel, read_packed, write_packed
from subtone.pack.container import packed_chunks
from subtone.program import Add, Conv1d, Embedding, Program
from subtone.qtensor import QTensor

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "v2-tiny.subtone"


def with_parts() -> PackedModel:
    """The tiny model as an encoder, a predictor of its own constants, and a joiner of two inputs that shares one."""
    model = tiny_model()
    embedding = np.arange(6, dtype=np.float32).reshape(3, 2)
    predictor = Program(
        input="labels",
        input_width=1,
        output="rows",
        output_width=2,
        frames_per_step=1,
        ops=(Embedding(input="labels", output="rows", weight="table"),),
    )
    shared, weight = next(
        (name, value) for name, value in model.constants.items() if isinstance(value, QTensor)
    )
    joiner = Program(
        input="a",
        input_width=weight.shape[1],
        others=(("b", weight.shape[1]),),
        output="y",
        output_width=weight.shape[0],
        frames_per_step=1,
        ops=(
            Add(left="a", right="b", output="s"),
            Conv1d(input="s", output="y", weight=shared, activation_bits=8),
        ),
    )
    return dataclasses.replace(
        model,
        parts={"predictor": predictor, "joiner": joiner},
        constants={**model.constants, "table": embedding},
    )


def file_of(model: PackedModel) -> bytes:
    return b"".join(bytes(chunk) for chunk in packed_chunks(model))


def payloads_of(data: bytes) -> dict[str, bytes]:
    """`codes` and `rest` of a file."""
    start = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:start])
    size = header["codes"]["shape"][0]
    return {"codes": data[start : start + size], "rest": data[start + size :]}


def test_parts_come_back_in_their_order_with_all_constants(tmp_path: Path) -> None:
    model = with_parts()
    write_packed(tmp_path / "m.subtone", model)
    read = read_packed(tmp_path / "m.subtone")
    assert (read.program, dict(read.parts)) == (model.program, dict(model.parts))
    assert list(read.parts) == ["predictor", "joiner"]
    assert list(read.constants)[-1] == "table"
    assert set(read.constants) == set(model.constants)
    assert np.array_equal(read.constants["table"], model.constants["table"])


def test_a_file_has_the_oldest_version_that_can_hold_it() -> None:
    for model, version in ((tiny_model(), b'"version":"1"'), (with_parts(), b'"version":"2"')):
        assert version in file_of(model)[:100]


def test_version_2_is_written_as_it_always_was() -> None:
    assert file_of(with_parts()) == GOLDEN.read_bytes()


def test_a_constant_that_no_program_reads_is_refused() -> None:
    model = with_parts()
    with pytest.raises(ValueError, match="no operation reads the constant more"):
        packed_chunks(
            dataclasses.replace(model, constants={**model.constants, "more": np.zeros(2, np.float32)})
        )


@pytest.mark.parametrize(
    ("parts", "reason", "complaint"),
    [
        ([], PackedFileReason.CORRUPT_HEADER, "parts is not an object"),
        ({"": {}}, PackedFileReason.CORRUPT_HEADER, "name"),
        ({"joiner": {}}, PackedFileReason.BAD_PROGRAM, "the program's keys are"),
        ({}, PackedFileReason.CORRUPT_HEADER, "parts is empty"),
    ],
)
def test_parts_that_are_none_are_refused(parts, reason, complaint, tmp_path: Path) -> None:
    sound = file_of(with_parts())
    manifest = manifest_of(sound)
    error = refused(
        tmp_path / "m.subtone", rebuilt({**manifest, "parts": parts}, version="2", **payloads_of(sound))
    )
    assert error.reason is reason
    assert complaint in str(error)


def test_version_1_has_no_parts(tmp_path: Path) -> None:
    sound = file_of(with_parts())
    error = refused(tmp_path / "m.subtone", rebuilt(manifest_of(sound), version="1", **payloads_of(sound)))
    assert error.reason is PackedFileReason.CORRUPT_HEADER
    assert "other keys" in str(error)
    assert "parts" in json.dumps(manifest_of(sound))
