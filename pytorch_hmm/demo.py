"""The main job on real speech: features, training, decoding, streaming, a picture and a short table."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

import hmm_functional as hf

from .fit import Progress
from .mixture import MixtureGaussianHMM
from .plotting import plot_features, plot_path, plot_posteriors, save_figure
from .speech.audio import AudioError, read_audio
from .speech.features import log_mel
from .speech.labels import LabelError, read_htk
from .streaming import StreamingHMMProcessor

SAMPLE_RATE, NUM_MELS = 16_000, 40
FRAME_SECONDS = 0.01
FLOOR = 0.05
"""Least variance of a Gaussian, of features whose own is 1: one file is little to learn from."""
EXAMPLE = Path(__file__).parent / "examples" / "arctic" / "arctic_a0009.wav"


class DemoError(Exception):
    """The demo's input cannot be used; the message is one line."""


class Result(NamedTuple):
    """What the demo measured."""

    states: Tensor
    """(T,) Viterbi path."""
    posteriors: Tensor
    """(T, K)"""
    before: float
    """Log-likelihood a frame, nats, before training."""
    after: float
    realtime: float
    """Seconds of audio decoded (emissions, posteriors and Viterbi) a second of computing."""
    stream_gap: float
    """Largest difference between streamed and offline smoothed probabilities."""
    hits: tuple[float, float] | None
    """Share of the reference boundaries that the decoded ones meet within 20 ms and 50 ms."""
    uniform: tuple[float, float] | None
    """The same of boundaries at even distances."""


def run(wav: Path | None, num_states: int | None, num_mixtures: int, iterations: int, out: Path) -> Result:
    """Train on one sound file, decode it, stream it, draw it; prints a table.

    Raises:
        DemoError: a missing, empty or unreadable file, or settings that do not fit it.
    """
    samples = load(wav or EXAMPLE)
    reference = phone_ends((wav or EXAMPLE).with_suffix(".lab"))
    features = normalised(samples)
    num_frames = len(features)
    if num_states is None:
        num_states = len(reference) + 1 if reference is not None else max(2, round(num_frames * FRAME_SECONDS / 0.08))
    if not 1 <= num_states <= num_frames:
        raise DemoError(f"--states: expected 1 to {num_frames}, the frames of the file, got {num_states}")
    if num_mixtures < 1 or iterations < 0:
        raise DemoError(f"--mixtures and --iterations: expected at least 1 and 0, got {num_mixtures} and {iterations}")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DemoError(f"--out: cannot make the folder {out}: {error.strerror}") from None

    torch.manual_seed(0)
    model = MixtureGaussianHMM(num_states, NUM_MELS, num_mixtures, topology="left_to_right")
    model.initialize_from_data(features, generator=torch.Generator().manual_seed(0))
    before, after = train(model, features, iterations)

    with torch.no_grad():
        model.forward_backward(features), model.viterbi_decode(features)  # code that is compiled once is not timed
    started = time.perf_counter()
    with torch.no_grad():
        posteriors, _ = model.forward_backward(features)
        states, _ = model.viterbi_decode(features)
    realtime = num_frames * FRAME_SECONDS / (time.perf_counter() - started)
    gap = streamed_gap(model, features)
    hits = uniform = None
    if reference is not None:
        changes = (torch.nonzero(states[1:] != states[:-1])[:, 0].numpy() + 1) * FRAME_SECONDS
        even = np.arange(1, num_states) * num_frames * FRAME_SECONDS / num_states
        hits, uniform = boundary_hits(changes, reference), boundary_hits(even, reference)
    result = Result(states, posteriors, before, after, realtime, gap, hits, uniform)
    picture = out / "demo.png"
    draw(features, result, reference, picture)
    report(result, num_frames, num_states, picture)
    return result


def load(path: Path) -> Tensor:
    """Samples (N,) at 16 kHz, mono."""
    try:
        return read_audio(path, SAMPLE_RATE)
    except AudioError as error:
        raise DemoError(f"--wav: {error}") from None


def normalised(samples: Tensor) -> Tensor:
    """Log-mel features (T, D), mean and variance normalised, 10 ms a frame."""
    features = log_mel(samples, SAMPLE_RATE, NUM_MELS)
    return (features - features.mean(0)) / features.std(0, correction=0).clamp_min(1e-3)


