"""A multivariate Student t a state."""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor

from hmm_functional.emissions import StudentT, StudentTParameters

from .emission import of_emission
from .gaussian import BaseGaussianEmission
from .law import parameter
from .parametrize import CovarianceType, Parametrized, Positive
from .trainable import EmissionHMM, EmissionOptions, num_laws


class StudentTEmission(BaseGaussianEmission):
    """One multivariate Student t each; arguments as `StudentTHMM`'s."""

    def __init__(
        self,
        num_laws: int,
        obs_dim: int,
        covariance_type: CovarianceType = "diag",
        *,
        means: Any = None,
        covariances: Any = None,
        degrees_of_freedom: Any = None,
    ) -> None:
        super().__init__((num_laws,), obs_dim, covariance_type, means, covariances)
        self.degrees = Positive(torch.full((num_laws,), 5.0).log(), "(K,)")
        if degrees_of_freedom is not None:
            self.degrees_of_freedom = degrees_of_freedom

    degrees_of_freedom = parameter("degrees_of_freedom", "degrees", "(K,), above 0; assignable.")

    def family(self, variance_floor: Any = 0.0, prior: Any = None) -> StudentT:
        """The Student t family, which has no prior."""
        if prior is not None:
            raise ValueError("priors: expected no prior of Student t emissions")
        return StudentT(self.covariance_type, variance_floor)

    def values(self) -> StudentTParameters:
        """Means, scale matrices and degrees of freedom."""
        return StudentTParameters(self.means, self.covariances, self.degrees_of_freedom)

    def parametrized(self) -> dict[str, Parametrized]:
        """What makes the parameters."""
        return {**super().parametrized(), "degrees_of_freedom": self.degrees}

    def log_tails(self, x: Tensor, is_strict: bool = False) -> tuple[Tensor, Tensor]:
        """log P(X <= x) and log P(X > x) of each feature under each law, (..., T, K, D); by scipy, without gradient."""
        from scipy.special import stdtr

        gaps = ((x[..., None, :] - self.means) / self.covariance.deviations()).detach().double().cpu().numpy()
        degrees = self.degrees_of_freedom.detach().double().cpu().numpy()[:, None]
        below, above = (torch.as_tensor(stdtr(degrees, y), device=x.device).log() for y in (gaps, -gaps))
        return below, above

    def initialize(self, frames: Tensor, laws: Tensor, rng: torch.Generator) -> None:
        """Moments of each law's frames, and five degrees of freedom."""
        super().initialize(frames, laws, rng)
        self.degrees.take(torch.full(self.degrees.shape, 5.0))

    def sample(self, laws: Tensor, rng: torch.Generator) -> Tensor:
        """Observations (..., D) drawn given the laws (...)."""
        means, half = self.means[laws], 0.5 * self.degrees_of_freedom[laws]
        gamma = torch._standard_gamma(half.to(rng.device), generator=rng).to(half.device)
        precision = gamma.clamp_min(torch.finfo(gamma.dtype).tiny) / half
        return means + (self._draw((laws,), rng) - means) / precision.sqrt()[..., None]  # type: ignore[no-any-return]


class StudentTHMM(EmissionHMM):
    """An HMM whose states emit a multivariate Student t each: a Gaussian that outliers move little.

    Args:
        num_states: K.
        obs_dim: D.
        covariance_type: as `GaussianHMM`'s.
        means: (K, D); default standard normal numbers.
        covariances: scale matrices in the shape of their type; default ones or identities.
        degrees_of_freedom: (K,), above 0; default 5.
        options: `initial`, `transition` (probabilities), `topology`, `self_loop`, `learnable`, `missing` and
            `tied_states`, as `EmissionHMM`.

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
        **options: Unpack[EmissionOptions],
    ) -> None:
        emission = StudentTEmission(
            num_laws(num_states, options.get("tied_states")),
            obs_dim,
            covariance_type,
            means=means,
            covariances=covariances,
            degrees_of_freedom=degrees_of_freedom,
        )
        super().__init__(num_states, emission, **options)

    means = of_emission("means", "Means, (K, D), in the unit of the observations; assignable.")
    covariances = of_emission("covariances", "Scale matrices, in the shape of their type; assignable.")
    degrees_of_freedom = of_emission("degrees_of_freedom", "(K,), above 0; assignable.")
    covariance_type = of_emission("covariance_type", "The form of the covariances.")
    obs_dim = of_emission("obs_dim", "D.")
