"""Transitions along a list of edges, and the tables of indices they are summed by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, ClassVar

import numpy as np

from .backend import Array, Backend
from .semiring import LOG, Message, Semiring
from .structure import Dense, Factored, Structure, Weights, extend, gather, insert_axes, lead

MOST_BANDS = 16
"""Different distances from source to target up to which a list of edges counts as bands."""


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
    offsets: tuple[int, ...] = ()
    """target - source of all edges where these are few, which makes them bands; else empty."""
    ranks: ClassVar[tuple[int, ...]] = (1,)

    @property
    def key(self) -> str:
        return ":".join(map(str, ("edges", self.num_states, *self.degrees, *self.levels, *self.offsets)))

    @property
    def _into(self) -> tuple[Any, ...]:
        return self.tables[2 : 6 + self.levels[0]]

    @property
    def _out(self) -> tuple[Any, ...]:
        return self.tables[6 + self.levels[0] :]

    def transposed(self, backend: Backend, weights: Weights) -> tuple[Structure, Weights]:
        sources, targets = self.tables[:2]
        tables = (targets, sources, *self._out, *self._into)
        offsets = tuple(-o for o in self.offsets)
        return Edges(self.num_states, self.degrees[::-1], self.levels[::-1], tables, offsets), weights

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
        return self.sum_by_source(backend, pair), (pair,)

    def sum_by_source(self, backend: Backend, values: Array) -> Array:
        """Sums (..., K) over the edges that leave each state, of values (..., E)."""
        found = extend(backend, values, 0.0)
        for table in self._out[4:]:
            found = backend.xp.sum(gather(backend, found, table), axis=-2)
        return found

    def incoming(self, backend: Backend, weights: Sequence[Array], state: Array) -> tuple[Array, Array | None]:
        xp, (order, start, count) = backend.xp, self._into[:3]
        rank = backend.arange(self.degrees[0], like=state)
        place = xp.clip(xp.take(start, xp.reshape(state, (-1,)), axis=0)[:, None] + rank, max=order.shape[0] - 1)
        is_edge = rank < xp.take(count, xp.reshape(state, (-1,)), axis=0)[:, None]
        edge = xp.reshape(gather(backend, order, place), (*state.shape, self.degrees[0]))
        weight = backend.take_along(lead(backend, weights[0], edge), edge, -1)
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
    offsets = tuple(np.unique(targets - sources).tolist())
    if len(offsets) > MOST_BANDS or len(offsets) * num_states > 4 * len(sources):
        offsets = ()
    edges = Edges(num_states, (degrees[0], degrees[1]), (levels[0], levels[1]), (sources, targets, *sides), offsets)
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


def on_device(structure: Structure, backend: Backend, like: Array) -> Structure:
    """The structure with its index tables as arrays of the library, on the device of `like`."""
    return structure_from(structure.key, tuple(backend.asarray(table, like=like) for table in structure.tables))


def structure_from(key: str, tables: tuple[Any, ...]) -> Structure:
    """The structure of a `key`, on index tables of the array library in use."""
    kind, *words = key.split(":")
    numbers = [int(word) for word in words]
    if kind == "edges":
        return Edges(numbers[0], (numbers[1], numbers[2]), (numbers[3], numbers[4]), tables, tuple(numbers[5:]))
    return (Dense if kind == "dense" else Factored)(numbers[0])
