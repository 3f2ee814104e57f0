"""Durations as counts of the steps beyond the least: geometric, Poisson, and negative binomial."""

from __future__ import annotations

from math import inf, lgamma, log
from typing import Any, NamedTuple

import numpy as np

from ..backend import Array, Backend, backend_of
from ..emissions.constraints import held, is_any
from ..emissions.moments import wide
from ..numerics import multiply
from .exponential import fit_exponential
from .support import DurationFamily, Support, constant, need_rows, normalised, support_of, used

_LEAST, _MOST = log(1e-12), log(1.0 - 1e-12)
"""Of log probabilities of going on."""
_LARGEST_RATE = 1e13


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
    """log n! of NumPy's whole numbers."""
    return np.array([lgamma(n + 1.0) for n in range(int(extra.max()) + 1)])[extra]


def _log_ways(backend: Backend, total: Array, support: Support) -> Array:
    """log C(n + r - 1, n) for r (..., K), (..., K, D_max): sums of logs, exact for any r."""
    xp, count = backend.xp, support.durations.shape[-1]
    before = constant(backend, np.arange(count - 1), total)
    logs = xp.log((total[..., None] + before) / (before + 1.0))
    zeros = xp.zeros_like(total[..., None])
    sums = xp.concat([zeros, xp.cumulative_sum(logs, axis=-1)], axis=-1)
    index = np.zeros((1,) * (total.ndim - 1) + (total.shape[-1], count), np.int64) + support.extra
    return backend.take_along(sums, backend.asarray(index, like=total), -1)


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
        start = backend.log(backend.xp.clip(wide(backend, old), 1e-12, 1.0))
        _, extra, base = _tables(self, backend, counts)
        found, _ = _go_on(backend, counts, base, extra, start)
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
        found, _ = _go_on(backend, counts, base, extra, start, log(_LARGEST_RATE))
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
        """The best probabilities for each of several total counts around the old, again and again in smaller steps.

        Total counts stay within 1e-2..1e6 and probabilities of another step below 1.
        """
        (old, old_probs), backend = parameters, backend_of(counts=counts)
        xp, (num_states, count) = backend.xp, counts.shape
        support, extra, base = _tables(self, backend, counts)
        log_total = xp.log(xp.clip(wide(backend, old), 1e-2, 1e6))
        log_probs = backend.log(xp.clip(wide(backend, old_probs), 1e-12, 1.0 - 1e-12))
        fixed = NegativeBinomialParameters(None, None) if fixed is None else fixed
        moves = constant(backend, [-1.0, -0.5, 0.0, 0.5, 1.0], log_total)[:, None]
        if is_any(fixed.total_counts):
            moves = xp.where(fixed.total_counts, 0.0, moves + xp.zeros_like(log_total))
        tries = moves.shape[0]
        flat = (tries * num_states, count)
        several, steps = (xp.reshape(xp.broadcast_to(x, (tries, num_states, count)), flat) for x in (counts, extra))
        for width in (2.0, 0.8, 0.3, 0.12, 0.05, 0.02, 0.008, 0.003, 0.001, 4e-4, 1e-4):
            totals = xp.clip(log_total + width * moves, log(1e-2), log(1e6))
            bases = xp.reshape(base + _log_ways(backend, xp.exp(totals), support), flat)
            start = xp.reshape(xp.broadcast_to(log_probs, (tries, num_states)), (-1,))
            bounds: tuple[Any, Any] = (None, None)
            if is_any(fixed.probs):
                is_held = xp.reshape(xp.broadcast_to(_mask(xp, fixed.probs, old_probs), (tries, num_states)), (-1,))
                bounds = (xp.where(is_held, start, _LEAST), xp.where(is_held, start, _MOST))
            found, values = _go_on(backend, several, bases, steps, start, _MOST, *bounds)
            values = xp.reshape(values, (tries, num_states))
            best = xp.argmax(values, axis=0)[None, :]
            log_total = backend.take_along(totals, best, 0)[0, :]
            log_probs = backend.take_along(xp.reshape(found, (tries, num_states)), best, 0)[0, :]
        total = held(fixed.total_counts, old, used(backend, counts, xp.exp(log_total), old))
        probs = held(fixed.probs, old_probs, used(backend, counts, xp.exp(log_probs), old_probs))
        return NegativeBinomialParameters(total, probs)


def _mask(xp: Any, is_fixed: Any, like: Array) -> Array:
    return xp.ones_like(like, dtype=xp.bool) if is_fixed is True else is_fixed


def _tables(family: DurationFamily, backend: Backend, counts: Array) -> tuple[Support, Array, Array]:
    """The support; steps beyond the least, (K, D_max); and 0 for what is possible, else -inf."""
    support = support_of(family.max_duration, family.min_duration, counts.shape[0])
    zeros = backend.xp.zeros_like(counts)
    extra = constant(backend, support.extra, counts) + zeros
    return support, extra, backend.xp.where(backend.asarray(support.is_possible, like=counts), zeros, -inf)


def _go_on(
    backend: Backend,
    counts: Array,
    base: Array,
    extra: Array,
    start: Array,
    largest: float = _MOST,
    least: Array | None = None,
    most: Array | None = None,
) -> tuple[Array, Array]:
    """The best factor, as a log, that each further step weighs, (S,), and what it is worth."""
    xp = backend.xp
    least = xp.full_like(start, _LEAST) if least is None else least
    most = xp.full_like(start, largest) if most is None else most
    (found,), value = fit_exponential(backend, counts, base, [extra], [start], [least], [most])
    return found, value
