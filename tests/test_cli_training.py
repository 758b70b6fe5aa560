"""The whole flow by commands alone: a corpus, a float model, few bits, a packed file, a race."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from subtone.files import claimed
from subtone.quantize import METHODS

TRAINING = 'name = "t"\nmodel = "quartznet-demo"\nsteps = 3\nbatch_s = 10.0\nlearning_rate = 0.001\n'
CORRECTED = (
    'name = "c"\nmethod = "linear"\n[[rules]]\nbits = 4\nbias_correction = true\nactivations = "dynamic"\n'
)
WAIT = "wait for it, or choose another folder"


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


TUNED = """
name = "tuned"
method = "native"
[training]
steps = 4
batch_s = 8.0
epoch_s = 8.0
learning_rate = 0.001
recalibration_batches = 1
[[rules]]
bits = 4
activations = "dynamic"
"""


def test_a_checkpoint_is_trained_to_few_bits_packed_and_heard(workplace: Path) -> None:
    (workplace / "tuned.toml").write_text(TUNED)
    corpus = workplace / "corpus"
    command = ["quantize", workplace / "float", workplace / "tuned.toml", "--out", workplace / "t4"]
    sound = ["--train", corpus / "train", "--dev", corpus / "dev"]
    document = json.loads(subtone(*command, *sound, "--json").stdout)
    assert document["recipe"]["training"]["steps"] == 4
    assert [row["step"] for row in document["curve"]][-1] == 4
    assert all(row["dev_wer_percent"] >= 0 and row["loss"] > 0 for row in document["curve"])
    subtone("pack", workplace / "t4", workplace / "t4.subtone")
    described = json.loads(subtone("inspect", workplace / "t4.subtone", "--json").stdout)
    assert {layer["bits"] for layer in described["layers"]} == {4}
    subtone("evaluate", workplace / "t4.subtone", corpus / "test", "--json")


def test_progress_is_a_line_an_epoch_and_a_resumed_run_says_so(workplace: Path) -> None:
    (workplace / "tuned.toml").write_text(TUNED)
    corpus, out = workplace / "corpus", workplace / "told"
    command = ["quantize", workplace / "float", workplace / "tuned.toml", "--out", out]
    sound = ["--train", corpus / "train", "--dev", corpus / "dev"]
    told = subtone(*command, *sound).stderr.splitlines()
    assert any(re.fullmatch(r"step 4 of 4: loss [\d.]+, dev_wer_percent [\d.]+", line) for line in told)
    shutil.rmtree(out)
    again = subtone(*command, *sound).stderr.splitlines()
    assert "going on after step 4 of 4" in again


def test_a_training_method_without_training_is_a_warning_of_one_line(workplace: Path) -> None:
    (workplace / "tuned.toml").write_text(TUNED)
    done = subtone("quantize", workplace / "float", workplace / "tuned.toml", "--out", workplace / "r4")
    warning, last = done.stderr.splitlines()
    assert warning.startswith("subtone: recipe tuned: method 'native' was not trained: ")
    assert "--train" in warning
    assert last.endswith("weights by tuned")
    config = json.loads((workplace / "r4" / "config.json").read_text())
    assert "training" not in config["recipe"]


def test_a_run_that_diverges_ends_in_one_line_and_leaves_no_checkpoint(workplace: Path) -> None:
    (workplace / "wild.toml").write_text(TUNED.replace("learning_rate = 0.001", "learning_rate = 1e20"))
    out = workplace / "wild"
    command = ["quantize", workplace / "float", workplace / "wild.toml", "--out", out]
    done = subtone(*command, "--train", workplace / "corpus" / "train", code=2)
    assert done.stderr.count("\n") == 1
    assert "training diverged: at step" in done.stderr
    assert "lower learning_rate=1e+20" in done.stderr
    assert not out.exists()
    assert not (workplace / "wild.run" / "training.ckpt").exists()


def test_options_of_training_without_it_are_refused(workplace: Path) -> None:
    (workplace / "tuned.toml").write_text(TUNED)
    corpus = workplace / "corpus"
    command = ["quantize", workplace / "float", workplace / "tuned.toml", "--out", workplace / "t5"]
    assert "has no effect without --train" in subtone(*command, "--dev", corpus / "dev", code=2).stderr
    assert "has no effect without" in subtone(*command, "--limit", 3, code=2).stderr
    both = subtone(*command, "--train", corpus / "train", "--calibration", corpus / "train", code=2)
    assert "exclude each other" in both.stderr
    command[2] = workplace / "corrected.toml"
    assert "bias_correction=true" in subtone(*command, "--train", corpus / "train", code=2).stderr
    assert not (workplace / "t5").exists()
    assert not (workplace / "t5.run").exists()


def test_two_runs_do_not_share_a_folder(workplace: Path) -> None:
    (workplace / "tuned.toml").write_text(TUNED)
    sound = ["--train", workplace / "corpus" / "train"]
    command = ["quantize", workplace / "float", workplace / "tuned.toml", "--out", workplace / "t6", *sound]
    with claimed(workplace / "t6.run"):
        refused = subtone(*command, code=2)
    assert refused.stderr == f"subtone: another process trains in {workplace}/t6.run; {WAIT}\n"
    assert not (workplace / "t6").exists()
    with claimed(workplace / "float.run"):
        assert WAIT in subtone(*training(workplace), code=2).stderr


def test_a_checkpoint_may_go_to_the_folder_one_stands_in(workplace: Path, tmp_path: Path) -> None:
    """A path without a name; the run lies beside it all the same."""
    here = tmp_path / "here"
    here.mkdir()
    (workplace / "tuned.toml").write_text(TUNED)
    words = [workplace / "float", workplace / "tuned.toml", "--train", workplace / "corpus" / "train"]
    line = [sys.executable, "-m", "subtone", "quantize", *map(str, words), "--out", ".", "--json"]
    done = subprocess.run(line, cwd=here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["checkpoint"] == str(here)
    assert sorted(path.name for path in here.iterdir()) == ["config.json", "weights.safetensors"]
    assert (tmp_path / "here.run" / "training.ckpt").is_file()


def test_every_method_is_listed_with_its_recipes() -> None:
    rows = {row["method"]: row for row in json.loads(subtone("methods", "--json").stdout)}
    assert set(rows) == set(METHODS)
    for name, row in rows.items():
        assert row["what"].endswith("."), name
        assert row["recipes"], name
        assert row["trains"] == (name != "linear")
    assert "ptq-w8" in rows["linear"]["recipes"]
    assert "s8bqat" in subtone("methods").stdout
