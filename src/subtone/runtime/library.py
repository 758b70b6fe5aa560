"""The native library as Python sees it: where it lies, its functions, its errors.

native/subtone.h is the contract; the structure and the signatures here repeat it, and
`SUBTONE_ABI` of both must agree, so that a library left over from an older build is refused.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import subtone
from subtone.program import Add, Affine, Clip, Constant, Conv1d, Op, Relu, inputs_of, vector_of
from subtone.qtensor import QTensor

ABI = 2
FILE_NAME = "libsubtone.dylib" if sys.platform == "darwin" else "libsubtone.so"
MAX_THREADS = 256
OUT_OF_MEMORY = 6
KIND_CODES: dict[type, int] = {Conv1d: 0, Affine: 1, Add: 2, Relu: 3, Clip: 4}

_Status = ctypes.c_int32
_Handle = ctypes.c_void_p
_Address = ctypes.c_void_p


class OpRecord(ctypes.Structure):
    """`subtone_op` of native/subtone.h."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("kind", "relu", "input", "other", "output", "activation_bits")),
        *(
            (name, ctypes.c_int64)
            for name in ("kernel", "stride", "dilation", "padding", "groups", "scale_groups")
        ),
        *((name, ctypes.c_float) for name in ("low", "high")),
        *((name, _Address) for name in ("weight", "codes", "levels", "scale", "zero_point", "gain", "bias")),
    )


_SIGNATURES: dict[str, tuple[type | None, tuple[type, ...]]] = {
    "subtone_abi": (ctypes.c_int32, ()),
    "subtone_status_text": (ctypes.c_char_p, (_Status,)),
    "subtone_isas": (ctypes.c_int32, (ctypes.POINTER(ctypes.c_char_p), ctypes.c_int32)),
    "subtone_create": (
        _Status,
        (
            ctypes.c_char_p,
            ctypes.c_int32,
            _Address,
            ctypes.c_int32,
            ctypes.c_int32,
            ctypes.c_int32,
            ctypes.POINTER(_Handle),
        ),
    ),
    "subtone_append": (_Status, (_Handle, ctypes.POINTER(OpRecord))),
    "subtone_reserve": (_Status, (_Handle, ctypes.c_int64)),
    "subtone_run": (_Status, (_Handle, _Address, _Address, _Address, _Address)),
    "subtone_destroy": (None, (_Handle,)),
}


def find_library() -> Path | None:
    """Where the built library lies: what SUBTONE_LIBRARY names, else in a folder of the package.

    An editable install keeps it beside the package's metadata, not in src/: that folder is part
    of `subtone.__path__` too. None where it was never built.
    """
    if named := os.environ.get("SUBTONE_LIBRARY"):
        if not Path(named).is_file():
            raise ValueError(f"SUBTONE_LIBRARY={named} is not a file; name a built {FILE_NAME}, or unset it")
        return Path(named)
    candidates = (Path(folder) / FILE_NAME for folder in subtone.__path__)
    return next((path for path in candidates if path.is_file()), None)


@functools.cache
def load_library(path: Path) -> ctypes.CDLL:
    """The library with its functions typed.

    OSError where the file cannot be loaded (it is broken), ValueError where it is another library
    or another version of ours.
    """
    remedy = f"build {FILE_NAME} again (pip install subtone does), and unset SUBTONE_LIBRARY if it is set"
    try:
        library = ctypes.CDLL(str(path.absolute()))  # a bare name would be sought elsewhere
    except OSError as error:
        raise OSError(f"{error}; {remedy}") from error
    if not hasattr(library, "subtone_abi"):
        raise ValueError(f"{path} is a library, but not subtone's; {remedy}")
    if (found := library.subtone_abi()) != ABI:
        raise ValueError(f"{path} has ABI {found}, this package needs {ABI}; {remedy}")
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def isas_of(library: ctypes.CDLL) -> tuple[str, ...]:
    """Instruction sets for which this machine and the library both have kernels, best first."""
    count = library.subtone_isas(None, 0)
    names = (ctypes.c_char_p * count)()
    library.subtone_isas(names, count)
    return tuple(name.decode() for name in names if name)


def require_ok(library: ctypes.CDLL, status: int, doing: str) -> None:
    """Raise what `status` says: MemoryError, or RuntimeError with the library's own words."""
    if status:
        text = f"{doing}: {library.subtone_status_text(status).decode()} (status {status})"
        raise MemoryError(text) if status == OUT_OF_MEMORY else RuntimeError(text)


def address_of(array: NDArray) -> int:
    """Address of the first byte of a C-contiguous array, which must outlive the call."""
    assert array.flags.c_contiguous
    return array.ctypes.data


def op_record(
    op: Op, value_index: Mapping[str, int], constants: Mapping[str, Constant]
) -> tuple[OpRecord, list[NDArray]]:
    """`op` for `subtone_append`, and the arrays it points into, to be held until that returns.

    A packed weight goes over as its codes and a table of 256 levels, so that no int8 copy of it
    is ever made in Python; a weight for float products is decoded here.
    """
    inputs = inputs_of(op)
    record = OpRecord(
        kind=KIND_CODES[type(op)],
        relu=getattr(op, "relu", False),
        input=value_index[inputs[0]],
        other=value_index[inputs[-1]],
        output=value_index[op.output],
    )
    if isinstance(op, Clip):
        record.low, record.high = op.low, op.high
    arrays: dict[str, NDArray] = {}
    for role in ("gain", "bias"):
        if name := getattr(op, role, ""):
            arrays[role] = _floats(vector_of(constants, name))
    if isinstance(op, Conv1d):
        for field in ("kernel", "stride", "dilation", "padding", "groups", "activation_bits"):
            setattr(record, field, getattr(op, field))
        weight = constants[op.weight]
        if op.activation_bits:
            assert isinstance(weight, QTensor)  # Program.shapes has checked it
            arrays |= _integer_weight(weight)
            record.scale_groups = arrays["scale"].shape[1]
        else:
            arrays["weight"] = _floats(weight.dequantize() if isinstance(weight, QTensor) else weight)
    for role, array in arrays.items():
        setattr(record, role, address_of(array))
    return record, list(arrays.values())


def _integer_weight(weight: QTensor) -> dict[str, NDArray]:
    """Codes, the level of each code, and scale and zero_point with a row for every output."""
    levels = np.zeros(256, np.int8)
    if weight.codebook is not None:
        levels[: weight.codebook.size] = weight.codebook
    else:
        levels[: 2**weight.bits] = np.arange(2**weight.bits) - weight.code_offset
    shape = (weight.num_rows, weight.scale.shape[1])
    return {
        "codes": np.require(weight.codes, np.uint8, ["C", "A"]),
        "levels": levels,
        "scale": _floats(np.broadcast_to(weight.scale, shape)),
        "zero_point": _floats(np.broadcast_to(weight.level_zero_point(), shape)),
    }


def _floats(array: NDArray) -> NDArray[np.float32]:
    return np.require(array, np.float32, ["C", "A"])
