"""Distances of every row of one sequence from every row of another, with derivatives that are matrix products.

Differences are taken before they are squared, so that nothing cancels however far the rows are from the origin.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .arrays import filled
from .backend import Array, Backend, Primitive
from .backend.protocol import Shape, batch_size, declare
from .kernels import lattice as compiled
from .numerics import root
from .structure import WORKSPACE

METRICS = ("euclidean", "squared")


def distances(backend: Backend, x: Array, y: Array, *, metric: str, kernel: str = "auto") -> Array:
    """(B, N, M) of features (B or 1, N, D) and (B or 1, M, D): "euclidean" or "squared".

    The derivative of a Euclidean distance of 0 is 0.
    """
    return backend.call(DISTANCES, f"{metric}|{kernel}", [x, y])[0]


def _distances(backend: Backend, encoded: str, arrays: Sequence[Array]) -> tuple[Array, ...]:
    xp, (x, y), (metric, kernel) = backend.xp, arrays, encoded.split("|")
    if not backend.records(arrays) and compiled.can_run(backend, kernel, (x, y)):
        return (xp.astype(backend.asarray(compiled.distances(x, y, metric), like=x), x.dtype, copy=False),)
    size = batch_size((x.shape[0], y.shape[0]))
    cells = size * y.shape[1] * y.shape[2]
    # JAX fuses the differences into their sum
    rows = x.shape[1] if backend.name == "jax" else max(1, WORKSPACE // max(1, cells))
    parts = []
    for first in range(0, x.shape[1], rows):
        gaps = x[:, first : min(first + rows, x.shape[1]), None, :] - y[:, None, :, :]
        parts.append(xp.sum(gaps * gaps, axis=-1))
    found = parts[0] if len(parts) == 1 else xp.concat(parts, axis=1)
    return (found if metric == "squared" else root(backend, found),)


def norms(backend: Backend, x: Array) -> Array:
    """Euclidean norms of the last axis; the derivative at 0 is 0."""
    return root(backend, backend.xp.sum(x * x, axis=-1))


def _slopes(backend: Backend, encoded: str, found: Array) -> Array:
    """What a distance's derivative by a difference of features is divided by that difference."""
    xp = backend.xp
    if encoded.startswith("squared"):
        return xp.full_like(found, 2.0)
    is_zero = found == 0
    return xp.where(is_zero, 0.0, 1.0 / xp.where(is_zero, 1.0, found))


def _jvp(backend: Backend, encoded: str, arrays: Any, outputs: Any, tangents: Any) -> Sequence[Any]:
    xp, (x, y) = backend.xp, arrays[:2]
    u, v = filled(backend, [x, y], tangents)
    turned = xp.matrix_transpose
    own, other = xp.sum(x * u, axis=-1)[..., None], xp.sum(y * v, axis=-1)[:, None, :]
    along = own + other - x @ turned(v) - u @ turned(y)
    return [_slopes(backend, encoded, outputs[0]) * along]


def _vjp(backend: Backend, encoded: str, arrays: Any, outputs: Any, cotangents: Any, needed: Any) -> Sequence[Any]:
    xp, (x, y) = backend.xp, arrays[:2]
    if cotangents[0] is None:
        return [None, None]
    weight = cotangents[0] * _slopes(backend, encoded, outputs[0])
    found = []
    for one, other, w in ((x, y, weight), (y, x, xp.matrix_transpose(weight))):
        g = xp.sum(w, axis=-1)[..., None] * one - w @ other
        found.append(xp.sum(g, axis=0, keepdims=True) if one.shape[0] == 1 and g.shape[0] != 1 else g)
    return [g if need else None for g, need in zip(found, needed, strict=True)]


def _shapes(encoded: str, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    x, y = shapes[:2]
    return ((batch_size((x[0], y[0])), x[1], y[1]),)


DISTANCES = declare(Primitive("pairwise_distances", _distances, lambda _: 2, _shapes, lambda _: (True,), _jvp, _vjp))
