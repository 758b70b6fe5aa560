"""`subtone.accelerate` swaps what a packed file would run in integers, gives its bits, and names the rest."""

from __future__ import annotations

import copy
import dataclasses
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import subtone
from subtone.export.package import package_module
from subtone.models.checkpoints import Checkpoint
from subtone.models.quartznet import Block, QuartzNet, QuartzNetConfig
from subtone.quantize import Recipe, Rule
from subtone.quantize.apply import quantize_checkpoint, quantize_module
from subtone.runtime.engine import NumpyEngine, available_isas
from subtone.runtime.products import quantized_product
from subtone.speech.features import FrontEnd
from subtone.speech.text import CharTokenizer

if not available_isas():
    pytest.skip("the native library was not built", allow_module_level=True)

from subtone.torch import Acceleration, PackedConv1d, PackedLayer, PackedLinear

TOKENIZER = CharTokenizer(tuple("abcd"))
RECIPES = Path(__file__).resolve().parents[1] / "recipes"


def recipe(bits: int = 4, **settings: object) -> Recipe:
    given = {
        "bits": bits,
        "grid": "symmetric",
        "granularity": "channel",
        "activations": "dynamic",
        **settings,
    }
    return Recipe(name="w", method="linear", rules=[Rule(**given)])


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 40, bias=False), nn.ReLU(), nn.Linear(40, 5)
    ).eval()


def frames(count: int = 9, width: int = 6) -> torch.Tensor:
    return torch.randn(1, count, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "settings",
    [
        {"bits": 8}, {"bits": 4}, {"bits": 1}, {"bits": 5, "grid": "asymmetric"}, {"bits": 4, "grid": "codebook"},
        {"bits": 4, "activation_bits": 4}, {"bits": 3, "granularity": "tensor"},
    ],
)  # fmt: skip
def test_a_network_of_products_gives_the_bits_of_its_packed_file(settings):
    model, x = mlp(), frames()
    before = copy.deepcopy(model)
    found = subtone.accelerate(model, recipe(**settings))
    file = package_module(
        before, layout="frames", num_features=6, frames_per_step=1, tokenizer=TOKENIZER,
        quantization=found.quantization, name="mlp",
    )  # fmt: skip
    logits = NumpyEngine(file.program, file.constants).run(x[0].numpy())
    assert np.array_equal(model(x)[0].numpy(), logits)
    assert found.packed == ("0", "2", "4")


@pytest.mark.parametrize("name", ["parakeet", "wav2vec2"])
def test_every_packed_layer_of_a_hugging_face_model_is_the_definition(name):
    model, x = hugging_face(name)
    with torch.inference_mode():
        before = model(x).logits
    found = subtone.accelerate(model, recipe(8))
    layers = {path: module for path, module in model.named_modules() if isinstance(module, PackedLayer)}
    assert set(layers) == set(found.packed)
    checked = []
    for path, layer in layers.items():
        layer.register_forward_hook(
            lambda module, args, y, path=path: checked.append((path, module, args[0], y))
        )
    with torch.inference_mode():
        after = model(x).logits
    for path, layer, given, got in checked:
        axis = -2 if isinstance(layer, PackedConv1d) else -1
        rows = given.movedim(axis, -1).reshape(-1, layer.num_inputs).numpy()
        wanted = quantized_product(
            np.ascontiguousarray(rows), found.quantization.weights[f"{path}.weight"], 8
        )
        if layer.product.bias is not None:
            wanted = wanted + layer.product.bias
        assert np.array_equal(got.movedim(axis, -1).reshape(wanted.shape).numpy(), wanted), path
    assert {path for path, *_ in checked} == set(layers)
    assert (after - before).abs().max() < 0.2 * before.std()  # 8 bits: the same network still
    linears = {path for path, module in model.named_modules() if type(module) is nn.Linear}
    assert linears == set()


def hugging_face(name: str) -> tuple[nn.Module, torch.Tensor]:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    if name == "parakeet":
        encoder = {**small, "conv_kernel_size": 5, "subsampling_conv_channels": 4, "num_mel_bins": 16}
        config = transformers.ParakeetCTCConfig(vocab_size=11, pad_token_id=10, encoder_config=encoder)
        return transformers.ParakeetForCTC(config).eval(), torch.randn(2, 80, 16)
    config = transformers.Wav2Vec2Config(
        **small, vocab_size=11, conv_dim=(8,) * 7, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=4
    )
    return transformers.Wav2Vec2ForCTC(config).eval(), torch.randn(1, 4000)


