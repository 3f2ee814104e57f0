"""What the survivors of a stream agree on: max messages with back-pointers, on the host.

How many steps come out depends on the data, so the host would have to look anyway. Compiled code takes the steps and
follows the survivors where it can; else NumPy does, whose operations begin ten times sooner than other libraries'; both
give the same bits. A survivor is the best path into a state that can still be. Time leads here, so that a step's row is
one piece of memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import Any, NamedTuple

import numpy as np

from ..kernels import trellis as kernel
from ..structure import WORKSPACE, Dense, Structure

NEVER = np.iinfo(np.int64).max
"""A step past all others."""


class Moves:
    """The best way into each state, exact ties to the lowest source."""

    def __init__(self, structure: Structure, weights: Any, size: int, dtype: Any) -> None:
        """`weights` (B or 1, *base) and the structure's tables are the host's; B = `size`."""
        self.num_states, self.size = structure.num_states, size
        self.edges: tuple[Any, ...] = ()
        """Sources of edges in order of their targets, and where each state's begin and how many they are."""
        if not isinstance(structure, Dense):
            sources, _, order, start, count = (np.asarray(table) for table in structure.tables[:5])
            self.edges, weights = (sources[order], start, count), weights[..., order]
        self.weights = np.ascontiguousarray(weights, dtype)

    @cached_property
    def is_nan(self) -> Any:
        """(B,)"""
        return np.broadcast_to(np.isnan(self.weights).reshape(len(self.weights), -1).any(1), (self.size,))

    def best(self, message: Any) -> tuple[Any, Any]:
        """Messages (B, K) moved one step on, and the state each came from, (B, K)."""
        if not self.edges:
            return self._best_dense(message)
        sources, (into, first, group, places) = self.edges[0], self._places
        terms = message[:, sources] + self.weights
        most = np.maximum.reduceat(terms, first, axis=1)
        place = np.where(terms == most[:, group], places, len(places) - 1)
        place = np.minimum.reduceat(place, first, axis=1)
        values = np.full(message.shape, -inf, terms.dtype)
        values[:, into] = most
        found = np.zeros(message.shape, np.intp)
        found[:, into] = sources[place]
        return values, found

    @cached_property
    def _places(self) -> tuple[Any, ...]:
        """States that edges lead into, the first edge of each, which of them each edge leads into, and 0..E-1."""
        sources, start, count = self.edges
        (into,) = np.nonzero(count)
        return into, start[into], np.repeat(np.arange(len(into)), count[into]), np.arange(len(sources))

    @cached_property
    def _turned(self) -> Any:
        return np.ascontiguousarray(np.swapaxes(self.weights, -1, -2))

    def _best_dense(self, message: Any) -> tuple[Any, Any]:
        if message.size * self.num_states <= WORKSPACE:
            terms = message[:, None, :] + self._turned
            found = terms.argmax(-1)
            rows = np.arange(found.size) * self.num_states
            return terms.reshape(-1).take(found.reshape(-1) + rows).reshape(found.shape), found
        count = max(1, WORKSPACE // max(message.size, 1))
        parts = []
        for first in range(0, self.num_states, count):
            terms = message[:, None, :] + self._turned[:, first : first + count, :]
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
    """Take emissions (B, n, K), of which each stream reads its own first `lengths` (B,); n is at least 1."""
    if kernel.can_run(message):
        scales, weights, edges = (scaling.every, scaling.last, scaling.is_centred), moves.weights, moves.edges
        streams = initial, message, origins, emission, lengths, num_steps, num_pending
        return Passed(*kernel.forward(weights, edges, scales, *streams))
    size, count, num_states = emission.shape
    states, base = np.arange(num_states), (np.arange(size) * num_states)[:, None]
    pointers = np.empty((count, size, num_states), kernel.pointer_type(num_states))
    is_valid = np.arange(count)[:, None] < lengths
    emission = np.moveaxis(emission, 1, 0)
    is_number = emission < inf
    wrong = (is_valid[..., None] & ~is_number).any((0, 2))
    if not is_number.all():  # padding may hold anything
        emission = np.where(is_number, emission, emission.dtype.type(0))
    scale, top = np.zeros(size), np.zeros((count, size, 1))
    if scaling.is_centred:
        top = _finite(emission.max(-1, keepdims=True))
        emission = emission - top
    due = scaling.due(num_steps + np.arange(count)[:, None]) & is_valid
    is_due, is_full = due.any(1).tolist(), is_valid.all(1).tolist()
    for t in range(count):
        scale += np.where(is_valid[t], top[t, :, 0], 0.0)
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


def trace(pointers: Any, is_alive: Any, best: Any, is_wanted: Any, num_pending: Any) -> Traced:
    """Follow survivors (B, K) back until those of all wanted streams have met, and the best one to the start.

    Args:
        num_pending: (B,): the last steps of the window, where survivors may part.
    """
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
        is_apart = (at != own[:, None]) & (step >= width - num_pending)[:, None]
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


class Committed(NamedTuple):
    """What survivors agree on after some steps of B streams."""

    states: Any
    """(B, m) of the pending steps that are final now, -1 behind."""
    count: Any
    """(B,): how many they are."""
    forced: Any
    """(B,): on how many steps the survivors dropped did not agree."""
    message: Any
    """(B, K), -inf where survivors are dropped."""
    origins: Any
    """(B, K), of the first step that is pending now."""


def commit(
    message: Any, origins: Any, pointers: Any, num_steps: Any, num_pending: Any, max_delay: int | None
) -> Committed:
    """What streams can give out of a window of pointers (W, B, K)."""
    if kernel.can_commit(pointers, num_pending):
        return Committed(*kernel.commit(message, origins, pointers, num_steps, num_pending, max_delay))
    size, width = len(message), len(pointers)
    is_alive = message > -inf
    is_lost = ~is_alive.any(-1) | (num_steps == 0)
    best = np.where(is_alive, message, -inf).argmax(-1)
    own = origins[np.arange(size), best]
    is_wanted = ~is_lost & (num_pending > 0) & ~(is_alive & (origins != own[:, None])).any(-1)
    if max_delay is not None:
        is_wanted |= ~is_lost & (num_pending > max_delay)
    traced = trace(pointers, is_alive, best, is_wanted, num_pending)
    count, remain, forced = met(traced.parting, is_alive, num_pending, width, max_delay)
    count = np.where(is_lost, num_pending, np.where(is_wanted, count, 0))
    states = rows_of(np.where(is_lost, -1, traced.path), num_pending, count)
    message = np.where(is_alive & ~remain & is_wanted[:, None], -inf, message)
    origins = origins.copy()
    for b in np.flatnonzero(is_wanted & (count < num_pending)):
        back = int(num_pending[b] - count[b]) - 1  # steps from the last to the first that is pending now
        origins[b] = traced.seen[back][b] - b * message.shape[1]
    return Committed(states, count, np.where(is_wanted, forced, 0), message, origins)


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
