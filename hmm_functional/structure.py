"""How mass moves in one step, for each structure of a transition matrix.

A structure is static; its weights are a tuple of arrays with batch axes before their base axes. Every sum over
transitions in the library is one of the methods below, so a new structure is one class here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, prod
from typing import Any, ClassVar, Protocol

import numpy as np

from .backend import Array, Backend
from .numerics import logsumexp, softmax
from .semiring import LOG, Message, Semiring

WORKSPACE = 2**23
"""Elements of scratch one step may use; larger sums go over the source states in blocks."""

Weights = tuple[Message, ...]
"""One message per weight array: (w,), or (w, tangent) in the expectation semiring."""


class Structure(Protocol):
    """How mass moves in one step, for weights already cut to one time slot unless said otherwise."""

    @property
    def num_states(self) -> int:
        """K."""

    @property
    def ranks(self) -> tuple[int, ...]:
        """Base axes of each weight array."""

    @property
    def key(self) -> str:
        """What `structure_from` needs to build this again from its tables."""

    @property
    def tables(self) -> tuple[Any, ...]:
        """Index arrays."""

    def transposed(self, backend: Backend, weights: Weights) -> tuple[Structure, Weights]:
        """The structure and weights that move mass backwards."""

    def prepare(self, backend: Backend, semiring: Semiring, weights: Weights, axes: int) -> Weights:
        """Weights as `contract` wants them, with `axes` axes of 1 inserted before the base axes."""

    def contract(self, backend: Backend, semiring: Semiring, message: Message, weights: Weights) -> Message:
        """The message moved one step on, with prepared weights."""

    def edges(self, backend: Backend, semiring: Semiring, x: Message, weights: Weights, z: Message) -> Weights:
        """log weight of each transition between message x at its source and z at its target."""

    def pull(
        self, backend: Backend, x: Array, weights: Sequence[Array], cotangent: Array
    ) -> tuple[Array, tuple[Array, ...]]:
        """Cotangents of a log message x and of the weights, from that of the contracted message."""

    def incoming(self, backend: Backend, weights: Sequence[Array], state: Array) -> tuple[Array, Array | None]:
        """log weights (..., C) of the transitions into `state` (...), and their sources, None for 0..K-1."""

    def path(self, backend: Backend, weights: Sequence[Array], source: Array, target: Array) -> Array:
        """log weight of each transition of k paths: (B, T-1, k), with weights of all slots."""

    def dense(self, backend: Backend, weights: Sequence[Array]) -> Array:
        """The (..., K, K) matrices."""


@dataclass(frozen=True)
class Dense:
    """Any matrix (K, K), [from, to]. Cost of one step: K^2."""

    num_states: int
    ranks: ClassVar[tuple[int, ...]] = (2,)
    tables: ClassVar[tuple[Any, ...]] = ()

    @property
    def key(self) -> str:
        return f"dense:{self.num_states}"

    def transposed(self, backend: Backend, weights: Weights) -> tuple[Structure, Weights]:
        return self, (tuple(backend.xp.matrix_transpose(w) for w in weights[0]),)

    def prepare(self, backend: Backend, semiring: Semiring, weights: Weights, axes: int) -> Weights:
        return (tuple(insert_axes(backend, w, axes, 2) for w in weights[0]),)

    def contract(self, backend: Backend, semiring: Semiring, message: Message, weights: Weights) -> Message:
        return contract_dense(backend, semiring, message, weights[0])

    def edges(self, backend: Backend, semiring: Semiring, x: Message, weights: Weights, z: Message) -> Weights:
        return (_edges_dense(x, weights[0], z),)

    def pull(
        self, backend: Backend, x: Array, weights: Sequence[Array], cotangent: Array
    ) -> tuple[Array, tuple[Array, ...]]:
        found, pair = _pull_dense(backend, x, weights[0], cotangent)
        return found, (pair,)

    def incoming(self, backend: Backend, weights: Sequence[Array], state: Array) -> tuple[Array, Array | None]:
        return _column(backend, weights[0], state), None

    def path(self, backend: Backend, weights: Sequence[Array], source: Array, target: Array) -> Array:
        flat = backend.xp.reshape(weights[0], (*weights[0].shape[:-2], self.num_states**2))
        return backend.take_along(flat, source * self.num_states + target, -1)

    def dense(self, backend: Backend, weights: Sequence[Array]) -> Array:
        return weights[0]


@dataclass(frozen=True)
class Factored:
    """A product of two matrices through R hidden terms. Cost of one step: K R."""

    num_states: int
    ranks: ClassVar[tuple[int, ...]] = (2, 2)
    tables: ClassVar[tuple[Any, ...]] = ()

    @property
    def key(self) -> str:
        return f"factored:{self.num_states}"

    def transposed(self, backend: Backend, weights: Weights) -> tuple[Structure, Weights]:
        turn = backend.xp.matrix_transpose
        return self, tuple(tuple(turn(w) for w in part) for part in reversed(weights))

    def prepare(self, backend: Backend, semiring: Semiring, weights: Weights, axes: int) -> Weights:
        return tuple(tuple(insert_axes(backend, w, axes, 2) for w in part) for part in weights)

    def contract(self, backend: Backend, semiring: Semiring, message: Message, weights: Weights) -> Message:
        return contract_dense(backend, semiring, contract_dense(backend, semiring, message, weights[0]), weights[1])

    def edges(self, backend: Backend, semiring: Semiring, x: Message, weights: Weights, z: Message) -> Weights:
        left, right = weights
        turned = tuple(backend.xp.matrix_transpose(w) for w in right)
        return (
            _edges_dense(x, left, contract_dense(backend, semiring, z, turned)),
            _edges_dense(contract_dense(backend, semiring, x, left), right, z),
        )

    def pull(
        self, backend: Backend, x: Array, weights: Sequence[Array], cotangent: Array
    ) -> tuple[Array, tuple[Array, ...]]:
        (hidden,) = contract_dense(backend, LOG, (x,), (weights[0],))
        found, right = _pull_dense(backend, hidden, weights[1], cotangent)
        found, left = _pull_dense(backend, x, weights[0], found)
        return found, (left, right)

    def incoming(self, backend: Backend, weights: Sequence[Array], state: Array) -> tuple[Array, Array | None]:
        right = _column(backend, weights[1], state)
        return logsumexp(backend, weights[0] + right[..., None, :]), None

    def path(self, backend: Backend, weights: Sequence[Array], source: Array, target: Array) -> Array:
        left = _pick_rows(backend, weights[0], source)
        right = _pick_rows(backend, backend.xp.matrix_transpose(weights[1]), target)
        return logsumexp(backend, left + right)

    def dense(self, backend: Backend, weights: Sequence[Array]) -> Array:
        (matrix,) = contract_dense(backend, LOG, (weights[0],), (weights[1][..., None, :, :],))
        return matrix


@dataclass(frozen=True, eq=False)
class Edges:
    """A list of E edges, weights (E,). Cost of one step: E.

    Sums into a state gather its edges as the rows of a table whose width is about the mean degree; states of
    a higher degree own several rows, which further tables add up, so that no degree costs more than its edges.
    """

    num_states: int
    degrees: tuple[int, int]
    """The most edges into a state, and out of one."""
    levels: tuple[int, int]
    """Tables that sums into targets take, and sums into sources."""
    tables: tuple[Any, ...]
    """sources, targets (E,), then for targets and for sources: the edges ordered by that end (E,), where each
    state's begin and how many they are (K,), the other ends and the edges as rows, further tables."""
    ranks: ClassVar[tuple[int, ...]] = (1,)

    @property
    def key(self) -> str:
        return ":".join(map(str, ("edges", self.num_states, *self.degrees, *self.levels)))

    @property
    def _into(self) -> tuple[Any, ...]:
        return self.tables[2 : 6 + self.levels[0]]

    @property
    def _out(self) -> tuple[Any, ...]:
        return self.tables[6 + self.levels[0] :]

    def transposed(self, backend: Backend, weights: Weights) -> tuple[Structure, Weights]:
        sources, targets = self.tables[:2]
        tables = (targets, sources, *self._out, *self._into)
        return Edges(self.num_states, self.degrees[::-1], self.levels[::-1], tables), weights

    def prepare(self, backend: Backend, semiring: Semiring, weights: Weights, axes: int) -> Weights:
        rows = self._into[4]
        values = zip(weights[0], semiring.zeros, strict=True)
        gathered = (gather(backend, extend(backend, w, zero), rows) for w, zero in values)
        return (tuple(insert_axes(backend, w, axes, 2) for w in gathered),)

    def contract(self, backend: Backend, semiring: Semiring, message: Message, weights: Weights) -> Message:
        ends, _, *further = self._into[3:]
        parts = zip(message, weights[0], strict=True)
        found = semiring.add(backend, tuple(gather(backend, x, ends) + w for x, w in parts))
        for table in further:
            found = semiring.add(backend, tuple(gather(backend, x, table) for x in found))
        return found

    def edges(self, backend: Backend, semiring: Semiring, x: Message, weights: Weights, z: Message) -> Weights:
        sources, targets = self.tables[:2]
        parts = zip(x, weights[0], z, strict=True)
        return (tuple(gather(backend, a, sources) + w + gather(backend, b, targets) for a, w, b in parts),)

    def pull(
        self, backend: Backend, x: Array, weights: Sequence[Array], cotangent: Array
    ) -> tuple[Array, tuple[Array, ...]]:
        xp, (sources, targets) = backend.xp, self.tables[:2]
        (moved,) = self.contract(backend, LOG, (x,), self.prepare(backend, LOG, ((weights[0],),), 0))
        terms = gather(backend, x, sources) + weights[0]
        share = xp.exp(xp.where(terms == -inf, -inf, terms - gather(backend, moved, targets)))
        pair = share * gather(backend, cotangent, targets)
        found = extend(backend, pair, 0.0)
        for table in self._out[4:]:
            found = xp.sum(gather(backend, found, table), axis=-2)
        return found, (pair,)

    def incoming(self, backend: Backend, weights: Sequence[Array], state: Array) -> tuple[Array, Array | None]:
        xp, (order, start, count) = backend.xp, self._into[:3]
        rank = backend.arange(self.degrees[0], like=state)
        place = xp.clip(xp.take(start, xp.reshape(state, (-1,)), axis=0)[:, None] + rank, max=order.shape[0] - 1)
        is_edge = rank < xp.take(count, xp.reshape(state, (-1,)), axis=0)[:, None]
        edge = xp.reshape(gather(backend, order, place), (*state.shape, self.degrees[0]))
        weight = backend.take_along(_lead(backend, weights[0], edge), edge, -1)
        found = xp.where(xp.reshape(is_edge, edge.shape), weight, -inf)
        return found, gather(backend, self.tables[0], edge)

    def path(self, backend: Backend, weights: Sequence[Array], source: Array, target: Array) -> Array:
        edge, is_edge = self._find(backend, source, target)
        return backend.xp.where(is_edge, backend.take_along(weights[0], edge, -1), -inf)

    def dense(self, backend: Backend, weights: Sequence[Array]) -> Array:
        state = backend.arange(self.num_states, like=weights[0])
        source, target = backend.xp.broadcast_arrays(state[:, None], state[None, :])
        edge, is_edge = self._find(backend, source, target)
        return backend.xp.where(is_edge, gather(backend, weights[0], edge), -inf)

    def _find(self, backend: Backend, source: Array, target: Array) -> tuple[Array, Array]:
        """The edge from `source` to `target`, and whether there is one."""
        xp, (sources, targets), order = backend.xp, self.tables[:2], self._into[0]
        keys = gather(backend, targets * self.num_states + sources, order)
        wanted = xp.reshape(target * self.num_states + source, (-1,))
        place = xp.clip(xp.searchsorted(keys, wanted), max=order.shape[0] - 1)
        is_edge = xp.reshape(gather(backend, keys, place) == wanted, target.shape)
        return xp.reshape(gather(backend, order, place), target.shape), is_edge


