"""Hidden semi-Markov models: states that last as long as a law of their own says."""

from __future__ import annotations

import operator
from functools import reduce
from math import inf, nan, prod
from typing import Any

from . import segments
from ._check import broadcast_batch, need_count, need_floating, need_shape
from ._types import SemiMarkovPath, SemiMarkovPosterior, SemiMarkovViterbi
from .backend import Array, Backend, Rng, backend_of
from .chain import Chain, chain_of
from .kernels.registry import check_name
from .numerics import accurate_sum, draw, log_tail
from .segments import Theta


def semi_markov_log_likelihood(
    log_initial: Array,
    log_transition: Any,
    log_duration: Array,
    log_emission: Array,
    *,
    lengths: Any = None,
    censored: bool = True,
    kernel: str = "auto",
) -> Array:
    """log p(x), summed over all state paths and all durations.

    The first segment starts at step 0. A segment of state k that lasts d steps weighs log_duration[k, d - 1] and its
    emissions; the next one's state is drawn from row k of the transition.

    Args:
        log_initial: (..., K), log p of the first segment's state.
        log_transition: (K, K), log p(next segment's state given this one's), [from, to]; (..., 1, K, K) for a batch of
            matrices; or a structured transition. Used as given: a finite diagonal means that segments of one state may
            follow each other.
        log_duration: (..., K, D_max), log p(duration = d + 1 given the state); D_max may exceed T.
        log_emission: (..., T, K), log p(x_t given z_t).
        lengths: (...) integers 1..T, valid steps of right-padded sequences.
        censored: whether the last segment may run past the end, which it does with log p(duration >= what was seen);
            False where it ends at the last step.
        kernel: "auto", "reference" or a kernel's name.

    Returns:
        (...), nats; -inf where no segmentation is possible.

    Raises:
        TypeError: not floating-point arrays of one library. ValueError: shapes, lengths, or a transition that varies
        in time.

    Gradient: reverse and forward mode, second order; O(B T K + B D_max K D_max) memory.

    Cost: O(B T K (D_max + K)) time; memory O(B K (T + D_max)). Nothing of size K^2 D_max or T D_max is made. Compiled
    code computes in float64; a sequence is one thread's.

    References: Yu 2010, section 2.2; Murphy 2002. Sums of emissions are added up from each segment's start, never
    differences of prefix sums, so that -inf and hugely negative scores are exact.

    Example:
        >>> import torch, hmm_functional as hf
        >>> initial, transition = torch.tensor([1.0, 0.0]).log(), torch.tensor([[0.0, 1.0], [1.0, 0.0]]).log()
        >>> duration = torch.tensor([[0.5, 0.5], [1.0, 0.0]]).log()
        >>> hf.semi_markov_log_likelihood(initial, transition, duration, torch.zeros(3, 2), censored=False).exp()
        tensor(0.7500)
    """
    chain, theta = _theta(log_initial, log_transition, log_duration, log_emission, lengths, censored, kernel)
    (found,) = chain.backend.call(segments.LIKELIHOOD, kernel, [*theta, chain.lengths])
    return chain.unflatten(found)


