"""How long states last, as modules: each a proper law on min_duration..max_duration."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hmm_functional import durations
from hmm_functional._check import need_count
from hmm_functional.durations.support import limit, support_of
from hmm_functional.emissions.constraints import need_at_least

from ._check import first, need_no_prior, prior_values
from .law import Law, parameter
from .parametrize import LogProbabilities, Numbers, Parametrized, Positive, UnitInterval

Limit = int | Sequence[int]


class Duration(Law):
    """How many steps each of `num_states` states lasts.

    Args:
        num_states: K.
        max_duration: the longest, steps: a number, or one for each state.
        min_duration: the shortest likewise.

    Raises:
        ValueError: no such numbers.

    A law of your own gives `family`, `values` and `parametrized`.
    """

    prefix = "duration_"

    def __init__(self, num_states: int, max_duration: Limit, min_duration: Limit = 1) -> None:
        super().__init__()
        self.num_states = need_count("num_states", num_states, 1)
        support_of(max_duration, min_duration, num_states)
        self.max_duration = limit("max_duration", max_duration)
        self.min_duration = limit("min_duration", min_duration)

    @abstractmethod
    def family(self, concentration: Any = 1.0) -> durations.DurationFamily:
        """The family of `hmm_functional.durations`, or one of your own.

        Args:
            concentration: of the prior of a categorical law; others take only 1.0, which is none.
        """

    def log_prob(self) -> Tensor:
        """log p(duration = d + 1 given the state), (K, D_max), nats."""
        return self.family().log_prob(self.values())  # type: ignore[no-any-return]

    def mean(self) -> Tensor:
        """(K,), steps."""
        return self._moments()[0]

    def variance(self) -> Tensor:
        """(K,), steps^2."""
        return self._moments()[1]

    def mode(self) -> Tensor:
        """The most probable durations, (K,) int64; the shortest of equal ones."""
        return self.log_prob().argmax(-1) + 1

    @torch.no_grad()
    def sample(self, states: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Durations (...) int64 drawn for states (...)."""
        rng = torch.default_generator if generator is None else generator
        chances = self.log_prob().exp().to(rng.device)[states.reshape(-1).to(rng.device)]
        drawn = torch.multinomial(chances, 1, generator=rng) + 1
        return drawn.reshape(states.shape).to(states.device)

    @torch.no_grad()
    def initialize(self, counts: Tensor) -> None:
        """Set the parameters from counts (K, D_max) of durations, drawn towards a geometric law of the same mean."""
        support = support_of(self.max_duration, self.min_duration, self.num_states)
        is_possible = torch.from_numpy(support.is_possible).expand(self.num_states, -1)
        counts = counts.cpu().double() * is_possible
        counts = counts + (counts.sum(0) + 1e-3) / self.num_states * is_possible * 0.05
        extra = torch.from_numpy(support.extra).double()
        total = counts.sum(-1)
        mean = (counts * extra).sum(-1) / total
        broad = durations.geometric_log_duration(
            mean / (1.0 + mean), max_duration=self.max_duration, min_duration=self.min_duration
        )
        counts = counts + 0.2 * total[:, None] * broad.exp()
        begin = type(self.values())(*(x.detach().cpu().double() for x in self._beginning()))
        found = self.family().m_step(counts, begin)
        for name, one in self.parametrized().items():
            one.take(getattr(found, name))

    def arguments(self) -> dict[str, Any]:
        """What the constructor takes to make a module of the same shape, for JSON."""
        limits = {"max_duration": self.max_duration, "min_duration": self.min_duration}
        plain = {name: x if isinstance(x, int) else list(x) for name, x in limits.items()}
        return {"num_states": self.num_states, **plain}

    def extra_repr(self) -> str:
        """The arguments that shape it."""
        return f"num_states={self.num_states}, max_duration={self.max_duration}, min_duration={self.min_duration}"

    def _moments(self) -> tuple[Tensor, Tensor]:
        p = self.log_prob().exp()
        d = torch.arange(1, p.shape[-1] + 1, device=p.device, dtype=p.dtype)
        mean = (p * d).sum(-1)
        return mean, (p * (d - mean[:, None]).square()).sum(-1)

    def _beginning(self) -> Any:
        """Values to initialize from."""
        return self.values()

    def _limits(self, concentration: Any) -> tuple[Any, Any]:
        need_no_prior(self, concentration)
        return self.max_duration, self.min_duration

    def _spread(self) -> Tensor:
        """Steps beyond the least to start from, (K,): a third of what there is room for."""
        support = support_of(self.max_duration, self.min_duration, self.num_states)
        room = torch.from_numpy(support.extra * support.is_possible).double().amax(-1)
        return (room / 3.0).clamp_min(0.5).expand(self.num_states)


