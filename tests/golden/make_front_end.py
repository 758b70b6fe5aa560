"""Makes front_end.npz once more: python tests/golden/make_front_end.py quartznet15x5-en.nemo

Half a second of a sweep with noise, and its features by torch in float64 with the window and
the mel matrix of the given model: an implementation that shares no line with subtone.
"""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path

import numpy as np


def main(nemo: str) -> None:
    import torch

    with tarfile.open(nemo) as archive:
        member = next(name for name in archive.getnames() if name.endswith("model_weights.ckpt"))
        state = torch.load(io.BytesIO(archive.extractfile(member).read()), weights_only=True)
    time_s = np.arange(8000) / 16000
    sweep = 0.3 * np.sin(2 * np.pi * (200 * time_s + 7000 * time_s**2)) * (0.1 + np.sin(9 * time_s) ** 2)
    noise = 0.02 * np.random.default_rng(1).standard_normal(8000)
    sound = np.round((sweep + noise) * 32767).astype(np.int16)

    x = torch.from_numpy(sound).double() / 32768
    x = torch.cat([x[:1], x[1:] - 0.97 * x[:-1]])
    window = state["preprocessor.featurizer.window"].double()
    spectrum = torch.stft(x, 512, 160, 320, window, center=True, pad_mode="constant", return_complex=True)
    power = spectrum.real**2 + spectrum.imag**2
    log_mel = torch.log(state["preprocessor.featurizer.fb"][0].double() @ power + 2.0**-24)[:, :50]
    deviation = log_mel.std(dim=1, keepdim=True) + 1e-5
    features = ((log_mel - log_mel.mean(dim=1, keepdim=True)) / deviation).T.numpy()
    np.savez_compressed(
        Path(__file__).with_name("front_end.npz"), sound=sound, features=features.astype(np.float32)
    )


if __name__ == "__main__":
    main(sys.argv[1])
