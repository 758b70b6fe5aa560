"""What attention, recurrence and normalization over an utterance mean, in NumPy; as runtime/ops.py.

Letters: T rows, S rows that are seen, D width of a head, H heads.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from subtone import numerics
from subtone.program import (
    UNLIMITED,
    Attention,
    ChannelNorm,
    Constants,
    Lstm,
    OverWindow,
    Sinusoids,
    SwitchedLstm,
    vector_of,
)
from subtone.qtensor import QTensor
from subtone.runtime import functions
from subtone.runtime.products import decoded, product_of_levels
from subtone.runtime.rows import Matrix, Rows

Seen = Mapping[str, Rows]
VALUES_AT_ONCE = 2**21
"""Of keys gathered for a block of rows: 8 MB."""


def attention(op: Attention, seen: Seen, constants: Constants, first: int, end: int) -> tuple[Matrix]:
    """Scores, products of probabilities and values: sums over a head's columns, or over the rows seen, ascending
    from +0. With e_s = exp(score_s - max): `y = (sum e_s v_s) / (sum e_s)`, the second sum in lanes, lane
    s - (first row seen)."""
    return (np.concatenate([_attend(op, block, constants) for block in windows(op, seen, first, end)]),)


@dataclasses.dataclass(frozen=True)
class Window:
    """A block of rows of an attention, and what each of them sees: windows of one length, some of it not seen."""

    queries: Matrix
    """(T, H D)."""
    keys: Matrix
    """(T, S, H, D), as values, and as positions where there are any."""
    values: Matrix
    positions: Matrix | None
    is_seen: NDArray[np.bool_]
    """(T, S)."""


def windows(op: OverWindow, seen: Seen, first: int, end: int) -> Iterator[Window]:
    """Rows `first` to `end - 1` in blocks whose keys fit memory."""
    rows = min(seen[field].end for field in ("query", "key", "value"))
    is_limited = UNLIMITED not in (op.left, op.right)
    most = op.left + op.right + 1 if is_limited else rows
    count = max(1, VALUES_AT_ONCE // (max(1, most) * seen["key"].held.shape[1]))
    for start in range(first, end, count):
        own = np.arange(start, min(start + count, end))
        lowest = np.zeros_like(own) if op.left == UNLIMITED else np.maximum(0, own - op.left)
        highest = np.full_like(own, rows) if op.right == UNLIMITED else np.minimum(rows, own + op.right + 1)
        places = lowest[:, None] + np.arange(int((highest - lowest).max()))
        is_seen = places < highest[:, None]
        places = np.minimum(places, rows - 1)
        positions = None
        if op.positions:
            row = (op.left if is_limited else rows - 1) - (own[:, None] - places)
            row = np.clip(row, 0, seen["positions"].end - 1)  # of places that are not seen
            positions = _heads(seen["positions"], row, op.heads)
        keys, values = (_heads(seen[field], places, op.heads) for field in ("key", "value"))
        queries = seen["query"][start : start + len(own)]
        yield Window(queries, keys, values, positions, is_seen)


def _attend(op: Attention, window: Window, constants: Constants) -> Matrix:
    """The output of a block of rows; what is not seen counts nothing."""
    queries, keys, values, is_seen = window.queries, window.keys, window.values, window.is_seen
    scores = _scores(queries, vector_or_zero(constants, op.content_bias), keys, op.heads)
    if window.positions is not None:
        bias = vector_or_zero(constants, op.position_bias)
        scores = scores + _scores(queries, bias, window.positions, op.heads)
    depth = queries.shape[1] // op.heads
    scores = scores * (np.float32(1) / np.sqrt(np.float32(depth)))
    highest_score = np.where(is_seen[..., None], scores, np.float32(-np.inf)).max(axis=1, keepdims=True)
    weights = np.where(is_seen[..., None], functions.exp(scores - highest_score), np.float32(0))
    total = np.zeros((len(queries), op.heads, depth), np.float32)
    for place in range(keys.shape[1]):
        total += weights[:, place, :, None] * values[:, place]
    mass = functions.lane_sum(np.moveaxis(weights, 1, -1))
    return np.divide(total, mass[..., None]).reshape(len(queries), -1)


def vector_or_zero(constants: Constants, name: str) -> Matrix | None:
    return vector_of(constants, name) if name else None


def _heads(rows: Rows, places: np.ndarray, heads: int) -> Matrix:
    """Rows at `places` (T, S), their columns in heads: (T, S, H, D)."""
    return rows.held[places - rows.base].reshape(*places.shape, heads, -1)


def _scores(queries: Matrix, bias: Matrix | None, keys: Matrix, heads: int) -> Matrix:
    """(T, S, H) of queries (T, H D), plus a bias, with keys (T, S, H, D), summed over D in ascending order."""
    if bias is not None:
        queries = queries + bias
    queries = queries.reshape(len(queries), 1, heads, -1)
    total = np.zeros(keys.shape[:3], np.float32)
    for column in range(keys.shape[3]):
        total += queries[..., column] * keys[..., column]
    return total


def sinusoids(op: Sinusoids, seen: Seen, constants: Constants, first: int, end: int) -> tuple[Matrix]:
    return (sinusoid_table(seen["input"].end, op.columns)[first:end],)


def rotation(columns: int) -> NDArray[np.float64]:
    """(columns / 2, 2): sine and cosine of 1 / 10000^(2 j / columns), by which a distance more turns column pair j."""
    rates = np.array([10000.0 ** (-column / columns) for column in range(0, columns, 2)])
    return np.array([[math.sin(rate), math.cos(rate)] for rate in rates])


def sinusoid_table(count: int, columns: int) -> Matrix:
    """(2 count - 1, columns) for distances count - 1 down to -(count - 1): sines and cosines in turn.

    From (0, 1) at distance 0, one turn a distance in float64, every product and sum rounded:
    `s' = s cos + c sin`, `c' = c cos - s sin`; the sine changes its sign with the distance. Thus no engine
    needs a mathematical library, and 10,000 turns lose 1e-12.

    >>> sinusoid_table(1, 4).tolist()
    [[0.0, 1.0, 0.0, 1.0]]
    """
    turn = rotation(columns)
    sine, cosine = np.zeros(len(turn)), np.ones(len(turn))
    table = np.empty((2 * count - 1, len(turn), 2), np.float32)
    for distance in range(count):
        table[count - 1 - distance] = np.stack([sine, cosine], axis=1)
        table[count - 1 + distance] = np.stack([-sine if distance else sine, cosine], axis=1)
        sine, cosine = sine * turn[:, 1] + cosine * turn[:, 0], cosine * turn[:, 1] - sine * turn[:, 0]
    return table.reshape(2 * count - 1, -1)


def channel_norm(op: ChannelNorm, seen: Seen, constants: Constants, first: int, end: int) -> tuple[Matrix]:
    """`normalized(x) * gain + bias` along each column, each step rounded."""
    x = seen["input"]
    result = functions.normalized(np.ascontiguousarray(x[0 : x.end].T), op.epsilon).T[first:end]
    if op.gain:
        result = result * vector_of(constants, op.gain)
    if op.bias:
        result = result + vector_of(constants, op.bias)
    return (np.ascontiguousarray(result),)


def recurrent_product(hidden: Matrix, constants: Constants, weight: str, bias: str, bits: int) -> Matrix:
    """`W h + bias` (1, 4 D) of a hidden state (1, D): in integers at the static scale 1 / limit, or in float,
    summed over inputs in ascending order from +0."""
    stored = constants[weight]
    if bits:
        assert isinstance(stored, QTensor)
        limit = numerics.largest_symmetric_level(bits)
        result = product_of_levels(numerics.quantize_static(hidden, 1 / limit, bits), stored)
    else:
        columns = decoded(constants, weight).T
        result = np.zeros((1, columns.shape[1]), np.float32)
        for index, column in enumerate(columns):
            result += hidden[:, index, None] * column
    return result + vector_of(constants, bias) if bias else result


def cell_step(gates: Matrix, cell: Matrix) -> tuple[Matrix, Matrix]:
    """Hidden and cell state after one step; every product and every sum rounded."""
    taken, kept, candidate, given = np.split(gates, 4, axis=1)
    cell = functions.sigmoid(kept) * cell + functions.sigmoid(taken) * functions.tanh(candidate)
    return functions.sigmoid(given) * functions.tanh(cell), cell


def lstm(op: Lstm, seen: Seen, constants: Constants, first: int, end: int) -> tuple[Matrix, Matrix]:
    hidden, cell = (seen[field][first - 1 : first] for field in ("output", "cell"))
    gates = seen["input"][first:end]
    results = np.empty((2, end - first, hidden.shape[1]), np.float32)
    for row in range(end - first):
        of_hidden = recurrent_product(hidden, constants, op.weight, op.bias, op.activation_bits)
        hidden, cell = cell_step(gates[row : row + 1] + of_hidden, cell)
        results[0, row], results[1, row] = hidden[0], cell[0]
    return results[0], results[1]


def switched_lstm(
    op: SwitchedLstm, seen: Seen, constants: Constants, first: int, end: int
) -> tuple[Matrix, Matrix]:
    hidden, cell = (seen[field][first - 1 : first].copy() for field in ("output", "cell"))
    large, small, gate = (seen[field][first:end] for field in ("input", "small", "gate"))
    units = small.shape[1] // 4
    results = np.empty((2, end - first, hidden.shape[1]), np.float32)
    for row in range(end - first):
        if gate[row, 0] > 0:
            of_hidden = recurrent_product(hidden, constants, op.weight, op.bias, op.activation_bits)
            hidden, cell = cell_step(large[row : row + 1] + of_hidden, cell)
        else:
            of_hidden = recurrent_product(
                hidden[:, :units], constants, op.small_weight, op.small_bias, op.small_activation_bits
            )
            hidden[:, :units], cell[:, :units] = cell_step(small[row : row + 1] + of_hidden, cell[:, :units])
        results[0, row], results[1, row] = hidden[0], cell[0]
    return results[0], results[1]
