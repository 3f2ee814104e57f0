"""Checks of shapes and dtypes, which cost nothing, and their messages: the argument, what was wanted, what came."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np


def need_shape(name: str, shape: tuple[int, ...], tail: tuple[int | None, ...], words: str) -> None:
    """The last axes must be `tail`, where None stands for any size."""
    last = shape[len(shape) - len(tail) :]
    if len(shape) < len(tail) or any(want is not None and want != n for want, n in zip(tail, last, strict=True)):
        raise ValueError(f"{name}: expected shape {words}, got {tuple(shape)}")


def need_floating(name: str, xp: Any, x: Any) -> None:
    """Scores and parameters are real floating-point arrays."""
    is_floating = getattr(x.dtype, "is_floating_point", None)  # torch's own is ten times faster
    if not (xp.isdtype(x.dtype, "real floating") if is_floating is None else is_floating):
        raise TypeError(f"{name}: expected a floating-point dtype, got {x.dtype}")


def need_integers(name: str, xp: Any, x: Any) -> None:
    """States, symbols and lengths are integer arrays."""
    if not xp.isdtype(x.dtype, "integral"):
        raise TypeError(f"{name}: expected an integer dtype, got {x.dtype}")


def need_count(name: str, value: Any, least: int) -> int:
    """A Python integer of at least `least`."""
    try:
        if isinstance(value, bool):
            raise TypeError
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}") from None
    if count < least:
        raise ValueError(f"{name}: expected an integer of at least {least}, got {count}")
    return count


def need_number(name: str, value: Any) -> None:
    """A Python number, or one of an array library without axes; no text, no bool."""
    is_number = isinstance(value, int | float) or getattr(value, "shape", None) == ()
    if not is_number or isinstance(value, bool | str):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")


def need_range(name: str, values: Any, low: int, high: int) -> None:
    """Host integers must lie in low..high."""
    if isinstance(values, int):
        least = most = values
    else:
        array = np.asarray(values)
        if not array.size:
            return
        least, most = int(array.min()), int(array.max())
    if least < low or most > high:
        raise ValueError(f"{name}: expected values in {low}..{high}, got {least}..{most}")


def broadcast_batch(shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The common batch shape of the named batch shapes."""
    distinct = {tuple(shape) for shape in shapes.values() if len(shape)}
    if len(distinct) <= 1:
        return distinct.pop() if distinct else ()
    try:
        return tuple(np.broadcast_shapes(*shapes.values()))
    except ValueError:
        found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"batch axes must broadcast against each other, got {found}") from None
