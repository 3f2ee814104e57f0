"""Chains of substates that last as a law of durations says: what semi-Markov models compute, by plain HMM functions."""

from __future__ import annotations

from math import inf
from typing import Any, NamedTuple

import numpy as np

from .._check import need_floating, need_shape
from .._types import ExpandedChain
from ..backend import Array, Backend, backend_of
from ..numerics import log_tail
from ..structure import Dense, extend, gather
from ..transition import Banded, LowRank, Sparse, arrays_of, canonical, need_integers_each

FULLEST = 4
"""Bands are returned where they hold at most so many numbers for each way to go."""


def duration_chain(log_initial: Array, log_transition: Any, log_duration: Array) -> ExpandedChain:
    """A semi-Markov model with durations of a longest as a plain chain, one substate for each step of a segment.

    After d steps a segment ends with probability p(d) / p(duration >= d), else it goes on to its next substate: every
    segmentation is one path, so that likelihoods, posteriors, samples and best paths are those of the model.

    Args:
        log_initial: (K,), log p of the first segment's state, nats.
        log_transition: (K, K), log p(next segment's state given this one's), or a structured transition; its diagonal
            is -inf.
        log_duration: (K, D_max), log p(duration = d + 1 given the state); used as given.

    Returns:
        `ExpandedChain(log_initial (N,), log_transition, log_final (N,), states (N,))` of N substates. Their emissions
        are `log_emission[..., states]`. Without `log_final` the last segment may run past the end (`censored=True`);
        with it, it ends at the last step. The transition is `Sparse`, or `Banded` where states have equally many
        substates and lead on to the next alone, and a quarter of the bands are ways to go. Where values can be read,
        what has probability zero has no substates and no edges.

    Raises:
        TypeError: not floating-point arrays of one library. ValueError: shapes, a finite diagonal, or a state without
        any duration.

    Gradient: of everything. With torch.compile make it outside, and pass it in; jax.jit and torch.func take it inside.

    Cost: N is at most K D_max. A step of the chain costs its edges, O(K D_max) and one for each duration and change
    of state; `semi_markov_log_likelihood` costs O(K (D_max + K)), which is less where many states follow each other.
    Made in time and memory of the edges, and O(K^2) for a dense transition.

    References: Ferguson 1980; Russell and Moore 1985; Johnson 2005.

    Example:
        >>> import torch, hmm_functional as hf
        >>> initial, transition = torch.tensor([1.0, 0.0]).log(), torch.tensor([[0.0, 1.0], [1.0, 0.0]]).log()
        >>> duration = torch.tensor([[0.5, 0.5], [1.0, 0.0]]).log()
        >>> chain = hf.duration_chain(initial, transition, duration)
        >>> chain.states
        tensor([0, 0, 1])
        >>> emission = torch.zeros(3, 2)[:, chain.states]
        >>> hf.log_likelihood(chain.log_initial, chain.log_transition, emission, log_final=chain.log_final).exp()
        tensor(0.7500)
    """
    backend = backend_of(log_initial=log_initial, log_duration=log_duration)
    num_states = _need_states(backend, log_initial)
    need_floating("log_duration", backend.xp, log_duration)
    if log_duration.ndim != 2 or log_duration.shape[0] != num_states or log_duration.shape[1] < 1:
        words = f"(K, D_max) with K = {num_states} as in log_initial"
        raise ValueError(f"log_duration: expected shape {words}, got {tuple(log_duration.shape)}")
    return expanded(backend, log_initial, log_transition, hazards(backend, log_duration))


