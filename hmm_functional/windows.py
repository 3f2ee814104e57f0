"""Windows over time: static and dynamic features, and the normal equations they lead to."""

from __future__ import annotations

import operator
from functools import reduce
from math import isfinite, prod
from numbers import Real
from typing import Any, NamedTuple

from ._check import broadcast_batch, need_shape
from .backend import Array, Backend, backend_of
from .chain import lengths_of
from .numerics import in_one_dtype

EDGES = ("truncate", "hts")


class Window(NamedTuple):
    """Centred coefficients as given, and the (offset, coefficient) of those that are not 0."""

    reach: int
    """Frames to each side."""
    taps: tuple[tuple[int, float], ...]


class Frames(NamedTuple):
    """Which frames there are: `steps` (1, T), the `end` (B or 1, 1) of each sequence."""

    steps: Array
    end: Array

    def are_within(self, reach: int) -> Array:
        """(B or 1, T): where so many frames to each side lie within the sequence."""
        return (self.steps >= reach) & (self.steps < self.end - reach)


def apply_windows(x: Array, windows: Any, *, edges: str = "truncate", lengths: Any = None) -> Array:
    """Static and dynamic features: each window's weighted sums of neighbouring frames, window after window.

    Args:
        x: (..., T, D).
        windows: centred sequences of odd length, the static one first, such as ((1,), (-0.5, 0, 0.5), (1, -2, 1)).
        edges: "truncate" takes frames beyond the ends as 0; "hts" gives 0 for windows after the first where they cross
            an end, coefficients of 0 counted, too.
        lengths: (...) integers 1..T, valid frames of right-padded sequences; padding is not read and 0 in the result.

    Returns:
        (..., T, W D), which `mlpg` takes back to x; float32 for half precision.

    Raises:
        TypeError: not a floating-point array. ValueError: shapes, lengths, windows or edges.

    Gradient: any order.

    Cost: O(T D) for each coefficient that is not 0.

    Example:
        >>> import torch, hmm_functional as hf
        >>> hf.apply_windows(torch.tensor([[1.0], [3.0], [7.0]]), ((1,), (-0.5, 0, 0.5)))
        tensor([[ 1.0000,  1.5000],
                [ 3.0000,  3.0000],
                [ 7.0000, -1.5000]])
    """
    backend = backend_of(x=x)
    xp = backend.xp
    (x,) = in_one_dtype(backend, x=x)
    need_shape("x", x.shape, (None, None), "(..., T, D)")
    parts = need_windows(windows)
    need_edges(edges)
    if lengths is not None:
        lengths = lengths_of(backend, lengths, x.shape[-2], x)
    batch = broadcast_batch({"x": x.shape[:-2], "lengths": () if lengths is None else lengths.shape})
    num_steps, dim = x.shape[-2:]
    lanes = xp.permute_dims(flat(backend, x, batch, 2), (0, 2, 1))
    frames = frames_of(backend, lengths, batch, num_steps, x)
    if lengths is not None:
        lanes = xp.where(frames.are_within(0)[:, None, :], lanes, 0.0)
    found = []
    for i, window in enumerate(parts):
        y = reduce(operator.add, (weight * shifted(backend, lanes, -offset) for offset, weight in window.taps))
        reach = window.reach if edges == "hts" and i else 0
        if reach or lengths is not None:
            y = xp.where(frames.are_within(reach)[:, None, :], y, 0.0)
        found.append(y)
    stacked = xp.permute_dims(xp.concat(found, axis=1), (0, 2, 1))
    return xp.reshape(stacked, (*batch, num_steps, len(parts) * dim))


