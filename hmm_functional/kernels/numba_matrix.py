"""The weights of a constant dense transition, linear or log, once for all the tasks of a call."""

from __future__ import annotations

from typing import Any

from .layout import MATRIX, NUM_STATES, SHIFT, TINY, WEIGHTS, WEIGHTS_FROM, WEIGHTS_TO
from .numba_chain import doubles, integers, matrix_parts
from .numba_math import arithmetic


def build(element: Any, io: Any, lanes: bool, is_log: bool) -> Any:
    """The kernel `run(fields, thread)`."""
    ar = arithmetic(element)
    parts = matrix_parts(ar, io)
    prepare, copy_log, ios, pointer = parts.prepare, parts.copy_log, parts.ios, ar.pointer

    def run(a, slot):
        K = a[NUM_STATES]
        source, out, flags = ios(a[WEIGHTS]), pointer(a[MATRIX]), integers(a[TINY])
        by_row, by_column = a[WEIGHTS_FROM], a[WEIGHTS_TO]
        if lanes:  # a row for each state moved into
            by_row, by_column = by_column, by_row
        if is_log:
            flags[K] = copy_log(source, by_row, by_column, K, K, out)
            return 0
        if lanes:
            shift, has_tiny = prepare(source, by_row, by_column, K, K, out, flags, True)
        else:
            shift, has_tiny = prepare(source, by_row, by_column, K, K, out, flags, False)
        doubles(a[SHIFT])[0] = shift
        flags[K] = has_tiny
        return 0

    return run
