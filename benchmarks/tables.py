"""docs/results.md and the README's table, made of the newest results; nothing in them is typed.

    .venv/bin/python benchmarks/tables.py

Of every kind of measurement the newest file in benchmarks/results/ counts; files are never edited.
tests/test_results.py holds that the pages are what this makes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import integer_tables
import kernel_tables
from in_torch_tables import in_torch_lines
from loss_tables import loss_lines
from markdown_rows import source_line as _source
from markdown_rows import table as _table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
START, END = "<!-- results: made by benchmarks/tables.py, do not edit -->\n", "<!-- end of results -->\n"
IN_README = (
    "ptq-w8", "ptq-w6", "ptq-w5", "ptq-w5-codebook", "ptq-w4", "ptq-w4-group64", "ptq-w4-codebook",
    "ptq-w4-compensated", "ptq-w4-group64-compensated", "ptq-w4-codebook-compensated",
    "ptq-quartznet-4-6-refined", "ptq-w5-codebook-compensated", "ptq-quartznet-5-6-compensated",
)  # fmt: skip
CONTROL = "tuned-float"
OF_ROWS = ("quartznet_ptq", "quartznet_tuned", "quartznet_integer", "integer_speed")
"""Kinds whose rows stand by themselves: of each the newest counts, whichever document has it."""
OF_ZOO = ("float", "ptq-w8", "ptq-w5", "ptq-w4", "ptq-w2")
MIXED = {"ptq-m2-8-5": "M-II, 8/5", "ptq-bifocal-1-5": "1/5"}
LAST_MINUTE = ("after_nine", "first", "one_by_one")
PEERS = ("PyTorch float", "ONNX Runtime int8")
TEXT_OF_KIND = {
    "quartznet_ptq": "words and bytes",
    "quartznet_tuned": "words after training",
    "training_cost": "what training costs",
    "race": "speed",
    "memory": "memory",
    "demo": "the demo",
    "zoo": "all presets",
    "streams": "streams",
    "drift": "streams of sentences",
}


def main() -> None:
    (ROOT / "docs" / "results.md").write_text(results_page())
    readme = ROOT / "README.md"
    readme.write_text(with_table(readme.read_text()))


def oldest_first(kind: str) -> list[dict[str, Any]]:
    """The documents of results/DATE_COMMIT_KIND.json, by the time that their machine told."""
    documents = [
        {**json.loads(path.read_text()), "source": path.name} for path in RESULTS.glob(f"*_{kind}.json")
    ]
    return sorted(documents, key=lambda document: (document["date"], document["machine"].get("time", "")))


def newest(kind: str) -> dict[str, Any]:
    """The newest document of a kind; of those in OF_ROWS with the rows that only older ones have."""
    documents = oldest_first(kind)
    if not documents:
        raise ValueError(f"no result of kind {kind}; benchmarks/README.md says which script makes it")
    if kind not in OF_ROWS:
        return documents[-1]
    rows = {
        row.get("label") or row.get("model") or row["recipe"]["name"]: (row, one["source"])
        for one in documents
        for row in one["rows"]
    }
    sources = sorted({source for _, source in rows.values()})
    return {
        **documents[-1],
        "rows": [row for row, _ in rows.values()],
        "source": "`, `".join(sources),
    }


def newest_if_any(kind: str) -> list[dict[str, Any]]:
    return [newest(kind)] if oldest_first(kind) else []


def with_table(readme: str) -> str:
    """`readme` with its results between the two marks."""
    before, _, rest = readme.partition(START)
    _, _, after = rest.partition(END)
    return before + START + readme_table() + END + after


def readme_table() -> str:
    ptq, race, memory = newest("quartznet_ptq"), newest("race"), newest("memory")
    rows = [row for row in ptq["rows"] if row["recipe"]["name"] in IN_README]
    return "\n".join(
        [
            f"QuartzNet15x5, post-training, packed, all {ptq['utterances']} utterances of `test-clean-a`, greedy, no language",
            f"model; float {ptq['float']['wer_percent']:.2f} %. The difference is paired, its 95 % interval drawn over speakers.",
            "",
            *word_rows(rows),
            "",
            "Trained on two cores, what speech each has heard in all (docs/results.md says how; docs/lab-log.md what did not help):",
            "",
            *tuned_rows([newest("quartznet_tuned")]),
            "",
            *integer_summary(),
            f"Speed of the network, {race['threads']} threads, {race['utterances']} whole utterances, one process, {race['rounds']} rounds:",
            "",
            *race_rows(race),
            "",
            *(line for one in oldest_first("kernels")[-1:] for line in kernel_tables.kernel_summary(one)),
            f"Peak memory of `subtone transcribe` with {memory['file']} ({memory['file_bytes'] / 1e6:.1f} MB): "
            + ", ".join(f"{row['peak_mb']:.0f} MB for {row['seconds']} s of sound" for row in memory["rows"])
            + ".",
            "",
        ]
    )


def integer_summary() -> list[str]:
    """The README's lines on integers alone."""
    words, speed = (newest_if_any(kind) for kind in ("quartznet_integer", "integer_speed"))
    lines = [
        "Calibrated without a recording and run in integers alone (docs/results.md has seeds, random and recorded calibration):",
        "",
        *(line for one in words for line in integer_tables.summary_rows(one)),
        "",
    ]
    return (lines if words else []) + [line for one in speed for line in integer_tables.speed_summary(one)]


