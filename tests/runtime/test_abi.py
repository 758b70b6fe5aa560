"""What the C ABI answers to a caller who is wrong: a status, never a read or write outside the buffers."""

from __future__ import annotations

import contextlib
import ctypes
import math

import numpy as np
import pytest

from subtone.runtime import library as native
from subtone.runtime.engine import available_isas

NULL, SIZE, VALUE, PLAN, ISA, RANGE = 1, 2, 3, 4, 5, 9  # subtone_status of native/subtone.h
KIND = {kind.__name__: code for kind, code in native.KIND_CODES.items()}
RELU = KIND["Relu"]
INTEGER = {"weight.activation_bits": 8}
PRODUCT = {"kind": KIND["IntegerConv1d"]}
ATTEND = {"kind": KIND["IntegerAttention"], "other": 0, "third": 0}
IMAGE = {"kind": KIND["IntegerConv2d"], "weight.columns": 1, "in_channels": 1, "weight.rows": 1}


class Caller:
    """The functions of the C ABI over values of width 4: 0 the input, 1 the output, the rest inside."""

    def __init__(self) -> None:
        self.library = native.load_library(native.find_library())
        self.floats = np.ones(4096, np.float32)
        self.codes = np.zeros(4096, np.uint8)
        self.ones = np.ones(4096, np.int64)
        self.shifts = np.array([1, 2, 61, 62], np.int32)
        self.hostile = np.random.default_rng(0).integers(-(2**63), 2**63, 4096)
        self.lowest = np.full(4096, -(2**63))
        self.many_shifts = np.tile(self.shifts, 1024)
        self.bad_shifts = np.array([1, 2, 3, 63], np.int32)

    def create(self, *, isa=b"scalar", threads=1, widths=(4, 4, 4), inputs=1, output=1):
        handle = ctypes.c_void_p()
        sizes = np.array(widths, np.int64)
        status = self.library.subtone_create(
            isa, threads, native.address_of(sizes), len(sizes), inputs, output, ctypes.byref(handle)
        )
        return status, handle

    @contextlib.contextmanager
    def engine(self, **settings):
        status, handle = self.create(**settings)
        assert status == 0
        yield handle
        self.library.subtone_destroy(handle)

    def append(self, handle, **fields) -> int:
        """A convolution 4 -> 4 by default; a dot names a field of a weight."""
        ones = dict.fromkeys(("kernel", "stride", "dilation", "groups", "in_channels", "count", "heads"), 1)
        ones |= dict.fromkeys(("feature_kernel", "feature_stride"), 1)
        floats = native.address_of(self.floats)
        pointers = dict.fromkeys(native.POINTER_FIELDS, floats)
        values = {"output": 1, "cell": -1, "other": -1, "third": -1, "fourth": -1, "low": 1.0}
        record = native.OpRecord(**{**ones, **pointers, **values, "left": -1, "right": -1})
        for weight in (record.weight, record.small_weight):
            weight.rows = weight.columns = 4
            weight.scale_groups = 1
            weight.floats = weight.scale = weight.zero_point = floats
            weight.codes = weight.levels = native.address_of(self.codes)
        ones_of_8_bytes = native.address_of(
            self.ones
        )  # the lower half of each is an int32 of 1, the upper one 0
        for field in native.INTEGER_POINTER_FIELDS:
            setattr(record.integers, field, ones_of_8_bytes)
        record.integers.shifts = native.address_of(self.shifts)
        record.integers.groups = record.integers.high = 1
        record.integers.shift = record.integers.score_shift = 1
        for field, value in fields.items():
            owner, _, name = field.rpartition(".")
            if isinstance(value, str):
                value = native.address_of(getattr(self, value))
            setattr(getattr(record, owner) if owner else record, name, value)
        return self.library.subtone_append(handle, ctypes.byref(record))

    def run(self, handle, *rows, sizes=(0, 0)) -> int:
        """`rows`: (base, first, end, keep, offset) of every value, or its end alone."""
        full = [
            row if isinstance(row, tuple) else (0, 0, row, row, -1 if v < 2 else 0)
            for v, row in enumerate(rows)
        ]
        table = np.array(full, np.int64)
        x, y, state, new_state = (np.ones(64, np.float32) for _ in range(4))
        inputs = np.array([native.address_of(x)] * 2, np.uintp)
        before, after = (native.address_of(array) for array in (state, new_state))
        return self.library.subtone_run(
            handle, native.address_of(table), native.address_of(inputs), native.address_of(y),
            before, sizes[0], after, sizes[1],
        )  # fmt: skip


