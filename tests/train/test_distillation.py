"""What is learnt from the float network: which layers, what they give, and how far two networks are apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from subtone.train.distillation import divergence, layers_of, outputs_of, relative_error


class Pair(nn.Module):
    """Two outputs, as our blocks have; the second is no tensor to learn from."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, features: Tensor) -> tuple[Tensor, int]:
        return self.linear(features), 7


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Pair(), Pair()])
        self.head = nn.Linear(3, 2)

    def forward(self, features: Tensor) -> Tensor:
        for block in self.blocks:
            features, seven = block(features)
            assert seven == 7
        return self.head(features)


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
        ("*linear", ["blocks.0.linear", "blocks.1.linear"]),
    ],
)
def test_layers_are_the_outermost_modules_that_are_called(chain, pattern, paths):
    assert list(layers_of(chain, pattern)) == paths


def test_a_pattern_that_matches_nothing_is_told_what_there_is(chain):
    with pytest.raises(
        ValueError,
        match=r"^distilled_layers='block\*x' matches no module that is called; the network holds blocks, head$",
    ):
        layers_of(chain, "block*x")


def test_outputs_are_those_of_the_forward_pass(chain):
    features = torch.randn(4, 3)
    expected = chain(features)
    with outputs_of(layers_of(chain, "*")) as outputs:
        given = chain(features)
    assert torch.equal(given, expected)
    assert torch.equal(outputs["head"], expected)
    assert torch.equal(outputs["blocks.0"], chain.blocks[0](features)[0])


def test_a_layer_answers_for_itself_alone(chain):
    with outputs_of(layers_of(chain, "blocks.*")) as outputs:
        logits = chain(torch.randn(4, 3))
    relative_error({"blocks.1": outputs["blocks.1"]}, {"blocks.1": torch.ones(4, 3)}).backward()
    first, second = (block.linear.weight for block in chain.blocks)
    assert first.grad is None
    assert second.grad.abs().sum() > 0
    second.grad = None
    logits.sum().backward()
    assert chain.head.weight.grad.abs().sum() > 0
    assert second.grad is None


def test_nothing_is_left_in_the_network(chain):
    with outputs_of(layers_of(chain, "*")) as outputs:
        pass
    chain(torch.randn(4, 3))
    assert not outputs


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
    assert float(divergence(meant, heard, torch.tensor(lengths))) == pytest.approx(total / 8, rel=1e-5)
