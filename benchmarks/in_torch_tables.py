"""The section of docs/results.md on models run inside PyTorch; tables.py places it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markdown_rows import source_line, table


def _threads(count: int) -> str:
    return f"{count} threads" if count > 1 else "1 thread (CPU time)"


def in_torch_lines(document: Mapping[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    lines = [
        "## Inside PyTorch",
        "",
        f"`subtone.accelerate` beside PyTorch's and torchao's int8 ({versions}) on models of transformers as their configurations make them, "
        f"random weights, {document['duration_s']} s of sound, {document['rounds']} rounds in turn. PyTorch's dynamic int8 and torchao "
        "take Linear layers alone. Compiled: by `torch.compile`, block by block. Memory: weights, of the whole network. Error: of the "
        "logits, relative to the float ones, where nothing was calibrated.",
        "",
    ]
    for model in document["models"]:
        facts = {fact["candidate"]: fact for fact in model["facts"]}
        raced = [{row["candidate"]: row for row in one["candidates"]} for one in model["races"]]
        heads = [
            part
            for one in model["races"]
            for part in (f"ms, {_threads(one['threads'])}", f"{document['ours']} is faster by")
        ]
        rows = []
        for name, fact in facts.items():
            cells = [name, f"{fact['memory_mb']:.0f}", f"{100 * fact['relative_error']:.1f}"]
            for one in raced:
                low, high = one[name]["quartiles"]
                cells += [
                    f"{1000 * one[name]['seconds']:.0f}",
                    f"{one[name]['ours_is_faster_by']:.2f}x ({low:.2f} to {high:.2f})",
                ]
            rows.append(cells)
        lines += [
            f"{model['model']}, {model['layers']} blocks, {model['parameters'] / 1e6:.0f} M parameters:",
            "",
            *table(" | ".join(["candidate", "MB", "error, %", *heads]), rows),
            "",
        ]
    cells = [
        [
            f"{call['inputs']} x {call['outputs']}",
            str(call["rows"]),
            *(f"{1e6 * one['seconds']:.1f}" for one in call["candidates"]),
        ]
        for call in document["calls"]
    ]
    names = [one["candidate"] for one in document["calls"][0]["candidates"]]
    return [
        *lines,
        "One layer, called from Python, one thread, microseconds:",
        "",
        *table(" | ".join(["inputs x outputs", "rows", *names]), cells),
        "",
        source_line(document),
        "",
    ]
