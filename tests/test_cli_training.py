"""The whole flow by commands alone: a corpus, a float model, few bits, a packed file, a race."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TRAINING = 'name = "t"\nmodel = "quartznet-demo"\nsteps = 3\nbatch_s = 10.0\nlearning_rate = 0.001\n'
CORRECTED = (
    'name = "c"\nmethod = "linear"\n[[rules]]\nbits = 4\nbias_correction = true\nactivations = "dynamic"\n'
)


def subtone(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "subtone", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus and a float model that has hardly learned anything."""
    folder = tmp_path_factory.mktemp("training")
    (folder / "train.toml").write_text(TRAINING)
    (folder / "corrected.toml").write_text(CORRECTED)
    made = subtone(
        "data", "synth", folder / "corpus", "--num-train", 12, "--num-dev", 2, "--num-test", 3, "--json"
    )
    corpus = json.loads(made.stdout)
    assert corpus["utterances"] == {"train": 12, "dev": 2, "test": 3}
    assert all(Path(manifest).is_file() for manifest in corpus["manifests"].values())
    subtone(*training(folder))
    return folder


def training(folder: Path) -> list[object]:
    corpus = folder / "corpus"
    sources = ["--train", corpus / "train", "--dev", corpus / "dev"]
    return ["train", folder / "train.toml", *sources, "--out", folder / "float"]


def test_a_corpus_is_there_whole_and_once(workplace: Path) -> None:
    for split, count in (("train", 12), ("dev", 2), ("test", 3)):
        assert len((workplace / "corpus" / split / "manifest.jsonl").read_text().splitlines()) == count
    again = subtone(
        "data", "synth", workplace / "corpus", "--num-train", 12, "--num-dev", 2, "--num-test", 4, code=2
    )
    assert again.stderr.count("\n") == 1


def test_a_finished_run_is_taken_as_it_is(workplace: Path) -> None:
    before = (workplace / "float" / "weights.safetensors").read_bytes()
    document = json.loads(subtone(*training(workplace), "--json").stdout)
    assert (workplace / "float" / "weights.safetensors").read_bytes() == before
    assert document["bytes"] == len(before)
    assert document["checkpoint"] == str(workplace / "float")
    assert (document["model"], document["steps"]) == ("quartznet-demo", 3)
    dev = document["dev"]
    wrong = dev["substitutions"] + dev["insertions"] + dev["deletions"]
    assert dev["wer_percent"] == pytest.approx(100 * wrong / dev["words"], abs=1e-4)


def test_a_trained_model_is_corrected_packed_and_heard(workplace: Path) -> None:
    quantize = ["quantize", workplace / "float", workplace / "corrected.toml", "--out", workplace / "q4"]
    refused = subtone(*quantize, code=2)
    assert "--calibration" in refused.stderr
    subtone(*quantize, "--calibration", workplace / "corpus" / "train", "--limit", 4)
    subtone("pack", workplace / "q4", workplace / "q4.subtone")
    layers = json.loads(subtone("inspect", workplace / "q4.subtone", "--json").stdout)["layers"]
    assert {layer["bits"] for layer in layers} == {4}
    document = json.loads(
        subtone("evaluate", workplace / "q4.subtone", workplace / "corpus" / "test", "--json").stdout
    )
    assert document["utterances"] == 3


def test_packed_files_race_their_peers(workplace: Path, tmp_path: Path) -> None:
    subtone("pack", workplace / "float", tmp_path / "float.subtone")
    race = ["bench", "model", workplace / "float", workplace / "corpus" / "test", tmp_path / "float.subtone"]
    document = json.loads(subtone(*race, "--rounds", 2, "--out", tmp_path / "race.json", "--json").stdout)
    assert [row["candidate"].split()[0] for row in document["candidates"]] == [
        "subtone",
        "PyTorch",
        "ONNX",
        "ONNX",
    ]
    assert all(row["seconds"] > 0 for row in document["candidates"])
    assert json.loads((tmp_path / "race.json").read_text()) == document


def test_the_peers_compute_the_same(workplace: Path, tmp_path: Path) -> None:
    """ONNX Runtime's float logits are torch's: what we race against is the same model."""
    import numpy as np
    import onnxruntime
    import torch

    from subtone.export.onnx import export_onnx
    from subtone.models.checkpoints import load_checkpoint

    network = load_checkpoint(workplace / "float").network
    export_onnx(network, tmp_path / "a.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "a.onnx"), providers=["CPUExecutionProvider"])
    for frames in (64, 101):  # another length than it was exported with
        features = np.random.default_rng(0).standard_normal((1, 64, frames)).astype(np.float32)
        with torch.inference_mode():
            expected = network(torch.from_numpy(features))[0].numpy()
        # Float32 sums in another order, eight layers of at most 192 terms.
        bound = 8 * 192 * np.finfo(np.float32).eps * np.abs(expected).max()
        assert np.abs(session.run(None, {"features": features})[0] - expected).max() <= bound
