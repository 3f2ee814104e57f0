"""One Gaussian a state."""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor

from hmm_functional.emissions import Gaussian, GaussianParameters, GaussianPrior

from .emission import FeatureEmission, normal_log_tails, of_emission
from .initialize import moments
from .law import parameter
from .parametrize import Covariance, CovarianceType, Numbers, Parametrized
from .trainable import EmissionHMM, EmissionOptions, num_laws


def need_gaussian_prior(prior: Any, obs_dim: int, covariance_type: str) -> None:
    """Raise where what was given is no `GaussianPrior` of features like these."""
    if prior is None:
        return
    if not isinstance(prior, GaussianPrior):
        raise TypeError(f"priors.emission: expected a GaussianPrior, got {type(prior).__name__}")
    is_matrix = covariance_type in ("full", "tied")
    shape, mean = tuple(getattr(prior.scale, "shape", ())), tuple(getattr(prior.mean, "shape", ()))
    wanted: tuple[Any, ...] = ((), (obs_dim, obs_dim)) if is_matrix else ((), (obs_dim,))
    if covariance_type == "spherical":
        wanted = ((),)
    if covariance_type == "diag" and prior.has_own_scales:
        wanted = ((shape[0], obs_dim) if len(shape) == 2 else (None, obs_dim),)
    if shape not in wanted or (is_matrix and shape == () and float(prior.scale) != 0):
        raise ValueError(f"priors.emission.scale: expected shape {wanted[-1]} for {covariance_type!r}, got {shape}")
    if mean and mean[-1] != obs_dim:
        raise ValueError(f"priors.emission.mean: expected shape (D,) = ({obs_dim},) or a row a Gaussian, got {mean}")


class BaseGaussianEmission(FeatureEmission):
    """Gaussians of `shape`, (K,) or (K, M): their means and covariances.

    Args:
        shape: axes of the Gaussians.
        obs_dim: D.
        covariance_type: "diag" (*shape, D), "spherical" shape, "full" (*shape, D, D), "tied" (D, D), "tied_diag" (D,).
        means: (*shape, D); default standard normal numbers.
        covariances: in the shape above, variances and not standard deviations; default ones or identities.
    """

    def __init__(
        self, shape: tuple[int, ...], obs_dim: int, covariance_type: CovarianceType, means: Any, covariances: Any
    ) -> None:
        super().__init__(shape[0], obs_dim)
        self.location = Numbers(torch.randn(*shape, obs_dim), "(K, D)" if len(shape) == 1 else "(K, M, D)")
        self.covariance = Covariance(shape, obs_dim, covariance_type)
        if means is not None:
            self.means = means
        if covariances is not None:
            self.covariances = covariances

    means = parameter("means", "location", "Means, (K, D) or (K, M, D), in the unit of the observations; assignable.")
    covariances = parameter(
        "covariances",
        "covariance",
        "Covariances (variances, not standard deviations) in the shape of their type; assignable.",
    )

    @property
    def are_laws_apart(self) -> bool:  # type: ignore[override]
        """Whether no covariance is shared."""
        return not self.covariance.is_shared

    @property
    def covariance_type(self) -> CovarianceType:
        """The form of the covariances."""
        return self.covariance.covariance_type

    def parametrized(self) -> dict[str, Parametrized]:
        """What makes the parameters."""
        return {"means": self.location, "covariances": self.covariance}

    def extra_repr(self) -> str:
        """The arguments that shape it."""
        return f"{super().extra_repr()}, covariance_type={self.covariance_type!r}"

    def arguments(self) -> dict[str, Any]:
        """What the constructor takes to make a module of the same shape, for JSON."""
        return {**super().arguments(), "covariance_type": self.covariance_type}

    def initialize(self, frames: Tensor, laws: Tensor, rng: torch.Generator) -> None:
        """Moments of each law's frames."""
        whole = frames.mean(0).expand(self.num_laws, -1)
        found = moments(frames, laws, whole, self.covariance_type)
        self.location.take(found.means)
        self.covariance.take(found.covariances)

    def _draw(self, index: tuple[Tensor, ...], rng: torch.Generator) -> Tensor:
        """Observations (..., D) of the Gaussians at `index`, one (...) tensor for each axis of their shape."""
        means: Tensor = self.location()[index]
        noise = torch.randn(means.shape, generator=rng, device=rng.device, dtype=means.dtype)
        return means + self.covariance.scale_noise(noise.to(means.device), index)


class GaussianEmission(BaseGaussianEmission):
    """One Gaussian each.

    Args:
        num_laws: K.
        obs_dim: D.
        covariance_type, means, covariances: as `GaussianHMM`'s.
    """

    can_marginalize = True

    def __init__(
        self,
        num_laws: int,
        obs_dim: int,
        covariance_type: CovarianceType = "diag",
        *,
        means: Any = None,
        covariances: Any = None,
    ) -> None:
        super().__init__((num_laws,), obs_dim, covariance_type, means, covariances)

    def family(self, variance_floor: Any = 0.0, prior: Any = None, missing: str = "propagate") -> Gaussian:
        """The Gaussian family; `prior` is a `GaussianPrior`."""
        need_gaussian_prior(prior, self.obs_dim, self.covariance_type)
        return Gaussian(self.covariance_type, variance_floor, prior, missing=missing)

    def values(self) -> GaussianParameters:
        """Means and covariances."""
        return GaussianParameters(self.means, self.covariances)

    def sample(self, laws: Tensor, rng: torch.Generator) -> Tensor:
        """Observations (..., D) drawn given the laws (...)."""
        return self._draw((laws,), rng)

    def log_tails(self, x: Tensor, is_strict: bool = False) -> tuple[Tensor, Tensor]:
        """log P(X <= x) and log P(X > x) of each feature under each law, (..., T, K, D)."""
        return normal_log_tails((x[..., None, :] - self.means) / self.covariance.deviations())


class GaussianHMM(EmissionHMM):
    """An HMM whose states emit one Gaussian each.

    Args:
        num_states: K.
        obs_dim: D.
        covariance_type: "diag" (K, D), "spherical" (K,), "full" (K, D, D), "tied" (D, D), "tied_diag" (D,): the shape
            of `covariances`.
        means: (K, D); default standard normal numbers.
        covariances: variances, not standard deviations; default ones or identities.
        options: `initial`, `transition` (probabilities), `topology`, `self_loop`, `learnable`, `missing` and
            `tied_states`, as `EmissionHMM`.

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
        **options: Unpack[EmissionOptions],
    ) -> None:
        laws = num_laws(num_states, options.get("tied_states"))
        emission = GaussianEmission(laws, obs_dim, covariance_type, means=means, covariances=covariances)
        super().__init__(num_states, emission, **options)

    means = of_emission("means", "Means, (K, D), in the unit of the observations; assignable.")
    covariances = of_emission("covariances", "Variances, in the shape of their type; assignable.")
    covariance_type = of_emission("covariance_type", "The form of the covariances.")
    obs_dim = of_emission("obs_dim", "D.")
