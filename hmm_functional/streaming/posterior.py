"""Filtering and fixed-lag smoothing of a stream, a chunk at a time: a pure state machine.

However a sequence is cut into chunks, the rows that come out are those of `forward` (lag 0) or of
`smooth_fixed_lag`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .._check import broadcast_batch, need_count, need_floating, need_shape
from ..backend import Array, Backend, backend_of
from ..chain import Chain, chain_of
from ..likelihood import forward_pass
from ..numerics import centre, log_normalize
from ..posterior import look_ahead
from ..semiring import LOG


class StreamState(NamedTuple):
    """All that a stream knows; arrays, besides `lag`, which can be saved, moved between devices and batched."""

    log_transition: Any
    """As given."""
    log_predicted: Array
    """(..., K): log p(z_t given x_0..t-1) of the next step, up to a constant."""
    log_filtered: Array
    """(..., P, K): of the P steps that wait for their look-ahead."""
    log_emission: Array
    """(..., P, K): their emissions. P, at most `lag`, is known to a tracer."""
    lag: int
    """Steps of look-ahead, known to a tracer."""


def stream_init(
    log_initial: Array,
    log_transition: Any,
    *,
    lag: int = 0,
    batch_shape: tuple[int, ...] = (),
    like: Array | None = None,
) -> StreamState:
    """The state of a stream before its first step.

    Args:
        log_initial: (..., K), nats.
        log_transition: constant in time: (K, K), (..., 1, K, K) or a structure.
        lag: steps of look-ahead: 0 filters, L smooths with the L steps that follow.
        batch_shape: axes of parallel streams, before those of the parameters.
        like: an array whose dtype and device the state takes; default those of `log_initial`.

    Returns:
        StreamState, a pytree in torch and JAX.

    Raises:
        TypeError, ValueError: as `log_likelihood`; ValueError for a time-varying transition.

    Example:
        >>> import torch, hmm_functional as hf
        >>> state = hf.stream_init(torch.zeros(2), torch.zeros(2, 2), lag=1)
        >>> state, rows = hf.stream_step(state, torch.tensor([[0.0, 1.0], [2.0, 0.0]]))
        >>> rows.shape, hf.stream_flush(state).shape
        (torch.Size([1, 2]), torch.Size([1, 2]))
    """
    lag = need_count("lag", lag, 0)
    backend, predicted = start_of(log_initial, log_transition, batch_shape, like)
    pending = backend.full((*predicted.shape[:-1], 0, predicted.shape[-1]), 0.0, like=predicted)
    backend.register_pytree(StreamState, lambda s: (tuple(s[:-1]), s.lag), lambda lag, s: StreamState._make((*s, lag)))
    return StreamState(log_transition, predicted, pending, pending, lag)


def start_of(
    log_initial: Array, log_transition: Any, batch_shape: tuple[int, ...], like: Array | None
) -> tuple[Backend, Array]:
    """log_initial (*batch_shape, ..., K) of checked streams, and its library."""
    chain = chain_of(log_initial, log_transition, None, num_steps=1)
    backend, xp = chain.backend, chain.backend.xp
    if chain.weights[0].shape[1] != 1:
        raise ValueError("log_transition: expected one constant in time for a stream, got a time axis")
    initial = xp.reshape(
        xp.broadcast_to(chain.initial, (chain.lengths.shape[0], chain.num_states)),
        (*chain.batch_shape, chain.num_states),
    )
    if like is not None:
        backend_of(log_initial=log_initial, like=like)
        initial = backend.asarray(xp.astype(initial, like.dtype), like=like)
    shape = (*(need_count("batch_shape", n, 0) for n in batch_shape), *chain.batch_shape)
    return backend, xp.broadcast_to(initial, (*shape, chain.num_states))


def need_chunk(message: Array, log_emission_chunk: Array) -> tuple[Backend, tuple[int, ...], int]:
    """The library, the batch axes and the steps of a chunk for a state's message (..., K), after a check of both."""
    backend, num_states = backend_of(state=message, log_emission_chunk=log_emission_chunk), message.shape[-1]
    need_shape("log_emission_chunk", log_emission_chunk.shape, (None, num_states), f"(..., n, K) with K = {num_states}")
    need_floating("log_emission_chunk", backend.xp, log_emission_chunk)
    batches = {"log_emission_chunk": log_emission_chunk.shape[:-2], "state": message.shape[:-1]}
    return backend, broadcast_batch(batches), int(log_emission_chunk.shape[-2])


