"""A learned clip is packed, simulated and kept as it was trained; what cannot clip says so in one line."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from subtone.export.lower import lower
from subtone.models.checkpoints import Checkpoint, Quantization, load_checkpoint, save_checkpoint
from subtone.models.quartznet import Block, QuartzNet, QuartzNetConfig
from subtone.pack import PackedModel, read_packed, write_packed
from subtone.program import Clip, Conv1d
from subtone.quantize import Recipe, decoded_twin, method_of
from subtone.quantize.apply import quantize_checkpoint
from subtone.quantize.native import Native
from subtone.quantize.simulate import simulate
from subtone.runtime.engine import NativeEngine, NumpyEngine, available_isas
from subtone.speech.features import FrontEnd
from subtone.speech.text import CharTokenizer

PACT = {"bits": 4, "activations": "dynamic", "activation_bits": 4, "activation_clip": "pact"}
PLAIN = {**PACT, "activation_clip": None}


def recipe_of(*rules: dict, method: str = "native", **options) -> Recipe:
    return Recipe.from_dict(
        {"name": "r", "method": method, "options": options, "rules": list(rules or [PACT])}
    )


def native(*rules: dict, **options) -> Native:
    return Native(recipe_of(*rules, **options))


def same_bits(left, right) -> bool:
    left, right = (np.ascontiguousarray(side, np.float32).view(np.uint32) for side in (left, right))
    return np.array_equal(left, right)


# What is trained is what is served ---------------------------------------------------------------


class TwoProducts(nn.Module):
    """Features (B, 40, T) to (B, T, 5): a pointwise product behind a ReLU6, and a Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Conv1d(40, 17, 1)
        self.head = nn.Linear(17, 5)

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return self.head(nn.functional.relu6(self.front(features)).mT), lengths


def trained(*, forward: str = "integer") -> tuple[nn.Module, Native, Tensor]:
    torch.manual_seed(0)
    model, method = TwoProducts(), native(forward=forward, clip_decay=0.1)
    features = torch.randn(1, 40, 23) * 3
    method.attach(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(5):
        optimizer.zero_grad()
        model(features)[0].square().mean().backward()
        optimizer.step()
        method.after_step(step)
    assert any(clip.alpha < 9 for clip in method._clips.values())
    return model.eval(), method, features


def test_a_packed_model_equals_the_trained_forward_pass_bit_for_bit(tmp_path):
    model, method, features = trained()
    with torch.no_grad():
        heard = model(features)[0][0].numpy()
    method.detach()
    quantization = method.freeze(model)
    assert set(quantization.activation_clips) == {"front.weight", "head.weight"}
    program, constants = lower(model, num_features=40, frames_per_step=1, quantization=quantization)
    assert [type(op) for op in program.ops] == [Clip, Conv1d, Clip, Clip, Conv1d]
    packed = PackedModel(
        program=program, constants=constants, front_end={}, tokenizer={}, recipe={}, provenance={}
    )
    write_packed(tmp_path / "a.subtone", packed)
    loaded = read_packed(tmp_path / "a.subtone")
    frames = np.ascontiguousarray(features[0].T.numpy())
    assert same_bits(NumpyEngine(loaded.program, loaded.constants).run(frames), heard)
    for isa in available_isas():
        assert same_bits(NativeEngine(loaded.program, loaded.constants, isa=isa).run(frames), heard)
    # Without its clips it would say something else.
    plain = Quantization(
        weights=quantization.weights,
        activation_bits=quantization.activation_bits,
        bias_shifts={},
        recipe={},
    )
    program, constants = lower(model, num_features=40, frames_per_step=1, quantization=plain)
    assert not same_bits(NumpyEngine(program, constants).run(frames), heard)


def test_a_frozen_model_is_simulated_as_it_was_trained_bit_for_bit():
    model, method, features = trained(forward="fake")
    with torch.no_grad():
        heard = model(features)[0]
        method.detach()
        quantization = method.freeze(model)
        twin = decoded_twin(model, quantization)
        unclipped = twin(features)[0]
        simulate(twin, quantization)
        assert torch.equal(twin(features)[0], heard)
    assert not torch.equal(unclipped, heard)


def test_a_checkpoint_keeps_its_clips(tmp_path: Path):
    torch.manual_seed(0)
    network = QuartzNet(QuartzNetConfig(num_outputs=4, blocks=(Block(filters=8, kernel=3, stride=2),)))
    method = native()
    method.attach(network)
    network(torch.randn(1, 64, 20))[0].sum().backward()
    method.after_step(0)
    method.detach()
    quantization = method.freeze(network)
    assert quantization.activation_clips
    before = Checkpoint(
        network=decoded_twin(network, quantization),
        front_end=FrontEnd(),
        tokenizer=CharTokenizer((" ", "a", "b")),
        quantization=quantization,
    )
    save_checkpoint(tmp_path / "q", before)
    after = load_checkpoint(tmp_path / "q").quantization
    assert after.activation_clips == quantization.activation_clips
    config = tmp_path / "q" / "config.json"
    config.write_text(re.sub(r'("activation_clip": )(\d)', r"\1-\2", config.read_text()))
    with pytest.raises(ValueError, match=r"is not a whole checkpoint: .*use a value of float32 above 0"):
        load_checkpoint(tmp_path / "q")


# Mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"activations": "float", "activation_bits": None}, "activation_clip='pact' has no effect without"),
        ({"activation_clip": "pakt"}, "activation_clip='pakt' is not known"),
        ({"kinds": ["lstm"]}, "activation_clip='pact' does not fit the lstm weights, whose recurrence keeps"),
    ],
)
def test_a_rule_that_cannot_clip_is_refused_in_one_line(changes, complaint):
    with pytest.raises(ValueError) as caught:
        recipe_of({**PACT, **changes})
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["linear", "gq", "acosr", "s8bqat", "subchannel"])
def test_other_methods_refuse_it(method):
    message = (
        r"recipe r: rules\[0\]: activation_clip='pact' is learned in training by method native; use that"
    )
    with pytest.raises(ValueError, match=message):
        method_of(recipe_of(PACT, method=method))


