"""Batches of streams on the host, and what their steps are given: what Viterbi streams of all kinds share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from .._check import broadcast_batch, need_integers, need_range
from ..backend import Array, Backend, find_backend
from .posterior import need_chunk


def chunk_of(message: Array, log_emission_chunk: Array, lengths: Any) -> tuple[Backend, tuple[int, ...], Any]:
    """The library and the batch axes of a state's message (..., K) and a chunk for it, and the steps of each stream.

    Args:
        lengths: (...) integers 0..n, or None for n.

    Returns:
        Backend, batch shape, and int64 (B,) on the host.

    Raises:
        TypeError: other libraries or dtypes; or traced arrays, since how many states come out depends on values.
        ValueError: shapes, or lengths out of range.
    """
    backend, batch, size = need_chunk(message, log_emission_chunk)
    if backend.is_traced(log_emission_chunk, message):
        raise TypeError("log_emission_chunk: expected known values, got a traced array; Viterbi streams are not traced")
    ends = _chunk_lengths(lengths, size)
    batch = broadcast_batch({"log_emission_chunk, state": batch, "lengths": ends.shape})
    return backend, batch, np.broadcast_to(ends, batch).reshape(-1)


def _chunk_lengths(lengths: Any, num_steps: int) -> Any:
    """`lengths` as int64 on the host, 0..num_steps; num_steps where None."""
    if lengths is None:
        return np.array(num_steps)
    source = find_backend(lengths)
    if source is not None:
        need_integers("lengths", source.xp, lengths)
        lengths = source.to_numpy(lengths)
    found = np.asarray(lengths)
    if found.dtype.kind not in "iu":
        raise TypeError(f"lengths: expected integers, got {found.dtype}")
    need_range("lengths", found, 0, num_steps)
    return found.astype(np.int64)


def ended(is_ended: Any, batch: tuple[int, ...], name: str) -> Any:
    """Booleans (*batch) on the host; all where None."""
    if is_ended is None:
        return np.ones(batch, bool)
    source = find_backend(is_ended)
    found = np.asarray(is_ended if source is None else source.to_numpy(is_ended))
    if found.dtype != np.bool_:
        raise TypeError(f"{name}: expected booleans of the streams, got {found.dtype}")
    if broadcast_batch({name: found.shape, "state": batch}) != batch:
        raise ValueError(f"{name}: expected booleans of the streams, whose batch shape is {batch}, got {found.shape}")
    return np.broadcast_to(found, batch)


@dataclass
class HostStreams:
    """Arrays of a state on the host, their batch axes one."""

    backend: Backend
    batch: tuple[int, ...]
    like: Array
    """An array of the state."""

    @cached_property
    def size(self) -> int:
        """B."""
        return prod(self.batch)

    def flat(self, x: Array, rank: int) -> Any:
        """(B, ...) of an array with `rank` axes of its own; not to be written to."""
        values = self.backend.to_numpy(x)
        shape = values.shape[values.ndim - rank :]
        whole = (*self.batch, *shape)
        if values.shape != whole:
            values = np.broadcast_to(values, whole)
        return values.reshape(self.size, *shape)

    def back(self, x: Any) -> Array:
        """(B, ...) as an array of the library, with the batch axes; long integers in its own dtype."""
        backend = self.backend
        x = np.array(x, order="C").reshape((*self.batch, *x.shape[1:]))
        found = backend.asarray(x, like=self.like)
        if x.dtype.kind == "i" and x.dtype.itemsize == 8 and found.dtype != backend.index_dtype():
            found = backend.xp.astype(found, backend.index_dtype())
        return found

    def scale_back(self, scale: Any) -> Array:
        """Long numbers (B,) as the sums of two."""
        wide = np.float64 if self.backend.wide_dtype(self.like) is not None else np.float32
        found = np.empty((len(scale), 2), wide)
        found[:, 0] = high = scale.astype(wide, copy=False)
        found[:, 1] = scale - np.where(np.isfinite(high), high, scale)
        return self.back(found)
