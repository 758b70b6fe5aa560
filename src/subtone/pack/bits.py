"""Codes to bytes and back: one dense little-endian bit stream, 1 to 8 bits a code.

Code i lies in bits [i * bits, (i + 1) * bits) of the stream, its least significant bit first; bit k
of the stream is bit k % 8 of byte k // 8. The unused high bits of the last byte are zero
(docs/file-format.md, section 5). Eight codes fill exactly `bits` bytes, so both directions work on
eight codes as one 64-bit word and close (or open) the gaps between them in three steps of twice
the width each. An array of single bits, as numpy.packbits takes it, would be eight times the codes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from subtone import numerics

CHUNK_WORDS = 1 << 14
"""Words of eight codes handled at once: 128 KiB, so that all steps stay in the cache."""

_WORD = np.dtype("<u8")
_LANES = (
    (np.uint64(8), np.uint64(0x00FF00FF00FF00FF)),
    (np.uint64(16), np.uint64(0x0000FFFF0000FFFF)),
    (np.uint64(32), np.uint64(0x00000000FFFFFFFF)),
)
"""(width of a lane, mask of the lower lane of each pair): 8 lanes become 4, 2 and 1."""


def num_packed_bytes(count: int, bits: int) -> int:
    """Bytes that `count` codes of `bits` take: `ceil(count * bits / 8)`.

    >>> num_packed_bytes(3, bits=3)
    2
    """
    return (count * bits + 7) // 8


def pack_codes(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """`codes`, uint8 of any shape in row-major order, as uint8 (ceil(codes.size * bits / 8),).

    >>> [f"{byte:08b}" for byte in pack_codes(np.array([1, 2, 7], np.uint8), bits=3)]
    ['11010001', '00000001']
    """
    bits = numerics.check_bits(bits)
    if codes.dtype != np.uint8:
        raise ValueError(f"codes are {codes.dtype}; pack_codes needs uint8")
    flat = np.ascontiguousarray(codes).reshape(-1)
    if flat.size and int(flat.max()) >= 1 << bits:
        raise ValueError(f"a code is {int(flat.max())}, which bits={bits} cannot hold; use more bits")
    if bits == 8:
        return flat.copy()
    packed = np.empty(num_packed_bytes(flat.size, bits), np.uint8)
    for start in range(0, flat.size, 8 * CHUNK_WORDS):
        chunk = flat[start : start + 8 * CHUNK_WORDS]
        words = _padded_words(chunk, row_bytes=8)
        for lane, (width, low) in enumerate(_LANES):
            words = (words & low) | ((words >> width) & low) << np.uint64(bits << lane)
        stream = words.view(np.uint8).reshape(-1, 8)[:, :bits].reshape(-1)
        first = start // 8 * bits
        packed[first : first + len(stream)] = stream[: len(packed) - first]
    return packed


def unpack_codes(data: NDArray[np.uint8] | bytes, bits: int, count: int) -> NDArray[np.uint8]:
    """The `count` codes of `bits` in `data`, as uint8 (count,): the inverse of `pack_codes`.

    ValueError where `data` has another length than `count` codes take, or where a bit beyond the
    last code is set.

    >>> unpack_codes(bytes([0b11010001, 0b00000001]), bits=3, count=3).tolist()
    [1, 2, 7]
    """
    bits = numerics.check_bits(bits)
    stream = data if isinstance(data, np.ndarray) else np.frombuffer(data, np.uint8)
    needed = num_packed_bytes(count, bits)
    if count < 0 or stream.dtype != np.uint8 or stream.shape != (needed,):
        raise ValueError(
            f"count={count} codes of bits={bits} take uint8 ({needed},), not {stream.dtype} {stream.shape}"
        )
    used = count * bits % 8
    if used and int(stream[-1]) >> used:
        raise ValueError(f"bits beyond the last of count={count} codes are set; they must be zero")
    if bits == 8:
        return stream.copy()
    codes = np.empty(count, np.uint8)
    opening = [
        (width, np.uint64(bits << lane), _repeat((1 << (bits << lane)) - 1, every=2 * int(width)))
        for lane, (width, _) in reversed(list(enumerate(_LANES)))
    ]
    for start in range(0, count, 8 * CHUNK_WORDS):
        first = start // 8 * bits
        words = _padded_words(stream[first : first + bits * CHUNK_WORDS], row_bytes=bits)
        for width, shift, low in opening:
            words = (words & low) | ((words >> shift) & low) << width
        chunk = codes[start : start + 8 * CHUNK_WORDS]
        chunk[:] = words.view(np.uint8)[: len(chunk)]
    return codes


def _repeat(pattern: int, *, every: int) -> np.uint64:
    """`pattern` in a 64-bit word, once `every` so many bits."""
    return np.uint64(sum(pattern << shift for shift in range(0, 64, every)))


def _padded_words(data: NDArray[np.uint8], *, row_bytes: int) -> NDArray[np.uint64]:
    """`data` cut into rows of `row_bytes`, each a 64-bit little-endian word, zeros where bytes lack."""
    rows = -(-len(data) // row_bytes)
    whole = len(data) // row_bytes
    words = np.zeros((rows, 8), np.uint8)
    words[:whole, :row_bytes] = data[: whole * row_bytes].reshape(whole, row_bytes)
    words[whole:, : len(data) - whole * row_bytes] = data[whole * row_bytes :]
    return words.reshape(-1).view(_WORD)
