"""States that share emission laws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backend import Array, backend_of


@dataclass(frozen=True)
class TiedStates:
    """A family whose laws are shared by states: parameters and statistics have one row a law.

    Args:
        family: any family, of G laws.
        laws: (K,) integers 0..G-1, the law of each state.

    Example:
        >>> import torch
        >>> from hmm_functional.emissions import Poisson, PoissonParameters
        >>> family = TiedStates(Poisson(), (0, 1, 0))
        >>> family.log_prob(torch.tensor([[0]]), PoissonParameters(torch.tensor([[1.0], [2.0]])))
        tensor([[-1., -2., -1.]])
    """

    family: Any
    laws: tuple[int, ...]

    def log_prob(self, observations: Array, parameters: Any) -> Array:
        """(..., T, K)."""
        found = self.family.log_prob(observations, parameters)
        backend = backend_of(found=found)
        index = backend.asarray(np.asarray(self.laws), like=found)
        return backend.xp.take(found, index, axis=-1)

    def statistics(self, observations: Array, posteriors: Array, parameters: Any) -> Any:
        """The family's, of posteriors (..., T, K) summed over the states of each law."""
        backend = backend_of(posteriors=posteriors)
        is_of_law = np.asarray(self.laws)[:, None] == np.arange(max(self.laws) + 1)
        shares = backend.xp.astype(backend.asarray(is_of_law, like=posteriors), posteriors.dtype)
        return self.family.statistics(observations, posteriors @ shares, parameters)

    def __getattr__(self, name: str) -> Any:  # m_step, log_prior, and what else the family can do
        if name in ("family", "laws") or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.family, name)
