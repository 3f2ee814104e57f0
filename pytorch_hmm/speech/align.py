"""`python -m pytorch_hmm align`: a corpus of recordings and transcripts, each aligned and written.

A bad recording is named and passed over. What is finished stays so: a run that was interrupted goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from tqdm import tqdm

from ..plotting import plot_alignment, save_figure
from .aligner import PhoneAligner
from .audio import read_audio
from .compile import problem_of
from .console import let_go
from .corpus import (
    Lexicon,
    Recording,
    TranscriptError,
    Word,
    find_orphans,
    find_recordings,
    read_lexicon,
    read_transcript,
)
from .features import extract, log_energy, log_mel
from .labels import Segment, write_ctm, write_htk, write_textgrid
from .labels.segment import read_text
from .outputs import BusyError, Outputs, Record, digest, file_digest
from .settings import AlignerSettings

FORMATS = {"textgrid": (".TextGrid",), "ctm": (".words.ctm", ".phones.ctm"), "htk": (".lab",)}


class AlignError(Exception):
    """The input cannot be used at all; the message is one line."""


@dataclass(frozen=True)
class AlignOptions:
    """What the command line asks for."""

    corpus: Path
    out: Path
    lexicon: Path | None = None
    model: Path | None = None
    formats: tuple[str, ...] = ("textgrid",)
    pictures: bool = True
    resample: bool = False
    settings: AlignerSettings = AlignerSettings()  # noqa: RUF009
    no_transcripts: tuple[Path, ...] = ()
    """Text files that may lie in the corpus, such as the lexicon."""

    @classmethod
    def of(cls, given: argparse.Namespace) -> AlignOptions:
        """From the command line.

        Raises:
            AlignError: an argument that makes no sense.
        """
        formats = tuple(dict.fromkeys(kind.strip() for kind in given.format.split(",")))
        if not formats or not set(formats) <= set(FORMATS):
            raise AlignError(f"--format: expected some of {', '.join(FORMATS)}, got {given.format!r}")
        settings = AlignerSettings()
        try:
            if given.iterations is not None:
                settings = replace(settings, iterations=given.iterations)
            if given.classes is not None:
                settings = replace(settings, classes=_classes(given.classes))
            settings = replace(settings, silence=given.silence)
        except (OSError, ValueError) as error:
            raise AlignError(_told(error)) from None
        pictures = not given.no_pictures
        texts = tuple(path for path in (given.lexicon, given.classes) if path is not None)
        resample = given.resample
        return cls(given.corpus, given.out, given.lexicon, given.model, formats, pictures, resample, settings, texts)


class Loaded(NamedTuple):
    """A recording that could be read."""

    recording: Recording
    features: Tensor
    energy: Tensor
    seconds: float
    words: list[Word]
    digest: str
    """Of sound and transcript."""


def run(options: AlignOptions) -> int:
    """Align a corpus; 0 when every recording was, 1 when some were not.

    Raises:
        AlignError: nothing could be done; the message is one line.
    """
    if options.out.resolve() == options.corpus.resolve():
        raise AlignError("--out: expected another folder than the corpus")
    try:
        lexicon = None if options.lexicon is None else read_lexicon(options.lexicon)
        recordings, problems = find_recordings(options.corpus, leave_out=options.out)
        _say_orphans(find_orphans(options.corpus, options.out, options.no_transcripts))
    except OSError as error:
        raise AlignError(_told(error)) from None
    except TranscriptError as error:
        raise AlignError(f"--lexicon: {error}") from None
    if not recordings and not problems:
        raise AlignError(f"no .wav or .flac files in {options.corpus}")
    with _errors_of_disk(options.out), closing(Outputs(options.out)) as outputs:
        records, table = _run(options, outputs, recordings, problems, lexicon)
    _report(records, problems, table)
    if not records:
        raise AlignError(f"no recording in {options.corpus} could be aligned: {next(iter(problems.values()))}")
    return 1 if problems else 0


def _run(
    options: AlignOptions,
    outputs: Outputs,
    recordings: Sequence[Recording],
    problems: dict[str, str],
    lexicon: Lexicon | None,
) -> tuple[dict[str, Record], Path]:
    """The records of what was aligned, and the table; `problems` gets what was not."""
    for name, reason in problems.items():
        _say_skipped(name, reason)
    settings, aligner = options.settings, None
    if options.model is not None:
        aligner = _loaded_model(options.model)
        settings = aligner.settings
    loaded = {}
    for recording in _bar(recordings, "reading"):
        try:
            loaded[recording.name] = _load(recording, settings, lexicon, options.resample)
        except (ValueError, OSError) as error:  # AudioError, TranscriptError, what problem_of says
            problems[recording.name] = _told(error)
            _say_skipped(recording.name, problems[recording.name])
    if not loaded:
        outputs.summarise({}, problems)
        raise AlignError(f"no recording in {options.corpus} can be used: {next(iter(problems.values()))}")
    if aligner is None:
        aligner, model_file = _trained(options, outputs, loaded), outputs.model
    else:
        model_file = Path(options.model or "")
    records = _align_all(options, outputs, aligner, file_digest(model_file), loaded, problems)
    return records, outputs.summarise(records, problems)


def _classes(path: Path) -> dict[str, str]:
    """Of a file with a line a phone: the phone and its class."""
    found = {}
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            parts = line.split()
            if len(parts) != 2:
                got = line.strip()[:40]
                raise AlignError(f"--classes: {path}:{number}: expected a phone and its class, got {got!r}")
            found[parts[0]] = parts[1]
    if not found:
        raise AlignError(f"--classes: {path} is empty")
    return found


def _load(recording: Recording, settings: AlignerSettings, lexicon: Lexicon | None, resample: bool) -> Loaded:
    words = read_transcript(recording.transcript, lexicon)
    rate = settings.features.sample_rate
    samples = read_audio(recording.audio, rate, resample=resample)
    content = digest(file_digest(recording.audio), words)
    features, energy = extract(samples, settings.features), log_energy(samples, rate)
    if (problem := problem_of(settings, features, words)) is not None:
        raise problem
    return Loaded(recording, features, energy, len(samples) / rate, words, content)


def _loaded_model(path: Path) -> PhoneAligner:
    try:
        return PhoneAligner.load(path)
    except (OSError, ValueError) as error:
        raise AlignError(f"--model: {_told(error)}") from None


def _trained(options: AlignOptions, outputs: Outputs, loaded: dict[str, Loaded]) -> PhoneAligner:
    """The model trained on these before, or now."""
    members = [(name, one.recording.speaker, one.digest) for name, one in sorted(loaded.items())]
    key = digest("align 1", asdict(options.settings), options.resample, members)
    if outputs.holds_model(key):
        return PhoneAligner.load(outputs.model)
    aligner = PhoneAligner(options.settings)
    with tqdm(desc="training", unit="step") as bar:

        def tell(progress: Any) -> None:
            bar.total = progress.of
            bar.update()
            bar.set_postfix_str(f"{progress.log_likelihood:.2f} nats a frame")

        try:
            aligner.fit(
                {name: one.features for name, one in loaded.items()},
                {name: one.words for name, one in loaded.items()},
                speakers={name: one.recording.speaker for name, one in loaded.items()},
                energies={name: one.energy for name, one in loaded.items()},
                progress=tell,
            )
        except ValueError as error:
            raise AlignError(f"cannot train on {options.corpus}: {error}") from None
    aligner.save(outputs.model)
    outputs.keep_model(key)
    return aligner


def _align_all(
    options: AlignOptions,
    outputs: Outputs,
    aligner: PhoneAligner,
    model: str,
    loaded: dict[str, Loaded],
    problems: dict[str, str],
) -> dict[str, Record]:
    """Align and write what is not yet; the records of all that are. `problems` gets the others."""
    records = {}
    speakers = {name: one.recording.speaker for name, one in loaded.items()}
    # a speaker's mean and variance are those of all that was read of him
    voices = {
        speaker: digest(sorted(one.digest for one in loaded.values() if one.recording.speaker == speaker))
        for speaker in speakers.values()
    }
    normalised = aligner.normalise({name: one.features for name, one in loaded.items()}, speakers)
    endings = [ending for kind in options.formats for ending in FORMATS[kind]] + [".png"] * options.pictures
    for name, one in _bar(loaded.items(), "aligning"):
        key = digest(model, name, one.digest, voices[one.recording.speaker])
        record = outputs.record(name, key, endings)
        if record is None:
            try:
                with warnings.catch_warnings(record=True) as told:
                    warnings.simplefilter("always")
                    found = aligner.align(normalised[name], one.words)
                for warning in told:
                    tqdm.write(f"{name}: {warning.message}", file=sys.stderr)
                size = len(one.features), aligner.settings.features.frame_shift, one.seconds
                phones, words = (_within(tier, *size) for tier in (found.phones, found.words))
                _write(options, outputs, one, phones, words)
            except ValueError as error:  # a name that a format has no place for
                problems[name] = _told(error)
                _say_skipped(name, problems[name])
                continue
            confidence = sum(phone.confidence for phone in phones) / len(phones)
            record = Record(one.seconds, found.log_likelihood / len(one.features), confidence)
            outputs.finish(name, key, record)
        records[name] = record
    return records


def _write(options: AlignOptions, outputs: Outputs, one: Loaded, phones: list[Segment], words: list[Segment]) -> None:
    """An utterance's files."""
    name, has_words = one.recording.name, any(word.label for word in one.words)
    tiers = {"words": words, "phones": phones} if has_words else {"phones": phones}
    if "textgrid" in options.formats:
        write_textgrid(outputs.path(name, ".TextGrid"), tiers, end=one.seconds)
    if "ctm" in options.formats:
        write_ctm(outputs.path(name, ".words.ctm"), {name: words if has_words else []}, decimals=3)
        write_ctm(outputs.path(name, ".phones.ctm"), {name: phones}, decimals=3)
    if "htk" in options.formats:
        write_htk(outputs.path(name, ".lab"), phones, words if has_words else None)
    if options.pictures:
        figure = plot_alignment(log_mel(read_audio(one.recording.audio)), tiers, title=name)
        save_figure(figure, outputs.path(name, ".png"))


