"""Standard output, which may be closed, full, or a pipe that nobody reads; and errors as one line."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TextIO


def let_go(sink: TextIO) -> None:
    """After an error of writing: what Python flushes on its way out goes nowhere."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sink.fileno())
        os.close(nowhere)


def told(error: Exception) -> str:
    """One line."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())
