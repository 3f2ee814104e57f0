"""What is written to label files is read back, whatever the labels and times; praatio reads TextGrids the same."""

from __future__ import annotations

import math
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytorch_hmm.speech import labels as lb

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["", ".", "///", "12", "-1", '"', "\\", "\\012", 'a"b', "sp ace", "intervals [1]:", 'text = "x"', "<exists>", "!"]
)
tokens = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=6).filter(
    lambda text: text not in ("<ALT>", "<ALT_BEGIN>", "<ALT_END>") and not text.startswith(";;")
)


@st.composite
def segments(draw, labels=texts, *, unit=10**7, least=0, scores=10**4, max_size=6):
    """Segments in order, on a grid of `unit` a second; some follow each other, some leave a gap."""
    now, found = draw(st.integers(0, 10**9)) if draw(st.booleans()) else 0, []
    for label in draw(st.lists(labels, max_size=max_size)):
        now += draw(st.sampled_from([0, 1, 500_000]))
        end = now + draw(st.integers(least, 10**8))
        confidence = draw(st.integers(0, scores)) / scores if draw(st.booleans()) else math.nan
        found.append(lb.Segment(label, now / unit, end / unit, confidence))
        now = end
    return found


@pytest.fixture(scope="module")
def path():
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "labels"


@given(segments(), st.booleans())
def test_htk(path, rows, are_timed):
    rows = rows if are_timed else [row._replace(start=math.nan, end=math.nan) for row in rows]
    lb.write_htk(path, rows)
    assert lb.read_htk(path) == rows


@given(segments(least=1), st.data())
def test_htk_words(path, rows, data):
    """Words are any whole segments."""
    cuts = sorted(data.draw(st.sets(st.integers(0, len(rows)))))
    words = [
        lb.Segment(data.draw(texts.filter(bool)), rows[a].start, rows[b - 1].end)
        for a, b in pairwise(cuts)
        if data.draw(st.booleans())
    ]
    lb.write_htk(path, rows, words)
    assert lb.read_htk(path) == rows
    assert lb.read_htk(path, 2) == words


@given(st.dictionaries(texts, segments(), max_size=3))
def test_mlf(path, files):
    lb.write_mlf(path, files)
    assert lb.read_mlf(path) == files


@given(st.dictionaries(tokens, segments(tokens, unit=1000), max_size=3))
def test_ctm(path, files):
    lb.write_ctm(path, files, decimals=3)
    assert lb.read_ctm(path) == {name: rows for name, rows in files.items() if rows}


@given(st.dictionaries(texts, segments(texts.filter(bool), least=1), max_size=3), st.lists(st.integers(0, 10**9)))
def test_textgrid(path, tiers, times):
    tiers = {name: [row._replace(confidence=math.nan) for row in rows] for name, rows in tiers.items()}
    points = {"marks": [lb.Segment('"', x / 10**7, x / 10**7) for x in sorted(times)]} if "marks" not in tiers else {}
    ends = [row.end for rows in (*tiers.values(), *points.values()) for row in rows]
    end = max(ends, default=0) + 0.25
    lb.write_textgrid(path, tiers, points=points, end=end)
    assert lb.read_textgrid(path) == (tiers, points, round(end, 7), 0)


@given(segments(st.text("aé文\"' \n", min_size=1).map(str.strip).filter(bool), least=10**4), st.booleans())
def test_textgrids_of_praatio(path, rows, is_short):
    """An independent reader finds what was written, and what an independent writer wrote is read."""
    from praatio import textgrid
    from praatio.data_classes.interval_tier import IntervalTier

    rows = [row._replace(confidence=math.nan) for row in rows]
    end = max([row.end for row in rows], default=1.0)
    lb.write_textgrid(path, {"phones": rows}, end=end)
    found = textgrid.openTextgrid(str(path), includeEmptyIntervals=False).getTier("phones")
    assert [(x.label, x.start, x.end) for x in found.entries] == [row[:3] for row in rows]
    grid = textgrid.Textgrid(0, end)
    grid.addTier(IntervalTier("phones", [(start, last, label) for label, start, last, _ in rows], 0, end))
    grid.save(str(path), "short_textgrid" if is_short else "long_textgrid", includeBlankSpaces=True)
    assert lb.read_textgrid(path) == ({"phones": rows}, {}, end, 0)


@given(segments(least=1), st.data())
def test_overlaps_are_refused(path, rows, data):
    """A segment that starts 100 ns before the one before has ended is one too many, and its line is named."""
    if len(rows) < 2:
        return
    lines = [f"{round(row.start * 1e7)} {round(row.end * 1e7)} x\n" for row in rows]
    n = data.draw(st.integers(1, len(rows) - 1))
    lines[n] = f"{round(rows[n - 1].end * 1e7) - 1} {round(rows[n].end * 1e7)} x\n"
    path.write_text("".join(lines))
    with pytest.raises(lb.LabelError, match=rf"{path}:{n + 1}: 'x' starts at .* before "):
        lb.read_htk(path)
    early = [row._replace(label="x") for row in rows]
    early[n] = early[n]._replace(start=early[n - 1].end - 1e-7)
    for write in (lambda: lb.write_htk(path, early), lambda: lb.write_textgrid(path, {"t": early})):
        with pytest.raises(lb.LabelError, match=rf"\[{n}\]: 'x' starts at "):
            write()
