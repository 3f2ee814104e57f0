"""Durations as counts of the steps beyond the least: geometric, Poisson, and negative binomial."""

from __future__ import annotations

from math import log
from typing import Any, NamedTuple

import numpy as np

from ..backend import Array, Backend, backend_of
from ..emissions.constraints import held
from ..numerics import logsumexp, multiply, softmax, wide
from .exponential import fit_mean, repeated, shares
from .support import DurationFamily, Support, base_of, constant, need_rows, normalised, used

_LEAST, _MOST = log(1e-12), log(1.0 - 1e-12)
"""Of log probabilities of going on."""
_LARGEST_RATE = 1e13
_TOTALS = log(1e-2), log(1e6)
_GRID, _HALVES = 14, 30


def geometric_log_duration(self_loops: Array, *, max_duration: Any, min_duration: Any = 1) -> Array:
    """log p of durations that go on with the same probability after each step, as states of a plain HMM do.

    Args:
        self_loops: (..., K), probability of another step, in [0, 1).
        max_duration, min_duration: steps, a number or one for each state.

    Returns:
        (..., K, D_max), nats: p(d) in proportion to self_loop^(d - min_duration) on min..max, -inf outside.

    Raises:
        TypeError: not floating-point. ValueError: shapes, or no such durations.

    Example:
        >>> import torch
        >>> from hmm_functional.durations import geometric_log_duration
        >>> geometric_log_duration(torch.tensor([0.5]), max_duration=3).exp()
        tensor([[0.5714, 0.2857, 0.1429]])
    """
    backend = backend_of(self_loops=self_loops)
    support, (loops,) = need_rows(backend, max_duration, min_duration, self_loops=self_loops)
    extra = constant(backend, support.extra, loops)
    return normalised(backend, multiply(backend, extra, backend.log(loops)), support, self_loops)


def poisson_log_duration(rates: Array, *, max_duration: Any, min_duration: Any = 1) -> Array:
    """log p of durations whose steps beyond the least are Poisson.

    Args:
        rates: (..., K), mean number of steps beyond the least (before durations above the largest are ruled out).
        max_duration, min_duration: steps, a number or one for each state.

    Returns:
        (..., K, D_max), nats: p(d) in proportion to rate^n / n!, n = d - min_duration, on min..max, -inf outside.

    Raises:
        TypeError: not floating-point. ValueError: shapes, or no such durations.

    References: Johnson and Willsky 2013, section 2.2, whose min_duration is 1.

    Example:
        >>> import torch
        >>> from hmm_functional.durations import poisson_log_duration
        >>> poisson_log_duration(torch.tensor([1.0]), max_duration=3).exp()
        tensor([[0.4000, 0.4000, 0.2000]])
    """
    backend = backend_of(rates=rates)
    support, (rate,) = need_rows(backend, max_duration, min_duration, rates=rates)
    extra = constant(backend, support.extra, rate)
    fixed = constant(backend, _log_factorial(support.extra), rate)
    return normalised(backend, multiply(backend, extra, backend.log(rate)) - fixed, support, rates)


def negative_binomial_log_duration(
    total_counts: Array, probs: Array, *, max_duration: Any, min_duration: Any = 1
) -> Array:
    """log p of durations whose steps beyond the least are negative binomial: a sum of `total_counts` geometric ones.

    Args:
        total_counts: (..., K), r above 0, any real number: 1 is geometric, large ones come close to Poisson.
        probs: (..., K), q in [0, 1), probability of another step.
        max_duration, min_duration: steps, a number or one for each state.

    Returns:
        (..., K, D_max), nats: p(d) in proportion to C(n + r - 1, n) q^n, n = d - min_duration, on min..max, -inf
        outside. Before the largest is ruled out n has the mean r q / (1 - q).

    Raises:
        TypeError: not floating-point. ValueError: shapes, or no such durations.

    References: Johnson and Willsky 2013, section 4; parametrised as torch.distributions.NegativeBinomial.

    Example:
        >>> import torch
        >>> from hmm_functional.durations import negative_binomial_log_duration
        >>> negative_binomial_log_duration(torch.tensor([2.0]), torch.tensor([0.5]), max_duration=3).exp()
        tensor([[0.3636, 0.3636, 0.2727]])
    """
    backend = backend_of(total_counts=total_counts, probs=probs)
    support, (total, q) = need_rows(backend, max_duration, min_duration, total_counts=total_counts, probs=probs)
    extra = constant(backend, support.extra, q)
    weights = multiply(backend, extra, backend.log(q)) + _log_ways(backend, total[..., 0], support)
    return normalised(backend, weights, support, probs)


