"""Entries of parameters that stay as they are while others are maximised over."""

from __future__ import annotations

from typing import Any

from ..backend import Array, Backend, backend_of, find_backend


def is_any(is_fixed: Any) -> bool:
    """Whether something may be fixed: neither None nor False."""
    return is_fixed is not None and is_fixed is not False


def held(is_fixed: Any, old: Array, new: Array) -> Array:
    """`new`, and `old` where `is_fixed`: None or False is nowhere, True everywhere, or booleans that broadcast."""
    if not is_any(is_fixed):
        return new
    if is_fixed is True:
        return old
    return backend_of(old=old).xp.where(is_fixed, old, new)


def need_whole(backend: Backend, name: str, is_fixed: Any) -> None:
    """Raise ValueError where matrices (..., D, D) are fixed in part, as far as values can be read."""
    if not is_any(is_fixed) or is_fixed is True or is_fixed.ndim < 2 or backend.is_traced(is_fixed):
        return
    if bool(backend.xp.any(is_fixed != is_fixed[..., :1, :1])):
        raise ValueError(f"{name}: expected matrices that are fixed as a whole or not, got one in part")


def need_at_least(name: str, value: Any, least: float) -> None:
    """A number, or an array of numbers, of at least `least`, as far as values can be read.

    Raises:
        TypeError: neither. ValueError: a smaller number, or NaN.
    """
    if type(value) in (int, float):  # first, since families are made in every call
        if not value >= least:
            raise ValueError(f"{name}: expected numbers of at least {least:g}, got {value:.6g}")
        return
    backend = find_backend(value)
    if backend is None:
        raise TypeError(f"{name}: expected a number or an array, got {type(value).__name__}")
    if backend.is_traced(value) or 0 in value.shape:
        return
    if not (smallest := float(value.min())) >= least:
        raise ValueError(f"{name}: expected numbers of at least {least:g}, got {smallest:.6g}")
