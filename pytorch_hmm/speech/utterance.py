"""What is done of each utterance, alone or in another process: reading it; aligning it and writing its files."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ..plotting import plot_alignment, save_figure
from .aligner import PhoneAligner
from .audio import read_audio
from .compile import problem_of
from .corpus import Lexicon, Recording, Word, read_transcript
from .deltas import Normaliser, add_deltas
from .features import extract, log_energy, log_mel
from .labels import Segment, write_ctm, write_htk, write_textgrid
from .outputs import Folder, Record, digest, file_digest
from .settings import AlignerSettings

FORMATS = {"textgrid": (".TextGrid",), "ctm": (".words.ctm", ".phones.ctm"), "htk": (".lab",)}
"""What files of labels end on."""


class Loaded(NamedTuple):
    """A recording that could be read."""

    recording: Recording
    features: Tensor
    energy: Tensor
    seconds: float
    words: list[Word]
    digest: str
    """Of sound and transcript."""


@dataclass(frozen=True)
class Reading:
    """A recording and its transcript."""

    settings: AlignerSettings
    lexicon: Lexicon | None
    resample: bool

    def __call__(self, recording: Recording) -> Loaded:
        """Read it.

        Raises:
            ValueError, OSError: it cannot be used; the message is one line.
        """
        words = read_transcript(recording.transcript, self.lexicon)
        rate = self.settings.features.sample_rate
        samples = read_audio(recording.audio, rate, resample=self.resample)
        content = digest(file_digest(recording.audio), words)
        features, energy = extract(samples, self.settings.features), log_energy(samples, rate)
        if (problem := problem_of(self.settings, features, words)) is not None:
            raise problem
        return Loaded(recording, features, energy, len(samples) / rate, words, content)


class Task(NamedTuple):
    """An utterance to be aligned."""

    one: Loaded
    key: str
    """Of what comes out."""
    voice: Normaliser
    """Of features with slopes."""


class Done(NamedTuple):
    """What became of a task."""

    record: Record
    warnings: list[str]


@dataclass(frozen=True)
class Aligning:
    """An utterance's files, and its record after them."""

    aligner: PhoneAligner
    folder: Path
    formats: tuple[str, ...]
    pictures: bool

    @property
    def endings(self) -> list[str]:
        """Of an utterance's files."""
        return [ending for kind in self.formats for ending in FORMATS[kind]] + [".png"] * self.pictures

    def __call__(self, task: Task) -> Done:
        """Align it and write.

        Raises:
            ValueError: a name that a format has no place for. OSError: files cannot be written.
        """
        (one, key, voice), settings = task, self.aligner.settings
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            found = self.aligner.align(voice(add_deltas(one.features, settings.delta_window)), one.words)
        size = len(one.features), settings.features.frame_shift, one.seconds
        phones, words = (_within(tier, *size) for tier in (found.phones, found.words))
        folder = Folder(self.folder)
        self._write(folder, one, phones, words)
        confidence = sum(phone.confidence for phone in phones) / len(phones)
        record = Record(one.seconds, found.log_likelihood / len(one.features), confidence)
        folder.finish(one.recording.name, key, record, self.endings)
        return Done(record, [str(warning.message) for warning in told])

    def _write(self, folder: Folder, one: Loaded, phones: list[Segment], words: list[Segment]) -> None:
        name, has_words = one.recording.name, any(word.label for word in one.words)
        tiers = {"words": words, "phones": phones} if has_words else {"phones": phones}
        if "textgrid" in self.formats:
            write_textgrid(folder.path(name, ".TextGrid"), tiers, end=one.seconds)
        if "ctm" in self.formats:
            write_ctm(folder.path(name, ".words.ctm"), {name: words if has_words else []}, decimals=3)
            write_ctm(folder.path(name, ".phones.ctm"), {name: phones}, decimals=3)
        if "htk" in self.formats:
            write_htk(folder.path(name, ".lab"), phones, words if has_words else None)
        if self.pictures:
            figure = plot_alignment(log_mel(read_audio(one.recording.audio)), tiers, title=name)
            save_figure(figure, folder.path(name, ".png"))


def _within(segments: Iterable[Segment], num_frames: int, hop: float, seconds: float) -> list[Segment]:
    """Segments of whole frames as those of the recording, whose end the last frame does not quite meet."""
    whole = num_frames * hop - 1e-6
    return [segment._replace(end=seconds) if segment.end >= whole else segment for segment in segments]
