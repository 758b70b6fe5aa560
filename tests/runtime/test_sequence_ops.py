"""Attention and recurrence equal their loops bit for bit; torch within a bound (bounds.py)."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from tests.reference import sequence_ops as reference
from tests.runtime.bounds import F32, OF_FUNCTION, SLACK, U, lanes_depth, normal, wide
from tests.runtime.definitions import result, results, same_bits
from tests.runtime.small_programs import GRIDS, packed_weight
from torch.nn import functional

from subtone.program import Attention, Lstm, SwitchedLstm

# Attention -------------------------------------------------------------------------------

SIDES = [(-1, -1), (0, 0), (3, 0), (0, 2), (2, 1), (-1, 0), (-1, 2), (4, -1), (50, 50)]


def attention_values(rng: np.random.Generator, rows: int, op: Attention) -> tuple[dict, dict]:
    width = 6
    values = {name: normal(rng, rows, width) for name in "qkv"}
    constants = {"cb": normal(rng, width), "pb": normal(rng, width)}
    if op.positions:
        count = max(0, 2 * rows - 1) if op.left < 0 else op.left + op.right + 1
        values["p"] = normal(rng, count, width)
    return values, constants


def by_reference(op: Attention, values: dict, constants: dict) -> np.ndarray:
    return reference.attention(
        op, values["q"], values["k"], values["v"], values.get("p"), constants.get(op.content_bias),
        constants.get(op.position_bias),
    )  # fmt: skip


@pytest.mark.parametrize(("left", "right"), SIDES)
@pytest.mark.parametrize("heads", [1, 2])
def test_attention_is_the_loop_of_the_reference(left, right, heads):
    rng = np.random.default_rng(7)
    can_turn = (left < 0) == (right < 0)
    for positions, content, position in itertools.product(
        ["", "p"] if can_turn else [""], ["", "cb"], ["", "pb"]
    ):
        if position and not positions:
            continue
        op = Attention(
            query="q", key="k", value="v", output="y", positions=positions, content_bias=content,
            position_bias=position, heads=heads, left=left, right=right,
        )  # fmt: skip
        for rows in (0, 1, 2, 7):
            values, constants = attention_values(rng, rows, op)
            assert same_bits(result(op, values, constants), by_reference(op, values, constants))


def test_attention_over_more_than_16_rows_sums_its_masses_in_lanes():
    op = Attention(query="q", key="k", value="v", output="y", heads=2)
    values, constants = attention_values(np.random.default_rng(8), 40, op)
    assert same_bits(result(op, values, constants), by_reference(op, values, constants))


def test_attention_in_blocks_of_rows_is_attention_at_once(monkeypatch):
    op = Attention(query="q", key="k", value="v", output="y", left=3, right=1, positions="p", heads=3)
    values, constants = attention_values(np.random.default_rng(9), 23, op)
    whole = result(op, values, constants)
    monkeypatch.setattr("subtone.runtime.sequence_ops.VALUES_AT_ONCE", 70)  # two rows of 5 keys, 6 wide
    assert same_bits(result(op, values, constants), whole)


@pytest.mark.parametrize(("left", "right"), SIDES)
@pytest.mark.parametrize("is_relative", [False, True])
def test_attention_is_that_of_torch(left, right, is_relative):
    if is_relative and (left < 0) != (right < 0):
        left = right = 1
    rng = np.random.default_rng(10)
    rows, heads, depth = 9, 2, 3
    op = Attention(
        query="q", key="k", value="v", output="y", heads=heads, left=left, right=right,
        positions="p" if is_relative else "", content_bias="cb" if is_relative else "",
        position_bias="pb" if is_relative else "",
    )  # fmt: skip
    values, constants = attention_values(rng, rows, op)
    query, key, value = (wide(values[name]).reshape(rows, heads, depth).movedim(1, 0) for name in "qkv")
    distance = np.arange(rows)[:, None] - np.arange(rows)[None]
    is_seen = np.ones((rows, rows), bool)
    is_seen &= (left < 0) | (distance <= left)
    is_seen &= (right < 0) | (-distance <= right)
    # What positions add to a score is a mask of torch's; a loop over pairs of rows makes it.
    mask, magnitude = torch.zeros(heads, rows, rows, dtype=torch.float64), torch.zeros(heads, rows, rows)
    shifted = query.clone()
    if is_relative:
        content, position = (wide(constants[name]).reshape(heads, 1, depth) for name in ("cb", "pb"))
        table = wide(values["p"]).reshape(-1, heads, depth)
        shifted = query + content
        for t, s in zip(*np.nonzero(is_seen), strict=True):
            row = (rows - 1 if left < 0 else left) - (t - s)
            terms = (query[:, t] + position[:, 0]) * table[row]
            mask[:, t, s] = terms.sum(dim=1) / depth**0.5
            magnitude[:, t, s] = ((query[:, t].abs() + position[:, 0].abs()) * table[row].abs()).sum(dim=1)
    mask = mask.masked_fill(torch.from_numpy(~is_seen), -torch.inf)
    truth = functional.scaled_dot_product_attention(shifted, key, value, attn_mask=mask)
    # A score: a bias and `depth` terms a product, the sum of two, the factor (two roundings) and the
    # difference. Twice that, as the largest one is subtracted, and exp make a weight's relative error.
    sizes = torch.einsum("htd,hsd->hts", shifted.abs() + query.abs(), key.abs()) + magnitude
    of_score = (depth + 7) * U * sizes.amax(dim=2, keepdim=True) / depth**0.5
    of_weight = 2 * of_score + OF_FUNCTION
    around = functional.scaled_dot_product_attention(shifted, key, value.abs(), attn_mask=mask)
    bound = around * (2 * of_weight + (rows + 1 + lanes_depth(rows) + 1) * U)
    got = result(op, values, constants)
    error = (wide(got).reshape(rows, heads, depth).movedim(1, 0) - truth).abs()
    assert (error <= SLACK * bound).all()
    assert bound.max() < 1e-4  # what is wrong by more shows


def test_attention_does_not_see_beyond_its_sides():
    op = Attention(query="q", key="k", value="v", output="y", left=2, right=1)
    values, constants = attention_values(np.random.default_rng(11), 12, op)
    before = result(op, values, constants)
    for name in "kv":
        values[name][6] = 1e3
    is_changed = (result(op, values, constants) != before).any(axis=1)
    assert is_changed.tolist() == [5 <= t <= 8 for t in range(12)]


def test_attention_stands_scores_of_any_size():
    values = {name: np.full((3, 2), value, F32) for name, value in (("q", 1e15), ("k", -1e15), ("v", 4))}
    got = result(Attention(query="q", key="k", value="v", output="y"), values, {})
    assert got.tolist() == [[4, 4]] * 3


# Recurrence ------------------------------------------------------------------------------


def lstm_constants(rng: np.random.Generator, units: int, bits: int, grid: str = "symmetric") -> dict:
    weight = (
        packed_weight(rng, (4 * units, units), bits=bits, grid=grid, groups=2)
        if bits
        else normal(rng, 4 * units, units)
    )
    return {"w": weight, "b": normal(rng, 4 * units)}


@pytest.mark.parametrize("bias", ["", "b"])
@pytest.mark.parametrize(("bits", "activation_bits"), [(0, 0), (4, 0), (4, 8), (8, 8), (2, 4)])
def test_lstm_is_the_loop_of_the_reference(bits, activation_bits, bias):
    rng = np.random.default_rng(12)
    constants = lstm_constants(rng, 4, bits)
    op = Lstm(input="x", output="h", cell="c", weight="w", bias=bias, activation_bits=activation_bits)
    for rows in (0, 1, 6):
        x = normal(rng, rows, 16, scale=2)
        got, expected = results(op, {"x": x}, constants), reference.lstm(op, x, constants)
        assert all(itertools.starmap(same_bits, zip(got, expected, strict=True)))


@pytest.mark.parametrize("grid", GRIDS)
def test_lstm_meets_every_grid_in_integers(grid):
    rng = np.random.default_rng(13)
    constants, x = lstm_constants(rng, 4, 3, grid), normal(rng, 5, 16)
    op = Lstm(input="x", output="h", cell="c", weight="w", activation_bits=8)
    got, expected = results(op, {"x": x}, constants), reference.lstm(op, x, constants)
    assert all(itertools.starmap(same_bits, zip(got, expected, strict=True)))


def test_lstm_is_that_of_torch():
    rng = np.random.default_rng(14)
    units, rows = 5, 12
    layer = torch.nn.LSTM(3, units, dtype=torch.float64)
    weight, bias, first = (
        normal(rng, 4 * units, units, scale=0.3),
        normal(rng, 4 * units),
        normal(rng, 4 * units, 3),
    )
    x = normal(rng, rows, 3)
    with torch.no_grad():
        layer.weight_hh_l0.copy_(wide(weight))
        layer.bias_hh_l0.copy_(wide(bias))
        layer.weight_ih_l0.copy_(wide(first))
        layer.bias_ih_l0.zero_()
        truth = layer(wide(x))[0].numpy()
    exact = x.astype(np.float64) @ first.T.astype(np.float64)
    gates = exact.astype(F32)
    got, _ = results(
        Lstm(input="x", output="h", cell="c", weight="w", bias="b"), {"x": gates}, {"w": weight, "b": bias}
    )
    # The same recurrence in float64 carries with it how far ours may have come apart.
    wide_weight, wide_bias = weight.astype(np.float64), bias.astype(np.float64)
    size = np.abs(wide_weight)
    hidden = cell = of_hidden = of_cell = np.zeros(units)
    for t in range(rows):
        terms = size @ np.abs(hidden) + np.abs(wide_bias) + np.abs(exact[t])
        of_gate = np.split(size @ of_hidden + (units + 3) * U * terms, 4)
        taken, kept, candidate, given = np.split(exact[t] + wide_weight @ hidden + wide_bias, 4)
        taken, kept, given = (1 / (1 + np.exp(-gate)) for gate in (taken, kept, given))
        candidate = np.tanh(candidate)
        of_taken, of_kept, of_given = (of_gate[i] / 4 + OF_FUNCTION for i in (0, 1, 3))  # slope of a sigmoid
        of_cell = (
            kept * of_cell + np.abs(cell) * of_kept + of_taken * np.abs(candidate)
            + taken * (of_gate[2] + OF_FUNCTION) + 2 * U * (kept * np.abs(cell) + taken * np.abs(candidate))
        )  # fmt: skip
        cell = kept * cell + taken * candidate
        of_hidden = of_given * np.abs(np.tanh(cell)) + given * (of_cell + OF_FUNCTION) + U
        hidden = given * np.tanh(cell)
        assert np.abs(hidden - truth[t]).max() < 1e-12
        assert (np.abs(got[t] - truth[t]) <= SLACK * of_hidden).all()
    assert of_hidden.max() < 1e-4  # what is wrong by more shows


@pytest.mark.parametrize(("bits", "small_bits"), [(0, 0), (8, 0), (0, 8), (8, 4)])
def test_switched_lstm_is_the_loop_of_the_reference(bits, small_bits):
    rng = np.random.default_rng(15)
    large, small = lstm_constants(rng, 4, bits), lstm_constants(rng, 2, small_bits)
    constants = {**large, "sw": small["w"], "sb": small["b"]}
    op = SwitchedLstm(
        input="x", small="s", gate="g", output="h", cell="c", weight="w", bias="b", small_weight="sw",
        small_bias="sb", activation_bits=bits, small_activation_bits=small_bits,
    )  # fmt: skip
    gate = np.array([[1], [-1], [0], [2], [-0.0], [1e-45], [1]], F32)
    values = {"x": normal(rng, 7, 16), "s": normal(rng, 7, 8), "g": gate}
    got = results(op, values, constants)
    expected = reference.switched_lstm(op, values["x"], values["s"], gate, constants)
    assert all(itertools.starmap(same_bits, zip(got, expected, strict=True)))
    for state in got:  # rows 1, 2 and 4 leave what is not the small one's
        assert (state[1, 2:] == state[0, 2:]).all()
        assert (state[2, 2:] == state[0, 2:]).all()
        assert (state[4, 2:] == state[3, 2:]).all()


def test_switched_lstm_with_its_gate_open_is_the_large_one():
    rng = np.random.default_rng(16)
    constants = {**lstm_constants(rng, 4, 8), "sw": normal(rng, 8, 2)}
    op = SwitchedLstm(
        input="x", small="s", gate="g", output="h", cell="c", weight="w", small_weight="sw", activation_bits=8
    )
    values = {"x": normal(rng, 5, 16), "s": normal(rng, 5, 8), "g": np.ones((5, 1), F32)}
    alone = Lstm(input="x", output="h", cell="c", weight="w", activation_bits=8)
    for got, expected in zip(results(op, values, constants), results(alone, values, constants), strict=True):
        assert same_bits(got, expected)
