"""The transitions users pass, and what the recursion makes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import inf
from typing import Any

import numpy as np

from ._check import need_shape
from .backend import Array, Backend, backend_of, find_backend
from .edges import Edges, build_edges, on_device, structure_from
from .numerics import log_normalize
from .semiring import LOG
from .structure import Dense, Factored, Structure, extend, gather


@dataclass(frozen=True, eq=False)
class Banded:
    """Transitions from state i to i + offsets[o] alone, with log weight log_bands[o, i].

    Args:
        log_bands: (O, K), or (..., T-1 or 1, O, K) for batches and time-varying weights, nats.
        offsets: O distinct integers; (0, 1, 2) is a left-to-right model with skips. Entries that leave the
            range of states are ignored.

    Cost of one step: K O.
    """

    log_bands: Array
    offsets: tuple[int, ...]

    def __post_init__(self) -> None:
        offsets = tuple(int(o) for o in self.offsets)
        object.__setattr__(self, "offsets", offsets)
        _register(type(self), ("log_bands",), ("offsets",), self.log_bands)
        if len(set(offsets)) != len(offsets) or not offsets:
            raise ValueError(f"offsets: expected distinct integers, at least one, got {offsets}")
        need_shape("log_bands", self.log_bands.shape, (len(offsets), None), "(..., O, K) with O = len(offsets)")
        if min(abs(o) for o in offsets) >= self.log_bands.shape[-1]:
            raise ValueError(f"offsets: expected one within {self.log_bands.shape[-1]} states, got {offsets}")


@dataclass(frozen=True, eq=False)
class Sparse:
    """Transitions along a list of edges, for lexicon and decoding graphs.

    Args:
        log_weights: (E,), or (..., T-1 or 1, E) for batches and time-varying weights, nats.
        sources, targets: (E,) integers, the states each edge joins; part of the graph, not of the data: known
            when a function is traced. No edge may come twice.
        num_states: K.

    Cost of one step: E.
    """

    log_weights: Array
    sources: Any
    targets: Any
    num_states: int

    def __post_init__(self) -> None:
        _register(type(self), ("log_weights",), ("sources", "targets", "num_states"), self.log_weights)
        ends = []
        for name in ("sources", "targets"):
            array = host_integers(name, getattr(self, name))
            if array.size and not 0 <= array.min() <= array.max() < self.num_states:
                raise ValueError(f"{name}: expected states 0..{self.num_states - 1}, got {array.min()}..{array.max()}")
            ends.append(array)
            object.__setattr__(self, name, StaticArray(array))
        if ends[0].shape != ends[1].shape:
            raise ValueError(f"targets: expected as many as sources ({len(ends[0])}), got {len(ends[1])}")
        if len(np.unique(ends[0] * self.num_states + ends[1])) != len(ends[0]):
            raise ValueError("sources, targets: expected every edge once, got one twice; add their weights")
        need_shape("log_weights", self.log_weights.shape, (len(ends[0]),), "(..., E) with E = len(sources)")


@dataclass(frozen=True, eq=False)
class LowRank:
    """A transition matrix of R terms: log p(j given i) = logsumexp over r of log_left[i, r] + log_right[r, j].

    Args:
        log_left: (K, R), or (..., T-1 or 1, K, R), nats.
        log_right: (R, K), or (..., T-1 or 1, R, K), nats.

    Cost of one step: K R; K^2 for Viterbi, where the product cannot be split.
    """

    log_left: Array
    log_right: Array

    def __post_init__(self) -> None:
        _register(type(self), ("log_left", "log_right"), (), self.log_left)
        backend_of(log_left=self.log_left, log_right=self.log_right)
        need_shape("log_left", self.log_left.shape, (None, None), "(..., K, R)")
        wanted = (self.log_left.shape[-1], self.log_left.shape[-2])
        need_shape("log_right", self.log_right.shape, wanted, "(..., R, K) with R and K as in log_left")


def _register(cls: type, leaves: tuple[str, ...], static: tuple[str, ...], sample: Any) -> None:
    """Make `cls` a pytree of the library of `sample`: its arrays are leaves, the rest is metadata."""

    def unflatten(context: Any, children: Any) -> Any:
        value: Any = object.__new__(cls)
        for name, part in zip((*leaves, *static), (*children, *context), strict=True):
            object.__setattr__(value, name, part)
        return value

    def flatten(value: Any) -> tuple[Any, Any]:
        return tuple(getattr(value, name) for name in leaves), tuple(getattr(value, name) for name in static)

    backend_of(**{leaves[0]: sample}).register_pytree(cls, flatten, unflatten)


def host_integers(name: str, value: Any) -> Any:
    if isinstance(value, StaticArray):
        return value.values
    array = _known(name, value, "integers")
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iu":
        raise ValueError(
            f"{name}: expected a 1-D list of at least one integer, got shape {array.shape}, dtype {array.dtype}"
        )
    return array.astype(np.int64)


def host_numbers(name: str, value: Any, rank: int = 1) -> Any:
    """Known numbers, an array or (nested) list, in float64 on the host."""
    array = _known(name, value, "numbers").astype(np.float64)
    if array.ndim != rank or not array.size:
        raise ValueError(f"{name}: expected {'(N,)' if rank == 1 else '(N, N)'} numbers, got shape {array.shape}")
    return array


def need_integers_each(name: str, value: Any, count: int) -> Any:
    """Known integers from 1, (count,) on the host, of one for all or one for each."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = [value]
    found = host_integers(name, value)
    if len(found) not in (1, count):
        raise ValueError(f"{name}: expected one integer or {count}, got {len(found)}")
    if found.min() < 1:
        raise ValueError(f"{name}: expected integers of at least 1, got {found.min()}")
    return np.broadcast_to(found, (count,))


