"""Praat's TextGrids: interval tiers and point tiers.

praatio writes them. The reader is our own: praatio's says neither which line is wrong nor reads every label (quotes in
point tiers, `intervals [` in a text) or time (1e-05), and files are read where praatio is not installed.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ...io import replace
from .segment import NUMBER, LabelError, Segment, need_in_order, number, read_text, units

# what stands free: texts, numbers, flags; all else (`xmin`, `=`, `item [1]:`) is for the eye
_TOKEN = re.compile(r'"((?:[^"]|"")*)"|(!.*)|(<\w+>)|([^\s"=]+)|(")')


class TextGrid(NamedTuple):
    """The tiers of a file, in its order."""

    tiers: dict[str, list[Segment]]
    """Interval tiers. Intervals without a text are gaps and not among them."""
    points: dict[str, list[Segment]]
    """Point tiers, each point a segment of no length."""
    end: float
    """Seconds; the recording's duration."""
    start: float = 0.0


def read_textgrid(path: str | os.PathLike[str]) -> TextGrid:
    """The tiers of a TextGrid, long or short, in UTF-8 or UTF-16.

    Raises:
        OSError: the file cannot be read. LabelError: it is no whole TextGrid, or times overlap or run backwards.
    """
    tokens = _Tokens(path, read_text(path))
    if tokens.text("'ooTextFile'") not in ("ooTextFile", "ooTextFile short") or tokens.text("'TextGrid'") != "TextGrid":
        raise tokens.error("expected a text file of the class TextGrid")
    start, end = tokens.number("the start"), tokens.number("the end")
    if end < start:
        raise tokens.error(f"ends before it starts, {start:.7g} to {end:.7g} s")
    tiers: dict[str, list[Segment]] = {}
    points: dict[str, list[Segment]] = {}
    for _ in range(tokens.count("the number of tiers") if tokens.flag() else 0):
        kind = tokens.text("a tier's class")
        if kind not in ("IntervalTier", "TextTier"):
            raise tokens.error(f"expected 'IntervalTier' or 'TextTier', got {kind!r}")
        name = tokens.text("a tier's name")
        if name in tiers or name in points:
            raise tokens.error(f"tier {name!r} is there twice")
        tokens.number("the tier's start"), tokens.number("the tier's end")
        found, lines = [], []
        for _ in range(tokens.count(f"the size of tier {name!r}")):
            first = tokens.number(f"a time in tier {name!r}")
            lines.append(tokens.line)
            last = tokens.number(f"a time in tier {name!r}") if kind == "IntervalTier" else first
            found.append(Segment(tokens.text(f"a text in tier {name!r}"), first, last))
        need_in_order(found, lambda n, lines=lines: f"{path}:{lines[n]}", may_be_empty=kind == "TextTier")  # type: ignore[misc]
        if kind == "IntervalTier":
            tiers[name] = [segment for segment in found if segment.label]
        else:
            points[name] = found
    return TextGrid(tiers, points, end, start)


def write_textgrid(
    path: str | os.PathLike[str],
    tiers: Mapping[str, Sequence[Segment]],
    *,
    points: Mapping[str, Sequence[Segment]] | None = None,
    end: float | None = None,
) -> None:
    """Write interval tiers, then point tiers, as a long TextGrid in UTF-8; the file is whole or what it was.

    Times are rounded to 100 ns; gaps become intervals without a text, as Praat needs them.

    Args:
        end: the recording's duration in seconds; by default the last segment's end.

    Raises:
        OSError: the file cannot be written. LabelError: overlaps, intervals without length, or times after `end`.
        ModuleNotFoundError: without praatio.
    """
    from praatio.utilities import textgrid_io

    points = points or {}
    if twice := set(tiers) & set(points):
        raise LabelError(f"points: expected other names than those of tiers, got {sorted(twice)}")
    times = [segment.end for tier in (*tiers.values(), *points.values()) for segment in tier]
    if end is None:
        end = max(times, default=0.0)
    if not math.isfinite(end) or units(end) <= 0:
        raise LabelError(f"end: expected a positive number of seconds, got {end}")
    duration = _Seconds(round(end, 7))
    entries: list[dict[str, Any]] = []
    for kind, group in (("IntervalTier", tiers), ("TextTier", points)):
        is_interval = kind == "IntervalTier"
        for name, tier in group.items():
            need_in_order(tier, lambda n, name=name: f"tier {name!r}[{n}]", may_be_empty=not is_interval)  # type: ignore[misc]
            rows = []
            for n, (label, first, last, _) in enumerate(tier):
                if math.isnan(first) or units(last) > units(end) or (not is_interval and first != last):
                    wanted = f"times up to {end:g} s" if is_interval else f"a point up to {end:g} s"
                    raise LabelError(f"tier {name!r}[{n}]: expected {wanted}, got {label!r} from {first} to {last}")
                both = _Seconds(round(first, 7)), _Seconds(round(last, 7))
                rows.append((*both, label) if is_interval else (both[0], label))
            entries.append({"class": kind, "name": name, "xmin": 0, "xmax": duration, "entries": rows})
    grid = {"xmin": 0, "xmax": duration, "tiers": entries}
    text = textgrid_io.getTextgridAsStr(grid, "long_textgrid", True, minimumIntervalLength=None)
    replace(path, text.encode())


class _Seconds(float):
    """A number that is written without an exponent, which praatio does not read."""

    def __repr__(self) -> str:
        return number(self, 7)


class _Tokens:
    """The free-standing texts and numbers of a file, each of a wanted kind."""

    def __init__(self, path: str | os.PathLike[str], content: str) -> None:
        self._path, self._content = path, content
        self._matches: Iterator[re.Match[str]] = _TOKEN.finditer(content)
        self._counted = 0
        self.line = 1
        """Of the token last taken."""

    def text(self, wanted: str) -> str:
        found = self._next(wanted)
        if found[1] is None:
            raise self.error(f"expected {wanted}, got {found[0][:40]!r}")
        return found[1].replace('""', '"')

    def number(self, wanted: str) -> float:
        found = self._next(wanted)
        if found[4] is None:
            raise self.error(f"expected {wanted}, got {found[0][:40]!r}")
        if not math.isfinite(value := float(found[4])):
            raise self.error(f"expected {wanted}, got {found[0][:40]!r}, which is too large")
        return value

    def count(self, wanted: str) -> int:
        value = self.number(wanted)
        if value < 0 or value != int(value):
            raise self.error(f"expected {wanted}, got {value:g}")
        return int(value)

    def flag(self) -> bool:
        """Whether tiers exist."""
        found = self._next("<exists>")
        if found[3] not in ("<exists>", "<absent>"):
            raise self.error(f"expected '<exists>' or '<absent>', got {found[0][:40]!r}")
        return found[3] == "<exists>"

    def error(self, message: str) -> LabelError:
        return LabelError(f"{self._path}:{self.line}: {message}")

    def _next(self, wanted: str) -> re.Match[str]:
        for match in self._matches:
            is_for_the_eye = match[2] is not None or (match[4] is not None and not NUMBER.fullmatch(match[4]))
            if not is_for_the_eye:
                self.line += self._content.count("\n", self._counted, match.start())
                self._counted = match.start()
                if match[5] is not None:
                    raise self.error("a text whose quotes do not end")
                return match
        self.line = self._content.count("\n") + 1
        raise self.error(f"the file ends where {wanted} should stand")