def semi_markov_forward_backward(
    log_initial: Array,
    log_transition: Any,
    log_duration: Array,
    log_emission: Array,
    *,
    lengths: Any = None,
    censored: bool = True,
    kernel: str = "auto",
) -> SemiMarkovPosterior:
    """Posteriors of states, and expected numbers of durations and transitions.

    Args: as `semi_markov_log_likelihood`.

    Returns:
        `SemiMarkovPosterior`: log_posteriors (..., T, K), log p(z_t given x), -inf in the padding; expected_durations
        (..., K, D_max), of segments that end within the sequence; expected_transitions (..., K, K);
        expected_ends (..., K, D_max), of the segments that reach the end, by the steps seen of them: with `censored`
        they are not complete, else they are counted among the expected_durations, too; log_likelihood (...).
        An impossible sequence has posteriors of -inf and counts of 0.

    Raises: as `semi_markov_log_likelihood`.

    Gradient: of every result, first order.

    Cost: three times that of `semi_markov_log_likelihood`.

    References: Yu 2010, section 2.2; every number is a sum of probabilities of segments, none a difference.

    Example:
        >>> import torch, hmm_functional as hf
        >>> initial, transition = torch.tensor([1.0, 0.0]).log(), torch.tensor([[0.0, 1.0], [1.0, 0.0]]).log()
        >>> duration = torch.tensor([[0.5, 0.5], [1.0, 0.0]]).log()
        >>> hf.semi_markov_forward_backward(initial, transition, duration, torch.zeros(2, 2)).log_posteriors.exp()
        tensor([[1.0000, 0.0000],
                [0.5000, 0.5000]])
    """
    chain, theta = _theta(log_initial, log_transition, log_duration, log_emission, lengths, censored, kernel)
    backend, xp = chain.backend, chain.backend.xp
    size = chain.lengths.shape[0]
    apart = [xp.broadcast_to(x, (size, *x.shape[1:])) for x in theta]
    ones = backend.full((size,), 1.0, like=theta.emission)
    found = backend.call(segments.STATISTICS, kernel, [*apart, ones, chain.lengths])
    _, moves, durations, ends, posteriors, value = found
    posteriors = xp.where(chain.is_valid()[..., None], backend.log(posteriors), -inf)
    # what a sequence is too short for is not expected
    missing = log_duration.shape[-1] - durations.shape[-1]
    if missing:
        pad = backend.full((size, chain.num_states, missing), 0.0, like=durations)
        durations, ends = (xp.concat([x, pad], axis=-1) for x in (durations, ends))
    found = (posteriors, durations if censored else durations + ends, moves, value, ends)
    return SemiMarkovPosterior(*(chain.unflatten(x) for x in found))


def semi_markov_completed(log_duration: Array, expected_ends: Array) -> Array:
    """Durations that segments which the end cut off are expected to have.

    Args:
        log_duration: (..., K, D_max), log p(duration = d + 1 given the state).
        expected_ends: (..., K, D_max), how many segments were seen to last d + 1 steps at least: those of
            `semi_markov_forward_backward`.

    Returns:
        (..., K, D_max): each segment's durations with their probabilities, given that it lasts as long as was seen.

    Cost: O(K D_max).

    Example:
        >>> import torch, hmm_functional as hf
        >>> hf.semi_markov_completed(torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.0, 1.0, 0.0]]))
        tensor([[0.0000, 0.5000, 0.5000]])
    """
    backend = backend_of(log_duration=log_duration, expected_ends=expected_ends)
    xp = backend.xp
    at_least = log_tail(backend, log_duration)
    share = backend.log(expected_ends) - xp.where(at_least == -inf, 0.0, at_least)
    reached = xp.flip(log_tail(backend, xp.flip(share, axis=-1)), axis=-1)
    return xp.exp(log_duration + reached)


def semi_markov_viterbi(
    log_initial: Array,
    log_transition: Any,
    log_duration: Array,
    log_emission: Array,
    *,
    lengths: Any = None,
    censored: bool = True,
    kernel: str = "auto",
) -> SemiMarkovViterbi:
    """The most probable segmentation.

    Args: as `semi_markov_log_likelihood`.

    Returns:
        `SemiMarkovViterbi(states (..., T) int64, is_start (..., T) bool, log_joint (...))`: the state of every step,
        where segments begin, and log p(x, segmentation). Padding, and impossible sequences, hold -1 and False; so do
        those with NaN, whose score is NaN. Of equals the shorter last segment wins, then the lower state, then the
        shorter segment before, and so on.

    Raises: as `semi_markov_log_likelihood`.

    Gradient: `log_joint`'s, along the segmentation.

    Cost: as `semi_markov_log_likelihood`.

    Example:
        >>> import torch, hmm_functional as hf
        >>> initial, transition = torch.tensor([1.0, 0.0]).log(), torch.tensor([[0.0, 1.0], [1.0, 0.0]]).log()
        >>> duration = torch.tensor([[0.1, 0.9], [0.9, 0.1]]).log()
        >>> hf.semi_markov_viterbi(initial, transition, duration, torch.zeros(3, 2), censored=False)
        SemiMarkovViterbi(states=tensor([0, 0, 1]), is_start=tensor([ True, False,  True]), log_joint=tensor(-0.2107))
    """
    chain, theta = _theta(log_initial, log_transition, log_duration, log_emission, lengths, censored, kernel)
    backend = chain.backend
    fixed = [backend.stop_gradient(x) for x in theta]
    found = backend.call(segments.PATHS, kernel, [*fixed, chain.lengths])
    states, is_start = found[0][:, 0, :], found[1][:, 0, :] > 0
    is_nan = _has_nan(chain, theta)[:, None]
    states, is_start = backend.xp.where(is_nan, -1, states), is_start & ~is_nan
    score = backend.xp.where(is_nan[:, 0], nan, _score(chain, theta, states, is_start))
    return SemiMarkovViterbi(chain.unflatten(states), chain.unflatten(is_start), chain.unflatten(score))