class CategoricalDuration(Duration):
    """A probability for every duration.

    Args:
        num_states, max_duration, min_duration: as `Duration`.
        log_probs: (K, D_max), nats; default all possible ones alike. -inf is a structural zero, as all durations
            outside min_duration..max_duration are.

    Example:
        >>> CategoricalDuration(2, max_duration=4, min_duration=2).mean()
        tensor([3.0000, 3.0000], grad_fn=<SumBackward1>)
    """

    def __init__(self, num_states: int, max_duration: Limit, min_duration: Limit = 1, *, log_probs: Any = None) -> None:
        super().__init__(num_states, max_duration, min_duration)
        start = durations.uniform_log_duration(
            num_states,
            max_duration=self.max_duration,
            min_duration=self.min_duration,
            like=torch.zeros((), dtype=torch.float64),
        )
        self.distribution = DurationProbabilities(start, "(K, D_max)")
        if log_probs is not None:
            self.log_probs = log_probs

    log_probs = parameter("log_probs", "distribution", "log p(duration = d + 1), (K, D_max), nats; assignable.")

    def family(self, concentration: Any = 1.0) -> durations.Categorical:
        """The categorical family; `concentration` is a number or (K, D_max)."""
        shape = self.distribution.shape
        concentration = prior_values("duration", concentration, shape)
        if isinstance(concentration, Tensor):
            concentration = concentration.to(self.distribution.logits.device).expand(shape)
        need_at_least("priors.duration", concentration, 1.0)
        return durations.Categorical(self.max_duration, self.min_duration, concentration)

    def values(self) -> durations.CategoricalParameters:
        """The log-probabilities."""
        return durations.CategoricalParameters(self.log_probs)

    def parametrized(self) -> dict[str, Parametrized]:
        """What makes the parameters."""
        return {"log_probs": self.distribution}

    def _beginning(self) -> durations.CategoricalParameters:
        # zeros that were learned do not stay
        return durations.CategoricalParameters(self.distribution.is_allowed.double().log().log_softmax(-1))


class DurationProbabilities(LogProbabilities):
    """Of durations: those that the start rules out are never possible.

    Args:
        log_probabilities, words: as `LogProbabilities`.
    """

    is_inside: Tensor

    def __init__(self, log_probabilities: Tensor, words: str) -> None:
        super().__init__(log_probabilities, words)
        self.register_buffer("is_inside", log_probabilities > -torch.inf, persistent=False)

    def _checked(self, name: str, values: Tensor) -> Tensor:
        is_bad = (values > -torch.inf) & ~self.is_inside.cpu()
        if is_bad.any():
            at = first(is_bad)
            raise ValueError(
                f"{name}: expected -inf outside min_duration..max_duration, got {float(values[at]):.6g} at {at}"
            )
        return super()._checked(name, values)


class UniformDuration(Duration):
    """All durations from the least to the largest alike; nothing to learn."""

    like: Tensor

    def __init__(self, num_states: int, max_duration: Limit, min_duration: Limit = 1) -> None:
        super().__init__(num_states, max_duration, min_duration)
        self.register_buffer("like", torch.zeros(num_states))

    def family(self, concentration: Any = 1.0) -> durations.Uniform:
        """The uniform family."""
        return durations.Uniform(*self._limits(concentration))

    def values(self) -> durations.UniformParameters:
        """None that could be learned."""
        return durations.UniformParameters(self.like)

    def parametrized(self) -> dict[str, Parametrized]:
        """Nothing."""
        return {}


class GeometricDuration(Duration):
    """Another step with the same probability after each.

    Args:
        num_states, max_duration, min_duration: as `Duration`.
        self_loops: (K,), probability of another step.
    """

    def __init__(
        self, num_states: int, max_duration: Limit, min_duration: Limit = 1, *, self_loops: Any = None
    ) -> None:
        super().__init__(num_states, max_duration, min_duration)
        self.chances = UnitInterval(self._spread().log().float(), "(K,)")
        if self_loops is not None:
            self.self_loops = self_loops

    self_loops = parameter("self_loops", "chances", "Probability of another step, (K,); assignable.")

    def family(self, concentration: Any = 1.0) -> durations.Geometric:
        """The geometric family."""
        return durations.Geometric(*self._limits(concentration))

    def values(self) -> durations.GeometricParameters:
        """Probabilities of another step."""
        return durations.GeometricParameters(self.self_loops)

    def parametrized(self) -> dict[str, Parametrized]:
        """What makes the parameters."""
        return {"self_loops": self.chances}


class PoissonDuration(Duration):
    """Poisson steps beyond the least.

    Args:
        num_states, max_duration, min_duration: as `Duration`.
        rates: (K,), their mean before durations above the largest are ruled out.
    """

    def __init__(self, num_states: int, max_duration: Limit, min_duration: Limit = 1, *, rates: Any = None) -> None:
        super().__init__(num_states, max_duration, min_duration)
        self.expected = Positive(self._spread().log().float(), "(K,)", least=1e-12)
        if rates is not None:
            self.rates = rates

    rates = parameter("rates", "expected", "Mean number of steps beyond the least, (K,); assignable.")

    def family(self, concentration: Any = 1.0) -> durations.Poisson:
        """The Poisson family."""
        return durations.Poisson(*self._limits(concentration))

    def values(self) -> durations.PoissonParameters:
        """The rates."""
        return durations.PoissonParameters(self.rates)

    def parametrized(self) -> dict[str, Parametrized]:
        """What makes the parameters."""
        return {"rates": self.expected}