def normal_equations(
    backend: Backend, windows: tuple[Window, ...], precisions: Array, weighted: Array, frames: Frames
) -> tuple[Array, Array]:
    """Bands (P, D, T, J) of W' S W and the right sides W' S m (B, D, T), identities and 0 in the padding.

    Args:
        precisions: S, (P, W, D, T), 0 in the padding, as `weighted` is.
        weighted: S m, (B, W, D, T).
    """
    xp = backend.xp
    width = 1 + max(window.taps[-1][0] - window.taps[0][0] for window in windows)
    sums: list[Any] = [None] * width
    right: Any = None
    for i, window in enumerate(windows):
        for offset, weight in window.taps:
            precision = shifted(backend, precisions[:, i, ...], offset)
            for other, factor in window.taps:
                if other >= offset:
                    band = sums[other - offset]
                    sums[other - offset] = _add(band, weight * factor, precision)
            right = _add(right, weight, shifted(backend, weighted[:, i, ...], offset))
    bands = []
    for j, band in enumerate(sums):
        is_there = frames.steps + j < frames.end
        band = xp.zeros_like(precisions[:, 0, ...]) if band is None else band
        bands.append(xp.where(is_there[:, None, :], band, 0.0 if j else 1.0))
    return xp.stack(bands, axis=-1), xp.where(frames.are_within(0)[:, None, :], right, 0.0)


def shifted(backend: Backend, x: Array, count: int) -> Array:
    """(..., T) moved on by `count` frames, 0 where nothing came from."""
    xp, num_steps = backend.xp, x.shape[-1]
    if count == 0:
        return x
    if abs(count) >= num_steps:
        return xp.zeros_like(x)
    zeros = xp.zeros_like(x[..., : abs(count)])
    parts = [zeros, x[..., : num_steps - count]] if count > 0 else [x[..., -count:], zeros]
    return xp.concat(parts, axis=-1)


def frames_of(backend: Backend, lengths: Array | None, batch: tuple[int, ...], num_steps: int, like: Array) -> Frames:
    """The frames of sequences of `lengths`, or all alike without."""
    steps = backend.arange(num_steps, like=like)[None, :]
    if lengths is None:
        return Frames(steps, backend.full((1, 1), num_steps, like=like, dtype=backend.index_dtype()))
    return Frames(steps, flat(backend, lengths, batch, 0)[:, None])


def flat(backend: Backend, x: Array, batch: tuple[int, ...], rank: int) -> Array:
    """(..., *base) to (B, *base), broadcast to the batch."""
    base = tuple(x.shape[x.ndim - rank :])
    return backend.xp.reshape(backend.xp.broadcast_to(x, (*batch, *base)), (prod(batch), *base))


def need_windows(windows: Any) -> tuple[Window, ...]:
    """Windows as numbers."""
    windows = windows.tolist() if hasattr(windows, "tolist") else windows
    if not isinstance(windows, list | tuple) or not windows:
        raise ValueError(f"windows: expected at least one window, the static one first, got {windows!r}")
    return tuple(_window(i, window) for i, window in enumerate(windows))


def _window(place: int, given: Any) -> Window:
    values = given.tolist() if hasattr(given, "tolist") else given
    if not isinstance(values, list | tuple) or not all(isinstance(v, Real) for v in values):
        raise TypeError(f"windows[{place}]: expected a sequence of numbers, got {given!r}")
    if len(values) % 2 == 0:
        raise ValueError(f"windows[{place}]: expected an odd number of coefficients, got {len(values)}")
    reach = len(values) // 2
    taps = tuple((i - reach, float(v)) for i, v in enumerate(values) if v)
    if not taps or not all(isfinite(v) for _, v in taps):
        raise ValueError(f"windows[{place}]: expected finite coefficients, not all 0, got {tuple(values)}")
    return Window(reach, taps)


def need_edges(edges: Any) -> None:
    """Raise ValueError unless `edges` is one of EDGES."""
    if edges not in EDGES:
        raise ValueError(f"edges: expected one of {', '.join(map(repr, EDGES))}, got {edges!r}")


def _add(total: Any, factor: float, x: Array) -> Array:
    part = x if factor == 1.0 else factor * x
    return part if total is None else total + part
