"""Files that are not what they claim: refused with the right reason, in one line, at once and cheaply.

Every case starts from the sound file in tests/golden, which docs/file-format.md describes byte by
byte (tests/pack/test_container.py).
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from subtone.pack import PackedFileError, PackedFileReason, packed_sizes, read_packed
from subtone.pack.errors import REMEDIES

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "v1-tiny.subtone"
SOUND = GOLDEN.read_bytes()
START = 8 + struct.unpack("<Q", SOUND[:8])[0]  # of the payload codes; rest follows 128 bytes later
MAGIC = b'{"__metadata__":{"format":"subtone",'


def refused(path: Path, data: bytes | None = None) -> PackedFileError:
    """The error that reading gives; its text must be one printable line that names the file and a remedy."""
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(PackedFileError) as caught:
        read_packed(path)
    error = caught.value
    assert str(error).isprintable()
    assert len(str(error)) < 800
    assert str(error).startswith(f"{path}: ")
    assert str(error).endswith(f"; {REMEDIES[error.reason]}")
    assert error.path == str(path)
    return error


def manifest_of(data: bytes) -> dict:
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    return json.loads(header["__metadata__"]["manifest"])


def crc32_hex(data: bytes) -> str:
    return f"{zlib.crc32(data):08x}"


def rebuilt(
    manifest: dict | str,
    *,
    codes: bytes = SOUND[START : START + 128],
    rest: bytes = SOUND[START + 128 :],
    version: str = "1",
    table: dict | None = None,
) -> bytes:
    """A file with this manifest and right checksums of it: what a hostile or mistaken writer makes."""
    text = manifest if isinstance(manifest, str) else json.dumps(manifest)
    end = len(codes) + len(rest)
    metadata = {
        "format": "subtone",
        "version": version,
        "manifest_crc32": crc32_hex(text.encode("utf-8", "surrogatepass")),
        "manifest": text,
    }
    payloads = {
        "codes": {"dtype": "U8", "shape": [len(codes)], "data_offsets": [0, len(codes)]},
        "rest": {"dtype": "U8", "shape": [len(rest)], "data_offsets": [len(codes), end]},
    }
    document = {"__metadata__": metadata, **(payloads if table is None else table)}
    return framed(json.dumps(document, separators=(",", ":")).encode()) + codes + rest


def framed(header: bytes) -> bytes:
    padded = header + b" " * (-(8 + len(header)) % 64)
    return struct.pack("<Q", len(padded)) + padded


def with_row(kind: str, index: int, place: int, value: object) -> bytes:
    manifest = manifest_of(SOUND)
    manifest["constants"][kind][index][place] = value
    return rebuilt(manifest)


# Exhaustive damage -----------------------------------------------------------------------


def test_the_sound_file_is_rebuilt_and_read(tmp_path: Path) -> None:
    path = tmp_path / "m.subtone"
    path.write_bytes(rebuilt(manifest_of(SOUND)))
    assert list(read_packed(path).constants) == ["a", "c", "b"]


def test_every_truncation_is_called_truncated(tmp_path: Path) -> None:
    path = tmp_path / "m.subtone"
    path.write_bytes(SOUND)
    for size in reversed(range(len(SOUND))):
        os.truncate(path, size)
        error = refused(path)
        assert error.reason is PackedFileReason.TRUNCATED, size
        assert error.offset == size


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "m.subtone"
    path.write_bytes(SOUND)
    with open(path, "rb+", buffering=0) as file:  # in place: opening a file to write may take milliseconds
        for position, byte in enumerate(SOUND):
            for bit in range(8):
                os.pwrite(file.fileno(), bytes([byte ^ 1 << bit]), position)
                with pytest.raises(PackedFileError) as caught:
                    read_packed(path)
                if position >= START:
                    assert caught.value.reason is PackedFileReason.CORRUPT_TENSOR, position
                    assert START <= caught.value.offset <= position
            os.pwrite(file.fileno(), bytes([byte]), position)
    assert path.read_bytes() == SOUND


def test_more_bytes_than_announced_are_refused(tmp_path: Path) -> None:
    for extra in (1, 64):
        error = refused(tmp_path / "m.subtone", SOUND + bytes(extra))
        assert error.reason is PackedFileReason.CORRUPT_HEADER
        assert error.offset == len(SOUND)


def test_a_damaged_section_is_named_with_its_place(tmp_path: Path) -> None:
    # docs/file-format.md: a.codes, c.codes from START; a.scale 8 bytes, a.zero_point 4, c.scale 4, ...
    for position, tensor, role, offset in (
        (START + 2, "a", "codes", START),
        (START + 64, "c", "codes", START + 64),
        (START + 128 + 5, "a", "scale", START + 128),
        (START + 128 + 8, "a", "zero_point", START + 128 + 8),
        (START + 128 + 21, "c", "codebook", START + 128 + 20),
        (START + 128 + 24, "b", "value", START + 128 + 24),
    ):
        data = bytearray(SOUND)
        data[position] ^= 0x10
        error = refused(tmp_path / "m.subtone", data)
        assert (error.reason, error.tensor, error.offset) == (
            PackedFileReason.CORRUPT_TENSOR,
            tensor,
            offset,
        )
        assert f"of its {role} differ from their checksum (tensor {tensor}, byte {offset})" in str(error)


def test_swapped_sections_are_found(tmp_path: Path) -> None:
    codes, rest = SOUND[START : START + 128], SOUND[START + 128 :]
    swapped = SOUND[:START] + codes[64:] + codes[:64] + rest
    error = refused(tmp_path / "m.subtone", swapped)
    assert (error.reason, error.tensor) == (PackedFileReason.CORRUPT_TENSOR, "a")


@settings(deadline=None, max_examples=300)
@given(data=st.binary(max_size=400), is_header=st.booleans())
def test_random_bytes_are_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, is_header: bool
) -> None:
    refused(tmp_path_factory.mktemp("random") / "m.subtone", framed(MAGIC + data) if is_header else data)


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_a_manifest_with_any_value_replaced_is_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Right checksums, wrong meaning: never another exception than PackedFileError."""
    manifest = manifest_of(SOUND)
    holder, key = manifest, data.draw(st.sampled_from(["program", "constants"]))
    while isinstance(holder[key], (dict, list)) and holder[key] and data.draw(st.integers(0, 5)):
        holder = holder[key]
        key = data.draw(st.sampled_from(sorted(holder) if isinstance(holder, dict) else range(len(holder))))
    numbers = st.integers(-(2**70), 2**70) | st.sampled_from([0, 1, 2, 3, 4, 8, 2**31, 2**62])
    text = st.sampled_from(["", "a", "b", "c", "x", "y", "conv1d", "affine"]) | st.text(max_size=5)
    json_values = st.recursive(
        st.none() | st.booleans() | numbers | st.floats() | text,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=3),
        max_leaves=6,
    )
    holder[key] = data.draw(json_values)
    path = tmp_path_factory.mktemp("replaced") / "m.subtone"
    path.write_bytes(rebuilt(manifest))
    with contextlib.suppress(PackedFileError):
        model = read_packed(path)
        assert all(model.constants[name] is not None for name in model.constants)


