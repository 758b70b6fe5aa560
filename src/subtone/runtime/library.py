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
from subtone.program import (
    FUNCTIONS,
    SAME,
    Add,
    Affine,
    Attention,
    Bounds,
    ChannelNorm,
    Clip,
    Columns,
    Concat,
    Constant,
    Constants,
    Conv1d,
    Conv2d,
    Embedding,
    Function,
    Glu,
    IntegerAdd,
    IntegerAffine,
    IntegerAttention,
    IntegerConv1d,
    IntegerConv2d,
    IntegerEmbedding,
    IntegerFunction,
    IntegerGlu,
    IntegerLayerNorm,
    IntegerLstm,
    IntegerMultiply,
    IntegerOperation,
    IntegerProduct,
    IntegerSinusoids,
    IntegerWeight,
    LayerNorm,
    Lstm,
    Multiply,
    OfLevels,
    Op,
    Relu,
    Rescale,
    Scale,
    Sinusoids,
    Stack,
    SwitchedLstm,
    integers_of,
    vector_of,
)
from subtone.qtensor import QTensor
from subtone.runtime.sequence_ops import rotation

ABI = 7
FILE_NAME = "libsubtone.dylib" if sys.platform == "darwin" else "libsubtone.so"
MAX_THREADS = 256
OUT_OF_MEMORY = 6
_KINDS: tuple[type, ...] = (
    *(Conv1d, Affine, Add, Relu, Clip, Conv2d, Stack, Multiply, Scale, Function, Glu, LayerNorm, Concat),
    *(Columns, Embedding, Attention, ChannelNorm, Lstm, SwitchedLstm, Sinusoids),
    *(IntegerConv1d, IntegerConv2d, IntegerAdd, IntegerMultiply, Rescale, IntegerAffine, IntegerFunction),
    *(IntegerGlu, IntegerLayerNorm, IntegerEmbedding, IntegerAttention, IntegerSinusoids, IntegerLstm),
)
KIND_CODES: dict[type, int] = {kind: code for code, kind in enumerate(_KINDS)}

_Status = ctypes.c_int32
_Handle = ctypes.c_void_p
_Address = ctypes.c_void_p


class WeightRecord(ctypes.Structure):
    """`subtone_weight` of native/subtone.h."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("activation_bits", "reserved")),
        *((name, ctypes.c_int64) for name in ("rows", "columns", "scale_groups")),
        *((name, _Address) for name in ("floats", "codes", "levels", "scale", "zero_point")),
    )


INTEGER_NUMBER_FIELDS = ("fraction_bits", "content_multiplier", "position_multiplier", "score_shift")
INTEGER_POINTER_FIELDS = (
    *("multiplier", "correction", "offset", "shifts"),
    *("content_bias", "position_bias", "positions", "rotation"),
)


class IntegersRecord(ctypes.Structure):
    """`subtone_integers` of native/subtone.h."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("low", "high", "left_multiplier", "right_multiplier", "shift")),
        *((name, ctypes.c_int32) for name in ("is_signed", *INTEGER_NUMBER_FIELDS)),
        *((name, ctypes.c_int64) for name in ("groups", "epsilon")),
        *((name, _Address) for name in INTEGER_POINTER_FIELDS),
    )


VALUE_FIELDS = ("input", "other", "third", "fourth")
SIZE_FIELDS = (
    *("kernel", "stride", "dilation", "padding", "padding_behind", "groups", "in_channels", "feature_kernel"),
    *("feature_stride", "feature_padding", "feature_padding_behind", "count", "first", "left", "right"),
    "position_rows",
)
POINTER_FIELDS = ("gain", "bias", "small_bias", "content_bias", "position_bias", "positions", "rotation")


