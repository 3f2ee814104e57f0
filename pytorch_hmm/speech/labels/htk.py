r"""HTK's label files, and master label files (The HTK Book, version 3.4, 6.2 and 6.3).

A line is `[start end] name [score] {name [score]}`: times in 100 ns, further names those of longer units (words) that
begin there. Names that hold spaces, begin like numbers or are empty stand in quotes; `\` escapes, as in `\"` or `\012`.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from ...io import replace
from .segment import NUMBER, UNITS, LabelError, Segment, need_in_order, number, read_text, units

_WORD = re.compile(r'"((?:[^"\\]|\\.)*)"|' + r"'((?:[^'\\]|\\.)*)'|(\S+)", re.ASCII | re.DOTALL)
_INTEGER = re.compile(r"\d+", re.ASCII)
_FULL = re.compile(r"([^^]*)\^([^-]*)-([^+]*)\+([^=]*)=([^@/]*)(.*)", re.DOTALL)
# its lines are names without times, too; the short form has none but the header
_TEXTGRID = re.compile(r'\A\s*(File type = )?"ooTextFile|^[ \t]*xmin = ', re.MULTILINE)
_TRIPHONE = re.compile(r"[^-+]+-([^-+]+)\+[^-+]+")


class FullContext(NamedTuple):
    """A full-context label of HTS, `a^b-c+d=e@...`; `str` gives it back."""

    before: tuple[str, str]
    """The two phones before, in their order: (a, b)."""
    phone: str
    """c"""
    after: tuple[str, str]
    """(d, e)"""
    context: str
    """The rest, from `@` on: places in the syllable, word and sentence."""

    def __str__(self) -> str:
        return f"{self.before[0]}^{self.before[1]}-{self.phone}+{self.after[0]}={self.after[1]}{self.context}"


def parse_full_context(label: str) -> FullContext:
    """The parts of a full-context label.

    Returns:
        The phone, its neighbours and the rest.

    Raises:
        ValueError: it is none.

    Example:
        >>> parse_full_context("x^sil-hh+iy=t@1_2/A:0_0_0").phone
        'hh'
    """
    found = _FULL.fullmatch(label)
    if not found:
        raise ValueError(f"label: expected a full-context label 'a^b-c+d=e@...', got {label!r}")
    a, b, c, d, e, rest = found.groups()
    return FullContext((a, b), c, (d, e), rest)


def centre_phone(label: str) -> str:
    """The phone of a full-context label `a^b-c+d=e@...` or a triphone `b-c+d`; any other label is one itself."""
    if found := _FULL.fullmatch(label):
        return found[3]
    found = _TRIPHONE.fullmatch(label)
    return found[1] if found else label


def read_htk(path: str | os.PathLike[str], level: int = 1) -> list[Segment]:
    """The labels of a file.

    Args:
        level: which names: 1 for the first of each line, 2 for the next (words, of phones), which last until another
            name of that level comes.

    Returns:
        Segments in order, their times NaN in a file without. Names of levels above 1 that are empty mark gaps and are
        left out.

    Raises:
        OSError: the file cannot be read. LabelError: a line that is no label, times that overlap or run backwards, or
            a TextGrid.
    """
    text = read_text(path)
    if _TEXTGRID.search(text):
        raise LabelError(f"{path}: expected HTK labels, got a TextGrid, which read_textgrid reads")
    return _segments(path, list(enumerate(text.split("\n"), 1)), level)


def write_htk(
    path: str | os.PathLike[str], segments: Sequence[Segment], words: Sequence[Segment] | None = None
) -> None:
    """Write labels; the file is whole or what it was.

    Times are rounded to 100 ns, confidences (HTK's scores) to 6 decimals; segments without times get none.

    Args:
        words: longer units, each of whole segments, as second names.

    Raises:
        OSError: the file cannot be written. LabelError: overlaps, or words whose ends no segment has.
    """
    replace(path, _written("segments", segments, words).encode())


def read_mlf(path: str | os.PathLike[str], level: int = 1) -> dict[str, list[Segment]]:
    """The labels of a master label file, by the names that stand there, such as `*/a.lab`; see `read_htk`."""
    lines = read_text(path).split("\n")
    if lines[0].rstrip() != "#!MLF!#":
        raise LabelError(f"{path}:1: expected '#!MLF!#', got {lines[0][:40]!r}")
    found: dict[str, list[Segment]] = {}
    name, opened, body = None, 0, list[tuple[int, str]]()
    for number_, line in enumerate(lines[1:], 2):
        if name is None:
            if not line.strip():
                continue
            words = _words(line)
            if len(words) != 1 or words[0][1] is False:
                raise LabelError(f"{path}:{number_}: expected a file's name in quotes, got {line.strip()[:40]!r}")
            name, opened, body = words[0][0], number_, []
            if name in found:
                raise LabelError(f"{path}:{number_}: {name!r} is there twice")
        elif line.strip() == ".":
            found[name] = _segments(path, body, level)
            name = None
        else:
            body.append((number_, line))
    if name is not None:
        raise LabelError(f"{path}:{opened}: the labels of {name!r} have no end, a line with a full stop")
    return found


def write_mlf(path: str | os.PathLike[str], labels: Mapping[str, Sequence[Segment]]) -> None:
    """Write a master label file: the segments of each name; see `write_htk`."""
    parts = ["#!MLF!#\n"]
    for name, segments in labels.items():
        parts.append(f"{_quoted(name, True)}\n{_written(name, segments, None)}.\n")
    replace(path, "".join(parts).encode())


def _segments(path: str | os.PathLike[str], lines: list[tuple[int, str]], level: int) -> list[Segment]:
    if level < 1:
        raise ValueError(f"level: expected at least 1, got {level}")
    found: list[Segment] = []
    names: list[tuple[str, float]] = []
    at: list[int] = []
    for line_number, line in lines:
        if not line.strip():
            continue
        where = f"{path}:{line_number}"
        if line.strip() == "///":
            raise LabelError(f"{where}: alternative labels (///) are not read")
        start, end, rest = _times(where, _words(line))
        levels = _levels(where, rest)
        found.append(Segment(*levels[0][:1], start, end, levels[0][1]))
        names.append(levels[level - 1] if len(levels) >= level else ("", math.nan))
        if level > 1 and len(levels) >= level:
            at.append(len(found) - 1)
    places = [line_number for line_number, line in lines if line.strip()]
    need_in_order(found, lambda n: f"{path}:{places[n]}")
    if level == 1:
        return found
    longer = pairwise([*at, len(found)])
    spans = [Segment(names[a][0], found[a].start, found[b - 1].end, names[a][1]) for a, b in longer]
    return [span for span in spans if span.label]


def _times(where: str, words: list[tuple[str, bool]]) -> tuple[float, float, list[tuple[str, bool]]]:
    """Start, end and what follows."""
    count = 0
    while count < min(2, len(words)) and not words[count][1] and NUMBER.fullmatch(words[count][0]):
        count += 1
    if count == len(words) or count == 1:
        got = " ".join(word for word, _ in words)
        raise LabelError(f"{where}: expected '[start end] label', got {got[:60]!r}")
    if count == 0:
        return math.nan, math.nan, words
    for word, _ in words[:2]:
        if not _INTEGER.fullmatch(word):
            raise LabelError(f"{where}: expected times as whole numbers of 100 ns, got {word!r}")
    return int(words[0][0]) / UNITS, int(words[1][0]) / UNITS, words[2:]


def _levels(where: str, words: list[tuple[str, bool]]) -> list[tuple[str, float]]:
    """Names, each with the score that follows it, or NaN."""
    found: list[tuple[str, float]] = []
    can_score = False
    for word, is_quoted in words:
        if can_score and not is_quoted and NUMBER.fullmatch(word):
            found[-1] = (found[-1][0], float(word))
            can_score = False
        else:
            found.append((word, math.nan))
            can_score = True
    return found


def _words(line: str) -> list[tuple[str, bool]]:
    """The words of a line, and whether each stands in quotes."""
    found = []
    for match in _WORD.finditer(line):
        is_quoted = match[3] is None
        text = match[3] if is_quoted is False else match[1] if match[1] is not None else match[2]
        found.append((_unescaped(text), is_quoted))
    return found


def _unescaped(text: str) -> str:
    if "\\" not in text:
        return text
    # bytes: octal numbers may be parts of one character
    plain = re.sub(
        rb"\\([0-7]{3}|.)",
        lambda m: bytes([int(m[1], 8) & 255]) if len(m[1]) == 3 else m[1],
        text.encode(),
        flags=re.DOTALL,
    )
    return plain.decode(errors="replace")


def _quoted(name: str, always: bool = False) -> str:
    """A name as HTK reads it back."""
    text = "".join(f"\\{ord(c):03o}" if ord(c) < 32 or ord(c) == 127 else c for c in name.replace("\\", "\\\\"))
    is_plain = name and " " not in name and name[0] not in "\"'" and not re.match(r"[-+.\d]", name, re.ASCII)
    if is_plain and not always and name != "///":
        return text
    escaped = text.replace('"', '\\"')
    return f'"{escaped}"'


def _written(name: str, segments: Sequence[Segment], words: Sequence[Segment] | None) -> str:
    need_in_order(segments, lambda n: f"{name}[{n}]")
    marks = [""] * len(segments) if words is None else _marks(segments, words)
    lines = []
    for (label, start, end, score), mark in zip(segments, marks, strict=True):
        times = "" if math.isnan(start) else f"{units(start)} {units(end)} "
        scored = "" if math.isnan(score) else f" {number(score, 6)}"
        lines.append(f"{times}{_quoted(label)}{scored}{mark}\n")
    return "".join(lines)


def _marks(segments: Sequence[Segment], words: Sequence[Segment]) -> list[str]:
    """What each line says of the word that begins there: an empty name where one has ended and none begins."""
    need_in_order(words, lambda n: f"words[{n}]", may_be_empty=False)
    starts = {units(segment.start): n for n, segment in reversed(list(enumerate(segments)))}
    ends = {units(segment.end): n + 1 for n, segment in enumerate(segments)}
    marks = [""] * len(segments)
    for n, (label, start, end, score) in enumerate(words):
        if units(start) not in starts or units(end) not in ends or not label:
            raise LabelError(f"words[{n}]: expected a name from one segment's start to another's end, got {words[n]}")
        marks[starts[units(start)]] = f" {_quoted(label)}" + ("" if math.isnan(score) else f" {number(score, 6)}")
        after = ends[units(end)]
        if after < len(segments) and not marks[after]:
            marks[after] = ' ""'
    return marks
