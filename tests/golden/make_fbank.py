"""Makes fbank.npz once more: python tests/golden/make_fbank.py

Features of kaldi-native-fbank 1.23.0 (`pip install kaldi-native-fbank`, not needed by anything
else here): Kaldi's own code, in C++. `sound` is int16 at 16 kHz; the features are those of
`sound / 32768`, of its first samples only, and of other settings, as the names say.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np


def features(
    samples: np.ndarray, *, rate_hz: int = 16000, num_mels: int = 80, high_hz: float = 7600
) -> np.ndarray:
    import kaldi_native_fbank

    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.samp_freq = rate_hz
    options.frame_opts.dither = 0
    options.frame_opts.snip_edges = False
    options.mel_opts.num_bins = num_mels
    options.mel_opts.high_freq = high_hz
    stream = kaldi_native_fbank.OnlineFbank(options)
    stream.accept_waveform(rate_hz, samples.tolist())
    stream.input_finished()
    rows = [stream.get_frame(index) for index in range(stream.num_frames_ready)]
    return np.array(rows, np.float32).reshape(-1, num_mels)


def main() -> None:
    time_s = np.arange(4000) / 16000
    sweep = 0.3 * np.sin(2 * np.pi * (200 * time_s + 14000 * time_s**2)) * (0.1 + np.sin(19 * time_s) ** 2)
    noise = 0.02 * np.random.default_rng(1).standard_normal(4000)
    sound = np.round((sweep + noise + 0.05) * 32767).astype(np.int16)  # with an offset to be removed
    samples = sound.astype(np.float32) / 32768
    arrays = {f"first_{count}": features(samples[:count]) for count in (79, 80, 200, 321, 400, 4000)}
    # Exact zeros: every feature is the floor.
    arrays["silence"] = features(np.zeros(400, np.float32))
    arrays["at_8_khz"] = features(samples, rate_hz=8000, num_mels=40, high_hz=3800)
    np.savez_compressed(Path(__file__).with_name("fbank.npz"), sound=sound, **arrays)


if __name__ == "__main__":
    main()