def test_a_hugging_face_model_in_bfloat16_keeps_its_type_and_is_saved_as_one(tmp_path):
    from safetensors.torch import load_file

    model, x = hugging_face("wav2vec2")
    model = model.bfloat16()
    with torch.inference_mode():
        before = model(x.bfloat16()).logits
        found = subtone.accelerate(model, recipe(8))
        after = model(x.bfloat16()).logits
    assert after.dtype == torch.bfloat16
    assert (after - before).abs().max() < 0.2 * before.std()
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert {f"{path}.codes" for path in found.packed} <= stored.keys()


def test_an_accelerated_hugging_face_model_is_compiled_as_one_graph():
    model, x = hugging_face("wav2vec2")
    subtone.accelerate(model, recipe(8))
    block = model.wav2vec2.encoder.layers[0]
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    x = torch.randn(1, 12, 32)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(x), block(x))


def test_a_quantized_checkpoint_needs_no_recipe():
    torch.manual_seed(0)
    network = QuartzNet(QuartzNetConfig(blocks=(Block(filters=16, kernel=5, stride=2),))).eval()
    source = Checkpoint(
        network=network, front_end=FrontEnd(), tokenizer=CharTokenizer(tuple(" abcdefghijklmnopqrstuvwxyz'"))
    )
    quantized = quantize_checkpoint(source, recipe(4))
    decoded = copy.deepcopy(quantized.network)
    found = subtone.accelerate(quantized)
    assert found.packed
    assert all(isinstance(quantized.network.get_submodule(path), PackedConv1d) for path in found.packed)
    assert set(found.left.values()) == {"of Conv1d (depthwise), for which there is no packed layer"}
    x = torch.randn(1, 64, 50)
    lengths = torch.tensor([50])
    with torch.inference_mode():
        was, now = decoded(x, lengths)[0], quantized.network(x, lengths)[0]
    assert 0 < (was - now).abs().max() < 0.05 * was.std()  # activations of 8 bits


def test_what_no_packed_layer_takes_is_named_and_decoded():
    class Own(nn.Conv1d):
        def forward(self, x):
            return super().forward(x)

    torch.manual_seed(0)
    model = nn.ModuleDict(
        {
            "wide": nn.Conv1d(6, 8, 3), "depth": nn.Conv1d(8, 8, 3, groups=8), "point": nn.Conv1d(8, 8, 1),
            "own": Own(8, 8, 1), "lstm": nn.LSTM(8, 8), "attention": nn.MultiheadAttention(8, 2),
            "normed": weight_norm(nn.Linear(8, 8)), "hooked": nn.Linear(8, 8), "torchs": nn.TransformerEncoderLayer(8, 2, 16),
            "names": nn.Embedding(5, 8),
        }
    ).eval()  # fmt: skip
    model["hooked"].register_forward_hook(lambda *_: None)
    before = {name: part.clone() for name, part in model.state_dict().items()}
    found = subtone.accelerate(model, recipe(4))
    assert found.packed == ("point",)
    reasons = dict(found.left)
    no_layer = "for which there is no packed layer"
    assert reasons["wide.weight"] == f"of Conv1d (conv), {no_layer}"
    assert reasons["depth.weight"] == f"of Conv1d (depthwise), {no_layer}"
    assert reasons["names.weight"] == f"of Embedding (embedding), {no_layer}"
    assert reasons["lstm.weight_hh_l0"] == f"of LSTM (lstm), {no_layer}"
    assert reasons["attention.in_proj_weight"] == f"of MultiheadAttention (linear), {no_layer}"
    assert reasons["own.weight"] == "of Own, a class with a forward of its own"
    assert reasons["attention.out_proj.weight"].startswith("of NonDynamicallyQuantizableLinear, a class with")
    assert reasons["normed.weight"] == "computed anew from other parameters, and float"
    assert reasons["hooked.weight"] == "of a layer with hooks"
    assert (
        reasons["torchs.linear1.weight"] == "inside nn.TransformerEncoderLayer, which reads the weight itself"
    )
    for path in found.left.keys() - {"normed.weight"}:
        assert torch.equal(
            model.get_parameter(path), torch.from_numpy(found.quantization.weights[path].dequantize())
        )
    assert torch.equal(model["normed"].weight, weight_of_norm(before))
    with torch.inference_mode():  # torch's own fast path still finds what it reads
        assert model["torchs"](torch.randn(3, 1, 8)).shape == (3, 1, 8)
    assert "of a layer with hooks: hooked.weight" in str(found)


