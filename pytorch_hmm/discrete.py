"""Emissions that are counted: symbols of an alphabet, counts, and features that are 0 or 1."""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor, nn

import hmm_functional as hf
from hmm_functional._check import need_count
from hmm_functional.emissions import (
    Bernoulli,
    BernoulliParameters,
    Categorical,
    CategoricalParameters,
    Poisson,
    PoissonParameters,
)

from ._check import first, is_traced, log_of, parameter_values
from .emission import EmissionHMM
from .hmm import ChainOptions
from .initialize import kmeans
from .parametrize import LogProbabilities, widened


class CategoricalHMM(EmissionHMM):
    """An HMM whose states emit symbols 0..V-1; observations are integers (..., T).

    With missing="nan", observations may also be whole numbers of a floating-point dtype, NaN where unobserved.

    Args:
        num_states: K.
        num_symbols: V.
        probs: (K, V), probabilities of the symbols in each state; zeros are structural; default random ones.
        options: `initial`, `transition` (probabilities), `topology`, `self_loop`, `learnable`, `missing`, as `BaseHMM`.

    Example:
        >>> import torch
        >>> hmm = CategoricalHMM(2, 3, probs=[[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]])
        >>> hmm.viterbi_decode(torch.tensor([0, 0, 2, 2]))[0]
        tensor([0, 0, 1, 1])
    """

    def __init__(
        self, num_states: int, num_symbols: int, *, probs: Any = None, **options: Unpack[ChainOptions]
    ) -> None:
        super().__init__(num_states, (), **options)
        self.num_symbols = need_count("num_symbols", num_symbols, 1)
        self._support = (-1, num_symbols)
        self._wanted = f"symbols 0..{num_symbols - 1}"
        shape = (num_states, num_symbols)
        start = torch.randn(shape).log_softmax(-1) if probs is None else log_of("probs", probs, shape, "(K, V)")
        self.symbol_distribution = LogProbabilities(start)

    @property
    def log_probs(self) -> Tensor:
        """log p(symbol given state), (K, V), nats; assignable, -inf becoming a structural zero."""
        return self.symbol_distribution.forward()

    @log_probs.setter
    def log_probs(self, value: Any) -> None:
        self.symbol_distribution.assign("log_probs", value, "(K, V)")

    def extra_repr(self) -> str:
        """The arguments that shape the model."""
        return f"{super().extra_repr()}, num_symbols={self.num_symbols}"

    def _cast(self, x: Tensor) -> Tensor:
        if x.is_floating_point() and self.missing == "nan":
            if not is_traced(x) and (x != x.round()).any():
                raise ValueError("x: expected whole numbers (and NaN where unobserved), got fractions")
        elif x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
            raise TypeError(f"x: expected integer symbols, got {x.dtype}; convert with x.long()")
        return x.long()

    def _emission_log_prob(self, x: Tensor) -> Tensor:
        return hf.categorical_log_prob(x, self.log_probs)  # type: ignore[no-any-return]

    def _num_emission_parameters(self) -> int:
        return self.symbol_distribution.num_free()

    def _family(self, variance_floor: Any, prior: Any) -> Categorical:
        return Categorical(1.0 if prior is None else prior)

    def _emission_parameters(self) -> CategoricalParameters:
        return CategoricalParameters(self.log_probs)

    def _arguments(self) -> dict[str, Any]:
        return {**super()._arguments(), "num_symbols": self.num_symbols}

    def _weights(self) -> dict[str, nn.Parameter]:
        return {**super()._weights(), "log_probs": self.symbol_distribution.logits}

    def _sample_observations(self, states: Tensor, rng: torch.Generator) -> Tensor:
        return self.symbol_distribution.sample(states, rng)

    def _label(self, frames: Tensor, rng: torch.Generator) -> Tensor:
        # symbols have no distance: each prefers some states by chance. States that emit nearly the same would stay on a
        # plateau, where EM gains less than any tolerance
        chances = torch.empty(self.num_symbols, self.num_states, dtype=torch.float64, device=rng.device)
        chances = chances.exponential_(generator=rng)
        drawn = torch.multinomial(chances[frames.to(rng.device)], 1, generator=rng)
        return drawn[:, 0].to(frames.device)

    def _label_by_chance(self, frames: Tensor, rng: torch.Generator) -> Tensor:
        return self._label(frames, rng)

    def _initialize_emission(self, frames: Tensor, states: Tensor, rng: torch.Generator) -> None:
        cells = torch.bincount(states * self.num_symbols + frames, minlength=self.num_states * self.num_symbols)
        weights = (cells.reshape(self.num_states, -1) + 1.0) * self.symbol_distribution.is_possible
        self.log_probs = (weights / weights.sum(-1, keepdim=True)).log()


