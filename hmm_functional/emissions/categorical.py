"""Symbols from a finite alphabet: their log-probability, expected statistics, and M-step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple

from .._check import need_floating, need_integers, need_range
from ..backend import Array, Backend, backend_of
from ..numerics import is_seen, wide
from .constraints import is_any, need_at_least
from .density import WORKSPACE


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


class CategoricalParameters(NamedTuple):
    """log p(symbol given state), (K, V)."""

    log_probs: Array


class CategoricalStatistics(NamedTuple):
    """How often each symbol is expected in each state, (K, V)."""

    counts: Array


@dataclass(frozen=True)
class Categorical:
    """The family of symbols, for `hmm_functional.learning`.

    Args:
        concentration: of the Dirichlet prior of each state's probabilities, a number or (K, V), at least 1.
    """

    concentration: Any = 1.0

    def __post_init__(self) -> None:
        need_at_least("concentration", self.concentration, 1.0)

    def log_prob(self, observations: Array, parameters: CategoricalParameters) -> Array:
        """(..., T, K)."""
        return categorical_log_prob(observations, parameters.log_probs)

    def statistics(
        self, observations: Array, posteriors: Array, parameters: CategoricalParameters
    ) -> CategoricalStatistics:
        """Weighted counts of the symbols, summed over all frames; posteriors (..., T, K), 0 where not observed."""
        backend = backend_of(observations=observations, posteriors=posteriors)
        xp, (num_states, num_symbols) = backend.xp, parameters.log_probs.shape
        symbols, weights = xp.reshape(observations, (-1,)), xp.reshape(posteriors, (-1, num_states))
        every = backend.arange(num_symbols, like=symbols)
        length = max(1, WORKSPACE // (num_symbols + num_states))
        counts = wide(backend, xp.zeros_like(parameters.log_probs))
        for start in range(0, symbols.shape[0], length):
            part = wide(backend, weights[start : start + length, ...])
            is_symbol = xp.astype(symbols[start : start + length, None] == every, part.dtype)
            counts = counts + xp.matrix_transpose(part) @ is_symbol
        return CategoricalStatistics(counts)

    def m_step(
        self,
        statistics: CategoricalStatistics,
        parameters: CategoricalParameters,
        fixed: CategoricalParameters | None = None,
    ) -> CategoricalParameters:
        """The probabilities of highest expected log-probability (and prior); zeros stay, and what is `fixed`."""
        backend = backend_of(log_probs=parameters.log_probs)
        (counts,), (old,) = statistics, parameters
        (held,) = (None,) if fixed is None else fixed
        return CategoricalParameters(maximize_probabilities(backend, counts, old, self.concentration, held))

    def log_prior(self, parameters: CategoricalParameters) -> Any:
        """log density of the parameters before any data, up to a constant."""
        return dirichlet_log_density(parameters.log_probs, self.concentration)


def maximize_probabilities(
    backend: Backend, counts: Array, log_old: Array, concentration: Any = 1.0, is_fixed: Any = None
) -> Array:
    """Log-probabilities along the last axis from expected counts and a Dirichlet prior: the mode.

    Entries of -inf in `log_old`, and those that `is_fixed` marks, stay; the others share what these leave. A row
    without counts or prior keeps the values of `log_old`.
    """
    return maximize_groups(
        backend, counts, log_old, concentration, is_fixed, lambda x: backend.xp.sum(x, axis=-1, keepdims=True)
    )


def maximize_groups(
    backend: Backend,
    counts: Array,
    log_old: Array,
    concentration: Any,
    is_fixed: Any,
    total_of: Callable[[Array], Array],
) -> Array:
    """The same of probabilities that sum to one over groups; `total_of` sums an array over each entry's own group."""
    xp = backend.xp
    if is_fixed is True:
        return log_old
    is_free, rest = log_old > -inf, None
    if is_any(is_fixed):
        old = wide(backend, log_old)
        rest = xp.clip(1.0 - total_of(xp.where(is_fixed, xp.exp(old), 0.0)), 0.0, 1.0)
        is_free = xp.logical_and(is_free, xp.logical_not(is_fixed))
    counts = xp.where(is_free, counts + (concentration - 1.0), 0.0)
    total = total_of(counts)
    has_any = is_seen(xp, total)
    found = counts / xp.where(has_any, total, 1.0)
    found = backend.log(found if rest is None else found * rest)
    found = xp.where(has_any, xp.astype(found, log_old.dtype), log_old)
    return found if rest is None else xp.where(is_fixed, log_old, found)


def dirichlet_log_density(log_probs: Array, concentration: Any) -> Any:
    """log density of rows of probabilities under a Dirichlet prior, up to a constant; zeros are no part of it."""
    if isinstance(concentration, int | float) and concentration == 1:
        return 0.0
    backend = backend_of(log_probs=log_probs)
    xp = backend.xp
    return xp.sum(xp.where(log_probs > -inf, (concentration - 1.0) * xp.where(log_probs > -inf, log_probs, 0.0), 0.0))
