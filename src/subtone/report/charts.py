"""The charts of `subtone report figures`, by Altair, and their way to SVG.

Each function takes its part of the document that quantize/curves.py computes; figures.py says in words what
they show. Colours are told apart without red against green alone: dashes, ticks or places differ too.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

BLUE, RED, GREEN, ORANGE, GREY = "#0072B2", "#C43E00", "#009E73", "#E69F00", "#9AA3AB"
SHADES = ("#A9CCE3", "#5DA5DA", "#1F6FB2", "#08306B")
"""Rising alpha: darker."""
WIDTH = 760
MOST = 0.999
"""Of a kernel's weights are within the stretch that its histogram shows."""

Row = Mapping[str, Any]


# int2, Fig. 2 -------------------------------------------------------------------------------


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


def gq_chart(figure: Row) -> alt.HConcatChart:
    """Fig. 1a beside Fig. 1b."""
    return alt.hconcat(_assignment_chart(figure), _warp_chart(figure), spacing=40)


def _assignment_chart(figure: Row) -> alt.LayerChart:
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


def _warp_chart(figure: Row) -> alt.Chart:
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
