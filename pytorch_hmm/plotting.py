"""Pictures of features, posteriors, paths and alignments over one time axis. Needs matplotlib, `pytorch-hmm[plot]`.

No function touches pyplot or its backend: figures belong to the caller, and threads may draw at once.
"""

from __future__ import annotations

import io as bytes_io
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .io import replace

if TYPE_CHECKING:
    from .speech.labels import Segment

WIDEST = 60.0
"""Inches, of pictures that grow with the recording."""


def plot_features(features: Any, frame_shift: float | None = None, *, axes: Any = None) -> Any:
    """Features (T, D) as an image, such as a log-mel spectrogram.

    Args:
        frame_shift: seconds a frame; frames are numbered without.
        axes: matplotlib's; a new figure's by default.

    Returns:
        The axes; `axes.figure` is the figure.

    Example:
        >>> axes = plot_features(torch.randn(50, 20), 0.01)
        >>> axes.get_xlabel()
        'seconds'
    """
    values = _matrix("features", features)
    axes = _axes(axes)
    _image(axes, values, frame_shift, (0, values.shape[1]), cmap="magma", interpolation="nearest")
    axes.set(ylabel="feature")
    _time_axis(axes, len(values), frame_shift)
    return axes


def plot_posteriors(
    posteriors: Any, frame_shift: float | None = None, *, names: Sequence[str] | None = None, axes: Any = None
) -> Any:
    """State probabilities (T, K) as an image with its scale; see `plot_features`.

    Args:
        names: of the states.
    """
    values = _matrix("posteriors", posteriors)
    axes = _axes(axes)
    image = _image(axes, values, frame_shift, (-0.5, values.shape[1] - 0.5), cmap="viridis", vmin=0, vmax=1)
    axes.figure.colorbar(image, ax=axes, pad=0.01, label="probability")
    axes.set(ylabel="state")
    _state_axis(axes, values.shape[1], names)
    _time_axis(axes, len(values), frame_shift)
    return axes


def plot_path(
    states: Any,
    frame_shift: float | None = None,
    *,
    num_states: int | None = None,
    names: Sequence[str] | None = None,
    features: Any = None,
    axes: Any = None,
) -> Any:
    """States (T,) as a line of steps, -1 a gap in it; over `features` (T, D) where they are given.

    Args:
        num_states: K; by default the highest state's number and one.
        names: of the states.
    """
    path = _array(states)
    if path.ndim != 1:
        raise ValueError(f"states: expected shape (T,), got {path.shape}")
    axes = _axes(axes)
    count = num_states or int(max(path.max(initial=0), 0)) + 1
    colour = "C0"
    if features is not None:
        values = _matrix("features", features)
        _image(axes, values, frame_shift, (-0.5, count - 0.5), cmap="magma", interpolation="nearest")
        colour = "cyan"
    # steps change between frames, at their edges
    edges = np.arange(len(path) + 1) * (frame_shift or 1)
    axes.stairs(np.where(path < 0, np.nan, path.astype(float)), edges, baseline=None, color=colour, linewidth=1.5)
    axes.set(ylabel="state", ylim=(-0.5, count - 0.5))
    _state_axis(axes, count, names)
    _time_axis(axes, len(path), frame_shift)
    return axes


def plot_segments(segments: Sequence[Segment], *, axes: Any = None, colours: str = "RdYlGn") -> Any:
    """Labelled segments as a row of boxes, in the colour of their confidence where they have one.

    Args:
        axes: matplotlib's, whose time axis is set; a new figure's by default.
        colours: matplotlib's map of confidences in 0..1.
    """
    from matplotlib.patches import Rectangle

    if axes is None:
        axes = _axes(None)
        axes.set(xlim=(0, max((x.end for x in segments), default=1)), xlabel="seconds")
    scale = _pale(colours)
    low, high = axes.get_xlim()
    points = 72 * axes.get_position().width * axes.figure.get_figwidth() / (high - low)
    for label, start, end, confidence in segments:
        face = "#eeeeee" if math.isnan(confidence) else scale(min(1.0, max(0.0, confidence)))
        axes.add_patch(Rectangle((start, 0), end - start, 1, facecolor=face, edgecolor="#555555", linewidth=0.6))
        _write(axes, label, (start + end) / 2, (end - start) * points)
    axes.set(ylim=(0, 1), yticks=[])
    return axes


