"""The door of every network: how many frames of a padded batch are valid."""

from __future__ import annotations

from torch import Tensor


def check_lengths(features: Tensor, lengths: Tensor | None) -> None:
    """ValueError unless `lengths` (B,) fit `features` (B, F, T): each 1 to T. None: all frames are valid.

    On a CPU only: to look at numbers of a GPU is to wait for it.

    >>> import torch
    >>> check_lengths(torch.zeros(2, 64, 10), torch.tensor([10, 11]))
    Traceback (most recent call last):
    ValueError: lengths=[10, 11] of 10 frames: each must be 1 to 10; leave out utterances without sound
    """
    if lengths is None or lengths.device.type != "cpu":
        return
    frames = features.shape[2]
    if lengths.shape != features.shape[:1]:
        raise ValueError(
            f"lengths has shape {tuple(lengths.shape)} for {features.shape[0]} utterances; give one each"
        )
    if len(lengths) and not 1 <= int(lengths.min()) <= int(lengths.max()) <= frames:
        raise ValueError(
            f"lengths={lengths.tolist()} of {frames} frames: each must be 1 to {frames}; leave out utterances "
            "without sound"
        )
