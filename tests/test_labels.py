"""Label files as other programs write them, and what is said of bad ones."""

from __future__ import annotations

import errno
import math
import os
from pathlib import Path

import pytest

from pytorch_hmm import io
from pytorch_hmm.speech import labels as lb

EXAMPLE = Path(__file__).parents[1] / "pytorch_hmm" / "examples" / "arctic" / "arctic_a0009.lab"
LONG = '''File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 2.5
tiers? <exists>
size = 3
item []:
    item [1]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 2.5
        intervals: size = 3
        intervals [1]:
            xmin = 0
            xmax = 1e-05
            text = ""
        intervals [2]:
            xmin = 1e-05
            xmax = 1.5
            text = "say ""é"" [2]: = 3"
        intervals [3]:
            xmin = 1.5
            xmax = 2.5
            text = "two
lines"
    item [2]:
        class = "TextTier"
        name = "clicks"
        xmin = 0
        xmax = 2.5
        points: size = 1
        points [1]:
            number = 0.75
            mark = "a ""b"""
    item [3]:
        class = "IntervalTier"
        name = "nothing"
        xmin = 0
        xmax = 2.5
        intervals: size = 0
'''
SHORT = '''File type = "ooTextFile"
Object class = "TextGrid"

0
2.5
<exists>
3
"IntervalTier" "words" 0 2.5 3
0 1e-05 ""
1e-05 1.5 "say ""é"" [2]: = 3" ! a comment, "not read" 7
1.5 2.5 "two
lines"
"TextTier" "clicks" 0 2.5 1
0.75 "a ""b"""
"IntervalTier"
"nothing"
0
2.5
0
'''


def test_full_context_labels():
    segments = lb.read_htk(EXAMPLE)
    assert len(segments) == 40
    assert segments[1][1:3] == (0.13, 0.205)
    assert math.isnan(segments[1].confidence)
    assert [lb.centre_phone(segment.label) for segment in segments[:4]] == ["sil", "hh", "iy", "t"]
    found = lb.parse_full_context(segments[1].label)
    assert found[:3] == (("x", "sil"), "hh", ("iy", "t"))
    assert found.context.startswith("@1_2/A:0_0_0/B:")
    assert all(str(lb.parse_full_context(segment.label)) == segment.label for segment in segments)
    with pytest.raises(ValueError, match="expected a full-context label"):
        lb.parse_full_context("aa")
    assert [lb.centre_phone(label) for label in ("aa", "x-ray", "b-c+d", "a^b-c+d=e")] == ["aa", "x-ray", "c", "c"]


def test_written_as_it_was(tmp_path):
    lb.write_htk(tmp_path / "a.lab", lb.read_htk(EXAMPLE))
    assert (tmp_path / "a.lab").read_text() == EXAMPLE.read_text()


def test_htk_as_others_write_it(tmp_path):
    """Scores, words at their first phones (HVite), quotes, escapes and Windows' line ends."""
    path = tmp_path / "a.rec"
    path.write_bytes(
        b"0 1000000 sil -71.5 !ENTER\r\n1000000 1500000 hh -3e2 he -512.25\r\n1500000 2000000 'i\\171' -2\r\n"
        b'\r\n2000000 3000000 "\\"\\303\\251" -4 9 -4\r\n'
    )
    assert lb.read_htk(path) == [
        ("sil", 0, 0.1, -71.5),
        ("hh", 0.1, 0.15, -300),
        ("iy", 0.15, 0.2, -2),
        ('"é', 0.2, 0.3, -4),
    ]
    words = lb.read_htk(path, 2)
    assert [word[:3] for word in words] == [("!ENTER", 0, 0.1), ("he", 0.1, 0.2), ("9", 0.2, 0.3)]
    assert [word.confidence for word in words[1:]] == [-512.25, -4]
    assert lb.read_htk(path, 3) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("0 10 a\n10 5 b", r":2: 'b' ends before it starts"),
        ("0 10 a\n9 15 b", r":2: 'b' starts at 9e-07 s, before 1e-06 s, where the one before ends"),
        ("\n\n0 10 a\nb", r":4: 'b' has no times, unlike those before"),
        ("0 10", r":1: expected '\[start end\] label', got '0 10'"),
        ("5 a", r":1: expected '\[start end\] label', got '5 a'"),
        ("0.00 0.21 SIL", r":1: expected times as whole numbers of 100 ns, got '0.00'"),
        ("-5 10 a", r":1: expected times as whole numbers of 100 ns, got '-5'"),
        ("0 10 a\n///\n0 10 b", r":2: alternative labels"),
        (b"0 10 a\n10 20 \xff", r":2: expected text in UTF-8"),
    ],
)
def test_bad_htk(tmp_path, content, message):
    path = tmp_path / "bad.lab"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(lb.LabelError, match=r"bad\.lab" + message):
        lb.read_htk(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\n.\n", r":1: expected '#!MLF!#', got 'a'"),
        ("#!MLF!#\na\n.\n", r":2: expected a file's name in quotes, got 'a'"),
        ('#!MLF!#\n"*/a.lab"\na\n', r":2: the labels of '\*/a\.lab' have no end"),
        ('#!MLF!#\n"a"\n.\n"a"\n.\n', r":4: 'a' is there twice"),
        ('#!MLF!#\n"a"\nx\n.\n"b"\n0 5 x\n4 6 y\n.\n', r":7: 'y' starts at"),
    ],
)
def test_bad_mlf(tmp_path, content, message):
    path = tmp_path / "bad.mlf"
    path.write_text(content)
    with pytest.raises(lb.LabelError, match=r"bad\.mlf" + message):
        lb.read_mlf(path)