# Other files -----------------------------------------------------------------------------


def as_zip() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", b"x" * 200)
    return stream.getvalue()


def as_tar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model_config.yaml"))
    return stream.getvalue()


@pytest.mark.parametrize(
    "make",
    [
        as_zip,
        as_tar,
        lambda: safetensors.numpy.save({"w": np.ones(4, np.float32)}),
        lambda: safetensors.numpy.save({"w": np.ones(4, np.float32)}, metadata={"format": "pt"}),
        lambda: SOUND[8:],
        lambda: b"\x1f\x8b" + SOUND,
        lambda: b"just some text, long enough to be looked at",
        lambda: bytes(1000),
    ],
    ids=["zip", "nemo", "safetensors", "safetensors-pt", "shifted", "gzip", "text", "zeros"],
)
def test_another_kind_of_file_is_not_subtone(make: Callable[[], bytes], tmp_path: Path) -> None:
    error = refused(tmp_path / "m.subtone", make())
    assert error.reason is PackedFileReason.NOT_SUBTONE
    assert "this is not a .subtone file; give a file that `subtone pack` wrote" in str(error)


def test_a_newer_version_is_told_whatever_else_the_file_holds(tmp_path: Path) -> None:
    files = [
        rebuilt(manifest_of(SOUND), version="4"),
        framed(MAGIC + b'"version":"12","new":"thing"},"other":{}}'),
    ]
    for data, version in zip(files, ("4", "12"), strict=True):
        error = refused(tmp_path / "m.subtone", data)
        assert error.reason is PackedFileReason.NEWER_VERSION
        assert f"the file has version {version}, this subtone reads up to 3; upgrade subtone" in str(error)