def _known(name: str, value: Any, kind: str) -> Any:
    backend = find_backend(value)
    if backend is not None and backend.is_traced(value):
        raise TypeError(f"{name}: expected known {kind}, got a traced array; the graph is not data")
    return np.asarray(value if backend is None else backend.to_numpy(value))


class StaticArray:
    """An integer array as hashable metadata of a pytree."""

    def __init__(self, values: Any) -> None:
        self.values = np.array(values)
        self.values.flags.writeable = False
        self._hash = hash(self.values.tobytes())

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StaticArray) and np.array_equal(self.values, other.values)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return self.values if dtype is None else self.values.astype(dtype)

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        return repr(self.values)


def _on_host(function: Callable[..., Any]) -> Callable[..., Any]:
    """Memoise a function of hashable arguments, and let torch.compile take its results as constants."""
    known = lru_cache(maxsize=64)(function)

    def remembered(*arguments: Any) -> Any:
        return known(*arguments)

    remembered._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return remembered


@_on_host
def banded_edges(num_states: int, offsets: tuple[int, ...]) -> tuple[tuple[str, Any], Any, Any]:
    """Key and tables of the edges of a band, which of its (O, K) entries they are, and the place of each (E: none)."""
    sources = np.tile(np.arange(num_states), len(offsets))
    targets = sources + np.repeat(np.array(offsets), num_states)
    (kept,) = np.nonzero((targets >= 0) & (targets < num_states))
    place = np.full(len(sources), len(kept))
    place[kept] = np.arange(len(kept))
    return (
        build_edges(sources[kept], targets[kept], num_states),
        kept,
        place.reshape(len(offsets), num_states),
    )


@_on_host
def graph_edges(sources: StaticArray, targets: StaticArray, num_states: int) -> tuple[str, Any]:
    """Key and tables of the edges of a graph."""
    return build_edges(sources.values.copy(), targets.values.copy(), num_states)


def canonical(transition: Any) -> tuple[Structure, tuple[Array, ...]]:
    """The structure of a transition argument and its weights, (..., *base) with a time axis if one was given."""
    if isinstance(transition, Banded):
        bands = transition.log_bands
        backend = backend_of(log_bands=bands)
        edges, kept, _ = banded_edges(bands.shape[-1], transition.offsets)
        flat = backend.xp.reshape(bands, (*bands.shape[:-2], bands.shape[-2] * bands.shape[-1]))
        return structure_from(*edges), (backend.xp.take(flat, backend.asarray(kept, like=bands), axis=-1),)
    if isinstance(transition, Sparse):
        edges = graph_edges(transition.sources, transition.targets, transition.num_states)
        return structure_from(*edges), (transition.log_weights,)
    if isinstance(transition, LowRank):
        return Factored(transition.log_left.shape[-2]), (transition.log_left, transition.log_right)
    return Dense(transition.shape[-1]), (transition,)


def own_shape(backend: Backend, transition: Any, weights: Sequence[Array], fill: float = 0.0) -> Any:
    """Arrays shaped as `canonical`'s weights in the shape of the transition's own, `fill` where it has no edge."""
    if isinstance(transition, Banded):
        _, _, place = banded_edges(transition.log_bands.shape[-1], transition.offsets)
        return gather(backend, extend(backend, weights[0], fill), backend.asarray(place, like=weights[0]))
    return tuple(weights) if len(weights) > 1 else weights[0]


def with_weights(transition: Any, weights: Array) -> Any:
    """The same structure with other weights, in the shape of its own (batch and time axes apart)."""
    if isinstance(transition, Banded):
        return Banded(weights, transition.offsets)
    if isinstance(transition, Sparse):
        return Sparse(weights, transition.sources, transition.targets, transition.num_states)
    return weights


def as_dense(transition: Any) -> Array:
    """The (..., K, K) matrices of a transition argument."""
    structure, weights = canonical(transition)
    backend = backend_of(weights=weights[0])
    return on_device(structure, backend, weights[0]).dense(backend, weights)


def normalize_rows(backend: Backend, structure: Structure, weights: Array) -> Array:
    """Weights (..., K, K) or (..., E) of a structure on its device, less each source's logsumexp; -inf rows stay."""
    if not isinstance(structure, Edges):
        return log_normalize(backend, weights)
    back, turned = structure.transposed(backend, ((weights,),))
    zeros = backend.full((*weights.shape[:-1], structure.num_states), 0.0, like=weights)
    (total,) = back.contract(backend, LOG, (zeros,), back.prepare(backend, LOG, turned, 0))
    total = backend.xp.where(total == -inf, 0.0, total)
    return weights - gather(backend, total, structure.tables[0])


def arrays_of(transition: Any) -> dict[str, Array]:
    """The arrays of a transition argument, by the names the user knows."""
    if isinstance(transition, Banded):
        return {"log_transition.log_bands": transition.log_bands}
    if isinstance(transition, Sparse):
        return {"log_transition.log_weights": transition.log_weights}
    if isinstance(transition, LowRank):
        return {
            "log_transition.log_left": transition.log_left,
            "log_transition.log_right": transition.log_right,
        }
    return {"log_transition": transition}
