"""How mass moves in one step, for each structure of a transition matrix.

A structure is static; its weights are a tuple of arrays with batch axes before their base axes. Every sum over
transitions in the library is one of the methods below, so a new structure is one class here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
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


def lead(backend: Backend, x: Array, like: Array) -> Array:
    return backend.xp.reshape(x, (*[1] * (like.ndim - x.ndim), *x.shape))


def extend(backend: Backend, x: Array, value: float) -> Array:
    """x with one more entry, `value`, on the last axis."""
    return backend.xp.concat([x, backend.full((*x.shape[:-1], 1), value, like=x)], axis=-1)  # of an empty axis, too


def gather(backend: Backend, x: Array, table: Array) -> Array:
    """x[..., table]."""
    xp = backend.xp
    return xp.reshape(xp.take(x, xp.reshape(table, (-1,)), axis=-1), (*x.shape[:-1], *table.shape))


def _column(backend: Backend, matrix: Array, state: Array) -> Array:
    """matrix[..., :, state] for matrix (B or 1, R, K) and state (..., B)."""
    index = state[..., None, None]
    return backend.take_along(lead(backend, matrix, index), index, -1)[..., 0]


def _pick_rows(backend: Backend, weight: Array, index: Array) -> Array:
    """weight (B or 1, T-1 or 1, K, R) at rows index (B, T-1, k)."""
    return backend.take_along(weight, index[..., None], -2)
