"""Errors of fundamental frequency and of voicing."""

from __future__ import annotations

from math import log
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hmm_functional.backend import backend_of
from hmm_functional.numerics import root

from ._arguments import as_tensor, is_within, need_at_least_0, pair_of
from .base import Metric, share

CENTS = 1200 / log(2)
"""Cents of a difference of 1 in log F0."""


class PitchTotals(NamedTuple):
    """Sums that pitch errors are made of."""

    squares: Tensor
    """Of differences in Hz, over frames voiced in both."""
    log_squares: Tensor
    both_voiced: Tensor
    """Frames voiced in both."""
    gross: Tensor
    """Of these, frames whose F0 is off by more than the threshold."""
    mismatched: Tensor
    """Frames voiced in one alone."""
    frames: Tensor


class PitchErrors(NamedTuple):
    """Errors of F0 (...), NaN where there is no frame to tell them from."""

    rmse: Tensor
    """Hz, over frames voiced in both."""
    log_rmse: Tensor
    """Of ln F0, over the same."""
    cents: Tensor
    """The same, 1200 to an octave."""
    gross_pitch_error: Tensor
    """Share of the frames voiced in both whose F0 is off by more than the threshold."""
    voicing_decision_error: Tensor
    """Share of all frames that are voiced in one alone."""
    f0_frame_error: Tensor
    """Share of all frames with either error."""


def pitch_totals(
    reference: Any,
    predicted: Any,
    *,
    reference_voiced: Any = None,
    predicted_voiced: Any = None,
    threshold: float = 0.2,
    lengths: Any = None,
) -> PitchTotals:
    """Sums of each sequence; see `pitch_errors`."""
    x, y = pair_of(reference, predicted, "(..., T)", 1)
    is_seen = is_within(lengths, x, x.shape[-1])
    reach = need_at_least_0("threshold", threshold)
    voiced = []
    for name, one, given in (("reference", x, reference_voiced), ("predicted", y, predicted_voiced)):
        # trackers that tell voicing apart may have NaN in unvoiced frames
        if given is None and bool((is_seen & ~(torch.isfinite(one) & (one >= 0))).any()):
            raise ValueError(f"{name}: expected finite frequencies in Hz, 0 where unvoiced, within the lengths")
        found = one > 0 if given is None else as_tensor(f"{name}_voiced", given) != 0
        if found.shape != one.shape:
            raise ValueError(f"{name}_voiced: expected shape {tuple(one.shape)}, got {tuple(found.shape)}")
        if bool((is_seen & found & ~(torch.isfinite(one) & (one > 0))).any()):
            raise ValueError(f"{name}: expected finite positive frequencies in the frames of {name}_voiced")
        voiced.append(found)
    both = is_seen & voiced[0] & voiced[1]
    x, y = torch.where(both, x, 1.0), torch.where(both, y, 1.0)
    gap, ratio = y - x, (y / x).log()
    gross = both & (gap.abs() > reach * x)
    mismatched = is_seen & (voiced[0] != voiced[1])
    sums = (gap * gap, ratio * ratio, both, gross, mismatched, is_seen)
    return PitchTotals(*(s.to(torch.float64).sum(-1) for s in sums))


def _errors(t: PitchTotals) -> PitchErrors:
    backend = backend_of(squares=t.squares)
    log_rmse = root(backend, share(t.log_squares, t.both_voiced))
    return PitchErrors(
        root(backend, share(t.squares, t.both_voiced)),
        log_rmse,
        CENTS * log_rmse,
        share(t.gross, t.both_voiced),
        share(t.mismatched, t.frames),
        share(t.gross + t.mismatched, t.frames),
    )


def pitch_errors(
    reference: Any,
    predicted: Any,
    *,
    reference_voiced: Any = None,
    predicted_voiced: Any = None,
    threshold: float = 0.2,
    lengths: Any = None,
) -> PitchErrors:
    """F0 RMSE in Hz, in ln and in cents; gross pitch, voicing decision and F0 frame errors.

    Args:
        reference, predicted: (..., T), F0 in Hz, 0 where unvoiced.
        reference_voiced, predicted_voiced: (..., T) booleans, where a continuous F0 has voicing apart; frames that are
            not voiced may then hold anything, also NaN.
        threshold: relative difference beyond which an error is gross.
        lengths: (...), valid frames.

    Returns:
        `PitchErrors`, each (...) float64; NaN where no frame is voiced in both.

    Raises:
        TypeError, ValueError: shapes, lengths, the threshold, or frequencies that are negative or not finite.

    References: gross pitch and voicing decision errors: Nakatani et al. 2008, Speech Communication 50; F0 frame error:
        Chu and Alwan 2009.

    Example:
        >>> found = pitch_errors([100.0, 100.0, 0.0, 200.0], [110.0, 130.0, 90.0, 0.0])
        >>> [round(float(x), 4) for x in found]
        [22.3607, 0.1974, 341.7138, 0.5, 0.5, 0.75]
    """
    options: dict[str, Any] = {"reference_voiced": reference_voiced, "predicted_voiced": predicted_voiced}
    return _errors(pitch_totals(reference, predicted, threshold=threshold, lengths=lengths, **options))


class PitchError(Metric[PitchTotals]):
    """`pitch_errors` over all frames of all sequences."""

    def __init__(self, *, threshold: float = 0.2) -> None:
        super().__init__(PitchTotals)
        self.threshold = need_at_least_0("threshold", threshold)

    def update(
        self,
        reference: Any,
        predicted: Any,
        lengths: Any = None,
        *,
        reference_voiced: Any = None,
        predicted_voiced: Any = None,
    ) -> None:
        """Add sequences (..., T)."""
        options: dict[str, Any] = {"reference_voiced": reference_voiced, "predicted_voiced": predicted_voiced}
        self._add(pitch_totals(reference, predicted, threshold=self.threshold, lengths=lengths, **options))

    def compute(self) -> PitchErrors:
        """The errors."""
        return _errors(self._totals())
