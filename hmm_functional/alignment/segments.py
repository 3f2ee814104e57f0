"""Segments of tokens, and what is summed over steps to say how sure they are."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..backend import Array, Backend
from ..numerics import root
from .graph import running_sum
from .posteriors import Piece, masses, own_posteriors, state_posteriors
from .problem import Problem

_CACHED = 2**17
"""Elements of the arrays that pieces of the time axis are worked through with."""


def segments(backend: Backend, token_index: Array, num_tokens: int) -> tuple[Array, Array]:
    """The first frame of each token and the one after its last, (B, N) each, -1 for tokens without any; of (B, T)."""
    xp, index = backend.xp, backend.index_dtype()
    num_steps = token_index.shape[-1]
    if not backend.is_traced(token_index) and backend.is_host(token_index):
        return _read_segments(backend, token_index, num_tokens)
    numbers = xp.astype(backend.arange(num_tokens, like=token_index), index)
    steps = xp.astype(backend.arange(num_steps, like=token_index), index)[:, None]
    is_own = token_index[..., None] == numbers
    start = xp.min(xp.where(is_own, steps, num_steps), axis=1)
    end = xp.max(xp.where(is_own, steps + 1, -1), axis=1)
    return xp.where(end < 0, -1, start), end


def _read_segments(backend: Backend, token_index: Array, num_tokens: int) -> tuple[Array, Array]:
    tokens = backend.to_numpy(token_index)
    edge = np.full((len(tokens), 1), -1)
    changes = np.diff(tokens, axis=1, prepend=edge, append=edge) != 0
    found = np.full((2, len(tokens), num_tokens), -1)
    for times, is_there, shift in zip(found, (changes[:, :-1], changes[:, 1:]), (0, 1), strict=True):
        row, step = np.nonzero(is_there & (tokens >= 0))
        times[row, tokens[row, step]] = step + shift
    start, end = (backend.xp.astype(backend.asarray(x, like=token_index), backend.index_dtype()) for x in found)
    return start, end


class Sums(NamedTuple):
    """What is summed over steps, moments about the alignment's own boundaries."""

    own: Array
    """(B, T): the posterior of each frame's token."""
    starts: tuple[Array, Array, Array]
    """(B, N): the mass of each token's start, its first and second moments."""
    ends: tuple[Array, Array, Array]


def sums_of(made: Problem, piece: Piece, token_index: Array, start: Array, end: Array) -> Sums:
    """The sums over a piece's steps."""
    backend, xp, tokens = made.backend, made.backend.xp, made.tokens
    width = max(token_index.shape[0] * made.chain.num_states, 1)
    own: list[Array] = []
    found: list[Array] = []
    for part in piece.split(piece.num_steps if backend.is_traced(token_index) else max(_CACHED // width, 1)):
        p = state_posteriors(backend, part)
        own.append(own_posteriors(backend, p, tokens, token_index[:, part.begin : part.begin + part.num_steps]))
        mass = masses(backend, part, p, tokens, made.chain.lengths if made.chain.is_ragged else None)
        steps = xp.astype(part.begin + backend.arange(part.num_steps, like=p), p.dtype)[:, None]
        sums = []
        for x, about in ((mass.begins, start), (mass.ends, end - 1)):
            away = steps - xp.astype(about, p.dtype)[:, None, :]
            first = x * away
            sums += [xp.sum(y, axis=1) for y in (x, first, first * away)]
        found = [a + b for a, b in zip(found, sums, strict=True)] if found else sums
    return Sums(xp.concat(own, axis=1), tuple(found[:3]), tuple(found[3:]))


def _confidence(backend: Backend, own: Array, token_index: Array, start: Array, end: Array) -> Array:
    """The mean (B, N) of each token's posteriors (B, T) over its segment."""
    xp = backend.xp
    own = xp.where(token_index < 0, 0.0, own)
    if (dtype := backend.wide_dtype(own)) is not None:
        sums = running_sum(backend, xp.astype(xp.concat([xp.zeros_like(own[:, :1]), own], axis=1), dtype))
        until, since = (backend.take_along(sums, xp.clip(x, min=0), -1) for x in (end, start))
        total = xp.astype(until - since, own.dtype)
    else:  # differences of sums would cost precision
        steps = backend.arange(own.shape[1], like=start)[:, None]
        inside = (steps >= start[:, None, :]) & (steps < end[:, None, :])
        total = xp.sum(xp.where(inside, own[..., None], 0.0), axis=1)
    return total / xp.clip(xp.astype(end - start, own.dtype), min=1.0)


def moments(backend: Backend, sums: Sums, token_index: Array, start: Array, end: Array, scores: Array) -> list[Array]:
    """Confidence, and mean and standard deviation of start and of end, (B, N) each."""
    xp = backend.xp
    dtype = sums.own.dtype
    is_there = end >= 0
    found = [_confidence(backend, sums.own, token_index, start, end)]
    for (mass, first, second), about in ((sums.starts, start), (sums.ends, end)):
        mass = xp.where(mass > 0, mass, 1.0)
        mean = first / mass
        variance = second / mass - mean * mean
        found += [xp.astype(about, dtype) + mean, root(backend, variance)]
    is_nan = xp.isnan(scores)[:, None]
    return [xp.where(is_nan, xp.nan, xp.where(is_there, x, 0.0)) for x in found]
