"""Speech from a hidden Markov model: trained on one sentence, which it then says at another rate.

    python examples/synthesis.py out.wav --rate 1.5

Log-mel features with their dynamics train a left-to-right model with durations; each state gets its number of frames;
the most probable features are generated (`mlpg`), with the variance over time that the sentence has; Griffin and Lim's
algorithm finds the sound.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import librosa
import numpy as np
import soundfile
import torch

import hmm_functional as hf
from pytorch_hmm import HSMM, generate_trajectory
from pytorch_hmm.demo import EXAMPLE, DemoError, load
from pytorch_hmm.speech.features import FeatureSettings, extract

FEATURES = FeatureSettings(kind="log_mel")
WINDOWS = ((1,), (-0.5, 0, 0.5), (1, -2, 1))
FRAMES_A_STATE = 4
LONGEST = 20
"""Frames that a state may last."""
FLOOR = 0.01
"""Least variance, of static features whose own is 1."""
SPREAD = 0.1
"""Standard deviation of the variance over time, in shares of it: sentences differ."""


class Speech(NamedTuple):
    """What was generated."""

    samples: Any
    """(N,) at 16 kHz."""
    levels: Any
    """(T, D), log of the mel power, that the sound was made for."""
    num_frames: int
    """Of the sentence that was learned."""


def synthesize(samples: Any, rate: float = 1.0, num_iterations: int = 10) -> Speech:
    """The sentence, learned and said again.

    Args:
        samples: (N,) at 16 kHz.
        rate: 2.0 is twice as fast.
        num_iterations: of EM.
    """
    levels = extract(samples, FEATURES).numpy()
    mean, deviation = levels.mean(0), np.maximum(levels.std(0), 1e-3)
    static = torch.as_tensor((levels - mean) / deviation, dtype=torch.float32)
    features = hf.apply_windows(static, WINDOWS)
    count = max(1, len(static) // FRAMES_A_STATE)
    model = HSMM(
        count, features.shape[1], LONGEST, "gaussian", topology="left_to_right", censored=False, reaches_end=True
    )
    model.initialize_from_data(features, generator=torch.Generator().manual_seed(0))
    model.fit(features, init="keep", num_iterations=num_iterations, tolerance=0, variance_floor=FLOOR)
    variance = static.var(0, correction=0)
    law = hf.GlobalVariance(variance, (SPREAD * variance) ** 2)
    with torch.no_grad():
        found = generate_trajectory(model, WINDOWS, rate=rate, global_variance=law).features
    generated = found.numpy() * deviation + mean
    return Speech(sound_of(generated), generated, len(static))


def sound_of(levels: Any, num_iterations: int = 60) -> Any:
    """Samples (T hop,) whose features are near `levels` (T, D)."""
    hop, size = FEATURES.hop_samples, FEATURES.fft_samples
    power = np.exp(levels.T).astype(np.float32)
    magnitude = librosa.feature.inverse.mel_to_stft(power, sr=FEATURES.sample_rate, n_fft=size)
    before = hop // 2  # librosa's frame t is centred on t hop, the features' half a hop later
    samples = librosa.griffinlim(
        magnitude,
        n_iter=num_iterations,
        hop_length=hop,
        win_length=FEATURES.window_samples,
        n_fft=size,
        length=len(levels) * hop - before,
        random_state=0,
    )
    return np.clip(np.pad(samples, (before, 0), mode="reflect"), -1.0, 1.0)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when a file was written, 2 when the input could not be used."""
    parser = argparse.ArgumentParser(description="A sentence, learned by a hidden Markov model and said again.")
    parser.add_argument("out", type=Path, help="the WAV file to write")
    parser.add_argument("--wav", type=Path, default=EXAMPLE, help="speech to learn; default one sentence of CMU ARCTIC")
    parser.add_argument("--rate", type=float, default=1.0, help="2 is twice as fast (%(default)s)")
    given = parser.parse_args(arguments)
    try:
        speech = synthesize(load(given.wav), given.rate)
        soundfile.write(given.out, speech.samples, FEATURES.sample_rate)
    except (DemoError, ValueError, soundfile.LibsndfileError) as error:
        sys.stderr.write(f"synthesis: {error}\n")
        return 2
    seconds = len(speech.samples) / FEATURES.sample_rate
    print(f"{given.out}: {seconds:.2f} s, {len(speech.levels)} frames for {speech.num_frames} learned")
    return 0


if __name__ == "__main__":
    sys.exit(main())