def word_rows(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "| recipe | file, MB | predicted | WER % | less float | 95 % interval | sub / ins / del |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = row["difference_interval_percent"]
        errors = " / ".join(str(row[kind][1]) for kind in ("substitutions", "insertions", "deletions"))
        lines.append(
            f"| {row['recipe']['name']} | {row['file_bytes'] / 1e6:.2f} | {row['predicted_bytes'] / 1e6:.2f} "
            f"| {row['wer_percent'][1]:.2f} | {row['difference_percent']:+.2f} | {low:+.2f} to {high:+.2f} | {errors} |"
        )
    return lines


def tuned_rows(documents: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every run of every document: what differs between two runs of a recipe stands in the row."""
    lines = [
        "| recipe | to nearest, WER % | speech, h | learns from | rate | start | file, MB | WER % | less float | 95 % interval | less control | 95 % interval |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for document in documents:
        for row in document["rows"]:
            training = row["recipe"]["training"]
            start = "grid" if training.get("compensation_batches") else "float"
            cells = [
                row["recipe"]["name"],
                f"{row['rounded_wer_percent']:.2f}" if row["rounded_wer_percent"] else "-",
                f"{row['speech_h']:.2f}",
                _learnt_from(training),
                f"{training['learning_rate']:g} {training['learning_rate_unit']}",
                start,
                f"{row['file_bytes'] / 1e6:.2f}",
                f"{row['wer_percent']:.2f}",
            ]
            for difference in (row["less_float"], row["less_control"]):
                if difference is None:
                    cells += ["-", "-"]
                    continue
                low, high = difference["interval"]
                cells += [f"{difference['percent']:+.2f}", f"{low:+.2f} to {high:+.2f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _learnt_from(training: Mapping[str, Any]) -> str:
    share = training.get("distillation", 0)
    sources = [] if not share else ["layers" if training.get("distilled_layers") else "outputs"]
    return " and ".join([*sources, *(["texts"] if share < 1 else [])])


def cost_rows(cost: Mapping[str, Any]) -> list[str]:
    lines = [
        "| recipe | a step, over float | quartiles | of that once in | takes, s |",
        "|---|---|---|---|---|",
    ]
    for row in cost["rows"]:
        low, high = row["quartiles"]
        period = f"{row['period_steps']} steps | {row['rewrite_s']:.2f}" if row["period_steps"] else "- | -"
        lines.append(f"| {row['recipe']} | {row['ratio']:.3f} | {low:.3f} to {high:.3f} | {period} |")
    return lines


def race_rows(race: Mapping[str, Any]) -> list[str]:
    lines = [
        f"| candidate | ms per s of speech | {race['ours']} is faster by | quartiles |",
        "|---|---|---|---|",
    ]
    for row in race["candidates"]:
        low, high = row["quartiles"]
        lines.append(
            f"| {row['candidate']} | {1000 * row['real_time_factor']:.2f} | {row['ours_is_faster_by']:.2f}x | {low:.2f} to {high:.2f} |"
        )
    return lines


def results_page() -> str:
    ptq, tuned, cost, race, memory, demo, zoo, streams, drift = (newest(kind) for kind in TEXT_OF_KIND)
    assigned = cost["gq_assignment"]
    float_errors = " / ".join(
        str(ptq["float"][kind]) for kind in ("substitutions", "insertions", "deletions")
    )
    return "\n".join(
        [
            "# Results",
            "",
            "Made by `benchmarks/tables.py` of the newest files in `benchmarks/results/`; do not edit.",
            "benchmarks/README.md says how each is measured.",
            "",
            "## Post-training quantization of QuartzNet15x5",
            "",
            f"All {ptq['utterances']} utterances of `test-clean-a`, greedy, no language model, packed, 8-bit dynamic activations.",
            f"Float in PyTorch: {ptq['float']['wer_percent']:.2f} % ({float_errors}). "
            '"predicted" is arithmetic: codes, scales and biases, without header, padding and what bias correction adds (ptq-w4-correct).',
            "",
            *word_rows(ptq["rows"]),
            "",
            _source(ptq),
            "",
            "## Trained to few bits",
            "",
            f"The same model, trained by a recipe on `train-clean-7h`, packed; all {tuned['utterances']} utterances. "
            "Speech is what training heard in all. It learns from the texts (CTC), or each layer from the float model's, "
            "where the control has nothing to learn and stays the float model. "
            "Start: from the float weights, or from the grid with compensated rounding. "
            '"To nearest": by the same rules, untrained. '
            f'"less control": the paired difference to the float model trained identically ({CONTROL}).',
            "",
            *tuned_rows(oldest_first("quartznet_tuned")),
            "",
            *(_source(document) for document in oldest_first("quartznet_tuned")),
            "",
            "## What training costs",
            "",
            f"A step of the same model, {cost['batch_s']:.0f} s of speech, {cost['threads']} threads, bfloat16 autocast, "
            f"{cost['rounds']} rounds in turn with a float step; medians of ratios: the method alone, CTC loss, no teacher. "
            "What comes once in a period is added by its share.",
            "",
            *cost_rows(cost),
            "",
            f"GQ's assignment of {assigned['weights']:.0e} weights at {assigned['bits']} bits, {assigned['threads']} thread: "
            f"{assigned['seconds']:.2f} s.",
            "",
            _source(cost),
            "",
            "## Speed",
            "",
            f"The network alone, {race['threads']} threads, {race['utterances']} whole utterances ({race['duration_s']:.0f} s), "
            f"{race['rounds']} rounds in turn. The front end, which all share, takes "
            f"{1000 * race['front_end_real_time_factor']:.2f} ms per s of speech.",
            "",
            *race_rows(race),
            "",
            _source(race),
            "",
            "## Memory",
            "",
            f"`subtone transcribe` with {memory['file']}, peak resident memory of the process.",
            "",
            "| sound | peak MB | bar |",
            "|---|---|---|",
            *(f"| {row['seconds']} s | {row['peak_mb']:.0f} | {row['bar_mb']} |" for row in memory["rows"]),
            "",
            _source(memory),
            "",
            *zoo_lines(zoo),
            *stream_lines(streams),
            *drift_lines(drift),
            *loss_lines(newest("rnnt_loss")),
            *(line for one in oldest_first("kernels")[-1:] for line in kernel_tables.kernel_lines(one)),
            *integer_lines(),
            *(line for one in oldest_first("in_torch")[-1:] for line in in_torch_lines(one)),
            "## The demo",
            "",
            "`make demo`: a spoken corpus, voices that training never heard.",
            "",
            "| model | WER % | 95 % interval | MB | real-time factor | p50 / p90 / p99 ms |",
            "|---|---|---|---|---|---|",
            *map(_demo_row, demo["rows"]),
            "",
            _source(demo),
            "",
        ]
    )


def integer_lines() -> list[str]:
    """The sections of what has been measured of integers alone."""
    made = {kind: newest_if_any(kind) for kind in integer_tables.SECTIONS}
    return [
        line for kind, found in made.items() for one in found for line in integer_tables.SECTIONS[kind](one)
    ]


def zoo_lines(zoo: Mapping[str, Any]) -> list[str]:
    """Every preset at its full width."""
    sizes, speeds, parities = [], [], []
    for row in zoo["rows"]:
        packed = {one["recipe"]: one for one in row["packed"]}
        mixed = [one for name, one in packed.items() if name in MIXED]
        sizes.append(
            [
                row["model"],
                f"{row['parameters'] / 1e6:.2f}",
                *(f"{packed[recipe]['file_bytes'] / 1e6:.2f}" for recipe in OF_ZOO),
                *([f"{one['file_bytes'] / 1e6:.2f} ({MIXED[one['recipe']]})" for one in mixed] or ["-"]),
                f"{packed['ptq-w4']['header_bytes'] / 1e3:.0f}",
                *(f"{packed[recipe]['peak_mb']:.0f}" for recipe in ("float", "ptq-w8", "ptq-w4")),
            ]
        )
        raced = {one["candidate"]: one for one in row["race"]}
        ours = raced["ptq-w8"]
        work = packed["ptq-w8"].get("work")  # the first rows were measured without
        best = f"{100 * bound_s(work, zoo['bounds']) / ours['seconds']:.0f}" if work else "-"
        speeds.append(
            [
                row["model"],
                f"{100 * ours['real_time_factor']:.3f}",
                best,
                f"{raced['ptq-w4']['ours_is_faster_by']:.2f}",
            ]
        )
        for peer in PEERS:
            if peer in raced:
                low, high = raced[peer]["quartiles"]
                speeds[-1].append(f"{raced[peer]['ours_is_faster_by']:.2f}x ({low:.2f} to {high:.2f})")
            else:
                speeds[-1].append("none")
        for one in row["packed"]:
            parities.append(
                [
                    row["model"],
                    one["recipe"],
                    *_agreement(one["rows"]),
                    *_agreement(one.get("rows_float_activations")),
                    *_agreement(one.get("joiner")),
                ]
            )
    says = [
        f"`{row['model']}`: `{row['int8_says'].split('Failure')[0].strip()}`"
        for row in zoo["rows"]
        if row["int8_says"]
    ]
    bounds = zoo["bounds"]
    return [
        "## Every preset at full width",
        "",
        f"Random weights (seed {zoo['seed']}; QuartzNet15x5's are trained), {zoo['seconds']} s of speech, one thread. MB of the packed files; kB of the header at "
        f"4 bits; peak resident MB of a process that loads the file and hears (an empty one: {zoo['empty_process_mb']:.0f}).",
        "",
        *_table(
            "preset | parameters, M | float | 8 bits | 5 | 4 | 2 | mixed | header, kB | peak, float | 8 bits | 4",
            sizes,
        ),
        "",
        "Time of the encoder (of a CTC network all) at 8 bits in % of real time, CPU time, medians; the share of it that the "
        f"machine needs at its best ({bounds['int8_products_per_s'] / 1e9:.0f} G products of int8 or {bounds['float_products_per_s'] / 1e9:.0f} G of "
        f"floats a second, {bounds['bytes_per_s'] / 1e9:.0f} GB of recurrent weights); 4 bits over 8; then how many times longer others "
        "take on the same features, in turn in one process, with quartiles over rounds. PyTorch is float32, ONNX Runtime int8 by "
        "`quantize_dynamic`, LSTMs included.",
        "",
        *_table("preset | % of real time | bound, % | 4 over 8 bits | PyTorch | ONNX Runtime int8", speeds),
        "",
        *(f"No int8 form of {one}." for one in says),
        "",
        "Agreement with torch: the share of rows with the same largest column, and the largest difference over the largest value. "
        'First against torch with the decoded weights and the same rounding of activations ("twin"), then with float activations, then '
        "the joiner's logits along a greedy path of the float network, against the twin. Where sums in another order round one "
        "activation to the next level, what follows differs by a level, so behind many layers the twin is hardly nearer than float "
        "activations. A dash: not measured for that row.",
        "",
        *_table(
            "preset | recipe | twin: same | difference | float: same | difference | joiner: same | difference",
            parities,
        ),
        "",
        _source(zoo),
        "",
    ]


def bound_s(work: Mapping[str, int], bounds: Mapping[str, float]) -> float:
    """Seconds for `work` at the machine's best."""
    return (
        work["int8_products"] / bounds["int8_products_per_s"]
        + work["float_products"] / bounds["float_products_per_s"]
        + work["recurrent_bytes"] / bounds["bytes_per_s"]
    )


def _agreement(one: Mapping[str, float] | None) -> list[str]:
    if one is None:
        return ["-", "-"]
    return [f"{100 * one['same_argmax']:.1f} %", f"{one['largest_difference']:.1e}"]


def stream_lines(streams: Mapping[str, Any]) -> list[str]:
    rows = []
    for row in streams["rows"]:
        first, last = row["minutes"][0], row["minutes"][-1]
        pairs = [
            f"{one['chunk_ms']['mean']:.2f} / {one['chunk_ms']['p50']:.2f} / {one['chunk_ms']['p99']:.2f}"
            for one in (first, last)
        ]
        rows.append(
            [
                row["model"],
                *(f"{one['resident_mb']:.1f}" for one in (first, last)),
                *(f"{one['state_bytes'] / 1e3:.0f}" for one in (first, last)),
                *pairs,
                str(last["labels"]),
            ]
        )
    return [
        "## Ten minutes of stream",
        "",
        f"Presets at full width with random weights, {streams['recipe']}, in chunks of 100 ms on one thread: resident MB and kB of the "
        "encoders' state at the end of the first and of the tenth minute, CPU ms a chunk in that minute (mean / p50 / p99), and the labels "
        "heard in all.",
        "",
        *_table(
            "preset | MB, minute 1 | minute 10 | state, kB | minute 10 | ms a chunk, minute 1 | minute 10 | labels",
            rows,
        ),
        "",
        _source(streams),
        "",
    ]


def drift_lines(drift: Mapping[str, Any]) -> list[str]:
    rows = []
    for row in drift["rows"]:
        minutes, last = row["minutes_wer_percent"], row["last_minute"]
        measured = [minutes[0], minutes[4], *(last[f"{name}_wer_percent"] for name in LAST_MINUTE)]
        rows.append(
            [row["model"], *(f"{wer:.2f}" for wer in measured), f"{last['words_changed_percent']:.2f}"]
        )
    words = drift["rows"][0]["last_minute"]["words"]
    return [
        "## Ten minutes of sentences",
        "",
        f"{drift['streams']} streams of test sentences in an order drawn for each, {drift['pause_s']} s of silence between, in chunks of "
        f"100 ms: WER % of the first, fifth and tenth minute; of the tenth ({words} words in all) where a stream begins with it, and of "
        "its sentences one by one; and how many % of the words of that minute nine minutes before it change.",
        "",
        *_table("model | minute 1 | minute 5 | minute 10 | as if first | one by one | words changed", rows),
        "",
        _source(drift),
        "",
    ]


def _demo_row(row: Mapping[str, Any]) -> str:
    low, high = row["wer_interval_percent"]
    latency = " / ".join(f"{row['latency_ms'][rank]:.1f}" for rank in ("p50", "p90", "p99"))
    return (
        f"| {row['model']} | {row['wer_percent']:.2f} | {low:.2f} to {high:.2f} | {row['bytes'] / 1e6:.3f} "
        f"| {row['real_time_factor']:.5f} | {latency} |"
    )


if __name__ == "__main__":
    main()