@pytest.mark.parametrize("content", [LONG, SHORT, LONG.split("\n", 3)[3]], ids=["long", "short", "headless"])
def test_a_textgrid_is_no_htk_file(tmp_path, content):
    path = tmp_path / "x.TextGrid"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(lb.LabelError, match=r"x\.TextGrid: expected HTK labels, got a TextGrid"):
        lb.read_htk(path)
    path.write_text("xmin\nooTextFile\n")
    assert [segment.label for segment in lb.read_htk(path)] == ["xmin", "ooTextFile"]


def test_boundaries_are_starts_of_all_but_the_first():
    said = [lb.Segment("a", 0.0, 0.3), lb.Segment("b", 0.3, 0.5), lb.Segment("c", 0.6, 0.9)]
    assert lb.boundaries(said) == [0.3, 0.6]
    assert lb.boundaries(said[:1]) == lb.boundaries([]) == []
    with pytest.raises(lb.LabelError, match=r"segments\[0\]: expected times, 'a' has none"):
        lb.boundaries([lb.Segment("a"), lb.Segment("b")])
    with pytest.raises(lb.LabelError, match=r"segments\[1\]: 'a' starts at 0 s, before 0.5 s"):
        lb.boundaries(said[1::-1])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be-mark"])
@pytest.mark.parametrize("content", [LONG, SHORT], ids=["long", "short"])
def test_textgrids(tmp_path, content, encoding):
    path = tmp_path / "a.TextGrid"
    mark = encoding.endswith("-mark")
    path.write_bytes(b"\xfe\xff" + content.encode("utf-16-be") if mark else content.encode(encoding))
    grid = lb.read_textgrid(path)
    assert list(grid.tiers) == ["words", "nothing"]
    assert [row[:3] for row in grid.tiers["words"]] == [('say "é" [2]: = 3', 1e-5, 1.5), ("two\nlines", 1.5, 2.5)]
    assert grid.tiers["nothing"] == []
    assert [row[:3] for row in grid.points["clicks"]] == [('a "b"', 0.75, 0.75)]
    assert (grid.start, grid.end) == (0, 2.5)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("xmin = 1e-05", "xmin = 0.9e-05", r":20: 'say .*' starts at 9e-06 s, before 1e-05 s"),
        ("xmin = 1.5\n", "xmin = 2.5\n", r":24: 'two.*has no length"),
        ('"nothing"', '"nothing', r":39: a text whose quotes do not end"),
        ("intervals: size = 0", "intervals: size = 2", r":4\d: the file ends where a time in tier 'nothing' should"),
        ("intervals: size = 3", "intervals: size = 4", r":29: expected a time in tier 'words', got"),
        ('"TextTier"', '"Sound"', r":29: expected 'IntervalTier' or 'TextTier', got 'Sound'"),
        ('"clicks"', '"words"', r":30: tier 'words' is there twice"),
        ('"TextGrid"', '"Pitch"', r":2: expected a text file of the class TextGrid"),
        ("<exists>", '"3"', r":6: expected '<exists>'"),
        (
            "intervals: size = 3",
            "intervals: size = 1e999",
            r":14: expected the size of tier 'words', got '1e999', which",
        ),
        ("xmax = 2.5", "xmax = -2.5", r":5: ends before it starts, 0 to -2.5 s"),
    ],
)
def test_bad_textgrids(tmp_path, old, new, message):
    path = tmp_path / "bad.TextGrid"
    assert old in LONG
    path.write_text(LONG.replace(old, new, 1))
    with pytest.raises(lb.LabelError, match=r"(?s)bad\.TextGrid" + message):
        lb.read_textgrid(path)


