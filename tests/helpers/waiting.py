"""Work that lasts until it is interrupted."""

from __future__ import annotations

import os
import time
from pathlib import Path


def wait(path: str) -> None:
    """Leaves the process's number in PATH.pid, and the file PATH while it waits; of "" nothing."""
    if not path:
        return
    mark = Path(path)
    mark.with_suffix(".pid").write_text(str(os.getpid()))
    mark.touch()
    try:
        for _ in range(1200):
            time.sleep(0.1)
    finally:
        mark.unlink()