def _log_factorial(extra: Any) -> Any:
    """log n! of NumPy's whole numbers (K, D_max), below D_max."""
    logs = np.log(np.arange(1, extra.shape[-1] + 1))
    return np.cumsum(np.concatenate([logs[:1], logs[:-1]]))[extra]


def _log_ways(backend: Backend, total: Array, support: Support) -> Array:
    """log C(n + r - 1, n) for r (..., K), (..., K, D_max): sums of logs, exact for any r."""
    before = constant(backend, np.arange(support.longest - 1), total)
    return _up_to(backend, backend.xp.log((total[..., None] + before) / (before + 1.0)), support)


def _up_to(backend: Backend, terms: Array, support: Support) -> Array:
    """Sums of the first n of the terms (..., K, D_max - 1), n the steps beyond the least, (..., K, D_max)."""
    xp = backend.xp
    none = backend.full((*terms.shape[:-1], 1), 0.0, like=terms)
    first = xp.moveaxis(xp.concat([none, terms], axis=-1), -1, 0)
    (sums,) = backend.associative_scan(lambda x, y: (x[0] + y[0],), (first,))  # a cumulative sum that compiles
    sums = xp.moveaxis(sums, 0, -1)
    index = np.zeros((1,) * (terms.ndim - 2) + (terms.shape[-2], support.longest), np.int64) + support.extra
    return backend.take_along(sums, backend.asarray(index, like=terms), -1)


class GeometricParameters(NamedTuple):
    """Probability of another step, (K,)."""

    self_loops: Array


class Geometric(DurationFamily):
    """Durations that go on with the same probability after each step; see `geometric_log_duration`."""

    def log_prob(self, parameters: GeometricParameters) -> Array:
        """(K, D_max)."""
        return geometric_log_duration(
            parameters.self_loops, max_duration=self.max_duration, min_duration=self.min_duration
        )

    def m_step(
        self, counts: Array, parameters: GeometricParameters, fixed: GeometricParameters | None = None
    ) -> GeometricParameters:
        """The probabilities of highest expected log-probability, below 1."""
        (old,), backend = parameters, backend_of(counts=counts)
        start = backend.log(backend.xp.clip(wide(backend, old), 1e-12, 1.0 - 1e-12))
        _, extra, base = _tables(self, backend, counts)
        found = fit_mean(backend, counts, base, extra, start, *_bounds(backend, start, _LEAST, _MOST))
        found = used(backend, counts, backend.xp.exp(found), old)
        return GeometricParameters(held(None if fixed is None else fixed.self_loops, old, found))


class PoissonParameters(NamedTuple):
    """Mean number of steps beyond the least, (K,)."""

    rates: Array


class Poisson(DurationFamily):
    """Durations whose steps beyond the least are Poisson; see `poisson_log_duration`."""

    def log_prob(self, parameters: PoissonParameters) -> Array:
        """(K, D_max)."""
        return poisson_log_duration(parameters.rates, max_duration=self.max_duration, min_duration=self.min_duration)

    def m_step(
        self, counts: Array, parameters: PoissonParameters, fixed: PoissonParameters | None = None
    ) -> PoissonParameters:
        """The rates of highest expected log-probability, within 1e-12..1e13."""
        (old,), backend = parameters, backend_of(counts=counts)
        support, extra, base = _tables(self, backend, counts)
        base = base - constant(backend, _log_factorial(support.extra), counts)
        start = backend.log(backend.xp.clip(wide(backend, old), 1e-12, _LARGEST_RATE))
        found = fit_mean(backend, counts, base, extra, start, *_bounds(backend, start, _LEAST, log(_LARGEST_RATE)))
        found = used(backend, counts, backend.xp.exp(found), old)
        return PoissonParameters(held(None if fixed is None else fixed.rates, old, found))


