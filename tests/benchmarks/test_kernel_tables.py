"""Pages of results say which goal of the kernels holds, from the worst of what it is about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kernel_tables
import kernels
import pytest
from kernel_tables import GOALS, Goal

LINES = 3
MACHINE = {"isas": ["avx512vnni"], "processor": "one", "cores": 2, "commit": "abc-dirty"}


def row(
    bits: int, ratios: dict[str, float], *, granularity: str = "channel", seconds: float = 1e-4
) -> dict[str, Any]:
    return {
        "bits": bits,
        "granularity": granularity,
        "seconds": seconds,
        "share_of_bound": 0.5,
        "share_of_bandwidth": 0.4,
        "is_faster_by": {name: [value - 1, value, value + 1] for name, value in ratios.items()},
    }


def race(
    *rows: dict[str, Any], frames: int = 1, workload: str = "4096x4096", threads: int = 1
) -> dict[str, Any]:
    peers = [
        {"name": name, "form": "x", "bits": bits, "seconds": seconds}
        for name, bits, seconds in (("int8", 8, 3e-4), ("int4", 4, 2e-4), ("slow int8", 8, 9e-4))
    ]
    return {"workload": workload, "frames": frames, "threads": threads, "peers": peers, "ours": list(rows)}


RACES = [
    race(
        row(8, {"int8": 1.05, "int4": 0.7, "slow int8": 3.0}),
        row(4, {"int8": 2.0, "int4": 1.1, "slow int8": 6.0}),
        row(8, {"int8": 0.9, "int4": 0.6, "slow int8": 2.7}, granularity="group64", seconds=1.2e-4),
    ),
    race(row(8, {"int8": 1.5, "int4": 3.0, "slow int8": 4.0}), frames=64),
    race(row(8, {"int8": 0.96, "int4": 2.0, "slow int8": 4.0}), frames=256),
]
DOCUMENT = {
    "source": "a.json",
    "machine": MACHINE,
    "versions": {"peer": "1.2"},
    "compiler": "GCC 12",
    "rounds": 20,
    "int8_per_s": {"1": 2.34e11},
    "stripped_library_bytes": 416056,
    "races": RACES,
}


def test_a_goal_is_held_against_the_fastest_peer_of_its_width() -> None:
    assert Goal("", 1.05, (8,), 8).reached(RACES, "channel") == 1.05
    assert Goal("", 1.2, (4,), 4).reached(RACES, "channel") == 1.1
    assert Goal("", 1.2, (8,)).reached(RACES, "channel") == 0.7  # the fastest of all has 4 bits
    assert Goal("", 1.05, (8,), 8).reached(RACES, "group64") == 0.9


def test_the_worst_of_several_frames_counts() -> None:
    assert Goal("", 0.97, (8, 4), 8, (64, 256)).reached(RACES, "channel") == 0.96


def test_what_was_not_measured_is_no_verdict() -> None:
    assert Goal("", 1.0, (3,), 8).reached(RACES, "channel") is None
    assert Goal("", 1.0, (8,), 2).reached(RACES, "channel") is None
    assert Goal("", 0.85, (8,), workload="M-I, cold", is_share=True).reached(RACES, "channel") is None


def test_a_share_is_of_the_bandwidth_without_a_peer() -> None:
    cold = race(row(8, {}), workload="M-I, cold")
    assert Goal("", 0.85, (8,), workload="M-I, cold", is_share=True).reached([cold], "channel") == 0.4


def test_goals_hold_at_the_figure_itself() -> None:
    lines = kernel_tables.goal_rows(DOCUMENT, GOALS)
    assert lines[2] == "| 1 frame, 8 bits, over the best int8 peer | 1.05x | 1.05x, holds | 0.90x, missed |"
    assert lines[5] == "| 1 frame, 4 bits, over the best 4-bit peer | 1.20x | 1.10x, missed | not measured |"


def test_the_section_has_every_race_the_peaks_and_where_it_was_measured() -> None:
    text = "\n".join(kernel_tables.kernel_lines(DOCUMENT))
    assert (
        "| 4096x4096 | 1 | channel | 300.0, int8 x | 200.0, int4 x | 100.0 (50 %, 1.05, 0.70) | 100.0 (50 %, 2.00, 1.10) |"
        in text
    )
    assert (
        "| 4096x4096 | 1 | group64 | 300.0, int8 x | 200.0, int4 x | 120.0 (50 %, 0.90, 0.60) | - |" in text
    )
    assert "234 GMAC/s on 1 thread" in text
    assert "peer 1.2" in text
    assert "0.42 MB" in text
    assert "group64 +20 % on 1 (goal: 15 %)" in text
    assert "commit abc-dirty" in text


def test_the_readme_has_the_goals_of_one_frame() -> None:
    lines = kernel_tables.kernel_summary(DOCUMENT)
    assert sum(line.startswith("| 1 frame") for line in lines) == kernel_tables.IN_README
    assert not any("256" in line for line in lines)


def test_parts_measured_one_by_one_meet_in_one_document() -> None:
    first = {**DOCUMENT, "races": RACES[:2]}
    again = race(row(8, {"int8": 7.0}))
    fewer = {**DOCUMENT, "rounds": 5, "races": [again], "int8_per_s": {"1": 1.0, "2": 5.0}}
    made = kernels.joined(first, fewer)
    assert made["rounds"] == kernels.joined(fewer, first)["rounds"] == 5
    assert made["races"] == [RACES[1], again]
    assert made["int8_per_s"] == {"1": 2.34e11, "2": 5.0}


def test_every_part_is_of_settings_that_are_sound() -> None:
    known = {"peers": "none", "threads": (1,), "rounds": 1}
    shapes = {
        part: {each.name for settings in kernels.settings_of(part, known) for each in settings.workloads()}
        for part in ("narrow", "wide", "cold")
    }
    assert shapes["narrow"] == shapes["wide"] == {f"{outputs}x{inputs}" for outputs, inputs in kernels.SHAPES}
    assert shapes["cold"] == {kernel_tables.COLD, kernel_tables.LSTM_HOT, kernel_tables.LSTM_COLD}
    with pytest.raises(ValueError, match=r"part=warm is not known; use narrow, wide or cold"):
        list(kernels.settings_of("warm", known))


def test_a_peer_is_left_out_by_name() -> None:
    assert kernels.without("torch,torchao,openvino", "torchao") == "torch,openvino"
    assert kernels.without("torchao", "torchao") == "none"


def test_a_library_is_smaller_without_its_symbols() -> None:
    built = Path(kernels.library()._name)
    size = kernels.stripped_bytes(built)
    assert size is None or 10_000 < size <= built.stat().st_size
