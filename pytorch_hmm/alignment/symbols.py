"""What aligners of transcripts share: names of symbols, and frames as seconds."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any

import numpy as np


class Symbols:
    """Names for numbers, and back; without names, numbers stand for themselves.

    Raises:
        ValueError: a name that is there twice.
    """

    def __init__(self, names: Sequence[str] | None) -> None:
        self.names = None if names is None else tuple(names)
        self._numbers = {name: number for number, name in enumerate(self.names or ())}
        if len(self._numbers) != len(self.names or ()):
            raise ValueError("symbols: expected every name once, got one twice")

    def number(self, place: str, symbol: Any) -> int:
        """The number of a name, or the number.

        Raises:
            ValueError: no such name; TypeError: neither; the message begins with `place`.
        """
        if not isinstance(symbol, str):
            try:
                return index(symbol)
            except TypeError:
                raise TypeError(f"{place}: expected a symbol, a name or a number, got {symbol!r}") from None
        if symbol not in self._numbers:
            known = ", ".join([*self._numbers][:_SHOWN]) or "none, symbols are numbers"
            rest = f" and {len(self._numbers) - _SHOWN} more" if len(self._numbers) > _SHOWN else ""
            raise ValueError(f"{place}: unknown symbol {symbol!r}; known: {known}{rest}")
        return self._numbers[symbol]

    def name(self, number: int) -> Any:
        """The name of a number, or the number."""
        return number if self.names is None else self.names[number]

    @property
    def summary(self) -> str:
        """How many names there are, for a module's description."""
        return "" if self.names is None else f"{len(self.names)} symbols, "


_SHOWN = 50
"""Names in an error message."""


def need_frame_shift(frame_shift: float | None) -> float | None:
    """ValueError unless it is a positive number of seconds, or None."""
    if frame_shift is not None and not 0 < frame_shift < float("inf"):
        raise ValueError(f"frame_shift: expected a positive number of seconds, got {frame_shift}")
    return frame_shift


def need_list(name: str, transcript: Any, of: str) -> None:
    """TypeError for a text where a list is wanted, whose letters would be taken for its items."""
    if isinstance(transcript, str):
        raise TypeError(f"{name}: expected a list of {of}, got the text {transcript[:40]!r}; pass its .split()")


def lengths_for(x: Any, lengths: Any, name: str = "lengths") -> Any:
    """`lengths`, without axes where x (T, V) has no batch axis."""
    return lengths if lengths is None or x.ndim == 3 else _length_of_one(lengths, name)


def _length_of_one(lengths: Any, name: str = "lengths") -> Any:
    """`lengths` of one sequence without batch axes, given as a number or as one number in a list or an array.

    Raises:
        ValueError: several.
    """
    shape = tuple(np.shape(lengths))
    if shape.count(1) != len(shape):
        raise ValueError(f"{name}: expected one number, for one sequence, got shape {shape}")
    if isinstance(lengths, list | tuple):
        return _length_of_one(lengths[0], name)
    return lengths.reshape(()) if shape else lengths


def seconds(frame: int, frame_shift: float | None, offset: float = 0.0) -> float | None:
    """When a frame begins; None where the frame shift is unknown. Multiples of decimal fractions come out as such."""
    return None if frame_shift is None else round(offset + frame * frame_shift, 9)
