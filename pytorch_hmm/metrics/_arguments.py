"""Checks of what metrics are given."""

from __future__ import annotations

from math import inf
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._check import lengths_like


def as_tensor(name: str, x: Any, *, is_integer: bool = False) -> Tensor:
    """A tensor, an array or numbers, as float64 (or int64) of the tensor's device."""
    is_given = isinstance(x, Tensor)
    if not is_given:
        try:
            x = torch.from_numpy(np.array(x))
        except (TypeError, ValueError) as error:
            raise TypeError(f"{name}: expected numbers, got {type(x).__name__}") from error
    if not is_given and x.numel() == 0:
        x = x.to(torch.int64)  # NumPy takes an empty list for floats
    if x.is_complex() or (is_integer and (x.is_floating_point() or x.dtype == torch.bool)):
        raise TypeError(f"{name}: expected {'integers' if is_integer else 'real numbers'}, got {x.dtype}")
    found: Tensor = x.to(torch.int64 if is_integer else torch.float64)
    return found


def need_at_least_0(name: str, value: Any) -> float:
    """A finite number of at least 0, as a float.

    Raises:
        TypeError: no number. ValueError: another one.
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not 0 <= value < inf:
        raise ValueError(f"{name}: expected a number of at least 0, got {value}")
    return float(value)


def pair_of(
    reference: Any, predicted: Any, words: str, rank: int, *, is_integer: bool = False
) -> tuple[Tensor, Tensor]:
    """Both as tensors of one shape with at least `rank` axes.

    Raises:
        TypeError: not numbers. ValueError: another shape.
    """
    one = as_tensor("reference", reference, is_integer=is_integer)
    other = as_tensor("predicted", predicted, is_integer=is_integer)
    if one.ndim < rank:
        raise ValueError(f"reference: expected shape {words}, got {tuple(one.shape)}")
    if other.shape != one.shape:
        raise ValueError(f"predicted: expected the shape of reference, {tuple(one.shape)}, got {tuple(other.shape)}")
    return one, other


def is_within(lengths: Any, like: Tensor, num_steps: int, name: str = "lengths") -> Tensor:
    """(..., T): which steps lie within `lengths`, (...) integers 1..T or None, for sequences `like` (..., T)."""
    if lengths is None:
        return torch.ones(like.shape, dtype=torch.bool, device=like.device)
    ends = lengths_like(lengths, like, tuple(like.shape[:-1]), num_steps, name)
    return torch.arange(num_steps, device=like.device) < ends[..., None]
