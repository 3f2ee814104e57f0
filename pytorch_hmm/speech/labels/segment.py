"""A labelled stretch of time, what every format here reads and writes, and the text of files."""

from __future__ import annotations

import codecs
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

UNITS = 10_000_000
"""Units of time a second in HTK's files, 100 ns each; other formats' times are rounded to them, too."""
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)


class LabelError(ValueError):
    """A label file that cannot be read; the message is one line, with the file and the line."""


class Segment(NamedTuple):
    """A label and its time. What is not known is NaN (`math.nan` itself, so that equal segments compare equal)."""

    label: str
    """A word, a phone; any text."""
    start: float = math.nan
    """Seconds."""
    end: float = math.nan
    """Seconds; of a point the same as `start`."""
    confidence: float = math.nan
    """A probability; of HTK files the score, whatever it means there."""


def boundaries(segments: Sequence[Segment]) -> list[float]:
    """The inner boundaries of segments in order, as `boundary_scores` compares them: each one's start but the first's.

    Returns:
        Seconds; none of one segment or of none. Where a gap follows a segment, its end is not among them.

    Raises:
        LabelError: segments without times, or out of order.

    Example:
        >>> boundaries([Segment("a", 0.0, 0.3), Segment("b", 0.3, 0.5), Segment("c", 0.5, 0.9)])
        [0.3, 0.5]
    """
    need_in_order(segments, lambda n: f"segments[{n}]")
    if segments and math.isnan(segments[0].start):
        raise LabelError(f"segments[0]: expected times, {segments[0].label!r} has none")
    return [segment.start for segment in segments[1:]]


def units(seconds: float) -> int:
    """The nearest number of 100 ns."""
    return round(seconds * UNITS)


def need_in_order(segments: Iterable[Segment], where: Callable[[int], str], *, may_be_empty: bool = True) -> None:
    """Times are finite, not negative, and no segment starts before the one before has ended.

    Args:
        where: begins the message about segment n.
        may_be_empty: whether a segment may have no length.

    Raises:
        LabelError: they are not; of segments without times none may have one.
    """
    last, is_timed = 0, None
    for n, (label, start, end, _) in enumerate(segments):
        is_known = not (math.isnan(start) and math.isnan(end))
        if is_timed is not None and is_known != is_timed:
            raise LabelError(f"{where(n)}: {label!r} has {'' if is_known else 'no '}times, unlike those before")
        is_timed = is_known
        if not is_known:
            continue
        if not (math.isfinite(start) and math.isfinite(end)) or start < 0:
            raise LabelError(f"{where(n)}: expected times of at least 0, got {label!r} from {start} to {end} s")
        first, final = units(start), units(end)
        if final < first or (final == first and not may_be_empty):
            words = "ends before it starts" if final < first else "has no length"
            raise LabelError(f"{where(n)}: {label!r} {words}, {start:.7g} to {end:.7g} s")
        if first < last:
            raise LabelError(f"{where(n)}: {label!r} starts at {start:.7g} s, before {last / UNITS:.7g} s, {_END}")
        last = final


_END = "where the one before ends"


def read_text(path: str | os.PathLike[str]) -> str:
    """A file's text: UTF-8, or UTF-16 with its mark.

    Raises:
        OSError: it cannot be read. LabelError: it is neither.
    """
    content = Path(path).read_bytes()
    is_wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if is_wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise LabelError(f"{path}:{line}: expected text in UTF-8, or UTF-16 with a byte order mark") from None


def number(value: float, decimals: int) -> str:
    """Rounded, without an exponent or superfluous zeros."""
    if not math.isfinite(value):
        raise ValueError(f"confidence: expected a finite number or NaN, got {value}")
    text = f"{value:.{decimals}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text
