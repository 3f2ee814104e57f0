"""Durations by densities at whole numbers: gamma and Gaussian."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..backend import Array, Backend, backend_of
from ..emissions.constraints import held, is_any
from ..numerics import wide
from .exponential import fit_mean, fit_two
from .support import DurationFamily, Support, base_of, constant, need_rows, normalised, used

_LEAST_VARIANCE = 1e-2
_LEAST_SHAPE, _LARGEST_SHAPE = 1e-6, 1e9
_LEAST_RATE, _LARGEST_RATE = 1e-9, 1e9


def gamma_log_duration(shapes: Array, rates: Array, *, max_duration: Any, min_duration: Any = 1) -> Array:
    """log p of durations in proportion to the gamma density at each.

    Args:
        shapes: (..., K), above 0.
        rates: (..., K), per step, above 0; the density has the mean shape / rate, the variance shape / rate^2.
        max_duration, min_duration: steps, a number or one for each state.

    Returns:
        (..., K, D_max), nats: p(d) in proportion to d^(shape - 1) exp(-rate d) on min..max, -inf outside.

    Raises:
        TypeError: not floating-point. ValueError: shapes, or no such durations.

    References: Levinson 1986 (gamma durations), here normalised over whole numbers.

    Example:
        >>> import torch
        >>> from hmm_functional.durations import gamma_log_duration
        >>> gamma_log_duration(torch.tensor([2.0]), torch.tensor([1.0]), max_duration=3).exp()
        tensor([[0.4669, 0.3435, 0.1896]])
    """
    backend = backend_of(shapes=shapes, rates=rates)
    support, (shape, rate) = need_rows(backend, max_duration, min_duration, shapes=shapes, rates=rates)
    log_ratio, gap = _features(backend, support, shape)
    return normalised(backend, (shape - 1.0) * log_ratio - rate * gap, support, shapes)


def gaussian_log_duration(means: Array, variances: Array, *, max_duration: Any, min_duration: Any = 1) -> Array:
    """log p of durations in proportion to the Gaussian density at each.

    Args:
        means: (..., K), steps.
        variances: (..., K), steps^2, above 0.
        max_duration, min_duration: steps, a number or one for each state.

    Returns:
        (..., K, D_max), nats: p(d) in proportion to exp(-(d - mean)^2 / (2 variance)) on min..max, -inf outside.

    Raises:
        TypeError: not floating-point. ValueError: shapes, or no such durations.

    References: Zen et al. 2007 (durations of speech synthesis), here normalised over whole numbers.

    Example:
        >>> import torch
        >>> from hmm_functional.durations import gaussian_log_duration
        >>> gaussian_log_duration(torch.tensor([2.0]), torch.tensor([1.0]), max_duration=3).exp()
        tensor([[0.2741, 0.4519, 0.2741]])
    """
    backend = backend_of(means=means, variances=variances)
    support, (mean, variance) = need_rows(backend, max_duration, min_duration, means=means, variances=variances)
    middle = constant(backend, support.middle, mean)
    gaps = constant(backend, support.durations, mean) - middle
    # without mean^2, which cancels against nothing here
    return normalised(backend, (gaps * (mean - middle) - 0.5 * gaps * gaps) / variance, support, means)


def _features(backend: Backend, support: Support, like: Array) -> tuple[Array, Array]:
    """What the gamma density's powers and slopes weigh, about the middle of the possible durations."""
    log_ratio, gap = np.log(support.durations / support.middle), support.durations - support.middle
    return constant(backend, log_ratio, like), constant(backend, gap, like)


class GammaParameters(NamedTuple):
    """Shapes and rates per step, (K,) each."""

    shapes: Array
    rates: Array


