"""Mel-cepstral distortion."""

from __future__ import annotations

from math import log, sqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor

import hmm_functional as hf
from hmm_functional.backend import backend_of
from hmm_functional.pairwise import norms

from ._arguments import as_tensor, is_within, pair_of
from .base import Metric, share

DECIBELS = 10 * sqrt(2) / log(10)
"""Decibels of a distance of 1 between cepstra: 6.1419."""


class CepstralTotals(NamedTuple):
    """What distortions are made of."""

    distance: Tensor
    """Sum of distances, decibels."""
    frames: Tensor
    """Frames, or pairs of frames, they are summed over."""


def cepstral_totals(
    reference: Any,
    predicted: Any,
    *,
    has_c0: bool = True,
    include_c0: bool = False,
    is_warped: bool = False,
    lengths: Any = None,
    predicted_lengths: Any = None,
) -> CepstralTotals:
    """Sums of each sequence; see `mel_cepstral_distortion`."""
    if is_warped:
        x, y = as_tensor("reference", reference), as_tensor("predicted", predicted)
    else:
        x, y = pair_of(reference, predicted, "(..., T, D)", 2)
        if predicted_lengths is not None:
            raise ValueError("predicted_lengths: expected None, unless is_warped both have the frames of lengths")
    if has_c0 and not include_c0:
        x, y = x[..., 1:], y[..., 1:]
    for name, one in (("reference", x), ("predicted", y)):
        if one.ndim < 2 or not one.shape[-1]:
            given = tuple(as_tensor(name, reference if name == "reference" else predicted).shape)
            raise ValueError(f"{name}: expected (..., T, D) with a coefficient that counts, got {given}")
    if is_warped:
        options = {"lengths": lengths, "target_lengths": predicted_lengths}
        distance, path = hf.dtw(x, y, step_pattern="symmetric1", **options)
        frames = (path[..., 0] >= 0).sum(-1).clamp_min(1)  # one that is NaN where there is no path
        return CepstralTotals(DECIBELS * distance, frames.to(torch.float64))
    is_seen = is_within(lengths, x[..., 0], x.shape[-2])
    gaps = torch.where(is_seen[..., None], x - y, 0.0)
    return CepstralTotals(DECIBELS * norms(backend_of(gaps=gaps), gaps).sum(-1), is_seen.sum(-1).to(torch.float64))


def mel_cepstral_distortion(
    reference: Any,
    predicted: Any,
    *,
    has_c0: bool = True,
    include_c0: bool = False,
    is_warped: bool = False,
    lengths: Any = None,
    predicted_lengths: Any = None,
) -> Tensor:
    """10 sqrt(2) / ln 10 times the mean over frames of the Euclidean distance of mel-cepstra, in decibels.

    Args:
        reference, predicted: (..., T, D) mel-cepstra, c0 first.
        has_c0: whether the first coefficient is c0, the energy.
        include_c0: whether that counts.
        is_warped: compare along the path of `hmm_functional.dtw` ("symmetric1") between the coefficients that count,
            every pair of frames once; the numbers of frames may then differ.
        lengths, predicted_lengths: (...), valid frames; `predicted_lengths` with `is_warped` only.

    Returns:
        (...) float64; NaN where frames within the lengths hold NaN.

    Raises:
        TypeError, ValueError: shapes or lengths that do not fit.

    References: Kubichek 1993, "Mel-cepstral distance measure for objective speech quality assessment".

    Example:
        >>> import torch
        >>> mel_cepstral_distortion(torch.zeros(2, 3), torch.ones(2, 3))  # 10 sqrt(2) / ln 10 times sqrt(2)
        tensor(8.6859, dtype=torch.float64)
    """
    options: dict[str, Any] = {"has_c0": has_c0, "include_c0": include_c0, "is_warped": is_warped}
    found = cepstral_totals(reference, predicted, lengths=lengths, predicted_lengths=predicted_lengths, **options)
    return share(*found)


class MelCepstralDistortion(Metric[CepstralTotals]):
    """`mel_cepstral_distortion` over all frames (or pairs) of all sequences, a mean over frames.

    Example:
        >>> import torch
        >>> metric = MelCepstralDistortion()
        >>> metric.update(torch.zeros(2, 3), torch.ones(2, 3))
        >>> metric.compute()
        tensor(8.6859, dtype=torch.float64)
    """

    def __init__(self, *, has_c0: bool = True, include_c0: bool = False, is_warped: bool = False) -> None:
        super().__init__(CepstralTotals)
        self.options: dict[str, Any] = {"has_c0": has_c0, "include_c0": include_c0, "is_warped": is_warped}

    def update(self, reference: Any, predicted: Any, lengths: Any = None, predicted_lengths: Any = None) -> None:
        """Add sequences (..., T, D)."""
        lengths_of = {"lengths": lengths, "predicted_lengths": predicted_lengths}
        self._add(cepstral_totals(reference, predicted, **lengths_of, **self.options))

    def compute(self) -> Tensor:
        """Decibels."""
        return share(*self._totals())