class _FeaturesHMM(EmissionHMM):
    """States that emit D independent numbers each, every one by a law with one parameter."""

    def __init__(self, num_states: int, obs_dim: int, **options: Unpack[ChainOptions]) -> None:
        super().__init__(num_states, (need_count("obs_dim", obs_dim, 1),), **options)
        self.obs_dim = obs_dim

    def extra_repr(self) -> str:
        """The arguments that shape the model."""
        return f"{super().extra_repr()}, obs_dim={self.obs_dim}"

    def _cast(self, x: Tensor) -> Tensor:
        if x.is_complex():
            raise TypeError(f"x: expected real numbers, got {x.dtype}")
        if not is_traced(x) and x.is_floating_point() and (x != x.round()).any():
            raise ValueError(f"x: expected {self._wanted}, got fractions")
        return widened(x) if x.is_floating_point() else x.to(torch.get_default_dtype())

    def _arguments(self) -> dict[str, Any]:
        return {**super()._arguments(), "obs_dim": self.obs_dim}

    def _num_emission_parameters(self) -> int:
        return self.num_states * self.obs_dim

    def _means_of(self, frames: Tensor, states: Tensor) -> Tensor:
        """The mean of each state's frames, (K, D), drawn to that of all with the weight of one frame."""
        frames = frames.double()
        counts = torch.bincount(states, minlength=self.num_states)[:, None]
        sums = frames.new_zeros(self.num_states, self.obs_dim).index_add_(0, states, frames)
        return (sums + frames.mean(0)) / (counts + 1)

    def _label(self, frames: Tensor, rng: torch.Generator) -> Tensor:
        return kmeans(frames.double(), self.num_states, rng)


class PoissonHMM(_FeaturesHMM):
    """An HMM whose states emit D independent counts; observations are whole numbers (..., T, D) of any dtype.

    Args:
        num_states: K.
        obs_dim: D.
        rates: (K, D), expected counts, above 0; default random ones around 1.
        options: `initial`, `transition` (probabilities), `topology`, `self_loop`, `learnable`, `missing`, as `BaseHMM`.

    Example:
        >>> import torch
        >>> hmm = PoissonHMM(2, rates=[[1.0], [10.0]], topology="ergodic", self_loop=0.9)
        >>> hmm.viterbi_decode(torch.tensor([[0], [1], [12], [9]]))[0]
        tensor([0, 0, 1, 1])
    """

    _support = (-1, torch.inf)
    _wanted = "counts from 0"

    def __init__(
        self, num_states: int, obs_dim: int = 1, *, rates: Any = None, **options: Unpack[ChainOptions]
    ) -> None:
        super().__init__(num_states, obs_dim, **options)
        self.log_rates = nn.Parameter(torch.randn(self.num_states, obs_dim))
        if rates is not None:
            self.rates = rates

    @property
    def rates(self) -> Tensor:
        """Expected counts, (K, D); assignable, below 1e-12 becoming 1e-12."""
        return widened(self.log_rates).exp()

    @rates.setter
    def rates(self, value: Any) -> None:
        found = parameter_values("rates", value, tuple(self.log_rates.shape), "(K, D)")
        is_bad = (found < 0) | found.isinf()
        if is_bad.any():
            at = first(is_bad)
            raise ValueError(f"rates: expected finite numbers from 0, got {float(found[at]):.6g} at {at}")
        with torch.no_grad():
            self.log_rates.copy_(found.clamp_min(1e-12).log())

    def _emission_log_prob(self, x: Tensor) -> Tensor:
        return hf.poisson_log_prob(x, self.rates)  # type: ignore[no-any-return]

    def _family(self, variance_floor: Any, prior: Any) -> Poisson:
        return Poisson() if prior is None else Poisson(*prior)

    def _emission_parameters(self) -> PoissonParameters:
        return PoissonParameters(self.rates)

    def _weights(self) -> dict[str, nn.Parameter]:
        return {**super()._weights(), "rates": self.log_rates}

    def _sample_observations(self, states: Tensor, rng: torch.Generator) -> Tensor:
        return torch.poisson(self.rates[states].to(rng.device), generator=rng).to(states.device)

    def _initialize_emission(self, frames: Tensor, states: Tensor, rng: torch.Generator) -> None:
        self.rates = self._means_of(frames, states)


