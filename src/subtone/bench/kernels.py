"""One run of `subtone bench kernels`: every workload raced on each number of threads, held against its bounds.

The least time of a call is the larger of two: its bytes at the rate at which a buffer of as many is read, and its
products at the int8 peak. Both are measured in the same run; a row says which share of them was reached.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subtone.bench.bounds import Bounds, library
from subtone.bench.peers import (
    LARGEST_ERROR,
    LSTM_PEERS,
    PEERS,
    Peer,
    chosen_peers,
    peer_candidate,
    use_threads,
    versions,
)
from subtone.bench.products import LARGEST_FRAMES, OUR_BITS, Granularity
from subtone.bench.turns import TURN_S, Candidate, error_of, overhead_of, take_turns
from subtone.bench.workloads import CHANNEL, Workload, cold, hot, lstm_step
from subtone.qtensor import check_group_size
from subtone.report.machine import machine
from subtone.runtime.library import MAX_THREADS

Progress = Callable[[int, int, str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class KernelSettings:
    """What is raced.

    * `shapes` (N, K), each with each of `frames`: single products, hot in cache.
    * `bits` and `granularities` of ours, all of each with all of the other.
    * `threads`: one race for each number. `peers` as `chosen_peers` takes them.
    * `is_cold`: every product of S8BQAT's M-I in turn too; `has_lstm`: an LSTM's step, and with `is_cold` all of M-I's.

    ValueError where one is out of range, groups do not divide the inputs, or nothing is left to do.
    """

    shapes: tuple[tuple[int, int], ...] = ((4096, 4096),)
    frames: tuple[int, ...] = (1,)
    bits: tuple[int, ...] = OUR_BITS
    granularities: tuple[Granularity, ...] = (CHANNEL,)
    threads: tuple[int, ...] = (1,)
    rounds: int = 20
    peers: str = "all"
    is_cold: bool = False
    has_lstm: bool = False
    turn_s: float = TURN_S

    def __post_init__(self) -> None:
        for bits in self.bits:
            if bits not in OUR_BITS:
                raise ValueError(f"bits={bits} is not a width of ours; use 1 to 8")
        for count in self.frames:
            if not 1 <= count <= LARGEST_FRAMES:
                raise ValueError(f"frames={count} is out of range; use 1 to {LARGEST_FRAMES}")
        cores = len(os.sched_getaffinity(0))
        for count in self.threads:
            if not 1 <= count <= min(cores, MAX_THREADS):
                raise ValueError(
                    f"threads={count} is out of range; use 1 to {cores}, a thread for each core this process has"
                )
        if self.rounds < 1:
            raise ValueError(f"rounds={self.rounds} is below 1; use 20 for figures to be quoted")
        for name in ("frames", "bits", "granularities", "threads"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; name at least one")
        if not (self.shapes or self.is_cold or self.has_lstm):
            raise ValueError("shapes is empty; name at least one, or race --cold or --lstm")
        sizes = {each.group_size for each in self.granularities if each.kind == "group"}
        for product in {each for workload in self.workloads() for each in workload.products}:
            for size in sizes:
                check_group_size((product.outputs, product.inputs), size, name=f"the shape {product}")
        chosen_peers(self.peers)

    def workloads(self) -> Iterator[Workload]:
        """In the order in which they are raced; nothing is allocated."""
        for outputs, inputs in self.shapes:
            for count in self.frames:
                yield hot(outputs, inputs, count)
        if self.is_cold:
            for count in self.frames:
                yield cold(count)
        if self.has_lstm:
            yield lstm_step(is_cold=False)
            if self.is_cold:
                yield lstm_step(is_cold=True)


def measure_kernels(settings: KernelSettings, progress: Progress | None = None) -> dict[str, Any]:
    """The document: settings, machine, versions, and one race for each workload and number of threads."""
    loaded = library()
    peers = chosen_peers(settings.peers)
    races = [(workload, threads) for workload in settings.workloads() for threads in settings.threads]
    bounds = Bounds()
    document: dict[str, Any] = {
        "machine": machine(),
        "compiler": loaded.subtone_compiler().decode(),
        "library_bytes": os.path.getsize(loaded._name),
        "versions": versions(peers),
        "rounds": settings.rounds,
        "races": [],
    }
    done, total = (
        0,
        len(races) * (settings.rounds + 1),
    )  # finding the best form of each peer counts as a round

    def moved(label: str) -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total, label)

    for workload, threads in races:
        label = f"{workload.name}, {workload.frames} frames, {threads} threads"
        document["races"].append(
            _race(workload, threads, peers, settings, bounds, functools.partial(moved, label))
        )
        gc.collect()  # sessions of peers hold each other in cycles
    for race in document["races"]:
        for row in race["ours"]:
            row |= bounded(race, row, bounds)
    document["int8_per_s"] = {str(threads): bounds.int8_per_s(threads) for threads in settings.threads}
    return document


def _race(
    workload: Workload,
    threads: int,
    peers: Sequence[Peer],
    settings: KernelSettings,
    bounds: Bounds,
    moved: Callable[[], None],
) -> dict[str, Any]:
    kinds = [(bits, each) for each in settings.granularities for bits in settings.bits]
    ours = [_ours(workload, bits, granularity, threads) for bits, granularity in kinds]
    found = {
        peer.name: peer_candidate(peer, workload, threads=threads)
        for peer in peers
        if peer in (PEERS if workload.KIND == "products" else LSTM_PEERS)
    }
    theirs = [each.candidate for each in found.values() if each.candidate]
    use_threads(threads)
    moved()
    seconds = take_turns([*ours, *theirs], rounds=settings.rounds, turn_s=settings.turn_s, progress=moved)
    of_theirs = {each.name: seconds[:, len(ours) + index] for index, each in enumerate(theirs)}
    sizes = [workload.num_bytes(*kind) for kind in kinds]
    bounds.observe(sizes, threads)
    return {
        "workload": workload.name,
        "kind": workload.KIND,
        "frames": workload.frames,
        "threads": threads,
        "macs": workload.macs,
        "ours": [
            _row(each, size, seconds[:, index], of_theirs)
            for index, (each, size) in enumerate(zip(ours, sizes, strict=True))
        ],
        "peers": [
            {
                "name": each.name,
                "form": each.form,
                "bits": each.bits,
                "seconds": float(np.median(of_theirs[each.name])),
                "quartiles": _quartiles(of_theirs[each.name]),
                "overhead_s": each.overhead_s,
            }
            for each in theirs
        ],
        "refused": {name: each.refused for name, each in found.items() if each.refused},
    }


def _ours(workload: Workload, bits: int, granularity: Granularity, threads: int) -> Candidate:
    without_work = workload.without_work().ours(bits, _dividing(granularity), threads=1)
    candidate = workload.ours(bits, granularity, threads=threads)
    _require_sound(workload, bits, granularity, threads, candidate)
    return dataclasses.replace(candidate, overhead_s=overhead_of(without_work))


def _require_sound(
    workload: Workload, bits: int, granularity: Granularity, threads: int, candidate: Candidate
) -> None:
    """RuntimeError where ours does not give what a peer has to."""
    checked = workload.checked()
    one = candidate if checked is workload else checked.ours(bits, granularity, threads=threads)
    expected = checked.expected(bits, granularity)
    error = max(error_of(*pair) for pair in zip(one.results(), expected, strict=True))
    if error > LARGEST_ERROR[8]:
        raise RuntimeError(f"{workload.name}: ours at {bits} bits, {granularity}, errs by {error:.2g}")


def _dividing(granularity: Granularity) -> Granularity:
    """The same kind for a product with next to no work, whose few inputs its groups need not divide."""
    return Granularity("group", 16) if granularity.kind == "group" else granularity


def _row(
    candidate: Candidate,
    num_bytes: int,
    seconds: NDArray[np.float64],
    of_theirs: Mapping[str, NDArray[np.float64]],
) -> dict[str, Any]:
    return {
        "bits": candidate.bits,
        "granularity": candidate.form,
        "seconds": float(np.median(seconds)),
        "quartiles": _quartiles(seconds),
        "overhead_s": candidate.overhead_s,
        "bytes": num_bytes,
        "is_faster_by": {
            name: [float(value) for value in np.percentile(theirs / seconds, (25, 50, 75))]
            for name, theirs in of_theirs.items()
        },
    }


def bounded(race: Mapping[str, Any], row: Mapping[str, Any], bounds: Bounds) -> dict[str, float]:
    """What a row of ours reached, and its shares of what `bounds` allow."""
    seconds, threads = row["seconds"], race["threads"]
    bandwidth, peak = bounds.bytes_per_s(row["bytes"], threads), bounds.int8_per_s(threads)
    bound_s = max(row["bytes"] / bandwidth, race["macs"] / peak)
    return {
        "bytes_per_s": row["bytes"] / seconds,
        "share_of_bandwidth": row["bytes"] / seconds / bandwidth,
        "macs_per_s": race["macs"] / seconds,
        "share_of_peak": race["macs"] / seconds / peak,
        "bound_s": bound_s,
        "share_of_bound": bound_s / seconds,
    }


def _quartiles(seconds: NDArray[np.float64]) -> list[float]:
    return [float(value) for value in np.percentile(seconds, (25, 75))]
