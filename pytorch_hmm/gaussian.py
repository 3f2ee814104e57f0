"""One Gaussian a state."""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor, nn

import hmm_functional as hf
from hmm_functional._check import need_count
from hmm_functional.emissions import Gaussian, GaussianParameters, StudentT, StudentTParameters

from ._check import first, parameter_values
from .emission import EmissionHMM
from .hmm import ChainOptions
from .initialize import moments
from .parametrize import Covariance, CovarianceType, widened


class BaseGaussianHMM(EmissionHMM):
    """Gaussians of `shape`, (K,) or (K, M): their means and covariances.

    Args:
        shape: axes of the Gaussians.
        obs_dim: D.
        covariance_type: "diag" (*shape, D), "spherical" shape, "full" (*shape, D, D), "tied" (D, D), "tied_diag" (D,).
        means: (*shape, D); default standard normal numbers.
        covariances: in the shape above, variances and not standard deviations; default ones or identities.
        options: as `BaseHMM`.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        obs_dim: int,
        covariance_type: CovarianceType,
        means: Any,
        covariances: Any,
        **options: Unpack[ChainOptions],
    ) -> None:
        super().__init__(shape[0], (need_count("obs_dim", obs_dim, 1),), **options)
        self.obs_dim = obs_dim
        self.location = nn.Parameter(torch.randn(*shape, obs_dim))
        self.covariance = Covariance(shape, obs_dim, covariance_type)
        if means is not None:
            self.means = means
        if covariances is not None:
            self.covariances = covariances

    @property
    def covariance_type(self) -> CovarianceType:
        """The form of the covariances."""
        return self.covariance.covariance_type

    @property
    def means(self) -> Tensor:
        """Means, (K, D) or (K, M, D), in the unit of the observations; assignable."""
        return widened(self.location)

    @means.setter
    def means(self, value: Any) -> None:
        words = "(K, D)" if self.location.ndim == 2 else "(K, M, D)"
        found = parameter_values("means", value, tuple(self.location.shape), words)
        if found.isinf().any():
            raise ValueError("means: expected finite numbers, got inf")
        with torch.no_grad():
            self.location.copy_(found)

    @property
    def covariances(self) -> Tensor:
        """Covariances (variances, not standard deviations) in the shape of their type; assignable."""
        return self.covariance.forward()

    @covariances.setter
    def covariances(self, value: Any) -> None:
        self.covariance.assign("covariances", value)

    def extra_repr(self) -> str:
        """The arguments that shape the model."""
        return f"{super().extra_repr()}, obs_dim={self.obs_dim}, covariance_type={self.covariance_type!r}"

    def _num_emission_parameters(self) -> int:
        return self.location.numel() + self.covariance.num_free()

    def _arguments(self) -> dict[str, Any]:
        return {**super()._arguments(), "obs_dim": self.obs_dim, "covariance_type": self.covariance_type}

    def _storable(self, name: str, value: Tensor) -> Tensor:
        return self.covariance.nearest(value) if name == "covariances" else value

    def _weights(self) -> dict[str, nn.Parameter]:
        return {**super()._weights(), "means": self.location, "covariances": self.covariance.factor}

    def _draw(self, index: tuple[Tensor, ...], rng: torch.Generator) -> Tensor:
        """Observations (..., D) of the Gaussians at `index`, one (...) tensor for each axis of their shape."""
        means = self.means[index]
        noise = torch.randn(means.shape, generator=rng, device=rng.device, dtype=means.dtype)
        return means + self.covariance.scale_noise(noise.to(means.device), index)


class GaussianHMM(BaseGaussianHMM):
    """An HMM whose states emit one Gaussian each.

    Args:
        num_states: K.
        obs_dim: D.
        covariance_type: "diag" (K, D), "spherical" (K,), "full" (K, D, D), "tied" (D, D), "tied_diag" (D,): the shape
            of `covariances`.
        means: (K, D); default standard normal numbers.
        covariances: variances, not standard deviations; default ones or identities.
        options: `initial`, `transition` (probabilities), `topology`, `self_loop`, `learnable`, `missing`, as `BaseHMM`.

    Example:
        >>> import torch
        >>> hmm = GaussianHMM(2, obs_dim=1, means=[[-1.0], [1.0]], topology="ergodic", self_loop=0.9)
        >>> states, _ = hmm.viterbi_decode(torch.tensor([[-1.2], [-0.8], [0.3], [1.1]]))
        >>> states
        tensor([0, 0, 1, 1])
    """

    def __init__(
        self,
        num_states: int,
        obs_dim: int,
        covariance_type: CovarianceType = "diag",
        *,
        means: Any = None,
        covariances: Any = None,
        **options: Unpack[ChainOptions],
    ) -> None:
        super().__init__((num_states,), obs_dim, covariance_type, means, covariances, **options)

    def _emission_log_prob(self, x: Tensor) -> Tensor:
        return hf.gaussian_log_prob(  # type: ignore[no-any-return]
            x, self.means, self.covariances, covariance_type=self.covariance_type
        )

    def _family(self, variance_floor: Any, prior: Any) -> Gaussian:
        return Gaussian(self.covariance_type, variance_floor, prior)

    def _emission_parameters(self) -> GaussianParameters:
        return GaussianParameters(self.means, self.covariances)

    def _sample_observations(self, states: Tensor, rng: torch.Generator) -> Tensor:
        return self._draw((states,), rng)

    def _initialize_emission(self, frames: Tensor, states: Tensor, rng: torch.Generator) -> None:
        whole = frames.mean(0).expand(self.num_states, -1)
        found = moments(frames, states, whole, self.covariance_type)
        self.means, self.covariances = found.means, self.covariance.nearest(found.covariances)


class StudentTHMM(BaseGaussianHMM):
    """An HMM whose states emit a multivariate Student t each: a Gaussian that outliers move little.

    Args:
        num_states: K.
        obs_dim: D.
        covariance_type: as `GaussianHMM`'s.
        means: (K, D); default standard normal numbers.
        covariances: scale matrices in the shape of their type; default ones or identities.
        degrees_of_freedom: (K,), above 0; default 5.
        options: `initial`, `transition` (probabilities), `topology`, `self_loop`, `learnable`, `missing`, as `BaseHMM`.

    Example:
        >>> import torch
        >>> hmm = StudentTHMM(2, obs_dim=1, means=[[-1.0], [1.0]], topology="ergodic", self_loop=0.9)
        >>> hmm.viterbi_decode(torch.tensor([[-1.2], [-0.8], [90.0], [-1.1]]))[0]
        tensor([0, 0, 0, 0])
    """

    def __init__(
        self,
        num_states: int,
        obs_dim: int,
        covariance_type: CovarianceType = "diag",
        *,
        means: Any = None,
        covariances: Any = None,
        degrees_of_freedom: Any = None,
        **options: Unpack[ChainOptions],
    ) -> None:
        super().__init__((num_states,), obs_dim, covariance_type, means, covariances, **options)
        self.log_degrees = nn.Parameter(torch.full((self.num_states,), 5.0).log())
        if degrees_of_freedom is not None:
            self.degrees_of_freedom = degrees_of_freedom

    @property
    def degrees_of_freedom(self) -> Tensor:
        """(K,); assignable."""
        return widened(self.log_degrees).exp()

    @degrees_of_freedom.setter
    def degrees_of_freedom(self, value: Any) -> None:
        found = parameter_values("degrees_of_freedom", value, tuple(self.log_degrees.shape), "(K,)")
        is_bad = ~((found > 0) & found.isfinite())
        if is_bad.any():
            at = first(is_bad)
            raise ValueError(f"degrees_of_freedom: expected numbers above 0, got {float(found[at]):.6g} at {at}")
        with torch.no_grad():
            self.log_degrees.copy_(found.log())

    def _emission_log_prob(self, x: Tensor) -> Tensor:
        return hf.student_t_log_prob(  # type: ignore[no-any-return]
            x, self.means, self.covariances, self.degrees_of_freedom, covariance_type=self.covariance_type
        )

    def _num_emission_parameters(self) -> int:
        return super()._num_emission_parameters() + self.num_states

    def _family(self, variance_floor: Any, prior: Any) -> StudentT:
        if prior is not None:
            raise ValueError("priors: expected no prior of Student t emissions")
        return StudentT(self.covariance_type, variance_floor)

    def _emission_parameters(self) -> StudentTParameters:
        return StudentTParameters(self.means, self.covariances, self.degrees_of_freedom)

    def _weights(self) -> dict[str, nn.Parameter]:
        return {**super()._weights(), "degrees_of_freedom": self.log_degrees}

    def _sample_observations(self, states: Tensor, rng: torch.Generator) -> Tensor:
        means, half = self.means[states], 0.5 * self.degrees_of_freedom[states]
        gamma = torch._standard_gamma(half.to(rng.device), generator=rng).to(half.device)
        precision = gamma.clamp_min(torch.finfo(gamma.dtype).tiny) / half
        return means + (self._draw((states,), rng) - means) / precision.sqrt()[..., None]

    def _initialize_emission(self, frames: Tensor, states: Tensor, rng: torch.Generator) -> None:
        whole = frames.mean(0).expand(self.num_states, -1)
        found = moments(frames, states, whole, self.covariance_type)
        self.means, self.covariances = found.means, self.covariance.nearest(found.covariances)
