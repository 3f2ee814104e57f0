"""`python -m pytorch_hmm align`: a corpus of recordings and transcripts, each aligned and written.

A bad recording is named and passed over. What is finished stays so: a run that was interrupted goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .aligner import PhoneAligner
from .console import let_go, told
from .corpus import Lexicon, Recording, TranscriptError, find_orphans, find_recordings, read_lexicon
from .deltas import by_speaker
from .labels.segment import read_text
from .outputs import BusyError, Outputs, Record, digest, file_digest
from .settings import AlignerSettings
from .utterance import FORMATS, Aligning, Loaded, Reading, Task
from .workers import WorkerError, cores, spread


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
    jobs: int = 1
    """Processes at most that read, align and write."""

    @classmethod
    def of(cls, given: argparse.Namespace) -> AlignOptions:
        """From the command line.

        Raises:
            AlignError: an argument that makes no sense.
        """
        formats = tuple(dict.fromkeys(kind.strip() for kind in given.format.split(",")))
        if not formats or not set(formats) <= set(FORMATS):
            raise AlignError(f"--format: expected some of {', '.join(FORMATS)}, got {given.format!r}")
        jobs = cores() if given.jobs is None else given.jobs
        if jobs < 1:
            raise AlignError(f"--jobs: expected at least 1, got {jobs}")
        settings = AlignerSettings()
        try:
            if given.iterations is not None:
                settings = replace(settings, iterations=given.iterations)
            if given.classes is not None:
                settings = replace(settings, classes=_classes(given.classes))
            settings = replace(settings, silence=given.silence)
        except (OSError, ValueError) as error:
            raise AlignError(told(error)) from None
        pictures = not given.no_pictures
        texts = tuple(path for path in (given.lexicon, given.classes) if path is not None)
        resample = given.resample
        return cls(
            given.corpus, given.out, given.lexicon, given.model, formats, pictures, resample, settings, texts, jobs
        )


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
        raise AlignError(told(error)) from None
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
    loaded, job = {}, Reading(settings, lexicon, options.resample)
    with spread(job, recordings, options.jobs) as results:
        for recording, read in _bar(results, "reading", len(recordings)):
            try:
                loaded[recording.name] = read.result()
            except (ValueError, OSError) as error:  # AudioError, TranscriptError, what problem_of says, WorkerDied
                problems[recording.name] = told(error)
                _say_skipped(recording.name, problems[recording.name])
    if not loaded:
        _conclude(outputs, {}, problems)
        raise AlignError(f"no recording in {options.corpus} can be used: {next(iter(problems.values()))}")
    if aligner is None:
        aligner, file = _trained(options, outputs, loaded), outputs.model
    else:
        file = Path(options.model or "")
    records = _align_all(options, outputs, (aligner, file), loaded, problems)
    return records, _conclude(outputs, records, problems)


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


def _loaded_model(path: Path) -> PhoneAligner:
    try:
        return PhoneAligner.load(path)
    except (OSError, ValueError) as error:
        raise AlignError(f"--model: {told(error)}") from None


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
    model: tuple[PhoneAligner, Path],
    loaded: dict[str, Loaded],
    problems: dict[str, str],
) -> dict[str, Record]:
    """Align and write what is not yet; the records of all that are. `problems` gets the others."""
    aligner, file = model
    job, number = Aligning(aligner, options.out, options.formats, options.pictures), file_digest(file)
    speakers = {name: one.recording.speaker for name, one in loaded.items()}
    # a speaker's mean and variance are those of all that was read of him
    voices = {
        speakers[names[0]]: digest(sorted(loaded[name].digest for name in names))
        for names in by_speaker(loaded, speakers)
    }
    keys = {name: digest(number, name, one.digest, voices[speakers[name]]) for name, one in loaded.items()}
    known = {name: outputs.record(name, key, job.endings) for name, key in keys.items()}
    records = {name: record for name, record in known.items() if record is not None}
    left = [name for name in loaded if name not in records]
    norms = aligner.voices({name: one.features for name, one in loaded.items()}, speakers) if left else {}
    tasks = [Task(loaded[name], keys[name], norms[name]) for name in left]
    with spread(job, tasks, options.jobs) as results:
        for task, done in _bar(results, "aligning", len(loaded), len(records)):
            name = task.one.recording.name
            try:
                records[name], told_of = done.result()
            except ValueError as error:  # a name that a format has no place for, WorkerDied
                problems[name] = told(error)
                _say_skipped(name, problems[name])
            else:
                for warning in told_of:
                    tqdm.write(f"{name}: {warning}", file=sys.stderr)
    return {name: records[name] for name in loaded if name in records}


def _conclude(outputs: Outputs, records: dict[str, Record], problems: dict[str, str]) -> Path:
    """The table, with nothing beside it of what failed now."""
    moved = sum(outputs.withdraw(name) for name in problems)
    if moved:
        what = "1 recording" if moved == 1 else f"{moved} recordings"
        tqdm.write(f"warning: {what} failed, but not before: the old files are in {outputs.withdrawn}", file=sys.stderr)
    return outputs.summarise(records, problems)


@contextmanager
def _errors_of_disk(out: Path) -> Iterator[None]:
    try:
        yield
    except BusyError as error:
        raise AlignError(f"--out: {error}") from None
    except WorkerError as error:
        raise AlignError(f"--jobs: {error}") from None
    except OSError as error:
        raise AlignError(
            f"--out: cannot write to {out}: {error.strerror or error}; what is finished there stays"
        ) from None


def _bar(items: Any, what: str, total: int, done: int = 0) -> Any:
    return tqdm(items, desc=what, unit="file", total=total, initial=done)


def _say_skipped(name: str, reason: str) -> None:
    tqdm.write(f"skipped {name}: {reason}", file=sys.stderr)


def _say_orphans(names: Sequence[str]) -> None:
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        what = "transcript has" if len(names) == 1 else "transcripts have"
        tqdm.write(f"warning: {len(names)} {what} no recording: {', '.join(names[:5])}{more}", file=sys.stderr)


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
