"""The packed file: what goes in comes out, byte for byte as docs/file-format.md says, whole or not at all."""

from __future__ import annotations

import dataclasses
import errno
import os
import resource
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from subtone import numerics
from subtone.pack import PackedConstants, PackedModel, packed_sizes, read_packed, write_packed
from subtone.pack.container import packed_chunks
from subtone.program import Add, Affine, Constant, Conv1d, Program
from subtone.qtensor import QTensor

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "v1-tiny.subtone"


def tiny_model() -> PackedModel:
    """Two small products: 3 bits per channel with a bias, and a codebook of three levels in 2 bits."""
    first = QTensor(
        codes=np.array([[1, 2, 7], [0, 5, 4]], np.uint8),
        shape=(2, 3),
        scale=np.array([[0.5], [-0.25]], np.float32),
        zero_point=np.array([[4]], np.float32),
        bits=3,
    )
    second = QTensor(
        codes=np.array([[0, 1], [2, 0]], np.uint8),
        shape=(2, 2, 1),
        scale=np.array([[1]], np.float32),
        zero_point=np.array([[0]], np.float32),
        bits=2,
        codebook=np.array([-128, 0, 127, 127], np.int8),
        num_levels=3,
    )
    ops = (
        Conv1d(input="x", output="y", weight="a", bias="b", activation_bits=8),
        Conv1d(input="y", output="z", weight="c", relu=True, source="net.c"),
    )
    program = Program(input="x", input_width=3, output="z", output_width=2, frames_per_step=1, ops=ops)
    return PackedModel(
        program=program,
        constants={"c": second, "b": np.array([1, -2], np.float32), "a": first},
        front_end={"rate_hz": 16000, "window_s": 0.02},
        tokenizer={"tokens": ['"', "é"]},
        recipe={},
        provenance={"made": None},
    )


def crc32_hex(data: bytes) -> str:
    """CRC-32 as section 2 names it, one bit at a time."""
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ (0xEDB88320 if register & 1 else 0)
    return f"{register ^ 0xFFFFFFFF:08x}"


def tiny_file_by_hand() -> bytes:
    """The file of `tiny_model`, from docs/file-format.md and nothing else."""
    a_codes = bytes([0xD1, 0x51, 0x02])  # 1 2 7 0 5 4 in 3 bits: 100 010 111 000 101 001
    c_codes = bytes([0b00_10_01_00])  # 0 1 2 0 in 2 bits, the first lowest
    a_scale, a_zero_point = struct.pack("<2f", 0.5, -0.25), struct.pack("<f", 4)
    c_scale, c_zero_point, c_codebook = b"\0\0\x80\x3f", bytes(4), b"\x80\x00\x7f\x7f"
    b_value = struct.pack("<2f", 1, -2)
    codes = a_codes + bytes(61) + c_codes + bytes(63)
    rest = a_scale + a_zero_point + c_scale + c_zero_point + c_codebook + b_value + bytes(32)
    a_crc = "".join(map(crc32_hex, (a_codes, a_scale, a_zero_point)))
    c_crc = "".join(map(crc32_hex, (c_codes, c_scale, c_zero_point, c_codebook)))
    manifest = (
        '{"program":{"input":"x","input_width":3,"output":"z","output_width":2,"frames_per_step":1,"ops":['
        '{"op":"conv1d","input":"x","output":"y","weight":"a","bias":"b","activation_bits":8},'
        '{"op":"conv1d","input":"y","output":"z","weight":"c","relu":true,"source":"net.c"}]},'
        '"front_end":{"rate_hz":16000,"window_s":0.02},"tokenizer":{"tokens":["\\"","é"]},'
        '"recipe":{},"provenance":{"made":null},"constants":{"weights":['
        f'["a",[2,3],3,0,[2,1],[1,1],"{a_crc}"],["c",[2,2,1],2,3,[1,1],[1,1],"{c_crc}"]],'
        f'"floats":[["b",[2],"{crc32_hex(b_value)}"]]}}}}'
    )
    as_string = manifest.replace("\\", "\\\\").replace('"', '\\"')
    header = (
        '{"__metadata__":{"format":"subtone","version":"1",'
        f'"manifest_crc32":"{crc32_hex(manifest.encode())}","manifest":"{as_string}"}},'
        '"codes":{"dtype":"U8","shape":[128],"data_offsets":[0,128]},'
        '"rest":{"dtype":"U8","shape":[64],"data_offsets":[128,192]}}'
    ).encode()
    header += b" " * (-(8 + len(header)) % 64)
    return struct.pack("<Q", len(header)) + header + codes + rest


