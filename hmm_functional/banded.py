"""Symmetric positive definite systems of narrow bands, many at once, and their derivatives.

Bands are (..., T, J) with [t, j] the entry of row t and column t + j, 0 where t + j lies beyond the end. In memory that
LAPACK can read all systems are one system, whose bands are 0 between them. Elsewhere blocks of J - 1 rows are
eliminated by odd-even reduction: a Cholesky factorisation in another order, in log2(T) rounds of batched operations.

    solve(bands, right) = x        derivatives: the same systems with other right sides, by the same factor
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import reduce
from math import nan
from typing import Any

import numpy as np

from .arrays import filled, no_rule
from .backend import Array, Backend, Primitive
from .backend.protocol import Shape, batch_size, declare


def least_pivot(epsilon: float) -> float:
    """The share of the diagonal below which a pivot is rounding, and the system singular: what a constant that nothing
    determines leaves over thousands of rows of weights within a factor of 100 of each other.
    """
    return max(1e-12, 32 * epsilon)


def solve(backend: Backend, bands: Array, right: Array) -> tuple[Array, Array]:
    """The solutions (B, D, T) of systems (B or 1, D, T, J) with J > 1, and their factor; singular ones give NaN."""
    method = "lapack" if backend.name != "jax" and backend.is_host(bands) else "cyclic"
    (factor,) = backend.call(FACTOR, method, [backend.stop_gradient(bands)])
    return solve_again(backend, bands, right, factor), factor


def solve_again(backend: Backend, bands: Array, right: Array, factor: Array) -> Array:
    """The same with the factor at hand."""
    method = "lapack" if factor.ndim == bands.ndim else "cyclic"
    (found,) = backend.call(SOLVE, method, [bands, right, factor])
    return found


def apply(backend: Backend, bands: Array, x: Array) -> Array:
    """The products (B, D, T) of the matrices and vectors (B, D, T)."""
    xp, num_steps = backend.xp, x.shape[-1]
    found = bands[..., 0] * x
    for j in range(1, min(bands.shape[-1], num_steps)):
        band = bands[..., : num_steps - j, j]
        zeros = xp.zeros_like(found[..., :j])
        found = found + xp.concat([band * x[..., j:], zeros], axis=-1)
        found = found + xp.concat([zeros, band * x[..., : num_steps - j]], axis=-1)
    return found


# LAPACK, for what lies in the CPU's memory


def _lapack_factor(bands: Any) -> Any:
    """The Cholesky factor's bands; -1 on the diagonal and 0 else where a system is singular or not finite."""
    from scipy.linalg import lapack

    num_steps, width = bands.shape[-2:]
    found = np.array(bands, np.float64, order="C").reshape(-1, num_steps, width)
    diagonal = found[..., 0].copy()
    is_bad: Any = ~np.isfinite(found).all((1, 2))
    found[is_bad] = np.eye(1, width)
    start = 0
    while start < len(found):
        rows = found[start:].reshape(-1, width)  # a view, in LAPACK's order when transposed
        _, info = lapack.dpbtrf(rows.T, lower=1, overwrite_ab=1)
        if info == 0:
            break
        start += (info - 1) // num_steps
        is_bad[start] = True
        start += 1
    with np.errstate(invalid="ignore"):
        is_small = found[..., 0] ** 2 <= least_pivot(2.0**-52) * diagonal
    is_bad |= is_small.any(1)
    found[is_bad] = -np.eye(1, width)
    return found.reshape(bands.shape)


def _lapack_solve(factor: Any, right: Any) -> Any:
    from scipy.linalg import lapack

    found = np.array(right, np.float64, order="C")
    is_bad = (factor[..., 0, 0] < 0) | ~np.isfinite(found).all(-1)
    found[is_bad] = 0.0
    rows = np.ascontiguousarray(factor, np.float64).reshape(-1, factor.shape[-1])
    if found.size:
        columns = found.reshape(-1, len(rows)).T  # systems that are shared have a column for each of the batch
        columns, _ = lapack.dpbtrs(rows.T, columns, lower=1, overwrite_b=1)
        found = columns.T.reshape(found.shape)
    found[is_bad] = nan
    return found


# odd-even reduction, for all else


