"""Multivariate Student t emissions, which outliers move little: their log-density, expected statistics, and M-step."""

from __future__ import annotations

from dataclasses import dataclass
from math import log, pi
from typing import Any, NamedTuple

from .._check import need_shape
from ..backend import Array, Backend, backend_of
from ..numerics import is_seen, wide
from .constraints import held
from .density import common, need_covariances, need_frame_shapes
from .gaussian import gaussian_log_prob
from .moments import GaussianFamily, GaussianStatistics, centre_of, maximize_gaussians, weighted_moments

_LEAST, _MOST = 0.1, 1e6
"""Degrees of freedom that the M-step looks between; the most is a Gaussian to six digits."""


def student_t_log_prob(
    observations: Array,
    means: Array,
    covariances: Array,
    degrees_of_freedom: Array,
    *,
    covariance_type: str = "diag",
) -> Array:
    """log p(x_t given z_t = k) of multivariate Student t emissions.

    Args:
        observations: (..., T, D).
        means: (K, D), or (..., T or 1, K, D), those of each frame.
        covariances: scale matrices, as `gaussian_log_prob`'s covariances; the covariance of x is that times
            degrees / (degrees - 2). One chi-square variable scales all features, with diagonal matrices too.
        degrees_of_freedom: (K,), above 0; few give heavy tails, many a Gaussian.
        covariance_type: as in `gaussian_log_prob`.

    Returns:
        (..., T, K), nats.

    Raises, Cost: as `gaussian_log_prob`.

    References: Liu and Rubin 1995, equation 1.

    Example:
        >>> import torch, hmm_functional as hf
        >>> hf.student_t_log_prob(torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, 1), torch.ones(1)).exp()
        tensor([[0.3183]])
    """
    backend = backend_of(
        observations=observations, means=means, covariances=covariances, degrees_of_freedom=degrees_of_freedom
    )
    need_shape("means", means.shape, (None, None), "(K, D)")
    num_states, dim = means.shape[-2:]
    need_shape("degrees_of_freedom", degrees_of_freedom.shape, (num_states,), "(K,) as in means")
    observations, (means, covariances, degrees) = common(
        backend, observations, means=means, covariances=covariances, degrees_of_freedom=degrees_of_freedom
    )
    if means.ndim > 2:
        need_frame_shapes(observations.shape, means.shape, covariances.shape, covariance_type)
    else:
        need_covariances(covariances.shape, covariance_type, num_states, None, dim)
    squares = _squares(backend, observations, means, covariances, covariance_type)
    half = 0.5 * (degrees + dim)
    constant = backend.log_gamma(half) - backend.log_gamma(0.5 * degrees) - 0.5 * dim * backend.xp.log(pi * degrees)
    constant = constant - 0.5 * _log_det(backend, covariances, covariance_type, dim)
    return constant - half * backend.xp.log1p(squares / degrees)


def _squares(backend: Backend, observations: Array, means: Array, covariances: Array, covariance_type: str) -> Array:
    """Squared distances (..., T, K) in units of the scale."""
    xp, dim = backend.xp, means.shape[-1]
    peak = -0.5 * (dim * log(2 * pi) + _log_det(backend, covariances, covariance_type, dim))
    gaussian = gaussian_log_prob(observations, means, covariances, covariance_type=covariance_type)
    found = 2.0 * (peak - gaussian)
    return xp.where(found < 0, 0.0 * found, found)


def _log_det(backend: Backend, covariances: Array, covariance_type: str, dim: int) -> Array:
    """Log determinants, (K,) or (), or (..., T or 1, K) with covariances of each frame."""
    xp = backend.xp
    if covariance_type in ("full", "tied"):
        return 2 * xp.sum(xp.log(xp.linalg.diagonal(xp.linalg.cholesky(covariances))), axis=-1)
    if covariance_type == "spherical":
        return dim * xp.log(covariances)
    return xp.sum(xp.log(covariances), axis=-1)


class StudentTParameters(NamedTuple):
    """Means (K, D), scale matrices in the shape of their type, degrees of freedom (K,)."""

    means: Array
    covariances: Array
    degrees_of_freedom: Array


