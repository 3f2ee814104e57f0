"""What the whole sequence, or the steps so far and a few more, say about the states."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Any

from ._check import need_count
from ._types import ForwardBackward
from .arrays import chain_arrays, fused_values
from .backend import Array
from .chain import Chain, chain_of
from .gradient import STATISTICS
from .kernels.registry import MessageCall
from .kernels.repeat import repeats
from .likelihood import backward_pass, forward_pass, masked
from .numerics import centre, log_normalize
from .recursion import chain_messages
from .semiring import LOG
from .structure import WORKSPACE
from .transition import own_shape


@repeats
def forward_backward(
    log_initial: Array,
    log_transition: Any,
    log_emission: Array,
    *,
    lengths: Any = None,
    log_final: Array | None = None,
    kernel: str = "auto",
) -> ForwardBackward:
    """Smoothed posteriors log p(z_t given x), and log p(x).

    Args: as `log_likelihood`.

    Returns:
        `ForwardBackward(log_posteriors (..., T, K), log_likelihood (...))`, normalised; padding, and all steps of
        an impossible sequence, are -inf.

    Raises: as `log_likelihood`.

    Gradient: reverse and forward mode in the log domain, right also where a posterior underflows, O(B T K)
    memory; the second derivative of `log_posteriors` raises in torch.

    Cost: two passes, O(B T K^2) time for a dense transition, O(B T K) memory.

    References: Rabiner 1989, equations 26 and 27.

    Example:
        >>> import torch, hmm_functional as hf
        >>> initial, transition = torch.tensor([0.5, 0.5]).log(), torch.tensor([[0.7, 0.3], [0.3, 0.7]]).log()
        >>> emission = torch.tensor([[0.9, 0.2], [0.9, 0.2]]).log()
        >>> hf.forward_backward(initial, transition, emission).log_posteriors.exp()
        tensor([[0.8834, 0.1166],
                [0.8834, 0.1166]])
    """
    chain = chain_of(log_initial, log_transition, log_emission, lengths=lengths, log_final=log_final)
    if (whole := fused_values(chain, kernel)) is not None:
        found = whole[0].smooth(whole[1], chain.final)
        return ForwardBackward(*(chain.unflatten(x) for x in found))
    likelihood, messages = forward_pass(chain, kernel, has_messages=True)
    joint = messages + backward_pass(chain, kernel)
    posteriors = masked(chain, log_normalize(chain.backend, joint))
    return ForwardBackward(chain.unflatten(posteriors), chain.unflatten(likelihood))


def posterior_decode(
    log_initial: Array,
    log_transition: Any,
    log_emission: Array,
    *,
    lengths: Any = None,
    log_final: Array | None = None,
    kernel: str = "auto",
) -> Array:
    """The state of highest posterior at each step, each step for itself: the path may be impossible as a whole.

    Args: as `log_likelihood`.

    Returns:
        (..., T) int64 (int32 in JAX without x64); ties go to the lowest state; -1 in the padding and where a
        sequence is impossible or holds NaN.

    Raises: as `log_likelihood`.

    Cost: as `forward_backward`.

    Example:
        >>> import torch, hmm_functional as hf
        >>> hf.posterior_decode(torch.zeros(2), torch.zeros(2, 2), torch.tensor([[0.0, 1.0], [2.0, 0.0]]))
        tensor([1, 0])
    """
    posteriors, likelihood = forward_backward(
        log_initial, log_transition, log_emission, lengths=lengths, log_final=log_final, kernel=kernel
    )
    chain = chain_of(log_initial, log_transition, log_emission, lengths=lengths, log_final=log_final)
    xp = chain.backend.xp
    states = xp.astype(xp.argmax(posteriors, axis=-1), chain.backend.index_dtype())
    is_state = (likelihood > -inf)[..., None] & chain.unflatten(chain.is_valid())
    return xp.where(is_state, states, -1)


def pair_posteriors(
    log_initial: Array,
    log_transition: Any,
    log_emission: Array,
    *,
    lengths: Any = None,
    log_final: Array | None = None,
    kernel: str = "auto",
) -> Array:
    """log p(z_t, z_{t+1} given x), for every pair of neighbouring steps.

    Args: as `log_likelihood`.

    Returns:
        (..., T-1, K, K), [from, to], normalised over both, dense for every structure; -inf from a sequence's last
        step on and for an impossible one.

    Raises: as `log_likelihood`.

    Gradient: as `forward_backward`.

    Cost: O(B T K^2) time and memory, which is the size of the result; `expected_transitions` needs no such array.

    References: Rabiner 1989, equation 37.

    Example:
        >>> import torch, hmm_functional as hf
        >>> hf.pair_posteriors(torch.zeros(2), torch.zeros(2, 2), torch.zeros(2, 2)).exp()
        tensor([[[0.2500, 0.2500],
                 [0.2500, 0.2500]]])
    """
    chain = chain_of(log_initial, log_transition, log_emission, lengths=lengths, log_final=log_final)
    backend, xp = chain.backend, chain.backend.xp
    _, messages = forward_pass(chain, kernel, has_messages=True)
    ahead = centre(backend, masked_zero(chain, chain.emission))[0] + backward_pass(chain, kernel)
    matrix = chain.structure.dense(backend, chain.weights)
    pairs = messages[:, :-1, :, None] + matrix + ahead[:, 1:, None, :]
    pairs = log_normalize(backend, pairs, axis=(-2, -1))
    if chain.is_ragged:
        pairs = xp.where(chain.is_valid()[:, 1:, None, None], pairs, -inf)
    return chain.unflatten(pairs)


def expected_transitions(
    log_initial: Array,
    log_transition: Any,
    log_emission: Array,
    *,
    lengths: Any = None,
    log_final: Array | None = None,
    kernel: str = "auto",
) -> Any:
    """Expected number of transitions between each two states over the sequence, given x.

    Args: as `log_likelihood`.

    Returns:
        (..., K, K), [from, to]; for a structure the shape of its own weights, (..., O, K) or (..., E), and for
        `LowRank` a pair (..., K, R), (..., R, K). Sums to length - 1; 0 for an impossible sequence.

    Raises: as `log_likelihood`.

    Gradient: reverse and forward mode, by the expectation semiring.

    Cost: two passes and a sum over pairs, O(B T K^2) time; no T x K x K array is made.

    References: Rabiner 1989, equation 40b's numerator.

    Example:
        >>> import torch, hmm_functional as hf
        >>> hf.expected_transitions(torch.zeros(2), torch.zeros(2, 2), torch.zeros(5, 2))
        tensor([[1., 1.],
                [1., 1.]])
    """
    chain = chain_of(log_initial, log_transition, log_emission, lengths=lengths, log_final=log_final)
    backend, xp = chain.backend, chain.backend.xp
    size = chain.emission.shape[0]
    likelihood, messages = forward_pass(chain, kernel, has_messages=True)
    chain = replace(chain, weights=tuple(xp.broadcast_to(w, (size, *w.shape[1:])) for w in chain.weights))
    arrays = chain_arrays(chain, kernel)
    ones = backend.full((size,), 1.0, like=chain.emission)
    found = backend.call(STATISTICS, arrays.spec.encode(), [*arrays.theta, ones, *arrays.constants, messages])
    is_nan = xp.isnan(likelihood)
    totals = (xp.sum(c, axis=1) for c in found[1:-2])
    marked = (xp.where(xp.reshape(is_nan, (-1, *[1] * (c.ndim - 1))), xp.nan, c) for c in totals)
    counts = tuple(chain.unflatten(c) for c in marked)
    return own_shape(backend, log_transition, counts)


def smooth_fixed_lag(
    log_initial: Array,
    log_transition: Any,
    log_emission: Array,
    *,
    lag: int,
    lengths: Any = None,
    log_final: Array | None = None,
    kernel: str = "auto",
) -> Array:
    """log p(z_t given x_0..t+lag): filtered posteriors with `lag` steps of look-ahead.

    Args: as `log_likelihood`; `log_final` is no part of the result.
        lag: steps of look-ahead, 0 or more; cut at each sequence's end.

    Returns:
        (..., T, K), normalised; padding is -inf, and so is an impossible sequence from the first step whose
        window cannot be.

    Raises: as `log_likelihood`.

    Gradient: by the array library, through `lag` rounds: O(B T K^2 lag) memory while recording.

    Cost: a forward pass, and a window of `lag` steps for each step, O(B T K^2 lag) time, O(B T K) memory.

    Example:
        >>> import torch, hmm_functional as hf
        >>> initial, transition = torch.tensor([0.5, 0.5]).log(), torch.tensor([[0.7, 0.3], [0.3, 0.7]]).log()
        >>> emission = torch.tensor([[0.9, 0.2], [0.9, 0.2]]).log()
        >>> hf.smooth_fixed_lag(initial, transition, emission, lag=1)[0].exp()
        tensor([0.8834, 0.1166])
    """
    lag = need_count("lag", lag, 0)
    chain = chain_of(log_initial, log_transition, log_emission, lengths=lengths, log_final=log_final)
    backend = chain.backend
    _, messages = forward_pass(chain, kernel, has_messages=True)
    emission, _ = centre(backend, masked_zero(chain, chain.emission))
    ahead = look_ahead(chain, emission, chain.num_steps, lag, kernel)
    return chain.unflatten(masked(chain, log_normalize(backend, messages + ahead)))


def look_ahead(chain: Chain, emission: Array, count: int, lag: int, kernel: str = "auto") -> Array:
    """What steps t+1..t+lag say about step t, for t = 0..count-1: (B, count, K), up to a scale a step.

    Compiled code takes the windows for a batch of short sequences. Elsewhere all of them take their steps together, from
    the far end to the near one. A window's steps past the end of its sequence say nothing.
    """
    lag = min(lag, chain.num_steps - 1)
    is_shared = all(tuple(w.shape[:2]) == (1, 1) for w in chain.weights)
    if lag and is_shared and fused_values(replace(chain, emission=emission), kernel) is not None:
        return _windows(chain, emission, count, lag, kernel)
    return _rounds(chain, emission, count, lag)


def _windows(chain: Chain, emission: Array, count: int, lag: int, kernel: str) -> Array:
    """`look_ahead` by reversed messages of each window, which begins with an empty step."""
    backend, xp = chain.backend, chain.backend.xp
    size, num_steps, num_states = emission.shape
    start = backend.full((1, num_states), 0.0, like=emission)
    emission = xp.concat([emission, xp.zeros_like(emission[:, :1, :])], axis=1)
    steps = backend.arange(lag + 1, like=chain.lengths)
    width = max(1, WORKSPACE // (8 * size * (lag + 1) * num_states))
    parts = []
    for first in range(0, count, width):
        at = first + backend.arange(min(width, count - first), like=chain.lengths)
        place = xp.where(steps == 0, num_steps, xp.clip(at[:, None] + steps, max=num_steps))
        rows = xp.take(emission, xp.reshape(place, (-1,)), axis=1)
        ends = xp.clip(chain.lengths[:, None] - at, min=1, max=lag + 1)
        found = chain_messages(
            MessageCall(
                backend=backend,
                semiring=LOG,
                structure=chain.structure,
                weights=tuple((w,) for w in chain.weights),
                initial=(start,),
                emission=(xp.reshape(rows, (-1, lag + 1, num_states)),),
                lengths=xp.reshape(ends, (-1,)) if chain.is_ragged or num_steps < count + lag else None,
                reverse=True,
                include_emission=False,
                last_only=True,
            ),
            kernel,
        )
        parts.append(xp.reshape(found.last[0], (size, place.shape[0], num_states)))
    return parts[0] if len(parts) == 1 else xp.concat(parts, axis=1)


def _rounds(chain: Chain, emission: Array, count: int, lag: int) -> Array:
    backend, xp = chain.backend, chain.backend.xp
    ahead = xp.zeros_like(emission[:, :count, :])
    if lag == 0:
        return ahead
    structure, weights = chain.structure.transposed(backend, tuple((w,) for w in chain.weights))
    weights = structure.prepare(backend, LOG, weights, 0)
    is_constant = chain.weights[0].shape[1] == 1
    shifts = backend.arange(lag, like=chain.lengths)
    steps = (lag - shifts)[:, None] + backend.arange(count, like=chain.lengths)[None, :]

    def step(ahead: Array, place: Array) -> tuple[Array, None]:
        near = xp.clip(place, max=chain.num_steps - 1)
        (message,), _ = LOG.normalise(backend, (xp.take(emission, near, axis=1) + ahead,))
        slots = weights
        if not is_constant:
            slots = tuple(tuple(xp.take(w, near - 1, axis=1) for w in part) for part in weights)
        (moved,) = structure.contract(backend, LOG, (message,), slots)
        is_inside = place[None, :] < chain.lengths[:, None]
        return xp.where(is_inside[..., None], moved, ahead), None

    return backend.scan(step, ahead, steps)[0]


def masked_zero(chain: Chain, x: Array) -> Array:
    """(B, T, K) with 0 in the padding."""
    if not chain.is_ragged:
        return x
    return chain.backend.xp.where(chain.is_valid()[..., None], x, 0.0)
