"""A packed weight by itself gives the bits of the definition, on any threads, and keeps what was packed."""

from __future__ import annotations

import copy
import ctypes
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest
from tests.reference.runtime_ops import integer_product
from tests.runtime.comparison import ISAS, assert_same_bits
from tests.runtime.small_programs import GRIDS, features_of, packed_weight

from subtone import numerics
from subtone.qtensor import QTensor
from subtone.runtime import library as native
from subtone.runtime.engine import available_isas
from subtone.runtime.product import PackedProduct, share_threads
from subtone.runtime.products import quantized_product

pytestmark = pytest.mark.skipif(not available_isas(), reason="the native library was not built")

NULL, SIZE, ISA = 1, 2, 5  # subtone_status of native/subtone.h


@pytest.fixture
def own_threads():
    """Products run on threads of their own, whatever library has shared its own before."""
    share_threads(None)
    yield
    if operator := sys.modules.get("subtone.torch.operator"):
        share_threads(operator._threads_of_torch())


def definition(x: np.ndarray, weight: QTensor, bias: np.ndarray | None, bits: int = 8) -> np.ndarray:
    product = quantized_product(x, weight, bits)
    return product if bias is None else product + bias


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("bits", range(1, 9))
def test_products_of_every_stored_width_are_those_of_a_program(isa, grid, bits):
    rng = np.random.default_rng(bits)
    weight = packed_weight(rng, (33, 60), bits=bits, grid=grid, groups=4)
    bias = rng.normal(size=33).astype(np.float32) if bits % 2 else None
    for activation_bits in (2, 8):
        product = PackedProduct(weight, bias, activation_bits=activation_bits, isa=isa)
        for frames in (0, 1, 2, 7):
            x = features_of(rng, frames, 60)
            assert_same_bits(product(x), definition(x, weight, bias, activation_bits))


def test_a_product_is_the_loop_of_the_reference():
    rng = np.random.default_rng(0)
    weight, x = packed_weight(rng, (5, 12), bits=3, grid="asymmetric"), features_of(rng, 3, 12)
    assert_same_bits(PackedProduct(weight)(x), integer_product(x, weight, 8))


@pytest.mark.parametrize("outputs", [1, 15, 17, 64, 65, 257])
@pytest.mark.parametrize("inputs", [1, 3, 64, 257])
def test_products_of_every_edge_size_are_equal(inputs, outputs):
    rng = np.random.default_rng(inputs * outputs)
    weight, x = packed_weight(rng, (outputs, inputs), bits=8, grid="asymmetric"), features_of(rng, 6, inputs)
    assert_same_bits(PackedProduct(weight)(x), quantized_product(x, weight, 8))


@pytest.mark.usefixtures("own_threads")
@pytest.mark.parametrize("frames", [40, 100])  # few are split by outputs, many by frames
def test_the_number_of_threads_changes_no_bit(frames):
    rng = np.random.default_rng(0)
    weight, x = packed_weight(rng, (260, 256), bits=4, grid="symmetric"), features_of(rng, frames, 256)
    product, expected = PackedProduct(weight), quantized_product(x, weight, 8)
    for threads in (1, 2, 3, 7, 2):
        assert_same_bits(product(x, threads=threads), expected)


