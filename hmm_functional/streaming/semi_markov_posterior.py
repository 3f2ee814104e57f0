"""Fixed-lag smoothing of semi-Markov streams, a chunk at a time.

A filter knows, of each step, how many more its segment will last; the look-ahead weighs each of these numbers.
"""

from __future__ import annotations

from math import inf
from typing import Any, NamedTuple

from .._check import need_count
from ..backend import Array, Backend, backend_of
from ..numerics import centre, log_normalize, log_tail, logsumexp
from .posterior import batched, need_chunk
from .semi_markov_filter import (
    SemiMarkovStreamState,
    remaining_of,
    semi_markov_stream_init,
    take_steps,
)


class SemiMarkovSmoothState(NamedTuple):
    """All that a stream knows; arrays, besides `lag`, which can be saved, moved between devices and batched."""

    filtering: SemiMarkovStreamState
    log_remaining: Array
    """(..., P, K, D_max): of the P steps that wait, log p(z_t, and that it lasts r more steps, given x_0..t)."""
    log_emission: Array
    """(..., P, K): their emissions. P, at most `lag`, is known to a tracer."""
    lag: int
    """Steps of look-ahead, known to a tracer."""


def semi_markov_smooth_stream_init(
    log_initial: Array, log_transition: Any, log_duration: Array, *, lag: int, batch_shape: tuple[int, ...] = ()
) -> SemiMarkovSmoothState:
    """The state of a stream before its first step.

    Args:
        log_initial, log_transition, log_duration: as `semi_markov_log_likelihood`.
        lag: steps of look-ahead, 0 or more.
        batch_shape: axes of parallel streams, before those of the parameters.

    Returns:
        `SemiMarkovSmoothState`, a pytree in torch and JAX.

    Raises:
        TypeError, ValueError: as `semi_markov_log_likelihood`.

    Example:
        >>> import torch, hmm_functional as hf
        >>> initial, transition = torch.tensor([1.0, 0.0]).log(), torch.tensor([[0.0, 1.0], [1.0, 0.0]]).log()
        >>> duration = torch.tensor([[0.5, 0.5], [1.0, 0.0]]).log()
        >>> state = hf.semi_markov_smooth_stream_init(initial, transition, duration, lag=1)
        >>> state, rows = hf.semi_markov_smooth_stream_step(state, torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
        >>> rows.exp(), hf.semi_markov_smooth_stream_flush(state).exp()
        (tensor([[1., 0.]]), tensor([[0.7311, 0.2689]]))
    """
    lag = need_count("lag", lag, 0)
    filtering = semi_markov_stream_init(log_initial, log_transition, log_duration, batch_shape=batch_shape)
    backend, open_ = backend_of(log_initial=log_initial), filtering.log_open
    backend.register_pytree(
        SemiMarkovSmoothState,
        lambda s: (tuple(s[:-1]), s.lag),
        lambda lag, s: SemiMarkovSmoothState._make((*s, lag)),
    )
    remaining = backend.full((*open_.shape[:-2], 0, *open_.shape[-2:]), 0.0, like=open_)
    return SemiMarkovSmoothState(filtering, remaining, remaining[..., 0], lag)


def semi_markov_smooth_stream_step(
    state: SemiMarkovSmoothState, log_emission_chunk: Array
) -> tuple[SemiMarkovSmoothState, Array]:
    """Take the next steps of a stream; give the posteriors of those that became final.

    Args:
        state: from `semi_markov_smooth_stream_init` or the step before.
        log_emission_chunk: (..., n, K), nats, any n.

    Returns:
        `(state, log_posteriors (..., m, K))`: log p(z_t given x_0..t+lag), normalised, of the m steps that now have
        their look-ahead; the segment at the end of it may run on. -inf where the stream so far is impossible.

    Raises:
        TypeError, ValueError: as `semi_markov_log_likelihood`.

    Cost: O(n K (D_max^2 + lag (min(D_max, lag) + K))) time, whatever has gone before.
    """
    backend, batch, size = need_chunk(state.filtering.log_begin, log_emission_chunk)
    xp = backend.xp
    if size == 0:
        return state, state.log_emission[..., :0, :]
    filtering, open_ = take_steps(state.filtering, log_emission_chunk, batch, lambda x: x)
    remaining = remaining_of(backend, xp.moveaxis(open_, 0, -3), filtering.log_duration[..., None, :, :])
    emission = centre(backend, xp.astype(xp.broadcast_to(log_emission_chunk, remaining.shape[:-1]), remaining.dtype))[0]
    remaining = xp.concat([batched(xp, state.log_remaining, batch, 3), remaining], axis=-3)
    emission = xp.concat([batched(xp, state.log_emission, batch, 2), emission], axis=-2)
    count = max(emission.shape[-2] - state.lag, 0)
    rows = _smooth(backend, filtering, remaining, emission, count, state.lag)
    return SemiMarkovSmoothState(filtering, remaining[..., count:, :, :], emission[..., count:, :], state.lag), rows


