"""Time-marked conversation files of NIST's sclite: `file channel start duration token [confidence]`."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence

from ...io import replace
from .segment import NUMBER, LabelError, Segment, need_in_order, number, read_text


def read_ctm(path: str | os.PathLike[str], channel: str | None = None) -> dict[str, list[Segment]]:
    """The tokens of each recording, by its name.

    Args:
        channel: whose tokens; None where every recording has one alone.

    Returns:
        Segments in order. Comments (`;;`) are skipped.

    Raises:
        OSError: the file cannot be read. LabelError: a line that is none of a token, times that overlap or run
            backwards, or several channels where none is named.
    """
    found: dict[str, list[Segment]] = {}
    places: dict[str, list[int]] = {}
    channels: dict[str, str] = {}
    for line_number, line in enumerate(read_text(path).split("\n"), 1):
        words = line.split() if not line.lstrip().startswith(";;") else []
        if not words:
            continue
        where = f"{path}:{line_number}"
        if len(words) not in (5, 6):
            raise LabelError(f"{where}: expected 'file channel start duration token [confidence]', got {line[:60]!r}")
        name, its_channel, *_ = words
        if words[4] in ("<ALT_BEGIN>", "<ALT>", "<ALT_END>"):
            raise LabelError(f"{where}: alternatives ({words[4]}) are not read")
        for word in (*words[2:4], *words[5:]):
            if not NUMBER.fullmatch(word):
                raise LabelError(f"{where}: expected a number as start, duration or confidence, got {word[:40]!r}")
        start, duration = float(words[2]), float(words[3])
        confidence = float(words[5]) if len(words) == 6 else math.nan
        if channel is None and channels.setdefault(name, its_channel) != its_channel:
            raise LabelError(f"{where}: {name!r} has channels {channels[name]!r} and {its_channel!r}; choose one")
        if channel in (None, its_channel):
            # decimals add up as decimals do, so that one token's end is the next one's start
            end = round(start + duration, 9)
            found.setdefault(name, []).append(Segment(words[4], start, end, confidence))
            places.setdefault(name, []).append(line_number)
    for name, segments in found.items():
        need_in_order(segments, lambda n, name=name: f"{path}:{places[name][n]}")  # type: ignore[misc]
    return found


def write_ctm(
    path: str | os.PathLike[str],
    labels: Mapping[str, Sequence[Segment]],
    *,
    channel: str = "1",
    decimals: int = 2,
) -> None:
    """Write the segments of recordings, sorted by name; the file is whole or what it was.

    Starts and ends are rounded to `decimals` of a second, so that durations are differences of rounded times;
    confidences to 4 decimals.

    Raises:
        OSError: the file cannot be written. LabelError: overlaps, no times, or a label that is empty or holds spaces.
    """
    lines = []
    for name in sorted(labels):
        for what, text in (("name", name), ("channel", channel)):
            if not _is_token(text):
                raise LabelError(f"{what}: expected text without spaces, got {text!r}")
        segments = labels[name]
        need_in_order(segments, lambda n, name=name: f"{name}[{n}]")  # type: ignore[misc]
        for n, (label, start, end, confidence) in enumerate(segments):
            if not _is_token(label) or label in ("<ALT_BEGIN>", "<ALT>", "<ALT_END>"):
                raise LabelError(f"{name}[{n}]: expected a label without spaces, got {label!r}")
            if math.isnan(start):
                raise LabelError(f"{name}[{n}]: expected times, {label!r} has none")
            first, last = round(start, decimals), round(end, decimals)
            rest = "" if math.isnan(confidence) else f" {number(confidence, 4)}"
            lines.append(f"{name} {channel} {first:.{decimals}f} {last - first:.{decimals}f} {label}{rest}\n")
    replace(path, "".join(lines).encode())


def _is_token(text: str) -> bool:
    return re.fullmatch(r"\S+", text) is not None and not text.startswith(";;")