def on_device(structure: Structure, backend: Backend, like: Array) -> Structure:
    """The structure with its index tables as arrays of the library, on the device of `like`."""
    return structure_from(structure.key, tuple(backend.asarray(table, like=like) for table in structure.tables))


def structure_from(key: str, tables: tuple[Any, ...]) -> Structure:
    """The structure of a `key`, on index tables of the array library in use."""
    kind, *words = key.split(":")
    numbers = [int(word) for word in words]
    if kind == "edges":
        return Edges(numbers[0], (numbers[1], numbers[2]), (numbers[3], numbers[4]), tables)
    return (Dense if kind == "dense" else Factored)(numbers[0])


# The one place where structures sum over a dense block


def contract_dense(backend: Backend, semiring: Semiring, message: Message, weight: Message) -> Message:
    size = message[0].shape[-1]
    steps = prod(np.broadcast_shapes((*message[0].shape, 1), weight[0].shape))
    blocks = min(size, -(-steps // WORKSPACE))
    if blocks <= 1:
        terms = tuple(x[..., :, None] + w for x, w in zip(message, weight, strict=True))
        return semiring.add(backend, terms)
    width = -(-size // blocks)
    parts = []
    for start in range(0, size, width):
        block = slice(start, start + width)
        terms = tuple(x[..., block, None] + w[..., block, :] for x, w in zip(message, weight, strict=True))
        parts.append(semiring.add(backend, terms))
    return semiring.add(backend, tuple(backend.xp.stack(part, axis=-2) for part in zip(*parts, strict=True)))


def _edges_dense(x: Message, weight: Message, z: Message) -> Message:
    return tuple(a[..., :, None] + w + b[..., None, :] for a, w, b in zip(x, weight, z, strict=True))


def _pull_dense(backend: Backend, x: Array, weight: Array, cotangent: Array) -> tuple[Array, Array]:
    pair = softmax(backend, x[..., :, None] + weight, axis=-2) * cotangent[..., None, :]
    return backend.xp.sum(pair, axis=-1), pair


# Gathering


def insert_axes(backend: Backend, x: Array, axes: int, rank: int) -> Array:
    split = x.ndim - rank
    return backend.xp.reshape(x, (*x.shape[:split], *[1] * axes, *x.shape[split:]))


def _lead(backend: Backend, x: Array, like: Array) -> Array:
    return backend.xp.reshape(x, (*[1] * (like.ndim - x.ndim), *x.shape))


def extend(backend: Backend, x: Array, value: float) -> Array:
    """x with one more entry, `value`, on the last axis."""
    return backend.xp.concat([x, backend.xp.full_like(x[..., :1], value)], axis=-1)


def gather(backend: Backend, x: Array, table: Array) -> Array:
    """x[..., table]."""
    xp = backend.xp
    return xp.reshape(xp.take(x, xp.reshape(table, (-1,)), axis=-1), (*x.shape[:-1], *table.shape))


def _column(backend: Backend, matrix: Array, state: Array) -> Array:
    """matrix[..., :, state] for matrix (B or 1, R, K) and state (..., B)."""
    index = state[..., None, None]
    return backend.take_along(_lead(backend, matrix, index), index, -1)[..., 0]


def _pick_rows(backend: Backend, weight: Array, index: Array) -> Array:
    """weight (B or 1, T-1 or 1, K, R) at rows index (B, T-1, k)."""
    return backend.take_along(weight, index[..., None], -2)


def build_edges(sources: Any, targets: Any, num_states: int) -> tuple[str, tuple[Any, ...]]:
    """Key and index tables, on the host, of a list of edges."""
    sides, degrees, levels = [], [], []
    for ends, others in ((targets, sources), (sources, targets)):
        count = np.bincount(ends, minlength=num_states)
        plan = _sum_tables(ends, num_states)
        rows = np.append(others, 0)[plan[0]]
        sides += [np.lexsort((others, ends)), np.cumsum(count) - count, count, rows, *plan]
        degrees.append(int(count.max()))
        levels.append(len(plan))
    edges = Edges(num_states, (degrees[0], degrees[1]), (levels[0], levels[1]), (sources, targets, *sides))
    return edges.key, edges.tables


def _sum_tables(group: Any, num_groups: int) -> list[Any]:
    """Tables (width, rows) of item indices whose columns sum to the groups, one after the other.

    The index past the last item stands for nothing; every table but the last ends in a column of nothing,
    which is that index of the next one.
    """
    count = np.bincount(group, minlength=num_groups)
    width = max(2, -(-len(group) // num_groups))
    if count.max() <= 2 * width:
        width = int(max(count.max(), 1))
    rows_of = np.maximum(-(-count // width), 1)
    order = np.argsort(group, kind="stable")
    rank = np.arange(len(group)) - np.repeat(np.cumsum(count) - count, count)
    row = np.repeat(np.cumsum(rows_of) - rows_of, count) + rank // width
    is_last = bool(rows_of.max() == 1)
    table = np.full((width, int(rows_of.sum()) + (not is_last)), len(group))
    table[rank % width, row] = order
    if is_last:
        return [table]
    return [table, *_sum_tables(np.repeat(np.arange(num_groups), rows_of), num_groups)]
