"""Emissions that are counted: symbols of an alphabet, counts, and features that are 0 or 1."""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor

from hmm_functional._check import need_count
from hmm_functional.emissions import (
    Bernoulli,
    BernoulliParameters,
    Categorical,
    CategoricalParameters,
    Poisson,
    PoissonParameters,
)

from ._check import is_traced, log_of, prior_pair, prior_values
from .emission import CountEmission, Emission, of_emission
from .law import parameter
from .parametrize import LogProbabilities, Parametrized, Positive, UnitInterval
from .trainable import EmissionHMM, EmissionOptions, num_laws


class CategoricalEmission(Emission):
    """Symbols 0..V-1; arguments as `CategoricalHMM`'s."""

    are_laws_apart = True

    def __init__(self, num_laws: int, num_symbols: int, *, probs: Any = None) -> None:
        super().__init__(num_laws, ())
        self.num_symbols = need_count("num_symbols", num_symbols, 1)
        self.support = (-1, num_symbols)
        self.wanted = f"symbols 0..{num_symbols - 1}"
        shape = (num_laws, num_symbols)
        start = torch.randn(shape).log_softmax(-1) if probs is None else log_of("probs", probs, shape, "(K, V)")
        self.symbol_distribution = LogProbabilities(start, "(K, V)")

    log_probs = parameter(
        "log_probs",
        "symbol_distribution",
        "log p(symbol given state), (K, V), nats; assignable, -inf becoming a structural zero.",
    )

    def family(self, variance_floor: Any = 0.0, prior: Any = None) -> Categorical:
        """The categorical family; `prior` holds concentrations."""
        shape = (self.num_laws, self.num_symbols)
        return Categorical(1.0 if prior is None else prior_values("emission", prior, shape))

    def values(self) -> CategoricalParameters:
        """log-probabilities of symbols."""
        return CategoricalParameters(self.log_probs)

    def parametrized(self) -> dict[str, Parametrized]:
        """What makes the parameters."""
        return {"log_probs": self.symbol_distribution}

    def extra_repr(self) -> str:
        """The arguments that shape it."""
        return f"num_symbols={self.num_symbols}"

    def arguments(self) -> dict[str, Any]:
        """What the constructor takes to make a module of the same shape, for JSON."""
        return {**super().arguments(), "num_symbols": self.num_symbols}

    def cast(self, x: Tensor, has_nan: bool = False) -> Tensor:
        """Symbols as integers; of a floating-point dtype only where NaN stood for unobserved ones."""
        if x.is_floating_point() and has_nan:
            if not is_traced(x) and (x != x.round()).any():
                raise ValueError("x: expected whole numbers (and NaN where unobserved), got fractions")
        elif x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
            raise TypeError(f"x: expected integer symbols, got {x.dtype}; convert with x.long()")
        return x.long()

    def log_tails(self, x: Tensor, is_strict: bool = False) -> tuple[Tensor, Tensor]:
        """log P(X <= x) and log P(X > x) under each law, (..., T, K, 1), symbols in their order."""
        chances = self.log_probs.exp().T
        below = torch.cat([torch.zeros_like(chances[:1]), chances.cumsum(0)])
        above = torch.cat([chances.flip(0).cumsum(0).flip(0), torch.zeros_like(chances[:1])])
        index = x if is_strict else x + 1
        return below[index].log()[..., None], above[index].log()[..., None]

    def label(self, frames: Tensor, num_states: int, rng: torch.Generator) -> Tensor:
        """A state for each symbol (N,): each symbol prefers some by chance, since symbols have no distance."""
        # states that emit nearly the same would stay on a plateau, where EM gains less than any tolerance
        chances = torch.empty(self.num_symbols, num_states, dtype=torch.float64, device=rng.device)
        chances = chances.exponential_(generator=rng)
        drawn = torch.multinomial(chances[frames.to(rng.device)], 1, generator=rng)
        return drawn[:, 0].to(frames.device)

    def label_by_chance(self, frames: Tensor, num_states: int, rng: torch.Generator) -> Tensor:
        """The same."""
        return self.label(frames, num_states, rng)

    def sample(self, laws: Tensor, rng: torch.Generator) -> Tensor:
        """Symbols (...) drawn given the laws (...)."""
        return self.symbol_distribution.sample(laws, rng)

    def initialize(self, frames: Tensor, laws: Tensor, rng: torch.Generator) -> None:
        """Shares of the symbols among each law's, one added to each count."""
        cells = torch.bincount(laws * self.num_symbols + frames, minlength=self.num_laws * self.num_symbols)
        self.symbol_distribution.start(cells.reshape(self.num_laws, -1))