def negative_binomial_chain(
    log_initial: Array,
    log_transition: Any,
    total_count: Any,
    probs: Array,
    min_duration: Any = 1,
) -> ExpandedChain:
    """A semi-Markov model with negative binomial durations as a plain chain: exact, without a longest duration.

    A segment of state k lasts min_duration + n steps, p(n) = C(n + r - 1, n) (1 - q)^r q^n, as in
    `torch.distributions.NegativeBinomial(total_count=r, probs=q)`: mean r q / (1 - q), variance r q / (1 - q)^2.

    Args:
        log_initial: (K,), log p of the first segment's state, nats.
        log_transition: (K, K), log p(next segment's state given this one's), or a structured transition; its diagonal
            is -inf.
        total_count: r, (K,) integers from 1, or one for all; part of the graph, not of the data.
        probs: q, (K,), in [0, 1).
        min_duration: the shortest duration, from 1, (K,) integers or one for all.

    Returns:
        `ExpandedChain` as `duration_chain`'s, of max(min_duration, r) substates a state: min_duration - r that are
        passed in one step, then r that stay with q, of which the last r - min_duration may be passed in no step:
        after a step the next is s such substates further with (1 - q)^s q.

    Raises:
        TypeError: not floating-point arrays of one library, or counts that are no known integers. ValueError: shapes,
        a finite diagonal, or values out of range.

    Gradient: of everything but the counts.

    Where r is above 1 a segmentation has many paths, of which `viterbi` finds the best: `log_joint` is that of the
    substates, at most that of the best segmentation. All sums over paths are exact.

    Cost: O(K max(min_duration, r)) substates; edges O(K r^2) and r for each change of state, or, for r up to
    min_duration, two a substate. Made in time and memory of these, and O(K^2) for a dense transition.

    References: Johnson and Willsky 2014 (negative binomial durations as chains).

    Example:
        >>> import torch, hmm_functional as hf
        >>> initial, transition = torch.tensor([1.0, 0.0]).log(), torch.tensor([[0.0, 1.0], [1.0, 0.0]]).log()
        >>> chain = hf.negative_binomial_chain(initial, transition, [2, 1], torch.tensor([0.5, 0.5]))
        >>> chain.states
        tensor([0, 0, 1])
        >>> emission = torch.zeros(3, 3)  # segments of 3, of 1 and 2, of 2 and 1, or of 1 step each
        >>> hf.log_likelihood(chain.log_initial, chain.log_transition, emission, log_final=chain.log_final).exp()
        tensor(0.4062)
    """
    backend = backend_of(log_initial=log_initial, probs=probs)
    xp, num_states = backend.xp, _need_states(backend, log_initial)
    need_floating("probs", xp, probs)
    if tuple(probs.shape) != (num_states,):
        raise ValueError(f"probs: expected shape (K,) = ({num_states},), got {tuple(probs.shape)}")
    if _is_known(backend, probs):
        values = backend.to_numpy(probs)
        if not ((values >= 0) & (values < 1)).all():
            raise ValueError(f"probs: expected numbers in [0, 1), got {values.min():.6g}..{values.max():.6g}")
    counts, shortest = (
        need_integers_each("total_count", total_count, num_states),
        need_integers_each("min_duration", min_duration, num_states),
    )
    sizes = np.maximum(counts, shortest)
    firsts, graphs = np.cumsum(sizes) - sizes, [_stages(*pair) for pair in zip(counts, shortest, strict=True)]
    within, ends = (np.array([(k, *row) for k, graph in enumerate(graphs) for row in graph[part]]).T for part in (0, 1))
    stay, leave = backend.log(probs), xp.log1p(-probs)

    def weights(owners: Any, is_stay: Any, powers: Any) -> Array:
        """Of edges of states: leave to a power, times stay where it is."""
        owners, is_stay, powers = (backend.asarray(x, like=probs) for x in (owners, is_stay > 0, powers))
        passed = xp.astype(powers, probs.dtype) * xp.take(leave, owners, axis=0)
        return passed + xp.where(is_stay, xp.take(stay, owners, axis=0), 0.0)

    phases = Phases(
        tuple(int(n) for n in sizes),
        firsts[within[0]] + within[1],
        firsts[within[0]] + within[2],
        weights(within[0], within[3], within[4]),
        firsts[ends[0]] + ends[1],
        weights(ends[0], np.zeros_like(ends[0]), ends[2]),
    )
    return expanded(backend, log_initial, log_transition, phases)


