"""Products of families over groups of features: observations of mixed types."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .._check import need_shape
from ..backend import Array, backend_of
from .categorical import Categorical


class ProductParameters(NamedTuple):
    """Of each family its own, in order."""

    parts: tuple[Any, ...]


class ProductStatistics(NamedTuple):
    """Of each family its own, in order."""

    parts: tuple[Any, ...]


@dataclass(frozen=True)
class Product:
    """The family of observations whose groups of features are independent given the state, each of a family of its own.

    Args:
        families: in the order of their features.
        widths: how many features each takes of observations (..., T, sum of widths); 0 for symbols, which take one.
        missing: "propagate", or "marginalize": a NaN makes its group of features unobserved, or in families that have
            such a choice of their own, what these make of it.

    Cost: the sum of the families'.

    Example:
        >>> import torch
        >>> from hmm_functional.emissions import Bernoulli, BernoulliParameters, Poisson, PoissonParameters
        >>> parts = PoissonParameters(torch.tensor([[1.0]])), BernoulliParameters(torch.tensor([[0.5]]))
        >>> Product((Poisson(), Bernoulli()), (1, 1)).log_prob(torch.tensor([[0, 1]]), ProductParameters(parts))
        tensor([[-1.6931]])
    """

    families: tuple[Any, ...]
    widths: tuple[int, ...]
    missing: str = "propagate"

    def __post_init__(self) -> None:
        if not self.families or len(self.families) != len(self.widths):
            raise ValueError(
                f"widths: expected one for each of at least one family, got {self.widths} for {len(self.families)}"
            )
        if any(getattr(family, "num_lags", 0) for family in self.families):
            raise ValueError("families: expected densities of single frames, got one with lags")

    def log_prob(self, observations: Array, parameters: ProductParameters) -> Array:
        """(..., T, K): the sum of the families' log-densities."""
        groups = zip(self.families, self._split(observations), parameters.parts, strict=True)
        found = []
        for family, (x, is_seen), own in groups:
            scores = family.log_prob(x, own)
            found.append(scores if is_seen is None else backend_of(scores=scores).xp.where(is_seen, scores, 0.0))
        return sum(found[1:], found[0])

    def statistics(self, observations: Array, posteriors: Array, parameters: ProductParameters) -> ProductStatistics:
        """Of each family its own; posteriors (..., T, K), 0 where not observed."""
        groups = zip(self.families, self._split(observations), parameters.parts, strict=True)
        xp = backend_of(posteriors=posteriors).xp
        return ProductStatistics(
            tuple(
                family.statistics(x, posteriors if is_seen is None else xp.where(is_seen, posteriors, 0.0), own)
                for family, (x, is_seen), own in groups
            )
        )

    def m_step(
        self, statistics: ProductStatistics, parameters: ProductParameters, fixed: ProductParameters | None = None
    ) -> ProductParameters:
        """Each family's own."""
        held: Sequence[Any] = [None] * len(self.families) if fixed is None else fixed.parts
        groups = zip(self.families, statistics.parts, parameters.parts, held, strict=True)
        return ProductParameters(
            tuple(family.m_step(*own, *(() if stays is None else (stays,))) for family, *own, stays in groups)
        )

    def log_prior(self, parameters: ProductParameters) -> Any:
        """log density of the parameters before any data, up to a constant."""
        return sum(family.log_prior(own) for family, own in zip(self.families, parameters.parts, strict=True))

    def bounded(self, parameters: ProductParameters) -> ProductParameters:
        """The parameters with variances raised to the families' floors."""
        groups = zip(self.families, parameters.parts, strict=True)
        return ProductParameters(tuple(f.bounded(own) if hasattr(f, "bounded") else own for f, own in groups))

    def moved(self, statistics: ProductStatistics, old: ProductParameters, new: ProductParameters) -> ProductStatistics:
        """Statistics made with the old parameters, as if with the new ones."""
        groups = zip(self.families, statistics.parts, old.parts, new.parts, strict=True)
        return ProductStatistics(tuple(f.moved(s, a, b) if hasattr(f, "moved") else s for f, s, a, b in groups))

    def _split(self, observations: Array) -> list[tuple[Array, Array | None]]:
        """Each family's features, symbols as integers; and (..., T, 1) where it sees them, None for everywhere."""
        total = sum(max(width, 1) for width in self.widths)
        words = f"(..., T, {total}), all families' features"
        need_shape("observations", observations.shape, (None, total), words)
        backend = backend_of(observations=observations)
        xp, start = backend.xp, 0
        found: list[tuple[Array, Array | None]] = []
        for family, width in zip(self.families, self.widths, strict=True):
            x, is_seen = observations[..., start : start + max(width, 1)], None
            if self.missing == "marginalize" and getattr(family, "missing", "") != "marginalize":
                is_nan = xp.isnan(x)
                is_seen = xp.logical_not(xp.any(is_nan, axis=-1, keepdims=True))
                x = xp.where(is_nan, 0.0, x)
            if width == 0:
                x = x[..., 0]
                if isinstance(family, Categorical):
                    x = xp.astype(x, backend.index_dtype())
            found.append((x, is_seen))
            start += max(width, 1)
        return found
