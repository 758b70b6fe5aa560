"""How the rate moves: Noam's equation, step by step, and where each schedule peaks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from subtone.train.schedules import noam_factor, schedule_of, warmup_steps_of
from subtone.train.settings import Learning


def rates_of(settings: Learning) -> list[list[float]]:
    """The rate of each group at each step."""
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in (0.5, 0.1)]
    optimizer = torch.optim.SGD(groups)
    schedule, seen = schedule_of(optimizer, settings), []
    for _ in range(settings.steps):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return seen


def test_noam_rises_evenly_and_falls_by_the_root_of_the_steps() -> None:
    settings = Learning(steps=16, batch_s=1.0, learning_rate=0.5, schedule="noam", warmup_share=0.25)
    for step, rates in enumerate(rates_of(settings), 1):
        # Vaswani et al. 2017, Eq. 3, over its value at the peak.
        share = min(step**-0.5, step * 4**-1.5) / 4**-0.5
        assert rates == pytest.approx([0.5 * share, 0.1 * share])


def test_noam_needs_no_warmup_and_may_warm_up_all_along() -> None:
    steps = [
        Learning(steps=9, batch_s=1.0, learning_rate=1.0, schedule="noam", warmup_share=share)
        for share in (0.0, 1.0)
    ]
    assert [warmup_steps_of(one) for one in steps] == [1, 9]
    assert noam_factor(1, warmup_steps=1) == 1.0
    assert max(rates_of(steps[1])) == rates_of(steps[1])[-1]


def test_one_cycle_peaks_after_its_warmup_and_ends_near_nothing() -> None:
    settings = Learning(steps=20, batch_s=1.0, learning_rate=0.5, warmup_share=0.25)
    rates = [groups[0] for groups in rates_of(settings)]
    assert max(rates) == rates[4] == pytest.approx(0.5)
    assert rates[-1] < 1e-4 * 0.5
