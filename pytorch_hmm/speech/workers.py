"""Work spread over other processes, whose results come in the order of what was asked.

Processes, not threads: pictures are drawn by Python, one thread at a time. They are started afresh, since a process
that has used threads cannot be copied safely; that takes seconds of imports, so work begins here and goes on there once
it pays.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any, TypeVar

import torch

from hmm_functional._check import need_count

Item = TypeVar("Item")
Result = TypeVar("Result")

WORTH = 10.0
"""Seconds that workers have to save before they are started."""
PATIENCE = 5.0
"""Seconds that a worker has to clean up when the process that started it was killed."""
AHEAD = 8
"""Items asked for, each worker, before the first of them is taken."""
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


class WorkerDied(ValueError):
    """What was asked of a worker ended its process, twice; the message is one line."""


class WorkerError(RuntimeError):
    """Workers cannot be started; the message is one line."""


@contextmanager
def spread(
    job: Callable[[Item], Result], items: Sequence[Item], jobs: int
) -> Iterator[Iterator[tuple[Item, Future[Result]]]]:
    """`job` of each item, in their order, by up to `jobs` processes; by this one alone where that is about as quick.

    Each process computes with one thread, and so does this one meanwhile. The job, items and results go through pickle.

    Yields:
        Pairs of an item and its result: `result()` raises what `job` raised, `WorkerDied` where its process was
        killed, and killed again when it was alone.

    Raises:
        WorkerError: no process can be started.

    Example:
        >>> with spread(abs, [-1, 2, -3], jobs=4) as results:
        ...     [result.result() for _, result in results]
        [1, 2, 3]
    """
    pools = _Pools(job, need_count("jobs", jobs, 1))
    try:
        yield _results(job, items, pools)
    finally:
        pools.close()


def cores() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Pools:
    """One pool of fresh processes after the other: the death of a process ends its pool."""

    def __init__(self, job: Any, jobs: int) -> None:
        self.job, self.jobs = job, jobs
        self._pool: ProcessPoolExecutor | None = None
        self._size = 0

    def ask(self, item: Any, size: int) -> Future[Any]:
        """Its result, by a pool of `size` processes."""
        return self._submit(size, _do, item)

    def _submit(self, size: int, *call: Any) -> Future[Any]:
        """By the pool at hand, if it is of that size, else by a new one."""
        if self._pool is None or self._size != size:
            self.close()
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(size, spawn, _begin, (self.job,))
            self._size = size
        try:
            with _environment(dict.fromkeys(_ONE_THREAD, "1")):
                return self._pool.submit(*call)
        except OSError as error:
            raise WorkerError(f"no other process can be started: {error.strerror or error}") from None
        except BrokenProcessPool as error:
            broken: Future[Any] = Future()
            broken.set_exception(error)
            return broken

    def alone(self, item: Any) -> Future[Any]:
        """Of a pool of one process: if that dies twice, it is the item's fault."""
        for _ in range(2):
            found = self.ask(item, 1)
            if not isinstance(found.exception(), BrokenProcessPool):
                return found
            self.close()
        if isinstance(self._submit(1, cores).exception(), BrokenProcessPool):
            raise WorkerError("a process that was started ended before it could work")
        died: Future[Any] = Future()
        died.set_exception(WorkerDied("the process that worked on it was killed, twice; fewer --jobs take less memory"))
        return died

    def close(self) -> None:
        """Wait for what is being done, and for nothing else."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._pool = None


def _results(
    job: Callable[[Item], Result], items: Sequence[Item], pools: _Pools
) -> Iterator[tuple[Item, Future[Result]]]:
    left, seconds = deque(items), list[float]()
    while left and not _pays(pools.jobs, seconds, len(left)):
        item, before = left.popleft(), time.perf_counter()
        done = _done(job, item)
        seconds.append(time.perf_counter() - before)
        yield item, done
    asked: deque[tuple[Item, Future[Result]]] = deque()
    while left or asked:
        while left and len(asked) < AHEAD * pools.jobs:
            item = left.popleft()
            asked.append((item, pools.ask(item, pools.jobs)))
        item, done = asked.popleft()
        if not isinstance(done.exception(), BrokenProcessPool):
            yield item, done
            continue
        # whose fault it was is seen one by one
        asked.appendleft((item, done))
        while asked:
            item, done = asked.popleft()
            yield item, pools.alone(item) if isinstance(done.exception(), BrokenProcessPool) else done


def _pays(jobs: int, seconds: list[float], num_left: int) -> bool:
    """Whether workers do the rest, after what each took so far; the first one takes the longer, for what it imports."""
    if jobs == 1 or num_left < 2 or len(seconds) < 2:
        return False
    return sum(seconds[1:]) / (len(seconds) - 1) * num_left * (1.0 - 1.0 / min(jobs, num_left)) > WORTH


_job: Any = None


def _begin(job: Any) -> None:
    """What a worker does first."""
    global _job
    _job = job
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for the process that asks, which then ends the workers
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A pool's process would wait for ever for one that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)  # what it is at may clean up
    time.sleep(PATIENCE)
    os._exit(1)


def _do(item: Any) -> Any:
    try:
        return _job(item)
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # what cannot be sent would be taken for a death
            raise RuntimeError("".join(traceback.format_exception(error))) from None
        raise


def _done(job: Callable[[Item], Result], item: Item) -> Future[Result]:
    """By this process."""
    done: Future[Result] = Future()
    with _one_thread():
        try:
            done.set_result(job(item))
        except Exception as error:
            done.set_exception(error)
    return done


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums of several threads are in another order, and not the same to the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """With these variables, which processes started meanwhile inherit."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
