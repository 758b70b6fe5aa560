"""Pages of results say whether a bar holds, and put the paper's figure beside ours."""

from __future__ import annotations

import doctest
from types import ModuleType

import conditions
import integer_tables
import markdown_rows
import pytest
import tables

from subtone.models.accounting import describe_models

SOURCE = {"source": "a.json", "machine": {"isas": [], "processor": "one", "cores": 2, "commit": "abc"}}


@pytest.mark.parametrize("module", [conditions, markdown_rows])
def test_examples_run(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(("difference", "verdict"), [(0.5, "holds"), (0.51, "fails"), (-1.0, "holds")])
def test_half_a_percent_more_than_float_holds_and_more_fails(difference: float, verdict: str) -> None:
    row = {
        "condition": "clean",
        "file": "w8.subtone",
        "wer_percent": [4.0, 4.0 + difference],
        "difference_percent": difference,
        "difference_interval_percent": [-0.25, 1.5],
        "substitutions": [1, 4],
        "insertions": [2, 5],
        "deletions": [3, 6],
    }
    document = {
        "rows": [row],
        "bar_percent": 0.5,
        "utterances": 7,
        "babble": {"voices": 5},
        "band": {"hz": [300.0, 3400.0], "order": 8},
        **SOURCE,
    }
    lines = integer_tables.robustness_lines(document)
    (line,) = [line for line in lines if line.startswith("| clean")]
    assert line == (
        f"| clean | w8 | 4.00 | {4 + difference:.2f} | {difference:+.2f} | -0.25 to +1.50 | 1 / 2 / 3 | 4 / 5 / 6 | {verdict} |"
    )
    assert f"the most is {difference:+.2f} (clean)." in lines[2]
    assert lines[-2] == "`a.json`: one, 2 cores, no native library, commit abc."


def test_speed_is_held_against_the_bars_of_its_document() -> None:
    def candidate(name: str, seconds: float) -> dict:
        return {
            "candidate": name,
            "seconds": seconds,
            "ours_is_faster_by": seconds / 0.01,
            "quartiles": [1, 2],
        }

    race = {
        "threads": 1,
        "static_seconds": {"best": 0.009, "other": 0.02},
        "static_form": "best",
        "candidates": [candidate("ours", 0.01), candidate("float", 0.026), candidate("static", 0.009)],
    }
    told = {"same_argmax": 1.0, "largest_difference": 0.01}
    document = {
        "rows": [
            {
                "model": "q",
                "parameters": 1_000_000,
                "frames": 1000,
                "races": [race],
                "file_bytes": {"ours": 1_000_000},
                "agreement_with_float": {"ours": told},
            }
        ],
        "bars": {"float": 2.5, "static": 1.0},
        "seconds": 10,
        "rounds": 3,
        "versions": {"onnxruntime": "1"},
        "table_1": [],
        **SOURCE,
    }
    lines = integer_tables.speed_lines(document)
    assert "| q | 1 | ours | 10.0 | 1.00x (1.00 to 2.00) | - |" in lines
    assert "| q | 1 | float | 26.0 | 2.60x (1.00 to 2.00) | 2.5x: holds |" in lines
    assert "| q | 1 | static | 9.0 | 0.90x (1.00 to 2.00) | 1x: fails |" in lines
    assert "| q | ours | 1.00 | 4.00x | 100.0 % | 1.0e-02 |" in lines


def test_table_1_stands_beside_the_papers() -> None:
    quartznet, *others = describe_models(("quartznet15x5", "jasper10x5", "conformer-ctc-l"))
    rows = integer_tables.table_1_rows(quartznet)
    assert [row[:4] for row in rows] == [
        ["quartznet15x5", "32/32", "75.7 (73.81)", "9.67 (9.48)"],
        ["", "8/8", "19.2 (18.45)", "0.60 (0.61)"],
        ["", "6/8", "14.4 (13.84)", "0.45 (0.46)"],
    ]
    assert "KiB" in rows[0][4]
    assert [integer_tables.table_1_rows(other)[2][3] for other in others] == ["8.00 (8)", "2.06 (2.06)"]


def test_a_section_appears_once_its_script_has_run() -> None:
    page = tables.results_page()
    for kind, heading in (
        ("integer_robustness", "## Integers alone where it is hard to hear"),
        ("integer_speed", "## Integers alone: speed"),
    ):
        assert (heading in page) == bool(tables.oldest_first(kind))
