"""The program computes what torch computes; what it cannot compute is named."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from tests.runtime.definitions import all_values
from torch import Tensor, nn

from subtone.export.lower import UnsupportedOperatorError, lower, traces_kept
from subtone.models.checkpoints import Quantization
from subtone.models.quartznet import Block, QuartzNet, QuartzNetConfig
from subtone.numerics import asymmetric_grid, symmetric_grid
from subtone.program import MAX_FLOAT32, Add, Affine, Clip, Constant, Conv1d, Program
from subtone.qtensor import QTensor

EPSILON = float(np.finfo(np.float32).eps)


def lowered(
    network: nn.Module, quantization: Quantization | None = None
) -> tuple[Program, dict[str, Constant]]:
    config = network.config
    sizes = {"num_features": config.num_features, "frames_per_step": network.frames_per_step}
    program, constants = lower(network, **sizes, quantization=quantization)
    assert program.output_width == config.num_outputs
    return program, constants


def run(program: Program, constants: Mapping[str, Constant], features: np.ndarray) -> np.ndarray:
    return all_values(program, constants, features)[program.output]


def in_torch(network: nn.Module, features: np.ndarray) -> np.ndarray:
    """float64, so that the comparison has one error, not two."""
    with torch.inference_mode():
        return network.double()(torch.from_numpy(features).double().T[None])[0][0].numpy()


def quartznet() -> QuartzNet:
    torch.manual_seed(3)
    config = QuartzNetConfig(
        num_features=6,
        num_outputs=5,
        blocks=(
            Block(filters=8, kernel=5, stride=2),
            Block(filters=8, kernel=3, repeat=2, has_residual=True, dropout=0.1),
            Block(
                filters=10,
                kernel=3,
                dilation=2,
                is_separable=False,
                has_residual=True,
                has_dense_residual=True,
            ),
        ),
    )
    network = QuartzNet(config)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.weight)  # half of them negative
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            with torch.no_grad():
                module.weight[0] = 0.0
    return network.eval()


def sound(frames: int, width: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((frames, width)).astype(np.float32)


@pytest.mark.parametrize("frames", [1, 2, 37, 200])
def test_a_folded_program_equals_torch_with_any_batch_norm(frames: int) -> None:
    network = quartznet()
    program, constants = lowered(network)
    features = sound(frames)
    ours, theirs = run(program, constants, features), in_torch(network, features)
    # 6 layers deep, sums of at most 40 products each, of values that stay near 10.
    bound = 6 * 40 * EPSILON * max(1.0, np.abs(theirs).max())
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=bound)


def test_batch_norms_and_relus_leave_nothing_but_convolutions_and_sums() -> None:
    program, _ = lowered(quartznet())
    assert {type(op) for op in program.ops} == {Conv1d, Add}
    assert sum(op.relu for op in program.ops) == 4  # one a block and one between two repeats


def test_constants_are_named_by_their_modules() -> None:
    _, constants = lowered(quartznet())
    assert "blocks.1.units.0.pointwise.weight" in constants
    assert "blocks.1.units.0.norm.shift" in constants
    assert not any("running" in name for name in constants)


class Toy(nn.Module):
    """One module that maps (B, 4, T) to (B, T, 3)."""

    frames_per_step = 1

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.config = QuartzNetConfig(num_features=4, num_outputs=3, blocks=(Block(filters=1, kernel=1),))

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return self.body(features), lengths


class NormFirst(nn.Module):
    """A BatchNorm that no convolution can take in, and a Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(4), nn.Linear(4, 3)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.running_mean)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(torch.relu(self.norm(features)).transpose(1, 2))


def test_a_batch_norm_without_a_convolution_stays_an_operation_of_its_own() -> None:
    torch.manual_seed(0)
    network = Toy(NormFirst()).eval()
    program, constants = lowered(network)
    assert [type(op) for op in program.ops] == [Affine, Conv1d]
    assert program.ops[0].relu
    features = sound(9, width=4)
    np.testing.assert_allclose(
        run(program, constants, features), in_torch(network, features), rtol=0, atol=20 * EPSILON
    )


