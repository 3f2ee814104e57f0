"""A stream in a thread of its own: frames pushed by others, results in order, and no frame dropped."""

from __future__ import annotations

import atexit
import os
import time
from collections import deque
from collections.abc import Iterator
from threading import Condition, Thread
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from hmm_functional._check import need_count

from .control import AdaptiveChunks
from .processor import StreamingHMMProcessor


class StreamingQueue:
    """A thread-safe front of a `StreamingHMMProcessor`, which works in one thread behind it.

    Args:
        processor: the processor, which nobody else may use meanwhile.
        max_chunks: chunks that may wait on either side; whoever pushes more waits, and none is dropped.
        chunks: chooses how many frames are worked on at a time, whatever is pushed, and is told what they took. Frames
            are held until there are so many, or the queue is closed. Default: each push is a chunk.

    As a context manager it is closed at the end of the block, and aborted if the block raises. An error in the thread
    is raised by whatever is called next, or is waiting: `push`, `results`, after the results that came before it, or
    `close`.

    Example:
        >>> import torch
        >>> from pytorch_hmm import HMMPyTorch
        >>> with StreamingQueue(StreamingHMMProcessor(HMMPyTorch(num_states=3), overlap=2)) as queue:
        ...     for chunk in torch.randn(10, 3).split(4):
        ...         queue.push(chunk)
        >>> sum(len(rows) for rows in queue.results())
        10
    """

    def __init__(
        self, processor: StreamingHMMProcessor, max_chunks: int = 16, chunks: AdaptiveChunks | None = None
    ) -> None:
        if not isinstance(processor, StreamingHMMProcessor):
            raise TypeError(f"processor: expected a StreamingHMMProcessor, got {type(processor).__name__}")
        if not isinstance(chunks, AdaptiveChunks | None):
            raise TypeError(f"chunks: expected AdaptiveChunks or None, got {type(chunks).__name__}")
        self.processor = processor
        self.max_chunks = need_count("max_chunks", max_chunks, 1)
        self.chunks = chunks
        self._held: list[Tensor] = []
        """Frames taken from those that wait, too few for a chunk."""
        self._changed = Condition()
        self._waiting: deque[Tensor] = deque()
        self._done: deque[Tensor] = deque()
        self._is_closing = self._is_aborted = self._is_finished = False
        self._error: BaseException | None = None
        self._is_raised = False
        self._thread = Thread(target=self._work, name="pytorch-hmm stream", daemon=True)
        _at_work.add(self)
        self._thread.start()

    def push(self, features: Tensor, timeout: float | None = None) -> None:
        """Hand over the next frames, which are copied; wait while `max_chunks` are waiting already.

        Args:
            features: as `StreamingHMMProcessor.process_chunk`.
            timeout: seconds to wait at most; default: as long as it takes.

        Raises:
            TimeoutError: there was no room; the frames were not taken. ValueError: the queue is closed. Or the error
            that ended the thread.
        """
        features = features.clone() if isinstance(features, Tensor) else features
        with self._changed:
            is_ready = self._changed.wait_for(
                lambda: len(self._waiting) < self.max_chunks or self._is_closing or self._is_finished, timeout
            )
            self._raise()
            if self._is_closing or self._is_finished:
                raise ValueError("features: expected an open queue, this one is closed")
            if not is_ready:
                raise TimeoutError(f"features: no room in {timeout} s, {self.max_chunks} chunks wait; read the results")
            self._waiting.append(features)
            self._changed.notify_all()

    def results(self) -> Iterator[Tensor]:
        """What `process_chunk` and, once closed, `flush` return, in order, until the queue is closed and all is done.

        Raises:
            The error that ended the thread, after the results before it.
        """
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._done or self._is_finished)
                if not self._done:
                    self._raise()
                    return
                found = self._done.popleft()
                self._changed.notify_all()
            yield found

    def close(self, timeout: float | None = None) -> None:
        """Take no more frames, and wait until those taken are done and the stream is flushed; again does nothing.

        Results may still be read afterwards; until then they are kept, however many there are.

        Raises:
            TimeoutError: it is not done yet, and goes on. Or the error that ended the thread, if nobody has seen it.
        """
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise TimeoutError(f"close: the stream was not done in {timeout} s")
        with self._changed:
            if not self._is_raised:
                self._raise()

    def abort(self) -> None:
        """Stop as soon as the chunk at work is done; frames that wait are dropped, and the stream is not flushed."""
        with self._changed:
            self._is_closing = self._is_aborted = True
            self._waiting.clear()
            self._changed.notify_all()
        self._thread.join()

    @property
    def num_waiting(self) -> int:
        """Chunks that wait to be processed."""
        with self._changed:
            return len(self._waiting)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def _raise(self) -> None:
        if self._error is not None:
            self._is_raised = True
            raise self._error

    def _work(self) -> None:
        try:
            while (
                chunk := self._next() if self.chunks is None else self._gathered(self.chunks.chunk_size)
            ) is not None:
                begun = time.perf_counter()
                rows = self.processor.process_chunk(chunk)
                if self.chunks is not None and len(chunk):
                    self.chunks.update(len(chunk), time.perf_counter() - begun)
                self._put(rows)
            if not self._is_aborted:
                self._put(self.processor.flush())
        except BaseException as error:
            self._error = error
        finally:
            _at_work.discard(self)
            with self._changed:
                self._is_finished = True
                self._waiting.clear()
                self._changed.notify_all()

    def _next(self) -> Tensor | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closing)
            if self._is_aborted or not self._waiting:
                return None
            found = self._waiting.popleft()
            self._changed.notify_all()
            return found

    def _gathered(self, size: int) -> Tensor | None:
        """The next `size` frames, fewer at the end."""
        while sum(map(len, self._held)) < size:
            found = self._next()
            if not isinstance(found, Tensor) or found.ndim == 0:
                if found is not None:  # what the processor has to say of it is said
                    return found
                break
            self._held.append(found)
        if self._is_aborted or not self._held:
            return None
        whole = torch.cat(self._held)
        self._held = [whole[size:]] if len(whole) > size else []
        return whole[:size]

    def _put(self, rows: Tensor | None) -> None:
        """Keep a result; wait while there are many, unless nobody pushes any more."""
        if rows is None:
            return
        with self._changed:
            self._changed.wait_for(lambda: len(self._done) < self.max_chunks or self._is_closing)
            if not self._is_aborted:
                self._done.append(rows)
                self._changed.notify_all()


_at_work: set[StreamingQueue] = set()


@atexit.register
def _stop_all() -> None:
    """A thread that still computes when the interpreter goes away would abort the process."""
    for queue in list(_at_work):
        queue.abort()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_at_work.clear)  # threads stay behind
