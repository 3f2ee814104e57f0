"""Emissions that are counted: symbols of an alphabet."""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor

import hmm_functional as hf
from hmm_functional._check import need_count

from ._check import is_traced, log_of
from .emission import EmissionHMM
from .hmm import ChainOptions
from .parametrize import LogProbabilities


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

    def _sample_observations(self, states: Tensor, rng: torch.Generator) -> Tensor:
        return self.symbol_distribution.sample(states, rng)

    def _label(self, frames: Tensor, rng: torch.Generator) -> Tensor:
        # symbols have no distance: states start from random parts of the data, all slightly different
        return torch.randint(self.num_states, frames.shape, generator=rng, device=rng.device).to(frames.device)

    def _initialize_emission(self, frames: Tensor, states: Tensor, rng: torch.Generator) -> None:
        cells = torch.bincount(states * self.num_symbols + frames, minlength=self.num_states * self.num_symbols)
        weights = (cells.reshape(self.num_states, -1) + 1.0) * self.symbol_distribution.is_possible
        self.log_probs = (weights / weights.sum(-1, keepdim=True)).log()