def semi_markov_sample_posterior(
    log_initial: Array,
    log_transition: Any,
    log_duration: Array,
    log_emission: Array,
    *,
    rng: Rng,
    num_samples: int = 1,
    lengths: Any = None,
    censored: bool = True,
    kernel: str = "auto",
) -> SemiMarkovPath:
    """Segmentations drawn from p(z given x).

    Args: as `semi_markov_log_likelihood`.
        rng: a `torch.Generator`, a JAX key or a `numpy.random.Generator`.
        num_samples: independent draws for each sequence.

    Returns:
        `SemiMarkovPath(states (num_samples, ..., T) int64, is_start bool)`; -1 and False in the padding and where a
        sequence is impossible.

    Raises: as `semi_markov_log_likelihood`; TypeError if `rng` is not the array library's own.

    Cost: a forward pass, then O(T (K + D_max)) a sample.

    Example:
        >>> import torch, hmm_functional as hf
        >>> initial, transition = torch.tensor([1.0, 0.0]).log(), torch.tensor([[0.0, 1.0], [1.0, 0.0]]).log()
        >>> duration = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).log()
        >>> scores = torch.zeros(4, 2)
        >>> hf.semi_markov_sample_posterior(initial, transition, duration, scores, rng=torch.Generator()).states
        tensor([[0, 0, 1, 0]])
    """
    num_samples = need_count("num_samples", num_samples, 1)
    chain, theta = _theta(log_initial, log_transition, log_duration, log_emission, lengths, censored, kernel)
    backend, xp = chain.backend, chain.backend.xp
    luck = backend.uniform(rng, (chain.num_steps, 2, num_samples, chain.lengths.shape[0]), theta.emission)
    fixed = [backend.stop_gradient(x) for x in theta]
    states, begins = backend.call(segments.PATHS, kernel, [*fixed, chain.lengths, xp.permute_dims(luck, (3, 0, 1, 2))])
    is_nan = _has_nan(chain, theta)[:, None, None]
    states, begins = xp.where(is_nan, -1, states), xp.where(is_nan, 0, begins)
    shape = (num_samples, *chain.batch_shape, chain.num_steps)
    states, begins = (xp.reshape(xp.permute_dims(x, (1, 0, 2)), shape) for x in (states, begins))
    return SemiMarkovPath(states, begins > 0)


