"""The best state paths, and the score of a given one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf
from typing import Any

from ._check import need_count, need_integers, need_range
from ._types import Viterbi
from .arrays import Spec, chain_arrays, emission_shape, fused_values, no_rule, unpack
from .backend import Array, Backend, Primitive
from .backend.protocol import Shape, declare
from .chain import Chain, chain_of
from .kernels.registry import MessageCall, check_name
from .kernels.repeat import repeats
from .numerics import accurate_sum
from .recursion import traceback
from .semiring import MAX, KMaxSemiring
from .structure import Factored


@repeats
def viterbi(
    log_initial: Array,
    log_transition: Any,
    log_emission: Array,
    *,
    lengths: Any = None,
    log_final: Array | None = None,
    kernel: str = "auto",
) -> Viterbi:
    """The most probable state path given x, and its log p(x, z).

    Args: as `log_likelihood`.

    Returns:
        `Viterbi(states (..., T) int64, log_joint (...))`. Exact ties go to the lowest predecessor, then to the lowest
        last state. Padding is -1, and so are all states where no path is possible (log_joint -inf) or the sequence
        holds NaN (log_joint NaN).

    Raises: as `log_likelihood`.

    Gradient: that of `log_joint` is 1 for each term along the path.

    Cost: O(B T K^2) time for a dense transition, O(B T K) memory.

    References: Viterbi 1967; Rabiner 1989, equations 32 to 35.

    Example:
        >>> import torch, hmm_functional as hf
        >>> transition = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).log()
        >>> emission = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.9, 0.1]]).log()
        >>> hf.viterbi(torch.zeros(2), transition, emission).states
        tensor([0, 0, 0])
    """
    chain = chain_of(log_initial, log_transition, log_emission, lengths=lengths, log_final=log_final)
    states, scores = _best(chain, kernel, 1)
    return Viterbi(chain.unflatten(states[:, 0, :]), chain.unflatten(scores[:, 0]))


def viterbi_k_best(
    log_initial: Array,
    log_transition: Any,
    log_emission: Array,
    *,
    k: int,
    lengths: Any = None,
    log_final: Array | None = None,
    kernel: str = "auto",
) -> Viterbi:
    """The k most probable state paths given x, best first, and their log p(x, z).

    Args: as `log_likelihood`.
        k: how many paths, at least 1.

    Returns:
        `Viterbi(states (..., k, T), log_joint (..., k))`; -1 and -inf where fewer than k paths are possible.

    Raises: as `log_likelihood`; ValueError for k below 1.

    Gradient: as `viterbi`, path by path.

    Cost: O(B T K^2 k log(K k)) time, O(B T K k) memory.

    References: Huang and Chiang 2005, algorithm 1.

    Example:
        >>> import torch, hmm_functional as hf
        >>> hf.viterbi_k_best(torch.zeros(2), torch.zeros(2, 2), torch.tensor([[0.0, 1.0]]), k=3)
        Viterbi(states=tensor([[ 1],
                [ 0],
                [-1]]), log_joint=tensor([1., 0., -inf]))
    """
    k = need_count("k", k, 1)
    chain = chain_of(log_initial, log_transition, log_emission, lengths=lengths, log_final=log_final)
    states, scores = _best(chain, kernel, k)
    return Viterbi(chain.unflatten(states), chain.unflatten(scores))


def log_joint(
    log_initial: Array,
    log_transition: Any,
    log_emission: Array,
    *,
    states: Array,
    lengths: Any = None,
    log_final: Array | None = None,
    kernel: str = "auto",
) -> Array:
    """log p(x, z) of a given state path z.

    Args: as `log_likelihood`; `kernel` is checked and has no effect, since no message is needed.
        states: (..., T) integers 0..K-1; its batch axes broadcast with the others'. Steps beyond the lengths are
            not read. A state of -1 within them stands for no path.

    Returns:
        (...), nats; -inf for an impossible path.

    Raises: as `log_likelihood`; ValueError for a state that is not one, where values can be read.

    Cost: O(B T) time and memory.

    Example:
        >>> import torch, hmm_functional as hf
        >>> hf.log_joint(torch.zeros(2), torch.zeros(2, 2), torch.tensor([[0.0, 1.0]]), states=torch.tensor([1]))
        tensor(1.)
    """
    chain = chain_of(log_initial, log_transition, log_emission, lengths=lengths, log_final=log_final, states=states)
    check_name(kernel)
    backend, xp = chain.backend, chain.backend.xp
    need_integers("states", xp, states)
    path = xp.reshape(xp.broadcast_to(states, (*chain.batch_shape, chain.num_steps)), (-1, chain.num_steps))
    if not backend.is_traced(path, chain.lengths) and backend.is_host(path):
        valid = backend.to_numpy(xp.where(chain.is_valid(), path, 0))
        need_range("states", valid, -1, chain.num_states - 1)
    return chain.unflatten(path_scores(chain, path[:, None, :])[:, 0])


def path_scores(chain: Chain, states: Array) -> Array:
    """log p(x, z) (B, k) of paths (B, k, T); -inf where a state within the lengths is -1."""
    backend, xp = chain.backend, chain.backend.xp
    is_valid = chain.is_valid()[..., None]
    raw = xp.permute_dims(states, (0, 2, 1))
    path = xp.where(raw < 0, 0, raw)
    scores = backend.take_along(chain.emission, path, -1)
    scores = xp.where(raw < 0, -inf, scores)
    final = backend.take_along(chain.final[:, None, :], path, -1)
    scores = xp.where(is_valid, scores, 0.0) + xp.where(chain.is_last()[..., None], final, 0.0)
    terms = [scores, backend.take_along(chain.initial[:, None, :], path[:, :1, :], -1)]
    if chain.num_steps > 1:
        moves = chain.structure.path(backend, chain.weights, path[:, :-1, :], path[:, 1:, :])
        terms.append(xp.where(is_valid[:, 1:, :], moves, 0.0))
    total = accurate_sum(backend, xp.permute_dims(xp.concat(terms, axis=1), (0, 2, 1)))
    return xp.astype(total, chain.emission.dtype)


def _best(chain: Chain, kernel: str, k: int) -> tuple[Array, Array]:
    """States (B, k, T) and scores (B, k)."""
    backend, xp = chain.backend, chain.backend.xp
    if isinstance(chain.structure, Factored):
        chain = chain.with_dense_transition()
    if k == 1 and (whole := fused_values(chain, kernel)) is not None:
        states, scores = whole[0].best_path(whole[1], chain.final)
        return states[:, None, :], scores[:, None]
    arrays = chain_arrays(chain, kernel)
    spec = replace(arrays.spec, num_best=k).encode()
    constants = [backend.stop_gradient(x) for x in arrays.theta]
    states, ends = backend.call(BEST, spec, [*constants, *arrays.constants])
    # the scores are the paths' own, which have gradients; the messages say whether there is a path at all
    scores = xp.where(ends > -inf, path_scores(chain, states), ends)
    is_state = (ends > -inf)[..., None] & chain.is_valid()[:, None, :]
    return xp.where(is_state, states, -1), scores


def _best_paths(backend: Backend, encoded: str, arrays: Sequence[Array]) -> tuple[Array, ...]:
    xp, a = backend.xp, unpack(backend, encoded, arrays)
    k = a.spec.num_best
    if k == 1 and (whole := a.fused()) is not None:
        states, scores = whole[0].best_path(whole[1], a.final)
        return states[:, None, :], scores[:, None]
    emission, _ = a.centred()
    call: MessageCall = replace(a.call(emission), semiring=MAX if k == 1 else KMaxSemiring(k))
    (messages,) = a.messages(call).values
    ends = messages[:, -1, ...] + (a.final if k == 1 else a.final[:, None, :])
    rank = xp.broadcast_to(backend.arange(k, like=a.lengths)[:, None], (k, emission.shape[0]))
    states = traceback(
        backend,
        a.structure,
        a.weights,
        messages,
        a.final,
        call.lengths,
        _highest if k == 1 else _ranked,
        rank=xp.astype(rank, backend.index_dtype()),
        copies=k,
    )
    ends = xp.max(ends, axis=-1, keepdims=True) if k == 1 else _largest(xp, ends, k)
    return xp.astype(xp.permute_dims(states, (1, 0, 2)), backend.index_dtype()), ends


def _highest(backend: Backend, terms: Array, chance: Any, rank: Array) -> Array:
    return backend.xp.argmax(terms, axis=-1)


def _ranked(backend: Backend, terms: Array, chance: Any, rank: Array) -> Array:
    order = backend.xp.argsort(terms, axis=-1, descending=True, stable=True)
    return backend.take_along(order, rank[..., None], -1)[..., 0]


def _largest(xp: Any, ends: Array, k: int) -> Array:
    return xp.sort(xp.reshape(ends, (ends.shape[0], ends.shape[1] * ends.shape[2])), axis=-1, descending=True)[:, :k]


def _best_shapes(encoded: str, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    batch, steps, _ = emission_shape(encoded, shapes)
    k = Spec.decode(encoded).num_best
    return (batch, k, steps), (batch, k)


BEST = declare(
    Primitive(
        "best_paths",
        _best_paths,
        lambda encoded: 0,
        _best_shapes,
        lambda encoded: (False, False),
        no_rule("the derivative of a path"),
        no_rule("the derivative of a path"),
        integers=(True, False),
    )
)
