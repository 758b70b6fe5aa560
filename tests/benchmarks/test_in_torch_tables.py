"""The page on models inside PyTorch says of each candidate what was measured of it."""

from __future__ import annotations

from in_torch_tables import in_torch_lines


def raced(name: str, seconds: float, ratio: float) -> dict:
    return {
        "candidate": name,
        "seconds": seconds,
        "ours_is_faster_by": ratio,
        "quartiles": [ratio - 0.1, ratio + 0.1],
    }


def test_every_candidate_has_its_memory_error_and_ratio_on_each_number_of_threads() -> None:
    ours, theirs = "subtone, 8 bits", "PyTorch float"
    document = {
        "versions": {"torch": "2.13.0"},
        "duration_s": 10,
        "rounds": 20,
        "ours": ours,
        "models": [
            {
                "model": "OneForCTC",
                "layers": 3,
                "parameters": 12_000_000,
                "facts": [
                    {"candidate": ours, "memory_mb": 12.4, "relative_error": 0.012},
                    {"candidate": theirs, "memory_mb": 48.1, "relative_error": 0.0},
                ],
                "races": [
                    {"threads": 1, "candidates": [raced(ours, 0.5, 1.0), raced(theirs, 1.5, 3.0)]},
                    {"threads": 2, "candidates": [raced(ours, 0.3, 1.0), raced(theirs, 0.75, 2.5)]},
                ],
            }
        ],
        "calls": [
            {
                "inputs": 512,
                "outputs": 256,
                "rows": 1,
                "candidates": [raced(ours, 9.5e-6, 1.0), raced(theirs, 4e-5, 4.2)],
            }
        ],
        "source": "a.json",
        "machine": {"isas": [], "processor": "one", "cores": 2, "commit": "abc"},
    }
    page = "\n".join(in_torch_lines(document))
    assert "ms, 1 thread (CPU time) | subtone, 8 bits is faster by | ms, 2 threads |" in page
    assert "OneForCTC, 3 blocks, 12 M parameters:" in page
    assert "| subtone, 8 bits | 12 | 1.2 | 500 | 1.00x (0.90 to 1.10) | 300 | 1.00x (0.90 to 1.10) |" in page
    assert "| PyTorch float | 48 | 0.0 | 1500 | 3.00x (2.90 to 3.10) | 750 | 2.50x (2.40 to 2.60) |" in page
    assert "| 512 x 256 | 1 | 9.5 | 40.0 |" in page
    assert "`a.json`: one, 2 cores" in page