def semi_markov_sample(
    log_initial: Array,
    log_transition: Array,
    log_duration: Array,
    *,
    num_steps: int,
    rng: Rng,
    batch_shape: tuple[int, ...] = (),
) -> SemiMarkovPath:
    """Segmentations drawn from the prior; the last segment is cut off after `num_steps`.

    Args:
        log_initial: (K,), nats.
        log_transition: (K, K).
        log_duration: (K, D_max); rows are normalised, as those of the others are.
        num_steps: T.
        rng: a `torch.Generator`, a JAX key or a `numpy.random.Generator`.
        batch_shape: axes of independent draws.

    Returns:
        `SemiMarkovPath(states (*batch_shape, T) int64, is_start bool)`; -1 from where a state has no way out,
        or the next one no duration.

    Raises:
        TypeError: `rng` is not the array library's own. ValueError: shapes.

    Cost: O(T (K + D_max)) a draw.

    Example:
        >>> import torch, hmm_functional as hf
        >>> initial, transition = torch.tensor([1.0, 0.0]).log(), torch.tensor([[0.0, 1.0], [1.0, 0.0]]).log()
        >>> duration = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]).log()
        >>> hf.semi_markov_sample(initial, transition, duration, num_steps=5, rng=torch.Generator()).states
        tensor([0, 0, 0, 1, 0])
    """
    num_steps = need_count("num_steps", num_steps, 1)
    shape = tuple(need_count("batch_shape", n, 0) for n in batch_shape)
    named = {"log_initial": log_initial, "log_transition": log_transition, "log_duration": log_duration}
    _need_arrays(named)
    backend = backend_of(**named)
    if log_initial.ndim != 1 or log_duration.ndim != 2:
        shapes = f"{tuple(log_initial.shape)} and {tuple(log_duration.shape)}"
        raise ValueError(f"log_initial, log_duration: expected shapes (K,) and (K, D_max), got {shapes}")
    xp, num_states = backend.xp, log_initial.shape[-1]
    for name, x, wanted in (
        ("log_initial", log_initial, (num_states,)),
        ("log_transition", log_transition, (num_states, num_states)),
        ("log_duration", log_duration, (num_states, log_duration.shape[-1])),
    ):
        need_floating(name, xp, x)
        if tuple(x.shape) != wanted:
            raise ValueError(f"{name}: expected shape {wanted}, got {tuple(x.shape)}")
    size = prod(shape)
    luck = backend.uniform(rng, (num_steps, 2, size), log_initial)

    def step(carry: Any, item: Any) -> tuple[Any, Any]:
        (state, left, is_first), (chance, duration_chance) = carry, (item[0, ...], item[1, ...])
        row = xp.take(log_transition, xp.where(state < 0, 0, state), axis=0)
        row = xp.where(is_first[:, None], log_initial, row)
        drawn = draw(backend, row, chance, None)
        is_stuck = (xp.max(row, axis=-1) == -inf) | ((state < 0) & ~is_first)
        is_new = left == 0
        state = xp.where(is_new, xp.where(is_stuck, -1, drawn), state)
        law = xp.take(log_duration, xp.where(state < 0, 0, state), axis=0)
        state = xp.where(is_new & (xp.max(law, axis=-1) == -inf), -1, state)
        left = xp.where(is_new, draw(backend, law, duration_chance, None) + 1, left) - 1
        return (state, left, is_first & False), (state, is_new & (state >= 0))

    zeros = xp.astype(backend.full((size,), 0.0, like=log_initial), backend.index_dtype())
    _, (states, begins) = backend.scan(step, (zeros, zeros, zeros == 0), luck)
    states = xp.astype(xp.moveaxis(states, 0, -1), backend.index_dtype())
    return SemiMarkovPath(*(xp.reshape(x, (*shape, num_steps)) for x in (states, xp.moveaxis(begins, 0, -1))))


def _score(chain: Chain, theta: Theta, states: Array, is_start: Array) -> Array:
    """log p(x, segmentation), (B,), of states and starts (B, T); -inf where there is none."""
    backend, xp = chain.backend, chain.backend.xp
    size, num_steps = states.shape
    num_states, count = theta.duration.shape[1:]
    path = xp.where(states < 0, 0, states)
    is_valid, is_last = chain.is_valid(), chain.is_last()
    cells = path * count + xp.clip(steps_since(backend, is_start), 0, count - 1)
    shape = (size, num_states, count)
    laws = (xp.reshape(xp.broadcast_to(x, shape), (size, num_states * count)) for x in (theta.duration, theta.tail))
    whole, cut = (backend.take_along(x, cells, -1) for x in laws)
    next_begins = xp.concat([is_start[:, 1:], xp.zeros_like(is_start[:, :1])], axis=-1)
    terms = [xp.where(is_valid, backend.take_along(theta.emission, path[..., None], -1)[..., 0], 0.0)]
    terms.append(xp.where(next_begins, whole, 0.0) + xp.where(is_last, cut, 0.0))
    terms.append(backend.take_along(xp.broadcast_to(theta.initial, (size, num_states)), path[:, :1], -1))
    if num_steps > 1:
        moves = xp.reshape(xp.broadcast_to(theta.transition, (size, num_states, num_states)), (size, num_states**2))
        taken = backend.take_along(moves, path[:, :-1] * num_states + path[:, 1:], -1)
        terms.append(xp.where(is_start[:, 1:], taken, 0.0))
    total = accurate_sum(backend, xp.concat(terms, axis=-1))
    return xp.where(states[:, 0] < 0, -inf, xp.astype(total, theta.emission.dtype))


