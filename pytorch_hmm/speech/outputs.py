"""The folder an aligner writes to: what is finished there, and what of it still holds.

Every file is written whole or not at all, and an utterance's record after its other files. A record, and the trained
model, hold while the digest of all they depend on is the same.
"""

from __future__ import annotations

import csv
import hashlib
import io as text_io
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from ..io import replace

MODEL = "model.safetensors"
COLUMNS = ("utterance", "status", "seconds", "log_likelihood_per_frame", "confidence", "reason")


class Record(NamedTuple):
    """What became of an utterance."""

    seconds: float
    log_likelihood: float
    """A frame, in nats."""
    confidence: float
    """Mean of its phones'."""


class BusyError(RuntimeError):
    """Another process writes to the folder."""


class Folder:
    """A folder of results, and what is known of them in its hidden folder `.align`.

    What belongs to a record that does not hold any more is moved to `.align/withdrawn`, from where it comes back once
    the record holds again.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._state = self.folder / ".align"
        self._finished = self._state / "finished"
        self.withdrawn = self._state / "withdrawn"

    def path(self, name: str, ending: str) -> Path:
        """Where an utterance's file goes; its folder is made."""
        return _with_folder(self.folder / f"{name}{ending}")

    def record(self, name: str, key: str, endings: Iterable[str]) -> Record | None:
        """What is known of an utterance, if it holds and all its files are there."""
        if not _of(self._finished, name).is_file():
            self._bring_back(name, key)
        known = _read(_of(self._finished, name))
        if known is None or known.get("key") != key:
            return None
        if not all((self.folder / f"{name}{ending}").is_file() for ending in endings):
            return None
        with suppress(KeyError, TypeError, ValueError):
            return Record(*(float(known[field]) for field in Record._fields))
        return None

    def finish(self, name: str, key: str, record: Record, endings: Iterable[str]) -> None:
        """Note that an utterance's files are all written; those of an earlier record are withdrawn."""
        known, written = _read(_of(self._finished, name)) or {}, {*endings}
        others = {*_endings(known)} - written
        if known.get("key") == key:
            written |= others
        else:
            self._move(name, others, self.folder, self.withdrawn)
        content = {"key": key, **record._asdict(), "files": sorted(written)}
        _write(_of(self._finished, name), content)

    def withdraw(self, name: str) -> bool:
        """Take away an utterance's files and its record; whether there were any."""
        known = _read(_of(self._finished, name))
        if known is None:
            return False
        self._move(name, _endings(known), self.folder, self.withdrawn)
        self._move(name, [".json"], self._finished, self.withdrawn)  # the last, so that a killed process is made up for
        return True

    def _bring_back(self, name: str, key: str) -> None:
        known = _read(_of(self.withdrawn, name))
        if known is not None and known.get("key") == key:
            self._move(name, _endings(known), self.withdrawn, self.folder)
            self._move(name, [".json"], self.withdrawn, self._finished)

    @staticmethod
    def _move(name: str, endings: Iterable[str], source: Path, target: Path) -> None:
        for ending in endings:
            with suppress(FileNotFoundError):  # it was deleted
                os.replace(source / f"{name}{ending}", _with_folder(target / f"{name}{ending}"))


class Outputs(Folder):
    """A folder that one process at a time, with its workers, writes to.

    Raises:
        OSError: it cannot be made or written to. BusyError: another process is at it.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        super().__init__(folder)
        self._state.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self._state / "lock")
        for left in self.folder.rglob(".*.????????.part"):  # of a process that was killed
            left.unlink(missing_ok=True)

    def close(self) -> None:
        """Let others write."""
        os.close(self._lock)

    @property
    def model(self) -> Path:
        """Where the model goes."""
        return self.folder / MODEL

    def holds_model(self, key: str) -> bool:
        """Whether the model there was trained on what `key` stands for, and is whole."""
        known = _read(self._state / "model.json")
        return self.model.is_file() and known == {"key": key, "digest": file_digest(self.model)}

    def keep_model(self, key: str) -> None:
        """Note what the model there was trained on."""
        _write(self._state / "model.json", {"key": key, "digest": file_digest(self.model)})

    def summarise(self, records: dict[str, Record], problems: dict[str, str]) -> Path:
        """Write the table of all utterances; its path."""
        text = text_io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(COLUMNS)
        for name in sorted({*records, *problems}):
            if name in problems:
                table.writerow([name, "failed", "", "", "", problems[name]])
            else:
                seconds, likelihood, confidence = records[name]
                table.writerow([name, "aligned", f"{seconds:.3f}", f"{likelihood:.4f}", f"{confidence:.4f}", ""])
        path = self.folder / "summary.csv"
        replace(path, text.getvalue().encode(errors="backslashreplace"))
        return path


def digest(*parts: Any) -> str:
    """A number that stands for all of these, which JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def file_digest(path: str | os.PathLike[str]) -> str:
    """A number that stands for a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _of(folder: Path, name: str) -> Path:
    """An utterance's record in a folder of such."""
    return folder / f"{name}.json"


def _endings(known: dict[str, Any]) -> list[str]:
    """What the files of a record end on."""
    found = known.get("files")
    return [ending for ending in found if isinstance(ending, str)] if isinstance(found, list) else []


def _with_folder(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _write(path: Path, content: dict[str, Any]) -> None:
    replace(_with_folder(path), json.dumps(content).encode())


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _locked(path: Path) -> int:
    """A file that this process alone has, until it ends; where the system has no such locks, just the file."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        import fcntl
    except ModuleNotFoundError:
        return handle
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise BusyError(f"another process writes to {path.parent.parent}") from None
    return handle
