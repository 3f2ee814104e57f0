"""Labels of frames, and segments, against those wanted."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._arguments import is_within, pair_of
from .base import Metric, share


class ShareTotals(NamedTuple):
    """What a mean is made of."""

    part: Tensor
    whole: Tensor


def frame_totals(reference: Any, predicted: Any, lengths: Any = None) -> ShareTotals:
    """Frames with the right label, and frames, of each sequence; see `frame_accuracy`."""
    x, y = pair_of(reference, predicted, "(..., T) integers", 1, is_integer=True)
    is_seen = is_within(lengths, x, x.shape[-1]) & (x >= 0)
    return ShareTotals((is_seen & (x == y)).sum(-1).double(), is_seen.sum(-1).double())


def frame_accuracy(reference: Any, predicted: Any, *, lengths: Any = None) -> Tensor:
    """Share of frames whose label is the reference's.

    Args:
        reference, predicted: (..., T) integers; frames whose reference is negative do not count.
        lengths: (...), valid frames.

    Returns:
        (...) float64; NaN where no frame counts.

    Raises:
        TypeError, ValueError: not integers of one shape, or lengths that do not fit.

    Example:
        >>> frame_accuracy([0, 0, 1, -1], [0, 1, 1, 1])
        tensor(0.6667, dtype=torch.float64)
    """
    return share(*frame_totals(reference, predicted, lengths))


class FrameAccuracy(Metric[ShareTotals]):
    """`frame_accuracy` over all frames of all sequences."""

    def __init__(self) -> None:
        super().__init__(ShareTotals)

    def update(self, reference: Any, predicted: Any, lengths: Any = None) -> None:
        """Add sequences (..., T)."""
        self._add(frame_totals(reference, predicted, lengths))

    def compute(self) -> Tensor:
        """The accuracy."""
        return share(*self._totals())


def segment_totals(reference: Any, predicted: Any, lengths: Any = None) -> ShareTotals:
    """Sums of overlaps, and segments, of each sequence; see `segment_iou`."""
    x, y = pair_of(reference, predicted, "(..., S, 2)", 2)
    if x.shape[-1] != 2:
        raise ValueError(f"reference: expected starts and ends (..., S, 2), got {tuple(x.shape)}")
    is_seen = is_within(lengths, x[..., 0], x.shape[-2])
    for name, one in (("reference", x), ("predicted", y)):
        if bool((is_seen & ~((one[..., 1] >= one[..., 0]) & one.isfinite().all(-1))).any()):
            raise ValueError(f"{name}: expected finite starts and ends, none before its start, within the lengths")
    x, y = (torch.where(is_seen[..., None], one, 0.0) for one in (x, y))
    both = (torch.minimum(x[..., 1], y[..., 1]) - torch.maximum(x[..., 0], y[..., 0])).clamp_min(0)
    either = (x[..., 1] - x[..., 0]) + (y[..., 1] - y[..., 0]) - both
    found = torch.where(either > 0, both / torch.where(either > 0, either, 1.0), (x[..., 0] == y[..., 0]).double())
    return ShareTotals(torch.where(is_seen, found, 0.0).sum(-1), is_seen.sum(-1).double())


def segment_iou(reference: Any, predicted: Any, *, lengths: Any = None) -> Tensor:
    """Mean over segments of their intersection over their union, segment by segment of one transcript.

    Args:
        reference, predicted: (..., S, 2), start and end of each segment, in seconds or frames.
        lengths: (...), valid segments.

    Returns:
        (...) float64. Two empty segments count 1 at one place, else 0.

    Raises:
        TypeError, ValueError: not numbers of one shape, ends before starts, or lengths that do not fit.

    References: Jaccard 1901; of detections: Everingham et al. 2010, section 4.4.

    Example:
        >>> segment_iou([[0.0, 1.0], [1.0, 2.0]], [[0.0, 0.5], [0.5, 2.0]])
        tensor(0.5833, dtype=torch.float64)
    """
    return share(*segment_totals(reference, predicted, lengths))


class SegmentIoU(Metric[ShareTotals]):
    """`segment_iou` over all segments of all sequences."""

    def __init__(self) -> None:
        super().__init__(ShareTotals)

    def update(self, reference: Any, predicted: Any, lengths: Any = None) -> None:
        """Add sequences of segments (..., S, 2)."""
        self._add(segment_totals(reference, predicted, lengths))

    def compute(self) -> Tensor:
        """The mean."""
        return share(*self._totals())
