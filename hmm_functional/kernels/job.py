"""One call of compiled code, and running several side by side."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from threading import local
from typing import Any, cast

import numpy as np

from ..backend import Array
from . import compiled, layout, plan, threads
from .memory import address, contiguous


class Job:
    """One call of compiled code: its fields, and what must outlive it."""

    def __init__(self) -> None:
        self.fields = [0] * layout.NUM_FIELDS
        self.data: dict[int, Array] = {}
        """Fields that point to arguments and results, or to what jobs hand on."""
        self.own: dict[int, Any] = {}
        """Fields that point to scratch and tables."""
        self.entry: compiled.Entry | None = None
        self.num_tasks = 0
        self._array: array[int] | None = None

    def point(self, field: int, x: Array) -> None:
        """Let `field` be the address of `x`, an argument or result."""
        self.data[field] = x
        self.fields[field] = address(x)

    def point_rows(self, field: int, by_batch: int, x: Array) -> None:
        """Let `field` be the address of rows (B or 1, K), and `by_batch` their stride."""
        x = contiguous(x)
        self.point(field, x)
        self.fields[by_batch] = x.shape[1] if x.shape[0] > 1 else 0

    def keep(self, field: int, x: Any) -> None:
        """Let `field` be the address of `x`, which follows from the shapes of the arguments, or has no value yet."""
        self.own[field] = x
        self.fields[field] = address(x)

    def copy(self) -> Job:
        found = Job()
        found.fields = list(self.fields)
        found.data, found.own = dict(self.data), dict(self.own)
        return found

    def array(self) -> array[int]:
        """The fields, for compiled code to read."""
        if self._array is None:
            self._array = array("q", self.fields)
        return self._array

    def start(self, tasks: plan.Plan) -> None:
        """Let the job do these tasks."""
        self.count_tasks(len(tasks.tasks) - 1)
        self.keep(layout.TASKS, tasks.tasks)
        self.keep(layout.ORDER, tasks.order)

    def count_tasks(self, num_tasks: int) -> None:
        """Let the job have so many tasks, which threads take one after the other."""
        self.num_tasks = self.fields[layout.NUM_TASKS] = num_tasks
        self.keep(layout.TICKET, np.zeros(1, np.int64))

    def scratch(self, size: int, copies: int) -> None:
        """Room of `size` bytes for each of `copies` threads."""
        self.fields[layout.SCRATCH_BYTES] = size
        self.keep(layout.SCRATCH, np.empty(size * copies + 64, np.uint8))


class Tape:
    """What a call executed, in order."""

    def __init__(self) -> None:
        self.steps: list[tuple[Sequence[Job], int]] = []
        self.handed: list[Array] = []


class _Recording(local):
    tape: Tape | None = None


recording = _Recording()


def handed(x: Array) -> Array:
    """`x`, which jobs of one call hand to each other, or which holds constants."""
    if recording.tape is not None:
        recording.tape.handed.append(x)
    return x


def execute(jobs: Sequence[Job], num_threads: int) -> None:
    """Do the tasks of all jobs, in their order, on `num_threads` threads, or one where there is but one task."""
    count = num_threads if sum(job.num_tasks for job in jobs) > 1 else 1
    if recording.tape is not None:
        recording.tape.steps.append((jobs, count))
    calls = [(cast(compiled.Entry, job.entry), job.array().buffer_info()[0]) for job in jobs]
    threads.run(calls, count)
