"""Published tables are what the results say."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_results_page_is_made_of_the_newest_results(tables: ModuleType) -> None:
    assert (ROOT / "docs" / "results.md").read_text() == tables.results_page()


def test_the_readmes_table_is_made_of_the_newest_results(tables: ModuleType) -> None:
    readme = (ROOT / "README.md").read_text()
    assert readme == tables.with_table(readme)
    assert tables.readme_table() in readme


def test_every_result_says_when_where_and_of_what() -> None:
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        document = json.loads(path.read_text())
        assert {"date", "machine"} <= document.keys(), path
        assert {"processor", "commit"} <= document["machine"].keys(), path


def test_file_sizes_are_what_the_arithmetic_predicts_to_1_percent(tables: ModuleType) -> None:
    for row in tables.newest("quartznet_ptq")["rows"]:
        if any(rule.get("bias_correction") for rule in row["recipe"]["rules"]):
            continue  # it adds a vector to every layer, which the prediction leaves out
        assert row["file_bytes"] == pytest.approx(row["predicted_bytes"], rel=0.01), row["recipe"]["name"]


def test_the_readme_names_only_commands_recipes_and_files_that_exist() -> None:
    readme = (ROOT / "README.md").read_text()
    for recipe in re.findall(r"recipes/[\w-]+\.toml", readme):
        assert (ROOT / recipe).is_file(), recipe
    for page in re.findall(r"docs/[\w-]+\.md", readme):
        assert (ROOT / page).is_file(), page
    for target in re.findall(r"^    make (\w+)", readme, flags=re.MULTILINE):
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, target
