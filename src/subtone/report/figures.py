"""Three of the papers' figures as pictures of our own numbers, beside what the papers' figures show.

`figures_page` takes the document of `subtone report figures --json` (quantize/curves.py computes it) and
gives one HTML page. charts.py draws to SVG, so the page needs no script.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from subtone.report.charts import (
    Row,
    annealed_chart,
    gq_chart,
    int2_chart,
    penalty_chart,
    svg_of,
)
from subtone.report.html import Drawing, Section, page


def figures_page(document: Mapping[str, Any]) -> str:
    """The page, as HTML."""
    source = document["checkpoint"]
    of = f", and for a kernel of {source}" if source else ""
    return page(
        "Three figures of the papers, drawn again",
        lead=f"Computed by the functions that quantize, without training, from random normal weights{of}. "
        "What the papers' figures show is told after their text.",
        sections=[
            _int2(document["int2_fig2"]),
            _gq(document["gq_fig1"]),
            _s8bqat(document["s8bqat_fig2"]),
        ],
        foot=f"Made by `subtone report figures`, seed {document['seed']}; --json prints every number drawn here.",
    )


# int2, Fig. 2 -------------------------------------------------------------------------------


def _int2(figure: Row) -> Section:
    errors = {
        (curve["sub_channels"], curve["is_clipped"]): [point["error"] for point in curve["points"]]
        for curve in figure["curves"]
    }
    lengths = [point["channel_length"] for point in figure["curves"][0]["points"]]
    whole, clipped = errors[1, False], errors[1, True]
    ours = [
        f"A whole channel goes from {whole[0]:.3f} at {lengths[0]} weights to {whole[-1]:.3f} at {lengths[-1]}. "
        f"There, 4 and 8 sub-channels give {errors[4, False][-1]:.3f} and {errors[8, False][-1]:.3f}, and with "
        f"clipping {errors[4, True][-1]:.3f} and {errors[8, True][-1]:.3f}: {1 - errors[8, True][-1] / whole[-1]:.0%} "
        "less than the whole channel.",
        f"Clipping a whole channel, which the paper does not draw, gives {clipped[0]:.3f} at {lengths[0]} and "
        f"{clipped[-1]:.3f} at {lengths[-1]}; 8 sub-channels without clipping {errors[8, False][0]:.3f} and "
        f"{errors[8, False][-1]:.3f}.",
    ]
    caption = f"2 bits, asymmetric; mean absolute error over {figure['draws']} draws of {figure['channels']} channels"
    return Section(
        title="int2 (Rybakov et al. 2023), Fig. 2: error against the length of a channel",
        texts=[
            (
                "The paper's figure",
                [
                    "Five curves over channels of 32 to 512 standard normal weights in 2 bits: the mean absolute "
                    "error grows with the length, falls with 4 and further with 8 sub-channels, and is least "
                    "where clipping is searched for in each sub-channel besides."
                ],
            ),
            ("Ours", ours),
        ],
        drawings=[Drawing(svg=svg_of(int2_chart(figure)), caption=caption)],
    )


# GQ, Fig. 1 ---------------------------------------------------------------------------------


def _gq(figure: Row) -> Section:
    soft, hard = figure["assignment"][0], figure["assignment"][-1]
    ours = [
        f"With {figure['bits']} bits and mu {figure['mu']:g}, alpha {soft['alpha']:g} leaves weights "
        f"{soft['from_weight']:.3f} (root mean square) from where they were and {soft['from_nearest']:.3f} from "
        f"their centroids; at {hard['alpha']:g} it is {hard['from_weight']:.3f} and {hard['from_nearest']:.3f}.",
        *(_gq_kernel_text(kernel) for kernel in figure["kernels"]),
    ]
    drawings = [
        Drawing(
            svg=svg_of(gq_chart(figure)),
            caption="Left: a weight before and after the soft assignment, and the staircase it approaches. "
            "Right: the centroids of Eq. 5",
        )
    ]
    drawings += [
        Drawing(
            svg=svg_of(annealed_chart(kernel)),
            caption=f"{kernel['name']}, over their range: before and after one assignment; "
            f"centroids of mu {kernel['mu']:.1f} (ticks)",
        )
        for kernel in figure["kernels"]
    ]
    return Section(
        title="GQ (Zhen et al. 2022), Fig. 1: soft to hard, over mu-law centroids",
        texts=[
            (
                "The paper's figure",
                [
                    "(a) A weight after the soft assignment against the weight before: almost the diagonal at "
                    "alpha 10, almost a staircase at 500. (b) Where the centroids lie as mu changes: the larger "
                    "mu, the more of them near zero, with the outer ones held."
                ],
            ),
            ("Ours", ours),
        ],
        drawings=drawings,
    )


def _gq_kernel_text(kernel: Row) -> str:
    _, soft, *_, hard = kernel["histograms"]
    return (
        f"{kernel['name']}: the fitted mu is {kernel['mu']:.1f}; one assignment at alpha {soft['alpha']:g} leaves "
        f"{soft['deviation_left']:.0%} of the standard deviation, one at {hard['alpha']:g} leaves "
        f"{hard['deviation_left']:.0%} and puts {hard['on_centroids']:.0%} of the weights within 1/256 of a centroid."
    )


# S8BQAT, Fig. 2 -----------------------------------------------------------------------------


def _s8bqat(figure: Row) -> Section:
    return Section(
        title="S8BQAT (Zhen et al. 2022), Fig. 2: the penalty over regions of centroids",
        texts=[
            (
                "The paper's figure",
                [
                    "(a) The multi-regional absolute cosine: three regions, 31 peaks, each region with a "
                    "frequency of its own and no penalty on a centroid. (b) Its gradient, which is weaker "
                    "where the frequency is lower, that is where centroids lie far apart."
                ],
            ),
            ("Ours", [_s8bqat_text(kernel) for kernel in figure["kernels"]]),
        ],
        drawings=[
            Drawing(
                svg=svg_of(penalty_chart(kernel)),
                caption=f"{kernel['name']}, over their range, {figure['bits']} bits, lambda 1; the histogram of the "
                "weights in grey, centroids of the regions and of Lloyd-Max as ticks",
            )
            for kernel in figure["kernels"]
        ],
    )


def _s8bqat_text(kernel: Row) -> str:
    regions = kernel["regions"]
    thetas = ", ".join(f"{region['theta']:.4g}" for region in regions)
    slopes = ", ".join(f"{region['steepest']:.0f}" for region in regions)
    excess = kernel["squared_error"] / kernel["lloyd_max_squared_error"]
    return (
        f"{kernel['name']}: {len(kernel['centroids'])} centroids, {len(kernel['centroids']) - 1} peaks between "
        f"them, in {len(regions)} regions of frequency {thetas} and steepest gradient {slopes}. The squared error "
        f"on them is {excess:.2f} times that of Lloyd-Max; the mean penalty of a weight is "
        f"{kernel['mean_penalty']:.2f}."
    )
