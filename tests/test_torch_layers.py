"""Packed layers are the layers that they stand for, and are copied, saved, loaded, compiled and exported like any."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from tests.runtime.small_programs import GRIDS, features_of, packed_weight
from torch import nn

from subtone.runtime.engine import available_isas
from subtone.runtime.products import quantized_product

if not available_isas():
    pytest.skip("the native library was not built", allow_module_level=True)

from subtone.torch import PackedConv1d, PackedLinear

RNG = np.random.default_rng(0)


def bias_of(outputs: int) -> np.ndarray:
    return RNG.normal(size=outputs).astype(np.float32)


def network(*, bits: int = 4, grid: str = "symmetric") -> nn.Sequential:
    first = PackedLinear(packed_weight(RNG, (12, 16), bits=bits, grid=grid, groups=2), bias_of(12), clip=1.5)
    second = PackedLinear(packed_weight(RNG, (5, 12), bits=8, grid="symmetric"), activation_bits=4)
    return nn.Sequential(first, nn.ReLU(), second).eval()


def rows(*shape: int) -> torch.Tensor:
    return torch.from_numpy(features_of(RNG, int(np.prod(shape[:-1])), shape[-1])).reshape(shape)


@pytest.mark.parametrize("grid", GRIDS)
def test_a_linear_layer_is_the_definition(grid):
    weight, bias, x = packed_weight(RNG, (9, 20), bits=3, grid=grid, groups=2), bias_of(9), rows(2, 4, 20)
    y = PackedLinear(weight, bias, activation_bits=6)(x)
    wanted = quantized_product(x.numpy().reshape(8, 20), weight, 6) + bias
    assert np.array_equal(y.numpy().reshape(8, 9), wanted)


def test_a_pointwise_convolution_has_one_scale_a_frame():
    weight, bias, x = packed_weight(RNG, (9, 20, 1), bits=4, grid="symmetric"), bias_of(9), rows(2, 7, 20)
    layer = PackedConv1d(weight, bias)
    wanted = torch.from_numpy(quantized_product(x.numpy().reshape(14, 20), weight, 8) + bias).reshape(2, 7, 9)
    y = layer(x.transpose(1, 2))
    assert y.is_contiguous()
    assert torch.equal(y, wanted.transpose(1, 2))
    assert torch.equal(layer(x[0].T), wanted[0].T)


def test_a_learned_clip_comes_before_the_scale_of_a_row():
    weight, x = packed_weight(RNG, (9, 20), bits=4, grid="symmetric"), rows(3, 20) * 5
    y = PackedLinear(weight, clip=0.75)(x)
    assert np.array_equal(y.numpy(), quantized_product(np.clip(x.numpy(), -0.75, 0.75), weight, 8))


def test_a_copy_shares_the_packed_weight_and_gives_the_same():
    model, x = network(), rows(3, 16)
    copied = copy.deepcopy(model)
    assert copied[0].product is model[0].product
    before = model(x)
    del model
    assert torch.equal(copied(x), before)


def test_a_pickled_model_packs_itself_anew_where_it_is_loaded():
    model, x, stream = network(grid="codebook"), rows(3, 16), io.BytesIO()
    torch.save(model, stream)
    wanted, number = model(x), model[0].handle.item()
    del model  # as in another process, where nothing has its number
    stream.seek(0)
    loaded = torch.load(stream, weights_only=False)
    assert loaded[0].handle.item() != number
    assert torch.equal(loaded(x), wanted)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("bits", [1, 3, 4, 8])
def test_a_state_dict_is_plain_tensors_that_bring_the_model_back(bits, grid):
    model, other, x = network(bits=bits, grid=grid), network(bits=bits, grid=grid), rows(3, 16)
    assert not torch.equal(model(x), other(x))
    stream = io.BytesIO()
    torch.save(model.state_dict(), stream)
    stream.seek(0)
    state = torch.load(stream, weights_only=True)
    assert state["0.codes"].nbytes == -(-12 * 16 * bits // 8)
    other[0].clip = None
    other.load_state_dict(state)
    assert torch.equal(model(x), other(x))
    assert not [name for name in state if "handle" in name]


def test_a_state_dict_that_does_not_fit_is_refused_by_its_layer():
    model, state = network(), network().state_dict()
    wrong = {**state, "0.numbers": state["0.numbers"].flip(0)}
    with pytest.raises(
        RuntimeError, match=r"0: numbers=\[16, 12, 8, 16, 4\] are not bits, levels, activation bits"
    ):
        model.load_state_dict(wrong)
    with pytest.raises(RuntimeError, match=r"0: count=192 codes.* not uint8 \(95,\)"):
        model.load_state_dict({**state, "0.codes": state["0.codes"][1:]})
    turned = {f"0.{name.removeprefix('2.')}": part for name, part in state.items() if name.startswith("2.")}
    with pytest.raises(RuntimeError, match=r"0: shape=\(5, 12\) does not fit \(12, 16\), that of the layer"):
        model.load_state_dict({**{name: part for name, part in state.items() if name[0] == "2"}, **turned})
    with pytest.raises(RuntimeError, match=r'Missing key.*"2\.scale"'):
        model.load_state_dict({name: part for name, part in state.items() if name != "2.scale"})
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"2\.weight"'):
        model.load_state_dict({**state, "2.weight": torch.ones(1)})
    with pytest.raises(RuntimeError, match=r"0: scale is torch\.bfloat16 on cpu, not as it was saved"):
        model.load_state_dict({**state, "0.scale": state["0.scale"].bfloat16()})
    model.load_state_dict(state)


def test_what_becomes_of_a_loaded_state_dict_changes_nothing():
    model, x = network(), rows(3, 16)
    state = network().state_dict()
    model.load_state_dict(state)
    before = {name: part.clone() for name, part in model.state_dict().items()}
    for part in state.values():
        part.zero_()
    after = model.state_dict()
    assert all(torch.equal(after[name], part) for name, part in before.items())
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))


def test_other_precisions_of_the_model_leave_packed_layers_alone():
    model, x = network(), rows(3, 16)
    before = model(x)
    assert torch.equal(model.half()(x), before)
    assert torch.equal(model.double()(x), before)
    assert list(model.parameters()) == []


def test_a_compiled_model_is_one_graph_with_the_same_bits():
    model = network()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    for count in (1, 3, 8):
        x = rows(count, 16)
        with torch.inference_mode():
            assert torch.equal(compiled(x), model(x))


def test_blocks_that_differ_in_their_weights_alone_are_compiled_once():
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    blocks = [network(bits=bits) for bits in (2, 4, 8)]
    x = rows(3, 16)

    @torch.compile(backend=counter, fullgraph=True)
    def multiply(x: torch.Tensor, handle: torch.Tensor) -> torch.Tensor:
        return torch.ops.subtone.linear(x, handle, 12)

    for block in blocks:
        first = block[0]
        assert torch.equal(multiply(x.clamp(-1.5, 1.5), first.handle), first(x))
    assert counter.frame_count == 1


def test_an_exported_model_gives_the_same():
    model, x = network(), rows(3, 16)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},)).module()
    for count in (3, 8):
        x = rows(count, 16)
        assert torch.equal(exported(x), model(x))


def test_what_a_layer_says_of_itself():
    assert repr(network()[0]) == "PackedLinear(16, 12, bits=4, activation_bits=8, bias=True)"
