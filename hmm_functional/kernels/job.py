"""One call of compiled code, and running several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from ..backend import Array
from . import compiled, layout, plan, threads
from .memory import address, contiguous


class Job:
    """One call of compiled code: its fields, and what must outlive it."""

    def __init__(self) -> None:
        self.fields = [0] * layout.NUM_FIELDS
        self._kept: list[Any] = []
        self.entry: compiled.Entry | None = None
        self.num_tasks = 0
        self._array: Any = None

    def point(self, field: int, x: Array) -> None:
        """Let `field` be the address of `x`, which is kept."""
        self._kept.append(x)
        self.fields[field] = address(x)

    def point_rows(self, field: int, by_batch: int, x: Array) -> None:
        """Let `field` be the address of rows (B or 1, K), and `by_batch` their stride."""
        x = contiguous(x)
        self.point(field, x)
        self.fields[by_batch] = x.shape[1] if x.shape[0] > 1 else 0

    def copy(self) -> Job:
        found = Job()
        found.fields = list(self.fields)
        found._kept = list(self._kept)
        return found

    def array(self) -> Any:
        """The fields, for compiled code to read, and to write HAS_TINY."""
        if self._array is None:
            self._array = np.array(self.fields, np.int64)
        return self._array

    def start(self, tasks: plan.Plan) -> None:
        """Let the job do these tasks."""
        self.num_tasks = len(tasks.tasks) - 1
        self.fields[layout.NUM_TASKS] = self.num_tasks
        self.point(layout.TICKET, np.zeros(1, np.int64))
        self.point(layout.TASKS, tasks.tasks)
        self.point(layout.ORDER, tasks.order)

    def scratch(self, size: int, copies: int) -> None:
        """Room of `size` bytes for each of `copies` threads."""
        self.fields[layout.SCRATCH_BYTES] = size
        self.point(layout.SCRATCH, np.empty(size * copies + 64, np.uint8))


def execute(jobs: Sequence[Job], num_threads: int) -> None:
    """Do the tasks of all jobs, in their order, on `num_threads` threads, or one where there is but one task."""
    calls = [(cast(compiled.Entry, job.entry), address(job.array())) for job in jobs]
    threads.run(calls, num_threads if sum(job.num_tasks for job in jobs) > 1 else 1)
