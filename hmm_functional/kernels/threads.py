"""Threads that help a kernel call: torch's own where it has OpenMP threads to share, else a few that sleep on a lock.

As many as torch was told to use. A forked process cannot use the OpenMP threads of its parent and starts its own. In a
DataLoader's worker torch says one thread, and none is started.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from queue import SimpleQueue
from threading import Thread

from . import team
from .compiled import Entry

Calls = Sequence[tuple[Entry, int]]
"""Compiled functions, each with the address of its fields; what they share out among threads, they find there."""


class _Helper:
    def __init__(self) -> None:
        self.jobs: SimpleQueue[tuple[Calls, int, SimpleQueue[None]]] = SimpleQueue()
        Thread(target=self._serve, daemon=True, name="hmm_functional").start()

    def _serve(self) -> None:
        while True:
            calls, number, done = self.jobs.get()
            _make(calls, number)
            done.put(None)


_idle: list[_Helper] = []
_is_forked = False


def _after_fork() -> None:
    """No thread but the forking one is left."""
    global _is_forked
    _is_forked = True
    _idle.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def available() -> int:
    """How many threads a call may use: torch's number where torch is loaded, else the processors at hand."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return int(torch.get_num_threads())
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(calls: Calls, count: int) -> None:
    """Make all calls on each of at most `count` threads, the calling one among them, numbered from 0."""
    if count <= 1:
        _make(calls, 0)
    elif not _is_forked and (found := team.find()) is not None:
        found.run(calls, count)
    else:
        _run_on_helpers(calls, count)


def _make(calls: Calls, number: int) -> None:
    for entry, fields in calls:
        entry(fields, number)


def _run_on_helpers(calls: Calls, count: int) -> None:
    """Threads that call at once do not share helpers: each takes idle ones, or starts some."""
    helpers: list[_Helper] = []
    try:
        while len(helpers) < count - 1:
            helpers.append(_idle.pop() if _idle else _Helper())
    except (IndexError, RuntimeError):  # taken meanwhile, or the system has no more: fewer will do
        pass
    except BaseException:
        _idle.extend(helpers)
        raise
    done: SimpleQueue[None] = SimpleQueue()
    waiting, interrupted = 0, None
    # whatever a signal's handler raises, nothing may be given back to the caller while a helper still writes to it
    try:
        for number, helper in enumerate(helpers, 1):
            waiting += 1
            helper.jobs.put((calls, number, done))
        _make(calls, 0)
    except BaseException as error:
        interrupted = error
    while waiting:
        try:
            done.get()
            waiting -= 1
        except BaseException as error:
            interrupted = error
    _idle.extend(helpers)
    if interrupted is not None:
        raise interrupted