@pytest.mark.parametrize("version", ["0", "01", "-1", "1.0", "", "²", "1" * 5000])
def test_a_version_that_is_no_number_is_a_corrupt_header(version: str, tmp_path: Path) -> None:
    error = refused(tmp_path / "m.subtone", rebuilt(manifest_of(SOUND), version=version))
    assert error.reason is PackedFileReason.CORRUPT_HEADER
    assert "its version is" in str(error)


def test_what_is_no_file_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no\.subtone: there is no such file; give the path") as lost:
        read_packed(tmp_path / "no.subtone")
    with pytest.raises(IsADirectoryError, match=r"is a folder; give the path") as folder:
        packed_sizes(tmp_path)
    assert "\n" not in f"{lost.value}{folder.value}"
    os.mkfifo(tmp_path / "pipe")
    assert "a device or a pipe" in str(refused(tmp_path / "pipe"))
    (tmp_path / "empty").touch()
    assert refused(tmp_path / "empty").reason is PackedFileReason.TRUNCATED


def test_a_file_that_may_not_be_read_keeps_its_own_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(GOLDEN))

    monkeypatch.setattr("builtins.open", denied)
    with pytest.raises(PermissionError, match="v1-tiny"):
        read_packed(GOLDEN)


def test_a_path_with_a_line_break_still_gives_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a\n\x1b[31mb"
    path.write_bytes(b"not this" * 9)
    with pytest.raises(PackedFileError, match=re.escape(r"a\n\x1b[31mb: this is not")):
        read_packed(path)


# Hostile headers -------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, 55, 57, 2**24 + 56, 2**31, 2**63, 2**64 - 1, 2**64 - 8])
def test_an_impossible_header_length_is_refused_without_allocating_it(length: int, tmp_path: Path) -> None:
    (tmp_path / "m.subtone").write_bytes(struct.pack("<Q", length) + SOUND[8:])
    tracemalloc.start()
    error = refused(tmp_path / "m.subtone")
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert error.reason is PackedFileReason.CORRUPT_HEADER
    assert peak_bytes < 1_000_000


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{",
        "{}",
        "[" * 100_000,
        "[" * 40 + "]" * 40,
        "9" * 5000,
        "NaN",
        json.dumps(manifest_of(SOUND)).replace('"made": null', '"made": NaN'),
        json.dumps(manifest_of(SOUND)).replace('"made": null', '"made": 1e999'),
        json.dumps(manifest_of(SOUND)).replace('"made": null', '"made": 1, "made": 2'),
        json.dumps(manifest_of(SOUND)).replace('"made": null', '"made": 18446744073709551616'),
        json.dumps(manifest_of(SOUND)).replace('"made": null', '"made": "\\ud800"'),
        json.dumps(manifest_of(SOUND)).replace('"made": null', '"made": ' + "[" * 40 + "]" * 40),
        json.dumps(manifest_of(SOUND)).replace('"recipe": {}', '"recipe": []'),
        json.dumps(manifest_of(SOUND)).replace('"recipe"', '"receipt"'),
        json.dumps(manifest_of(SOUND)).replace('{"program"', '{"code": "import os", "program"'),
        json.dumps(manifest_of(SOUND)).replace('{"weights"', '{"pickles": [], "weights"'),
    ],
)
def test_a_manifest_with_a_right_checksum_but_unsound_json_is_refused(text: str, tmp_path: Path) -> None:
    error = refused(tmp_path / "m.subtone", rebuilt(text))
    assert error.reason is PackedFileReason.CORRUPT_HEADER
    assert "the manifest is not sound" in str(error)


@pytest.mark.parametrize(
    "header",
    [
        MAGIC + b"[" * 100_000,
        MAGIC + b'"version":"1"}}',
        MAGIC + b'"version":1}}',
        MAGIC + b'"version":"1","manifest_crc32":"00000000","manifest":""}}',
        MAGIC + b'"version":"1","manifest_crc32":0,"manifest":{}}}',
        MAGIC + b'"version":"1"}}\n',
        MAGIC + b'"version":"1"},"__metadata__":{}}',
        MAGIC + b'"version":"1","manifest_crc32":"00000000","manifest":"\\ud800"}}',
        MAGIC + b'"version":"1","x":"\xff"}}',
    ],
)
def test_a_header_of_unsound_json_is_refused(header: bytes, tmp_path: Path) -> None:
    error = refused(tmp_path / "m.subtone", framed(header) + SOUND[START:])
    assert error.reason is PackedFileReason.CORRUPT_HEADER


