"""Codes and bytes: the fast stream equals the one-bit-at-a-time one, and wastes neither time nor memory."""

from __future__ import annotations

import runpy
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from subtone.pack import pack_codes, unpack_codes
from subtone.pack.bits import CHUNK_WORDS

REFERENCE = runpy.run_path(str(Path(__file__).resolve().parents[1] / "reference" / "bits.py"))
BITS = range(1, 9)


def random_codes(count: int, bits: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**bits, count, dtype=np.uint8)


@pytest.mark.parametrize("bits", BITS)
def test_packing_equals_the_reference_for_every_length_to_257(bits: int) -> None:
    for count in range(258):
        codes = random_codes(count, bits, seed=count)
        packed = REFERENCE["pack"](codes.tolist(), bits)
        assert pack_codes(codes, bits).tobytes() == packed
        assert unpack_codes(packed, bits, count).tolist() == REFERENCE["unpack"](packed, bits, count)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("extra", [-9, -1, 0, 1, 7, 8, 8 * CHUNK_WORDS + 3])
def test_chunks_join_without_a_seam(bits: int, extra: int) -> None:
    count = 8 * CHUNK_WORDS + extra
    codes = random_codes(count, bits)
    places = np.unpackbits(codes[:, None], axis=1, bitorder="little", count=bits)
    packed = pack_codes(codes, bits)
    assert np.array_equal(packed, np.packbits(places, bitorder="little"))
    assert np.array_equal(unpack_codes(packed, bits, count), codes)


@given(st.data(), st.integers(1, 8))
def test_unpacking_inverts_packing(data: st.DataObject, bits: int) -> None:
    codes = np.array(data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=300)), np.uint8)
    assert np.array_equal(unpack_codes(pack_codes(codes, bits), bits, codes.size), codes)


@pytest.mark.parametrize("bits", BITS)
def test_the_bytes_are_the_ceiling_and_the_spare_bits_zero(bits: int) -> None:
    packed = pack_codes(np.full(5, 2**bits - 1, np.uint8), bits)
    assert len(packed) == -(-5 * bits // 8)
    assert int.from_bytes(packed.tobytes(), "little") == 2 ** (5 * bits) - 1


@pytest.mark.parametrize("bits", [3, 8])
def test_any_shape_and_stride_packs_in_row_major_order(bits: int) -> None:
    codes = random_codes(24, bits).reshape(2, 3, 4)
    moved = np.moveaxis(codes, 0, 2)
    assert np.array_equal(pack_codes(moved, bits), pack_codes(moved.copy().reshape(-1), bits))
    assert not np.shares_memory(pack_codes(codes, bits), codes)


def test_unaligned_and_read_only_bytes_unpack() -> None:
    codes = random_codes(1001, 5)
    data = b"\xff" + pack_codes(codes, 5).tobytes()
    assert np.array_equal(unpack_codes(np.frombuffer(data, np.uint8)[1:], 5, 1001), codes)


def test_unpacking_takes_no_memory_beside_the_codes() -> None:
    count = 4_000_000
    packed = pack_codes(random_codes(count, 3), 3)
    tracemalloc.start()
    unpack_codes(packed, 3, count)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Beside the codes: at most eight temporaries of one chunk, 8 bytes a word.
    assert peak_bytes < count + 8 * 8 * CHUNK_WORDS


def test_what_cannot_be_packed_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a code is 8, which bits=3 cannot hold"):
        pack_codes(np.array([8], np.uint8), 3)
    with pytest.raises(ValueError, match=r"codes are int64; pack_codes needs uint8"):
        pack_codes(np.array([1]), 3)
    with pytest.raises(ValueError, match=r"bits=9 cannot be stored; use 1 to 8"):
        pack_codes(np.array([1], np.uint8), 9)


def test_what_cannot_be_unpacked_is_refused() -> None:
    with pytest.raises(ValueError, match=r"count=3 codes of bits=3 take uint8 \(2,\), not uint8 \(3,\)"):
        unpack_codes(bytes(3), 3, 3)
    with pytest.raises(ValueError, match=r"bits beyond the last of count=3 codes are set"):
        unpack_codes(bytes([0, 2]), 3, 3)
    with pytest.raises(ValueError, match="count=-1 codes"):
        unpack_codes(b"", 3, -1)
    with pytest.raises(ValueError, match=r"bits=0 cannot be stored"):
        unpack_codes(b"", 0, 0)
