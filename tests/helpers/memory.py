"""Peak memory of a process: its own, where getrusage's also counts the process it was forked from."""

from __future__ import annotations

import resource
import sys


def peak():
    """Bytes."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
