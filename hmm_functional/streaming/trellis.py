"""What the survivors of a stream agree on: max messages with back-pointers, on the host.

How many steps come out depends on the data, so the host would have to look anyway; and a step's arrays are so small
that NumPy, whose operations begin ten times sooner than other libraries', is done first. A survivor is the best path
into a state that can still be. Time leads here, so that a step's row is one piece of memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple

import numpy as np

from ..structure import WORKSPACE, Dense, Structure

NEVER = np.iinfo(np.int64).max
"""A step past all others."""


class Moves:
    """The best way into each state, exact ties to the lowest source."""

    def __init__(self, structure: Structure, weights: Any, size: int, dtype: Any) -> None:
        """`weights` (B or 1, *base) and the structure's tables are the host's; B = `size`."""
        self.num_states, self.size = structure.num_states, size
        self.is_nan = np.broadcast_to(np.isnan(weights).reshape(len(weights), -1).any(1), (size,))
        self._into: Any = None
        if isinstance(structure, Dense):
            self._weights = np.ascontiguousarray(np.swapaxes(weights, -1, -2), dtype)
            self._rows = np.arange(size * self.num_states) * self.num_states
            return
        sources, _, order, start, count = (np.asarray(table) for table in structure.tables[:5])
        (self._into,) = np.nonzero(count)
        self._first = start[self._into]
        self._group = np.repeat(np.arange(len(self._into)), count[self._into])
        self._sources, self._places = sources[order], np.arange(len(order))
        self._weights = np.ascontiguousarray(weights[..., order], dtype)

    def best(self, message: Any) -> tuple[Any, Any]:
        """Messages (B, K) moved one step on, and the state each came from, (B, K)."""
        if self._into is None:
            return self._best_dense(message)
        terms = message[:, self._sources] + self._weights
        most = np.maximum.reduceat(terms, self._first, axis=1)
        place = np.where(terms == most[:, self._group], self._places, len(self._places) - 1)
        place = np.minimum.reduceat(place, self._first, axis=1)
        values = np.full(message.shape, -inf, terms.dtype)
        values[:, self._into] = most
        found = np.zeros(message.shape, np.intp)
        found[:, self._into] = self._sources[place]
        return values, found

    def _best_dense(self, message: Any) -> tuple[Any, Any]:
        if message.size * self.num_states <= WORKSPACE:
            terms = message[:, None, :] + self._weights
            found = terms.argmax(-1)
            return terms.reshape(-1).take(found.reshape(-1) + self._rows).reshape(found.shape), found
        count = max(1, WORKSPACE // max(message.size, 1))
        parts = []
        for first in range(0, self.num_states, count):
            terms = message[:, None, :] + self._weights[:, first : first + count, :]
            parts.append((terms.max(-1), terms.argmax(-1)))
        values, sources = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
        return values, sources


@dataclass(frozen=True)
class Scaling:
    """When messages are scaled, and on what: as the offline function does it, so that rounding is the same."""

    every: int
    """Steps, counted from the stream's first."""
    last: int
    """The remainder of the steps that a scaling follows."""
    is_centred: bool
    """Whether a step's largest emission is taken out of it."""

    def due(self, steps: Any) -> Any:
        """Which of the steps a scaling follows."""
        return (steps % self.every == self.last) & (steps >= self.last)


class Passed(NamedTuple):
    """The trellis after some steps of B streams."""

    message: Any
    """(B, K)"""
    scale: Any
    """(B,): what was taken out of it."""
    pointers: Any
    """(n, B, K)"""
    origins: Any
    """(B, K)"""


def forward(
    moves: Moves,
    scaling: Scaling,
    initial: Any,
    message: Any,
    origins: Any,
    emission: Any,
    lengths: Any,
    num_steps: Any,
    num_pending: Any,
) -> Passed:
    """Take emissions (B, n, K), of which each stream reads its own first `lengths` (B,)."""
    size, count, num_states = emission.shape
    states, base = np.arange(num_states), (np.arange(size) * num_states)[:, None]
    pointers = np.empty((count, size, num_states), np.int16 if num_states < 2**15 else np.int32)
    is_valid = np.arange(count)[:, None] < lengths
    emission = np.moveaxis(emission, 1, 0)
    is_number = emission < inf
    wrong = (is_valid[..., None] & ~is_number).any((0, 2))
    if not is_number.all():  # padding may hold anything
        emission = np.where(is_number, emission, emission.dtype.type(0))
    scale = np.zeros(size)
    if scaling.is_centred:
        top = _finite(emission.max(-1, keepdims=True))
        emission = emission - top
        scale += np.where(is_valid, top[..., 0], 0.0).sum(0)
    due = scaling.due(num_steps + np.arange(count)[:, None]) & is_valid
    is_due, is_full = due.any(1).tolist(), is_valid.all(1).tolist()
    for t in range(count):
        values, found = moves.best(message)
        came = origins.take(found + base)
        if t == 0:
            is_new = (num_steps == 0)[:, None]
            values, found = np.where(is_new, initial, values), np.where(is_new, 0, found)
            came = np.where((num_pending == 0)[:, None], states, came)
        moved = values + emission[t]
        if is_due[t]:
            taken = np.where(due[t], _finite(moved.max(-1)), 0.0)
            moved -= taken[:, None].astype(moved.dtype)
            scale += taken
        if not is_full[t]:
            here = is_valid[t][:, None]
            moved, came = np.where(here, moved, message), np.where(here, came, origins)
        message, origins = moved, came
        pointers[t] = found
    wrong |= moves.is_nan & (num_steps + lengths > 1)
    wrong |= np.isnan(message).any(-1)
    return Passed(np.where(wrong[:, None], np.nan, message), scale, pointers, origins)


