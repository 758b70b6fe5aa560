"""The README's map names every module, and the training loop that it shows runs."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest
import torch

import subtone

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "subtone"
README = (ROOT / "README.md").read_text(encoding="utf-8")
ROWS = [line.split("|")[1:3] for line in README.splitlines() if line.startswith("| `src/subtone/")]
PACKAGES = sorted(path.parent.name for path in SOURCE.glob("*/__init__.py"))


@pytest.mark.parametrize("package", PACKAGES)
def test_the_map_names_every_module_of_a_package_and_no_other(package):
    (what,) = [what for where, what in ROWS if f"`src/subtone/{package}/`" in where]
    modules = {path.stem for path in (SOURCE / package).glob("*.py")} - {"__init__"}
    assert set(re.findall(r"`(\w+)`", what)) == modules


def test_the_map_names_every_module_beside_the_packages():
    named = re.findall(r"`(?:src/subtone/)?(\w+\.py)`", " ".join(where for where, _ in ROWS))
    modules = {path.name for path in SOURCE.glob("*.py")} - {"__init__.py", "__main__.py"}
    assert sorted(named) == sorted(modules)


def test_the_loop_written_by_hand_runs():
    start = "    method = subtone.quantize.method_of(recipe)\n"
    loop = start + README.partition(start)[2].partition("\n\n")[0]
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 4)
    names = {
        "subtone": subtone,
        "recipe": subtone.Recipe.load(ROOT / "recipes" / "native-i4w.toml"),
        "model": model,
        "batches": [torch.ones(2, 8)] * 3,
        "loss": lambda model, batch: model(batch).square().mean(),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
    }
    before = model.weight.detach().clone()
    exec(textwrap.dedent(loop), names)
    assert not torch.equal(model.weight, before)
    assert names["quantization"].weights["weight"].bits == 4
