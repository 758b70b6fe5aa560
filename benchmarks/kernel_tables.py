"""The section of docs/results.md on kernels, and the README's goals; tables.py places them once kernels.py has run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markdown_rows import source_line, table

from subtone.bench.shown import fastest_of

LARGEST = "4096x4096"
COLD, LSTM_HOT, LSTM_COLD = "M-I, cold", "LSTM 1024, hot", "LSTM 1024, cold"
ALL_BITS = tuple(range(1, 9))
ANY = None
Race = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Goal:
    """`least` times as fast as the best peer of `peer_bits` (ANY: of all), at `bits` with `frames`; the worst of these counts.

    Of a `share`: of the rate at which as many bytes are read.
    """

    what: str
    least: float
    bits: tuple[int, ...]
    peer_bits: int | None = ANY
    frames: tuple[int, ...] = (1,)
    workload: str = LARGEST
    is_share: bool = False

    def reached(self, races: Sequence[Race], granularity: str) -> float | None:
        """The worst; None where it was not measured."""
        found = []
        for race in races:
            if race["workload"] != self.workload or race["frames"] not in self.frames:
                continue
            peer = fastest_of(race["peers"], self.peer_bits)
            for row in race["ours"]:
                if row["bits"] not in self.bits or row["granularity"] != granularity:
                    continue
                if self.is_share:
                    found.append(row["share_of_bandwidth"])
                elif peer is not None:
                    found.append(row["is_faster_by"][peer["name"]][1])
        return min(found, default=None)


GOALS = (
    Goal("1 frame, 8 bits, over the best int8 peer", 1.05, (8,), 8),
    Goal("1 frame, 6 bits, over the best int8 peer", 1.35, (6,), 8),
    Goal("1 frame, 5 bits, over the best int8 peer", 1.55, (5,), 8),
    Goal("1 frame, 4 bits, over the best 4-bit peer", 1.2, (4,), 4),
    Goal("1 frame, 3 bits, over the fastest peer", 1.45, (3,)),
    Goal("1 frame, 2 bits, over the fastest peer", 2.0, (2,)),
    Goal("1 frame, 1 bit, over the fastest peer", 2.2, (1,)),
    Goal("16 frames, any width, over the best int8 peer", 0.9, ALL_BITS, 8, (16,)),
    Goal("64 and 256 frames, any width, over the best int8 peer", 0.97, ALL_BITS, 8, (64, 256)),
    Goal("16 to 256 frames, any width, over the best 4-bit peer", 3.0, ALL_BITS, 4, (16, 64, 256)),
    Goal("16 to 256 frames, any width, over the best 2-bit peer", 3.0, ALL_BITS, 2, (16, 64, 256)),
    Goal("M-I cold, 8, 5 and 4 bits, of the read bandwidth", 0.85, (8, 5, 4), workload=COLD, is_share=True),
    Goal("M-I cold, 2 bits, of the read bandwidth", 0.6, (2,), workload=COLD, is_share=True),
    Goal("LSTM step hot, 8 bits, over the best int8 peer", 1.3, (8,), 8, workload=LSTM_HOT),
    Goal("LSTM step hot, 4 bits, over the best int8 peer", 2.0, (4,), 8, workload=LSTM_HOT),
    Goal("LSTM steps cold, 8 bits, over the best int8 peer", 1.3, (8,), 8, workload=LSTM_COLD),
    Goal("LSTM steps cold, 4 bits, over the best int8 peer", 2.0, (4,), 8, workload=LSTM_COLD),
)
"""What these kernels are to reach, at 4096x4096 hot where nothing else is said."""
IN_README = 7
"""Goals of one frame."""


def kernel_lines(document: Mapping[str, Any]) -> list[str]:
    peaks = ", ".join(
        f"{rate / 1e9:.0f} GMAC/s on {threads}" for threads, rate in sorted(document["int8_per_s"].items())
    )
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    stripped = document.get("stripped_library_bytes")
    return [
        "## Kernels",
        "",
        f"Products y = W x with activations of 8 bits a frame, our kernels in turn with every peer ({versions}; {document['compiler']}), "
        f"{document['rounds']} rounds or more. Of each peer the best form took part (block sizes, operators, engines), checked for what it "
        "multiplies. What a call costs without work is taken off the times of all. A bound is the larger of the bytes at the rate at "
        "which as many are read, and the products at the int8 peak, both measured in the same run: "
        f"{peaks} threads. A share above 100 % says that the bound was measured while others used the machine. Ratios above 1: ours "
        "is faster, median over rounds.",
        "",
        *goal_rows(document, GOALS),
        "",
        *(
            [
                f"The native library without symbols: {stripped / 1e6:.2f} MB (goal: at most 1)."
                if stripped
                else ""
            ]
        ),
        "",
        *generality_lines(document),
        "Times in microseconds; in brackets the share of the bound, and how many times faster than the best int8 peer and the fastest one.",
        "",
        *(line for threads in threads_of(document) for line in race_table(document, threads)),
        source_line(document),
        "",
    ]


def kernel_summary(document: Mapping[str, Any]) -> list[str]:
    """The README's lines."""
    return [
        f"One product of {LARGEST}, one frame, hot in cache, beside the best form of PyTorch, ONNX Runtime, OpenVINO and torchao",
        "(docs/results.md has the other shapes, more frames, whole models cold, and what the machine can do):",
        "",
        *goal_rows(document, GOALS[:IN_README]),
        "",
    ]


