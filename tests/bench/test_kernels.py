"""A small real run from end to end; what the command says of mistaken options."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from subtone.bench.bounds import Bounds
from subtone.bench.kernels import KernelSettings, bounded, measure_kernels
from subtone.bench.products import Granularity
from subtone.bench.shown import faster_by, fastest_of, kernels
from subtone.bench.workloads import Products
from subtone.commands.arguments import numbers

CORES = len(os.sched_getaffinity(0))


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    settings = KernelSettings(
        shapes=((33, 128),),
        frames=(1, 5),
        bits=(8, 3),
        granularities=(Granularity("channel"), Granularity("codebook"), Granularity.of("group32")),
        rounds=2,
        peers="onnxruntime",
        turn_s=0.0,
    )
    moves: list[tuple[int, int]] = []
    made = measure_kernels(settings, lambda done, total, label: moves.append((done, total)))
    assert moves == [(done, 6) for done in range(1, 7)]  # two races of two rounds and a choice of forms each
    return json.loads(json.dumps(made, allow_nan=False))


def test_kernels_that_multiply_something_else_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Products.expected
    monkeypatch.setattr(
        Products, "expected", lambda self, *kind: [1.1 * result for result in right(self, *kind)]
    )
    settings = KernelSettings(shapes=((33, 128),), bits=(4,), rounds=1, peers="none", turn_s=0.0)
    with pytest.raises(RuntimeError, match=r"33x128: ours at 4 bits, channel, errs by 0\.09"):
        measure_kernels(settings)


def test_every_shape_meets_every_number_of_frames(document: dict[str, Any]) -> None:
    races = [(race["workload"], race["frames"], race["threads"]) for race in document["races"]]
    assert races == [("33x128", 1, 1), ("33x128", 5, 1)]
    for race in document["races"]:
        kinds = [(row["bits"], row["granularity"]) for row in race["ours"]]
        assert kinds == [(bits, kind) for kind in ("channel", "codebook", "group32") for bits in (8, 3)]
        assert race["refused"] == {}


def test_a_row_has_its_bound_and_a_ratio_to_every_peer(document: dict[str, Any]) -> None:
    for race in document["races"]:
        names = {peer["name"] for peer in race["peers"]}
        assert {"ONNX Runtime float32", "ONNX Runtime dynamic int8", "ONNX Runtime MatMulNBits 4"} <= names
        for row in race["ours"]:
            assert row["is_faster_by"].keys() == names
            assert row["seconds"] > 0
            assert row["share_of_bound"] == pytest.approx(
                max(row["share_of_bandwidth"], row["share_of_peak"])
            )
            assert row["macs_per_s"] * row["seconds"] == pytest.approx(race["macs"])
            assert all(low <= middle <= high for low, middle, high in row["is_faster_by"].values())


def test_a_document_says_where_it_was_measured(document: dict[str, Any]) -> None:
    assert {"machine", "compiler", "library_bytes", "versions", "int8_per_s"} <= document.keys()
    assert document["versions"].keys() == {"onnx", "onnxruntime"}
    assert document["library_bytes"] > 10_000


def test_a_bound_is_the_later_of_bytes_and_products() -> None:
    class Known(Bounds):
        def bytes_per_s(self, num_bytes: int, threads: int) -> float:
            return 100.0

        def int8_per_s(self, threads: int) -> float:
            return 1000.0

    race = {"threads": 1, "macs": 1000}
    by_bytes = bounded(race, {"seconds": 4.0, "bytes": 200}, Known())
    assert (by_bytes["bound_s"], by_bytes["share_of_bound"]) == (2.0, 0.5)
    assert (by_bytes["share_of_bandwidth"], by_bytes["share_of_peak"]) == (0.5, 0.25)
    assert bounded(race, {"seconds": 4.0, "bytes": 50}, Known())["bound_s"] == 1.0


def test_the_table_has_a_row_for_each_of_ours_and_of_peers(document: dict[str, Any]) -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(kernels(document))
    text = console.export_text()
    assert text.count("codebook") == 2 * 2
    assert text.count("ONNX Runtime float32") >= 2
    assert "33x128, 5 frames, 1 thread" in text
    best = fastest_of(document["races"][0]["peers"])
    assert f"fastest peer: {best['name']}" in text


def test_the_peer_named_is_the_fastest_of_its_width() -> None:
    peers = [
        {"name": name, "bits": bits, "seconds": seconds}
        for name, bits, seconds in (("a", 8, 3.0), ("b", 4, 1.0), ("c", 8, 2.0))
    ]
    assert fastest_of(peers)["name"] == "b"
    assert fastest_of(peers, 8)["name"] == "c"
    assert fastest_of(peers, 2) is None
    row = {"is_faster_by": {"b": [1.0, 1.25, 1.5]}}
    assert (faster_by(row, peers[1]), faster_by(row, None)) == ("1.25x", "-")


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"bits": (0,)}, r"bits=0 is not a width of ours; use 1 to 8"),
        ({"bits": ()}, r"bits is empty; name at least one"),
        ({"frames": (0,)}, r"frames=0 is out of range; use 1 to 65536"),
        ({"threads": (0,)}, rf"threads=0 is out of range; use 1 to {CORES}"),
        ({"threads": (CORES + 1,)}, rf"threads={CORES + 1} is out of range; use 1 to {CORES}, a thread for"),
        ({"rounds": 0}, r"rounds=0 is below 1; use 20 for figures to be quoted"),
        ({"shapes": ()}, r"shapes is empty; name at least one, or race --cold or --lstm"),
        ({"shapes": ((0, 64),)}, r"outputs=0 of a product is out of range"),
        ({"peers": "nobody"}, r"peers=nobody is not known"),
        (
            {"shapes": ((64, 96),), "granularities": (Granularity.of("group64"),)},
            r"group_size=64 does not divide 96 inputs of the shape 64x96; use a divisor such as 32 or 16",
        ),
        (
            {"has_lstm": True, "is_cold": True, "granularities": (Granularity.of("group128"),)},
            r"group_size=128 does not divide 192 inputs of the shape 4096x192",
        ),
    ],
)
def test_mistaken_settings_are_refused_before_anything_runs(wrong: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        KernelSettings(**wrong)


def bench(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "subtone", "bench", "kernels", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_prints_one_document_and_writes_it(tmp_path: Path) -> None:
    out = tmp_path / "kernels.json"
    done = bench(
        "--shapes", "64x64", "--bits", "8, 2", "--rounds", 2, "--peers", "none", "--out", out, "--json"
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document == json.loads(out.read_text())
    assert [row["bits"] for row in document["races"][0]["ours"]] == [8, 2]
    assert document["races"][0]["peers"] == []


def test_a_mistaken_option_is_one_line() -> None:
    done = bench("--peers", "none", "--shapes", "64")
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "shape=64 is not OUTPUTSxINPUTS; write it as 4096x1024" in line


@pytest.mark.parametrize("text", ["8,four", "-1", "", "8,,4", "8;4", "4.0", "²", "9999999999"])
def test_a_list_of_something_else_than_numbers_is_told_how_to_write_it(text: str) -> None:
    with pytest.raises(
        ValueError, match=r"bits=.* is not a whole number; write numbers divided by commas, as 8,4"
    ):
        numbers(text, "bits")
