"""Results as tables for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from rich import box
from rich.console import Group
from rich.table import Table

CHANGED_SHOWN = 10
LAYER_COLUMNS: dict[str, Literal["left", "right"]] = {
    "layer": "left",
    "shape": "right",
    "bits": "right",
    "grid": "left",
    "scale per": "left",
    "levels": "right",
    "input": "left",
    "bytes": "right",
}
"""Of `inspection`; "input" are the bits of the activations a layer meets, or float."""


def _interval(row: Mapping[str, Any]) -> str:
    low, high = row["wer_interval_percent"]
    return f"{low:.2f} to {high:.2f}"


def _latency(row: Mapping[str, Any]) -> str:
    return "/".join(f"{row['latency_ms'][rank]:.1f}" for rank in ("p50", "p90", "p99"))


EVALUATION_ROWS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "WER %": lambda row: f"{row['wer_percent']:.2f}",
    "95 % interval": _interval,
    "sub / ins / del": lambda row: f"{row['substitutions']} / {row['insertions']} / {row['deletions']}",
    "MB": lambda row: f"{row['bytes'] / 1e6:.2f}" if "bytes" in row else "-",
    "real-time factor": lambda row: f"{row['real_time_factor']:.4f}",
    "ms, p50/p90/p99": _latency,
    "peak memory, MB": lambda row: f"{row['peak_memory_mb']:.0f}",
}
"""Of `evaluation`: what stands in a row, and how a model's figure is written."""


