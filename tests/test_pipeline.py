"""From a float network to a packed file that hears: what torch simulates is what the file computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tests.runtime.definitions import all_values
from torch import nn

from subtone.export.package import package
from subtone.models.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from subtone.models.quartznet import Block, QuartzNet, QuartzNetConfig
from subtone.pack import read_packed, write_packed
from subtone.program import Conv1d
from subtone.quantize.apply import quantize_checkpoint
from subtone.quantize.fake import fake_quantize_activations
from subtone.quantize.rules import Recipe
from subtone.quantize.simulate import simulate
from subtone.report.inspect import describe
from subtone.runtime.engine import NativeEngine, NumpyEngine, available_isas
from subtone.runtime.session import Session
from subtone.speech.audio import read_audio
from subtone.speech.data import read_manifest, spread
from subtone.speech.features import FrontEnd
from subtone.speech.text import CharTokenizer

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "recipes").glob("ptq-w*.toml"))
NO_CALIBRATION = [path for path in RECIPES if not any(of.settings.hears for of in Recipe.load(path).rules)]
EPSILON = float(np.finfo(np.float32).eps)


@pytest.fixture(scope="module")
def float_checkpoint() -> Checkpoint:
    """A random QuartzNet with 128 channels, so that groups of 64 are groups."""
    torch.manual_seed(5)
    blocks = (
        Block(filters=128, kernel=11, stride=2),
        Block(filters=128, kernel=13, repeat=2, has_residual=True),
        Block(filters=128, kernel=1, is_separable=False),
    )
    network = QuartzNet(QuartzNetConfig(blocks=blocks))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias, std=0.3)
    tokenizer = CharTokenizer(tuple(" abcdefghijklmnopqrstuvwxyz'"))
    return Checkpoint(network=network.eval(), front_end=FrontEnd(), tokenizer=tokenizer)


@pytest.fixture(scope="module")
def features() -> np.ndarray:
    return np.random.default_rng(7).standard_normal((151, 64)).astype(np.float32)


def recipe(bits: int, activation_bits: int = 8, **settings) -> Recipe:
    activations = {"activations": "dynamic", "activation_bits": activation_bits} if activation_bits else {}
    return Recipe.from_dict(
        {"name": "test", "method": "linear", "rules": [{"bits": bits, **activations, **settings}]}
    )


def simulated_logits(checkpoint: Checkpoint, features: np.ndarray) -> np.ndarray:
    assert checkpoint.quantization is not None
    handles = simulate(checkpoint.network, checkpoint.quantization)
    with torch.inference_mode():
        logits = checkpoint.network(torch.from_numpy(features).T[None])[0][0].numpy()
    for handle in handles:
        handle.remove()
    return logits


def packed_logits(checkpoint: Checkpoint, features: np.ndarray, path: Path) -> np.ndarray:
    write_packed(path, package(checkpoint, name="test"))
    model = read_packed(path)
    return NumpyEngine(model.program, model.constants).run(features)


@pytest.mark.parametrize("path", NO_CALIBRATION, ids=lambda path: path.stem)
def test_every_shipped_recipe_packs_to_what_torch_simulates(
    path: Path, float_checkpoint: Checkpoint, features: np.ndarray, tmp_path: Path
) -> None:
    quantized = quantize_checkpoint(float_checkpoint, Recipe.load(path))
    ours = packed_logits(quantized, features, tmp_path / "a.subtone")
    theirs = simulated_logits(quantized, features)
    # Both round activations at the same points, but sums of another order may push a value that
    # lies on a border over it: then one level of 254 changes in one place. So the two agree to
    # well within one step of the activations, though not to rounding.
    step = np.abs(theirs).max() / 127
    assert np.abs(ours - theirs).max() < step
    assert (ours.argmax(1) == theirs.argmax(1)).mean() > 0.98


@pytest.mark.parametrize("bits", range(1, 9))
def test_without_activation_rounding_every_width_equals_torch_to_float_rounding(
    bits: int, float_checkpoint: Checkpoint, features: np.ndarray, tmp_path: Path
) -> None:
    quantized = quantize_checkpoint(float_checkpoint, recipe(bits, activation_bits=0))
    ours = packed_logits(quantized, features, tmp_path / "a.subtone")
    theirs = simulated_logits(quantized, features)
    # Six products in a row of at most 128 terms: each may lose that many halves of an epsilon.
    assert np.abs(ours - theirs).max() <= 6 * 128 / 2 * EPSILON * np.abs(theirs).max()


@pytest.mark.parametrize("activation_bits", [4, 8])
def test_one_product_on_the_same_input_equals_torch_to_float_rounding(
    activation_bits: int, features: np.ndarray, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = QuartzNetConfig(
        num_features=64, num_outputs=29, blocks=(Block(filters=32, kernel=1, is_separable=False),)
    )
    network = QuartzNet(config).eval()
    for parameter in (network.head.weight, network.head.bias):
        nn.init.zeros_(parameter)
    with torch.no_grad():
        network.head.weight[:29, :29] = torch.eye(29)[..., None]  # the logits are the product itself
    source = Checkpoint(
        network=network, front_end=FrontEnd(), tokenizer=CharTokenizer(tuple(" abcdefghijklmnopqrstuvwxyz'"))
    )
    rules = [
        {"pattern": "head.*", "keep_float": True},
        {"bits": 4, "activations": "dynamic", "activation_bits": activation_bits},
    ]
    quantized = quantize_checkpoint(
        source, Recipe.from_dict({"name": "t", "method": "linear", "rules": rules})
    )
    ours = packed_logits(quantized, features, tmp_path / "a.subtone")
    theirs = simulated_logits(quantized, features)
    # The codes are equal; what differs is the order of one float sum of 64 terms in torch.
    assert np.abs(ours - theirs).max() <= 64 * EPSILON * np.abs(theirs).max()


def test_bias_correction_reaches_the_packed_file(
    float_checkpoint: Checkpoint, features: np.ndarray, tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).standard_normal(24000).astype(np.float32) * 0.1
    soundfile.write(tmp_path / "a.wav", noise, 16000)
    (tmp_path / "manifest.jsonl").write_text('{"audio_filepath": "a.wav", "duration": 1.5, "text": "a"}\n')
    made = quantize_checkpoint(
        float_checkpoint, recipe(4, bias_correction=True), utterances=read_manifest(tmp_path)
    )
    assert made.quantization is not None
    assert len(made.quantization.bias_shifts) == len(made.quantization.weights)
    ours, theirs = packed_logits(made, features, tmp_path / "a.subtone"), simulated_logits(made, features)
    assert np.abs(ours - theirs).max() < np.abs(theirs).max() / 127
    plain = quantize_checkpoint(float_checkpoint, recipe(4))
    assert (
        np.abs(ours - packed_logits(plain, features, tmp_path / "b.subtone")).max()
        > np.abs(theirs).max() / 127
    )


def test_a_saved_checkpoint_packs_to_the_same_bytes(float_checkpoint: Checkpoint, tmp_path: Path) -> None:
    quantized = quantize_checkpoint(float_checkpoint, recipe(5))
    save_checkpoint(tmp_path / "q", quantized)
    for name, checkpoint in (("a", quantized), ("b", load_checkpoint(tmp_path / "q"))):
        write_packed(tmp_path / f"{name}.subtone", package(checkpoint, name="test"))
    assert (tmp_path / "a.subtone").read_bytes() == (tmp_path / "b.subtone").read_bytes()


def test_what_is_quantized_already_is_refused(float_checkpoint: Checkpoint) -> None:
    quantized = quantize_checkpoint(float_checkpoint, recipe(5))
    with pytest.raises(ValueError, match="already quantized"):
        quantize_checkpoint(quantized, recipe(4))


def test_inspect_lists_every_layer_and_every_float_weight(
    float_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    rules = [
        {"pattern": "head.*", "keep_float": True},
        {"kinds": ["depthwise"], "bits": 8},
        {"bits": 3, "activations": "dynamic"},
    ]
    made = quantize_checkpoint(
        float_checkpoint, Recipe.from_dict({"name": "t", "method": "linear", "rules": rules})
    )
    path = tmp_path / "a.subtone"
    write_packed(path, package(made, name="test"))
    document = describe(path)
    assert document["float_weights"] == ["head.weight"]
    assert document["file_bytes"] == path.stat().st_size
    total = document["header_bytes"] + document["padding_bytes"] + sum(document["section_bytes"].values())
    assert total == document["file_bytes"]
    layers = {layer["weight"]: layer for layer in document["layers"]}
    convolutions = [name for name, module in made.network.named_modules() if isinstance(module, nn.Conv1d)]
    assert set(layers) == {f"{name}.weight" for name in convolutions}
    assert layers["blocks.0.units.0.depthwise.weight"]["activations"] == "float"
    assert layers["blocks.0.units.0.pointwise.weight"]["bits"] == 3
    assert layers["blocks.0.units.0.pointwise.weight"]["distinct_levels"] <= 7  # symmetric: one of 8 unused
    assert document["weights_by_bits"].keys() == {"3", "8", "32"}


def test_the_file_is_as_large_as_the_arithmetic_says(float_checkpoint: Checkpoint, tmp_path: Path) -> None:
    weights = [value for value in float_checkpoint.network.state_dict().values() if value.ndim == 3]
    count, channels = sum(value.numel() for value in weights), sum(len(value) for value in weights)
    for bits in (4, 8):
        path = tmp_path / f"{bits}.subtone"
        write_packed(path, package(quantize_checkpoint(float_checkpoint, recipe(bits)), name="test"))
        document = describe(path)
        assert document["section_bytes"]["codes"] == count * bits // 8
        assert document["section_bytes"]["scale"] == 4 * channels


# The given model, on real speech -------------------------------------------------------------------


@pytest.fixture(scope="module")
def quartznet(shared: Path) -> Checkpoint:
    return load_checkpoint(shared / "models" / "quartznet15x5-en.nemo")


@pytest.fixture(scope="module")
def w8_file(quartznet: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quartznet") / "w8.subtone"
    write_packed(
        path, package(quantize_checkpoint(quartznet, Recipe.load(ROOT / "recipes" / "ptq-w8.toml")), name="q")
    )
    return path


@pytest.mark.speech
def test_the_given_model_at_8_bits_fits_its_file(w8_file: Path) -> None:
    document = describe(w8_file)
    assert w8_file.stat().st_size <= 19_600_000  # the bar of the main job
    assert document["float_weights"] == []
    assert document["section_bytes"]["codes"] == 18_847_040


@pytest.mark.speech
def test_the_given_model_hears_the_same_in_numpy_and_on_every_instruction_set(
    w8_file: Path, shared: Path
) -> None:
    model = read_packed(w8_file)
    utterances = sorted(
        read_manifest(shared / "data/librispeech/dev-clean-300"), key=lambda item: item.duration_s
    )
    front_end = FrontEnd.from_json(model.front_end)
    heard = front_end(read_audio(utterances[0].audio_path, front_end.rate_hz))
    expected = NumpyEngine(model.program, model.constants).run(heard)
    for isa in available_isas():
        for threads in (1, 2):
            logits = NativeEngine(model.program, model.constants, threads=threads, isa=isa).run(heard)
            np.testing.assert_array_equal(logits.view(np.int32), expected.view(np.int32))


def layer_in_torch(network: nn.Module, op: Conv1d, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One layer and its BatchNorm in float64 on the input the packed layer met, and a bound on rounding.

    The bound: n sums and 4 further steps, each off by half an epsilon of what has been summed.
    """
    conv = network.get_submodule(op.source)
    norm = dict(network.named_modules()).get(f"{op.source.rpartition('.')[0]}.norm")
    values = torch.from_numpy(features)
    if op.activation_bits:
        values = fake_quantize_activations(values, op.activation_bits)
    values = values.double().T[None]
    with torch.inference_mode():
        weight, bias = conv.weight.double(), None if conv.bias is None else conv.bias.double()
        shape = (conv.stride, conv.padding, conv.dilation, conv.groups)
        result = nn.functional.conv1d(values, weight, bias, *shape)
        size = nn.functional.conv1d(values.abs(), weight.abs(), None if bias is None else bias.abs(), *shape)
        if norm is not None and not op.source.endswith("depthwise"):
            gain = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
            shift = norm.bias.double() - norm.running_mean.double() * gain
            result = result * gain[:, None] + shift[:, None]
            size = size * gain.abs()[:, None] + shift.abs()[:, None]
    terms = weight[0].numel() + 4
    result = torch.relu(result) if op.relu else result
    return result[0].T.numpy(), (terms * EPSILON / 2 * size)[0].T.numpy()


