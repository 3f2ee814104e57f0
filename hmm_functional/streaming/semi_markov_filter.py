"""Filtering of semi-Markov models, of whole sequences and of streams: the state, and how long it will last."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any, NamedTuple

from .. import segments
from .._check import broadcast_batch, need_count
from .._types import Forward
from ..backend import Array, backend_of
from ..chain import chain_of
from ..numerics import centre, log_normalize, logsumexp, softmax
from ..semi_markov import moves_of, need_durations, semi_markov_log_likelihood
from .posterior import need_chunk


class SemiMarkovStreamState(NamedTuple):
    """All that a stream knows: arrays that can be saved, moved between devices and batched."""

    log_transition: Array
    """(..., K, K)"""
    log_duration: Array
    """(..., K, D_max), as given."""
    log_begin: Array
    """(..., K): of a segment that begins with the next step; on one scale with `log_left`, up to a constant."""
    log_left: Array
    """(..., K, D_max): of the segment that the last step was of, by how many more steps it lasts."""


class SemiMarkovFiltered(NamedTuple):
    """What the steps so far say of each."""

    log_filtered: Array
    """(..., n, K): log p(z_t given x_0..t)."""
    expected_remaining: Array
    """(..., n, K): steps that the segment is expected to last beyond this one, given its state; 0 where impossible."""


def semi_markov_stream_init(
    log_initial: Array, log_transition: Any, log_duration: Array, *, batch_shape: tuple[int, ...] = ()
) -> SemiMarkovStreamState:
    """The state of a stream before its first step.

    Args:
        log_initial, log_transition, log_duration: as `semi_markov_log_likelihood`.
        batch_shape: axes of parallel streams, before those of the parameters.

    Returns:
        `SemiMarkovStreamState`.

    Raises:
        TypeError, ValueError: as `semi_markov_log_likelihood`.

    Example:
        >>> import torch, hmm_functional as hf
        >>> initial, transition = torch.tensor([1.0, 0.0]).log(), torch.tensor([[0.0, 1.0], [1.0, 0.0]]).log()
        >>> duration = torch.tensor([[0.0, 0.5, 0.5], [1.0, 0.0, 0.0]]).log()
        >>> state = hf.semi_markov_stream_init(initial, transition, duration)
        >>> state, found = hf.semi_markov_stream_step(state, torch.zeros(2, 2))
        >>> found.expected_remaining[:, 0]
        tensor([1.5000, 0.5000])
        >>> hf.semi_markov_remaining(state)[0].exp()
        tensor([0.5000, 0.5000, 0.0000])
    """
    chain = chain_of(log_initial, log_transition, None, num_steps=1).with_dense_transition()
    backend, xp, num_states = chain.backend, chain.backend.xp, chain.num_states
    backend_of(log_initial=log_initial, log_duration=log_duration)
    need_durations(xp, log_duration, num_states, "log_initial")
    own, size = chain.batch_shape, chain.lengths.shape[0]
    moves, begin = moves_of(chain), chain.initial
    moves = xp.reshape(xp.broadcast_to(moves, (size, *moves.shape[1:])), (*own, *moves.shape[1:]))
    begin = xp.reshape(xp.broadcast_to(begin, (size, num_states)), (*own, num_states))
    own = broadcast_batch({"log_initial": own, "log_duration": log_duration.shape[:-2]})
    shape = (*(need_count("batch_shape", n, 0) for n in batch_shape), *own)
    dtype = xp.result_type(begin.dtype, log_duration.dtype)
    begin = xp.astype(xp.broadcast_to(begin, (*shape, num_states)), dtype)
    left = backend.full((*shape, *log_duration.shape[-2:]), -inf, like=begin)
    return SemiMarkovStreamState(xp.astype(moves, dtype), xp.astype(log_duration, dtype), begin, left)


def semi_markov_stream_step(
    state: SemiMarkovStreamState, log_emission_chunk: Array
) -> tuple[SemiMarkovStreamState, SemiMarkovFiltered]:
    """Take the next steps of a stream.

    Args:
        state: from `semi_markov_stream_init` or the step before.
        log_emission_chunk: (..., n, K), nats, any n.

    Returns:
        The state and `SemiMarkovFiltered`; -inf and 0 from where the stream is impossible.

    Raises:
        TypeError, ValueError: as `semi_markov_log_likelihood`.

    Cost: O(n K (D_max + K)) time, whatever has gone before.
    """
    backend, batch, size = need_chunk(state.log_begin, log_emission_chunk)
    xp = backend.xp
    if size == 0:
        rows = backend.full((*batch, 0, state.log_begin.shape[-1]), 0.0, like=state.log_begin)
        return state, SemiMarkovFiltered(rows, rows)
    steps = backend.arange(state.log_duration.shape[-1], like=state.log_duration)

    def look(left: Array) -> tuple[Array, Array]:
        return logsumexp(backend, left), xp.sum(softmax(backend, left) * xp.astype(steps, left.dtype), axis=-1)

    state, (weights, remaining) = take_steps(state, log_emission_chunk, batch, look)
    return state, SemiMarkovFiltered(log_normalize(backend, xp.moveaxis(weights, 0, -2)), xp.moveaxis(remaining, 0, -2))


def take_steps(
    state: SemiMarkovStreamState, log_emission_chunk: Array, batch: tuple[int, ...], look: Callable[[Array], Any]
) -> tuple[SemiMarkovStreamState, Any]:
    """The state after a chunk, and what `look` makes of the open segments (..., K, D_max) of each step, time first."""
    backend = backend_of(log_emission_chunk=log_emission_chunk)
    xp, num_states = backend.xp, state.log_begin.shape[-1]
    dtype = xp.result_type(state.log_begin.dtype, log_emission_chunk.dtype)

    def step(carry: Any, e: Array) -> tuple[Any, Any]:
        begin, left = carry
        left, after, taken = segments.advance_left(backend, left, begin, e, state.log_duration, state.log_transition)
        return (after - taken, left - taken[..., None]), look(left)

    size = log_emission_chunk.shape[-2]
    shapes = (*batch, num_states), (*batch, *state.log_left.shape[-2:]), (*batch, size, num_states)
    given = zip((state.log_begin, state.log_left, log_emission_chunk), shapes, strict=True)
    begin, left, emission = (xp.astype(xp.broadcast_to(x, shape), dtype) for x, shape in given)
    centred = xp.moveaxis(centre(backend, emission)[0], -2, 0)
    (begin, left), rows = backend.scan(step, (begin, left), centred)
    return state._replace(log_begin=begin, log_left=left), rows


def semi_markov_remaining(state: SemiMarkovStreamState) -> Array:
    """log p(z_t, and that its segment lasts r more steps, given x_0..t), at the last step of a stream.

    Returns:
        (..., K, D_max), nats, r = 0..D_max - 1; -inf before the first step, and where the stream is impossible.

    Cost: O(K D_max).
    """
    return log_normalize(backend_of(state=state.log_left), state.log_left, axis=(-2, -1))


def semi_markov_forward(
    log_initial: Array,
    log_transition: Any,
    log_duration: Array,
    log_emission: Array,
    *,
    lengths: Any = None,
    censored: bool = True,
    kernel: str = "auto",
) -> Forward:
    """Filtered log p(z_t given x_0..t), and log p(x).

    Args: as `semi_markov_log_likelihood`; `censored` is of the log-likelihood, while a filter knows no end.

    Returns:
        `Forward(log_filtered (..., T, K), log_likelihood (...))`; -inf in the padding and after a break.

    Raises: as `semi_markov_log_likelihood`.

    Cost: O(B T K (D_max + K)) time, by array code, and a pass for the log-likelihood.

    Example:
        >>> import torch, hmm_functional as hf
        >>> initial, transition = torch.tensor([1.0, 0.0]).log(), torch.tensor([[0.0, 1.0], [1.0, 0.0]]).log()
        >>> duration = torch.tensor([[0.5, 0.5], [1.0, 0.0]]).log()
        >>> hf.semi_markov_forward(initial, transition, duration, torch.zeros(2, 2)).log_filtered.exp()
        tensor([[1.0000, 0.0000],
                [0.5000, 0.5000]])
    """
    value = semi_markov_log_likelihood(
        log_initial, log_transition, log_duration, log_emission, lengths=lengths, censored=censored, kernel=kernel
    )
    state = semi_markov_stream_init(log_initial, log_transition, log_duration)
    _, found = semi_markov_stream_step(state, log_emission)
    rows = found.log_filtered
    if lengths is not None:
        backend = backend_of(log_emission=log_emission)
        ends = backend.asarray(lengths, like=rows)
        is_valid = backend.arange(rows.shape[-2], like=ends) < ends[..., None]
        rows = backend.xp.where(is_valid[..., None], rows, -inf)
    return Forward(rows, value)
