"""ONNX Runtime as a peer: all products in one graph, inputs and outputs bound once.

Its float graph; its dynamic int8, by its fused operator and by those of the standard, weights signed and unsigned, a
scale a channel; MatMulNBits of each width at every block size, activations rounded to int8 (accuracy_level 4).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from subtone.bench.products import Granularity, Product

Made = tuple[Callable[[], Any], Callable[[], list[NDArray[np.float32]]]]
Nodes = tuple[list[Any], dict[str, NDArray[Any]]]
"""Nodes from x to y, named by their index, and their constants."""
OPSET, IR_VERSION = 21, 10
MICROSOFT = "com.microsoft"
INT8_ACCURACY = 4


def float32(products: Sequence[Product], form: str, threads: int) -> Made:
    def nodes(product: Product, name: str) -> Nodes:
        weight = product.weight(8, Granularity("channel")).dequantize()
        return [helper.make_node("MatMul", [f"x{name}", f"w{name}"], [f"y{name}"])], {
            f"w{name}": np.ascontiguousarray(weight.T)
        }

    return _session(products, nodes, threads)


def dynamic_int8(products: Sequence[Product], form: str, threads: int) -> Made:
    """`form`: "fused" or "standard", and the type of the weights."""
    is_signed, is_fused = form.endswith("s8"), form.startswith("fused")

    def nodes(product: Product, name: str) -> Nodes:
        codes = product.codes.T
        levels = (codes.astype(np.int16) - 128).astype(np.int8) if is_signed else codes
        zero = np.full(product.outputs, 0 if is_signed else 128, levels.dtype)
        constants: dict[str, NDArray[Any]] = {
            f"w{name}": np.ascontiguousarray(levels),
            f"s{name}": product.scale[:, 0],
            f"z{name}": zero,
        }
        x, w, s, z, y = (f"{letter}{name}" for letter in "xwszy")
        if is_fused:
            node = helper.make_node("DynamicQuantizeMatMul", [x, w, s, z], [y], domain=MICROSOFT)
            return [node], constants
        q, of_x, zero_of_x, total, scale, real = (
            f"{what}{name}" for what in ("q", "of_x", "zero_of_x", "total", "scale", "real")
        )
        return [
            helper.make_node("DynamicQuantizeLinear", [x], [q, of_x, zero_of_x]),
            helper.make_node("MatMulInteger", [q, w, zero_of_x, z], [total]),
            helper.make_node("Cast", [total], [real], to=TensorProto.FLOAT),
            helper.make_node("Mul", [of_x, s], [scale]),
            helper.make_node("Mul", [real, scale], [y]),
        ], constants

    return _session(products, nodes, threads)


def few_bits(bits: int) -> Callable[[Sequence[Product], str, int], Made]:
    """A maker of MatMulNBits of `bits` 2, 4 or 8; its `form` is the block size."""

    def make(products: Sequence[Product], form: str, threads: int) -> Made:
        block = int(form)

        def nodes(product: Product, name: str) -> Nodes:
            blocks = -(-product.inputs // block)
            codes = np.zeros((product.outputs, blocks * block), np.uint8)
            codes[:, : product.inputs] = product.codes_of(bits)
            each = 8 // bits  # codes in a byte, the first lowest
            packed = np.zeros((product.outputs, blocks * block // each), np.uint8)
            for place in range(each):
                packed |= codes[:, place::each] << np.uint8(bits * place)
            constants: dict[str, NDArray[Any]] = {
                f"w{name}": packed.reshape(product.outputs, blocks, block // each),
                f"s{name}": np.repeat(product.scale_of(bits), blocks, axis=1),
            }
            node = helper.make_node(
                "MatMulNBits",
                [f"x{name}", f"w{name}", f"s{name}"],
                [f"y{name}"],
                domain=MICROSOFT,
                K=product.inputs,
                N=product.outputs,
                bits=bits,
                block_size=block,
                accuracy_level=INT8_ACCURACY,
            )
            return [node], constants

        return _session(products, nodes, threads)

    return make


def dynamic_lstm(products: Sequence[Product], form: str, threads: int) -> Made:
    """DynamicQuantizeLSTM, a scale a channel; `products` are, in turn, of the input and of the hidden state."""
    nodes: list[Any] = []
    constants: dict[str, NDArray[Any]] = {}
    inputs: dict[str, NDArray[np.float32]] = {}
    outputs: dict[str, tuple[int, ...]] = {}
    for index, (of_input, of_hidden) in enumerate(zip(products[::2], products[1::2], strict=True)):
        units, names = of_hidden.inputs, [""] * 12
        for place, letter, each in ((1, "w", of_input), (2, "r", of_hidden)):
            codes, scale = (_gates_in_order(array) for array in (each.codes, each.scale))
            levels = np.ascontiguousarray((codes.astype(np.int16) - 128).astype(np.int8).T[None])
            parts = {letter: levels, f"{letter}s": scale.T, f"{letter}z": np.zeros((1, 4 * units), np.int8)}
            constants |= {f"{name}{index}": array for name, array in parts.items()}
            names[place] = f"{letter}{index}"
            names[6 + 2 * place : 8 + 2 * place] = f"{letter}s{index}", f"{letter}z{index}"
        names[0] = f"x{index}"
        node = helper.make_node(
            "DynamicQuantizeLSTM", names, [f"y{index}"], domain=MICROSOFT, hidden_size=units
        )
        nodes.append(node)
        inputs[names[0]] = of_input.x[:, None]
        outputs[f"y{index}"] = (of_input.frames, 1, 1, units)
    run, results = bound_session(nodes, constants, inputs, outputs, threads)
    return run, lambda: [result[:, 0, 0] for result in results()]


def _gates_in_order(rows: NDArray[Any]) -> NDArray[Any]:
    """Rows of i, f, g, o as ONNX has them: i, o, f, g."""
    i, f, g, o = np.split(rows, 4)
    return np.concatenate([i, o, f, g])


def _session(products: Sequence[Product], nodes_of: Callable[[Product, str], Nodes], threads: int) -> Made:
    nodes: list[Any] = []
    constants: dict[str, NDArray[Any]] = {}
    for index, product in enumerate(products):
        of_product, its_constants = nodes_of(product, str(index))
        nodes += of_product
        constants |= its_constants
    inputs = {f"x{index}": each.x for index, each in enumerate(products)}
    outputs = {f"y{index}": (each.frames, each.outputs) for index, each in enumerate(products)}
    return bound_session(nodes, constants, inputs, outputs, threads)


def bound_session(
    nodes: Sequence[Any],
    constants: Mapping[str, NDArray[Any]],
    inputs: Mapping[str, NDArray[np.float32]],
    outputs: Mapping[str, tuple[int, ...]],
    threads: int,
) -> Made:
    """A session of one graph of `nodes`, all of whose inputs and outputs are float32 and bound once."""
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, x.shape) for name, x in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    binding = session.io_binding()
    for name, x in inputs.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(x))
    for name, shape in outputs.items():
        binding.bind_ortvalue_output(
            name, onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, "cpu")
        )

    def run() -> None:
        session.run_with_iobinding(binding)

    def results() -> list[NDArray[np.float32]]:
        run()
        return [np.array(result) for result in binding.copy_outputs_to_cpu()]

    return run, results
