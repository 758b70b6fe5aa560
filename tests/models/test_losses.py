"""The transducer's loss and gradient are those of the loop, whatever lies in the padding, at little memory."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from tests.reference import rnnt_loss as reference
from torch import Tensor

from subtone.models import losses
from subtone.models.losses import rnnt_loss

BLANK = 2
EDGES = {
    "one cell": ([1], [0]),
    "no labels": ([4], [0]),
    "one frame": ([1], [3]),
    "more labels than frames": ([2], [5]),
    "ragged": ([5, 1, 4, 3], [2, 3, 0, 1]),
    "padded beyond all": ([3, 2], [1, 2], 5, 4),
}


class Case(NamedTuple):
    """Arguments of rnnt_loss."""

    logits: Tensor
    labels: Tensor
    logit_lengths: Tensor
    label_lengths: Tensor


def case(
    frames: list[int],
    said: list[int],
    T: int | None = None,
    U: int | None = None,
    *,
    V: int = 5,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Case:
    """Random logits of a few nats, labels without blanks; also in the padding."""
    draw = np.random.default_rng(seed)
    T, U = T or max(frames), U or max(said)
    logits = torch.from_numpy(draw.normal(0, 2, (len(frames), T, U + 1, V))).to(dtype)
    labels = torch.from_numpy(draw.choice(np.delete(np.arange(V), BLANK), (len(frames), U)))
    return Case(logits.requires_grad_(), labels, torch.tensor(frames), torch.tensor(said))


def found_of(given: Case, reduction: str = "sum") -> tuple[Tensor, Tensor]:
    """Losses, and the gradient of their reduction."""
    result = rnnt_loss(*given, blank_index=BLANK, reduction=reduction)
    (gradient,) = torch.autograd.grad(result.sum(), given.logits)
    return result.detach(), gradient


def utterances(given: Case) -> list[tuple[np.ndarray, list[int], int]]:
    """Each without its padding, as the reference takes it."""
    lengths = zip(given.logit_lengths.tolist(), given.label_lengths.tolist(), strict=True)
    return [
        (
            given.logits[b, :frames, : said + 1].detach().double().numpy(),
            given.labels[b, :said].tolist(),
            BLANK,
        )
        for b, (frames, said) in enumerate(lengths)
    ]


def expected_of(given: Case) -> tuple[Tensor, Tensor]:
    """Losses, and the gradient of their sum, by the reference in float64."""
    gradient = torch.zeros(given.logits.shape, dtype=torch.float64)
    for b, (logits, labels, blank) in enumerate(utterances(given)):
        cells = torch.from_numpy(reference.gradient(logits, labels, blank))
        gradient[b, : cells.shape[0], : cells.shape[1]] = cells
    values = [reference.loss(*utterance) for utterance in utterances(given)]
    return torch.tensor(values, dtype=torch.float64), gradient


def move_error(given: Case) -> float:
    """How far a log-probability may be off in float32.

    Its denominator is a largest logit plus the log of a sum of V exponentials, each and the sum with one
    rounding; two more round the denominator and the difference.
    """
    logits = given.logits.detach().double()
    largest = logits.logsumexp(-1).abs().max() + logits.log_softmax(-1).abs().max()
    return 2.0**-24 * (logits.shape[3] + 4 + largest.item())


# The reference -------------------------------------------------------------------------------


@pytest.mark.parametrize(("T", "U"), [(1, 0), (1, 3), (4, 0), (3, 3), (5, 2)])
def test_the_loop_of_the_reference_is_the_sum_over_all_alignments(T, U):
    (utterance,) = utterances(case([T], [U], V=4))
    expected = reference.loss_over_all_alignments(*utterance)
    assert reference.loss(*utterance) == pytest.approx(expected, rel=1e-13)
    assert -reference.backward_variables(*utterance)[0, 0] == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize(("T", "U"), [(1, 0), (1, 2), (3, 0), (3, 2)])
def test_the_gradient_of_the_reference_is_the_difference_quotient_of_its_loss(T, U):
    """Central differences are off by step**2 / 6 of a third derivative, which is below 1 per alignment's moves
    in softmaxes, and by the rounding of losses of some nats over the step."""
    ((logits, labels, blank),) = utterances(case([T], [U], V=4))
    gradient, step = reference.gradient(logits, labels, blank), 1e-4
    for index in np.ndindex(logits.shape):
        change = np.zeros(logits.shape)
        change[index] = step
        above, below = (reference.loss(logits + sign * change, labels, blank) for sign in (1, -1))
        assert gradient[index] == pytest.approx((above - below) / (2 * step), abs=step**2 + 1e-14 / step)


# Values and gradients ------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", EDGES.values(), ids=EDGES)
def test_losses_and_gradients_are_those_of_the_loop(sizes):
    given = case(*sizes)
    found, expected = rnnt_loss(*given, blank_index=BLANK, reduction="none"), expected_of(given)
    torch.testing.assert_close(found, expected[0], rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(found_of(given)[1], expected[1], rtol=1e-12, atol=1e-13)


def test_losses_and_gradients_are_those_of_the_loop_on_random_lengths():
    draw = np.random.default_rng(1)
    for seed in range(20):
        frames, said = draw.integers(1, 7, 3).tolist(), draw.integers(0, 5, 3).tolist()
        given = case(frames, said, T=7, U=5, V=int(draw.integers(3, 8)), seed=seed)
        found, expected = found_of(given, "none"), expected_of(given)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


def test_autograd_checks_the_gradient_of_each_utterance_by_itself():
    given = case([3, 2], [1, 2], V=4)
    weights = torch.tensor([0.5, -3.0], dtype=torch.float64)

    def weighed(logits: Tensor) -> Tensor:
        return rnnt_loss(logits, *given[1:], blank_index=BLANK, reduction="none") * weights

    assert torch.autograd.gradcheck(weighed, given.logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_logits_are_summed_in_float32_and_their_gradient_rounded_once(dtype):
    given = case([30, 17, 1], [9, 12, 4], V=7, dtype=dtype)
    (found, gradient), (loss, slope) = found_of(given, "none"), expected_of(given)
    assert (found.dtype, gradient.dtype) == (torch.float32, dtype)
    moves = (given.logit_lengths + given.label_lengths).max().item()
    error = moves * move_error(given)  # of a path; of logaddexps over paths it is no larger
    assert (found - loss).abs().max() <= error + 2.0**-24 * loss.max()
    # A share has the errors of alpha, beta and the loss, and comes twice, once times a softmax; the result
    # has one rounding of its type more, below its smallest normal number of one in steps of a fixed size.
    limits = torch.finfo(dtype)
    bound = 2 * 4 * error + limits.eps / 2 * slope.abs() + limits.tiny * limits.eps
    assert ((gradient.double() - slope).abs() <= bound).all()


def test_the_gradient_of_a_long_utterance_keeps_the_accuracy_of_a_short_one():
    """The sums over paths are float64, so only denominators and exponentials have float32's error; in float32 an
    alpha near 3000 alone is off by 1e-4, and this gradient by 1e-3 of its norm."""
    given = case([800], [100], V=8)
    narrow = given._replace(logits=given.logits.detach().float().requires_grad_())
    wide = given._replace(logits=narrow.logits.detach().double().requires_grad_())
    (_, found), (loss, expected) = found_of(narrow), found_of(wide)
    assert loss > 1500
    assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_reductions_are_the_mean_over_utterances_and_the_sum():
    given = case([4, 2], [2, 1])
    each, gradient = found_of(given, "none")
    mean, mean_gradient = found_of(given, "mean")
    total, total_gradient = found_of(given, "sum")
    assert torch.equal(mean, (each[0] + each[1]) / 2)
    assert torch.equal(total, each[0] + each[1])
    assert torch.equal(total_gradient, gradient)
    torch.testing.assert_close(mean_gradient, gradient / 2, rtol=1e-15, atol=0)
    assert torch.equal(rnnt_loss(*given, blank_index=BLANK), mean)


# Padding and layout --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padding_changes_no_bit_and_has_no_gradient(dtype):
    given = case([5, 2, 1], [1, 3, 0], T=6, U=4, dtype=dtype)
    is_valid = torch.zeros(given.logits.shape, dtype=torch.bool)
    labels = given.labels.clone()
    for b, (frames, said) in enumerate(zip(given.logit_lengths, given.label_lengths, strict=True)):
        is_valid[b, :frames, : said + 1] = True
        labels[b, said:] = torch.tensor([-1, BLANK, 10**6, -(10**6)])[said:]
    losses_clean, gradient_clean = found_of(given, "none")
    for rubbish in (torch.nan, torch.inf, -torch.inf, 1e30):
        dirty = torch.where(is_valid, given.logits.detach(), rubbish).requires_grad_()
        found, gradient = found_of(given._replace(logits=dirty, labels=labels), "none")
        assert torch.equal(found, losses_clean)
        assert torch.equal(gradient, gradient_clean)
        assert gradient[~is_valid].count_nonzero() == 0


def test_a_batch_is_its_utterances_one_by_one_bit_for_bit():
    given = case([6, 1, 3], [2, 4, 0], dtype=torch.float32)
    found, gradient = found_of(given, "none")
    for b, (frames, said) in enumerate(zip([6, 1, 3], [2, 4, 0], strict=True)):
        cells = given.logits.detach()[b : b + 1, :frames, : said + 1].clone().requires_grad_()
        lengths = given.logit_lengths[b : b + 1], given.label_lengths[b : b + 1]
        alone, slope = found_of(Case(cells, given.labels[b : b + 1, :said], *lengths), "none")
        assert torch.equal(alone, found[b : b + 1])
        assert torch.equal(slope, gradient[b : b + 1, :frames, : said + 1])


def test_blocks_of_any_size_give_the_same_bits(monkeypatch):
    given = case([9, 7], [3, 4], dtype=torch.float32)
    expected = found_of(given, "none")
    for elements in (1, 60, 10**9):
        monkeypatch.setitem(losses.BLOCK_ELEMENTS, "cpu", elements)
        for one, other in zip(found_of(given, "none"), expected, strict=True):
            assert torch.equal(one, other)


def test_any_strides_and_types_of_whole_numbers_will_do():
    given = case([5, 3], [2, 1])
    expected, gradient = found_of(given)
    turned = given.logits.detach().permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0).requires_grad_()
    assert not turned.is_contiguous()
    for dtype in (torch.int32, torch.uint8):
        found, slope = found_of(Case(turned, *(part.to(dtype) for part in given[1:])))
        torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)
        torch.testing.assert_close(slope, gradient, rtol=1e-12, atol=1e-15)


# Extremes ------------------------------------------------------------------------------------


def test_logits_of_minus_infinity_forbid_moves_and_leave_the_rest_finite():
    """Labels at once, then blanks, is the one alignment that the logits allow."""
    given = case([3], [2])
    logits = given.logits.detach().clone()
    logits[0, 0, :2, BLANK] = -torch.inf
    logits[0, 1:, :2] = -torch.inf  # cells that no alignment reaches: nothing has a probability
    found, gradient = found_of(given._replace(logits=logits.requires_grad_()))
    here = logits.detach().log_softmax(-1)[0]
    by_label = here[0, 0, given.labels[0, 0]] + here[0, 1, given.labels[0, 1]]
    torch.testing.assert_close(found, -(by_label + here[:, 2, BLANK].sum()), rtol=1e-14, atol=0)
    assert gradient.isfinite().all()
    assert gradient[0, 1:, :2].count_nonzero() == 0


def test_an_utterance_without_an_allowed_alignment_has_an_infinite_loss_and_spoils_no_other():
    given = case([3, 3], [2, 2])
    logits = given.logits.detach().clone()
    logits[0, -1, -1, BLANK] = -torch.inf
    found, gradient = found_of(given._replace(logits=logits.requires_grad_()), "none")
    expected, slope = found_of(given, "none")
    assert found[0] == torch.inf
    assert gradient[0].isnan().all()
    assert torch.equal(found[1], expected[1])
    assert torch.equal(gradient[1], slope[1])


@pytest.mark.parametrize(
    ("dtype", "size"), [(torch.float32, 1e6), (torch.float32, 1e35), (torch.float16, 6e4)]
)
def test_huge_logits_stay_finite(dtype, size):
    given = case([4, 3], [2, 1])
    huge = (given.logits.detach() / given.logits.abs().max() * size).to(dtype).requires_grad_()
    found, gradient = found_of(given._replace(logits=huge), "none")
    expected = torch.tensor([reference.loss(*each) for each in utterances(given._replace(logits=huge))])
    # Denominators and differences have float32's relative error, no more than six of either on a path.
    assert ((found - expected).abs() <= 6 * 2 * 2.0**-24 * 2 * size).all()
    assert gradient.isfinite().all()
    assert gradient.abs().max() <= 1


# Cost ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_one_gradient_of_the_logits_own_type_and_little_else(dtype, monkeypatch):
    monkeypatch.setitem(losses.BLOCK_ELEMENTS, "cpu", 2**12)
    given = case([60, 50], [10, 8], V=1000, dtype=dtype)
    size = given.logits.numel() * given.logits.element_size()
    with torch.profiler.profile(profile_memory=True, acc_events=True) as profile:
        _, gradient = found_of(given)
    assert gradient.dtype == dtype
    assert size <= peak_bytes(profile) < 1.25 * size


def peak_bytes(profile: torch.profiler.profile) -> int:
    """Most bytes allocated at once within a profile, inside operators too, beyond what was there before it."""
    assert profile.profiler is not None
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return int(np.cumsum(changes).max())


def test_a_second_derivative_is_refused():
    given = case([2], [1])
    loss = rnnt_loss(*given, blank_index=BLANK)
    with pytest.raises(
        ValueError, match=r"create_graph=True, .* no second derivative; use create_graph=False"
    ):
        torch.autograd.grad(loss, given.logits, create_graph=True)


# Doors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"logits": torch.zeros(2, 4, 3)},
            r"logits of shape \(2, 4, 3\), torch.float32 are no joiner's; use floats",
        ),
        ({"logits": torch.zeros(2, 4, 3, 5, dtype=torch.int64)}, "torch.int64 are no joiner's"),
        ({"logits": torch.zeros(2, 0, 3, 5)}, r"\(2, 0, 3, 5\).* none of them 0"),
        ({"labels": torch.zeros(2, 3, dtype=torch.int64)}, r"labels of shape \(2, 3\).* of shape \(2, 2\)"),
        ({"labels": torch.zeros(2, 2)}, "labels of shape .*torch.float32 do not fit logits"),
        (
            {"logit_lengths": torch.tensor([4])},
            r"logit_lengths of shape \(1,\).* do not fit 2 utterances; use whole",
        ),
        (
            {"label_lengths": torch.tensor([True, False])},
            r"label_lengths of shape \(2,\), torch.bool do not fit",
        ),
        ({"logit_lengths": torch.tensor([4, 0])}, "logit_lengths=0 of utterance 1 must lie in 1 to 4"),
        ({"logit_lengths": torch.tensor([5, 4])}, "logit_lengths=5 of utterance 0 must lie in 1 to 4"),
        ({"label_lengths": torch.tensor([2, 3])}, "label_lengths=3 of utterance 1 must lie in 0 to 2"),
        ({"label_lengths": torch.tensor([-1, 2])}, "label_lengths=-1 of utterance 0 must lie in 0 to 2"),
        (
            {"labels": torch.tensor([[0, 1], [1, 5]])},
            "label=5 at 1 of utterance 1 lies outside a vocabulary of 5; use",
        ),
        ({"labels": torch.tensor([[-1, 1], [1, 0]])}, "label=-1 at 0 of utterance 0 lies outside"),
        ({"labels": torch.tensor([[0, 1], [BLANK, 0]])}, "label=2 at 0 of utterance 1 is the blank; leave"),
        ({"blank_index": 5}, "blank_index=5 lies outside a vocabulary of 5; use 0 to 4"),
        ({"blank_index": -1}, "blank_index=-1 lies outside"),
        ({"reduction": "average"}, "reduction='average' is not known; use one of none, mean, sum"),
    ],
)
def test_a_mistake_is_told_at_the_door(change, text):
    given = case([4, 3], [2, 2])._asdict() | {"blank_index": BLANK}
    rnnt_loss(**given)
    with pytest.raises(ValueError, match=text):
        rnnt_loss(**(given | change))