def weight_of_norm(state: dict[str, torch.Tensor]) -> torch.Tensor:
    size, direction = (state[f"normed.parametrizations.weight.original{part}"] for part in (0, 1))
    return torch._weight_norm(direction, size, 0)


def test_a_layer_held_twice_and_a_weight_held_by_two_layers_are_packed_where_they_stand():
    torch.manual_seed(0)
    shared, first, second = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
    second.weight = first.weight
    model, x = nn.Sequential(shared, shared, first, second, second).eval(), torch.randn(2, 8)
    found = subtone.accelerate(model, recipe(8))
    assert found.packed == ("0", "1", "2", "3", "4")
    assert model[0] is model[1]
    assert model[3] is model[4]
    assert model[2].product is not model[3].product  # their biases differ
    rows = x.numpy()
    for index, (path, layer) in enumerate(zip(("0", "0", "2", "2", "2"), model, strict=True)):
        bias = (shared, shared, first, second, second)[index].bias.detach().numpy()
        rows = quantized_product(rows, found.quantization.weights[f"{path}.weight"], 8) + bias
        assert isinstance(layer, PackedLinear)
    assert np.array_equal(model(x).numpy(), rows)


def test_found_shifts_and_clips_are_served():
    model, x = mlp(), frames() * 3
    quantization = quantize_module(model, recipe(8))
    shift = np.linspace(-1, 1, 40, dtype=np.float32)
    quantization = dataclasses.replace(
        quantization, bias_shifts={"2.weight": shift}, activation_clips={"0.weight": 0.5}
    )
    file = package_module(
        model, layout="frames", num_features=6, frames_per_step=1, tokenizer=TOKENIZER,
        quantization=quantization, name="mlp",
    )  # fmt: skip
    subtone.accelerate(model, quantization)
    logits = NumpyEngine(file.program, file.constants).run(x[0].numpy())
    assert np.array_equal(model(x)[0].numpy(), logits)


def test_a_recipe_may_be_named_or_a_file():
    for how in ("ptq-w8", RECIPES / "ptq-w8.toml", str(RECIPES / "ptq-w8.toml")):
        assert subtone.accelerate(mlp(), how).quantization.recipe["name"] == "ptq-w8"


def test_the_readmes_lines_run_on_a_model_of_transformers(capsys):
    readme = (RECIPES.parent / "README.md").read_text(encoding="utf-8")
    lines = readme.partition("### Inside PyTorch\n")[2].partition("\n    ")[2].partition("\n\n")[0]
    model, features = hugging_face("parakeet")
    names = {"model": model, "features": features}
    exec(textwrap.dedent("    " + lines), names)
    assert names["logits"].shape == (2, 10, 11)
    # Two feed-forward modules of 2, attention of 5, two pointwise convolutions, and the one behind the subsampling.
    assert capsys.readouterr().out.startswith("12 layers packed: ")


def test_bytes_are_those_of_the_layers():
    model = mlp()
    found = subtone.accelerate(model, recipe(8))
    assert isinstance(found, Acceleration)
    assert found.float_bytes == 4 * (6 * 32 + 32 * 40 + 40 * 5)
    assert found.packed_bytes == sum(
        layer.product.num_bytes for layer in model if isinstance(layer, PackedLayer)
    )
    assert str(found).startswith("3 layers packed: 0.0 MB of floats are 0.0 MB; 0 weights left to torch")


def accelerated() -> nn.Sequential:
    model = mlp()
    subtone.accelerate(model, recipe(8))
    return model


def quantized_checkpoint() -> Checkpoint:
    network = QuartzNet(QuartzNetConfig(blocks=(Block(filters=16, kernel=5, stride=2),))).eval()
    tokenizer = CharTokenizer(tuple(" abcdefghijklmnopqrstuvwxyz'"))
    return quantize_checkpoint(
        Checkpoint(network=network, front_end=FrontEnd(), tokenizer=tokenizer), recipe(8)
    )


