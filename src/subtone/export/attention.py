"""Attention that a network computes in torch's own terms, read back from the graph.

`scaled_dot_product_attention(q, k, v, mask)` is our `Attention` where the mask hides rows by their distance
alone, or adds what relative attention adds. How a network wrote either (arange and comparisons; padding,
reshaping and slicing; gather) does not matter: mask and shift depend on sizes alone, so they are computed
at two lengths and must be what `Attention` means. Rejected: comparing with the node pattern of one library,
which changes with its versions, and would trust that a similar shift is the same one.

A context that is longer than LONG rows looks like an unlimited one.

Letters: B batch (1 here), H heads, T rows, D width of a head, R = 2 T - 1 relative positions.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from subtone.export.graph import (
    Graph,
    UnsupportedOperatorError,
    arguments_of,
    operands,
    refuse,
    sizes_of,
    source_of,
)
from subtone.export.views import ROWS, View
from subtone.models.operators import UNLIMITED, sinusoid_table
from subtone.program import Attention, Scale, Sinusoids

aten = torch.ops.aten
PRODUCTS = (aten.matmul.default, aten.bmm.default)
SHORT, MIDDLE, LONG = 5, 60, 2000
"""Rows for which masks, shifts and tables are compared: two of them each."""
HIDDEN = -1e30
"""What a float mask adds to a row that is not seen is at most this: its weight is then exactly 0."""
TRANSPARENT = (aten.clone.default, aten.contiguous.default, aten.dropout.default)
HEADS_FIRST = ((), (0,), (ROWS,), (1,))


def score_products(graph: Graph) -> dict[Node, Node]:
    """Node -> attention: the products, and all that is made of them, that only an attention's mask is made of.

    These are not lowered one by one; `lower_dot_product` says what they are together.
    """
    owners: dict[Node, Node] = {}
    for attention in graph.nodes:
        if attention.target is not aten.scaled_dot_product_attention.default:
            continue
        chain: set[Node] = set()
        pending = [arguments_of(attention, key=None, value=None, attn_mask=None)["attn_mask"]]
        while pending:
            node = pending.pop()
            if isinstance(node, Node) and node in graph.sizes.reached and node not in chain:
                chain.add(node)
                pending += [] if node.target in PRODUCTS else node.all_input_nodes
        if all(user in chain or user is attention for node in chain for user in node.users):
            owners |= dict.fromkeys(chain, attention)
    return owners


def lower_dot_product(graph: Graph, node: Node) -> None:
    """scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)."""
    options = arguments_of(
        node,
        key=None,
        value=None,
        attn_mask=None,
        dropout_p=0.0,
        is_causal=False,
        scale=None,
        enable_gqa=False,
    )
    if options["enable_gqa"]:
        raise refuse(node, "shares keys between heads (enable_gqa)")
    key, value = (_heads(graph, node, options[name]) for name in ("key", "value"))
    own_scale = 1 / math.sqrt(key.factors[1])
    scale = own_scale if options["scale"] is None else options["scale"]
    mask, left, right = options["attn_mask"], UNLIMITED, UNLIMITED
    fields: dict[str, str] = {}
    if mask is not None and mask in graph.sizes.reached:
        relative = _relative(graph, node, mask, scale)
        if not math.isclose(scale, own_scale, rel_tol=1e-6):
            raise refuse(node, f"scales relative attention by {scale}, not by 1 / sqrt({key.factors[1]})")
        query, content_bias = _with_bias(graph, operands(node)[0])
        if _heads(graph, node, query) != _heads(graph, node, relative.query):
            raise refuse(node, "looks for positions with another query than for contents")
        fields = {"positions": relative.positions.name}
        fields |= _bias_fields(graph, node, key, content=content_bias, position=relative.bias)
    else:
        query = operands(node)[0]
        if mask is not None:
            left, right = _context(graph, node, mask)
        if options["is_causal"]:
            right = 0
    rows = _heads(graph, node, query)
    name = rows.name
    if not math.isclose(scale, own_scale, rel_tol=1e-6):
        name = f"{node.name}.scaled"
        factor = float(np.float32(scale / own_scale))
        graph.ops.append(Scale(input=rows.name, output=name, factor=factor, source=source_of(node)))
    if not rows.factors == key.factors == value.factors:
        raise refuse(node, f"has heads of {rows.factors}, {key.factors} and {value.factors} columns")
    op = Attention(
        query=name,
        key=key.name,
        value=value.name,
        output=node.name,
        heads=rows.factors[0],
        left=left,
        right=right,
        source=source_of(node),
        **fields,
    )
    graph.emit(node, op, like=rows)


def _heads(graph: Graph, attention: Node, node: Node) -> View:
    """The view of `node` (1, H, T, D), the heads side by side in each row."""
    view = graph.view(node)
    sizes = node.meta["val"].shape
    if view.rows_axis == 2 and view.has_columns(1, 3) and len(sizes) == 4:
        return View(view.name, (int(sizes[1]), int(sizes[3])), HEADS_FIRST, view.num_rows)
    raise refuse(
        attention, f"attends to {node.name}, which is not (B, heads, T, D) with the heads side by side"
    )


# Masks that hide ----------------------------------------------------------------------------


def _context(graph: Graph, attention: Node, mask: Node) -> tuple[int, int]:
    """Rows that are seen before and behind one's own, -1 for all: what a mask of sizes says."""
    if mask not in graph.contexts:
        if not graph.sizes.is_free:
            raise refuse(attention, "has a mask, and a number of frames that torch fixed")
        bands = []
        for least in (MIDDLE, LONG):
            rows = graph.sizes.rows_for(attention, 2, least)
            frames = graph.sizes.shape(attention, rows)[2]
            bands.append((_band(graph.sizes.value(mask, rows), frames), frames))
        (short, frames), (context, _) = bands
        if context is None or short != tuple(UNLIMITED if side >= frames - 1 else side for side in context):
            raise refuse(attention, "hides rows by something other than their distance")
        graph.contexts[mask] = context
    return graph.contexts[mask]


