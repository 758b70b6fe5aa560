"""The sections of docs/results.md on integers alone, each there once its script has run; tables.py places them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markdown_rows import source_line, table

PAPER_SPEEDUP, PAPER_COMPRESSION = 2.35, 4.0
"""INT8 over FP32 QuartzNet15x5 on a T4, by TensorRT (Fig. 2)."""
BITS_OF = {"32/32": ("32", "32x32"), "8/8": ("8", "8x8"), "6/8": ("6", "6x8")}
"""W/A of the paper's Table I -> keys of our accounting."""
ERRORS = ("substitutions", "insertions", "deletions")


PAPER = {
    "W8A8, synthetic": "+0.22", "W8A8, synthetic, min/max": "+0.22",
    "W8A8, synthetic, 11 wide": "+0.22", "W6A8, synthetic": "+0.50",
    "W8A8, random": "+1.74", "W6A8, random": "+2.74",
}  # fmt: skip
"""Over float on all of test-clean, by Tables I and II."""
WORD_HEADS = "{} | seeds | WER %, mean | seed by seed | less float, mean | 95 % interval, widest ends | sub / ins / del, mean"


def word_lines(document: Mapping[str, Any]) -> list[str]:
    rows = [
        [*_word_cells(row["label"], row["seeds"]), PAPER.get(row["label"], "-")] for row in document["rows"]
    ]
    return [
        "## QuartzNet15x5 in integers alone",
        "",
        f"All {document['utterances']} utterances of `test-clean-a`, greedy, no language model; float {document['float']['wer_percent']:.2f} %. "
        "Calibrated on one batch of 8 spectrograms made from the BatchNorms (150 steps), on as many of noise in [-3, 3], or on 32 recordings of "
        "`train-clean-100`; weights to the nearest level unless compensated on the same features. Ranges by the least squared error "
        "unless said otherwise. *11 wide*: 11 of 171 products read 16 bits, as recipe zero-shot-w8a8-quartznet15x5 says. Seeds are of the features. The paper's differences are on all of test-clean.",
        "",
        *table(f"{WORD_HEADS.format('weights and activations, calibration')} | paper", rows),
        "",
        source_line(document),
        "",
    ]


IN_README = (
    "W8A8, synthetic, 11 wide",
    "W8A8, synthetic",
    "W6A8, synthetic",
    "W8A8, random",
    "W8A8, recordings",
)


def summary_rows(document: Mapping[str, Any]) -> list[str]:
    """The README's rows of `word_lines`."""
    measured = {row["label"]: row["seeds"] for row in document["rows"]}
    rows = [
        [*_word_cells(label, measured[label]), PAPER.get(label, "-")]
        for label in IN_README
        if label in measured
    ]
    return table(f"{WORD_HEADS.format('calibration')} | paper", rows)


def speed_summary(document: Mapping[str, Any]) -> list[str]:
    """The README's sentence of `speed_lines`."""
    (row,) = [one for one in document["rows"] if one["model"] == "quartznet15x5"]
    said = []
    for run in row["races"]:
        faster = {one["candidate"]: f"{one['ours_is_faster_by']:.2f}x" for one in run["candidates"]}
        named = ", ".join(f"{faster[name]} {name}" for name in document["bars"])
        said.append(f"{run['threads']} thread{'s' * (run['threads'] > 1)}: {named}")
    return [f"Integers alone on {document['seconds']} s of speech are faster by, on {'; '.join(said)}.", ""]


def conformer_lines(document: Mapping[str, Any]) -> list[str]:
    rows = [_word_cells(row["recipe"]["name"], [row]) for row in document["rows"]]
    return [
        "## A Conformer in integers alone",
        "",
        f"The demo's Conformer-CTC with BatchNorm, attention over the whole utterance, {document['utterances']} utterances of voices that training never "
        f"heard; float {document['float']['wer_percent']:.2f} %. ptq-w8 is 8-bit weights with dynamic activations, for scale.",
        "",
        *table(WORD_HEADS.format("recipe"), rows),
        "",
        source_line(document),
        "",
    ]


def _word_cells(label: str, seeds: Sequence[Mapping[str, Any]]) -> list[str]:
    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    intervals = [one["difference_interval_percent"] for one in seeds]
    errors = [mean([one[kind][1] for one in seeds]) for kind in ERRORS]
    return [
        label,
        str(len(seeds)),
        f"{mean([one['wer_percent'][1] for one in seeds]):.2f}",
        ", ".join(f"{one['wer_percent'][1]:.2f}" for one in seeds),
        f"{mean([one['difference_percent'] for one in seeds]):+.2f}",
        f"{min(low for low, _ in intervals):+.2f} to {max(high for _, high in intervals):+.2f}",
        " / ".join(f"{value:.0f}" for value in errors),
    ]


