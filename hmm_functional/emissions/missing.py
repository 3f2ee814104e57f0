"""Gaussians of frames with missing features: the density of what was observed, and what it says about the rest.

With o the 0/1 mask of a frame, o o' * C + diag(1 - o) has the determinant of the observed block of C, and its inverse
holds that block's: all frames keep one shape.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log, pi
from typing import Any

import numpy as np

from ..backend import Array, Backend
from ..numerics import wide
from .density import WORKSPACE
from .moments import GaussianStatistics, summed, weighted_moments


def is_marginal(missing: Any) -> bool:
    """Whether missing features are integrated out; raises ValueError for what `missing` cannot be."""
    if missing not in ("propagate", "marginalize"):
        raise ValueError(f"missing: expected 'propagate' or 'marginalize', got {missing!r}")
    return bool(missing == "marginalize")


class Marginal:
    """As `Density`, for frames (N, D) in which NaN stands for what is missing."""

    def __init__(self, backend: Backend, means: Array, covariances: Array, covariance_type: str) -> None:
        xp = backend.xp
        self._backend, self._type = backend, covariance_type
        self._is_tied, self._is_matrix = covariance_type.startswith("tied"), covariance_type in ("full", "tied")
        num_gaussians, dim = means.shape
        if covariance_type == "spherical":
            covariances = covariances[:, None]
        elif self._is_tied:
            covariances = xp.expand_dims(covariances, axis=0)
        self.cost = num_gaussians * dim + (4 * covariances.shape[0] * dim * dim if self._is_matrix else 0)
        """Elements of scratch a frame."""
        self.parameters: tuple[Array, ...] = (means, covariances)
        """What `log_prob` takes beside the frames."""

    def log_prob(self, frames: Array, means: Array, covariances: Array) -> Array:
        """(N, C): log-densities of the observed features, 0 where there is none."""
        xp = self._backend.xp
        missing = xp.isnan(frames)
        gaps = _gaps(xp, frames, missing, means)
        if not self._is_matrix:
            scaled = gaps / xp.sqrt(covariances)
            each = -0.5 * (log(2 * pi) + xp.log(covariances) + scaled * scaled)
            return xp.sum(xp.where(missing[:, None, :], 0.0, each), axis=-1)
        patterns, places = self._patterns(missing)
        inverse, log_det = self._factors(patterns, covariances)
        white = self._times(_rows(xp, inverse, places), gaps)
        counts = xp.sum(xp.astype(xp.logical_not(missing), means.dtype), axis=-1, keepdims=True)
        return -0.5 * (log(2 * pi) * counts + xp.sum(white * white, axis=-1)) - _rows(xp, log_det, places)

    def moments(self, frames: Array, weights: Array, centre: Array) -> GaussianStatistics:
        """Expected `weighted_moments` given the observed features; a frame without any counts nothing.

        References: Little and Rubin 2002, section 11.2.1; for mixtures Ghahramani and Jordan 1994.
        """
        length = max(1, WORKSPACE // self.cost)
        starts = range(0, max(1, frames.shape[0]), length)
        return summed(self._moments(frames[s : s + length, ...], weights[s : s + length, ...], centre) for s in starts)

    def _moments(self, frames: Array, weights: Array, centre: Array) -> GaussianStatistics:
        backend, xp, turn = self._backend, self._backend.xp, self._backend.xp.matrix_transpose
        frames, weights, centre, means, covariances = (
            wide(backend, x) for x in (frames, weights, centre, *self.parameters)
        )
        frames = xp.where(xp.sum(weights, axis=-1, keepdims=True) > 0, frames, 0.0)  # what is not read may be anything
        missing, offset = xp.isnan(frames), means - centre
        weights = xp.where(xp.all(missing, axis=-1, keepdims=True), 0.0, weights)
        if not self._is_matrix:
            found = weighted_moments(backend, xp.where(missing, centre, frames), weights, centre, self._type)
            lost = turn(weights) @ xp.astype(missing, weights.dtype)
            added = lost * (offset * offset + covariances)
            if self._type != "diag":
                added = xp.sum(added, axis=0 if self._is_tied else -1)
            return GaussianStatistics(found.counts, found.sums + lost * offset, found.squares + added)
        patterns, places = self._patterns(missing)
        slopes, spread = (_rows(xp, x, places) for x in self._given(patterns, covariances))
        x = self._times(slopes, _gaps(xp, frames, missing, means)) + offset
        shares = turn(weights)
        each = xp.permute_dims(x, (1, 0, 2))
        weighted = each * shares[..., None]
        squares = turn(weighted) @ each
        if self._is_tied:
            squares, shares = xp.sum(squares, axis=0, keepdims=True), xp.sum(shares, axis=0, keepdims=True)
        spread = xp.reshape(xp.permute_dims(spread, (1, 0, 2, 3)), (*shares.shape, -1))
        squares = squares + xp.reshape(shares[:, None, :] @ spread, squares.shape)
        return GaussianStatistics(
            xp.sum(weights, axis=0), xp.sum(weighted, axis=1), squares[0, ...] if self._is_tied else squares
        )

    def _patterns(self, missing: Array) -> tuple[Array, Array | None]:
        """Rows (P, D) of `missing` and each frame's among them (N,), None for its own: one row for equal neighbours."""
        if self._backend.is_traced(missing):
            return missing, None
        rows = self._backend.to_numpy(missing)
        is_new = np.ones(rows.shape[0], bool)
        is_new[1:] = (rows[1:] != rows[:-1]).any(1)
        if is_new.all():
            return missing, None
        return tuple(self._backend.asarray(x, like=missing) for x in (rows[is_new], np.cumsum(is_new) - 1))

    def _factors(self, patterns: Array, covariances: Array) -> tuple[Array, Array]:
        """Inverse Cholesky factors (P, C or 1, D, D) of masked covariances, halves of log determinants (P, C or 1)."""
        xp, seen = self._backend.xp, self._backend.xp.logical_not(patterns)
        eye = self._eye(covariances)
        both = xp.logical_and(seen[:, None, :, None], seen[:, None, None, :])
        lower = xp.linalg.cholesky(xp.where(both, covariances, eye))
        log_det = xp.sum(xp.log(xp.linalg.diagonal(lower)), axis=-1)
        return self._backend.solve_triangular(lower, xp.broadcast_to(eye, lower.shape)), log_det

    def _given(self, patterns: Array, covariances: Array) -> tuple[Array, Array]:
        """(P, C or 1, D, D) each: what turns observed gaps into expected ones, and the covariance that remains."""
        xp, turn = self._backend.xp, self._backend.xp.matrix_transpose
        inverse, _ = self._factors(patterns, covariances)
        gone = patterns[:, None, :, None]
        white = inverse @ xp.where(gone, 0.0, covariances)
        slopes = xp.where(gone, turn(white) @ inverse, self._eye(covariances))
        both = xp.logical_and(gone, patterns[:, None, None, :])
        return slopes, xp.where(both, covariances - turn(white) @ white, 0.0)

    def _times(self, matrices: Array, vectors: Array) -> Array:
        """Vectors (N, C, D) times matrices (N, C or 1, D, D)."""
        if self._is_tied:
            return vectors @ self._backend.xp.matrix_transpose(matrices[:, 0, ...])
        return (matrices @ vectors[..., None])[..., 0]

    def _eye(self, like: Array) -> Array:
        each = self._backend.arange(like.shape[-1], like=like)
        return self._backend.xp.astype(each[:, None] == each, like.dtype)