def plot_alignment(
    features: Any,
    tiers: Mapping[str, Sequence[Segment]],
    *,
    frame_shift: float = 0.01,
    title: str | None = None,
    ylabel: str = "mel band",
) -> Any:
    """An utterance: its features (T, D), and under them one row of boxes a tier, such as words and phones.

    Boundaries are drawn into the features, too; the colour of a box is its confidence.

    Args:
        tiers: segments by the name of their tier, times in seconds.
        frame_shift: seconds a frame.
        ylabel: what the features are.

    Returns:
        The figure, about 3 inches a second wide; `save_figure` writes it.

    Example:
        >>> from pytorch_hmm.speech.labels import Segment
        >>> phones = [Segment("a", 0, 0.3, 0.9), Segment("b", 0.3, 0.5, 0.6)]
        >>> figure = plot_alignment(torch.randn(50, 20), {"phones": phones})
        >>> len(figure.axes)  # and the scale of confidences
        3
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

    values = _matrix("features", features)
    seconds = len(values) * frame_shift
    size = (min(WIDEST, max(8.0, 3.0 * seconds + 1.5)), 3.2 + 0.55 * len(tiers))
    figure = Figure(figsize=size, layout="constrained")
    heights = [5.0, *[0.9] * len(tiers)]
    rows = figure.subplots(1 + len(tiers), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    plot_features(values, frame_shift, axes=rows[0])
    rows[0].set(xlabel="", ylabel=ylabel)
    rows[0].set_title(title or "", parse_math=False)
    if any(not math.isnan(segment.confidence) for segments in tiers.values() for segment in segments):
        figure.colorbar(
            ScalarMappable(cmap=_pale("RdYlGn")), ax=list(rows), pad=0.01, fraction=0.03, label="confidence"
        )
    for axes, (name, segments) in zip(rows[1:], tiers.items(), strict=True):
        plot_segments(segments, axes=axes)
        axes.set_ylabel(name, rotation=0, ha="right", va="center", parse_math=False)
    for n, segments in enumerate(tiers.values()):
        is_last = n == len(tiers) - 1
        edges = {edge for segment in segments for edge in (segment.start, segment.end)}
        rows[0].vlines(sorted(edges), *rows[0].get_ylim(), color="white", lw=0.7 if is_last else 1.4, alpha=0.8)
    rows[0].set_xlim(0, seconds)
    rows[-1].set_xlabel("seconds")
    return figure


def save_figure(figure: Any, path: str | os.PathLike[str], dpi: float = 110) -> None:
    """Write a figure as the format that the name ends on; the file is whole or what it was.

    Raises:
        OSError: the folder does not exist, cannot be written to, or the disk is full.
    """
    content = bytes_io.BytesIO()
    kind = os.path.splitext(path)[1][1:] or "png"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a box stands for it
        figure.savefig(content, dpi=dpi, format=kind)
    replace(path, content.getvalue())


def _array(values: Any) -> Any:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def _matrix(name: str, values: Any) -> Any:
    found = _array(values)
    if found.ndim != 2:
        raise ValueError(f"{name}: expected shape (T, ...), two axes, got {found.shape}")
    return found


def _axes(axes: Any) -> Any:
    if axes is not None:
        return axes
    from matplotlib.figure import Figure

    return Figure(figsize=(10, 3), layout="constrained").subplots()


def _image(axes: Any, values: Any, frame_shift: float | None, rows: tuple[float, float], **style: Any) -> Any:
    """Values (T, ...) over time, from the first row's lower edge to the last one's upper edge."""
    extent = (0, len(values) * (frame_shift or 1), *rows)
    return axes.imshow(values.T, origin="lower", aspect="auto", extent=extent, **style)


def _time_axis(axes: Any, num_frames: int, frame_shift: float | None) -> None:
    axes.set(xlim=(0, num_frames * (frame_shift or 1)), xlabel="frame" if frame_shift is None else "seconds")


def _state_axis(axes: Any, count: int, names: Sequence[str] | None) -> None:
    if names is None:
        return
    if len(names) != count:
        raise ValueError(f"names: expected one a state, {count}, got {len(names)}")
    axes.set_yticks(range(count), names, fontsize=max(4, min(9, 220 // count)))


def _pale(colours: str) -> Any:
    """matplotlib's map, half way to white, for black text."""
    import matplotlib
    from matplotlib.colors import ListedColormap

    return ListedColormap(0.5 + 0.5 * matplotlib.colormaps[colours](np.linspace(0, 1, 256))[:, :3])


def _write(axes: Any, label: str, middle: float, points: float) -> None:
    """A label in a box of so many points' width: upright where it would not fit, left out where nothing does."""
    wide = 0.62 * 9 * len(label)
    if wide <= points:
        size, angle = 9.0, 0
    elif 0.62 * 6.5 * len(label) <= points:
        size, angle = points / (0.62 * len(label)), 0
    elif points >= 4:
        size, angle = min(8.0, max(5.0, points)), 90
    else:
        return
    where = {"ha": "center", "va": "center", "rotation": angle, "clip_on": True}
    axes.text(middle, 0.5, label, fontsize=size, parse_math=False, **where)
