"""Mixtures of Gaussians: their log-density, expected statistics, and M-step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .._check import need_shape
from ..backend import Array, Backend, backend_of
from ..numerics import logsumexp, softmax
from .categorical import dirichlet_log_density, maximize_probabilities
from .constraints import need_at_least
from .density import (
    WORKSPACE,
    Density,
    can_compile,
    common,
    compiled_log_prob,
    need_covariances,
    over_frames,
)
from .missing import Marginal, apart, is_marginal, scores_apart
from .moments import (
    GaussianFamily,
    GaussianPrior,
    GaussianStatistics,
    centre_of,
    maximize_gaussians,
    summed,
    weighted_moments,
)


def gmm_log_likelihood(
    observations: Array,
    log_weights: Array,
    means: Array,
    covariances: Array,
    *,
    covariance_type: str = "diag",
    missing: str = "propagate",
) -> Array:
    """log p(x_t given z_t = k), where each state's density is a mixture of M Gaussians.

    Args:
        observations: (..., T, D).
        log_weights: (K, M), nats; -inf turns a component off. Need not be normalised.
        means: (K, M, D).
        covariances: variances, not standard deviations: "diag" (K, M, D), "spherical" (K, M), "full" (K, M, D, D),
            "tied" (D, D), "tied_diag" (D,). Positive (definite): not checked here, what is not gives NaN.
        covariance_type: which of these.
        missing: as in `gaussian_log_prob`.

    Returns:
        (..., T, K), nats; -inf for a state whose components are all off. With missing="marginalize", a frame without
        any observed feature scores the log of the sum of the weights.

    Raises:
        TypeError: not floating-point arrays of one library. ValueError: shapes, or an unknown covariance_type or
        missing.

    Cost: as `gaussian_log_prob` for K M Gaussians, in blocks of frames, so that neither a (B, T, K, M) nor a
    (B, T, K, M, D) array is made beyond a workspace of 2^23 elements. Rounding errors are those of `gaussian_log_prob`.

    Example:
        >>> import torch, hmm_functional as hf
        >>> weights, means = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[[-1.0], [1.0]]])
        >>> hf.gmm_log_likelihood(torch.zeros(1, 1), weights, means, torch.ones(1, 2, 1))
        tensor([[-1.4189]])
    """
    backend = backend_of(observations=observations, log_weights=log_weights, means=means, covariances=covariances)
    xp = backend.xp
    if means.ndim != 3:
        raise ValueError(f"means: expected shape (K, M, D), got {tuple(means.shape)}")
    num_states, num_mixtures, dim = means.shape
    observations, (log_weights, means, covariances) = common(
        backend, observations, log_weights=log_weights, means=means, covariances=covariances
    )
    need_shape("log_weights", log_weights.shape, (num_states, num_mixtures), "(K, M) as in means")
    if log_weights.ndim != 2:
        raise ValueError(f"log_weights: expected shape (K, M), got {tuple(log_weights.shape)}")
    need_covariances(covariances.shape, covariance_type, num_states, num_mixtures, dim)

    def mixed(density: Density | Marginal, observations: Array, log_weights: Array) -> Array:
        def mix(frames: Array, log_weights: Array, *parameters: Array) -> Array:
            scores = density.log_prob(frames, *parameters)
            return logsumexp(backend, xp.reshape(scores, (-1, num_states, num_mixtures)) + log_weights)

        return over_frames(backend, observations, density.cost, mix, log_weights, *density.parameters)

    def exact(observations: Array, log_weights: Array, means: Array, covariances: Array) -> Array:
        components = _components(backend, means, covariances, covariance_type)
        return mixed(Density(backend, observations, *components), observations, log_weights)

    def fast(observations: Array, log_weights: Array, means: Array, covariances: Array) -> Array:
        return compiled_log_prob(backend, observations, log_weights, means, covariances, covariance_type)

    def complete(observations: Array) -> Array:
        arrays = (observations, log_weights, means, covariances)
        if not can_compile(backend, covariance_type, *arrays):
            return exact(*arrays)
        return backend.shortcut(fast, exact, *arrays)

    def partial(frames: Array) -> Array:
        return mixed(Marginal(backend, *_components(backend, means, covariances, covariance_type)), frames, log_weights)

    if not is_marginal(missing):
        return complete(observations)
    return scores_apart(backend, observations, complete, partial)


def _components(backend: Backend, means: Array, covariances: Array, covariance_type: str) -> tuple[Array, Array, str]:
    """Means, covariances and type of the K M Gaussians, one after the other."""
    xp = backend.xp
    if not covariance_type.startswith("tied"):
        covariances = xp.reshape(covariances, (means.shape[0] * means.shape[1], *covariances.shape[2:]))
    return xp.reshape(means, (-1, means.shape[-1])), covariances, covariance_type


class MixtureParameters(NamedTuple):
    """log weights (K, M), means (K, M, D), and covariances in the shape of their type."""

    log_weights: Array
    means: Array
    covariances: Array


@dataclass(frozen=True)
class GaussianMixture(GaussianFamily):
    """The family of mixtures of Gaussians, for `hmm_functional.learning`; arguments as `Gaussian`'s.

    Args:
        concentration: of the Dirichlet prior of each state's weights, a number or (K, M), at least 1.
    """

    prior: GaussianPrior | None = None
    concentration: Any = 1.0
    missing: str = field(default="propagate", kw_only=True)

    def __post_init__(self) -> None:
        need_at_least("concentration", self.concentration, 1.0)

    def log_prob(self, observations: Array, parameters: MixtureParameters) -> Array:
        """(..., T, K)."""
        return gmm_log_likelihood(observations, *parameters, covariance_type=self.covariance_type, missing=self.missing)

    def statistics(self, observations: Array, posteriors: Array, parameters: MixtureParameters) -> GaussianStatistics:
        """Weighted moments for each of K M components about `centre_of` the means, summed over all frames.

        With missing="marginalize" as `Gaussian.statistics`.

        Args:
            posteriors: (..., T, K), probabilities times weights; 0 where nothing was observed.
        """
        log_weights, means, covariances = parameters
        backend = backend_of(observations=observations, posteriors=posteriors, means=means)
        xp, dim = backend.xp, means.shape[-1]
        (num_states, num_mixtures), centre = log_weights.shape, centre_of(backend, means)
        frames, posteriors = xp.reshape(observations, (-1, dim)), xp.reshape(posteriors, (-1, num_states))
        frames = xp.where(xp.sum(posteriors, axis=-1, keepdims=True) > 0, frames, centre)
        components = _components(backend, means, covariances, self.covariance_type)

        def shared(
            density: Density | Marginal, moments: Callable[..., GaussianStatistics], frames: Array, posteriors: Array
        ) -> GaussianStatistics:
            length = max(1, WORKSPACE // density.cost)

            def block(start: int) -> GaussianStatistics:
                part = frames[start : start + length, ...]
                scores = xp.reshape(density.log_prob(part, *density.parameters), (-1, num_states, num_mixtures))
                weights = softmax(backend, scores + log_weights) * posteriors[start : start + length, :, None]
                return moments(part, xp.reshape(weights, (-1, num_states * num_mixtures)))

            return summed(block(start) for start in range(0, max(1, frames.shape[0]), length))

        def complete(frames: Array, posteriors: Array) -> GaussianStatistics:
            def moments(part: Array, weights: Array) -> GaussianStatistics:
                return weighted_moments(backend, part, weights, centre, self.covariance_type)

            return shared(Density(backend, frames, *components), moments, frames, posteriors)

        def partial(frames: Array, posteriors: Array) -> GaussianStatistics:
            density = Marginal(backend, *components)
            return shared(density, lambda part, weights: density.moments(part, weights, centre), frames, posteriors)

        if not is_marginal(self.missing):
            return complete(frames, posteriors)
        return summed(apart(backend, complete, partial, frames, posteriors)[0])

    def m_step(
        self, statistics: GaussianStatistics, parameters: MixtureParameters, fixed: MixtureParameters | None = None
    ) -> MixtureParameters:
        """The parameters of highest expected log-density (and prior); a component without frames keeps its own."""
        log_weights, means, covariances = parameters
        backend = backend_of(means=means)
        xp = backend.xp
        flat = xp.reshape(means, (-1, means.shape[-1]))
        held = MixtureParameters(None, None, None) if fixed is None else fixed
        if isinstance(held.means, bool) or held.means is None:
            own = held.means
        else:
            own = xp.reshape(xp.broadcast_to(held.means, means.shape), flat.shape)
        moved, spread = maximize_gaussians(
            statistics,
            flat,
            covariances,
            self.covariance_type,
            floor=self.variance_floor,
            prior=self.prior,
            fixed=(own, held.covariances),
        )
        counts = xp.reshape(statistics.counts, log_weights.shape)
        weights = maximize_probabilities(backend, counts, log_weights, self.concentration, held.log_weights)
        return MixtureParameters(weights, xp.reshape(moved, means.shape), spread)

    def log_prior(self, parameters: MixtureParameters) -> Any:
        """log density of the parameters before any data, up to a constant; 0 without a prior."""
        own = 0.0 if self.prior is None else self.prior.log_density(*parameters[1:], self.covariance_type)
        return own + dirichlet_log_density(parameters.log_weights, self.concentration)