@pytest.fixture(scope="module")
def caller():
    if not available_isas():
        pytest.skip("the native library was not built")
    return Caller()


@pytest.mark.parametrize(
    ("settings", "status"),
    [
        ({"isa": None}, NULL),
        ({"isa": b"mmx"}, ISA),
        ({"threads": 0}, SIZE),
        ({"threads": 257}, SIZE),
        ({"widths": (4,)}, SIZE),
        ({"widths": (4, 0)}, SIZE),
        ({"widths": (4, 2**24 + 1)}, SIZE),
        ({"inputs": 0}, SIZE),
        ({"inputs": 3}, SIZE),
        ({"inputs": 2}, VALUE),  # the output would be an input
        ({"output": -1}, VALUE),
        ({"output": 3}, VALUE),
        ({"output": 0}, VALUE),
    ],
)
def test_an_engine_that_cannot_be_is_refused(caller, settings, status):
    assert caller.create(**settings)[0] == status


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"kind": 33}, VALUE),
        ({"kind": -1}, VALUE),
        ({"input": 3}, VALUE),
        ({"input": -1}, VALUE),
        ({"input": 2}, VALUE),  # not written yet
        ({"kind": KIND["Add"]}, VALUE),
        ({"kind": KIND["Add"], "other": 2}, VALUE),
        ({"kind": KIND["Attention"], "other": 0}, VALUE),
        ({"kind": KIND["Attention"], "other": 0, "third": 0, "fourth": 2}, VALUE),
        ({"kind": KIND["SwitchedLstm"], "other": 0, "cell": 2}, VALUE),
        ({"output": 0}, VALUE),
        ({"output": -1}, VALUE),
        ({"kind": KIND["Lstm"]}, VALUE),
        ({"kind": KIND["Lstm"], "cell": 1}, VALUE),  # both results in one
        ({"kind": KIND["Function"], "function": 6}, VALUE),
        ({"kernel": 0}, SIZE),
        ({"kernel": 2**24 + 1}, SIZE),
        ({"stride": 0}, SIZE),
        ({"dilation": -1}, SIZE),
        ({"padding": -1}, SIZE),
        ({"padding_behind": -1}, SIZE),
        ({"groups": 3}, SIZE),
        ({"groups": 2}, SIZE),  # the weight has the columns of one group
        ({"weight.rows": 5}, SIZE),
        ({"weight.columns": 5}, SIZE),
        ({"weight.floats": None, "weight.codes": None}, NULL),
        ({**IMAGE, "kind": KIND["Conv2d"], "weight.floats": None, "weight.codes": None}, NULL),
        ({"weight.floats": None, "weight.scale": None}, NULL),
        ({"weight.floats": None, "weight.zero_point": None}, NULL),
        ({"weight.floats": None, "weight.scale_groups": 3}, SIZE),
        ({"weight.floats": None, "weight.scale_groups": 0}, SIZE),
        ({"weight.activation_bits": 1}, SIZE),
        ({"weight.activation_bits": 9}, SIZE),
        ({**INTEGER, "kernel": 2, "weight.columns": 8}, SIZE),
        ({**INTEGER, "padding_behind": 1}, SIZE),
        ({**INTEGER, "weight.scale_groups": 3}, SIZE),
        ({**INTEGER, "weight.scale_groups": 0}, SIZE),
        ({**INTEGER, "weight.codes": None}, NULL),
        ({**INTEGER, "weight.zero_point": None}, NULL),
        ({"kind": KIND["Affine"], "gain": None}, NULL),
        ({"kind": KIND["Affine"], "bias": None}, NULL),
        ({"kind": KIND["Clip"], "low": 1.0, "high": 1.0}, RANGE),
        ({"kind": KIND["Clip"], "low": -1.0, "high": float("nan")}, RANGE),
        ({"kind": KIND["Clip"], "low": -math.inf, "high": 1.0}, RANGE),
        ({"kind": KIND["Clip"], "low": 0.0, "high": math.inf}, RANGE),
        ({"kind": KIND["Scale"], "low": math.inf}, RANGE),
        ({"kind": KIND["LayerNorm"], "low": 0.0}, RANGE),
        ({"kind": KIND["ChannelNorm"], "low": math.nan}, RANGE),
        ({"kind": KIND["Conv2d"], "in_channels": 3}, SIZE),
        ({"kind": KIND["Conv2d"], "dilation": 2}, SIZE),
        ({"kind": KIND["Conv2d"], "feature_kernel": 5, "weight.columns": 5}, SIZE),
        ({"kind": KIND["Conv2d"], "weight.rows": 1, "weight.columns": 2}, SIZE),
        ({"kind": KIND["Conv2d"], "feature_stride": 0}, SIZE),
        ({"kind": KIND["Stack"], "count": 2}, SIZE),
        ({"kind": KIND["Stack"], "count": 0}, SIZE),
        ({"kind": KIND["Glu"]}, SIZE),
        ({"kind": KIND["Columns"], "first": 1}, SIZE),
        ({"kind": KIND["Columns"], "first": -1}, SIZE),
        ({"kind": KIND["Concat"], "other": 0}, SIZE),
        ({"kind": KIND["Embedding"]}, SIZE),
        ({"kind": KIND["Lstm"], "cell": 2}, SIZE),
        ({"kind": KIND["Attention"], "other": 0, "third": 0, "heads": 3}, SIZE),
        ({"kind": KIND["Attention"], "other": 0, "third": 0, "left": -2}, SIZE),
        ({"kind": KIND["Attention"], "other": 0, "third": 0, "left": 1, "position_rows": 3}, SIZE),
        ({"kind": KIND["Attention"], "other": 0, "third": 0, "left": 1, "right": 1, "position_rows": 4}, SIZE),
        ({"kind": KIND["Attention"], "other": 0, "third": 0, "position_rows": 3, "positions": None}, NULL),
        ({"kind": KIND["Sinusoids"], "rotation": None}, NULL),
        # Integer-only
        ({**PRODUCT, "weight.columns": 5}, SIZE),
        ({**PRODUCT, "weight.rows": 5}, SIZE),
        ({**PRODUCT, "kernel": 0}, SIZE),
        ({**PRODUCT, "groups": 3}, SIZE),
        ({**PRODUCT, "integers.groups": 3}, SIZE),
        ({**PRODUCT, "integers.groups": 0}, SIZE),
        ({**PRODUCT, "weight.codes": None}, NULL),
        ({**PRODUCT, "weight.levels": None}, NULL),
        ({**PRODUCT, "integers.multiplier": None}, NULL),
        ({**PRODUCT, "integers.shifts": None}, NULL),
        ({**PRODUCT, "integers.shifts": "bad_shifts"}, RANGE),
        ({**PRODUCT, "integers.shifts": "codes"}, RANGE),  # 0
        ({**PRODUCT, "integers.low": 1}, RANGE),
        ({**IMAGE, "in_channels": 3}, SIZE),
        ({**IMAGE, "feature_kernel": 5, "weight.columns": 5}, SIZE),
        ({**IMAGE, "kernel": 2**24, "feature_padding": 2**24, "weight.columns": 2**24}, SIZE),
        ({**IMAGE, "integers.shifts": None}, NULL),
        ({"kind": KIND["IntegerAdd"]}, VALUE),
        ({"kind": KIND["IntegerMultiply"], "other": 2}, VALUE),
        ({"kind": KIND["IntegerAdd"], "other": 0, "integers.shift": 63}, RANGE),
        ({"kind": KIND["Rescale"], "integers.shift": 0}, RANGE),
        ({"kind": KIND["Rescale"], "integers.high": 0}, RANGE),
        ({"kind": KIND["IntegerAffine"], "integers.multiplier": None}, NULL),
        ({"kind": KIND["IntegerAffine"], "integers.offset": None}, NULL),
        ({"kind": KIND["IntegerAffine"], "integers.shifts": None}, NULL),
        ({"kind": KIND["IntegerAffine"], "integers.shifts": "bad_shifts"}, RANGE),
        ({"kind": KIND["IntegerFunction"], "function": 6}, VALUE),
        ({"kind": KIND["IntegerFunction"], "integers.fraction_bits": 17}, RANGE),
        ({"kind": KIND["IntegerFunction"], "integers.fraction_bits": -1}, RANGE),
        ({"kind": KIND["IntegerFunction"], "integers.shift": 63}, RANGE),
        ({"kind": KIND["IntegerGlu"]}, SIZE),
        ({"kind": KIND["IntegerLayerNorm"], "integers.multiplier": None}, NULL),
        ({"kind": KIND["IntegerLayerNorm"], "integers.shift": 0}, RANGE),
        ({"kind": KIND["IntegerLayerNorm"], "integers.epsilon": -1}, RANGE),
        ({"kind": KIND["IntegerEmbedding"]}, SIZE),
        ({**ATTEND, "other": -1}, VALUE),
        ({**ATTEND, "fourth": 2}, VALUE),
        ({**ATTEND, "heads": 3}, SIZE),
        ({**ATTEND, "left": -2}, SIZE),
        ({**ATTEND, "left": 1, "right": 1, "position_rows": 4}, SIZE),
        ({**ATTEND, "position_rows": 3, "integers.positions": None}, NULL),
        ({**ATTEND, "integers.score_shift": 0}, RANGE),
        ({**ATTEND, "integers.shift": 63}, RANGE),
        ({"kind": KIND["IntegerSinusoids"], "integers.rotation": None}, NULL),
        ({"kind": KIND["IntegerLstm"]}, VALUE),
        ({"kind": KIND["IntegerLstm"], "cell": 2}, SIZE),
    ],
)  # fmt: skip
def test_an_op_that_cannot_be_is_refused_and_leaves_the_engine_as_it_was(caller, fields, status):
    with caller.engine() as handle:
        assert caller.append(handle, **fields) == status
        assert caller.append(handle, kind=RELU) == 0
        assert caller.run(handle, 2, 2, 0) == 0