def _band(mask: Tensor, frames: int) -> tuple[int, int] | None:
    """(left, right) of a mask that lets row t see t - left .. t + right; None of any other.

    >>> _band(torch.ones(4, 4).tril().bool(), 4), _band(torch.zeros(1, 1, 1, 4), 4)
    ((-1, 0), (-1, -1))
    """
    is_seen = mask if mask.dtype == torch.bool else mask == 0
    if mask.dtype != torch.bool and not bool((is_seen | (mask <= HIDDEN)).all()):
        return None
    is_seen = is_seen.reshape(-1, *is_seen.shape[-2:]) if is_seen.dim() > 1 else is_seen.reshape(1, 1, -1)
    if not bool((is_seen == is_seen[:1]).all()):
        return None
    is_seen = torch.broadcast_to(is_seen[0], (frames, frames))
    left, right = int(is_seen[-1].flip(0).long().cumprod(0).sum()), int(is_seen[0].long().cumprod(0).sum())
    expected = torch.ones(frames, frames, dtype=torch.bool).triu(1 - left).tril(right - 1)
    if min(left, right) < 1 or not torch.equal(is_seen, expected):
        return None
    return UNLIMITED if left == frames else left - 1, UNLIMITED if right == frames else right - 1


# Relative positions ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Relative:
    """What a mask adds: (query + bias) . positions, each row's shifted to its own distance."""

    query: Node
    bias: Node | None
    positions: View


