"""What is in a packed file, layer by layer: nothing is skipped in silence."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

from subtone.pack import ConstantSize, packed_sizes, read_packed
from subtone.program import KINDS, Op, constants_of


def describe(path: Path) -> dict[str, Any]:
    """The packed file at `path` as one document.

    "layers" are its weights, those of all its programs, in order; "float_weights" names those that were not
    quantized; "vectors" are biases and the like, floats, or multipliers and shifts of an integer-only file;
    "float_parts" all that computes in floating point or is a float: nothing, if "is_integer". Bytes are those
    of the file: codes, what decodes them, header and padding add up to "file_bytes".
    """
    model, sizes = read_packed(path), packed_sizes(path)
    ops = [op for program in model.programs for op in program.ops]
    uses = {
        name: _activations(op, role)
        for op in reversed(ops)
        for role, name in constants_of(op).items()
        if role.endswith("weight")
    }  # of a weight that several operations share, how the first meets it
    weights = [name for program in model.programs for name in program.constants_read if name in uses]
    layers = [_layer(name, uses[name], sizes.constants[name]) for name in dict.fromkeys(weights)]
    vectors = {name: size for name, size in sizes.constants.items() if name not in weights}
    stored = {name: sizes.constants[name] for name in weights}
    float_parts = [part for program in model.programs for part in program.float_parts(model.constants)]
    by_bits: Counter[int] = Counter()
    for size in stored.values():
        by_bits[size.bits] += math.prod(size.shape)
    return {
        "file": str(path),
        "file_bytes": sizes.file_bytes,
        "header_bytes": sizes.header_bytes,
        "padding_bytes": sizes.padding_bytes,
        "section_bytes": sizes.sections,
        "weights": sum(by_bits.values()),
        "weights_by_bits": {str(bits): by_bits[bits] for bits in sorted(by_bits)},
        "operations": dict(Counter(KINDS[type(op)] for op in ops)),
        "layers": layers,
        "float_weights": sorted(name for name, size in stored.items() if size.is_float),
        "vectors": {"count": len(vectors), "bytes": sum(size.num_bytes for size in vectors.values())},
        "is_integer": not float_parts,
        "float_parts": float_parts,
        "recipe": model.recipe,
        "front_end": model.front_end,
        "provenance": model.provenance,
    }


def _activations(op: Op, role: str) -> str:
    """What the weight in `role` of `op` meets."""
    if op.ARITHMETIC == "integer":
        return "static"
    bits = getattr(op, f"{role.removesuffix('weight')}activation_bits", 0)
    return f"dynamic {bits} bits" if bits else "float"


def _layer(weight: str, activations: str, size: ConstantSize) -> dict[str, Any]:
    return {
        "weight": weight,
        "shape": list(size.shape),
        "bits": size.bits,
        "grid": size.grid or "float",
        "granularity": size.granularity,
        "distinct_levels": size.num_distinct,
        "activations": activations,
        "bytes": size.num_bytes,
    }
