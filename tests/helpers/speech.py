"""Made-up speech: a few phones that sound as different as noise, hum and two vowels, in known places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import soundfile

RATE = 16_000
FORMANTS = {"AA": (700, 1100), "IY": (300, 2300), "M": (250,)}
WORDS = {"<sil>": ["SIL"], "ma": ["M", "AA"], "see": ["S", "IY"], "sam": ["S", "AA", "M"], "me": ["M", "IY"]}


def sound(phone: str, seconds: float, rng: np.random.Generator, rate: int = RATE) -> Any:
    """Samples of one phone."""
    time = np.arange(round(seconds * rate)) / rate
    noise = rng.standard_normal(len(time))
    if phone == "SIL":
        return 1e-3 * noise
    if phone == "S":
        return 0.1 * np.diff(noise, prepend=0.0)
    weights = {f: sum(np.exp(-(((f - c) / 150) ** 2)) for c in FORMANTS[phone]) for f in range(120, 4000, 120)}
    voice = sum(weight * np.sin(2 * np.pi * f * time) for f, weight in weights.items())
    return 0.15 * voice + 1e-3 * noise


def utterance(words: list[str], seed: int, rate: int = RATE) -> tuple[Any, list[tuple[str, float, float]]]:
    """Samples, and (phone, start, end) in seconds, of words of `WORDS`; phones last whole frames of 10 ms."""
    rng = np.random.default_rng(seed)
    pieces, segments, now = [], [], 0.0
    for word in words:
        for phone in WORDS[word]:
            seconds = int(rng.integers(7, 15)) / 100
            pieces.append(sound(phone, seconds, rng, rate))
            segments.append((phone, now, now + seconds))
            now += seconds
    return np.concatenate(pieces).astype(np.float32), segments


def write_utterance(folder: Path, name: str, words: list[str], seed: int, rate: int = RATE) -> None:
    """NAME.wav, whose length is not quite whole frames, and NAME.phones."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    samples, _ = utterance(words, seed, rate)
    samples = samples[:-50] if seed % 2 else np.concatenate([samples, samples[:50]])
    soundfile.write(path.with_name(path.name + ".wav"), samples, rate)
    lines = [f"{word}\t{' '.join(WORDS[word])}\n" for word in words]
    path.with_name(path.name + ".phones").write_text("".join(lines))
