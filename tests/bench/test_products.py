"""What is multiplied: the same codes at every width, weights of the papers' sizes, and what a mistaken shape is told."""

from __future__ import annotations

import numpy as np
import pytest

from subtone.bench.products import M_I, OUR_BITS, Granularity, Product, shape_of
from subtone.models.accounting import counts

WORD_PIECES, EMBEDDING = 2501, 512
KINDS = ("channel", "codebook", "group16")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", OUR_BITS)
def test_a_weight_of_every_kind_and_width_holds_the_upper_bits_of_the_same_codes(
    kind: str, bits: int
) -> None:
    product = Product(8, 64, 1)
    weight = product.weight(bits, Granularity.of(kind))
    weight.validate()
    assert (weight.bits, weight.shape) == (bits, (8, 64))
    assert np.array_equal(weight.codes, product.codes >> (8 - bits))
    assert weight.grid == ("codebook" if kind == "codebook" else "symmetric")
    assert weight.group_size == (16 if kind == "group16" else None)


@pytest.mark.parametrize("kind", KINDS)
def test_fewer_bits_stand_for_about_the_same_weight(kind: str) -> None:
    # A code less its lower bits moves by less than one level of those bits, which is 2 / 2**bits of the range.
    product = Product(8, 64, 1)
    fine = product.weight(8, Granularity("channel")).dequantize()
    for bits in (6, 4):
        coarse = product.weight(bits, Granularity("channel")).dequantize()
        assert np.abs(coarse - fine).max() <= product.scale.max() * 2 ** (8 - bits)


def test_products_of_one_size_differ_by_their_place() -> None:
    one, other = (Product(8, 64, 1, place) for place in (0, 1))
    assert not np.array_equal(one.codes, other.codes)
    assert np.array_equal(one.codes, Product(8, 64, 3).codes)


def test_the_products_of_m1_are_all_its_weights_but_the_embedding() -> None:
    total = sum(outputs * inputs for outputs, inputs in M_I)
    assert total == counts("s8bqat-m1").weights - WORD_PIECES * EMBEDDING


@pytest.mark.parametrize("text", ["4096", "4096x", "x4096", "4096x4096x2", "4096*4096", "-1x4", "1e3x4", ""])
def test_a_shape_that_is_none_is_told_how_to_write_it(text: str) -> None:
    with pytest.raises(ValueError, match=r"shape=.* is not OUTPUTSxINPUTS; write it as 4096x1024"):
        shape_of(text)


@pytest.mark.parametrize("text", ["row", "group", "group0", "group-64", "group 64", "Channel", ""])
def test_an_unknown_granularity_is_told_which_there_are(text: str) -> None:
    with pytest.raises(ValueError, match=r"granularity=.* is not known; use channel, codebook or a group"):
        Granularity.of(text)


@pytest.mark.parametrize(
    ("sizes", "complaint"),
    [
        ((0, 4, 1), r"outputs=0 of a product is out of range; use 1 to 16777216"),
        ((4, 0, 1), r"inputs=0 of a product is out of range; use 1 to 65535"),
        ((4, 65536, 1), r"inputs=65536 of a product"),
        ((4, 4, 0), r"frames=0 of a product is out of range; use 1 to 65536"),
        ((2**24, 2**10, 1), r"shape=16777216x1024 has 17179869184 weights; use at most 268435456"),
    ],
)
def test_a_product_of_impossible_sizes_is_refused(sizes: tuple[int, int, int], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Product(*sizes)


def test_groups_that_do_not_divide_name_the_shape() -> None:
    with pytest.raises(
        ValueError, match=r"group_size=64 does not divide 1120 inputs of the shape 8x1120; use"
    ):
        Product(8, 1120, 1).weight(4, Granularity.of("group64"))


def test_a_width_of_no_weight_of_ours_is_refused() -> None:
    with pytest.raises(ValueError, match=r"bits=9 is not a width of ours; use 1 to 8"):
        Product(8, 16, 1).weight(9, Granularity("channel"))
