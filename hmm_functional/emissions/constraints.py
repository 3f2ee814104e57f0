"""Entries of parameters that stay as they are while others are maximised over."""

from __future__ import annotations

from typing import Any

from ..backend import Array, backend_of


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
