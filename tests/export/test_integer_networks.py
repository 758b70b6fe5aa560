"""Conformers, a Parakeet of transformers and transducers made integer-only: no float is left, and what is heard stays near."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import torch
from tests.models.transducer_variants import FEATURES, TRANSDUCERS
from tests.models.transducer_variants import random_network as random_transducer

from subtone.export.graph import FRAMES, Input
from subtone.export.integer import integer_program
from subtone.export.integer_parts import integer_parts, observe_parts
from subtone.export.lower import lower, lower_entry
from subtone.export.making import Grids
from subtone.export.package import package
from subtone.export.ranges import Range, observe
from subtone.models.checkpoints import Checkpoint
from subtone.models.conformer import ConformerCtc
from subtone.models.conformer_config import CONFORMER_CTCS, ConformerCtcConfig
from subtone.models.lstm import LstmConfig
from subtone.models.predictors import LstmPredictorConfig
from subtone.models.transducer import TransducerConfig
from subtone.pack import PackedModel, read_packed, write_packed
from subtone.program import (
    ChannelNorm,
    Constant,
    IntegerAttention,
    IntegerLstm,
    IntegerSinusoids,
    Program,
)
from subtone.quantize.apply import quantize_module
from subtone.quantize.rules import Recipe
from subtone.runtime.doors import DoorEngine, levels_at
from subtone.runtime.engine import NumpyEngine
from subtone.runtime.transducer import PackedTransducer
from subtone.speech.features import FrontEnd
from subtone.speech.text import CharTokenizer
from subtone.speech.transducer_search import TransducerGreedySearch

RECIPE = Recipe.model_validate({"name": "w8", "method": "linear", "rules": [{"bits": 8}]})


def normal(rows: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)))


@functools.cache
def conformer() -> tuple[Program, dict[str, Constant]]:
    """The demo's, narrowed, of limited context, so that its positions are a table; weights of 8 bits."""
    sizes = {
        "width": 16,
        "feed_forward_width": 24,
        "num_blocks": 1,
        "heads": 2,
        "kernel": 5,
        "num_features": 8,
    }
    demo = CONFORMER_CTCS["conformer-ctc-demo"]
    encoder = dataclasses.replace(
        demo.encoder, **sizes, conv2d_channels=4, left=5, right=2, norm="layer", is_input_scaled=True
    )
    torch.manual_seed(0)
    network = ConformerCtc(ConformerCtcConfig(encoder=encoder, num_outputs=9)).eval()
    with torch.no_grad():
        for value in network.parameters():
            value.add_(0.1 * torch.randn_like(value))
    quantization = quantize_module(network, RECIPE)
    return lower(network, num_features=8, frames_per_step=network.frames_per_step, quantization=quantization)


@functools.cache
def parakeet() -> tuple[Program, dict[str, Constant]]:
    transformers = pytest.importorskip("transformers")
    encoder = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24,
        "conv_kernel_size": 5, "subsampling_conv_channels": 4, "num_mel_bins": 16,
    }  # fmt: skip
    torch.manual_seed(0)
    config = transformers.ParakeetCTCConfig(vocab_size=11, pad_token_id=10, encoder_config=encoder)
    network = transformers.ParakeetForCTC(config)
    with torch.no_grad():
        for value in network.parameters():
            value += 0.25 * torch.randn_like(value)
    inputs = (Input(name="features", layout=FRAMES, width=16),)
    network = network.eval()
    return lower_entry(
        network, inputs, output="logits", frames_per_step=8, quantization=quantize_module(network, RECIPE)
    )


def network(name: str) -> tuple[Program, dict[str, Constant]]:
    return parakeet() if name == "parakeet" else conformer()


@functools.cache
def made(name: str, bits: int = 8) -> tuple[DoorEngine, float]:
    """The integer-only network behind its doors, and how far its logits are from the float ones, of their size.

    Calibrated on eight utterances, heard on another one.
    """
    program, constants = network(name)
    width = program.input_width
    ranges = observe(program, constants, [normal(90 + seed, width, seed) for seed in range(8)])
    integers = integer_program(program, constants, ranges, grids=Grids(activation_bits=bits))
    assert integers[0].float_parts(integers[1]) == []
    engine, heard = DoorEngine(NumpyEngine(*integers)), normal(120, width, 99)
    return engine, relative_error(engine.run(heard), NumpyEngine(program, constants).run(heard))


NETWORKS = ["conformer", "parakeet"]


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_move_by_little_and_8_bits_are_nearer_than_5(name):
    """A step of 5 bits is 127 / 15 = 8.5 times as long; half of that is asked for, as 8 bits are not all that errs."""
    assert made(name)[1] < 0.05
    assert made(name, 5)[1] > 4 * made(name)[1]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_length_is_heard_and_a_file_says_the_same_program(name):
    engine = made(name)[0]
    for rows in (0, 1, 7, 40):
        assert engine.run(normal(rows, engine.program.input_width)).shape[1] == engine.program.output_width
    assert Program.from_json(engine.program.to_json()) == engine.program


def test_a_file_keeps_tables_and_integers_of_both_widths(tmp_path):
    program, constants = conformer()
    ranges = observe(program, constants, [normal(90, 8)])
    made, integers = integer_program(program, constants, ranges)
    empty: dict = {"front_end": {}, "tokenizer": {}, "recipe": {}, "provenance": {}}
    write_packed(tmp_path / "x.subtone", PackedModel(program=made, constants=integers, **empty))
    read = read_packed(tmp_path / "x.subtone")
    levels = levels_at(made.doors[0], normal(33, 8))
    expected = NumpyEngine(made, integers).run(levels)
    assert np.array_equal(NumpyEngine(read.program, read.constants).run(levels), expected)
    assert {value.dtype.name for value in integers.values() if isinstance(value, np.ndarray)} == {
        "int32",
        "int64",
    }