class ReusedPair(nn.Module):
    """A convolution with bias and its BatchNorm, both run twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4), nn.Conv1d(4, 3, 1)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.running_mean)

    def forward(self, features: Tensor) -> Tensor:
        for _ in range(2):
            features = torch.relu(self.norm(self.conv(features)))
        return self.head(features).transpose(1, 2)


def test_modules_that_run_twice_are_folded_once_each() -> None:
    torch.manual_seed(0)
    network = Toy(ReusedPair()).eval()
    program, constants = lowered(network)
    features = sound(9, width=4)
    np.testing.assert_allclose(
        run(program, constants, features), in_torch(network, features), rtol=0, atol=100 * EPSILON
    )


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
@pytest.mark.parametrize("is_symmetric", [True, False])
def test_a_quantized_weight_keeps_its_codes_through_folding(granularity: str, is_symmetric: bool) -> None:
    network = quartznet()
    weights, bits = {}, 4
    for name, value in network.named_parameters():
        if value.ndim < 2:
            continue
        array = value.detach().numpy()
        flat = np.moveaxis(array, 1, -1).reshape(len(array), -1)
        groups = flat.shape[1] // 2 if granularity == "group" and array.shape[1] % 2 == 0 else 1
        cells = flat.reshape(1, 1, -1) if granularity == "tensor" else flat.reshape(len(flat), groups, -1)
        grid = (
            symmetric_grid(np.abs(cells).max(-1), bits)
            if is_symmetric
            else asymmetric_grid(cells.min(-1), cells.max(-1), bits)
        )
        weights[name] = QTensor.on_grid(array, grid, bits, is_symmetric=is_symmetric)
    shift = np.arange(8, dtype=np.float32)
    quantization = Quantization(
        weights=weights,
        activation_bits=dict.fromkeys(weights, 0),
        bias_shifts={"blocks.1.units.0.pointwise.weight": shift},
        recipe={},
    )
    program, constants = lowered(network, quantization=quantization)
    for name, weight in weights.items():
        np.testing.assert_array_equal(constants[name].codes, weight.codes)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if name in weights:
                value.copy_(torch.from_numpy(weights[name].dequantize()))
        norm = network.blocks[1].units[0].norm
        norm.running_mean -= torch.from_numpy(shift)  # the shift stands before the BatchNorm
    features = sound(30)
    theirs = in_torch(network, features)
    bound = 6 * 40 * EPSILON * max(1.0, np.abs(theirs).max())
    np.testing.assert_allclose(run(program, constants, features), theirs, rtol=0, atol=bound)


def test_groups_keep_their_scales_and_get_a_gain() -> None:
    network = quartznet()
    name = "blocks.1.units.0.pointwise.weight"
    array = dict(network.named_parameters())[name].detach().numpy()
    grid = symmetric_grid(np.abs(array.reshape(8, 2, 4)).max(-1), 4)
    weight = QTensor.on_grid(array, grid, 4, is_symmetric=True)
    program, constants = lowered(
        network,
        quantization=Quantization(
            weights={name: weight}, activation_bits={name: 8}, bias_shifts={}, recipe={}
        ),
    )
    op = next(op for op in program.ops if isinstance(op, Conv1d) and op.weight == name)
    np.testing.assert_array_equal(constants[name].scale, weight.scale)
    assert op.gain == "blocks.1.units.0.norm.gain"
    assert op.activation_bits == 8


class WithOperator(nn.Module):
    def __init__(self, operator) -> None:
        super().__init__()
        self.conv, self.operator = nn.Conv1d(4, 3, 1), operator

    def forward(self, features: Tensor) -> Tensor:
        return self.operator(self.conv(features)).transpose(1, 2)


@pytest.mark.parametrize(
    ("operator", "message"),
    [
        (torch.cos, r"aten.cos.default of body cannot be packed"),
        (lambda x: x + 1.0, "body adds something other than two results"),
        (nn.Conv1d(3, 3, 3, padding="same"), "conv1d.padding of body.operator cannot be packed"),
        (nn.Linear(64, 3), "along frames"),
    ],
)
def test_an_operator_we_do_not_have_is_named_with_its_module(operator, message: str) -> None:
    with pytest.raises(UnsupportedOperatorError, match=message):
        lowered(Toy(WithOperator(operator)).eval())


def test_a_grouped_convolution_equals_torch() -> None:
    network = Toy(
        nn.Sequential(nn.Conv1d(4, 8, 3, groups=2, padding=1), nn.Conv1d(8, 3, 2), Transposed())
    ).eval()
    features = np.random.default_rng(1).normal(0, 1, (9, 4)).astype(np.float32)
    program, constants = lowered(network)
    np.testing.assert_allclose(
        run(program, constants, features), in_torch(network, features), rtol=0, atol=1e-6
    )


def test_a_parametrized_weight_is_refused() -> None:
    conv = nn.Conv1d(3, 3, 1)
    torch.nn.utils.parametrize.register_parametrization(conv, "weight", nn.ReLU())
    with pytest.raises(UnsupportedOperatorError, match="remove parametrizations"):
        lowered(Toy(WithOperator(conv)).eval())


class Tied(nn.Module):
    """Two Linears that share weight and bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.second.weight, self.second.bias = self.first.weight, self.first.bias

    def forward(self, features: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(features.transpose(1, 2))))))


