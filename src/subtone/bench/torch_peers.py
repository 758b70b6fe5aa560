"""PyTorch and torchao as peers: a linear layer for each product, called in turn."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from subtone.bench.products import Granularity, Product

Made = tuple[Callable[[], Any], Callable[[], list[NDArray[np.float32]]]]
"""One call, and the results of one."""


def float32(products: Sequence[Product], form: str, threads: int) -> Made:
    return _called([_linear(each, 8) for each in products], products, threads)


def dynamic_int8(products: Sequence[Product], form: str, threads: int) -> Made:
    """`quantize_dynamic`, by the engine that `form` names."""
    return _called([_dynamic(nn.Sequential(_linear(each, 8)), form) for each in products], products, threads)


def dynamic_lstm(products: Sequence[Product], form: str, threads: int) -> Made:
    """The same of LSTM layers: `products` are, in turn, of the input and of the hidden state."""
    layers, pairs = [], list(zip(products[::2], products[1::2], strict=True))
    for of_input, of_hidden in pairs:
        lstm = nn.LSTM(of_input.inputs, of_hidden.inputs)
        for name in ("bias_ih_l0", "bias_hh_l0"):
            nn.init.zeros_(lstm.get_parameter(name))
        lstm.weight_ih_l0 = _linear(of_input, 8).weight
        lstm.weight_hh_l0 = _linear(of_hidden, 8).weight
        dynamic = _dynamic(nn.Sequential(lstm), form)[0]
        layers.append(lambda x, dynamic=dynamic: dynamic(x[:, None])[0][:, 0])
    return _called(layers, [of_input for of_input, _ in pairs], threads)


def _dynamic(layer: nn.Sequential, engine: str) -> Any:
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = engine
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch announces that this function will move
            kinds = {nn.Linear, nn.LSTM}
            return torch.ao.quantization.quantize_dynamic(layer, kinds, dtype=torch.qint8)
    finally:
        torch.backends.quantized.engine = before


def torchao_int8(products: Sequence[Product], form: str, threads: int) -> Made:
    """Weights a channel, activations a frame; uncompiled it multiplies about a hundred times slower."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        layers: list[Any] = [nn.Sequential(_linear(each, 8)) for each in products]
        for layer in layers:
            quantize_(layer, Int8DynamicActivationInt8WeightConfig())
        return _called([torch.compile(layer) for layer in layers], products, threads)


def torchao_int4(products: Sequence[Product], form: str, threads: int) -> Made:
    """Weights a group of `form` inputs, activations bfloat16: its kernel for processors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchao.prototype.quantization.int4.inference_workflow import PrototypeInt4WeightOnlyConfig
        from torchao.quantization import quantize_

        layers = [nn.Sequential(_linear(each, 4).to(torch.bfloat16)) for each in products]
        for layer in layers:
            quantize_(layer, PrototypeInt4WeightOnlyConfig(group_size=int(form)))
    return _called(layers, products, threads, dtype=torch.bfloat16)


def _linear(product: Product, bits: int) -> nn.Linear:
    weight = product.weight(bits, Granularity("channel")).dequantize()
    with torch.device("meta"):
        layer = nn.Linear(product.inputs, product.outputs, bias=False)
    layer.weight = nn.Parameter(torch.from_numpy(weight), requires_grad=False)
    return layer


def _called(
    layers: Sequence[Any], products: Sequence[Product], threads: int, dtype: torch.dtype = torch.float32
) -> Made:
    inputs = [torch.from_numpy(each.x).to(dtype) for each in products]
    pairs = list(zip(layers, inputs, strict=True))
    torch.set_num_threads(threads)

    @torch.inference_mode()
    def run() -> Any:
        for layer, x in pairs:
            layer(x)

    @torch.inference_mode()
    def results() -> list[NDArray[np.float32]]:
        return [layer(x).float().numpy() for layer, x in pairs]

    return run, results
