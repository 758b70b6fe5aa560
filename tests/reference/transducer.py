"""Recurrences, the reduced predictor and the joiner, one row and one unit at a time, in float64.

A layer is (weight_ih, weight_hh, bias): (4 D, K), (4 D, D), (4 D,), gate blocks in the order i, f, g, o.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np


class Cell(NamedTuple):
    weight_ih: np.ndarray
    weight_hh: np.ndarray
    bias: np.ndarray


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def step(row: np.ndarray, hidden: np.ndarray, state: np.ndarray, cell: Cell) -> tuple[np.ndarray, np.ndarray]:
    """Hidden and cell state after one row."""
    width = len(hidden)
    new_hidden, new_state = np.empty(width), np.empty(width)
    for unit in range(width):
        i, f, g, o = (
            sum(cell.weight_ih[block * width + unit] * row)
            + sum(cell.weight_hh[block * width + unit] * hidden)
            + cell.bias[block * width + unit]
            for block in range(4)
        )
        new_state[unit] = sigmoid(f) * state[unit] + sigmoid(i) * math.tanh(g)
        new_hidden[unit] = sigmoid(o) * math.tanh(new_state[unit])
    return new_hidden, new_state


def lstm(rows: np.ndarray, cell: Cell) -> np.ndarray:
    """(T, K) to (T, D)."""
    return switched_lstm(rows, np.ones(len(rows)), cell, cell)


def switched_lstm(rows: np.ndarray, gate: np.ndarray, large: Cell, small: Cell) -> np.ndarray:
    """(T, K) to (T, D): a large cell at frames whose gate is above 0, else a small one on the first units."""
    hidden, state = np.zeros(large.weight_hh.shape[1]), np.zeros(large.weight_hh.shape[1])
    few, small_inputs = small.weight_hh.shape[1], small.weight_ih.shape[1]
    outputs = []
    for row, logit in zip(rows, gate, strict=True):
        if logit > 0:
            hidden, state = step(row, hidden, state, large)
        else:
            hidden, state = hidden.copy(), state.copy()
            hidden[:few], state[:few] = step(row[:small_inputs], hidden[:few], state[:few], small)
        outputs.append(hidden)
    return np.array(outputs)


def averaged_embeddings(labels: list[int], embedding: np.ndarray, position: np.ndarray) -> np.ndarray:
    """(U, D): at each label, the sum of the last embeddings times weights `position` (context, D), newest first."""
    rows = []
    for u in range(len(labels)):
        row = np.zeros(embedding.shape[1])
        for back in range(len(position)):
            if u - back >= 0:
                row += position[back] * embedding[labels[u - back]]
        rows.append(row)
    return np.array(rows)


def joined(encoded: np.ndarray, predicted: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Logits (T, U, V) of projected rows (T, J) and (U, J)."""
    logits = np.empty((len(encoded), len(predicted), len(weight)))
    for t in range(len(encoded)):
        for u in range(len(predicted)):
            for v in range(len(weight)):
                logits[t, u, v] = sum(weight[v] * np.tanh(encoded[t] + predicted[u])) + bias[v]
    return logits
