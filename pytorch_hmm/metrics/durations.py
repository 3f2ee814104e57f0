"""Durations against those wanted."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._arguments import is_within, pair_of
from .base import Metric, share


class DurationTotals(NamedTuple):
    """Sums that errors of durations are made of."""

    number: Tensor
    errors: Tensor
    """Of predicted - reference."""
    absolute: Tensor
    squares: Tensor
    reference: Tensor
    predicted: Tensor
    reference_squares: Tensor
    predicted_squares: Tensor
    products: Tensor


class DurationErrors(NamedTuple):
    """Errors of durations, in their unit; NaN where there is nothing to tell from."""

    rmse: Tensor
    mae: Tensor
    """Mean absolute error."""
    bias: Tensor
    """Mean of predicted - reference."""
    correlation: Tensor
    """Pearson's; NaN where either is constant."""


def duration_totals(reference: Any, predicted: Any, lengths: Any = None) -> DurationTotals:
    """Sums of each sequence; see `duration_errors`."""
    x, y = pair_of(reference, predicted, "(..., S)", 1)
    is_seen = is_within(lengths, x, x.shape[-1])
    x, y = (torch.where(is_seen, one, 0.0) for one in (x, y))
    gap = y - x
    sums = (is_seen.double(), gap, gap.abs(), gap * gap, x, y, x * x, y * y, x * y)
    return DurationTotals(*(s.sum(-1) for s in sums))


def _errors(t: DurationTotals) -> DurationErrors:
    def spread(squares: Tensor, sums: Tensor) -> Tensor:
        found = t.number * squares - sums * sums
        # what rounding leaves of a constant is none
        return torch.where(found > 1e-12 * t.number * squares, found, 0.0)

    both = spread(t.reference_squares, t.reference).sqrt() * spread(t.predicted_squares, t.predicted).sqrt()
    correlation = share(t.number * t.products - t.reference * t.predicted, both).clamp(-1, 1)
    return DurationErrors(
        share(t.squares, t.number).sqrt(), share(t.absolute, t.number), share(t.errors, t.number), correlation
    )


def duration_errors(reference: Any, predicted: Any, *, lengths: Any = None) -> DurationErrors:
    """RMSE, mean absolute error, bias and correlation of durations.

    Args:
        reference, predicted: (..., S), in seconds or frames.
        lengths: (...), valid segments.

    Returns:
        `DurationErrors`, each (...) float64.

    Raises:
        TypeError, ValueError: not numbers of one shape, or lengths that do not fit.

    References: the correlation is Pearson's, from sums in float64.

    Example:
        >>> found = duration_errors([1.0, 2.0, 3.0], [2.0, 2.0, 5.0])
        >>> [round(float(x), 4) for x in found]
        [1.291, 1.0, 1.0, 0.866]
    """
    return _errors(duration_totals(reference, predicted, lengths))


class DurationError(Metric[DurationTotals]):
    """`duration_errors` over all segments of all sequences."""

    def __init__(self) -> None:
        super().__init__(DurationTotals)

    def update(self, reference: Any, predicted: Any, lengths: Any = None) -> None:
        """Add sequences (..., S)."""
        self._add(duration_totals(reference, predicted, lengths))

    def compute(self) -> DurationErrors:
        """The errors."""
        return _errors(self._totals())
