"""Sums in the log domain that are exact at -inf, in values and in gradients, and sums that do not drift."""

from __future__ import annotations

from math import inf
from typing import Any

from ._check import need_floating
from .backend import Array, Backend


def logsumexp(backend: Backend, x: Array, axis: int | tuple[int, ...] = -1, keepdims: bool = False) -> Array:
    """log of the sum of exp(x) along `axis`; -inf where all are -inf, with a gradient of zero there."""
    xp = backend.xp
    pivot = backend.pivot(x, axis)
    total = backend.log(xp.sum(xp.exp(x - pivot), axis=axis, keepdims=True)) + pivot
    return total if keepdims else xp.squeeze(total, axis=axis)


def log_normalize(backend: Backend, x: Array, axis: int | tuple[int, ...] = -1) -> Array:
    """x minus its logsumexp along `axis`; rows that are all -inf stay -inf."""
    total = logsumexp(backend, x, axis, keepdims=True)
    return x - backend.xp.where(total == -inf, 0.0, total)


def softmax(backend: Backend, x: Array, axis: int | tuple[int, ...] = -1) -> Array:
    """exp(x) over its sum along `axis`; zeros where all are -inf."""
    xp = backend.xp
    p = xp.exp(x - backend.pivot(x, axis))
    total = xp.sum(p, axis=axis, keepdims=True)
    return p / xp.where(total == 0, 1.0, total)


def log_tail(backend: Backend, log_duration: Array) -> Array:
    """log p(duration >= d) from log p(duration = d), summed from the longest, so that no tail is lost."""
    xp = backend.xp

    def both(first: tuple[Array, ...], second: tuple[Array, ...]) -> tuple[Array, ...]:
        return (logsumexp(backend, xp.stack([first[0], second[0]], axis=-1)),)

    rank = log_duration.ndim
    longest_first = xp.flip(xp.permute_dims(log_duration, (rank - 1, *range(rank - 1))), axis=0)
    (found,) = backend.associative_scan(both, (longest_first,))
    return xp.permute_dims(xp.flip(found, axis=0), (*range(1, rank), 0))


def multiply(backend: Backend, weight: Array, x: Array) -> Array:
    """weight * x, and 0 where the weight is 0, whatever x is there."""
    xp = backend.xp
    return xp.where(weight == 0, 0.0, weight * xp.where(weight == 0, 0.0, x))


def centre(backend: Backend, log_emission: Array) -> tuple[Array, Array]:
    """Emissions (..., T, K) less each step's largest, and those (..., T) as constants, 0 where there is none.

    Differences of states keep their precision however large the emissions are.
    """
    xp = backend.xp
    top = backend.pivot(log_emission, -1)
    top = xp.where(top == xp.finfo(top.dtype).min, 0.0, top)
    return log_emission - top, top[..., 0]


def accurate_sum(backend: Backend, x: Array) -> Array:
    """Sum along the last axis: in float64 (the result too) where there is one, else compensated.

    The compensated sum halves the axis and carries the rounding errors along (two-sum: Knuth, The Art of
    Computer Programming vol. 2, 4.2.2 theorem B), so its error does not grow with the length.
    """
    xp = backend.xp
    wide = backend.wide_dtype(x)
    if wide is not None:
        return xp.sum(x, axis=-1, dtype=wide)
    error = xp.zeros_like(x)
    while x.shape[-1] > 1:
        if x.shape[-1] % 2:
            pad = xp.zeros_like(x[..., :1])
            x, error = xp.concat([x, pad], axis=-1), xp.concat([error, pad], axis=-1)
        a, b = x[..., ::2], x[..., 1::2]
        total = a + b
        part = total - a
        lost = (a - (total - part)) + (b - part)
        error = error[..., ::2] + error[..., 1::2] + xp.where(xp.abs(total) < inf, lost, 0.0)
        x = total
    return xp.sum(x + error, axis=-1)


def draw(backend: Backend, terms: Array, luck: Array, rank: Any) -> Array:
    """One index of the last axis, with probability proportional to exp(terms), by inversion."""
    xp = backend.xp
    below = xp.cumulative_sum(softmax(backend, terms), axis=-1)
    # luck < 1, but its product may round up to the total: the largest number below keeps the draw inside
    shrink = 1.0 - xp.finfo(terms.dtype).eps
    is_below = below <= luck[..., None] * shrink * below[..., -1:]
    place = xp.sum(xp.astype(is_below, backend.index_dtype()), axis=-1)
    return xp.clip(place, max=terms.shape[-1] - 1)  # where nothing can be drawn


def solve_semidefinite(backend: Backend, matrix: Array, right: Array, size: Array, free: Array | None = None) -> Array:
    """x of matrix x = right in least squares, 0 along directions in which nothing but rounding errors is left.

    Args:
        matrix: (..., n, n), symmetric and semi-definite.
        right: (..., n, m).
        size: (..., n), roots of what the diagonal was before anything was taken from it; x is 0 where it is 0.
        free: (..., n), 1, or 0 where x is 0.
    """
    xp = backend.xp
    count = matrix.shape[-1]
    scale = xp.where(size > 0, 1.0 / xp.where(size > 0, size, 1.0), 0.0)
    if free is not None:
        scale = scale * free
    values, vectors = xp.linalg.eigh(matrix * scale[..., :, None] * scale[..., None, :])
    is_known = values > 64 * count * float(xp.finfo(matrix.dtype).eps)
    inverse = xp.where(is_known, 1.0 / xp.where(is_known, values, 1.0), 0.0)
    found = inverse[..., None] * (xp.matrix_transpose(vectors) @ (right * scale[..., None]))
    return (vectors @ found) * scale[..., None]


def root(backend: Backend, x: Array) -> Array:
    """The square root, with a derivative of 0 at 0; 0 for what rounding left below."""
    xp = backend.xp
    is_none = x <= 0
    return xp.where(is_none, 0.0, xp.sqrt(xp.where(is_none, 1.0, x)))


def wide(backend: Backend, x: Array) -> Array:
    """`x` in the dtype that sums over all frames are made in: float64 where there is one."""
    dtype = backend.wide_dtype(x)
    return x if dtype is None else backend.xp.astype(x, dtype, copy=False)


def is_seen(xp: Any, counts: Array) -> Array:
    """Whether expected counts are more than what posteriors near the end of the numbers' range leave."""
    return counts > (1e-100 if xp.finfo(counts.dtype).bits > 32 else 1e-30)


def in_one_dtype(backend: Backend, **arrays: Array) -> list[Array]:
    """Arrays, checked to be floating-point, in one dtype, float32 or wider."""
    xp = backend.xp
    for name, x in arrays.items():
        need_floating(name, xp, x)
    dtype = xp.result_type(*(x.dtype for x in arrays.values()))
    if xp.finfo(dtype).bits < 32:
        dtype = xp.float32
    return [xp.astype(x, dtype, copy=False) for x in arrays.values()]