def test_codes_of_an_embedding_need_their_scales(caller):
    with caller.engine(widths=(1, 4)) as handle:
        table = {"kind": KIND["Embedding"], "weight.floats": None}
        assert caller.append(handle, **table, **{"weight.scale": None}) == NULL
        assert caller.append(handle, **table, **{"weight.scale_groups": 3}) == SIZE
        assert caller.append(handle, **table) == 0


def test_widths_that_do_not_fit_an_op_are_refused(caller):
    with caller.engine(widths=(4, 5, 4)) as handle:
        assert caller.append(handle, kind=RELU) == SIZE
    with caller.engine(widths=(65536, 1)) as handle:
        shape = {"weight.rows": 1, "weight.columns": 65536}
        assert caller.append(handle, **INTEGER, **shape) == SIZE
    with caller.engine(widths=(16, 4, 4)) as handle:
        gates = {"kind": KIND["Lstm"], "cell": 2, "weight.rows": 16}
        assert caller.append(handle, **gates, **{"weight.columns": 3}) == SIZE
        assert caller.append(handle, **gates, **{"weight.floats": None}) == NULL  # a float op of codes
        assert caller.append(handle, **gates) == 0
    with caller.engine(widths=(16, 4, 3)) as handle:
        assert caller.append(handle, **gates) == SIZE  # a cell as wide as the output
    with caller.engine(widths=(16, 16, 4, 4, 1), inputs=2, output=2) as handle:
        switched = {"kind": KIND["SwitchedLstm"], "other": 1, "third": 0, "output": 2, "cell": 3}
        assert caller.append(handle, **switched, **{"weight.rows": 16, "small_weight.rows": 16}) == SIZE
    with caller.engine(widths=(4, 3)) as handle:
        assert caller.append(handle, kind=KIND["Sinusoids"]) == SIZE
        assert caller.append(handle, kind=KIND["IntegerSinusoids"]) == SIZE
    with caller.engine(widths=(2**15 + 1, 2**15 + 1)) as handle:
        assert caller.append(handle, kind=KIND["IntegerLayerNorm"]) == SIZE
    with caller.engine(widths=(1, 4)) as handle:
        embedding = {"kind": KIND["IntegerEmbedding"]}
        for field, value, status in (
            ("weight.rows", 0, SIZE), ("weight.rows", 2**24 + 1, SIZE), ("weight.columns", 3, SIZE),
            ("integers.groups", 3, SIZE), ("integers.groups", 0, SIZE), ("integers.shifts", "bad_shifts", RANGE),
            ("integers.shifts", None, NULL), ("integers.multiplier", None, NULL), ("weight.codes", None, NULL),
        ):  # fmt: skip
            assert caller.append(handle, **embedding, **{field: value}) == status
        assert caller.append(handle, **embedding) == 0
    with caller.engine(widths=(16, 4, 4)) as handle:
        gates = {"kind": KIND["IntegerLstm"], "cell": 2, "weight.rows": 16}
        gates |= {"integers.low": -1, "integers.shifts": "many_shifts"}
        for field, value, status in (
            ("weight.columns", 3, SIZE), ("integers.groups", 3, SIZE), ("integers.low", -2, RANGE),
            ("integers.high", 128, RANGE), ("integers.fraction_bits", 17, RANGE), ("weight.codes", None, NULL),
            ("integers.shifts", None, NULL), ("integers.multiplier", None, NULL), ("integers.shifts", "codes", RANGE),
        ):  # fmt: skip
            assert caller.append(handle, **{**gates, field: value}) == status
        assert caller.append(handle, **gates) == 0


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("numbers", ["hostile", "lowest"])
@pytest.mark.parametrize("is_signed", [0, 1])
def test_integers_that_no_bounds_hold_harm_nothing(caller, isa, numbers, is_signed):
    """Sums wrap, and no step is undefined, which native/check_memory.sh would tell; inputs are 1.0, far beyond uint8."""
    fields = dict.fromkeys(("multiplier", "correction", "offset"), numbers)
    wide = {"left_multiplier": -(2**31), "right_multiplier": -(2**31), "low": -(2**31), "high": 2**31 - 1}
    given = {f"integers.{name}": value for name, value in {**fields, **wide, "is_signed": is_signed}.items()}
    depthwise = {"groups": 4, "weight.columns": 3, "kernel": 3, "padding": 2, "padding_behind": 2}
    kinds = (
        PRODUCT,
        {**PRODUCT, **depthwise},
        {**PRODUCT, **depthwise, "integers.groups": 3},
        {"kind": KIND["IntegerConv2d"], "weight.columns": 1},
        {"kind": KIND["IntegerAdd"], "other": 0},
        {"kind": KIND["IntegerMultiply"], "other": 0},
        {"kind": KIND["Rescale"]},
        {"kind": KIND["IntegerAffine"]},
        *({"kind": KIND["IntegerFunction"], "function": code} for code in range(6)),
        {"kind": KIND["IntegerLayerNorm"], "integers.epsilon": 2**63 - 1},
        {**ATTEND, "heads": 2},
        {**ATTEND, "left": 2, "right": 0, "position_rows": 3, "integers.score_shift": 62},
        {"kind": KIND["IntegerSinusoids"]},
    )
    factors = ("content_multiplier", "position_multiplier")
    given |= {f"integers.{name}": -(2**31) for name in factors}
    given |= {f"integers.{name}": numbers for name in native.INTEGER_POINTER_FIELDS[-4:]}
    for kind in kinds:
        for shift in (1, 31, 32, 62):
            with caller.engine(isa=isa.encode(), threads=2) as handle:
                more = {"weight.rows": 1} if kind["kind"] == KIND["IntegerConv2d"] else {}
                assert caller.append(handle, **{**given, **kind, **more, "integers.shift": shift}) == 0
                behind = 4 if kind.get("padding_behind") else 2
                behind += kind["kind"] == KIND["IntegerSinusoids"]
                assert caller.run(handle, 2, behind, 0) == 0


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("numbers", ["hostile", "lowest"])
def test_integers_that_no_bounds_hold_harm_no_embedding_glu_or_recurrence(caller, isa, numbers):
    given = {f"integers.{name}": numbers for name in ("multiplier", "correction", "offset")}
    wide = {"integers.low": -(2**31), "integers.high": 2**31 - 1, "integers.left_multiplier": -(2**31)}
    with caller.engine(isa=isa.encode(), widths=(1, 4)) as handle:
        assert caller.append(handle, kind=KIND["IntegerEmbedding"], **given, **wide) == 0
        assert caller.run(handle, 9, 9) == 0
    with caller.engine(isa=isa.encode(), widths=(8, 4)) as handle:
        assert caller.append(handle, kind=KIND["IntegerGlu"], **wide, **{"integers.fraction_bits": 16}) == 0
        assert caller.run(handle, 3, 3) == 0
    with caller.engine(isa=isa.encode(), widths=(16, 4, 4)) as handle:
        shape = {"kind": KIND["IntegerLstm"], "cell": 2, "weight.rows": 16, "integers.shifts": "many_shifts"}
        assert caller.append(handle, **given, **shape, **{"integers.low": -127, "integers.high": 127}) == 0
        assert caller.library.subtone_reserve(handle, 64) == 0
        assert caller.run(handle, 3, 3, 3) == 0


