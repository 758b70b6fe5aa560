"""The way to integers alone on the command line: quantize, pack, inspect, transcribe; what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tests.test_cli import complaint, subtone
from torch import nn

from subtone.models.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from subtone.models.quartznet import Block, QuartzNet, QuartzNetConfig
from subtone.pack import read_packed
from subtone.program import IntegerAdd
from subtone.speech.features import FrontEnd
from subtone.speech.text import CharTokenizer

RATE_HZ = 16000
ZERO_SHOT = """
name = "quick"
method = "linear"
[integer]
range = "mse"
wide_products = ["blocks.1.*.pointwise"]
[integer.synthesis]
num_batches = 1
batch_size = 2
num_frames = 60
iterations = 4
[[rules]]
bits = 6
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float checkpoint whose BatchNorms have heard something, a sound, a manifest and recipes."""
    folder = tmp_path_factory.mktemp("integers")
    torch.manual_seed(0)
    tokenizer = CharTokenizer(tuple(" abc"))
    blocks = (Block(filters=16, kernel=5, stride=2), Block(filters=16, kernel=3, has_residual=True))
    network = QuartzNet(QuartzNetConfig(num_features=64, num_outputs=5, blocks=blocks))
    with torch.no_grad():
        network(torch.randn(8, 64, 100), torch.full((8,), 100))  # in training mode: statistics of noise
    save_checkpoint(
        folder / "float", Checkpoint(network=network.eval(), front_end=FrontEnd(), tokenizer=tokenizer)
    )
    samples = np.random.default_rng(0).normal(0, 0.1, 2 * RATE_HZ).astype(np.float32)
    soundfile.write(folder / "a.wav", samples, RATE_HZ)
    entry = {"audio_filepath": "a.wav", "duration": 2.0, "text": "a b", "speaker": "s"}
    (folder / "manifest.jsonl").write_text(json.dumps(entry) + "\n")
    (folder / "zero-shot.toml").write_text(ZERO_SHOT)
    heard = ZERO_SHOT.replace('range = "mse"', 'features = "recordings"').partition("[integer.synthesis]")
    (folder / "recordings.toml").write_text(heard[0] + "[[rules]]\nbits = 8\n")
    return folder


def test_a_network_becomes_integers_without_a_recording_and_is_proven_to_be(workplace: Path) -> None:
    out, file, picture = (workplace / name for name in ("q", "q.subtone", "heard.png"))
    made = subtone(
        "quantize", workplace / "float", workplace / "zero-shot.toml", "--out", out, "--save-images", picture, "--json"
    )  # fmt: skip
    recipe = json.loads(made.stdout)["recipe"]
    assert recipe["integer"]["synthesis"]["iterations"] == 4
    assert recipe["integer"]["features"] == "synthetic"
    assert picture.read_bytes().startswith(b"\x89PNG")
    with_a_recording = workplace / "real.png"
    subtone(
        "quantize", workplace / "float", workplace / "zero-shot.toml", "--out", workplace / "shown",
        "--calibration", workplace, "--save-images", with_a_recording,
    )  # fmt: skip
    heights = [int.from_bytes(path.read_bytes()[20:24], "big") for path in (picture, with_a_recording)]
    assert heights[1] > 1.2 * heights[0]  # a fourth spectrogram
    codes = [load_checkpoint(workplace / name).quantization.ranges for name in ("q", "shown")]
    assert codes[0] == codes[1]  # which calibrates nothing
    subtone("pack", out, file)
    inspected = json.loads(subtone("inspect", file, "--verify-integer", "--json").stdout)
    assert inspected["is_integer"]
    assert inspected["float_parts"] == inspected["float_weights"] == []
    assert {layer["activations"] for layer in inspected["layers"]} == {"static"}
    assert inspected["weights_by_bits"] == {"6": inspected["weights"]}
    made_sums = [op.left for op in read_packed(file).program.ops if isinstance(op, IntegerAdd)]
    assert sum(name.endswith(".of_high") for name in made_sums) == 1  # one product reads 16 bits
    packed = subtone("transcribe", file, workplace / "a.wav").stdout
    assert packed == subtone("transcribe", out, workplace / "a.wav").stdout  # as it will be packed


def test_a_file_with_a_float_in_it_fails_the_proof(workplace: Path) -> None:
    file = workplace / "float.subtone"
    subtone("pack", workplace / "float", file)
    done = subtone("inspect", file, "--verify-integer", check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "float.subtone is not integer-only: input features and" in line
    assert subtone("inspect", file).returncode == 0


def test_recordings_calibrate_where_the_recipe_says_so(workplace: Path) -> None:
    out = workplace / "heard"
    code, line = complaint("quantize", workplace / "float", workplace / "recordings.toml", "--out", out)
    assert "integer.features='recordings' needs recordings; give some with --calibration" in line
    assert code == 2
    subtone(
        "quantize",
        workplace / "float",
        workplace / "recordings.toml",
        "--calibration",
        workplace,
        "--out",
        out,
    )
    quantization = load_checkpoint(out).quantization
    assert quantization is not None
    assert quantization.ranges["encoder/features"][0] < 0 < quantization.ranges["encoder/features"][1]


def test_a_network_without_batch_norms_is_told_to_use_recordings(workplace: Path) -> None:
    checkpoint = load_checkpoint(workplace / "float")
    for module in checkpoint.network.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.reset_running_stats()
    save_checkpoint(workplace / "untrained", checkpoint)
    code, line = complaint(
        "quantize", workplace / "untrained", workplace / "zero-shot.toml", "--out", workplace / "none"
    )
    assert code == 2
    assert "recordings" in line


def test_a_misspelt_glob_is_told_before_anything_is_made(workplace: Path) -> None:
    recipe = workplace / "misspelt.toml"
    recipe.write_text(
        ZERO_SHOT.replace("blocks.1.", "block.1.").replace("iterations = 4", "iterations = 100000")
    )
    code, line = complaint("quantize", workplace / "float", recipe, "--out", workplace / "none")
    assert code == 2
    assert (
        "integer.wide_products='block.1.*.pointwise' matches no product of this model; its products are"
        in line
    )
    assert not (workplace / "none").exists()


def test_a_picture_needs_something_to_show(workplace: Path) -> None:
    for recipe, picture in (("zero-shot.toml", "heard.jpg"), ("plain.toml", "heard.png")):
        (workplace / "plain.toml").write_text('name = "p"\nmethod = "linear"\n[[rules]]\nbits = 8\n')
        code, line = complaint(
            "quantize", workplace / "float", workplace / recipe, "--out", workplace / "n", "--save-images", picture
        )  # fmt: skip
        assert code == 2
        assert "needs a recipe with [integer] and a name that ends in .png" in line


def test_another_program_than_the_calibrated_one_is_refused(workplace: Path, tmp_path: Path) -> None:
    out = tmp_path / "q"
    subtone(
        "quantize",
        workplace / "float",
        workplace / "recordings.toml",
        "--calibration",
        workplace,
        "--out",
        out,
    )
    config = json.loads((out / "config.json").read_text())
    config["program_digest"] = "0" * 16
    (out / "config.json").write_text(json.dumps(config))
    _, line = complaint("pack", out, tmp_path / "q.subtone")
    assert "was calibrated for another program than this version exports; quantize it again" in line
