"""OCTAV as PAPERS.md, section 2, prints it: one cell, one weight at a time, in double precision."""

from __future__ import annotations


def octav(magnitudes: list[float], bits: int, *, steps: int = 10) -> float:
    """s <- sum|x|1{|x|>=s} / (n_clip + 4^-B/3 n_in), from the mean, never beyond the largest."""
    clip = sum(magnitudes) / len(magnitudes)
    for _ in range(steps):
        clip = min(clip, max(magnitudes))
        total, num_clipped, num_within = 0.0, 0, 0
        for magnitude in magnitudes:
            if magnitude >= clip:
                total += magnitude
                num_clipped += 1
            else:
                num_within += 1
        clip = total / (num_clipped + 4.0**-bits / 3 * num_within)
    return min(clip, max(magnitudes))
