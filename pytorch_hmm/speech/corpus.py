"""A folder of recordings and their transcripts.

Beside NAME.wav (or .flac) stands one of
- NAME.phones: one line a word, the word, a tab, its phones; `<sil>` and a phone of silence where the reader paused;
- NAME.lab with times, HTK's labels: the phones alone (the centres of full-context labels), the times are not looked at;
- NAME.lab or NAME.txt without times: the words, whose phones a lexicon gives.

The speaker is the name of the subfolder, as for the Montreal Forced Aligner; recordings of the folder itself are one's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from .labels import LabelError, centre_phone, read_htk
from .labels.segment import NUMBER, read_text

SOUNDS = (".wav", ".flac")
TRANSCRIPTS = (".phones", ".lab", ".txt")
_MARKS = '.,;:!?"()[]{}<>«»„“”‘’…-–—'
"""Punctuation around words."""


class TranscriptError(ValueError):
    """A transcript that cannot be used; the message is one line."""


class Word(NamedTuple):
    """A word of a transcript."""

    label: str
    """As it is written there; "" where a transcript has phones alone."""
    pronunciations: tuple[tuple[str, ...], ...]
    """One or more, each of at least one phone."""


class Recording(NamedTuple):
    """A sound file and its transcript."""

    name: str
    """The path in the corpus, without the ending, parts divided by slashes."""
    audio: Path
    transcript: Path
    speaker: str


Lexicon = Mapping[str, Sequence[Sequence[str]]]


def find_recordings(
    folder: str | os.PathLike[str], leave_out: str | os.PathLike[str] | None = None
) -> tuple[list[Recording], dict[str, str]]:
    """The recordings below a folder, and the reasons why others are none, by their names; hidden files are passed over.

    Args:
        leave_out: a folder that is not looked into.

    Raises:
        NotADirectoryError: `folder` is none.
    """
    root = Path(folder)
    found, problems = [], {}
    for name, paths in sorted(_files(root, SOUNDS, leave_out).items()):
        shown = name.encode(errors="backslashreplace").decode()
        if shown != name:
            problems[shown] = "its name is not text in UTF-8"
            continue
        texts = [text for ending in TRANSCRIPTS if (text := paths[0].with_suffix(ending)).is_file()]
        if len(paths) > 1:
            problems[name] = f"two sound files: {paths[0].name} and {paths[1].name}"
        elif not texts:
            problems[name] = (
                f"no transcript beside it: expected {' or '.join(Path(name).name + e for e in TRANSCRIPTS)}"
            )
        else:
            parent = paths[0].parent
            found.append(Recording(name, paths[0], texts[0], "" if parent == root else parent.name))
    return found, problems


def find_orphans(
    folder: str | os.PathLike[str],
    leave_out: str | os.PathLike[str] | None = None,
    others: Iterable[str | os.PathLike[str]] = (),
) -> list[str]:
    """The transcripts below a folder beside which there is no recording, as paths in it.

    Args:
        leave_out: a folder that is not looked into.
        others: text files that are no transcripts, such as a lexicon.

    Raises:
        NotADirectoryError: `folder` is none.
    """
    root, known = Path(folder), {Path(path).resolve() for path in others}
    found = _files(root, (*SOUNDS, *TRANSCRIPTS), leave_out)
    return [
        path.relative_to(root).as_posix().encode(errors="backslashreplace").decode()
        for _, paths in sorted(found.items())
        if not any(path.suffix.lower() in SOUNDS for path in paths)
        for path in paths
        if path.resolve() not in known
    ]


def read_transcript(path: str | os.PathLike[str], lexicon: Lexicon | None = None) -> list[Word]:
    """The words of a transcript.

    Args:
        lexicon: pronunciations of words, in lower case, as `read_lexicon` gives them.

    Raises:
        OSError: it cannot be read. TranscriptError: it is empty, a line is none, words without a lexicon, or words that
            the lexicon lacks.
    """
    path = Path(path)
    try:
        text = read_text(path)
        if path.suffix == ".phones":
            words = _phones(path, text)
        elif path.suffix == ".lab" and _has_times(text):
            labels = [segment.label for segment in read_htk(path)]
            words = [Word("", ((centre_phone(label),),)) for label in labels]
        else:
            words = _words(path, text, lexicon)
    except LabelError as error:
        raise TranscriptError(str(error)) from None
    if not words:
        raise TranscriptError(f"{path} is empty")
    return words


def read_lexicon(path: str | os.PathLike[str]) -> dict[str, list[tuple[str, ...]]]:
    """Pronunciations by word in lower case: one line each, the word and its phones, of the same word on further lines.

    Numbers after the word are passed over (the Montreal Forced Aligner's probabilities), so are `;;;` comments, what
    follows a `#` of its own (CMUdict's), and a number in brackets that the word ends on (CMUdict's `READ(2)`).

    Raises:
        OSError: it cannot be read. TranscriptError: a word without phones, or no word at all.
    """
    found: dict[str, list[tuple[str, ...]]] = {}
    try:
        lines = read_text(path).split("\n")
    except LabelError as error:
        raise TranscriptError(str(error)) from None
    for number, line in enumerate(lines, 1):
        parts = line.split()
        if not parts or line.startswith(";;;"):
            continue
        word, phones = parts[0].lower(), parts[1:]
        if "#" in phones[1:]:
            phones = phones[: phones.index("#", 1)]
        while phones and NUMBER.fullmatch(phones[0]):
            phones = phones[1:]
        if not phones:
            raise TranscriptError(f"{path}:{number}: expected a word and its phones, got {line.strip()[:40]!r}")
        if word.endswith(")") and word[:-1].rpartition("(")[2].isdecimal():
            word = word.rpartition("(")[0]
        ways = found.setdefault(word, [])
        if tuple(phones) not in ways:
            ways.append(tuple(phones))
    if not found:
        raise TranscriptError(f"{path} is empty")
    return found


def _files(root: Path, endings: Sequence[str], leave_out: str | os.PathLike[str] | None) -> dict[str, list[Path]]:
    """Files with such endings, in any case, by their paths below the folder without these; none that are hidden."""
    if not root.is_dir():
        raise NotADirectoryError(f"no such folder: {root}")
    hidden = None if leave_out is None else Path(leave_out).resolve()
    found: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        if path.suffix.lower() not in endings or any(part.startswith(".") for part in relative.parts):
            continue
        if path.is_dir() or (hidden is not None and path.resolve().is_relative_to(hidden)):
            continue
        found.setdefault(relative.with_suffix("").as_posix(), []).append(path)
    return found


def _phones(path: Path, text: str) -> list[Word]:
    words = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        word, tab, phones = line.strip("\r").partition("\t")
        if not tab or not word.strip() or not phones.split():
            raise TranscriptError(f"{path}:{number}: expected a word, a tab and its phones, got {line.strip()[:40]!r}")
        words.append(Word(word.strip(), (tuple(phones.split()),)))
    return words


def _words(path: Path, text: str, lexicon: Lexicon | None) -> list[Word]:
    labels = text.split()
    if labels and lexicon is None:
        raise TranscriptError(f"{path} holds words: a lexicon has to give their phones")
    words, unknown = [], []
    for label in labels:
        # as it stands first: some entries hold marks, such as <unk>
        ways = next(
            (lexicon[w] for w in (label.lower(), label.lower().strip(_MARKS)) if lexicon and w in lexicon), None
        )
        if ways is not None:
            words.append(Word(label.strip(_MARKS) or label, tuple(tuple(way) for way in ways)))
        elif label.strip(_MARKS):
            unknown.append(label.strip(_MARKS))
    if unknown:
        shown = ", ".join(repr(word) for word in dict.fromkeys(unknown))
        raise TranscriptError(f"{path}: the lexicon lacks {shown}")
    return words


def _has_times(text: str) -> bool:
    first = next((line.split() for line in text.split("\n") if line.strip()), [])
    return len(first) > 2 and first[0].isdecimal() and first[1].isdecimal()