def payload(size: object, first: object, last: object, **more: object) -> dict:
    return {"dtype": "U8", "shape": [size], "data_offsets": [first, last], **more}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"codes": payload(2**62, 0, 2**62), "rest": payload(64, 2**62, 2**62 + 64)}, "TRUNCATED"),
        ({"codes": payload(192, 0, 192), "rest": payload(64, 192, 256)}, "TRUNCATED"),
        ({"codes": payload(64, 0, 64), "rest": payload(64, 64, 128)}, "CORRUPT_HEADER"),
        ({"codes": payload(64, 0, 64), "rest": payload(128, 64, 192)}, "CORRUPT_HEADER"),
        ({"codes": payload(128, 0, 192)}, "CORRUPT_HEADER"),
        ({"codes": payload(128, 0, 128, dtype="I8")}, "CORRUPT_HEADER"),
        ({"codes": payload(128.0, 0, 128)}, "CORRUPT_HEADER"),
        ({"codes": payload(-64, 0, -64)}, "CORRUPT_HEADER"),
        ({"codes": payload(127, 0, 127)}, "CORRUPT_HEADER"),
        ({"codes": payload(128, False, 128)}, "CORRUPT_HEADER"),
        ({"codes": []}, "CORRUPT_HEADER"),
        ({"rest": payload(64, 64, 128)}, "CORRUPT_HEADER"),
        ({"rest": payload(64, 128, 192, more=1)}, "CORRUPT_HEADER"),
        ({"third": payload(0, 192, 192)}, "CORRUPT_HEADER"),
    ],
)
def test_a_table_that_lies_about_payloads_is_refused(changes: dict, reason: str, tmp_path: Path) -> None:
    table = {"codes": payload(128, 0, 128), "rest": payload(64, 128, 192), **changes}
    error = refused(tmp_path / "m.subtone", rebuilt(manifest_of(SOUND), table=table))
    assert error.reason is PackedFileReason[reason]


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (with_row("weights", 0, 1, [2, 3000]), r"its constants fill 2368 bytes of codes, which has 128"),
        (with_row("weights", 0, 1, [2**39] * 8), r"its constants fill \d+ bytes of codes"),
        (with_row("weights", 0, 1, [1] * 9), r"constants.weights\[0\] has the shape"),
        (with_row("weights", 0, 1, [2, 0]), r"has the shape \[2, 0\]"),
        (with_row("weights", 0, 1, [2, -3]), r"has the shape \[2, -3\]"),
        (with_row("weights", 0, 1, [2, 3.0]), r"has the shape \[2, 3.0\]"),
        (with_row("weights", 0, 1, [True, 3]), r"has the shape \[True, 3\]"),
        (with_row("weights", 0, 1, [6]), r"too few dimensions"),
        (with_row("weights", 0, 2, 9), r"has bits=9, not 1 to 8"),
        (with_row("weights", 0, 2, True), r"has bits=True"),
        (with_row("weights", 0, 3, 9), r"has num_levels=9"),
        (with_row("weights", 0, 3, 8), r"has the checksums '[0-9a-f]+', not 4 of 8 hex"),
        (with_row("weights", 0, 4, [2]), r"too few dimensions"),
        (with_row("weights", 0, 6, "A" * 24), r"has the checksums 'AAAA"),
        (with_row("weights", 0, 0, "c"), r"a constant is listed twice"),
        (with_row("weights", 0, 0, ""), r"a constant is named ''"),
        (with_row("weights", 0, 0, "a\nb"), r"a constant is named 'a\\nb'"),
        (with_row("weights", 0, 0, "n" * 201), r"a constant is named 'nnn"),
        (with_row("weights", 0, 0, 7), r"a constant is named 7"),
        (with_row("floats", 0, 1, [2**39]), r"its constants fill \d+ bytes of rest, which has 64"),
    ],
)
def test_a_row_that_does_not_fit_the_file_is_refused(data: bytes, complaint: str, tmp_path: Path) -> None:
    error = refused(tmp_path / "m.subtone", data)
    assert error.reason is PackedFileReason.CORRUPT_HEADER
    assert re.search(complaint, str(error)), str(error)


