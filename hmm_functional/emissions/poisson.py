"""Counts: the Poisson log-probability, expected statistics, and M-step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from .._check import need_floating, need_shape
from ..backend import Array, Backend, backend_of
from ..numerics import is_seen, wide
from .constraints import held, need_at_least


def poisson_log_prob(observations: Array, rates: Array) -> Array:
    """log p(x_t given z_t = k) of D independent counts.

    Args:
        observations: (..., T, D), whole numbers from 0, of an integer or a floating-point dtype.
        rates: (K, D), expected counts; 0 allows the count 0 alone.

    Returns:
        (..., T, K), nats, in the dtype of the rates.

    Raises:
        TypeError: rates that are not floating-point. ValueError: shapes.

    Cost: O(B T K D), one matrix product; log x! once a frame.

    References: log p(x) = x log(rate) - rate - log x!

    Example:
        >>> import torch, hmm_functional as hf
        >>> hf.poisson_log_prob(torch.tensor([[0], [2]]), torch.tensor([[1.0], [2.0]])).exp()
        tensor([[0.3679, 0.1353],
                [0.1839, 0.2707]])
    """
    backend = backend_of(observations=observations, rates=rates)
    xp = backend.xp
    x, rates = beside(backend, observations, "rates", rates)
    is_zero = rates == 0
    log_rates = xp.log(xp.where(is_zero, 1.0, rates))
    turn = xp.matrix_transpose
    found = x @ turn(log_rates) - xp.sum(rates, axis=-1)
    found = found - xp.sum(backend.log_gamma(x + 1.0), axis=-1, keepdims=True)
    # x log(0): 0 for the count 0, else impossible
    is_impossible = x @ turn(xp.astype(is_zero, x.dtype)) > 0
    return xp.where(is_impossible, -xp.inf, found)


class PoissonParameters(NamedTuple):
    """Rates (K, D)."""

    rates: Array


class PoissonStatistics(NamedTuple):
    """Expected frames (K,) of each state, and sums of their observations, (K, D)."""

    counts: Array
    sums: Array


@dataclass(frozen=True)
class Poisson:
    """The family of counts, for `hmm_functional.learning`.

    Args:
        shape: of the gamma prior of each rate, at least 1; a number or (K, D).
        rate: of the gamma prior, frames that it counts for; a number or (K, D).
    """

    shape: Any = 1.0
    rate: Any = 0.0

    def __post_init__(self) -> None:
        need_at_least("shape", self.shape, 1.0)
        need_at_least("rate", self.rate, 0.0)

    def log_prob(self, observations: Array, parameters: PoissonParameters) -> Array:
        """(..., T, K)."""
        return poisson_log_prob(observations, parameters.rates)

    def statistics(self, observations: Array, posteriors: Array, parameters: PoissonParameters) -> PoissonStatistics:
        """Weighted sums over all frames; posteriors (..., T, K), 0 where not observed."""
        backend = backend_of(observations=observations, posteriors=posteriors)
        return PoissonStatistics(*weighted_sums(backend, observations, posteriors))

    def m_step(
        self, statistics: PoissonStatistics, parameters: PoissonParameters, fixed: PoissonParameters | None = None
    ) -> PoissonParameters:
        """The rates of highest expected log-probability (and prior); a state without frames keeps its own."""
        (rates,), (counts, sums) = parameters, statistics
        backend = backend_of(rates=rates)
        xp = backend.xp
        total = counts[:, None] + self.rate + xp.zeros_like(sums)
        has_any = is_seen(xp, total)
        found = (sums + (self.shape - 1.0)) / xp.where(has_any, total, 1.0)
        found = xp.where(has_any, xp.astype(found, rates.dtype), rates)
        return PoissonParameters(held(None if fixed is None else fixed.rates, rates, found))

    def log_prior(self, parameters: PoissonParameters) -> Any:
        """log density of the parameters before any data, up to a constant."""
        (rates,) = parameters
        backend = backend_of(rates=rates)
        xp, power = backend.xp, self.shape - 1.0
        logs = xp.log(xp.where(rates > 0, rates, 1.0))
        return xp.sum(power * logs - self.rate * rates)


def beside(backend: Backend, observations: Array, name: str, parameters: Array) -> tuple[Array, Array]:
    """Observations (..., T, D) and parameters (K, D) of features of their own, checked, in one dtype."""
    xp = backend.xp
    need_floating(name, xp, parameters)
    if parameters.ndim != 2:
        raise ValueError(f"{name}: expected shape (K, D), got {tuple(parameters.shape)}")
    dim = parameters.shape[1]
    need_shape("observations", observations.shape, (None, dim), f"(..., T, D) with D = {dim} as in {name}")
    if xp.finfo(parameters.dtype).bits < 32:
        parameters = xp.astype(parameters, xp.float32)
    return xp.astype(observations, parameters.dtype), parameters


def weighted_sums(backend: Backend, observations: Array, weights: Array) -> tuple[Array, Array]:
    """Sums over frames of weights (..., T, K), (K,), and of weighted observations (..., T, D), (K, D)."""
    xp = backend.xp
    weights = wide(backend, xp.reshape(weights, (-1, weights.shape[-1])))
    x = xp.astype(xp.reshape(observations, (-1, observations.shape[-1])), weights.dtype)
    x = xp.where(xp.sum(weights, axis=-1, keepdims=True) > 0, x, 0.0)
    return xp.sum(weights, axis=0), xp.matrix_transpose(weights) @ x
