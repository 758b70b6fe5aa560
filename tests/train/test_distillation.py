"""What is learnt from the float network: which layers, what they give, and how far two networks are apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from subtone.train.distillation import divergence, matching_layers, outputs_of, relative_error


class Pair(nn.Module):
    """Features and their lengths, as our blocks give them; more than 0 in the padding too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 3, 1)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return self.conv(features) + 1, lengths


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Pair(), Pair()])
        self.head = nn.Conv1d(3, 2, 1)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        for block in self.blocks:
            features, lengths = block(features, lengths)
        return self.head(features)


FEATURES, LENGTHS = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1)), torch.tensor([5, 3])


@pytest.fixture
def chain() -> Chain:
    torch.manual_seed(0)
    return Chain()


@pytest.mark.parametrize(
    ("pattern", "paths"),
    [
        ("*", ["blocks.0", "blocks.1", "head"]),
        ("blocks.*", ["blocks.0", "blocks.1"]),
        ("blocks.1*", ["blocks.1"]),
        ("*conv", ["blocks.0.conv", "blocks.1.conv"]),
    ],
)
def test_layers_are_the_outermost_modules_that_are_called(chain, pattern, paths):
    assert list(matching_layers(chain, pattern)) == paths


def test_a_pattern_that_matches_nothing_is_told_what_there_is(chain):
    with pytest.raises(
        ValueError,
        match=r"^distilled_layers='block\*x' matches no module that is called; the network holds blocks, head: name some",
    ):
        matching_layers(chain, "block*x")


def test_outputs_are_those_of_the_forward_pass(chain):
    expected = chain(FEATURES, LENGTHS)
    with outputs_of(matching_layers(chain, "*")) as outputs:
        given = chain(FEATURES, LENGTHS)
    assert torch.equal(given, expected)
    assert torch.equal(outputs["head"], expected)
    first = chain.blocks[0](FEATURES, LENGTHS)[0]
    first[1, :, 3:] = 0
    assert torch.equal(outputs["blocks.0"], first)


def test_padding_changes_no_distance(chain):
    """A longer utterance in the batch gives the others more padding."""
    other, layers = Chain(), {}
    distances = []
    for padded in (0, 4):
        features = nn.functional.pad(FEATURES[1:, :, :3], (0, padded), value=9.0)
        for name, model in (("given", chain), ("meant", other)):
            with outputs_of(matching_layers(model, "blocks.*")) as layers[name]:
                model(features, LENGTHS[1:])
        distances.append(relative_error(layers["given"], layers["meant"]))
    torch.testing.assert_close(*distances)
    assert distances[0] > 0


def test_a_layer_answers_for_itself_alone(chain):
    with outputs_of(matching_layers(chain, "blocks.*")) as outputs:
        logits = chain(FEATURES, LENGTHS)
    relative_error({"blocks.1": outputs["blocks.1"]}, {"blocks.1": torch.ones(2, 3, 5)}).backward()
    first, second = (block.conv.weight for block in chain.blocks)
    assert first.grad is None
    assert second.grad.abs().sum() > 0
    second.grad = None
    logits.sum().backward()
    assert chain.head.weight.grad.abs().sum() > 0
    assert second.grad is None


def test_nothing_is_left_in_the_network(chain):
    with outputs_of(matching_layers(chain, "*")) as outputs:
        pass
    logits = chain(FEATURES, LENGTHS)
    assert not outputs
    logits.sum().backward()
    assert all(block.conv.weight.grad is not None for block in chain.blocks)


def test_the_distance_is_the_mean_of_relative_squared_errors():
    given = {"a": torch.tensor([[1.0, 3.0]]), "b": torch.tensor([0.5])}
    meant = {"a": torch.tensor([[1.0, 1.0]]), "b": torch.tensor([1.0])}
    assert float(relative_error(given, meant)) == (4 / 2 + 0.25 / 1) / 2


def test_what_is_meant_to_be_silent_is_finite():
    silent = {"a": torch.zeros(2)}
    assert float(relative_error(silent, silent)) == 0


def test_divergence_is_the_loop_over_valid_frames():
    generator = torch.Generator().manual_seed(0)
    meant, heard = (torch.randn(2, 5, 4, generator=generator).log_softmax(-1) for _ in range(2))
    lengths = [3, 5]
    total = 0.0
    for row, length in enumerate(lengths):
        for frame in range(length):
            for label in range(4):
                p, q = float(meant[row, frame, label]), float(heard[row, frame, label])
                total += np.exp(p) * (p - q)
    assert float(
        divergence(meant, heard, torch.arange(meant.shape[1]) < torch.tensor(lengths)[:, None])
    ) == pytest.approx(total / 8, rel=1e-5)