def apart(
    backend: Backend, complete: Callable[..., Any], partial: Callable[..., Any], frames: Array, *others: Array
) -> tuple[list[Any], Any]:
    """What `complete` makes of frames (N, D) without NaN and `partial` of the others, and the order (N,) they came in.

    The order is None where it is the frames' own. Frames that miss the same features come to `partial` side by side;
    where values cannot be read, all come to it.

    Args:
        others: (N, ...), which go with the frames.
    """
    missing = backend.xp.isnan(frames)
    if backend.is_traced(missing):
        return [partial(frames, *others)], None
    if not bool(backend.xp.any(missing)):
        return [complete(frames, *others)], None
    rows = backend.to_numpy(missing)
    is_partial = rows.any(1)
    places = np.flatnonzero(is_partial)
    places = places[np.lexsort(np.packbits(rows[places], axis=1).T)]
    found, parts = [], ((complete, np.flatnonzero(~is_partial)), (partial, places))
    for function, part in parts:
        if part.size:
            index = backend.asarray(part, like=frames)
            found.append(function(*(backend.xp.take(x, index, axis=0) for x in (frames, *others))))
    return found, np.concatenate([part for _, part in parts])


def scores_apart(
    backend: Backend, observations: Array, complete: Callable[[Array], Array], partial: Callable[[Array], Array]
) -> Array:
    """(..., T, K) for observations (..., T, D): each frame's row by the function that serves it."""
    frames = backend.xp.reshape(observations, (-1, observations.shape[-1]))
    found, order = apart(backend, complete, partial, frames)
    rows = found[0]
    if order is not None:
        index = np.empty_like(order)
        index[order] = np.arange(order.size)
        rows = backend.xp.take(backend.xp.concat(found, axis=0), backend.asarray(index, like=frames), axis=0)
    return backend.xp.reshape(rows, (*observations.shape[:-1], rows.shape[-1]))


def _gaps(xp: Any, frames: Array, missing: Array, means: Array) -> Array:
    """Frames less means (N, C, D), 0 where missing: NaN enters a difference alone, whose derivatives do not meet it."""
    return xp.where(missing[:, None, :], 0.0, frames[:, None, :] - means)


def _rows(xp: Any, table: Array, places: Array | None) -> Array:
    return table if places is None else xp.take(table, places, axis=0)
