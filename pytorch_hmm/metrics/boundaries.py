"""Boundaries found against boundaries wanted."""

from __future__ import annotations

from math import sqrt
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ._arguments import need_at_least_0
from .base import Metric, share

SLACK = 1e-6
"""Room for rounding: boundaries match where |gap| <= tolerance + SLACK, in the unit they are given in."""


class BoundaryTotals(NamedTuple):
    """Counts that scores of boundaries are made of."""

    hits: Tensor
    """Pairs in the largest one-to-one matching."""
    reference: Tensor
    predicted: Tensor


class BoundaryScores(NamedTuple):
    """How boundaries were met; NaN where there is none to tell from."""

    precision: Tensor
    """Share of the predicted ones that match."""
    recall: Tensor
    """Share of the reference ones that are matched."""
    f1: Tensor
    """Harmonic mean of both; 2 hits / (predicted + reference)."""
    r_value: Tensor
    """1 where all match; falls with misses and with too many."""
    over_segmentation: Tensor
    """predicted / reference - 1."""


def match_boundaries(reference: Any, predicted: Any, tolerance: float) -> Any:
    """The largest one-to-one matching of boundaries at most `tolerance` apart.

    Args:
        reference, predicted: (R,), (P,), in any order, in seconds or frames.
        tolerance: in the same unit; gaps up to tolerance + 1e-6 match, for rounding. float32 is coarser than that
            beyond 8 s.

    Returns:
        (H, 2) NumPy integers: places in reference and predicted, in order of time.

    Raises:
        TypeError, ValueError: not finite numbers in one axis, or a negative tolerance.

    Cost: O(R log R + P log P): in order of time the earliest pair within reach can always be taken, since what either
        could be matched with otherwise comes later.

    Example:
        >>> match_boundaries([0.10, 0.12], [0.11, 0.40], 0.02).tolist()
        [[0, 0]]
    """
    r, p = _times("reference", reference), _times("predicted", predicted)
    reach = need_at_least_0("tolerance", tolerance) + SLACK
    order, other = np.argsort(r, kind="stable"), np.argsort(p, kind="stable")
    found, i, j = [], 0, 0
    while i < len(r) and j < len(p):
        gap = r[order[i]] - p[other[j]]
        if abs(gap) <= reach:
            found.append((order[i], other[j]))
        i, j = i + (gap <= reach), j + (gap >= -reach)
    return np.array(found, np.int64).reshape(-1, 2)


def _times(name: str, x: Any) -> Any:
    try:
        found = np.asarray(x.detach().cpu() if isinstance(x, Tensor) else x, np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected numbers in one axis, got {type(x).__name__}") from None
    if found.ndim != 1:
        raise ValueError(f"{name}: expected one axis of boundaries, got shape {found.shape}")
    if not np.isfinite(found).all():
        raise ValueError(f"{name}: expected finite boundaries, got {found[~np.isfinite(found)][0]}")
    return found


def boundary_totals(reference: Any, predicted: Any, tolerance: float) -> BoundaryTotals:
    """Counts of one sequence, or of each in a list of them."""
    pairs = _sequences(reference, predicted)
    rows = [(len(match_boundaries(r, p, tolerance)), len(r), len(p)) for r, p in pairs]
    counts = torch.tensor(rows, dtype=torch.float64).reshape(-1, 3)
    if not _is_list(reference):
        counts = counts[0]
    return BoundaryTotals(*counts.unbind(-1))


def _is_list(x: Any) -> bool:
    return isinstance(x, list | tuple) and any(np.ndim(row) for row in x)


def _sequences(reference: Any, predicted: Any) -> list[tuple[Any, Any]]:
    if not _is_list(reference):
        return [(reference, predicted)]
    if not isinstance(predicted, list | tuple) or len(predicted) != len(reference):
        got = len(predicted) if isinstance(predicted, list | tuple) else type(predicted).__name__
        raise ValueError(f"predicted: expected a list of {len(reference)} sequences as reference, got {got}")
    return list(zip(reference, predicted, strict=True))


def _scores(t: BoundaryTotals) -> BoundaryScores:
    recall, over = share(t.hits, t.reference), share(t.predicted, t.reference) - 1
    far = ((1 - recall) ** 2 + over**2).sqrt()
    side = (recall - 1 - over).abs() / sqrt(2)
    f1 = share(2 * t.hits, t.predicted + t.reference)
    return BoundaryScores(share(t.hits, t.predicted), recall, f1, 1 - (far + side) / 2, over)


def boundary_scores(reference: Any, predicted: Any, *, tolerance: float = 0.02) -> BoundaryScores:
    """Precision, recall, F1, R-value and over-segmentation of boundaries matched one to one within a tolerance.

    Args:
        reference, predicted: (R,) and (P,) times, or lists of such, a sequence each; of label files,
            `pytorch_hmm.speech.labels.boundaries` of their segments.
        tolerance: as `match_boundaries`; the default is 20 ms of seconds.

    Returns:
        `BoundaryScores`, scalars, or (B,) for lists; float64. NaN where there is no boundary to divide by.

    Raises: as `match_boundaries`.

    References: R-value: Räsänen, Laine and Altosaar 2009, equations 4 to 6.

    Example:
        >>> found = boundary_scores([0.1, 0.2, 0.3], [0.11, 0.2, 0.25, 0.5])
        >>> [round(float(x), 3) for x in found]
        [0.5, 0.667, 0.571, 0.529, 0.333]
    """
    return _scores(boundary_totals(reference, predicted, tolerance))


class BoundaryScore(Metric[BoundaryTotals]):
    """`boundary_scores` over the boundaries of all sequences."""

    def __init__(self, *, tolerance: float = 0.02) -> None:
        super().__init__(BoundaryTotals)
        self.tolerance = need_at_least_0("tolerance", tolerance)

    def update(self, reference: Any, predicted: Any) -> None:
        """Add a sequence, or a list of them."""
        self._add(boundary_totals(reference, predicted, self.tolerance))

    def compute(self) -> BoundaryScores:
        """The scores."""
        return _scores(self._totals())


def alignment_accuracy(reference: Any, predicted: Any, *, tolerance: float = 0.02) -> Tensor:
    """Share of boundaries at most `tolerance` from those of the same number, as of one transcript aligned twice.

    Args:
        reference, predicted: (R,) each.
        tolerance: as `match_boundaries`.

    Returns:
        A float64 scalar; NaN where there is no boundary.

    Raises: as `match_boundaries`; ValueError for different numbers of boundaries.

    Example:
        >>> alignment_accuracy([0.1, 0.2], [0.12, 0.3])
        tensor(0.5000, dtype=torch.float64)
    """
    r, p = _times("reference", reference), _times("predicted", predicted)
    if len(r) != len(p):
        raise ValueError(f"predicted: expected {len(r)} boundaries as in reference, got {len(p)}")
    hits = np.abs(r - p) <= need_at_least_0("tolerance", tolerance) + SLACK
    return share(torch.tensor(float(hits.sum()), dtype=torch.float64), torch.tensor(float(len(r))))