def semi_markov_smooth_stream_flush(state: SemiMarkovSmoothState) -> Array:
    """The posteriors of the steps still waiting, their look-ahead cut at the stream's end.

    Args:
        state: from `semi_markov_smooth_stream_step`.

    Returns:
        (..., P, K), P at most the lag; the state may go on taking steps afterwards, as if not asked.

    Raises:
        TypeError: the state's arrays belong to no known library.

    Cost: O(P K lag (min(D_max, lag) + K)) time.
    """
    backend = backend_of(state=state.log_emission)
    count = state.log_emission.shape[-2]
    return _smooth(backend, state.filtering, state.log_remaining, state.log_emission, count, state.lag)


def _smooth(
    backend: Backend, model: SemiMarkovStreamState, remaining: Array, emission: Array, count: int, lag: int
) -> Array:
    """Posteriors of the first `count` of the steps held, given all of those within the lag.

    All windows go back together, from their far ends: V(k) weighs what a segment of state k that begins at a place and
    all after it make of the window's rest, and `later` what follows the d steps from there, if they are of one segment.
    """
    xp, num_steps = backend.xp, emission.shape[-2]
    lag = min(lag, max(num_steps - 1, 0))
    if count == 0 or lag == 0:
        return log_normalize(backend, logsumexp(backend, remaining[..., :count, :, :]))
    # [..., window, k, d]
    move, duration = (x[..., None, :, :] for x in (model.log_transition, model.log_duration))
    longest = duration.shape[-1]
    kept = min(longest, lag)
    tail = _ended(xp, log_tail(backend, duration))
    steps = backend.arange(count, like=emission)
    last = xp.zeros_like(emission[..., :count, :])
    empty = xp.full_like(last, -inf)
    later = xp.broadcast_to(empty[..., None], (*empty.shape, kept))
    inside = xp.zeros_like(steps)

    def step(carry: Any, shift: Array) -> tuple[Any, None]:
        before, place = carry, steps + shift
        value, later, last, inside = carry
        e = xp.take(emission, xp.clip(place, max=num_steps - 1), axis=-2)
        future = logsumexp(backend, value[..., None, :] + move)
        later = xp.concat([(e + future)[..., None], later[..., :-1] + e[..., None]], axis=-1)
        last, inside = last + e, inside + 1
        cut = _at(backend, tail, xp.clip(inside - 1, max=longest), last.shape)
        ends = xp.stack([logsumexp(backend, later + duration[..., :kept]), last + cut], axis=-1)
        value = logsumexp(backend, ends)
        top = backend.pivot(value, -1)
        top = xp.where(top == xp.finfo(top.dtype).min, 0.0, top)
        moved = (value - top, later - top[..., None], last - top, inside)
        is_inside = place < num_steps
        shapes = (is_inside[:, None], is_inside[:, None, None], is_inside[:, None], is_inside)
        found = (xp.where(ok, new, old) for ok, new, old in zip(shapes, moved, before, strict=True))
        return tuple(found), None

    shifts = lag - backend.arange(lag, like=emission)
    (value, later, last, inside), _ = backend.scan(step, (empty, later, last, inside), shifts)
    future = logsumexp(backend, value[..., None, :] + move)
    ahead = xp.concat([future[..., None], later], axis=-1)
    width = min(longest, lag + 1)
    known = remaining[..., :count, :, :]
    # the window ends within the segment
    cut = _at(backend, _ended(xp, log_tail(backend, known)), xp.clip(inside, max=longest), last.shape)
    weights = logsumexp(backend, known[..., :width] + ahead[..., :width])
    return log_normalize(backend, logsumexp(backend, xp.stack([weights, cut + last], axis=-1)))


def _ended(xp: Any, tail: Array) -> Array:
    """p(duration >= d) with none past the longest."""
    return xp.concat([tail, xp.full_like(tail[..., :1], -inf)], axis=-1)


def _at(backend: Backend, tail: Array, place: Array, shape: tuple[int, ...]) -> Array:
    """(..., windows, K) of a table (..., windows or 1, K, D + 1), at the place of each window."""
    table = backend.xp.broadcast_to(tail, (*shape, tail.shape[-1]))
    return backend.take_along(table, backend.xp.broadcast_to(place[:, None, None], (*shape, 1)), -1)[..., 0]