def _finite(x: Any) -> Any:
    return np.where(x > -inf, x, 0.0)


def window(old: Any, new: Any, num_old: Any, num_new: Any, fill: int = 0) -> Any:
    """Rows of time (P, B, ...), each stream's last `num_old` its own, with its first `num_new` of (n, B, ...) behind.

    Again its own are the last: as many rows as the most of the batch.
    """
    width = int((num_old + num_new).max(initial=0))
    both = np.concatenate([old, new])
    first = len(old) + num_new - width
    if len(num_old) and (first == first[0]).all() and first[0] >= 0:
        return both[first[0] : first[0] + width]
    place = np.arange(width)[:, None] + first
    found = both[np.clip(place, 0, max(len(both) - 1, 0)), np.arange(both.shape[1])]
    found[place < 0] = fill
    return found


class Traced(NamedTuple):
    """Survivors, followed back from the last step of a window of W."""

    path: Any
    """(W, B): states of the best one; where it was followed."""
    parting: Any
    """(B, K): the first step at which each survivor is not where the best one is; `never` where there is none."""
    seen: Sequence[Any]
    """(B, K) each: states of the survivors, from the last step back as far as they were followed."""


def trace(pointers: Any, is_alive: Any, best: Any, is_wanted: Any) -> Traced:
    """Follow survivors (B, K) back until those of all wanted streams have met, and the best one to the start."""
    width, size, num_states = pointers.shape
    base = np.arange(size)[:, None] * num_states
    at = np.where(is_alive, np.arange(num_states), best[:, None]) + base
    rows, flat = base[:, 0], pointers.reshape(width, size * num_states)
    path, seen = np.zeros((width, size), np.int64), []
    parting = np.full((size, num_states), NEVER)
    step = width - 1
    while step >= 0:
        seen.append(at)
        own = at.reshape(-1)[rows + best]
        path[step] = own - rows
        is_apart = at != own[:, None]
        if not is_apart[is_wanted].any():
            break
        parting[is_apart] = step
        if step:
            at = flat[step][at] + base
        step -= 1
    if width and is_wanted.any():
        own = path[max(step, 0)]
        for earlier in range(step, 0, -1):
            own = flat[earlier][rows + own]
            path[earlier - 1] = own
    return Traced(path, parting, seen)


def met(parting: Any, is_alive: Any, num_pending: Any, width: int, max_delay: int | None) -> tuple[Any, Any, Any]:
    """How many pending steps are final, (B,), which survivors remain, (B, N), and how many steps were forced, (B,).

    Args:
        parting: (B, N), steps of a window of `width`, of which the last `num_pending` (B,) are pending.
        is_alive: (B, N); where none is, all steps are final.
    """
    first = np.where(is_alive, parting, NEVER).min(-1)
    forced = np.zeros(len(first), np.int64)
    if max_delay is not None:
        end = width - max_delay
        is_late = (num_pending > max_delay) & (first < end)
        for b in np.flatnonzero(is_late):
            apart = parting[b][is_alive[b] & (parting[b] < end)]
            forced[b] = len(np.unique(apart))
        is_alive = is_alive & ~(is_late[:, None] & (parting < end))
        first = np.where(is_alive, parting, NEVER).min(-1)
    count = np.clip(np.minimum(first, width) - (width - num_pending), 0, None)
    return np.where(is_alive.any(-1), count, num_pending), is_alive, forced


def rows_of(path: Any, num_pending: Any, count: Any) -> Any:
    """(B, m): the first `count` (B,) of the pending last steps of rows (W, B), -1 behind."""
    width, size = path.shape
    places = np.arange(int(count.max(initial=0)))
    at = np.clip(width - num_pending[:, None] + places, 0, max(width - 1, 0))
    return np.where(places < count[:, None], path[at, np.arange(size)[:, None]], -1)
