"""Layers whose weight is packed: they take the place of nn.Linear and of a pointwise nn.Conv1d, to infer, not to train.

Each holds its weight once, in the layout of the kernels. What a state_dict holds is the portable form of
docs/file-format.md, made when it is asked for: codes of `bits/8` bytes, scales, a codebook. A pickled layer packs
itself anew where it is loaded; a copied one shares the packed weight, which nothing changes.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from subtone.pack.bits import pack_codes, unpack_codes
from subtone.qtensor import QTensor
from subtone.runtime.product import PackedProduct
from subtone.torch.operator import registered

PARTS = ("codes", "scale", "zero_point", "numbers")
"""Tensors of every packed layer in a state_dict; `codebook`, `bias` and `clip` where it has them."""


class PackedLayer(nn.Module):
    """A product by a packed weight: `product`, behind a clip of its input where training learned one.

    * `weight_shape`: what the weight had in the layer before; `bits` of a weight.
    * `clip`: the magnitude at which x is clipped; None clips nothing.

    There is no parameter and no gradient.

    Args:
        weight: (N, K), or (N, K, 1); bias: (N,), float32, or None.
        activation_bits: 2 to 8, of a row of the input.
    """

    handle: Tensor

    def __init__(
        self,
        weight: QTensor,
        bias: NDArray[np.float32] | None = None,
        *,
        activation_bits: int = 8,
        clip: float | None = None,
    ) -> None:
        super().__init__()
        self.clip = clip
        self._hold(PackedProduct(weight, bias, activation_bits=activation_bits), weight)

    def _hold(self, product: PackedProduct, weight: QTensor) -> None:
        self.product, self.weight_shape, self.bits = product, weight.shape, weight.bits
        self.num_outputs, self.num_inputs = product.num_outputs, product.num_inputs
        self.register_buffer("handle", registered(product), persistent=False)

    @abc.abstractmethod
    def forward(self, x: Tensor) -> Tensor: ...

    @property
    def weight(self) -> Tensor:
        """The weight as floats, decoded anew: for code that looks at it, such as T5's, which asks for its dtype."""
        return torch.from_numpy(self.product.weight().dequantize().reshape(self.weight_shape))

    @property
    def bias(self) -> Tensor | None:
        bias = self.product.bias
        return None if bias is None else torch.from_numpy(np.array(bias))

    def _multiply(self, x: Tensor) -> Tensor:
        """x (..., K) -> (..., N)."""
        if self.clip is not None:
            x = x.clamp(-self.clip, self.clip)
        return torch.ops.subtone.linear.default(x, self.handle, self.num_outputs)

    def extra_repr(self) -> str:
        return (
            f"{self.num_inputs}, {self.num_outputs}, bits={self.bits}, "
            f"activation_bits={self.product.activation_bits}, bias={self.product.bias is not None}"
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.handle = registered(self.product)  # the number that was pickled is one of another process

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        weight, product = self.product.weight(), self.product
        numbers = np.array([weight.bits, weight.num_levels, product.activation_bits, *weight.shape])
        parts = {
            "codes": pack_codes(weight.codes, weight.bits),
            "scale": weight.scale,
            "zero_point": weight.zero_point,
            "numbers": numbers,
            "codebook": weight.codebook,
            "bias": product.bias,
            "clip": None if self.clip is None else np.float64(self.clip),
        }
        for name, part in parts.items():
            if part is not None:
                destination[prefix + name] = torch.from_numpy(np.array(part))

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Tensor],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        known = (*PARTS, "codebook", "bias", "clip")
        tensors = {name: state_dict[prefix + name] for name in known if prefix + name in state_dict}
        missing_keys += [prefix + name for name in PARTS if name not in tensors]
        unexpected_keys += [
            key for key in state_dict if key.startswith(prefix) and key.removeprefix(prefix) not in known
        ]
        if not tensors.keys() >= set(PARTS):
            return
        try:
            found = {name: _array_of(name, tensor) for name, tensor in tensors.items()}
            weight, activation_bits = _weight_of(found)
            if weight.shape != self.weight_shape:
                raise ValueError(f"shape={weight.shape} does not fit {self.weight_shape}, that of the layer")
            product = PackedProduct(weight, found.get("bias"), activation_bits=activation_bits)
        except ValueError as error:
            error_msgs.append(f"{prefix.removesuffix('.') or 'the layer'}: {error}")
            return
        self.clip = float(found["clip"]) if "clip" in found else None
        self._hold(product, weight)


class PackedLinear(PackedLayer):
    """In the place of an nn.Linear: x (..., K) -> (..., N)."""

    @property
    def in_features(self) -> int:
        return self.num_inputs

    @property
    def out_features(self) -> int:
        return self.num_outputs

    def forward(self, x: Tensor) -> Tensor:
        return self._multiply(x)


class PackedConv1d(PackedLayer):
    """In the place of a pointwise nn.Conv1d: x (B, K, T) or (K, T) -> (B, N, T) or (N, T), one scale a frame."""

    kernel_size = stride = dilation = (1,)
    padding = (0,)
    groups = 1

    @property
    def in_channels(self) -> int:
        return self.num_inputs

    @property
    def out_channels(self) -> int:
        return self.num_outputs

    def forward(self, x: Tensor) -> Tensor:
        return self._multiply(x.transpose(-2, -1)).transpose(-2, -1).contiguous()


def _array_of(name: str, tensor: Tensor) -> NDArray:
    if tensor.dtype == torch.bfloat16 or tensor.is_meta:
        raise ValueError(
            f"{name} is {tensor.dtype} on {tensor.device}, not as it was saved; save the model again"
        )
    return tensor.detach().cpu().numpy()


def _weight_of(parts: Mapping[str, NDArray]) -> tuple[QTensor, int]:
    """The weight that a state_dict holds, and the bits of its activations; ValueError where it is none."""
    numbers = parts["numbers"]
    if numbers.ndim != 1 or not 5 <= numbers.size <= 6 or not 1 <= numbers[0] <= 8 or np.any(numbers < 1):
        raise ValueError(
            f"numbers={numbers.tolist()} are not bits, levels, activation bits and a shape; save the model again"
        )
    bits, num_levels, activation_bits, *shape = map(int, numbers)
    codes = unpack_codes(parts["codes"], bits, int(np.prod(shape))).reshape(shape[0], -1)
    weight = QTensor(
        codes=codes,
        shape=tuple(shape),
        bits=bits,
        num_levels=num_levels,
        codebook=parts.get("codebook"),
        scale=parts["scale"],
        zero_point=parts["zero_point"],
    )
    return weight, activation_bits
