"""What each preset weighs and multiplies, beside the figures that the papers print.

Three counts of parameters. torch gives each gate of an `nn.LSTM` two biases where one would do; the
published Conformer-Transducers have one ("one bias a gate"). S8BQAT and GQ list weights only, no bias.

Megabytes (10**6 bytes) at `bits`, in the papers' accounting:

    chosen weights * bits / 8 + everything else * 4 bytes, one bias a gate, no scales

Chosen are in int4's and int2's networks the dense and pointwise weights of the encoders, elsewhere all
weights. int4 itself counts more simply (its later version, which int2 cites, as above): the whole encoder
at `bits`, the decoder at 8 (`encoder_megabytes`).

Bit operations (zero-shot, Table I): weight products of 10 s of sound, of the encoder where there is one,
times the bits of weights and of activations. Attention's products of activations are not counted, those
of its positions are. A Bifocal encoder is counted with its large cell at work throughout.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from subtone.models import CTC_MODELS, MODELS, Network, TransducerNetwork, build, preset
from subtone.models.bifocal import SwitchedLayer
from subtone.models.cascaded import Cascaded

BITS = (32, 8, 6, 5, 4, 2)
"""Of a weight, in the columns of `subtone models`."""
OPERATION_BITS = {"32x32": (32, 32), "8x8": (8, 8), "6x8": (6, 8)}
"""Of weights and activations, as in zero-shot's Table I."""
FRAMES_OF_10_S = 1001
"""Ten seconds, a frame every 10 ms, both ends counted."""
STACKED_FEATURES = {192: 3, 512: 3}
"""Width of a frame that the front end stacked -> 10 ms frames from one such to the next (S8BQAT; int4)."""

