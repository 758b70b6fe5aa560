"""docs/numerics.md, section 7: integer functions, one number and one step a line, in integers without bound.

`fits` states how many bits hold each number; a kernel may take any type that holds so many.
"""

from __future__ import annotations

from collections.abc import Sequence

ONE = 2**30


def fits(value: int, bits: int) -> int:
    """value itself, if a signed integer of so many bits holds it."""
    assert -(2 ** (bits - 1)) <= value < 2 ** (bits - 1), (value, bits)
    return value


def round_shift(value: int, shift: int) -> int:
    assert 1 <= shift <= 63
    return fits(value + (1 << (shift - 1)), 64) >> shift


def divide(above: int, below: int, bits: int) -> int:
    """Whole division of a non-negative by a positive number, both unsigned of so many bits."""
    assert 0 <= above < 2**bits
    assert 0 < below < 2**bits
    return above // below


def clip(value: int, low: int, high: int) -> int:
    return low if value < low else high if value > high else value


def rescale(total: int, shift: int, low: int, high: int) -> int:
    return clip(round_shift(total, shift), low, high)


def exp(x: int, fraction_bits: int) -> int:
    x = clip(x, -22 << fraction_bits, 0)
    m = fits(-x << (16 - fraction_bits), 32)
    t = fits(m * 1549082005, 52)
    z = t >> 46
    r = (t >> 16) & (ONE - 1)
    p = 7277686
    p = -57045411 + fits(round_shift(p * r, 30), 32)
    p = 257059888 + fits(round_shift(p * r, 30), 32)
    p = -744163075 + fits(round_shift(p * r, 30), 32)
    p = ONE + fits(round_shift(p * r, 30), 32)
    if z == 0:
        return p
    return fits(p + (1 << (z - 1)), 33) >> z


def one_plus_exp(magnitude: int, fraction_bits: int) -> int:
    return round_shift(fits(ONE + exp(-magnitude, fraction_bits), 33), 14)


def sigmoid(x: int, fraction_bits: int) -> int:
    x = clip(x, -22 << fraction_bits, 22 << fraction_bits)
    d = one_plus_exp(abs(x), fraction_bits)
    value = divide(2**31 + (d >> 1), d, 32)
    return 2**15 - value if x < 0 else value


def tanh(x: int, fraction_bits: int) -> int:
    x = clip(x, -22 << fraction_bits, 22 << fraction_bits)
    d = one_plus_exp(2 * abs(x), fraction_bits)
    above = (2**17 - d) << 15
    value = divide(above + (d >> 1), d, 32)
    return -value if x < 0 else value


def silu(x: int, fraction_bits: int) -> int:
    return fits(fits(x, 16) * sigmoid(x, fraction_bits), 32)


def gelu(x: int, fraction_bits: int) -> int:
    c = clip(fits(x, 16), -8 << fraction_bits, 8 << fraction_bits)
    c = fits(c << (16 - fraction_bits), 32)
    s = fits(round_shift(c * c, 16), 32)
    w = fits(104580 + round_shift(s * 76616618, 30), 32)
    u = fits(round_shift(c * w, 16), 32)
    return fits(x * sigmoid(u, 16), 32)


def floor_sqrt(value: int) -> int:
    assert 0 <= value < 2**62
    if value == 0:
        return 0
    x = 1 << ((value.bit_length() + 1) // 2)
    while True:
        following = (x + value // x) >> 1
        if following >= x:
            return x
        x = following


def softmax_weights(scores: Sequence[int], fraction_bits: int, is_seen: Sequence[bool]) -> list[int]:
    if not any(is_seen):
        return [0] * len(scores)
    highest = max(score for score, seen in zip(scores, is_seen, strict=True) if seen)
    exponentials = []
    for score, seen in zip(scores, is_seen, strict=True):
        exponentials.append(exp(score - highest, fraction_bits) if seen else 0)
    total = 0
    for value in exponentials:
        total = fits(total + value, 47)
    factor = divide(2**61, total, 64)
    assert factor < 2**32
    return [fits(round_shift(value * factor, 39), 32) for value in exponentials]


def normalize(x: Sequence[int], epsilon: int) -> list[int]:
    n = len(x)
    total = squares = 0
    for value in x:
        total = fits(total + fits(value, 16), 32)
        squares = fits(squares + value * value, 64)
    v = fits(fits(n * squares, 64) - total * total, 64)
    v = fits(v + epsilon, 63)
    if v == 0:
        v = 1
    half_shift = (62 - v.bit_length()) // 2
    root = floor_sqrt(v << (2 * half_shift))
    inverse = divide(2**61, root, 64)
    assert 2**30 <= inverse <= 2**31
    y = []
    for value in x:
        d = fits(n * value - total, 32)
        y.append(fits(round_shift(d * inverse, 39 - half_shift), 31))
    return y


def layer_norm(
    x: Sequence[int], gain: Sequence[int], bias: Sequence[int], shift: int, epsilon: int, low: int, high: int
) -> list[int]:
    y = normalize(x, epsilon)
    totals = [fits(y[i] * fits(gain[i], 32) + bias[i], 64) for i in range(len(x))]
    return [rescale(total, shift, low, high) for total in totals]


def sinusoids(num_rows: int, rotation: Sequence[Sequence[int]]) -> list[list[int]]:
    sine, cosine = [0] * len(rotation), [ONE] * len(rotation)
    table: list[list[int]] = [[] for _ in range(2 * num_rows - 1)]
    for distance in range(num_rows):
        for pair, (turn_sine, turn_cosine) in enumerate(rotation):
            s, c = sine[pair], cosine[pair]
            level, even = round_shift(127 * s, 30), round_shift(127 * c, 30)
            table[num_rows - 1 - distance] += [level, even]
            if distance:
                table[num_rows - 1 + distance] += [-level, even]
            sine[pair] = round_shift(fits(s * turn_cosine + c * turn_sine, 64), 30)
            cosine[pair] = round_shift(fits(c * turn_cosine - s * turn_sine, 64), 30)
    return table