def phone_ends(path: Path) -> Any | None:
    """Inner boundaries in seconds of an HTK label file, or None without one."""
    if not path.is_file():
        return None
    try:
        return np.array([segment.end for segment in read_htk(path)[:-1]])
    except LabelError as error:
        raise DemoError(f"--wav: the labels beside it cannot be read: {error}") from None


def train(model: MixtureGaussianHMM, features: Tensor, iterations: int) -> tuple[float, float]:
    """EM from the parameters at hand; the log-likelihood a frame before and after."""
    bar = tqdm(total=iterations, desc="training", unit="step")

    def tell(progress: Progress) -> None:
        bar.update()
        bar.set_postfix_str(f"{progress.log_likelihood / len(features):.2f} nats a frame")

    report = model.fit(
        features, init="keep", num_iterations=iterations, tolerance=0, variance_floor=FLOOR, callbacks=[tell]
    )
    bar.close()
    return report.history[0] / len(features), report.history[-1] / len(features)


def streamed_gap(model: MixtureGaussianHMM, features: Tensor, chunk: int = 16, lag: int = 8) -> float:
    """Largest difference between streaming in chunks and fixed-lag smoothing of the whole."""
    processor = StreamingHMMProcessor(model, chunk_size=chunk, overlap=lag)
    rows = [processor.process_chunk(piece) for piece in torch.split(features, chunk)]
    streamed = torch.cat([row for row in (*rows, processor.flush()) if row is not None])
    with torch.no_grad():
        emission = model.emission_log_prob(features)
        offline = hf.smooth_fixed_lag(model.log_initial, model.log_transition, emission, lag=lag).exp()
    return float((streamed - offline).abs().max())


def boundary_hits(found: Any, reference: Any) -> tuple[float, float]:
    """Share of reference boundaries met within 20 ms and 50 ms.

    Each by the one of its own number where there are as many, else by the nearest.
    """
    if not len(found) or not len(reference):
        return 0.0, 0.0
    is_paired = len(found) == len(reference)
    gaps = np.abs(reference - found) if is_paired else np.abs(reference[:, None] - found).min(axis=1)
    # boundaries are multiples of the hop: a little room for rounding
    return float((gaps <= 0.0201).mean()), float((gaps <= 0.0501).mean())


def draw(features: Tensor, result: Result, reference: Any | None, path: Path) -> None:
    """The spectrogram, the Viterbi path and the posteriors over one time axis."""
    figure = Figure(figsize=(12, 8), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, sharex=True)
    plot_features(features, FRAME_SECONDS, axes=top)
    plot_path(result.states, FRAME_SECONDS, num_states=result.posteriors.shape[1], axes=middle)
    plot_posteriors(result.posteriors, FRAME_SECONDS, axes=bottom)
    top.set(xlabel="", ylabel="mel band", title="log-mel spectrogram" + ("" if reference is None else ", phones"))
    middle.set(xlabel="", title="Viterbi path")
    bottom.set(title="posteriors p(state given all)")
    for axes, colour in ((top, "white"), (middle, "gray"), (bottom, "white")):
        for end in () if reference is None else reference:
            axes.axvline(end, color=colour, linewidth=0.6, linestyle=":")
    try:
        save_figure(figure, path)
    except OSError as error:
        raise DemoError(f"--out: cannot write {path}: {error.strerror}") from None


def report(result: Result, num_frames: int, num_states: int, picture: Path) -> None:
    """The table."""
    rows = [
        ("audio", f"{num_frames * FRAME_SECONDS:.2f} s, {num_frames} frames of 10 ms"),
        ("states", f"{num_states}"),
        ("log-likelihood a frame, before", f"{result.before:.2f} nats"),
        ("log-likelihood a frame, after", f"{result.after:.2f} nats"),
        ("decoding", f"{result.realtime:.0f} s of audio a second of computing"),
        ("streamed against offline", f"largest difference {result.stream_gap:.1e}"),
    ]
    for name, hits in (("phone boundaries met", result.hits), ("  by even cuts", result.uniform)):
        if hits is not None:
            rows.append((name, f"{hits[0]:.0%} within 20 ms, {hits[1]:.0%} within 50 ms"))
    rows.append(("picture", str(picture)))
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:<{width}}  {value}" for name, value in rows))