def assert_same(left: Constant, right: Constant) -> None:
    if isinstance(left, QTensor):
        assert isinstance(right, QTensor)
        for field in dataclasses.fields(QTensor):
            ours, theirs = getattr(left, field.name), getattr(right, field.name)
            if isinstance(ours, np.ndarray):
                assert ours.dtype == theirs.dtype
            assert np.array_equal(ours, theirs), field.name
    else:
        assert not isinstance(right, QTensor)
        assert left.dtype == right.dtype
        assert np.array_equal(left, right)


# The bytes -------------------------------------------------------------------------------


def test_the_writer_gives_the_bytes_written_by_hand(tmp_path: Path) -> None:
    write_packed(tmp_path / "m.subtone", tiny_model())
    assert (tmp_path / "m.subtone").read_bytes() == tiny_file_by_hand()


def test_the_reader_understands_the_file_written_by_hand(tmp_path: Path) -> None:
    path, expected = tmp_path / "hand.subtone", tiny_model()
    path.write_bytes(tiny_file_by_hand())
    model = read_packed(path)
    for name in ("program", "front_end", "tokenizer", "recipe", "provenance"):
        assert getattr(model, name) == getattr(expected, name)
    assert list(model.constants) == ["a", "c", "b"]
    for name, constant in expected.constants.items():
        assert_same(constant, model.constants[name])


def test_the_kept_file_of_version_1_still_loads() -> None:
    assert GOLDEN.read_bytes() == tiny_file_by_hand()
    assert_same(read_packed(GOLDEN).constants["a"], tiny_model().constants["a"])


def test_the_safetensors_library_opens_our_file(tmp_path: Path) -> None:
    write_packed(tmp_path / "m.subtone", tiny_model())
    payloads = safetensors.numpy.load_file(tmp_path / "m.subtone")
    assert {name: (part.dtype, part.shape) for name, part in payloads.items()} == {
        "codes": (np.uint8, (128,)),
        "rest": (np.uint8, (64,)),
    }
    assert payloads["codes"][:3].tolist() == [0xD1, 0x51, 0x02]
    with safetensors.safe_open(tmp_path / "m.subtone", "numpy") as file:
        assert file.metadata()["format"] == "subtone"


def test_equal_models_are_equal_files_whatever_the_order_of_their_constants() -> None:
    model = tiny_model()
    turned = dataclasses.replace(model, constants=dict(reversed(model.constants.items())))
    assert b"".join(packed_chunks(model)) == b"".join(packed_chunks(turned))


# There and back --------------------------------------------------------------------------


def chain(weights: list[Constant]) -> PackedModel:
    """A program that reads each of `weights`, square in its channels, one after the other."""
    ops, constants = [], {}
    for index, weight in enumerate(weights):
        kernel = weight.shape[2] if len(weight.shape) > 2 else 1
        is_depthwise = weight.shape[1] == 1 and weight.shape[0] > 1
        name, previous = f"w{index}", f"v{index - 1}" if index else "x"
        ops.append(
            Conv1d(
                input=previous,
                output=f"v{index}",
                weight=name,
                kernel=kernel,
                padding=kernel // 2,
                groups=weight.shape[0] if is_depthwise else 1,
            )
        )
        constants[name] = weight
    width = weights[0].shape[0]
    program = Program(
        input="x",
        input_width=width,
        output=ops[-1].output,
        output_width=width,
        frames_per_step=1,
        ops=tuple(ops),
    )
    empty: dict[str, dict] = {"front_end": {}, "tokenizer": {}, "recipe": {}, "provenance": {}}
    return PackedModel(program=program, constants=constants, **empty)


