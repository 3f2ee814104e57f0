"""Fixed-lag smoothing of semi-Markov streams, a chunk at a time.

A filter knows, of each step, how many more its segment will last; the look-ahead weighs each of these numbers.
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

from .. import segments
from .._check import need_count
from ..backend import Array, Backend, backend_of
from ..numerics import centre, log_normalize, log_tail, logsumexp
from ..structure import WORKSPACE
from .posterior import batched, need_chunk
from .semi_markov_filter import SemiMarkovStreamState, semi_markov_stream_init, take_steps


class SemiMarkovSmoothState(NamedTuple):
    """All that a stream knows; arrays, besides `lag`, which can be saved, moved between devices and batched."""

    filtering: SemiMarkovStreamState
    log_remaining: Array
    """(..., P, K, D_max): of the P steps that wait, log p(z_t, and that it lasts r more steps, given x_0..t)."""
    log_emission: Array
    """(..., P, K): their emissions, up to a constant a step. P, at most `lag`, is known to a tracer."""
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
    backend, left = backend_of(log_initial=log_initial), filtering.log_left
    backend.register_pytree(
        SemiMarkovSmoothState,
        lambda s: (tuple(s[:-1]), s.lag),
        lambda lag, s: SemiMarkovSmoothState._make((*s, lag)),
    )
    remaining = backend.full((*left.shape[:-2], 0, *left.shape[-2:]), 0.0, like=left)
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

    Cost: O(n K (D_max + lag (min(D_max, lag) + K))) time, whatever has gone before; compiled code takes
    all windows for a batch of short sequences.
    """
    backend, batch, size = need_chunk(state.filtering.log_begin, log_emission_chunk)
    xp = backend.xp
    if size == 0:
        return state, state.log_emission[..., :0, :]
    filtering, left = take_steps(state.filtering, log_emission_chunk, batch, lambda left: left)
    left = xp.moveaxis(left, 0, -3)
    emission = xp.astype(xp.broadcast_to(log_emission_chunk, left.shape[:-1]), left.dtype)
    # less what each step took out of the filter, so that what is summed ahead stays as small as what it meets
    emission = centre(backend, emission)[0] - segments.largest(backend, left)
    remaining = log_normalize(backend, left, axis=(-2, -1))
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
    """Posteriors of the first `count` of the steps held, given all of those within the lag."""
    lag = min(lag, max(emission.shape[-2] - 1, 0))
    known = remaining[..., :count, :, :]
    if count and lag:
        # a window ends within every segment that lasts as long, however long
        width = min(known.shape[-1], lag + 1)
        longer = logsumexp(backend, known[..., width - 1 :])[..., None]
        known = backend.xp.concat([known[..., : width - 1], longer], axis=-1)
        known = known + backend.xp.matrix_transpose(_look_ahead(backend, model, emission, count, lag)[..., :width, :])
    return log_normalize(backend, logsumexp(backend, known))


def _look_ahead(backend: Backend, model: SemiMarkovStreamState, emission: Array, count: int, lag: int) -> Array:
    """What the rest of its window makes of a segment that lasts r more steps, (..., count, lag + 1, K), of each step.

    Windows are a batch of short sequences, each of which begins with an empty step: the sum of their emissions until a
    segment ends, and what follows. Nothing follows the end of a window, and the segment may run on.
    """
    xp, (*batch, num_steps, num_states), size = backend.xp, emission.shape, prod(emission.shape[:-2])
    emission = xp.reshape(emission, (size, num_steps, num_states))
    emission = xp.concat([emission, xp.zeros_like(emission[:, :1, :])], axis=1)
    laws = (model.log_transition, model.log_duration, log_tail(backend, model.log_duration))
    longest = min(model.log_duration.shape[-1], lag + 1)
    laws = (laws[0], *(x[..., :longest] for x in laws[1:]))
    steps = backend.arange(lag + 1, like=emission)
    cells = 8 * size * num_states * (lag + 1 + num_states + longest)
    width = -(-count // min(count, max(1, -(-count * cells // WORKSPACE))))

    def piece(_: Any, at: Array) -> tuple[Any, Array]:
        place = xp.where(steps == 0, num_steps, xp.clip(at[:, None] + steps, max=num_steps))
        rows = xp.reshape(xp.take(emission, xp.reshape(place, (-1,)), axis=1), (-1, lag + 1, num_states))
        lengths = xp.clip(num_steps - at, min=1, max=lag + 1)
        lengths = xp.reshape(xp.broadcast_to(lengths, (size, width)), (-1,))
        move, duration, tail = (_of_windows(xp, x, batch, width) for x in laws)
        after = segments.backward_pass(backend, move, duration, tail, rows, lengths, "auto")
        is_followed = steps < lengths[:, None] - 1
        ahead = xp.cumulative_sum(rows, axis=1) + xp.where(is_followed[..., None], after, 0.0)
        return None, xp.reshape(ahead, (size, width, lag + 1, num_states))

    starts = backend.arange(-(-count // width) * width, like=emission)
    _, found = backend.scan(piece, None, xp.reshape(starts, (-1, width)))
    found = xp.reshape(xp.moveaxis(found, 0, 1), (*batch, starts.shape[0], lag + 1, num_states))
    return found[..., :count, :, :]


def _of_windows(xp: Any, x: Array, batch: list[int], width: int) -> Array:
    """Parameters (..., K, any) of `width` windows of each stream: one for all, or one each."""
    own = x.shape[-2:]
    if x.ndim == 2:
        return x[None, ...]
    x = xp.broadcast_to(xp.broadcast_to(x, (*batch, *own))[..., None, :, :], (*batch, width, *own))
    return xp.reshape(x, (-1, *own))