def test_a_weight_too_large_for_any_memory_is_refused(caller):
    with caller.engine(widths=(2**24, 2**24)) as handle:
        shape = {"weight.rows": 2**24, "weight.columns": 2**48}
        assert caller.append(handle, kernel=2**24, **shape) == SIZE


@pytest.mark.parametrize(
    "rows",
    [
        (-1, 2, 2),
        (2**31 + 1, 2, 2),
        (2, 3, 2),  # not what the ops imply
        (2, 2, 3),
        (2, 2, (0, 0, 2, 2, 32)),  # not a cache line
        (2, 2, (0, 0, 2, 2, -64)),
        (2, 2, (0, 0, 2, 2, -1)),  # not the caller's
        (2, 2, (0, 0, 2, 2, 64)),  # beyond an arena of 64 bytes
        (5, 5, 5),  # 80 bytes in an arena of 64
        ((1, 0, 2, 2, -1), 2, 2),  # base behind first
        ((0, 0, 2, 3, -1), 2, 2),  # keep behind end
        ((1, 1, 3, 1, -1), (1, 1, 3, 3, -1), (0, 1, 3, 3, 0)),  # a state, whose size is not said
        ((0, 1, 3, 3, -1), 2, 2),  # an input with a past lies in the arena
        ((2, 2, 3, 3, -1), (1, 1, 3, 3, -1), (1, 1, 3, 3, 0)),  # row 1 is not held
    ],
)
def test_a_plan_that_does_not_fit_is_refused(caller, rows):
    with caller.engine() as handle:
        assert caller.append(handle, kind=RELU, output=2) == 0
        assert caller.run(handle, 2, 2, 2) == VALUE  # nothing writes the output yet
        assert caller.append(handle, kind=RELU, input=2) == 0
        assert caller.run(handle, 2, 2, 2) == PLAN  # no arena yet
        assert caller.library.subtone_reserve(handle, 64) == 0
        assert caller.run(handle, *rows) == PLAN
        assert caller.run(handle, 2, 2, 2) == 0


