"""Sound files as samples."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import librosa
import numpy as np
import soundfile
import torch
from torch import Tensor

SAMPLE_RATE = 16_000


class AudioError(ValueError):
    """A sound file that cannot be used; the message is one line and names the file."""


def read_audio(
    path: str | os.PathLike[str], sample_rate: int = SAMPLE_RATE, *, resample: bool = True, least: float = 0.025
) -> Tensor:
    """Samples of a sound file, the mean of its channels.

    Args:
        sample_rate: samples a second, wanted.
        resample: whether a file of another rate is converted, else refused.
        least: seconds that the file must hold, a window of features.

    Returns:
        (N,) float32, in -1..1.

    Raises:
        AudioError: no such file, no sound (all samples equal), cut short (less there than its header says), another
            rate, too short, or samples that are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise AudioError(f"no such file: {path}" if not path.exists() else f"not a file: {path}")
    try:
        with soundfile.SoundFile(path) as file:
            rate, promised = file.samplerate, file.frames
            missing = _missing_bytes(path) if file.format in ("WAV", "WAVEX") else 0
            samples = file.read(dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError, UnicodeEncodeError) as error:  # names may be no text
        reason = getattr(error, "error_string", None) or str(error)
        raise AudioError(f"cannot read {path} as sound: {' '.join(reason.split())}") from None
    if missing:
        raise AudioError(f"{path} is cut short: {missing} bytes less than its header says")
    if len(samples) < promised:
        raise AudioError(f"{path} is cut short: {len(samples)} of {promised} samples")
    if not np.isfinite(samples).all():
        raise AudioError(f"{path} holds samples that are not finite")
    if rate != sample_rate and not resample:
        raise AudioError(f"{path} has {rate} samples a second, expected {sample_rate}")
    mono = samples.mean(axis=1)
    is_silent = len(mono) > 0 and float(np.ptp(mono)) == 0.0  # before it is converted, which rings at the ends
    if rate != sample_rate and len(mono):
        mono = librosa.resample(mono, orig_sr=rate, target_sr=sample_rate)
    if len(mono) < least * sample_rate:
        raise AudioError(f"{path} holds {len(mono) / sample_rate:.3f} s, expected at least {least:g} s")
    if is_silent:
        raise AudioError(f"{path} holds no sound: all samples are equal")
    return torch.from_numpy(np.ascontiguousarray(mono))


def _missing_bytes(path: Path) -> int:
    """How many bytes a WAV file's sound lacks; libsndfile reads what is there and says nothing."""
    size = path.stat().st_size
    with path.open("rb") as file:
        order = {b"RIFF": "<", b"RIFX": ">"}.get(file.read(4))
        if order is None:
            return 0
        (whole,) = struct.unpack(order + "I", file.read(4))
        file.seek(12)
        while len(head := file.read(8)) == 8:
            (length,) = struct.unpack(order + "I", head[4:])
            start = file.tell()
            if head[:4] == b"data":
                return max(0, start + length - size) if length != _UNKNOWN else 0
            file.seek(start + length + length % 2)
    return max(0, whole + 8 - size) if whole != _UNKNOWN else 0


_UNKNOWN = 0xFFFFFFFF
"""The length in the header of what was written to a pipe."""
