"""OpenVINO as a peer: all products in one model, weights compressed to 8 or 4 bits as its own tools do it.

A form is "weights a scale / activations a scale": inputs that share a scale of the weights (0: all of a row), and of
the activations, which its dynamic quantization rounds to int8 where groups of theirs fit into those of the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subtone.bench.products import Product

Made = tuple[Callable[[], Any], Callable[[], list[NDArray[np.float32]]]]


def compressed(bits: int) -> Callable[[Sequence[Product], str, int], Made]:
    """A maker of weights of 8 or 4 `bits`; where groups of `form` do not divide the inputs, one scale a row."""

    def make(products: Sequence[Product], form: str, threads: int) -> Made:
        import openvino  # in here, so that tests of this package's examples need none
        from openvino import opset13

        group, of_activations = form.split("/")
        inputs = [opset13.parameter([each.frames, each.inputs], np.float32) for each in products]
        held: list[NDArray[Any]] = []  # what tensors of 4 bits point into
        outputs = [
            opset13.matmul(x, _weight(each, bits, int(group), held), False, True)
            for x, each in zip(inputs, products, strict=True)
        ]
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": of_activations,
        }
        compiled = openvino.Core().compile_model(openvino.Model(outputs, inputs), "CPU", settings)
        request = compiled.create_infer_request()
        for index, each in enumerate(products):
            request.set_input_tensor(index, openvino.Tensor(each.x, shared_memory=False))

        def run(_held: object = held) -> None:
            request.infer()

        def results() -> list[NDArray[np.float32]]:
            run()
            return [request.get_output_tensor(index).data.copy() for index in range(len(products))]

        return run, results

    return make


def _weight(product: Product, bits: int, group: int, held: list[NDArray[Any]]) -> Any:
    from openvino import opset13

    is_grouped = bool(group) and product.inputs % group == 0
    groups = product.inputs // group if is_grouped else 1
    shape = [product.outputs, groups, group] if is_grouped else [product.outputs, product.inputs]
    of_scale = [product.outputs, groups, 1] if is_grouped else [product.outputs, 1]
    scale = np.repeat(product.scale_of(bits), groups, axis=1).reshape(of_scale)
    codes = _unsigned(product.codes_of(bits), shape, bits, held)
    zero = _unsigned(np.full(of_scale, 2 ** (bits - 1), np.uint8), of_scale, bits, held)
    levels = opset13.subtract(opset13.convert(codes, np.float32), opset13.convert(zero, np.float32))
    weight = opset13.multiply(levels, opset13.constant(scale))
    if is_grouped:
        weight = opset13.reshape(weight, opset13.constant(np.array([product.outputs, product.inputs])), False)
    return weight


def _unsigned(codes: NDArray[np.uint8], shape: Sequence[int], bits: int, held: list[NDArray[Any]]) -> Any:
    """A constant of u8, or of u4 with the first of two codes lowest."""
    import openvino
    from openvino import opset13

    if bits == 8:
        return opset13.constant(codes.reshape(shape))
    flat = np.append(codes, np.zeros(codes.size % 2, np.uint8))
    held.append(flat[0::2] | flat[1::2] << np.uint8(4))
    return opset13.constant(openvino.Tensor(held[-1], openvino.Shape(list(shape)), openvino.Type.u4))