def quantized(bits: int, shape: tuple[int, ...], granularity: str, seed: int) -> QTensor:
    generator = np.random.default_rng(seed)
    weight = generator.standard_normal(shape).astype(np.float32)
    rows = 1 if granularity == "tensor" else shape[0]
    if granularity == "codebook":
        levels = np.unique(generator.integers(-128, 128, generator.integers(1, 2**bits + 1))).astype(np.int8)
        return QTensor.on_codebook(weight, np.full((rows, 1), 2, np.float32), levels, bits)
    groups = shape[1] // 2 * int(np.prod(shape[2:])) if granularity == "group" else 1
    absmax = np.abs(weight).reshape(rows, groups, -1).max(axis=2)
    if bits == 1:
        return QTensor.on_grid(weight, numerics.one_bit_grid(absmax), 1, is_symmetric=True)
    if granularity == "group":
        return QTensor.on_grid(
            weight, numerics.asymmetric_grid(-absmax, absmax, bits), bits, is_symmetric=False
        )
    return QTensor.on_grid(weight, numerics.symmetric_grid(absmax, bits), bits, is_symmetric=True)


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_width_and_granularity_comes_back_as_it_went_in(bits: int, tmp_path: Path) -> None:
    shapes = {"tensor": (4, 4, 3), "channel": (4, 1, 5), "group": (4, 4, 3), "codebook": (4, 4)}
    weights: list[Constant] = [
        quantized(bits, shape, granularity, seed=bits) for granularity, shape in shapes.items()
    ]
    model = chain([*weights, np.eye(4, dtype=np.float32)])
    write_packed(tmp_path / "m.subtone", model)
    back = read_packed(tmp_path / "m.subtone")
    assert back.program == model.program
    for name, constant in model.constants.items():
        assert_same(constant, back.constants[name])


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(st.integers(1, 8), st.sampled_from(["tensor", "channel", "codebook"]), st.integers(1, 9)),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 9),
)
def test_any_chain_of_weights_comes_back(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[tuple[int, str, int]], width: int
) -> None:
    weights: list[Constant] = [
        quantized(bits, (width, width, taps), granularity, seed=taps) for bits, granularity, taps in kinds
    ]
    path = tmp_path_factory.mktemp("chain") / "m.subtone"
    write_packed(path, chain(weights))
    for expected, found in zip(weights, read_packed(path).constants.values(), strict=True):
        assert_same(expected, found)


def test_a_model_without_weights_or_without_any_constant_comes_back(tmp_path: Path) -> None:
    ops = (Add(left="x", right="x", output="y"), Affine(input="y", output="z", gain="g", bias="b"))
    empty: dict[str, dict] = {"front_end": {}, "tokenizer": {}, "recipe": {}, "provenance": {}}
    for ops_kept, output, constants in (
        (ops, "z", {"g": np.ones(2, np.float32), "b": np.zeros(2, np.float32)}),
        (ops[:1], "y", {}),
    ):
        program = Program(
            input="x", input_width=2, output=output, output_width=2, frames_per_step=1, ops=ops_kept
        )
        write_packed(tmp_path / "m.subtone", PackedModel(program=program, constants=constants, **empty))
        assert list(read_packed(tmp_path / "m.subtone").constants) == list(constants)


def test_a_model_read_from_a_file_can_be_written_over_it(tmp_path: Path) -> None:
    path = tmp_path / "m.subtone"
    write_packed(path, tiny_model())
    write_packed(path, read_packed(path))
    assert path.read_bytes() == tiny_file_by_hand()


def test_constants_are_unpacked_on_access_and_not_kept(tmp_path: Path) -> None:
    write_packed(tmp_path / "m.subtone", tiny_model())
    constants = read_packed(tmp_path / "m.subtone").constants
    assert isinstance(constants, PackedConstants)
    assert constants["a"] is not constants["a"]
    assert len(constants) == 3
    assert "a" in constants
    assert "missing" not in constants
    constants["b"][0] = 7
    assert constants["b"][0] == 1


def test_sizes_say_where_every_byte_goes(tmp_path: Path) -> None:
    path = tmp_path / "m.subtone"
    write_packed(path, tiny_model())
    for source in (path, tiny_model()):
        sizes = packed_sizes(source)
        assert sizes.file_bytes == path.stat().st_size
        assert sizes.header_bytes == path.stat().st_size - 128 - 64
        # a: 3 bytes of codes, scale 8, zero_point 4; c: 1, 4, 4, codebook 4; b: 8
        assert sizes.sections == {"codes": 4, "scale": 12, "zero_point": 8, "codebook": 4, "value": 8}
        assert sizes.padding_bytes == 128 + 64 - 36
        a, b, c = (sizes.constants[name] for name in "abc")
        assert (a.bits, a.grid, a.granularity, a.num_distinct, a.num_bytes) == (
            3,
            "symmetric",
            "channel",
            6,
            15,
        )
        assert (c.bits, c.grid, c.num_distinct) == (2, "codebook", 3)
        assert (b.is_float, b.bits, b.num_bytes) == (True, 32, 8)
        assert not a.is_float


# Refused at the door ---------------------------------------------------------------------


