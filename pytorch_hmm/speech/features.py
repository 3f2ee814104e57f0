"""Features of speech, offline and as the samples come in.

Frame t stands for the seconds [t hop, (t + 1) hop), with the hop in whole samples, and is centred on their middle, so
that a boundary between frames t - 1 and t lies at t hop; windows that reach over an end see the samples there mirrored
(Kaldi's `snip_edges=false`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import librosa
import numpy as np
import torch
from torch import Tensor

from .deltas import add_deltas

FLOOR = 1e-10
"""Least power of a band, about the noise of rounding to 16 bits: digital silence has a finite logarithm."""


@dataclass(frozen=True)
class FeatureSettings:
    """What frames are made of; a model keeps the settings it was trained with.

    Args:
        sample_rate: samples a second.
        kind: "mfcc" or "log_mel".
        hop: seconds from frame to frame, wanted; `frame_shift` is what the sample rate has of it.
        window: seconds a frame sees.
        num_mels: bands.
        num_coefficients: of "mfcc", the zeroth (the level) among them.
    """

    sample_rate: int = 16_000
    kind: Literal["mfcc", "log_mel"] = "mfcc"
    hop: float = 0.010
    window: float = 0.025
    num_mels: int = 40
    num_coefficients: int = 13

    def __post_init__(self) -> None:
        if self.kind not in ("mfcc", "log_mel"):
            raise ValueError(f"kind: expected 'mfcc' or 'log_mel', got {self.kind!r}")
        if not 0 < self.num_coefficients <= self.num_mels:
            raise ValueError(f"num_coefficients: expected 1..{self.num_mels}, got {self.num_coefficients}")
        if self.hop_samples < 1 or self.window_samples < self.hop_samples:
            raise ValueError(
                f"hop and window: expected a hop of at least a sample and no longer than the window, "
                f"got {self.hop} s and {self.window} s at {self.sample_rate} Hz"
            )

    @property
    def hop_samples(self) -> int:
        """Samples from frame to frame."""
        return round(self.hop * self.sample_rate)

    @property
    def frame_shift(self) -> float:
        """Seconds from frame to frame, whole samples: at 22 050 Hz 220 of them for a hop of 10 ms, 9.977 ms."""
        return self.hop_samples / self.sample_rate

    @property
    def window_samples(self) -> int:
        """Samples a frame sees."""
        return round(self.window * self.sample_rate)

    @property
    def fft_samples(self) -> int:
        """Samples of the Fourier transform: the window, filled up with zeros to a power of 2."""
        return 1 << (self.window_samples - 1).bit_length()

    @property
    def width(self) -> int:
        """D."""
        return self.num_coefficients if self.kind == "mfcc" else self.num_mels

    def num_frames(self, num_samples: int) -> int:
        """T, of so many samples: the nearest number of hops."""
        return (num_samples + self.hop_samples // 2) // self.hop_samples


def extract(samples: Any, settings: FeatureSettings = FeatureSettings()) -> Tensor:
    """Features of a whole recording.

    Args:
        samples: (N,), in -1..1.

    Returns:
        (T, D) float32, T the nearest whole number of hops.

    Raises:
        ValueError: samples that are not (N,), not finite, or shorter than a window.

    Example:
        >>> extract(torch.zeros(16_000)).shape
        torch.Size([100, 13])
    """
    return _whole(samples, settings, lambda framed: _coefficients(framed, settings).numpy())


def mfcc(samples: Any, sample_rate: int = 16_000) -> Tensor:
    """Mel-frequency cepstral coefficients (Davis and Mermelstein, 1980) of natural logarithms, 10 ms a frame.

    Args:
        samples: (N,), in -1..1.

    Returns:
        (T, 13) float32; see `extract`.
    """
    return extract(samples, FeatureSettings(sample_rate))


def log_mel(samples: Any, sample_rate: int = 16_000, num_mels: int = 40) -> Tensor:
    """Natural logarithms of the mel bands' power, (T, D) float32, 10 ms a frame; see `extract`."""
    return extract(samples, FeatureSettings(sample_rate, "log_mel", num_mels=num_mels, num_coefficients=1))


def log_energy(samples: Any, sample_rate: int = 16_000) -> Tensor:
    """log of the mean square of the samples that each frame of `mfcc` sees, (T,) float32."""
    settings = FeatureSettings(sample_rate)
    return _whole(samples, settings, lambda framed: np.log(np.maximum(np.square(framed).mean(1), FLOOR)))


class FeatureStream:
    """Features of samples that come in pieces: every frame as soon as its window is complete.

    The frames are those of `extract` over all samples, whatever the pieces.

    Example:
        >>> stream = FeatureStream()
        >>> [len(stream.push(torch.zeros(800))) for _ in range(3)], len(stream.flush())
        ([4, 5, 5], 1)
    """

    def __init__(self, settings: FeatureSettings = FeatureSettings()) -> None:
        self.settings = settings
        self._framing = _Framing(settings)

    @property
    def latency(self) -> float:
        """Seconds from the start of a frame to the last sample it waits for."""
        return (self.settings.window_samples - _margin(self.settings)) / self.settings.sample_rate

    def push(self, samples: Any) -> Tensor:
        """Take the next samples (n,), any n; the frames (m, D) that they complete.

        Raises:
            ValueError: samples that are not (n,) or not finite; the stream stays as it was.
        """
        return _coefficients(self._framing.push(_samples(samples)), self.settings)

    def flush(self) -> Tensor:
        """End the stream: the frames (m, D) that still waited, none of less than a window; then another may start."""
        return _coefficients(self._framing.flush(), self.settings)

    def reset(self) -> None:
        """Forget the samples; the next ones start another stream."""
        self._framing = _Framing(self.settings)