def test_the_weights_of_an_lstm_that_a_rule_reaches_are_refused_by_name():
    model, method = nn.ModuleDict({"lstm": nn.LSTM(4, 4), "out": nn.Linear(4, 4)}), native()
    with pytest.raises(ValueError, match=r"the lstm weights of lstm\.weight_ih_l0, .* add a rule for them"):
        method.attach(model)
    native({"kinds": ["lstm"], **PLAIN}, PACT).attach(model)


def test_weights_that_are_not_trained_have_no_learned_clip():
    with pytest.raises(
        ValueError, match=r"rules\[0\]: activation_clip='pact' is not learned.*bits=8 is above"
    ):
        native({**PACT, "bits": 8}, largest_trained_bits=4)
    model, method = nn.Linear(4, 4), native()
    with pytest.raises(
        ValueError, match="activation_clip='pact' of weight has not been learned; train before"
    ):
        method.freeze(model)
    checkpoint = Checkpoint(
        network=QuartzNet(QuartzNetConfig(num_outputs=4, blocks=(Block(filters=8, kernel=3),))).eval(),
        front_end=FrontEnd(),
        tokenizer=CharTokenizer((" ", "a", "b")),
    )
    with pytest.raises(
        ValueError, match="recipe r: activation_clip='pact' is learned in training; give --train"
    ):
        quantize_checkpoint(checkpoint, recipe_of())


@pytest.mark.parametrize(
    "options", [{"clip_learning_rate": 0.0}, {"clip_learning_rate": math.inf}, {"clip_decay": -0.1}]
)
def test_options_are_checked(options):
    with pytest.raises(ValueError, match=f"recipe r: options: {next(iter(options))}="):
        native(**options)


@pytest.mark.parametrize(
    ("bits", "clip", "complaint"),
    [
        (0, 1.0, "activation_clips has w, whose activations are float"),
        (4, 0.0, r"activation_clips has 0\.0 for w; use a value of float32 above 0"),
        (4, math.inf, "activation_clips has inf for w"),
        (4, 0.1, r"activation_clips has 0\.1 for w"),
    ],
)
def test_a_clip_that_cannot_be_served_is_refused(bits, clip, complaint):
    with pytest.raises(ValueError, match=complaint):
        Quantization(
            weights={}, activation_bits={"w": bits}, bias_shifts={}, recipe={}, activation_clips={"w": clip}
        )