def _sizes(num_steps: int, width: int) -> list[int]:
    """Blocks eliminated in each round; the last round has one."""
    left, found = -(-num_steps // (width - 1)), []
    while left > 1:
        left = (left + 1) // 2
        found.append(left)
    return [*found, 1]


def _cyclic_factor(backend: Backend, bands: Array) -> Array:
    """(B, D, 3, H, H, blocks): of each round the inverses of what is eliminated, and their products with both sides."""
    xp = backend.xp
    num_steps, width = bands.shape[-2:]
    size = width - 1
    bands = xp.permute_dims(bands, (0, 1, 3, 2))
    bands = _with_identity(backend, bands, -num_steps % size)
    bands = xp.reshape(bands, (*bands.shape[:-1], bands.shape[-1] // size, size))  # (B, D, J, n, H)
    zeros = xp.zeros_like(bands[..., 0, :, 0])
    inner = [[bands[..., abs(a - b), :, min(a, b)] for a in range(size)] for b in range(size)]
    lower = [[bands[..., size + b - a, :, a] if b <= a else zeros for a in range(size)] for b in range(size)]
    block, side = (xp.stack([xp.stack(row, axis=-2) for row in rows], axis=-3) for rows in (inner, lower))
    diagonal = bands[..., 0, :, :]
    rounds = []
    while block.shape[-1] > 1:
        if block.shape[-1] % 2:
            block = xp.concat([block, _identity(backend, block[..., :1])], axis=-1)
            side = xp.concat([side, xp.zeros_like(side[..., :1])], axis=-1)
            diagonal = xp.concat([diagonal, xp.ones_like(diagonal[..., :1, :])], axis=-2)
        inverse = _inverse(backend, block[..., 1::2], diagonal[..., 1::2, :])
        before, after = side[..., ::2], side[..., 1::2]  # odd rows to the even block before; even rows after to odd
        left, right = _product(inverse, before), _product(inverse, _turned(backend, after))
        rounds.append(xp.stack([inverse, left, right], axis=2))
        block = block[..., ::2] - _product(_turned(backend, before), left)
        block = block - xp.roll(_product(after, right), 1, axis=-1)  # the last has none after it
        side, diagonal = -_product(after, left), diagonal[..., ::2, :]
    inverse = _inverse(backend, block, diagonal)
    rounds.append(xp.stack([inverse, xp.zeros_like(inverse), xp.zeros_like(inverse)], axis=2))
    return xp.concat(rounds, axis=-1)


def _cyclic_solve(backend: Backend, factor: Array, right: Array, width: int) -> Array:
    xp = backend.xp
    num_steps, size = right.shape[-1], width - 1
    pad = -num_steps % size
    if pad:
        right = xp.concat([right, backend.full((*right.shape[:-1], pad), 0.0, like=right)], axis=-1)
    right = xp.permute_dims(xp.reshape(right, (*right.shape[:-1], right.shape[-1] // size, size)), (0, 1, 3, 2))
    rounds, odd, place = [], [], 0
    for count in _sizes(num_steps, width):
        rounds.append([factor[:, :, i, :, :, place : place + count] for i in range(3)])
        place += count
    for _, left, after in rounds[:-1]:
        if right.shape[-1] % 2:
            right = xp.concat([right, xp.zeros_like(right[..., :1])], axis=-1)
        odd.append(right[..., 1::2])
        back = xp.roll(_times(_turned(backend, after), odd[-1]), 1, axis=-1)
        right = right[..., ::2] - _times(_turned(backend, left), odd[-1]) - back
    found = _times(rounds[-1][0], right)
    for (inverse, left, after), own in zip(rounds[-2::-1], odd[::-1], strict=True):
        found = found[..., : own.shape[-1]]
        other = _times(inverse, own) - _times(left, found) - _times(after, xp.roll(found, -1, axis=-1))
        found = xp.reshape(xp.stack([found, other], axis=-1), (*found.shape[:-1], 2 * found.shape[-1]))
    found = xp.permute_dims(found, (0, 1, 3, 2))
    return xp.reshape(found, (*found.shape[:2], size * found.shape[2]))[..., :num_steps]


def _with_identity(backend: Backend, bands: Array, count: int) -> Array:
    """Bands (B, D, J, T) with `count` more rows of the identity."""
    if not count:
        return bands
    xp = backend.xp
    more = backend.full((*bands.shape[:-1], count), 0.0, like=bands)
    more = xp.concat([more[..., :1, :] + 1.0, more[..., 1:, :]], axis=-2)
    return xp.concat([bands, more], axis=-1)


def _identity(backend: Backend, like: Array) -> Array:
    """Identities in the shape of (..., H, H, n)."""
    xp = backend.xp
    places = backend.arange(like.shape[-2], like=like)
    is_diagonal = (places[:, None] == places)[..., None]
    return xp.where(is_diagonal, xp.ones_like(like), 0.0)


def _inverse(backend: Backend, block: Array, diagonal: Array) -> Array:
    """Inverses of positive definite (..., H, H, n) by Gauss and Jordan; NaN where a pivot is lost in rounding.

    Args:
        diagonal: (..., n, H), what the whole matrix had there.
    """
    xp, least = backend.xp, least_pivot(float(backend.xp.finfo(block.dtype).eps))
    for k in range(block.shape[-2]):
        pivot = block[..., k : k + 1, k : k + 1, :]
        pivot = xp.where(pivot > least * diagonal[..., None, None, :, k], pivot, nan)
        row, column = block[..., k : k + 1, :, :], block[..., :, k : k + 1, :]
        row = xp.concat([row[..., :k, :], xp.ones_like(pivot), row[..., k + 1 :, :]], axis=-2) / pivot
        rest = xp.concat([block[..., :k, :], xp.zeros_like(column), block[..., k + 1 :, :]], axis=-2) - column * row
        block = xp.concat([rest[..., :k, :, :], row, rest[..., k + 1 :, :, :]], axis=-3)
    return block


def _turned(backend: Backend, block: Array) -> Array:
    return backend.xp.permute_dims(block, (0, 1, 3, 2, 4))


def _product(before: Array, after: Array) -> Array:
    """Products of (..., H, H, n)."""
    parts = (before[..., :, k : k + 1, :] * after[..., k : k + 1, :, :] for k in range(before.shape[-2]))
    return reduce(operator.add, parts)


def _times(block: Array, x: Array) -> Array:
    """Products of (..., H, H, n) with (..., H, n)."""
    return reduce(operator.add, (block[..., :, k, :] * x[..., k : k + 1, :] for k in range(x.shape[-2])))


# primitives


def _factor(backend: Backend, method: str, arrays: Sequence[Array]) -> tuple[Array, ...]:
    (bands,) = arrays
    if method == "cyclic":
        return (_cyclic_factor(backend, bands),)
    found = backend.asarray(_lapack_factor(backend.to_numpy(bands)), like=bands)
    return (backend.xp.astype(found, bands.dtype, copy=False),)


def _factor_shapes(method: str, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    (shape,) = shapes
    if method == "lapack":
        return (shape,)
    batch, dim, num_steps, width = shape
    return ((batch, dim, 3, width - 1, width - 1, sum(_sizes(num_steps, width))),)


def _solve(backend: Backend, method: str, arrays: Sequence[Array]) -> tuple[Array, ...]:
    bands, right, factor = arrays

    def found(right: Array) -> Array:
        if method == "cyclic":
            return _cyclic_solve(backend, factor, right, bands.shape[-1])
        values = _lapack_solve(backend.to_numpy(factor), backend.to_numpy(right))
        return backend.xp.astype(backend.asarray(values, like=right), right.dtype, copy=False)

    return (backend.solve_linear(lambda x: apply(backend, bands, x), found, right),)


def _solve_shapes(method: str, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    return ((batch_size(shape[0] for shape in shapes), *shapes[1][1:]),)


def _solve_jvp(
    backend: Backend, method: str, arrays: Sequence[Array], outputs: Sequence[Array], tangents: Sequence[Any]
) -> Sequence[Any]:
    bands, right, factor = arrays
    moved, more = filled(backend, (bands, right), tangents)
    return (solve_again(backend, bands, more - apply(backend, moved, outputs[0]), factor),)


def _solve_vjp(
    backend: Backend,
    method: str,
    arrays: Sequence[Array],
    outputs: Sequence[Array],
    cotangents: Sequence[Array],
    needed: Sequence[bool],
) -> Sequence[Any]:
    xp, (bands, _, factor), (x,) = backend.xp, arrays, outputs
    pulled = solve_again(backend, bands, cotangents[0], factor)
    if not needed[0]:
        return None, pulled
    num_steps, found = x.shape[-1], [-pulled * x]
    for j in range(1, bands.shape[-1]):
        length = max(num_steps - j, 0)
        both = pulled[..., :length] * x[..., num_steps - length :] + pulled[..., num_steps - length :] * x[..., :length]
        found.append(xp.concat([-both, xp.zeros_like(x[..., length:])], axis=-1))
    change = xp.stack(found, axis=-1)
    if bands.shape[0] == 1 and change.shape[0] != 1:
        change = xp.sum(change, axis=0, keepdims=True)
    return change, pulled


_NOT = no_rule("the derivative of a factor")

FACTOR = declare(
    Primitive("banded_factor", _factor, lambda method: 0, _factor_shapes, lambda method: (False,), _NOT, _NOT)
)
SOLVE = declare(
    Primitive("banded_solve", _solve, lambda method: 2, _solve_shapes, lambda method: (True,), _solve_jvp, _solve_vjp)
)