class OpRecord(ctypes.Structure):
    """`subtone_op` of native/subtone.h."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("kind", "relu", *VALUE_FIELDS)),
        *((name, ctypes.c_int32) for name in ("output", "cell", "function", "heads")),
        *((name, ctypes.c_int64) for name in SIZE_FIELDS),
        *((name, ctypes.c_float) for name in ("low", "high")),
        *((name, WeightRecord) for name in ("weight", "small_weight")),
        *((name, _Address) for name in POINTER_FIELDS),
        ("integers", IntegersRecord),
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
    "subtone_run": (
        _Status,
        (_Handle, _Address, _Address, _Address, _Address, ctypes.c_int64, _Address, ctypes.c_int64),
    ),
    "subtone_destroy": (None, (_Handle,)),
    "subtone_product_create": (
        _Status,
        (ctypes.c_char_p, ctypes.POINTER(WeightRecord), _Address, ctypes.POINTER(_Handle)),
    ),
    "subtone_product_run": (_Status, (_Handle, _Address, ctypes.c_int64, ctypes.c_int32, _Address)),
    "subtone_product_team": (_Status, (_Address, _Address, _Address)),
    "subtone_product_levels": (_Status, (_Handle, _Address)),
    "subtone_product_bytes": (ctypes.c_int64, (_Handle,)),
    "subtone_product_destroy": (None, (_Handle,)),
    "subtone_measure_read": (
        _Status,
        (_Address, ctypes.c_int64, ctypes.c_int64, ctypes.POINTER(ctypes.c_uint64)),
    ),
    "subtone_measure_int8": (_Status, (ctypes.c_int64, ctypes.POINTER(ctypes.c_int64))),
    "subtone_compiler": (ctypes.c_char_p, ()),
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


def require_library() -> Path:
    """Where the built library lies; ValueError where it was never built."""
    if path := find_library():
        return path
    raise ValueError(f"no {FILE_NAME} was built with this package; install it with a C++ compiler present")


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
    op: Op, value_index: Mapping[str, int], constants: Constants, bounds: Mapping[str, Bounds]
) -> tuple[OpRecord, list[NDArray]]:
    """`op` for `subtone_append`, and the arrays it points into, to be held until that returns.

    `bounds` of the values of an integer-only program, which say whether the input of a product is int8 or uint8.
    A packed weight goes over as its codes and a table of 256 levels, so that no int8 copy of it is ever made in Python;
    one for float products as its codes, which are decoded where they are multiplied, but for that of a recurrence,
    which every step would decode.
    """
    record = OpRecord(kind=KIND_CODES[type(op)], relu=getattr(op, "relu", False), cell=-1)
    arrays: dict[str, NDArray] = {}
    for field in VALUE_FIELDS:
        setattr(record, field, -1)
    for field, name in zip(VALUE_FIELDS, (getattr(op, value) for value in op.VALUES), strict=False):
        if name in value_index:
            setattr(record, field, value_index[name])
        elif name:  # a table, which only attention reads
            read = integers_of if isinstance(op, IntegerOperation) else _floats_of
            arrays["positions"] = np.require(read(constants, name), None, ["C", "A"])
            record.position_rows = len(arrays["positions"])
    for field in ("output", "cell"):
        if name := getattr(op, field, ""):
            setattr(record, field, value_index[name])
    for field in ("heads", *SIZE_FIELDS):
        if isinstance(size := getattr(op, field, None), int):  # `left` of a sum is a value
            setattr(record, field, size)
    for field in ("padding", "feature_padding"):
        if getattr(op, f"{field}_behind", None) == SAME:
            setattr(record, f"{field}_behind", getattr(op, field))
    _set_numbers(record, op)
    if isinstance(op, IntegerOperation):
        held = _set_integers(record.integers, op, constants, bounds, arrays)
        if isinstance(op, OfLevels):
            held += _set_weight(record.weight, constants[op.weight], 0)
        return record, held
    for field in ("gain", "bias", "small_bias", "content_bias", "position_bias"):
        if name := getattr(op, field, ""):
            arrays[field] = _floats(vector_of(constants, name))
    if isinstance(op, Sinusoids):
        arrays["rotation"] = np.ascontiguousarray(rotation(op.columns))
    held = list(arrays.values())
    for field, array in arrays.items():
        setattr(record, field, address_of(array))
    for field in ("weight", "small_weight"):
        if name := getattr(op, field, ""):
            prefix = field.removesuffix("weight")
            weight, bits = constants[name], _bits_of(op, prefix)
            if isinstance(op, Lstm | SwitchedLstm) and isinstance(weight, QTensor) and not bits:
                weight = weight.dequantize()
            held += _set_weight(getattr(record, field), weight, bits)
    return record, held


def product_record(weight: QTensor, activation_bits: int) -> tuple[WeightRecord, list[NDArray]]:
    """`weight` for `subtone_product_create`, and the arrays it points into, to be held until that returns."""
    record = WeightRecord()
    return record, _set_weight(record, weight, activation_bits)


def _bits_of(op: Op, prefix: str) -> int:
    return getattr(op, f"{prefix}activation_bits", 0)


def _set_numbers(record: OpRecord, op: Op) -> None:
    if isinstance(op, Clip):
        record.low, record.high = op.low, op.high
    elif isinstance(op, Scale):
        record.low = op.factor
    elif isinstance(op, LayerNorm | ChannelNorm):
        record.low = op.epsilon
    elif isinstance(op, Function):
        record.function = FUNCTIONS.index(op.function)


def _set_integers(
    record: IntegersRecord,
    op: IntegerOperation,
    constants: Constants,
    bounds: Mapping[str, Bounds],
    arrays: dict[str, NDArray],
) -> list[NDArray]:
    """Fills `record`; gives the arrays that it points into, `arrays` among them."""
    record.low, record.high = op.low, op.high
    for field in op.ROLES:
        if field != "weight" and (name := getattr(op, field)):
            array = integers_of(constants, name)
            arrays["shifts" if field == "shift" else field] = np.require(array, array.dtype, ["C", "A"])
    if isinstance(op, IntegerProduct):  # an LSTM's multiplies its hidden state, which is signed
        record.is_signed = isinstance(op, IntegerLstm) or bounds[getattr(op, op.VALUES[0])].low < 0
    if isinstance(op, OfLevels):
        record.groups = arrays["multiplier"].shape[1]
    if isinstance(op, IntegerAdd):
        record.left_multiplier, record.right_multiplier = op.left_multiplier, op.right_multiplier
    elif isinstance(op, IntegerMultiply | Rescale | IntegerFunction | IntegerGlu | IntegerAttention):
        record.left_multiplier = op.multiplier
    for field in ("shift", "epsilon", *INTEGER_NUMBER_FIELDS):
        if isinstance(number := getattr(op, field, None), int):  # `shift` of a product is a constant
            setattr(record, field, number)
    for field, array in arrays.items():
        setattr(record, field, address_of(array))
    return list(arrays.values())


def _set_weight(record: WeightRecord, weight: Constant, activation_bits: int) -> list[NDArray]:
    """Fills `record`; gives the arrays that it points into."""
    if isinstance(weight, IntegerWeight):
        parts = {"codes": np.require(weight.codes, np.uint8, ["C", "A"]), "levels": _table_of_levels(weight)}
        record.rows, record.columns = parts["codes"].shape
    elif isinstance(weight, QTensor):
        parts = _integer_weight(weight) if activation_bits else _coded_weight(weight)
        record.scale_groups = parts["scale"].shape[1]
        record.rows, record.columns = parts["codes"].shape
    else:
        parts = {"floats": _floats(weight)}
        record.rows = parts["floats"].shape[0]
        record.columns = parts["floats"].size // record.rows
    record.activation_bits = activation_bits
    for field, array in parts.items():
        setattr(record, field, address_of(array))
    return list(parts.values())


def _integer_weight(weight: QTensor) -> dict[str, NDArray]:
    """Codes, the level of each code, and scale and zero_point with a row for every output."""
    zero_point = weight.level_zero_point()
    return {"levels": _table_of_levels(weight), **_spread(weight, zero_point)}


def _coded_weight(weight: QTensor) -> dict[str, NDArray]:
    """The same of a weight that a float op decodes as `dequantize` does: without a codebook by its codes."""
    parts = _spread(weight, weight.zero_point)
    return parts if weight.codebook is None else {"levels": _table_of_levels(weight), **parts}


def _spread(weight: QTensor, zero_point: NDArray) -> dict[str, NDArray]:
    shape = (weight.num_rows, weight.scale.shape[1])
    return {
        "codes": np.require(weight.codes, np.uint8, ["C", "A"]),
        "scale": _floats(np.broadcast_to(weight.scale, shape)),
        "zero_point": _floats(np.broadcast_to(zero_point, shape)),
    }


def _table_of_levels(weight: QTensor | IntegerWeight) -> NDArray[np.int8]:
    """The level of each code, 0 of those that it has not."""
    levels = np.zeros(256, np.int8)
    if weight.codebook is not None:
        levels[: weight.codebook.size] = weight.codebook
    else:
        levels[: 2**weight.bits] = np.arange(2**weight.bits) - weight.code_offset
    return levels


def _floats_of(constants: Constants, name: str) -> NDArray[np.float32]:
    return _floats(vector_of(constants, name))


def _floats(array: NDArray) -> NDArray[np.float32]:
    return np.require(array, np.float32, ["C", "A"])