class DeltaStream:
    """`add_deltas` of frames that come in pieces: each row once the frames that its slopes see are there.

    The rows are those of `add_deltas` over all frames, whatever the pieces.

    Example:
        >>> stream = DeltaStream()
        >>> [len(stream.push(torch.zeros(3, 13))) for _ in range(3)], len(stream.flush())
        ([0, 2, 3], 4)
    """

    def __init__(self, window: int = 2) -> None:
        self.window = window
        self._held: Tensor | None = None
        self._num_before = 0
        """Frames held that only later rows' slopes see."""

    @property
    def latency(self) -> int:
        """Frames that a row waits for."""
        return 2 * self.window  # the slopes of slopes reach twice as far

    def push(self, frames: Tensor) -> Tensor:
        """Take the next frames (n, D), any n; the rows (m, 3 D) that they complete."""
        self._held = frames if self._held is None else torch.cat([self._held, frames])
        return self._take(len(self._held) - self.latency)

    def flush(self) -> Tensor:
        """End the stream: the rows (m, 3 D) that still waited; the next frames start another."""
        rows = torch.zeros(0, 0) if self._held is None else self._take(len(self._held))
        self._held, self._num_before = None, 0
        return rows

    def _take(self, end: int) -> Tensor:
        held, first = self._held, self._num_before
        if held is None or end <= first:
            return torch.zeros(0, 0 if held is None else 3 * held.shape[1])
        rows = add_deltas(held, self.window)[first:end]
        start = max(0, end - self.latency)
        self._held, self._num_before = held[start:].clone(), end - start
        return rows


class _Framing:
    """Cuts samples into the windows (m, W) of frames."""

    def __init__(self, settings: FeatureSettings) -> None:
        self._settings = settings
        self._clear()

    def _clear(self) -> None:
        self._held = np.zeros(0)
        """Samples from the first that the latest frame saw: the end may need them mirrored."""
        self._num_samples = self._num_frames = 0

    def push(self, x: Any) -> Any:
        width, margin = self._settings.window_samples, _margin(self._settings)
        held = np.concatenate([self._held, x])
        if self._num_frames == 0 and len(held) >= width - margin:
            held = np.concatenate([held[margin:0:-1], held])
        self._held, self._num_samples = held, self._num_samples + len(x)
        return self._cut()

    def flush(self) -> Any:
        hop, width, margin = self._settings.hop_samples, self._settings.window_samples, _margin(self._settings)
        num_frames = self._settings.num_frames(self._num_samples)
        if self._num_samples >= width and num_frames > self._num_frames:
            missing = (num_frames - 1) * hop - margin + width - self._num_samples
            self._held = np.pad(self._held, (0, missing), mode="reflect")
        framed = self._cut() if self._num_samples >= width else np.zeros((0, width))
        self._clear()
        return framed

    def _cut(self) -> Any:
        hop, width = self._settings.hop_samples, self._settings.window_samples
        first = hop if self._num_frames else 0
        count = (len(self._held) - first - width) // hop + 1
        if count <= 0:
            return np.zeros((0, width))
        framed = np.lib.stride_tricks.sliding_window_view(self._held[first:], width)[::hop]
        self._held = self._held[first + (count - 1) * hop :].copy()
        self._num_frames += count
        return framed


def _whole(samples: Any, settings: FeatureSettings, of: Callable[[Any], Any]) -> Tensor:
    """What `of` makes of all windows (T, W)."""
    x = _samples(samples)
    if len(x) < settings.window_samples:
        raise ValueError(f"samples: expected at least {settings.window_samples} (a window), got {len(x)}")
    framing = _Framing(settings)
    return torch.from_numpy(of(np.concatenate([framing.push(x), framing.flush()])).astype(np.float32))


def _coefficients(framed: Any, settings: FeatureSettings) -> Tensor:
    """Features (m, D) of windows (m, W)."""
    if len(framed) == 0:
        return torch.zeros(0, settings.width)
    shape, bands = _filters(settings)
    spectrum = np.fft.rfft(framed * shape, n=2 * (bands.shape[1] - 1))
    levels = np.log(np.maximum((spectrum.real**2 + spectrum.imag**2) @ bands.T, FLOOR))
    if settings.kind == "mfcc":
        levels = librosa.feature.mfcc(S=levels.T, n_mfcc=settings.num_coefficients).T
    return torch.from_numpy(np.ascontiguousarray(levels, dtype=np.float32))


@cache
def _filters(settings: FeatureSettings) -> tuple[Any, Any]:
    """The window's weights (W,), and the bands' (num_mels, bins)."""
    shape = librosa.filters.get_window("hann", settings.window_samples)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bands narrower than a bin hold nothing, which is no harm
        bands = librosa.filters.mel(
            sr=settings.sample_rate, n_fft=settings.fft_samples, n_mels=settings.num_mels, dtype=np.float64
        )
    return shape, bands


def _margin(settings: FeatureSettings) -> int:
    """Samples of a window before its frame's own."""
    return (settings.window_samples - settings.hop_samples) // 2


def _samples(samples: Any) -> Any:
    """(N,) finite float64."""
    x = samples.detach().cpu().numpy() if isinstance(samples, Tensor) else np.asarray(samples)
    if x.ndim != 1:
        raise ValueError(f"samples: expected shape (N,), got {x.shape}; take the mean of channels")
    if x.dtype.kind != "f":
        raise TypeError(f"samples: expected floating-point numbers in -1..1, got {x.dtype}")
    if not np.isfinite(x).all():
        raise ValueError(f"samples: expected finite numbers, got {x[~np.isfinite(x)][0]}")
    return x.astype(np.float64)
