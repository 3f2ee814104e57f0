"""Calls of a form seen before: the same compiled code on other addresses, with nothing checked or laid out again.

A short sequence takes less time than the Python that checks and lays out its call. All of that depends on the types,
shapes, strides and dtypes of the arguments alone, so what a form's second call executes is recorded, and the third
repeats it.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from functools import wraps
from threading import local
from typing import Any, TypeVar, cast

import numpy as np

from ..backend import Array, Backend, find_backend
from . import compiled, layout, threads
from .job import Job, Tape, recording
from .memory import address, empty_like, strides
from .registry import registrations

Chained = TypeVar("Chained", bound=Callable[..., Any])
Span = tuple[int, int]
"""The first address, and one past the last."""

LARGEST = 2**17
"""Elements of emissions above which laying out a call is no matter."""
MOST_KEPT = 2**22
"""Bytes of scratch and tables that a recorded call may hold on to."""
MOST_FORMS = 256
"""Forms of calls that a thread remembers."""

_ONCE = object()
_KINDS = {"float32": "f32", "float64": "f64", "int64": "i64"}


class _Memory(local):
    def __init__(self) -> None:
        self.calls: dict[Any, Any] = {}


_memory = _Memory()


def forget() -> None:
    """Forget all calls; for whoever changes what they were made from."""
    global _memory
    _memory = _Memory()


def repeats(function: Chained) -> Chained:
    """`function` of a chain, which does for arguments of a form seen before what was recorded then."""

    @wraps(function)
    def call(
        log_initial: Array,
        log_transition: Any,
        log_emission: Array,
        *,
        lengths: Any = None,
        log_final: Array | None = None,
        kernel: str = "auto",
    ) -> Any:
        given: tuple[Array, ...] = (log_initial, log_transition, log_emission)
        options = {"lengths": lengths, "log_final": log_final, "kernel": kernel}
        if lengths is not None or recording.tape is not None or not isinstance(kernel, str):
            return function(*given, **options)
        backend = find_backend(log_emission)
        if log_final is not None:
            given = (*given, log_final)
        form = None if backend is None else backend.form(given)
        if backend is None or form is None:
            return function(*given[:3], **options)
        key, calls = (function, kernel, registrations(), threads.available(), form), _memory.calls
        known = calls.get(key)
        if type(known) is Recipe and not known.is_busy:
            return known.run(given)
        if known is _ONCE:
            found, calls[key] = _record(function, given, kernel, backend)
            return found
        if known is None:
            if len(calls) >= MOST_FORMS:
                calls.clear()
            calls[key] = _ONCE if log_emission.ndim > 1 and _size(log_emission) <= LARGEST else False
        return function(*given[:3], **options)

    return cast(Chained, call)


def _record(function: Callable[..., Any], given: Sequence[Array], kernel: str, backend: Backend) -> tuple[Any, Any]:
    """What `function` gives, and the recipe to have it again; False where there is none."""
    final = given[3] if len(given) > 3 else backend.full((given[2].shape[-1],), 0.0, like=given[2])
    tape = recording.tape = Tape()
    try:
        found = function(*given[:3], log_final=final, kernel=kernel)
    finally:
        recording.tape = None
    if len(given) == 3:
        tape.handed.append(final)
    try:
        return found, Recipe(tape, given, found)
    except _Unrepeatable:
        return found, False


class _Unrepeatable(Exception):
    """The call did more than compiled code does on its own arguments."""


class Recipe:
    """Compiled code to call, and which of its fields are addresses of arguments and results."""

    def __init__(self, tape: Tape, given: Sequence[Array], found: Any) -> None:
        results = found if isinstance(found, tuple) else (found,)
        self._make = type(found)._make if isinstance(found, tuple) else lambda results: results[0]  # type: ignore[attr-defined]
        self._results = [(tuple(x.shape), _kind(x)) for x in results]
        self._places = [_span(x) for x in (*given, *results)]
        self._handed = [_span(x) for x in tape.handed]
        if any(_meet(x, y) for i, x in enumerate(self._places) for y in (*self._places[:i], *self._handed)):
            raise _Unrepeatable
        self._kept: list[Any] = list(tape.handed)
        self._tickets = np.zeros(sum(len(jobs) for jobs, _ in tape.steps), np.int64)
        self._patches: list[tuple[array[int], list[tuple[int, int, int]]]] = []
        self._steps = [([self._call(job) for job in jobs], count) for jobs, count in tape.steps]
        used = {which for _, patches in self._patches for _, which, _ in patches}
        if len(used) < len(self._places) or sum(x.nbytes for x in self._kept) > MOST_KEPT:
            raise _Unrepeatable
        self.is_busy = False

    def _call(self, job: Job) -> tuple[compiled.Entry, int]:
        fields, patches = array("q", job.fields), []
        fields[layout.TICKET] = address(self._tickets) + 8 * len(self._patches)
        for field in job.data:
            inside = [i for i, (low, high) in enumerate(self._places) if low <= fields[field] < high]
            if inside:
                patches.append((field, inside[0], fields[field] - self._places[inside[0]][0]))
            elif not any(low <= fields[field] < high for low, high in self._handed):
                raise _Unrepeatable  # it was copied
        self._patches.append((fields, patches))
        self._kept += job.own.values()
        return cast(compiled.Entry, job.entry), fields.buffer_info()[0]

    def run(self, given: Sequence[Array]) -> Any:
        """The results for other arguments of the same form."""
        self.is_busy = True  # for a signal's handler that calls meanwhile
        try:
            results = [empty_like(given[0], shape, kind) for shape, kind in self._results]
            starts = [address(x) for x in (*given, *results)]
            for fields, patches in self._patches:
                for field, which, offset in patches:
                    fields[field] = starts[which] + offset
            self._tickets.fill(0)
            for calls, count in self._steps:
                threads.run(calls, count)
            return self._make(results)
        finally:
            self.is_busy = False


def _size(x: Array) -> int:
    return int(np.prod(x.shape))


def _kind(x: Array) -> str:
    kind = _KINDS.get(str(x.dtype).rpartition(".")[2])
    dense = np.cumprod([1, *x.shape[:0:-1]])[::-1]  # the strides of rows that follow each other
    if kind is None or any(n > 1 and s != d for n, s, d in zip(x.shape, strides(x), dense, strict=False)):
        raise _Unrepeatable
    return kind


def _span(x: Array) -> Span:
    by = strides(x)
    if min(by, default=0) < 0 or 0 in x.shape:
        raise _Unrepeatable
    start = address(x)
    return start, start + x.itemsize * (1 + sum((n - 1) * s for n, s in zip(x.shape, by, strict=True)))


def _meet(x: Span, y: Span) -> bool:
    return x[0] < y[1] and y[0] < x[1]
