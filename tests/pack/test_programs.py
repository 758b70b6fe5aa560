"""Section 9 of docs/file-format.md names every operation and field, and a file brings back programs of all of them."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runtime.definitions import same_bits
from tests.runtime.small_programs import program_of
from tests.runtime.streaming_programs import inputs_for, streaming_program

from subtone.pack import PackedModel, read_packed, write_packed
from subtone.program import FUNCTIONS, OPS, Add, Attention, Relu
from subtone.qtensor import QTensor
from subtone.runtime.engine import NumpyEngine

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "file-format.md").read_text(encoding="utf-8")
TABLE = PAGE.partition("## 9. The program")[2]
ROWS = {
    cells[1].strip(" `"): re.findall(r"`([^`]*)`", cells[2])
    for line in TABLE.splitlines()
    if line.startswith("| `") and (cells := line.split("|"))
}


def test_the_page_names_every_operation_and_every_function():
    assert list(ROWS) == list(OPS)
    (row,) = [line for line in TABLE.splitlines() if line.startswith("| `function` |")]
    assert re.findall(r"`(\w+)`", row.split("|")[3]) == list(FUNCTIONS)


@pytest.mark.parametrize("kind", OPS)
def test_the_page_names_every_field_and_its_default(kind):
    fields = {field.name: field.default for field in dataclasses.fields(OPS[kind])}
    assert fields.pop("source") == ""
    expected = [
        name if default is dataclasses.MISSING else f"{name}={json.dumps(default)}"
        for name, default in fields.items()
    ]
    assert sorted(ROWS[kind]) == sorted(expected)


def packed(program, constants) -> PackedModel:
    return PackedModel(
        program=program, constants=constants, front_end={}, tokenizer={}, recipe={}, provenance={}
    )


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), num_draws=st.integers(1, 8))
def test_a_program_of_any_operations_computes_the_same_from_its_file(seed, num_draws, tmp_path_factory):
    rng = np.random.default_rng(seed)
    program, constants = streaming_program(rng, num_draws)
    path = tmp_path_factory.mktemp("files") / "m.subtone"
    write_packed(path, packed(program, constants))
    back = read_packed(path)
    assert back.program == program
    weights = [name for name in program.constants_read if isinstance(constants[name], QTensor)]
    floats = [name for name in program.constants_read if name not in weights]
    assert list(back.constants) == weights + floats
    inputs = inputs_for(rng, program, 7)
    expected = NumpyEngine(program, constants).run(*inputs)
    assert same_bits(NumpyEngine(back.program, back.constants).run(*inputs), expected)


def test_a_table_is_a_constant_of_the_file(tmp_path):
    op = Attention(query="x", key="x", value="x", positions="t", output="y", left=1, right=1)
    program, table = program_of(op, width_in=4, width_out=4), np.arange(12, dtype=np.float32).reshape(3, 4)
    write_packed(tmp_path / "m.subtone", packed(program, {"t": table}))
    back = read_packed(tmp_path / "m.subtone")
    assert same_bits(np.asarray(back.constants["t"]), table)
    with pytest.raises(ValueError, match=r"no operation reads the constant u \(1 such\); leave it out"):
        write_packed(tmp_path / "n.subtone", packed(program, {"t": table, "u": table}))


def test_an_operation_without_an_input_makes_no_file(tmp_path):
    for op in (Relu(input="", output="y"), Add(left="x", right="z", output="y")):
        with pytest.raises(ValueError, match=r"names no input|reads z, which no earlier op"):
            write_packed(tmp_path / "m.subtone", packed(program_of(op, width_in=4, width_out=4), {}))
    assert not list(tmp_path.iterdir())
