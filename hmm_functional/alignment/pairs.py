"""Two sequences, or their local costs, in the form that the lattice takes."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from .._check import broadcast_batch, need_shape
from ..backend import Array, Backend, backend_of
from ..chain import lengths_of
from ..kernels.registry import check_name
from ..numerics import in_one_dtype, wide
from ..windows import flat
from .warping_windows import bounds_of, need_window


@dataclass(frozen=True)
class Pairs:
    """Pairs of sequences of at most N and M frames."""

    backend: Backend
    batch: tuple[int, ...]
    arrays: tuple[Array, ...]
    """Features (B or 1, N, D) and (B or 1, M, D), 0 in the padding, or costs (B, N, M); float64 where there is one."""
    corners: Array
    """(B or 1, 2): last row and column."""
    bounds: Array
    """(B or 1, N, 2)"""
    is_bad: Array
    """(B,): holds NaN, or features that are infinite, or costs of -inf."""
    dtype: Any
    """Of results."""

    def unflatten(self, x: Array, *, is_floating: bool = True) -> Array:
        """(B, ...) to (*batch, ...), numbers in the dtype of results."""
        xp = self.backend.xp
        if is_floating:
            x = xp.astype(x, self.dtype, copy=False)
        return xp.reshape(xp.broadcast_to(x, (prod(self.batch), *x.shape[1:])), (*self.batch, *x.shape[1:]))


def pairs_of(x: Array, y: Array, lengths: Any, target_lengths: Any, window: Any, kernel: str) -> Pairs:
    """Check sequences x (..., N, D) and y (..., M, D), and bring them to one form."""
    backend = backend_of(x=x, y=y)
    xp = backend.xp
    x, y = in_one_dtype(backend, x=x, y=y)
    need_shape("x", x.shape, (None, None), "(..., N, D)")
    need_shape("y", y.shape, (None, x.shape[-1]), f"(..., M, D) with D = {x.shape[-1]} as in x")
    for name, one in (("x", x), ("y", y)):
        if one.shape[-2] < 1:
            raise ValueError(f"{name}: expected at least one frame, got {tuple(one.shape)}")
    check_name(kernel)
    shapes = {"x": tuple(x.shape[:-2]), "y": tuple(y.shape[:-2])}
    batch, corners = _corners(backend, shapes, (x.shape[-2], y.shape[-2]), (lengths, target_lengths), x)
    found, bads = [], []
    for i, one in enumerate((x, y)):
        one = _rows(backend, wide(backend, one), batch, 2)
        if (lengths, target_lengths)[i] is not None:
            frames = backend.arange(one.shape[1], like=one)
            one = xp.where((frames <= corners[:, i : i + 1])[..., None], one, 0.0)
        is_finite = xp.isfinite(one)
        bads.append(~xp.all(is_finite, axis=(1, 2)))
        found.append(xp.where(is_finite, one, 0.0))
    return _made(backend, batch, tuple(found), corners, bads[0] | bads[1], window, x.dtype)


def pairs_of_costs(costs: Array, lengths: Any, target_lengths: Any, window: Any, kernel: str) -> Pairs:
    """Check local costs (..., N, M), +inf where a cell is forbidden, and bring them to one form."""
    backend = backend_of(costs=costs)
    xp = backend.xp
    (costs,) = in_one_dtype(backend, costs=costs)
    need_shape("costs", costs.shape, (None, None), "(..., N, M)")
    if min(costs.shape[-2:]) < 1:
        raise ValueError(f"costs: expected at least one row and column, got {tuple(costs.shape)}")
    check_name(kernel)
    shapes = {"costs": tuple(costs.shape[:-2])}
    batch, corners = _corners(backend, shapes, tuple(costs.shape[-2:]), (lengths, target_lengths), costs)
    found = flat(backend, wide(backend, costs), batch, 2)
    rows, columns = (backend.arange(n, like=found) for n in found.shape[1:])
    is_cell = (rows <= corners[:, :1])[:, :, None] & (columns <= corners[:, 1:])[:, None, :]
    is_bad = is_cell & ~(found > -float("inf"))
    found = xp.where(is_cell & ~is_bad, found, float("inf"))
    return _made(backend, batch, (found,), corners, xp.any(is_bad, axis=(1, 2)), window, costs.dtype)


def _rows(backend: Backend, x: Array, batch: tuple[int, ...], rank: int) -> Array:
    """(..., *base) to (B or 1, *base): what all pairs share stays one."""
    base = tuple(x.shape[x.ndim - rank :])
    if prod(x.shape[: x.ndim - rank]) == 1:
        return backend.xp.reshape(x, (1, *base))
    return flat(backend, x, batch, rank)


def _corners(
    backend: Backend, shapes: dict[str, tuple[int, ...]], sizes: tuple[int, ...], lengths: tuple[Any, Any], like: Array
) -> tuple[tuple[int, ...], Array]:
    """The batch's shape, and the last row and column (B or 1, 2)."""
    xp, ends = backend.xp, []
    for name, given, size in zip(("lengths", "target_lengths"), lengths, sizes, strict=True):
        if given is None:
            ends.append(backend.full((), size, like=like, dtype=backend.index_dtype()))
        else:
            ends.append(lengths_of(backend, given, size, like, name=name))
            shapes[name] = tuple(ends[-1].shape)
    batch = broadcast_batch(shapes)
    is_shared = all(given is None for given in lengths)
    rows = [xp.reshape(n, (1,)) if is_shared else flat(backend, n, batch, 0) for n in ends]
    return batch, xp.stack(rows, axis=-1) - 1


def _made(
    backend: Backend,
    batch: tuple[int, ...],
    arrays: tuple[Array, ...],
    corners: Array,
    is_bad: Array,
    window: Any,
    dtype: Any,
) -> Pairs:
    bounds = bounds_of(backend, need_window(window), corners, arrays[0].shape[1])
    is_bad = backend.xp.broadcast_to(is_bad, (prod(batch),))
    return Pairs(backend, batch, arrays, corners, bounds, is_bad, dtype)
