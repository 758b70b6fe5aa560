"""Checkpoints come back as they went; a damaged one says so in one line."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
import yaml

from subtone.models.checkpoints import Checkpoint, Quantization, load_checkpoint, save_checkpoint
from subtone.models.nemo_quartznet import quartznet_places
from subtone.models.quartznet import Block, QuartzNet, QuartzNetConfig
from subtone.numerics import symmetric_grid
from subtone.qtensor import QTensor
from subtone.speech.features import FrontEnd
from subtone.speech.text import CharTokenizer

LABELS = (" ", "a", "b")
CONFIG = QuartzNetConfig(
    num_outputs=4,
    blocks=(
        Block(filters=8, kernel=3, stride=2),
        Block(filters=8, kernel=3, repeat=2, has_residual=True),
        Block(filters=6, kernel=1, is_separable=False),
    ),
)


def checkpoint(**changes) -> Checkpoint:
    torch.manual_seed(0)
    network = QuartzNet(CONFIG)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            torch.nn.init.normal_(module.running_mean)
    parts = {"network": network.eval(), "front_end": FrontEnd(), "tokenizer": CharTokenizer(LABELS)}
    return Checkpoint(**{**parts, **changes})


def quantization(network: QuartzNet) -> Quantization:
    weights = {}
    for name in ("blocks.0.units.0.pointwise.weight", "blocks.1.units.0.depthwise.weight"):
        array = dict(network.named_parameters())[name].detach().numpy()
        absmax = np.abs(array).reshape(len(array), -1).max(1, keepdims=True)
        weights[name] = QTensor.on_grid(array, symmetric_grid(absmax, 4), 4, is_symmetric=True)
    name = "blocks.0.units.0.pointwise.weight"
    weights["blocks.2.units.0.conv.weight"] = QTensor.on_codebook(
        network.blocks[2].units[0].conv.weight.detach().numpy(),
        np.full((1, 1), 0.01, np.float32),
        np.array([-50, 0, 20], np.int8),
        bits=2,
    )
    return Quantization(
        weights=weights,
        activation_bits={name: 8 if "pointwise" in name else 0 for name in weights},
        bias_shifts={name: np.arange(8, dtype=np.float32)},
        recipe={"name": "test"},
    )


def decoded(source: Checkpoint) -> Checkpoint:
    made = quantization(source.network)
    with torch.no_grad():
        for name, weight in made.weights.items():
            source.network.get_parameter(name).copy_(torch.from_numpy(weight.dequantize()))
    return Checkpoint(
        network=source.network, front_end=source.front_end, tokenizer=source.tokenizer, quantization=made
    )


def same_weights(left: torch.nn.Module, right: torch.nn.Module) -> bool:
    states = left.state_dict(), right.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(states[0][name], states[1][name]) for name in states[0]
    )


def test_a_float_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    before = checkpoint()
    save_checkpoint(tmp_path / "float", before)
    after = load_checkpoint(tmp_path / "float")
    assert same_weights(before.network, after.network)
    assert (after.front_end, after.tokenizer, after.quantization) == (
        before.front_end,
        before.tokenizer,
        None,
    )
    assert not after.network.training


def test_a_quantized_checkpoint_holds_codes_and_comes_back_exactly(tmp_path: Path) -> None:
    before = decoded(checkpoint())
    save_checkpoint(tmp_path / "q", before)
    after = load_checkpoint(tmp_path / "q")
    assert same_weights(before.network, after.network)
    assert before.quantization is not None
    assert after.quantization is not None
    for name, weight in before.quantization.weights.items():
        loaded = after.quantization.weights[name]
        np.testing.assert_array_equal(loaded.codes, weight.codes)
        assert (loaded.bits, loaded.shape, loaded.num_levels) == (
            weight.bits,
            weight.shape,
            weight.num_levels,
        )
        assert (loaded.codebook is None) == (weight.codebook is None)
    assert after.quantization.activation_bits == before.quantization.activation_bits
    assert after.quantization.recipe == {"name": "test"}
    for name, shift in before.quantization.bias_shifts.items():
        np.testing.assert_array_equal(after.quantization.bias_shifts[name], shift)


def test_saving_replaces_a_checkpoint_but_nothing_else(tmp_path: Path) -> None:
    for _ in range(2):
        save_checkpoint(tmp_path / "float", checkpoint())
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("dear")
    with pytest.raises(ValueError, match="exists and is not a checkpoint"):
        save_checkpoint(tmp_path / "photos", checkpoint())
    (tmp_path / "photos" / "config.json").write_text('{"format": "of somebody else"}')
    with pytest.raises(ValueError, match="exists and is not a checkpoint"):
        save_checkpoint(tmp_path / "photos", checkpoint())
    assert (tmp_path / "photos" / "a.jpg").read_text() == "dear"
    (tmp_path / "float" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists and is not a checkpoint"):
        save_checkpoint(tmp_path / "float", checkpoint())
    (tmp_path / "empty").mkdir()
    save_checkpoint(tmp_path / "empty", checkpoint())


def test_a_full_disk_is_an_error_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(state: dict, path: Path) -> None:
        path.write_bytes(b"half")
        raise safetensors.SafetensorError("No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path / "float", checkpoint())
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_hears(tmp_path: Path) -> None:
    sound = np.random.default_rng(0).standard_normal(16000).astype(np.float32) * 0.1
    save_checkpoint(tmp_path / "float", checkpoint())
    text = load_checkpoint(tmp_path / "float").recognizer().hear(sound)
    assert text == checkpoint().recognizer().hear(sound)
    assert set(text) <= set(LABELS)


def damage_config(folder: Path, **changes) -> None:
    document = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(document))


DAMAGES = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    "no weights": (lambda folder: (folder / "weights.safetensors").unlink(), "no weights.safetensors"),
    "cut weights": (lambda folder: (folder / "weights.safetensors").write_bytes(b"\x01\x00"), "is damaged"),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), "is not JSON"),
    "foreign": (
        lambda folder: damage_config(folder, format="other"),
        "does not describe a subtone checkpoint",
    ),
    "newer": (lambda folder: damage_config(folder, version=2), "version 2; this subtone reads 1"),
    "other model": (lambda folder: damage_config(folder, model={"family": "x"}), "family='x' is not known"),
    "other blocks": (
        lambda folder: damage_config(folder, model=QuartzNetConfig(blocks=CONFIG.blocks[:1]).to_json()),
        "is not a whole checkpoint: RuntimeError",
    ),
    "model of another type": (lambda folder: damage_config(folder, model=3), "is not a whole checkpoint"),
    "quantized of another type": (
        lambda folder: damage_config(folder, quantized=["head.weight"]),
        "is not a whole checkpoint",
    ),
    "shape of another type": (
        lambda folder: damage_config(folder, quantized={"head.weight": {"shape": None, "bits": 4}}),
        "is not a whole checkpoint",
    ),
    "no tokenizer": (lambda folder: damage_config(folder, tokenizer={}), "tokenizer"),
    "lost codes": (
        lambda folder: damage_config(folder, quantized={"head.weight": {"shape": [4, 6, 1], "bits": 4}}),
        "head.weight.codes",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_says_so_in_one_line(tmp_path: Path, damage: str) -> None:
    save_checkpoint(tmp_path / "float", checkpoint())
    break_it, message = DAMAGES[damage]
    break_it(tmp_path / "float")
    with pytest.raises(ValueError, match=message) as caught:
        load_checkpoint(tmp_path / "float")
    assert "\n" not in str(caught.value)


# NeMo ----------------------------------------------------------------------------------------------


def changed(entries: dict, changes: dict | None) -> dict:
    return {key: value for key, value in (entries | (changes or {})).items() if value is not ...}


def write_nemo(
    path: Path,
    network: QuartzNet,
    *,
    drop: str = "",
    config: dict | None = None,
    row: dict | None = None,
    preprocessor: dict | None = None,
    encoder: dict | None = None,
    tensors: dict | None = None,
    members: tuple[str, ...] = ("config", "weights"),
) -> None:
    """A `.nemo` of `network`: the layout of PAPERS.md section 3 and of the given model.

    `row` (the second one's), `preprocessor`, `encoder` and `tensors` change entries; ... removes one.
    """
    blocks = [
        {
            "filters": block.filters,
            "repeat": block.repeat,
            "kernel": [block.kernel],
            "stride": [block.stride],
            "dilation": [block.dilation],
            "dropout": 0.0,
            "residual": block.has_residual,
            "separable": block.is_separable,
        }
        for block in network.config.blocks
    ]
    blocks[1] = changed(blocks[1], row)
    document = {
        "sample_rate": 16000,
        "labels": list(LABELS),
        "preprocessor": changed(
            {
                "sample_rate": 16000,
                "normalize": "per_feature",
                "window_size": 0.02,
                "window_stride": 0.01,
                "window": "hann",
                "features": 64,
                "n_fft": 512,
                "log": True,
            },
            preprocessor,
        ),
        "encoder": changed({"feat_in": 64, "jasper": blocks}, encoder),
    } | (config or {})
    state = {
        theirs: network.state_dict()[ours] for ours, theirs, _ in quartznet_places(network) if theirs != drop
    }
    weights = io.BytesIO()
    torch.save(changed(state, tensors), weights)
    parts = {
        "config": ("./model_config.yaml", yaml.safe_dump(document).encode()),
        "weights": ("./model_weights.ckpt", weights.getvalue()),
    }
    with tarfile.open(path, "w") as archive:
        for name in members:
            entry = tarfile.TarInfo(parts[name][0])
            entry.size = len(parts[name][1])
            archive.addfile(entry, io.BytesIO(parts[name][1]))


def test_a_nemo_file_gives_the_same_network(tmp_path: Path) -> None:
    network = checkpoint().network
    write_nemo(tmp_path / "a.nemo", network)
    loaded = load_checkpoint(tmp_path / "a.nemo")
    assert same_weights(loaded.network, network)
    assert loaded.network.config == network.config
    assert loaded.tokenizer.labels == LABELS
    assert loaded.front_end == FrontEnd()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"members": ("config",)}, "has no model_weights.ckpt"),
        ({"members": ("weights",)}, "has no model_config.yaml"),
        (
            {"drop": "decoder.decoder_layers.0.weight"},
            "lacks 1 weights, the first is decoder.decoder_layers.0.weight",
        ),
        ({"config": {"encoder": {"feat_in": 64}}}, "has no encoder.jasper"),
        ({"config": {"labels": ["a"]}}, r"has shape \(4, 6, 1\), the config needs \(2, 6, 1\)"),
        (
            {"config": {"preprocessor": {"normalize": "all_features"}}},
            "normalize='all_features' is not supported",
        ),
    ],
)
def test_a_nemo_file_that_lacks_something_says_what(tmp_path: Path, options: dict, message: str) -> None:
    write_nemo(tmp_path / "a.nemo", checkpoint().network, **options)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(tmp_path / "a.nemo")


REFUSED = {
    "squeeze and excite": ({"row": {"se": True}}, r"encoder.jasper\[1\].se=True is not supported"),
    "groups": ({"row": {"groups": 2}}, "groups=2 is not supported"),
    "heads": ({"row": {"heads": 4}}, "heads=4 is not supported"),
    "kernel factor": ({"row": {"kernel_size_factor": 0.5}}, "kernel_size_factor=0.5 is not supported"),
    "row's residual": ({"row": {"residual_mode": "max"}}, "residual_mode='max' is not supported"),
    "unknown row key": ({"row": {"gated": True}}, "gated=True is not known"),
    "two kernels": ({"row": {"kernel": [3, 5]}}, r"kernel=\[3, 5\] is not a whole number"),
    "no filters": ({"row": {"filters": ...}}, r"has no encoder.jasper\[1\].filters"),
    "even kernel": ({"row": {"kernel": [4]}}, r"a.nemo: encoder.jasper\[1\]: block kernel=4 must be odd"),
    "dropout as text": ({"row": {"dropout": "0.1"}}, "dropout='0.1' is not a number"),
    "activation": ({"encoder": {"activation": "swish"}}, "encoder.activation='swish' is not supported"),
    "unknown encoder key": ({"encoder": {"gates": 1}}, "encoder.gates=1 is not known"),
    "no rows": ({"encoder": {"jasper": []}}, r"encoder.jasper=\[\] has no rows"),
    "rows of nothing": ({"encoder": {"jasper": None}}, "encoder.jasper=None is not a list"),
    "a row of nothing": ({"encoder": {"jasper": [3]}}, r"encoder.jasper\[0\]=3 is not a section"),
    "labels of nothing": ({"config": {"labels": None}}, "labels=None is not a list"),
    "labels of numbers": ({"config": {"labels": [1]}}, "a.nemo: labels: label 1 is not one character"),
    "no n_fft": ({"preprocessor": {"n_fft": ...}}, "has no preprocessor.n_fft"),
    "no section": ({"config": {"preprocessor": 3}}, "preprocessor=3 is not a section"),
    "window as text": ({"preprocessor": {"window_size": "0.02"}}, "window_size='0.02' is not a number"),
    "window of 20.5 ms": ({"preprocessor": {"window_size": 0.0205}}, "window_size=0.0205 is not a whole"),
    "magnitude": ({"preprocessor": {"mag_power": 1.0}}, "preprocessor.mag_power=1.0 is not supported"),
    "floor of a kind": ({"preprocessor": {"log_zero_guard_value": "eps"}}, "value='eps' is not a number"),
    "unknown sound key": ({"preprocessor": {"gain": 2}}, "preprocessor.gain=2 is not known"),
    "too few samples": ({"preprocessor": {"n_fft": 256}}, "a.nemo: preprocessor: fft_size=256 must"),
    "other features": ({"preprocessor": {"features": 60}}, "feat_in=64 is not preprocessor.features=60"),
    "a weight too many": (
        {"tensors": {"encoder.encoder.1.mconv.9.fc.0.weight": torch.zeros(2)}},
        "has 1 weights that its config gives no place, the first is 'encoder.encoder.1.mconv.9.fc.0.weight'",
    ),
    "not a number": (
        {"tensors": {"decoder.decoder_layers.0.bias": torch.full((4,), torch.nan)}},
        "decoder.decoder_layers.0.bias' holds values that are not finite",
    ),
    "no tensor": ({"tensors": {"decoder.decoder_layers.0.bias": 3}}, "bias' in .* is a int, not a tensor"),
    "sparse": ({"tensors": {"x": torch.eye(2).to_sparse()}}, "'x' is a sparse or quantized tensor"),
    "other window": (
        {"tensors": {"preprocessor.featurizer.window": torch.hann_window(320, periodic=True)}},
        "preprocessor.featurizer.window is not what the preprocessor's config gives",
    ),
    "other filters": (
        {"tensors": {"preprocessor.featurizer.fb": torch.zeros(1, 80, 257)}},
        "preprocessor.featurizer.fb is not what the preprocessor's config gives",
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_nemo_file_that_we_would_compute_otherwise_is_refused_in_one_line(
    tmp_path: Path, reason: str
) -> None:
    options, message = REFUSED[reason]
    write_nemo(tmp_path / "a.nemo", checkpoint().network, **options)
    with pytest.raises(ValueError, match=message) as caught:
        load_checkpoint(tmp_path / "a.nemo")
    assert "a.nemo" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_nemo_file_may_spell_what_we_compute(tmp_path: Path) -> None:
    network, front_end = checkpoint().network, FrontEnd(low_hz=50.0, high_hz=7000.0, preemphasis=0.0)
    write_nemo(
        tmp_path / "a.nemo",
        network,
        row={"stride": 1, "kernel": 3, "se": False, "groups": 1, "heads": -1, "residual_mode": "add"},
        encoder={"activation": "relu", "conv_mask": True, "init_mode": "xavier_uniform"},
        preprocessor={
            "lowfreq": 50,
            "highfreq": 7000,
            "preemph": None,
            "log_zero_guard_value": 2.0**-24,
            "mag_power": 2.0,
            "dither": 1e-5,
            "pad_to": 16,
        },
        tensors={
            "preprocessor.featurizer.window": torch.hann_window(320, periodic=False),
            "preprocessor.featurizer.fb": torch.tensor(front_end.mel_filters)[None],
        },
    )
    loaded = load_checkpoint(tmp_path / "a.nemo")
    assert loaded.network.config == network.config
    assert loaded.front_end == front_end


def test_a_truncated_nemo_file_says_so_in_one_line(tmp_path: Path) -> None:
    write_nemo(tmp_path / "a.nemo", checkpoint().network)
    whole = (tmp_path / "a.nemo").read_bytes()
    for size in (0, 100, 600, 3000, len(whole) // 2):
        (tmp_path / "a.nemo").write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"a\.nemo (is not|has no)") as caught:
            load_checkpoint(tmp_path / "a.nemo")
        assert "\n" not in str(caught.value)


def test_a_nemo_file_runs_no_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    write_nemo(tmp_path / "a.nemo", checkpoint().network)
    weights = io.BytesIO()
    torch.save({"x": Evil()}, weights)
    with tarfile.open(tmp_path / "a.nemo", "r") as archive:
        config = archive.extractfile("./model_config.yaml").read()
    with tarfile.open(tmp_path / "evil.nemo", "w") as archive:
        for name, data in (("model_config.yaml", config), ("model_weights.ckpt", weights.getvalue())):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    with pytest.raises(ValueError, match="not a file of tensors that torch reads safely"):
        load_checkpoint(tmp_path / "evil.nemo")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "junk",
    [b"", b"junk", b"J\x01", b"M\x01", b"BINU\x00", b"T\x00", b"X\x01\x00", b"\x80\x02", b"junk" * 999],
)
def test_weights_that_are_junk_are_refused(junk: bytes, tmp_path: Path) -> None:
    """Some end in the middle of a number, which pickle unpacks without looking."""
    with tarfile.open(tmp_path / "junk.nemo", "w") as archive:
        for name, data in (("model_config.yaml", b"a: 1"), ("model_weights.ckpt", junk)):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    with pytest.raises(ValueError, match="not a file of tensors that torch reads safely"):
        load_checkpoint(tmp_path / "junk.nemo")


def test_other_files_are_no_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "a.nemo").write_bytes(b"not a tar" * 100)
    with pytest.raises(ValueError, match=r"is not a \.nemo file"):
        load_checkpoint(tmp_path / "a.nemo")
    (tmp_path / "a.pt").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"neither a checkpoint folder nor a \.nemo file"):
        load_checkpoint(tmp_path / "a.pt")
    with pytest.raises(ValueError, match="does not exist"):
        load_checkpoint(tmp_path / "missing")


@pytest.mark.speech
def test_the_given_model_is_read_whole(shared: Path) -> None:
    loaded = load_checkpoint(shared / "models" / "quartznet15x5-en.nemo")
    assert sum(value.numel() for value in loaded.network.parameters()) == 18_924_381
    assert loaded.tokenizer.blank_index == 28
    assert loaded.front_end == FrontEnd()


def test_who_may_read_the_config_may_read_the_weights(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", checkpoint())
    modes = {path.stat().st_mode for path in (tmp_path / "c").iterdir()}
    assert len(modes) == 1
