"""The canonical form of a chain's arguments: one batch axis, one dtype, checked once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from ._check import broadcast_batch, need_count, need_floating, need_integers, need_range, need_shape
from .backend import Array, Backend, backend_of, find_backend
from .edges import on_device
from .structure import Dense, Structure
from .transition import arrays_of, canonical


@dataclass(frozen=True)
class Chain:
    """log_initial, log_transition, log_emission and their companions, ready for the recursion."""

    backend: Backend
    structure: Structure
    batch_shape: tuple[int, ...]
    initial: Array
    """(B or 1, K)"""
    weights: tuple[Array, ...]
    """Each (B or 1, T-1 or 1, *base)."""
    emission: Array
    """(B, T, K)"""
    final: Array
    """(B or 1, K)"""
    lengths: Array
    """(B,)"""
    is_ragged: bool
    """Whether any length may be below T."""

    @property
    def num_steps(self) -> int:
        return int(self.emission.shape[1])

    @property
    def num_states(self) -> int:
        return self.structure.num_states

    def unflatten(self, x: Array) -> Array:
        """(B, ...) to (*batch_shape, ...)."""
        shape = (*self.batch_shape, *x.shape[1:])
        return x if tuple(x.shape) == shape else self.backend.xp.reshape(x, shape)

    def is_valid(self) -> Array:
        """(B, T): which steps lie within the lengths."""
        return self._steps()[None, :] < self.lengths[:, None]

    def is_last(self) -> Array:
        """(B, T): each sequence's last step."""
        return self._steps()[None, :] == self.lengths[:, None] - 1

    def _steps(self) -> Array:
        return self.backend.arange(self.num_steps, like=self.emission)

    def with_dense_transition(self) -> Chain:
        """The same with the transition written out, K x K."""
        weights = (self.structure.dense(self.backend, self.weights),)
        return replace(self, structure=Dense(self.num_states), weights=weights)


def chain_of(
    log_initial: Array,
    log_transition: Any,
    log_emission: Array | None,
    *,
    lengths: Any = None,
    log_final: Array | None = None,
    states: Array | None = None,
    num_steps: int | None = None,
) -> Chain:
    """Check the arguments every chain function takes and bring them to one form.

    With `num_steps` there are no emissions: it is a prior over so many steps. The batch axes of `states` broadcast with
    the others.

    Raises:
        TypeError: an argument is no array, is not floating-point, or belongs to another library.
        ValueError: a shape does not fit, or a length lies outside 1..T.
    """
    named = {"log_initial": log_initial, **arrays_of(log_transition), "log_emission": log_emission}
    for name, value in named.items():
        if value is None and (name != "log_emission" or num_steps is None):
            raise TypeError(f"{name}: expected an array (torch.Tensor, jax.Array or numpy.ndarray), got None")
    backend = backend_of(**named, log_final=log_final, states=states)
    xp = backend.xp
    if log_emission is None:  # num_steps are given
        need_shape("log_initial", log_initial.shape, (None,), "(..., K)")
        log_emission = backend.full((num_steps or 1, log_initial.shape[-1]), 0.0, like=log_initial)
    for name, x in (*named.items(), ("log_final", log_final)):
        if x is not None:
            need_floating(name, xp, x)
    need_shape("log_emission", log_emission.shape, (None, None), "(..., T, K)")
    num_steps, num_states = log_emission.shape[-2:]
    if num_steps < 1 or num_states < 1:
        raise ValueError(f"log_emission: expected at least one step and one state, got {tuple(log_emission.shape)}")
    need_shape("log_initial", log_initial.shape, (num_states,), f"(..., K) with K = {num_states} as in log_emission")
    if log_final is not None:
        need_shape("log_final", log_final.shape, (num_states,), f"(..., K) with K = {num_states} as in log_emission")
    else:
        log_final = backend.full((num_states,), 0.0, like=log_emission)
    structure, weights = _transition(backend, log_transition, num_states, num_steps)

    dtype = xp.result_type(*{x.dtype for x in (log_initial, *weights, log_emission, log_final)})
    if xp.finfo(dtype).bits < 32:
        dtype = xp.float32
    batches = {
        "log_initial": log_initial.shape[:-1],
        "log_emission": log_emission.shape[:-2],
        "log_final": log_final.shape[:-1],
    }
    if states is not None:
        need_shape("states", states.shape, (num_steps,), f"(..., T) with T = {num_steps} as in log_emission")
        batches["states"] = states.shape[:-1]
    for name, w, rank in zip(arrays_of(log_transition), weights, structure.ranks, strict=True):
        batches[name] = tuple(w.shape[: max(w.ndim - rank - 1, 0)])
    if lengths is not None:
        lengths = lengths_of(backend, lengths, num_steps, log_emission)
        batches["lengths"] = lengths.shape
    batch_shape = broadcast_batch(batches)
    size = prod(batch_shape)

    def flat(x: Array, rank: int, *, shared: bool = True) -> Array:
        base = tuple(x.shape[x.ndim - rank :])
        if x.dtype != dtype:
            x = xp.astype(x, dtype)
        if shared and prod(x.shape[: x.ndim - rank]) == 1:
            return x[None, ...] if x.ndim == rank else xp.reshape(x, (1, *base))
        if tuple(x.shape) == (size, *base):
            return x
        return xp.reshape(xp.broadcast_to(x, (*batch_shape, *base)), (size, *base))

    if lengths is None:
        found = backend.full((size,), num_steps, like=log_emission, dtype=backend.index_dtype())
    else:
        found = xp.reshape(xp.broadcast_to(lengths, batch_shape), (size,))
    return Chain(
        backend=backend,
        structure=structure,
        batch_shape=batch_shape,
        initial=flat(log_initial, 1),
        weights=tuple(flat(_with_time(w, r), r + 1) for w, r in zip(weights, structure.ranks, strict=True)),
        emission=flat(log_emission, 2, shared=False),
        final=flat(log_final, 1),
        lengths=found,
        is_ragged=lengths is not None,
    )