@pytest.mark.parametrize("kind", ["Lstm", "IntegerLstm"])
def test_a_recurrence_that_goes_on_needs_its_last_row(caller, kind):
    own = {"Lstm": {}, "IntegerLstm": {"integers.low": -1, "integers.shifts": "many_shifts"}}[kind]
    with caller.engine(widths=(16, 4, 4)) as handle:
        assert caller.append(handle, kind=KIND[kind], cell=2, **own, **{"weight.rows": 16}) == 0
        assert caller.library.subtone_reserve(handle, 128) == 0
        x = (2, 2, 3, 3, -1)
        assert caller.run(handle, x, (2, 2, 3, 3, 0), (2, 2, 3, 3, 64)) == PLAN
        assert caller.run(handle, x, (1, 2, 3, 2, 0), (1, 2, 3, 2, 64), sizes=(8, 4)) == PLAN
        assert caller.run(handle, x, (1, 2, 3, 2, 0), (1, 2, 3, 2, 32), sizes=(8, 8)) == PLAN
        assert caller.run(handle, x, (1, 2, 3, 2, 0), (1, 2, 3, 2, 0), sizes=(8, 8)) == PLAN  # overlap
        assert caller.run(handle, x, (1, 2, 3, 2, 0), (1, 2, 3, 2, 64), sizes=(8, 8)) == 0


