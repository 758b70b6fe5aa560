"""A machine that only hears: `pip install subtone` without its extras, hence without torch."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import soundfile

from subtone.pack import PackedModel, write_packed
from subtone.program import Conv1d, Program
from subtone.qtensor import QTensor
from subtone.runtime.library import find_library
from subtone.runtime.session import Session
from subtone.speech.features import FrontEnd
from subtone.speech.text import CharTokenizer

SOURCE = Path(__file__).resolve().parents[1] / "src" / "subtone"


def core_distributions() -> set[str]:
    """Names of all that `pip install subtone` brings: its requirements and theirs, extras left out."""
    found: set[str] = set()
    waiting = ["subtone"]
    while waiting:
        for requirement in metadata.requires(waiting.pop()) or ():
            name, _, marker = requirement.partition(";")
            name = re.match(r"[A-Za-z0-9._-]+", name).group()
            if "extra ==" in marker or name in found:
                continue
            try:
                metadata.distribution(name)
            except metadata.PackageNotFoundError:
                continue  # for another platform or Python
            found.add(name)
            waiting.append(name)
    return found


def make_core_venv(folder: Path) -> Path:
    """A venv with the core distributions as installed here, and this package; its python."""
    venv.create(folder, with_pip=False, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    for name in core_distributions():
        distribution = metadata.distribution(name)
        for top in {
            path.parts[0] for path in distribution.files or () if path.parts[0] not in ("..", "__pycache__")
        }:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(distribution.locate_file(top))))
    shutil.copytree(SOURCE, site / "subtone", ignore=shutil.ignore_patterns("__pycache__"))
    library = find_library()
    assert library is not None
    shutil.copy(library, site / "subtone")
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def core_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_core_venv(tmp_path_factory.mktemp("core") / "venv")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed file whose one layer listens to the lowest mels, made without torch."""
    random = np.random.default_rng(0)
    tokenizer = CharTokenizer(tuple(" abcdefghijklmnopqrstuvwxyz'"))
    weight = random.standard_normal((29, 64, 1)).astype(np.float32)
    absmax = np.abs(weight[..., 0]).max(axis=1, keepdims=True)
    scale = np.float32(absmax / 7)
    codes = np.clip(np.floor(weight[..., 0] / scale + 8.5), 1, 15).astype(np.uint8)
    constant = QTensor(
        codes=codes, shape=weight.shape, scale=scale, zero_point=np.full((1, 1), 8, np.float32), bits=4
    )
    op = Conv1d(input="features", output="logits", weight="head.weight", activation_bits=8)
    program = Program(
        input="features", input_width=64, output="logits", output_width=29, frames_per_step=1, ops=(op,)
    )
    path = tmp_path_factory.mktemp("file") / "a.subtone"
    objects = {
        "front_end": FrontEnd().to_json(),
        "tokenizer": tokenizer.to_json(),
        "recipe": {},
        "provenance": {},
    }
    write_packed(path, PackedModel(program=program, constants={"head.weight": constant}, **objects))
    return path


def test_torch_is_not_in_a_core_installation(core_python: Path) -> None:
    done = subprocess.run([core_python, "-c", "import torch"], capture_output=True, text=True, check=False)
    assert "No module named 'torch'" in done.stderr


def test_a_packed_file_hears_without_torch(core_python: Path, packed: Path, tmp_path: Path) -> None:
    sound = np.random.default_rng(0).standard_normal(24000).astype(np.float32) * 0.1
    soundfile.write(tmp_path / "a.wav", sound, 16000)
    command = [core_python, "-m", "subtone", "transcribe", packed, tmp_path / "a.wav"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.stderr == ""
    assert done.stdout.strip() == Session.load(packed).hear_file(tmp_path / "a.wav")
    assert len(done.stdout.strip()) > 3


def test_inspect_and_evaluate_need_no_torch(core_python: Path, packed: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).standard_normal(8000) * 0.1, 16000)
    (tmp_path / "manifest.jsonl").write_text('{"audio_filepath": "a.wav", "duration": 0.5, "text": "a b"}\n')
    for arguments in (["inspect", packed, "--json"], ["evaluate", packed, tmp_path, "--json"]):
        done = subprocess.run(
            [core_python, "-m", "subtone", *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_a_command_of_training_says_what_to_install(core_python: Path, tmp_path: Path) -> None:
    command = [core_python, "-m", "subtone", "pack", tmp_path, tmp_path / "a.subtone"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert 'pip install "subtone[train' in done.stderr


def test_this_interpreter_has_torch() -> None:
    """Otherwise the tests above would prove nothing."""
    assert subprocess.run([sys.executable, "-c", "import torch"], check=False).returncode == 0
