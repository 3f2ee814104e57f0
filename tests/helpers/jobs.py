"""Jobs for other processes, which find them by their names."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


class Odd(Exception):
    """Pickle takes it, and cannot make it again."""

    def __init__(self, one, other):
        super().__init__(f"{one}{other}")


def odd_jobs(item):
    """abs of numbers; "raise", "odd" and "die" do so, "die PATH" only until PATH is there."""
    if item == "raise":
        raise OSError(28, "full", "file")
    if item == "odd":
        raise Odd("no ", "pickle")
    if not isinstance(item, str):
        time.sleep(0.02 * (item % 3))
        return abs(item)
    marks = [Path(mark) for mark in item.split()[1:]]
    if not marks or not marks[0].exists():
        for mark in marks:
            mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "lived"


def fail(job):
    """No way to begin."""
    raise ImportError(job)


def wait(path: str) -> None:
    """Leaves the process's number in PATH.pid, and the file PATH while it waits; of "" nothing."""
    if not path:
        return
    mark = Path(path)
    mark.with_suffix(".pid").write_text(str(os.getpid()))
    mark.touch()
    try:
        for _ in range(1200):
            time.sleep(0.1)
    finally:
        mark.unlink()
