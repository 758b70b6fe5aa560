"""What attention, sinusoids and LSTMs of an integer-only program mean; as runtime/integer_ops.py.

Letters: T rows, S rows that are seen, D width of a head or units of an LSTM, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from subtone.numerics import requantize_total
from subtone.program import (
    MAX_LEVEL,
    STATE_BITS,
    Constants,
    IntegerAttention,
    IntegerLstm,
    IntegerSinusoids,
    integers_of,
    levels_of,
)
from subtone.runtime.fixed_point import PROBABILITY_BITS, sigmoid, tanh
from subtone.runtime.fixed_point_rows import sinusoids as sinusoid_levels
from subtone.runtime.fixed_point_rows import softmax_weights
from subtone.runtime.integer_ops import weighted_total
from subtone.runtime.rows import Rows
from subtone.runtime.sequence_ops import Window, windows

Levels = NDArray[np.int32]
Seen = Mapping[str, Rows]


def integer_attention(
    op: IntegerAttention, seen: Seen, constants: Constants, first: int, end: int
) -> tuple[Levels]:
    """Scores in units of 2^-16, weights in units of 2^-22, `multiplier * sum of weight times value`, requantized."""
    return (np.concatenate([_attend(op, block, constants) for block in windows(op, seen, first, end)]),)


def _attend(op: IntegerAttention, window: Window, constants: Constants) -> Levels:
    total = op.content_multiplier * _products(window.queries, op.content_bias, window.keys, constants)
    if window.positions is not None:
        of_positions = _products(window.queries, op.position_bias, window.positions, constants)
        total += op.position_multiplier * of_positions
    scores = requantize_total(total, op.score_shift, -MAX_LEVEL, MAX_LEVEL)  # (T, H, S)
    weights = softmax_weights(scores, STATE_BITS, is_seen=window.is_seen[:, None])
    sums = np.einsum("ths,tshd->thd", weights.astype(np.float64), window.values.astype(np.float64))
    total = op.multiplier * sums.astype(np.int64).reshape(len(sums), -1)
    return requantize_total(total, op.shift, op.low, op.high)


def _products(queries: Levels, bias: str, keys: Levels, constants: Constants) -> NDArray[np.int64]:
    """(T, H, S) of queries (T, H D), plus a bias, with keys (T, S, H, D): int32 sums, taken where they are exact."""
    biased = queries + integers_of(constants, bias) if bias else queries
    of_heads = biased.reshape(len(queries), *keys.shape[2:]).astype(np.float64)
    return np.einsum("thd,tshd->ths", of_heads, keys.astype(np.float64)).astype(np.int64)


def integer_sinusoids(
    op: IntegerSinusoids, seen: Seen, constants: Constants, first: int, end: int
) -> tuple[Levels]:
    rotation = integers_of(constants, op.rotation)
    return (np.clip(sinusoid_levels(seen["input"].end, rotation)[first:end], op.low, op.high),)


def integer_lstm(
    op: IntegerLstm, seen: Seen, constants: Constants, first: int, end: int
) -> tuple[Levels, Levels]:
    """Gates, cells and hidden states row by row, gates and cells in units of 2^-16."""
    hidden, cell = (seen[field][first - 1 : first] for field in ("output", "cell"))
    gates = seen["input"][first:end].astype(np.int64) << (STATE_BITS - op.fraction_bits)
    levels, shift = levels_of(constants, op.weight).levels(), integers_of(constants, op.shift)
    results = np.empty((2, end - first, hidden.shape[1]), np.int32)
    for row in range(end - first):
        total = weighted_total(op, hidden, levels, constants)
        of_hidden = requantize_total(total, shift, -MAX_LEVEL, MAX_LEVEL)
        hidden, cell = integer_cell_step(gates[row : row + 1] + of_hidden, cell, op.high)
        results[0, row], results[1, row] = hidden[0], cell[0]
    return results[0], results[1]


def integer_cell_step(gates: NDArray[np.int64], cell: Levels, limit: int) -> tuple[Levels, Levels]:
    """Hidden state, of scale 1 / limit, and cell (T, D) after one step of gates (T, 4 D)."""
    taken, kept, candidate, given = np.split(gates, 4, axis=1)
    taken, kept, given = (sigmoid(gate, STATE_BITS).astype(np.int64) for gate in (taken, kept, given))
    total = kept * cell + 2 * (taken * tanh(candidate, STATE_BITS))
    cell = requantize_total(total, PROBABILITY_BITS, -MAX_LEVEL, MAX_LEVEL)
    total = limit * (given * tanh(cell, STATE_BITS))
    return requantize_total(total, 2 * PROBABILITY_BITS, -limit, limit), cell
