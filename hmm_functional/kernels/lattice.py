"""Ways through a grid by compiled code, for arrays in the CPU's memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend import Array, Backend
from . import compiled, layout, threads
from .gaussians import can_read
from .job import Job, execute
from .memory import host

LINE, SPAN, STRIP = layout.STRIP + 8, 3, layout.STRIP
METRICS = ("given", "euclidean", "squared")
Steps = tuple[tuple[int, int, int], ...]


def can_run(backend: Backend, kernel: str, arrays: tuple[Array, ...]) -> bool:
    """Whether compiled code serves these arrays under this choice of kernel."""
    return kernel in ("auto", "numba") and all(0 not in x.shape for x in arrays) and can_read(backend, *arrays)


def total(scores: Array, bounds: Array, corners: Array, steps: Steps) -> Any:
    """log of the sum over ways (B,); see `lattice._total`."""
    size = max(len(x) for x in (scores, bounds, corners))
    found = np.empty(size)
    _Call(size, bounds, corners).given(scores).run("total", steps, found)
    return found


def visits(scores: Array, bounds: Array, corners: Array, steps: Steps) -> Any:
    """Its derivative (B, N, M)."""
    size = max(len(x) for x in (scores, bounds, corners))
    found = np.zeros((size, *scores.shape[1:]))
    _Call(size, bounds, corners).given(scores).run("visits", steps, found)
    return found


def path(
    grid: tuple[Array, ...], bounds: Array, corners: Array, steps: Steps, length: int, opens: bool, ends_open: int
) -> Any:
    """The best way's cells (B, length, 2), -1 after them; of scores, or of features and their Euclidean distances.

    Args:
        ends_open: 0, or 1 where a way ends in the best column of the last row, or 2 where in the best a unit of N + M.
    """
    size = max(len(x) for x in (*grid, bounds, corners))
    found = np.full((size, length, 2), -1, np.int64)
    call = _Call(size, bounds, corners)
    call = call.given(*grid) if len(grid) == 1 else call.features("euclidean", *grid)
    call.words[layout.OPENS], call.words[layout.ENDS_OPEN] = int(opens), ends_open
    call.run("path", steps, found)
    return found


def distances(x: Array, y: Array, metric: str) -> Any:
    """(B, N, M): "euclidean" distances of features (B or 1, N, D), (B or 1, M, D), or "squared" ones."""
    size = max(len(x), len(y))
    found = np.empty((size, x.shape[1], y.shape[1]))
    call = _Call(size, np.zeros((1, 1, 2)), np.zeros((1, 2))).features(metric, x, y)
    call.run("distances", ((1, 1, 1),) * 3, found)
    return found


class _Call:
    """One call's fields."""

    def __init__(self, size: int, bounds: Array, corners: Array) -> None:
        self.size, self.job = size, Job()
        self.words = self.job.fields
        self.num_features = 0
        self.point("BOUNDS", np.ascontiguousarray(host(bounds), np.int64))
        self.point("CORNERS", np.ascontiguousarray(host(corners), np.int64))

    def given(self, scores: Array) -> _Call:
        """Of scores (B or 1, N, M)."""
        self.shape = tuple(scores.shape[1:])
        self.point("GRID", np.ascontiguousarray(host(scores), np.float64))
        return self

    def features(self, metric: str, x: Array, y: Array) -> _Call:
        """Of features, in the kernel's layout."""
        self.num_features = x.shape[-1]
        self.words[layout.METRIC] = METRICS.index(metric)
        self.shape = rows, columns = x.shape[1], y.shape[1]
        left = np.zeros((len(x), x.shape[-1], layout.padded(rows, STRIP)))
        left[..., :rows] = np.swapaxes(host(x), 1, 2)
        stride = layout.padded(columns + 2 * STRIP, 8)
        stride += 8 if stride % 64 == 0 else 0  # so that features do not share the sets of a cache
        right = np.zeros((len(y), y.shape[-1], stride))
        right[..., STRIP : STRIP + columns] = np.swapaxes(host(y), 1, 2)[..., ::-1]
        self.point("ROW_FEATURES", left)
        self.point("COLUMN_FEATURES", right)
        self.words[layout.COLUMN_STRIDE] = stride
        return self

    def point(self, name: str, x: Any) -> None:
        self.job.point(getattr(layout, name), x)
        self.words[getattr(layout, f"{name}_BATCH")] = x[0].size if len(x) > 1 else 0

    def run(self, kind: str, steps: Steps, found: Any) -> None:
        """Run the kernel of this kind; `found` holds what it leaves as it is."""
        rows, columns = self.shape
        words, strips = self.words, -(-rows // STRIP)
        words[layout.NUM_ROWS], words[layout.NUM_COLUMNS] = rows, columns
        words[layout.NUM_FEATURES] = self.num_features
        if kind == "path":
            words[layout.PATH_LENGTH] = found.shape[1]
        self.job.point(layout.STATES if kind == "path" else layout.VALUES, found)
        self.job.count_tasks(self.size * (strips if kind == "distances" else 1))
        num_threads = min(threads.available(), self.job.num_tasks)
        self.job.scratch(self._room(kind, strips, columns), num_threads)
        self.job.point(layout.STEPS, np.array(steps, np.int64))
        self.job.entry = compiled.entry("lattice", kind)
        execute([self.job], num_threads)

    def _room(self, kind: str, strips: int, columns: int) -> int:
        """Bytes of scratch a thread needs."""
        height = columns + STRIP + SPAN
        fixed = 4 * STRIP + max(STRIP * self.num_features, 12 * LINE) + 6 * (columns + STRIP + 16) + strips
        lines = strips * height * LINE if kind == "visits" else 4 * LINE
        taken = strips * height * STRIP if kind == "path" else 0
        return layout.padded((fixed + lines) * 8 + taken, 64)
