"""IntegerWeight: what is left of a QTensor where no floating-point number may be.

Codes and the levels that they mean. What a level is worth, a QTensor's scale and zero point, has become
part of the multipliers and corrections of the operation that reads the weight (docs/numerics.md, section 7).
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from subtone import numerics
from subtone.qtensor import QTensor, check_codebook


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class IntegerWeight:
    """A weight's levels, stored in 1 to 8 bits.

    * `codes`: uint8 (out, columns), below `2**bits`; below `num_levels` with a codebook.
    * `shape`: the weight's own torch shape, as a QTensor's; columns are the rest, flattened (taps, in).
    * `codebook`: int8 (2**bits,), ascending, padded by repeating the last; or None.
    * `num_levels`: how many of the codebook's entries are meant; `2**bits` without one.

    `validate()` checks this same list and runs on construction.

    >>> weight = IntegerWeight(codes=np.array([[0, 3]], np.uint8), shape=(1, 2), bits=2)
    >>> weight.levels().tolist()
    [[-2, 1]]
    """

    codes: NDArray[np.uint8]
    shape: tuple[int, ...]
    bits: int
    codebook: NDArray[np.int8] | None = None
    num_levels: int = 0

    def __post_init__(self) -> None:
        if not self.num_levels:
            object.__setattr__(self, "num_levels", 2 ** numerics.check_bits(self.bits))
        self.validate()

    @classmethod
    def of(cls, weight: QTensor) -> IntegerWeight:
        """The codes of `weight` as they are."""
        return cls(
            codes=weight.codes,
            shape=weight.shape,
            bits=weight.bits,
            codebook=weight.codebook,
            num_levels=weight.num_levels,
        )

    @property
    def num_rows(self) -> int:
        return self.codes.shape[0]

    @property
    def num_columns(self) -> int:
        return self.codes.shape[1]

    @property
    def num_bytes(self) -> int:
        """Bytes of the packed codes and of the codebook, without padding."""
        book = 0 if self.codebook is None else self.codebook.nbytes
        return math.ceil(self.codes.size * self.bits / 8) + book

    @property
    def code_offset(self) -> int:
        """What `levels()` subtracts from a code: `2**(bits-1)`; 0 with a codebook."""
        return 0 if self.codebook is not None else 2 ** (self.bits - 1)

    def levels(self) -> NDArray[np.int8]:
        """int8 (out, columns): what a product multiplies. The same as those of the QTensor it came from."""
        if self.codebook is not None:
            return self.codebook[self.codes]
        return (self.codes.astype(np.int16) - self.code_offset).astype(np.int8)

    def validate(self) -> None:
        """Raise ValueError at the first invariant of the class docstring that does not hold."""
        numerics.check_bits(self.bits)
        codes = self.codes
        _require(
            codes.dtype == np.uint8 and codes.ndim == 2,
            f"codes are {codes.dtype} {codes.shape}, not uint8 (out, columns)",
        )
        _require(
            2 <= len(self.shape) <= 4 and min(self.shape) >= 1,
            f"shape={self.shape} is not (out, in), (out, in, width) or (out, in, height, width), each 1 or more",
        )
        _require(
            math.prod(self.shape) == codes.size and self.shape[0] == codes.shape[0],
            f"shape={self.shape} does not hold codes of {codes.shape}",
        )
        _require(
            1 <= self.num_levels <= 2**self.bits,
            f"num_levels={self.num_levels} does not fit bits={self.bits}",
        )
        _require(
            int(codes.max()) < self.num_levels,
            f"a code is {int(codes.max())}, beyond the {self.num_levels} levels",
        )
        if self.codebook is None:
            _require(self.num_levels == 2**self.bits, f"num_levels={self.num_levels} without a codebook")
        else:
            check_codebook(self.codebook, self.bits, self.num_levels, kind="an IntegerWeight")


def _require(holds: bool, complaint: str) -> None:
    if not holds:
        raise ValueError(f"not an IntegerWeight: {complaint}")
