"""What a network in few bits learns from the float network that it was: its outputs, or its layers.

The divergence of the outputs is that of Hinton et al. 2015. Under it a CTC network, which places each label
in a single frame, gets words wrong while the divergence falls (docs/lab-log.md). So layers can learn instead:
each hears what the layers before it give, and answers for its own difference from the float one alone; no
gradient passes from one to the next. The objective is that of block reconstruction (BRECQ, Li et al. 2021),
for all blocks at once, so that the schedule of any method runs over the whole network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from subtone.models.quartznet import masked
from subtone.models.transducer import ENCODERS


def divergence(meant: Tensor, heard: Tensor, is_valid: Tensor) -> Tensor:
    """KL(meant || heard) of log-probabilities (..., V), the mean over those that `is_valid` (...) marks.

    >>> even, is_valid = torch.full((1, 3, 2), 0.5).log(), torch.tensor([[True, True, False]])
    >>> round(float(divergence(even, torch.tensor([0.25, 0.75]).log().expand(1, 3, 2), is_valid)), 4)
    0.1438
    """
    return (meant.exp() * (meant - heard)).sum(-1)[is_valid].mean()


def relative_error(given: Mapping[str, Tensor], meant: Mapping[str, Tensor]) -> Tensor:
    """The squared error of each output over the squares of the one that is meant, the mean over paths.

    >>> one, two = {"a": torch.tensor([1.0, 1.0])}, {"a": torch.tensor([2.0, 2.0])}
    >>> float(relative_error(one, two))
    0.25
    """
    errors = []
    for path, wanted in meant.items():
        size = wanted.float().square().sum().clamp_min(torch.finfo(torch.float32).tiny)
        errors.append((given[path].float() - wanted.float()).square().sum() / size)
    return torch.stack(errors).mean()


def matching_layers(network: nn.Module, pattern: str) -> dict[str, nn.Module]:
    """Path -> the outermost modules of `network` whose path matches the glob `pattern`, in their order.

    A mere container (ModuleList) is never called; what it holds is looked through instead. ValueError if
    nothing matches.

    >>> list(matching_layers(nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.ReLU()), "0*"))
    ['0']
    """
    found: dict[str, nn.Module] = {}
    for path, module in network.named_modules():
        is_called = type(module).forward is not nn.Module.forward
        is_inside = any(path.startswith(f"{outer}.") for outer in found)
        if path and is_called and not is_inside and fnmatchcase(path, pattern):
            found[path] = module
    if not found:
        held = ", ".join(path for path, _ in network.named_children())
        raise ValueError(
            f"distilled_layers={pattern!r} matches no module that is called; the network holds {held}: name "
            "some of them in the recipe's distilled_layers, or leave it out"
        )
    return found


@contextmanager
def outputs_of(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Within it, what each of `layers` gave last, by path.

    Of one that gives features and lengths (B,), the features within the lengths: what lies in the padding is
    nobody's. An encoder gives (B, T, D), a block (B, C, T). Of an LSTM, which knows no lengths, all. What
    comes behind a layer sees its values without a gradient.
    """
    outputs: dict[str, Tensor] = {}
    handles = [layer.register_forward_hook(partial(_cut, outputs, path)) for path, layer in layers.items()]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _cut(outputs: dict[str, Tensor], path: str, layer: nn.Module, inputs: Any, output: Any) -> Any:
    if isinstance(output, Tensor):
        outputs[path] = output
        return output.detach()
    features, lengths = output
    if isinstance(lengths, Tensor):
        frames_first = type(layer) in [encoder for _, encoder in ENCODERS.values()]
        channels = features.transpose(1, 2) if frames_first else features
        outputs[path] = masked(channels, lengths)
    else:  # no lengths, or the states of an LSTM
        outputs[path] = features
    return features.detach(), lengths
