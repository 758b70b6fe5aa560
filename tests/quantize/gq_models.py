"""What the tests of the General Quantizer share: short recipes, kernels of known spread, a zoo of layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from subtone.quantize import Recipe, method_of
from subtone.quantize.gq import GQ


def gq(*rules: str, **options) -> GQ:
    """A method with a schedule of 8 steps, one invocation each, unless `options` say otherwise."""
    options = {"end_step": 8, "every_steps": 1} | options
    table = "".join(f"{name} = {value!r}\n" for name, value in options.items())
    text = f'name = "r"\nmethod = "gq"\n[options]\n{table}'
    found = method_of(Recipe.from_toml(text + "".join(f"[[rules]]\ngrid = 'codebook'\n{r}\n" for r in rules)))
    assert isinstance(found, GQ)
    return found


def kernel(rows: int = 64, columns: int = 64, deviation: float = 0.05, seed: int = 0) -> nn.Linear:
    layer = nn.Linear(columns, rows, bias=False)
    with torch.no_grad():
        layer.weight.normal_(0, deviation, generator=torch.Generator().manual_seed(seed))
    return layer


def invoke(method: GQ, model: nn.Module, steps: range | None = None) -> None:
    """A whole schedule in which nothing is learnt, or those of `steps`."""
    if not method.weights:
        method.attach(model)
    for step in steps or range(method.options.end_step + 1):
        method.after_step(step)


def freeze_unfinished(method: GQ, model: nn.Module):
    with pytest.warns(UserWarning, match="annealing is unfinished"):
        return method.freeze(model)


class Zoo(nn.Module):
    """One of every kind of weight, an attention's projections, and two layers that share theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.conv = nn.Conv1d(8, 6, 3, padding=1)
        self.depthwise = nn.Conv1d(6, 6, 5, groups=6)
        self.image = nn.Conv2d(1, 4, 3)
        self.lstm = nn.LSTM(6, 8)
        self.attention = nn.MultiheadAttention(8, 2)
        self.out = nn.Linear(8, 12)
        self.out.weight = self.embed.weight


def zoo(seed: int = 0) -> Zoo:
    torch.manual_seed(seed)
    return Zoo()