class BernoulliHMM(_FeaturesHMM):
    """An HMM whose states emit D independent features that are 0 or 1; observations (..., T, D) of any dtype.

    Args:
        num_states: K.
        obs_dim: D.
        probs: (K, D), probabilities of a 1; default random ones.
        options: `initial`, `transition` (probabilities), `topology`, `self_loop`, `learnable`, `missing`, as `BaseHMM`.

    Example:
        >>> import torch
        >>> hmm = BernoulliHMM(2, probs=[[0.1], [0.9]], topology="ergodic", self_loop=0.9)
        >>> hmm.viterbi_decode(torch.tensor([[0], [0], [1], [1]]))[0]
        tensor([0, 0, 1, 1])
    """

    _support = (-1, 2)
    _wanted = "zeros and ones"

    def __init__(
        self, num_states: int, obs_dim: int = 1, *, probs: Any = None, **options: Unpack[ChainOptions]
    ) -> None:
        super().__init__(num_states, obs_dim, **options)
        self.logits = nn.Parameter(torch.randn(self.num_states, obs_dim))
        if probs is not None:
            self.probs = probs

    @property
    def probs(self) -> Tensor:
        """Probabilities of a 1, (K, D); assignable, within 1e-12 of 0 and 1 becoming that (1e-7 in float32)."""
        return widened(self.logits).sigmoid()

    @probs.setter
    def probs(self, value: Any) -> None:
        found = parameter_values("probs", value, tuple(self.logits.shape), "(K, D)")
        is_bad = (found < 0) | (found > 1)
        if is_bad.any():
            at = first(is_bad)
            raise ValueError(f"probs: expected probabilities in [0, 1], got {float(found[at]):.6g} at {at}")
        least = 1e-12 if self.logits.dtype == torch.float64 else 1e-7
        with torch.no_grad():
            self.logits.copy_(found.clamp(least, 1 - least).logit())

    def _emission_log_prob(self, x: Tensor) -> Tensor:
        return hf.bernoulli_log_prob(x, self.probs)  # type: ignore[no-any-return]

    def _family(self, variance_floor: Any, prior: Any) -> Bernoulli:
        return Bernoulli() if prior is None else Bernoulli(*prior)

    def _emission_parameters(self) -> BernoulliParameters:
        return BernoulliParameters(self.probs)

    def _weights(self) -> dict[str, nn.Parameter]:
        return {**super()._weights(), "probs": self.logits}

    def _sample_observations(self, states: Tensor, rng: torch.Generator) -> Tensor:
        return torch.bernoulli(self.probs[states].to(rng.device), generator=rng).to(states.device)

    def _initialize_emission(self, frames: Tensor, states: Tensor, rng: torch.Generator) -> None:
        self.probs = self._means_of(frames, states).clamp(0.01, 0.99)