def _relative(graph: Graph, attention: Node, mask: Node, scale: float) -> Relative:
    products = [
        node for node, owner in graph.owners.items() if owner is attention and node.target in PRODUCTS
    ]
    if len(products) != 1 or not graph.sizes.is_free:
        raise refuse(attention, "adds to its scores what is not relative attention")
    (product,) = products
    for least in (SHORT, MIDDLE):
        rows = graph.sizes.rows_for(attention, 2, least)
        frames = graph.sizes.shape(attention, rows)[2]
        shape = graph.sizes.shape(product, rows)
        if shape[-2:] != (frames, 2 * frames - 1):
            raise refuse(attention, "adds to its scores what is not relative attention")
        scores = torch.arange(1.0, math.prod(shape) + 1).reshape(shape)  # below 2**24: exact, all different
        distance = torch.arange(frames)[:, None] - torch.arange(frames)
        own = scores.gather(-1, (frames - 1 - distance).expand(*shape[:-1], frames))
        added = _added(graph, mask, rows, product, scores)
        if (
            added is None
            or added.shape != own.shape
            or not torch.allclose(added, own * scale, rtol=1e-6, atol=0)
        ):
            raise refuse(attention, "adds to its scores what is not relative attention")
    query, bias = _with_bias(graph, operands(product)[0])
    positions = graph.view(operands(product)[1])
    if positions.rows_axis != len(positions.axes) - 1 or not positions.has_columns(
        *range(len(positions.axes) - 1)
    ):
        raise refuse(
            attention, "has relative positions that are not (B, heads, D, R), the heads side by side"
        )
    return Relative(query, bias, positions)


def _added(graph: Graph, mask: Node, rows: int, product: Node, scores: Tensor) -> Tensor | None:
    """The mask where the product has given `scores`; None where more of the utterance is in it."""
    owner = graph.owners[product]
    if any(node.op == "placeholder" for node, of in graph.owners.items() if of is owner):
        return None
    return graph.sizes.value(mask, rows, {product: scores})


def _with_bias(graph: Graph, node: Node) -> tuple[Node, Node | None]:
    """(x, bias) where `node` is x + bias, a constant; else (node, None)."""
    while node.target in TRANSPARENT:
        node = operands(node)[0]
    if node.target is aten.add.Tensor and not node.kwargs:
        for features, bias in (operands(node)[:2], operands(node)[1::-1]):
            if isinstance(bias, Node) and bias in graph.tensors and features in graph.views:
                return features, bias
    return node, None


def _bias_fields(graph: Graph, attention: Node, key: View, **biases: Node | None) -> dict[str, str]:
    fields = {}
    for role, node in biases.items():
        if node is None:
            continue
        name = f"{graph.prefix}{source_of(attention)}.{role}_bias"
        shape = (1, key.factors[0], 1, key.factors[1])
        vector = torch.broadcast_to(graph.tensors[node], shape)
        graph.constants[name] = vector.detach().float().reshape(-1).numpy()
        fields[f"{role}_bias"] = name
    return fields


def table_view(graph: Graph, node: Node) -> View:
    """How a table of sizes lies on a value of ours: sinusoids of the distances between T rows.

    (R, columns), axes of size 1 in front; compared at two lengths with `sinusoid_table`. A network that
    computes its angles in float32 has them wrong by a few roundings of the longest distance, so much may differ.
    """
    shape = node.meta["val"].shape
    columns, lengths = shape[-1], {}
    for least in (2 * MIDDLE - 1, 2 * LONG - 1):
        rows = graph.sizes.rows_for(node, -2, least)
        table = graph.sizes.value(node, rows).reshape(-1, columns)
        frames = lengths[rows] = (len(table) + 1) // 2
        bound = 8 * torch.finfo(torch.float32).eps * frames
        if (
            len(table) % 2 == 0
            or columns % 2
            or not torch.allclose(
                table, sinusoid_table(range(frames - 1, -frames, -1), columns), rtol=0, atol=bound
            )
        ):
            raise UnsupportedOperatorError(
                f"{source_of(node)} makes a table of positions that are not sinusoids of distances "
                f"T - 1 to 1 - T, sine and cosine in turn; it cannot be packed"
            )
    reference = next(
        (
            view.name
            for other, view in graph.views.items()
            if view.rows_axis >= 0
            and not view.is_padded
            and other in graph.sizes.reached
            and all(graph.sizes.shape(other, rows)[view.rows_axis] == of for rows, of in lengths.items())
        ),
        None,
    )
    if reference is None:
        raise UnsupportedOperatorError(f"{source_of(node)} makes positions of rows that nothing else has")
    op = Sinusoids(input=reference, output=node.name, columns=columns, source=source_of(node))
    graph.ops.append(op)
    axes = (*(() for _ in shape[:-2]), (ROWS,), (0,))
    graph.views[node] = View(node.name, (columns,), axes, sizes_of(node)[-2])
    return graph.views[node]
