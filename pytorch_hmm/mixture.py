"""A mixture of Gaussians a state."""

from __future__ import annotations

from math import log
from typing import Any, Unpack

import torch
from torch import Tensor, nn

import hmm_functional as hf
from hmm_functional._check import need_count
from hmm_functional.emissions import GaussianMixture, MixtureParameters

from ._check import log_of
from .gaussian import BaseGaussianHMM
from .hmm import ChainOptions
from .initialize import moments, split
from .parametrize import CovarianceType, LogProbabilities


class MixtureGaussianHMM(BaseGaussianHMM):
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
        options: `initial`, `transition` (probabilities), `topology`, `self_loop`, `learnable`, `missing`, as `BaseHMM`.

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
        **options: Unpack[ChainOptions],
    ) -> None:
        shape = (num_states, need_count("num_mixtures", num_mixtures, 1))
        super().__init__(shape, obs_dim, covariance_type, means, covariances, **options)
        self.num_mixtures = num_mixtures
        start = torch.full(shape, -log(num_mixtures), dtype=torch.float64)
        if weights is not None:
            start = log_of("weights", weights, shape, "(K, M)")
        self.weight_distribution = LogProbabilities(start)

    @property
    def log_weights(self) -> Tensor:
        """log p(component given state), (K, M), nats; assignable, -inf becoming a structural zero."""
        return self.weight_distribution.forward()

    @log_weights.setter
    def log_weights(self, value: Any) -> None:
        self.weight_distribution.assign("log_weights", value, "(K, M)")

    def extra_repr(self) -> str:
        """The arguments that shape the model."""
        return f"{super().extra_repr()}, num_mixtures={self.num_mixtures}"

    def _emission_log_prob(self, x: Tensor) -> Tensor:
        return hf.gmm_log_likelihood(  # type: ignore[no-any-return]
            x, self.log_weights, self.means, self.covariances, covariance_type=self.covariance_type
        )

    def _num_emission_parameters(self) -> int:
        return super()._num_emission_parameters() + self.weight_distribution.num_free()

    def _family(self, variance_floor: Any, prior: Any) -> GaussianMixture:
        return GaussianMixture(self.covariance_type, variance_floor, prior)

    def _emission_parameters(self) -> MixtureParameters:
        return MixtureParameters(self.log_weights, self.means, self.covariances)

    def _arguments(self) -> dict[str, Any]:
        return {**super()._arguments(), "num_mixtures": self.num_mixtures}

    def _weights(self) -> dict[str, nn.Parameter]:
        return {**super()._weights(), "log_weights": self.weight_distribution.logits}

    def _sample_observations(self, states: Tensor, rng: torch.Generator) -> Tensor:
        return self._draw((states, self.weight_distribution.sample(states, rng)), rng)

    def _initialize_emission(self, frames: Tensor, states: Tensor, rng: torch.Generator) -> None:
        num_states, num_mixtures = self.num_states, self.num_mixtures
        labels = states * num_mixtures
        for k in range(num_states):
            labels[states == k] += split(frames[states == k], num_mixtures)
        whole = frames.mean(0).expand(num_states, -1)
        fallback = moments(frames, states, whole, "diag").means.repeat_interleave(num_mixtures, 0)
        found = moments(frames, labels, fallback, self.covariance_type)
        weights = (found.counts.reshape(num_states, num_mixtures) + 1.0) * self.weight_distribution.is_possible
        self.log_weights = (weights / weights.sum(-1, keepdim=True)).log()
        self.means = found.means.reshape(self.location.shape)
        self.covariances = self.covariance.nearest(found.covariances.reshape(self.covariance.factor.shape))
