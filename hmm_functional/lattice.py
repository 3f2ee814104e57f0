"""The one recursion over two axes: all ways through a grid of cells, in the log and max semirings.

With e(i, j) the score of a cell and a step from (i - a, j - b) of weight w,

    S(i, j) = sum over steps of S(i - a, j - b) * e(i, j)^w

and S = e where a way begins. Cells of one anti-diagonal do not depend on each other: the recursion goes over k = i + j,
and a diagonal is (B, N), cell (i, k - i) at place i. What is not allowed is -inf. Derivatives are shares of ways, sums
of positive terms:

    total(e) = log of the sum over ways                 its derivative: visits
    visits(e, g) = sum over b of g_b dtotal_b/de        bend
    bend(e, v, g) = sum over b of g_b d2total_b/de2 v: the same sums with their derivatives along v
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any, NamedTuple

from .arrays import filled, no_rule
from .backend import Array, Backend, Primitive
from .backend.protocol import Shape, batch_size, declare
from .kernels import lattice as compiled
from .numerics import logsumexp, multiply, softmax
from .pairwise import distances

STEPS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "symmetric1": ((1, 1, 1), (0, 1, 1), (1, 0, 1)),
    "symmetric2": ((1, 1, 2), (0, 1, 1), (1, 0, 1)),
    "asymmetric": ((1, 0, 1), (1, 1, 1), (1, 2, 1)),
}
"""Rows, columns and weight of each step; ties between ways go to the first."""


class Spec(NamedTuple):
    """What a primitive needs to know beside its arrays.

    These are a grid, `bounds` (B, N, 2), the first and last column of each row that may be entered, and `corners`
    (B, 2), last row and column.
    """

    pattern: str
    kernel: str
    opens: bool = False
    """Whether a way may begin anywhere in the first row."""
    ends_open: bool = False
    """Whether it may end anywhere in the last row, there where it is the best a unit of weight."""

    @property
    def steps(self) -> tuple[tuple[int, int, int], ...]:
        """Rows, columns and weight of each."""
        return STEPS[self.pattern]

    def encode(self) -> str:
        """As a string, for operators of array libraries."""
        return f"{self.pattern}|{self.kernel}|{int(self.opens)}|{int(self.ends_open)}"

    @staticmethod
    def decode(encoded: str) -> Spec:
        """The Spec that `encode` wrote."""
        pattern, kernel, *flags = encoded.split("|")
        return Spec(pattern, kernel, *(flag == "1" for flag in flags))


def skew(backend: Backend, x: Array) -> Array:
    """(B, N, M) as its anti-diagonals (N + M - 1, B, N), -inf where there is no cell."""
    xp = backend.xp
    batch, rows, columns = x.shape
    width = rows + columns
    x = xp.concat([x, backend.full((batch, rows, rows), -inf, like=x)], axis=-1)
    x = xp.reshape(x, (batch, rows * width))[:, : rows * (width - 1)]
    return xp.permute_dims(xp.reshape(x, (batch, rows, width - 1)), (2, 0, 1))


def unskew(backend: Backend, x: Array, columns: int) -> Array:
    """The inverse of `skew`."""
    xp = backend.xp
    count, batch, rows = x.shape
    x = xp.reshape(xp.permute_dims(x, (1, 2, 0)), (batch, rows * count))
    x = xp.concat([x, xp.zeros_like(x[:, :rows])], axis=-1)
    return xp.reshape(x, (batch, rows, count + 1))[..., :columns]


def _begins(backend: Backend, spec: Spec, scores: Array) -> Array:
    """(N + M - 1, 1, N): 0 where a way may begin, else -inf."""
    rows, columns = scores.shape[1:]
    count = backend.arange(rows + columns - 1, like=scores)[:, None, None]
    places = backend.arange(rows, like=scores)
    may = (places == 0) & ((count < columns) if spec.opens else (count == 0))
    return backend.xp.where(may, backend.full((1, 1, 1), 0.0, like=scores), -inf)


def _terms(
    backend: Backend, spec: Spec, earlier: Sequence[Array], e: Array, begin: Any, *, none: float = -inf
) -> Array:
    """(B, N, steps + 1): what each step brings to the cells of a diagonal, and beginning there.

    Args:
        earlier: S of the diagonals before, the nearest first; or their derivatives, with 0 for `none` and `begin`.
    """
    xp, found = backend.xp, []
    for rows, columns, weight in spec.steps:
        before = earlier[rows + columns - 1]
        if rows:
            before = xp.concat([backend.full((before.shape[0], 1), none, like=before), before[:, :-1]], axis=1)
        found.append(before + (e if weight == 1 else weight * e))
    return xp.stack([*found, begin + e], axis=-1)


def reach(spec: Spec) -> int:
    """Diagonals that a step goes over."""
    return max(rows + columns for rows, columns, _ in spec.steps)


def _forward(
    backend: Backend, spec: Spec, e: Array, moves: Array | None, begins: Array, last: Array, *, is_best: bool
) -> tuple[Any, Any]:
    """Of each diagonal S, or the best step where `is_best`, (K, B, N); and S in the last row, (K, B).

    Args:
        e: (K, B, N).
        moves: a direction of e, along which derivatives of S are given instead of the last row.
        last: (B,), the last row.
    """
    xp = backend.xp

    def step(carry: Any, item: Any) -> tuple[Any, Any]:
        (earlier, slopes), (e, move, begin) = carry, item
        terms = _terms(backend, spec, earlier, e, begin)
        found = xp.max(terms, axis=-1) if is_best else logsumexp(backend, terms)
        kept = xp.astype(xp.argmax(terms, axis=-1), backend.index_dtype()) if is_best else found
        if move is None:
            return ((found, *earlier[:-1]), None), (kept, backend.take_along(found, last[:, None], 1)[:, 0])
        slope = xp.sum(softmax(backend, terms) * _terms(backend, spec, slopes, move, 0.0, none=0.0), axis=-1)
        return ((found, *earlier[:-1]), (slope, *slopes[:-1])), (kept, slope)

    empty = (xp.full_like(e[0, ...], -inf),) * reach(spec)
    flat = None if moves is None else (xp.zeros_like(e[0, ...]),) * reach(spec)
    return backend.scan(step, (empty, flat), (e, moves, begins))[1]  # type: ignore[no-any-return]


def _total(backend: Backend, encoded: str, arrays: Sequence[Array]) -> tuple[Array, ...]:
    spec, (scores, bounds, corners) = Spec.decode(encoded), arrays
    if not backend.records((scores,)) and compiled.can_run(backend, spec.kernel, (scores,)):
        return (backend.asarray(compiled.total(scores, bounds, corners, spec.steps), like=scores),)
    scores, corners = _entered(backend, scores, bounds, corners)
    begins = _begins(backend, spec, scores)
    _, ridge = _forward(backend, spec, skew(backend, scores), None, begins, corners[:, 0], is_best=False)
    return (backend.take_along(ridge, (corners[:, 0] + corners[:, 1])[None, :], 0)[0, :],)


def _entered(backend: Backend, scores: Array, bounds: Array, corners: Array) -> tuple[Array, Array]:
    """Scores (B, N, M), -inf where the bounds forbid, and corners (B, 2)."""
    xp, size = backend.xp, batch_size(x.shape[0] for x in (scores, bounds, corners))
    columns = backend.arange(scores.shape[2], like=scores)
    may = (columns >= bounds[..., :1]) & (columns <= bounds[..., 1:])
    scores = xp.where(may, scores, -inf)
    return xp.broadcast_to(scores, (size, *scores.shape[1:])), xp.broadcast_to(corners, (size, 2))


def _visits(backend: Backend, encoded: str, arrays: Sequence[Array]) -> tuple[Array, ...]:
    spec, (scores, scale, bounds, corners) = Spec.decode(encoded), arrays
    xp, is_shared = backend.xp, scores.shape[0] == 1
    if not backend.records((scores,)) and compiled.can_run(backend, spec.kernel, (scores,)):
        found = backend.asarray(compiled.visits(scores, bounds, corners, spec.steps), like=scores)
    else:
        found = _flow(backend, spec, *_entered(backend, scores, bounds, corners), None)
    found = multiply(backend, scale[:, None, None], found)
    return (xp.sum(found, axis=0, keepdims=True) if is_shared and found.shape[0] != 1 else found,)


def _flow(backend: Backend, spec: Spec, scores: Array, corners: Array, moves: Array | None) -> Array:
    """dtotal/de (B, N, M): each cell's share of ways, spread back over the steps that led to it.

    Args:
        moves: a direction of e, along which the derivative of the same is given instead.
    """
    xp = backend.xp
    _, num_rows, num_columns = scores.shape
    e, begins, span = skew(backend, scores), _begins(backend, spec, scores), reach(spec)
    count = e.shape[0]
    turn = None if moves is None else skew(backend, moves)
    turn = None if turn is None else xp.where(e == -inf, 0.0, turn)
    sums, slopes = _forward(backend, spec, e, turn, begins, corners[:, 0], is_best=False)
    steps = backend.arange(count, like=corners)[:, None]
    at_end = xp.astype(steps == (corners[:, 0] + corners[:, 1])[None, :], e.dtype)
    in_last = xp.astype(backend.arange(num_rows, like=corners)[None, :] == corners[:, :1], e.dtype)

    def before(x: Array, none: float) -> tuple[Array, ...]:
        """The diagonals 1, 2, ... before each, from the last one on."""
        x = xp.concat([backend.full((span, *x.shape[1:]), none, like=x), x], axis=0)
        return tuple(xp.flip(x[span - 1 - n : span - 1 - n + count, ...], axis=0) for n in range(span))

    def passed_on(waiting: Any, here: Array, parts: Array) -> tuple[Any, Array]:
        """What waits for the diagonals before this one, with these `parts` (B, N, steps + 1); and what is counted."""
        later = [*waiting[1:], xp.zeros_like(here)]
        visits = parts[..., -1]
        for i, (rows, columns, weight) in enumerate(spec.steps):
            part = parts[..., i]
            visits = visits + weight * part
            back = xp.concat([part[:, 1:], xp.zeros_like(part[:, :1])], axis=1) if rows else part
            later[rows + columns - 1] = later[rows + columns - 1] + back
        return tuple(later), visits

    def step(carry: Any, item: Any) -> tuple[Any, Any]:
        (waiting, waiting_slope), (earlier, earlier_slopes, e, move, begin, end) = carry, item
        shares = softmax(backend, _terms(backend, spec, earlier, e, begin))
        here = waiting[0] + end[:, None] * in_last
        later, visits = passed_on(waiting, here, here[..., None] * shares)
        if move is None:
            return (later, None), visits
        change = _terms(backend, spec, earlier_slopes, move, 0.0, none=0.0)
        change = shares * (change - xp.sum(shares * change, axis=-1, keepdims=True))
        parts = waiting_slope[0][..., None] * shares + here[..., None] * change
        later_slope, bent = passed_on(waiting_slope, here, parts)
        return (later, later_slope), bent

    zeros = (xp.zeros_like(e[0, ...]),) * span
    start = (zeros, None if turn is None else zeros)
    own = (xp.flip(e, axis=0), None if turn is None else xp.flip(turn, axis=0))
    items = (before(sums, -inf), None if turn is None else before(slopes, 0.0), *own)
    _, found = backend.scan(step, start, (*items, xp.flip(begins, axis=0), xp.flip(at_end, axis=0)))
    return unskew(backend, xp.flip(found, axis=0), num_columns)


def _total_jvp(backend: Backend, encoded: str, arrays: Any, outputs: Any, tangents: Any) -> Sequence[Any]:
    xp, (scores, bounds, corners) = backend.xp, arrays[:3]
    size = batch_size(x.shape[0] for x in arrays)
    ones = backend.full((size,), 1.0, like=scores)
    apart = xp.broadcast_to(scores, (size, *scores.shape[1:]))
    (found,) = backend.call(VISITS, encoded, [apart, ones, bounds, corners])
    (moves,) = filled(backend, [scores], tangents)
    return [xp.sum(found * moves, axis=(1, 2))]


def _total_vjp(
    backend: Backend, encoded: str, arrays: Any, outputs: Any, cotangents: Any, needed: Any
) -> Sequence[Any]:
    if cotangents[0] is None:
        return [None]
    return backend.call(VISITS, encoded, [arrays[0], cotangents[0], *arrays[1:3]])


def _visits_jvp(backend: Backend, encoded: str, arrays: Any, outputs: Any, tangents: Any) -> Sequence[Any]:
    scores, scale, bounds, corners = arrays[:4]
    found: Any = 0.0
    if tangents[0] is not None:
        found = backend.call(BEND, encoded, [scores, tangents[0], scale, bounds, corners])[0]
    if tangents[1] is not None:
        found = found + backend.call(VISITS, encoded, [scores, tangents[1], bounds, corners])[0]
    return [found]


def _visits_vjp(
    backend: Backend, encoded: str, arrays: Any, outputs: Any, cotangents: Any, needed: Any
) -> Sequence[Any]:
    scores, scale, bounds, corners = arrays[:4]
    if cotangents[0] is None:
        return [None, None]
    bent = change = None
    if needed[0]:
        bent = backend.call(BEND, encoded, [scores, cotangents[0], scale, bounds, corners])[0]
    if needed[1]:
        change = _total_jvp(backend, encoded, [scores, bounds, corners], (), [cotangents[0]])[0]
    return [bent, change]


def _bend(backend: Backend, encoded: str, arrays: Sequence[Array]) -> tuple[Array, ...]:
    xp, (scores, moves, scale, bounds, corners) = backend.xp, arrays
    is_shared = scores.shape[0] == 1
    entered, corners = _entered(backend, scores, bounds, corners)
    found = _flow(backend, Spec.decode(encoded), entered, corners, xp.broadcast_to(moves, entered.shape))
    found = multiply(backend, scale[:, None, None], found)
    return (xp.sum(found, axis=0, keepdims=True) if is_shared and found.shape[0] != 1 else found,)


def _bend_jvp(backend: Backend, encoded: str, arrays: Any, outputs: Any, tangents: Any) -> Sequence[Any]:
    if tangents[0] is not None or tangents[2] is not None:
        _THIRD()
    return backend.call(BEND, encoded, [arrays[0], tangents[1], *arrays[2:5]])


def _bend_vjp(backend: Backend, encoded: str, arrays: Any, outputs: Any, cotangents: Any, needed: Any) -> Sequence[Any]:
    if needed[0] or needed[2]:
        _THIRD()
    # a Hessian is symmetric
    return [None, backend.call(BEND, encoded, [arrays[0], cotangents[0], *arrays[2:5]])[0], None]


def _batch_shapes(encoded: str, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    return ((batch_size(shape[0] for shape in shapes),),)


_THIRD = no_rule("the third derivative of a soft alignment")
_NOT = no_rule("the derivative of an alignment's path")

TOTAL = declare(
    Primitive("lattice_total", _total, lambda _: 1, _batch_shapes, lambda _: (True,), _total_jvp, _total_vjp)
)
VISITS = declare(
    Primitive(
        "lattice_visits",
        _visits,
        lambda _: 2,
        lambda _, shapes: (tuple(shapes[0]),),
        lambda _: (True,),
        _visits_jvp,
        _visits_vjp,
        num_gradients=lambda _: 1,
    )
)
BEND = declare(
    Primitive(
        "lattice_bend",
        _bend,
        lambda _: 3,
        lambda _, shapes: (tuple(shapes[0]),),
        lambda _: (True,),
        _bend_jvp,
        _bend_vjp,
        num_gradients=lambda _: 1,
    )
)


# the best way


def path_length(pattern: str, rows: int, columns: int) -> int:
    """The most cells a way can have."""
    return rows if all(step[0] for step in STEPS[pattern]) else rows + columns - 1


def _path(backend: Backend, encoded: str, arrays: Sequence[Array]) -> tuple[Array, ...]:
    """(B, L, 2): cells (i, j) of the best way, then -1; -1 throughout where there is none.

    The arrays are scores, or features whose Euclidean distances are taken from the scores, and bounds and corners.
    """
    spec, (*grid, bounds, corners) = Spec.decode(encoded), arrays
    rows, columns = grid[0].shape[1], grid[-1].shape[2 if len(grid) == 1 else 1]
    length = path_length(spec.pattern, rows, columns)
    if compiled.can_run(backend, spec.kernel, tuple(grid)):
        unit = (2 if spec.pattern == "symmetric2" else 1) if spec.ends_open else 0
        found = compiled.path(tuple(grid), bounds, corners, spec.steps, length, spec.opens, unit)
        return (backend.asarray(found, like=grid[0]),)
    scores = grid[0] if len(grid) == 1 else -distances(backend, *grid, metric="euclidean", kernel="reference")
    scores, corners = _entered(backend, scores, bounds, corners)
    begins = _begins(backend, spec, scores)
    taken, ridge = _forward(backend, spec, skew(backend, scores), None, begins, corners[:, 0], is_best=True)
    cells = _trace(backend, spec, taken, *_end(backend, spec, ridge, corners))
    return (backend.xp.astype(cells[:, :length, :], backend.index_dtype()),)


def _end(backend: Backend, spec: Spec, ridge: Array, corners: Array) -> tuple[Array, Array, Array]:
    """(B,): row and column a way ends in, and whether there is one."""
    xp = backend.xp
    row, column = corners[:, 0], corners[:, 1]
    if spec.ends_open:
        count = backend.arange(ridge.shape[0], like=corners)[:, None]
        is_there = (count >= row) & (count <= row + column)
        unit = xp.astype(count + 2, ridge.dtype) if spec.pattern == "symmetric2" else 1.0
        best = xp.argmax(xp.where(is_there, ridge / unit, -inf), axis=0)
        column = xp.astype(best, row.dtype) - row
        column = xp.where(column < 0, 0, column)
    score = backend.take_along(ridge, (row + column)[None, :], 0)[0, :]
    return row, column, score > -inf


def _trace(backend: Backend, spec: Spec, taken: Array, row: Array, column: Array, is_possible: Array) -> Array:
    """Cells (B, N + M - 1, 2) from the end back along the steps `taken`, in order."""
    xp, steps = backend.xp, spec.steps
    back = [backend.asarray([s[i] for s in steps] + [0], like=taken) for i in (0, 1)]
    back = [xp.astype(x, row.dtype) for x in back]

    def step(carry: Any, item: Any) -> tuple[Any, Any]:
        (i, j), (count, choice) = carry, item
        is_here = (i >= 0) & (i + j == count)
        place = backend.take_along(choice, xp.where(i < 0, 0, i)[:, None], 1)[:, 0]
        di, dj = (backend.take_along(x, place, 0) for x in back)
        is_first = place == len(steps)
        cell = xp.stack([xp.where(is_here, i, -1), xp.where(is_here, j, -1)], axis=-1)
        i = xp.where(is_here, xp.where(is_first, -1, i - di), i)
        j = xp.where(is_here, j - dj, j)
        return (i, j), cell

    start = (xp.where(is_possible, row, -1), column)
    count = xp.astype(backend.arange(taken.shape[0], like=taken), row.dtype)
    _, cells = backend.scan(step, start, (xp.flip(count, axis=0), xp.flip(taken, axis=0)))
    cells = xp.permute_dims(xp.flip(cells, axis=0), (1, 0, 2))
    order = xp.argsort(xp.astype(cells[..., 0] < 0, row.dtype), axis=1, stable=True)
    return backend.take_along(cells, order[..., None], 1)


def _path_shapes(encoded: str, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    rows, columns = shapes[0][1], shapes[0][2] if len(shapes) == 3 else shapes[1][1]
    (batch,) = _batch_shapes(encoded, shapes)[0]
    return ((batch, path_length(Spec.decode(encoded).pattern, rows, columns), 2),)


PATH = declare(
    Primitive("lattice_path", _path, lambda _: 0, _path_shapes, lambda _: (False,), _NOT, _NOT, integers=(True,))
)
