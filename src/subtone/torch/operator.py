"""`torch.ops.subtone.linear`: the product of a packed weight as an operator of torch, on the CPU.

    linear(Tensor x, Tensor product, int outputs) -> Tensor

`product` names a `PackedProduct` of this process: one int64, drawn at random, which `registered` gives. A number and not
the codes, because the kernels read a layout of their own that is made once; a tensor and not a plain int, because
torch.compile would compile anew for every int that a layer holds; at random, so that a graph that was saved and loaded
elsewhere finds nothing, rather than another weight.

The shape is known without the weight (`outputs`), so that fake tensors, torch.compile and torch.export see the operator as
one opaque step. A gradient does not exist: integers have none, and packed weights are not trained.
"""

from __future__ import annotations

import ctypes
import secrets
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from subtone.runtime.library import MAX_THREADS
from subtone.runtime.product import PackedProduct, share_threads

NAME = "subtone::linear"
_products: weakref.WeakValueDictionary[int, PackedProduct] = weakref.WeakValueDictionary()
_library = torch.library.Library("subtone", "DEF")  # the operators vanish with this object


def registered(product: PackedProduct) -> Tensor:
    """The number by which the operator finds `product`, (), int64, for as long as somebody holds `product`."""
    key = secrets.randbits(63)
    _products[key] = product
    return torch.tensor(key)


def linear(x: Tensor, product: Tensor, outputs: int) -> Tensor:
    """x (..., K) times a packed weight (N, K), plus its bias: (..., N) of the type of x, computed in float32.

    Each row of x is rounded to its own 8-bit grid (or the product's `activation_bits`), the sums are exact. A row that
    holds NaN or an infinity gives NaN. `torch.get_num_threads()` threads at most, those of all products together; the
    bits do not depend on it.

    Args:
        product: what `registered` gave; outputs: N.

    RuntimeError in a backward pass, ValueError for x that is not of floats, not on the CPU or not K wide.
    """
    return torch.ops.subtone.linear(x, product, outputs)


def _linear_on_cpu(x: Tensor, product: Tensor, outputs: int) -> Tensor:
    packed = _products.get(int(product.item()))
    if packed is None:
        raise ValueError(
            "product is none of this process: the layer is gone, or a saved graph was loaded; "
            "save the model's state_dict, and accelerate the model again"
        )
    width = x.shape[-1] if x.dim() else 0
    if width != packed.num_inputs or outputs != packed.num_outputs:
        raise ValueError(
            f"x has shape {tuple(x.shape)} and outputs={outputs}; use x (..., {packed.num_inputs}) and "
            f"outputs={packed.num_outputs}, as the weight was packed"
        )
    if x.dtype != torch.float32:
        return _linear_on_cpu(_as_floats(x), product, outputs).to(x.dtype)
    x = x.contiguous()
    y = x.new_empty((*x.shape[:-1], outputs))
    packed.run_at(x.data_ptr(), y.numel() // outputs, y.data_ptr(), min(torch.get_num_threads(), MAX_THREADS))
    return y


def _as_floats(x: Tensor) -> Tensor:
    if not x.dtype.is_floating_point:
        raise ValueError(f"x is {x.dtype}; use floats, which the operator rounds itself")
    return x.to(torch.float32)


def _linear_elsewhere(x: Tensor, product: Tensor, outputs: int) -> Tensor:
    raise ValueError(
        f"x is {x.layout} on {x.device}, product on {product.device}; packed layers take dense floats on the CPU, "
        "use .to_dense() or .cpu()"
    )


def _linear_shape(x: Tensor, product: Tensor, outputs: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], outputs))


def _no_gradient(context: Any, gradient: Tensor) -> None:
    raise RuntimeError(
        f"{NAME} has no gradient: packed weights are not trained; train the float model "
        "(subtone.train.Quantize) and accelerate it afterwards"
    )


def _threads_of_torch() -> ctypes.CDLL | None:
    """The library whose OpenMP run time torch's own operators run on."""
    where = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    return ctypes.CDLL(str(where)) if where.exists() else None


share_threads(_threads_of_torch())
_library.define(f"{NAME.partition('::')[2]}(Tensor x, Tensor product, int outputs) -> Tensor")
_library.impl("linear", _linear_on_cpu, "CPU")
_library.impl("linear", _linear_elsewhere, "CompositeExplicitAutograd")
torch.library.register_fake(NAME, _linear_shape, lib=_library)
torch.library.register_autograd(NAME, _no_gradient, lib=_library)
