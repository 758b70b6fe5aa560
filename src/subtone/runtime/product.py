"""One packed weight by itself, for whoever runs a network of their own (subtone.torch does).

An engine runs a whole program; here is the one step that PyTorch lacks: rows times a weight of 1 to 8 bits, in
integers, on the kernels and with the bits of a program's pointwise convolution (docs/numerics.md, section 4). The
packed weight is the only copy in memory: `weight()` reads the codes back from it.

Letters: T frames, K inputs, N outputs.
"""

from __future__ import annotations

import copy
import ctypes
import dataclasses
import functools
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subtone.program import MAX_INTEGER_INPUTS
from subtone.qtensor import QTensor
from subtone.runtime import library as native
from subtone.runtime.engine import chosen_isa
from subtone.runtime.rows import Matrix


class PackedProduct:
    """`y = x W + bias` of rows x, W packed for the kernels of this machine.

    A row of x that holds NaN or an infinity gives a row of NaN; everything else is `products.quantized_product`, then
    `+ bias`, bit for bit. Nothing changes it after construction, and any number of threads may run it at once.

    * `num_inputs` K, `num_outputs` N, `num_bytes` of memory that the packed weight takes, `isa` of the kernels.

    Args:
        weight: (N, K), or (N, K, 1) of a pointwise convolution.
        bias: (N,), float32, or None.
        activation_bits: 2 to 8, of a row of x; it has one scale.
        isa: one of `available_isas()`; None takes what SUBTONE_ISA names, else the first.

    >>> from subtone import numerics
    >>> real = np.array([[1.0, -0.5], [0.25, 1.0]], np.float32)
    >>> grid = numerics.symmetric_grid(np.ones((2, 1)), bits=8)
    >>> product = PackedProduct(QTensor.on_grid(real, grid, bits=8, is_symmetric=True))
    >>> product(np.array([[1.0, 1.0]], np.float32)).round(2).tolist()
    [[0.5, 1.25]]
    """

    def __init__(
        self,
        weight: QTensor,
        bias: NDArray[np.float32] | None = None,
        *,
        activation_bits: int = 8,
        isa: str | None = None,
    ) -> None:
        if max(weight.shape[2:], default=1) > 1:
            raise ValueError(
                f"shape={weight.shape} is a kernel of several taps; pack (out, in) or (out, in, 1)"
            )
        if not 2 <= activation_bits <= 8:
            raise ValueError(f"activation_bits={activation_bits} must be 2 to 8; a product meets no floats")
        if weight.num_columns > MAX_INTEGER_INPUTS:
            raise ValueError(
                f"{weight.num_columns} inputs are more than an integer sum holds; use at most {MAX_INTEGER_INPUTS}"
            )
        if bias is not None and bias.shape != (weight.num_rows,):
            raise ValueError(f"bias has shape {bias.shape}; use ({weight.num_rows},), one for each output")
        self._library = native.load_library(native.require_library())
        self.isa = chosen_isa(isa, native.isas_of(self._library))
        self.num_outputs, self.num_inputs = weight.num_rows, weight.num_columns
        self.activation_bits = activation_bits
        # All of the weight but its codes: one row, whose codes are replaced when they are read back.
        self._described = {
            field.name: copy.copy(getattr(weight, field.name))  # arrays: nobody else's
            for field in dataclasses.fields(weight)
            if field.name != "codes"
        }
        self._code_offset = weight.code_offset
        self._handle = ctypes.c_void_p()
        record, _arrays = native.product_record(weight, activation_bits)
        self.bias = None if bias is None else np.array(bias, np.float32)
        status = self._library.subtone_product_create(
            self.isa.encode(),
            ctypes.byref(record),
            None if self.bias is None else native.address_of(self.bias),
            ctypes.byref(self._handle),
        )
        native.require_ok(self._library, status, f"packing a weight of shape {weight.shape}")
        weakref.finalize(self, self._library.subtone_product_destroy, self._handle)

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedProduct:
        return self  # nothing changes it

    def __reduce__(self) -> tuple[Any, ...]:
        """Packed anew where it is loaded, for the kernels of that machine."""
        make = functools.partial(PackedProduct, activation_bits=self.activation_bits)
        return make, (self.weight(), self.bias)

    @property
    def num_bytes(self) -> int:
        return self._library.subtone_product_bytes(self._handle)

    def weight(self) -> QTensor:
        """The weight that was packed. Where two of a codebook's levels are equal, the lower code stands for both."""
        levels = np.empty((self.num_outputs, self.num_inputs), np.int8)
        status = self._library.subtone_product_levels(self._handle, native.address_of(levels))
        native.require_ok(self._library, status, "reading a packed weight back")
        if (book := self._described["codebook"]) is not None:
            codes = np.searchsorted(book, levels).astype(np.uint8)
        else:
            codes = (levels.astype(np.int16) + self._code_offset).astype(np.uint8)
        return QTensor(codes=codes, **self._described)

    def __call__(self, x: Matrix, *, threads: int = 1) -> Matrix:
        """Rows (T, K) -> (T, N), both float32."""
        if x.ndim != 2 or x.shape[1] != self.num_inputs or x.dtype != np.float32:
            raise ValueError(
                f"x is {x.dtype} {x.shape}; use float32 rows of {self.num_inputs}, the inputs of the weight"
            )
        if not 1 <= threads <= native.MAX_THREADS:
            raise ValueError(f"threads={threads} must be 1 to {native.MAX_THREADS}")
        x = np.require(x, None, ["C", "A"])
        y = np.empty((len(x), self.num_outputs), np.float32)
        self.run_at(native.address_of(x), len(x), native.address_of(y), threads)
        return y

    def run_at(self, x_address: int, frames: int, y_address: int, threads: int) -> None:
        """The same between the contiguous, aligned float32 rows at two addresses, which nothing checks."""
        status = self._library.subtone_product_run(self._handle, x_address, frames, threads, y_address)
        if status:
            native.require_ok(self._library, status, f"multiplying {frames} frames")


TEAM = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
"""Of an OpenMP run time, what products need to run on its threads."""


def share_threads(openmp: ctypes.CDLL | None) -> bool:
    """Whether all products of this process run on the threads of a library's OpenMP run time from now on.

    They do where it has one of GCC's interface; else, and for None, on threads of their own.
    """
    library = native.load_library(native.require_library())
    found = [getattr(openmp, name, None) for name in TEAM]
    team = [ctypes.cast(function, ctypes.c_void_p) for function in found if function is not None]
    is_whole = len(team) == len(TEAM)
    native.require_ok(
        library, library.subtone_product_team(*(team if is_whole else [None] * 3)), "sharing threads"
    )
    return is_whole