@pytest.mark.speech
def test_every_layer_of_the_given_model_equals_torch_on_the_same_input(
    quartznet: Checkpoint, w8_file: Path, shared: Path
) -> None:
    quantized = quantize_checkpoint(quartznet, Recipe.load(ROOT / "recipes" / "ptq-w8.toml"))
    model = read_packed(w8_file)
    utterances = read_manifest(shared / "data/librispeech/dev-clean-300")
    shortest = min(utterances, key=lambda item: item.duration_s)
    features = quartznet.front_end(read_audio(shortest.audio_path, 16000))[:64]
    values = all_values(model.program, model.constants, features)
    for op in model.program.ops:
        if isinstance(op, Conv1d):
            expected, bound = layer_in_torch(quantized.network, op, values[op.input])
            assert (np.abs(values[op.output] - expected) <= bound).all(), op.source


@pytest.mark.speech
def test_the_given_model_packed_and_simulated_decide_alike(
    quartznet: Checkpoint, w8_file: Path, shared: Path
) -> None:
    """End to end no bound holds: a sum taken in another order moves a level, 75 layers multiply that.

    Measured on five utterances: 99.5 % of the frames agree; rounding to 8 bits itself changes 1.0 %
    of the float model's. Where two letters are as likely ("quilter", "cuilter"), that decides.
    """
    quantized = quantize_checkpoint(quartznet, Recipe.load(ROOT / "recipes" / "ptq-w8.toml"))
    assert quantized.quantization is not None
    simulate(quantized.network, quantized.quantization)
    packed, simulated = Session.load(w8_file).recognizer, quantized.recognizer()
    utterances = read_manifest(shared / "data/librispeech/dev-clean-300")
    agreed: list[bool] = []
    for item in spread([item for item in utterances if item.duration_s < 4], 3):
        heard = packed.front_end(read_audio(item.audio_path, 16000))
        agreed.extend(packed.logits(heard).argmax(1) == simulated.logits(heard).argmax(1))
    assert np.mean(agreed) > 0.98


@pytest.mark.speech
def test_no_operation_of_the_packed_model_is_left_in_float_but_those_that_span_frames(w8_file: Path) -> None:
    program = read_packed(w8_file).program
    in_float = [op for op in program.ops if isinstance(op, Conv1d) and not op.activation_bits]
    assert all(op.kernel > 1 and op.groups > 1 for op in in_float)
    assert len(in_float) == 77  # depthwise convolutions: 1 + 15 * 5 + 1