def _has_nan(chain: Chain, theta: Theta) -> Array:
    """Whether a sequence's own frames hold NaN, or what its model says, (B,)."""
    xp = chain.backend.xp
    emission = xp.where(chain.is_valid()[..., None], theta.emission, 0.0)
    parts = [xp.any(xp.isnan(x), axis=tuple(range(1, x.ndim))) for x in (*theta[:-1], emission)]
    parts[1] = parts[1] & (chain.lengths > 1)  # one step makes no move
    return reduce(operator.or_, parts)


def _theta(
    log_initial: Array,
    log_transition: Any,
    log_duration: Array,
    log_emission: Array,
    lengths: Any,
    censored: bool,
    kernel: str,
) -> tuple[Chain, Theta]:
    """The arguments checked, and as the primitives take them."""
    check_name(kernel)
    named = {"log_initial": log_initial, "log_duration": log_duration, "log_emission": log_emission}
    _need_arrays(named)
    backend = backend_of(**named)
    xp = backend.xp
    need_shape("log_emission", log_emission.shape, (None, None), "(..., T, K)")
    num_steps, num_states = log_emission.shape[-2:]
    need_durations(xp, log_duration, num_states, "log_emission")
    batches = {"log_emission": log_emission.shape[:-2], "log_duration": log_duration.shape[:-2]}
    batch = broadcast_batch(batches)
    if tuple(log_emission.shape[:-2]) != batch:
        log_emission = xp.broadcast_to(log_emission, (*batch, num_steps, num_states))
    chain = chain_of(log_initial, log_transition, log_emission, lengths=lengths).with_dense_transition()
    moves = moves_of(chain)
    dtype = xp.result_type(chain.emission.dtype, log_duration.dtype)
    if log_duration.ndim == 2:
        durations = log_duration[None, ...]
    else:
        durations = xp.broadcast_to(log_duration, (*chain.batch_shape, *log_duration.shape[-2:]))
        durations = xp.reshape(durations, (-1, *log_duration.shape[-2:]))
    tail = log_tail(backend, durations) if censored else durations
    count = min(durations.shape[-1], num_steps)
    parts = (chain.initial, moves, durations[..., :count], tail[..., :count], chain.emission)
    return chain, Theta(*(xp.astype(x, dtype, copy=False) for x in parts))


def _need_arrays(named: dict[str, Any]) -> None:
    """Raise TypeError for one that is None, which `backend_of` takes as not given."""
    for name, value in named.items():
        if value is None:
            raise TypeError(f"{name}: expected an array (torch.Tensor, jax.Array or numpy.ndarray), got None")


def need_durations(xp: Any, log_duration: Array, num_states: int, source: str) -> None:
    """Durations of as many states as `source` has, of one step at least."""
    need_floating("log_duration", xp, log_duration)
    words = f"(..., K, D_max) with K = {num_states} as in {source}"
    need_shape("log_duration", log_duration.shape, (num_states, None), words)
    if log_duration.shape[-1] < 1:
        raise ValueError(f"log_duration: expected durations of at least one step, got {tuple(log_duration.shape)}")


def moves_of(chain: Chain) -> Array:
    """The dense transition (B or 1, K, K) of a chain; ValueError where it varies in time."""
    moves = chain.weights[0]
    if moves.shape[1] != 1:
        raise ValueError(f"log_transition: expected one constant in time, got {moves.shape[1]} slots")
    return moves[:, 0, ...]


def steps_since(backend: Backend, is_start: Array) -> Array:
    """How many steps before each the segment began that it lies in, (..., T)."""
    xp = backend.xp
    steps = backend.arange(is_start.shape[-1], like=is_start)
    begun = xp.moveaxis(xp.where(is_start, steps, 0), -1, 0)

    def later(first: tuple[Array, ...], second: tuple[Array, ...]) -> tuple[Array, ...]:
        return (xp.maximum(first[0], second[0]),)

    return steps - xp.moveaxis(backend.associative_scan(later, (begun,))[0], 0, -1)
