"""`torch.ops.subtone.linear` is the packed product, whatever torch does with it: compiles, exports, views, converts."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from tests.runtime.small_programs import features_of, packed_weight

from subtone.runtime.engine import available_isas
from subtone.runtime.product import PackedProduct
from subtone.runtime.products import quantized_product

if not available_isas():
    pytest.skip("the native library was not built", allow_module_level=True)

from subtone.torch import linear, registered

K, N = 36, 20
RNG = np.random.default_rng(0)
WEIGHT = packed_weight(RNG, (N, K), bits=5, grid="asymmetric")
BIAS = RNG.normal(size=N).astype(np.float32)
PRODUCT = PackedProduct(WEIGHT, BIAS)
HANDLE = registered(PRODUCT)
OPERATOR = torch.ops.subtone.linear.default


def expected(x: torch.Tensor) -> torch.Tensor:
    rows = x.detach().float().reshape(-1, K).contiguous().numpy()
    y = quantized_product(rows, WEIGHT, 8) + BIAS
    return torch.from_numpy(y).reshape(*x.shape[:-1], N)


def rows(*shape: int) -> torch.Tensor:
    return torch.from_numpy(features_of(RNG, int(np.prod(shape[:-1])), shape[-1])).reshape(shape)


@pytest.mark.parametrize("shape", [(K,), (1, K), (7, K), (2, 3, K), (2, 1, 3, K), (0, K), (2, 0, K)])
def test_any_leading_axes_give_the_bits_of_the_definition(shape):
    x = rows(*shape)
    y = linear(x, HANDLE, N)
    assert y.shape == (*shape[:-1], N)
    assert torch.equal(y, expected(x))


def test_views_that_are_not_contiguous_are_read_right():
    for x in (rows(K, 6).T, rows(6, 2 * K)[:, ::2], rows(4, 3, K).transpose(0, 1), rows(1, K).expand(5, K)):
        assert not x.is_contiguous()
        assert torch.equal(linear(x, HANDLE, N), expected(x))


def test_x_is_left_as_it_is_and_y_shares_nothing_with_it():
    x = rows(3, K)
    before = x.clone()
    y = linear(x, HANDLE, N)
    y.zero_()
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_floats_are_computed_in_float32_and_given_back(dtype):
    x = rows(4, K).to(dtype)
    y = linear(x, HANDLE, N)
    assert y.dtype == dtype
    assert torch.equal(y, expected(x).to(dtype))


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_is_nan_and_no_other(poison):
    x = rows(2, 3, K)
    clean = linear(x, HANDLE, N)
    x[1, 1, 5] = poison
    y = linear(x, HANDLE, N)
    assert y[1, 1].isnan().all()
    y[1, 1] = clean[1, 1]
    assert torch.equal(y, clean)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_every_grad_mode_gives_the_same(mode):
    x = rows(3, K)
    with mode():
        assert torch.equal(linear(x, HANDLE, N), expected(x))


def test_torchs_own_check_of_operators_passes():
    for shape in ((K,), (4, K), (2, 0, K)):
        torch.library.opcheck(OPERATOR, (rows(*shape), HANDLE, N))
    torch.library.opcheck(OPERATOR, (rows(K, 4).T, HANDLE, N))


def test_the_number_of_threads_changes_no_bit():
    weight = packed_weight(RNG, (260, 256), bits=4, grid="symmetric")
    product = PackedProduct(weight)
    handle, before = registered(product), torch.get_num_threads()
    try:
        for count in (40, 100):
            x = rows(count, 256)
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                y = linear(x, handle, 260)
                assert np.array_equal(y.numpy(), quantized_product(x.numpy(), weight, 8))
    finally:
        torch.set_num_threads(before)


def test_several_threads_may_call_it():
    x = rows(9, K)
    wanted, wrong = expected(x), []

    def call() -> None:
        for _ in range(50):
            if not torch.equal(linear(x, HANDLE, N), wanted):
                wrong.append(1)

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def test_a_backward_pass_says_that_there_is_no_gradient():
    x = rows(2, K).requires_grad_()
    y = linear(x, HANDLE, N)
    assert torch.equal(y.detach(), expected(x))
    with pytest.raises(RuntimeError, match=r"subtone::linear has no gradient.*train the float model"):
        y.sum().backward()


def test_a_product_that_is_gone_is_an_error_and_no_memory_is_read():
    product = PackedProduct(WEIGHT)
    handle = registered(product)
    del product
    with pytest.raises(ValueError, match="product is none of this process: the layer is gone"):
        linear(rows(1, K), handle, N)


@pytest.mark.parametrize(
    ("x", "outputs", "message"),
    [
        (torch.ones(2, K + 1), N, rf"x has shape \(2, {K + 1}\) and outputs={N}; use x \(..., {K}\)"),
        (torch.ones(2, K), N + 1, rf"outputs={N + 1}; use x \(..., {K}\) and outputs={N}"),
        (torch.tensor(1.0), N, r"x has shape \(\)"),
        (torch.ones(2, K, dtype=torch.int64), N, r"x is torch\.int64; use floats"),
        (torch.ones(2, K, dtype=torch.complex64), N, r"x is torch\.complex64; use floats"),
        (torch.ones(2, K).to_sparse(), N, r"x is torch\.sparse_coo on cpu.*use \.to_dense\(\) or \.cpu\(\)"),
    ],
)
def test_what_no_product_takes_is_refused(x, outputs, message):
    with pytest.raises(ValueError, match=message):
        linear(x, HANDLE, outputs)


def test_a_meta_tensor_gives_the_shape_and_computes_nothing():
    y = linear(torch.ones(2, 3, K, device="meta"), HANDLE, N)
    assert (y.shape, y.device.type) == ((2, 3, N), "meta")
