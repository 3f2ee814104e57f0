"""States that regress observations on those before them and on inputs."""

from __future__ import annotations

from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from hmm_functional._check import need_count
from hmm_functional.emissions import LinearRegression, RegressionParameters, lagged

from .emission import Emission, normal_log_tails, of_emission
from .law import parameter
from .parametrize import Covariance, CovarianceType, Numbers, Parametrized
from .trainable import EmissionHMM, EmissionOptions, num_laws

History = Literal["zeros", "condition"]


class LinearRegressionEmission(Emission):
    """One linear regression each; arguments as `LinearRegressionHMM`'s."""

    def __init__(
        self,
        num_laws: int,
        obs_dim: int,
        num_lags: int = 0,
        input_dim: int = 0,
        covariance_type: CovarianceType = "full",
        *,
        history: History = "zeros",
        weights: Any = None,
        biases: Any = None,
        covariances: Any = None,
    ) -> None:
        self.obs_dim = need_count("obs_dim", obs_dim, 1)
        self.input_dim = need_count("input_dim", input_dim, 0)
        super().__init__(num_laws, (obs_dim + input_dim,))
        self.num_lags = need_count("num_lags", num_lags, 0)
        self.num_regressors = num_lags * obs_dim + input_dim
        self.history = LinearRegression(history=history).history
        shape = (num_laws, obs_dim, num_lags * obs_dim + input_dim)
        self.slope = Numbers(torch.zeros(shape), "(K, D, P)")
        self.intercept = Numbers(torch.randn(num_laws, obs_dim), "(K, D)")
        self.covariance = Covariance((num_laws,), obs_dim, covariance_type)
        for name, value in (("weights", weights), ("biases", biases), ("covariances", covariances)):
            if value is not None:
                setattr(self, name, value)

    weights = parameter("weights", "slope", "(K, D, P) of P = num_lags * D + input_dim regressors; assignable.")
    biases = parameter("biases", "intercept", "(K, D); assignable.")
    covariances = parameter("covariances", "covariance", "Of the residuals, in the shape of their type; assignable.")

    @property
    def covariance_type(self) -> CovarianceType:
        """The form of the covariances."""
        return self.covariance.covariance_type

    @property
    def are_laws_apart(self) -> bool:  # type: ignore[override]
        """Whether no covariance is shared."""
        return not self.covariance.is_shared

    def family(self, variance_floor: Any = 0.0, prior: Any = None) -> LinearRegression:
        """The family of linear regressions, which has no prior; floors of inputs are not looked at."""
        if prior is not None:
            raise ValueError("priors: expected no prior of linear regressions")
        floor = variance_floor[: self.obs_dim] if getattr(variance_floor, "shape", ()) else variance_floor
        return LinearRegression(self.covariance_type, floor, self.num_lags, self.input_dim, self.history)

    def values(self) -> RegressionParameters:
        """Weights, biases and covariances."""
        return RegressionParameters(self.weights, self.biases, self.covariances)

    def parametrized(self) -> dict[str, Parametrized]:
        """What makes the parameters."""
        return {"weights": self.slope, "biases": self.intercept, "covariances": self.covariance}

    def log_tails(self, x: Tensor, is_strict: bool = False) -> tuple[Tensor, Tensor]:
        """log P(X <= x) and log P(X > x) of each feature given its regressors, (..., T, K, D); NaN where only given."""
        joint = self.context(x)
        means = torch.einsum("...p,kdp->...kd", joint[..., self.obs_dim :], self.weights) + self.biases
        gaps = (joint[..., None, : self.obs_dim] - means) / self.covariance.deviations()
        if self.history == "condition":
            is_given = torch.arange(gaps.shape[-3], device=gaps.device) < self.num_lags
            gaps = gaps.masked_fill(is_given[:, None, None], torch.nan)
        return normal_log_tails(gaps)

    def context(self, x: Tensor) -> Tensor:
        """Each frame beside its regressors, (..., T, D + P)."""
        y = x[..., : self.obs_dim]
        return torch.cat([y, lagged(y, self.num_lags), x[..., self.obs_dim :]], -1)

    def sample(self, laws: Tensor, rng: torch.Generator, inputs: Tensor | None = None) -> Tensor:
        """Observations (..., T, D + input_dim) drawn given the laws (..., T), inputs (..., T, input_dim) beside them.

        What comes before the start is 0.
        """
        shape = (*laws.shape, self.input_dim)
        if (inputs is None and self.input_dim) or (inputs is not None and tuple(inputs.shape) != shape):
            found = None if inputs is None else tuple(inputs.shape)
            raise ValueError(f"inputs: expected shape (..., T, input_dim) = {shape}, got {found}")
        weights, biases = self.weights, self.biases
        noise = torch.randn((*laws.shape, self.obs_dim), generator=rng, device=rng.device, dtype=weights.dtype)
        noise = self.covariance.scale_noise(noise.to(weights.device), (laws,))
        given = noise[..., :0] if inputs is None else inputs.to(noise)
        before = noise.new_zeros(*laws.shape[:-1], self.num_lags * self.obs_dim)
        steps = []
        for t in range(laws.shape[-1]):
            regressors = torch.cat([before, given[..., t, :]], -1)
            law = laws[..., t]
            y = (weights[law] @ regressors[..., None])[..., 0] + biases[law] + noise[..., t, :]
            steps.append(y)
            before = torch.cat([y, before], -1)[..., : self.num_lags * self.obs_dim]
        return torch.cat([torch.stack(steps, -2), given], -1)

    def initialize(self, frames: Tensor, laws: Tensor, rng: torch.Generator) -> None:
        """Least squares of each law's frames with their context, drawn to those of all with the weight of one frame."""
        frames = frames.double()
        frames = torch.cat([frames, frames.new_ones(len(frames), 1)], -1)
        whole = frames.mT @ frames / len(frames)
        own = torch.stack([frames[laws == k].mT @ frames[laws == k] for k in range(self.num_laws)]) + whole
        dim = self.obs_dim
        found = torch.linalg.pinv(own[:, dim:, dim:], hermitian=True) @ own[:, dim:, :dim]
        self.slope.take(found[:, :-1].mT)
        self.intercept.take(found[:, -1])
        gaps = torch.cat([torch.eye(dim).to(found).expand(self.num_laws, -1, -1), -found], 1)
        scatter, counts = gaps.mT @ own @ gaps, torch.bincount(laws, minlength=self.num_laws) + 1.0
        spread = scatter / counts[:, None, None]
        if self.are_laws_apart and self.covariance_type != "full":
            spread = spread.diagonal(dim1=1, dim2=2)
            spread = spread.mean(1) if self.covariance_type == "spherical" else spread
        elif self.covariance_type != "full":
            spread = scatter.sum(0) / counts.sum()
            spread = spread.diagonal() if self.covariance_type == "tied_diag" else spread
        self.covariance.take(spread)

    def arguments(self) -> dict[str, Any]:
        """What the constructor takes to make a module of the same shape, for JSON."""
        own = {"obs_dim": self.obs_dim, "num_lags": self.num_lags, "input_dim": self.input_dim}
        return {**super().arguments(), **own, "covariance_type": self.covariance_type, "history": self.history}

    def extra_repr(self) -> str:
        """The arguments that shape it."""
        found = self.arguments()
        del found["num_laws"]
        return ", ".join(f"{name}={value!r}" for name, value in found.items())


