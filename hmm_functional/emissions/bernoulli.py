"""Yes or no: the Bernoulli log-probability, expected statistics, and M-step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from ..backend import Array, backend_of
from ..numerics import is_seen
from .constraints import held, need_at_least
from .poisson import beside, weighted_sums


def bernoulli_log_prob(observations: Array, probs: Array) -> Array:
    """log p(x_t given z_t = k) of D independent features that are 0 or 1.

    Args:
        observations: (..., T, D), zeros and ones (or booleans).
        probs: (K, D), probabilities of a one.

    Returns:
        (..., T, K), nats, in the dtype of the probabilities.

    Raises:
        TypeError: probabilities that are not floating-point. ValueError: shapes.

    Cost: O(B T K D), one matrix product.

    Example:
        >>> import torch, hmm_functional as hf
        >>> hf.bernoulli_log_prob(torch.tensor([[1, 0]]), torch.tensor([[0.5, 0.2], [1.0, 0.5]])).exp()
        tensor([[0.4000, 0.5000]])
    """
    backend = backend_of(observations=observations, probs=probs)
    xp = backend.xp
    x, probs = beside(backend, observations, "probs", probs)
    turn, is_never, is_always = xp.matrix_transpose, probs == 0, probs == 1
    yes, no = xp.log(xp.where(is_never, 1.0, probs)), xp.log1p(-xp.where(is_always, 0.0, probs))
    found = x @ turn(yes) + (1.0 - x) @ turn(no)
    clashes = x @ turn(xp.astype(is_never, x.dtype)) + (1.0 - x) @ turn(xp.astype(is_always, x.dtype))
    return xp.where(clashes > 0, -xp.inf, found)


class BernoulliParameters(NamedTuple):
    """Probabilities of a one, (K, D)."""

    probs: Array


class BernoulliStatistics(NamedTuple):
    """Expected frames (K,) of each state, and how many ones are among them, (K, D)."""

    counts: Array
    sums: Array


@dataclass(frozen=True)
class Bernoulli:
    """The family of yes-or-no features, for `hmm_functional.learning`.

    Args:
        ones, zeros: of the beta prior of each probability, at least 1 each; a number or (K, D).
    """

    ones: Any = 1.0
    zeros: Any = 1.0

    def __post_init__(self) -> None:
        need_at_least("ones", self.ones, 1.0)
        need_at_least("zeros", self.zeros, 1.0)

    def log_prob(self, observations: Array, parameters: BernoulliParameters) -> Array:
        """(..., T, K)."""
        return bernoulli_log_prob(observations, parameters.probs)

    def statistics(
        self, observations: Array, posteriors: Array, parameters: BernoulliParameters
    ) -> BernoulliStatistics:
        """Weighted sums over all frames; posteriors (..., T, K), 0 where not observed."""
        backend = backend_of(observations=observations, posteriors=posteriors)
        return BernoulliStatistics(*weighted_sums(backend, observations, posteriors))

    def m_step(
        self,
        statistics: BernoulliStatistics,
        parameters: BernoulliParameters,
        fixed: BernoulliParameters | None = None,
    ) -> BernoulliParameters:
        """The probabilities of highest expected log-probability (and prior); a state without frames keeps its own."""
        (probs,), (counts, sums) = parameters, statistics
        xp = backend_of(probs=probs).xp
        total = counts[:, None] + (self.ones + self.zeros - 2.0) + xp.zeros_like(sums)
        has_any = is_seen(xp, total)
        found = (sums + (self.ones - 1.0)) / xp.where(has_any, total, 1.0)
        found = xp.clip(xp.astype(found, probs.dtype), 0.0, 1.0)
        return BernoulliParameters(held(None if fixed is None else fixed.probs, probs, xp.where(has_any, found, probs)))

    def log_prior(self, parameters: BernoulliParameters) -> Any:
        """log density of the parameters before any data, up to a constant."""
        (probs,) = parameters
        xp = backend_of(probs=probs).xp
        yes, no = xp.log(xp.where(probs > 0, probs, 1.0)), xp.log1p(-xp.where(probs < 1, probs, 0.0))
        return xp.sum((self.ones - 1.0) * yes + (self.zeros - 1.0) * no)
