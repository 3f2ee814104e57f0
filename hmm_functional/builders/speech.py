"""Transitions of speech: phones of known durations, units of several states, prosody, least and longest durations."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any, NamedTuple

import numpy as np

from .._check import need_count, need_floating, need_shape
from .._types import ExpandedChain
from ..backend import Array, backend_of
from ..chain import without_padding
from ..durations.chains import expanded, hazards
from ..edges import on_device
from ..numerics import in_one_dtype, log_normalize
from ..structure import Dense, gather
from ..transition import (
    Banded,
    LowRank,
    Sparse,
    as_dense,
    canonical,
    host_numbers,
    need_integers_each,
    normalize_rows,
    own_shape,
    with_weights,
)
from .topologies import forward_bands, log_like, need_probability


class Hierarchy(NamedTuple):
    """Units of several states each, as one chain of N states."""

    log_transition: Any
    """(N, N), or `Sparse`."""
    units: Array
    """(N,) integers: the unit of each state."""
    first: Array
    """(U,) integers: the state in which each unit begins."""
    last: Array
    """(U,) integers: the state in which it ends."""


def from_durations(
    mean_durations: Any,
    *,
    states_per_phone: int = 1,
    frame_shift: float | None = None,
    skip_share: float = 0.0,
    cyclic: bool = False,
    structured: bool = False,
    like: Array | None = None,
) -> Any:
    """log transition of a left-to-right model of phones whose mean durations are known.

    Each of a phone's S states takes an S-th of its duration: self_loop = 1 - S / mean, since a state that stays with
    p lasts 1 / (1 - p) frames on average.

    Args:
        mean_durations: of the phones, in order: frames, or seconds with `frame_shift`.
        states_per_phone: S; K is S times the number of phones.
        frame_shift: seconds between frames, where durations are in seconds.
        skip_share: of what leaves a state, the share that goes on by two states, in [0, 1]; a state that has none to
            skip to goes on by one.
        cyclic: whether the last states go on to the first ones; else the last state is absorbing, whatever its
            duration.
        structured: return `Banded` instead of a dense matrix.
        like: an array whose library, dtype and device the result takes; default torch's defaults.

    Returns:
        (K, K), nats, or `Banded` as `left_to_right`'s.

    Raises:
        ValueError: no durations, or one of less than a frame for each of the phone's states.

    References: Rabiner 1989, equations 5 and 6 (how long a state lasts).

    Example:
        >>> import hmm_functional as hf
        >>> hf.from_durations([0.04, 0.1, 0.1], frame_shift=0.02).exp()
        tensor([[0.5000, 0.5000, 0.0000],
                [0.0000, 0.8000, 0.2000],
                [0.0000, 0.0000, 1.0000]])
    """
    count = need_count("states_per_phone", states_per_phone, 1)
    need_probability("skip_share", skip_share)
    means = host_numbers("mean_durations", mean_durations)
    if frame_shift is not None:
        if not 0 < frame_shift < inf:
            raise ValueError(f"frame_shift: expected seconds above 0, got {frame_shift}")
        means = means / frame_shift
    is_short = ~((means >= count * (1.0 - 1e-9)) & (means < inf))
    if is_short.any():
        at = int(np.argmax(is_short))
        raise ValueError(
            f"mean_durations[{at}]: expected at least {count} frames, one a state, got {means[at]:.6g}; "
            "use fewer states, or frame_shift= where durations are in seconds"
        )
    stay = np.repeat(np.maximum(1.0 - count / means, 0.0), count)
    skips = skip_share * (1.0 - stay)[None] if skip_share > 0 else np.empty((0, len(stay)))
    return forward_bands(stay, skips, cyclic, structured=structured, like=like)


def hierarchical(
    states_per_unit: Sequence[int],
    unit_transition: Any = None,
    *,
    self_loop: float | Sequence[float] = 0.5,
    structured: bool = False,
    like: Array | None = None,
) -> Hierarchy:
    """Units (words, phones) of several states each: left-to-right within a unit, from its last state to another unit.

    Every state stays with its self-loop; what leaves a unit's last state is shared as `unit_transition` says.

    Args:
        states_per_unit: (U,) integers from 1.
        unit_transition: (U, U) probabilities of the next unit, [from, to], rows of sum 1; default one unit after the
            other, the last state of all absorbing.
        self_loop: probability of staying, in [0, 1], one for all states or (N,).
        structured: return `Sparse` instead of a dense matrix.
        like: an array whose library, dtype and device the result takes; default torch's defaults.

    Returns:
        `Hierarchy(log_transition, units, first, last)`.

    Raises:
        ValueError: shapes, rows that do not sum to one, or a unit of a single state that may follow itself, whose
        self-loop would not be the one stated.

    Cost: O(N^2), or with `structured` O(N + U^2), O(N) without unit_transition.

    Example:
        >>> import hmm_functional as hf
        >>> found = hf.hierarchical([2, 1], [[0.5, 0.5], [1.0, 0.0]], self_loop=0.6)
        >>> found.log_transition.exp()
        tensor([[0.6000, 0.4000, 0.0000],
                [0.2000, 0.6000, 0.2000],
                [0.4000, 0.0000, 0.6000]])
        >>> found.first, found.last
        (tensor([0, 2]), tensor([1, 2]))
    """
    sizes = np.array([need_count("states_per_unit", n, 1) for n in states_per_unit], dtype=np.int64)
    if not len(sizes):
        raise ValueError("states_per_unit: expected at least one unit, got none")
    count, total = len(sizes), int(sizes.sum())
    last = np.cumsum(sizes) - 1
    first = last - sizes + 1
    stay = np.atleast_1d(np.asarray(self_loop, dtype=np.float64))
    if stay.shape not in ((1,), (total,)):
        raise ValueError(f"self_loop: expected one number or one for each of {total} states, got shape {stay.shape}")
    for p in stay:
        need_probability("self_loop", float(p))
    stay = np.broadcast_to(stay, (total,))
    if unit_transition is None:
        stay = np.append(stay[:-1], 1.0)
        befores, afters, shares = np.arange(count - 1), np.arange(1, count), np.ones(count - 1)
    else:
        befores, afters, shares = _unit_moves(unit_transition, sizes)
    states = np.arange(total)
    within = np.delete(states, last)
    sources, targets = (
        np.concatenate([states, within, last[befores]]),
        np.concatenate([states, within + 1, first[afters]]),
    )
    p = np.concatenate([stay, 1.0 - stay[within], (1.0 - stay[last[befores]]) * shares])
    kept = np.lexsort([targets, sources])
    kept = kept[p[kept] > 0]
    sources, targets, p = sources[kept], targets[kept], p[kept]
    transition: Any
    if structured:
        transition = Sparse(log_like(p, like), sources, targets, total)
    else:
        matrix = np.zeros((total, total))
        matrix[sources, targets] = p
        transition = log_like(matrix, like)
    sample = transition.log_weights if structured else transition
    backend = backend_of(sample=sample)
    units = np.repeat(np.arange(count), sizes)
    return Hierarchy(transition, *(backend.asarray(x, like=sample) for x in (units, first, last)))


def _unit_moves(unit_transition: Any, sizes: Any) -> tuple[Any, Any, Any]:
    """Units before and after, and probabilities, of the moves between units of some sizes."""
    moves, count = host_numbers("unit_transition", unit_transition, 2), len(sizes)
    if moves.shape != (count, count):
        raise ValueError(f"unit_transition: expected shape (U, U) = ({count}, {count}), got {moves.shape}")
    is_row = (moves >= 0).all(1) & (np.abs(moves.sum(1) - 1.0) <= 1e-5)
    if not is_row.all():
        u = int(np.argmin(is_row))
        raise ValueError(f"unit_transition: expected rows of probabilities, row {u} sums to {moves[u].sum():.6g}")
    is_stuck = (sizes == 1) & (np.diagonal(moves) > 0)
    if is_stuck.any():
        u = int(np.argmax(is_stuck))
        raise ValueError(f"unit_transition: expected 0 for unit {u} after itself, it has one state, which may stay")
    befores, afters = np.nonzero(moves)
    return befores, afters, (moves / moves.sum(1, keepdims=True))[befores, afters]


def prosodic(log_transition: Any, features: Array, weights: Array, *, lengths: Any = None) -> Any:
    """Transitions that vary in time, states lasting longer or shorter as prosodic features of the frames say.

    The self-loop of slot t, from step t to t + 1, follows from the features of the step moved to,

        logit(self_loop[t, i]) = logit(self_loop[i]) + weights[i] . features[t + 1],

    and the other transitions of the row are rescaled to what is left. A positive weight of a boundary strength makes
    the states before a phrase boundary last; a negative one of speaking rate shortens all.

    Args:
        log_transition: (K, K), or `Banded` or `Sparse` transitions, nats; (..., T-1, K, K) where they vary already.
        features: (..., T, F), such as F0, energy, boundary strength, best standardised.
        weights: (F,), or (K, F) of each state's own: change of the self-loop's log odds a unit.
        lengths: (...) integers 1..T, the valid steps of right-padded sequences; padding is never read. Without, NaN in
            it makes gradients NaN, whatever reads the result.

    Returns:
        (..., T-1, K, K), nats, rows of sum one, or the structure of the transition. Transitions that are certain or
        impossible stay so, absorbing states too.

    Raises:
        TypeError: not floating-point arrays of one library, or a `LowRank`. ValueError: shapes, lengths outside 1..T.

    Gradient: of everything.

    Cost: O(B T K^2), the size of the result; edges in the place of K^2 for structures.

    Example:
        >>> import torch, hmm_functional as hf
        >>> boundary = torch.tensor([[0.0], [0.0], [1.0]])
        >>> hf.prosodic(hf.left_to_right(2, self_loop=0.5), boundary, torch.tensor([2.0])).exp()
        tensor([[[0.5000, 0.5000],
                 [0.0000, 1.0000]],
        <BLANKLINE>
                [[0.8808, 0.1192],
                 [0.0000, 1.0000]]])
    """
    if isinstance(log_transition, LowRank):
        raise TypeError("log_transition: expected a matrix, Banded or Sparse, got LowRank")
    structure, (base,) = canonical(log_transition)
    backend = backend_of(log_transition=base, features=features, weights=weights)
    xp, count = backend.xp, structure.num_states
    for name, x in (("log_transition", base), ("features", features), ("weights", weights)):
        need_floating(name, xp, x)
    need_shape("features", features.shape, (None, None), "(..., T, F)")
    dim = features.shape[-1]
    if tuple(weights.shape) not in ((dim,), (count, dim)):
        raise ValueError(f"weights: expected shape ({dim},) or ({count}, {dim}), got {tuple(weights.shape)}")
    features = without_padding(backend, features, lengths)
    structure = on_device(structure, backend, base)
    features, weights, base = in_one_dtype(backend, features=features, weights=weights, log_transition=base)
    shift = features[..., 1:, :] @ xp.matrix_transpose(xp.broadcast_to(weights, (count, dim)))  # (..., T-1, K)
    if isinstance(structure, Dense):
        every = backend.arange(count, like=base)
        shift, is_loop = shift[..., None], every[:, None] == every[None, :]
    else:
        sources, targets = structure.tables[:2]
        shift, is_loop = gather(backend, shift, sources), sources == targets
    # the odds of the self-loop are all that a factor of its weight changes
    found = normalize_rows(backend, structure, base + xp.where(is_loop, shift, 0.0))
    return with_weights(log_transition, own_shape(backend, log_transition, (found,), -inf))


def duration_constrained(
    num_states: int,
    min_duration: Any = 1,
    max_duration: Any = None,
    *,
    log_duration: Array | None = None,
    structured: bool = False,
    like: Array | None = None,
) -> ExpandedChain:
    """A left-to-right model whose states last between a least and a longest number of steps, as a chain of substates.

    Each state is a substate for each step of its stay; it is left after d steps with p(d) / p(duration >= d).

    Args:
        num_states: K.
        min_duration, max_duration: steps, one for all states or (K,). All durations between are alike.
        log_duration: (K, D), or (D,) for all states, log p(duration = d + 1), nats; of these laws what lies between
            the two (by default all) is taken.
        structured: return `Sparse` (of one state, `Banded`) instead of a dense matrix.
        like: an array whose library, dtype and device the result takes; default that of log_duration, or torch's.

    Returns:
        `ExpandedChain(log_initial (N,), log_transition, log_final (N,), states (N,))`. Emissions of substates are
        `log_emission[..., states]`. Rows sum to one: the last state goes through all of its substates and stays in one
        more, without an end. With `log_final` the sequence ends in the last state, after a duration by its law.

    Raises:
        ValueError: bounds out of order, beyond log_duration, or without any duration between them.

    Gradient: of log_duration.

    Cost: N is at most K D + 1; O(N^2), or with `structured` O(N), its edges.

    References: Ferguson 1980; Russell and Moore 1985.

    Example:
        >>> import torch, hmm_functional as hf
        >>> chain = hf.duration_constrained(2, 2, 3)
        >>> chain.states
        tensor([0, 0, 0, 1, 1, 1, 1])
        >>> emission = torch.zeros(5, 2)[:, chain.states]  # 2 + 3 or 3 + 2 steps, of 2 or 3 each
        >>> hf.log_likelihood(chain.log_initial, chain.log_transition, emission, log_final=chain.log_final).exp()
        tensor(0.5000)
    """
    num_states = need_count("num_states", num_states, 1)
    if log_duration is None:
        if max_duration is None:
            raise ValueError("max_duration: expected steps, or log_duration")
        longest = need_integers_each("max_duration", max_duration, num_states)
        log_duration = log_like(np.ones((num_states, int(longest.max()))), like)
    else:
        backend = backend_of(log_duration=log_duration)
        need_floating("log_duration", backend.xp, log_duration)
        if log_duration.ndim not in (1, 2) or (log_duration.ndim == 2 and log_duration.shape[0] != num_states):
            raise ValueError(f"log_duration: expected (D,) or ({num_states}, D), got {tuple(log_duration.shape)}")
        given = log_duration.shape[-1]
        if like is not None:
            log_duration = backend_of(like=like, log_duration=log_duration).xp.astype(log_duration, like.dtype)
        log_duration = backend.xp.broadcast_to(log_duration, (num_states, log_duration.shape[-1]))
        longest = need_integers_each("max_duration", given if max_duration is None else max_duration, num_states)
        if longest.max() > given:
            raise ValueError(f"max_duration: expected at most the {given} steps of log_duration, got {longest.max()}")
    shortest = need_integers_each("min_duration", min_duration, num_states)
    if (shortest > longest).any():
        k = int(np.argmax(shortest > longest))
        raise ValueError(f"max_duration: expected at least min_duration, got {longest[k]} below {shortest[k]}")
    backend = backend_of(log_duration=log_duration)
    xp, steps = backend.xp, np.arange(1, log_duration.shape[1] + 1)
    is_allowed = (steps >= shortest[:, None]) & (steps <= longest[:, None])
    law = xp.where(backend.asarray(is_allowed, like=log_duration), log_duration, -inf)
    law = log_normalize(backend, law)
    first = log_like(np.arange(num_states) == 0, law)
    moves: Any = xp.full_like(law[:1, :1], -inf)
    if num_states > 1:
        moves = Banded(backend.full((1, num_states), 0.0, like=law), (1,))
    phases = hazards(backend, law, is_last_absorbing=True)._replace(log_begin=None)
    chain = expanded(backend, first, moves, phases)
    count = phases.sizes[-1] - 1
    rest = backend.full((sum(phases.sizes) - count,), -inf, like=law)
    final = xp.concat([rest[:-1], law[-1, :count], rest[:1]], axis=0)
    transition = chain.log_transition if structured else as_dense(chain.log_transition)
    return chain._replace(log_transition=transition, log_final=final)
