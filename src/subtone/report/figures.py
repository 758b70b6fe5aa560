"""Three of the papers' figures as pictures of our own numbers, beside what the papers' figures show.

`figures_page` takes the document of `subtone report figures --json` (quantize/curves.py computes it) and
gives one HTML page. Charts are Altair's, drawn to SVG here, so the page needs no script.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from subtone.report.html import Drawing, Section, page

BLUE, RED, GREEN, ORANGE, GREY = "#0072B2", "#C43E00", "#009E73", "#E69F00", "#9AA3AB"
SHADES = ("#A9CCE3", "#5DA5DA", "#1F6FB2", "#08306B")
"""Rising alpha or mu: darker."""
WIDTH = 760
MOST = 0.999
"""Of a kernel's weights are within the stretch that its histogram shows."""

Row = Mapping[str, Any]


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


def int2_chart(figure: Row) -> alt.LayerChart:
    """Colour says how many sub-channels, a solid line that they are clipped, as in the paper."""
    names = {1: "whole channel", 4: "4 sub-channels", 8: "8 sub-channels"}
    rows = [
        {
            "parts": names[curve["sub_channels"]],
            "clip": "searched" if curve["is_clipped"] else "none",
            **point,
        }
        for curve in figure["curves"]
        for point in curve["points"]
    ]
    lengths = sorted({row["channel_length"] for row in rows})
    base = alt.Chart(_data(rows)).encode(
        x=alt.X("channel_length:Q", title="weights in a channel")
        .scale(type="log", base=2, nice=False, padding=12)
        .axis(values=lengths, format="d"),
        y=alt.Y("error:Q", title="mean absolute error").scale(domainMin=0),
        color=alt.Color("parts:N", title="a range per", sort=list(names.values())).scale(
            domain=list(names.values()), range=[BLUE, RED, GREEN]
        ),
    )
    lines = base.mark_line(strokeWidth=2).encode(
        strokeDash=alt.StrokeDash("clip:N", title="clipping").scale(
            domain=["none", "searched"], range=[[5, 4], [1, 0]]
        )
    )
    return (lines + base.mark_point(filled=True, size=36, opacity=1)).properties(
        width=WIDTH - 160, height=320
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
            svg=svg_of(alt.hconcat(assignment_chart(figure), warp_chart(figure), spacing=40)),
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


def assignment_chart(figure: Row) -> alt.LayerChart:
    """Fig. 1a."""
    rows = [
        {"alpha": f"{curve['alpha']:g}", "weight": weight, "assigned": assigned}
        for curve in figure["assignment"]
        for weight, assigned in zip(curve["weights"], curve["assigned"], strict=True)
    ]
    alphas = [f"{curve['alpha']:g}" for curve in figure["assignment"]]
    diagonal = (
        alt.Chart(_data([{"weight": -1, "assigned": -1}, {"weight": 1, "assigned": 1}]))
        .mark_line(color=GREY, strokeWidth=1)
        .encode(x="weight:Q", y="assigned:Q")
    )
    curves = (
        alt.Chart(_data(rows))
        .mark_line(strokeWidth=1.8)
        .encode(
            x=alt.X("weight:Q", title="weight before").scale(domain=[-1, 1]).axis(tickCount=5),
            y=alt.Y("assigned:Q", title="weight after").scale(domain=[-1, 1]).axis(tickCount=5),
            color=alt.Color("alpha:N", title="alpha", sort=alphas)
            .scale(domain=alphas, range=SHADES)
            .legend(orient="top-left", offset=8, fillColor="white", padding=4),
        )
    )
    return (diagonal + curves).properties(width=400, height=400, title="(a) soft assignment")


def warp_chart(figure: Row) -> alt.Chart:
    """Fig. 1b."""
    mus = [f"{row['mu']:g}" for row in figure["warped"]]
    rows = [
        {"mu": f"{row['mu']:g}", "centroid": centroid}
        for row in figure["warped"]
        for centroid in row["centroids"]
    ]
    return (
        alt.Chart(_data(rows))
        .mark_tick(thickness=2, height=30, color=BLUE)
        .encode(
            x=alt.X("centroid:Q", title="centroid").scale(domain=[-1, 1]).axis(tickCount=5),
            y=alt.Y("mu:N", title="mu", sort=mus[::-1]),
        )
        .properties(width=250, height=400, title=f"(b) the {2 ** figure['bits']} centroids")
    )


def annealed_chart(kernel: Row) -> alt.HConcatChart:
    """A kernel's histogram as it was, and after one soft assignment at each alpha; all of one height."""
    stretch = _stretch(kernel["histograms"][0]["bins"])
    highest = max(item["share"] for histogram in kernel["histograms"] for item in histogram["bins"])
    y = alt.Y("share:Q").scale(domain=[0, highest])
    ticks = (
        alt.Chart(_data(_within(kernel["centroids"], stretch)))
        .mark_rule(color=RED)
        .encode(x=_x(stretch).axis(title=None, tickCount=3))
        .properties(width=130, height=10)
    )
    panels: list[alt.VConcatChart] = []
    for histogram in kernel["histograms"]:
        alpha = histogram["alpha"]
        first = alt.Axis(title="share of weights", format="%", tickCount=4)
        bars = _bars(histogram["bins"], stretch, BLUE, y.axis(None if panels else first))
        title = "before" if alpha is None else f"alpha {alpha:g}"
        panels.append(alt.vconcat(bars.properties(width=130, height=140, title=title), ticks, spacing=2))
    return alt.hconcat(*panels, spacing=14)


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
        f"{kernel['name']}: {len(kernel['centroids'])} centroids, {len(kernel['centroids']) - 1} peaks between them, in "
        f"{len(regions)} regions of frequency {thetas} and steepest gradient {slopes}. The squared error on them is {excess:.2f} times that of Lloyd-Max; the mean "
        f"penalty of a weight is {kernel['mean_penalty']:.2f}."
    )


