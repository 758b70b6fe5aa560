"""What this machine can do at best: bytes read a second from where they live, and int8 products a second.

Both by a loop of the native library that does nothing else, from as many threads as are measured, the best of several
tries. Bytes live where a buffer of as many lies after it was read: a product of 1 MB is held against the second
cache, a model of 60 MB against memory. On a busy machine a kernel may meet a quieter moment than its bound did: a
share above 1 says so, and is not hidden.
"""

from __future__ import annotations

import ctypes
import math
import threading
import time
from collections.abc import Callable, Iterable

import numpy as np

from subtone.runtime import library as native

TRIES = 5
TRY_S = 0.003
LINE_BYTES = 64
"""Of a cache line, of which a buffer is a multiple."""
FEWEST_BYTES = 4096
CLASSES_AN_OCTAVE = 4
ROUNDS = 20_000
"""Of `subtone_measure_int8` in a first call: about 50 microseconds."""


class Bounds:
    """The best that was seen in a run of what this machine can do; another program slows a measurement, none hastens it.

    `observe` is called again and again in between what is held against them, so that both had the same chances.
    """

    def __init__(self) -> None:
        self._bytes_per_s: dict[tuple[int, int], float] = {}
        self._int8_per_s: dict[int, float] = {}

    def observe(self, num_bytes: Iterable[int], threads: int) -> None:
        """Measures reading buffers as large as each of `num_bytes`, and products, once more."""
        for size in {size_class(each) for each in num_bytes}:
            key = (size, threads)
            self._bytes_per_s[key] = max(self._bytes_per_s.get(key, 0.0), bytes_per_s(size, threads))
        self._int8_per_s[threads] = max(self._int8_per_s.get(threads, 0.0), int8_per_s(threads))

    def bytes_per_s(self, num_bytes: int, threads: int) -> float:
        """Of a buffer about as large as `num_bytes`, which was observed."""
        return self._bytes_per_s[size_class(num_bytes), threads]

    def int8_per_s(self, threads: int) -> float:
        return self._int8_per_s[threads]


def size_class(num_bytes: int) -> int:
    """The nearest of sizes that are a quarter of an octave apart, in cache lines: what lies so near is read as fast.

    >>> size_class(16_000_000), size_class(16_777_216), size_class(1)
    (16777216, 16777216, 4096)
    """
    step = round(CLASSES_AN_OCTAVE * math.log2(max(num_bytes, FEWEST_BYTES)))
    return round(2 ** (step / CLASSES_AN_OCTAVE) / LINE_BYTES) * LINE_BYTES


def library() -> ctypes.CDLL:
    """The native library; ValueError where it was not built."""
    path = native.find_library()
    if path is None:
        raise ValueError(
            f"no {native.FILE_NAME} was built with this package, so there are no kernels to measure; "
            "install it with a C++ compiler present"
        )
    return native.load_library(path)


def bytes_per_s(num_bytes: int, threads: int) -> float:
    """Bytes a second that `threads` threads read of a buffer of `num_bytes`, each its share, again and again."""
    loaded = library()
    size = max(num_bytes, FEWEST_BYTES * threads) // threads // LINE_BYTES * LINE_BYTES
    buffers = [np.ones(size, np.uint8) for _ in range(threads)]

    def read(worker: int, repeats: int) -> int:
        total = ctypes.c_uint64()
        status = loaded.subtone_measure_read(
            native.address_of(buffers[worker]), size, repeats, ctypes.byref(total)
        )
        native.require_ok(loaded, status, "measuring how fast memory is read")
        return size * repeats

    return _best_rate(read, threads)


def int8_per_s(threads: int) -> float:
    """Products of int8, added up in int32, that `threads` threads do in a second."""
    loaded = library()

    def multiply(_worker: int, repeats: int) -> int:
        products = ctypes.c_int64()
        status = loaded.subtone_measure_int8(ROUNDS * repeats, ctypes.byref(products))
        native.require_ok(loaded, status, "measuring products of int8")
        return products.value

    return _best_rate(multiply, threads)


def _best_rate(work: Callable[[int, int], int], threads: int) -> float:
    """The most of what `work(worker, repeats)` returns that was done in a second by all workers together."""
    work(0, 1)
    start = time.perf_counter()
    work(0, 1)
    repeats = max(1, round(TRY_S / (time.perf_counter() - start)))
    barrier = threading.Barrier(threads)
    ends, starts, done = np.zeros((TRIES, threads)), np.zeros((TRIES, threads)), np.zeros((TRIES, threads))

    def serve(worker: int) -> None:
        try:
            for index in range(TRIES):
                barrier.wait()
                starts[index, worker] = time.perf_counter()
                done[index, worker] = work(worker, repeats)
                ends[index, worker] = time.perf_counter()
        except BaseException:
            barrier.abort()  # or the others would wait for good
            raise

    others = [threading.Thread(target=serve, args=(worker,), daemon=True) for worker in range(1, threads)]
    for other in others:
        other.start()
    serve(0)
    for other in others:
        other.join()
    return float(np.max(done.sum(1) / (ends.max(1) - starts.min(1))))
