"""Work spread over other processes, whose results come in the order of what was asked.

Processes, not threads: pictures are drawn by Python, one thread at a time. They are started afresh, since a process
that has used threads cannot be copied safely; that takes seconds of imports, so work begins here and goes on there once
it pays.
"""

from __future__ import annotations

import _thread
import json
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, Self, TypeVar

import torch

from hmm_functional._check import need_count

Item = TypeVar("Item")
Result = TypeVar("Result")

WORTH = 10.0
"""Seconds that workers have to save before they are started."""
PATIENCE = 5.0
"""Seconds that a worker has to end of itself."""
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from pytorch_hmm.speech.workers import serve; serve()"
)
_READY = "ready"


class WorkerDied(ValueError):
    """What was asked of a worker ended its process, twice; the message is one line."""


class WorkerError(RuntimeError):
    """Workers cannot be started; the message is one line."""


class Workers:
    """Up to so many processes, none where this one alone is about as quick. Each computes with one thread, and so is
    what is done in this one.

    Args:
        jobs: processes at most; with 1 all is done in this one.

    Example:
        >>> with Workers(4) as workers:
        ...     [result.result() for _, result in workers.map(abs, [-1, 2, -3])]
        [1, 2, 3]
    """

    def __init__(self, jobs: int) -> None:
        need_count("jobs", jobs, 1)
        self.jobs = jobs
        self._all: list[_Worker] = []
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._threads: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End all processes, in the middle of what they do, if need be; files are written whole or not at all."""
        for worker in self._all:
            worker.close()
        for worker in self._all:
            worker.wait()
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        for worker in self._all:  # that was being started
            worker.wait()

    def map(self, job: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[tuple[Item, Future[Result]]]:
        """`job` of each, in their order; `job`, items and results go through pickle.

        Yields:
            The item and what is or will be its result: `result()` waits for it, and raises what `job` raised.
            `WorkerDied` is raised where its process was killed, `WorkerError` where there can be none.
        """
        left, spent = deque(items), [0.0, 0.0]
        while left and not self._pays(len(items) - len(left), len(left), *spent):
            item, before = left.popleft(), time.perf_counter()
            done = _done(job, item)
            seconds = time.perf_counter() - before
            spent = [spent[0] + seconds, spent[1] or seconds]
            yield item, done
        asked: deque[tuple[Item, Future[Result]]] = deque()
        while left or asked:
            while left and len(asked) < 8 * self.jobs:
                item = left.popleft()
                asked.append((item, self._ask(job, item)))
            yield asked.popleft()

    def _pays(self, num_done: int, num_left: int, seconds: float, first: float) -> bool:
        """Whether workers do the rest; the first one takes the longer, for what it imports."""
        if self.jobs == 1 or num_left < 2:
            return False
        if self._threads is not None:
            return True
        if num_done < 2:
            return False
        return (seconds - first) / (num_done - 1) * num_left * (1.0 - 1.0 / min(self.jobs, num_left)) > WORTH

    def _ask(self, job: Callable[[Item], Result], item: Item) -> Future[Result]:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self.jobs)
            self._all = [_Worker() for _ in range(self.jobs)]
            for worker in self._all:
                self._idle.put(worker)

        def ask() -> Result:
            worker = self._idle.get()  # as many as threads: there is one
            try:
                found: Result = worker.do(job, item)
                return found
            finally:
                self._idle.put(worker)

        return self._threads.submit(ask)


def cores() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Worker:
    """A process, started when it is first needed, and again where it died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._job: Any = None
        self._is_closed = False

    def do(self, job: Callable[[Any], Any], item: Any) -> Any:
        """Of the job, by the process; twice where it dies, since it may not be this item's fault."""
        how = ""
        for _ in range(2):
            process = self._started()
            try:
                _send(process.stdin, (None if job is self._job else job, item))
                is_done, result = pickle.load(process.stdout)  # type: ignore[arg-type]
            except (EOFError, OSError, pickle.UnpicklingError):
                how = self._ended()
                continue
            self._job = job
            if is_done:
                return result
            raise result
        raise WorkerDied(f"the process that worked on it {how}, for the second time; fewer --jobs take less memory")

    def close(self) -> None:
        """Let the process end, in the middle of what it does."""
        self._is_closed = True
        if self._process is not None and self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()

    def wait(self) -> None:
        """Until the process has ended."""
        if self._process is not None:
            self._end(self._process)

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None:
            return self._process
        if self._is_closed:
            raise WorkerError("the workers are closed")
        try:
            self._process = process = subprocess.Popen(
                [sys.executable, "-c", _START, json.dumps(sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | dict.fromkeys(_ONE_THREAD, "1"),
                # Ctrl-C is for this process, which ends the workers
                process_group=0 if os.name == "posix" else None,
            )
        except OSError as error:
            raise WorkerError(f"no other process can be started: {error.strerror or error}") from None
        try:
            is_ready = pickle.load(process.stdout) == _READY  # type: ignore[arg-type]
        except (EOFError, OSError, pickle.UnpicklingError):
            is_ready = False
        if not is_ready:
            raise WorkerError(f"a process that was started {self._ended()} before it could work")
        return process

    def _ended(self) -> str:
        """How a process ended that no longer answers, in words."""
        process, self._process, self._job = self._process, None, None
        assert process is not None
        code = self._end(process)
        if code >= 0:
            return f"ended with status {code}"
        with suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
        return f"was ended by signal {-code}"

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> int:
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(OSError):
            process.stdin.close()
        try:
            code = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        process.stdout.close()
        return code


def serve() -> NoReturn:
    """What a worker does: answers what comes on its standard input, until that ends, and then ends in what it does."""
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nowhere, 0)
    os.dup2(2, 1)  # answers alone go there
    signal.signal(signal.SIGINT, signal.default_int_handler)
    asked: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(source, asked), daemon=True).start()
    with suppress(KeyboardInterrupt, BrokenPipeError):
        _send(sink, _READY)
        job: Any = None
        while (message := asked.get()) is not None:
            if isinstance(message, Exception):
                _send(sink, (False, _portable(message)))
                continue
            new, item = message
            job = job if new is None else new
            done = _done(job, item)
            error = done.exception()
            _send(sink, (True, done.result()) if error is None else (False, _portable(error)))
    os._exit(0)  # Python would wait for the thread that listens


def _listen(source: Any, asked: queue.SimpleQueue[Any]) -> None:
    """Until the other end is closed, or its process killed."""
    while True:
        try:
            asked.put(pickle.load(source))
        except (EOFError, OSError):
            break
        except Exception as error:
            asked.put(error)
    _thread.interrupt_main()
    asked.put(None)


def _send(sink: Any, message: Any) -> None:
    sink.write(pickle.dumps(message))
    sink.flush()


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


def _portable(error: BaseException) -> BaseException:
    """An error as pickle takes it, with where it was raised."""
    where = "".join(traceback.format_exception(error))
    try:
        error.add_note(where)
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(where)
    return error