def robustness_lines(document: Mapping[str, Any]) -> list[str]:
    rows = []
    for row in document["rows"]:
        low, high = row["difference_interval_percent"]
        holds = row["difference_percent"] <= document["bar_percent"]
        rows.append(
            [
                row["condition"],
                row["file"].removesuffix(".subtone"),
                *(f"{percent:.2f}" for percent in row["wer_percent"]),
                f"{row['difference_percent']:+.2f}",
                f"{low:+.2f} to {high:+.2f}",
                *(" / ".join(str(row[kind][side]) for kind in ERRORS) for side in (0, 1)),
                "holds" if holds else "fails",
            ]
        )
    low_hz, high_hz = document["band"]["hz"]
    worst = max(document["rows"], key=lambda row: row["difference_percent"])
    return [
        "## Integers alone where it is hard to hear",
        "",
        f"QuartzNet15x5, all {document['utterances']} utterances of `test-clean-a`, the same sounds for the float and the integer-only "
        f"program, both in our run time. Babble: {document['babble']['voices']} other speakers of the set, its power over the utterance "
        f"as many dB below the speaker's. Band: {low_hz:.0f} to {high_hz:.0f} Hz, Butterworth of order {document['band']['order']}, forward. At once: neighbours of "
        f"one speaker joined up to 30 s. The bar: at most {document['bar_percent']} more than float in every condition; the most is "
        f"{worst['difference_percent']:+.2f} ({worst['condition']}).",
        "",
        *table(
            "condition | file | float, WER % | integers | difference | 95 % interval | float, sub / ins / del | integers | bar",
            rows,
        ),
        "",
        source_line(document),
        "",
    ]


def speed_lines(document: Mapping[str, Any]) -> list[str]:
    times, sizes = [], []
    for row in document["rows"]:
        for run in row["races"]:
            for one in run["candidates"]:
                low, high = one["quartiles"]
                bar = document["bars"].get(one["candidate"])
                held = (
                    "-"
                    if bar is None
                    else f"{bar:g}x: {'holds' if one['ours_is_faster_by'] > bar else 'fails'}"
                )
                times.append(
                    [
                        row["model"],
                        str(run["threads"]),
                        one["candidate"],
                        f"{1000 * one['seconds']:.1f}",
                        f"{one['ours_is_faster_by']:.2f}x ({low:.2f} to {high:.2f})",
                        held,
                    ]
                )
        agreement = row["agreement_with_float"]
        for label, size in row["file_bytes"].items():
            told = agreement[label]
            sizes.append(
                [
                    row["model"],
                    label,
                    f"{size / 1e6:.2f}",
                    f"{4 * row['parameters'] / size:.2f}x",
                    f"{100 * told['same_argmax']:.1f} %",
                    f"{told['largest_difference']:.1e}",
                ]
            )
    versions = document["versions"]
    return [
        "## Integers alone: speed and size (zero-shot, Fig. 2 and Table I)",
        "",
        f"The network alone, {document['seconds']} s of speech, {document['rounds']} rounds or more in turn in one process, medians; on one thread its "
        "CPU time, on two the wall's. 5x5 and 10x5 have random weights. Every calibration has heard these features. ONNX Runtime "
        f"{versions['onnxruntime']}; its static int8 is the fastest of {len(document['rows'][0]['races'][0]['static_seconds'])} forms, "
        f"here {' or '.join(sorted({run['static_form'] for row in document['rows'] for run in row['races']}))}. "
        f"The paper prints {PAPER_SPEEDUP}x over float and {PAPER_COMPRESSION:g}x in size for 15x5, on a T4.",
        "",
        *table("network | threads | candidate | ms | integers alone are faster by | bar", times),
        "",
        "Files, how many times smaller than the parameters in float32, and how near their logits come to PyTorch's: rows with the "
        "same largest column, and the largest difference over the largest value.",
        "",
        *table("network | file | MB | smaller by | same | difference", sizes),
        "",
        "Table I by our accounting (every weight in W bits, all else in float32, no scales; 10 s are 1001 frames), in brackets what "
        "the paper prints:",
        "",
        *table(
            "network | W/A | MB | BOPs, 10^12 | what differs",
            [line for row in document["table_1"] for line in table_1_rows(row)],
        ),
        "",
        source_line(document),
        "",
    ]


def table_1_rows(row: Mapping[str, Any]) -> list[list[str]]:
    """Three widths of one network, of `models.accounting.describe_models`."""
    published = row["published"]
    lines = []
    for label, (bits, key) in BITS_OF.items():
        operations = row["bit_operations_10_s"][key] / 1e12
        lines.append(
            [
                row["model"] if not lines else "",
                label,
                f"{row['megabytes'][bits]:.1f} ({published['megabytes'][bits]:g})",
                f"{operations:.2f} ({published['bit_operations'][key]:g})",
                published["note"] if not lines else "",
            ]
        )
    return lines


SECTIONS = {
    "quartznet_integer": word_lines,
    "conformer_integer": conformer_lines,
    "integer_robustness": robustness_lines,
    "integer_speed": speed_lines,
}
"""Kind -> the lines of its section."""