@pytest.mark.usefixtures("own_threads")
def test_callers_on_several_threads_run_products_at_once():
    rng = np.random.default_rng(0)
    weights = [packed_weight(rng, (256, 256), bits=bits, grid="symmetric") for bits in (2, 4, 8)]
    products, x = [PackedProduct(weight) for weight in weights], features_of(rng, 48, 256)
    expected = [quantized_product(x, weight, 8) for weight in weights]
    wrong: list[int] = []

    def call(which: int) -> None:
        for turn in range(20):
            if not np.array_equal(products[which](x, threads=2 + turn % 2), expected[which]):
                wrong.append(which)

    callers = [threading.Thread(target=call, args=(which,)) for which in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert wrong == []


def test_a_forked_process_starts_threads_of_its_own():
    script = """
import os
import numpy as np
from subtone import numerics
from subtone.qtensor import QTensor
from subtone.runtime.product import PackedProduct
real = np.random.default_rng(0).normal(size=(256, 256)).astype(np.float32)
grid = numerics.symmetric_grid(np.abs(real).max(axis=1, keepdims=True), 8)
product = PackedProduct(QTensor.on_grid(real, grid, 8, is_symmetric=True))
before = product(real, threads=3)
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(product(real, threads=3), before) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "0\n"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_gives_a_row_that_is_no_number(isa, poison):
    rng = np.random.default_rng(0)
    weight, x = packed_weight(rng, (70, 33), bits=4, grid="symmetric"), features_of(rng, 7, 33)
    product, finite = PackedProduct(weight, isa=isa), x.copy()
    x[2, 32] = x[5, 0] = poison
    y, expected = product(x), product(finite)
    assert np.isnan(y[[2, 5]]).all()
    kept = [0, 1, 3, 4, 6]
    assert_same_bits(y[kept], expected[kept])


@pytest.mark.usefixtures("own_threads")
def test_a_row_that_is_not_finite_is_marked_by_every_thread():
    rng = np.random.default_rng(0)
    weight = packed_weight(rng, (260, 256), bits=8, grid="symmetric")
    for frames in (40, 100):
        x = features_of(rng, frames, 256)
        x[frames - 1, 3] = np.nan
        y = PackedProduct(weight)(x, threads=3)
        assert np.isnan(y[-1]).all()
        assert np.isfinite(y[:-1]).all()


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("bits", range(1, 9))
def test_what_was_packed_can_be_read_back(grid, bits):
    weight = packed_weight(np.random.default_rng(bits), (70, 60), bits=bits, grid=grid, groups=4)
    got = PackedProduct(weight).weight()
    assert np.array_equal(got.levels(), weight.levels())
    assert (got.bits, got.num_levels, got.shape) == (weight.bits, weight.num_levels, weight.shape)
    assert_same_bits(got.dequantize(), weight.dequantize())
    if weight.codebook is None or len(set(weight.codebook[: weight.num_levels])) == weight.num_levels:
        assert np.array_equal(got.codes, weight.codes)


def test_a_copy_shares_what_is_packed_and_a_pickle_packs_anew():
    rng = np.random.default_rng(0)
    weight, x = packed_weight(rng, (9, 12), bits=3, grid="symmetric"), features_of(rng, 4, 12)
    product = PackedProduct(weight, np.ones(9, np.float32), activation_bits=5)
    assert copy.deepcopy(product) is product
    loaded = pickle.loads(pickle.dumps(product))
    assert loaded is not product
    assert_same_bits(loaded(x), product(x))


def test_the_packed_bytes_are_those_of_levels_scales_and_bias():
    """8-bit levels of 64 outputs, each row of 100 inputs up to a multiple of 4; scale, gain and bias in float32."""
    weight = packed_weight(np.random.default_rng(0), (64, 100), bits=8, grid="symmetric")
    assert PackedProduct(weight).num_bytes == 64 * 100 + 3 * 64 * 4


def test_read_only_and_strided_rows_are_read():
    rng = np.random.default_rng(0)
    weight, wide = packed_weight(rng, (9, 12), bits=8, grid="symmetric"), features_of(rng, 8, 24)
    wide.flags.writeable = False
    x = wide[::2, ::2]
    assert_same_bits(PackedProduct(weight)(x), quantized_product(np.ascontiguousarray(x), weight, 8))


def small() -> QTensor:
    real = np.array([[1.0, -0.5], [0.25, 1.0]], np.float32)
    return QTensor.on_grid(real, numerics.symmetric_grid(np.ones((2, 1)), bits=8), bits=8, is_symmetric=True)


def kernel() -> QTensor:
    return QTensor.on_grid(
        np.ones((2, 2, 3), np.float32), numerics.symmetric_grid(np.ones((2, 1)), 8), 8, is_symmetric=True
    )


def wide() -> QTensor:
    return QTensor.on_grid(
        np.ones((1, 65536), np.float32), numerics.symmetric_grid(np.ones((1, 1)), 8), 8, is_symmetric=True
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PackedProduct(kernel()), r"shape=\(2, 2, 3\) is a kernel of several taps"),
        (lambda: PackedProduct(small(), activation_bits=0), "activation_bits=0 must be 2 to 8"),
        (lambda: PackedProduct(small(), activation_bits=9), "activation_bits=9 must be 2 to 8"),
        (lambda: PackedProduct(wide()), "65536 inputs are more than an integer sum holds; use at most 65535"),
        (lambda: PackedProduct(small(), np.ones(3, np.float32)), r"bias has shape \(3,\); use \(2,\)"),
        (lambda: PackedProduct(small(), isa="mmx"), "isa=mmx is not available on this machine; use"),
        (
            lambda: PackedProduct(small())(np.ones((1, 3), np.float32)),
            r"x is float32 \(1, 3\); use float32 rows of 2",
        ),
        (lambda: PackedProduct(small())(np.ones((1, 2))), r"x is float64 \(1, 2\); use float32 rows of 2"),
        (
            lambda: PackedProduct(small())(np.ones(2, np.float32)),
            r"x is float32 \(2,\); use float32 rows of 2",
        ),
        (
            lambda: PackedProduct(small())(np.ones((1, 2), np.float32), threads=0),
            "threads=0 must be 1 to 256",
        ),
    ],
)
def test_a_product_that_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_without_a_built_library_the_error_says_how_to_get_one(monkeypatch):
    monkeypatch.setattr(native, "find_library", lambda: None)
    with pytest.raises(ValueError, match=r"no libsubtone.* was built.*install it with a C\+\+ compiler"):
        PackedProduct(small())


def test_the_c_abi_answers_a_caller_who_is_wrong_with_a_status():
    library, handle = native.load_library(native.find_library()), ctypes.c_void_p()
    record, _held = native.product_record(small(), 8)

    def create(isa=b"scalar", weight=record, out=handle):
        return library.subtone_product_create(
            isa,
            None if weight is None else ctypes.byref(weight),
            None,
            None if out is None else ctypes.byref(out),
        )

    assert create(weight=None) == create(isa=None) == create(out=None) == NULL
    assert create(isa=b"mmx") == ISA
    for field, value, status in (
        ("rows", 0, SIZE), ("rows", 2**24 + 1, SIZE), ("columns", 0, SIZE), ("columns", 65536, SIZE),
        ("activation_bits", 1, SIZE), ("activation_bits", 9, SIZE), ("scale_groups", 3, SIZE),
        ("codes", None, NULL), ("levels", None, NULL), ("scale", None, NULL), ("zero_point", None, NULL),
    ):  # fmt: skip
        bad, _kept = native.product_record(small(), 8)
        setattr(bad, field, value)
        assert create(weight=bad) == status, field
        assert handle.value is None
    assert create() == 0
    x, y = np.ones((1, 2), np.float32), np.empty((1, 2), np.float32)
    places = native.address_of(x), native.address_of(y)
    run = library.subtone_product_run
    assert run(None, places[0], 1, 1, places[1]) == NULL
    assert run(handle, None, 1, 1, places[1]) == run(handle, places[0], 1, 1, None) == NULL
    assert run(handle, None, 0, 1, None) == 0
    for frames, threads in ((-1, 1), (2**31 + 1, 1), (1, 0), (1, 257)):
        assert run(handle, places[0], frames, threads, places[1]) == SIZE
    assert (
        library.subtone_product_levels(None, places[1])
        == library.subtone_product_levels(handle, None)
        == NULL
    )
    assert library.subtone_product_bytes(None) == 0
    assert library.subtone_product_team(places[0], None, None) == NULL
    library.subtone_product_destroy(handle)
    library.subtone_product_destroy(None)
