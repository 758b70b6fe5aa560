"""Tables for a terminal: nothing is cut where places are few."""

from __future__ import annotations

import io

from rich.console import Console

from subtone.report.tables import EVALUATION_ROWS, evaluation, models

ROW = {
    "utterances": 300,
    "duration_s": 567.0,
    "wer_percent": 13.95,
    "wer_interval_percent": [12.89, 15.21],
    "substitutions": 149,
    "insertions": 20,
    "deletions": 36,
    "bytes": 19_340_000,
    "real_time_factor": 0.0123,
    "latency_ms": {"p50": 13.5, "p90": 25.0, "p99": 37.7},
    "peak_memory_mb": 398.4,
}


def test_three_models_stand_whole_in_80_places() -> None:
    rows = [{**ROW, "model": name} for name in ("float, PyTorch", "8 bits, packed", "4 bits, packed")]
    text = io.StringIO()
    Console(file=text, width=80).print(evaluation(rows))
    told = text.getvalue()
    for row in rows:
        assert row["model"] in told
    for name, written in EVALUATION_ROWS.items():
        assert name in told
        assert told.count(written(ROW)) >= 3, name
    assert "…" not in told


def test_every_model_has_its_own_figures_and_the_papers_beside_them() -> None:
    published = {
        "paper": "int2",
        "parameters": 118.8,
        "counted": "weights",
        "megabytes": {"8": 138.1},
        "encoder_megabytes": {"4": 61},
        "bit_operations": {"8x8": 2.7},
        "note": "near enough",
    }
    row = {
        "parameters": 118_617_344,
        "parameters_one_bias_a_gate": 118_614_784,
        "weights": 118_329_856,
        "megabytes": {"32": 474.46, "8": 137.87},
        "encoder_megabytes": {"4": 61.05},
        "bit_operations_10_s": {"8x8": 2_642_000_000_000},
    }
    small = {**row, "parameters": 2_000_000, "megabytes": {"32": 8.0, "8": 2.5}}
    text = io.StringIO()
    rows = [{**row, "model": "large", "published": published}, {**small, "model": "small", "published": None}]
    Console(file=text, width=120).print(models(rows))
    lines = [" ".join(line.split()) for line in text.getvalue().splitlines()]
    assert "large 118.3 (118.8) 474.5 137.9 (138.1) 61.0 (61)" in lines
    assert "small 2.0 8.0 2.5 61.0" in lines
    assert "large 2.64 (2.7) int2 near enough" in lines
    assert "small 2.64" in lines
