"""Files of version 3: an integer-only program, whose constants are levels and whole numbers."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.pack.test_container import crc32_hex
from tests.pack.test_damaged_files import manifest_of, rebuilt, refused
from tests.pack.test_parts import file_of, payloads_of
from tests.runtime.integer_programs import integer_program, levels_for

from subtone.pack import PackedFileReason, PackedModel, packed_sizes, read_packed, write_packed
from subtone.program import Constant, Door, IntegerConv1d, IntegerWeight, Program
from subtone.runtime.engine import NumpyEngine

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "v3-tiny.subtone"
EMPTY: dict[str, dict] = {"front_end": {}, "tokenizer": {}, "recipe": {}, "provenance": {}}


def tiny_model() -> PackedModel:
    """Two products that share multipliers and shifts: 3 bits with all there may be, and a codebook of three levels."""
    first = IntegerWeight(codes=np.array([[1, 2, 7], [0, 5, 4]], np.uint8), shape=(2, 3), bits=3)
    second = IntegerWeight(
        codes=np.array([[0, 1], [2, 0]], np.uint8),
        shape=(2, 2, 1),
        bits=2,
        codebook=np.array([-128, 0, 127, 127], np.int8),
        num_levels=3,
    )
    shared = {"multiplier": "m", "shift": "s"}
    ops = (
        IntegerConv1d(
            input="x", output="y", weight="a", correction="q", offset="b", low=-127, high=127, **shared
        ),
        IntegerConv1d(input="y", output="z", weight="c", low=0, high=255, source="net.c", **shared),
    )
    program = Program(
        input="x", input_width=3, output="z", output_width=2, frames_per_step=1, ops=ops,
        doors=(Door(0.5, -127, 127),), output_scale=0.25,
    )  # fmt: skip
    constants: dict[str, Constant] = {
        "c": second,
        "b": np.array([1, -2], np.int64),
        "q": np.array([[2**40], [-1]], np.int64),
        "s": np.array([35, 1], np.int32),
        "m": np.array([[2**31 - 1], [-3]], np.int32),
        "a": first,
    }
    return PackedModel(program=program, constants=constants, **EMPTY)


def tiny_file_by_hand() -> bytes:
    """The file of `tiny_model`, from docs/file-format.md and nothing else."""
    a_codes = bytes([0xD1, 0x51, 0x02])  # 1 2 7 0 5 4 in 3 bits: 100 010 111 000 101 001
    c_codes = bytes([0b00_10_01_00])  # 0 1 2 0 in 2 bits, the first lowest
    c_codebook = b"\x80\x00\x7f\x7f"
    m_value = b"\xff\xff\xff\x7f" + b"\xfd\xff\xff\xff"
    s_value = b"\x23\0\0\0" + b"\1\0\0\0"
    q_value = bytes(5) + b"\1\0\0" + b"\xff" * 8
    b_value = b"\1" + bytes(7) + b"\xfe" + b"\xff" * 7
    codes = a_codes + bytes(61) + c_codes + bytes(63)
    rest = c_codebook + m_value + s_value + q_value + b_value + bytes(12)
    a_crc, c_crc = crc32_hex(a_codes), crc32_hex(c_codes) + crc32_hex(c_codebook)
    m_crc, s_crc, q_crc, b_crc = map(crc32_hex, (m_value, s_value, q_value, b_value))
    manifest = (
        '{"program":{"input":"x","input_width":3,"output":"z","output_width":2,"frames_per_step":1,'
        '"doors":[[0.5,-127,127]],"output_scale":0.25,"ops":['
        '{"op":"integer_conv1d","input":"x","output":"y","weight":"a","low":-127,"high":127,'
        '"multiplier":"m","shift":"s","correction":"q","offset":"b"},'
        '{"op":"integer_conv1d","input":"y","output":"z","weight":"c","low":0,"high":255,'
        '"source":"net.c","multiplier":"m","shift":"s"}]},'
        '"front_end":{},"tokenizer":{},"recipe":{},"provenance":{},'
        '"constants":{"weights":[],"floats":[],'
        f'"levels":[["a",[2,3],3,0,"{a_crc}"],["c",[2,2,1],2,3,"{c_crc}"]],'
        f'"integers":[["m",[2,1],"int32","{m_crc}"],["s",[2],"int32","{s_crc}"],'
        f'["q",[2,1],"int64","{q_crc}"],["b",[2],"int64","{b_crc}"]]}}}}'
    )
    as_string = manifest.replace('"', '\\"')
    header = (
        '{"__metadata__":{"format":"subtone","version":"3",'
        f'"manifest_crc32":"{crc32_hex(manifest.encode())}","manifest":"{as_string}"}},'
        '"codes":{"dtype":"U8","shape":[128],"data_offsets":[0,128]},'
        '"rest":{"dtype":"U8","shape":[64],"data_offsets":[128,192]}}'
    ).encode()
    header += b" " * (-(8 + len(header)) % 64)
    return struct.pack("<Q", len(header)) + header + codes + rest


def assert_same(left: Constant, right: Constant) -> None:
    assert type(left) is type(right)
    if not isinstance(left, IntegerWeight):
        assert left.dtype == right.dtype
        assert np.array_equal(left, right)
        return
    assert (left.shape, left.bits, left.num_levels) == (right.shape, right.bits, right.num_levels)
    assert np.array_equal(left.codes, right.codes)
    assert np.array_equal(left.levels(), right.levels())
    assert (left.codebook is None) == (right.codebook is None)
    assert left.codebook is None or np.array_equal(left.codebook, right.codebook)


def test_the_writer_gives_the_bytes_written_by_hand() -> None:
    assert file_of(tiny_model()) == tiny_file_by_hand()


def test_the_kept_file_of_version_3_loads_and_runs() -> None:
    assert GOLDEN.read_bytes() == tiny_file_by_hand()
    model, expected = read_packed(GOLDEN), tiny_model()
    assert model.program == expected.program
    assert list(model.constants) == ["a", "c", "m", "s", "q", "b"]
    for name, constant in expected.constants.items():
        assert_same(constant, model.constants[name])
    x = np.array([[127, -127, 1], [0, 0, 0]], np.int32)
    found = NumpyEngine(model.program, model.constants).run(x)
    assert np.array_equal(found, NumpyEngine(expected.program, expected.constants).run(x))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6))
def test_any_integer_only_program_comes_back_and_runs_alike(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    program, constants = integer_program(rng, int(rng.integers(1, 6)))
    path = tmp_path_factory.mktemp("levels") / "m.subtone"
    write_packed(path, PackedModel(program=program, constants=constants, **EMPTY))
    back = read_packed(path)
    assert back.program == program
    assert set(back.constants) == set(constants)
    for name, constant in constants.items():
        assert_same(constant, back.constants[name])
    x = levels_for(rng, program, 9)
    runs = [NumpyEngine(each.program, each.constants).run(x) for each in (back, PackedModel(program=program, constants=constants, **EMPTY))]  # fmt: skip
    assert np.array_equal(*runs)
    assert file_of(back) == path.read_bytes()


def test_sizes_say_where_every_byte_goes() -> None:
    sizes = packed_sizes(GOLDEN)
    assert sizes.file_bytes == GOLDEN.stat().st_size
    assert sizes.sections == {"codes": 4, "codebook": 4, "value": 48}
    assert {name: sizes.constants[name].num_bytes for name in "acmq"} == {"a": 3, "c": 5, "m": 8, "q": 16}


@pytest.mark.parametrize(
    ("kind", "index", "row", "complaint"),
    [
        ("levels", 0, ["a", [2, 3], 3, 0], r"constants.levels[0] is not a row of 5"),
        ("levels", 0, "a", r"constants.levels[0] is not a row of 5"),
        ("levels", 0, ["a", [2, 3], 9, 0, "0" * 8], r"constants.levels[0] has bits=9, not 1 to 8"),
        ("levels", 0, ["a", [2, 3], 3, 9, "0" * 8], r"constants.levels[0] has num_levels=9"),
        ("levels", 0, ["a", [6], 3, 0, "0" * 8], r"constants.levels[0] has a weight with too few dimensions"),
        ("levels", 0, ["a", [2, 3], 3, 0, "0" * 16], r"constants.levels[0] has the checksums"),
        ("levels", 0, ["m", [2, 3], 3, 0, "0" * 8], r"a constant is listed twice"),
        ("integers", 0, ["m", [2, 1], "int32"], r"constants.integers[0] is not a row of 4"),
        ("integers", 0, ["m", [2, 1], "int8", "0" * 8], r"constants.integers[0] has the type 'int8', not int32"),
        ("integers", 0, ["m", [2, 1], None, "0" * 8], r"constants.integers[0] has the type None, not int32"),
        ("integers", 0, ["m", [2, 0], "int32", "0" * 8], r"constants.integers[0] has the shape [2, 0]"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_are_refused(kind, index, row, complaint, tmp_path: Path) -> None:
    data = tiny_file_by_hand()
    manifest = manifest_of(data)
    manifest["constants"][kind][index] = row
    error = refused(tmp_path / "m.subtone", rebuilt(manifest, version="3", **payloads_of(data)))
    assert error.reason is PackedFileReason.CORRUPT_HEADER
    assert complaint in str(error)


def test_an_older_version_has_neither_levels_nor_integers(tmp_path: Path) -> None:
    data = tiny_file_by_hand()
    error = refused(tmp_path / "m.subtone", rebuilt(manifest_of(data), version="2", **payloads_of(data)))
    assert error.reason is PackedFileReason.CORRUPT_HEADER
    assert "constants does not have the keys ['floats', 'weights']" in str(error)


def test_damaged_levels_and_integers_are_told_by_their_name(tmp_path: Path) -> None:
    data = tiny_file_by_hand()
    start = len(data) - 192
    for place, name in (
        (start, "a"),
        (start + 64, "c"),
        (start + 128, "c"),
        (start + 132, "m"),
        (start + 148, "q"),
    ):
        damaged = bytearray(data)
        damaged[place] ^= 1
        error = refused(tmp_path / "m.subtone", bytes(damaged))
        assert (error.reason, error.tensor) == (PackedFileReason.CORRUPT_TENSOR, name)


def test_a_program_that_could_overflow_is_neither_written_nor_read(tmp_path: Path) -> None:
    model = tiny_model()
    constants = {**model.constants, "q": np.array([[2**62], [0]], np.int64)}
    with pytest.raises(
        ValueError, match=r"op 0 \(integer_conv1d of y\) may reach a total of .*, beyond 2\*\*62"
    ):
        file_of(dataclasses.replace(model, constants=constants))
    data = tiny_file_by_hand()
    manifest = manifest_of(data)
    manifest["program"]["ops"][0]["high"] = 2**31
    error = refused(tmp_path / "m.subtone", rebuilt(manifest, version="3", **payloads_of(data)))
    assert error.reason is PackedFileReason.BAD_PROGRAM
    assert "has low=-127 and high=2147483648; they must ascend" in str(error)
