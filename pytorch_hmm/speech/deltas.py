"""Slopes of features over time, and features relative to their speaker's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, overload

import torch
from torch import Tensor

from hmm_functional._check import need_count


def delta(x: Tensor, window: int = 2) -> Tensor:
    """Slope of each feature over 2 `window` + 1 frames by least squares; the ends repeat the first and last frame.

    Args:
        x: (T, D).

    Returns:
        (T, D), in units of x a frame.

    References: Furui 1986; Young et al. 2006 (The HTK Book), equation 5.16.
    """
    need_count("window", window, 1)
    if x.ndim != 2 or len(x) == 0:
        raise ValueError(f"x: expected shape (T, D) with at least one frame, got {tuple(x.shape)}")
    last = len(x) - 1
    steps = torch.arange(len(x), device=x.device)
    total = torch.zeros_like(x)
    for k in range(1, window + 1):
        total += k * (x[(steps + k).clamp_max(last)] - x[(steps - k).clamp_min(0)])
    return total / (2 * sum(k * k for k in range(1, window + 1)))


def add_deltas(x: Tensor, window: int = 2) -> Tensor:
    """Features (T, D), their slopes and the slopes of these: (T, 3 D). See `delta`.

    Example:
        >>> add_deltas(torch.arange(6.0)[:, None])[2:4]
        tensor([[ 2.0000,  1.0000,  0.0800],
                [ 3.0000,  1.0000, -0.0800]])
    """
    first = delta(x, window)
    return torch.cat([x, first, delta(first, window)], -1)


class Normaliser(NamedTuple):
    """Mean and standard deviation of each feature."""

    mean: Tensor
    """(D,)"""
    deviation: Tensor
    """(D,), 1 where a feature never changes."""

    def __call__(self, x: Tensor) -> Tensor:
        """Features (T, D) with a mean of 0 and variances of 1."""
        return ((x - self.mean) / self.deviation).to(x.dtype)


def normaliser(features: Sequence[Tensor]) -> Normaliser:
    """Of all frames of a list of (T, D), summed in float64."""
    # one tensor of all sums: small ones, each beside frames that are let go, would keep the heap from shrinking
    first, count = features[0], 0
    sums = first.new_empty(len(features), first.shape[-1], dtype=torch.float64)
    for row, x in zip(sums, features, strict=True):
        row.copy_(x.to(torch.float64).sum(0))
        count += len(x)
    mean = sums.sum(0) / count
    for row, x in zip(sums, features, strict=True):
        row.copy_((x.to(torch.float64) - mean).square().sum(0))
    squares = sums.sum(0) / count
    deviation = squares.sqrt()
    return Normaliser(mean, deviation.where(deviation > 1e-8 * (1.0 + mean.abs()), 1.0))


class Slopes(Sequence[Tensor]):
    """`add_deltas` of features (T, D), and these normalised, made when they are asked for: a third of the memory.

    Args:
        window: as `add_deltas`.
        voices: of each one's speaker; default none.
    """

    def __init__(self, features: Sequence[Tensor], window: int, voices: Sequence[Normaliser] | None = None) -> None:
        self._features, self._window, self._voices = features, window, voices

    def __len__(self) -> int:
        return len(self._features)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...

    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        if isinstance(index, slice):
            return [self[n] for n in range(*index.indices(len(self)))]
        x = add_deltas(self._features[index].to(torch.float32), self._window)
        return x if self._voices is None else self._voices[index](x)


def voices_of(
    features: Mapping[str, Tensor], speakers: Mapping[str, str] | None = None, window: int = 2
) -> dict[str, Normaliser]:
    """Of each utterance: mean and deviation of its speaker's features with slopes. See `cmvn`."""
    found = {}
    for own in by_speaker(features, speakers):
        found.update(dict.fromkeys(own, normaliser(Slopes([features[name] for name in own], window))))
    return found


def by_speaker(names: Iterable[str], speakers: Mapping[str, str] | None) -> list[list[str]]:
    """The names of utterances, one speaker's together; those without a speaker are one's."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault((speakers or {}).get(name, ""), []).append(name)
    return list(found.values())


def cmvn(features: Mapping[str, Tensor], speakers: Mapping[str, str] | None = None) -> dict[str, Tensor]:
    """Features less the mean of their speaker, over his standard deviation: cepstral mean and variance normalisation.

    Args:
        features: (T, D) of each utterance.
        speakers: of each utterance; default one for all, who also stands for utterances that have none.

    Returns:
        (T, D) of each utterance, in its dtype.

    References: Viikki and Laurila 1998.
    """
    found = {}
    for own in by_speaker(features, speakers):
        of_speaker = normaliser([features[name] for name in own])
        found.update({name: of_speaker(features[name]) for name in own})
    return {name: found[name] for name in features}