def test_a_longer_row_that_still_fits_the_padding_is_found_by_its_checksum(tmp_path: Path) -> None:
    error = refused(tmp_path / "m.subtone", with_row("floats", 0, 1, [3]))
    assert (error.reason, error.tensor) == (PackedFileReason.CORRUPT_TENSOR, "b")


# Intact bytes, wrong meaning -------------------------------------------------------------


def with_section(role_index: int, row_index: int, position: int, data: bytes) -> bytes:
    """Section `role_index` of weight `row_index` (or of the float array, row -1) replaced, checksum right."""
    manifest, payload = manifest_of(SOUND), bytearray(SOUND[START:])
    payload[position : position + len(data)] = data
    kind, row = ("floats", 0) if row_index < 0 else ("weights", row_index)
    crc32 = manifest["constants"][kind][row][-1]
    changed = crc32[: 8 * role_index] + crc32_hex(data) + crc32[8 * role_index + 8 :]
    manifest["constants"][kind][row][-1] = changed
    return rebuilt(manifest, codes=bytes(payload[:128]), rest=bytes(payload[128:]))


@pytest.mark.parametrize(
    ("data", "tensor", "complaint"),
    [
        (with_section(0, 0, 0, b"\xd1\x51\x06"), "a", "bits beyond the last of count=6 codes are set"),
        (with_section(1, 0, 128, struct.pack("<2f", 1, np.nan)), "a", "scale is not finite"),
        (with_section(2, 0, 136, struct.pack("<f", np.inf)), "a", "zero_point is not finite"),
        (with_section(0, 1, 64, b"\xff"), "c", "a code is 3, beyond the 3 levels"),
        (with_section(3, 1, 148, b"\x7f\x00\x7f\x7f"), "c", "codebook does not ascend"),
        (with_section(2, 1, 144, struct.pack("<f", 1)), "c", "zero_point 0"),
        (with_section(0, -1, 152, struct.pack("<2f", np.nan, 1)), "b", "b is nan at [0]"),
    ],
)
def test_bytes_that_are_no_weight_are_an_invalid_tensor(
    data: bytes, tensor: str, complaint: str, tmp_path: Path
) -> None:
    error = refused(tmp_path / "m.subtone", data)
    assert (error.reason, error.tensor) == (PackedFileReason.INVALID_TENSOR, tensor)
    assert complaint in str(error)


def with_program(**changes: object) -> bytes:
    manifest = manifest_of(SOUND)
    manifest["program"].update(changes)
    return rebuilt(manifest)


def with_op(index: int, **changes: object) -> bytes:
    manifest = manifest_of(SOUND)
    manifest["program"]["ops"][index].update(changes)
    return rebuilt(manifest)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (with_program(ops=[]), "no operation reads the constant a (3 such)"),
        (with_program(ops={}), "the program's ops are not a list"),
        (with_program(extra=1), "the program's keys are"),
        (with_program(output_width=3), "the output has 2 columns, not 3"),
        (with_op(0, op="system"), "unknown operation"),
        (with_op(0, op=[]), "the program does not hold together"),
        (with_op(0, shell="rm"), "conv1d has no field 'shell'"),
        (with_op(0, weight="b"), "the program does not hold together"),
        (with_op(0, weight="w"), "no operation reads the constant a"),
        (with_op(0, weight=""), "no operation reads the constant a"),
        (with_op(1, input="nowhere"), "reads nowhere, which no earlier op writes"),
        (with_op(0, stride=0), "has stride=0; use 1 to 16777216"),
        (with_op(0, stride=0, source="s" * 100_000), "op 0 (conv1d of sss"),
        (with_op(0, padding=2**62), "has padding=4611686018427387904; use 0 to 16777216"),
        (with_op(0, source="\x1b]0;x\n", relu=1), "conv1d.relu=1 is not bool"),
    ],
)
def test_a_program_that_does_not_fit_is_a_bad_program(data: bytes, complaint: str, tmp_path: Path) -> None:
    error = refused(tmp_path / "m.subtone", data)
    assert error.reason is PackedFileReason.BAD_PROGRAM
    assert complaint in str(error)


def test_every_reason_is_documented_and_has_a_remedy() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "file-format.md").read_text()
    listed = re.findall(r"^\| `([A-Z_]+)` \|", page, flags=re.MULTILINE)
    assert listed == [reason.name for reason in PackedFileReason]
    assert set(REMEDIES) == set(PackedFileReason)
