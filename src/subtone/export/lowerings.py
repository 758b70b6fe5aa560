"""Every operator of torch that has an operation of ours: one function each, in files by topic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.fx import Node

from subtone.export import lower_products, lower_rows, lower_sequences, lower_views
from subtone.export.graph import Graph

LOWERINGS: dict[Any, Callable[[Graph, Node], None]] = {
    **lower_products.LOWERINGS,
    **lower_rows.LOWERINGS,
    **lower_views.LOWERINGS,
    **lower_sequences.LOWERINGS,
}
