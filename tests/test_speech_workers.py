"""Work in other processes: its order, its errors, and what becomes of a process that dies, or whose parent does."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pytorch_hmm.speech import workers
from pytorch_hmm.speech.workers import WorkerDied, WorkerError, spread
from tests.helpers import jobs


@pytest.fixture
def eager(monkeypatch):
    """Workers are started for whatever is left."""
    monkeypatch.setattr(workers, "WORTH", -math.inf)


def test_results_come_in_order_and_a_process_that_dies_costs_its_own_item(eager, tmp_path):
    once = f"die {tmp_path / 'once'}"
    items = [-1, -2, "raise", -3, "die", *range(-9, -4), once, "odd", -4]
    with spread(jobs.odd_jobs, items, 2) as results:
        found = {item: result.exception() or result.result() for item, result in results}
    assert list(found) == items
    full, died, odd = (found.pop(name) for name in ("raise", "die", "odd"))
    assert (type(full), full.errno, full.filename) == (OSError, 28, "file")
    assert type(died) is WorkerDied
    assert "\n" not in str(died)
    assert type(odd) is RuntimeError
    assert "no pickle" in str(odd)
    assert found.pop(once) == "lived"
    assert all(found[item] == abs(item) for item in found)


def test_workers_that_cannot_start_are_no_fault_of_the_item(eager, monkeypatch):
    monkeypatch.setattr(workers, "_begin", jobs.fail)
    with (
        spread(abs, [1, 2, 3, 4], 2) as results,
        pytest.raises(WorkerError, match=r"^a process that was started ended before it could work$"),
    ):
        list(results)


def test_workers_start_only_where_they_pay(monkeypatch):
    def none(*_, **__):
        raise AssertionError("a process was started")

    monkeypatch.setattr(workers, "ProcessPoolExecutor", none)

    def all_of(items, jobs):
        with spread(abs, items, jobs) as results:
            return [result.result() for _, result in results]

    assert all_of(range(-5, 0), 8) == [5, 4, 3, 2, 1]
    clock = iter(0.5 * n for n in range(1000))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    assert all_of(range(99), 1) == [*range(99)]
    assert all_of(range(42), 2) == [*range(42)]  # half a second each: of 20 s they would save 10
    with pytest.raises(AssertionError, match="a process was started"):
        all_of(range(44), 2)


def test_the_environment_stays_as_it_was(eager):
    before = dict(os.environ)
    with spread(abs, [-1, -2, -3, -4], 2) as results:
        assert [result.result() for _, result in results] == [1, 2, 3, 4]
    assert dict(os.environ) == before


def test_no_process_outlives_its_parent(tmp_path):
    """What it is at is interrupted, so that it can clean up."""
    mark = tmp_path / "mark"
    code = f"""
from pytorch_hmm.speech import workers
from tests.helpers.jobs import wait
workers.WORTH = -1e9
if __name__ == "__main__":
    with workers.spread(wait, ["", "", {str(mark)!r}, ""], 2) as results:
        for _, result in results:
            result.result()
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    parent = subprocess.Popen([sys.executable, "-c", code], env=environment)
    until = time.monotonic() + 120
    try:
        while not mark.is_file():
            assert parent.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    number = int(mark.with_suffix(".pid").read_text())
    until = time.monotonic() + 60
    while mark.is_file() or is_alive(number):
        assert time.monotonic() < until
        time.sleep(0.02)


def is_alive(number: int) -> bool:
    """Whether a process runs; one that ended may not yet be waited for by whoever adopted it."""
    try:
        os.kill(number, 0)
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (ProcessLookupError, FileNotFoundError):
        return False