def to_integers(model: nn.Module):
    return dataclasses.replace(quantize_module(model, recipe(8)), ranges={"x": (0.0, 1.0)})


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: subtone.accelerate(mlp()), r"the model is float; give a recipe, as in accelerate\(model, 'ptq-w8'\)"),
        (lambda: subtone.accelerate(mlp().train(), "ptq-w8"), r"the model is in training mode.*call eval\(\) first"),
        (lambda: subtone.accelerate(mlp().to("meta"), "ptq-w8"), r"the model is on meta;.*call \.cpu\(\) first"),
        (lambda: subtone.accelerate(accelerated(), "ptq-w8"), "the model is accelerated already; make it anew"),
        (lambda: subtone.accelerate(mlp(), "ptq-w88"), "recipe ptq-w88 is neither a file nor shipped"),
        (lambda: subtone.accelerate(quantized_checkpoint(), "ptq-w8"), "the checkpoint is quantized already; leave out"),
        (lambda: subtone.accelerate(mlp(), to_integers(mlp())), "quantized to integers alone, which only a packed file"),
        (lambda: subtone.accelerate(nn.Linear(8, 8).eval(), recipe()), r"the model is one layer.*put it into nn\.Sequential"),
        (lambda: subtone.accelerate(mlp(), recipe(activations="float")), r"no layer can be packed \(met by float activations"),
        (
            lambda: subtone.accelerate(nn.Sequential(nn.Linear(7, 32)).eval(), quantize_module(mlp(), recipe())),
            r"0\.weight is \(32, 7\), quantized as \(32, 6\); give the quantization of this model",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_accelerated_is_refused_with_what_to_do(act, message):
    with pytest.raises(ValueError, match=message):
        act()


def test_a_refused_model_is_left_as_it_was():
    model = mlp()
    before = [part.clone() for part in model.parameters()]
    with pytest.raises(ValueError, match="no layer can be packed"):
        subtone.accelerate(model, recipe(activations="float"))
    assert all(torch.equal(was, now) for was, now in zip(before, model.parameters(), strict=True))


def test_code_that_asks_a_layer_for_what_it_was_still_runs():
    """T5 asks for the dtype of a weight in every pass; others for sizes."""
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(
        vocab_size=30, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    torch.manual_seed(0)
    model = transformers.T5EncoderModel(config).eval()
    tokens = torch.arange(12)[None]
    with torch.inference_mode():
        before = model(tokens).last_hidden_state
        subtone.accelerate(model, "ptq-w8")
        after = model(tokens).last_hidden_state
    assert (after - before).norm() < 0.05 * before.norm()


def test_a_packed_layer_shows_what_it_holds():
    model, rounded = mlp(), mlp()
    done = subtone.accelerate(model, recipe())
    linear = model[0]
    assert (linear.in_features, linear.out_features) == (6, 32)
    assert np.array_equal(linear.weight.numpy(), done.quantization.weights["0.weight"].dequantize())
    assert torch.equal(linear.bias, rounded[0].bias)
    assert model[2].bias is None
    convolution = nn.Sequential(nn.Conv1d(6, 4, 1)).eval()
    subtone.accelerate(convolution, recipe())
    assert convolution[0].weight.shape == (4, 6, 1)
    assert (convolution[0].in_channels, convolution[0].out_channels) == (6, 4)
    assert convolution[0].kernel_size == (1,)


def test_a_recipe_that_listens_takes_examples():
    model = mlp()
    with pytest.raises(ValueError, match="calibration"):
        subtone.accelerate(model, recipe(rounding="compensated"))
    heard = frames(200)
    subtone.accelerate(model, recipe(rounding="compensated"), examples=[heard])
    nearest = mlp()
    subtone.accelerate(nearest, recipe())
    with torch.inference_mode():
        meant = mlp()(heard)
        assert (model(heard) - meant).norm() < (nearest(heard) - meant).norm()


def test_a_layer_of_too_many_inputs_is_left_to_torch():
    model = nn.Sequential(nn.Linear(8, 70_000), nn.Linear(70_000, 2)).eval()
    done = subtone.accelerate(model, recipe())
    assert done.packed == ("0",)
    assert "65535 inputs" in done.left["1.weight"]