def test_textgrids_that_cannot_be(tmp_path):
    path = tmp_path / "a.TextGrid"
    segment = lb.Segment("a", 0.5, 1.0)
    for arguments, message in (
        ({"tiers": {"t": [segment]}, "end": 0.9}, r"tier 't'\[0\]: expected times up to 0.9 s"),
        ({"tiers": {"t": [segment._replace(end=0.5)]}}, r"tier 't'\[0\]: 'a' has no length"),
        ({"tiers": {"t": [lb.Segment("a")]}, "end": 1}, r"expected times up to 1 s, got 'a' from nan"),
        ({"tiers": {}, "points": {"t": [segment]}}, r"expected a point up to 1 s"),
        ({"tiers": {"t": [segment]}, "points": {"t": []}}, r"points: expected other names"),
        ({"tiers": {}}, r"end: expected a positive number"),
    ):
        with pytest.raises(lb.LabelError, match=message):
            lb.write_textgrid(path, **arguments)
    assert list(tmp_path.iterdir()) == []


CTM = """;; a comment
b 1 0.00 0.10 x 0.9
b 1 0.10 0.20 y
a A 11.34 0.2  yes -6.7
"""


def test_ctm(tmp_path):
    path = tmp_path / "a.ctm"
    path.write_text(CTM)
    found = lb.read_ctm(path)
    assert found["a"] == [("yes", 11.34, 11.54, -6.7)]
    assert [row[:3] for row in found["b"]] == [("x", 0, 0.1), ("y", 0.1, 0.3)]  # 0.30000000000000004 as decimals add
    lb.write_ctm(path, {"b": [lb.Segment("x", 0.1049, 0.2049, 0.123456), lb.Segment("y", 0.2049, 0.2951)], "a": []})
    assert path.read_text() == "b 1 0.10 0.10 x 0.1235\nb 1 0.20 0.10 y\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("b 1 0.29 0.1 z", r":5: 'z' starts at 0.29 s, before 0.3 s"),
        ("b 1 0.3 -0.1 z", r":5: 'z' ends before it starts"),
        ("b 1 0.3 0.1", r":5: expected 'file channel start"),
        ("b 1 nan 0.1 z", r":5: expected a number as start, duration or confidence, got 'nan'"),
        ("b 2 0.3 0.1 z", r":5: 'b' has channels '1' and '2'; choose one"),
        ("b 1 * * <ALT_BEGIN>", r":5: alternatives"),
    ],
)
def test_bad_ctm(tmp_path, line, message):
    path = tmp_path / "bad.ctm"
    path.write_text(CTM + line + "\n")
    with pytest.raises(lb.LabelError, match=r"bad\.ctm" + message):
        lb.read_ctm(path)
    if "channels" in message:
        assert [row.label for row in lb.read_ctm(path, "2")["b"]] == ["z"]


@pytest.mark.parametrize("label", ["", "two words", "<ALT>", ";;x"])
def test_ctm_takes_no_spaces(tmp_path, label):
    with pytest.raises(lb.LabelError, match=r"a\[0\]: expected a label without spaces"):
        lb.write_ctm(tmp_path / "a.ctm", {"a": [lb.Segment(label, 0, 1)]})
    assert list(tmp_path.iterdir()) == []


def test_words_end_where_phones_end(tmp_path):
    phones = [lb.Segment("a", 0, 0.1), lb.Segment("b", 0.1, 0.2)]
    with pytest.raises(lb.LabelError, match=r"words\[0\]: expected a name from one segment's start to another's end"):
        lb.write_htk(tmp_path / "a.lab", phones, [lb.Segment("w", 0, 0.15)])


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.lab"
    lb.write_htk(path, [lb.Segment("old", 0, 1)])
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(io.os, "fsync", full)
    new = [lb.Segment("new", 0, 1)]
    for write in (
        lambda: lb.write_htk(path, new),
        lambda: lb.write_mlf(path, {"a": new}),
        lambda: lb.write_ctm(path, {"a": new}),
        lambda: lb.write_textgrid(path, {"a": new}),
    ):
        with pytest.raises(OSError, match="No space left"):
            write()
        assert path.read_bytes() == before
        assert os.listdir(tmp_path) == ["a.lab"]


def test_files_have_the_mode_that_files_have(tmp_path):
    lb.write_htk(tmp_path / "a.lab", [])
    (tmp_path / "b").touch()
    assert (tmp_path / "a.lab").stat().st_mode == (tmp_path / "b").stat().st_mode
