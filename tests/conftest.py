"""What all tests share: where the recordings and the model lie, if they are here at all."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

if (
    "PYTEST_XDIST_WORKER" in os.environ
):  # as many processes as cores: one thread each, theirs and their children's
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same draws in every run, so that a run says what changed; `make fuzz` draws others, and more of them.
hypothesis.settings.register_profile("fixed", derandomize=True)
hypothesis.settings.register_profile("fuzz", print_blob=True)
hypothesis.settings.load_profile(os.environ.get("SUBTONE_DRAWS", "fixed"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with `data/` and `models/`; the test skips where there is none."""
    default = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("SUBTONE_SHARED", default))
    if not (folder / "data" / "librispeech").is_dir():
        pytest.skip(f"needs real speech: no {folder}/data/librispeech (SUBTONE_SHARED names another folder)")
    return folder
