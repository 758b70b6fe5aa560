"""IntegerWeight: what is left of a QTensor where no floating-point number may be.

Codes and the levels that they mean. What a level is worth, a QTensor's scale and zero point, has become
part of the multipliers and corrections of the operation that reads the weight (docs/numerics.md, section 7).
"""

from __future__ import annotations

import dataclasses

from subtone.qtensor import Codes, QTensor


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class IntegerWeight(Codes):
    """A weight's levels, stored in 1 to 8 bits; what must hold is what `Codes` says.

    >>> import numpy as np
    >>> weight = IntegerWeight(codes=np.array([[0, 3]], np.uint8), shape=(1, 2), bits=2)
    >>> weight.levels().tolist()
    [[-2, 1]]
    """

    @classmethod
    def of(cls, weight: QTensor) -> IntegerWeight:
        """The codes of `weight` as they are."""
        return cls(**{field.name: getattr(weight, field.name) for field in dataclasses.fields(cls)})
