"""The same messages, parallel in time, for devices where a launch costs more than its arithmetic.

The steps are cut into chunks. All chunks at once, the recursion runs from every state (a chunk's matrix); an
associative scan over the chunks gives the message each one starts from; and the recursion runs again, all
chunks at once, from there. Chunks are no shorter than K, so that the chunks' matrices take no more memory than
the emissions do. Särkkä and García-Fernández 2021, with matrices kept in the log domain.
"""

from __future__ import annotations

from math import ceil, inf, log2

import numpy as np

from .backend import Array, Backend
from .kernels.registry import Kernel, MessageCall, Messages, register
from .recursion import Items, Run, collect, lay_out, run
from .semiring import Message, Semiring
from .structure import Weights, contract_dense

LARGEST_STATES = 64
"""On a GPU: past this many states the K times larger work costs more than the launches it saves."""
LONG, FEW_STATES = 10_000, 8
"""On a CPU the loop's overhead outweighs the K times larger work only for long sequences of few states."""


def chunk_length(num_states: int) -> int:
    """Steps of one chunk."""
    return max(num_states, 4)


def parallel_messages(call: MessageCall) -> Messages:
    """Messages of all steps in about 2 K + log2(T / K) rounds of batched operations."""
    backend, semiring = call.backend, call.semiring
    num_items = call.num_steps - 1
    length = chunk_length(call.structure.num_states)
    num_chunks = ceil(num_items / length)
    travel = lay_out(call)
    if num_items == 0:
        return collect(call, travel, None)
    structure, batch = travel.structure, travel.first[0].shape[0]
    items = _chunks(backend, travel.items, num_chunks, length)
    constant = travel.constant

    def with_axis(weights: Weights | None, at: int) -> Weights | None:
        """An axis of 1 for the chunks, or for the states a chunk starts from."""
        if weights is None:
            return None
        return tuple(tuple(backend.xp.expand_dims(w, axis=at) for w in part) for part in weights)

    prefixes = starts = travel.first
    if num_chunks > 1:
        rows = Items(
            tuple(e[..., None, :] for e in items.emission),
            with_axis(items.weights, -3),
            None if items.is_valid is None else items.is_valid[..., None, :],
        )
        # (chunks, B, from, to): the recursion from every state
        eye = _identity(backend, semiring, (num_chunks, batch, structure.num_states), travel.first)
        found = run(backend, semiring, structure, with_axis(with_axis(constant, 0), -3), eye, rows, last_only=True)
        prefixes = _prefixes(backend, semiring, found)
        starts = _starts(backend, semiring, travel.first, prefixes)
    if call.last_only and num_chunks > 1:
        *matrix, scale = (x[-1, ...] for x in prefixes)
        last, extra = _apply(backend, semiring, travel.first, tuple(matrix))
        sums = (scale + extra[0] + travel.first_scale[0])[:, 0]
        return Messages((), (), sums, last)
    if num_chunks == 1:
        starts = tuple(x[None, ...] for x in starts)
    found = run(
        backend, semiring, structure, with_axis(constant, 0), starts, items, include_emission=call.include_emission
    )
    return collect(call, travel, _unchunk(backend, found, num_items))


def _chunks(backend: Backend, items: Items, num_chunks: int, length: int) -> Items:
    """Items (N, B, ...) as (length, chunks, B, ...); steps past the end change nothing."""
    xp = backend.xp
    num_items = items.emission[0].shape[0]
    extra = num_chunks * length - num_items

    def cut(x: Array) -> Array:
        if extra:
            pad = xp.broadcast_to(xp.zeros_like(x[:1, ...]), (extra, *x.shape[1:]))
            x = xp.concat([x, pad], axis=0)
        x = xp.reshape(x, (num_chunks, length, *x.shape[1:]))
        return xp.permute_dims(x, (1, 0, *range(2, x.ndim)))

    is_valid = items.is_valid
    if is_valid is None and extra:
        is_valid = xp.ones_like(items.emission[0][:, :, :1], dtype=xp.bool)
    return Items(
        tuple(cut(e) for e in items.emission),
        None if items.weights is None else tuple(tuple(cut(w) for w in part) for part in items.weights),
        None if is_valid is None else cut(is_valid),
    )


