"""The long run of a chain."""

from __future__ import annotations

from math import inf
from typing import Any

import numpy as np

from ._check import need_floating, need_shape
from .backend import Array, Backend, backend_of
from .edges import on_device
from .numerics import log_normalize, logsumexp
from .transition import arrays_of, canonical


def stationary(log_transition: Any) -> Array:
    """log of the stationary distribution: the one that a step of the transition leaves as it is.

    Args:
        log_transition: (..., K, K), nats, [from, to]; rows are normalised; or a structure without a time axis.

    Returns:
        (..., K), normalised; -inf for states the chain leaves for good. A matrix with a row that leads nowhere, or
        with several closed sets of states, has no single stationary distribution: NaN.

    Raises:
        TypeError: not a floating-point array. ValueError: not square.

    Gradient: any order, by implicit differentiation (one linear solve).

    Cost: O(K^3) time in K rounds.

    References: Grassmann, Taksar and Heyman 1985, with the states eliminated in order of their exits, in the
    log domain: no subtraction, so that small probabilities keep their relative precision.

    Example:
        >>> import torch, hmm_functional as hf
        >>> hf.stationary(torch.tensor([[0.9, 0.1], [0.3, 0.7]]).log()).exp()
        tensor([0.7500, 0.2500])
    """
    named = arrays_of(log_transition)
    backend = backend_of(**named)
    for name, x in named.items():
        need_floating(name, backend.xp, x)
    if list(named) == ["log_transition"]:
        size = log_transition.shape[-1] if log_transition.ndim else None
        need_shape("log_transition", log_transition.shape, (size, size), "(..., K, K)")
    structure, weights = canonical(log_transition)
    matrix = log_normalize(backend, on_device(structure, backend, weights[0]).dense(backend, weights))
    value = _eliminate(backend, backend.stop_gradient(matrix))
    return _with_gradient(backend, matrix, value)


def _eliminate(backend: Backend, matrix: Array) -> Array:
    """log stationary distribution of log stochastic matrices (..., K, K)."""
    xp, size = backend.xp, matrix.shape[-1]
    states = backend.arange(size, like=matrix)
    is_here = backend.asarray(np.ones(size, dtype=bool), like=matrix)
    is_here = xp.broadcast_to(is_here, matrix.shape[:-1])
    off_diagonal = backend.asarray(~np.eye(size, dtype=bool), like=matrix)

    def cut(carry: Any, _: Any) -> tuple[Any, Any]:
        """Censor the chain to the remaining states but the one with the largest exit."""
        p, is_here = carry
        others = is_here[..., None, :] & off_diagonal
        exits = logsumexp(backend, xp.where(others, p, -inf))
        exits = xp.where(is_here, exits, -inf)
        gone = xp.argmax(xp.where(is_here, xp.maximum(exits, xp.finfo(p.dtype).min), -inf), axis=-1)
        is_gone = states == gone[..., None]
        left = is_here & ~is_gone
        out = backend.take_along(p, gone[..., None, None], -2)[..., 0, :]
        into = backend.take_along(p, gone[..., None, None], -1)[..., 0]
        total = backend.take_along(exits, gone[..., None], -1)
        into = into - xp.where(total == -inf, 0.0, total)
        into = xp.where(left, into, -inf)
        out = xp.where(left, out, -inf)
        both = xp.stack([p, into[..., :, None] + out[..., None, :]], axis=-1)
        # a state with no exit and others left beside it: two closed sets
        return (logsumexp(backend, both), left), (gone, into, (total == -inf)[..., 0])

    rounds = backend.arange(size - 1, like=matrix)
    if size == 1:
        return xp.where(xp.isnan(matrix[..., 0]) | (matrix[..., 0] == -inf), xp.nan, 0.0)
    (_, last), (gone, into, is_split) = backend.scan(cut, (matrix, is_here), rounds)

    def restore(weight: Array, item: Any) -> tuple[Array, None]:
        gone, into = item
        mass = logsumexp(backend, weight + into, keepdims=True)
        return xp.where(states == gone[..., None], mass, weight), None

    order = tuple(xp.flip(x, axis=0) for x in (gone, into))
    weight, _ = backend.scan(restore, xp.where(last, xp.zeros_like(matrix[..., 0]), -inf), order)
    is_dead = xp.any(xp.max(matrix, axis=-1) == -inf, axis=-1)
    is_single = ~xp.any(is_split, axis=0) & ~is_dead
    return xp.where(is_single[..., None], log_normalize(backend, weight), xp.nan)


def _with_gradient(backend: Backend, matrix: Array, value: Array) -> Array:
    """`value`, with the derivatives of log x where x solves x (I - P + 1 1^T / K) = 1^T / K."""
    xp, size = backend.xp, matrix.shape[-1]
    p = xp.exp(matrix)
    one = backend.full((size, 1), 1.0 / size, like=matrix)
    eye = backend.asarray(np.eye(size), like=matrix)
    system = xp.astype(eye, matrix.dtype) - p + 1.0 / size
    x = xp.linalg.solve(xp.matrix_transpose(system), xp.broadcast_to(one, (*matrix.shape[:-2], size, 1)))[..., 0]
    share = xp.exp(value)
    is_reached = share > 0
    change = (x - backend.stop_gradient(x)) / xp.where(is_reached, share, 1.0)
    return value + xp.where(is_reached, xp.log1p(xp.where(is_reached, change, 0.0)), 0.0)
