"""A corpus of a minute, for tests of training."""

from __future__ import annotations

import pytest

from subtone.speech.synth import Corpus, make_corpus


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("train") / "corpus"
    return make_corpus(folder, num_train=24, num_dev=4, num_test=0, seed=0)
