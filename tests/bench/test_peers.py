"""Peers multiply what we multiply, or are left out with a reason; the command names those that are not installed."""

from __future__ import annotations

import dataclasses
import importlib.util

import numpy as np
import pytest

from subtone.bench import peers
from subtone.bench.peers import LSTM_PEERS, PEERS, Peer, chosen_peers, peer_candidate, versions
from subtone.bench.products import Product
from subtone.bench.workloads import Products, Recurrences

COMPILED = ("torchao int8",)  # half a minute of another compiler's work
PRODUCTS = Products("chain", (Product(64, 256, 3), Product(48, 384, 3, 1)))
LAYERS = Recurrences("lstm", (Product(64, 32, 1), Product(64, 16, 1, 1)))


@pytest.mark.parametrize("peer", [*PEERS, *LSTM_PEERS], ids=lambda peer: peer.name)
def test_an_installed_peer_multiplies_our_weights(peer: Peer) -> None:
    if not peer.is_installed:
        pytest.skip(f"{' and '.join(peer.modules)} not installed")
    if peer.name in COMPILED:
        pytest.skip(f"{peer.name} compiles for half a minute")
    workload = LAYERS if peer in LSTM_PEERS else PRODUCTS
    found = peer_candidate(peer, workload, threads=1)
    assert found.candidate is not None, found.refused
    assert (found.candidate.name, found.candidate.bits) == (peer.name, peer.bits)
    assert found.candidate.form in peer.forms
    assert found.candidate.overhead_s > 0
    assert [result.shape for result in found.candidate.results()] == [
        result.shape for result in workload.expected(8)
    ]


def test_every_form_of_onnx_runtime_gives_what_it_should() -> None:
    pytest.importorskip("onnxruntime")
    for peer in PEERS:
        if peer.package == "onnxruntime":
            assert peer_candidate(peer, PRODUCTS, threads=1).refused == {}, peer.name


@pytest.mark.parametrize("is_shifted", [True, False])
def test_a_peer_that_multiplies_something_else_has_no_part(
    monkeypatch: pytest.MonkeyPatch, is_shifted: bool
) -> None:
    peer = next(peer for peer in PEERS if peer.name == "PyTorch float32")
    make = Peer.make

    def wrong(self: Peer, products: tuple[Product, ...], form: str, threads: int) -> peers.Made:
        run, results = make(self, products, form, threads)
        if is_shifted:
            return run, lambda: [np.roll(result, 1, axis=1) for result in results()]
        raise RuntimeError("no kernel for this shape")

    peers._overhead_s(peer, "", PRODUCTS.without_work())  # of the sound one
    monkeypatch.setattr(Peer, "make", wrong)
    found = peer_candidate(peer, PRODUCTS, threads=1)
    assert found.candidate is None
    complaint = "errs by" if is_shifted else "RuntimeError: no kernel for this shape"
    assert found.refused[""].startswith(complaint)


def test_peers_are_all_that_are_installed_none_or_those_of_packages() -> None:
    assert chosen_peers("none") == []
    assert {peer.package for peer in chosen_peers("torch, onnxruntime")} == {"torch", "onnxruntime"}
    assert chosen_peers("all") == [peer for peer in (*PEERS, *LSTM_PEERS) if peer.is_installed]
    assert versions(chosen_peers("onnxruntime")).keys() == {"onnx", "onnxruntime"}


@pytest.mark.parametrize("text", ["ggml", "torch,ggml", "", "onnx runtime"])
def test_an_unknown_peer_is_told_which_there_are(text: str) -> None:
    with pytest.raises(
        ValueError, match=r"peers=.* is not known; use all, none or some of torch, onnxruntime"
    ):
        chosen_peers(text)


def test_a_peer_that_is_not_installed_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else find(name))
    with pytest.raises(
        ValueError, match=r"peers=openvino needs openvino, which is not installed; pip install"
    ):
        chosen_peers("torch,openvino")
    assert "openvino" not in {peer.package for peer in chosen_peers("all")}


def test_no_two_peers_have_one_name() -> None:
    for group in (PEERS, LSTM_PEERS):
        assert len({peer.name for peer in group}) == len(group)
        assert all(dataclasses.is_dataclass(peer) and peer.bits in peers.LARGEST_ERROR for peer in group)
