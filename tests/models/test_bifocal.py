"""Two cells on one state: equal to the loop, chosen frame by frame, quantized like any LSTM."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from tests.models.transducer_variants import BIFOCAL, TRANSDUCERS, random_features, random_network
from tests.reference import transducer as reference

from subtone.models.bifocal import BifocalConfig, BifocalEncoder
from subtone.models.switched_lstm import switched_lstm
from subtone.quantize.weights import quantizable_weights

INPUTS, WIDTH, SMALL_INPUTS, SMALL_WIDTH, FRAMES = 5, 6, 3, 2, 12


def random_cells(seed: int = 0) -> list[torch.Tensor]:
    torch.manual_seed(seed)
    shapes = [(4 * WIDTH, INPUTS), (4 * WIDTH, WIDTH), (4 * WIDTH,)]
    shapes += [(4 * SMALL_WIDTH, SMALL_INPUTS), (4 * SMALL_WIDTH, SMALL_WIDTH), (4 * SMALL_WIDTH,)]
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


def random_rows(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return (
        torch.randn(batch, FRAMES, INPUTS, dtype=torch.float64),
        torch.randn(batch, FRAMES, dtype=torch.float64),
    )


def test_it_equals_the_loop_of_the_reference() -> None:
    cells, (rows, gate) = random_cells(), random_rows()
    gate[0, 3] = 0.0  # exactly on the border: small
    assert 0 < int((gate > 0).sum()) < gate.numel()
    found = switched_lstm(rows, gate, *cells)
    arrays = [value.numpy() for value in cells]
    large, small = reference.Cell(*arrays[:3]), reference.Cell(*arrays[3:])
    for utterance in range(2):
        expected = reference.switched_lstm(rows[utterance].numpy(), gate[utterance].numpy(), large, small)
        np.testing.assert_allclose(found[utterance].numpy(), expected, rtol=0, atol=1e-13)


def test_an_open_gate_is_torchs_lstm_and_a_closed_one_its_small_one() -> None:
    cells, (rows, _) = random_cells(), random_rows()
    for is_large, of in ((True, cells[:3]), (False, cells[3:])):
        layer = torch.nn.LSTM(of[0].shape[1], of[1].shape[1], batch_first=True, dtype=torch.float64)
        with torch.no_grad():
            for name, value in zip(("weight_ih_l0", "weight_hh_l0", "bias_ih_l0"), of, strict=True):
                getattr(layer, name).copy_(value)
            layer.bias_hh_l0.zero_()
        gate = torch.full((2, FRAMES), 1.0 if is_large else -1.0, dtype=torch.float64)
        found = switched_lstm(rows, gate, *cells)
        alone = layer(rows[..., : of[0].shape[1]])[0]
        torch.testing.assert_close(found[..., : of[1].shape[1]], alone, rtol=0, atol=1e-13)
        assert is_large or not found[..., SMALL_WIDTH:].any()


def test_the_small_cell_leaves_the_other_units_as_they_were() -> None:
    cells, (rows, gate) = random_cells(), random_rows(batch=1)
    found = switched_lstm(rows, gate, *cells)[0]
    for frame in range(1, FRAMES):
        is_kept = torch.equal(found[frame, SMALL_WIDTH:], found[frame - 1, SMALL_WIDTH:])
        assert is_kept == bool(gate[0, frame] <= 0)


def test_the_gates_gradient_is_that_of_the_sigmoid_between_both_cells() -> None:
    """One frame, so that nothing is carried on: d loss / d gate = sigmoid' * sum of (large - small)."""
    cells, (rows, gate) = random_cells(), random_rows(batch=1)
    rows, gate = rows[:, :1], gate[:, :1].requires_grad_()
    switched_lstm(rows, gate, *cells).sum().backward()
    large, small = (
        switched_lstm(rows, torch.full_like(gate, sign), *cells).sum().detach() for sign in (1.0, -1.0)
    )
    soft = torch.sigmoid(gate.detach())
    torch.testing.assert_close(gate.grad, soft * (1 - soft) * (large - small))


def test_no_frames_give_no_rows() -> None:
    rows, gate = random_rows()
    assert switched_lstm(rows[:, :0], gate[:, :0], *random_cells()).shape == (2, 0, WIDTH)


@pytest.mark.parametrize(
    ("position", "shape", "text"),
    [
        (1, (2, 3), "do not fit; use (B, T, K) and (B, T)"),
        (2, (24, 4), "weight_ih has shape (24, 4), which does not fit; use (24, 5)"),
        (7, (7,), "small_bias has shape (7,), which does not fit; use (8,)"),
        (5, (8, 6), "the small cell of 6 inputs and 2 units is larger than the large one of 5 and 6"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(position: int, shape: tuple[int, ...], text: str) -> None:
    values = [*random_rows(), *random_cells()]
    values[position] = torch.zeros(shape, dtype=torch.float64)
    with pytest.raises(ValueError, match=re.escape(text)):
        switched_lstm(*values)


def test_both_cells_work_in_the_encoder_that_the_tests_of_transducers_use() -> None:
    encoder = random_network(TRANSDUCERS["bifocal"]).encoder
    is_large = encoder.gates(random_features()) > 0
    assert is_large.any()
    assert not is_large.all()


def test_every_weight_of_both_cells_and_of_the_gate_can_reach_few_bits() -> None:
    encoder = BifocalEncoder(BIFOCAL)
    kinds = {path: weight.kind for path, weight in quantizable_weights(encoder).items()}
    lstm = {
        f"layers.{n}.{cell}.weight_{of}_l0"
        for n in range(3)
        for cell in ("large", "small")
        for of in ("ih", "hh")
    }
    assert {path for path, kind in kinds.items() if kind == "lstm"} == lstm
    assert set(kinds) - lstm == {"gate_hidden.weight", "gate_out.weight"}
    left_out = {name for name, value in encoder.named_parameters() if value.dim() > 1} - set(kinds)
    assert left_out == set()


def test_a_config_is_refused_at_the_door() -> None:
    with pytest.raises(ValueError, match="bifocal small_width=8 must be less than width=8"):
        BifocalConfig(width=8, small_width=8)
    with pytest.raises(ValueError, match="bifocal num_layers=0 must be"):
        BifocalConfig(num_layers=0)
    with pytest.raises(ValueError, match=r"a config of family bifocal does not know layers"):
        BifocalConfig.from_json({**BIFOCAL.to_json(), "layers": 3})
