"""The section of docs/results.md on the transducer's loss; tables.py places it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markdown_rows import source_line, table


def loss_lines(loss: Mapping[str, Any]) -> list[str]:
    sizes = ", ".join(f"{name} = {size}" for name, size in loss["sizes"].items())
    rows = []
    for row in loss["rows"]:
        low, _, high = row["ratio_quartiles"]
        (ours,) = (peak for peak in row["peaks"] if peak["of"] == "ours")
        cells = [
            str(row["V"]),
            row["dtype"],
            f"{row['ours_s']:.3f}",
            f"{100 * row['share_of_bound']:.0f}",
            f"{row['ours_over_log_softmax']:.2f} ({low:.2f} to {high:.2f})",
            f"{ours['in_logits']:.2f}",
        ]
        rows.append(cells)
    peer = loss["peer"]
    beside = (
        [
            f"Beside {peer['name']} on random ragged batches: the largest difference of a loss is {peer['largest']['loss']:.1e}, of a gradient "
            f"{peer['largest']['gradient']:.1e}.",
            "",
        ]
        if peer
        else []
    )
    return [
        "## The transducer's loss",
        "",
        f"Forward and backward, {sizes}, {loss['threads']} threads, {loss['rounds']} rounds in turn with torch's log-softmax of the same "
        "logits and its backward pass. The bound is the larger of the bytes moved and two exponentials a logit; memory is what one pass "
        "needs beyond the logits, in units of theirs.",
        "",
        *table("V | logits | s | bound, % | over log-softmax | more memory", rows),
        "",
        *beside,
        source_line(loss),
        "",
    ]