def test_tied_weights_are_both_packed_in_few_bits() -> None:
    torch.manual_seed(0)
    network = Toy(Tied()).eval()
    name = "body.first.weight"
    array = network.body.first.weight.detach().numpy().copy()
    weight = QTensor.on_grid(
        array, symmetric_grid(np.abs(array).max(1, keepdims=True), 4), 4, is_symmetric=True
    )
    shift = np.arange(4, dtype=np.float32)
    quantization = Quantization(
        weights={name: weight}, activation_bits={name: 8}, bias_shifts={name: shift}, recipe={}
    )
    program, constants = lowered(network, quantization=quantization)
    tied = [op for op in program.ops if op.weight == name]
    assert len(tied) == 2
    assert [op.activation_bits for op in tied] == [8, 8]
    assert constants[name] is weight
    expected = network.body.first.bias.detach().numpy() + shift
    np.testing.assert_allclose(constants[tied[0].bias], expected, rtol=1e-6)


def test_a_weight_that_the_network_does_not_use_is_refused() -> None:
    weight = QTensor.on_grid(
        np.ones((3, 4), np.float32), symmetric_grid(np.ones((3, 1)), 4), 4, is_symmetric=True
    )
    stray = Quantization(weights={"body.gone.weight": weight}, activation_bits={}, bias_shifts={}, recipe={})
    with pytest.raises(ValueError, match=r"body\.gone\.weight is quantized, but"):
        lowered(Toy(Tied()).eval(), quantization=stray)


def test_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="call eval"):
        lowered(quartznet().train())


@pytest.mark.parametrize(
    ("operator", "ends"),
    [
        (nn.ReLU6(), (0.0, 6.0)),
        (nn.Hardtanh(), (-1.0, 1.0)),
        (nn.Hardtanh(-2, 0.1, inplace=True), (-2.0, float(np.float32(0.1)))),
        (lambda x: x.clamp(-0.5, 0.25), (-0.5, 0.25)),
        (lambda x: x.clamp(min=-1), (-1.0, MAX_FLOAT32)),
        (lambda x: torch.clamp(x, max=0.5), (-MAX_FLOAT32, 0.5)),
        (lambda x: x.clamp(-float("inf"), 1e39), (-MAX_FLOAT32, MAX_FLOAT32)),
    ],
    ids=["relu6", "hardtanh", "inplace", "clamp", "clamp from below", "clamp from above", "open ends"],
)
def test_clamps_become_clips_and_clip_as_torch_does(operator, ends) -> None:
    torch.manual_seed(0)
    network = Toy(WithOperator(operator)).eval()
    program, constants = lowered(network)
    assert [type(op) for op in program.ops] == [Conv1d, Clip]
    assert (program.ops[1].low, program.ops[1].high) == ends
    features = sound(50, width=4) * 10
    ours, theirs = run(program, constants, features), in_torch(network, features)
    # 4 products and a bias below 40 each.
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=6 * EPSILON * 40)
    assert Program.from_json(program.to_json()) == program


def test_a_clamp_whose_ends_do_not_ascend_is_refused() -> None:
    with pytest.raises(UnsupportedOperatorError, match=r"body clips to 1.0 and 1.0, which do not ascend"):
        lowered(Toy(WithOperator(lambda x: x.clamp(1, 1))).eval())


def test_a_batch_norm_joins_its_convolution_in_front_of_a_clip() -> None:
    network = Toy(nn.Sequential(nn.Conv1d(4, 3, 1), nn.BatchNorm1d(3), nn.ReLU6(), Transposed())).eval()
    assert [type(op) for op in lowered(network)[0].ops] == [Conv1d, Clip]


class Transposed(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return features.transpose(1, 2)


def test_a_kept_trace_gives_what_a_new_one_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    traced, export = [], torch.export.export

    def counted(*given: object, **named: object) -> object:
        traced.append(given)
        return export(*given, **named)

    monkeypatch.setattr(torch.export, "export", counted)
    network = Toy(nn.Sequential(nn.Conv1d(4, 3, 1), Transposed())).eval()
    path, weight = "body.0.weight", network.body[0].weight.detach().numpy()
    grid = symmetric_grid(np.abs(weight).max((1, 2)).reshape(-1, 1), 4)
    stored = QTensor.on_grid(weight, grid, 4, is_symmetric=True)
    few = Quantization(weights={path: stored}, activation_bits={path: 8}, bias_shifts={}, recipe={})
    with traces_kept():
        _, plain = lowered(network)
        program, constants = lowered(network, few)
        assert len(traced) == 1
    anew, _ = lowered(network, few)
    assert len(traced) == 2
    assert program == anew
    assert constants[path] is stored
    assert isinstance(plain[path], np.ndarray)
