"""The loops that bounds are measured with do what they say, and refuse what they cannot do."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from subtone.bench.bounds import Bounds, bytes_per_s, int8_per_s, library, size_class
from subtone.runtime import library as native

OK, NULL, SIZE = 0, 1, 2  # subtone_status of native/subtone.h


def read(data: np.ndarray, num_bytes: int, repeats: int) -> tuple[int, int]:
    total = ctypes.c_uint64()
    status = library().subtone_measure_read(native.address_of(data), num_bytes, repeats, ctypes.byref(total))
    return status, total.value


@pytest.mark.parametrize("num_words", [1, 3, 4, 63, 64, 65, 1000])
@pytest.mark.parametrize("skipped", [0, 1])
def test_every_byte_is_read_and_no_other(num_words: int, skipped: int) -> None:
    words = np.random.default_rng(0).integers(0, 2**64, num_words + 2, np.uint64, endpoint=False)
    read_words = words[skipped : skipped + num_words]  # not aligned to a vector where one is skipped
    assert read(read_words, 8 * num_words, 3) == (OK, 3 * sum(map(int, read_words)) % 2**64)


@pytest.mark.parametrize(("num_bytes", "repeats"), [(0, 1), (-8, 1), (7, 1), (12, 1), (8, 0), (8, -1)])
def test_sizes_that_cannot_be_read_are_refused(num_bytes: int, repeats: int) -> None:
    assert read(np.ones(8, np.uint64), num_bytes, repeats)[0] == SIZE


def test_null_pointers_and_rounds_out_of_range_are_refused() -> None:
    loaded, products, total = library(), ctypes.c_int64(), ctypes.c_uint64()
    data = np.ones(8, np.uint64)
    assert loaded.subtone_measure_read(None, 8, 1, ctypes.byref(total)) == NULL
    assert loaded.subtone_measure_read(native.address_of(data), 8, 1, None) == NULL
    assert loaded.subtone_measure_int8(1, None) == NULL
    for rounds in (0, -1, 2**63 - 1):
        assert loaded.subtone_measure_int8(rounds, ctypes.byref(products)) == SIZE


def test_products_grow_with_the_rounds_and_take_their_time() -> None:
    loaded, products = library(), ctypes.c_int64()
    assert loaded.subtone_measure_int8(10, ctypes.byref(products)) == OK
    in_ten = products.value
    assert loaded.subtone_measure_int8(30, ctypes.byref(products)) == OK
    assert products.value == 3 * in_ten > 0
    # No processor has done a thousand products of int8 in a cycle of 10 GHz: a loop that was optimised away would.
    assert 1e8 < int8_per_s(1) < 1e13


def test_memory_is_read_at_a_rate_that_can_be() -> None:
    assert 1e8 < bytes_per_s(1 << 20, 1) < 1e13


def test_two_threads_each_read_their_share() -> None:
    assert 1e8 < bytes_per_s(1 << 20, 2) < 1e13


def test_bounds_are_the_best_that_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = iter([3.0, 5.0, 4.0])
    monkeypatch.setattr("subtone.bench.bounds.bytes_per_s", lambda size, threads: next(rates))
    bounds = Bounds()
    for _ in range(3):
        bounds.observe([1000, 2000], 1)  # of one class: both are below the smallest buffer
    assert bounds.bytes_per_s(1500, 1) == 5.0
    assert bounds.int8_per_s(1) > 0


def test_sizes_near_each_other_are_measured_as_one() -> None:
    assert size_class(16_700_000) == size_class(16_900_000) != size_class(20_500_000)
    assert all(size_class(size) % 64 == 0 for size in (1, 5000, 12345, 10**9))
    for size in (5000, 10**6, 59_738_624):
        assert size_class(size) == pytest.approx(size, rel=0.1)  # 2**(1/8) is 1.09


def test_the_library_says_what_built_it() -> None:
    assert library().subtone_compiler().decode().split()[0] in ("GCC", "clang")


def test_without_a_library_there_is_nothing_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "find_library", lambda: None)
    with pytest.raises(
        ValueError, match=r"no libsubtone.* was built .* no kernels to measure; install it with"
    ):
        library()
