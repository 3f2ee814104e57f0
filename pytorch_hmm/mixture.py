"""A mixture of Gaussians a state."""

from __future__ import annotations

from math import log
from typing import Any, Unpack

import torch
from torch import Tensor

from hmm_functional._check import need_count
from hmm_functional.emissions import GaussianMixture, MixtureParameters

from ._check import log_of, prior_values
from .emission import normal_log_tails, of_emission
from .gaussian import BaseGaussianEmission, need_gaussian_prior
from .initialize import moments, split
from .law import parameter
from .parametrize import CovarianceType, LogProbabilities, Parametrized
from .trainable import EmissionHMM, EmissionOptions, num_laws


class MixtureGaussianEmission(BaseGaussianEmission):
    """A mixture of Gaussians each; arguments as `MixtureGaussianHMM`'s."""

    can_marginalize = True

    def __init__(
        self,
        num_laws: int,
        obs_dim: int,
        num_mixtures: int = 3,
        covariance_type: CovarianceType = "diag",
        *,
        weights: Any = None,
        means: Any = None,
        covariances: Any = None,
    ) -> None:
        shape = (num_laws, need_count("num_mixtures", num_mixtures, 1))
        super().__init__(shape, obs_dim, covariance_type, means, covariances)
        self.num_mixtures = num_mixtures
        start = torch.full(shape, -log(num_mixtures), dtype=torch.float64)
        if weights is not None:
            start = log_of("weights", weights, shape, "(K, M)")
        self.weight_distribution = LogProbabilities(start, "(K, M)")

    log_weights = parameter(
        "log_weights",
        "weight_distribution",
        "log p(component given state), (K, M), nats; assignable, -inf becoming a structural zero.",
    )

    def family(self, variance_floor: Any = 0.0, prior: Any = None, missing: str = "propagate") -> GaussianMixture:
        """The family of mixtures; `prior` is a `GaussianPrior`, or that (or None) and concentrations of the weights."""
        pair = prior if isinstance(prior, (tuple, list)) else (prior, 1.0)
        if len(pair) != 2:
            raise ValueError(
                f"priors.emission: expected (GaussianPrior or None, concentrations), got {len(pair)} parts"
            )
        gaussian, concentration = pair
        need_gaussian_prior(gaussian, self.obs_dim, self.covariance_type)
        concentration = prior_values("emission", concentration, (self.num_laws, self.num_mixtures))
        return GaussianMixture(self.covariance_type, variance_floor, gaussian, concentration, missing=missing)

    def values(self) -> MixtureParameters:
        """log weights, means and covariances."""
        return MixtureParameters(self.log_weights, self.means, self.covariances)

    def parametrized(self) -> dict[str, Parametrized]:
        """What makes the parameters."""
        return {"log_weights": self.weight_distribution, **super().parametrized()}

    def extra_repr(self) -> str:
        """The arguments that shape it."""
        return f"{super().extra_repr()}, num_mixtures={self.num_mixtures}"

    def arguments(self) -> dict[str, Any]:
        """What the constructor takes to make a module of the same shape, for JSON."""
        return {**super().arguments(), "num_mixtures": self.num_mixtures}

    def sample(self, laws: Tensor, rng: torch.Generator) -> Tensor:
        """Observations (..., D) drawn given the laws (...)."""
        return self._draw((laws, self.weight_distribution.sample(laws, rng)), rng)

    def log_tails(self, x: Tensor, is_strict: bool = False) -> tuple[Tensor, Tensor]:
        """log P(X <= x) and log P(X > x) of each feature under each law, (..., T, K, D)."""
        tails = normal_log_tails((x[..., None, None, :] - self.means) / self.covariance.deviations())
        below, above = (torch.logsumexp(tail + self.log_weights[..., None], -2) for tail in tails)
        return below, above

    def initialize(self, frames: Tensor, laws: Tensor, rng: torch.Generator) -> None:
        """Each law's frames are split into as many parts as the mixture has, and their moments taken."""
        num_laws, num_mixtures = self.num_laws, self.num_mixtures
        labels = laws * num_mixtures
        for k in range(num_laws):
            labels[laws == k] += split(frames[laws == k], num_mixtures)
        whole = frames.mean(0).expand(num_laws, -1)
        fallback = moments(frames, laws, whole, "diag").means.repeat_interleave(num_mixtures, 0)
        found = moments(frames, labels, fallback, self.covariance_type)
        self.weight_distribution.start(found.counts.reshape(num_laws, num_mixtures))
        self.location.take(found.means.reshape(self.location.shape))
        self.covariance.take(found.covariances.reshape(self.covariance.shape))


class MixtureGaussianHMM(EmissionHMM):
    """An HMM whose states emit a mixture of Gaussians each.

    Args:
        num_states: K.
        obs_dim: D.
        num_mixtures: M, Gaussians in each state's mixture.
        covariance_type: "diag" (K, M, D), "spherical" (K, M), "full" (K, M, D, D), "tied" (D, D), "tied_diag" (D,): the
            shape of `covariances`.
        weights: (K, M), probabilities of the Gaussians within their state; default all alike.
        means: (K, M, D); default standard normal numbers.
        covariances: variances, not standard deviations; default ones or identities.
        options: `initial`, `transition` (probabilities), `topology`, `self_loop`, `learnable`, `missing` and
            `tied_states`, as `EmissionHMM`.

    Example:
        >>> import torch
        >>> hmm = MixtureGaussianHMM(num_states=5, obs_dim=80, num_mixtures=3)
        >>> hmm(torch.randn(2, 100, 80)).shape
        torch.Size([2])
    """

    def __init__(
        self,
        num_states: int,
        obs_dim: int,
        num_mixtures: int = 3,
        covariance_type: CovarianceType = "diag",
        *,
        weights: Any = None,
        means: Any = None,
        covariances: Any = None,
        **options: Unpack[EmissionOptions],
    ) -> None:
        emission = MixtureGaussianEmission(
            num_laws(num_states, options.get("tied_states")),
            obs_dim,
            num_mixtures,
            covariance_type,
            weights=weights,
            means=means,
            covariances=covariances,
        )
        super().__init__(num_states, emission, **options)

    @property
    def weights(self) -> Tensor:
        """p(component given state), (K, M), probabilities; assignable."""
        return self.log_weights.exp()  # type: ignore[no-any-return]

    @weights.setter
    def weights(self, value: Any) -> None:
        self.log_weights = log_of("weights", value, tuple(self.log_weights.shape), "(K, M)")

    log_weights = of_emission("log_weights", "log p(component given state), (K, M), nats; assignable.")
    means = of_emission("means", "Means, (K, M, D), in the unit of the observations; assignable.")
    covariances = of_emission("covariances", "Variances, in the shape of their type; assignable.")
    covariance_type = of_emission("covariance_type", "The form of the covariances.")
    num_mixtures = of_emission("num_mixtures", "M.")
    obs_dim = of_emission("obs_dim", "D.")
