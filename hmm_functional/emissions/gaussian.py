"""Gaussian emissions: their log-density, expected statistics, and M-step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .._check import need_shape
from ..backend import Array, backend_of
from .density import (
    Density,
    can_compile,
    common,
    compiled_log_prob,
    log_prob_by_frame,
    need_covariances,
    need_frame_shapes,
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


def gaussian_log_prob(
    observations: Array,
    means: Array,
    covariances: Array,
    *,
    covariance_type: str = "diag",
    missing: str = "propagate",
) -> Array:
    """log p(x_t given z_t = k) of Gaussian emissions.

    Args:
        observations: (..., T, D).
        means: (K, D); or (..., T or 1, K, D), those of each frame, such as a network's.
        covariances: variances, not standard deviations: "diag" (K, D), "spherical" (K,), "full" (K, D, D), "tied"
            (D, D), "tied_diag" (D,). Beside means of each frame also "diag" (..., T or 1, K, D) and "spherical"
            (..., T or 1, K). Positive (definite): not checked here, what is not gives NaN.
        covariance_type: which of these.
        missing: what NaN stands for: "propagate" an error, "marginalize" a feature that was not observed and is
            integrated out.

    Returns:
        (..., T, K), nats. With "propagate", NaN for a frame that holds NaN, and for that one alone; with "marginalize",
        the density of the observed features, 0 where there is none.

    Raises:
        TypeError: not floating-point arrays of one library. ValueError: shapes, or an unknown covariance_type or
        missing.

    Cost: O(B T K D), O(B T K D^2) for "full"; no (B, T, K, D) array beyond a workspace of 2^23 elements. Eager calls
    on the CPU sum squared differences of diagonal covariances in compiled code, where nothing cancels. Elsewhere, and
    for "tied", it is one matrix product of observations and means centred on the mean of the means, c; its rounding
    error is below eps times the sum over features of (|x - c| + |mean - c|)^2 over the variance, which an offset of
    the data does not enter: in float32, D = 80, offset 1000, 6e-5 nats of 300. On a GPU and under a tracer, which
    read no values, use float64 for states far apart. Gradients are those of the matrix product. With "marginalize", one
    pass that looks for NaN; frames that hold any sum squared differences, O(K D) a frame, and for "full" and "tied"
    O(K D^3) for each set of features that is missing. Under a tracer every frame does, with a set of its own. With
    means of each frame squared differences are summed, and arrays of (B, T, K, D), as the means are, kept.

    Example:
        >>> import torch, hmm_functional as hf
        >>> hf.gaussian_log_prob(torch.zeros(1, 1), torch.tensor([[0.0], [1.0]]), torch.ones(2, 1))
        tensor([[-0.9189, -1.4189]])
        >>> x = torch.tensor([[0.0, torch.nan]])
        >>> hf.gaussian_log_prob(x, torch.tensor([[0.0, 5.0], [1.0, 5.0]]), torch.ones(2, 2), missing="marginalize")
        tensor([[-0.9189, -1.4189]])
    """
    backend = backend_of(observations=observations, means=means, covariances=covariances)
    need_shape("means", means.shape, (None, None), "(K, D)")
    observations, (means, covariances) = common(backend, observations, means=means, covariances=covariances)
    if means.ndim > 2:
        need_frame_shapes(observations.shape, means.shape, covariances.shape, covariance_type)
        if is_marginal(missing):
            raise ValueError("missing: expected 'propagate' with means of each frame, got 'marginalize'")
        return log_prob_by_frame(backend, observations, means, covariances, covariance_type)
    need_covariances(covariances.shape, covariance_type, means.shape[0], None, means.shape[1])

    def exact(observations: Array, means: Array, covariances: Array) -> Array:
        density = Density(backend, observations, means, covariances, covariance_type)
        return over_frames(backend, observations, density.cost, density.log_prob, *density.parameters)

    def fast(observations: Array, means: Array, covariances: Array) -> Array:
        return compiled_log_prob(backend, observations, None, means[:, None, :], covariances, covariance_type)

    def complete(observations: Array) -> Array:
        if not can_compile(backend, covariance_type, observations, means, covariances):
            return exact(observations, means, covariances)
        return backend.shortcut(fast, exact, observations, means, covariances)

    def partial(frames: Array) -> Array:
        density = Marginal(backend, means, covariances, covariance_type)
        return over_frames(backend, frames, density.cost, density.log_prob, *density.parameters)

    if not is_marginal(missing):
        return complete(observations)
    return scores_apart(backend, observations, complete, partial)


class GaussianParameters(NamedTuple):
    """Means (K, D) and covariances in the shape of their type."""

    means: Array
    covariances: Array


@dataclass(frozen=True)
class Gaussian(GaussianFamily):
    """The family of Gaussian emissions, for `hmm_functional.learning`.

    Args:
        covariance_type: as in `gaussian_log_prob`.
        variance_floor: the least variance, a number or (D,): what the M-step maximises over excludes smaller ones.
        prior: what is believed of means and covariances beforehand; default nothing (maximum likelihood).
        missing: as in `gaussian_log_prob`; "marginalize" learns from the features that were observed.
    """

    prior: GaussianPrior | None = None
    missing: str = field(default="propagate", kw_only=True)

    def log_prob(self, observations: Array, parameters: GaussianParameters) -> Array:
        """(..., T, K)."""
        return gaussian_log_prob(observations, *parameters, covariance_type=self.covariance_type, missing=self.missing)

    def statistics(self, observations: Array, posteriors: Array, parameters: GaussianParameters) -> GaussianStatistics:
        """Weighted moments of the observations about `centre_of` the means, summed over all frames.

        With missing="marginalize", those expected under the parameters given what was observed; a frame without any
        observed feature counts nothing, as if `is_observed` were False.

        Args:
            posteriors: (..., T, K), probabilities times weights; 0 where nothing was observed.
        """
        backend = backend_of(observations=observations, posteriors=posteriors)
        centre = centre_of(backend, parameters.means)

        def complete(observations: Array, posteriors: Array) -> GaussianStatistics:
            return weighted_moments(backend, observations, posteriors, centre, self.covariance_type)

        def partial(frames: Array, posteriors: Array) -> GaussianStatistics:
            return Marginal(backend, *parameters, self.covariance_type).moments(frames, posteriors, centre)

        if not is_marginal(self.missing):
            return complete(observations, posteriors)
        flat = (backend.xp.reshape(x, (-1, x.shape[-1])) for x in (observations, posteriors))
        return summed(apart(backend, complete, partial, *flat)[0])

    def m_step(
        self, statistics: GaussianStatistics, parameters: GaussianParameters, fixed: GaussianParameters | None = None
    ) -> GaussianParameters:
        """The parameters of highest expected log-density (and prior); a state without frames keeps its own.

        Args:
            fixed: booleans in place of the parameters, None for no entry or True for all: which stay as they are.
        """
        return GaussianParameters(
            *maximize_gaussians(
                statistics,
                *parameters,
                self.covariance_type,
                floor=self.variance_floor,
                prior=self.prior,
                fixed=(None, None) if fixed is None else fixed,
            )
        )

    def log_prior(self, parameters: GaussianParameters) -> Any:
        """log density of the parameters before any data, up to a constant; 0 without a prior."""
        return 0.0 if self.prior is None else self.prior.log_density(*parameters, self.covariance_type)