def penalty_chart(kernel: Row) -> alt.VConcatChart:
    """Fig. 2a over the weights, the centroids below it, and Fig. 2b."""
    ends = (kernel["centroids"][0], kernel["centroids"][-1])
    margin = max(0.04 * (ends[1] - ends[0]), 0.02)
    stretch = (max(-1.0, ends[0] - margin), min(1.0, ends[1] + margin))
    rows = [
        {"weight": weight, "penalty": penalty, "gradient": gradient}
        for weight, penalty, gradient in zip(
            kernel["weights"], kernel["penalty"], kernel["gradient"], strict=True
        )
        if stretch[0] <= weight <= stretch[1]
    ]
    x, size = _x(stretch), {"width": WIDTH - 90}
    line = alt.Chart(_data(rows)).mark_line(strokeWidth=1.2)
    wave = line.encode(x=x.axis(None), y=alt.Y("penalty:Q", title="penalty"), color=alt.value(BLUE))
    slope = line.encode(
        x=x.axis(title="weight over its range"),
        y=alt.Y("gradient:Q", title="gradient"),
        color=alt.value(ORANGE),
    )
    weights = _bars(kernel["bins"], stretch, GREY, alt.Y("share:Q").axis(None))
    centroids = {"regions": kernel["centroids"], "Lloyd-Max": kernel["lloyd_max_centroids"]}
    names = list(centroids)
    ticks = (
        alt.Chart(_data([{"of": name, **row} for name in names for row in _within(centroids[name], stretch)]))
        .mark_tick(thickness=1.5, height=12)
        .encode(
            x=x.axis(None),
            y=alt.Y("of:N", title=None, sort=names).axis(domain=False, ticks=False),
            color=alt.Color("of:N", legend=None).scale(domain=names, range=[RED, GREEN]),
        )
    )
    return alt.vconcat(
        alt.layer(weights, wave)
        .resolve_scale(y="independent")
        .properties(height=190, title="(a) the penalty over the weights", **size),
        ticks.properties(height=34, **size),
        slope.properties(height=150, title="(b) its gradient", **size),
        spacing=6,
    )


# Parts of charts ----------------------------------------------------------------------------


def svg_of(chart: Any) -> str:
    """A chart as an `<svg>` element without links, drawn here by vl-convert."""
    text = io.StringIO()
    chart.configure_view(stroke=None).configure_axis(gridColor="#e6e6e6").save(text, format="svg")
    return text.getvalue()


def _data(rows: Sequence[Row]) -> alt.Data:
    return alt.Data(values=[dict(row) for row in rows])


def _stretch(bins: Sequence[Row]) -> tuple[float, float]:
    """The least symmetric stretch with MOST of the weights."""
    farthest = sorted(bins, key=lambda item: max(-item["low"], item["high"]))
    total, reach = 0.0, 1.0
    for item in farthest:
        total += item["share"]
        reach = max(-item["low"], item["high"])
        if total >= MOST:
            break
    return -min(reach, 1.0), min(reach, 1.0)


def _x(stretch: tuple[float, float]) -> alt.X:
    return alt.X("weight:Q", title=None).scale(domain=list(stretch), nice=False)


def _within(centroids: Sequence[float], stretch: tuple[float, float]) -> list[Row]:
    return [{"weight": value} for value in centroids if stretch[0] <= value <= stretch[1]]


def _bars(bins: Sequence[Row], stretch: tuple[float, float], colour: str, y: alt.Y) -> alt.Chart:
    inside = [item for item in bins if item["low"] >= stretch[0] and item["high"] <= stretch[1]]
    rows = [{"weight": item["low"], "high": item["high"], "share": item["share"]} for item in inside]
    return (
        alt.Chart(_data(rows))
        .mark_rect(color=colour, opacity=0.7)
        .encode(x=_x(stretch).axis(None), x2="high:Q", y=y, y2=alt.datum(0))
    )