def with_constant(name: str, value: object) -> PackedModel:
    model = tiny_model()
    return dataclasses.replace(model, constants={**model.constants, name: value})


def broken_qtensor() -> QTensor:
    weight = tiny_model().constants["a"]
    assert isinstance(weight, QTensor)
    weight.scale[0] = np.nan
    return weight


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (with_constant("b", np.array([1, np.nan], np.float32)), r"b is nan at \[1\]; .* must be finite"),
        (with_constant("b", np.array([np.inf, 1], np.float32)), r"b is inf at \[0\]"),
        (
            with_constant("b", np.array([1, 2.0])),
            r"b is float64; a constant is a QTensor, an IntegerWeight, or an array of float32, int32 or int64",
        ),
        (with_constant("b", [1, 2]), r"b is list; a constant is"),
        (with_constant("b", np.zeros(3, np.float32)), r"op 0 \(conv1d of y\) needs bias of \(2,\)"),
        (with_constant("a", broken_qtensor()), r"a: not a QTensor: scale is not finite"),
        (with_constant("extra", np.ones(2, np.float32)), r"no operation reads the constant extra \(1 such\)"),
        (with_constant("a\n", np.ones(2, np.float32)), r"a constant is named 'a\\n'; use 1 to 200 printable"),
        (with_constant("", np.ones(2, np.float32)), r"a constant is named ''"),
        (with_constant("b", np.zeros((), np.float32)), r"b has the shape \(\)"),
        (dataclasses.replace(tiny_model(), recipe={"lr": float("nan")}), r"recipe.lr is nan; only finite"),
        (dataclasses.replace(tiny_model(), recipe={"a": [{1: 2}]}), r"recipe.a\[0\] has the key 1, which is"),
        (dataclasses.replace(tiny_model(), recipe={"p": Path("x")}), r"recipe.p is a PosixPath; use text"),
        (dataclasses.replace(tiny_model(), recipe={"n": 2**63}), r"recipe.n is a number beyond 64 bits"),
        (dataclasses.replace(tiny_model(), recipe={"s": "\ud800"}), r"recipe.s holds half a surrogate pair"),
        (dataclasses.replace(tiny_model(), recipe=[]), r"recipe is a list; a packed file needs a dict"),
        (dataclasses.replace(tiny_model(), recipe={"x": "y" * 2**24}), r"the header takes \d+ bytes"),
        (
            dataclasses.replace(
                tiny_model(), program=dataclasses.replace(tiny_model().program, frames_per_step=np.int64(1))
            ),
            r"the program's frames_per_step=np.int64\(1\) is not a valid int",
        ),
    ],
)
def test_a_model_that_would_not_load_is_not_written(
    model: PackedModel, complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        write_packed(tmp_path / "m.subtone", model)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


# Whole or not at all ---------------------------------------------------------------------


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("failure", "expected", "text"),
    [
        (full_disk, OSError, "No space left on device; nothing was written"),
        (interrupted, KeyboardInterrupt, None),
    ],
)
@pytest.mark.parametrize("before", [None, b"an older file"])
def test_a_failure_leaves_what_was_there_and_no_rest(
    step: str,
    failure: Callable,
    expected: type[BaseException],
    text: str | None,
    before: bytes | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "m.subtone"
    if before is not None:
        path.write_bytes(before)
    monkeypatch.setattr(os, step, failure)
    with pytest.raises(expected, match=text):
        write_packed(path, tiny_model())
    assert [entry.name for entry in tmp_path.iterdir()] == ([] if before is None else ["m.subtone"])
    assert before is None or path.read_bytes() == before


def test_a_write_that_stops_half_way_leaves_nothing(tmp_path: Path) -> None:
    model = chain([np.eye(64, dtype=np.float32)])  # 16 KiB, of which the system takes 4
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match="nothing was written") as caught:
            write_packed(tmp_path / "m.subtone", model)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert not list(tmp_path.iterdir())


def test_a_link_stays_a_link_and_permissions_are_the_usual(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link.subtone").symlink_to(tmp_path / "real" / "m.subtone")
    write_packed(tmp_path / "link.subtone", tiny_model())
    assert (tmp_path / "link.subtone").is_symlink()
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "real" / "m.subtone").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_place_that_cannot_hold_a_file_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*missing; make it first"):
        write_packed(tmp_path / "missing" / "m.subtone", tiny_model())
    with pytest.raises(IsADirectoryError, match=r"is not a file that can be replaced"):
        write_packed(tmp_path, tiny_model())