class NegativeBinomialParameters(NamedTuple):
    """Numbers of geometric parts, (K,), and the probability of another step, (K,)."""

    total_counts: Array
    probs: Array


class NegativeBinomial(DurationFamily):
    """Durations whose steps beyond the least are negative binomial; see `negative_binomial_log_duration`."""

    def log_prob(self, parameters: NegativeBinomialParameters) -> Array:
        """(K, D_max)."""
        return negative_binomial_log_duration(
            *parameters, max_duration=self.max_duration, min_duration=self.min_duration
        )

    def m_step(
        self, counts: Array, parameters: NegativeBinomialParameters, fixed: NegativeBinomialParameters | None = None
    ) -> NegativeBinomialParameters:
        """The total counts and probabilities of highest expected log-probability, within 1e-2..1e6 and below 1.

        What the best probabilities for a total count are worth is looked at on a grid of total counts, and its maximum
        found by halves, where its slope changes sign.
        """
        (old, old_probs), backend = parameters, backend_of(counts=counts)
        xp, (support, extra, base) = backend.xp, _tables(self, backend, counts)
        fixed = NegativeBinomialParameters(None, None) if fixed is None else fixed
        log_total = xp.log(wide(backend, old))
        log_probs = backend.log(xp.clip(wide(backend, old_probs), 1e-12, 1.0 - 1e-12))
        least, most = _bounds(backend, log_probs, _LEAST, _MOST, fixed.probs)
        low, high = _bounds(backend, log_total, *_TOTALS, fixed.total_counts)
        share = shares(backend, counts)

        def profile(log_total: Array, log_probs: Array) -> tuple[Array, Array, Array]:  # (..., K)
            """The best log probabilities, what they are worth, and its slope."""
            total = xp.exp(log_total)
            ways = _log_ways(backend, total, support)
            found = fit_mean(backend, counts, base + ways, extra, log_probs, least, most)
            own = ways + found[..., None] * extra
            weights = base + own
            value = xp.sum(share * own, axis=-1) - logsumexp(backend, weights)
            before = constant(backend, np.arange(support.longest - 1), total)
            slopes = _up_to(backend, total[..., None] / (total[..., None] + before), support)
            return found, value, xp.sum((share - softmax(backend, weights)) * slopes, axis=-1)

        # the grid's rows, and the total counts at hand
        grid = xp.stack([*(low + (high - low) * (i / _GRID) for i in range(_GRID + 1)), log_total])
        probs, values, _ = profile(grid, log_probs + xp.zeros_like(grid))
        best = xp.argmax(values[:-1, :], axis=0)[None, :]
        low, high = (backend.take_along(grid, xp.clip(best + i, 0, _GRID), 0)[0, :] for i in (-1, 1))

        def halve(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            low, high, log_probs = carry
            middle = 0.5 * (low + high)
            log_probs, _, slope = profile(middle, log_probs)
            return xp.where(slope > 0, middle, low), xp.where(slope > 0, high, middle), log_probs

        carry = (low, high, backend.take_along(probs, best, 0)[0, :])
        low, high, near = repeated(backend, halve, carry, lambda before, after: after[1] - after[0] < 1e-8, _HALVES)
        middle = 0.5 * (low + high)
        found, value, _ = profile(middle, near)
        is_better = value > values[-1, :]
        log_total, log_probs = xp.where(is_better, middle, log_total), xp.where(is_better, found, probs[-1, :])
        total = held(fixed.total_counts, old, used(backend, counts, xp.exp(log_total), old))
        return NegativeBinomialParameters(
            total, held(fixed.probs, old_probs, used(backend, counts, xp.exp(log_probs), old_probs))
        )


def _bounds(backend: Backend, start: Array, low: float, high: float, is_fixed: Any = None) -> tuple[Array, Array]:
    """Of parameters (K,): the same for all, but `start` where one is fixed."""
    return tuple(held(is_fixed, start, backend.xp.full_like(start, end)) for end in (low, high))


def _tables(family: DurationFamily, backend: Backend, counts: Array) -> tuple[Support, Array, Array]:
    """The support; steps beyond the least, (K, D_max); and 0 for what is possible, else -inf."""
    support, base = base_of(family, backend, counts)
    return support, constant(backend, support.extra, counts) + backend.xp.zeros_like(counts), base
