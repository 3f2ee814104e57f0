"""Torch's own OpenMP threads, for kernels to run on.

After an operation they shared, these threads spin for some milliseconds in wait of the next. Threads of our own would
share the processors with them meanwhile; a region of the same team finds them awake.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from . import compiled

# what each thread of the team runs: words[0] tells its number; words[1] functions follow from words[4] on, each with
# its fields, and each is called. Words 2 and 3 take what Numba's convention returns
_SHARE = """
define void @share(ptr %words) {
start:
  %number_of_thread = load ptr, ptr %words
  %number = call i32 %number_of_thread()
  %wide = sext i32 %number to i64
  %at_count = getelementptr i64, ptr %words, i64 1
  %count = load i64, ptr %at_count
  %result = getelementptr i64, ptr %words, i64 2
  %problem = getelementptr i64, ptr %words, i64 3
  %first = getelementptr i64, ptr %words, i64 4
  br label %head
head:
  %i = phi i64 [0, %start], [%next, %body]
  %has_more = icmp slt i64 %i, %count
  br i1 %has_more, label %body, label %done
body:
  %twice = shl i64 %i, 1
  %at_function = getelementptr i64, ptr %first, i64 %twice
  %at_fields = getelementptr i64, ptr %at_function, i64 1
  %function = load ptr, ptr %at_function
  %fields = load ptr, ptr %at_fields
  %ignored = call i32 %function(ptr %result, ptr %problem, ptr %fields, i64 %wide)
  %next = add i64 %i, 1
  br label %head
done:
  ret void
}
"""


class Team:
    """GNU OpenMP as torch loaded it."""

    def __init__(self, parallel: Any, number_of_thread: int, share: int) -> None:
        self._parallel, self._number_of_thread, self._share = parallel, number_of_thread, share

    def run(self, calls: Sequence[tuple[compiled.Entry, int]], count: int) -> None:
        """Each of `count` threads, the calling one among them, makes all calls with its number."""
        words = [self._number_of_thread, len(calls), 0, 0]
        for entry, fields in calls:
            words += (entry.address, fields)
        array = np.array(words, np.int64)
        self._parallel(self._share, array.ctypes.data, count, 0)


@cache
def find() -> Team | None:
    """The team of torch's threads; None where torch is absent, or runs on something else than GNU OpenMP."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    try:
        library = ctypes.CDLL(torch._C.__file__)
        parallel, number_of_thread = library.GOMP_parallel, library.omp_get_thread_num
    except (AttributeError, OSError):
        return None
    parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    parallel.restype = None
    address = ctypes.cast(number_of_thread, ctypes.c_void_p).value
    assert address is not None
    return Team(parallel, address, compiled.from_text(_SHARE, "share"))
