"""The main job on real speech: features, training, decoding, streaming, a picture and a short table."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import librosa
import matplotlib
import numpy as np
import soundfile
import torch
from torch import Tensor
from tqdm import tqdm

import hmm_functional as hf

from .metrics import alignment_accuracy, boundary_scores
from .mixture import MixtureGaussianHMM
from .report import Progress
from .streaming import StreamingHMMProcessor

SAMPLE_RATE, HOP, WINDOW, NUM_MELS = 16_000, 160, 400, 40
FRAME_SECONDS = HOP / SAMPLE_RATE
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
    features = log_mel(samples)
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


def load(path: Path) -> Any:
    """Samples (N,) at 16 kHz, mono."""
    if not path.is_file():
        raise DemoError(f"--wav: no such file: {path}")
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise DemoError(f"--wav: cannot read {path} as sound: {' '.join(str(error).split())}") from None
    samples = samples.mean(axis=1)
    if rate != SAMPLE_RATE and len(samples):
        samples = librosa.resample(samples, orig_sr=rate, target_sr=SAMPLE_RATE)
    if len(samples) < WINDOW:
        raise DemoError(f"--wav: {path} holds {len(samples)} samples at 16 kHz, expected at least {WINDOW}")
    if not np.isfinite(samples).all():
        raise DemoError(f"--wav: {path} holds samples that are not finite")
    return samples


def mel_levels(samples: Any) -> Any:
    """log of the mel power spectrum, (T, D), 10 ms a frame."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        power = librosa.feature.melspectrogram(
            y=samples, sr=SAMPLE_RATE, n_fft=WINDOW, hop_length=HOP, n_mels=NUM_MELS, center=True
        )
    return np.log(np.maximum(power, 1e-8)).T


def log_mel(samples: Any) -> Tensor:
    """Log-mel features (T, D), mean and variance normalised, 10 ms a frame."""
    features = mel_levels(samples)
    features = (features - features.mean(0)) / np.maximum(features.std(0), 1e-3)
    return torch.as_tensor(np.ascontiguousarray(features), dtype=torch.float32)


def phone_ends(path: Path) -> Any | None:
    """Inner boundaries in seconds of an HTK label file (times in 100 ns), or None without one."""
    if not path.is_file():
        return None
    ends = [int(line.split()[1]) * 1e-7 for line in path.read_text().splitlines() if line.strip()]
    return np.array(ends[:-1])


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

    Each by the one of its own number where there are as many, else by one that meets no other.
    """
    if not len(found) or not len(reference):
        return 0.0, 0.0
    if len(found) == len(reference):
        near, far = (float(alignment_accuracy(reference, found, tolerance=t)) for t in (0.02, 0.05))
    else:
        near, far = (float(boundary_scores(reference, found, tolerance=t).recall) for t in (0.02, 0.05))
    return near, far


def draw(features: Tensor, result: Result, reference: Any | None, path: Path) -> None:
    """The spectrogram, the Viterbi path and the posteriors over one time axis."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    seconds = len(features) * FRAME_SECONDS
    num_states = result.posteriors.shape[1]
    figure, (top, middle, bottom) = pyplot.subplots(3, 1, sharex=True, figsize=(12, 8), layout="constrained")
    top.imshow(
        features.numpy().T, origin="lower", aspect="auto", extent=(0, seconds, 0, features.shape[1]), cmap="magma"
    )
    top.set(ylabel="mel band", title="log-mel spectrogram" + ("" if reference is None else ", reference phones"))
    times = (np.arange(len(features)) + 0.5) * FRAME_SECONDS
    middle.step(times, result.states.numpy(), where="mid")
    middle.set(ylabel="state", title="Viterbi path", ylim=(-0.5, num_states - 0.5))
    image = bottom.imshow(
        result.posteriors.numpy().T,
        origin="lower",
        aspect="auto",
        extent=(0, seconds, -0.5, num_states - 0.5),
        cmap="viridis",
        vmin=0,
        vmax=1,
    )
    bottom.set(xlabel="seconds", ylabel="state", title="posteriors p(state given all)")
    figure.colorbar(image, ax=bottom, pad=0.01)
    for axes, colour in ((top, "white"), (middle, "gray"), (bottom, "white")):
        for end in () if reference is None else reference:
            axes.axvline(end, color=colour, linewidth=0.6, linestyle=":")
    try:
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise DemoError(f"--out: cannot write {path}: {error.strerror}") from None
    finally:
        pyplot.close(figure)


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