def evaluation(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A column a model, of `evaluate.summarize` and, where they are known, "bytes": three fit 80 places."""
    table = Table(title=f"{rows[0]['utterances']} utterances, {rows[0]['duration_s']:.0f} s of speech")
    table.add_column("", no_wrap=True)
    for row in rows:
        table.add_column(str(row["model"]), justify="right", overflow="fold")
    for name, written in EVALUATION_ROWS.items():
        table.add_row(name, *(written(row) for row in rows))
    return table


def methods(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One row a method, of `quantize.describe_methods`."""
    table = Table(show_lines=True)
    table.add_column("method", no_wrap=True)
    table.add_column("what it does", ratio=2)
    table.add_column("trains")
    table.add_column("recipes", ratio=2)
    for row in rows:
        table.add_row(row["method"], row["what"], "yes" if row["trains"] else "no", ", ".join(row["recipes"]))
    return table


def models(rows: Sequence[Mapping[str, Any]]) -> Group:
    """Two rows a preset, of `models.accounting.describe_models`: its size; its operations and remarks."""
    dense: dict[str, Any] = {"box": box.SIMPLE_HEAD, "padding": (0, 1, 0, 0), "pad_edge": False}
    sizes = Table(
        title="Millions of parameters, and MB at 32 bits a weight and fewer; in brackets what the paper prints",
        caption="*: all of the encoder at 4 bits, the rest at 8",
        **dense,
    )
    operations = Table(title="BOPs: 10^12 products x bits of weights x bits of activations in 10 s", **dense)
    for table, columns in (
        (sizes, ["million", *rows[0]["megabytes"], "4/8 *"]),
        (operations, list(rows[0]["bit_operations_10_s"])),
    ):
        table.add_column("model", no_wrap=True)
        for name in columns:
            table.add_column(name, justify="right", no_wrap=True)
    operations.add_column("paper")
    operations.add_column("what differs")
    for row in rows:
        of = row["published"] or {}
        printed = {name: of.get(name, {}) for name in ("megabytes", "encoder_megabytes", "bit_operations")}
        sizes.add_row(
            row["model"],
            _beside(row[COUNTED[of.get("counted", "parameters")]] / 1e6, of.get("parameters"), 1),
            *(_beside(size, printed["megabytes"].get(bits), 1) for bits, size in row["megabytes"].items()),
            _beside(row["encoder_megabytes"]["4"], printed["encoder_megabytes"].get("4"), 1),
        )
        operations.add_row(
            row["model"],
            *(
                _beside(count / 1e12, printed["bit_operations"].get(key), 2)
                for key, count in row["bit_operations_10_s"].items()
            ),
            of.get("paper", ""),
            of.get("note", ""),
        )
    for table in (sizes, operations):
        for column in table.columns:
            if column.no_wrap:  # figures are never cut: a narrow terminal breaks the line instead
                column.min_width = max(map(len, (str(column.header), *map(str, column.cells))))
    return Group(sizes, operations)


COUNTED = {
    "parameters": "parameters",
    "one bias a gate": "parameters_one_bias_a_gate",
    "weights": "weights",
}
"""What a paper counts -> the key of our count."""


def _beside(ours: float, theirs: float | None, digits: int) -> str:
    """Ours, and theirs in brackets where there is one.

    >>> _beside(137.87, 138.1, 1), _beside(30.6624, None, 2)
    ('137.9 (138.1)', '30.66')
    """
    return f"{ours:.{digits}f}" + ("" if theirs is None else f" ({theirs:g})")


def comparison(document: Mapping[str, Any]) -> Group:
    """The difference of two models, and the first utterances that they heard differently."""
    low, high = document["difference_interval_percent"]
    table = Table(title=f"{document['utterances']} utterances of {document['speakers']} speakers, paired")
    for name in ("", "A", "B"):
        table.add_column(name, justify="right" if name else "left")
    table.add_row("model", document["before"], document["after"])
    table.add_row("WER %", *(f"{value:.2f}" for value in document["wer_percent"]))
    for kind in ("substitutions", "insertions", "deletions"):
        table.add_row(kind, *(str(value) for value in document[kind]))
    table.add_row("B less A", "", f"{document['difference_percent']:+.2f}")
    table.add_row("95 % interval", "", f"{low:+.2f} to {high:+.2f}")
    changed = Table(title=f"{len(document['changed'])} utterances changed", show_lines=True)
    for name in ("utterance", "heard", "errors"):
        changed.add_column(name)
    for item in document["changed"][:CHANGED_SHOWN]:
        before, after = item["errors"]
        changed.add_row(
            item["audio"],
            f"= {item['reference']}\nA {item['before']}\nB {item['after']}",
            f"{before} > {after}",
        )
    if len(document["changed"]) > CHANGED_SHOWN:
        changed.caption = f"{len(document['changed']) - CHANGED_SHOWN} more with --json"
    return Group(table, changed) if document["changed"] else Group(table)


def race(document: Mapping[str, Any]) -> Table:
    """One row a candidate of `subtone bench model`."""
    table = Table(
        title=f"{document['utterances']} utterances, {document['duration_s']:.0f} s of speech, "
        f"{document['threads']} threads, {document['rounds']} rounds"
    )
    table.add_column("candidate")
    for name in ("ms per s of speech", "real-time factor", f"{document['ours']} is faster by", "quartiles"):
        table.add_column(name, justify="right")
    for row in document["candidates"]:
        low, high = row["quartiles"]
        table.add_row(
            row["candidate"],
            f"{1000 * row['real_time_factor']:.2f}",
            f"{row['real_time_factor']:.5f}",
            f"{row['ours_is_faster_by']:.2f}x",
            f"{low:.2f} to {high:.2f}",
        )
    return table


def inspection(document: Mapping[str, Any]) -> Group:
    """The layers of a packed file, then what stayed float and where the bytes are."""
    layers = Table(title=str(document["file"]), box=box.SIMPLE_HEAD)
    for name, justify in LAYER_COLUMNS.items():
        layers.add_column(name, justify=justify, no_wrap=True)
    for layer in document["layers"]:
        layers.add_row(
            layer["weight"].removesuffix(".weight"),
            "x".join(map(str, layer["shape"])),
            str(layer["bits"]),
            layer["grid"],
            layer["granularity"].replace("group of ", "group "),
            str(layer["distinct_levels"] or ""),
            layer["activations"].removeprefix("dynamic ").replace(" bits", ""),
            f"{layer['bytes']:,}",
        )
    totals = Table(box=box.SIMPLE_HEAD, show_header=False)
    sections = {f"bytes of {role}": f"{size:,}" for role, size in document["section_bytes"].items()}
    counts = {f"weights in {bits} bits": f"{count:,}" for bits, count in document["weights_by_bits"].items()}
    facts = {
        **counts,
        "weights left in float": ", ".join(document["float_weights"]) or "none",
        f"{'integer' if document['is_integer'] else 'float'} vectors": (
            f"{document['vectors']['count']}, {document['vectors']['bytes']:,} bytes"
        ),
        **sections,
        "bytes of header": f"{document['header_bytes']:,}",
        "bytes of padding": f"{document['padding_bytes']:,}",
        "bytes of the file": f"{document['file_bytes']:,} ({document['file_bytes'] / 1e6:.2f} MB)",
        "recipe": str(document["recipe"].get("name", "none: float")),
    }
    for name, value in facts.items():
        totals.add_row(name, value)
    return Group(layers, totals)
