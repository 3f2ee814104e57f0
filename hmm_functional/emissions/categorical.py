"""Symbols from a finite alphabet."""

from __future__ import annotations

from .._check import need_floating, need_integers, need_range
from ..backend import Array, backend_of


def categorical_log_prob(observations: Array, log_probs: Array) -> Array:
    """log p(x_t given z_t = k) of symbols.

    Args:
        observations: (..., T) integers 0..V-1.
        log_probs: (K, V), log p(symbol given state), nats.

    Returns:
        (..., T, K), nats.

    Raises:
        TypeError: observations that are not integers, or log_probs not floating-point. ValueError: shapes, or, where
            values can be read, a symbol outside 0..V-1.

    Cost: O(B T K).

    Example:
        >>> import torch, hmm_functional as hf
        >>> hf.categorical_log_prob(torch.tensor([0, 1]), torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()).exp()
        tensor([[0.5000, 0.9000],
                [0.5000, 0.1000]])
    """
    backend = backend_of(observations=observations, log_probs=log_probs)
    xp = backend.xp
    need_integers("observations", xp, observations)
    need_floating("log_probs", xp, log_probs)
    if log_probs.ndim != 2:
        raise ValueError(f"log_probs: expected shape (K, V), got {tuple(log_probs.shape)}")
    if observations.ndim < 1:
        raise ValueError(f"observations: expected shape (..., T), got {tuple(observations.shape)}")
    num_states, num_symbols = log_probs.shape
    if not backend.is_traced(observations) and backend.is_host(observations):
        need_range("observations", backend.to_numpy(observations), 0, num_symbols - 1)
    if xp.finfo(log_probs.dtype).bits < 32:
        log_probs = xp.astype(log_probs, xp.float32)
    rows = xp.take(xp.matrix_transpose(log_probs), xp.reshape(observations, (-1,)), axis=0)
    return xp.reshape(rows, (*observations.shape, num_states))
