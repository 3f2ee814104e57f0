"""HMMs whose observations are scores already."""

from __future__ import annotations

from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor

from .emission import Emission
from .hmm import ChainOptions
from .parametrize import Parametrized
from .trainable import TrainableHMM, num_laws


class Nothing(NamedTuple):
    """No parameters, and no statistics of emissions."""


class Scores:
    """The family of observations that are log p(x_t given z_t), (..., T, K): there is nothing to learn."""

    def log_prob(self, observations: Tensor, parameters: Nothing) -> Tensor:
        """The observations."""
        return observations

    def statistics(self, observations: Tensor, posteriors: Tensor, parameters: Nothing) -> Nothing:
        """None."""
        return Nothing()

    def m_step(self, statistics: Nothing, parameters: Nothing, fixed: Nothing | None = None) -> Nothing:
        """None."""
        return Nothing()

    def log_prior(self, parameters: Nothing) -> float:
        """0: there is no prior."""
        return 0.0


class ScoreEmission(Emission):
    """Scores of every state, (..., T, K), taken as they come."""

    support = (None, torch.inf)
    wanted = "log scores below inf"

    def __init__(self, num_laws: int) -> None:
        super().__init__(num_laws, (num_laws,))

    def family(self, variance_floor: Any = 0.0, prior: Any = None) -> Scores:
        """The family without parameters."""
        if prior is not None:
            raise ValueError("priors: expected no prior of emissions, scores have no parameters")
        return Scores()

    def values(self) -> Nothing:
        """None."""
        return Nothing()

    def parametrized(self) -> dict[str, Parametrized]:
        """None."""
        return {}

    def label(self, frames: Tensor, num_states: int, rng: torch.Generator) -> Tensor:
        """The state of the highest score."""
        return frames.argmax(-1)

    def sample(self, laws: Tensor, rng: torch.Generator) -> Tensor:
        """Scores have no law of their own."""
        raise NotImplementedError("scores cannot be drawn: what they were made of has no law here")

    def initialize(self, frames: Tensor, laws: Tensor, rng: torch.Generator) -> None:
        """Nothing to set."""


class HMMPyTorch(TrainableHMM):
    """An HMM whose observations are scores: log p(x_t given z_t) (..., T, K), from a network or any other source.

    Args:
        num_states: K.
        options: `initial`, `transition` (probabilities), `topology`, `self_loop`, `learnable`, `missing`, as `BaseHMM`.

    Scores need not be normalised; -inf is an impossible state. `fit` learns the chain.

    Example:
        >>> import torch
        >>> hmm = HMMPyTorch(2, transition=[[0.7, 0.3], [0.3, 0.7]])
        >>> scores = torch.tensor([[[0.9, 0.2], [0.9, 0.2]]]).log()
        >>> posteriors, log_likelihood = hmm.forward_backward(scores)
        >>> posteriors
        tensor([[[0.8834, 0.1166],
                 [0.8834, 0.1166]]], grad_fn=<ExpBackward0>)
    """

    def __init__(self, num_states: int, **options: Unpack[ChainOptions]) -> None:
        super().__init__(num_states, ScoreEmission(num_laws(num_states, None)), **options)

    @torch.no_grad()
    def sample(self, num_steps: int, batch_size: int | None = None, generator: torch.Generator | None = None) -> Tensor:
        """States drawn from the prior, (batch_size, T), or (T,) without `batch_size`; what is seen has no law here.

        Args:
            num_steps: T.
            batch_size: number of independent sequences.
            generator: source of randomness; default torch's global one.
        """
        return self._sample_states(num_steps, batch_size, generator)
