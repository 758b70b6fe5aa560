"""Convolutions over features, norms, gates and tables equal their loops bit for bit; torch within a bound."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.reference import sequence_ops as reference
from tests.runtime.bounds import F32, OF_FUNCTION, SLACK, U, lanes_depth, normal, wide
from tests.runtime.definitions import result, same_bits
from tests.runtime.small_programs import packed_weight
from torch.nn import functional

from subtone.program import SAME, ChannelNorm, Conv2d, Embedding, Glu, LayerNorm, Sinusoids
from subtone.runtime.sequence_ops import sinusoid_table

# Convolutions over frames and features ---------------------------------------------------

SHAPES = [
    {},
    {"kernel": 3, "padding": 1, "feature_kernel": 3, "feature_padding": 1},
    {"kernel": 3, "padding": 2, "padding_behind": 0, "feature_kernel": 3, "feature_padding": 1, "stride": 2,
     "feature_stride": 2},
    {"kernel": 2, "padding_behind": 3, "feature_kernel": 4, "feature_padding": 5, "feature_padding_behind": 0},
    {"feature_kernel": 5, "feature_stride": 3, "feature_padding_behind": 2, "stride": 3},
    {"kernel": 4, "padding": 5, "padding_behind": 5, "relu": True},
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("groups", "outputs"), [(1, 2), (3, 3), (3, 6)], ids=["dense", "depthwise", "doubled"]
)
def test_conv2d_is_the_loop_of_the_reference(shape, groups, outputs):
    rng = np.random.default_rng(0)
    op = Conv2d(input="x", output="y", weight="w", bias="b", in_channels=3, groups=groups, **shape)
    weight = normal(rng, outputs, 3 // groups, op.kernel, op.feature_kernel)
    constants = {"w": weight, "b": normal(rng, outputs)}
    for rows in (0, 1, 2, 7):
        x = normal(rng, rows, 3 * 6)
        got = result(op, {"x": x}, constants)
        assert same_bits(got, reference.conv2d(x, weight, constants["b"], op))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("groups", [1, 3])
def test_conv2d_is_that_of_torch(shape, groups):
    rng = np.random.default_rng(1)
    op = Conv2d(input="x", output="y", weight="w", bias="b", in_channels=3, groups=groups, **shape)
    weight, bias = normal(rng, 6, 3 // groups, op.kernel, op.feature_kernel), normal(rng, 6)
    x = normal(rng, 8, 3 * 6)
    behind = op.padding if op.padding_behind == SAME else op.padding_behind
    features_behind = op.feature_padding if op.feature_padding_behind == SAME else op.feature_padding_behind

    def in_torch(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> np.ndarray:
        image = x.reshape(8, 3, 6).movedim(1, 0)[None]  # (1, channels, T, features)
        image = functional.pad(image, (op.feature_padding, features_behind, op.padding, behind))
        stride = (op.stride, op.feature_stride)
        made = functional.conv2d(image, weight, bias, stride=stride, groups=groups)[0]
        return made.movedim(0, 1).reshape(made.shape[1], -1).numpy()

    got = result(op, {"x": x}, {"w": weight, "b": bias})
    truth = in_torch(wide(x), wide(weight), wide(bias))
    truth = np.maximum(truth, 0) if op.relu else truth
    magnitude = in_torch(wide(np.abs(x)), wide(np.abs(weight)), wide(np.abs(bias)))
    terms = 3 // groups * op.kernel * op.feature_kernel
    assert got.shape == truth.shape
    assert (np.abs(got - truth) <= SLACK * (terms + 2) * U * magnitude).all()


def test_conv2d_decodes_a_packed_weight_first():
    rng = np.random.default_rng(2)
    weight = packed_weight(rng, (4, 1, 3, 3), bits=4, grid="symmetric")
    op = Conv2d(input="x", output="y", weight="w", in_channels=2, groups=2, kernel=3, feature_kernel=3)
    x = normal(rng, 5, 10)
    assert same_bits(result(op, {"x": x}, {"w": weight}), reference.conv2d(x, weight.dequantize(), None, op))


# Norms, gates, tables --------------------------------------------------------------------


@pytest.mark.parametrize(("gain", "bias"), [("", ""), ("g", ""), ("", "b"), ("g", "b")])
@pytest.mark.parametrize("kind", [LayerNorm, ChannelNorm])
@pytest.mark.parametrize(("rows", "width"), [(0, 3), (1, 1), (3, 17), (40, 2)])
def test_norms_are_the_loop_of_the_reference(kind, gain, bias, rows, width):
    rng = np.random.default_rng(3)
    x, constants = normal(rng, rows, width) + 2, {"g": normal(rng, width), "b": normal(rng, width)}
    op = kind(input="x", output="y", epsilon=2.0**-17, gain=gain, bias=bias)
    expected = reference.norm(
        x, op.epsilon, constants.get(gain), constants.get(bias), is_by_column=kind is ChannelNorm
    )
    assert same_bits(result(op, {"x": x}, constants), expected)


@pytest.mark.parametrize("kind", [LayerNorm, ChannelNorm])
@pytest.mark.parametrize("offset", [0, 100])
def test_norms_are_those_of_torch(kind, offset):
    rng = np.random.default_rng(4)
    x, gain, bias, epsilon = normal(rng, 30, 30) + F32(offset), normal(rng, 30), normal(rng, 30), 2.0**-17
    got = result(
        kind(input="x", output="y", epsilon=epsilon, gain="g", bias="b"), {"x": x}, {"g": gain, "b": bias}
    )
    if kind is LayerNorm:
        truth = functional.layer_norm(wide(x), (30,), wide(gain), wide(bias), epsilon).numpy()
        lines = x.astype(np.float64)
    else:
        truth = functional.group_norm(wide(x.T)[None], 30, wide(gain), wide(bias), epsilon)[0].T.numpy()
        lines = x.astype(np.float64).T
    # The mean is wrong by (depth + 1) U of the largest, each distance by that and a rounding: `of_distance`.
    distance = lines - lines.mean(axis=1, keepdims=True)
    root = np.sqrt(np.square(distance).mean(axis=1, keepdims=True) + epsilon)
    depth = lanes_depth(30)
    of_distance = (depth + 2) * U * np.abs(lines).max(axis=1, keepdims=True)
    of_root = of_distance / root + (depth + 2) * U / 2 + 3 * U  # relative: mean |distance| is below the root
    error = of_distance / root + np.abs(distance) / root * of_root
    error = error if kind is LayerNorm else error.T
    bound = np.abs(gain) * error + 3 * U * (np.abs(truth) + 2 * np.abs(bias))
    assert (np.abs(got - truth) <= SLACK * bound).all()


def test_glu_is_the_loop_of_the_reference_and_that_of_torch():
    x = normal(np.random.default_rng(5), 6, 10, scale=3)
    got = result(Glu(input="x", output="y"), {"x": x}, {})
    assert same_bits(got, reference.glu(x))
    truth = functional.glu(wide(x), dim=1).numpy()
    assert (np.abs(got - truth) <= OF_FUNCTION * np.abs(x[:, :5]) + U * np.abs(truth)).all()


@pytest.mark.parametrize("bits", [0, 4])
def test_embedding_takes_the_row_and_beyond_both_ends_the_nearest(bits):
    rng = np.random.default_rng(6)
    table = packed_weight(rng, (5, 3), bits=4, grid="symmetric") if bits else normal(rng, 5, 3)
    x = np.array([[0], [4], [2], [-1], [5], [3e38], [-3e38], [3.9], [-0.0]], F32)
    got = result(Embedding(input="x", output="y", weight="w"), {"x": x}, {"w": table})
    rows = reference.decoded(table)
    assert same_bits(got, rows[[0, 4, 2, 0, 4, 4, 0, 3, 0]])
    assert same_bits(got, reference.embedding(x, rows))


@pytest.mark.parametrize("columns", [2, 4, 10])
@pytest.mark.parametrize("rows", [0, 1, 2, 9])
def test_sinusoids_are_the_loop_of_the_reference(rows, columns):
    op = Sinusoids(input="x", output="y", columns=columns)
    assert same_bits(result(op, {"x": np.zeros((rows, 3), F32)}, {}), reference.sinusoids(rows, columns))


def test_sinusoids_are_the_sines_and_cosines_of_their_distances():
    """2,000 turns, each wrong by some 4 roundings of float64, then one of float32."""
    rows, columns = 2000, 6
    distances = np.arange(rows - 1, -rows, -1)[:, None] / 10000 ** (np.arange(0, columns, 2) / columns)
    expected = np.stack([np.sin(distances), np.cos(distances)], axis=2).reshape(2 * rows - 1, columns)
    assert np.abs(sinusoid_table(rows, columns) - expected).max() < U + 2000 * 4 * 2.0**-52
