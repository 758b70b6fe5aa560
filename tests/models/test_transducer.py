"""Transducers: equal to their loops, blind to padding and to the future, and whole in three parts."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from tests.models.transducer_variants import (
    CASCADED,
    LABEL_LENGTHS,
    LABELS,
    LENGTHS,
    LSTM,
    REDUCED,
    TRANSDUCERS,
    WITH_LSTM,
    random_features,
    random_network,
)
from tests.reference import transducer as reference
from torch import nn

from subtone.models.cascaded import Cascaded, CascadedConfig
from subtone.models.lstm import LstmConfig, LstmEncoder
from subtone.models.predictors import (
    LstmPredictorConfig,
    ReducedPredictor,
    ReducedPredictorConfig,
    predictor_config,
    with_start,
)
from subtone.models.transducer import Transducer, TransducerConfig

CONFIGS = {**TRANSDUCERS, "cascaded": CASCADED}
every_network = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
# A sum of float32 in another order; logits here are of the order of one.
CLOSE = {"rtol": 0, "atol": 2e-6}


def float64(value: torch.Tensor) -> np.ndarray:
    return value.detach().double().numpy()


def cell_of(layer: nn.LSTM) -> reference.Cell:
    return reference.Cell(
        float64(layer.weight_ih_l0), float64(layer.weight_hh_l0), float64(layer.bias_ih_l0 + layer.bias_hh_l0)
    )


def logits_of(network: Transducer | Cascaded, *inputs: torch.Tensor | None) -> torch.Tensor:
    """(B, T, U + 1, V), those of both passes of a cascade side by side in V."""
    logits = network(*inputs)[0]
    return torch.cat(logits, dim=3) if isinstance(logits, tuple) else logits


def test_an_lstm_encoder_equals_the_loop() -> None:
    torch.manual_seed(0)
    encoder = LstmEncoder(dataclasses.replace(LSTM, has_norm=False)).eval()
    features = random_features(11, batch=1)
    rows = float64(features[0].T)
    for index, layer in enumerate(encoder.layers):
        if index == 1:  # two rows side by side, the eleventh alone and dropped
            rows = np.array([np.concatenate((rows[2 * t], rows[2 * t + 1])) for t in range(5)])
        rows = reference.lstm(rows, cell_of(layer))
    found, lengths = encoder(features)
    np.testing.assert_allclose(found[0].detach().numpy(), rows, rtol=0, atol=1e-6)
    assert lengths is None


@pytest.mark.parametrize("context", [1, 2, 3])
def test_the_reduced_predictor_averages_the_last_labels(context: int) -> None:
    torch.manual_seed(0)
    predictor = ReducedPredictor(ReducedPredictorConfig(embedding_width=5, context=context), 9).eval()
    nn.init.normal_(predictor.position.weight)
    labels = [8, 3, 3, 0, 5]
    newest_first = float64(predictor.position.weight[:, 0].T.flip(0))
    average = reference.averaged_embeddings(labels, float64(predictor.embedding.weight), newest_first)
    projected = average @ float64(predictor.projection.weight).T + float64(predictor.projection.bias)
    deviation = np.sqrt(projected.var(axis=1, keepdims=True) + predictor.norm.eps)
    normed = (projected - projected.mean(axis=1, keepdims=True)) / deviation
    expected = normed / (1 + np.exp(-normed))
    found = predictor(torch.tensor([labels]))[0].detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


def test_a_fresh_reduced_predictor_is_the_plain_average() -> None:
    predictor = ReducedPredictor(ReducedPredictorConfig(embedding_width=4, context=2), 9)
    assert torch.equal(predictor.position.weight, torch.full((4, 1, 2), 0.5))


@pytest.mark.parametrize("config", TRANSDUCERS.values(), ids=TRANSDUCERS)
def test_the_joiner_equals_the_loop_over_every_pair(config: TransducerConfig) -> None:
    network = random_network(config)
    features = random_features(7, batch=1)
    parts = network.entries()
    labels = LABELS[:1]
    encoded = parts["encoder"](features)[0]
    predicted = parts["predictor"](with_start(labels, network.blank_index))[0]
    output = network.joiner.combine.output
    expected = reference.joined(
        float64(encoded), float64(predicted), float64(output.weight), float64(output.bias)
    )
    logits, _ = network(features, None, labels)
    assert logits.shape == (1, 7 // network.frames_per_step, 5, config.num_outputs)
    np.testing.assert_allclose(logits[0].detach().numpy(), expected, rtol=0, atol=2e-6)


@every_network
def test_padding_does_not_change_valid_frames(config: TransducerConfig | CascadedConfig) -> None:
    network = random_network(config)
    features = random_features(13, batch=1)
    labels = LABELS[:1]
    alone = logits_of(network, features, torch.tensor([13]), labels)
    padded = torch.cat([features, torch.full((1, 6, 20), 1e3)], dim=2)
    beside, lengths = network(padded, torch.tensor([13]), torch.cat([labels, labels], dim=1))
    beside = torch.cat(beside, dim=3) if isinstance(beside, tuple) else beside
    assert lengths.tolist() == [13 // network.frames_per_step]
    torch.testing.assert_close(beside[:, : int(lengths[0]), : labels.shape[1] + 1], alone, **CLOSE)


@every_network
def test_a_batch_equals_one_by_one(config: TransducerConfig | CascadedConfig) -> None:
    network = random_network(config)
    features = random_features()
    together = logits_of(network, features, LENGTHS, LABELS, LABEL_LENGTHS)
    for index, (frames, labels) in enumerate(zip(LENGTHS.tolist(), LABEL_LENGTHS.tolist(), strict=True)):
        one = slice(index, index + 1)
        alone = logits_of(network, features[one, :, :frames], None, LABELS[one, :labels])
        torch.testing.assert_close(together[one, : alone.shape[1], : labels + 1], alone, **CLOSE)


@every_network
def test_neither_future_frames_nor_future_labels_change_what_was_said(
    config: TransducerConfig | CascadedConfig,
) -> None:
    network = random_network(config)
    features, labels = random_features(14, batch=1), LABELS[:1]
    later, other = features.clone(), labels.clone()
    later[:, :, 8:] += 1.0
    other[:, 2:] = 0
    before, after = (network(x, None, y)[0] for x, y in ((features, labels), (later, other)))
    if isinstance(before, tuple):  # the first pass: the second may look ahead, and does
        assert not torch.equal(before[1][:, :8, :3], after[1][:, :8, :3])
        before, after = before[0], after[0]
    rows = 8 // network.frames_per_step
    torch.testing.assert_close(before[:, :rows, :3], after[:, :rows, :3], rtol=0, atol=0)
    assert not torch.equal(before[:, rows:], after[:, rows:])


@every_network
def test_gradients_reach_every_parameter(config: TransducerConfig | CascadedConfig) -> None:
    network = random_network(config).train()
    logits_of(network, random_features(), LENGTHS, LABELS, LABEL_LENGTHS).square().sum().backward()
    silent = [
        name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()
    ]
    assert silent == []


def test_the_passes_of_a_cascade_share_the_first_encoder_and_no_decoder() -> None:
    network = random_network(CASCADED)
    features, labels = random_features(9, batch=1), with_start(LABELS[:1], network.blank_index)
    parts = network.entries()
    frames, rows = parts["encoder"](features).tensor_split([CASCADED.joint_width], dim=2)
    encoded = {"": frames, "2": parts["encoder2"](rows)}
    (first, second), _ = network(features, None, LABELS[:1])
    for suffix, logits in (("", first), ("2", second)):
        predicted = parts[f"predictor{suffix}"](labels)
        for u in range(labels.shape[1]):
            pairs = parts[f"joiner{suffix}"](encoded[suffix], predicted[:, u : u + 1].expand(-1, 9, -1))
            torch.testing.assert_close(pairs, logits[:, :, u], **CLOSE)


@every_network
def test_a_config_survives_json(config: TransducerConfig | CascadedConfig) -> None:
    document = json.loads(json.dumps(config.to_json()))
    assert type(config).from_json(document) == config


def test_lengths_of_one_frame_or_none_give_one_row_or_none() -> None:
    network = random_network(TRANSDUCERS["lstm"])
    logits, lengths = network(random_features(2, batch=1), torch.tensor([2]), LABELS[:1, :0])
    assert (logits.shape[1:3], lengths.tolist()) == ((1, 1), [1])


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"widths": ()}, "lstm widths is empty"),
        ({"widths": (4, 0)}, "lstm width=0 must be a whole number of at least 1"),
        ({"widths": (4,), "reduced_before": 1}, "lstm reduced_before=1 names none of 1 layers"),
        ({"widths": (4,), "has_norm": 1}, "lstm has_norm=1 must be true or false"),
        ({"widths": (4,), "dropout": 1.0}, "lstm dropout=1.0 must lie in [0, 1)"),
    ],
)
def test_an_lstm_config_is_refused_at_the_door(values: dict, text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        LstmConfig(**values)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"num_outputs": 1}, "transducer num_outputs=1 must be a whole number of at least 2"),
        ({"joint_width": 0}, "transducer joint_width=0 must be"),
        ({"encoder": REDUCED}, "is not an encoder's config"),
        ({"has_encoder_projection": None}, "has_encoder_projection=None must be true or false"),
        (
            {"has_predictor_projection": False, "joint_width": 8},
            "joint_width=8 is not the predictor's width 6",
        ),
    ],
)
def test_a_transducer_config_is_refused_at_the_door(change: dict, text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        dataclasses.replace(TRANSDUCERS["lstm"], **change)


def test_an_encoder_of_another_width_needs_its_projection() -> None:
    config = dataclasses.replace(TRANSDUCERS["lstm"], has_encoder_projection=False)
    with pytest.raises(ValueError, match=re.escape("joint_width=6 is not the encoder's width 5")):
        Transducer(config)


def test_a_second_encoder_must_take_the_rows_of_the_first() -> None:
    with pytest.raises(ValueError, match=re.escape("encoder2 takes 6 features")):
        Cascaded(dataclasses.replace(CASCADED, encoder2=CASCADED.encoder))


def test_predictors_are_refused_at_the_door() -> None:
    with pytest.raises(ValueError, match="predictor widths is empty"):
        LstmPredictorConfig(embedding_width=4, widths=())
    with pytest.raises(ValueError, match="predictor context=0 must be"):
        ReducedPredictorConfig(embedding_width=4, context=0)
    with pytest.raises(ValueError, match="predictor family='gru' is not known; use one of lstm, reduced"):
        predictor_config({"family": "gru"})
    with pytest.raises(ValueError, match=r"a config of family predictor lstm does not know hidden"):
        predictor_config({**WITH_LSTM.to_json(), "hidden": 3})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"encoder": {"family": "gru"}}, "encoder family='gru' is not known; use one of lstm, "),
        ({"encoder": "lstm"}, "transducer encoder='lstm' must describe one"),
        ({"predictor": None}, "transducer predictor=None must describe one"),
        ({"width": 3}, "a config of family transducer does not know width"),
    ],
)
def test_a_stored_transducer_names_what_is_wrong(change: dict, text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        TransducerConfig.from_json({**TRANSDUCERS["lstm"].to_json(), **change})


def test_a_stored_cascade_names_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="cascaded encoder2=3 must describe one"):
        CascadedConfig.from_json({**CASCADED.to_json(), "encoder2": 3})


def test_labels_are_checked_before_anything_is_computed() -> None:
    network = random_network(TRANSDUCERS["lstm"])
    features = random_features(4, batch=1)
    with pytest.raises(ValueError, match=re.escape("labels are torch.float32 of shape (1, 2); use int64")):
        network(features, None, torch.zeros(1, 2))
    with pytest.raises(ValueError, match="labels run from 0 to 9; use 0 to 8"):
        network(features, None, torch.tensor([[0, 9]]))
    with pytest.raises(ValueError, match=re.escape("label_lengths=[3] exceed the 2 labels given")):
        network(features, None, torch.tensor([[0, 1]]), torch.tensor([3]))