class Gamma(DurationFamily):
    """Durations by the gamma density at whole numbers; see `gamma_log_duration`."""

    def log_prob(self, parameters: GammaParameters) -> Array:
        """(K, D_max)."""
        return gamma_log_duration(*parameters, max_duration=self.max_duration, min_duration=self.min_duration)

    def m_step(
        self, counts: Array, parameters: GammaParameters, fixed: GammaParameters | None = None
    ) -> GammaParameters:
        """The shapes and rates of highest expected log-probability, within 1e-6..1e9 and 1e-9..1e9."""
        (shapes, rates), backend = parameters, backend_of(counts=counts)
        xp = backend.xp
        fixed = GammaParameters(None, None) if fixed is None else fixed
        support, base = base_of(self, backend, counts)
        log_ratio, gap = (x + xp.zeros_like(counts) for x in _features(backend, support, counts))
        start, least, most = [], [], []
        for value, is_fixed, low, high, sign, shift in (
            (shapes, fixed.shapes, _LEAST_SHAPE, _LARGEST_SHAPE, 1.0, 1.0),
            (rates, fixed.rates, _LEAST_RATE, _LARGEST_RATE, -1.0, 0.0),
        ):
            natural = sign * (wide(backend, value) - shift)
            ends = sorted((sign * (low - shift), sign * (high - shift)))
            start.append(natural)
            least.append(held(is_fixed, natural, xp.full_like(natural, ends[0])))
            most.append(held(is_fixed, natural, xp.full_like(natural, ends[1])))
        power, slope = fit_two(backend, counts, base, (log_ratio, gap), start, least, most)
        return GammaParameters(
            held(fixed.shapes, shapes, used(backend, counts, power + 1.0, shapes)),
            held(fixed.rates, rates, used(backend, counts, -slope, rates)),
        )


class GaussianParameters(NamedTuple):
    """Means, steps, and variances, steps^2, (K,) each."""

    means: Array
    variances: Array


class Gaussian(DurationFamily):
    """Durations by the Gaussian density at whole numbers; see `gaussian_log_duration`."""

    def log_prob(self, parameters: GaussianParameters) -> Array:
        """(K, D_max)."""
        return gaussian_log_duration(*parameters, max_duration=self.max_duration, min_duration=self.min_duration)

    def m_step(
        self, counts: Array, parameters: GaussianParameters, fixed: GaussianParameters | None = None
    ) -> GaussianParameters:
        """The means and variances of highest expected log-probability.

        Variances stay within 1e-2..(10 D_max)^2: durations that fall all the way are the tail of a wide Gaussian far
        away.
        """
        (means, variances), backend = parameters, backend_of(counts=counts)
        xp = backend.xp
        support, base = base_of(self, backend, counts)
        middle = constant(backend, support.middle, counts)
        gaps = constant(backend, support.durations, counts) - middle + xp.zeros_like(counts)
        middle = middle[:, 0]
        largest = (10.0 * support.longest) ** 2
        old_mean, old_variance = wide(backend, means) - middle, wide(backend, variances)
        reach = xp.full_like(old_mean, 1e3 * largest)
        flattest, sharpest = xp.full_like(old_mean, 1.0 / largest), xp.full_like(old_mean, 1.0 / _LEAST_VARIANCE)
        slope, sharpness = fit_two(
            backend,
            counts,
            base,
            (gaps, -0.5 * gaps * gaps),
            (old_mean / old_variance, 1.0 / old_variance),
            (-reach, flattest),
            (reach, sharpest),
        )
        mean, variance = slope / sharpness, 1.0 / sharpness
        if fixed is not None and (is_any(fixed.means) or is_any(fixed.variances)):
            start = 1.0 / old_variance
            squares = gaps * old_mean[:, None] - 0.5 * gaps * gaps
            bounds = xp.minimum(flattest, start), xp.maximum(sharpest, start)
            alone = fit_mean(backend, counts, base, squares, start, *bounds)
            variance = held(fixed.means, 1.0 / alone, variance)
            base = base - 0.5 * gaps * gaps / old_variance[:, None]
            moved = fit_mean(backend, counts, base, gaps / old_variance[:, None], old_mean, -reach, reach)
            mean = held(fixed.variances, moved, mean)
            mean, variance = held(fixed.means, old_mean, mean), held(fixed.variances, old_variance, variance)
        fixed = GaussianParameters(None, None) if fixed is None else fixed
        return GaussianParameters(
            held(fixed.means, means, used(backend, counts, mean + middle, means)),
            held(fixed.variances, variances, used(backend, counts, variance, variances)),
        )