def _stages(count: int, shortest: int) -> tuple[list[tuple[int, int, int, int]], list[tuple[int, int]]]:
    """Edges (source, target, whether q is a factor, power of 1 - q) and ends (source, power) of one state."""
    certain, must = max(shortest - count, 0), min(shortest, count)
    edges, ends = [(n, n + 1, 0, 0) for n in range(certain)], []
    for j in range(count):  # the first `must` take a step at least, the others may take none
        here = certain + j
        edges.append((here, here, 1, 0))
        if j < must - 1:
            edges.append((here, here + 1, 0, 1))
        else:
            edges += [(here, here + s, 1, s) for s in range(1, count - j)]
            ends.append((here, count - j))
    return edges, ends


class Phases(NamedTuple):
    """How segments of each state pass through its substates; every segment begins in the first."""

    sizes: tuple[int, ...]
    """Substates of each state, whose numbers follow each other."""
    sources: Any
    targets: Any
    """(E,) on the host, the ways between substates of a state."""
    log_within: Array
    """(E,)"""
    ends: Any
    """(X,) on the host, the substates after which a segment may end."""
    log_end: Array
    """(X,)"""
    log_begin: Array | None = None
    """(K,), what beginning weighs; nothing where None."""

    @property
    def states(self) -> Any:
        """(N,) on the host, the state of each substate."""
        return np.repeat(np.arange(len(self.sizes)), self.sizes)

    @property
    def firsts(self) -> Any:
        """(K,) on the host."""
        return np.cumsum(self.sizes) - self.sizes


def hazards(backend: Backend, log_duration: Array, *, is_last_absorbing: bool = False) -> Phases:
    """A substate for each step of a segment, which ends with p(d) / p(duration >= d).

    Args:
        log_duration: (K, D).
        is_last_absorbing: whether the last state goes on through all of its substates, and stays in one more.
    """
    xp, (num_states, longest) = backend.xp, log_duration.shape
    is_possible = np.ones((num_states, longest), dtype=bool)
    if _is_known(backend, log_duration):
        is_possible = backend.to_numpy(log_duration) > -inf
        if not is_possible.any(axis=1).all():
            k = int(np.argmin(is_possible.any(axis=1)))
            raise ValueError(f"log_duration: expected a possible duration of every state, state {k} has none")
    sizes = longest - np.argmax(is_possible[:, ::-1], axis=1)
    tail = log_tail(backend, log_duration)
    is_over = tail == -inf
    base = xp.where(is_over, 0.0, tail)
    later = xp.concat([tail[:, 1:], xp.full_like(tail[:, :1], -inf)], axis=1)
    go_on = xp.where(is_over, -inf, later - base)
    end = xp.where(is_over, -inf, log_duration - base)
    if is_last_absorbing:
        go_on = xp.concat([go_on[:-1, :], xp.zeros_like(go_on[:1, :])], axis=0)
        is_possible[-1, :] = False
        sizes[-1] += 1
    firsts, steps = (np.cumsum(sizes) - sizes)[:, None], np.arange(longest)

    def chosen(weights: Array, is_chosen: Any) -> tuple[Any, Array]:
        """The substates of some (state, step), and their weights."""
        flat = backend.asarray(np.flatnonzero(is_chosen), like=weights)
        return (firsts + steps)[is_chosen], xp.take(xp.reshape(weights, (-1,)), flat, axis=0)

    sources, within = chosen(go_on, steps < sizes[:, None] - 1)
    targets = sources + 1
    if is_last_absorbing:
        last = int(sizes.sum()) - 1
        sources, targets = np.append(sources, last), np.append(targets, last)
        within = xp.concat([within, backend.full((1,), 0.0, like=within)], axis=0)
    return Phases(tuple(int(n) for n in sizes), sources, targets, within, *chosen(end, is_possible), tail[:, 0])


