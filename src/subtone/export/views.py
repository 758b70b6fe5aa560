"""How a tensor of torch lies on a value of ours: which of its axes are rows, which columns.

Our values are matrices (rows, width). A torch tensor that holds one is a `View`: each of its axes is the
rows, a run of factors of the width, or of size 1. So a transpose, a reshape into heads and back, or an
axis of size 1 changes a view and computes nothing; an operation asks for the order that it needs.
"""

from __future__ import annotations

import dataclasses
import math

ROWS = -1
"""The atom that stands for the rows; others are positions in a view's `factors`."""


BATCH_CHANNELS_ROWS: tuple[tuple[int, ...], ...] = ((), (0,), (ROWS,))
BATCH_ROWS_CHANNELS: tuple[tuple[int, ...], ...] = ((), (ROWS,), (0,))


def atoms_of(factor: int, size: int) -> tuple[int, ...]:
    """An axis that holds `factor`: one of size 1 holds nothing."""
    return (factor,) if size > 1 else ()


@dataclasses.dataclass(frozen=True)
class View:
    """The value `name` (rows, width) as a tensor.

    * `factors`: sizes whose product is the width, slowest first.
    * `axes`: for each axis of the tensor its atoms, slowest first: ROWS or positions in `factors`; () is size 1.
    * `num_rows`: of the example that was traced.
    * `padding`: zeros in front of and behind the rows, and the last factor, that a convolution is to take in.
    """

    name: str
    factors: tuple[int, ...]
    axes: tuple[tuple[int, ...], ...]
    num_rows: int
    padding: tuple[int, int] = (0, 0)
    last_padding: tuple[int, int] = (0, 0)

    @property
    def width(self) -> int:
        return math.prod(self.factors)

    @property
    def is_padded(self) -> bool:
        return any((*self.padding, *self.last_padding))

    @property
    def rows_axis(self) -> int:
        """The axis along which the rows lie, or -1."""
        return next((axis for axis, atoms in enumerate(self.axes) if atoms == (ROWS,)), -1)

    def has_columns(self, *axes: int) -> bool:
        """Whether `axes` hold, one after the other, all columns in order (and no other axis any)."""
        whole = [atom for atom, size in enumerate(self.factors) if size > 1]
        return [atom for axis in axes for atom in self.axes[axis]] == whole

    def permuted(self, order: tuple[int, ...]) -> View:
        return dataclasses.replace(self, axes=tuple(self.axes[axis] for axis in order))

    def transposed(self, first: int, second: int) -> View:
        order = list(range(len(self.axes)))
        order[first], order[second] = order[second], order[first]
        return self.permuted(tuple(order))

    def size_of(self, atom: int) -> int:
        return self.num_rows if atom == ROWS else self.factors[atom]

    def reshaped(self, sizes: tuple[int, ...]) -> View | None:
        """The view under another shape of the same values in the same order; None where rows would be cut or mixed.

        >>> view = View("x", (8,), ((), (ROWS,), (0,)), num_rows=5)
        >>> heads = view.reshaped((1, 5, 2, 4))
        >>> heads.factors, heads.axes
        ((2, 4), ((), (-1,), (0,), (1,)))
        >>> heads.transposed(1, 2).transposed(1, 2).reshaped((1, 5, 8)).axes
        ((), (-1,), (0, 1))
        """
        pending = [(atom, self.size_of(atom)) for atoms in self.axes for atom in atoms]
        pending = [(atom, size) for atom, size in pending if size > 1 or atom == ROWS]
        parts: list[list[tuple[int, int]]] = []  # of each new axis: (atom, size of its part)
        for size in sizes:
            taken: list[tuple[int, int]] = []
            left = size
            while left > 1 and pending:
                atom, available = pending.pop(0)
                if atom == ROWS or left % available == 0:
                    if left != available and (atom == ROWS or left % available):
                        return None
                    taken.append((atom, available))
                    left //= available
                elif available % left == 0:
                    taken.append((atom, left))
                    pending.insert(0, (atom, available // left))
                    left = 1
                else:
                    return None
            if left > 1:
                return None
            parts.append(taken)
        if any(size > 1 for _, size in pending):
            return None
        return self._refined(parts)

    def _refined(self, parts: list[list[tuple[int, int]]]) -> View:
        """The view whose atoms are split as `parts` say; the parts of one atom come slowest first."""
        sizes: dict[int, list[int]] = {atom: [] for atom in range(len(self.factors))}
        for taken in parts:
            for atom, size in taken:
                if atom != ROWS:
                    sizes[atom].append(size)
        first: dict[int, int] = {}
        factors: list[int] = []
        for atom, pieces in sizes.items():
            first[atom] = len(factors)
            factors += pieces or [self.factors[atom]]
        axes = []
        for taken in parts:
            atoms = []
            for atom, _ in taken:
                if atom == ROWS:
                    atoms.append(ROWS)
                else:
                    atoms.append(first[atom])
                    first[atom] += 1
            axes.append(tuple(atoms))
        return dataclasses.replace(self, factors=tuple(factors), axes=tuple(axes))
