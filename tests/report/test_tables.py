"""Tables for a terminal: nothing is cut where places are few."""

from __future__ import annotations

import io

from rich.console import Console

from subtone.report.tables import EVALUATION_ROWS, evaluation

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