Counted = Literal["parameters", "one bias a gate", "weights"]
Chosen = Literal["all weights", "products of encoders"]
ENCODERS = ("encoder.", "encoder2.")
"""How parameters of an encoder begin, in a transducer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """What a paper prints of a preset, and in one line what of it ours is not.

    * `parameters`: in millions, as printed; `counted`: which of our counts that is.
    * `chosen`: the weights that its sizes quantize.
    * `megabytes`, `encoder_megabytes`: bits -> as printed, to be held against `Counts`' of that name.
    * `bit_operations`: key of OPERATION_BITS -> 10**12, as printed.
    """

    paper: str
    parameters: float | None = None
    counted: Counted = "parameters"
    chosen: Chosen = "all weights"
    megabytes: Mapping[int, float] = dataclasses.field(default_factory=dict)
    encoder_megabytes: Mapping[int, float] = dataclasses.field(default_factory=dict)
    bit_operations: Mapping[str, float] = dataclasses.field(default_factory=dict)
    note: str = ""


PUBLISHED: dict[str, Published] = {
    "quartznet5x5": Published(paper="QuartzNet", parameters=6.7),
    "quartznet10x5": Published(paper="QuartzNet", parameters=12.8),
    "quartznet15x5": Published(
        paper="zero-shot",
        parameters=18.9,
        megabytes={32: 73.81, 8: 18.45, 6: 13.84},
        bit_operations={"32x32": 9.48, "8x8": 0.61, "6x8": 0.46},
        note="printed MB: the network without its head, biases in few bits too, in KiB / 1000; printed operations: 8x8 and "
        "6x8 are those of 1008 frames, 32x32 contradicts them (16 x 0.61)",
    ),
    "jasper10x5": Published(
        paper="zero-shot",
        parameters=333,
        megabytes={32: 1208, 8: 302.0, 6: 226.5},
        bit_operations={"32x32": 171, "8x8": 10.7, "6x8": 8.00},
        note="the printed 1208 MB cannot be derived, the other sizes are 8 and 6 of its 32 bits",
    ),
    "conformer-ctc-l": Published(
        paper="zero-shot",
        megabytes={32: 494.8, 8: 123.7, 6: 92.78},
        bit_operations={"32x32": 44.0, "8x8": 2.75, "6x8": 2.06},
        note="the printed 494.8 MB cannot be derived, the other sizes are 8 and 6 of its 32 bits",
    ),
    "s8bqat-m1": Published(paper="S8BQAT", parameters=61.0, counted="weights"),
    "s8bqat-m3": Published(
        paper="S8BQAT",
        parameters=67.3,
        counted="weights",
        note="its Table 1's kernels add up to ours, its text says 67.3 M; M-II is the same network",
    ),
    "conformer-transducer-s": Published(
        paper="int2",
        parameters=10.3,
        counted="one bias a gate",
        chosen="products of encoders",
        megabytes={8: 16.4, 4: 12.2, 2: 10.1},
        encoder_megabytes={8: 10, 4: 6},
        note="a predictor of 320 units; the 640 that int4 prints give 47.9 MB in float32, not 41.5",
    ),
    "conformer-transducer-m": Published(
        paper="Gulati", parameters=30.7, counted="one bias a gate", chosen="products of encoders"
    ),
    "conformer-transducer-l": Published(
        paper="int2",
        parameters=118.8,
        counted="one bias a gate",
        chosen="products of encoders",
        megabytes={8: 138.1, 4: 81.9, 2: 53.8},
        encoder_megabytes={8: 118, 4: 61},
        note="int2's sizes lie 0.1 to 0.2 MB above ours",
    ),
    "conformer-transducer-gq": Published(
        paper="GQ",
        parameters=28,
        counted="weights",
        note="27.76 M listed, 28.40 M with the embedding, ours 131,072 more: from 256 to the joint's 512",
    ),
    "bifocal": Published(
        paper="GQ",
        note="the printed 30.07 MB at 8 bits does not fit the printed dimensions; compare ratios",
    ),
    "cascaded": Published(
        paper="int4",
        parameters=47 + 60 + 2 * 4.4,
        chosen="products of encoders",
        megabytes={32: 460},
        encoder_megabytes={8: 115, 4: 61},
        note="widths and vocabulary are not published: solved for the counts",
    ),
}
"""Preset -> what its paper prints; demo presets have no paper."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
    """Numbers of a network.

    * `parameters`: torch's; `second_biases` of LSTM gates among them.
    * `weights`: those with two axes or more.
    * `encoder`: parameters of the encoders; all where there is no predictor.
    * `chosen`: weights that the papers' sizes quantize.
    * `macs_10_s`: products of weights in 10 s of sound.
    """

    parameters: int
    second_biases: int
    weights: int
    encoder: int
    chosen: int
    macs_10_s: int

    @property
    def one_bias_a_gate(self) -> int:
        return self.parameters - self.second_biases

    def counted(self, what: Counted) -> int:
        return {
            "parameters": self.parameters,
            "one bias a gate": self.one_bias_a_gate,
            "weights": self.weights,
        }[what]

    def megabytes(self, bits: int) -> float:
        """The papers' accounting: chosen weights at `bits`, all else in float32, no scales."""
        return (self.chosen * bits / 8 + (self.one_bias_a_gate - self.chosen) * 4) / 1e6

    def encoder_megabytes(self, bits: int) -> float:
        """int4's: all of the encoders at `bits`, all else at 8."""
        return (self.encoder * bits / 8 + self.one_bias_a_gate - self.encoder) / 1e6

    def bit_operations(self, weight_bits: int, activation_bits: int) -> int:
        """Of 10 s of sound."""
        return self.macs_10_s * weight_bits * activation_bits


@functools.cache
def counts(name: str) -> Counts:
    """The counts of preset `name`; nothing of its size is allocated.

    >>> counts("s8bqat-m1").weights
    61019136
    """
    config = preset(name)
    with torch.device("meta"):
        network = build(config.to_json()).eval()
    published = PUBLISHED.get(name)
    parameters = dict(network.named_parameters())
    of_encoder = [path for path in parameters if name in CTC_MODELS or path.startswith(ENCODERS)]
    if published is not None and published.chosen == "products of encoders":
        # A 1x1 convolution is a linear layer in our Conformers.
        dense = {
            f"{path}.weight" for path, module in network.named_modules() if isinstance(module, nn.Linear)
        }
        chosen = [path for path in of_encoder if path in dense]
    else:
        chosen = [path for path, value in parameters.items() if value.dim() > 1]

    def total(paths: Iterable[str]) -> int:
        return sum(parameters[path].numel() for path in paths)

    return Counts(
        parameters=total(parameters),
        second_biases=total(path for path in parameters if ".bias_hh_" in path),
        weights=total(path for path, value in parameters.items() if value.dim() > 1),
        encoder=total(of_encoder),
        chosen=total(chosen),
        macs_10_s=_macs_of(network, _frames_of_10_s(config.num_features)),
    )