class StudentTStatistics(NamedTuple):
    """Moments under posteriors times the expected precision of each frame, and what degrees of freedom need."""

    moments: GaussianStatistics
    frames: Array
    """(K,): posteriors alone."""
    logs: Array
    """(K,): sums of posteriors times E[log u - u], u the precision of a frame."""

    @property
    def counts(self) -> Array:
        """(K,): expected frames."""
        return self.frames


@dataclass(frozen=True)
class StudentT(GaussianFamily):
    """The family of multivariate Student t emissions, for `hmm_functional.learning`.

    Args:
        covariance_type: as in `gaussian_log_prob`.
        variance_floor: the least scale, a number or (D,).
        learns_degrees: whether degrees of freedom are learned, or stay.

    References: Liu and Rubin 1995, sections 2 and 3 (EM, with u as missing data).
    """

    learns_degrees: bool = True

    def log_prob(self, observations: Array, parameters: StudentTParameters) -> Array:
        """(..., T, K)."""
        return student_t_log_prob(observations, *parameters, covariance_type=self.covariance_type)

    def statistics(self, observations: Array, posteriors: Array, parameters: StudentTParameters) -> StudentTStatistics:
        """Sums over all frames; posteriors (..., T, K), probabilities times weights, 0 where not observed."""
        means, covariances, degrees = parameters
        backend = backend_of(observations=observations, posteriors=posteriors, means=means)
        xp, dim = backend.xp, means.shape[-1]
        is_read = xp.sum(posteriors, axis=-1, keepdims=True) > 0
        observations = xp.where(is_read, observations, 0.0)
        squares = _squares(backend, observations, means, covariances, self.covariance_type)
        half = 0.5 * (degrees + dim)
        rate = 0.5 * (degrees + squares)
        precisions = half / rate
        logs = backend.digamma(half) - xp.log(rate) - precisions
        weights = wide(backend, xp.reshape(posteriors, (-1, means.shape[0])))
        flat = wide(backend, xp.reshape(logs, (-1, means.shape[0])))
        centre = centre_of(backend, means)
        moments = weighted_moments(backend, observations, posteriors * precisions, centre, self.covariance_type)
        return StudentTStatistics(
            moments, xp.sum(weights, axis=0), xp.sum(xp.where(weights > 0, weights * flat, 0.0), axis=0)
        )

    def m_step(
        self, statistics: StudentTStatistics, parameters: StudentTParameters, fixed: StudentTParameters | None = None
    ) -> StudentTParameters:
        """The parameters of highest expected log-density; a state without frames keeps its own."""
        means, covariances, degrees = parameters
        moments, frames, logs = statistics
        backend = backend_of(means=means)
        xp = backend.xp
        means, covariances = maximize_gaussians(
            moments,
            means,
            covariances,
            self.covariance_type,
            floor=self.variance_floor,
            frames=frames,
            fixed=(None, None) if fixed is None else fixed[:2],
        )
        if self.learns_degrees:
            has_any = is_seen(xp, frames)
            mean = logs / xp.where(has_any, frames, 1.0)
            found = xp.astype(_degrees(backend, mean), degrees.dtype)
            found = xp.where(has_any, found, degrees)
            degrees = held(None if fixed is None else fixed.degrees_of_freedom, degrees, found)
        return StudentTParameters(means, covariances, degrees)

    def moved(self, statistics: StudentTStatistics, old: Any, new: Any) -> StudentTStatistics:
        """Statistics made with the old parameters, as if with the new ones' centre."""
        return statistics._replace(moments=super().moved(statistics.moments, old, new))

    def log_prior(self, parameters: StudentTParameters) -> Any:
        """0: there is no prior."""
        return 0.0


def _degrees(backend: Backend, mean: Array) -> Array:
    """The v where log(v / 2) - digamma(v / 2) + 1 + mean = 0, by bisection of log v; the left side falls with v."""
    xp = backend.xp
    low, high = xp.zeros_like(mean) + log(_LEAST), xp.zeros_like(mean) + log(_MOST)
    for _ in range(60):
        middle = 0.5 * (low + high)
        half = 0.5 * xp.exp(middle)
        is_below = xp.log(half) - backend.digamma(half) + 1.0 + mean > 0
        low, high = xp.where(is_below, middle, low), xp.where(is_below, high, middle)
    return xp.exp(0.5 * (low + high))
