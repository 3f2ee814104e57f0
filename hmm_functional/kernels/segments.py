"""The recursion over segments by compiled code, for arrays in the CPU's memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend import Array, Backend
from . import compiled, layout, threads
from .gaussians import can_read
from .job import Job, execute
from .memory import host

LANES = 8


def can_run(backend: Backend, kernel: str, arrays: tuple[Array, ...]) -> bool:
    """Whether compiled code serves these arrays under this choice of kernel."""
    return kernel in ("auto", "numba") and all(0 not in x.shape for x in arrays) and can_read(backend, *arrays)


class Run:
    """A model and its scores as compiled code takes them, a pass forward, and those back; states in whole vectors."""

    def __init__(self, transition: Array, duration: Array, emission: Array, lengths: Array) -> None:
        self.num_states = emission.shape[-1]
        self.size, self.num_steps = emission.shape[:2]
        self.count = duration.shape[-1]
        self.width = layout.padded(self.num_states, LANES)
        self.transition = self.padded(self.padded(host(transition), -np.inf, axis=1), -np.inf)
        self.duration = self.laws(duration)
        self.emission = self.padded(host(emission), 0.0)
        self.lengths = np.ascontiguousarray(host(lengths), np.int64)
        self.begins = self.full(self.num_steps, self.width, value=-np.inf)
        self.ends, self.scales = self.begins, self.full(self.num_steps)

    def forward(self, initial: Array, *, is_best: bool) -> tuple[Any, Any, Any]:
        """Begins and ends (B, T, K), and what each step took out (B, T); -inf and 0 past the lengths."""
        self.ends = np.full_like(self.begins, -np.inf)
        self.run(
            "max" if is_best else "sum",
            INITIAL=self.padded(host(initial), -np.inf),
            WEIGHTS=self.transition,
            BEGINS=self.begins,
            ENDS=self.ends,
            SCALES=self.scales,
        )
        return self.begins[..., : self.num_states], self.ends[..., : self.num_states], self.scales

    def counts(self, tail: Array, known: Any) -> tuple[Any, ...]:
        """Of each sequence: first segments (B, K), moves (B, K, K), durations, ends (B, K, D), posteriors (B, T, K)."""
        done, left = self.full(self.count, self.width), self.full(self.count, self.width)
        _, starts, moves, posteriors = self.back(tail, known, done, left)
        k = self.num_states
        turned = (np.swapaxes(x[..., :k], -1, -2) for x in (done, left))
        return starts[:, :k], np.swapaxes(moves[:, :k, :k], -1, -2), *turned, posteriors[..., :k]

    def after(self, tail: Array) -> Any:
        """What follows a segment that ends at each step, (B, T, K), not scaled; of a run that has not gone forward.

        The pass back is the one that counts: where no segment begins it counts nothing.
        """
        uncounted = self.full(self.count, self.width)
        after, *_ = self.back(tail, self.full(), uncounted, uncounted)
        return after[..., : self.num_states]

    def back(self, tail: Array, known: Any, done: Any, left: Any) -> tuple[Any, Any, Any, Any]:
        """The pass back, which counts in `done` and `left`: what follows each step, first states, moves, posteriors."""
        after, starts = self.full(self.num_steps, self.width, value=-np.inf), self.full(self.width)
        moves, posteriors = self.full(self.width, self.width), self.full(self.num_steps, self.width)
        self.run(
            "back",
            TAILS=self.laws(tail),
            WEIGHTS=np.ascontiguousarray(np.swapaxes(self.transition, -1, -2)),
            BEGINS=self.begins,
            ENDS=self.ends,
            SCALES=self.scales,
            SCORES=np.ascontiguousarray(known, np.float64),
            AFTER=after,
            START=starts,
            POSTERIORS=posteriors,
            COUNTS=moves,
            DURATION_COUNTS=done,
            TAIL_COUNTS=left,
        )
        return after, starts, moves, posteriors

    def best_path(self, cells: Any, is_possible: Any) -> tuple[Any, Any]:
        """States (B, T), -1 where there is none, and where segments begin, from the end of each sequence.

        Args:
            cells: (B,): of the last segment, (duration - 1) K + state.
            is_possible: (B,)
        """
        states = np.full((self.size, self.num_steps), -1)
        is_start = np.zeros(states.shape, bool)
        for b in np.flatnonzero(is_possible):
            moves, laws = (x[b if len(x) > 1 else 0] for x in (self.transition, self.duration))
            begins, ends, emission, scales = self.begins[b], self.ends[b], self.emission[b], self.scales[b]
            state, lasted, t = cells[b] % self.num_states, cells[b] // self.num_states + 1, self.lengths[b] - 1
            while True:
                first = t - lasted + 1
                states[b, first : t + 1], is_start[b, first] = state, True
                if first <= 0:
                    break
                t = first - 1
                state = int(np.argmax(ends[t, : self.num_states] + moves[: self.num_states, state]))
                # as `segments.open_segments`, of one state
                since = slice(t, t - self.count if t >= self.count else None, -1)
                own = emission[since, state]
                before = np.append(scales[:t][::-1], scales[0])[: len(own)]
                weights = begins[since, state] + own
                weights[1:] += np.cumsum(own - before)[:-1]
                lasted = int(np.argmax(weights + laws[: len(own), state])) + 1
        return states, is_start

    def laws(self, x: Array) -> Any:
        """(B or 1, K, D) as (B or 1, D, K)."""
        return self.padded(np.swapaxes(host(x), -1, -2), -np.inf)

    def padded(self, x: Any, value: float, axis: int = -1) -> Any:
        """float64, contiguous, with states up to whole vectors."""
        shape = list(x.shape)
        shape[axis] = self.width
        found = np.full(shape, value)
        np.moveaxis(found, axis, -1)[..., : self.num_states] = np.moveaxis(x, axis, -1)
        return found

    def full(self, *shape: int, value: float = 0.0) -> Any:
        """A result of each sequence."""
        return np.full((self.size, *shape), value)

    def run(self, kind: str, **fields: Any) -> None:
        """Run the kernel of this kind with these fields besides those of all."""
        job = Job()
        words = job.fields
        words[layout.NUM_STEPS], words[layout.NUM_STATES] = self.num_steps, self.width
        words[layout.NUM_DURATIONS] = self.count
        for name, x in {"DURATIONS": self.duration, "EMISSION": self.emission, **fields}.items():
            job.point(getattr(layout, name), x)
            stride = getattr(layout, f"{name}_BATCH", None)
            if stride is not None:
                words[stride] = x[0].size if len(x) > 1 else 0
        job.point(layout.LENGTHS, self.lengths)
        job.count_tasks(self.size)
        num_threads = min(threads.available(), self.size)
        job.scratch((max(self.count, self.width) * LANES + LANES) * 8, num_threads)
        job.entry = compiled.entry("segments", kind)
        execute([job], num_threads)