class NegativeBinomialDuration(Duration):
    """Negative binomial steps beyond the least: a sum of geometric ones.

    Args:
        num_states, max_duration, min_duration: as `Duration`.
        total_counts: (K,), how many geometric parts; any number above 0.
        probs: (K,), probability of another step.
    """

    def __init__(
        self,
        num_states: int,
        max_duration: Limit,
        min_duration: Limit = 1,
        *,
        total_counts: Any = None,
        probs: Any = None,
    ) -> None:
        super().__init__(num_states, max_duration, min_duration)
        self.parts = Positive(torch.full((num_states,), 2.0).log(), "(K,)")
        self.chances = UnitInterval((self._spread() / 2.0).log().float(), "(K,)")
        if total_counts is not None:
            self.total_counts = total_counts
        if probs is not None:
            self.probs = probs

    total_counts = parameter("total_counts", "parts", "Numbers of geometric parts, (K,); assignable.")
    probs = parameter("probs", "chances", "Probability of another step, (K,); assignable.")

    def family(self, concentration: Any = 1.0) -> durations.NegativeBinomial:
        """The negative binomial family."""
        return durations.NegativeBinomial(*self._limits(concentration))

    def values(self) -> durations.NegativeBinomialParameters:
        """Numbers of parts, and probabilities of another step."""
        return durations.NegativeBinomialParameters(self.total_counts, self.probs)

    def parametrized(self) -> dict[str, Parametrized]:
        """What makes the parameters."""
        return {"total_counts": self.parts, "probs": self.chances}


class GammaDuration(Duration):
    """The gamma density at whole numbers.

    Args:
        num_states, max_duration, min_duration: as `Duration`.
        shapes: (K,), above 0.
        rates: (K,), per step, above 0.
    """

    def __init__(
        self,
        num_states: int,
        max_duration: Limit,
        min_duration: Limit = 1,
        *,
        shapes: Any = None,
        rates: Any = None,
    ) -> None:
        super().__init__(num_states, max_duration, min_duration)
        self.powers = Positive(torch.full((num_states,), 2.0).log(), "(K,)")
        self.slopes = Positive((2.0 / self._spread()).log().float(), "(K,)")
        if shapes is not None:
            self.shapes = shapes
        if rates is not None:
            self.rates = rates

    shapes = parameter("shapes", "powers", "Shapes, (K,); assignable.")
    rates = parameter("rates", "slopes", "Rates per step, (K,); assignable.")

    def family(self, concentration: Any = 1.0) -> durations.Gamma:
        """The gamma family."""
        return durations.Gamma(*self._limits(concentration))

    def values(self) -> durations.GammaParameters:
        """Shapes and rates."""
        return durations.GammaParameters(self.shapes, self.rates)

    def parametrized(self) -> dict[str, Parametrized]:
        """What makes the parameters."""
        return {"shapes": self.powers, "rates": self.slopes}


class GaussianDuration(Duration):
    """The Gaussian density at whole numbers.

    Args:
        num_states, max_duration, min_duration: as `Duration`.
        means: (K,), steps.
        variances: (K,), steps^2, above 0.
    """

    def __init__(
        self,
        num_states: int,
        max_duration: Limit,
        min_duration: Limit = 1,
        *,
        means: Any = None,
        variances: Any = None,
    ) -> None:
        super().__init__(num_states, max_duration, min_duration)
        middle = torch.from_numpy(support_of(max_duration, min_duration, num_states).middle)[:, 0]
        self.location = Numbers(middle.expand(num_states).float().clone(), "(K,)")
        self.spread = Positive((2.0 * self._spread().log()).float(), "(K,)")
        if means is not None:
            self.means = means
        if variances is not None:
            self.variances = variances

    means = parameter("means", "location", "Means, (K,), steps; assignable.")
    variances = parameter("variances", "spread", "Variances, (K,), steps^2; assignable.")

    def family(self, concentration: Any = 1.0) -> durations.Gaussian:
        """The Gaussian family."""
        return durations.Gaussian(*self._limits(concentration))

    def values(self) -> durations.GaussianParameters:
        """Means and variances."""
        return durations.GaussianParameters(self.means, self.variances)

    def parametrized(self) -> dict[str, Parametrized]:
        """What makes the parameters."""
        return {"means": self.location, "variances": self.spread}


DURATIONS: dict[str, type[Duration]] = {
    "categorical": CategoricalDuration,
    "poisson": PoissonDuration,
    "negative_binomial": NegativeBinomialDuration,
    "gamma": GammaDuration,
    "gaussian": GaussianDuration,
    "geometric": GeometricDuration,
    "uniform": UniformDuration,
}