class LinearRegressionHMM(EmissionHMM):
    """An HMM whose states emit x_t ~ N(W [x_{t-1}, ..., x_{t-num_lags}, u_t] + b, C): it switches autoregressions.

    Observations are (..., T, D + input_dim): x_t, then the inputs u_t beside it, which have no law.

    Args:
        num_states: K.
        obs_dim: D.
        num_lags: frames before each that it depends on; 0 for none.
        input_dim: how many inputs.
        covariance_type: "full" (K, D, D), "diag" (K, D), "spherical" (K,), "tied" (D, D), "tied_diag" (D,).
        history: "zeros" takes what comes before a sequence as 0; "condition" only conditions on its first `num_lags`
            frames, which score 0 in all states.
        weights: (K, D, P), P = num_lags * D + input_dim; default zeros.
        biases: (K, D); default standard normal numbers.
        covariances: of the residuals; default ones or identities.
        options: `initial`, `transition` (probabilities), `topology`, `self_loop`, `learnable`, `missing` and
            `tied_states`, as `EmissionHMM`; `missing` is "raise" with lags.

    References: Hamilton 1990.

    Example:
        >>> import torch
        >>> hmm = LinearRegressionHMM(2, obs_dim=1, num_lags=1, topology="ergodic", self_loop=0.9)
        >>> hmm.weights, hmm.biases, hmm.covariances = [[[1.0]], [[-1.0]]], [[0.0], [0.0]], [[[0.1]], [[0.1]]]
        >>> hmm.viterbi_decode(torch.tensor([[0.1], [1.0], [1.1], [-1.2], [1.1], [-1.0]]))[0]
        tensor([0, 0, 0, 1, 1, 1])
    """

    def __init__(
        self,
        num_states: int,
        obs_dim: int,
        num_lags: int = 0,
        input_dim: int = 0,
        covariance_type: CovarianceType = "full",
        *,
        history: History = "zeros",
        weights: Any = None,
        biases: Any = None,
        covariances: Any = None,
        **options: Unpack[EmissionOptions],
    ) -> None:
        emission = LinearRegressionEmission(
            num_laws(num_states, options.get("tied_states")),
            obs_dim,
            num_lags,
            input_dim,
            covariance_type,
            history=history,
            weights=weights,
            biases=biases,
            covariances=covariances,
        )
        super().__init__(num_states, emission, **options)

    weights = of_emission("weights", "(K, D, P) of P = num_lags * D + input_dim regressors; assignable.")
    biases = of_emission("biases", "(K, D); assignable.")
    covariances = of_emission("covariances", "Of the residuals, in the shape of their type; assignable.")
    covariance_type = of_emission("covariance_type", "The form of the covariances.")
    obs_dim = of_emission("obs_dim", "D.")
    input_dim = of_emission("input_dim", "How many inputs stand beside the observed features.")
    num_lags = of_emission("num_lags", "How many frames before it each frame depends on.")

    @torch.no_grad()
    def sample(
        self,
        num_steps: int,
        batch_size: int | None = None,
        generator: torch.Generator | None = None,
        inputs: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """States and observations drawn from the model, from a history of zeros.

        Args:
            num_steps: T.
            batch_size: number of independent sequences.
            generator: source of randomness; default torch's global one.
            inputs: (batch_size, T, input_dim), or (T, input_dim) without `batch_size`; where there are inputs.

        Returns:
            (batch_size, T) int64 and (batch_size, T, D + input_dim), the inputs included, or without the first axis
            where `batch_size` is not given.
        """
        states = self._sample_states(num_steps, batch_size, generator)
        rng = torch.default_generator if generator is None else generator
        return states, self.emission.sample(self._laws_of(states), rng, inputs)  # type: ignore[call-arg]