class PoissonEmission(CountEmission):
    """D independent counts; arguments as `PoissonHMM`'s."""

    are_laws_apart = True
    support = (-1, torch.inf)
    wanted = "counts from 0"

    def __init__(self, num_laws: int, obs_dim: int = 1, *, rates: Any = None) -> None:
        super().__init__(num_laws, obs_dim)
        self.rate = Positive(torch.randn(num_laws, obs_dim), "(K, D)", least=1e-12)
        if rates is not None:
            self.rates = rates

    rates = parameter("rates", "rate", "Expected counts, (K, D); assignable, below 1e-12 becoming 1e-12.")

    def family(self, variance_floor: Any = 0.0, prior: Any = None) -> Poisson:
        """The Poisson family; `prior` is (shape, rate) of a gamma distribution."""
        shape = (self.num_laws, self.obs_dim)
        return Poisson() if prior is None else Poisson(*prior_pair(prior, "(shape, rate)", shape))

    def values(self) -> PoissonParameters:
        """Rates."""
        return PoissonParameters(self.rates)

    def parametrized(self) -> dict[str, Parametrized]:
        """What makes the parameters."""
        return {"rates": self.rate}

    def log_tails(self, x: Tensor, is_strict: bool = False) -> tuple[Tensor, Tensor]:
        """log P(X <= x) and log P(X > x) of each feature under each law, (..., T, K, D)."""
        count, rates = x[..., None, :].double() + (0.0 if is_strict else 1.0), self.rates.double()
        is_any = count > 0
        count = count.where(is_any, 1.0)
        below = torch.special.gammaincc(count, rates).where(is_any, 0.0)
        above = torch.special.gammainc(count, rates).where(is_any, 1.0)
        return below.log(), above.log()

    def sample(self, laws: Tensor, rng: torch.Generator) -> Tensor:
        """Counts (..., D) drawn given the laws (...)."""
        return torch.poisson(self.rates[laws].to(rng.device), generator=rng).to(laws.device)

    def initialize(self, frames: Tensor, laws: Tensor, rng: torch.Generator) -> None:
        """Means of each law's frames."""
        self.rate.take(self._means_of(frames, laws))


class BernoulliEmission(CountEmission):
    """D independent features that are 0 or 1; arguments as `BernoulliHMM`'s."""

    are_laws_apart = True
    support = (-1, 2)
    wanted = "zeros and ones"

    def __init__(self, num_laws: int, obs_dim: int = 1, *, probs: Any = None) -> None:
        super().__init__(num_laws, obs_dim)
        self.chance = UnitInterval(torch.randn(num_laws, obs_dim), "(K, D)")
        if probs is not None:
            self.probs = probs

    probs = parameter(
        "probs", "chance", "Probabilities of a 1, (K, D); assignable, within 1e-12 of 0 and 1 that (1e-7 in float32)."
    )

    def family(self, variance_floor: Any = 0.0, prior: Any = None) -> Bernoulli:
        """The Bernoulli family; `prior` is (ones, zeros) of a beta distribution."""
        shape = (self.num_laws, self.obs_dim)
        return Bernoulli() if prior is None else Bernoulli(*prior_pair(prior, "(ones, zeros)", shape))

    def values(self) -> BernoulliParameters:
        """Probabilities of a 1."""
        return BernoulliParameters(self.probs)

    def parametrized(self) -> dict[str, Parametrized]:
        """What makes the parameters."""
        return {"probs": self.chance}

    def log_tails(self, x: Tensor, is_strict: bool = False) -> tuple[Tensor, Tensor]:
        """log P(X <= x) and log P(X > x) of each feature under each law, (..., T, K, D)."""
        is_zero, probs = x[..., None, :] < 0.5, self.probs
        if is_strict:
            return (1.0 - probs).where(~is_zero, 0.0).log(), probs.where(~is_zero, 1.0).log()
        return (1.0 - probs).where(is_zero, 1.0).log(), probs.where(is_zero, 0.0).log()

    def sample(self, laws: Tensor, rng: torch.Generator) -> Tensor:
        """Zeros and ones (..., D) drawn given the laws (...)."""
        return torch.bernoulli(self.probs[laws].to(rng.device), generator=rng).to(laws.device)

    def initialize(self, frames: Tensor, laws: Tensor, rng: torch.Generator) -> None:
        """Means of each law's frames."""
        self.chance.take(self._means_of(frames, laws).clamp(0.01, 0.99))


