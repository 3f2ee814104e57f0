"""Recordings, their transcripts, and lexica."""

from __future__ import annotations

import os
import sys

import pytest

from pytorch_hmm.speech.corpus import (
    TranscriptError,
    Word,
    find_orphans,
    find_recordings,
    read_lexicon,
    read_transcript,
)


def write(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_what_is_found(tmp_path):
    for name in ("b.wav", "b.phones", "b.txt", "anna/a.flac", "anna/a.lab", "x/bert/a.WAV", "x/bert/a.txt"):
        write(tmp_path / name)
    for name in ("alone.wav", "two.wav", "two.flac", "two.txt", "text.txt", ".hidden/c.wav", ".d.wav", "out/b.wav"):
        write(tmp_path / name)
    found, problems = find_recordings(tmp_path, leave_out=tmp_path / "out")
    assert [(one.name, one.speaker, one.transcript.name) for one in found] == [
        ("anna/a", "anna", "a.lab"),
        ("b", "", "b.phones"),
        ("x/bert/a", "bert", "a.txt"),
    ]
    assert problems == {
        "alone": "no transcript beside it: expected alone.phones or alone.lab or alone.txt",
        "two": "two sound files: two.flac and two.wav",
    }
    for name in ("anna/gone.lab", "anna/gone.phones", ".hidden/d.txt", "out/e.lab", "lexicon.txt"):
        write(tmp_path / name)
    orphans = find_orphans(tmp_path, tmp_path / "out", [tmp_path / "lexicon.txt"])
    assert orphans == ["anna/gone.lab", "anna/gone.phones", "text.txt"]
    for find in (find_recordings, find_orphans):
        with pytest.raises(NotADirectoryError, match="no such folder"):
            find(tmp_path / "b.wav")


LEXICON = """;;; a comment
READ  R IY D
READ(2)  R EH D
read 0.3 0.9 1.2 0.4 R EH D
the\tDH AH
<unk> SPN
o'clock AH K L AA K
"""


def test_transcripts(tmp_path):
    lexicon = read_lexicon(write(tmp_path / "lexicon.txt", LEXICON))
    assert lexicon["read"] == [("R", "IY", "D"), ("R", "EH", "D")]
    phones = write(tmp_path / "a.phones", "<sil>\tSIL\r\nhe\tHH IY\n\n")
    assert read_transcript(phones) == [Word("<sil>", (("SIL",),)), Word("he", (("HH", "IY"),))]
    words = write(tmp_path / "a.txt", "“The”, - Read <unk> O'clock!\n")
    assert read_transcript(words, lexicon) == [
        Word("The", (("DH", "AH"),)),
        Word("Read", (("R", "IY", "D"), ("R", "EH", "D"))),
        Word("unk", (("SPN",),)),
        Word("O'clock", (("AH", "K", "L", "AA", "K"),)),
    ]
    labels = write(tmp_path / "a.lab", "0 1000 x^x-sil+hh=iy@x\n1000 2000 x^sil-hh+iy=t@1_2/A:0\n")
    assert read_transcript(labels) == [Word("", (("sil",),)), Word("", (("hh",),))]
    labels.write_text("the read")
    assert [word.label for word in read_transcript(labels, lexicon)] == ["the", "read"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.phones", "", r"a\.phones is empty$"),
        ("a.phones", "he\tHH IY\nhe HH IY\n", r"a\.phones:2: expected a word, a tab and its phones, got 'he HH IY'"),
        ("a.phones", "he\t\n", r"a\.phones:1: expected a word, a tab and its phones"),
        ("a.txt", " \n", r"a\.txt is empty$"),
        ("a.txt", "...", r"a\.txt is empty$"),
        ("a.txt", "the cat the dog cat", r"a\.txt: the lexicon lacks 'cat', 'dog'$"),
        ("a.lab", "0 10 a\n5 10 b", r"a\.lab:2: 'b' starts at"),
    ],
)
def test_bad_transcripts(tmp_path, name, text, message):
    with pytest.raises(TranscriptError, match=message):
        read_transcript(write(tmp_path / name, text), {"the": [("DH", "AH")]})


def test_words_need_a_lexicon(tmp_path):
    with pytest.raises(TranscriptError, match="a lexicon has to give their phones"):
        read_transcript(write(tmp_path / "a.txt", "the"))
    for text, message in (("the\n", r"l:1: expected a word and its phones, got 'the'"), (";;; x\n", "l is empty")):
        with pytest.raises(TranscriptError, match=message):
            read_lexicon(write(tmp_path / "l", text))


def test_comments_within_a_lexicon(tmp_path):
    """As cmudict.dict has them."""
    (tmp_path / "l").write_text("aalborg AO1 L B AO0 R G # place, danish\n# # AH\n")
    assert read_lexicon(tmp_path / "l") == {"aalborg": [("AO1", "L", "B", "AO0", "R", "G")], "#": [("#", "AH")]}


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes")
def test_names_that_are_no_text(tmp_path):
    for ending in (b".wav", b".phones"):
        (tmp_path / os.fsdecode(b"caf\xe9" + ending)).touch()
    found, problems = find_recordings(tmp_path)
    assert found == []
    assert problems == {r"caf\udce9": "its name is not text in UTF-8"}