def _frames_of_10_s(num_features: int) -> int:
    return FRAMES_OF_10_S // STACKED_FEATURES.get(num_features, 1)


@torch.no_grad()
def _macs_of(network: Network | TransducerNetwork, frames: int) -> int:
    """Products of weights while the encoders, or all of a CTC network, hear `frames` frames."""
    with _counted(network) as macs, torch.device("meta"):
        features = torch.empty(1, network.config.num_features, frames)
        if not isinstance(network, TransducerNetwork):
            network(features)
        else:
            rows = network.encoder(features)[0]
            if isinstance(network, Cascaded):
                network.encoder2(rows.transpose(1, 2))
    return sum(macs)


@contextmanager
def _counted(network: nn.Module) -> Iterator[list[int]]:
    """While inside, every product by a weight adds to the list, and recurrences compute nothing else."""
    macs: list[int] = []

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Linear):
            macs.append(output.numel() * module.in_features)
        elif isinstance(module, (nn.Conv1d, nn.Conv2d)):
            macs.append(output.numel() * module.weight[0].numel())

    # Frame by frame on the meta device recurrences would take seconds, and give as many.
    def recurrent(of: nn.LSTM, rows: Tensor) -> Tensor:
        weights = sum(value.numel() for value in of.parameters() if value.dim() > 1)
        macs.append(rows.shape[0] * rows.shape[1] * weights)
        return rows.new_empty(*rows.shape[:2], of.hidden_size)

    def lstm(of: nn.LSTM, rows: Tensor) -> tuple[Tensor, None]:
        return recurrent(of, rows), None

    def switched(of: nn.LSTM, rows: Tensor, gate: Tensor) -> Tensor:
        return recurrent(of, rows)

    with ExitStack() as stack:
        for module in network.modules():
            if isinstance(module, nn.LSTM):
                stack.enter_context(_computed_by(module, functools.partial(lstm, module)))
            elif isinstance(module, SwitchedLayer):
                stack.enter_context(_computed_by(module, functools.partial(switched, module.large)))
            stack.callback(module.register_forward_hook(count).remove)
        yield macs


@contextmanager
def _computed_by(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """While inside, `forward` stands for the module's own."""
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        del vars(module)["forward"]


def describe_models(names: Iterable[str] = tuple(MODELS)) -> list[dict[str, Any]]:
    """One JSON object a preset of `names`: what it counts, and beside it what its paper prints."""
    return [_describe(name) for name in names]


def _describe(name: str) -> dict[str, Any]:
    of, published = counts(name), PUBLISHED.get(name)
    return {
        "model": name,
        "family": MODELS[name].to_json()["family"],
        "parameters": of.parameters,
        "parameters_one_bias_a_gate": of.one_bias_a_gate,
        "weights": of.weights,
        "quantized_weights": of.chosen,
        "megabytes": {str(bits): round(of.megabytes(bits), 3) for bits in BITS},
        "encoder_megabytes": {str(bits): round(of.encoder_megabytes(bits), 3) for bits in BITS},
        "bit_operations_10_s": {key: of.bit_operations(*bits) for key, bits in OPERATION_BITS.items()},
        "published": None if published is None else _plain(published),
    }


def _plain(published: Published) -> dict[str, Any]:
    """As JSON has it: keys are strings."""
    values = dataclasses.asdict(published)
    for name in ("megabytes", "encoder_megabytes"):
        values[name] = {str(bits): size for bits, size in values[name].items()}
    return values
