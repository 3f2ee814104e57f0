"""Latency of a chunk on one core, and memory over a stream of hours, in a process of their own."""

from __future__ import annotations

from typing import Any

from .extras import child

TARGET_MS = 10.0
"""Of the 99th percentile, of a chunk of 160 frames, K = 50, M = 4, D = 80."""
TARGET_BYTES = 20e6
"""By which memory may grow after the first minutes of a stream."""

SETUP = """
import json, os, sys, time, torch
torch.set_num_threads(1)
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
from pytorch_hmm import MixtureGaussianHMM, StreamingHMMProcessor
def current():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmRSS"))
torch.manual_seed(0)
model = MixtureGaussianHMM(num_states=50, obs_dim=80, num_mixtures=4, self_loop=0.9, topology="ergodic")
model.means = 0.3 * torch.randn(50, 4, 80)
processor = StreamingHMMProcessor(model, chunk_size=160, overlap=80, decode=sys.argv[1], frame_rate=100.0)
_, frames = model.sample(16_000)
chunks = frames.split(160)
"""

LATENCY = (
    SETUP
    + """
for chunk in chunks[:20]:
    processor.process_chunk(chunk)
wall, own = [], []
for i in range(int(sys.argv[2])):
    before, began = time.thread_time(), time.perf_counter()
    processor.process_chunk(chunks[i % len(chunks)])
    wall.append(time.perf_counter() - began)
    own.append(time.thread_time() - before)
def at(times, share):
    return 1e3 * sorted(times)[min(int(share * len(times)), len(times) - 1)]
print(json.dumps({"median_ms": at(wall, 0.5), "p99_ms": at(wall, 0.99), "cpu_median_ms": at(own, 0.5),
                  "cpu_p99_ms": at(own, 0.99), "real_time_factor": processor.statistics.real_time_factor}))
"""
)

LONG = (
    SETUP
    + """
count = int(float(sys.argv[2]) * 3600 * 100 / 160)
begin, times, sizes, given = time.perf_counter(), [], [], 0
for i in range(count):
    began = time.thread_time()
    rows = processor.process_chunk(chunks[i % len(chunks)])
    times.append(time.thread_time() - began)
    given += 0 if rows is None else len(rows)
    if i % 100 == 99:
        sizes.append(current())
part = max(len(times) // 10, 1)
print(json.dumps({"frames": count * 160, "given_out": given, "seconds": time.perf_counter() - begin,
                  "growth_bytes": max(sizes[-10:]) - sizes[min(4, len(sizes) - 1)],
                  "first_ms": 1e3 * sorted(times[:part])[part // 2], "last_ms": 1e3 * sorted(times[-part:])[part // 2]}))
"""
)


def latency(chunks: int = 1000) -> dict[str, Any]:
    """Milliseconds of a chunk, by decoding: on the clock, and of the thread alone."""
    found: dict[str, Any] = {"target_ms": TARGET_MS}
    for decode in ("filter", "posterior", "viterbi"):
        result = child(LATENCY, decode, str(chunks), timeout_s=300.0)
        if "failed" not in result:
            result["is_within"] = result["p99_ms"] <= TARGET_MS
        found[decode] = result
    return found


def hours(length: float = 10.0, decode: str = "viterbi") -> dict[str, Any]:
    """Frames, seconds and growth of memory of a stream of so many hours of 10 ms frames."""
    result = child(LONG, decode, str(length), timeout_s=3600.0)
    if "failed" not in result:
        result["is_within"] = result["growth_bytes"] <= TARGET_BYTES
    return result
