"""PEERS: who else multiplies, by which packages, in how many bits, in which forms; the best form of each takes part.

A peer's results are checked before its times count: ours in the same bits, as far as int8 activations allow.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subtone.bench.products import Product
from subtone.bench.turns import Candidate, error_of, fastest, lingering_of, overhead_of
from subtone.bench.workloads import Workload

LARGEST_ERROR = {32: 1e-4, 8: 0.03, 4: 0.03, 2: 0.03}
"""Bits -> of a peer's result. Normal activations at 8 bits a frame err by about 4 sigma / 127 / sqrt(12) = 0.9 %, a peer that
rounds our 8-bit weights anew by as much again; a transposed or shifted weight errs by 100 % and more."""

LARGEST_LSTM_ERROR = 0.08
"""An error of 3 % of gates that are spread by 3.5 or 5 passes four steps of sigmoids and comes out about twice as large."""
FLOAT_BITS = 32
Made = tuple[Callable[[], Any], Callable[[], list[NDArray[np.float32]]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Peer:
    """Somebody who multiplies.

    * `package`: what `--peers` names; `modules` that it cannot do without.
    * `maker`: a module of ours and a function in it; with `of_bits` that function makes one for `bits`.
    * `forms`: its ways to multiply in as many bits; what each means stands with the maker.
    * `largest_error` where it is another than that of its bits.
    * `calls_each`: each product is a call of its own, not a node of one graph.
    """

    name: str
    package: str
    modules: tuple[str, ...]
    bits: int
    maker: tuple[str, str]
    forms: tuple[str, ...] = ("",)
    of_bits: bool = False
    calls_each: bool = False
    largest_error: float = 0.0

    @property
    def is_installed(self) -> bool:
        return all(importlib.util.find_spec(module) is not None for module in self.modules)

    def make(self, products: Sequence[Product], form: str, threads: int) -> Made:
        module, name = self.maker
        made = getattr(importlib.import_module(f"subtone.bench.{module}"), name)
        return (made(self.bits) if self.of_bits else made)(products, form, threads)


_TORCH, _ORT, _OV, _AO = ("torch",), ("onnxruntime", "onnx"), ("openvino",), ("torch", "torchao")
_INT8_FORMS = ("fused, s8", "fused, u8", "standard, s8", "standard, u8")
_BLOCKS = ("16", "32", "64", "128", "256")
_GROUPS = ("0/64", "0/128", "64/64", "128/128")
PEERS: tuple[Peer, ...] = (
    Peer(name="PyTorch float32", package="torch", modules=_TORCH, bits=FLOAT_BITS, maker=("torch_peers", "float32"), calls_each=True),
    Peer(name="PyTorch dynamic int8", package="torch", modules=_TORCH, bits=8, maker=("torch_peers", "dynamic_int8"),
         forms=("x86", "onednn", "fbgemm"), calls_each=True),
    Peer(name="ONNX Runtime float32", package="onnxruntime", modules=_ORT, bits=FLOAT_BITS, maker=("onnx_peers", "float32")),
    Peer(name="ONNX Runtime dynamic int8", package="onnxruntime", modules=_ORT, bits=8, maker=("onnx_peers", "dynamic_int8"),
         forms=_INT8_FORMS),
    *(Peer(name=f"ONNX Runtime MatMulNBits {bits}", package="onnxruntime", modules=_ORT, bits=bits,
           maker=("onnx_peers", "few_bits"), of_bits=True, forms=_BLOCKS) for bits in (8, 4, 2)),
    *(Peer(name=f"OpenVINO int{bits}", package="openvino", modules=_OV, bits=bits,
           maker=("openvino_peers", "compressed"), of_bits=True, forms=_GROUPS) for bits in (8, 4)),
    Peer(name="torchao int8", package="torchao", modules=_AO, bits=8, maker=("torch_peers", "torchao_int8"),
         calls_each=True),
    Peer(name="torchao int4", package="torchao", modules=_AO, bits=4, maker=("torch_peers", "torchao_int4"),
         forms=("128", "64", "32"), calls_each=True),
)  # fmt: skip
PACKAGES = tuple(dict.fromkeys(peer.package for peer in PEERS))


LSTM_PEERS: tuple[Peer, ...] = (
    Peer(name="PyTorch dynamic int8", package="torch", modules=_TORCH, bits=8, maker=("torch_peers", "dynamic_lstm"),
         forms=("x86", "onednn", "fbgemm"), calls_each=True, largest_error=LARGEST_LSTM_ERROR),
    Peer(name="ONNX Runtime DynamicQuantizeLSTM", package="onnxruntime", modules=_ORT, bits=8,
         maker=("onnx_peers", "dynamic_lstm"), largest_error=LARGEST_LSTM_ERROR),
)  # fmt: skip
"""Of `Recurrences`, whose products come in pairs."""


def chosen_peers(text: str) -> list[Peer]:
    """Those of "all" (every package that is installed), "none", or packages divided by commas; ValueError otherwise."""
    if text == "none":
        return []
    if text == "all":
        return [peer for peer in (*PEERS, *LSTM_PEERS) if peer.is_installed]
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in PACKAGES:
            raise ValueError(f"peers={name} is not known; use all, none or some of {', '.join(PACKAGES)}")
        missing = {
            module
            for peer in PEERS
            if peer.package == name
            for module in peer.modules
            if importlib.util.find_spec(module) is None
        }
        if missing:
            raise ValueError(
                f"peers={name} needs {' and '.join(sorted(missing))}, which is not installed; "
                f"pip install it (constraints.txt has the version), or leave it out"
            )
    return [peer for peer in (*PEERS, *LSTM_PEERS) if peer.package in names]


def versions(peers: Sequence[Peer]) -> dict[str, str]:
    """Of the packages that `peers` run in."""
    modules = sorted({module for peer in peers for module in peer.modules})
    return {module: importlib.metadata.version(module) for module in modules}


@dataclasses.dataclass(frozen=True)
class Found:
    """The fastest form of a peer, None where none gives what it should; `refused`: what others said, by form."""

    candidate: Candidate | None
    refused: dict[str, str]


def peer_candidate(peer: Peer, workload: Workload, *, threads: int) -> Found:
    """The fastest form of `peer` on `workload` that gives what it should."""
    checked = workload.checked()
    expected = _expected(checked, min(peer.bits, 8))
    sound: list[Candidate] = []
    refused: dict[str, str] = {}
    calls = workload.calls if peer.calls_each else 1
    for form in peer.forms:
        try:
            overhead_s = calls * _overhead_s(peer, form, workload.without_work())
            made = peer.make(checked.products, form, threads)
            error = max(error_of(*pair) for pair in zip(made[1](), expected, strict=True))
            if checked is not workload:
                made = peer.make(workload.products, form, threads)
        except Exception as complaint:  # each package has its own kinds; what it said goes into the document
            refused[form] = f"{type(complaint).__name__}: {complaint}"[:200]
            continue
        allowed = peer.largest_error or LARGEST_ERROR[peer.bits]
        if error > allowed:
            refused[form] = f"errs by {error:.2g}, more than {allowed}"
            continue
        run, results = made
        sound.append(
            Candidate(
                name=peer.name, form=form, bits=peer.bits, run=run, results=results, overhead_s=overhead_s
            )
        )
    use_threads(threads)
    if not sound:
        return Found(None, refused)
    best = fastest(sound)
    return Found(dataclasses.replace(best, lingers_s=lingering_of(best.run) if threads > 1 else 0.0), refused)


def use_threads(threads: int) -> None:
    """Those of torch, which counts them for the whole process; others count for each candidate."""
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(threads)


@functools.lru_cache(maxsize=3)  # a race's: of 8, 4 and 2 bits
def _expected(workload: Workload, bits: int) -> list[NDArray[np.float32]]:
    return workload.expected(bits)


@functools.cache
def _overhead_s(peer: Peer, form: str, workload: Workload) -> float:
    """Of a call with next to no work, on one thread."""
    run, results = peer.make(workload.products, form, 1)
    return overhead_of(Candidate(name=peer.name, form=form, bits=peer.bits, run=run, results=results))
