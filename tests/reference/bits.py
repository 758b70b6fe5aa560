"""The packed bit stream, one bit at a time, as docs/file-format.md says it."""

from __future__ import annotations


def pack(codes: list[int], bits: int) -> bytes:
    """Bit k of the stream is bit k % 8 of byte k // 8; code i starts at bit i * bits."""
    stream = [(code >> place) & 1 for code in codes for place in range(bits)]
    data = bytearray((len(stream) + 7) // 8)
    for k, bit in enumerate(stream):
        data[k // 8] |= bit << (k % 8)
    return bytes(data)


def unpack(data: bytes, bits: int, count: int) -> list[int]:
    codes = []
    for i in range(count):
        code = 0
        for place in range(bits):
            k = i * bits + place
            code |= ((data[k // 8] >> (k % 8)) & 1) << place
        codes.append(code)
    return codes
