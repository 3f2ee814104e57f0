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
from pytorch_hmm.speech.workers import WorkerDied, WorkerError, Workers

# What `serve` answers, without its imports: items are what to do.
STAND_IN = """
import os, pickle, sys, time
source, sink = sys.stdin.buffer, sys.stdout.buffer
def send(message):
    sink.write(pickle.dumps(message))
    sink.flush()
send("ready")
job = None
while True:
    try:
        new, item = pickle.load(source)
    except EOFError:
        break
    job = new or job
    if item == "raise":
        send((False, OSError(28, "full", "file")))
    elif isinstance(item, str) and item.startswith("die"):
        marks = item.split()[1:]
        if not marks or not os.path.exists(marks[0]):
            for mark in marks:
                open(mark, "w").close()
            os.kill(os.getpid(), 9)
        send((True, "lived"))
    elif isinstance(item, str):
        open(item, "w").close()
        time.sleep(60)
    else:
        time.sleep(0.05 * (item % 3))
        send((True, job(item)))
"""


@pytest.fixture
def eager(monkeypatch):
    """Workers are started for whatever is left."""
    monkeypatch.setattr(workers, "WORTH", -math.inf)
    monkeypatch.setattr(workers, "_START", STAND_IN)


def test_results_come_in_order_and_a_process_that_dies_costs_its_own_item(eager, tmp_path):
    once = f"die {tmp_path / 'once'}"
    items = [-1, -2, "raise", -3, "die", *range(-9, -4), once, -4]
    found = {}
    with Workers(3) as pool:
        for item, result in pool.map(abs, items):
            found[item] = result.exception() or result.result()
        assert [result.result() for _, result in pool.map(float, [1, 2, 3])] == [1.0, 2.0, 3.0]
        processes = [worker._process for worker in pool._all]
    assert list(found) == items
    full, died = found.pop("raise"), found.pop("die")
    assert (type(full), full.errno, full.filename) == (OSError, 28, "file")
    assert type(died) is WorkerDied
    assert str(died) == (
        "the process that worked on it was ended by SIGKILL, for the second time; fewer --jobs take less memory"
    )
    assert found.pop(once) == "lived"
    assert all(found[item] == abs(item) for item in found)
    assert all(process.poll() == 0 for process in processes if process is not None)


def test_what_hangs_is_ended(eager, monkeypatch, tmp_path):
    started = time.monotonic()
    monkeypatch.setattr(workers, "PATIENCE", 0.2)
    hangs = tmp_path / "hangs"
    with Workers(2) as pool:
        asked = [result for _, result in pool.map(abs, [1, 2, str(hangs), 3])]
        while not hangs.is_file():
            assert time.monotonic() - started < 30
            time.sleep(0.01)
        processes = [worker._process for worker in pool._all]
    assert -9 in [process.poll() for process in processes if process is not None]
    assert type(asked[2].exception()) is WorkerError
    assert time.monotonic() - started < 40


def test_workers_that_cannot_start_are_no_fault_of_the_item(eager, monkeypatch):
    monkeypatch.setattr(workers, "_START", "import sys; sys.exit(3)")
    with Workers(2) as pool:
        *_, (_, result) = pool.map(abs, [1, 2, 3, 4])
        with pytest.raises(WorkerError, match=r"^a process that was started ended with status 3 before it could work$"):
            result.result()
    monkeypatch.setattr(sys, "executable", "/no such file")
    with Workers(2) as pool:
        *_, (_, result) = pool.map(abs, [1, 2, 3, 4])
        with pytest.raises(WorkerError, match=r"^no other process can be started: No such file"):
            result.result()


def test_workers_start_only_where_they_pay(monkeypatch):
    def none(*_, **__):
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", none)
    with Workers(8) as pool:
        assert [result.result() for _, result in pool.map(abs, range(-5, 0))] == [5, 4, 3, 2, 1]
    clock = iter(0.5 * n for n in range(1000))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    with Workers(1) as pool:
        assert [result.result() for _, result in pool.map(abs, range(99))] == [*range(99)]
    with Workers(2) as pool:  # half a second each: of 20 s they would save 10
        assert [result.result() for _, result in pool.map(abs, range(42))] == [*range(42)]
    with Workers(2) as pool:
        *_, (_, result) = pool.map(abs, range(44))
        with pytest.raises(AssertionError, match="a process was started"):
            result.result()


def test_no_process_outlives_its_parent(tmp_path):
    """The real ones. What they are at is interrupted, so that it can clean up."""
    mark = tmp_path / "mark"
    code = f"""
from pytorch_hmm.speech import workers
from tests.helpers.waiting import wait
workers.WORTH = -1e9
make = workers.ThreadPoolExecutor
workers.ThreadPoolExecutor = lambda jobs: make(1)  # one is enough
with workers.Workers(2) as pool:
    for _, result in pool.map(wait, ["", "", {str(mark)!r}, ""]):
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
