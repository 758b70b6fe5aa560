"""Transducers on their way to few bits: what their layers hear, and that torch simulates what is packed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.models.transducer_variants import CASCADED, TRANSDUCERS, random_features, random_network
from torch import nn

from subtone.export.graph import FEATURES, Input
from subtone.export.lower import lower_entry
from subtone.models.hearing import TorchTransducer, encoded, hear_through, paths_of, visited_pairs
from subtone.quantize import Recipe, decoded_twin, method_of
from subtone.quantize.calibration import ChannelMoment, HiddenMoment, can_be_watched, watch_inputs
from subtone.quantize.simulate import simulate
from subtone.quantize.weights import quantizable_weights
from subtone.runtime.engine import NumpyEngine
from subtone.speech.transducer_search import TransducerGreedySearch

CONFIGS = {**TRANSDUCERS, "cascaded": CASCADED}


def recipe_of(*rules: dict, method: str = "linear") -> Recipe:
    return Recipe.from_dict({"name": "x", "method": method, "rules": list(rules)})


def batches(count: int = 3, frames: int = 17) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [
        (random_features(frames + index, batch=1), torch.tensor([frames + index])) for index in range(count)
    ]


# What layers hear ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_each_part_meets_what_it_meets_when_it_serves(name: str) -> None:
    """The joiner is run on the pairs of the search, in its order, and on no others."""
    network, features = random_network(CONFIGS[name]), random_features(9, batch=1)
    model, searched = TorchTransducer.of(network), []

    class Spy(TransducerGreedySearch):
        def _join(self, row, predicted, frame_index):
            searched.append((frame_index, len(self._labels)))
            return super()._join(row, predicted, frame_index)

    search = Spy(model)
    search.push(encoded(network, features)[0].detach().numpy())
    paths = paths_of(network, features)
    assert (paths[-1].labels, paths[-1].frames) == (search.best().labels, search.best().frames)
    assert len(paths) == 1 + (name == "cascaded")
    given: list[torch.Tensor] = []
    joiner = network.joiner2 if name == "cascaded" else network.joiner
    joiner.combine.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    hear_through(network, features, paths)
    forced = visited_pairs(paths[-1], encoded(network, features).shape[1])
    # Where the search stops at its limit it takes the blank as it comes.
    assert forced == searched
    (frames,) = given
    assert frames.shape[1] == len(searched)


def test_moments_of_an_lstm_are_those_of_its_rows_and_of_what_it_feeds_back() -> None:
    network = random_network(TRANSDUCERS["lstm"])
    weights = quantizable_weights(network)
    paths = [f"encoder.layers.1.weight_{which}_l0" for which in ("ih", "hh")]
    moments = {paths[0]: ChannelMoment(), paths[1]: HiddenMoment()}
    assert all(can_be_watched(weights[path]) for path in paths)
    given = batches()
    watch_inputs(network, given, moments)
    rows, hidden = [], []
    with torch.no_grad():
        for features, _ in given:
            first = network.encoder.norms[0](network.encoder.layers[0](features.transpose(1, 2))[0])
            count = first.shape[1] // 2
            joined = torch.stack(
                [torch.cat((first[0, 2 * index], first[0, 2 * index + 1])) for index in range(count)]
            )
            rows += list(joined)
            hidden += list(network.encoder.layers[1](joined[None])[0][0, :-1])
    for path, values in zip(paths, (rows, hidden), strict=True):
        expected = sum(torch.outer(one, one).double() for one in values) / len(values)
        np.testing.assert_allclose(moments[path].value()[0], expected.numpy(), rtol=1e-5, atol=1e-6)


def test_an_lstm_of_several_layers_cannot_be_watched() -> None:
    for lstm in (nn.LSTM(4, 3, 2), nn.LSTM(4, 3, bidirectional=True), nn.LSTM(4, 3, proj_size=2)):
        assert not any(can_be_watched(weight) for weight in quantizable_weights(lstm).values())


def test_compensated_rounding_of_an_lstm_hears_better_than_the_nearest() -> None:
    """On rows that are correlated, where there is something to compensate."""
    torch.manual_seed(0)
    network = random_network(TRANSDUCERS["lstm"])
    mixing = torch.randn(6, 6) @ torch.diag(torch.tensor([3.0, 1.0, 0.3, 0.1, 0.03, 0.01]))
    given = [(torch.einsum("ij,bjt->bit", mixing, features), lengths) for features, lengths in batches(8, 40)]
    float_rows = [network.encoder(features)[0].detach() for features, _ in given]
    errors = []
    for rounding in ("nearest", "compensated"):
        rules = {"kinds": ["lstm"], "bits": 3, "rounding": rounding}, {"keep_float": True}
        quantization = method_of(recipe_of(*rules)).freeze(network, calibration=given)
        twin = decoded_twin(network, quantization)
        rows = [twin.encoder(features)[0].detach() for features, _ in given]
        errors.append(
            sum(float((one - other).square().sum()) for one, other in zip(rows, float_rows, strict=True))
        )
    assert errors[1] < 0.8 * errors[0]


def test_weights_that_another_module_computes_with_cannot_compensate() -> None:
    network = random_network(TRANSDUCERS["bifocal"])
    recipe = recipe_of({"kinds": ["lstm"], "bits": 4, "rounding": "compensated"}, {"keep_float": True})
    with pytest.raises(
        ValueError, match=r"the inputs of encoder\.layers\.0\.large\.weight_ih_l0 cannot be watched"
    ):
        method_of(recipe).freeze(network, calibration=batches())


def test_activations_that_another_module_computes_with_are_refused_in_training() -> None:
    network = random_network(TRANSDUCERS["bifocal"])
    method = method_of(recipe_of({"bits": 4, "activations": "dynamic"}, method="native"))
    with pytest.raises(ValueError, match="because a SwitchedLayer computes with its weights; add a rule"):
        method.attach(network)


# Simulation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_torch_simulates_what_a_packed_encoder_computes(name: str) -> None:
    network = random_network(CONFIGS[name])
    quantization = method_of(recipe_of({"bits": 4, "activations": "dynamic"})).freeze(network)
    twin = decoded_twin(network, quantization)
    program, constants = lower_entry(
        twin.entries()["encoder"],
        (Input(name="features", layout=FEATURES, width=6),),
        output="output",
        frames_per_step=network.frames_per_step,
        quantization=quantization,
        whole=twin,
    )
    features = random_features(12, batch=1)
    expected = NumpyEngine(program, constants).run(features[0].T.numpy())
    plain = twin.entries()["encoder"](features)[0].detach().numpy()
    handles = simulate(twin, quantization)
    given = twin.entries()["encoder"](features)[0].detach().numpy()
    # The same roundings, so what is left is the order of sums; without them the difference is of another size.
    np.testing.assert_allclose(given, expected, rtol=0, atol=1e-4)
    assert np.abs(plain - expected).max() > 1e-3
    for handle in handles:
        handle.remove()
    assert np.array_equal(twin.entries()["encoder"](features)[0].detach().numpy(), plain)
