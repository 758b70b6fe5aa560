"""What one call computes is what the equation says, at every width, for single products, chains and LSTMs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from subtone.bench.products import OUR_BITS, Granularity, Product
from subtone.bench.turns import error_of
from subtone.bench.workloads import Products, Recurrences, Workload, cold, hot, lstm_step
from subtone.program import Conv1d, Program
from subtone.runtime.engine import NativeEngine

KINDS = ("channel", "codebook", "group16")
LARGEST_ERROR = 0.03
"""Of int8 activations, as peers.LARGEST_ERROR derives it; of an LSTM's steps twice that."""
CHAIN = Products("chain", (Product(48, 32, 3), Product(33, 64, 3, 1), Product(48, 32, 3, 2)))
LAYERS = Recurrences(
    "lstm", (Product(64, 32, 1), Product(64, 16, 1, 1), Product(128, 48, 1, 2), Product(128, 32, 1, 3))
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", OUR_BITS)
def test_ours_gives_every_product_of_a_chain(kind: str, bits: int) -> None:
    granularity = Granularity.of(kind)
    candidate = CHAIN.ours(bits, granularity, threads=1)
    results = candidate.results()
    assert len(results) == 3
    for result, expected in zip(results, CHAIN.expected(bits, granularity), strict=True):
        assert error_of(result, expected) < LARGEST_ERROR
    assert np.array_equal(candidate.run(), results[-1])  # what is timed gives what is checked


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [8, 4, 1])
def test_ours_gives_every_layer_of_lstms(kind: str, bits: int) -> None:
    checked, granularity = LAYERS.checked(), Granularity.of(kind)
    assert checked.frames > 1
    results = checked.ours(bits, granularity, threads=2).results()
    for result, expected in zip(results, checked.expected(bits, granularity), strict=True):
        assert error_of(result, expected) < 2 * LARGEST_ERROR


def test_a_checked_lstm_would_show_another_recurrent_weight() -> None:
    checked = LAYERS.checked()
    other = dataclasses.replace(checked.products[1], place=9)
    wrong = dataclasses.replace(checked, products=(checked.products[0], other, *checked.products[2:]))
    assert error_of(wrong.expected(8)[0], checked.expected(8)[0]) > 2 * LARGEST_ERROR


def test_bytes_are_those_of_packed_weights_and_of_values() -> None:
    # 48 x 32 codes of 4 bits, a float32 scale and zero point a row; 3 frames of 32 floats in and 48 out.
    workload = Products("one", (Product(48, 32, 3),))
    assert workload.num_bytes(4, Granularity("channel")) == 48 * 32 // 2 + 48 * 8 + 3 * 4 * (32 + 48)
    # A group of 16 has a float16 of each: 2 groups a row.
    assert workload.num_bytes(2, Granularity.of("group16")) == 48 * 32 // 4 + 48 * 2 * 4 + 3 * 4 * (32 + 48)
    assert workload.macs == 3 * 48 * 32


@pytest.mark.parametrize("workload", [CHAIN, LAYERS])
def test_a_call_without_work_is_one_of_the_same_kind(workload: Workload) -> None:
    tiny = workload.without_work()
    assert type(tiny) is type(workload)
    assert (tiny.calls, tiny.frames) == (1, 1)
    assert tiny.macs < 20_000


def test_the_cold_workloads_are_all_of_m1() -> None:
    assert (
        sum(each.outputs * each.inputs for each in cold(1).products) == 59_738_624
    )  # 61 019 136 - 2501 * 512
    layers = lstm_step(is_cold=True)
    assert layers.calls == 7
    assert [each.inputs for each in layers.products[1::2]] == [1024] * 7
    assert len({(each.outputs, each.inputs, each.place) for each in layers.products}) == 14
    assert lstm_step(is_cold=False).macs == 2 * 4096 * 1024
    assert hot(4096, 512, 2).name == "4096x512"


def test_a_run_that_repeats_gives_what_runs_give_and_sees_its_inputs_change() -> None:
    product = Product(8, 16, 2)
    op = Conv1d(input="x", output="y", weight="w", activation_bits=8)
    program = Program(input="x", input_width=16, output="y", output_width=8, frames_per_step=1, ops=(op,))
    engine = NativeEngine(program, {"w": product.weight(8, Granularity("channel"))}, threads=1)
    x = product.x.copy()
    again = engine.repeatable(x)
    assert np.array_equal(again(), engine.run(x))
    engine.run(np.tile(x, (50, 1)))  # a longer run in between, for which the arena grows
    x[:] = x[::-1].copy()
    assert np.array_equal(again(), engine.run(x))
    assert again() is again()
    with pytest.raises(ValueError, match=r"features have shape \(2, 8\), not \(frames, 16\)"):
        engine.repeatable(x[:, :8])