def test_a_limited_conformer_streams_and_its_positions_are_a_table():
    engine = made("conformer")[0]
    x, (attention,) = normal(61, 8), [op for op in engine.program.ops if isinstance(op, IntegerAttention)]
    assert attention.positions in engine.program.tables
    state, outputs = engine.start(), []
    for part in np.split(x, [1, 2, 17, 40]):
        output, state = engine.step(state, np.ascontiguousarray(part))
        outputs.append(output)
    outputs.append(engine.step(state, normal(0, 8), is_last=True)[0])
    assert np.array_equal(np.concatenate(outputs), engine.run(x))


def test_positions_of_the_utterances_length_are_sinusoids_met_by_a_product():
    engine = made("parakeet")[0]
    assert {type(op) for op in engine.program.ops} >= {IntegerSinusoids, IntegerAttention}
    assert not engine.program.tables


# Transducers -----------------------------------------------------------------------------

CONFIGS = {
    "lstm": TransducerConfig(
        encoder=LstmConfig(num_features=FEATURES, widths=(6,), reduced_before=0, has_norm=True),
        predictor=LstmPredictorConfig(embedding_width=4, widths=(5,)),
        joint_width=6,
        num_outputs=9,
    ),
    "conformer": TRANSDUCERS["conformer"],
}
LABELS = CharTokenizer(tuple("abcdefgh"))


@functools.cache
def transducer(name: str) -> tuple[dict[str, Program], dict[str, Constant]]:
    network = random_transducer(CONFIGS[name])
    checkpoint = Checkpoint(
        network=network, front_end=FrontEnd(num_mels=FEATURES), tokenizer=LABELS, quantization=quantize_module(network, RECIPE)
    )  # fmt: skip
    packed = package(checkpoint, name=name)
    return {"encoder": packed.program, **packed.parts}, dict(packed.constants)


@functools.cache
def integer_transducer(name: str) -> tuple[dict[str, Program], dict[str, Constant]]:
    programs, constants = transducer(name)
    rng = np.random.default_rng(1)
    examples = [(normal(60, FEATURES, seed), rng.integers(0, 8, 9).tolist()) for seed in range(5)]
    return integer_parts(programs, constants, observe_parts(programs, constants, examples))


@pytest.mark.parametrize("name", ["lstm", "conformer"])
def test_a_transducers_parts_hand_on_levels_as_they_are(name):
    made, constants = integer_transducer(name)
    for part in made.values():
        assert part.float_parts(constants) == []
    frames, rows = made["joiner"].doors
    for part, door in (("encoder", frames), ("predictor", rows)):
        assert made[part].output_scale == door.scale
        assert made[part].bounds(constants)[made[part].output].magnitude <= door.high
        levels = np.arange(door.low, door.high + 1)[:, None]
        assert np.array_equal(levels_at(door, (levels * np.float64(door.scale)).astype(np.float32)), levels)
    assert tuple(made["predictor"].doors[0]) == (1.0, 0, 8)


@pytest.mark.parametrize("name", ["lstm", "conformer"])
def test_a_transducer_in_integers_is_near_the_float_one_and_a_search_hears_it(name):
    programs, constants = transducer(name)
    integers = integer_transducer(name)
    floats = {part: NumpyEngine(program, constants) for part, program in programs.items()}
    engines = {part: DoorEngine(NumpyEngine(program, integers[1])) for part, program in integers[0].items()}
    heard, labels = normal(50, FEATURES, 77), np.array([[8], [3], [1], [7], [0]], np.float32)
    frames, rows = ((e["encoder"].run(heard), e["predictor"].run(labels)) for e in (floats, engines))
    for expected, found in zip(frames, rows, strict=True):
        assert relative_error(found, expected) < 0.1
    model = PackedTransducer(engines["predictor"], engines["joiner"])
    search = TransducerGreedySearch(model)
    search.push(rows[0].astype(np.float32))
    assert set(search.finish().labels) <= set(range(8))
    assert any(isinstance(op, IntegerLstm) for op in integers[0]["predictor"].ops) == (name == "lstm")


def test_what_a_transducer_is_refused():
    programs, constants = transducer("conformer")
    with pytest.raises(
        ValueError, match="the parts are encoder; a transducer has encoder, joiner and predictor"
    ):
        observe_parts({"encoder": programs["encoder"]}, constants, [])
    encoder = programs["encoder"]
    norm = ChannelNorm(input=encoder.input, output=encoder.output, epsilon=0.5, source="norm")
    changed = programs | {
        "encoder": dataclasses.replace(encoder, ops=(norm,), output_width=encoder.input_width)
    }
    ends = {"features": Range(-1.0, 1.0), "output": Range(-1.0, 1.0)}
    ranges = dict.fromkeys(programs, ends)
    ranges["joiner"] = observe_joiner(programs, constants)
    with pytest.raises(
        ValueError, match=r"the encoder: op 0 \(norm\) is a ChannelNorm, which has no integer form"
    ):
        integer_parts(changed, constants, ranges)


def observe_joiner(programs: dict[str, Program], constants: dict[str, Constant]) -> dict[str, Range]:
    joiner = programs["joiner"]
    return observe(joiner, constants, [(normal(9, joiner.input_width), normal(9, joiner.input_width, 1))])