def lengths_of(
    backend: Backend, lengths: Any, num_steps: int, like: Array, *, name: str = "lengths", least: int = 1
) -> Array:
    """`lengths` (a list, a NumPy array, or an array of the library) as integers on the device of `like`.

    Raises:
        TypeError: not integers, or of another library. ValueError: outside least..num_steps, where values can be read.
    """
    if isinstance(lengths, list | tuple):
        for value in _leaves(lengths):
            need_count(name, value, least)
            need_range(name, value, least, num_steps)
        return backend.xp.astype(backend.asarray(lengths, like=like), backend.index_dtype())
    found = integers_of(backend, name, lengths, like)
    source = find_backend(lengths)
    if source is None or source.name == "numpy":
        need_range(name, np.asarray(lengths), least, num_steps)
    elif not backend.is_traced(lengths) and backend.is_host(lengths):
        need_range(name, backend.to_numpy(lengths), least, num_steps)
    return found


def integers_of(backend: Backend, name: str, value: Any, like: Array) -> Array:
    """A list, a NumPy array, or an array of the library as integers on the device of `like`; TypeError for others."""
    source = find_backend(value)
    if source is None or source.name == "numpy":
        value = np.asarray(value)
        if value.dtype.kind not in "iu":
            raise TypeError(f"{name}: expected integers, got {value.dtype}")
    elif source is not backend:
        raise TypeError(f"{name}: expected a list, a NumPy array or an array of {backend.name}, got {source.name}")
    else:
        need_integers(name, backend.xp, value)
    return backend.xp.astype(backend.asarray(value, like=like), backend.index_dtype())


def without_padding(backend: Backend, x: Array, lengths: Any) -> Array:
    """(..., T, N) with 0 in what lies beyond `lengths`, (...) or None, of a batch that broadcasts with it."""
    if lengths is None:
        return x
    num_steps = x.shape[-2]
    ends = lengths_of(backend, lengths, num_steps, x)
    broadcast_batch({"lengths": tuple(ends.shape), "sequences": tuple(x.shape[:-2])})
    is_valid = backend.arange(num_steps, like=x) < ends[..., None]
    return backend.xp.where(is_valid[..., None], x, 0.0)


def _leaves(values: Any) -> list[Any]:
    if not isinstance(values, list | tuple):
        return [values]
    return [leaf for value in values for leaf in _leaves(value)]


def _transition(
    backend: Backend, log_transition: Any, num_states: int, num_steps: int
) -> tuple[Structure, tuple[Array, ...]]:
    names = arrays_of(log_transition)
    if list(names) == ["log_transition"]:
        words = f"(K, K) or (..., T-1 or 1, K, K) with K = {num_states}"
        need_shape("log_transition", log_transition.shape, (num_states, num_states), words)
    structure, weights = canonical(log_transition)
    if structure.num_states != num_states:
        raise ValueError(f"log_transition: expected {num_states} states as in log_emission, got {structure.num_states}")
    for name, w, rank in zip(names, weights, structure.ranks, strict=True):
        slots = w.shape[w.ndim - rank - 1] if w.ndim > rank else 1
        if slots not in (1, num_steps - 1):
            raise ValueError(
                f"{name}: expected a time axis of T-1 = {num_steps - 1} or 1 slots before the matrix, "
                f"got {slots}; a batch of constant matrices is (B, 1, ...)"
            )
    return on_device(structure, backend, weights[0]), weights


def _with_time(w: Array, rank: int) -> Array:
    return w if w.ndim > rank else w[None, ...]