def _within(segments: Iterable[Segment], num_frames: int, hop: float, seconds: float) -> list[Segment]:
    """Segments of whole frames as those of the recording, whose end the last frame does not quite meet."""
    whole = num_frames * hop - 1e-6
    return [segment._replace(end=seconds) if segment.end >= whole else segment for segment in segments]


@contextmanager
def _errors_of_disk(out: Path) -> Iterator[None]:
    try:
        yield
    except BusyError as error:
        raise AlignError(f"--out: {error}") from None
    except OSError as error:
        raise AlignError(
            f"--out: cannot write to {out}: {error.strerror or error}; what is finished there stays"
        ) from None


def _bar(items: Any, what: str) -> Any:
    return tqdm(items, desc=what, unit="file", total=len(items))


def _say_skipped(name: str, reason: str) -> None:
    tqdm.write(f"skipped {name}: {reason}", file=sys.stderr)


def _say_orphans(names: Sequence[str]) -> None:
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        what = "transcript has" if len(names) == 1 else "transcripts have"
        tqdm.write(f"warning: {len(names)} {what} no recording: {', '.join(names[:5])}{more}", file=sys.stderr)


def _told(error: Exception) -> str:
    """One line."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


def _report(records: dict[str, Record], problems: dict[str, str], table: Path) -> None:
    """What was done, on standard output."""
    seconds = sum(record.seconds for record in records.values())
    rows = [("aligned", f"{len(records)} of {len(records) + len(problems)} recordings, {seconds:.1f} s of sound")]
    if records:
        mean = sum(record.confidence for record in records.values()) / len(records)
        likelihood = sum(record.log_likelihood * record.seconds for record in records.values()) / seconds
        rows.append(("log-likelihood a frame", f"{likelihood:.2f} nats"))
        rows.append(("confidence", f"{mean:.3f}, mean over recordings of their phones'"))
    rows.append(("table", str(table)))
    width = max(len(name) for name, _ in rows)
    try:
        print("\n".join(f"{name:<{width}}  {value}" for name, value in rows), flush=True)
    except BrokenPipeError:  # nobody reads on, and all else is done
        let_go(sys.stdout)
    except OSError as error:
        let_go(sys.stdout)
        told = error.strerror or error
        raise AlignError(f"cannot print what was done: {told}; it is done, and stands in {table}") from None
