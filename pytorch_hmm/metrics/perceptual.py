"""Perceptual measures, by the libraries that do them: the optional extra `metrics`."""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .base import Metric, share

RATES = {8000: "nb", 16000: "wb"}
"""Sampling rates of PESQ, with the band each is told by."""


class ScoreTotals(NamedTuple):
    """What a mean of scores is made of."""

    score: Tensor
    number: Tensor


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ModuleNotFoundError(
            f"{name} is not installed; it comes with the extra: pip install 'pytorch-hmm[metrics]'", name=name
        ) from None


def _signals(reference: Any, predicted: Any) -> tuple[Any, Any]:
    found = []
    for name, x in (("reference", reference), ("predicted", predicted)):
        values = np.asarray(x.detach().cpu() if isinstance(x, Tensor) else x, np.float64)
        if values.ndim < 1 or not values.shape[-1]:
            raise ValueError(f"{name}: expected samples (..., N), got shape {values.shape}")
        if not np.isfinite(values).all():
            raise ValueError(f"{name}: expected finite samples")
        found.append(values)
    if found[0].shape != found[1].shape:
        raise ValueError(f"predicted: expected the shape of reference, {found[0].shape}, got {found[1].shape}")
    return found[0], found[1]


def _each(function: Any, reference: Any, predicted: Any) -> Tensor:
    x, y = _signals(reference, predicted)
    size = x.shape[-1]
    rows = zip(x.reshape(-1, size), y.reshape(-1, size), strict=True)
    return torch.tensor([float(function(a, b)) for a, b in rows], dtype=torch.float64).reshape(x.shape[:-1])


def pesq_score(reference: Any, predicted: Any, sample_rate: int, *, band: str | None = None) -> Tensor:
    """PESQ as MOS-LQO, by the library `pesq`.

    Args:
        reference, predicted: (..., N) samples.
        sample_rate: 8000 or 16000 Hz.
        band: "nb" or "wb" (16000 Hz only); by default what the rate is made for.

    Returns:
        (...) float64, about 1 to 4.6.

    Raises:
        ModuleNotFoundError: without the extra `metrics`. ValueError: shapes, rate or band; `pesq`'s own errors, as of
        a signal without an utterance, come through.

    References: ITU-T P.862, P.862.1 and P.862.2.
    """
    if sample_rate not in RATES:
        raise ValueError(f"sample_rate: expected 8000 or 16000 Hz, got {sample_rate}; resample first")
    band = RATES[sample_rate] if band is None else band
    if band not in ("nb", "wb") or (band == "wb" and sample_rate == 8000):
        raise ValueError(f'band: expected "nb", or "wb" at 16000 Hz, got {band!r}')
    library = _library("pesq")
    return _each(lambda a, b: library.pesq(sample_rate, a, b, band), reference, predicted)


def stoi_score(reference: Any, predicted: Any, sample_rate: int, *, is_extended: bool = False) -> Tensor:
    """Short-time objective intelligibility, by the library `pystoi`.

    Args:
        reference, predicted: (..., N) samples.
        sample_rate: Hz; resampled to 10 kHz there.
        is_extended: the extended measure of Jensen and Taal.

    Returns:
        (...) float64, near 0 to 1.

    Raises:
        ModuleNotFoundError: without the extra `metrics`. ValueError: shapes.

    References: Taal et al. 2011; Jensen and Taal 2016.
    """
    library = _library("pystoi")
    return _each(lambda a, b: library.stoi(a, b, sample_rate, extended=is_extended), reference, predicted)


class _Mean(Metric[ScoreTotals]):
    def __init__(self) -> None:
        super().__init__(ScoreTotals)

    def compute(self) -> Tensor:
        """The mean over utterances."""
        return share(*self._totals())

    def _add_scores(self, scores: Tensor) -> None:
        self._add(ScoreTotals(scores, torch.ones_like(scores)))


class PESQ(_Mean):
    """The mean of `pesq_score` over utterances."""

    def __init__(self, sample_rate: int, *, band: str | None = None) -> None:
        super().__init__()
        self.sample_rate, self.band = sample_rate, band

    def update(self, reference: Any, predicted: Any) -> None:
        """Add utterances (..., N)."""
        self._add_scores(pesq_score(reference, predicted, self.sample_rate, band=self.band))


class STOI(_Mean):
    """The mean of `stoi_score` over utterances."""

    def __init__(self, sample_rate: int, *, is_extended: bool = False) -> None:
        super().__init__()
        self.sample_rate, self.is_extended = sample_rate, is_extended

    def update(self, reference: Any, predicted: Any) -> None:
        """Add utterances (..., N)."""
        self._add_scores(stoi_score(reference, predicted, self.sample_rate, is_extended=self.is_extended))