class CategoricalHMM(EmissionHMM):
    """An HMM whose states emit symbols 0..V-1; observations are integers (..., T).

    With missing="nan", observations may also be whole numbers of a floating-point dtype, NaN where unobserved.

    Args:
        num_states: K.
        num_symbols: V.
        probs: (K, V), probabilities of the symbols in each state; zeros are structural; default random ones.
        options: `initial`, `transition` (probabilities), `topology`, `self_loop`, `learnable`, `missing` and
            `tied_states`, as `EmissionHMM`.

    Example:
        >>> import torch
        >>> hmm = CategoricalHMM(2, 3, probs=[[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]])
        >>> hmm.viterbi_decode(torch.tensor([0, 0, 2, 2]))[0]
        tensor([0, 0, 1, 1])
    """

    def __init__(
        self, num_states: int, num_symbols: int, *, probs: Any = None, **options: Unpack[EmissionOptions]
    ) -> None:
        laws = num_laws(num_states, options.get("tied_states"))
        super().__init__(num_states, CategoricalEmission(laws, num_symbols, probs=probs), **options)

    @property
    def probs(self) -> Tensor:
        """p(symbol given state), (K, V), probabilities; assignable."""
        return self.log_probs.exp()  # type: ignore[no-any-return]

    @probs.setter
    def probs(self, value: Any) -> None:
        self.log_probs = log_of("probs", value, tuple(self.log_probs.shape), "(K, V)")

    log_probs = of_emission("log_probs", "log p(symbol given state), (K, V), nats; assignable, -inf a structural zero.")
    num_symbols = of_emission("num_symbols", "V.")


class PoissonHMM(EmissionHMM):
    """An HMM whose states emit D independent counts; observations are whole numbers (..., T, D) of any dtype.

    Args:
        num_states: K.
        obs_dim: D.
        rates: (K, D), expected counts, above 0; default random ones around 1.
        options: `initial`, `transition` (probabilities), `topology`, `self_loop`, `learnable`, `missing` and
            `tied_states`, as `EmissionHMM`.

    Example:
        >>> import torch
        >>> hmm = PoissonHMM(2, rates=[[1.0], [10.0]], topology="ergodic", self_loop=0.9)
        >>> hmm.viterbi_decode(torch.tensor([[0], [1], [12], [9]]))[0]
        tensor([0, 0, 1, 1])
    """

    def __init__(
        self, num_states: int, obs_dim: int = 1, *, rates: Any = None, **options: Unpack[EmissionOptions]
    ) -> None:
        laws = num_laws(num_states, options.get("tied_states"))
        super().__init__(num_states, PoissonEmission(laws, obs_dim, rates=rates), **options)

    rates = of_emission("rates", "Expected counts, (K, D); assignable, below 1e-12 becoming 1e-12.")
    obs_dim = of_emission("obs_dim", "D.")


class BernoulliHMM(EmissionHMM):
    """An HMM whose states emit D independent features that are 0 or 1; observations (..., T, D) of any dtype.

    Args:
        num_states: K.
        obs_dim: D.
        probs: (K, D), probabilities of a 1; default random ones.
        options: `initial`, `transition` (probabilities), `topology`, `self_loop`, `learnable`, `missing` and
            `tied_states`, as `EmissionHMM`.

    Example:
        >>> import torch
        >>> hmm = BernoulliHMM(2, probs=[[0.1], [0.9]], topology="ergodic", self_loop=0.9)
        >>> hmm.viterbi_decode(torch.tensor([[0], [0], [1], [1]]))[0]
        tensor([0, 0, 1, 1])
    """

    def __init__(
        self, num_states: int, obs_dim: int = 1, *, probs: Any = None, **options: Unpack[EmissionOptions]
    ) -> None:
        laws = num_laws(num_states, options.get("tied_states"))
        super().__init__(num_states, BernoulliEmission(laws, obs_dim, probs=probs), **options)

    probs = of_emission("probs", "Probabilities of a 1, (K, D); assignable, 1e-12 (1e-7 in float32) off 0 and 1.")
    obs_dim = of_emission("obs_dim", "D.")
