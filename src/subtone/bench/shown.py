"""The document of `subtone bench kernels` as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table

COLUMNS = (
    "bits", "grid", "us", "bound, us", "%", "MB", "GB/s", "% of read", "GMAC/s", "% of peak", "int8 peer", "fastest peer",
)  # fmt: skip


def fastest_of(peers: Sequence[Mapping[str, Any]], bits: int | None = None) -> Mapping[str, Any] | None:
    """The fastest peer whose weights have as many `bits`, or of all; None where there is none."""
    fitting = [peer for peer in peers if bits is None or peer["bits"] == bits]
    return min(fitting, key=lambda peer: peer["seconds"], default=None)


def faster_by(row: Mapping[str, Any], peer: Mapping[str, Any] | None) -> str:
    """How many times faster a row of ours is than `peer`, over rounds; "-" where there is none."""
    return "-" if peer is None else f"{row['is_faster_by'][peer['name']][1]:.2f}x"


def kernels(document: Mapping[str, Any]) -> Group:
    """A table a race: rows of ours beside their bounds and peers, then the peers."""
    return Group(*(part for race in document["races"] for part in _race(race)))


def _race(race: Mapping[str, Any]) -> list[Table]:
    best, best_int8 = fastest_of(race["peers"]), fastest_of(race["peers"], 8)
    named = [
        f"{role}: {peer['name']}" for role, peer in zip(COLUMNS[-2:], (best_int8, best), strict=True) if peer
    ]
    shares = "shares: of the bound; of the rate at which as many bytes are read; of the int8 peak"
    table = Table(
        title=f"{race['workload']}, {_counted(race['frames'], 'frame')}, {_counted(race['threads'], 'thread')}",
        caption="\n".join([shares, *named]),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for name in COLUMNS:
        table.add_column(name, justify="left" if name == "grid" else "right", no_wrap=True)
    for row in race["ours"]:
        table.add_row(
            str(row["bits"]),
            row["granularity"],
            f"{1e6 * row['seconds']:.1f}",
            f"{1e6 * row['bound_s']:.1f}",
            f"{100 * row['share_of_bound']:.0f}",
            f"{row['bytes'] / 1e6:.2f}",
            f"{row['bytes_per_s'] / 1e9:.1f}",
            f"{100 * row['share_of_bandwidth']:.0f}",
            f"{row['macs_per_s'] / 1e9:.1f}",
            f"{100 * row['share_of_peak']:.0f}",
            faster_by(row, best_int8),
            faster_by(row, best),
        )
    if not race["peers"]:
        return [table]
    others = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("peer", "form", "bits", "us", "of a call, us"):
        others.add_column(name, justify="left" if name in ("peer", "form") else "right", no_wrap=True)
    for peer in sorted(race["peers"], key=lambda peer: peer["seconds"]):
        others.add_row(
            peer["name"],
            peer["form"],
            str(peer["bits"]),
            f"{1e6 * peer['seconds']:.1f}",
            f"{1e6 * peer['overhead_s']:.1f}",
        )
    return [table, others]


def _counted(count: int, what: str) -> str:
    """The number and its noun.

    >>> _counted(1, "frame"), _counted(2, "frame")
    ('1 frame', '2 frames')
    """
    return f"{count} {what}{'s' * (count != 1)}"