def goal_rows(document: Mapping[str, Any], goals: Sequence[Goal]) -> list[str]:
    """A row a goal: per channel and per group of 64, for each number of threads."""
    counts = threads_of(document)
    columns = [(threads, kind) for threads in counts for kind in ("channel", "group64")]
    heads = [
        f"per {kind.replace('group', 'group of ')}, {threads} thread{'s' * (threads > 1)}"
        for threads, kind in columns
    ]
    rows = []
    for goal in goals:
        cells = [_reached(goal, goal.reached(races_of(document, threads), kind)) for threads, kind in columns]
        rows.append([goal.what, _figure(goal, goal.least), *cells])
    return table(" | ".join(["what", "goal", *heads]), rows)


def generality_lines(document: Mapping[str, Any]) -> list[str]:
    """What other grids cost beside one scale a channel, the worst width."""
    said = []
    for threads in threads_of(document):
        for race in races_of(document, threads):
            if (race["workload"], race["frames"]) != (LARGEST, 1):
                continue
            of = {(row["granularity"], row["bits"]): row["seconds"] for row in race["ours"]}
            for kind, allowed in (("codebook", 5), ("group64", 15)):
                costs = [
                    of[kind, bits] / of["channel", bits]
                    for bits in ALL_BITS
                    if {(kind, bits), ("channel", bits)} <= of.keys()
                ]
                if costs:
                    said.append(f"{kind} {100 * (max(costs) - 1):+.0f} % on {threads} (goal: {allowed} %)")
    return (
        [
            f"Beside one scale a channel, the worst width at {LARGEST}, one frame: {', '.join(said)} threads.",
            "",
        ]
        if said
        else []
    )


def race_table(document: Mapping[str, Any], threads: int) -> list[str]:
    """Every race on so many threads, a row for each granularity."""
    rows = [row for race in races_of(document, threads) for row in _race_rows(race)]
    bits = sorted({row["bits"] for race in races_of(document, threads) for row in race["ours"]}, reverse=True)
    heads = [
        "product",
        "frames",
        "scale per",
        "best int8 peer",
        "fastest peer",
        *(f"{each} bits" for each in bits),
    ]
    filled = [[*head, *(cells.get(each, "-") for each in bits)] for head, cells in rows]
    return [f"On {threads} thread{'s' * (threads > 1)}:", "", *table(" | ".join(heads), filled), ""]


def _race_rows(race: Race) -> Iterator[tuple[list[str], dict[int, str]]]:
    best = [fastest_of(race["peers"], bits) for bits in (8, ANY)]
    for kind in dict.fromkeys(row["granularity"] for row in race["ours"]):
        cells = {}
        for row in race["ours"]:
            if row["granularity"] != kind:
                continue
            ratios = [f"{row['is_faster_by'][peer['name']][1]:.2f}" for peer in best if peer is not None]
            inside = ", ".join([f"{100 * row['share_of_bound']:.0f} %", *ratios])
            cells[row["bits"]] = f"{1e6 * row['seconds']:.1f} ({inside})"
        yield [race["workload"], str(race["frames"]), kind, *map(_peer, best)], cells


def _peer(peer: Mapping[str, Any] | None) -> str:
    return (
        "-"
        if peer is None
        else f"{1e6 * peer['seconds']:.1f}, {' '.join([peer['name'], peer['form']]).strip()}"
    )


def races_of(document: Mapping[str, Any], threads: int) -> list[Race]:
    return [race for race in document["races"] if race["threads"] == threads]


def threads_of(document: Mapping[str, Any]) -> list[int]:
    return sorted({race["threads"] for race in document["races"]})


def _figure(goal: Goal, value: float) -> str:
    return f"{100 * value:.0f} %" if goal.is_share else f"{value:.2f}x"


def _reached(goal: Goal, value: float | None) -> str:
    if value is None:
        return "not measured"
    return f"{_figure(goal, value)}, {'holds' if value >= goal.least else 'missed'}"