def test_attention_needs_the_rows_that_it_sees_and_their_positions(caller):
    fields = {"kind": KIND["Attention"], "other": 0, "third": 0, "heads": 2, "left": 2, "right": 0}
    with caller.engine(widths=(4, 4)) as handle:
        assert caller.append(handle, **fields, position_rows=3) == 0
        assert caller.library.subtone_reserve(handle, 256) == 0
        assert caller.run(handle, (4, 5, 6, 6, 0), (5, 5, 6, 6, -1), sizes=(4, 0)) == PLAN
        assert caller.run(handle, (3, 5, 6, 6, 0), (5, 5, 6, 6, -1), sizes=(8, 0)) == 0
    with caller.engine(widths=(4, 4)) as handle:  # the same in integers
        integer = {**fields, "kind": KIND["IntegerAttention"]}
        assert caller.append(handle, **integer, position_rows=3) == 0
        assert caller.library.subtone_reserve(handle, 256) == 0
        assert caller.run(handle, (4, 5, 6, 6, 0), (5, 5, 6, 6, -1), sizes=(4, 0)) == PLAN
        assert caller.run(handle, (3, 5, 6, 6, 0), (5, 5, 6, 6, -1), sizes=(8, 0)) == 0
    with caller.engine(widths=(4, 4)) as handle:  # unlimited, with a table for three rows
        assert caller.append(handle, **{**fields, "left": -1, "right": -1}, position_rows=5) == 0
        assert caller.run(handle, 4, 4) == PLAN
        assert caller.run(handle, 3, 3) == 0