def expanded(backend: Backend, log_initial: Array, log_transition: Any, phases: Phases) -> ExpandedChain:
    """The chain of the phases, whose states follow each other as the transition says."""
    xp, num_substates = backend.xp, sum(phases.sizes)
    befores, afters, moves = _moves(log_initial, log_transition, len(phases.sizes))
    firsts, owners = phases.firsts, phases.states[phases.ends]
    # every end of a segment with every way on from its state
    num_moves = np.bincount(befores, minlength=len(firsts))
    order, counts = np.argsort(befores, kind="stable"), num_moves[owners]
    end = np.repeat(np.arange(len(owners)), counts)
    skipped = np.cumsum(num_moves)[owners] - np.cumsum(counts)  # moves of states before, less pairs of ends before
    move = order[np.arange(len(end)) + skipped[end]]
    sources = np.concatenate([phases.sources, phases.ends[end]])
    targets = np.concatenate([phases.targets, firsts[afters[move]]])

    def rows(x: Array, index: Any) -> Array:
        return xp.take(x, backend.asarray(index, like=x), axis=0)

    starts = log_initial
    left = rows(phases.log_end, end) + rows(moves, move)
    if phases.log_begin is not None:
        starts, left = starts + phases.log_begin, left + rows(phases.log_begin, afters[move])
    weights = xp.concat([phases.log_within, left], axis=0)
    if not len(sources):  # one state that lasts one step
        sources = targets = np.zeros(1, dtype=int)
        weights = backend.full((1,), -inf, like=log_initial)

    def placed(x: Array, shape: tuple[int, ...], at: Any) -> Array:
        """`x` at places of a new array, -inf elsewhere."""
        table = np.full(shape, x.shape[-1])
        table[at] = np.arange(x.shape[-1])
        return gather(backend, extend(backend, x, -inf), backend.asarray(table, like=x))

    offsets = np.unique(targets - sources)
    is_forward = len(set(phases.sizes)) == 1 and bool((afters == befores + 1).all())
    transition: Any = Sparse(weights, sources, targets, num_substates)
    if is_forward and len(offsets) * num_substates <= FULLEST * len(sources):
        bands = placed(weights, (len(offsets), num_substates), (np.searchsorted(offsets, targets - sources), sources))
        transition = Banded(bands, tuple(offsets.tolist()))
    return ExpandedChain(
        placed(starts, (num_substates,), firsts),
        transition,
        placed(phases.log_end, (num_substates,), phases.ends),
        backend.asarray(phases.states, like=log_initial),
    )


def _moves(log_initial: Array, log_transition: Any, num_states: int) -> tuple[Any, Any, Array]:
    """States before and after (M,), on the host, and log weights (M,) of changes of state."""
    if isinstance(log_transition, LowRank):
        raise TypeError("log_transition: expected a matrix, Banded or Sparse, got LowRank; write it out")
    backend = backend_of(log_initial=log_initial, **arrays_of(log_transition))
    structure, (weights,) = canonical(log_transition)
    need_floating("log_transition", backend.xp, weights)
    rank = structure.ranks[0]
    if structure.num_states != num_states or weights.ndim != rank:
        shape = tuple(weights.shape)
        raise ValueError(f"log_transition: expected ({num_states}, {num_states}) without batch or time, got {shape}")
    if isinstance(structure, Dense):
        befores, afters = np.divmod(np.arange(num_states**2), num_states)
        weights = backend.xp.reshape(weights, (-1,))
    else:
        befores, afters = (np.asarray(x) for x in structure.tables[:2])
    is_kept = befores != afters
    if _is_known(backend, weights):
        is_possible = backend.to_numpy(weights) > -inf
        if (is_possible & ~is_kept).any():
            k = int(befores[is_possible & ~is_kept][0])
            raise ValueError(f"log_transition: expected -inf on the diagonal, state {k} follows itself; it may last")
        is_kept &= is_possible
    (kept,) = np.nonzero(is_kept)
    return befores[kept], afters[kept], backend.xp.take(weights, backend.asarray(kept, like=weights), axis=0)


def _need_states(backend: Backend, log_initial: Array) -> int:
    """K."""
    need_floating("log_initial", backend.xp, log_initial)
    need_shape("log_initial", log_initial.shape, (None,), "(K,)")
    if log_initial.ndim != 1 or not log_initial.shape[0]:
        raise ValueError(f"log_initial: expected shape (K,), got {tuple(log_initial.shape)}")
    return int(log_initial.shape[0])


def _is_known(backend: Backend, x: Array) -> bool:
    """Whether the graph may depend on these values."""
    return not backend.is_traced(x)
