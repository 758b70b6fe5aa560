"""Functions in stated float32 steps: bits as the loop of the reference, errors as the page states, edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tests.reference import functions as reference
from tests.runtime.definitions import same_bits

from subtone.program import FUNCTIONS as NAMES
from subtone.runtime import functions

F32 = np.float32
ALL = {**functions.FUNCTIONS, "erf": functions.erf}
REFERENCES = {**reference.FUNCTIONS, "erf": reference.erf}
TORCH = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "exp": torch.exp,
    "erf": torch.erf,
}
EDGES = np.array(
    [0, -0.0, 1e-45, -1e-45, 1e-20, 0.6249999, 0.625, -0.625, 0.6250001, 1, -1, 86.99, -86.99, 87, -87, -87.01,
     87.99, 88, 88.01, -88, 1e4, -1e4, 1e19, -1e19, 3e38, -3e38],
    F32,
)  # fmt: skip
EVERYWHERE = np.concatenate(
    [EDGES, np.linspace(-20, 20, 20_001, dtype=F32), np.linspace(-89, 89, 5_001, dtype=F32)]
)


def truth(name: str, x: np.ndarray) -> np.ndarray:
    """In float64, by torch."""
    return TORCH[name](torch.from_numpy(x.astype(np.float64))).numpy()


def by_loop(name: str, x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.array([REFERENCES[name](value) for value in x], F32)


def errors(name: str, x: np.ndarray) -> np.ndarray:
    return np.abs(ALL[name](x).astype(np.float64) - truth(name, x))


def test_a_function_of_a_program_is_one_that_is_defined():
    assert tuple(functions.FUNCTIONS) == NAMES
    assert set(REFERENCES) == set(ALL)


@pytest.mark.parametrize("name", ALL)
def test_every_step_is_that_of_the_reference(name):
    x = np.concatenate([EDGES, np.random.default_rng(0).normal(0, 5, 500).astype(F32)])
    assert same_bits(ALL[name](x), by_loop(name, x))


@settings(deadline=None, max_examples=100)
@given(value=st.floats(allow_nan=False, allow_infinity=False, width=32))
@example(value=0.625)
@example(value=-0.0)
def test_every_step_is_that_of_the_reference_for_any_number(value):
    x = np.array([value], F32)
    for name, function in ALL.items():
        assert same_bits(function(x), by_loop(name, x)), name


def test_exp_is_within_1e_7_of_its_value_and_constant_beyond_the_clip():
    inside = EVERYWHERE[(EVERYWHERE >= -87) & (EVERYWHERE <= 88)]
    assert (errors("exp", inside) / truth("exp", inside)).max() < 1e-7
    ends = functions.exp(np.array([-87, 88], F32))
    assert np.isfinite(ends).all()
    assert ends[0] >= np.finfo(F32).tiny
    beyond = functions.exp(np.array([-87.5, -1e30, -np.inf, 88.5, 1e30, np.inf], F32))
    assert beyond.tolist() == [ends[0]] * 3 + [ends[1]] * 3
    assert functions.exp(np.array([0, -0.0], F32)).tolist() == [1, 1]


@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_sigmoid_and_tanh_are_within_1e_7(name):
    assert errors(name, EVERYWHERE).max() < 1e-7


def test_sigmoid_of_large_numbers_is_0_or_1_and_of_opposite_numbers_sums_to_1():
    far = functions.sigmoid(np.array([88, 1e30, -88, -1e30], F32))
    assert far[:2].tolist() == [1, 1]
    assert far[2:].min() >= 0
    assert far[2:].max() < 2e-38
    total = functions.sigmoid(EVERYWHERE).astype(np.float64) + functions.sigmoid(-EVERYWHERE)
    assert np.abs(total - 1).max() <= 2**-23  # two roundings of numbers below 1


def test_tanh_is_odd_but_for_negative_zero_and_1_far_away():
    x = EVERYWHERE[EVERYWHERE != 0]
    assert same_bits(functions.tanh(-x), -functions.tanh(x))
    assert functions.tanh(np.array([1e4, -1e4, 1e30], F32)).tolist() == [1, -1, 1]
    assert same_bits(functions.tanh(np.array([0.0, -0.0], F32)), np.zeros(2, F32))


def test_erf_is_within_7e_7_and_keeps_the_sign_of_zero():
    assert errors("erf", EVERYWHERE).max() < 7e-7
    assert errors("erf", np.array([0.037966974], F32)) > 6.6e-7  # the largest of 36 million numbers
    zeros = functions.erf(np.array([0.0, -0.0], F32))
    assert np.signbit(zeros).tolist() == [False, True]
    assert np.abs(zeros).max() < 1e-7


@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_tanh"])
def test_silu_gelu_are_as_near_as_what_they_are_made_of(name):
    """x times a factor within e of its truth, then at most four roundings of half a unit."""
    x = EVERYWHERE[np.abs(EVERYWHERE) < 1e6]
    of_factor = {"silu": 1e-7, "gelu": 7e-7 / 2, "gelu_tanh": 1e-7}[name]
    # tanh' <= 1 while four roundings move the argument u by 4 * 2**-24 of it, and u (1 - tanh(u)**2) < 0.45.
    of_argument = {"silu": 0, "gelu": 2**-23, "gelu_tanh": 0.45 * 5 * 2**-24}[name]
    bound = np.abs(x.astype(np.float64)) * (of_factor + of_argument + 4 * 2**-24)
    assert (errors(name, x) <= bound + 1e-45).all()


def test_sums_in_lanes_are_the_loop_of_the_reference():
    rng = np.random.default_rng(1)
    for width in range(1, 70):
        values = (rng.normal(size=(3, width)) * np.exp(rng.normal(0, 8, (3, width)))).astype(F32)
        expected = np.array([reference.sum_in_lanes(list(row)) for row in values], F32)
        assert same_bits(functions.lane_sum(values), expected)
    assert functions.lane_sum(np.zeros((2, 0), F32)).tolist() == [0, 0]


@settings(deadline=None, max_examples=50)
@given(values=hnp.arrays(F32, (2, 37), elements=st.floats(-1e6, 1e6, width=32)))
def test_sums_in_lanes_are_within_the_bound_of_their_depth(values):
    """A lane of 37 takes 3 additions, then 4 join the lanes: 7 roundings of at most the sum of magnitudes."""
    exact = np.array([math.fsum(row.tolist()) for row in values])
    magnitude = np.abs(values.astype(np.float64)).sum(axis=1)
    error = np.abs(functions.lane_sum(values) - exact)
    assert (error <= 7 * 2**-24 * 1.000001 * magnitude + 1e-45).all()


def test_sums_in_lanes_do_not_depend_on_zeros_behind():
    values = np.random.default_rng(2).normal(size=(4, 21)).astype(F32)
    padded = np.concatenate([values, np.zeros((4, 40), F32)], axis=1)
    assert same_bits(functions.lane_sum(values), functions.lane_sum(padded))


@pytest.mark.parametrize("width", [1, 2, 15, 16, 17, 100])
def test_norms_of_one_line_are_the_loop_of_the_reference(width):
    values = np.random.default_rng(3).normal(2, 3, (4, width)).astype(F32)
    expected = np.array([reference.normalized(list(row), 1e-5) for row in values], F32)
    assert same_bits(functions.normalized(values, 1e-5), expected)
    assert not functions.normalized(np.full((1, width), 3, F32), 1e-5).any()  # 3 n / n is exact
