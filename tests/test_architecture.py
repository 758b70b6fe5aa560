"""Imports point one way, and what runs on a device needs no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "subtone"

MAY_IMPORT = {
    "numerics": set(),
    "files": set(),
    "qtensor": {"numerics"},
    "program": {"numerics", "qtensor"},
    "speech": {"numerics", "files"},
    "pack": {"numerics", "files", "qtensor", "program"},
    "runtime": {"numerics", "qtensor", "program", "speech", "pack"},
    "models": {"numerics", "files", "qtensor", "speech"},
    "quantize": {"numerics", "files", "qtensor", "speech", "models"},
    "train": {"numerics", "files", "qtensor", "speech", "models", "quantize"},
    "export": {"numerics", "qtensor", "program", "speech", "pack", "runtime", "models", "quantize", "train"},
    "torch": {"qtensor", "program", "pack", "runtime", "models", "quantize"},
    "bench": {"program", "qtensor", "runtime", "report"},
    "report": {"numerics", "files", "qtensor", "program", "speech", "pack", "runtime", "models", "export"},
}
"""Part -> the parts it may import; `cli`, `commands`, `demo` and the package itself see all."""

TORCH_FREE = ("numerics", "files", "qtensor", "program", "speech", "pack", "runtime")
TORCH_SIDE = {
    "torch",
    "lightning",
    "lhotse",
    "pydantic",
    "yaml",
    "safetensors",
    "sentencepiece",
    "onnx",
    "onnxruntime",
}


def part_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, inside functions too, as dotted names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            is_package = node.module == "subtone"
            found |= {f"subtone.{alias.name}" for alias in node.names} if is_package else {node.module or ""}
    return found


FILES = sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_imports_point_one_way(part: str) -> None:
    files = [path for path in FILES if part_of(path) == part]
    assert files, f"{part} is gone: correct this list"
    for path in files:
        ours = {name.split(".")[1] for name in imports_of(path) if name.startswith("subtone.")}
        assert ours - {part} <= MAY_IMPORT[part], path


def test_every_part_has_its_place_in_the_order() -> None:
    free = {"__init__", "__main__", "cli", "commands", "command_errors", "command_output", "demo"}
    assert {part_of(path) for path in FILES} == {*MAY_IMPORT, *free}


@pytest.mark.parametrize("part", TORCH_FREE)
def test_what_runs_on_a_device_names_nothing_of_training(part: str) -> None:
    for path in FILES:
        if part_of(path) == part:
            assert not {name.split(".")[0] for name in imports_of(path)} & TORCH_SIDE, path


def test_importing_the_run_time_and_the_command_line_loads_no_torch() -> None:
    script = "import sys, subtone.runtime, subtone.runtime.session, subtone.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {name.split(".")[0] for name in done.stdout.split()} & TORCH_SIDE


def test_what_needs_torch_is_there_once_it_is_named() -> None:
    script = """
import sys, subtone
assert not {"torch", "pydantic"} & sys.modules.keys()
recipe = subtone.Recipe.load(sys.argv[1])
callback = subtone.train.Quantize(recipe)
assert callback.run.recipe is recipe
assert subtone.quantize.METHODS and subtone.export and subtone.models and subtone.report
from subtone import Recipe, train  # the same by another way
assert Recipe is subtone.Recipe and train is subtone.train
try:
    subtone.trane
except AttributeError as error:
    print(error)
"""
    recipe = SOURCE.parents[1] / "recipes" / "native-i4w.toml"
    command = [sys.executable, "-c", script, str(recipe)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "module 'subtone' has no attribute 'trane'\n"), done.stderr


def test_no_file_is_too_long_to_read() -> None:
    folders = [SOURCE, *(SOURCE.parents[1] / name for name in ("native", "tests"))]
    sources = [
        path for folder in folders for path in folder.rglob("*") if path.suffix in (".py", ".cc", ".h")
    ]
    too_long = {path.name: len(path.read_text().splitlines()) for path in sources}
    assert {name: lines for name, lines in too_long.items() if lines > 500} == {}


def test_no_name_says_nothing() -> None:
    vague = {"utils", "common", "helpers", "base", "misc"}
    assert [path for path in FILES if path.stem in vague] == []
