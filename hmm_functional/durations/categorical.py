"""Durations of any law, a probability for each; and alike ones between a least and a largest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from ..backend import Array, backend_of
from ..emissions.categorical import dirichlet_log_density, maximize_probabilities
from ..emissions.constraints import need_at_least
from ..numerics import wide
from .support import DurationFamily, normalised, support_of


class CategoricalParameters(NamedTuple):
    """log p(duration = d + 1 given the state), (K, D_max); -inf for what is impossible."""

    log_probs: Array


@dataclass(frozen=True)
class Categorical(DurationFamily):
    """A probability for every duration.

    Args:
        max_duration, min_duration: as `DurationFamily`.
        concentration: of the Dirichlet prior of each state's probabilities, a number or (K, D_max), at least 1.
    """

    concentration: Any = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        need_at_least("concentration", self.concentration, 1.0)

    def log_prob(self, parameters: CategoricalParameters) -> Array:
        """The parameters themselves."""
        return parameters.log_probs

    def m_step(
        self, counts: Array, parameters: CategoricalParameters, fixed: CategoricalParameters | None = None
    ) -> CategoricalParameters:
        """Shares of the counts; zeros stay."""
        (old,), held = parameters, None if fixed is None else fixed.log_probs
        backend = backend_of(log_probs=old)
        return CategoricalParameters(maximize_probabilities(backend, counts, old, self.concentration, held))

    def log_prior(self, parameters: CategoricalParameters) -> Any:
        """log density of the Dirichlet prior, up to a constant."""
        return dirichlet_log_density(parameters.log_probs, self.concentration)


def uniform_log_duration(num_states: int, *, max_duration: Any, min_duration: Any = 1, like: Array) -> Array:
    """log p of durations that are all alike from `min_duration` to `max_duration`.

    Args:
        num_states: K.
        max_duration, min_duration: steps, a number or one for each state.
        like: an array whose library, dtype and device the result takes.

    Returns:
        (K, D_max), nats, -inf outside.

    Raises:
        ValueError: no such durations.

    Example:
        >>> import torch
        >>> from hmm_functional.durations import uniform_log_duration
        >>> uniform_log_duration(2, max_duration=[2, 3], min_duration=2, like=torch.zeros(())).exp()
        tensor([[0.0000, 1.0000, 0.0000],
                [0.0000, 0.5000, 0.5000]])
    """
    backend = backend_of(like=like)
    support = support_of(max_duration, min_duration, num_states)
    zeros = wide(backend, backend.full((num_states, support.longest), 0.0, like=like))
    return normalised(backend, zeros, support, like)


class UniformParameters(NamedTuple):
    """None to learn; (K,) zeros that say for how many states, of which dtype and where."""

    like: Array


@dataclass(frozen=True)
class Uniform(DurationFamily):
    """All possible durations alike: a state lasts between a least and a largest number of steps."""

    def log_prob(self, parameters: UniformParameters) -> Array:
        """(K, D_max)."""
        return uniform_log_duration(
            parameters.like.shape[-1],
            max_duration=self.max_duration,
            min_duration=self.min_duration,
            like=parameters.like,
        )

    def m_step(self, counts: Array, parameters: UniformParameters, fixed: Any = None) -> UniformParameters:
        """What there was."""
        return parameters