def test_an_output_on_top_of_its_input_is_refused(caller):
    with caller.engine(widths=(4, 4, 4, 4)) as handle:
        for op in ({"output": 2}, {"input": 2, "output": 3}, {"input": 3}):
            assert caller.append(handle, kind=RELU, **op) == 0
        assert caller.library.subtone_reserve(handle, 128) == 0
        above = (0, 0, 2, 2, 64)
        assert caller.run(handle, 2, 2, above, above) == PLAN
        assert caller.run(handle, 2, 2, above, 2) == 0


def test_null_pointers_and_negative_arenas_are_refused(caller):
    library = caller.library
    nothing = (None, None, None, None, 0, None, 0)
    assert library.subtone_append(None, None) == NULL
    assert library.subtone_reserve(None, 64) == NULL
    assert library.subtone_run(None, *nothing) == NULL
    library.subtone_destroy(None)
    with caller.engine() as handle:
        assert library.subtone_append(handle, None) == NULL
        assert library.subtone_reserve(handle, -1) == SIZE
        assert library.subtone_run(handle, *nothing) == NULL
        rows, x = np.zeros((3, 5), np.int64), native.address_of(caller.floats)
        for inputs, sizes in (([0], (0, 0)), ([x], (4, 0)), ([x], (0, 4))):
            table = np.array(inputs, np.uintp)
            arguments = (native.address_of(rows), native.address_of(table), x, None, sizes[0], None, sizes[1])
            assert library.subtone_run(handle, *arguments) == NULL


def test_an_arena_larger_than_any_memory_is_a_memory_error(caller):
    with caller.engine() as handle:
        status = caller.library.subtone_reserve(handle, 2**62)
        with pytest.raises(MemoryError, match=r"taking memory: out of memory \(status 6\)"):
            native.require_ok(caller.library, status, "taking memory")


def test_every_status_has_words(caller):
    texts = [caller.library.subtone_status_text(status).decode() for status in range(11)]
    assert len(set(texts)) == 11
    assert texts[10] == "a status this library does not have"
    with pytest.raises(RuntimeError, match=r"running: .* \(status 4\)"):
        native.require_ok(caller.library, PLAN, "running")
