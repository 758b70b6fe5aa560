"""Conformer configs come back from JSON, and a wrong one is refused at the door."""

from __future__ import annotations

import dataclasses
import json

import pytest
from tests.models.conformer_variants import OPEN, STACKED

from subtone.models.conformer_config import (
    CONFORMER_CTCS,
    CONFORMERS,
    ConformerConfig,
    ConformerCtcConfig,
)


@pytest.mark.parametrize("config", [*CONFORMERS.values(), OPEN, STACKED])
def test_an_encoder_comes_back_from_json(config: ConformerConfig) -> None:
    document = json.loads(json.dumps(config.to_json()))
    assert document["family"] == "conformer"
    assert ConformerConfig.from_json(document) == config


@pytest.mark.parametrize("config", CONFORMER_CTCS.values(), ids=CONFORMER_CTCS)
def test_a_ctc_model_comes_back_from_json(config: ConformerCtcConfig) -> None:
    document = json.loads(json.dumps(config.to_json()))
    assert (document["family"], config.num_features) == ("conformer-ctc", config.encoder.num_features)
    assert ConformerCtcConfig.from_json(document) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0}, "width=0 must be a whole number of at least 1"),
        ({"kernel": 3.0}, "kernel=3.0 must be a whole number of at least 1"),
        ({"left": -2}, "left=-2 must be a whole number of at least -1"),
        ({"conv2d_channels": -1}, "conv2d_channels=-1 must be a whole number of at least 0"),
        ({"projection_width": 0}, "projection_width=0 must be a whole number of at least 1"),
        ({"width": 9, "heads": 3}, "width=9 must be even"),
        ({"heads": 3}, "heads=3 does not divide width=8; use a divisor"),
        ({"num_blocks_without_attention": 3}, "num_blocks_without_attention=3 is more than num_blocks=2"),
        ({"norm": "group"}, "norm='group' must be one of layer, batch"),
        ({"is_open": 1}, "is_open=1 must be true or false"),
        ({"dropout": 1.0}, r"dropout=1.0 must lie in \[0, 1\)"),
    ],
)
def test_a_wrong_setting_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(OPEN, **changes)


def test_a_key_that_no_encoder_has_is_refused() -> None:
    with pytest.raises(ValueError, match=r"not a Conformer config: .*'depth'"):
        ConformerConfig.from_json({**OPEN.to_json(), "depth": 3})
    lacking = OPEN.to_json()
    del lacking["heads"]
    with pytest.raises(ValueError, match=r"not a Conformer config: .*'heads'"):
        ConformerConfig.from_json(lacking)


def test_a_wrong_ctc_model_is_refused() -> None:
    document = ConformerCtcConfig(encoder=OPEN).to_json()
    with pytest.raises(ValueError, match="num_outputs=1 must be at least 2"):
        ConformerCtcConfig.from_json({**document, "num_outputs": 1})
    with pytest.raises(ValueError, match="encoder=None is not a Conformer's"):
        ConformerCtcConfig.from_json({"family": "conformer-ctc", "num_outputs": 29})
    with pytest.raises(ValueError, match=r"not a Conformer-CTC config: .*'head'"):
        ConformerCtcConfig.from_json({**document, "head": 1})
