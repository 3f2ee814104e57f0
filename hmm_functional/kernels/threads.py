"""Threads that help a kernel call: few, asleep between calls, and as many as torch was told to use.

Helpers are started when first needed and wait on a lock, so that they take nothing from torch's own threads. A forked
process starts its own. In a DataLoader's worker torch says one thread, and none is started.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread, local

Job = Callable[[int], None]
"""A share of the work, given the number of the thread that does it."""


class _Helper:
    def __init__(self) -> None:
        self.jobs: SimpleQueue[tuple[Job, int, SimpleQueue[BaseException | None]]] = SimpleQueue()
        Thread(target=self._serve, daemon=True, name="hmm_functional").start()

    def _serve(self) -> None:
        _inside.is_helper = True
        while True:
            job, number, done = self.jobs.get()
            try:
                job(number)
                done.put(None)
            except BaseException as error:
                done.put(error)


_inside = local()
_idle: list[_Helper] = []


def _forget() -> None:
    """After a fork no helper runs any more."""
    _idle.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def available() -> int:
    """How many threads a call may use: torch's number where torch is loaded, else the processors at hand."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return int(torch.get_num_threads())
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(job: Job, count: int) -> None:
    """job(0), ..., job(count - 1), side by side; the last on the calling thread.

    Threads that call at once do not share helpers: each takes idle ones, or starts some.
    """
    helpers: list[_Helper] = []
    done: SimpleQueue[BaseException | None] = SimpleQueue()
    for number in range(count - 1):
        try:
            helper = _idle.pop()
        except IndexError:
            helper = _Helper()
        helpers.append(helper)
        helper.jobs.put((job, number, done))
    try:
        job(count - 1)
    finally:
        errors = [done.get() for _ in helpers]
        _idle.extend(helpers)
    for error in errors:
        if error is not None:
            raise error