def _unchunk(backend: Backend, found: Run, num_items: int) -> Run:
    xp = backend.xp

    def whole(x: Array) -> Array:
        x = xp.permute_dims(x, (1, 0, *range(2, x.ndim)))
        return xp.reshape(x, (x.shape[0] * x.shape[1], *x.shape[2:]))[:num_items, ...]

    values = None if found.values is None else tuple(whole(x) for x in found.values)
    return Run(values, tuple(whole(s) for s in found.scales), tuple(x[-1, ...] for x in found.last))


def _identity(backend: Backend, semiring: Semiring, shape: tuple[int, ...], like: Message) -> Message:
    """Matrices (..., K, K) of the semiring's ones and zeros."""
    xp, num_states = backend.xp, shape[-1]
    is_same = backend.asarray(np.eye(num_states, dtype=bool), like=like[0])
    one = [xp.where(is_same, 0.0, backend.full((), zero, like=like[0])) for zero in semiring.zeros]
    return tuple(xp.broadcast_to(x, (*shape, num_states)) for x in one)


def _prefixes(backend: Backend, semiring: Semiring, found: Run) -> tuple[Array, ...]:
    """Products of the first 1, 2, ... chunks' matrices (chunks, B, K, K), and their log scales (chunks, B, 1)."""
    xp = backend.xp
    wide = backend.wide_dtype(found.last[0])
    scales = [xp.sum(s, axis=0, dtype=wide) if wide else xp.sum(s, axis=0) for s in found.scales]
    # rows share one scale, kept apart; what they differ by goes back into the matrix
    top = backend.pivot(scales[0], -2)
    shares = [scales[0] - top, *scales[1:]]
    dtype = found.last[0].dtype
    matrix = tuple(x + xp.astype(share, dtype) for x, share in zip(found.last, shares, strict=True))
    matrix = (xp.where(found.last[0] == -inf, -inf, matrix[0]), *matrix[1:])

    def combine(a: tuple[Array, ...], b: tuple[Array, ...]) -> tuple[Array, ...]:
        product = contract_dense(backend, semiring, a[:-1], tuple(w[..., None, :, :] for w in b[:-1]))
        scale = backend.pivot(product[0], (-2, -1))
        total = a[-1] + b[-1] + xp.astype(scale[..., 0], a[-1].dtype)
        return (product[0] - scale, *product[1:], total)

    return tuple(backend.associative_scan(combine, (*matrix, top[..., 0])))


def _apply(backend: Backend, semiring: Semiring, message: Message, matrix: Message) -> tuple[Message, Message]:
    return semiring.normalise(backend, contract_dense(backend, semiring, message, matrix))


def _starts(backend: Backend, semiring: Semiring, first: Message, prefixes: tuple[Array, ...]) -> Message:
    """The message each chunk starts from, (chunks, B, K)."""
    expanded = tuple(x[None, ...] for x in first)
    later, _ = _apply(backend, semiring, expanded, tuple(x[:-1, ...] for x in prefixes[:-1]))
    return tuple(backend.xp.concat([a, b], axis=0) for a, b in zip(expanded, later, strict=True))


def _unsupported(call: MessageCall) -> str | None:
    if call.semiring.depth:
        return f"the {call.semiring.name} semiring has no matrices to scan over"
    return None


def _priority(call: MessageCall) -> int:
    """First under torch on a GPU, where it launches fewer operations, and in eager libraries for long sequences."""
    backend, num_states, num_steps = call.backend, call.structure.num_states, call.num_steps
    if backend.name == "jax":
        return -1
    if backend.is_host(call.emission[0]):
        return 1 if num_steps >= LONG and num_states <= FEW_STATES else -1
    length = chunk_length(num_states)
    rounds = 2 * length + log2(max(num_steps / length, 1.0))
    return 1 if num_states <= LARGEST_STATES and rounds < num_steps - 1 else -1


register(Kernel("parallel", _priority, _unsupported, parallel_messages))
