"""HMMs with an emission law of their own: sampling, and a start from data."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Self

import torch
from torch import Tensor

from .hmm import BaseHMM
from .initialize import count_transitions, kmeans, uniform_segments


class EmissionHMM(BaseHMM):
    """An HMM with an emission law of its own: it can be sampled from, and started from data.

    A subclass gives `_emission_log_prob`, `_sample_observations` and `_initialize_emission`.
    """

    @torch.no_grad()
    def sample(
        self, num_steps: int, batch_size: int | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """States and observations drawn from the model.

        Args:
            num_steps: T.
            batch_size: number of independent sequences.
            generator: source of randomness; default torch's global one.

        Returns:
            (batch_size, T) int64 and (batch_size, T, *frame_shape), or without the first axis where `batch_size` is
            not given.
        """
        states = self._sample_states(num_steps, batch_size, generator)
        return states, self._sample_observations(states, torch.default_generator if generator is None else generator)

    @torch.no_grad()
    def initialize_from_data(self, x: Tensor, lengths: Any = None, *, generator: torch.Generator | None = None) -> Self:
        """Set all parameters from observations, as a start for learning.

        Frames are given to states by cutting each sequence into equal parts where the transitions only go forward
        (no state leads to a lower one), else by k-means; the parameters are then those of the parts, drawn slightly
        towards the whole data. Structural zeros stay; without `learnable`, initial and transition stay too.

        Args:
            x: (..., T, *frame_shape); unobserved frames and padding are left out.
            lengths: (...) integers 1..T.
            generator: source of randomness; default torch's global one.

        Returns:
            The module itself.
        """
        x, lengths, is_missing = self._prepare(x, lengths)
        rng = torch.default_generator if generator is None else generator
        rank = len(self.frame_shape)
        shape = x.shape[: x.ndim - rank]
        steps = torch.arange(shape[-1], device=x.device).expand(shape)
        ends = torch.full(shape[:-1], shape[-1], device=x.device) if lengths is None else lengths
        is_read = steps < ends[..., None]
        if is_missing is not None:
            is_read = is_read & ~is_missing
        if not is_read.any():
            raise ValueError("x: expected at least one observed frame, got none")
        is_possible = self.transition_distribution.is_possible
        if self.num_states > 1 and not is_possible.tril(-1).any():
            states = uniform_segments(steps, ends, self.num_states)
        else:
            states = torch.zeros_like(steps)
            states[is_read] = self._label(x[is_read], rng)
        states = states.where(is_read, -1)
        if self.learnable:
            first, moves = count_transitions(states.reshape(-1, shape[-1]), self.num_states)
            for distribution, counts in ((self.initial_distribution, first), (self.transition_distribution, moves)):
                weights = (counts + 1.0) * distribution.is_possible
                distribution.assign("counts", (weights / weights.sum(-1, keepdim=True)).log(), "")
        self._initialize_emission(x[is_read], states[is_read], rng)
        return self

    def _label(self, frames: Tensor, rng: torch.Generator) -> Tensor:
        """A state for each of the frames (N, *frame_shape) of a model without order."""
        return kmeans(frames, self.num_states, rng)

    @abstractmethod
    def _sample_observations(self, states: Tensor, rng: torch.Generator) -> Tensor:
        """Observations (..., T, *frame_shape) drawn given the states (..., T)."""
        raise NotImplementedError

    @abstractmethod
    def _initialize_emission(self, frames: Tensor, states: Tensor, rng: torch.Generator) -> None:
        """Set the emission parameters from frames (N, *frame_shape) and their states (N,)."""
        raise NotImplementedError