def stream_step(state: StreamState, log_emission_chunk: Array) -> tuple[StreamState, Array]:
    """Take the next steps of a stream; give the posteriors of those that became final.

    Args:
        state: from `stream_init` or the step before.
        log_emission_chunk: (..., n, K), nats, any n.

    Returns:
        `(state, log_posteriors (..., m, K))`: log p(z_t given x_0..t+lag), normalised, of the m steps that now have
        their look-ahead, in order. -inf where the stream so far is impossible.

    Raises:
        TypeError, ValueError: as `log_likelihood`.

    Cost: O(n K^2 (1 + lag)) time, whatever has gone before; compiled code takes the look-ahead of all steps at once.

    Example:
        >>> import torch, hmm_functional as hf
        >>> state = hf.stream_init(torch.zeros(2), torch.zeros(2, 2))
        >>> state, rows = hf.stream_step(state, torch.zeros(3, 2))
        >>> rows.exp()
        tensor([[0.5000, 0.5000],
                [0.5000, 0.5000],
                [0.5000, 0.5000]])
    """
    backend, _, size = need_chunk(state.log_predicted, log_emission_chunk)
    xp = backend.xp
    if size == 0:
        return state, state.log_filtered[..., :0, :]
    chain = chain_of(state.log_predicted, state.log_transition, log_emission_chunk)
    _, messages = forward_pass(chain, "auto", has_messages=True)
    prepared = chain.structure.prepare(backend, LOG, tuple((w[:, 0, ...],) for w in chain.weights), 0)
    (predicted,) = chain.structure.contract(backend, LOG, (messages[:, -1, :],), prepared)
    predicted = chain.unflatten(log_normalize(backend, predicted))
    filtered = chain.unflatten(log_normalize(backend, messages))
    emission = chain.unflatten(centre(backend, chain.emission)[0])
    batch = tuple(filtered.shape[:-2])
    filtered = xp.concat([batched(xp, state.log_filtered, batch, 2), filtered], axis=-2)
    emission = xp.concat([batched(xp, state.log_emission, batch, 2), emission], axis=-2)
    count = max(filtered.shape[-2] - state.lag, 0)
    rows = _smooth(state, filtered, emission, count)
    kept = (filtered[..., count:, :], emission[..., count:, :])
    return StreamState(state.log_transition, predicted, *kept, state.lag), rows


def stream_flush(state: StreamState) -> Array:
    """The posteriors of the steps still waiting, their look-ahead cut at the stream's end.

    Args:
        state: from `stream_step`.

    Returns:
        (..., P, K), P at most the lag; the state may go on taking steps afterwards, as if not asked.

    Raises:
        TypeError: the state's arrays belong to no known library.

    Cost: O(P K^2 lag) time.

    Example:
        >>> import torch, hmm_functional as hf
        >>> hf.stream_flush(hf.stream_init(torch.zeros(2), torch.zeros(2, 2), lag=3)).shape
        torch.Size([0, 2])
    """
    return _smooth(state, state.log_filtered, state.log_emission, state.log_filtered.shape[-2])


def _smooth(state: StreamState, filtered: Array, emission: Array, count: int) -> Array:
    """Posteriors of the first `count` of the steps held, given all of those within the lag."""
    if count == 0 or state.lag == 0:
        return filtered[..., :count, :]
    chain: Chain = chain_of(filtered[..., 0, :], state.log_transition, emission)
    ahead = chain.unflatten(look_ahead(chain, chain.emission, count, state.lag))
    return log_normalize(chain.backend, filtered[..., :count, :] + ahead)


def batched(xp: Any, x: Array, batch: tuple[int, ...], rank: int) -> Array:
    """An array with `rank` axes of its own, for a batch of streams."""
    return xp.broadcast_to(x, (*batch, *x.shape[x.ndim - rank :]))
